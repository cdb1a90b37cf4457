"""A Wyoming service: Home Assistant's satellites use it for speech to text, for intents, and for answers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from dialogue import SURE_SHORT, Dialogue, Reply, is_sure
from sound import Samples, resampled
from wyoming.asr import Transcribe, Transcript
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
from wyoming.server import AsyncEventHandler

from edgeroute import BadInput, NoAnswer, PolicyError
from edgeroute.router.streams_sessions_chats import Conversation

log = logging.getLogger("voice")
MOST_S = 30.0
"""Seconds of audio that are kept of an utterance: it is transcribed then, whether the client has stopped or not."""
MOST_HZ, MOST_CHANNELS = 48_000, 2
MOST_CLIENTS = 64
"""More are refused. A client waits for its answer, so no more than these are worked on or waited for."""
IDLE_S = 60.0
"""A client that sends nothing for so long, or does not take its answer, is disconnected."""
MOST_BYTES = 1 << 20
"""Of the data or the audio of one event."""
MOST_TEXT = 1_000
"""Characters of what a client says."""
MOST_IDENTITY = 200
"""Characters of a conversation's id."""
MOST_CONVERSATIONS = 100
"""So many are remembered, the latest ones."""
THREADS = {"words": 2, "intents": 2, "answers": 4}
"""For each kind of work: slow answers do not keep others from being heard."""
GARBAGE = (ValueError, AttributeError, TypeError, KeyError, AssertionError, RecursionError)
"""What the library raises for bytes that are no event, and for events that lack something."""
REFUSALS = {"transcript": NotHandled, "recognize": NotRecognized}
"""What a client takes for an answer, where it is none; to other events it is an error."""


class Bounded:
    """A reader that refuses what an event should not have: `async_read_event` believes any length."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def readline(self) -> bytes:
        """Return the next line; raise ValueError if it is longer than 64 KiB."""
        return await self._reader.readline()

    async def readexactly(self, length: int) -> bytes:
        """Return so many bytes; raise ValueError if these are too many."""
        if length > MOST_BYTES:
            raise ValueError(f"an event of {length} bytes")
        return await self._reader.readexactly(length)


class Heard:
    """The audio of one utterance, as it comes: int16 of any rate and number of channels."""

    def __init__(self, rate: int, width: int, channels: int) -> None:
        whole = all(type(number) is int for number in (rate, width, channels))
        if not whole or width != 2 or not 8_000 <= rate <= MOST_HZ or not 1 <= channels <= MOST_CHANNELS:  # noqa: PLR2004 - bytes, hertz
            raise BadInput(f"audio has 2 bytes a sample, 8 to 48 kHz, 1 or 2 channels, not {width!r}, {rate!r} Hz, {channels!r}")
        self._rate, self._channels = rate, channels
        self._most = round(MOST_S * rate) * 2 * channels
        self._data = bytearray()

    def hear(self, chunk: AudioChunk) -> bool:
        """Append a chunk, up to 30 s in all; return True if it is enough.

        Raises:
            BadInput: its format is another than that of the first.
        """
        if (chunk.rate, chunk.width, chunk.channels) != (self._rate, 2, self._channels):
            raise BadInput("the format of the audio changes within an utterance")
        self._data += chunk.audio[: self._most - len(self._data)]
        return len(self._data) >= self._most

    def samples(self) -> Samples:
        """Return all of it, float32 [samples] at 16 kHz."""
        whole = len(self._data) - len(self._data) % (2 * self._channels)
        mixed = np.frombuffer(bytes(self._data[:whole]), "<i2").reshape(-1, self._channels).mean(1)
        return resampled(mixed.astype(np.float32) / 32768, self._rate)


class Service:
    """What all clients share: the dialogue, threads to run it in, and the latest conversations."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.clients = 0
        self.ended = threading.Event()
        self._threads = {kind: ThreadPoolExecutor(most, kind) for kind, most in THREADS.items()}
        self._talks: OrderedDict[str, tuple[Conversation, asyncio.Lock]] = OrderedDict()

    async def run(self, kind: str, function: Any, *arguments: Any) -> Any:
        """Runs a function that takes its time, in a thread for this kind of work."""
        if self.ended.is_set():
            raise EOFError("the service has ended")
        return await asyncio.get_running_loop().run_in_executor(self._threads[kind], function, *arguments)

    def words(self, heard: Heard) -> str:
        """Return what was said: the name of a command, or what was transcribed; empty: it was not understood.

        A command model that gives no answer is logged, and the words are transcribed.
        """
        audio = heard.samples()
        if not len(audio):
            return ""
        try:
            command = self.dialogue.command(self.dialogue.commands.infer(audio, data_class="audio"))
        except NoAnswer as e:
            log.warning("a command could not be told from other words: %s", e)
            command = None
        if command is not None:
            return command.heard
        words = self.dialogue.transcribe(audio)
        return words.text if words.confidence >= SURE_SHORT else ""

    async def reply(self, text: str, identity: str | None) -> Reply | None:
        """Return what is said to a text, in the conversation of this id; None: the service has ended.

        A conversation takes one turn at a time; the latest 100 are kept. Without an id each text is one of its own. Raises
        BadInput for a text or id that is too long.
        """
        _check(text, MOST_TEXT)
        if identity is None:
            return await self.run("answers", self.dialogue.of_text, text, self.dialogue.conversation(), self.ended.is_set)
        _check(identity, MOST_IDENTITY)
        talk, turn = self._talks.setdefault(identity, (self.dialogue.conversation(), asyncio.Lock()))
        self._talks.move_to_end(identity)
        if len(self._talks) > MOST_CONVERSATIONS:
            self._talks.popitem(last=False)
        async with turn:  # a conversation takes one turn at a time
            return await self.run("answers", self.dialogue.of_text, text, talk, self.ended.is_set)

    def close(self) -> None:
        """Drop what has not begun, stop the language model, and wait for the rest of what has."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        self.ended.set()
        for threads in self._threads.values():
            threads.shutdown()


class Client(AsyncEventHandler):
    """One connection."""

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._service = service
        self._heard: Heard | None = None
        self._cut = False
        """Whether the utterance was long enough, and the rest of it is left out."""

    async def run(self) -> None:
        """Answer its events until it leaves, is silent for 60 s, or sends what is no event (logged). Refuse a 65th one."""
        self._service.clients += 1
        try:
            if self._service.clients > MOST_CLIENTS:
                await self.write_event(Error(text=f"{MOST_CLIENTS} clients are connected already", code="busy").event())
            else:
                await self._answer_all()
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.CancelledError):
            pass  # it left, or may have; or the service ends
        except GARBAGE as e:
            log.info("a client sent what is no event: %s: %s", type(e).__name__, e)
        except Exception:
            log.exception("a client was not answered; the others go on")
        finally:
            self._service.clients -= 1
            self.writer.close()

    async def write_event(self, event: Event) -> None:
        """Sends an event; TimeoutError if the client does not take it."""
        await asyncio.wait_for(super().write_event(event), IDLE_S)

    async def _answer_all(self) -> None:
        """Read events and answer each; one that is wrong gets a refusal, and the next is read."""
        bounded: Any = Bounded(self.reader)
        while (event := await asyncio.wait_for(async_read_event(bounded), IDLE_S)) is not None:
            try:
                await self.handle_event(event)
            except GARBAGE as e:  # noqa: PERF203 - of one event, as BadInput is: the next may be better
                refused = REFUSALS.get(event.type, partial(Error, code="bad-input"))
                await self.write_event(refused(text=f"{event.type}: {e}").event())

    async def handle_event(self, event: Event) -> bool:
        """Answer one event: about the service, audio, an intent, or a text; return True, to go on."""
        service = self._service
        if Describe.is_type(event.type):
            await self.write_event(INFO.event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
        elif Transcribe.is_type(event.type):
            self._heard, self._cut = None, False
        elif AudioStart.is_type(event.type):
            self._heard, self._cut = None, False  # whatever was heard before, and if this is refused
            start = AudioStart.from_event(event)
            self._heard = Heard(start.rate, start.width, start.channels)
        elif AudioChunk.is_type(event.type):
            await self._chunk(AudioChunk.from_event(event))
        elif AudioStop.is_type(event.type):
            if not self._cut:
                await self._transcript()
            self._cut = False
        elif Recognize.is_type(event.type):
            await self._recognize(Recognize.from_event(event).text)
        elif Transcript.is_type(event.type):
            said = Transcript.from_event(event)
            context = event.data.get("context") or {}
            reply = await service.reply(said.text, context.get("conversation_id"))
            if reply is not None:
                kind = NotHandled if reply.kind == "nothing" else Handled
                await self.write_event(kind(text=reply.text).event())
        return True

    async def _chunk(self, chunk: AudioChunk) -> None:
        """Add a chunk of audio; once the utterance is long enough, answer it, and leave out the rest."""
        if self._cut:
            return
        if self._heard is None:
            self._heard = Heard(chunk.rate, chunk.width, chunk.channels)
        if self._heard.hear(chunk):
            self._cut = True
            await self._transcript()

    async def _transcript(self) -> None:
        """Answer with what was heard, and begin anew."""
        heard, self._heard = self._heard, None
        text = "" if heard is None else await self._service.run("words", self._service.words, heard)
        await self.write_event(Transcript(text=text).event())

    async def _recognize(self, text: str) -> None:
        """Answer with the intent of a text, or that there is none that is sure."""
        _check(text, MOST_TEXT)
        try:
            answer = await self._service.run("intents", partial(self._service.dialogue.intents.infer, text, data_class="text"))
        except NoAnswer as e:
            await self.write_event(NotRecognized(text=str(e)).event())
            return
        sure = is_sure(answer)
        await self.write_event(Intent(name=str(answer.value)).event() if sure else NotRecognized(text=answer.reason).event())


def _check(text: Any, most: int) -> None:
    """Raises BadInput if it is no text that somebody may have said, or named a conversation."""
    if not isinstance(text, str) or len(text) > most:
        raise BadInput(f"expected a text of at most {most} characters")


def _info() -> Info:
    """Return what it can do, as clients are told."""
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


def _address(uri: str) -> tuple[str, int]:
    """Return address and port of a URI.

    Raises:
        ValueError: it is not tcp://ADDRESS:PORT.
    """
    parts = urlsplit(uri)
    if parts.scheme != "tcp" or parts.hostname is None or parts.port is None:
        raise ValueError("expected tcp://ADDRESS:PORT")
    return parts.hostname, parts.port


async def serve(dialogue: Dialogue, uri: str, listening: Callable[[str], object]) -> None:
    """Serve Wyoming clients until it is cancelled; `listening` is called with the address once they may connect.

    Raises:
        PolicyError: it cannot listen there.
    """
    service = Service(dialogue)
    try:
        server = await asyncio.start_server(lambda *streams: Client(service, *streams).run(), *_address(uri))
    except (OSError, ValueError) as e:
        raise PolicyError(f"--uri {uri}: cannot listen there: {e}") from e
    host, port = server.sockets[0].getsockname()[:2]
    listening(f"tcp://{host}:{port}")
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        service.close()


def run(dialogue: Dialogue, uri: str) -> None:
    """Serves until Ctrl-C."""
    asyncio.run(serve(dialogue, uri, lambda address: print(f"A Wyoming service at {address}; Ctrl-C ends.", flush=True)))
