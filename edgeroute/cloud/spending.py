"""What all clouds of a router spend together, behind one lock."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from edgeroute import system
from edgeroute.core.codes import Rejection
from edgeroute.core.spending import Cost, Limits, Spending
from edgeroute.system import renew_after_fork


class SharedSpending:
    """What all clouds of a router spend together: a `Spending` behind a lock, which a signal handler may take again."""

    def __init__(self, spending: Spending) -> None:
        self._spending = spending
        self.after_fork()
        renew_after_fork(self)

    @property
    def limits(self) -> Limits:
        """What may be spent; may be set."""
        return self._spending.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._spending.limits = limits

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Adds what an earlier run has spent.

        Raises:
            ValueError: it cannot be read.
        """
        with self._lock:
            self._spending.load(dumped, system.now())

    def after_fork(self) -> None:
        """A lock of its own for the child."""
        self._lock = threading.RLock()

    def reserve(self, cost: Cost, now: float) -> Rejection | None:
        """Books it, or says why not."""
        with self._lock:
            return self._spending.reserve(cost, now)

    def add(self, cost: Cost, now: float) -> None:
        """Books what has happened anyway."""
        with self._lock:
            self._spending.add(cost, now)

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Corrects what was booked to what it came to."""
        with self._lock:
            self._spending.settle(reserved, actual, now)

    def spent(self) -> Cost:
        """What counts now."""
        with self._lock:
            return self._spending.spent(system.now())

    def dump(self) -> dict[str, object]:
        """What was spent, ready for JSON."""
        with self._lock:
            return self._spending.dump()

    def scarce(self) -> bool:
        """Whether half of any limit is gone: from then on nothing is asked only to be quicker."""
        with self._lock:
            return self._spending.scarce(system.now())
