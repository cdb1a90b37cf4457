"""Sums of what came of the requests at one arm of the cloud, and those of many devices as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import sqrt
from typing import Any, NamedTuple

from edgeroute.core.latency import Latency
from edgeroute.core.walk import Prediction
from edgeroute.observe.arm_stats import CloudArmStats, Part
from edgeroute.router.ab import part

_COUNTS = ("calls", "failed", "compared", "differ", "shadowed", "shadow_differ", "shadow_failed")


class Came(NamedTuple):
    """What came of a request at its arm."""

    name: str
    leg: int
    failed: bool
    took_s: float | None
    """Time of its answer, seconds; None: it gave none."""
    answer: Prediction | None
    edge: Prediction | None
    differs: bool | None
    """Whether its answer is another than the edge's; None: one of them is not known."""


class _Mean:
    """A mean with its interval."""

    def __init__(self, n: int = 0, total: float = 0.0, squares: float = 0.0) -> None:
        self.n, self.total, self.squares = n, total, squares

    def add(self, value: float) -> None:
        self.plus(_Mean(1, value, value * value))

    def plus(self, other: _Mean) -> None:
        self.n, self.total, self.squares = self.n + other.n, self.total + other.total, self.squares + other.squares

    def part(self) -> Part:
        n = max(1, self.n)
        mean = self.total / n
        error = 1.96 * sqrt(max(0.0, self.squares / n - mean * mean) / n)
        return Part(mean, max(0.0, mean - error), mean + error)


class ArmTally:
    """Sums of one arm."""

    def __init__(self) -> None:
        self.calls = self.failed = self.compared = self.differ = self.shadowed = self.shadow_differ = self.shadow_failed = 0
        self._latency, self._took, self._usd = Latency(), _Mean(), _Mean()

    def dump(self) -> dict[str, Any]:
        """JSON-serialisable sums."""
        means = {name: [one.n, one.total, one.squares] for name, one in (("took", self._took), ("usd", self._usd))}
        return {**{name: getattr(self, name) for name in _COUNTS}, "latency": self._latency.dump(), **means}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> ArmTally:
        """The sums that `dump` told.

        Raises:
            KeyError, TypeError, ValueError: they are none.
        """
        made = cls()
        made._latency = Latency.load(dumped["latency"])
        for name in _COUNTS:
            setattr(made, name, int(dumped.get(name, 0)))  # an earlier version did not count it
        made._took, made._usd = (_Mean(int(n), float(s), float(q)) for n, s, q in (dumped["took"], dumped["usd"]))
        return made

    def plus(self, other: ArmTally) -> None:
        """Adds the sums of another device."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._took.plus(other._took)
        self._usd.plus(other._usd)

    def count(self, came: Came, usd: float | None, *, timed: bool) -> None:
        """Adds a request. timed: whether its time is that of one input."""
        self.calls += 1
        self.failed += came.failed
        if usd is not None:
            self._usd.add(usd)
        if timed and came.took_s is not None:
            self._latency.add(came.took_s)
            self._took.add(came.took_s)
        if came.differs is not None:
            self.compared += 1
            self.differ += came.differs

    def stats(self, arm: str, share: float, stopped: str) -> CloudArmStats:
        """The sums as statistics."""
        return CloudArmStats(
            arm, share, self.calls, part(self.failed, self.calls), self.compared, part(self.differ, self.compared),
            self.shadowed, part(self.shadow_differ, self.shadowed), self.shadow_failed, self._usd.part(), self._took.part(),
            self._latency.quantile(0.5), self._latency.quantile(0.99), stopped,
        )  # fmt: skip


def summed(devices: Sequence[Mapping[str, Any]]) -> list[CloudArmStats]:
    """The arms of many devices as one, from what each stored. Latency quantiles are those of no fleet, and left out.

    A guardrail's evidence of one device is not that of others; an arm that is stopped on one is told as stopped.
    """
    found = list[CloudArmStats]()
    for arm in devices[0]["arms"]:
        total, stopped = ArmTally(), ""
        for device in devices:
            with suppress(KeyError, TypeError, ValueError):
                total.plus(ArmTally.load(device["tallies"][arm["arm"]]))
                stopped = stopped or str(device["stopped"].get(arm["arm"], ""))
        found.append(total.stats(str(arm["arm"]), float(arm["share"]), stopped)._replace(p50_s=None, p99_s=None))
    return found
