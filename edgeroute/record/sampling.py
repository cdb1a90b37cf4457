"""Sampling: which requests are audited, and which a drift alarm counts; drawn when a request arrives, before it has an answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from math import log1p
from typing import NamedTuple

from edgeroute.core.policy import INF
from edgeroute.system import renew_after_fork

FULL, FULL_OF_RUNS = 8, 32
"""`Sampler`'s `full`: for audits that call the cloud, and for those that only run an edge model."""
CALM = 10_000
"""Number of requests, without any audit waiting at the end, after which they are drawn twice as often again."""


class Drawn(NamedTuple):
    """What is done with a request once it has ended. Its answer, and the side that gives it, had no part in it."""

    probability: float
    """With which it was drawn for an audit; 0: it was not."""
    counted: bool
    """Whether its audit is counted by the alarm: it is far enough from the last one that was."""
    rate: bool
    """Whether its deferral is counted by the alarm of deferral rates."""


class Sampler:
    """Draws requests at their arrival: for audits each with the same probability, for the deferral rate at random distances.

    While audits cannot keep up, the share is halved. The probability then depends on earlier requests, and never on the drawn
    one: weighted by its inverse, the audits represent all requests.

    Args:
        share: of the requests that are audited, 0..1.
        scene: requests that a drift alarm counts are at least so far apart, 1 or more.
        waiting: number of audits that wait to be made.
        allowed: whether an audit may be made now.
        due: number of requests until the next that is counted for the deferral rate, from an earlier run; None: not known.
        full: number of waiting audits at which further ones are drawn half as often; at twice as many a quarter as often, ...
    """

    def __init__(
        self,
        share: float,
        scene: int,
        waiting: Callable[[], int],
        allowed: Callable[[], bool],
        due: int | None = None,
        full: int = FULL,
    ) -> None:
        self._full = full
        self._share, self._scene, self._waiting, self._allowed = share, scene, waiting, allowed
        self._halvings = self._changed = self._counts_from = self._seen = 0
        self._audit = self._gap()
        first = random.randint(1, 3 * scene) if due is None else due  # noqa: S311 - a sample, not a secret
        self._rate = min(max(1, first), 3 * scene)
        self._step = self._left = min(self._audit, self._rate)
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.RLock()

    def arrives(self) -> Drawn | None:
        """What is done with the request that arrives now, once it has ended; None: nothing, as for most."""
        left = self._left = self._left - 1  # without a lock: of a race that loses one, it is only later by one
        return None if left > 0 else self._draw()

    def remaining(self) -> int:
        """Number of requests until the next that is counted for the deferral rate, for the next run."""
        with self._lock:
            return max(1, self._rate - (self._seen + int(self._step - self._left)))

    def _draw(self) -> Drawn | None:
        with self._lock:
            if self._left > 0:  # another thread's was drawn in its place
                return None
            number = self._seen = self._seen + int(self._step - self._left)
            rate, probability, counted = number >= self._rate, 0.0, False
            if rate:
                self._rate = number + self._scene + int(random.random() * (2 * self._scene + 1))  # noqa: S311
            if number >= self._audit:
                self._audit = number + self._gap()
                probability = self._probability(number)
                counted = probability > 0 and number >= self._counts_from
                if counted:
                    self._counts_from = number + self._scene
            self._step = self._left = min(self._audit, self._rate) - number
        if probability and not self._allowed():
            probability, counted = 0.0, False
        return Drawn(probability, counted, rate) if rate or probability else None

    def _gap(self) -> float:
        """Number of requests until the next that may be audited (geometric): each is drawn independently."""
        share = self._share
        if share <= 0:
            return INF
        return 1 if share >= 1 else 1 + int(log1p(-random.random()) / log1p(-share))  # noqa: S311

    def _probability(self, number: int) -> float:
        """The probability with which this request is audited, if it is drawn; else 0."""
        waiting = self._waiting()
        if waiting // self._full > self._halvings:
            self._halvings, self._changed = waiting // self._full, number
        elif waiting == 0 and self._halvings and number - self._changed >= CALM:
            self._halvings, self._changed = self._halvings - 1, number
        kept = 0.5**self._halvings
        return self._share * kept if kept == 1 or random.random() < kept else 0.0  # noqa: S311
