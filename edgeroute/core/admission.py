"""Circuit breaker, retry budget, rate, concurrency and spending in front of one endpoint, by instants that are passed in."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from edgeroute.core.breaker import Breaker, State
from edgeroute.core.budget import Rate, RetryBudget
from edgeroute.core.codes import Rejection
from edgeroute.core.latency import Latency
from edgeroute.core.policy import Terms
from edgeroute.core.spending import Cost

USUAL: float = 0.9
"""The share of answers that an endpoint's usual time is enough for."""


class Spends(Protocol):
    """What endpoints pay from together: a `Spending`, or one behind a lock."""

    def reserve(self, cost: Cost, now: float) -> Rejection | None:
        """Books it, or says why not."""

    def add(self, cost: Cost, now: float) -> None:
        """Books what has happened anyway."""

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Corrects what was booked to what it came to."""


class Admission:
    """Whom an endpoint is asked for, and what it learns from what became of it.

    `now` is seconds of one monotonic clock, `day` seconds since 1970, which spending counts by; `jitter` is random, 0..1. Not
    synchronised: whoever shares it between threads holds a lock, but for `leave`.

    Args:
        terms: what the endpoint costs and bears.
        spending: what is paid from.

    Attributes:
        under_way: a slot for each call that has one.
        rejected: how many requests were not let through.
    """

    __slots__ = ("_rate", "breaker", "budget", "rejected", "spending", "terms", "under_way", "usual")

    def __init__(self, terms: Terms, spending: Spends) -> None:
        self.terms, self.spending = terms, spending
        self.breaker, self.usual = Breaker(), Latency()
        self.budget, self._rate = RetryBudget(), Rate(terms.calls_per_s)
        self.under_way: set[Hashable] = set()
        self.rejected = 0

    @property
    def state(self) -> State:
        """The breaker's: closed, open or half-open."""
        return self.breaker.state

    def why(self, now: float) -> Rejection | None:
        """Why it is not to be asked now, whoever asks; None: it may be."""
        return self.breaker.why(now)

    def enter(self, slot: Hashable, now: float) -> Rejection | None:
        """Lets a request through, which has the slot until it leaves; or says why not."""
        rejection, terms = self.breaker.why(now), self.terms
        if rejection is None and len(self.under_way) >= terms.max_concurrent:
            rejection = Rejection("max_concurrent", f"{len(self.under_way)} calls are under way (max_concurrent)")
        if rejection is None and not self._rate.take(now):
            rejection = Rejection("calls_per_s", f"it has had {terms.calls_per_s:g} calls a second (calls_per_s)")
        if rejection is None:
            self.under_way.add(slot)
        else:
            self.rejected += 1
        return rejection

    def leave(self, slot: Hashable) -> None:
        """The call is over. As often as you like, and without a lock: a slot is given back once."""
        self.under_way.discard(slot)

    def cost(self, mb: float, *, first: bool) -> Cost:
        """Of so many millions of bytes; the first attempt of a request pays for the call, too."""
        terms = self.terms
        usd, joules = mb * terms.usd_per_mb, mb * terms.joules_per_mb
        return Cost(usd + terms.usd_per_call, mb, joules + terms.joules_per_call, 1) if first else Cost(usd, mb, joules)

    def attempt(self, cost: Cost, now: float, day: float, *, again: bool = False, probe: bool = False) -> Rejection | None:
        """Books an attempt that is about to be made, or says why it may not be.

        Args:
            cost: what it costs.
            now: the instant.
            day: the same, as spending counts.
            again: the request was asked before; the breaker may have opened meanwhile.
            probe: it carries no user data, and is made whatever the breaker says.
        """
        rejection = self.breaker.why(now) if again and not probe else None
        rejection = rejection or self.spending.reserve(cost, day)
        if rejection is not None and not (again or probe):
            self.rejected += 1
        return rejection

    def retry(self) -> bool:
        """Takes a retry from the budget, if there is one. It waits for what the endpoint asked for itself."""
        return self.breaker.state == "closed" and self.budget.take()

    def succeeded(self, now: float, took_s: float | None = None) -> bool:
        """It answered, in that time if it was a plain answer -> whether it had been away."""
        before = self.breaker.state
        self.breaker.success(now)
        self.budget.success()
        if took_s is not None:
            self.usual.add(took_s)
        return before != "closed"

    def failed(self, now: float, jitter: float) -> bool:
        """It did not -> whether the breaker has opened."""
        before = self.breaker.opened
        self.breaker.fault(now, jitter)
        return self.breaker.opened > before

    def usual_s(self) -> float:
        """The time that it needs for `USUAL` of its answers; 0 while unknown."""
        return self.usual.quantile(USUAL) or 0.0

    def too_late(self, had_s: float) -> bool:
        """Whether having no answer after so long is a fault: with less time than usual it is nobody's."""
        return had_s >= self.usual_s()

    def hold(self, wait_s: float, now: float) -> None:
        """The endpoint asks to be left alone."""
        self.breaker.hold(now + wait_s, now)

    def take_probe(self, now: float) -> bool:
        """Whether a probe is to be sent now; it is under way from then on."""
        due = self.breaker.probe_due(now)
        if due:
            self.breaker.probe_begun(now)
        return due

    def probe_ended(self, now: float, jitter: float, *, ok: bool, wait_s: float | None = None) -> None:
        """A probe is over; `wait_s`: the endpoint asks to be left alone for so long."""
        if wait_s:
            self.hold(wait_s, now)
        self.breaker.probe_ended(now, ok, jitter)

    def link_up(self, now: float) -> bool:
        """The network is back: a breaker that is open need not wait any longer -> as `take_probe`."""
        self.breaker.link_up(now)
        return self.take_probe(now)

    def has_headroom(self, now: float) -> bool:
        """Whether it bears what is not urgent: it is well, and half of its calls, a second and at a time, are free."""
        return self.breaker.allows(now) and self._rate.spare(now) and 2 * len(self.under_way) < self.terms.max_concurrent
