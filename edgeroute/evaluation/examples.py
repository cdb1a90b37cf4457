"""Answers of edge and cloud to the same inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Examples(NamedTuple):
    """Answers, labels, latency and cost of n inputs, in order."""

    score: Floats
    """[n], the edge's confidence by the policy's score; NaN: none."""
    edge: list[Any]
    """The edge's answers: labels, or class indices if the model has no labels."""
    cloud: list[Any] | None
    """The cloud's answers; None: not called."""
    labels: list[Any] | None
    """Ground truth, in the same form; None: unknown."""
    outputs: Floats | None
    """[n, classes], the edge's raw outputs; None: not rows of equal length."""
    edge_s: Floats
    """[n], edge latency, seconds; NaN: not measured."""
    cloud_s: Floats | None
    """[n], cloud latency, seconds; NaN: not measured. None: not called."""
    sent_bytes: int
    """Total bytes of request bodies to the cloud."""
    received_bytes: int
    usd: float
    """Total cost of the cloud calls by the endpoint's terms, dollars."""
    groups: list[Any] | None = None
    """The scene, user or session of each; None: they are independent."""

    @property
    def edge_correct(self) -> Bools | None:
        """[n], by the labels; None: no labels."""
        return None if self.labels is None else _same(self.edge, self.labels)

    @property
    def cloud_correct(self) -> Bools | None:
        """[n], by the labels; None: no labels, or no cloud answers."""
        return None if self.labels is None or self.cloud is None else _same(self.cloud, self.labels)

    @property
    def agree(self) -> Bools | None:
        """[n], whether edge and cloud agree; None: no cloud answers."""
        return None if self.cloud is None else _same(self.edge, self.cloud)


def _same(one: list[Any], other: list[Any]) -> Bools:
    pairs = zip(one, other, strict=True)
    return np.array([a == b if type(a) in _PLAIN else bool(np.all(a == b)) for a, b in pairs], bool)


_PLAIN = (str, int, bool)
"""Types whose `==` is a bool. Anything else may be an array, and takes ten times as long."""
