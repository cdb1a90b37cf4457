"""Time from the end of speech to the first answer, with speech at the pace at which it is spoken."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from threading import Event
from time import perf_counter, sleep

import numpy as np
from dialogue import Dialogue, Reply
from skills import COMMANDS
from sound import CHUNK, RATE, Samples, chunks, spoken
from vad import WINDOW, SileroVad

from edgeroute import Utterance

VOICES = ("en", "en-us", "en-gb-scotland")
SPEEDS = (120, 135, 150, 165)
"""Words a minute."""
SENTENCES = ("what time is it", "tell me a joke", "set a timer for ten minutes")
HANGOVER_S = 0.5
"""Silence after which the detector takes speech for ended."""


def bench(dialogue: Dialogue) -> None:
    """Print a table of the latencies of commands and of sentences. It takes some seven minutes."""

    def sentence(event: Utterance) -> Reply | None:
        return None if event.provisional else dialogue.intent(dialogue.transcribe(event.audio).text)

    print(f"{platform.machine()}, {os.cpu_count()} processors, {platform.platform()}, Python {platform.python_version()}\n")
    print("| heard | answered | from | p50, ms | p95, ms |\n| --- | ---: | --- | ---: | ---: |")
    for name, texts, reply in (
        ("commands", COMMANDS, lambda event: dialogue.command(event.answer)),
        ("sentences: detector, transcription, intent", SENTENCES, sentence),
    ):
        utterances = [spoken(text, voice, speed) for voice in VOICES for speed in SPEEDS for text in texts]
        waited = np.array(list(measured(dialogue, utterances, reply)))
        for start, more in (("detected end to first answer", 0.0), (f"end of speech, {HANGOVER_S} s before", HANGOVER_S)):
            told = (f"{(np.percentile(waited, p) + more) * 1000:.0f}" if len(waited) else "-" for p in (50, 95))
            print(f"| {name} | {len(waited)} of {len(utterances)} | {start} | {' | '.join(told)} |", flush=True)


def measured(dialogue: Dialogue, utterances: Iterable[Samples], reply: Callable[[Utterance], Reply | None]) -> Iterator[float]:
    """Yield the seconds from the chunk in which the detector finds the end of an utterance to its first answer, if it has one."""
    given: list[float] = []
    answered = Event()

    def microphone() -> Iterator[Samples]:
        for utterance in utterances:
            answered.clear()
            begun = perf_counter()
            for number, chunk in enumerate(chunks([utterance]), 1):
                sleep(max(0.0, begun + number * CHUNK / RATE - perf_counter()))  # a chunk is there once it was spoken
                given.append(perf_counter())
                yield chunk
            answered.wait(10)  # what is measured is not disturbed by the next

    with dialogue.commands.audio(
        microphone(), rate=RATE, vad=SileroVad(), window=WINDOW, hangover=HANGOVER_S, drop="never", data_class="audio"
    ) as heard:
        found = -1
        for event in heard:
            if not isinstance(event, Utterance) or event.index == found:
                continue
            said = reply(event)
            if said is not None and said.kind != "nothing":
                found = event.index
                yield perf_counter() - given[round(event.end_s * RATE / CHUNK) - 1]
            if event.final or event.index == found:
                answered.set()
