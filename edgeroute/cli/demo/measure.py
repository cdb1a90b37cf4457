"""Which threshold to use, and what the edge, the cloud and both together do with the images."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from edgeroute.errors import NoAnswer
from edgeroute.router.router import Router
from edgeroute.types import Answer

Array = np.ndarray[Any, np.dtype[Any]]
BATCH = 64
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


class Run(NamedTuple):
    """One way to answer all n images."""

    right: Array
    """[n], bool."""
    confidence: Array
    """[n], of whoever answered."""
    p50_ms: float
    """Of single calls."""
    bytes_sent: int
    """Bodies of requests; of all n, as if each had been sent singly."""
    deferral: float
    """0..1: the share for which the cloud was asked."""
    degraded: int

    @property
    def accuracy(self) -> float:
        """0..1."""
        return float(self.right.mean())


def measure(router: Router, images: Array, labels: Array, *, singly: int, advance: Callable[[int], object]) -> Run:
    """Answers `singly` images by a call each, which are timed, and the rest in batches. Loads and connects first.

    Args:
        router: closed at the end.
        images: uint8 [n, 28, 28].
        labels: [n], class indices.
        singly: 1..n.
        advance: called with the number of images that have just been answered.

    Raises:
        NoAnswer: a model cannot be loaded, or the cloud cannot be reached.
        CloudError: the cloud was the only one to ask, and failed.
    """
    with router:
        found = router.check()
        if not found.ok:
            raise NoAnswer("; ".join(line.removeprefix("! ") for line in found.lines if line.startswith("!")))
        before = router.stats().bytes_sent
        answers: list[Answer] = []
        times = []
        for image in images[:singly]:
            begun = perf_counter()
            answers.append(router.infer(image))
            times.append(perf_counter() - begun)
            advance(1)
        sent = router.stats().bytes_sent - before
        for start in range(singly, len(images), BATCH):
            answers += router.infer_many(list(images[start : start + BATCH]))
            advance(len(answers) - start)
        classes = np.array([int(np.argmax(answer.outputs)) for answer in answers])
        return Run(
            right=classes == labels,
            confidence=np.array([answer.confidence for answer in answers], float),
            p50_ms=float(np.median(times)) * 1000,
            bytes_sent=round(sent * len(images) / singly),
            deferral=router.stats().deferral_rate,
            degraded=sum(answer.degraded for answer in answers),
        )
