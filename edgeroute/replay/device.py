"""The device itself: its battery, and how much slower it gets when it is warm."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple


class Heat(NamedTuple):
    """How warm the device is."""

    after_s: float
    """From so long after the first request on."""
    times: float
    """A run of the edge takes so many times as long."""
    celsius: float


THERMAL: Final[dict[str, tuple[Heat, ...]]] = {
    "cool": (Heat(0.0, 1.0, 40.0),),
    "warm": (Heat(0.0, 1.0, 45.0), Heat(300.0, 1.2, 65.0)),
    "hot": (Heat(0.0, 1.0, 50.0), Heat(120.0, 1.3, 75.0), Heat(600.0, 1.8, 85.0)),
}
"""By name. Typical of devices without a fan under steady load, which often keep half to three quarters of their speed; measured
nowhere in particular."""


def heat(course: tuple[Heat, ...], now: float) -> Heat:
    """That of the instant, in seconds from the first request."""
    return course[max(0, bisect_right(course, (now, float("inf"))) - 1)]


class Battery(NamedTuple):
    """What there is to spend."""

    level: float
    """At the first request, 0..1."""
    wh: float = 10.0
    """Watt hours when it is full."""
    idle_w: float = 0.0
    """Watts that the device takes whatever it does."""

    @property
    def joules(self) -> float:
        """What is in it at the first request."""
        return self.level * self.wh * 3600

    def left(self, spent: float, now: float) -> float:
        """What it has, 0..1 of a full one, after so many joules were spent on requests."""
        return max(0.0, (self.joules - spent - self.idle_w * now) / (self.wh * 3600)) if self.wh else 0.0

    def empty_at(self, spent: float, now: float) -> float | None:
        """When it went empty, seconds from the first request, after so many joules were spent on requests; None: not by now."""
        left = self.joules - spent
        if left <= 0:
            return now
        return left / self.idle_w if self.idle_w * now >= left else None
