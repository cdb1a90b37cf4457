"""Segments of speech: a state machine over the probabilities of short windows of audio, and a detector by loudness."""

from __future__ import annotations

from math import exp
from typing import NamedTuple

QUIET_DB, SILENT_DB = -50.0, -90.0
"""The noise that is assumed at first, and the least that is."""
RISE_DB_PER_S = 3.0
"""How quickly the noise is assumed to grow: what is as loud for long is noise."""
ABOVE_DB, SLOPE_DB = 10.0, 2.0
"""How far above the noise the probability is one half, and how many more dB multiply the odds by e."""


class Began(NamedTuple):
    """Speech has begun."""

    start: int
    """The number of its first window."""


class Ended(NamedTuple):
    """A segment has ended."""

    start: int
    end: int
    """The window after its last one."""
    cut: bool = False
    """It was cut for its length: the speech goes on in the next segment."""


class Speech:
    """Finds segments of speech, with hysteresis and hangover. Windows are numbered from 0.

    Args:
        on: speech begins with windows of at least this probability,
        least: so many of them in a row.
        off: it ends with windows below this probability,
        hangover: so many of them in a row.
        most: windows of a segment; a longer one is cut.
    """

    def __init__(self, *, on: float, off: float, least: int, hangover: int, most: int) -> None:
        self._on, self._off, self._least, self._hangover, self._most = on, off, max(1, least), max(1, hangover), max(1, most)
        self._next = self._run = self._quiet = 0
        self._start: int | None = None

    @property
    def speaking(self) -> bool:
        """Whether speech has begun and not ended."""
        return self._start is not None

    def hear(self, probability: float) -> Began | Ended | None:
        """The event of the next window; None: there is none. NaN counts as no speech."""
        window, self._next = self._next, self._next + 1
        if self._start is None:
            self._run = self._run + 1 if probability >= self._on else 0
            if self._run < self._least:
                return None
            self._start, self._run, self._quiet = window + 1 - self._least, 0, 0
            return Began(self._start)
        self._quiet = 0 if probability >= self._off else self._quiet + 1
        if self._quiet >= self._hangover:
            return self._ended(window + 1, cut=False)
        if window + 1 - self._start >= self._most:
            return self._ended(window + 1, cut=True)
        return None

    def finish(self) -> Ended | None:
        """The segment that the end of the audio ends; None: there is none."""
        return None if self._start is None or self._start >= self._next else self._ended(self._next, cut=False)

    def _ended(self, end: int, *, cut: bool) -> Ended:
        assert self._start is not None, "speech has begun"
        ended = Ended(self._start, end, cut)
        self._start = end if cut else None
        return ended


class Loudness:
    """Probability of speech by loudness above the noise, which is followed: down at once, and up slowly.

    Args:
        window_s: seconds of a window.
    """

    def __init__(self, window_s: float) -> None:
        self._rise_db, self._noise_db = RISE_DB_PER_S * window_s, QUIET_DB

    def hear(self, level_db: float) -> float:
        """The probability (0..1) of speech in the next window, of this level in dB of full scale."""
        level_db = max(level_db, SILENT_DB) if level_db == level_db else SILENT_DB  # noqa: PLR0124 - NaN
        above = (level_db - self._noise_db - ABOVE_DB) / SLOPE_DB
        self._noise_db = min(level_db, self._noise_db + self._rise_db)
        return 1 / (1 + exp(-max(-50.0, min(50.0, above))))
