"""Guard of one endpoint: admission rules with lock, clock, egress ledger and events. For threads and asyncio."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute.cloud.attempt_accounting_and_turns import Exchange, Reported, Turns
from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core.endpoint_breaker_and_limits import Admission, State, behind
from edgeroute.core.error_codes_and_texts import Crowded, ErrorCode, HeldCode, Rejection
from edgeroute.core.policy_egress_and_options import INF, Permit, Terms
from edgeroute.errors import Held
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.signal_safe_locks import SafeLock

if TYPE_CHECKING:
    from edgeroute.stores.json_lines_and_process_locks import Journal
    from edgeroute.types import StopToken

PROBE_S = 5.0  # timeout of a probe, seconds


def _jitter() -> float:
    """Return a random number from 0 up to 1. The module `random` would take 3 ms of the import."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


class Watcher(Protocol):
    """Receiver of a guard's events."""

    def opened(self, guard: Guard) -> None:
        """Handle that the breaker has opened."""

    def probe(self, guard: Guard) -> None:
        """Handle that a probe is due: call `guard.check_health()` in the background."""

    def closed(self, guard: Guard) -> None:
        """Handle that the breaker has closed."""

    def loaded(self, guard: Guard) -> None:
        """Handle that the endpoint reports another load, as far as decisions depend on it."""


class Guard(ForkSafe):
    """Circuit breaker, rate limit and spending for one endpoint: an `Admission` with lock and clock.

    The lock is reentrant: a signal handler that calls the router may run while it is held.

    Args:
        name: name of the target.
        where: address of the endpoint, as recorded in the egress ledger.
        terms: prices and limits of the endpoint.
        spending: shared spending limits.
        health: health check without user data, called with its deadline (an instant) and an exchange. None: none.
        watcher: receives events.
        journal: the egress ledger; None: none.
        report: receives attempts; None: no receiver.
        withdrawn: returns why a permit does not hold any more; empty: it does.

    Attributes:
        rules: the `Admission`.
        lock: lock of the rules.
        watcher: receives events.
        has_health_check: False: after its pause the breaker closes untested, and the next input is the probe.
    """

    lock: AbstractContextManager[Any] = per_process(SafeLock)

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
        report: Reported | None = None,
        withdrawn: Callable[[Permit], str] = lambda _: "",
    ) -> None:
        self.name, self.where, self.terms, self.spending = name, where, terms, spending
        self.journal, self.report, self._health, self.watcher = journal, report, health, watcher
        self.has_health_check = health is not None
        self.withdrawn = withdrawn
        self.rules = Admission(terms, spending, careful=True)
        self.turns = Turns(self.rules, self.lock)

    def after_fork(self) -> None:
        """Forget the parent's calls under way and its waiting requests, in a forked child; the breaker's state stays."""
        super().after_fork()
        self.rules.under_way.clear()
        self.turns = Turns(self.rules, self.lock)

    def enter(
        self, permit: Permit, identity: str, calls: int = 1, until: float = -INF, stop: StopToken | None = None
    ) -> Exchange:
        """Admit one request of `calls` calls, and return its exchange: a context manager that gives its place back.

        If the most calls are under way, this thread waits for its turn until the instant `until`, or a stop request; without
        `until` it does not wait.

        Raises:
            Held: the request is rejected, which is counted and reported. Nothing was sent; the cost is booked only as the first
                bytes leave, or by `prepay`.
        """
        exchange, rejection = self._enter(permit, identity, calls)
        if rejection is None:
            return exchange
        if isinstance(rejection, Crowded) and until > monotonic():
            rejection = self.turns.wait(exchange.slot, calls, until, stop, rejection)
        return self._admit(exchange, rejection)

    async def enter_async(self, permit: Permit, identity: str, calls: int, until: float) -> Exchange:
        """Admit one request of `calls` calls, on an event loop, and return its exchange; see `enter`, also for Held.

        Waits without blocking the loop; cancelling the task gives the turn up.
        """
        exchange, rejection = self._enter(permit, identity, calls)
        if rejection is None:
            return exchange
        if isinstance(rejection, Crowded) and until > monotonic():
            rejection = await self.turns.wait_async(exchange.slot, calls, until, rejection)
        return self._admit(exchange, rejection)

    def _enter(self, permit: Permit, identity: str, calls: int) -> tuple[Exchange, Rejection | None]:
        """Try to admit a request at once. Return its new exchange, and why it is not admitted; None: it is, and has a place.

        While other requests wait for a place it is not admitted before them. A rejection is counted.
        """
        now, rules = monotonic(), self.rules
        # created before its slot: whatever interrupts from here on, even a signal, its collection frees the slot
        exchange = Exchange(self, identity, permit, calls)
        with self.lock:
            ahead = self.turns.waiting and rules.why(now) is None
            rejection = behind(rules, now) if ahead else rules.enter(exchange.slot, now, calls)
            rules.rejected += bool(ahead)
        return exchange, rejection

    def _admit(self, exchange: Exchange, rejection: Rejection | None) -> Exchange:
        """Return the exchange if there is no rejection.

        Else report the rejection, have the watcher start a probe if the breaker's is due, and raise Held.
        """
        if rejection is None:
            return exchange
        with self.lock:
            due = self.rules.take_probe(monotonic())
        if due:
            self.watcher.probe(self)
        if self.report is not None:
            self.report.held(self.name, rejection.code)
        raise Held(f"{self.name} was not asked: {rejection.text}", code=rejection.code, wait_s=rejection.wait_s)

    def probe(self) -> Exchange:
        """Return an exchange without user data, for `check` and probes.

        It is always admitted, whatever the breaker's state, and takes a place among the calls under way, which closing it frees.
        Its bytes cost what others do.
        """
        exchange = Exchange(self, "", None)
        self.rules.under_way.add(exchange.slot)
        return exchange

    def check_health(self) -> None:
        """Run the health check, blocking, with `PROBE_S` seconds as its limit, and record its result.

        Call it once per `Watcher.probe`. A success closes the breaker and notifies the watcher; a failure keeps it open for
        longer, and for a Retry-After at least as long. No Exception is raised: each counts as a failure. Without a health check
        nothing is sent, which counts as a success.
        """
        try:
            if self._health is not None:
                with self.probe() as exchange:
                    exchange.counts = False
                    self._health(monotonic() + PROBE_S, exchange)
        except BaseException as e:  # any failure means that it is not back
            self.probe_failed(getattr(e, "retry_after_s", None))
            if not isinstance(e, Exception):
                raise
        else:
            with self.lock:
                self.rules.probe_ended(monotonic(), _jitter(), ok=True)
            self.watcher.closed(self)

    def probe_failed(self, wait_s: float | None = None) -> None:
        """Record a failed probe, or one that could not be sent: the breaker opens again, for longer.

        wait_s: seconds for which the endpoint asked to be left alone; None: it did not ask.
        """
        with self.lock:
            self.rules.probe_ended(monotonic(), _jitter(), ok=False, wait_s=wait_s)

    def link_up(self) -> None:
        """If the breaker is open, have the watcher send a probe at once, as the network is back.

        The time for which the breaker opens begins at its shortest again.
        """
        with self.lock:
            due = self.rules.link_up(monotonic())
        if due:
            self.watcher.probe(self)

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
        """Return the reason why no request may be sent now; empty: one may."""
        with self.lock:
            rejection = self.rules.why(monotonic())
        return "" if rejection is None else rejection.text

    def has_headroom(self) -> bool:
        """Return True if low-priority calls (audits) may be sent: the breaker allows it, half of the rate and places is free."""
        with self.lock:
            return self.rules.has_headroom(monotonic())

    def hold(self, wait_s: float) -> None:
        """Reject all requests for `wait_s` seconds, as the endpoint requested."""
        with self.lock:
            self.rules.hold(wait_s, monotonic())

    def succeeded(self, took_s: float | None, moved: int | None = None) -> None:
        """Record a success, which closes the breaker and refills the retry budget.

        If the breaker was not closed, notify the watcher.

        Args:
            took_s: latency, seconds; None: it changes no estimate of latency or link.
            moved: bytes of the bodies, if known.
        """
        with self.lock:
            back = self.rules.succeeded(monotonic(), took_s, moved)
        if back:
            self.watcher.closed(self)

    def failed(self, status: int | None = None, late: Exchange | None = None) -> None:
        """Record a fault, with its HTTP status if it has one; it may open the breaker.

        If so, waiting requests are rejected at once, and the watcher is notified.

        Args:
            status: HTTP status; None: none.
            late: exchange whose call is overdue. That is no fault if the endpoint had less than its usual time, or if it was
                recorded before: both the caller and the leg's own thread may do so. None: another fault.
        """
        with self.lock:
            if late is not None:
                if late.late or not self.rules.too_late(monotonic() - late.begun):
                    return
                late.late = True
                # Under the same lock as its fault: an overdue call leaves room for another until the fault is counted.
                self.rules.overdue = {*(self.rules.overdue & self.rules.under_way), late.slot}
            opened = self.rules.failed(monotonic(), _jitter(), status)
        if opened:
            self.turns.advance()  # those who wait are told at once
            self.watcher.opened(self)

    def count_rejected(self, code: ErrorCode | HeldCode) -> None:
        """Count and report a request rejected for a reason outside the guard."""
        with self.lock:
            self.rules.rejected += 1
        if self.report is not None:
            self.report.held(self.name, code)
