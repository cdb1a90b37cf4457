"""Clips for commands.py: recordings of digits, a synthesiser's digits and other words, and what is no word at all."""

from __future__ import annotations

import subprocess
import sys
import wave
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from voice import EXAMPLE

sys.path.insert(0, str(EXAMPLE))
from features import RATE, resample  # the features of the example are those of the models

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LABELS = [*DIGITS, "other"]
OTHER = len(DIGITS)

ACCENTS = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029"]
VOICES = ["", "+m1", "+m2", "+m3", "+m4", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4", "+klatt", "+klatt2", "+croak"]
NEW_ACCENTS, NEW_VOICES = ["en-us-nyc", "en-gb-x-gbcwmd"], ["+m5", "+m8", "+f5", "+klatt3", "+Annie", "+Mario"]
"""Of the synthesiser; those of the second line are heard in the test alone."""
WORDS = """
a about above after again air all alarm always an and answer apple are ask at away baby back ball be because bed been before
bell below big bird black blue board boat body book both boy bring brother brown but by call came can car cat chair change
child city clean clock close cold come computer cook corn cup cut dark day did do dog door down draw drink drive dry each
early earth eat egg eleven end even every eye face fall family far fast father feet fight fill fine find finger fire fish fist
floor flower fly foot found free friend from front full game garden gate get girl give glass go gold good green ground grow
had half hand happy hard has have he head hear heart help her here hi high him his hold home horse hot hour house how hundred
ice if in into is it job just keep key kitchen know lamp land large last late laugh leave left leg less let light like line
list little live long look lost love make man many me milk minute money moon more morning most mother mountain mouth move
music my name near never new next night no noise north not now number of off old on open or orange order other our out over
page paper part party past pay pen phone picture place plan plant play please point pull push put question quick radio rain
read ready red rest rice ride right river road roof room round run said same sand say school sea second see send set seventy
shall she ship shirt shoe shop short show side sing sister sit sixteen sleep slow small snow so some song soon sound south
speak spring stand star start stay still stone story street strong such sugar sun sure swim table take talk tall tea tell ten
than thank that the their them then there they thing this thousand tie time today told took top town train tree trip true try
turn twelve twenty under up us use very volume voice wait walk wall want warm was wash watch way we well went were west what
when where white who why wide will wind window wine winter with woman wood word work write year yellow yes yet you young your
zone
""".split()
"""None of them sounds like a digit, as "to", "ate" and "won" do."""
NEW_WORDS = """
airplane banana basket bottle bridge butter camera candle carpet coffee cousin doctor eagle engine feather finish forest forty
garage guitar hammer honey island jacket kettle ladder lemon letter market marvin mirror monkey nephew nice office onion paint
pencil pepper pillow pocket potato queen rabbit rocket salad severe shadow sheila sick silver soap spoon stop stove sunday
thirty thunder tiger tomato travel trees turtle uncle wagon weather yesterday fife heaven nights
""".split()
"""Heard in the test alone."""
PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")  # of Debian's asterisk-core-sounds-en-wav
SYNTHESISER = "espeak-ng"


class Clips(NamedTuple):
    audio: list[np.ndarray]  # float32 [samples], 8 kHz
    labels: np.ndarray  # int64 [n], of LABELS
    who: np.ndarray  # text [n]: the speaker, "espeak" or "noise"
    take: np.ndarray  # int64 [n], of a recording; else -1

    def where(self, mask: np.ndarray) -> Clips:
        rows = np.flatnonzero(mask)
        return Clips([self.audio[i] for i in rows], self.labels[rows], self.who[rows], self.take[rows])


def clips(audio: list[np.ndarray], labels: Iterable[int] | int, who: str) -> Clips:
    n = len(audio)
    return Clips(audio, np.broadcast_to(np.asarray(labels, np.int64), n), np.full(n, who, "<U16"), np.full(n, -1))


def together(*parts: Clips) -> Clips:
    return Clips(
        [clip for part in parts for clip in part.audio],
        *(np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]),
    )


# ------------------------------------------------------------------------------------------- recordings
def read_wav(path: Path | str) -> np.ndarray:
    """16-bit PCM -> float32 [samples], the first channel, at 8 kHz."""
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")[:: file.getnchannels()]
        return resample(pcm.astype(np.float32) / 32768, file.getframerate())


def recordings(path: Path) -> Clips:
    """Of the Free Spoken Digit Dataset: its folder of NUMBER_SPEAKER_TAKE.wav, or these packed in an .npz file."""
    if path.is_file():
        packed = np.load(path)
        whole, at = packed["audio"].astype(np.float32) / 32768, packed["offsets"]
        audio = [resample(whole[a:b], int(packed["rate"])) for a, b in pairwise(at)]
        return Clips(audio, packed["digit"].astype(np.int64), packed["speaker"].astype("<U16"), packed["take"].astype(np.int64))
    files = sorted(path.rglob("[0-9]_*_*.wav"))
    if not files:
        raise SystemExit(f"{path} has no files such as 7_george_12.wav: give the dataset's folder `recordings`")
    digit, speaker, take = zip(*(file.stem.split("_") for file in files), strict=True)
    return Clips(
        [read_wav(file) for file in files], np.array(digit, np.int64), np.array(speaker, "<U16"), np.array(take, np.int64)
    )


# ----------------------------------------------------------------------------------------- synthesised
def spoken(word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """-> float32 [samples] at 8 kHz, without the silence around the word."""
    try:
        made = subprocess.run(
            [SYNTHESISER, "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word], capture_output=True, check=True
        ).stdout
    except FileNotFoundError as e:
        raise SystemExit("espeak-ng is missing: apt-get install espeak-ng") from e
    rate = int.from_bytes(made[24:28], "little")  # the header's lengths are of a stream that never ends
    audio = resample(np.frombuffer(made[44:], "<i2").astype(np.float32) / 32768, rate)
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max(initial=1e-9))
    return audio[loud[0] : loud[-1] + 1] if len(loud) else audio


def synthesised(words: list[str], times: int, accents: list[str], voices: list[str], rng: np.random.Generator) -> Clips:
    """Each word so many times, by a voice, at a speed and a pitch drawn at random."""
    orders = [
        (word, str(rng.choice(accents)) + str(rng.choice(voices)), int(rng.integers(110, 230)), int(rng.integers(15, 85)))
        for word in words for _ in range(times)
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        audio = list(pool.map(lambda order: spoken(*order), orders))
    return clips(audio, [DIGITS.index(word) if word in DIGITS else OTHER for word, *_ in orders], "espeak")


# --------------------------------------------------------------------------------------- what is no word
def scrambled(people: Clips, times: int, rng: np.random.Generator) -> Clips:
    """For each speaker: words backwards (not nine, which stays much the same), and the end of one with the start of another."""

    def made() -> Iterator[tuple[np.ndarray, str]]:
        for speaker in np.unique(people.who):
            rows = np.flatnonzero(people.who == speaker)
            for i, j in zip(rng.choice(rows, times), rng.choice(rows, times), strict=True):
                a, b = people.audio[i], people.audio[j]
                if rng.random() < 0.5 and people.labels[i] != DIGITS.index("nine"):
                    yield a[::-1].copy(), speaker
                else:
                    yield np.concatenate([a[len(a) // 2 :], b[: len(b) // 2]]), speaker

    audio, who = zip(*made(), strict=True)
    return clips(list(audio), OTHER, "")._replace(who=np.array(who, "<U16"))


def noises(n: int, rng: np.random.Generator) -> Clips:
    """Hiss, rumble, hum, tones, knocks, near silence."""

    def made() -> np.ndarray:
        length = int(rng.integers(2_000, 10_000))
        at, white = np.arange(length) / RATE, rng.normal(size=length)
        kind = rng.integers(6)
        if kind == 0:
            sound = white
        elif kind == 1:
            sound = np.cumsum(white) - np.linspace(0, white.sum(), length)
        elif kind == 2:
            sound = sum(np.sin(2 * np.pi * rng.uniform(40, 400) * k * at) / k for k in range(1, 6)) + 0.05 * white
        elif kind == 3:
            sound = np.sin(2 * np.pi * np.cumsum(np.linspace(rng.uniform(200, 3_000), rng.uniform(200, 3_000), length)) / RATE)
        elif kind == 4:
            sound = 0.02 * white
            for place in rng.integers(0, length, rng.integers(1, 5)):
                tail = min(length - place, 1_200)
                sound[place : place + tail] += rng.normal(size=tail) * np.exp(-np.arange(tail) / rng.uniform(20, 400))
        else:
            sound = white * np.repeat(rng.uniform(0, 1, length // 400 + 1), 400)[:length]
        return (0.3 * sound / (np.abs(sound).max() + 1e-9)).astype(np.float32)

    return clips([made() for _ in range(n)], OTHER, "noise")


def prompts() -> Clips | None:
    """Debian's Asterisk prompts, one speaker: the ten digits, and other words and phrases of up to 1.5 s."""
    if not PROMPTS.is_dir():
        return None
    numbers = [read_wav(PROMPTS / "digits" / f"{i}.wav") for i in range(10)]
    others = [
        read_wav(file) for file in sorted(PROMPTS.rglob("*.wav"))
        if not (file.parent.name == "digits" and file.stem in "0123456789") and not set(file.stem.split("-")) & {*DIGITS, *"0123456789"}
        and not any(number in file.stem for number in DIGITS)
    ]  # fmt: skip
    short = [clip for clip in others if 1_600 < len(clip) < 12_000]
    return together(clips(numbers, range(10), "prompts"), clips(short, OTHER, "prompts"))


# --------------------------------------------------------------------------------------------- together
def trained_on(people: Clips, rng: np.random.Generator) -> Clips:
    return together(
        people,
        scrambled(people, 150, rng),
        synthesised(DIGITS, 120, ACCENTS, VOICES, rng),
        synthesised(WORDS, 4, ACCENTS, VOICES, rng),
        noises(600, rng),
    )


def tested(people: Clips, rng: np.random.Generator) -> dict[str, Clips]:
    """Recordings; digits and new words by synthesised voices that training never hears; digits in such accents; noise; prompts."""
    tests = {
        "recorded": people,
        "voices": together(
            synthesised(DIGITS, 30, ACCENTS, NEW_VOICES, rng), synthesised(NEW_WORDS, 5, ACCENTS, NEW_VOICES, rng)
        ),
        "accents": synthesised(DIGITS, 30, NEW_ACCENTS, VOICES, rng),
        "noise": noises(300, rng),
    }
    if more := prompts():
        tests["prompts"] = more
    return tests


# ------------------------------------------------------------------------------------------ augmentation
def varied(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip as another room, microphone and mood would have it."""
    if rng.random() < 0.7:
        audio = np.interp(np.arange(0, len(audio) - 1, rng.uniform(0.82, 1.2)), np.arange(len(audio)), audio)
    if rng.random() < 0.4:
        audio = audio - rng.uniform(-0.5, 0.9) * np.concatenate([[0], audio[:-1]])
    quiet = rng.integers(400, 3_000, 2) if rng.random() < 0.7 else (0, 0)
    audio = np.pad(audio, tuple(quiet))
    if rng.random() < 0.3:
        dry = audio
        for _ in range(3):
            late = int(rng.integers(80, 1_200))
            audio = audio + rng.uniform(-0.4, 0.4) * np.concatenate([np.zeros(late), dry[: max(0, len(dry) - late)]])[: len(dry)]
    if rng.random() < 0.6:
        hiss = rng.normal(size=len(audio))
        if rng.random() < 0.5:
            hiss = np.convolve(hiss, np.exp(-np.arange(40) / rng.uniform(1, 12)), "same")
        hiss *= np.sqrt(np.square(audio).mean() / np.square(hiss).mean())
        audio = audio + hiss * 10 ** (-rng.uniform(5, 40) / 20)
    return audio.astype(np.float32)
