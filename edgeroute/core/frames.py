"""Frames of a live source: when the next one is taken, and whether an answer to an earlier one is still of use."""

from __future__ import annotations

from math import ceil, log2
from typing import Literal, NamedTuple

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
