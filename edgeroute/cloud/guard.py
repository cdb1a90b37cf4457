"""Guard of one endpoint: its admission rules with lock, clock, egress ledger and events. Used by threads and asyncio."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from edgeroute import system
from edgeroute.cloud.spending import SharedSpending
from edgeroute.core.admission import Admission
from edgeroute.core.breaker import State
from edgeroute.core.codes import ErrorCode, Failure, HeldCode, Rejection
from edgeroute.core.egress import Permit
from edgeroute.core.policy import INF, Terms
from edgeroute.core.spending import Cost
from edgeroute.errors import BadReply, Held, StoreError
from edgeroute.system import renew_after_fork
from edgeroute.types import Spent

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.stores.journal import Journal

MB = 1e6
PROBE_S = 5.0
"""Timeout of a probe, seconds."""
NO_DATA = "no user data"


class Watcher(Protocol):
    """Receiver of a guard's events."""

    def opened(self, guard: Guard) -> None:
        """The breaker has opened."""

    def probe(self, guard: Guard) -> None:
        """A probe is due: call `guard.check_health()` in the background."""

    def closed(self, guard: Guard) -> None:
        """The breaker has closed."""


class Report(Protocol):
    """Receiver of attempts, and of rejected requests."""

    def attempt(self, target: str, request: str, sent: int, received: int, took_s: float, error: BaseException | None) -> object:
        """An attempt has ended; bytes of bodies, and seconds."""

    def held(self, target: str, code: ErrorCode | HeldCode) -> object:
        """A request was rejected, for a local reason."""


class Guard:
    """Circuit breaker, rate limit and spending for one endpoint: an `Admission` with lock and clock.

    The lock is reentrant: a signal handler that calls the router may run while it is held.

    Args:
        name: of the target.
        where: its address, as recorded in the egress ledger.
        terms: its prices and limits.
        spending: shared spending limits.
        health: health check without user data, called with the instant it must end by and an exchange. None: there is none.
        watcher: receives events.
        journal: the egress ledger.
        report: receives attempts; None: no receiver.

    Attributes:
        rules: the `Admission`.
    """

    def __init__(
        self,
        name: str,
        where: str,
        terms: Terms,
        spending: SharedSpending,
        *,
        health: Callable[[float, Exchange], object] | None,
        watcher: Watcher,
        journal: Journal | None,
        report: Report | None = None,
    ) -> None:
        self.name, self.where, self.terms, self.spending = name, where, terms, spending
        self.journal, self.report, self._health, self._watcher = journal, report, health, watcher
        self.rules = Admission(terms, spending)
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child, which has no call in progress."""
        self._lock = threading.RLock()
        self.rules.under_way.clear()

    def enter(self, permit: Permit, identity: str) -> Exchange:
        """Admits one request; the exchange is a context manager that ends it.

        Raises:
            Held: the request is rejected. Nothing was sent; the cost is booked only as the first bytes leave.
        """
        now, rules = monotonic(), self.rules
        # created before its slot: whatever interrupts from here on, even a signal, its collection frees the slot
        exchange = Exchange(self, identity, permit.data_class, permit.rule)
        with self._lock:
            rejection = rules.enter(exchange.slot, now)
            due = rejection is not None and rules.take_probe(now)
        if due:
            self._watcher.probe(self)
        if rejection is not None:
            _report_held(self, rejection.code)
            raise Held(f"{self.name} was not asked: {rejection.text}", code=rejection.code)
        return exchange

    def probe(self) -> Exchange:
        """An exchange without user data, for `check` and probes. It costs bytes, and is always admitted."""
        exchange = Exchange(self, "", None, NO_DATA)
        self.rules.under_way.add(exchange.slot)
        return exchange

    def check_health(self) -> None:
        """Sends a probe. Call once per `Watcher.probe`."""
        ok, wait_s = False, None
        try:
            if self._health is not None:
                with self.probe() as exchange:
                    exchange.counts = False
                    self._health(monotonic() + PROBE_S, exchange)
            ok = True
        except Exception as e:  # noqa: BLE001 - any failure means that it is not back
            wait_s = getattr(e, "retry_after_s", None)
        finally:
            if not ok:
                self.probe_failed(wait_s)
        if ok:
            with self._lock:
                self.rules.probe_ended(monotonic(), random.random(), ok=True)  # noqa: S311 - jitter, not a secret
            self._watcher.closed(self)

    def probe_failed(self, wait_s: float | None = None) -> None:
        """Records a failed probe, or one that could not be sent. wait_s: the hold that the endpoint requested, seconds."""
        with self._lock:
            self.rules.probe_ended(monotonic(), random.random(), ok=False, wait_s=wait_s)  # noqa: S311

    def link_up(self) -> None:
        """Makes a probe due at once if the breaker is open, as the network is back."""
        with self._lock:
            due = self.rules.link_up(monotonic())
        if due:
            self._watcher.probe(self)

    @property
    def state(self) -> State:
        """State of the breaker: closed, open or half-open."""
        return self.rules.state

    @property
    def held(self) -> int:
        """Number of requests rejected for a local reason."""
        return self.rules.rejected

    @property
    def under_way(self) -> int:
        """Number of calls in progress."""
        return len(self.rules.under_way)

    def why(self) -> str:
        """Why no request may be sent now; empty: one may."""
        with self._lock:
            rejection = self.rules.why(monotonic())
        return "" if rejection is None else rejection.text

    def has_headroom(self) -> bool:
        """Whether low-priority calls (audits) may be sent: the breaker allows it, half of rate and of concurrency is free."""
        with self._lock:
            return self.rules.has_headroom(monotonic())

    def hold(self, wait_s: float) -> None:
        """Holds all requests for `wait_s` seconds, as the endpoint requested."""
        with self._lock:
            self.rules.hold(wait_s, monotonic())

    def succeeded(self, took_s: float | None) -> None:
        """Records a success; `took_s`: its latency, if it is to be counted."""
        with self._lock:
            back = self.rules.succeeded(monotonic(), took_s)
        if back:
            self._watcher.closed(self)

    def failed(self) -> None:
        """Records a fault."""
        with self._lock:
            opened = self.rules.failed(monotonic(), random.random())  # noqa: S311
        if opened:
            self._watcher.opened(self)

    def usual_s(self) -> float:
        """Latency quantile of 90 %, seconds; 0 while unknown."""
        with self._lock:
            return self.rules.usual_s()

    def count_rejected(self, code: ErrorCode | HeldCode) -> None:
        """Counts a request rejected for a reason outside the guard."""
        with self._lock:
            self.rules.rejected += 1
        _report_held(self, code)

    def mark_late(self, exchange: Exchange) -> bool:
        """Marks an exchange as late. Returns whether that is a fault: it had its usual time, and was not marked before.

        Both the caller and the leg's own thread may mark it.
        """
        with self._lock:
            fault = not exchange.late and self.rules.too_late(monotonic() - exchange.begun)
            exchange.late = exchange.late or fault
        return fault

    def attempt(self, cost: Cost, *, again: bool, probe: bool) -> Rejection | None:
        """Books an attempt about to be made, or returns why it may not be made."""
        with self._lock:
            return self.rules.attempt(cost, monotonic(), system.now(), again=again, probe=probe)

    def retry(self) -> bool:
        """Takes a retry from the budget; False: it is empty. A retry waits out the endpoint's Retry-After itself."""
        with self._lock:
            return self.rules.retry()


def _report_held(guard: Guard, code: ErrorCode | HeldCode) -> None:
    if guard.report is not None:
        guard.report.held(guard.name, code)


class _Slot(ref["Exchange"]):
    """A weak reference to an exchange with a callback that frees its slot.

    Not `__del__`: an exception that a signal handler raises in there is lost. No Python code runs between the collection and a
    callback written in C.
    """

    __slots__ = ()
    __eq__, __hash__ = object.__eq__, object.__hash__  # the exchange's own fail once it is collected


class Exchange:
    """One call of an endpoint with all its attempts. The HTTP client reports each attempt before and after it.

    Its slot is freed at the end of the `with`, or when it is collected.
    """

    __slots__ = (
        "__weakref__", "_attempts", "_guard", "_open", "_size", "_took_s", "_until",
        "begun", "counts", "data_class", "identity", "late", "received", "rule", "sent", "slot", "usd",
    )  # fmt: skip

    def __init__(self, guard: Guard, identity: str, data_class: str | None, rule: str) -> None:
        self._guard, self.identity, self.data_class, self.rule = guard, identity, data_class, rule
        self.slot = _Slot(self, guard.rules.under_way.discard)
        self.sent = self.received = 0
        self.usd = 0.0
        self.counts = True
        """Whether the breaker counts it."""
        self._open = self.late = False
        self._attempts = self._size = 0
        self.begun, self._until = 0.0, INF
        self._took_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._guard.rules.leave(self.slot)
        if error is None and self._took_s is not None and self.counts:
            self._guard.succeeded(self._took_s)
        elif isinstance(error, BadReply) and self.counts:  # it replied, but unreadably
            self._open = False
            self._guard.failed()
        if self._open and monotonic() >= self._until:  # cancelled in the middle, by the deadline and not by a faster answer
            self.overdue()

    @property
    def spent(self) -> Spent:
        """Bytes and cost so far."""
        terms, mb = self._guard.terms, (self.sent + self.received) / MB
        return Spent(self.sent, self.received, self.usd, terms.joules_per_call + mb * terms.joules_per_mb)

    def before_attempt(self, size: int, until: float) -> None:
        """Books and records an attempt about to send `size` bytes, which must end by `until`.

        Raises:
            Held: a limit forbids it, or the egress ledger cannot be written. Nothing may be sent then.
        """
        guard, again, probe = self._guard, self._attempts > 0, self.rule == NO_DATA
        cost = guard.rules.cost(size / MB, first=not (again or probe))
        rejection = guard.attempt(cost, again=again, probe=probe)
        if rejection is not None:
            _report_held(guard, rejection.code)
            raise self._held(rejection.code, rejection.text)
        if guard.journal is not None:
            record = {
                "at": round(system.now(), 3), "to": guard.where, "bytes": size, "data_class": self.data_class,
                "rule": self.rule, "request": self.identity,
            }  # fmt: skip
            try:
                guard.journal.append(record)
            except StoreError as e:
                guard.spending.settle(cost, Cost(), system.now())
                if not (again or probe):
                    guard.count_rejected("ledger")
                raise self._held("ledger", f"what is not in the egress ledger does not leave ({e})") from e
        self._attempts += 1
        self.usd += cost.usd
        self.sent += size
        self._size = size
        self.begun, self._until, self._open = monotonic(), until, True

    def _held(self, code: HeldCode, text: str) -> Held:
        again = self._attempts > 0
        return Held(f"{self._guard.name} was not asked{' again' if again else ''}: {text}", code=code, again=again)

    def after_attempt(self, size: int, error: BaseException | None = None, *, cut: bool = False) -> None:
        """Records the end of an attempt: bytes received, or the error. `cut`: cancelled, as the answer is no longer needed."""
        guard, in_time = self._guard, monotonic() < self._until
        self._open = cut and in_time  # by whose deadline it was cut, the walk knows
        self.received += size
        if guard.report is not None:
            guard.report.attempt(guard.name, self.identity, self._size, size, monotonic() - self.begun, error)
        if size:
            cost = guard.rules.cost(size / MB, first=False)
            self.usd += cost.usd
            guard.spending.add(cost, system.now())
        if not self.counts:
            return
        if error is None:
            self._took_s = monotonic() - self.begun  # whether it is a valid reply is known once it is decoded
            return
        verdict = Failure.of(error).verdict(cut=cut, in_time=in_time, stale=getattr(error, "stale", False))
        wait_s = getattr(error, "retry_after_s", None)
        if wait_s and verdict != "answered":
            guard.hold(wait_s)
        if verdict == "answered":
            guard.succeeded(None)
        elif verdict == "late":
            self._overdue()
        elif verdict == "fault" and not self.late:
            guard.failed()

    def overdue(self) -> None:
        """Records that the deadline has passed before the attempt had ended, which is a fault already."""
        if self._open:
            self._open = False
            self._overdue()

    def _overdue(self) -> None:
        """Records lateness as a fault, unless the attempt had less than the endpoint's usual time."""
        if self.counts and self._guard.mark_late(self):
            self._guard.failed()

    def may_retry(self) -> bool:
        """Whether the breaker and the retry budget allow another attempt."""
        return self.counts and not self.late and self._guard.retry()
