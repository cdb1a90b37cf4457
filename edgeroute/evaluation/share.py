"""Proportions with exact confidence intervals, score bins, and expected calibration error."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from edgeroute.confidence.exact import upper
from edgeroute.evaluation.examples import Bools, Floats

RISK = 0.05
"""Probability that a confidence interval misses the truth."""


class Share(NamedTuple):
    """A proportion, `found` of `of`, with its 95 % confidence interval low..high (Clopper and Pearson, 1934)."""

    found: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """0..1; NaN of none."""
        return self.found / self.of if self.of else float("nan")


def share(found: Bools, risk: float = RISK) -> Share:
    """Proportion of true values; two-sided interval at level 1 - risk."""
    count, of = int(np.count_nonzero(found)), found.size
    return Share(count, of, 1 - upper(of - count, of, risk / 2), upper(count, of, risk / 2))


class Bin(NamedTuple):
    """A bin of examples with similar scores."""

    score: float
    """Mean score."""
    right: Share


def bins(score: Floats, right: Bools, most: int = 15) -> list[Bin]:
    """Up to `most` equal-mass bins, by ascending score. Tied scores share a bin; NaN is excluded."""
    known = ~np.isnan(score)
    score, right = score[known], right[known]
    order = np.argsort(score, kind="stable")
    score, right = score[order], right[order]
    cuts = np.searchsorted(score, score[np.arange(1, most) * score.size // most]) if score.size else np.empty(0, int)
    parts = np.unique(np.concatenate([[0], cuts, [score.size]]))
    return [Bin(float(score[i:j].mean()), share(right[i:j])) for i, j in pairwise(parts)]


def calibration_error(found: list[Bin]) -> float:
    """Expected calibration error (ECE): size-weighted mean of abs(score - accuracy) over bins; NaN without bins."""
    n = sum(one.right.of for one in found)
    return sum(one.right.of * abs(one.score - one.right.value) for one in found) / n if n else float("nan")
