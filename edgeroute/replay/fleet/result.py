"""Result of a fleet simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from edgeroute.replay.fleet.cloud import Floats, Ints
from edgeroute.replay.fleet.course import DeviceResult
from edgeroute.replay.fleet.scenario import AGAIN_S, GOOD, Client, Scenario

TOOK_S: Final = 0.01
TOOK_MOST_S: Final = 60.0


@dataclass
class Result:
    """Counts of a run. Arrays have one element per second."""

    scenario: Scenario
    client: Client
    attempts: Ints
    """Attempts that reached the cloud's address, rejected ones too, by their start; probes are counted separately."""
    good: Ints
    """Those answered in time."""
    asked: Ints
    """Requests deferred by the edge."""
    answered: Ints
    """Those answered by the cloud in time, by when they were made."""
    degraded: int = 0
    """Those answered by the edge instead."""
    kept: int = 0
    """Those that the edge answered by itself as the cloud was loaded: they were not to be sent, and are not degraded."""
    refused: int = 0
    """Attempts that the cloud refused as its queue was full."""
    late: int = 0
    """Attempts that were given up."""
    right: float = 0.0
    """Expected number of right answers to them."""
    took: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Requests by the time until their answer, in steps of `TOOK_S`, without the edge's own time."""
    queued: int = 0
    """Degraded requests stored in an outbox: `delivered` later, or still `waiting`."""
    delivered: int = 0
    waiting: int = 0
    probes: int = 0
    served: int = 0
    """Requests served by the cloud ..."""
    wasted: int = 0
    """... and those served after the device had given up."""
    device: DeviceResult | None = None
    """What the rules did, if the devices have a state."""

    @classmethod
    def empty(cls, scenario: Scenario, client: Client, seconds: int) -> Result:
        """The counts before the run."""
        attempts, good, asked, answered = np.zeros((4, seconds), np.int64)
        return cls(scenario, client, attempts, good, asked, answered, took=np.zeros(int(TOOK_MOST_S / TOOK_S), np.int64))

    @property
    def lost(self) -> int:
        """Requests without an answer: none, as the edge's answer is returned."""
        return int(self.asked.sum() - self.answered.sum()) - self.degraded - self.kept

    @property
    def accuracy(self) -> float:
        """Expected share of right answers to what the edge would defer."""
        return self.right / max(1, int(self.asked.sum()))

    def took_s(self, q: float) -> float:
        """Quantile of the time until a request has its answer, seconds."""
        sums = np.cumsum(self.took)
        return float(np.searchsorted(sums, q * sums[-1])) * TOOK_S if sums[-1] else 0.0

    @property
    def cloud_back_s(self) -> float | None:
        """Seconds from the end of the outage until the cloud answered its requests, to the end of the run; None: it did not."""
        return self._back_s(self.good, self.attempts)

    @property
    def fleet_back_s(self) -> float | None:
        """Likewise until devices received its answers: a breaker may stay open after the cloud has recovered."""
        return self._back_s(self.answered, self.asked)

    @property
    def peak(self) -> float:
        """The busiest second after the outage, as a multiple of the normal load."""
        return float(self.attempts[self._back :].max()) / self.scenario.normal_per_s

    @property
    def wasted_share(self) -> float:
        """Wasted share of the cloud's work, 0..1."""
        return self.wasted / max(self.served, 1)

    @property
    def _back(self) -> int:
        return int(np.ceil(self.scenario.back_at_s))

    def _back_s(self, good: Ints, of: Ints) -> float | None:
        whole = slice(self._back, int(self.scenario.length_s))
        well, asked = _windows(good[whole]), _windows(of[whole])
        bad = np.flatnonzero(well < GOOD * asked)
        back = int(bad[-1]) + 1 if len(bad) else 0
        return float(back) if back < len(asked) else None


def _windows(counts: Ints) -> Floats:
    """Sums over windows of `AGAIN_S`, by their start."""
    sums = np.concatenate(([0.0], np.cumsum(counts)))
    width = int(AGAIN_S)
    return sums[width:] - sums[:-width] if len(sums) > width else np.zeros(0)
