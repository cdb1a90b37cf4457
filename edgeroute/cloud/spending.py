"""Spending of all clouds of a router, or of several that share a state file, with a record on disk that is written ahead."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakSet, WeakValueDictionary

from edgeroute.core.policy import INF
from edgeroute.core.spending import Cost, Limits, Spending, up_against
from edgeroute.core.words import HeldCode, Rejection
from edgeroute.errors import StoreError
from edgeroute.system import process
from edgeroute.system.forks import ForkSafe, initially, per_process

if TYPE_CHECKING:
    from edgeroute.stores.keyvalue import KeyValueStore


# Spending of earlier runs and of other processes, from the state file; what is not known there counts as all of a limit.

log = logging.getLogger("edgeroute")
PREFIX = "spending:"
"""Of the names of records, one per process that spent something."""
MOST_RECORDS = 256
"""Records of earlier processes that are kept although nothing in them counts any more, by a clock that may be wrong."""
MOST_S = 25 * 3600.0
"""The longest window plus an hour, seconds."""
AGAIN_S = 5.0
"""Seconds after which a state file that could not be read is read again."""
Lock: TypeAlias = AbstractContextManager[Any]


class EarlierSpending:
    """Adds what others have spent to this process's account.

    While the file cannot be read, what has a limit is refused; after it was damaged, until what was lost cannot count any more.
    To begin at zero at once, delete the file that was set aside.

    Args:
        spending: the account.
        store: the state file.
    """

    def __init__(self, spending: Spending, store: KeyValueStore) -> None:
        self._spending, self._store, self._said = spending, store, ""
        self._read_at = INF
        """When to read the file again, as it could not be read; inf: it was read, or is being read."""
        self.known = set[str]()
        """Names of the records whose amounts are in the account."""

    def recall(self, lock: Lock, own: str) -> bool:
        """Reads the records of other processes, each once; that of this one is `own`. Returns whether the file could be read."""
        store = self._store
        if store.path is None:
            return True
        before = _set_aside(store.path)
        try:
            rows = store.rows(PREFIX)
        except StoreError as e:
            if _set_aside(store.path) == before:
                self._unreadable(lock, str(e))
                return False
            rows = []  # it was damaged, and has just been set aside
        old: list[str] = []
        with lock:
            self._read_at, self._spending.unknown = INF, ""
            for at in _set_aside(store.path):
                self._lost(at, f"{store.path} was damaged")
            for i, (name, text, updated) in enumerate(rows):
                if name != own and name not in self.known:
                    self.known.add(name)
                    if not self._load(name, text, updated) and i >= MOST_RECORDS:
                        old.append(name)
        for name in old:
            store.forget(name, -INF)
        return True

    def _load(self, name: str, text: str, updated: float) -> bool:
        """Adds one process's record. Returns whether it still counts."""
        try:
            dumped = json.loads(text)
            boot, began = dumped.get("clock") or ("", 0.0)
            here, now_began = process.boot_clock()
            return self._spending.load(dumped, process.now(), now_began - began if boot and boot == here else 0.0)
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._lost(updated, f"the record {name} is damaged")
            return True

    def _lost(self, at: float, why: str) -> None:
        if at > process.now() - MOST_S:
            self._spending.lost(min(at, process.now()), f"what was spent is not known, since {why}")
            self._say(why)

    def _unreadable(self, lock: Lock, what: str) -> None:
        with lock:
            self._read_at = monotonic() + AGAIN_S
            self._spending.unknown = f"what was spent is not known: {what}"
        self._say(what)

    def _say(self, what: str) -> None:
        if self._spending.limits != Limits() and what != self._said:
            self._said = what
            log.error("nothing that has a limit is sent, since what was spent is not known: %s", what)

    def look_again(self, lock: Lock, own: str) -> None:
        """Reads the file again in the background, if it could not be read, and not just now."""
        if self._read_at == INF:
            return
        with lock:
            if monotonic() < self._read_at:
                return
            self._read_at = INF
        try:
            threading.Thread(target=self.recall, args=(lock, own), name="edgeroute-state", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._read_at = monotonic() + AGAIN_S


def _set_aside(path: Path) -> list[float]:
    """When damaged files with this path were set aside, seconds since 1970."""
    found = []
    with contextlib.suppress(OSError):
        for aside in path.parent.glob(f"{path.name}.corrupt-*"):
            with contextlib.suppress(OSError):
                found.append(aside.stat().st_ctime)
    return sorted(found)


_NONE = Limits()


class SharedSpending:
    """A `Spending` for all clouds of a router, behind a reentrant lock, since a signal handler may take it again.

    With a state file nothing under a limit is spent that the file does not have: `secure` writes it ahead, so a crash forgets
    nothing. While the file cannot be read or written, what has a limit is refused. Routers of one process that share the file
    share what is booked, each under its own limits.

    Args:
        spending: the bookings and limits; of a store that another has already, the limits alone.
        store: the state file; None: spending starts at zero with each process.

    Attributes:
        edge_j: energy of a run of the router's edge, joules, as in `up_against`; 0: not known.
    """

    def __init__(self, spending: Spending, store: KeyValueStore | None = None) -> None:
        self._limits, self.edge_j = spending.limits, 0.0
        self._account = _Account(spending, None) if store is None else _accounts.of(spending, store)
        self._account.join(self)

        account = self._account
        self.recall, self.settle, self.add, self.spent = account.recall, account.settle, account.add, account.spent
        """As of the account that all share."""

    @property
    def limits(self) -> Limits:
        """The limits; may be set."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._account.join(self)

    def reserve(self, cost: Cost, now: float) -> Rejection | None:
        """Books the cost, or returns the limit that forbids it. Before anything is sent for it, `secure` it."""
        limits = up_against(self._limits, cost, self.edge_j) if cost.joules else self._limits
        return self._account.reserve(cost, now, limits)

    @property
    def durable(self) -> bool:
        """Whether a booking may have to be written before what it is for is sent."""
        return self._account.stored and self._limits != _NONE

    @property
    def unwritten(self) -> bool:
        """Whether something is booked under a limit that the file lacks, so that `secure` would write it."""
        return self._account.unwritten

    def secure(self, cost: Cost) -> Rejection | None:
        """Writes ahead what is booked under a limit; may take as long as the disk does.

        If that fails it returns the reason: the cost, which was booked before, is then to be taken back by `settle`.
        """
        if not (self._account.stored and self._account.unwritten):
            return None
        kind = next((k for k, part, limit in zip(Limits._fields, cost, self._limits, strict=True) if part and limit < INF), "")
        if not kind or self._account.write():
            return None
        return Rejection(cast("HeldCode", kind), f"{kind}: what is spent could not be written ahead, see the log")

    def keep(self) -> None:
        """Has the spending so far written soon."""
        self._account.put()

    def close(self) -> None:
        """Has exactly what was spent written, without an advance, by the store's own `close`."""
        self._account.put(advance=False)

    def scarce(self) -> bool:
        """Whether half of any limit is used up: from then on there are no hedges and no audits."""
        return self._account.scarce(self._limits)


class _Account(ForkSafe):
    """What is booked by all that share a state file, with its record. `Spending.limits` are the strictest of all of them."""

    lock, _writing = per_process(threading.RLock), per_process(threading.RLock)
    _name = per_process(lambda: PREFIX + os.urandom(6).hex())
    """Of the record; a child has one of its own."""
    _version, _written = initially(0), initially(0)
    """Of the record: the latest, and the latest that is in the file."""

    def __init__(self, spending: Spending, store: KeyValueStore | None) -> None:
        self._spending, self.store = spending, store
        self.stored = store is not None
        self._earlier = None if store is None else EarlierSpending(spending, store)
        self._shares: WeakSet[SharedSpending] = WeakSet()

    def after_fork(self) -> None:
        """What is booked so far is in the parent's record."""
        if self._earlier is not None:
            self._earlier.known.add(self._name)
        super().after_fork()
        self._spending.inherited()

    def join(self, share: SharedSpending) -> None:
        """Counts its limits among those by which is decided what must be written ahead."""
        with self.lock:
            self._shares.add(share)
            self._spending.limits = Limits(*map(min, zip(*(one.limits for one in self._shares), strict=True)))

    def recall(self) -> bool:
        """Adds what is not yet known of earlier runs and other processes. Returns whether the state file could be read."""
        return self._earlier is None or self._earlier.recall(self.lock, self._name)

    def reserve(self, cost: Cost, now: float, limits: Limits) -> Rejection | None:
        """Books the cost, or returns the limit that forbids it."""
        with self.lock:
            rejection = self._spending.reserve(cost, now, limits)
        if rejection is not None and self._earlier is not None:
            self._earlier.look_again(self.lock, self._name)
        return rejection

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Corrects a reservation to the actual cost."""
        with self.lock:
            self._spending.settle(reserved, actual, now)

    def add(self, cost: Cost, now: float) -> None:
        """Books a cost that has been incurred anyway, and has it written."""
        with self.lock:
            self._spending.add(cost, now)
        if self.stored and self.unwritten:
            self.write()

    @property
    def unwritten(self) -> bool:
        """Whether something is booked under a limit that the file lacks, so that `secure` would write it."""
        return self.stored and (self._written < self._version or self._spending.ahead())

    def write(self) -> bool:
        """Writes the record, unless the file has all that is booked so far. Returns whether it has it now."""
        store = self.store
        assert store is not None, "without a file nothing is unwritten"
        self.put()
        version = self._version
        with self._writing:  # whoever waits here mostly finds its booking written, with the advance of the one before
            if self._written >= version:
                return True
            version = self._version
            if not store.flush():
                return False
            self._written = version
        return True

    def put(self, *, advance: bool = True) -> None:
        """Hands the record to the store, if there is one, which writes the latest that it was handed."""
        if self.store is None:
            return
        with self.lock:
            if self._spending.ahead() or (self._version and not advance):
                self._version += 1
            dumped = self._spending.dump(advance=advance)
            self._spending.recorded(dumped)
            if self._version or any(dumped.values()):
                self.store.put(self._name, {**dumped, "clock": process.boot_clock()})

    def spent(self) -> Cost:
        """Current spending, each over its window."""
        with self.lock:
            return self._spending.spent(process.now())

    def scarce(self, limits: Limits) -> bool:
        """Whether half of any of these limits is used up."""
        with self.lock:
            return self._spending.scarce(process.now(), limits)


class _Accounts(ForkSafe):
    """The accounts of all stores in use."""

    _lock = per_process(threading.RLock)

    def __init__(self) -> None:
        self._by_store: WeakValueDictionary[int, _Account] = WeakValueDictionary()
        """By the store's id: an account holds its store, so while it lives no other has that."""

    def of(self, spending: Spending, store: KeyValueStore) -> _Account:
        """The store's account; a new one has this spending."""
        with self._lock:
            found = self._by_store.get(id(store))
            if found is None:
                found = self._by_store[id(store)] = _Account(spending, store)
            return found


_accounts = _Accounts()
