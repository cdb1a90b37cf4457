"""Decisions for live sources: time of the next frame, scene changes, outdated answers, speech segments, a steady label."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import ceil, exp, inf, isnan, log2
from typing import Literal, NamedTuple

# Frames of a live source: time of the next frame, and use of late answers.

SMOOTHING = 0.2  # weight of the newest latency in the smoothed one
SLACK = 4  # multiple of its usual latency that an edge gets, beside the time in which a refinement is of use

Outdated = Literal["", "late", "newer", "scene"]


class Taken(NamedTuple):
    """Frame taken from its source."""

    number: int  # number of the frame, from 0, counting dropped ones
    at: float  # instant at which the source gave the frame, seconds
    scene: int = 0


class Pace:
    """Pace of frames: as often as the edge can answer, and at most one in `every_s`.

    Args:
        every_s: minimum time between two frames, seconds.
        busy: share of time that the edge may run, more than 0 up to 1: it rests in proportion to its measured latency.
    """

    def __init__(self, every_s: float = 0.0, busy: float = 1.0) -> None:
        self._every_s, self._busy = every_s, busy
        self.edge_s = 0.0  # smoothed latency of the edge, seconds; 0: unknown
        self.due = 0.0  # instant from which the next frame may be taken

    def took(self, begun: float, took_s: float) -> None:
        """Record that an edge's run took `took_s` seconds: smooth the latency by it, and set when the next frame is due.

        That is `every_s` after the run began, or later if the edge would otherwise run more than its share of time.
        """
        took_s = max(0.0, took_s)
        self.edge_s += (took_s - self.edge_s) * (SMOOTHING if self.edge_s else 1.0)
        rests_s = 0.0 if self._busy >= 1 else max(took_s, self.edge_s) / self._busy
        self.due = begun + max(self._every_s, rests_s)

    def deadline_s(self, stale_s: float) -> float | None:
        """Return the deadline of a frame's call, by which a refinement ends about when it stops being of use; None before a run.

        It is `stale_s` and four times the edge's latency, rounded up to a step of a fifth, so that few deadlines are planned for.
        """
        if not self.edge_s:
            return None
        return float(2 ** (ceil(log2(max(stale_s + SLACK * self.edge_s, 1e-3)) * 4) / 4))


def why_outdated(frame: Taken, *, now: float, scene: int, refined: int, stale_s: float | None) -> Outdated:
    """Return why the refinement of a frame is of no use at the instant `now`; empty: it is of use.

    In this order: "scene", another scene has begun; "newer", a later frame is refined; "late", `stale_s` have passed.

    Args:
        frame: the frame.
        now: the instant.
        scene: number of the present scene.
        refined: number of the newest frame that was refined.
        stale_s: time from its frame on for which a refinement is of use, seconds; None: for ever.
    """
    if frame.scene != scene:
        return "scene"
    if frame.number < refined:
        return "newer"
    return "late" if stale_s is not None and now - frame.at > stale_s else ""


# Scenes of frames: by the distance of a frame's cheap signature from that of the scene's first frame.


class Scene(NamedTuple):
    """Run of frames that are alike."""

    number: int = 0  # number of the scene, from 1; 0: no frame yet
    signature: Sequence[float] = ()  # signature of the first frame: slow changes add up until they are a new scene


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the mean absolute difference of two signatures; inf if they differ in length. NaN equals only NaN."""
    if len(a) != len(b):
        return inf
    return sum(_difference(x, y) for x, y in zip(a, b, strict=True)) / len(a) if a else 0.0


def _difference(x: float, y: float) -> float:
    """Return the absolute difference of two numbers; 0 for two NaN, inf for one."""
    if x == y or (isnan(x) and isnan(y)):
        return 0.0
    return inf if isnan(x) or isnan(y) else abs(x - y)


def scene_of(scene: Scene, signature: Sequence[float], change: float) -> Scene:
    """Return the scene of a frame with this signature: the present one, or a new one if it differs by more than `change`."""
    if scene.number and distance(scene.signature, signature) <= change:
        return scene
    return Scene(scene.number + 1, signature)


# Segments of speech: a state machine over probabilities of short windows of audio, and a detector by loudness.

QUIET_DB, SILENT_DB = -50.0, -90.0  # noise level assumed at first, and the least noise level, dB of full scale
RISE_DB_PER_S = 3.0  # speed at which the assumed noise level grows: a lasting level is noise
ABOVE_DB, SLOPE_DB = 10.0, 2.0  # dB above the noise at which the probability is one half, and dB more that multiply the odds by e


class Began(NamedTuple):
    """Event: speech has begun."""

    start: int  # number of its first window


class Ended(NamedTuple):
    """Event: a segment of speech has ended."""

    start: int
    end: int  # number of the window after its last one
    cut: bool = False  # True if it was cut for its length: the speech goes on in the next segment


class Speech:
    """State machine that finds segments of speech, with hysteresis and hangover. Windows are numbered from 0.

    Args:
        on: minimum probability of a window with which speech begins.
        least: number of such windows in a row that begin a segment.
        off: probability below which a window is quiet.
        hangover: number of quiet windows in a row that end a segment.
        most: maximum windows of a segment; a longer one is cut.
    """

    def __init__(self, *, on: float, off: float, least: int, hangover: int, most: int) -> None:
        self._on, self._off, self._least, self._hangover, self._most = on, off, max(1, least), max(1, hangover), max(1, most)
        self._next = self._run = self._quiet = 0
        self._start: int | None = None

    @property
    def speaking(self) -> bool:
        """True if speech has begun and not ended."""
        return self._start is not None

    def hear(self, probability: float) -> Began | Ended | None:
        """Process the probability of the next window, and return its event; None: there is none. NaN counts as no speech.

        Speech begins after so many windows in a row of at least `on`, and ends after so many below `off`. A segment of the
        maximum length ends, cut, and the next begins at once, with no event of its own.
        """
        window, self._next = self._next, self._next + 1
        if self._start is None:
            self._run = self._run + 1 if probability >= self._on else 0
            if self._run < self._least:
                return None
            self._start, self._run, self._quiet = window + 1 - self._least, 0, 0
            return Began(self._start)
        self._quiet = 0 if probability >= self._off else self._quiet + 1
        if self._quiet >= self._hangover:
            return self._end_segment(window + 1, cut=False)
        if window + 1 - self._start >= self._most:
            return self._end_segment(window + 1, cut=True)
        return None

    def finish(self) -> Ended | None:
        """Return the segment that the end of the audio ends; None: there is none.

        Audio too short to begin a segment gives none.
        """
        return None if self._start is None or self._start >= self._next else self._end_segment(self._next, cut=False)

    def _end_segment(self, end: int, *, cut: bool) -> Ended:
        """End the present segment, and return its event; after a cut the next segment begins where this one ended."""
        assert self._start is not None, "speech has begun"
        ended = Ended(self._start, end, cut)
        self._start = end if cut else None
        return ended


class Loudness:
    """Probability of speech by loudness above the noise; the noise level falls at once, and rises slowly.

    Args:
        window_s: length of a window, seconds.
    """

    def __init__(self, window_s: float) -> None:
        self._rise_db, self._noise_db = RISE_DB_PER_S * window_s, QUIET_DB

    def hear(self, level_db: float) -> float:
        """Return the probability (0..1) of speech in the next window, by how far its level, dB of full scale, is above the noise.

        Adapts the noise level after that: it falls to a lower level at once, and rises slowly. NaN counts as silence.
        """
        level_db = max(level_db, SILENT_DB) if level_db == level_db else SILENT_DB  # noqa: PLR0124 - NaN
        above = (level_db - self._noise_db - ABOVE_DB) / SLOPE_DB
        self._noise_db = min(level_db, self._noise_db + self._rise_db)
        return 1 / (1 + exp(-max(-50.0, min(50.0, above))))


# Hysteresis of a displayed label: it changes for one that wins clearly, or that stays.

LONGER = 2  # multiple of `hold` for which the displayed label may be missing


class Display(NamedTuple):
    """Displayed label, and the one that may follow it."""

    label: Hashable = None
    confidence: float | None = None  # confidence of the displayed label when it was last seen; None: unknown
    rival: Hashable = None
    seen: int = 0  # number of times in a row that the rival was seen; 0: there is none
    absent: int = 0  # number of times in a row that the displayed label was not seen
    begun: bool = False  # True once a label is displayed


def next_display(
    state: Display, label: Hashable, confidence: float | None, *, hold: int, margin: float | None = None, sure: bool = False
) -> Display:
    """Return the state of the display after a further label: that label displayed, or counted as a rival.

    The first label is displayed at once; the displayed label seen again forgets the rival, and updates its confidence.

    Args:
        state: the state so far.
        label: the new label.
        confidence: its confidence; None or NaN: unknown.
        hold: number of times in a row that another label is seen before it is displayed; 1: at once. Where labels differ each
            time, as texts may, the newest is displayed once the present one was not seen for twice as many.
        margin: a label whose confidence exceeds that of the displayed one by so much is displayed at once; None: none is.
        sure: True: display the label at once in any case.
    """
    if sure or hold <= 1 or not state.begun or label == state.label:
        return Display(label, confidence, begun=True)
    known = margin is not None and confidence is not None and state.confidence is not None
    if known and confidence >= state.confidence + margin:  # type: ignore[operator]  # all three are numbers
        return Display(label, confidence, begun=True)
    seen = state.seen + 1 if state.seen and label == state.rival else 1
    absent = state.absent + 1
    if seen >= hold or absent >= LONGER * hold:
        return Display(label, confidence, begun=True)
    return state._replace(rival=label, seen=seen, absent=absent)
