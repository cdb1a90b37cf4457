"""Token buckets, which start full: retries per success, and calls per second."""

from __future__ import annotations

from typing import Final

from edgeroute.core.elementwise import Numbers, least
from edgeroute.core.policy import INF

RETRY: Final = 10
CAP: Final = 100
"""In units of successes, to avoid rounding: cost of a retry, and the maximum (ten retries)."""


def affords(left: Numbers) -> Numbers:
    """Whether a retry is left."""
    return left >= RETRY


def earned(left: Numbers) -> Numbers:
    """The balance after one more success."""
    return least(left + 1, CAP)


class RetryBudget:
    """Retry budget: one retry per ten successes, ten at most. If everything fails, retries soon add no load.

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = CAP

    def take(self) -> bool:
        """Takes a retry; False: none is left."""
        if not affords(self._left):
            return False
        self._left -= RETRY
        return True

    def success(self) -> None:
        """Records a successful attempt."""
        if self._left < CAP:
            self._left = earned(self._left)


class Rate:
    """Rate limit, calls per second.

    Not synchronised: threads that share it need a lock.

    Args:
        per_s: long-term rate; inf: no limit.
        burst: calls at once after a pause, at least 1; None: those of one second.
    """

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float | None = None) -> None:
        self._per_s: Final = per_s
        self._burst: Final = INF if per_s == INF else max(1.0, per_s) if burst is None else burst
        self._left = self._burst
        self._at = 0.0

    def take(self, now: float, calls: int = 1) -> bool:
        """Takes that many calls, or none; False: the limit is reached. An instant before the last one adds nothing."""
        if now > self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
            self._at = now
        if self._left < calls:
            return False
        self._left -= calls
        return True

    def spare_in(self, now: float, calls: int = 1) -> float:
        """Seconds until a low-priority request may take that many calls, and half of the burst is there; inf: never so many."""
        if self._per_s == INF or calls > self._burst:
            return 0.0 if self._per_s == INF else INF
        left = self._left + max(0.0, now - self._at) * self._per_s
        return max(0.0, max(calls, self._burst / 2) - left) / self._per_s
