"""Admission control for one endpoint: circuit breaker, retry budget, rate, concurrency and spending. The clock is passed in."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from edgeroute.core.breaker import Breaker, State
from edgeroute.core.budget import Rate, RetryBudget
from edgeroute.core.codes import Crowded, Rejection
from edgeroute.core.concurrency import Concurrency
from edgeroute.core.latency import Latency
from edgeroute.core.link import Link
from edgeroute.core.load import FROM, Load
from edgeroute.core.policy import INF, Terms
from edgeroute.core.spending import Cost, Tokens
from edgeroute.core.walk import new

MILLION = 1e6
USUAL: float = 0.9
"""Latency quantile of an endpoint that counts as its usual time."""
UNSURE = ", and more may be only once it has answered"
"""Of an endpoint that is not known to be well."""


def price(terms: Terms, tokens: Tokens) -> float:
    """US dollars for so many tokens."""
    usd = tokens.prompt * terms.usd_per_million_input_tokens + tokens.answer * terms.usd_per_million_output_tokens
    return usd / MILLION


def most_under_way(rules: Admission) -> int:
    """How many calls may be under way: `max_concurrent`, or what it has found itself."""
    most = rules.terms.max_concurrent
    return rules.adapted.most if rules.adapted is not None else int(most)


def behind(rules: Admission, now: float) -> Rejection:
    """Why a request is not admitted while others wait for a place: as they do, or since they were there before it."""
    if (crowded := rules.crowded(now)) is not None:
        return crowded
    if rules.adapted is None and most_under_way(rules) <= rules.breaker.most(now):
        return Crowded("max_concurrent", "others wait for their turn (max_concurrent)")
    return Crowded("concurrency", "others wait for their turn")


class Spends(Protocol):
    """Spending shared by several endpoints: a `Spending`, or one behind a lock."""

    def reserve(self, cost: Cost, now: float) -> Rejection | None:
        """Books the cost, or returns the limit that forbids it."""

    def add(self, cost: Cost, now: float) -> None:
        """Books a cost that has been incurred anyway."""

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Corrects a reservation to the actual cost."""


class Admission:
    """Decides whether an endpoint may be called, and updates its breaker and budgets from the results.

    `now` is seconds of one monotonic clock; `day` is seconds since 1970, used by spending; `jitter` is random, 0..1. Not
    synchronised: threads that share it need a lock, except for `leave`.

    Args:
        terms: cost and limits of the endpoint.
        spending: shared spending limits.
        careful: limits the requests under way at an endpoint that is not known to be well.

    Attributes:
        adapted: the limit of calls under way that finds itself; None: it is a number.
        under_way: the slots of calls in progress.
        overdue: those among them that were counted as faults, since they are late.
        load: what its replies report of its load.
        link: time of a call and bandwidth, as measured. Nothing is decided by it.
        rate: calls per second.
        rejected: number of requests rejected.
    """

    __slots__ = (
        "_careful", "_limited", "adapted", "breaker", "budget", "link", "load", "overdue", "rate", "rejected", "spending",
        "terms", "under_way", "usual",
    )  # fmt: skip

    def __init__(self, terms: Terms, spending: Spends, *, careful: bool = False) -> None:
        self.terms, self.spending, self._careful = terms, spending, careful
        self.breaker, self.usual, self.link = Breaker(), Latency(), Link()
        self.load = Load()
        self.adapted = Concurrency() if terms.max_concurrent == "auto" else None
        self.budget, self.rate = RetryBudget(), Rate(terms.calls_per_s)
        self._limited = terms.calls_per_s < INF
        self.under_way: set[Hashable] = set()
        self.overdue: set[Hashable] = set()
        self.rejected = 0

    @property
    def state(self) -> State:
        """State of the breaker: closed, open or half-open."""
        return self.breaker.state

    def why(self, now: float) -> Rejection | None:
        """Why no request may be sent now; None: one may."""
        return self.breaker.why(now)

    def enter(self, slot: Hashable, now: float, calls: int = 1) -> Rejection | None:
        """Admits a request of so many calls, which occupies the slot until `leave`; or returns why not."""
        rejection = self.breaker.why(now) or self.crowded(now) or (self._limited and self.take(now, calls)) or None
        if rejection is None:
            self.under_way.add(slot)
        else:
            self.rejected += 1
        return rejection

    def crowded(self, now: float) -> Rejection | None:
        """Why no further request may be under way now; None: one may. Only the end of another changes that."""
        count = len(self.under_way)
        if count >= most_under_way(self):
            text = f"{count} calls are under way (max_concurrent)"
            return Crowded("max_concurrent", text) if self.adapted is None else Rejection("concurrency", text)
        if count and self._unsure(count + 1, now):  # one alone always may
            return Crowded("concurrency", f"{count} calls are under way{UNSURE}")
        return None

    def _unsure(self, count: int, now: float) -> bool:
        """Whether so many calls under way are too many for an endpoint of which it is not known whether it is well."""
        return self._careful and count > (most := self.breaker.most(now)) and count - len(self.overdue & self.under_way) > most

    def take(self, now: float, calls: int) -> Rejection | None:
        """Takes so many calls from the rate; or returns why not, and takes none."""
        if self.rate.take(now, calls):
            return None
        most = self.terms.calls_per_s
        text = f"it has had {most:g} calls a second" if calls == 1 else f"{calls} calls at once, with {most:g} a second"
        return Rejection("calls_per_s", f"{text} (calls_per_s)")

    def leave(self, slot: Hashable) -> None:
        """Frees the slot when the call has ended. Idempotent, and needs no lock."""
        self.under_way.discard(slot)

    def cost(self, mb: float, calls: int = 0) -> Cost:
        """Cost of `mb` million bytes, and of so many calls: the first attempt of each pays the price per call."""
        terms = self.terms
        usd, joules = mb * terms.usd_per_mb, mb * terms.joules_per_mb
        if not calls:
            return new(Cost, (usd, mb, joules, 0))
        return new(Cost, (usd + calls * terms.usd_per_call, mb, joules + calls * terms.joules_per_call, calls))

    def attempt(self, cost: Cost, now: float, day: float, *, again: bool = False, probe: bool = False) -> Rejection | None:
        """Books an attempt about to be made, or returns why it may not be made.

        Args:
            cost: of the attempt.
            now: monotonic instant, seconds.
            day: the same instant, seconds since 1970.
            again: a retry; the breaker may have opened since the first attempt.
            probe: carries no user data, and is made whatever the state of the breaker.
        """
        rejection, count = None, len(self.under_way)
        if again and not probe:
            rejection = self.breaker.why(now)
            if rejection is None and self._unsure(count, now):
                rejection = Rejection("concurrency", f"{count} calls are under way{UNSURE}")
        rejection = rejection or self.spending.reserve(cost, day)
        if rejection is not None and not (again or probe):
            self.rejected += 1
        return rejection

    def retry(self) -> bool:
        """Takes a retry from the budget; False: it is empty. A retry waits out the endpoint's Retry-After itself."""
        return self.breaker.state == "closed" and self.budget.take()

    def succeeded(self, now: float, took_s: float | None = None, moved: int | None = None) -> bool:
        """Records a success; with its latency, if it is to be counted, and the bytes of its bodies, if they are known.

        Returns whether the breaker was not closed before.
        """
        before = self.breaker.state
        self.breaker.success(now)
        self.budget.success()
        if took_s is not None:
            self.usual.add(took_s)
            if self.adapted is not None:
                self.adapted.succeeded(took_s, len(self.under_way) + 1)
            if moved is not None:
                self.link.add(moved, took_s)
        return before != "closed"

    def failed(self, now: float, jitter: float) -> bool:
        """Records a fault. Returns whether it opened the breaker."""
        before = self.breaker.opened
        if self.adapted is not None:
            self.adapted.failed(now)
        self.breaker.fault(now, jitter)
        return self.breaker.opened > before

    def usual_s(self) -> float:
        """The `USUAL` quantile of latency, seconds; 0 while unknown."""
        return self.usual.quantile(USUAL) or 0.0

    def too_late(self, had_s: float) -> bool:
        """Whether a timeout after `had_s` seconds is the endpoint's fault: not if it had less than its usual time."""
        return had_s >= self.usual_s()

    def hold(self, wait_s: float, now: float) -> None:
        """Holds all requests for `wait_s` seconds, as the endpoint requested (Retry-After)."""
        self.breaker.hold(now + wait_s, now)

    def take_probe(self, now: float) -> bool:
        """Whether a probe is to be sent now; it then counts as in progress."""
        due = self.breaker.probe_due(now)
        if due:
            self.breaker.probe_begun(now)
        return due

    def probe_ended(self, now: float, jitter: float, *, ok: bool, wait_s: float | None = None) -> None:
        """Records the result of a probe; `wait_s`: seconds of hold that the endpoint requested."""
        if wait_s:
            self.hold(wait_s, now)
        self.breaker.probe_ended(now, ok, jitter)

    def link_up(self, now: float) -> bool:
        """Makes a probe due at once if the breaker is open, as the network is back. Returns as `take_probe`."""
        self.breaker.link_up(now)
        return self.take_probe(now)

    def has_headroom(self, now: float) -> bool:
        """Whether low-priority calls (audits) may be sent: half of rate and of concurrency is free; it is well, not loaded."""
        busy = 2 * len(self.under_way) >= most_under_way(self) or self._unsure(2 * len(self.under_way) + 1, now)
        return not busy and self.load.at(now) <= FROM and self.breaker.allows(now) and not self.rate.spare_in(now)
