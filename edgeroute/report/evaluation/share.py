"""How many of how many, and what that says of all inputs."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from edgeroute.confidence.exact import upper
from edgeroute.report.evaluation.examples import Bools, Floats

RISK = 0.05
"""Of an interval's missing the truth."""


class Share(NamedTuple):
    """`found` of `of`; the share of all inputs that are drawn alike lies in low..high with 95 % confidence (Clopper-Pearson)."""

    found: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """0..1; NaN of none."""
        return self.found / self.of if self.of else float("nan")


def share(found: Bools, risk: float = RISK) -> Share:
    """How many of `found` are true; the interval errs with probability `risk`, half of it on each side."""
    count, of = int(np.count_nonzero(found)), found.size
    return Share(count, of, 1 - upper(of - count, of, risk / 2), upper(count, of, risk / 2))


class Bin(NamedTuple):
    """Examples of similar score."""

    score: float
    """Their mean."""
    right: Share


def bins(score: Floats, right: Bools, most: int = 15) -> list[Bin]:
    """Up to `most` bins with about as many examples each, by rising score. Equal scores are in one bin; NaN in none."""
    known = ~np.isnan(score)
    score, right = score[known], right[known]
    order = np.argsort(score, kind="stable")
    score, right = score[order], right[order]
    cuts = np.searchsorted(score, score[np.arange(1, most) * score.size // most]) if score.size else np.empty(0, int)
    parts = np.unique(np.concatenate([[0], cuts, [score.size]]))
    return [Bin(float(score[i:j].mean()), share(right[i:j])) for i, j in pairwise(parts)]


def calibration_error(found: list[Bin]) -> float:
    """The expected calibration error (ECE): how far a bin's score is from its share of right answers, on average; NaN of none."""
    n = sum(one.right.of for one in found)
    return sum(one.right.of * abs(one.score - one.right.value) for one in found) / n if n else float("nan")
