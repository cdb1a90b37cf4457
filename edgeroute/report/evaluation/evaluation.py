"""What a threshold makes of examples: the numbers that the command prints and the page shows. Shares are 0..1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.certificate import Certificate
from edgeroute.confidence.learned import deferral_curve
from edgeroute.core.policy import Terms
from edgeroute.report.evaluation.examples import Bools, Examples, Floats
from edgeroute.report.evaluation.share import Share, share

Line = tuple[Floats, Floats]
"""Deferral [k], rising, and accuracy [k]."""
QUANTILES = (0.5, 0.9, 0.99)


class Names(NamedTuple):
    """What was evaluated. Empty, or None: not known."""

    edge: str = ""
    """The edge model."""
    cloud: str = ""
    """The endpoint."""
    score: str = ""
    policy: str = ""
    """The policy's file."""
    data: str = ""
    """The examples' file."""
    date: str = ""
    """On which it was measured, YYYY-MM-DD."""
    edge_bytes: int | None = None
    """The size of the model's file."""


class Class(NamedTuple):
    """One class. Shares are None where the answers are not known."""

    name: str
    n: int
    edge: float | None
    """The share that the edge alone has right; without labels, here and below: as the cloud says."""
    cloud: float | None
    cascade: float | None
    deferral: float


class Cost(NamedTuple):
    """Of one input, on each side."""

    what: str
    """seconds, usd or joules."""
    edge: float | None
    """None: not known."""
    cloud: float

    @property
    def break_even(self) -> float | None:
        """With a smaller share deferred, edge and cloud together cost less than the cloud alone; below 0: they never do.

        The edge is always paid and the cloud where it is asked, so it is 1 - edge / cloud.
        """
        return None if self.edge is None or self.cloud <= 0 else 1 - self.edge / self.cloud

    def together(self, deferral: float) -> float | None:
        """Of one input on average, where this share is deferred."""
        return None if self.edge is None else self.edge + deferral * self.cloud


class Evaluation(NamedTuple):
    """Examples, and the policy's threshold for them."""

    examples: Examples
    threshold: float
    """Answers of at least this score are accepted on the edge; inf: every input is deferred."""
    thresholds: Mapping[str, float] = {}
    """Class that the edge predicts -> its own threshold."""
    certificate: Certificate | None = None
    """From which the thresholds are; None: there is none."""
    uncalibrated: str = ""
    """Why the certificate says nothing about what is in use; empty: it holds."""
    names: Names = Names()
    terms: Terms = Terms()
    """What asking the cloud costs."""
    edge_usd: float | None = None
    """What an input costs on the edge; None: not known."""
    edge_joules: float | None = None
    accept_unsure: bool = False
    """Whether an answer without a score is accepted."""

    @property
    def n(self) -> int:
        """How many examples there are, at least one."""
        return len(self.examples.edge)

    @property
    def labelled(self) -> bool:
        """Whether "right" is meant by the labels. If not, it means "as the cloud says"."""
        return self.examples.labels is not None

    @property
    def accepted(self) -> Bools:
        """[n], whether the edge's answer stands."""
        score = self.examples.score
        least: Any = self.threshold
        if self.thresholds:
            least = np.array([self.thresholds.get(str(value), self.threshold) for value in self.examples.edge])
        return np.where(np.isnan(score), self.accept_unsure, score >= least)

    @property
    def deferral(self) -> Share:
        """The share for which the cloud is asked."""
        return share(~self.accepted)

    @property
    def edge_right(self) -> Bools | None:
        """[n]; None: neither labels nor the cloud's answers are there."""
        return self.examples.edge_correct if self.labelled else self.examples.agree

    @property
    def cloud_right(self) -> Bools | None:
        """[n]; None: the cloud was not asked."""
        if self.examples.cloud is None:
            return None
        return self.examples.cloud_correct if self.labelled else np.ones(self.n, bool)

    @property
    def cascade_right(self) -> Bools | None:
        """[n], of both together."""
        edge, cloud = self.edge_right, self.cloud_right
        return None if edge is None or cloud is None else np.where(self.accepted, edge, cloud)

    def accuracy(self) -> dict[str, Share]:
        """Of edge, cloud, cascade (both together) and accepted (the edge's answers that stand); those that are known."""
        edge, accepted = self.edge_right, self.accepted
        found = {
            "edge": edge,
            "cloud": self.cloud_right,
            "cascade": self.cascade_right,
            "accepted": None if edge is None else edge[accepted],
        }
        return {name: share(right) for name, right in found.items() if right is not None and right.size}

    def curve(self) -> Line | None:
        """Accuracy over deferral, for every threshold that is one for all classes; None: nothing is known to be right.

        Without the cloud it is the accuracy of what is not deferred.
        """
        edge, cloud, score = self.edge_right, self.cloud_right, self.examples.score
        if edge is None:
            return None
        if cloud is not None:
            found = deferral_curve(score, edge, cloud)
            return found.deferred, found.accuracy
        order = np.argsort(np.where(np.isnan(score), -np.inf, score), kind="stable")
        rising = score[order]
        first = np.flatnonzero(np.append(True, (rising[1:] != rising[:-1]) & ~np.isnan(rising[1:])))
        accepted = self.n - first
        return first / self.n, edge[order][::-1].cumsum()[accepted - 1] / accepted

    def oracle(self) -> Line | None:
        """The same for whoever knows which side is right, and defers first what gains by it; None: the cloud was not asked."""
        edge, cloud = self.edge_right, self.cloud_right
        if edge is None or cloud is None:
            return None
        gained, lost = (np.count_nonzero(cloud & ~edge), np.count_nonzero(edge & ~cloud))
        best = edge.mean() + gained / self.n
        return np.array([0, gained, self.n - lost, self.n]) / self.n, np.array([edge.mean(), best, best, cloud.mean()])

    def classes(self) -> list[Class]:
        """By name. By the right answer; without labels, or with a threshold for each class, by what the edge says."""
        labels = self.examples.labels if self.examples.labels is not None and not self.thresholds else self.examples.edge
        names, at = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
        counts = np.bincount(at)

        def shares(found: Bools | None) -> list[Any]:
            return [None] * len(names) if found is None else (np.bincount(at, found) / counts).tolist()

        rights = map(shares, (self.edge_right, self.cloud_right, self.cascade_right))
        columns = (names.tolist(), counts.tolist(), *rights, shares(~self.accepted))
        return [Class(*row) for row in zip(*columns, strict=True)]

    def seconds(self) -> dict[str, Floats]:
        """What an input takes: edge, cloud, and cascade (one after the other, where it is deferred). Rising; those measured.

        The cascade's are of inputs for which both were measured, accepted or not: else it would look faster than it is.
        """
        edge, cloud = self.examples.edge_s, self.examples.cloud_s
        found = {"edge": edge}
        if cloud is not None:
            found |= {"cloud": cloud, "cascade": np.where(self.accepted, edge + 0 * cloud, edge + cloud)}
        known = {leg: np.sort(times[~np.isnan(times)]) for leg, times in found.items()}
        return {leg: times for leg, times in known.items() if times.size}

    def latency(self) -> dict[str, tuple[float, ...]]:
        """Leg -> its seconds at `QUANTILES`."""
        return {leg: tuple(np.quantile(times, QUANTILES).tolist()) for leg, times in self.seconds().items()}

    def costs(self) -> list[Cost]:
        """Median seconds; and usd and joules, if the cloud's are more than nothing."""
        if self.examples.cloud is None:
            return []
        times, terms = self.latency(), self.terms
        megabytes = (self.examples.sent_bytes + self.examples.received_bytes) / self.n / 1e6
        joules = terms.joules_per_call + terms.joules_per_mb * megabytes
        found = [Cost("seconds", times["edge"][0], times["cloud"][0])] if {"edge", "cloud"} <= set(times) else []
        found += [Cost("usd", self.edge_usd, self.examples.usd / self.n), Cost("joules", self.edge_joules, joules)]
        return [cost for cost in found if cost.cloud > 0]
