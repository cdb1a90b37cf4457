"""Lock, clock, egress ledger and news around one endpoint's admission rules. Threads and asyncio share it."""

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
"""How long a probe may take."""
NO_DATA = "no user data"


class Watcher(Protocol):
    """Who is told of a guard's news."""

    def opened(self, guard: Guard) -> None:
        """The breaker has opened."""

    def probe(self, guard: Guard) -> None:
        """It is time to try whether the endpoint is back, in the background: call `guard.check_health()`."""

    def closed(self, guard: Guard) -> None:
        """The endpoint is back."""


class Report(Protocol):
    """Who is told of each attempt, and of each request that was held."""

    def attempt(self, target: str, request: str, sent: int, received: int, took_s: float, error: BaseException | None) -> object:
        """An attempt has ended; bytes of bodies, and seconds."""

    def held(self, target: str, code: ErrorCode | HeldCode) -> object:
        """A request was not asked, for a reason on this side."""


class Guard:
    """One endpoint's `Admission`, with the lock and the clock that it needs.

    The lock is one that its holder may take again: a signal handler that calls the router may run while it is held.

    Args:
        name: of the target.
        where: its address, as the egress ledger has it.
        terms: what it costs and bears.
        spending: what all pay from.
        health: tries whether the endpoint is well, by the instant given, within an exchange; no user data. None: no way to try.
        watcher: who is told.
        journal: the egress ledger.
        report: who is told of attempts; None: nobody.

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
        """A lock of its own for the child, in which no call is under way."""
        self._lock = threading.RLock()
        self.rules.under_way.clear()

    def enter(self, permit: Permit, identity: str) -> Exchange:
        """Lets one request through, which `with` then ends.

        Raises:
            Held: it is not to be asked now. Nothing was sent; what it costs is booked as the first bytes leave.
        """
        now, rules = monotonic(), self.rules
        # there before its slot is: if anything breaks in from here on, even a signal, the slot is given back as it is collected
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
        """An exchange without user data: for what `check` and probes ask. It costs bytes, and is let through always."""
        exchange = Exchange(self, "", None, NO_DATA)
        self.rules.under_way.add(exchange.slot)
        return exchange

    def check_health(self) -> None:
        """Tries whether the endpoint is back. Once for each time that the watcher is told to."""
        ok, wait_s = False, None
        try:
            if self._health is not None:
                with self.probe() as exchange:
                    exchange.counts = False
                    self._health(monotonic() + PROBE_S, exchange)
            ok = True
        except Exception as e:  # noqa: BLE001 - of whatever kind: it is not back
            wait_s = getattr(e, "retry_after_s", None)
        finally:
            if not ok:
                self.probe_failed(wait_s)
        if ok:
            with self._lock:
                self.rules.probe_ended(monotonic(), random.random(), ok=True)  # noqa: S311 - jitter, not a secret
            self._watcher.closed(self)

    def probe_failed(self, wait_s: float | None = None) -> None:
        """The probe under way was not answered, or could not be sent. wait_s: it asks to be left alone for so long."""
        with self._lock:
            self.rules.probe_ended(monotonic(), random.random(), ok=False, wait_s=wait_s)  # noqa: S311

    def link_up(self) -> None:
        """The network is back: a breaker that is open need not wait any longer."""
        with self._lock:
            due = self.rules.link_up(monotonic())
        if due:
            self._watcher.probe(self)

    @property
    def state(self) -> State:
        """The breaker's: closed, open or half-open."""
        return self.rules.state

    @property
    def held(self) -> int:
        """How often it was not asked, for a reason on this side."""
        return self.rules.rejected

    @property
    def under_way(self) -> int:
        """How many calls are."""
        return len(self.rules.under_way)

    def why(self) -> str:
        """Why it is not to be asked now; empty: it may be."""
        with self._lock:
            rejection = self.rules.why(monotonic())
        return "" if rejection is None else rejection.text

    def has_headroom(self) -> bool:
        """Whether it bears what is not urgent: it is well, and half of its calls, a second and at a time, are free."""
        with self._lock:
            return self.rules.has_headroom(monotonic())

    def hold(self, wait_s: float) -> None:
        """It asks to be left alone for so long."""
        with self._lock:
            self.rules.hold(wait_s, monotonic())

    def succeeded(self, took_s: float | None) -> None:
        """It answered."""
        with self._lock:
            back = self.rules.succeeded(monotonic(), took_s)
        if back:
            self._watcher.closed(self)

    def failed(self) -> None:
        """It did not."""
        with self._lock:
            opened = self.rules.failed(monotonic(), random.random())  # noqa: S311
        if opened:
            self._watcher.opened(self)

    def usual_s(self) -> float:
        """The time that it needs for 90 % of its answers; 0 while unknown."""
        with self._lock:
            return self.rules.usual_s()

    def count_rejected(self, code: ErrorCode | HeldCode) -> None:
        """Counts one that was not asked, for a reason that is not the guard's."""
        with self._lock:
            self.rules.rejected += 1
        _report_held(self, code)

    def mark_late(self, exchange: Exchange) -> bool:
        """Notes that an exchange is late -> whether that is a fault: it had as long as usual, and it was not noted before.

        The caller and the leg's own thread may both see it.
        """
        with self._lock:
            fault = not exchange.late and self.rules.too_late(monotonic() - exchange.begun)
            exchange.late = exchange.late or fault
        return fault

    def attempt(self, cost: Cost, *, again: bool, probe: bool) -> Rejection | None:
        """Books an attempt that is about to be made, or says why it may not be."""
        with self._lock:
            return self.rules.attempt(cost, monotonic(), system.now(), again=again, probe=probe)

    def retry(self) -> bool:
        """Takes a retry from the budget, if there is one. It waits for what the endpoint asked for itself."""
        with self._lock:
            return self.rules.retry()


def _report_held(guard: Guard, code: ErrorCode | HeldCode) -> None:
    if guard.report is not None:
        guard.report.held(guard.name, code)


class _Slot(ref["Exchange"]):
    """A reference to an exchange that calls back as that is collected.

    Why not `__del__`: what a signal handler raises in there is lost. Nothing of Python runs between the collection and a
    callback that is written in C.
    """

    __slots__ = ()
    __eq__, __hash__ = object.__eq__, object.__hash__  # those of the exchange are no more once it is


class Exchange:
    """One talk with an endpoint. The leg says before each attempt what it is about to send, and after it what came of it.

    Its slot is given back as `with` ends; if it never came to that, as it is collected.
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
        """Whether the breaker hears of it."""
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
        elif isinstance(error, BadReply) and self.counts:  # it replied, but with what nobody can read
            self._guard.failed()
        if self._open:  # it was cut off in the middle: by the deadline, or by an answer that was quicker
            self._open = False
            if monotonic() >= self._until:
                self._overdue()

    @property
    def spent(self) -> Spent:
        """What it has cost so far."""
        terms, mb = self._guard.terms, (self.sent + self.received) / MB
        return Spent(self.sent, self.received, self.usd, terms.joules_per_call + mb * terms.joules_per_mb)

    def before_attempt(self, size: int, until: float) -> None:
        """Before an attempt that sends `size` bytes and has until that instant.

        Raises:
            Held: a limit does not allow it, or the egress ledger cannot be written. Nothing may be sent then.
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
        self._open, self.begun, self._until = True, monotonic(), until

    def _held(self, code: HeldCode, text: str) -> Held:
        again = self._attempts > 0
        return Held(f"{self._guard.name} was not asked{' again' if again else ''}: {text}", code=code, again=again)

    def after_attempt(self, size: int, error: BaseException | None = None, *, cut: bool = False) -> None:
        """After it: so many bytes came back, or this error did. `cut`: because the answer is not needed any more."""
        guard = self._guard
        self._open = False
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
            self._took_s = monotonic() - self.begun  # whether the reply is one will be seen when it is read
            return
        stale, in_time = getattr(error, "stale", False), monotonic() < self._until
        verdict = Failure.of(error).verdict(cut=cut, in_time=in_time, stale=stale)
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
        """The deadline has passed, and the leg is left to run on: that is a fault already."""
        if self._open:
            self._overdue()

    def _overdue(self) -> None:
        """Too late, unless it had less time than it usually takes: that is nobody's fault."""
        if self.counts and self._guard.mark_late(self):
            self._guard.failed()

    def may_retry(self) -> bool:
        """Whether the retry budget and the breaker have room for one more attempt."""
        return self.counts and not self.late and self._guard.retry()
