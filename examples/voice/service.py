"""A Wyoming service: Home Assistant's satellites use it for speech to text, for intents, and for answers."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from dialogue import Dialogue, Reply, is_sure
from sound import Samples, resampled
from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_read_event
from wyoming.handle import Handled, NotHandled
from wyoming.info import (
    AsrModel,
    AsrProgram,
    Attribution,
    Describe,
    HandleModel,
    HandleProgram,
    Info,
    IntentModel,
    IntentProgram,
)
from wyoming.intent import Intent, NotRecognized, Recognize
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncServer

from edgeroute import BadInput, Conversation, NoAnswer, PolicyError

log = logging.getLogger("voice")
MOST_S = 30.0
"""Seconds of audio that are kept of an utterance: it is transcribed then, whether the client has stopped or not."""
MOST_BYTES = 1 << 20
"""Of the data or the audio of one event."""
MOST_TEXT = 1_000
"""Characters of what a client says."""
MOST_CONVERSATIONS = 100
"""So many are remembered, the latest ones."""
THREADS = 4
GARBAGE = (ValueError, AttributeError, TypeError, KeyError, AssertionError, RecursionError)
"""What the library raises for bytes that are no event, and for events that lack something."""


class Bounded:
    """A reader that refuses what an event should not have: `async_read_event` believes any length."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def readline(self) -> bytes:
        """The next line; ValueError if it is longer than 64 KiB."""
        return await self._reader.readline()

    async def readexactly(self, length: int) -> bytes:
        """So many bytes; ValueError if these are too many."""
        if length > MOST_BYTES:
            raise ValueError(f"an event of {length} bytes")
        return await self._reader.readexactly(length)


class Heard:
    """The audio of one utterance, as it comes: int16 of any rate and number of channels."""

    def __init__(self, rate: int, width: int, channels: int) -> None:
        if width != 2 or not 8_000 <= rate <= 192_000 or not 1 <= channels <= 8:  # noqa: PLR2004 - bytes, hertz
            raise BadInput(f"audio has 16 bits, 8 to 192 kHz and 1 to 8 channels, not {8 * width}, {rate} Hz, {channels}")
        self._rate, self._channels = rate, channels
        self._most = round(MOST_S * rate) * 2 * channels
        self._data = bytearray()

    def hear(self, chunk: AudioChunk) -> bool:
        """Appends a chunk -> whether it is enough."""
        if (chunk.rate, chunk.width, chunk.channels) != (self._rate, 2, self._channels):
            raise BadInput("the format of the audio changes within an utterance")
        self._data += chunk.audio[: self._most - len(self._data)]
        return len(self._data) >= self._most

    def samples(self) -> Samples:
        """All of it, float32 [samples] at 16 kHz."""
        whole = len(self._data) - len(self._data) % (2 * self._channels)
        mixed = np.frombuffer(bytes(self._data[:whole]), "<i2").reshape(-1, self._channels).mean(1)
        return resampled(mixed.astype(np.float32) / 32768, self._rate)


class Service:
    """What all clients share: the dialogue, threads to run it in, and the latest conversations."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self._threads = ThreadPoolExecutor(THREADS, "voice")
        self._talks: OrderedDict[str, tuple[Conversation, asyncio.Lock]] = OrderedDict()

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Runs a function that takes its time."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def words(self, audio: Samples) -> str:
        """What was said: the name of a command, or what was transcribed."""
        try:
            command = self.dialogue.command(self.dialogue.commands.infer(audio, data_class="audio"))
        except NoAnswer as e:
            log.warning("a command could not be told from other words: %s", e)
            command = None
        return self.dialogue.transcribe(audio) if command is None else command.heard

    async def reply(self, text: str, identity: str | None) -> Reply:
        """What is said to a text, in the conversation of this id."""
        _check(text)
        if identity is None:
            return await self.run(self.dialogue.of_text, text, self.dialogue.conversation())
        talk, turn = self._talks.setdefault(identity, (self.dialogue.conversation(), asyncio.Lock()))
        self._talks.move_to_end(identity)
        if len(self._talks) > MOST_CONVERSATIONS:
            self._talks.popitem(last=False)
        async with turn:  # a conversation takes one turn at a time
            return await self.run(self.dialogue.of_text, text, talk)

    def close(self) -> None:
        """Waits for what is being run."""
        self._threads.shutdown()


class Client(AsyncEventHandler):
    """One connection."""

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._service = service
        self._heard: Heard | None = None
        self._transcribed = False

    async def run(self) -> None:
        """Answers its events, until it leaves or sends what is no event."""
        bounded: Any = Bounded(self.reader)
        try:
            while (event := await async_read_event(bounded)) is not None:
                try:
                    await self.handle_event(event)
                except GARBAGE as e:  # noqa: PERF203 - of one event, as BadInput is: the next may be better
                    await self.write_event(Error(text=f"{event.type}: {e}", code="bad-input").event())
        except (OSError, EOFError):
            pass  # it left
        except GARBAGE as e:
            log.info("a client sent what is no event: %s: %s", type(e).__name__, e)
        except Exception:
            log.exception("a client was not answered; the others go on")
        finally:
            self.writer.close()

    async def handle_event(self, event: Event) -> bool:
        """Answers one event."""
        service = self._service
        if Describe.is_type(event.type):
            await self.write_event(INFO.event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
        elif AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
            self._heard, self._transcribed = Heard(start.rate, start.width, start.channels), False
        elif AudioChunk.is_type(event.type):
            await self._chunk(AudioChunk.from_event(event))
        elif AudioStop.is_type(event.type):
            await self._transcript()
        elif Recognize.is_type(event.type):
            await self._recognize(Recognize.from_event(event).text)
        elif Transcript.is_type(event.type):
            said = Transcript.from_event(event)
            context = event.data.get("context") or {}
            reply = await service.reply(said.text, context.get("conversation_id"))
            kind = NotHandled if reply.kind == "nothing" else Handled
            await self.write_event(kind(text=reply.text).event())
        return True

    async def _chunk(self, chunk: AudioChunk) -> None:
        if self._transcribed:
            return  # it was long enough
        if self._heard is None:
            self._heard = Heard(chunk.rate, chunk.width, chunk.channels)
        if self._heard.hear(chunk):
            await self._transcript()

    async def _transcript(self) -> None:
        if self._transcribed:
            return
        heard, self._heard, self._transcribed = self._heard, None, True
        samples = None if heard is None else heard.samples()
        text = "" if samples is None or not len(samples) else await self._service.run(self._service.words, samples)
        await self.write_event(Transcript(text=text).event())

    async def _recognize(self, text: str) -> None:
        _check(text)
        try:
            answer = await self._service.run(partial(self._service.dialogue.intents.infer, text, data_class="text"))
        except NoAnswer as e:
            await self.write_event(NotRecognized(text=str(e)).event())
            return
        sure = is_sure(answer)
        await self.write_event(Intent(name=str(answer.value)).event() if sure else NotRecognized(text=answer.reason).event())


def _check(text: Any) -> None:
    """Raises BadInput if it is no text that somebody may have said."""
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise BadInput(f"expected a text of at most {MOST_TEXT} characters")


def _info() -> Info:
    """What it can do, as clients are told."""
    about: dict[str, Any] = {"installed": True, "version": None, "attribution": Attribution(name="edgeroute", url="")}
    english: dict[str, Any] = {**about, "languages": ["en"]}
    return Info(
        asr=[
            AsrProgram(
                name="edgeroute-voice", description="Spoken commands, and Moonshine tiny", **about,
                models=[AsrModel(name="commands-and-words", description="On the device", **english)],
            )
        ],
        intent=[
            IntentProgram(
                name="edgeroute-voice", description="150 intents", **about,
                models=[IntentModel(name="intents", description="On the device, the cloud where it is not sure", **english)],
            )
        ],
        handle=[
            HandleProgram(
                name="edgeroute-voice", description="Intents, and language models for open questions", **about,
                models=[HandleModel(name="answers", description="On the device, the cloud where it is not sure", **english)],
            )
        ],
    )  # fmt: skip


INFO = _info()


async def serve(dialogue: Dialogue, uri: str, listening: Any = None) -> None:
    """Serves Wyoming clients until it is cancelled; `listening` is called once they may connect."""
    service = Service(dialogue)
    try:
        server = AsyncServer.from_uri(uri)
        await server.start(partial(Client, service))
    except (OSError, ValueError) as e:
        raise PolicyError(f"--uri {uri}: cannot listen there: {e}") from e
    if listening is not None:
        listening()
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop()
        service.close()


def run(dialogue: Dialogue, uri: str) -> None:
    """Serves until Ctrl-C."""
    asyncio.run(serve(dialogue, uri, lambda: print(f"A Wyoming service at {uri}; Ctrl-C ends.")))
