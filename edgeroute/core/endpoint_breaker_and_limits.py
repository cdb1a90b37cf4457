"""Admission control for one endpoint: circuit breaker with probes and holds, retry budget, rate, concurrency and spending.

`Admission` combines them. The rules are functions of numbers, or of arrays for simulations; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Literal, Protocol

from edgeroute.core.error_codes_and_texts import Crowded, Lasting, Rejection
from edgeroute.core.performance_estimates_and_encoding_choice import FROM, Latency, Link, Load, Numbers, least, most
from edgeroute.core.policy_egress_and_options import INF, Terms
from edgeroute.core.spending_limits import Cost, Tokens
from edgeroute.core.walk import new

# Circuit breaker: stops calls to a failing endpoint, and probes for its recovery.

State = Literal["closed", "open", "half-open"]

FAULTS: Final = 3  # number of consecutive faults that open the breaker
FIRST_S, MOST_S = 5.0, 300.0  # initial and maximum opening time, seconds; it doubles each time
WELL_S: Final = 60.0  # seconds for which an endpoint is known to be well after a success, unless it fails
FORBIDDEN: Final = 403  # HTTP status of a request that is refused, for its content (as by a filter) or for its key
ALLOWED_S: Final = 600.0  # seconds after a success in which `FORBIDDEN` is taken to be about the content
HOLD_MOST_S: Final = 300.0  # upper limit of a hold that an endpoint requests, seconds
PROBE_LOST_S: Final = 60.0  # seconds after which a probe without a result counts as lost


def allowed(closed: Numbers, held: Numbers, now: Numbers) -> Numbers:
    """Return True if a request may be sent: the breaker is closed, and no hold is in force."""
    return closed & (now >= held)


def tripped(faults: Numbers) -> Numbers:
    """Return True if this number of consecutive faults opens a closed breaker."""
    return faults >= FAULTS


def open_s(nominal_s: Numbers, jitter: Numbers) -> Numbers:
    """Return the opening time, seconds: at least half of the nominal time, with jitter."""
    return nominal_s * (0.5 + 0.5 * jitter)


def grown_s(nominal_s: Numbers) -> Numbers:
    """Return the next nominal opening time, seconds. Doubled, up to `MOST_S`."""
    return least(2 * nominal_s, MOST_S)


def due(due_at: Numbers, held: Numbers, now: Numbers) -> Numbers:
    """Return True if a probe is to be sent: it is due, and no hold is in force."""
    return (now >= due_at) & (now >= held)


def held_until(held: Numbers, until: Numbers, now: Numbers) -> Numbers:
    """Return the end of the hold after another request for one: the later of the two, at most `HOLD_MOST_S` from now."""
    return most(held, least(until, now + HOLD_MOST_S))


class Breaker:
    """Circuit breaker of one endpoint.

    It opens after `FAULTS` consecutive faults. After the opening time a probe without user data is due, one at a time: half-open.
    If the probe fails, it opens for longer. If it succeeds, it closes on trial: requests are sent, but the next fault opens it at
    once, with the longer time, since a probe may be answered by something that does not run the model. Only a request's success
    resets the faults and the opening time.

    While the endpoint is not known to be well, few requests may be under way (`most`): so an outage costs few of them, however
    many callers there are.

    Results may be late. While it is open, a fault changes nothing; a success closes it, since the endpoint has answered, and the
    result of a probe in progress is then ignored.

    Instants are seconds of one monotonic clock; `jitter` is random, 0..1. Not synchronised: threads that share it need a lock.

    Attributes:
        state: closed, open or half-open.
        opened: number of changes from closed to open.
        due: instant from which the next probe may be sent, also if one is in progress; inf while the breaker is closed.
        faults: number of faults in a row; those that came while the breaker was open are not counted.
    """

    __slots__ = ("_held", "_next_s", "_well_until", "due", "faults", "opened", "state")

    def __init__(self) -> None:
        self.state: State = "closed"
        self.opened = 0
        self.faults = 0
        self._next_s = FIRST_S
        self.due = INF
        self._held = -INF  # end of the hold: no request before this instant
        self._well_until = -INF  # instant until which its last success counts, unless it fails

    def allows(self, now: float) -> bool:
        """Return True if a request may be sent."""
        return bool(allowed(self.state == "closed", self._held, now))

    def why(self, now: float) -> Rejection | None:
        """Return why no request may be sent now; None: one may. Changes nothing.

        Open, or on hold as the server asked: with the seconds that it still lasts (`Lasting`). Half-open: a probe is under way.
        """
        if self.state == "closed" and now >= self._held:  # as `allowed`, without its calls: each request asks
            return None
        if self.state == "closed":
            return Lasting.of("retry_after", f"it asked to wait another {_seconds(self._held - now)}", self._held - now)
        if self.state == "half-open":
            return Rejection("breaker", f"breaker half-open after {self.faults} faults, a probe is under way")
        wait_s = max(self.due, self._held) - now
        until = f"for another {_seconds(wait_s)} " if wait_s > 0 else ""
        text = f"breaker open {until}after {self.faults} faults" + ("" if until else ", a probe is due")
        return Lasting.of("breaker", text, wait_s)

    def most(self, now: float) -> float:
        """Return how many requests may be under way: inf at an endpoint known to be well, else the faults left until it opens.

        Known to be well: no fault since its last success, which is at most `WELL_S` seconds ago.
        """
        return INF if not self.faults and now < self._well_until else self.faults_left

    def forbids_content(self, status: int | None, now: float) -> bool:
        """Return True if a status is about its request's content: 403, while others with the same key succeed."""
        return status == FORBIDDEN and now < self._well_until + ALLOWED_S - WELL_S

    @property
    def faults_left(self) -> int:
        """Number of faults in a row after which the breaker is open; 1 at least."""
        return max(1, FAULTS - self.faults)

    def fault(self, now: float, jitter: float) -> None:
        """Count a failed request that is the endpoint's fault; open the breaker at the third in a row (`FAULTS`).

        A probe's success does not reset the count: after it, the first fault opens the breaker. A no-op unless it is closed.
        """
        if self.state == "closed":
            self.faults += 1  # a probe's success has not reset the count: on trial, one more fault is enough
            if tripped(self.faults):
                self.opened += 1
                self._open(now, jitter)

    def success(self, now: float) -> None:
        """Record an answered request, whenever it began, and close the breaker. A hold stays: the server requested it."""
        self.faults, self._next_s, self._well_until = 0, FIRST_S, now + WELL_S
        if self.state != "closed":
            self._close()

    def probe_due(self, now: float) -> bool:
        """Return True if a probe is to be sent now."""
        return bool(due(self.due, self._held, now))

    def probe_begun(self, now: float) -> None:
        """Record that a probe was sent. It counts as lost after `PROBE_LOST_S`."""
        self.state, self.due = "half-open", now + PROBE_LOST_S

    def probe_ended(self, now: float, ok: bool, jitter: float) -> None:
        """Record a probe's result: close the breaker, or open it for longer. A no-op unless a probe is in progress.

        Closing keeps the count of faults, so that the next fault opens it again.
        """
        if self.state == "half-open":
            if ok:
                self._close()
            else:
                self._open(now, jitter)

    def link_up(self, now: float) -> None:
        """Make a probe due at once, unless one is in progress: faults from before the network came back mean little.

        Also resets the pause to the first one.
        """
        self._next_s = FIRST_S
        if self.state == "open":
            self.due = now

    def hold(self, until: float, now: float) -> None:
        """Forbid requests before `until`, at most `HOLD_MOST_S` from now; the latest hold counts."""
        self._held = held_until(self._held, until, now)

    def _open(self, now: float, jitter: float) -> None:
        """Open the breaker, and double the next opening time."""
        self.state, self.due = "open", now + open_s(self._next_s, jitter)
        self._next_s = grown_s(self._next_s)

    def _close(self) -> None:
        """Close the breaker, with no probe due. Keeps the count of faults and the next pause."""
        self.state, self.due = "closed", INF


def _seconds(wait_s: float) -> str:
    """Return a wait in words. At least 0.1 s."""
    return f"{round(max(wait_s, 0.1), 1):g} s"


# Token buckets, which start full: retries per success, and calls per second.

RETRY: Final = 10  # cost of a retry, in successes: whole numbers are not rounded
CAP: Final = 100  # maximum balance (ten retries), in successes


def affords(left: Numbers) -> Numbers:
    """Return True if a retry is left."""
    return left >= RETRY


def balance_after_success(left: Numbers) -> Numbers:
    """Return the balance after one more success. At most `CAP`."""
    return least(left + 1, CAP)


class RetryBudget:
    """Retry budget: one retry per ten successes, ten at most. If everything fails, retries soon add no load.

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = CAP

    def take(self) -> bool:
        """Take a retry, at the cost of ten successes. Return False, and take nothing, if fewer are left."""
        if not affords(self._left):
            return False
        self._left -= RETRY
        return True

    def success(self) -> None:
        """Record a successful attempt, which earns a tenth of a retry."""
        if self._left < CAP:
            self._left = balance_after_success(self._left)


class Rate:
    """Rate limit, calls per second.

    Not synchronised: threads that share it need a lock.

    Args:
        per_s: long-term rate; inf: no limit.
        burst: number of calls at once after a pause, at least 1; None: those of one second.
    """

    __slots__ = ("_at", "_burst", "_per_s", "left")

    def __init__(self, per_s: float, burst: float | None = None) -> None:
        self._per_s: Final = per_s
        self._burst: Final = INF if per_s == INF else max(1.0, per_s) if burst is None else burst
        self.left = self._burst
        self._at = 0.0

    def take(self, now: float, calls: int = 1) -> bool:
        """Take that many calls and return True, or take none and return False if fewer are left.

        First adds those that the time since the last call has earned; an instant before that adds nothing.
        """
        if now > self._at:
            self.left = min(self._burst, self.left + (now - self._at) * self._per_s)
            self._at = now
        if self.left < calls:
            return False
        self.left -= calls
        return True

    def give_back(self, calls: float) -> None:
        """Give back so many calls that were taken and are not made."""
        self.left = min(self._burst, self.left + calls)

    def spare_in(self, now: float, calls: int = 1) -> float:
        """Return the seconds until a low-priority request may take that many calls and half of the burst is there; takes none.

        0 without a limit; inf, never, for more calls than a burst.
        """
        if self._per_s == INF or calls > self._burst:
            return 0.0 if self._per_s == INF else INF
        left = self.left + max(0.0, now - self._at) * self._per_s
        return max(0.0, max(calls, self._burst / 2) - left) / self._per_s


# Adaptive limit of concurrent calls, by their times and failures: `max_concurrent = "auto"`.
#
# Additive increase, multiplicative decrease, as TCP's congestion control (Chiu and Jain, 1989; Jacobson, 1988), with delay as a
# signal beside loss, as in TCP Vegas (Brakmo and Peterson, 1995) and in Netflix's concurrency-limits (2018):
#
# > a round, of as many answers as the limit, and at least `ROUND`:
# > median > SLOW * base                       limit *= SLOWER
# > else, if half of the limit was under way   limit += 1
# > a fault: a refusal, a time-out                 limit *= FAULT, once in a time `base`
# > one round in `ROUNDS`                          limit * PROBE for its time; its median is the new base
#
# `base` is the time of a call that does not wait. A limit that is used fully hides it, as all of its calls wait; so it is
# measured with a quarter of them, as in BBR (Cardwell et al., 2016). So the limit settles below `SLOW` times the number that is
# answered at a time, one slow input changes nothing, and a link that has become slower for good is the new base.

FIRST: Final = 8.0  # initial limit
LEAST: Final = 1.0  # minimum and maximum limit
MOST: Final = 64.0
ROUND: Final = 8
ROUNDS: Final = 16
PROBE: Final = 0.25
SLOW: Final = 2.0
SLOWER: Final = 0.8
FAULT: Final = 0.5
PAUSE_S: Final = 0.1  # time between two decreases by faults before `base` is known, seconds


class Concurrency:
    """Adaptive limit of concurrent calls of one endpoint. Not synchronised: threads that share it need a lock.

    Attributes:
        limit: calls that may be under way, except while the base is measured.
        base_s: time of a call that does not wait, seconds; None: not known yet.
    """

    __slots__ = ("_busiest", "_cut_until", "_probing", "_round", "_rounds", "base_s", "limit")

    def __init__(self) -> None:
        self.limit = FIRST
        self.base_s: float | None = None
        self._round: list[float] = []
        self._rounds = self._busiest = 0
        self._probing = False
        self._cut_until = -float("inf")

    @property
    def most(self) -> int:
        """Number of calls that may be under way. A share of the limit while the base latency is measured anew; 1 at least."""
        return max(1, int(self.limit * PROBE if self._probing else self.limit))

    def succeeded(self, took_s: float, busy: int) -> None:
        """Record an answer and its time, with `busy` calls under way, itself included; adapt the limit after each round.

        A round is as many answers as the limit, 8 at least; its median counts. The first one gives the base latency. A slow one
        lowers the limit by a fifth; a fast one raises it by 1 if at least half of it was used. Every 16 rounds one measures the
        base anew, with a quarter of the calls; answers that waited with more than those are ignored.
        """
        if self._probing and busy > self.most:  # it waited with those that are too many by now
            return
        self._round.append(took_s)
        self._busiest = max(self._busiest, busy)
        if len(self._round) < max(ROUND, self.most):
            return
        median, busiest = sorted(self._round)[len(self._round) // 2], self._busiest
        self._new_round()
        if self._probing or self.base_s is None:
            self.base_s, self._probing = median, False
            return
        if median > SLOW * self.base_s:
            self.limit = max(LEAST, self.limit * SLOWER)
        elif 2 * busiest >= self.most:
            self.limit = min(MOST, self.limit + 1)
        self.base_s = min(self.base_s, median)
        self._rounds += 1
        self._probing = self._rounds % ROUNDS == 0

    def failed(self, now: float) -> None:
        """Record a fault at an instant: halve the limit, and discard the times of this round.

        Faults of the same moment, within the base latency, count once: they are of one overload.
        """
        if now < self._cut_until:
            return
        self.limit = max(LEAST, self.limit * FAULT)
        self._cut_until = now + (self.base_s or PAUSE_S)
        self._new_round()

    def _new_round(self) -> None:
        """Forget the times of this round."""
        self._round, self._busiest = [], 0


MILLION = 1e6
USUAL: float = 0.9  # latency quantile of an endpoint that counts as its usual time
UNSURE = ", and more may be only once it has answered"  # end of a rejection by an endpoint that is not known to be well


def price(terms: Terms, tokens: Tokens) -> float:
    """Return US dollars for so many tokens."""
    usd = tokens.prompt * terms.usd_per_million_input_tokens + tokens.answer * terms.usd_per_million_output_tokens
    return usd / MILLION


def most_under_way(rules: Admission) -> int:
    """Return how many calls may be under way: the present adaptive limit for "auto", else the number in `max_concurrent`."""
    return int(rules.terms.max_concurrent) if rules.adapted is None else rules.adapted.most


def behind(rules: Admission, now: float) -> Rejection:
    """Return the rejection of a request that has to wait its turn, as earlier ones wait for a place.

    That of `Admission.crowded` if no place is free; else one with the code of the limit in force: `max_concurrent`, or
    `concurrency` if the limit is adaptive, or lower as the endpoint is not known to be well.
    """
    if (crowded := rules.crowded(now)) is not None:
        return crowded
    if rules.adapted is None and most_under_way(rules) <= rules.breaker.most(now):
        return Crowded("max_concurrent", "others wait for their turn (max_concurrent)")
    return Crowded("concurrency", "others wait for their turn")


def _under_way(count: int) -> str:
    """Return how many calls are under way, in words."""
    return f"{count} calls are under way" if count > 1 else "1 call is under way"


class Spends(Protocol):
    """Spending shared by several endpoints: a `Spending`, or one behind a lock."""

    def reserve(self, cost: Cost, now: float) -> Rejection | None:
        """Book the cost, or return the limit that forbids it."""

    def add(self, cost: Cost, now: float) -> None:
        """Book a cost that has been incurred anyway."""

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Correct a reservation to the actual cost."""


class Admission:
    """Decides if an endpoint may be called, and updates its breaker and budgets from the results.

    `now` is seconds of one monotonic clock; `day` is seconds since 1970, used by spending; `jitter` is random, 0..1. Not
    synchronised: threads that share it need a lock, except for `leave`.

    Args:
        terms: cost and limits of the endpoint.
        spending: shared spending limits.
        careful: if True, limit the requests under way at an endpoint that is not known to be well.

    Attributes:
        adapted: adaptive limit of calls under way; None: the limit is a number.
        under_way: slots of calls in progress.
        overdue: slots among them that were counted as faults, since they are late.
        load: load that its replies report.
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
        """Return why no request may be sent now, by the breaker; None: one may."""
        return self.breaker.why(now)

    def enter(self, slot: Hashable, now: float, calls: int = 1) -> Rejection | None:
        """Admit a request of so many calls, which occupies the slot until `leave`; or count and return the rejection.

        Asks in this order: the breaker, the limit of calls under way (`crowded`), the rate; a rejection takes nothing from the
        rate.
        """
        rejection = self.breaker.why(now) or self.crowded(now) or (self._limited and self.take(now, calls)) or None
        if rejection is None:
            self.under_way.add(slot)
        else:
            self.rejected += 1
        return rejection

    def crowded(self, now: float) -> Rejection | None:
        """Return why no further request may be under way now; None: one may. Only the end of another changes that.

        At the limit: `Crowded` if it is a number, for which a request waits; a plain rejection if it is adaptive. Also `Crowded`
        if the endpoint is not known to be well, and others are under way.
        """
        count = len(self.under_way)
        if count >= most_under_way(self):
            text = f"{_under_way(count)} (max_concurrent)"
            return Crowded("max_concurrent", text) if self.adapted is None else Rejection("concurrency", text)
        if count and self._unsure(count + 1, now):  # one alone always may
            return Crowded("concurrency", f"{_under_way(count)}{UNSURE}")
        return None

    def _unsure(self, count: int, now: float) -> bool:
        """Return True if so many calls under way are too many for an endpoint that is not known to be well (`Breaker.most`).

        Never if this admission is not `careful`; overdue calls, which are faults already, do not count.
        """
        return self._careful and count > (most := self.breaker.most(now)) and count - len(self.overdue & self.under_way) > most

    def take(self, now: float, calls: int) -> Rejection | None:
        """Take so many calls from the rate; or take none, and return the rejection."""
        if self.rate.take(now, calls):
            return None
        most = self.terms.calls_per_s
        text = f"it has had {most:g} calls a second" if calls == 1 else f"{calls} calls at once, with {most:g} a second"
        return Rejection("calls_per_s", f"{text} (calls_per_s)")

    def leave(self, slot: Hashable) -> None:
        """Free the slot when the call has ended. Idempotent, and needs no lock."""
        self.under_way.discard(slot)

    def cost(self, mb: float, calls: int = 0) -> Cost:
        """Return the cost of `mb` million bytes, and of so many calls: the first attempt of each pays the price per call."""
        terms = self.terms
        usd = mb * terms.usd_per_mb + calls * terms.usd_per_call
        return new(Cost, (usd, mb, mb * terms.joules_per_mb + calls * terms.joules_per_call, calls))

    def attempt(self, cost: Cost, now: float, day: float, *, again: bool = False, probe: bool = False) -> Rejection | None:
        """Book the cost of an attempt about to be made, and return None; or book nothing, and return why it may not be made.

        The spending limits decide. A retry is first checked against the breaker and the calls under way; rate and slot are
        `enter`'s. A rejection is counted for a first attempt only.

        Args:
            cost: cost of the attempt.
            now: monotonic instant, seconds.
            day: the same instant, seconds since 1970.
            again: True for a retry; the breaker may have opened since the first attempt.
            probe: True for a probe, which carries no user data, and is made whatever the state of the breaker.
        """
        rejection = None
        if again and not probe:
            rejection, count = self.breaker.why(now), len(self.under_way)
            if rejection is None and self._unsure(count, now):
                rejection = Rejection("concurrency", f"{_under_way(count)}{UNSURE}")
        rejection = rejection or self.spending.reserve(cost, day)
        if rejection is not None and not (again or probe):
            self.rejected += 1
        return rejection

    def retry(self) -> bool:
        """Take a retry from the budget. Return False if it is empty, or the breaker is not closed.

        A retry waits out the endpoint's Retry-After itself.
        """
        return self.breaker.state == "closed" and self.budget.take()

    def succeeded(self, now: float, took_s: float | None = None, moved: int | None = None) -> bool:
        """Record a success; `took_s`: its latency, if it counts; `moved`: the bytes of its bodies, if known.

        Also closes the breaker, and refills the retry budget; latency, limit and link change only if `took_s` is given.

        Returns:
            True if the breaker was not closed before.
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

    def failed(self, now: float, jitter: float, status: int | None = None) -> bool:
        """Record a fault: lower the adaptive limit, count it in the breaker. Return True if that opened the breaker.

        An HTTP status that is about its request's content is none.
        """
        before = self.breaker.opened
        if self.breaker.forbids_content(status, now):
            return False
        if self.adapted is not None:
            self.adapted.failed(now)
        self.breaker.fault(now, jitter)
        return self.breaker.opened > before

    def usual_s(self) -> float:
        """Return the `USUAL` quantile of latency, seconds; 0 while unknown."""
        return self.usual.quantile(USUAL) or 0.0

    def too_late(self, had_s: float) -> bool:
        """Return True if a timeout after `had_s` seconds is the endpoint's fault: it had at least its usual time."""
        return had_s >= self.usual_s()

    def hold(self, wait_s: float, now: float) -> None:
        """Hold all requests for `wait_s` seconds, as the endpoint requested (Retry-After)."""
        self.breaker.hold(now + wait_s, now)

    def take_probe(self, now: float) -> bool:
        """Return True if a probe is to be sent now; it then counts as in progress, and the breaker as half-open."""
        due = self.breaker.probe_due(now)
        if due:
            self.breaker.probe_begun(now)
        return due

    def probe_ended(self, now: float, jitter: float, *, ok: bool, wait_s: float | None = None) -> None:
        """Record the result of a probe; `wait_s`: seconds of hold that the endpoint requested."""
        if wait_s:
            self.hold(wait_s, now)
        self.breaker.probe_ended(now, ok, jitter)

    def link_up(self, now: float) -> bool:
        """Make a probe due at once if the breaker is open, as the network is back. Return True as `take_probe` does."""
        self.breaker.link_up(now)
        return self.take_probe(now)

    def has_headroom(self, now: float) -> bool:
        """Return True if low-priority calls (audits) may be sent.

        The endpoint is well and not loaded, and half of its rate and of its concurrency is free.
        """
        busy = 2 * len(self.under_way) >= most_under_way(self) or self._unsure(2 * len(self.under_way) + 1, now)
        return not busy and self.load.at(now) <= FROM and self.breaker.allows(now) and not self.rate.spare_in(now)
