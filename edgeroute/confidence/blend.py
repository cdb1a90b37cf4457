"""Two scores as one: each becomes its rank among the examples of the fit, and the ranks are averaged with weights."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeroute.confidence.features import Array

BEYOND = 1e-3
"""Part of a rank that tells values apart where the examples had none between: beyond the lowest and the highest, above all."""


class Ranks:
    """A score's ranks, 0..1, by its quantiles; strictly increasing."""

    def __init__(self, knots: list[float]) -> None:
        self._knots = [float(v) for v in knots]
        if len(knots) < 2 or not np.isfinite(self._knots).all() or sorted(self._knots) != self._knots:  # noqa: PLR2004 - two ends
            raise ValueError("quantiles that are not ascending")
        self._last = len(knots) - 1
        self._middle, self._scale = self._knots[self._last // 2], max(self._knots[-1] - self._knots[0], 1e-9)

    def one(self, value: float) -> float:
        """The rank of a value."""
        knots, i = self._knots, bisect_right(self._knots, value) - 1
        if i < 0 or i >= self._last:
            at = 0.0 if i < 0 else 1.0
        else:
            at = (i + (value - knots[i]) / (knots[i + 1] - knots[i])) / self._last
        off = (value - self._middle) / self._scale
        return at * (1 - BEYOND) + BEYOND * (0.5 + 0.5 * off / (1 + abs(off)))

    def many(self, values: Array) -> Array:
        """Those of several, [n] -> [n]."""
        knots = np.array(self._knots)
        i = np.searchsorted(knots, values, "right") - 1
        inside = (i >= 0) & (i < self._last)
        j = np.clip(i, 0, self._last - 1)
        gap = np.where(inside, knots[j + 1] - knots[j], 1)
        at = np.where(inside, (j + (values - knots[j]) / gap) / self._last, np.where(i < 0, 0.0, 1.0))
        off = (values - self._middle) / self._scale
        return at * (1 - BEYOND) + BEYOND * (0.5 + 0.5 * off / (1 + np.abs(off)))  # type: ignore[no-any-return]


class Blend:
    """The average of two ranks.

    Args:
        data: `weight` of the fit, 0..1, and the quantiles of `base` and `fit`.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._weight = float(data["weight"])
        if not 0 <= self._weight <= 1:
            raise ValueError(f"a weight of {self._weight}")
        self._base, self._fit = Ranks(data["base"]), Ranks(data["fit"])

    def one(self, base: float, fit: float) -> float:
        """Of one input, 0..1; NaN if either is."""
        if base != base or fit != fit:  # noqa: PLR0124 - NaN
            return float("nan")
        return self._base.one(base) * (1 - self._weight) + self._fit.one(fit) * self._weight

    def many(self, base: Array, fit: Array) -> Array:
        """Of several, [n] -> [n]."""
        return self._base.many(base) * (1 - self._weight) + self._fit.many(fit) * self._weight
