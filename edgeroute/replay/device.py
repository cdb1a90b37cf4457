"""Device model: battery and thermal throttling."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple


class Heat(NamedTuple):
    """One phase of thermal throttling."""

    after_s: float
    """Start of the phase, seconds after the first request."""
    times: float
    """Factor by which the edge's run time grows."""
    celsius: float


THERMAL: Final[dict[str, tuple[Heat, ...]]] = {
    "cool": (Heat(0.0, 1.0, 40.0),),
    "warm": (Heat(0.0, 1.0, 45.0), Heat(300.0, 1.2, 65.0)),
    "hot": (Heat(0.0, 1.0, 50.0), Heat(120.0, 1.3, 75.0), Heat(600.0, 1.8, 85.0)),
}
"""By name. Typical of devices without a fan under steady load, which often retain half to three quarters of their speed; not
measured on a particular device."""


def heat(course: tuple[Heat, ...], now: float) -> Heat:
    """The phase in force at `now`, seconds after the first request."""
    return course[max(0, bisect_right(course, (now, float("inf"))) - 1)]


class Battery(NamedTuple):
    """The battery at the beginning, and its base load."""

    level: float
    """Charge at the first request, 0..1."""
    wh: float = 10.0
    """Capacity, watt hours."""
    idle_w: float = 0.0
    """Base load, watts."""

    @property
    def joules(self) -> float:
        """Energy at the first request, joules."""
        return self.level * self.wh * 3600

    def left(self, spent: float, now: float) -> float:
        """Charge at `now`, 0..1, after `spent` joules for requests."""
        return max(0.0, (self.joules - spent - self.idle_w * now) / (self.wh * 3600)) if self.wh else 0.0

    def empty_at(self, spent: float, now: float) -> float | None:
        """When it ran empty, seconds after the first request, with `spent` joules for requests; None: not yet."""
        left = self.joules - spent
        if left <= 0:
            return now
        return left / self.idle_w if self.idle_w * now >= left else None
