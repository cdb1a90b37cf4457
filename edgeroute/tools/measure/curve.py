"""The deferral curve: accuracy of the cascade over the share of inputs that is deferred, and the area under it."""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from edgeroute.confidence.exact import Ints
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


# How well a score ranks: the normalised area under its deferral curve, with a confidence interval.

LEAST = 3
"""With fewer harms and wins together nothing says how far off an area may be."""
EVENTS = 20
"""With fewer harms and wins together an area says little, whatever it is."""
LOW = 0.1
"""An area below this that may be 0 is no better than chance, for all that one can tell."""


class Area(NamedTuple):
    """Area under the deferral curve, 0: random, 1: an oracle; below 0: worse than random. With its 95 % interval low..high."""

    value: float
    low: float
    high: float
    events: float
    """Harms and wins that it was measured on; of graded answers the sum of the differences."""

    @property
    def by_chance(self) -> bool:
        """Whether it may be that of a random score, or a worse one, though there were examples enough to tell."""
        return self.low <= 0 and self.value < LOW and self.events >= EVENTS


def measured_area(score: Array, edge_correct: Array, cloud_correct: Array, groups: Ints | None = None) -> Area:
    """The area of a score, with an interval by the delta method; NaN where there are fewer than three harms and wins.

    Each event is about one observation of it, so the interval is as wide as Student's t for so many.

    Args:
        score: [n], the lowest are deferred first, NaN before all.
        edge_correct: [n], 0..1.
        cloud_correct: [n], 0..1.
        groups: [n], numbers of groups of examples that are not independent; None: all are.

    Raises:
        PolicyError: there are no examples, the lengths differ, or something is not from 0 to 1.
    """
    s = np.asarray(score, np.float64)
    _, gain = outcomes(edge_correct, cloud_correct, s.shape[0] if s.ndim == 1 else -1)
    s = np.where(np.isnan(s), -np.inf, s)
    events = float(np.abs(gain).sum())
    found, best = (_influence(by, gain) for by in (s, -gain))
    oracle = float(best.mean())
    if oracle <= 0 or events < LEAST:
        return Area(nan, nan, nan, events)
    value = float(found.mean()) / oracle
    own: Array = (found - value * best) / oracle  # the influence of each on the ratio; its mean is 0
    if groups is not None:
        own = np.bincount(groups, own).astype(np.float64)
    error = student_quantile(events - 1) * sqrt(float(np.square(own).sum())) / s.size
    return Area(value, value - error, value + error, events)


def student_quantile(freedom: float) -> float:
    """Approximates the 97.5 % quantile of Student's t for at least two degrees of freedom (Cornish and Fisher's expansion)."""
    return 1.96 + 2.3724 / freedom + 2.8224 / freedom**2 + 2.5559 / freedom**3 + 1.5906 / freedom**4


def _influence(score: Array, gain: Array) -> Array:
    """[n], of which the mean is the area above random deferral, and the spread that of its estimate.

    Each example counts by its own gain, and by its place among the gains of the others (Hajek's projection).
    """
    own = area_parts(score, gain)
    levels, at = np.unique(score, return_inverse=True)
    at_level = np.bincount(at, gain, len(levels))
    above = (at_level[::-1].cumsum()[::-1] - at_level / 2) / score.size
    return own + gain.mean() / 2 - above[at] - own.mean()  # type: ignore[no-any-return]
