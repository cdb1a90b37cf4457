"""How well a score ranks: the normalised area under its deferral curve, with a confidence interval."""

from __future__ import annotations

from math import nan, sqrt
from typing import NamedTuple

import numpy as np

from edgeroute.confidence.curve import area_parts, outcomes
from edgeroute.confidence.exact import Ints
from edgeroute.confidence.features import Array

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
