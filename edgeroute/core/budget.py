"""How often something may be done: retries for each success, calls a second. Token buckets, which start full."""

from __future__ import annotations

from typing import Final

from edgeroute.core.elementwise import Numbers, least
from edgeroute.core.policy import INF

RETRY: Final = 10
CAP: Final = 100
"""In successes, so that nothing is rounded: what a retry costs, and the most there can be (ten retries)."""


def affords(left: Numbers) -> Numbers:
    """Whether there is a retry left."""
    return left >= RETRY


def earned(left: Numbers) -> Numbers:
    """What is left after one more success."""
    return least(left + 1, CAP)


class RetryBudget:
    """A retry for ten successes, and up to ten at hand: when all fails, retries are soon no load on top.

    Not synchronised: whoever shares it between threads holds a lock.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = CAP

    def take(self) -> bool:
        """Whether there is a retry left; it is taken."""
        if not affords(self._left):
            return False
        self._left -= RETRY
        return True

    def success(self) -> None:
        """An attempt succeeded."""
        self._left = earned(self._left)


class Rate:
    """Calls a second.

    Not synchronised: whoever shares it between threads holds a lock.

    Args:
        per_s: so many a second in the long run; inf: no limit.
        burst: so many at once after a pause, 1 or more; None: those of a second.
    """

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float | None = None) -> None:
        self._per_s: Final = per_s
        self._burst: Final = INF if per_s == INF else max(1.0, per_s) if burst is None else burst
        self._left = self._burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one may be made now; it is taken. An instant before the last one adds nothing."""
        if now > self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
            self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def spare(self, now: float) -> bool:
        """Whether at least half of the burst is there, so that what is not urgent may take one."""
        return self._left + max(0.0, now - self._at) * self._per_s >= self._burst / 2 if self._per_s < INF else True
