"""The deferral rate of a threshold: its confidence interval, and what the best possible score would defer."""

from __future__ import annotations

from math import e, log, sqrt

import numpy as np

from edgeroute.confidence.certificate import Kind
from edgeroute.confidence.exact import Floats

_SUPREMUM = 0.8885
"""At least the mean of the largest deviation of an empirical distribution from the true one, times the root of n."""


def spread(n: int, delta: float, *, classes: int = 1, grouped: bool = False) -> float:
    """By how much the deferral rate of n units may differ from that of all inputs, at any threshold, with risk delta.

    Uniform over thresholds, since the threshold is chosen on the same units. For one threshold it is Massart's bound (1990). For
    means of groups its tail is at most e times as large, since the mean of a group is that of one example of it drawn by
    chance, over draws (Jensen's inequality; Pinelis, 1999). With a threshold for each class the shares of the classes are
    estimated too: McDiarmid's bound about the mean of the largest deviation.
    """
    if classes == 1:
        return sqrt(log((2 * e if grouped else 2) / delta) / (2 * n))
    return (_SUPREMUM * sqrt(classes) + sqrt(classes - 1) / 2) / sqrt(n) + sqrt(log(1 / delta) / (2 * n))


def least_deferral(kind: Kind, value: float, edge: Floats, cloud: Floats) -> float:
    """The share of these examples that an oracle defers to stay within the limit: those first where deferring gains most.

    edge, cloud: [n], how correct each is, 0..1.
    """
    if kind == "max_error":
        wrong = np.sort(1 - edge)[::-1]
        rest = wrong.sum() - np.append(0, wrong.cumsum())
        return int((rest <= value * (len(edge) - np.arange(len(edge) + 1)) + 1e-9).argmax()) / len(edge)
    gain = np.sort(cloud - edge)[::-1]
    lost = gain.sum() - np.append(0, gain.cumsum())
    return int((lost <= value * len(edge) + 1e-9).argmax()) / len(edge)
