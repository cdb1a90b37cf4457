"""The deferral curve: accuracy of the cascade over the share of inputs that is deferred, and the area under it."""

from __future__ import annotations

from math import inf, nan
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from edgeroute.confidence.features import Array
from edgeroute.errors import PolicyError

ROUNDING = 1e-6
"""How far from 0 to 1 a grade may be: arithmetic, of float32 too, makes 1.0000001 of 1."""


class Curve(NamedTuple):
    """Accuracy (of graded answers their mean) over the share deferred; the lowest scores go first, equal ones together."""

    deferred: Array
    """0..1, ascending: 0, then a point for each distinct score."""
    accuracy: Array
    """0..1, of the cascade."""
    area: float
    """Over a random choice's curve, as a share of an oracle's: 0 random, 1 oracle; NaN where there is nothing to choose."""


def deferral_curve(score: ArrayLike, edge_correct: ArrayLike, cloud_correct: ArrayLike) -> Curve:
    """The curve of a score. score: [n], the lowest are deferred first, NaN before all; the others: [n], 0 to 1.

    Raises:
        PolicyError: there are no examples, the lengths differ, or one of the last two holds something that is not from 0 to 1.
    """
    s = np.asarray(score, np.float64)
    edge, gain = outcomes(edge_correct, cloud_correct, s.shape[0] if s.ndim == 1 else -1)
    s = np.where(np.isnan(s), -inf, s)
    order = np.argsort(s, kind="stable")
    ends = np.append(np.flatnonzero(s[order][1:] != s[order][:-1]), s.size - 1)
    accuracy = edge.mean() + np.append(0, np.cumsum(gain[order])[ends]) / s.size
    return Curve(np.append(0, ends + 1) / s.size, accuracy, area_share(area_parts(s, gain), gain))


def area_parts(score: Array, gain: Array) -> Array:
    """Each example's part of n times the area above random deferral; tied scores share their middle rank."""
    _, at, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return gain * (0.5 - middle[at] / score.size)


def area_share(parts: Array, gain: Array) -> float:
    """The area as a share of that of an oracle, which defers gains first and losses last; NaN where that is 0."""
    oracle = float(area_parts(-gain, gain).sum())
    return float(parts.sum()) / oracle if oracle > 0 else nan


def outcomes(edge_correct: ArrayLike, cloud_correct: ArrayLike, n: int) -> tuple[Array, Array]:
    """How correct the edge is, [n], and what deferring gains: above 0 harm, below 0 win; of graded answers any size to 1."""
    edge, cloud = np.asarray(edge_correct), np.asarray(cloud_correct)
    if n < 1 or edge.shape != (n,) or cloud.shape != (n,):
        raise PolicyError(
            f"{n} outputs or scores, answers {list(edge.shape)} and {list(cloud.shape)}: expected [n] of each, n >= 1"
        )
    if all(answers.dtype.kind in "biuf" for answers in (edge, cloud)):
        edge, cloud = grades(edge), grades(cloud)
        if all(((answers >= 0) & (answers <= 1)).all() for answers in (edge, cloud)):
            return edge, cloud - edge
    raise PolicyError("how correct an answer is goes from 0 to 1, or is a bool, and there is something else")


def grades(answers: Array) -> Array:
    """How correct each is, those that rounding made a little less than 0 or more than 1 put right; others are left."""
    found = answers.astype(np.float64)
    off = ((found < 0) & (found >= -ROUNDING)) | ((found > 1) & (found <= 1 + ROUNDING))
    return np.where(off, np.round(found), found)
