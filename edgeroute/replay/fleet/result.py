"""What came of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeroute.replay.fleet.cloud import Floats, Ints
from edgeroute.replay.fleet.scenario import AGAIN_S, GOOD, Client, Scenario


@dataclass
class Result:
    """Counts of a run. Those that are arrays have one for each second."""

    scenario: Scenario
    client: Client
    attempts: Ints
    """What reached the cloud's address, that which it refused too, by when it was begun; probes are counted apart."""
    good: Ints
    """Those of them that were answered in time."""
    asked: Ints
    """Requests that the edge was not sure of."""
    answered: Ints
    """Those of them that the cloud answered in time, by when they were asked."""
    degraded: int = 0
    """Those that have the edge's answer instead."""
    queued: int = 0
    """Degraded requests that went to an outbox: `delivered` later, or `waiting` still."""
    delivered: int = 0
    waiting: int = 0
    probes: int = 0
    served: int = 0
    """What the cloud worked on ..."""
    wasted: int = 0
    """... and for whom nobody waited any more."""

    @classmethod
    def empty(cls, scenario: Scenario, client: Client, seconds: int) -> Result:
        """Nothing has happened yet."""
        attempts, good, asked, answered = np.zeros((4, seconds), np.int64)
        return cls(scenario, client, attempts, good, asked, answered)

    @property
    def lost(self) -> int:
        """Requests that nobody answered: there are none, since the edge's answer stands."""
        return int(self.asked.sum() - self.answered.sum()) - self.degraded

    @property
    def cloud_back_s(self) -> float | None:
        """Seconds from the outage's end until the cloud answered what it was asked, to the end of the run; None: it did not."""
        return self._back_s(self.good, self.attempts)

    @property
    def fleet_back_s(self) -> float | None:
        """The same until the devices had its answers: a breaker may stay open though the cloud is well."""
        return self._back_s(self.answered, self.asked)

    @property
    def peak(self) -> float:
        """The busiest second after the outage, as a multiple of what the cloud is asked while all is well."""
        return float(self.attempts[self._back :].max()) / self.scenario.normal_per_s

    @property
    def wasted_share(self) -> float:
        """Of the cloud's work, 0..1."""
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
    """Sums over `AGAIN_S`, by where they begin."""
    sums = np.concatenate(([0.0], np.cumsum(counts)))
    width = int(AGAIN_S)
    return sums[width:] - sums[:-width] if len(sums) > width else np.zeros(0)
