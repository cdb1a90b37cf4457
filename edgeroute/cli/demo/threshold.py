"""Where to draw the line between edge and cloud, from answers that are known to be right or wrong. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
NEAR = 1e-9
"""Shares are quotients of whole numbers: what differs by less is equal."""


class Sweep(NamedTuple):
    """Every cascade that a threshold can make of some answers, from the one that defers none to the one that defers all."""

    threshold: Array
    """[k], rising: accept from this confidence on."""
    deferral: Array
    """[k], 0..1: the share below the threshold."""
    accuracy: Array
    """[k], 0..1: with the cloud's answers for that share, and the edge's for the rest."""


class Choice(NamedTuple):
    """One point of a sweep."""

    threshold: float
    deferral: float
    accuracy: float
    reached: bool
    """Whether the accuracy is the one that was asked for; if not, it is the best one allowed."""


def sweep(confidence: Array, edge_right: Array, cloud_right: Array) -> Sweep:
    """All of it, for the edge's confidences [n] and whether each side is right [n]. Equal confidences go together."""
    order = np.argsort(confidence)
    rising = confidence[order]
    first = np.flatnonzero(np.r_[True, rising[1:] != rising[:-1]])
    cuts = np.r_[first, len(rising)]
    change = np.r_[0, np.cumsum(cloud_right[order].astype(int) - edge_right[order].astype(int))]
    threshold = np.r_[rising[first], np.nextafter(rising[-1], np.inf)]
    return Sweep(threshold, cuts / len(rising), (edge_right.sum() + change[cuts]) / len(rising))


def choose(found: Sweep, *, goal: float, most: float) -> Choice:
    """The point that defers least among those of accuracy `goal` or more that defer `most` at most, both 0..1.

    Where there is none, the most accurate that defers `most` at most; of several, the one that defers least.
    """
    allowed = found.deferral <= most + NEAR
    reaching = np.flatnonzero(allowed & (found.accuracy >= goal - NEAR))
    i = reaching[0] if len(reaching) else np.argmax(np.where(allowed, found.accuracy, -1))
    return Choice(float(found.threshold[i]), float(found.deferral[i]), float(found.accuracy[i]), bool(len(reaching)))
