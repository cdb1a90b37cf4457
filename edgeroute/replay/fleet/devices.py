"""The breakers and retry budgets of a whole fleet, as arrays: the rules of `core/breaker.py` and `core/budget.py`."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeroute.core.breaker import FAULTS, FIRST_S, HOLD_MOST_S, MOST_S, PROBE_LOST_S
from edgeroute.replay.fleet.cloud import Floats, Ints, Some
from edgeroute.replay.fleet.scenario import Client

CLOSED, OPEN, HALF_OPEN = 0, 1, 2
RETRY, CAP = 10, 100
"""In successes, as `RetryBudget` counts: what a retry costs, and the most there can be."""


class Devices:
    """One breaker and one budget a device. What is the same for all is not stored twice: about 40 bytes a device.

    A device that is named twice in one call has as many faults, one success, and opens once.
    """

    def __init__(self, count: int, client: Client, random: np.random.Generator) -> None:
        self._client: Final = client
        self._random: Final = random
        self.state = np.zeros(count, np.int8)
        self.left = np.full(count, CAP, np.int16)
        self.due = np.full(count, np.inf)
        self.held = np.full(count, -np.inf)
        self._faults = np.zeros(count, np.int16)
        self._next_s = np.full(count, FIRST_S)

    def allows(self, who: Ints, at: Floats) -> Some:
        """Whether a request may be sent."""
        if not self._client.breaker:
            return np.ones(len(who), np.bool_)
        return np.asarray((self.state[who] == CLOSED) & (at >= self.held[who]))

    def probes(self, who: Ints, at: Floats) -> Ints:
        """Which of these, each that was not allowed, send a probe: their places. It is under way from now on."""
        due = np.flatnonzero((at >= self.due[who]) & (at >= self.held[who]))
        if len(due):
            due = due[np.unique(who[due], return_index=True)[1]]
            self.state[who[due]] = HALF_OPEN
            self.due[who[due]] = at[due] + PROBE_LOST_S
        return due

    def success(self, who: Ints) -> Some:
        """A request was answered -> whose breaker was not closed."""
        was = np.asarray(self.state[who] != CLOSED)
        self._faults[who], self._next_s[who] = 0, FIRST_S
        self.state[who], self.due[who] = CLOSED, np.inf
        self.left[who] = np.minimum(self.left[who] + 1, CAP)
        return was

    def fault(self, who: Ints, at: Floats) -> None:
        """A request failed."""
        shut = self.state[who] == CLOSED
        who, at = who[shut], at[shut]
        np.add.at(self._faults, who, 1)
        self._open(who, at, self._faults[who] >= FAULTS)

    def probed(self, who: Ints, at: Floats, ok: Some) -> Some:
        """A probe has ended -> whose breakers close."""
        under_way = np.asarray(self.state[who] == HALF_OPEN)
        back = under_way & ok
        self.state[who[back]], self.due[who[back]] = CLOSED, np.inf
        self._open(who, at, under_way & ~ok)
        return back

    def hold(self, who: Ints, at: Floats, wait_s: float) -> None:
        """The cloud asks for nothing before so many seconds have passed."""
        self.held[who] = np.maximum(self.held[who], at + min(wait_s, HOLD_MOST_S))

    def retry(self, who: Ints) -> Some:
        """Whether there may be another attempt; it is taken from the budget."""
        may = np.asarray(self.state[who] == CLOSED) if self._client.breaker else np.ones(len(who), np.bool_)
        if self._client.budget:
            may &= self.left[who] >= RETRY
            np.subtract.at(self.left, who[may], RETRY)
        return may

    def wait_s(self, most_s: Floats) -> Floats:
        """Full jitter: anything from nothing to the most; without jitter the most."""
        return most_s * self._random.random(len(most_s)) if self._client.jitter else most_s

    def _open(self, who: Ints, at: Floats, which: Some) -> None:
        if which.any():
            who, first = np.unique(who[which], return_index=True)
            self.state[who] = OPEN
            some_s = self._next_s[who] / 2
            self.due[who] = at[which][first] + some_s + self.wait_s(some_s)
            self._next_s[who] = np.minimum(2 * self._next_s[who], MOST_S)
