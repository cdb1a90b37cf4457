"""Plays the script of forty sentences in four voices and three noises, and counts what was done for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import tomllib
from dialogue import Dialogue, Reply
from listen import listen
from mouth import Mouth
from skills import INTENTS, Home
from sound import CHUNK, RATE, Samples, silence, spoken
from wishes import Wish

NOON = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
VOICES = ("en-us", "en-us+f3", "en-gb-x-rp+m3", "en-gb-scotland")
NOISES = {"quiet": 30, "fan": 15, "talk": 15}
"""Of each kind, how many decibels speech is louder."""
TALKERS = {
    "en-gb-x-rp+f2": "The train to the coast was late again, and nobody there knew when it would come, so we walked home.",
    "en-us+m5": "She bought apples and a large blue umbrella before the shop on the corner closed for the rest of the winter.",
    "en-gb-scotland+f4": "They went over the old bridge, and looked for the little boat that their uncle had left there once.",
}


UNSURE = ("I am not sure.", "I do not know.")


class Case(NamedTuple):
    """A sentence of the script, how it is said, and what is to become of it."""

    say: str
    voice: str
    noise: str
    kind: str
    expected: str


class Outcome(NamedTuple):
    """What became of a sentence. `verdict`: right, again (it asks again or is not sure), or wrong."""

    case: Case
    heard: str
    verdict: str
    skill: str
    value: str
    said: str
    reason: str

    @property
    def harmful(self) -> bool:
        """Return whether a timer or an alarm was set that nobody wanted, or something else was done than was wished for."""
        other = self.skill in {"timer", "alarm"} or self.skill != self.case.kind
        return self.verdict == "wrong" and self.skill in INTENTS and other


def cases() -> list[Case]:
    """Return all of them: the sentences, in each voice, in each noise."""
    script = tomllib.loads(Path(__file__).with_name("script.toml").read_text(encoding="utf-8"))
    sentences = [(one["say"], kind, one.get("value", one.get("text", ""))) for kind, some in script.items() for one in some]
    return [Case(say, voice, noise, *right) for say, *right in sentences for voice in VOICES for noise in NOISES]


def sample() -> list[Case]:
    """Return every other sentence once, in turn in each voice and noise."""
    found = cases()
    each = len(VOICES) * len(NOISES)
    return [found[2 * number * each + number * 5 % each] for number in range(len(found) // each // 2)]


def played(dialogue: Dialogue, given: Iterable[Case]) -> Iterator[Outcome]:
    """Yield what becomes of each of these, with audio, detector, models and skills as they are for who speaks."""
    for case in given:
        home = Home(ring=repr, now=lambda: NOON)
        home.items.append("eggs")
        for wish in (Wish("timer", 600.0), Wish("alarm", NOON.replace(hour=23))):
            home.do(wish)
        shown: list[Reply | str] = []
        listen(replace(dialogue, home=home), _chunks(noisy(case)), Mouth(), shown.append, live=False)
        home.close()
        yield _outcome(case, [reply for reply in shown if isinstance(reply, Reply) and reply.skill != "ring"])


def noisy(case: Case) -> Samples:
    """Return a sentence with its noise, the same each time: 0.3 s of noise before it, and 1 s after it."""
    speech = np.concatenate([silence(0.3), spoken(case.say, case.voice), silence(1)])
    noise = _noise(case.noise, len(speech), crc32("|".join(case[:3]).encode()))
    power = np.square(speech).sum() / np.count_nonzero(speech)
    noise *= np.sqrt(power / np.square(noise).mean() / 10 ** (NOISES[case.noise] / 10))
    return np.clip(speech + noise, -1, 1).astype(np.float32)


def table(found: list[Outcome]) -> str:
    """Return the shares in percent, by voice and noise, and what was done wrong."""
    lines = ["| voice | noise | right, % | asked again or unsure, % | wrong, % |", "| --- | --- | ---: | ---: | ---: |"]
    for voice in (*VOICES, "all"):
        for noise in (*NOISES, "all"):
            some = [one for one in found if voice in {one.case.voice, "all"} and noise in {one.case.noise, "all"}]
            verdicts = Counter(one.verdict for one in some)
            if some:
                shares = " | ".join(f"{100 * verdicts[name] / len(some):.0f}" for name in ("right", "again", "wrong"))
                lines.append(f"| {voice} | {noise} | {shares} |")
    harmful = sum(one.harmful for one in found)
    return "\n".join([*lines, "", f"{len(found)} sentences; wrong timers, wrong alarms and wrong skills: {harmful}"])


def matrix(dialogue: Dialogue, show: Callable[[str], object] = print) -> list[Outcome]:
    """Play all of it, show what is not right, and the table; return all outcomes. It takes some minutes."""
    found = []
    for one in played(dialogue, cases()):
        found.append(one)
        if one.verdict != "right":
            said = f"{one.heard!r} {one.skill} {one.value} {one.said!r} ({one.reason[:60]})"
            show(f"{one.verdict:6} {one.case.voice:15} {one.case.noise:6} {one.case.say!r}: {said}")
    show(table(found))
    return found


def _outcome(case: Case, replies: list[Reply]) -> Outcome:
    """Judge the replies to a sentence; two or more that did something are wrong, as one was for a part of it."""
    acted = [reply for reply in replies if reply.kind != "nothing" and not reply.text.startswith(UNSURE)]
    last = acted[-1] if acted else replies[-1] if replies else Reply("nothing", "", "", "", "no speech was heard")
    if len(acted) > 1:
        verdict = "wrong"
    elif not acted:
        verdict = "right" if case.kind == "nothing" else "again"
    elif case.kind in INTENTS:
        verdict = "right" if (last.skill, str(last.value)) == (case.kind, case.expected) else "wrong"
    else:
        verdict = "right" if last.kind == case.kind and case.expected in last.text else "wrong"
    return Outcome(case, last.heard, verdict, last.skill, str(last.value), last.text, last.reason)


def _chunks(samples: Samples) -> Iterator[Samples]:
    samples = np.pad(samples, (0, -len(samples) % CHUNK))
    yield from samples.reshape(-1, CHUNK)


def _noise(kind: str, length: int, seed: int) -> Samples:
    """Return noise, the same for a seed: talk of others, or pink noise."""
    random = np.random.default_rng(seed)
    if kind == "talk":
        talk = _talk()
        return np.resize(np.roll(talk, random.integers(len(talk))), length)
    spectrum = np.fft.rfft(random.normal(size=length)) / np.sqrt(np.maximum(20, np.fft.rfftfreq(length, 1 / RATE)))
    return np.fft.irfft(spectrum, length)  # pink


@cache
def _talk() -> Samples:
    """Return three people who talk at once."""
    voices = [spoken(text, voice, 170) for voice, text in TALKERS.items()]
    length = min(map(len, voices))
    return np.sum([voice[:length] / voice.std() for voice in voices], axis=0)
