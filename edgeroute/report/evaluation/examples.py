"""What edge and cloud said of the same inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Examples(NamedTuple):
    """Of n inputs, in their order."""

    score: Floats
    """[n], the edge's confidence by the policy's score; NaN: it gave none."""
    edge: list[Any]
    """The edge's answers: labels, or class numbers where the model names none."""
    cloud: list[Any] | None
    """The cloud's; None: it was not asked."""
    labels: list[Any] | None
    """The right answers, as `edge` and `cloud` would say them; None: they are not known."""
    outputs: Floats | None
    """[n, classes], the edge's raw outputs, where they are an array of the same length for each input."""
    edge_s: Floats
    """[n], seconds that the edge took; NaN: not measured."""
    cloud_s: Floats | None
    """[n], likewise; None: it was not asked."""
    sent_bytes: int
    """To the cloud, in all, bodies alone."""
    received_bytes: int
    usd: float
    """What asking the cloud for all of them has cost, by the endpoint's terms."""

    @property
    def edge_correct(self) -> Bools | None:
        """[n], by the labels; None: they are not known."""
        return None if self.labels is None else _same(self.edge, self.labels)

    @property
    def cloud_correct(self) -> Bools | None:
        """[n], by the labels; None: they are not known, or the cloud was not asked."""
        return None if self.labels is None or self.cloud is None else _same(self.cloud, self.labels)

    @property
    def agree(self) -> Bools | None:
        """[n], whether edge and cloud say the same; None: the cloud was not asked."""
        return None if self.cloud is None else _same(self.edge, self.cloud)


def _same(one: list[Any], other: list[Any]) -> Bools:
    pairs = zip(one, other, strict=True)
    return np.array([a == b if type(a) in _PLAIN else bool(np.all(a == b)) for a, b in pairs], bool)


_PLAIN = (str, int, bool)
"""Of which `==` is a bool. Anything else may be an array, for which this takes ten times as long."""
