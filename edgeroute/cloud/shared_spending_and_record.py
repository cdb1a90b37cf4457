"""Spending of the clouds of all routers that share a state file, with a record on disk that is written ahead of each call.

If the record is lost or damaged, so that the past is unknown, calls that have a limit are refused until its window has passed.
"""

from __future__ import annotations

import contextlib
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakSet

from edgeroute.core.error_codes_and_texts import HeldCode, Rejection
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.spending_limits import Cost, Limits, Spending, up_against
from edgeroute.errors import StoreError
from edgeroute.system import contained_calls_and_tasks, files_and_lock_waits, fork_safety, wall_clock
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import start_thread

if TYPE_CHECKING:
    from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore


# Spending of earlier runs and of other processes, from the state file; while it is unknown, limits count as used up.

PREFIX = "spending:"  # prefix of the names of records, one per process with spending
# Maximum records of earlier processes that stay although they do not count any more, by a clock that may be wrong.
MOST_RECORDS = 256
MOST_S = 25 * 3600.0  # longest window plus an hour, seconds
AGAIN_S = 1.0  # seconds after which an unreadable or locked state file is tried again
Lock: TypeAlias = AbstractContextManager[Any]


class EarlierSpending(ForkSafe):
    """Spending of other processes, added to this process's account.

    While the file cannot be read, or is locked, requests with a limit are rejected; after damage, until the lost spending cannot
    count any more. To begin at zero at once, delete the damaged file that was renamed.

    Args:
        spending: the account.
        store: the state file.
    """

    def __init__(self, spending: Spending, store: KeyValueStore) -> None:
        self._spending, self._store, self._said = spending, store, ""
        self._read_at = INF  # instant at which to read an unreadable file again; inf: it was read, or is being read
        self.known = set[str]()  # names of the records whose amounts are in the account

    def after_fork(self) -> None:
        """Have a file that could not be used tried again, in a forked child: the thread that was about to is the parent's."""
        super().after_fork()
        if self._spending.unknown:
            self._read_at = 0.0

    def recall(self, lock: Lock, own_name: str) -> bool:
        """Read the records of other processes from the state file, and add each to the account once.

        Return True if it could be read. If it could not, spending is unknown until it is read again, some seconds later. If it
        was damaged, spending is unknown for as long as what was lost may count. Old records that do not count any more are
        deleted where there are more than `MOST_RECORDS`.

        Args:
            lock: lock of the account.
            own_name: name of this process's record.
        """
        store = self._store
        before = _set_aside(store.path)
        try:
            rows, damages = store.rows(PREFIX), [noticed_at for _, _, noticed_at in store.rows(store.DAMAGED)]
        except StoreError as e:
            if _set_aside(store.path) == before:
                self.mark_unusable(lock, str(e))
                return False
            rows, damages = [], []  # it was damaged, and has just been set aside
        old: list[str] = []
        with lock:
            self._read_at, self._spending.unknown = INF, ""
            for instant in [*_set_aside(store.path), *damages]:
                self._mark_unknown(instant, f"{store.path} was damaged")
            for i, (name, text, updated) in enumerate(rows):
                if name != own_name and name not in self.known:
                    self.known.add(name)
                    if not self._load(name, text, updated) and i >= MOST_RECORDS:
                        old.append(name)
        for name in old:
            store.forget(name, -INF)
        return True

    def _load(self, name: str, text: str, updated: float) -> bool:
        """Add one process's record to the account. Return True if any of its spending still counts towards a window.

        Its instants are corrected by the difference of the clocks if it is of this boot, else by how far the clock was set
        forward as it was written. If it is damaged, spending until its last update counts as unknown, and True is returned.
        """
        try:
            dumped = json.loads(text)
            boot, began = dumped.get("clock") or ("", 0.0)
            here, now_began = wall_clock.boot_clock()
            shift_s = now_began - began if boot and boot == here else dumped.get("set_forward_s", 0.0)
            return self._spending.load(dumped, wall_clock.now(), shift_s)
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            self._mark_unknown(updated, f"the record {name} is damaged")
            return True

    def _mark_unknown(self, instant: float, why: str) -> None:
        """Count the spending until an instant (at most now) as unknown, and log the reason.

        Does nothing for an instant more than `MOST_S` ago: no limit reaches back that far.
        """
        if instant > wall_clock.now() - MOST_S:
            self._spending.mark_unknown_until(min(instant, wall_clock.now()), f"what was spent is not known, since {why}")
            self._say(why)

    def mark_unusable(self, lock: Lock, what: str) -> None:
        """Count spending as unknown until the file is read, have it tried again after `AGAIN_S`, and log the reason."""
        with lock:
            self._read_at = monotonic() + AGAIN_S
            self._spending.unknown = f"what was spent is not known: {what}"
        self._say(what)

    def _say(self, what: str) -> None:
        """Log a reason, unless it was the last one logged or there are no limits."""
        if self._spending.limits != Limits() and what != self._said:
            self._said = what
            log.error("nothing that has a limit is sent, since what was spent is not known: %s", what)

    def look_again(self, lock: Lock, own_name: str) -> None:
        """Start a thread that writes and reads the file, if it could not be used, and `AGAIN_S` have passed since.

        Returns at once. If no thread can be started, it is tried again after `AGAIN_S`.
        """
        if self._read_at == INF:
            return
        with lock:
            if monotonic() < self._read_at:
                return
            self._read_at = INF
        if start_thread("edgeroute-state", self._use_again, lock, own_name) is None:
            self._read_at = monotonic() + AGAIN_S

    def _use_again(self, lock: Lock, own_name: str) -> None:
        """Write what is pending, and read the file again (`recall`); while it cannot be written it stays unusable. Blocks."""
        if self._store.flush():
            self.recall(lock, own_name)
        else:
            self.mark_unusable(lock, f"{self._store.path} cannot be written")


def _set_aside(path: Path) -> list[float]:
    """Return the instants at which damaged files of this path were renamed, seconds since 1970, sorted.

    They are the change times of `NAME.corrupt-*` beside it. Files that cannot be read are left out.
    """
    instants = []
    with contextlib.suppress(OSError):
        for aside in path.parent.glob(f"{path.name}.corrupt-*"):
            with contextlib.suppress(OSError):
                instants.append(aside.lstat().st_ctime)  # of a link: its own, which the renaming has changed
    return sorted(instants)


_NONE = Limits()


class SharedSpending:
    """Spending of all clouds of a router, behind a reentrant lock, since a signal handler may take it again.

    With a state file, nothing under a limit is spent before the file has it: `secure` writes it ahead, so a crash loses nothing.
    While the file cannot be read or written, requests with a limit are rejected. Routers of one process with the same file share
    the bookings, each under its own limits.

    Args:
        spending: bookings and limits; if the store is in use already, only the limits count.
        store: state file; None: spending starts at zero with each process.

    Attributes:
        limits: limits of this router; changed by `set_limits`.
        edge_j: energy of a run of the router's edge, joules, as in `up_against`; 0: not known.
    """

    def __init__(self, spending: Spending, store: KeyValueStore | None = None) -> None:
        self.limits, self.edge_j = spending.limits, 0.0
        self._account = _Account(spending, store)
        if store is not None:  # those who share a store have the bookings of the first
            self._account = _accounts.first(id(store), self._account)
        self._account.join(self)

        account = self._account
        # Methods of the account that all share.
        self.recall, self.settle, self.add, self.spent = account.recall, account.settle, account.add, account.spent

    def set_limits(self, limits: Limits) -> None:
        """Replace this router's limits, from the next request on, also in the account's strictest ones."""
        self.limits = limits
        self._account.join(self)

    def reserve(self, cost: Cost, now: float, *, book: bool = True) -> Rejection | None:
        """Book a cost in the shared account, in memory, and return None; or book nothing, and return the limit that forbids it.

        Call `secure` before anything is sent for the cost.

        book: False books nothing in any case.
        """
        limits = up_against(self.limits, cost, self.edge_j) if cost.joules else self.limits
        return self._account.reserve(cost, now, limits, book)

    @property
    def durable(self) -> bool:
        """True if a booking may have to be written to the file before anything is sent."""
        return self._account.stored and self.limits != _NONE

    @property
    def unwritten(self) -> bool:
        """True if a booking under a limit is not in the file yet, so that `secure` would write it."""
        return self._account.unwritten

    def secure(self, cost: Cost, until: float = INF) -> Rejection | None:
        """Write bookings that are not in the file yet, with an advance for later ones, blocking for the disk.

        Waits for a locked file until the instant `until`. Return None if all is written. Else return a Rejection; the cost, which
        was booked before, is then to be returned by `settle`. Nothing is written, and None returned, if all is in the file, there
        is no file, or the cost has no limit.
        """
        if not self._account.unwritten:
            return None
        kind = next((k for k, part, limit in zip(Limits._fields, cost, self.limits, strict=True) if part and limit < INF), "")
        if not kind or self._account.write(until):
            return None
        return Rejection(cast("HeldCode", kind), f"{kind}: what is spent could not be written ahead, see the log")

    def keep(self) -> None:
        """Have the spending so far written soon. Without waiting."""
        self._account.put()

    def close(self) -> None:
        """Have the exact spending, without an advance, written by the store's `close`."""
        self._account.put(advance=False)

    def scarce(self) -> bool:
        """Return True if half of any limit is used up: from then on there are no hedges and no audits."""
        return self._account.scarce(self.limits)


class _Account(ForkSafe):
    """Bookings of all routers that share a state file, with their record. `Spending.limits` are the strictest of all."""

    lock, _writing = per_process(SafeLock), per_process(SafeLock)
    _name = per_process(lambda: PREFIX + os.urandom(6).hex())  # name of the record; a forked child has its own
    _version, _written = initially(0), initially(0)  # versions of the record: the latest, and the latest in the file
    _failures = initially(0)  # number of times that the record could not be written

    def __init__(self, spending: Spending, store: KeyValueStore | None) -> None:
        self._spending, self.store = spending, store
        self.stored = store is not None
        self._earlier = None if store is None else EarlierSpending(spending, store)
        self._shares: WeakSet[SharedSpending] = WeakSet()

    def after_fork(self) -> None:
        """Leave the bookings so far to the parent's record, in a forked child; they still count.

        The child has a record of its own.
        """
        if self._earlier is not None:
            self._earlier.known.add(self._name)
        super().after_fork()
        self._spending.disown()

    def join(self, share: SharedSpending) -> None:
        """Include the limits of a router in the strictest ones, which decide about writing ahead."""
        with self.lock:
            self._shares.add(share)
            self._spending.limits = Limits(*map(min, zip(*(member.limits for member in self._shares), strict=True)))

    def recall(self) -> bool:
        """Add the spending of earlier runs and other processes not added yet. Return True if the state file could be read."""
        return self._earlier is None or self._earlier.recall(self.lock, self._name)

    def reserve(self, cost: Cost, now: float, limits: Limits, book: bool) -> Rejection | None:
        """Book a cost in memory, and return None; or book nothing, and return the limit that forbids it. `book` False: only ask.

        After a refusal, a state file that could not be read may be read again, in a thread.
        """
        with self.lock:
            rejection = self._spending.reserve(cost, now, limits, book=book)
        if rejection is not None and self._earlier is not None:
            self._earlier.look_again(self.lock, self._name)
        return rejection

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Correct a reservation to the actual cost."""
        with self.lock:
            self._spending.settle(reserved, actual, now)

    def add(self, cost: Cost, now: float) -> None:
        """Book a cost that was incurred anyway, whatever the limits. If it is not in the file yet, write it, blocking.

        On an event loop it is only put into the store, which writes it later.
        """
        with self.lock:
            self._spending.add(cost, now)
        if self.unwritten:
            self.put() if contained_calls_and_tasks.on_event_loop() else self.write()

    @property
    def unwritten(self) -> bool:
        """True if a booking under a limit is not in the file yet, so that `secure` would write it."""
        return self.stored and (self._written < self._version or self._spending.ahead())

    def write(self, until: float = INF) -> bool:
        """Write the record to the file, blocking, unless another thread has written these bookings meanwhile, or failed to.

        Return True if the file has all bookings so far. A failure is logged by the store. After a wait in vain for a file that
        another process has locked, nothing more waits for it, here or under a limit, until it is free; a slow disk is waited for.

        until: instant until which to wait for a locked file.
        """
        assert self.store is not None, "without a file nothing is unwritten"
        self.put()
        if self._spending.unknown:
            return False
        with files_and_lock_waits.limited_waits(until - monotonic()):
            written = self._write_in_turn(self.store)
        if not written and self._earlier is not None and self.store.locked:
            self._earlier.mark_unusable(self.lock, f"{self.store.path} could not be written in time")
        return written

    def _write_in_turn(self, store: KeyValueStore) -> bool:
        """Write the record, after another thread that does, within the time for locked files. Return as `write` does."""
        version, failures = self._version, self._failures
        with files_and_lock_waits.held_in_time(self._writing) as is_held:
            if not is_held:
                return False
            if self._written >= version:  # mostly: with the advance of the one before
                return True
            if self._failures != failures:  # it has waited long enough for all
                return False
            version = self._version
            if not store.flush():
                self._failures += 1
                return False
            self._written = version
        return True

    def put(self, *, advance: bool = True) -> None:
        """Put the record in the store's memory; the store writes it later. A no-op without a store, or if nothing was spent.

        `advance`: the record also has an advance for spending to come, so that not each booking must be written.
        """
        if self.store is None:
            return
        with self.lock:
            if self._spending.ahead() or (self._version and not advance):
                self._version += 1
            dumped = self._spending.dump(advance=advance)
            self._spending.mark_recorded(dumped)
            if self._version or any(dumped.values()):
                self.store.put(
                    self._name, {**dumped, "clock": wall_clock.boot_clock(), "set_forward_s": wall_clock.set_forward_s()}
                )

    def spent(self) -> Cost:
        """Return the current spending, each over its window."""
        with self.lock:
            return self._spending.spent(wall_clock.now())

    def scarce(self, limits: Limits) -> bool:
        """Return True if half of any of these limits is used up."""
        with self.lock:
            return self._spending.scarce(wall_clock.now(), limits)


# Account by the store's id, unique while the account lives, since the account refers to the store.
_accounts: fork_safety.Shared[int, _Account] = fork_safety.Shared()
