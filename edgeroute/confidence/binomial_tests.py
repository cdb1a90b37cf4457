"""Exact binomial tests: the largest count that rejects a proportion, and bounds of a proportion by it (Clopper and Pearson)."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, lgamma, log, log1p, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
RATE = 1e-9  # tolerance of the bisection for a proportion's bound
WIDE = 8  # standard deviations, plus as many counts, beyond which a tail is neglected: it is less than 1e-14


def critical_count(n: int, rate: float, delta: float) -> int:
    """Return the largest k with P(Bin(n, rate) <= k) <= delta; -1 if there is none."""
    spread = WIDE * sqrt(n * rate * (1 - rate)) + WIDE
    low, high = max(0, int(n * rate - spread)), min(n, int(n * rate + spread))
    k = np.arange(low, high + 1)
    known = log_factorials(n)
    chances = np.exp(known[n] - known[k] - known[n - k] + k * log(rate) + (n - k) * log1p(-rate))
    return low - 1 + int(np.searchsorted(np.cumsum(chances), delta, "right"))


def upper_bound(k: int, m: int, delta: float) -> float:
    """Return the upper 1 - delta confidence bound of a proportion, k of m (Clopper and Pearson, 1934). 1 if k >= m."""
    if k >= m:
        return 1.0
    low, high = k / m, 1.0
    while high - low > RATE:
        middle = (low + high) / 2
        low, high = (low, middle) if critical_count(m, middle, delta) >= k else (middle, high)
    return high


RISK = 0.05  # usual probability that an interval misses the truth
# Sample size from which the intervals of `share_and_interval` do not become narrower: an exact one of more would take too long.
LARGEST = 50_000


def share_and_interval(count: float, of: int, risk: float = RISK) -> tuple[float, float, float]:
    """Return a share, and its two-sided interval at level 1 - risk (Clopper and Pearson, 1934); (0, 0, 1) if `of` is 0.

    A fractional `count` is widened to whole numbers, and large `of` is scaled down to `LARGEST`.
    """
    if not of:
        return 0.0, 0.0, 1.0
    n = min(of, LARGEST)
    fewer, more = int(count * n / of + 1e-9), ceil(count * n / of - 1e-9)
    return count / of, 1 - upper_bound(n - fewer, n, risk / 2), upper_bound(more, n, risk / 2)


@lru_cache(maxsize=8)
def log_factorials(n: int) -> Floats:
    """Return the logarithms of 0! to n!, [n + 1], read-only."""
    return read_only(np.array([lgamma(i + 1) for i in range(n + 1)]))


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Make an array read-only, since caches share it, and return it."""
    array.flags.writeable = False
    return array
