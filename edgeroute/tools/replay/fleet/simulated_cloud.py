"""Simulated cloud of finite capacity: a queue, vectorised over requests."""

from __future__ import annotations

from math import exp
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeroute.core.latency_and_load_estimates import CAP, QUEUE_S
from edgeroute.tools.replay.fleet.scenario import Scenario

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Some: TypeAlias = NDArray[np.bool_]
WINDOW_S: Final = 2.0
"""Time constant of the cloud's average use, as in `edgeroute serve`, seconds."""
ANSWERED, REFUSED, BUSY, LATE = 0.0, 1.0, 2.0, 3.0
"""Result of an attempt. Floats, like the other columns of an attempt."""


class Meter:
    """Average use of the cloud, 0 to 1."""

    def __init__(self) -> None:
        self.used, self._at = 0.0, 0.0

    def served(self, work_s: float, until: float) -> None:
        """Record seconds of work done up to that time; earlier times are ignored."""
        passed = until - self._at
        if passed > 0:
            decay = exp(-passed / WINDOW_S)
            self.used = self.used * decay + min(1.0, work_s / passed) * (1 - decay)
            self._at = until


class Cloud:
    """Queue that serves in order of arrival, 1/capacity seconds each: exact, except which requests of a time step are rejected.

    Attributes:
        wasted: number served after their device had given up.
        served: number served.
        reports: load that each of the last replies reports.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.served = self.wasted = 0
        self._each_s: Final = 1 / scenario.capacity_per_s
        self._scenario: Final = scenario
        self._free_at = 0.0
        self._emptied = False
        self._meter = Meter()
        self.reports: Floats = np.zeros(0)

    def ask(self, arrivals: Floats, until: Floats, probe: Some) -> tuple[Floats, Floats]:
        """Serve or reject attempts, and return the end and the result of each; counts them, and stores the reported loads.

        Probes go to the health route, which does not run the model: they do not queue.

        Args:
            arrivals: times of arrival, ascending.
            until: times at which the devices give up.
            probe: True for probes.
        """
        scenario = self._scenario
        ends, verdicts = arrivals + scenario.latency_s, np.full(len(arrivals), ANSWERED)
        waits = np.zeros(len(arrivals))
        in_outage = (arrivals >= scenario.outage_at_s) & (arrivals < scenario.back_at_s)
        up = np.flatnonzero(~in_outage & ~probe)
        if in_outage.any():
            ends[in_outage] = np.inf if scenario.silent else ends[in_outage]
            verdicts[in_outage] = REFUSED
        if len(up):
            done_at = self._serve(arrivals[up])
            busy = np.isinf(done_at)
            ends[up] = np.where(busy, ends[up], done_at + scenario.latency_s)
            verdicts[up[busy]] = BUSY
            waits[up] = np.where(busy, scenario.queue_s, done_at - arrivals[up] - self._each_s)
            self.served += len(up) - int(busy.sum())
            self._meter.served((len(up) - int(busy.sum())) * self._each_s, float(arrivals[-1]))
            cut = (arrivals < scenario.outage_at_s) & (ends > scenario.outage_at_s)
            if cut.any():
                ends[cut], verdicts[cut] = scenario.outage_at_s, REFUSED
        late = ends > until
        self.wasted += int((verdicts[late] == ANSWERED).sum())
        verdicts[late] = LATE
        self.reports = np.minimum(CAP, self._meter.used + np.maximum(0.0, waits) / QUEUE_S)
        return np.minimum(ends, until), verdicts

    def _serve(self, arrivals: Floats) -> Floats:
        """Queue arrivals behind the earlier ones, and return when each is done; inf: rejected, since the queue is full.

        Updates when the cloud is free; its queue is empty after the outage.
        """
        if not self._emptied and arrivals[0] >= self._scenario.back_at_s:
            self._free_at, self._emptied = self._scenario.back_at_s, True
        done_at = self._in_turn(arrivals)
        if (done_at - arrivals).max() - self._each_s > self._scenario.queue_s:
            room = (arrivals[-1] + self._scenario.queue_s - max(self._free_at, arrivals[0])) / self._each_s
            count = int(min(max(room, 0), len(arrivals)))
            accepted = np.arange(count) * len(arrivals) // max(count, 1)  # places become free evenly
            done_at = np.full(len(arrivals), np.inf)
            arrivals = arrivals[accepted]
            done_at[accepted] = self._in_turn(arrivals)
        if len(arrivals):
            self._free_at = float(done_at[np.isfinite(done_at)][-1])
        return done_at

    def _in_turn(self, arrivals: Floats) -> Floats:
        """Return the completion times of a FIFO queue: each begins on arrival or once the previous one is done."""
        turn = np.arange(len(arrivals)) * self._each_s
        begun: Any = np.maximum.accumulate(np.maximum(arrivals, self._free_at) - turn)
        return np.asarray(begun + turn + self._each_s, np.float64)
