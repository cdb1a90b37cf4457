"""Live sources: which frame or segment is next, whether the scene is the same, and whether an answer is still of use."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import ceil, exp, inf, isnan, log2
from typing import Literal, NamedTuple

# Frames of a live source: when the next one is taken, and whether an answer to an earlier one is still of use.

SMOOTHING = 0.2
"""Weight of the newest latency in the smoothed one."""
SLACK = 4
"""How many of its usual times an edge has, beside the time in which a refinement is of use."""

Outdated = Literal["", "late", "newer", "scene"]


class Taken(NamedTuple):
    """A frame that was taken from its source."""

    number: int
    """From 0, counting those that were dropped."""
    at: float
    """Instant at which the source gave it, seconds."""
    scene: int = 0


class Pace:
    """When the next frame is taken: as often as the edge can answer, and at most once in `every_s`.

    Args:
        every_s: seconds between two frames, at least.
        busy: the share of time that the edge may run, more than 0 up to 1: it rests in proportion to its measured latency.
    """

    def __init__(self, every_s: float = 0.0, busy: float = 1.0) -> None:
        self._every_s, self._busy = every_s, busy
        self.edge_s = 0.0
        """Smoothed latency of the edge, seconds; 0: unknown."""
        self.due = 0.0
        """Instant from which the next frame may be taken."""

    def took(self, begun: float, took_s: float) -> None:
        """An edge's run that began at an instant has taken so many seconds."""
        took_s = max(0.0, took_s)
        self.edge_s += (took_s - self.edge_s) * (SMOOTHING if self.edge_s else 1.0)
        rests_s = 0.0 if self._busy >= 1 else max(took_s, self.edge_s) / self._busy
        self.due = begun + max(self._every_s, rests_s)

    def deadline_s(self, stale_s: float) -> float | None:
        """Deadline of a frame's call, so that a refinement ends about when it is of no use any more; None: not known yet.

        In steps of a fifth, so that few different ones are planned for.
        """
        if not self.edge_s:
            return None
        return float(2 ** (ceil(log2(max(stale_s + SLACK * self.edge_s, 1e-3)) * 4) / 4))


def outdated(frame: Taken, *, now: float, scene: int, refined: int, stale_s: float | None) -> Outdated:
    """Why the refinement of a frame is of no use at the instant `now`; empty: it is of use.

    Args:
        frame: the frame.
        now: the instant.
        scene: the present scene.
        refined: the number of the newest frame that was refined.
        stale_s: a refinement is of use for so many seconds from its frame on; None: for ever.
    """
    if frame.scene != scene:
        return "scene"
    if frame.number < refined:
        return "newer"
    return "late" if stale_s is not None and now - frame.at > stale_s else ""


# Scenes of frames: by the distance of cheap signatures from that with which the scene began.


class Scene(NamedTuple):
    """A run of frames that are alike."""

    number: int = 0
    """From 1; 0: there was no frame yet."""
    signature: Sequence[float] = ()
    """Of its first frame: slow changes add up until they are a new scene."""


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """The mean absolute difference of two signatures; inf if they differ in length. NaN differs from numbers, not from NaN."""
    if len(a) != len(b):
        return inf
    return sum(_apart(x, y) for x, y in zip(a, b, strict=True)) / len(a) if a else 0.0


def _apart(x: float, y: float) -> float:
    if x == y or (isnan(x) and isnan(y)):
        return 0.0
    return inf if isnan(x) or isnan(y) else abs(x - y)


def scene_of(scene: Scene, signature: Sequence[float], change: float) -> Scene:
    """The scene that a frame with this signature is in: the one so far, or a new one if it differs by more than `change`."""
    if scene.number and distance(scene.signature, signature) <= change:
        return scene
    return Scene(scene.number + 1, signature)


# Segments of speech: a state machine over the probabilities of short windows of audio, and a detector by loudness.

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


# Hysteresis of a label that is shown: it changes for one that wins clearly, or that stays.

LONGER = 2
"""How many times as long as another label has to stay the one shown may be missing."""


class Steady(NamedTuple):
    """The label that is shown, and the one that may follow it."""

    label: Hashable = None
    confidence: float | None = None
    """Of the label that is shown, where it was last seen; None: unknown."""
    rival: Hashable = None
    seen: int = 0
    """How many times in a row the rival was seen; 0: there is none."""
    absent: int = 0
    """How many times in a row the label that is shown was not seen."""
    begun: bool = False
    """Whether a label is shown."""


def steadied(
    state: Steady, label: Hashable, confidence: float | None, *, hold: int, margin: float | None = None, sure: bool = False
) -> Steady:
    """What is shown after a further label.

    Args:
        state: what is shown so far.
        label: the new one.
        confidence: of it; None or NaN: unknown.
        hold: so many times in a row another label is seen before it is shown; 1: at once. Where labels differ each time, as texts
            may, the newest is shown once the one shown was not seen for twice as many.
        margin: one whose confidence exceeds that of the label shown by so much is shown at once; None: none is.
        sure: it is shown at once in any case.
    """
    if sure or hold <= 1 or not state.begun or label == state.label:
        return Steady(label, confidence, begun=True)
    known = margin is not None and confidence is not None and state.confidence is not None
    if known and confidence >= state.confidence + margin:  # type: ignore[operator]  # all three are numbers
        return Steady(label, confidence, begun=True)
    seen = state.seen + 1 if state.seen and label == state.rival else 1
    absent = state.absent + 1
    if seen >= hold or absent >= LONGER * hold:
        return Steady(label, confidence, begun=True)
    return state._replace(rival=label, seen=seen, absent=absent)
