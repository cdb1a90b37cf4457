"""Metrics of routers between a weak and a strong model, as RouteLLM defines them (Ong et al., 2024, arXiv:2406.18665, section 2).

With r(a) the mean score of the two models together where a share a of the requests goes to the strong one,

    PGR(a)  = (r(a) - r(0)) / (r(1) - r(0))    performance gap recovered
    APGR    = integral of PGR over a in 0..1   a random router has 1/2
    CPT(x)  = least a with PGR(a) >= x         call-performance threshold; a random router has x

r is linear between thresholds, since a share of the requests of a threshold can be drawn by chance. RouteLLM's own evaluation
(`routellm/evals/evaluate.py`) has the same formulas on ten thresholds at deciles of the score; here every score is a threshold.
"""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def curve(score: Array, weak: Array, strong: Array) -> tuple[Array, Array]:
    """Return the shares sent to the strong model, and r at each: [blocks + 1]; the lowest scores are sent first, equal ones together.

    score: [n], higher where the weak model is surer; NaN lowest. weak, strong: [n], 0..1, how correct each is.
    """
    s = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(s, kind="stable")
    ends = np.append(np.flatnonzero(s[order][1:] != s[order][:-1]), s.size - 1)
    gained = np.cumsum((np.asarray(strong, float) - weak)[order])[ends]
    return np.append(0, ends + 1) / s.size, np.mean(weak) + np.append(0, gained) / s.size


def recovered(score: Array, weak: Array, strong: Array) -> tuple[Array, Array]:
    """Return the shares sent to the strong model, and PGR at each; NaN where the models are equally good."""
    share, mean = curve(score, weak, strong)
    gap = mean[-1] - mean[0]
    return share, (mean - mean[0]) / gap if gap else np.full_like(mean, nan)


def apgr(score: Array, weak: Array, strong: Array) -> float:
    """Return the average performance gap recovered, by the trapezoidal rule, which is exact for a piecewise linear r."""
    share, pgr = recovered(score, weak, strong)
    return float((np.diff(share) * (pgr[1:] + pgr[:-1]) / 2).sum())


def cpt(score: Array, weak: Array, strong: Array, x: float) -> float:
    """Return the least share of calls of the strong model, 0..1, that recovers the share x of the performance gap; NaN if none does."""
    share, pgr = recovered(score, weak, strong)
    reached = np.flatnonzero(pgr >= x - 1e-12)
    if not reached.size:
        return nan
    i = int(reached[0])
    if not i:
        return 0.0
    return float(share[i - 1] + (share[i] - share[i - 1]) * (x - pgr[i - 1]) / (pgr[i] - pgr[i - 1]))
