"""Breakers and retry budgets of a whole fleet as arrays, by the formulas of `core/breaker.py` and `core/budget.py`."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeroute.core import breaker, budget
from edgeroute.replay.fleet.cloud import Floats, Ints, Some
from edgeroute.replay.fleet.scenario import Client

CLOSED, OPEN, HALF_OPEN = 0, 1, 2


class Devices:
    """One breaker and one budget per device. Values equal for all are not stored per device: about 40 bytes a device.

    A device that occurs several times in one call has as many faults, but one success, and opens once.
    """

    def __init__(self, count: int, client: Client, random: np.random.Generator) -> None:
        self._client: Final = client
        self._random: Final = random
        self.state = np.zeros(count, np.int8)
        self.left = np.full(count, budget.CAP, np.int16)
        self.due = np.full(count, np.inf)
        self.held = np.full(count, -np.inf)
        self._faults = np.zeros(count, np.int16)
        self._next_s = np.full(count, breaker.FIRST_S)

    def allows(self, who: Ints, at: Floats) -> Some:
        """Whether a request may be sent."""
        if not self._client.breaker:
            return np.ones(len(who), np.bool_)
        return np.asarray(breaker.allowed(self.state[who] == CLOSED, self.held[who], at))

    def probes(self, who: Ints, at: Floats) -> Ints:
        """Starts the probes that are due among these rejected devices; returns their positions."""
        due = np.flatnonzero(breaker.due(self.due[who], self.held[who], at))
        if len(due):
            due = due[np.unique(who[due], return_index=True)[1]]
            self.state[who[due]] = HALF_OPEN
            self.due[who[due]] = at[due] + breaker.PROBE_LOST_S
        return due

    def success(self, who: Ints) -> Some:
        """Records answered requests; returns which breakers were not closed."""
        was = np.asarray(self.state[who] != CLOSED)
        self._faults[who], self._next_s[who] = 0, breaker.FIRST_S
        self.state[who], self.due[who] = CLOSED, np.inf
        self.left[who] = budget.earned(self.left[who])
        return was

    def fault(self, who: Ints, at: Floats) -> None:
        """Records failed requests."""
        shut = self.state[who] == CLOSED
        who, at = who[shut], at[shut]
        np.add.at(self._faults, who, 1)
        self._open(who, at, breaker.tripped(self._faults[who]))

    def probed(self, who: Ints, at: Floats, ok: Some) -> Some:
        """Records results of probes; returns which breakers close."""
        under_way = np.asarray(self.state[who] == HALF_OPEN)
        back = under_way & ok
        self.state[who[back]], self.due[who[back]] = CLOSED, np.inf
        self._open(who, at, under_way & ~ok)
        return back

    def hold(self, who: Ints, at: Floats, wait_s: float) -> None:
        """Holds requests for `wait_s` seconds, as the cloud requested."""
        self.held[who] = breaker.held_until(self.held[who], at + wait_s, at)

    def retry(self, who: Ints) -> Some:
        """Takes a retry from each budget; False where there is none."""
        may = np.asarray(self.state[who] == CLOSED) if self._client.breaker else np.ones(len(who), np.bool_)
        if self._client.budget:
            may &= budget.affords(self.left[who])
            np.subtract.at(self.left, who[may], budget.RETRY)
        return may

    def wait_s(self, most_s: Floats) -> Floats:
        """Back-off with full jitter: uniform between 0 and the maximum; without jitter the maximum."""
        return most_s * self._jitter(len(most_s))

    def _jitter(self, count: int) -> Floats:
        return self._random.random(count) if self._client.jitter else np.ones(count)

    def _open(self, who: Ints, at: Floats, which: Some) -> None:
        if which.any():
            who, first = np.unique(who[which], return_index=True)
            self.state[who] = OPEN
            self.due[who] = at[which][first] + breaker.open_s(self._next_s[who], self._jitter(len(who)))
            self._next_s[who] = breaker.grown_s(self._next_s[who])
