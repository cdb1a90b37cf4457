"""The loop: audio in, replies out, each shown as it is known, and spoken once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dialogue import Dialogue, Reply, Step
from mouth import Mouth
from sound import RATE
from vad import WINDOW, SileroVad

from edgeroute import BadInput, BargeIn, NoAnswer, Utterance


def listen(dialogue: Dialogue, chunks: Iterable[Any], mouth: Mouth, show: Callable[[Reply | str], object], *, live: bool) -> None:
    """Answer the speech in these chunks until they end: show each reply, and speak it once. Shows where there is no answer.

    Args:
        dialogue: the routers.
        chunks: of audio at 16 kHz.
        mouth: speaks the answers, and stops where somebody begins to speak.
        show: gets each reply, and notes.
        live: True if the source goes on while an answer is worked out and spoken, as a microphone does: then new speech cancels
            both. A recording waits.
    """

    def ring(text: str) -> None:
        show(Reply("skill", "", text, "edge", "its time has come", skill="ring", state="edge"))
        mouth.ring(text)

    talk = dialogue.conversation()
    dialogue.home.ring = ring
    spoken: dict[int, str] = {}
    anything, index = False, -1
    with dialogue.commands.audio(
        chunks, rate=RATE, vad=SileroVad(), window=WINDOW, drop="oldest" if live else "never", on_barge_in=mouth.barge_in,
        data_class="audio",
    ) as heard:  # fmt: skip
        while True:
            try:
                event = next(heard)
            except StopIteration:
                break
            except (NoAnswer, BadInput) as e:  # of one utterance: the next may have an answer
                anything = True
                show(f"(no answer: {e})")
                continue
            if isinstance(event, BargeIn):
                show(f"({event.at_s:.1f} s: interrupted)")
                for index in event.cancelled:
                    spoken.pop(index, None)
                continue
            anything = True
            if event.index != index:
                index = event.index
                dialogue.trace(Step("heard", f"{event.end_s - event.start_s:.1f} s of speech"))
            reply = reply_to(dialogue, talk, event, mouth)
            if reply is None:
                continue
            show(reply)
            before = spoken.pop(event.index, None)
            if before != reply.text and reply.heard:  # a cough is not answered
                mouth.say(reply.text if before is None else f"No: {reply.text}", event.end_s)
            if event.provisional:
                spoken[event.index] = reply.text  # what the cloud says may be the same
    if not anything:
        show("(no speech was heard)")


def reply_to(dialogue: Dialogue, talk: Any, event: Utterance, mouth: Mouth) -> Reply | None:
    """Return what is said to an utterance; None: nothing yet, or no more, as somebody has begun to speak."""
    command = dialogue.command(event.answer)
    if command is not None or event.provisional:
        return command

    def stopped() -> bool:
        return mouth.interrupted(event.end_s)

    return dialogue.of_audio(event.audio, talk, stopped)
