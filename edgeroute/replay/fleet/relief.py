"""What devices do with the load that their cloud reports, by the formulas of `core/load.py`; and `core/concurrency.py`."""

from __future__ import annotations

import numpy as np

from edgeroute.core import load
from edgeroute.core.concurrency import Concurrency
from edgeroute.replay.fleet.cloud import Floats, Ints, Some


class Reported:
    """The load as each device has it from the replies that it had."""

    def __init__(self, count: int) -> None:
        self._load = np.zeros(count)
        self._at = np.full(count, -np.inf)

    def add(self, who: Ints, at: Floats, reports: Floats) -> None:
        """Adds reports. Of several of one device in a step the last counts."""
        self._load[who] = load.averaged(self._load[who], at - self._at[who], reports)
        self._at[who] = np.maximum(self._at[who], at)

    def kept(self, who: Ints, at: Floats) -> Floats:
        """The share of their deferrals that these devices keep."""
        return np.asarray(load.kept(load.faded(self._load[who], at - self._at[who])), np.float64)


class Places:
    """The limits of concurrent calls that find themselves, of devices that ask often enough to have several calls under way."""

    def __init__(self, count: int) -> None:
        self._limits = [Concurrency() for _ in range(count)]
        self._busy = [0] * count

    def enter(self, who: Ints) -> Some:
        """Which of these calls, in order, may be made: they are under way from now on."""
        may = np.zeros(len(who), np.bool_)
        for n, i in enumerate(who.tolist()):
            if self._busy[i] < self._limits[i].most:
                self._busy[i] += 1
                may[n] = True
        return may

    def leave(self, who: Ints) -> None:
        """Calls have ended."""
        for i in who.tolist():
            self._busy[i] -= 1

    def ended(self, who: Ints, at: Floats, took_s: Floats, good: Some) -> None:
        """Attempts have ended."""
        for i, now, took, well in zip(who.tolist(), at.tolist(), took_s.tolist(), good.tolist(), strict=True):
            if well:
                self._limits[i].succeeded(took, self._busy[i])
            else:
                self._limits[i].failed(now)
