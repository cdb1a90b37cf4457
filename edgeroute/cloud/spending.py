"""Spending of all clouds of a router, behind one lock."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from edgeroute import system
from edgeroute.core.codes import Rejection
from edgeroute.core.spending import Cost, Limits, Spending
from edgeroute.system import renew_after_fork


class SharedSpending:
    """A `Spending` for all clouds of a router, behind a reentrant lock, since a signal handler may take it again."""

    def __init__(self, spending: Spending) -> None:
        self._spending = spending
        self.after_fork()
        renew_after_fork(self)

    @property
    def limits(self) -> Limits:
        """The limits; may be set."""
        return self._spending.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._spending.limits = limits

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Adds what an earlier run has spent.

        Raises:
            ValueError: not a dump.
        """
        with self._lock:
            self._spending.load(dumped, system.now())

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.RLock()

    def reserve(self, cost: Cost, now: float) -> Rejection | None:
        """Books the cost, or returns the limit that forbids it."""
        with self._lock:
            return self._spending.reserve(cost, now)

    def add(self, cost: Cost, now: float) -> None:
        """Books a cost that has been incurred anyway."""
        with self._lock:
            self._spending.add(cost, now)

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Corrects a reservation to the actual cost."""
        with self._lock:
            self._spending.settle(reserved, actual, now)

    def spent(self) -> Cost:
        """Current spending, each over its window."""
        with self._lock:
            return self._spending.spent(system.now())

    def dump(self) -> dict[str, object]:
        """JSON-serialisable bookings of this process."""
        with self._lock:
            return self._spending.dump()

    def scarce(self) -> bool:
        """Whether half of any limit is used up: from then on there are no hedges and no audits."""
        with self._lock:
            return self._spending.scarce(system.now())
