"""Shadow runs: what an edge would have answered, beside the cloud's answers, and what following it would change."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

from edgeroute.confidence.exact import upper
from edgeroute.core.latency import Latency
from edgeroute.core.plan import Leg
from edgeroute.core.walk import Prediction
from edgeroute.observe.stats import ShadowStats

UNHEARD = "unheard"
"""Key of the lines of the audit log about shadow runs."""
RISK = 0.05
"""Probability that an interval misses the truth."""
LARGEST = 50_000
"""Sample size from which intervals do not become narrower: an exact one of more would take too long."""
PER = 1000
"""Number of requests that savings are stated for."""
MB = 1e6


class ShadowRun(NamedTuple):
    """One run of an edge whose answer nobody was given."""

    leg: Leg
    prediction: Prediction | None
    """None: it failed."""
    accepted: bool
    """Whether it would have been the answer."""
    took_s: float
    error: str = ""
    """The kind of the failure; empty: it did not fail."""


class Tally:
    """Sums over the shadow runs of one edge model. Each is weighted by the inverse of the probability with which it was drawn."""

    def __init__(self) -> None:
        self.count = self.failed = 0
        self._all, self._kept, self._differ, self._priced = _Weights(), _Weights(), 0.0, 0.0
        self._usd = self._bytes = 0.0
        self._edge, self._cloud = Latency(), Latency()

    def add(self, line: Mapping[str, Any], *, accepted: bool) -> None:
        """Adds a run.

        Args:
            line: of the audit log.
            accepted: whether the edge's answer would have been accepted.
        """
        weight = 1 / float(line["probability"])
        self.count += 1
        self.failed += bool(line.get("error"))
        self._all.add(weight)
        for latency, key in ((self._edge, "edge_s"), (self._cloud, "cloud_s")):
            if (seconds := _number(line.get(key))) is not None:
                latency.add(seconds)
        if not accepted:
            return
        self._kept.add(weight)
        self._differ += weight * (not line["agrees"])
        usd, size = _number(line.get("usd")), _number(line.get("bytes"))
        if usd is not None and size is not None:
            self._priced += weight
            self._usd += weight * usd
            self._bytes += weight * size

    def stats(self, name: str) -> ShadowStats:
        """The statistics of this edge model."""
        share, low, high = self._all.share(self._kept.sum)
        differ, differ_low, differ_high = self._kept.share(self._differ)
        of_each = PER * share / self._priced if self._priced else 0.0
        return ShadowStats(
            name, self.count, self.failed, share, low, high, differ, differ_low, differ_high,
            PER * share, of_each * self._usd, of_each * self._bytes / MB,
            *(latency.quantile(q) for latency in (self._edge, self._cloud) for q in (0.5, 0.99)),
        )  # fmt: skip


class _Weights:
    """Weights of a sample."""

    def __init__(self) -> None:
        self.sum = self._squares = 0.0

    def add(self, weight: float) -> None:
        self.sum += weight
        self._squares += weight * weight

    def share(self, part: float) -> tuple[float, float, float]:
        """The share that weighs `part`, with its 95 % interval (Clopper and Pearson, 1934, at Kish's effective sample size)."""
        if not self.sum:
            return 0.0, 0.0, 1.0
        share = min(1.0, part / self.sum)
        n = max(1, min(LARGEST, int(self.sum * self.sum / self._squares + 1e-9)))
        fewer, more = int(share * n + 1e-9), ceil(share * n - 1e-9)
        return share, 1 - upper(n - fewer, n, RISK / 2), upper(more, n, RISK / 2)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else None
