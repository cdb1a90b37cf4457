"""Spending of all clouds of a router, behind one lock, with a record of it on disk that is written ahead."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, cast

from edgeroute import system
from edgeroute.cloud.earlier import PREFIX, EarlierSpending
from edgeroute.core.codes import HeldCode, Rejection
from edgeroute.core.policy import INF
from edgeroute.core.spending import Cost, Limits, Spending
from edgeroute.system import renew_after_fork

if TYPE_CHECKING:
    from edgeroute.stores.keyvalue import KeyValueStore

_NONE = Limits()


class SharedSpending:
    """A `Spending` for all clouds of a router, behind a reentrant lock, since a signal handler may take it again.

    With a state file nothing under a limit is spent that the file does not have: `secure` writes it ahead, so a crash forgets
    nothing. While the file cannot be read or written, what has a limit is refused.

    Args:
        spending: the bookings and limits.
        store: the state file; None: spending starts at zero with each process.
    """

    def __init__(self, spending: Spending, store: KeyValueStore | None = None) -> None:
        self._spending, self._store = spending, store
        self._earlier = None if store is None else EarlierSpending(spending, store)
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._lock, self._writing = threading.RLock(), threading.RLock()
        self._name = PREFIX + os.urandom(6).hex()
        self._version = self._written = 0
        """Of the record: the latest, and the latest that is in the file."""

    def after_fork(self) -> None:
        """New locks and a record of its own for the child; what is booked so far is in its parent's."""
        self._renew()
        self._spending.inherited()

    @property
    def limits(self) -> Limits:
        """The limits; may be set."""
        return self._spending.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._spending.limits = limits

    def recall(self) -> bool:
        """Adds what earlier runs have spent, and other processes. Returns whether the state file could be read."""
        return self._earlier is None or self._earlier.recall(self._lock, self._name)

    def reserve(self, cost: Cost, now: float) -> Rejection | None:
        """Books the cost, or returns the limit that forbids it. Before anything is sent for it, `secure` it."""
        with self._lock:
            rejection = self._spending.reserve(cost, now)
        if rejection is not None and self._earlier is not None:
            self._earlier.look_again(self._lock, self._name)
        return rejection

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Corrects a reservation to the actual cost."""
        with self._lock:
            self._spending.settle(reserved, actual, now)

    def add(self, cost: Cost, now: float) -> None:
        """Books a cost that has been incurred anyway, and has it written."""
        with self._lock:
            self._spending.add(cost, now)
        if self.unwritten:
            self._write()

    @property
    def durable(self) -> bool:
        """Whether a booking may have to be written before what it is for is sent."""
        return self._store is not None and self.limits != _NONE

    @property
    def unwritten(self) -> bool:
        """Whether something is booked under a limit that the file lacks, so that `secure` would write it."""
        return self._store is not None and (self._written < self._version or self._spending.ahead())

    def secure(self, cost: Cost) -> Rejection | None:
        """Writes ahead what is booked under a limit; may take as long as the disk does.

        If that fails it returns the reason: the cost, which was booked before, is then to be taken back by `settle`.
        """
        if not self.unwritten:
            return None
        kind = next((k for k, part, limit in zip(Limits._fields, cost, self.limits, strict=True) if part and limit < INF), "")
        if not kind or self._write():
            return None
        return Rejection(cast("HeldCode", kind), f"{kind}: what is spent could not be written ahead, see the log")

    def _write(self) -> bool:
        """Writes the record, unless the file has all that is booked so far. Returns whether it has it now."""
        store = self._store
        assert store is not None, "without a file nothing is unwritten"
        self._put()
        version = self._version
        with self._writing:  # whoever waits here mostly finds its booking written, with the advance of the one before
            if self._written >= version:
                return True
            version = self._version
            if not store.flush():
                return False
            self._written = version
        return True

    def keep(self) -> None:
        """Has the spending so far written soon."""
        if self._store is not None:
            self._put()

    def _put(self, *, advance: bool = True) -> None:
        """Hands the record to the store, which writes the latest one it was handed."""
        assert self._store is not None, "there is a file"
        with self._lock:
            if self._spending.ahead() or (self._version and not advance):
                self._version += 1
            dumped = self._spending.dump(advance=advance)
            self._spending.recorded(dumped)
            if self._version or any(dumped.values()):
                self._store.put(self._name, {**dumped, "clock": system.clock()})

    def close(self) -> None:
        """Has exactly what was spent written, without an advance, by the store's own `close`."""
        if self._store is not None:
            self._put(advance=False)

    def spent(self) -> Cost:
        """Current spending, each over its window."""
        with self._lock:
            return self._spending.spent(system.now())

    def scarce(self) -> bool:
        """Whether half of any limit is used up: from then on there are no hedges and no audits."""
        with self._lock:
            return self._spending.scarce(system.now())
