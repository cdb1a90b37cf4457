"""A cloud of finite capacity as a queue, vectorised over requests."""

from __future__ import annotations

from math import exp
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeroute.core.estimates import CAP, QUEUE_S
from edgeroute.tools.replay.fleet.scenario import Scenario

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Some: TypeAlias = NDArray[np.bool_]
WINDOW_S: Final = 2.0
"""Time over which the cloud averages its used share, as `edgeroute serve` does, seconds."""
ANSWERED, REFUSED, BUSY, LATE = 0.0, 1.0, 2.0, 3.0
"""Result of an attempt. Floats, like the other columns of an attempt."""


class Meter:
    """The used share of the cloud."""

    def __init__(self) -> None:
        self.used, self._at = 0.0, 0.0

    def served(self, work_s: float, until: float) -> None:
        """So many seconds of work were done up to that instant."""
        passed = until - self._at
        if passed > 0:
            fades = exp(-passed / WINDOW_S)
            self.used = self.used * fades + min(1.0, work_s / passed) * (1 - fades)
            self._at = until


class Cloud:
    """Serves in order of arrival, 1/capacity seconds each: exact, except which requests of a time step are rejected.

    Attributes:
        wasted: number served after their device had given up.
        served: number served.
        reports: the load that each of the last replies reports.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.served = self.wasted = 0
        self._each_s: Final = 1 / scenario.capacity_per_s
        self._of: Final = scenario
        self._free_at = 0.0
        self._emptied = False
        self._meter = Meter()
        self.reports: Floats = np.zeros(0)

    def ask(self, at: Floats, until: Floats, probe: Some) -> tuple[Floats, Floats]:
        """(end of each attempt, its result) for attempts that arrive `at`, in order, and are given up `until`.

        Probes go to the health route, which does not run the model: they do not queue.
        """
        of = self._of
        ends, verdicts = at + of.latency_s, np.full(len(at), ANSWERED)
        waits = np.zeros(len(at))
        away = (at >= of.outage_at_s) & (at < of.back_at_s)
        up = np.flatnonzero(~away & ~probe)
        if away.any():
            ends[away] = np.inf if of.silent else ends[away]
            verdicts[away] = REFUSED
        if len(up):
            done_at = self._serve(at[up])
            busy = np.isinf(done_at)
            ends[up] = np.where(busy, ends[up], done_at + of.latency_s)
            verdicts[up[busy]] = BUSY
            waits[up] = np.where(busy, of.queue_s, done_at - at[up] - self._each_s)
            self.served += len(up) - int(busy.sum())
            self._meter.served((len(up) - int(busy.sum())) * self._each_s, float(at[-1]))
            cut = (at < of.outage_at_s) & (ends > of.outage_at_s)
            if cut.any():
                ends[cut], verdicts[cut] = of.outage_at_s, REFUSED
        late = ends > until
        self.wasted += int((verdicts[late] == ANSWERED).sum())
        verdicts[late] = LATE
        self.reports = np.minimum(CAP, self._meter.used + np.maximum(0.0, waits) / QUEUE_S)
        return np.minimum(ends, until), verdicts

    def _serve(self, at: Floats) -> Floats:
        """When each has been served; inf: rejected, since the queue is full."""
        if not self._emptied and at[0] >= self._of.back_at_s:
            self._free_at, self._emptied = self._of.back_at_s, True
        done_at = self._in_turn(at)
        if (done_at - at).max() - self._each_s > self._of.queue_s:
            room = (at[-1] + self._of.queue_s - max(self._free_at, at[0])) / self._each_s
            count = int(min(max(room, 0), len(at)))
            taken = np.arange(count) * len(at) // max(count, 1)  # places become free evenly
            done_at = np.full(len(at), np.inf)
            at = at[taken]
            done_at[taken] = self._in_turn(at)
        if len(at):
            self._free_at = float(done_at[np.isfinite(done_at)][-1])
        return done_at

    def _in_turn(self, at: Floats) -> Floats:
        """Completion times of a FIFO queue: each begins on arrival or once the previous one is done."""
        turn = np.arange(len(at)) * self._each_s
        begun: Any = np.maximum.accumulate(np.maximum(at, self._free_at) - turn)
        return np.asarray(begun + turn + self._each_s, np.float64)
