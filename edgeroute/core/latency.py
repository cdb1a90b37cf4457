"""How long a leg takes: a sketch of its latencies that forgets, in constant memory."""

from __future__ import annotations

from math import exp, log

ERROR = 0.02
"""Relative error of a quantile."""
LOWEST_S, HIGHEST_S = 1e-6, 1e3
HALF_LIFE = 1_000
"""After this many newer values a value counts half."""

_WIDTH = log((1 + ERROR) / (1 - ERROR))
_SCALE, _SHIFT = 1 / _WIDTH, -log(LOWEST_S) / _WIDTH
_BUCKETS = int((log(HIGHEST_S) - log(LOWEST_S)) / _WIDTH) + 2
_GROWTH = 2 ** (1 / HALF_LIFE)


class Latency:
    """Log-spaced buckets whose newest values weigh most (Masson, Rim and Lee, "DDSketch", 2019, with decay).

    Not synchronised: whoever shares it between threads holds a lock.
    """

    __slots__ = ("_buckets", "_total", "_weight", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0.0] * _BUCKETS
        self._total = 0.0
        self._weight = 1.0

    def add(self, seconds: float) -> None:
        """Counts one latency. Values outside 1 us .. 1,000 s count as the nearest of the two."""
        i = int(log(seconds) * _SCALE + _SHIFT) if seconds > LOWEST_S else 0
        weight = self._weight
        self._buckets[i if i < _BUCKETS else _BUCKETS - 1] += weight
        self._total += weight
        self.count += 1
        self._weight = weight * _GROWTH  # newer values weigh more, which is older ones weighing less
        if weight > 1e100:  # noqa: PLR2004 - long before a float overflows
            self._buckets = [b / weight for b in self._buckets]
            self._total /= weight
            self._weight = _GROWTH

    def quantile(self, q: float) -> float | None:
        """The latency, in seconds, that the share `q` (0..1) of values does not exceed; None before the first value."""
        if not self.count:
            return None
        goal, seen, last = q * self._total, 0.0, 0
        for i, weight in enumerate(self._buckets):
            if weight:
                seen, last = seen + weight, i
                if seen >= goal:
                    break
        return exp((last - _SHIFT) * _WIDTH) * (1 + ERROR)  # of the bucket, the value no further than ERROR from both ends
