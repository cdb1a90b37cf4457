"""Deferral curve (accuracy of the cascade over the share of deferred inputs), and the area under it with its interval."""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from edgeroute.confidence.binomial_tests import Ints
from edgeroute.confidence.learned_score_features import Array
from edgeroute.errors import PolicyError

ROUNDING = 1e-6  # tolerance outside 0 to 1 for a grade: arithmetic, of float32 too, turns 1 into 1.0000001


class Curve(NamedTuple):
    """Accuracy (of graded answers their mean) over the share deferred; the lowest scores first, equal ones together."""

    deferred: Array  # 0..1, ascending: 0, then a point for each distinct score
    accuracy: Array  # 0..1, of the cascade
    area: float  # area above random deferral, as a share of an oracle's: 0 random, 1 oracle; NaN where there is nothing to choose


def deferral_curve(score: ArrayLike, edge_correct: ArrayLike, cloud_correct: ArrayLike) -> Curve:
    """Return the cascade's accuracy as more of the lowest scores are deferred, and its area above random deferral.

    The area is a share of that of an oracle; NaN if no deferral changes anything.

    Args:
        score: [n], the lowest are deferred first, NaN before all.
        edge_correct: [n], 0 to 1.
        cloud_correct: [n], 0 to 1.

    Raises:
        PolicyError: there are no examples, the lengths differ, or correctness is not from 0 to 1.
    """
    s = np.asarray(score, np.float64)
    edge, gain = outcomes(edge_correct, cloud_correct, s.shape[0] if s.ndim == 1 else -1)
    s = np.where(np.isnan(s), -inf, s)
    order = np.argsort(s, kind="stable")
    ends = np.append(np.flatnonzero(s[order][1:] != s[order][:-1]), s.size - 1)
    accuracy = edge.mean() + np.append(0, np.cumsum(gain[order])[ends]) / s.size
    return Curve(np.append(0, ends + 1) / s.size, accuracy, area_share(area_parts(s, gain), gain))


def area_parts(score: Array, gain: Array) -> Array:
    """Return each example's part of n times the area above random deferral; tied scores share their middle rank."""
    _, level, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return gain * (0.5 - middle[level] / score.size)


def area_share(parts: Array, gain: Array) -> float:
    """Return the area as a share of an oracle's, which defers gains first and losses last; NaN where that is 0."""
    oracle = float(area_parts(-gain, gain).sum())
    return float(parts.sum()) / oracle if oracle > 0 else nan


def outcomes(edge_correct: ArrayLike, cloud_correct: ArrayLike, n: int) -> tuple[Array, Array]:
    """Validate correctness of n examples, and return the edge's and the cloud's less the edge's, [n] each.

    Of the latter, above 0 accepting the edge harms, and below 0 it wins. Rounding errors outside 0 to 1 are put right.

    Raises:
        PolicyError: there are no examples, the lengths differ, or something is not from 0 to 1.
    """
    edge, cloud = np.asarray(edge_correct), np.asarray(cloud_correct)
    if n < 1 or edge.shape != (n,) or cloud.shape != (n,):
        raise PolicyError(f"{n} scores, answers {list(edge.shape)} and {list(cloud.shape)}: expected [n] of each, n >= 1")
    if all(answers.dtype.kind in "biuf" for answers in (edge, cloud)):
        edge, cloud = grades(edge), grades(cloud)
        if all(((answers >= 0) & (answers <= 1)).all() for answers in (edge, cloud)):
            return edge, cloud - edge
    raise PolicyError("correctness must be bool, or numbers from 0 to 1")


def grades(answers: Array) -> Array:
    """Return correctness as a float64 copy; values that rounding moved slightly outside 0 to 1 are put right, others are not."""
    values = answers.astype(np.float64)
    off = ((values < 0) & (values >= -ROUNDING)) | ((values > 1) & (values <= 1 + ROUNDING))
    return np.where(off, np.round(values), values)


# Quality of a score's ranking: the normalised area under its deferral curve, with a confidence interval.

EVENTS = 20  # least harms and wins together for an area: with fewer, intervals miss it too often (.167 of draws at 12)
LOW = 0.1  # an area below this whose interval includes 0 counts as no better than chance


class Area(NamedTuple):
    """Area under the deferral curve with its 95 % interval. 0: random, 1: an oracle; below 0: worse than random.

    Attributes:
        events: number of harms and wins; of graded answers the sum of the differences.
    """

    value: float
    low: float
    high: float
    events: float

    @property
    def by_chance(self) -> bool:
        """True if the area may be that of a random score, or a worse one; False without an area."""
        return self.low <= 0 and self.value < LOW


def measured_area(score: Array, edge_correct: Array, cloud_correct: Array, groups: Ints | None = None) -> Area:
    """Return the area of a score, with an interval by the delta method; all NaN with fewer than `EVENTS` harms and wins.

    Each event counts as about one observation, so the interval is as wide as Student's t for so many.

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
    influence, best = (_influence(by, gain) for by in (s, -gain))
    oracle = float(best.mean())
    if oracle <= 0 or events < EVENTS:
        return Area(nan, nan, nan, events)
    value = float(influence.mean()) / oracle
    ratio_influence: Array = (influence - value * best) / oracle  # its mean is 0
    if groups is not None:
        ratio_influence = np.bincount(groups, ratio_influence).astype(np.float64)
    error = student_quantile(events - 1) * sqrt(float(np.square(ratio_influence).sum())) / s.size
    return Area(value, value - error, value + error, events)


def student_quantile(freedom: float, z: float = 1.96) -> float:
    """Approximate the quantile of Student's t that is exceeded with the probability of `z` in the normal distribution: 97.5 %.

    By the expansion of Cornish and Fisher. At 97.5 % it is within 1 % from two degrees of freedom on, at 99.99 % from seven.
    """
    last = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384, last
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _influence(score: Array, gain: Array) -> Array:
    """Return [n], with the area above random deferral as its mean, and the spread of its estimate.

    Each example counts by its own gain, and by its place among the gains of the others (Hajek's projection).
    """
    parts = area_parts(score, gain)
    levels, level_of = np.unique(score, return_inverse=True)
    at_level = np.bincount(level_of, gain, len(levels))
    above = (at_level[::-1].cumsum()[::-1] - at_level / 2) / score.size
    return parts + gain.mean() / 2 - above[level_of] - parts.mean()  # type: ignore[no-any-return]
