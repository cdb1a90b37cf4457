"""Latency sketch: decaying quantiles in constant memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, inf, log
from typing import Any

ERROR = 0.02
"""Relative error of a quantile."""
LOWEST_S, HIGHEST_S = 1e-6, 1e3
HALF_LIFE = 1_000
"""Half-life of a value, in newer values."""

_WIDTH = log((1 + ERROR) / (1 - ERROR))
_SCALE, _SHIFT = 1 / _WIDTH, -log(LOWEST_S) / _WIDTH
_BUCKETS = int((log(HIGHEST_S) - log(LOWEST_S)) / _WIDTH) + 2
_GROWTH = 2 ** (1 / HALF_LIFE)


class Latency:
    """Log-spaced buckets with exponential decay (Masson, Rim and Lee, "DDSketch", 2019).

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_buckets", "_total", "_weight", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0.0] * _BUCKETS
        self._total = 0.0
        self._weight = 1.0

    def add(self, seconds: float) -> None:
        """Adds one latency. Values outside 1 us .. 1,000 s are clipped."""
        i = int(log(seconds) * _SCALE + _SHIFT) if seconds > LOWEST_S else 0
        weight = self._weight
        self._buckets[i if i < _BUCKETS else _BUCKETS - 1] += weight
        self._total += weight
        self.count += 1
        self._weight = weight * _GROWTH  # newer values weigh more, which is equivalent to decaying the older ones
        if weight > 1e100:  # noqa: PLR2004 - long before a float overflows
            self._buckets = [b / weight for b in self._buckets]
            self._total /= weight
            self._weight = _GROWTH

    def quantile(self, q: float) -> float | None:
        """Latency quantile in seconds: the share `q` (0..1) of values does not exceed it; None before the first value."""
        if not self.count:
            return None
        goal, seen, last = q * self._total, 0.0, 0
        for i, weight in enumerate(self._buckets):
            if weight:
                seen, last = seen + weight, i
                if seen >= goal:
                    break
        return _middle(last)

    def longest(self, values: int) -> float | None:
        """The longest of about the last `values`, seconds; None before the first."""
        least = self._weight / 2 ** (values / HALF_LIFE)
        last = max((i for i, weight in enumerate(self._buckets) if weight >= least), default=None)
        return None if last is None else _middle(last)

    def share_above(self, seconds: float) -> float | None:
        """Share of values (0..1) above `seconds`, with relative error ERROR in `seconds`; None before the first value."""
        if not self.count:
            return None
        if seconds >= HIGHEST_S:
            return 0.0
        place = log(max(seconds, LOWEST_S)) * _SCALE + _SHIFT
        i = int(place)  # values are assumed to be uniform within this bucket
        longer = sum(self._buckets[i + 1 :]) + self._buckets[i] * (1 - (place - i))
        return min(1.0, longer / self._total)

    def copy(self) -> Latency:
        """An independent copy."""
        other = Latency()
        other.count, other._buckets = self.count, self._buckets[:]
        other._total, other._weight = self._total, self._weight
        return other

    def dump(self) -> dict[str, object]:
        """JSON-serialisable state: the number of values, and [seconds, weight]... as of now."""
        values = [[_middle(i), weight / self._weight] for i, weight in enumerate(self._buckets) if weight]
        return {"count": self.count, "values": values}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> Latency:
        """Restores a dumped sketch.

        Raises:
            ValueError: not a dump.
        """
        sketch = cls()
        try:
            for seconds, weight in dumped["values"]:
                if not (0 < seconds < inf and 0 < weight < inf):
                    raise ValueError(f"{weight} times {seconds}")  # noqa: TRY301 - one message for all that may be wrong
                sketch._weight = weight
                sketch.add(seconds)
            known, sketch.count = sketch.count, int(dumped["count"])
            if sketch.count < known or (sketch.count and not known):
                raise ValueError(f"{sketch.count} values in {known} buckets")  # noqa: TRY301 - the same
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"not a dump of latencies: {e!r}") from e
        sketch._weight = 1.0
        return sketch


def _middle(bucket: int) -> float:
    return exp((bucket - _SHIFT) * _WIDTH) * (1 + ERROR)  # at most ERROR from both ends
