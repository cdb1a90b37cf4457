"""A limit of concurrent calls that finds itself, from how long they take and which fail: `max_concurrent = "auto"`.

Additive increase, multiplicative decrease, as TCP's congestion control (Chiu and Jain, 1989; Jacobson, 1988), with delay as a
signal beside loss, as in TCP Vegas (Brakmo and Peterson, 1995) and in Netflix's concurrency-limits (2018):

    a round, of as many answers as the limit, and at least `ROUND`:
        median > SLOW * base                       limit *= SLOWER
        else, if half of the limit was under way   limit += 1
    a fault: a refusal, a time-out                 limit *= FAULT, once in a time `base`
    one round in `ROUNDS`                          limit * PROBE for its time; its median is the new base

`base` is what a call takes where none waits. A limit that is used fully hides that, as all of its calls wait; so it is measured
with a quarter of them, as in BBR (Cardwell et al., 2016). So the limit settles below `SLOW` times of what is answered at a time,
one slow input says nothing, and a link that has become slower for good is the new base. The clock is passed in.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 8.0
"""The limit at the start."""
LEAST: Final = 1.0
MOST: Final = 64.0
ROUND: Final = 8
ROUNDS: Final = 16
PROBE: Final = 0.25
SLOW: Final = 2.0
SLOWER: Final = 0.8
FAULT: Final = 0.5
PAUSE_S: Final = 0.1
"""Time between two decreases by faults before `base` is known, seconds."""


class Concurrency:
    """The limit of one endpoint. Not synchronised: threads that share it need a lock.

    Attributes:
        limit: calls that may be under way, but while the base is measured.
        base_s: what a call takes where none waits, seconds; None: not known yet.
    """

    __slots__ = ("_busiest", "_cut_until", "_probing", "_round", "_rounds", "base_s", "limit")

    def __init__(self) -> None:
        self.limit = FIRST
        self.base_s: float | None = None
        self._round: list[float] = []
        self._rounds = self._busiest = 0
        self._probing = False
        self._cut_until = -float("inf")

    @property
    def most(self) -> int:
        """How many calls may be under way."""
        return max(1, int(self.limit * PROBE if self._probing else self.limit))

    def succeeded(self, took_s: float, busy: int) -> None:
        """Records an answer that took so long, with so many calls under way, itself included."""
        if self._probing and busy > self.most:  # it waited with those that are too many by now
            return
        self._round.append(took_s)
        self._busiest = max(self._busiest, busy)
        if len(self._round) < max(ROUND, self.most):
            return
        median, busiest = sorted(self._round)[len(self._round) // 2], self._busiest
        self._new_round()
        if self._probing or self.base_s is None:
            self.base_s, self._probing = median, False
            return
        if median > SLOW * self.base_s:
            self.limit = max(LEAST, self.limit * SLOWER)
        elif 2 * busiest >= self.most:
            self.limit = min(MOST, self.limit + 1)
        self.base_s = min(self.base_s, median)
        self._rounds += 1
        self._probing = self._rounds % ROUNDS == 0

    def failed(self, now: float) -> None:
        """Records a fault at an instant. Those of the same moment count once: they are of one overload."""
        if now < self._cut_until:
            return
        self.limit = max(LEAST, self.limit * FAULT)
        self._cut_until = now + (self.base_s or PAUSE_S)
        self._new_round()

    def _new_round(self) -> None:
        self._round, self._busiest = [], 0
