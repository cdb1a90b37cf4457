"""Stands before each cloud: who may ask it now, at what cost, and what became of it. Threads and asyncio share it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute import system
from edgeroute.core.breaker import Breaker
from edgeroute.core.budget import Rate, RetryBudget
from edgeroute.core.egress import Permit
from edgeroute.core.latency import Latency
from edgeroute.core.policy import INF, Terms
from edgeroute.core.spending import Cost, Limits, Spending
from edgeroute.errors import INPUTS_OWN, BadReply, Held, Refused, StoreError
from edgeroute.system import renew_after_fork
from edgeroute.types import Spent

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.stores.journal import Journal

MB = 1e6
PROBE_S = 5.0
"""How long a probe may take."""
NO_DATA = "no user data"


class SharedSpending:
    """What all clouds of a router spend together."""

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
        self._lock = threading.Lock()

    def reserve(self, cost: Cost) -> str | None:
        """Books it, or says why not."""
        with self._lock:
            return self._spending.reserve(cost, system.now())

    def add(self, cost: Cost) -> None:
        """Books what has happened anyway."""
        with self._lock:
            self._spending.add(cost, system.now())

    def settle(self, reserved: Cost, actual: Cost) -> None:
        """Corrects what was booked to what it came to."""
        with self._lock:
            self._spending.settle(reserved, actual, system.now())

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
        limits, spent = self._spending.limits, self.spent()
        return any(used > limit / 2 for used, limit in zip(spent, limits, strict=True) if limit < INF)


class Watcher(Protocol):
    """Who is told of a guard's news."""

    def opened(self, guard: Guard) -> None:
        """The breaker has opened."""

    def probe(self, guard: Guard) -> None:
        """It is time to try whether the endpoint is back, in the background: call `guard.check_health()`."""

    def closed(self, guard: Guard) -> None:
        """The endpoint is back."""


class Guard:
    """One endpoint's breaker, retry budget, rate and number of calls at a time, and the spending that it pays from.

    Args:
        name: of the target.
        where: its address, as the egress ledger has it.
        terms: what it costs and bears.
        spending: what all pay from.
        health: tries whether the endpoint is well, by the instant given, within a exchange; no user data. None: no way to try.
        watcher: who is told.
        journal: the egress ledger.
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
    ) -> None:
        self.name, self.where, self.terms, self.spending = name, where, terms, spending
        self.journal, self._health, self._watcher = journal, health, watcher
        self.breaker, self._retries, self._rate = Breaker(), RetryBudget(), Rate(terms.calls_per_s)
        self.held = 0
        self._busy = 0
        self._usual = Latency()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A lock of its own for the child, in which no call is under way."""
        self._lock, self._busy = threading.Lock(), 0

    def enter(self, permit: Permit, identity: str) -> Exchange:
        """Lets one request through, which `with` then ends.

        Raises:
            Held: it is not to be asked now. Nothing was sent; what it costs is booked as the first bytes leave.
        """
        now, terms = monotonic(), self.terms
        due = False
        with self._lock:
            why: str | None = None
            if not self.breaker.allows(now):
                why, due = self.breaker.why(now), self._due(now)
            elif self._busy >= terms.max_concurrent:
                why = f"{self._busy} calls are under way (max_concurrent)"
            elif not self._rate.take(now):
                why = f"it has had {terms.calls_per_s:g} calls a second (calls_per_s)"
            if why is None:
                self._busy += 1
            else:
                self.held += 1
        if due:
            self._watcher.probe(self)
        if why is not None:
            raise Held(f"{self.name} was not asked: {why}")
        return Exchange(self, identity, permit.data_class, permit.rule)

    def probe(self) -> Exchange:
        """A exchange without user data: for what `check` and probes ask. It costs bytes, and is let through always."""
        with self._lock:
            self._busy += 1
        return Exchange(self, "", None, NO_DATA)

    def check_health(self) -> None:
        """Tries whether the endpoint is back. Once for each time that the watcher is told to."""
        ok = False
        try:
            if self._health is not None:
                with self.probe() as exchange:
                    exchange.counts = False
                    self._health(monotonic() + PROBE_S, exchange)
            ok = True
        except Exception as e:  # noqa: BLE001 - of whatever kind: it is not back
            wait_s = getattr(e, "retry_after_s", None)
            if wait_s:
                self._hold(wait_s)
        if not ok:
            self.probe_failed()
            return
        with self._lock:
            self.breaker.probe_ended(monotonic(), ok, random.random())  # noqa: S311 - jitter, not a secret
        self._watcher.closed(self)

    def probe_failed(self) -> None:
        """The probe under way was not answered, or could not be sent."""
        with self._lock:
            self.breaker.probe_ended(monotonic(), False, random.random())  # noqa: S311

    def link_up(self) -> None:
        """The network is back: a breaker that is open need not wait any longer."""
        with self._lock:
            self.breaker.link_up(monotonic())
            due = self._due(monotonic())
        if due:
            self._watcher.probe(self)

    @property
    def state(self) -> str:
        """The breaker's: closed, open or half-open."""
        return self.breaker.state

    def why(self) -> str:
        """Why it is not to be asked now; empty: it may be."""
        with self._lock:
            now = monotonic()
            return "" if self.breaker.allows(now) else self.breaker.why(now)

    def has_headroom(self) -> bool:
        """Whether it bears what is not urgent: it is well, and half of its calls, a second and at a time, are free."""
        with self._lock:
            now = monotonic()
            free = self._rate.spare(now) and 2 * self._busy < self.terms.max_concurrent
            return self.breaker.state == "closed" and self.breaker.allows(now) and free

    def _due(self, now: float) -> bool:
        due = self.breaker.probe_due(now)
        if due:
            self.breaker.probe_begun(now)
        return due

    def _hold(self, wait_s: float) -> None:
        with self._lock:
            now = monotonic()
            self.breaker.hold(now + wait_s, now)

    def succeeded(self, took_s: float | None) -> None:
        """It answered."""
        with self._lock:
            before = self.breaker.state
            self.breaker.success(monotonic())
            self._retries.success()
            if took_s is not None:
                self._usual.add(took_s)
        if before != "closed":
            self._watcher.closed(self)

    def failed(self) -> None:
        """It did not."""
        with self._lock:
            before = self.breaker.opened
            self.breaker.fault(monotonic(), random.random())  # noqa: S311
            opened = self.breaker.opened > before
        if opened:
            self._watcher.opened(self)

    def usual_s(self) -> float:
        """The time that it needs for 90 % of its answers; 0 while unknown."""
        with self._lock:
            return self._usual.quantile(0.9) or 0.0

    def count_rejected(self) -> None:
        """Counts one that was not asked, for a reason that is not the guard's."""
        with self._lock:
            self.held += 1

    def mark_late(self, exchange: Exchange) -> bool:
        """Notes that the exchange is late -> whether that is news: the caller and the leg's own thread may both see it."""
        with self._lock:
            news, exchange.late = not exchange.late, True
        return news

    def retry(self) -> bool:
        """Takes a retry from the budget, if there is one. It waits for what the endpoint asked for itself."""
        with self._lock:
            return self.breaker.state == "closed" and self._retries.take()

    def leave(self) -> None:
        """One exchange is over."""
        with self._lock:
            self._busy -= 1


class Exchange:
    """One talk with an endpoint. The leg says before each attempt what it is about to send, and after it what came of it."""

    __slots__ = (
        "_attempts", "_begun", "_guard", "_open", "_took_s", "_until",
        "counts", "data_class", "identity", "late", "received", "rule", "sent", "usd",
    )  # fmt: skip

    def __init__(self, guard: Guard, identity: str, data_class: str | None, rule: str) -> None:
        self._guard, self.identity, self.data_class, self.rule = guard, identity, data_class, rule
        self.sent = self.received = 0
        self.usd = 0.0
        self.counts = True
        """Whether the breaker hears of it."""
        self._open = self.late = False
        self._attempts = 0
        self._begun, self._until = 0.0, INF
        self._took_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._guard.leave()
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
        guard, again, known = self._guard, self._attempts > 0, self.rule != NO_DATA
        cost = self._cost(size, first=known and not again)
        why = guard.why() if again and known else ""
        why = why or guard.spending.reserve(cost) or ""
        if not why and guard.journal is not None:
            record = {
                "at": round(system.now(), 3), "to": guard.where, "bytes": size, "data_class": self.data_class,
                "rule": self.rule, "request": self.identity,
            }  # fmt: skip
            try:
                guard.journal.append(record)
            except StoreError as e:
                guard.spending.settle(cost, Cost())
                why = f"what is not in the egress ledger does not leave ({e})"
        if why:
            if not again and known:
                guard.count_rejected()
            raise Held(f"{guard.name} was not asked{' again' if again else ''}: {why}")
        self._attempts += 1
        self.usd += cost.usd
        self.sent += size
        self._open, self._begun, self._until = True, monotonic(), until

    def after_attempt(self, size: int, error: BaseException | None = None, *, cut: bool = False) -> None:
        """After it: so many bytes came back, or this error did. `cut`: because the answer is not needed any more."""
        self._open = False
        self.received += size
        if size:
            cost = self._cost(size, first=False)
            self.usd += cost.usd
            self._guard.spending.add(cost)
        if not self.counts:
            return
        if error is None:
            self._took_s = monotonic() - self._begun  # whether the reply is one will be seen when it is read
            return
        if isinstance(error, Refused) and error.status in INPUTS_OWN:
            self._guard.succeeded(None)
            return
        wait_s = getattr(error, "retry_after_s", None)
        if wait_s:
            self._guard._hold(wait_s)  # noqa: SLF001 - the two are one thing in two parts
        if (getattr(error, "stale", False) and not cut) or isinstance(error, BadReply):
            return  # the next attempt tells; what cannot be read is counted when the exchange ends
        if cut and monotonic() < self._until:
            return
        if isinstance(error, TimeoutError) or cut:
            self._overdue()
        elif not self.late:
            self._guard.failed()

    def overdue(self) -> None:
        """The deadline has passed, and the leg is left to run on: that is a fault already."""
        if self._open:
            self._overdue()

    def _overdue(self) -> None:
        """Too late, unless it had less time than it usually takes: that is nobody's fault."""
        if self.counts and monotonic() - self._begun >= self._guard.usual_s() and self._guard.mark_late(self):
            self._guard.failed()

    def may_retry(self) -> bool:
        """Whether the retry budget and the breaker have room for one more attempt."""
        return self.counts and not self.late and self._guard.retry()

    def _cost(self, size: int, *, first: bool) -> Cost:
        """Of so many bytes; the first attempt pays for the call, too."""
        terms, mb = self._guard.terms, size / MB
        usd, joules = mb * terms.usd_per_mb, mb * terms.joules_per_mb
        return Cost(usd + terms.usd_per_call, mb, joules + terms.joules_per_call, 1) if first else Cost(usd, mb, joules)
