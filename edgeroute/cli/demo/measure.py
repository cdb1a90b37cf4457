"""Chooses a threshold, and measures edge, cloud and cascade on the images."""

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
"""Tolerance of shares, which are quotients of integers: smaller differences are rounding errors."""


class Sweep(NamedTuple):
    """Every cascade that a threshold can make, from deferring nothing to deferring everything."""

    threshold: Array
    """[k], ascending: accept from this confidence on."""
    deferral: Array
    """[k], 0..1: deferral rate, the share below the threshold."""
    accuracy: Array
    """[k], 0..1: accuracy with the cloud's answers for that share, and the edge's for the rest."""


class Choice(NamedTuple):
    """A point of a sweep."""

    threshold: float
    deferral: float
    accuracy: float
    reached: bool
    """Whether it reaches the requested accuracy; if not, it is the most accurate one allowed."""


def sweep(confidence: Array, edge_right: Array, cloud_right: Array) -> Sweep:
    """The sweep for the edge's confidences [n] and the correctness of each side [n]. Equal confidences are deferred together."""
    order = np.argsort(confidence)
    rising = confidence[order]
    first = np.flatnonzero(np.r_[True, rising[1:] != rising[:-1]])
    cuts = np.r_[first, len(rising)]
    change = np.r_[0, np.cumsum(cloud_right[order].astype(int) - edge_right[order].astype(int))]
    threshold = np.r_[rising[first], np.nextafter(rising[-1], np.inf)]
    return Sweep(threshold, cuts / len(rising), (edge_right.sum() + change[cuts]) / len(rising))


def choose(found: Sweep, *, goal: float, most: float) -> Choice:
    """The point that defers least, of those with accuracy at least `goal` and deferral rate at most `most`, both 0..1.

    If there is none, the most accurate with deferral rate at most `most`; of several, the one with the lowest deferral rate.
    """
    allowed = found.deferral <= most + NEAR
    reaching = np.flatnonzero(allowed & (found.accuracy >= goal - NEAR))
    i = reaching[0] if len(reaching) else np.argmax(np.where(allowed, found.accuracy, -1))
    return Choice(float(found.threshold[i]), float(found.deferral[i]), float(found.accuracy[i]), bool(len(reaching)))


class Run(NamedTuple):
    """Result of answering all n images in one way."""

    right: Array
    """[n], bool."""
    confidence: Array
    """[n], of the answering target."""
    p50_ms: float
    """Of single calls."""
    bytes_sent: int
    """Bytes of request bodies; for all n, as if each had been sent singly."""
    deferral: float
    """Deferral rate, 0..1."""
    degraded: int

    @property
    def accuracy(self) -> float:
        """0..1."""
        return float(self.right.mean())


def measure(router: Router, images: Array, labels: Array, *, singly: int, advance: Callable[[int], object]) -> Run:
    """Answers `singly` images with one timed call each, and the rest in batches. Loads and connects first.

    Args:
        router: closed at the end.
        images: uint8 [n, 28, 28].
        labels: [n], class indices.
        singly: 1..n.
        advance: called with the number of images just answered.

    Raises:
        NoAnswer: a model cannot be loaded, or the cloud cannot be reached.
        CloudError: the cloud was the only target, and failed.
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
