"""How long after the end of speech the first answer comes."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from time import perf_counter

import numpy as np
from dialogue import Dialogue
from skills import COMMANDS
from sound import CHUNK, RATE, Samples, chunks, spoken
from vad import WINDOW, SileroVad

from edgeroute import Utterance

VOICES = ("en", "en-us", "en-gb-scotland")
QUESTIONS = ("what time is it", "tell me a joke", "what is the capital of france", "set a timer for ten minutes")
HANGOVER_S = 0.5


def bench(dialogue: Dialogue) -> None:
    """Prints the latencies of commands, and of what is done for other utterances."""
    utterances = [spoken(word, voice) for voice in VOICES for word in COMMANDS]
    waited = sorted(measured(dialogue, utterances))
    print(f"end of speech to provisional answer, {len(waited)} commands: {_told(waited)}")
    print(f"  (from where the detector has found the end, which takes it {HANGOVER_S:.1f} s of silence)")
    words, intents = [], []
    for question in QUESTIONS:
        audio = spoken(question)
        begun = perf_counter()
        text = dialogue.transcribe(audio)
        words.append(perf_counter() - begun)
        begun = perf_counter()
        dialogue.intents.infer(text or question, data_class="text", mode="only_edge")
        intents.append(perf_counter() - begun)
    print(f"transcribing {len(words)} sentences: {_told(sorted(words))}")
    print(f"their intents: {_told(sorted(intents))}")


def measured(dialogue: Dialogue, utterances: list[Samples]) -> Iterator[float]:
    """The seconds from the chunk in which the detector finds the end of an utterance to its first answer."""
    given: list[float] = []
    answered = Event()

    def source() -> Iterator[Samples]:
        for utterance in utterances:
            answered.clear()
            for chunk in chunks([utterance]):
                given.append(perf_counter())
                yield chunk
            answered.wait(10)  # what is measured is not disturbed by the next

    with dialogue.commands.audio(
        source(), rate=RATE, vad=SileroVad(), window=WINDOW, hangover=HANGOVER_S, drop="never", data_class="audio"
    ) as heard:
        for event in heard:
            if isinstance(event, Utterance) and (event.provisional or event.changed):
                yield perf_counter() - given[round(event.end_s * RATE / CHUNK) - 1]
                answered.set()


def _told(seconds: list[float]) -> str:
    p50, p95 = (np.percentile(seconds, p) * 1000 for p in (50, 95))
    return f"p50 {p50:.0f} ms, p95 {p95:.0f} ms"
