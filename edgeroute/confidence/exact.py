"""Exact tests, as limits: what may be seen in n examples so that "the promise is broken" is still rejected at risk `delta`.

A limit is a largest count; -1 says that no count is small enough. Nothing here looks at data, so limits are kept and shared.
The tests of harm less win follow Berger and Boos (1994): the share q = P(harm) + P(win), which the promise does not speak of,
lies below its upper confidence bound but for the risk `gamma`, and the p-value is gamma plus the largest over such q.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import ceil, lgamma, log, log1p, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
GAMMA = 1 / 50
"""The share of delta that is spent on the bound for q."""
WIDE = 10
"""Standard deviations beyond which a tail, less than 1e-20, is taken for nothing."""


def needed(rate: float, delta: float) -> int:
    """How many examples it takes until none at all among them rejects a share of `rate`."""
    return ceil(log(delta) / log1p(-rate))


def most(n: int, rate: float, delta: float) -> int:
    """The largest k with P(Bin(n, rate) <= k) <= delta."""
    spread = WIDE * sqrt(n * rate * (1 - rate)) + WIDE
    low, high = max(0, int(n * rate - spread)), min(n, int(n * rate + spread))
    k = np.arange(low, high + 1)
    known = _log_factorials(n)
    chances = np.exp(known[n] - known[k] - known[n - k] + k * log(rate) + (n - k) * log1p(-rate))
    return low - 1 + int(np.searchsorted(np.cumsum(chances), delta, "right"))


@lru_cache(maxsize=32)
def most_of_each(n: int, rate: float, delta: float) -> Ints:
    """[n + 1], for m = 0..n the largest k with P(Bin(m, rate) <= k) <= delta."""
    limits = np.empty(n + 1, np.int64)
    k, below, here, above = -1, 0.0, 0.0, 1.0  # P(Bin <= k), P(Bin = k), P(Bin = k + 1), at m
    for m in range(n + 1):
        if below + above <= delta:
            k, below, here = k + 1, below + above, above
            above = here * (m - k) / (k + 1) * rate / (1 - rate)
        limits[m] = k
        below -= rate * here
        here *= (1 - rate) * (m + 1) / (m + 1 - k)
        above *= (1 - rate) * (m + 1) / (m - k)
    return _kept(limits)


def lr_p(n: int, eps: float, gamma: float, wins: int) -> Floats:
    """The p-value of P(harm) - P(win) >= eps by likelihood ratio, [wins + 1, harms]: for each count of wins and of harms.

    1 where harms - wins >= n * eps, and where there are more harms than columns.
    """
    grid = list(_grid(n, eps, gamma, 2 * wins + ceil(n * eps)))
    top = grid[-1][0]
    spread = WIDE * sqrt(n * top) + WIDE
    shape = min(n, max(wins, int(n * (top - eps) / 2 + spread))) + 1, min(n, int(n * (top + eps) / 2 + spread)) + 1
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])
    less = (columns - rows < n * eps) & (columns + rows <= n)
    w, h = np.nonzero(less & (columns - rows > n * eps - spread))  # further down it never happens while the promise is broken
    order = np.argsort(-_ratio(n, eps, h, w), kind="stable")
    w, h = w[order], h[order]
    known = _log_factorials(n)
    ways = known[n] - known[h] - known[w] - known[n - h - w]
    bound = np.searchsorted([reach for _, reach in grid], h + w)
    largest = np.zeros(len(h))
    for i, (q, _) in enumerate(grid):
        rest = log1p(-q)
        chances = np.exp(ways + h * (log((q + eps) / 2) - rest) + w * (log(max((q - eps) / 2, 1e-300)) - rest) + n * rest)
        np.maximum(largest, np.cumsum(chances), out=largest, where=i <= bound)
    p = np.where(less, 0.0, 1.0)
    p[w, h] = np.minimum(1.0, gamma + largest)
    return p[: wins + 1]


def _ratio(n: int, eps: float, h: Ints, w: Ints) -> Floats:
    """The log-likelihood of h, w and the rest, less the largest where P(harm) - P(win) = eps."""
    b = (h + w) * (1 + eps) + 2 * eps * (n - w)
    harm = (b + np.sqrt(np.maximum(b * b - 8 * n * h * eps * (1 + eps), 0))) / (4 * n)
    win = np.maximum(harm - eps, 0)
    rest = n - h - w
    free = _xlogy(h, h / n) + _xlogy(w, w / n) + _xlogy(rest, rest / n)
    return free - _xlogy(h, harm) - _xlogy(w, win) - _xlogy(rest, 1 - harm - win)


def _xlogy(x: Ints, y: Floats) -> Floats:
    return np.where(x == 0, 0.0, x * np.log(np.where(x == 0, 1.0, np.maximum(y, 1e-300))))


@lru_cache(maxsize=64)
def lr_limits(n: int, eps: float, delta: float, wins: int) -> Ints:
    """[wins + 1], for each count of wins the largest count of harms (LR-BB)."""
    return _kept((lr_p(n, eps, delta * GAMMA, wins) <= delta).sum(1) - 1)


@lru_cache(maxsize=64)
def d_limits(n: int, eps: float, delta: float, events: int) -> Ints:
    """[events + 1], for each count of harms and wins together the largest harms - wins (D-BB)."""
    gamma = delta * GAMMA
    reaches, limits = [], []
    for q, reach in _grid(n, eps, gamma, events):
        spread = WIDE * sqrt(n * q) + WIDE
        size = 1 << int(2 * spread).bit_length()
        low = int(n * eps) - size // 2
        x = 2 * np.pi * np.arange(size) / size
        wave = np.exp(1j * x)
        # the characteristic function of harms - wins - low, whose transform is the distribution
        turned = np.exp(n * np.log(1 - q + (q + eps) / 2 * wave + (q - eps) / 2 / wave) - 1j * x * low)
        chances = np.fft.fft(turned).real / size
        reaches.append(reach)
        limits.append(low - 1 + int(np.searchsorted(np.cumsum(chances), delta - gamma, "right")))
    bound = np.searchsorted(reaches, np.arange(events + 1))
    return _kept(np.minimum.accumulate(np.array(limits))[bound])


def _grid(n: int, eps: float, gamma: float, events: int) -> Iterator[tuple[float, int]]:
    """Values of q from eps on, and for each up to how many events leave it above their confidence bound.

    The last is the first to reach `events`. They are a quarter of a standard deviation of the count apart, and a bound
    between two is moved up to the next.
    """
    for root in np.arange(sqrt(eps), 1, 1 / (8 * sqrt(n))):
        q = max(float(root) ** 2, eps)
        reach = most(n, q, gamma)
        yield q, reach
        if reach >= events:
            return
    yield 1 - 1e-12, n


@lru_cache(maxsize=8)
def _log_factorials(n: int) -> Floats:
    return _kept(np.array([lgamma(i + 1) for i in range(n + 1)]))


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
