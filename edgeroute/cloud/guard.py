"""Lock, clock, egress ledger and news around one endpoint's admission rules. Threads and asyncio share it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute import system
from edgeroute.cloud.exchange import NO_DATA, Exchange
from edgeroute.core.admission import Admission
from edgeroute.core.breaker import State
from edgeroute.core.codes import Rejection
from edgeroute.core.egress import Permit
from edgeroute.core.policy import Terms
from edgeroute.core.spending import Cost, Limits, Spending
from edgeroute.errors import Held
from edgeroute.system import renew_after_fork

if TYPE_CHECKING:
    from edgeroute.stores.journal import Journal

__all__ = ["Exchange", "Guard", "SharedSpending", "Watcher"]

PROBE_S = 5.0
"""How long a probe may take."""


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


class Watcher(Protocol):
    """Who is told of a guard's news."""

    def opened(self, guard: Guard) -> None:
        """The breaker has opened."""

    def probe(self, guard: Guard) -> None:
        """It is time to try whether the endpoint is back, in the background: call `guard.check_health()`."""

    def closed(self, guard: Guard) -> None:
        """The endpoint is back."""


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
    ) -> None:
        self.name, self.where, self.spending = name, where, spending
        self.journal, self._health, self._watcher = journal, health, watcher
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
    def terms(self) -> Terms:
        """What it costs and bears."""
        return self.rules.terms

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

    def too_late(self, had_s: float) -> bool:
        """Whether having no answer after so long is a fault: with less time than usual it is nobody's."""
        with self._lock:
            return self.rules.too_late(had_s)

    def count_rejected(self) -> None:
        """Counts one that was not asked, for a reason that is not the guard's."""
        with self._lock:
            self.rules.rejected += 1

    def mark_late(self, exchange: Exchange) -> bool:
        """Notes that the exchange is late -> whether that is news: the caller and the leg's own thread may both see it."""
        with self._lock:
            news, exchange.late = not exchange.late, True
        return news

    def attempt(self, cost: Cost, *, again: bool, probe: bool) -> Rejection | None:
        """Books an attempt that is about to be made, or says why it may not be."""
        with self._lock:
            return self.rules.attempt(cost, monotonic(), system.now(), again=again, probe=probe)

    def retry(self) -> bool:
        """Takes a retry from the budget, if there is one. It waits for what the endpoint asked for itself."""
        with self._lock:
            return self.rules.retry()

    def leave(self, exchange: Exchange) -> None:
        """The exchange is over."""
        self.rules.leave(exchange.slot)
