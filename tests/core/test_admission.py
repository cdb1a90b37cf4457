# ruff: noqa: D102 - a rule is named for what happens
"""What stands before one endpoint: by example, and every sequence of events against a list of what happened."""

from __future__ import annotations

from itertools import count, pairwise, product

import pytest
from draws import draws
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeroute import BadInput, BadReply, Held, Limits, Refused, TimedOut, Unreachable
from edgeroute.core.endpoint_breaker_and_limits import ALLOWED_S, FAULTS, FIRST_S, LEAST, Admission, behind, price
from edgeroute.core.error_codes_and_texts import HELD, INPUTS_OWN, Coded, Crowded, Failure, may_succeed_again
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.core.spending_limits import Spending, Tokens

INF = float("inf")
DAY = 1_700_000_040.0


def admission(terms=None, limits=None):
    return Admission(terms or Terms(), Spending(limits or Limits()))


# codes


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (Unreachable("away"), ("unreachable", None, False)),
        (TimedOut("late"), ("timeout", None, False)),
        (Refused("busy", status=503), ("refused", 503, False)),
        (BadReply("HTML"), ("bad_reply", None, False)),
        (Held("no"), ("other", None, False)),
        (Held("no", code="consent"), ("consent", None, False)),
        (Held("not again", code="breaker", again=True), ("breaker", None, True)),
        (BadInput("not a picture"), ("bad_input", None, False)),
        (TimeoutError("a function's own"), ("timeout", None, False)),
        (ValueError("a function's own"), ("", None, False)),
        (None, ("", None, False)),
    ],
)
def test_an_error_has_a_code(error, failure):
    """Its own; what a function raises has none, whatever attributes it has."""
    assert Failure.of(error) == failure
    foreign = ValueError("a function's own")
    foreign.code, foreign.status = "breaker", 503
    assert Failure.of(foreign) == Failure()


def test_what_a_code_means():
    """Held are those that were not asked at all; retriable is what may pass; the input's own is an answer."""
    assert Coded.code == ""
    assert all(Failure(code).held and not Failure(code, again=True).held for code in HELD)
    assert not any(Failure(code).held for code in ("", "bad_input", "unreachable", "timeout", "refused", "bad_reply"))
    assert Failure("unreachable").retriable
    assert not any(Failure(code).retriable for code in ("", "timeout", "bad_reply", "breaker"))
    assert all(Failure(code).of_the_input for code in ("bad_input", "context", "unsupported"))
    assert not any(
        Failure(code).of_the_input for code in ("", "busy", "unreachable", "timeout", "refused", "bad_reply", "consent")
    )
    for status in (200, 400, 401, 408, 422, 429, 500, 503):
        failure = Failure("refused", status)
        assert (failure.retriable, failure.of_the_input) == (may_succeed_again(status), status in INPUTS_OWN)
    assert [status for status in range(200, 600) if may_succeed_again(status)] == [408, 429, *range(500, 600)]


@pytest.mark.parametrize(
    ("failure", "how", "verdict"),
    [
        (Failure("unreachable"), {}, "fault"),
        (Failure(), {}, "fault"),
        (Failure("refused", 503), {}, "fault"),
        (Failure("refused", 422), {}, "answered"),
        (Failure("refused", 422), {"cut": True, "in_time": True}, "answered"),
        (Failure("timeout"), {}, "late"),
        (Failure("bad_reply"), {}, "nothing"),
        (Failure("bad_input"), {}, "nothing"),
        (Failure("bad_input"), {"cut": True}, "nothing"),
        (Failure("context"), {}, "nothing"),
        (Failure("unsupported"), {}, "nothing"),
        (Failure("busy"), {}, "fault"),
        (Failure("consent"), {}, "nothing"),
        (Failure("breaker", again=True), {}, "fault"),
        (Failure("unreachable"), {"stale": True}, "nothing"),
        (Failure("unreachable"), {"stale": True, "cut": True}, "late"),
        (Failure("unreachable"), {"cut": True}, "late"),
        (Failure("unreachable"), {"cut": True, "in_time": True}, "nothing"),
        (Failure("timeout"), {"in_time": True}, "late"),
    ],
)
def test_what_the_end_of_an_attempt_says(failure, how, verdict):
    """Of the endpoint: it answered, it is at fault, it may have been too slow, or nothing."""
    assert failure.verdict(**how) == verdict


# by example


@pytest.mark.parametrize(
    ("status", "succeeded", "at", "opens"),
    [(403, True, ALLOWED_S - 1, False), (403, True, ALLOWED_S, True), (403, False, 1.0, True), (401, True, 1.0, True)],
)
def test_what_is_forbidden_to_some(status, succeeded, at, opens):
    """403 is about a request's content for a while after a success; without one, or as 401, it is about all."""
    rules = admission(Terms())
    if succeeded:
        rules.succeeded(0.0)
    assert [rules.failed(at, 0.5, status) for _ in range(FAULTS)] == [False] * (FAULTS - 1) + [opens]
    assert rules.breaker.faults == (FAULTS if opens else 0)


def test_each_limit_has_its_code():
    """Whoever is not let through learns which rule it was, and nothing was taken for it."""
    rules = admission(Terms(max_concurrent=1, calls_per_s=2))
    assert rules.enter("a", 0.0) is None
    assert rules.enter("b", 0.0) == ("max_concurrent", "1 call is under way (max_concurrent)")
    rules.leave("a")
    assert rules.enter("b", 0.0) is None
    rules.leave("b")
    assert rules.enter("c", 0.0) == ("calls_per_s", "it has had 2 calls a second (calls_per_s)")
    rules.hold(10.0, 0.0)
    assert rules.enter("c", 1.0).code == rules.why(1.0).code == "retry_after"
    for _ in range(FAULTS):
        rules.failed(1.0, 0.5)
    assert rules.enter("c", 1.0).code == rules.why(1.0).code == "breaker"
    assert (rules.rejected, rules.under_way) == (4, set())
    limited = admission(Terms(usd_per_call=2.0, calls_per_s=2), Limits(usd_per_day=1.0))
    for slot in range(5):  # whose calls are given back to the rate, so the reason stays the money
        assert limited.enter(slot, 0.0) is None
        assert limited.attempt(limited.cost(0.0, 1), 0.0, DAY).code == "usd_per_day"
        limited.leave(slot)
        limited.rate.give_back(1)
    assert limited.rejected == 5


def test_a_batch_is_several_calls():
    """In the rate, all or none; and in the price, once for each."""
    rules = admission(Terms(calls_per_s=5, usd_per_call=0.5, joules_per_call=2.0))
    assert rules.enter("a", 0.0, 6) == ("calls_per_s", "6 calls at once, with 5 a second (calls_per_s)")
    assert rules.enter("a", 0.0, 4) is None
    assert rules.take(0.0, 1) is None
    assert rules.take(0.0, 1).code == "calls_per_s"
    assert rules.cost(0.0, 3) == (1.5, 0.0, 6.0, 3)
    assert rules.cost(1.0) == (0.0, 1.0, 0.0, 0)


@pytest.mark.parametrize(
    ("most", "well", "code", "text"),
    [
        (1, False, "max_concurrent", " (max_concurrent)"),
        (64, True, "max_concurrent", " (max_concurrent)"),
        (64, False, "concurrency", ""),
        ("auto", False, "concurrency", ""),
    ],
)
def test_who_comes_behind_others_is_told_whose_limit_they_wait_for(most, well, code, text):
    """The policy's number, or that it is not known whether the endpoint is well."""
    rules = Admission(Terms(max_concurrent=most), Spending(Limits()), careful=True)
    if well:
        rules.succeeded(0.0)
    assert behind(rules, 0.0) == Crowded(code, f"others wait for their turn{text}")
    while rules.enter(object(), 0.0) is None:
        pass
    assert (behind(rules, 0.0).code, behind(rules, 0.0)) == (code, rules.crowded(0.0))


def test_an_endpoint_that_is_not_known_to_be_well_has_few_calls_under_way():
    """Three less its faults; once it has answered as many as may be, until it fails, or for a minute."""
    rules = Admission(Terms(), Spending(Limits()), careful=True)
    assert [rules.enter(slot, 0.0) is None for slot in "abcd"] == [True, True, True, False]
    assert rules.why(0.0) is None
    assert rules.crowded(0.0) == ("concurrency", "3 calls are under way, and more may be only once it has answered")
    rules.succeeded(0.0)
    assert [rules.enter(slot, 1.0) is None for slot in "defg"] == [True] * 4
    assert rules.crowded(59.9) is None
    assert rules.crowded(60.0) is not None
    assert rules.attempt(rules.cost(0.0), 1.0, DAY, again=True) is None
    rules.failed(1.0, 1.0)
    assert rules.attempt(rules.cost(0.0), 1.0, DAY, again=True).code == "concurrency"
    for slot in "abcdef":
        rules.leave(slot)
    assert rules.attempt(rules.cost(0.0), 1.0, DAY, again=True) is None
    assert rules.enter("h", 1.0) is None
    assert rules.enter("i", 1.0).code == "concurrency"
    assert not rules.has_headroom(1.0)
    rules.overdue.add("h")
    assert rules.enter("i", 1.0) is None, "one that is counted as a fault does not count twice"


PROBE_S, TIMEOUT_S = 5.0, 0.15


@pytest.mark.slow
@pytest.mark.parametrize("used", [False, True], ids=["not in use", "in use"])
@pytest.mark.parametrize(("callers", "jitter"), [*product([1, 16], [0.0, 0.5, 1.0]), (200, 0.5)])
def test_what_an_outage_of_ten_minutes_costs(callers, used, jitter):
    """Three attempts with user data, or those under way when the first failed; one probe at a time, and eight of them at most.

    The endpoint is silent, and every caller asks ten times a second.
    """
    rules = Admission(Terms(), Spending(Limits()), careful=True)
    if used:
        rules.succeeded(0.0)
    attempts, probes, ends, probe_ends = [], [], {}, None
    for step in range(1, 6001):
        now = step / 10
        for slot in [slot for slot, at in ends.items() if at <= now]:
            rules.failed(now, jitter)
            rules.leave(slot)
            del ends[slot]
        if probe_ends is not None and probe_ends <= now:
            rules.probe_ended(now, jitter, ok=False)
            probe_ends = None
        for caller in range(callers):
            if rules.enter((step, caller), now) is None:
                attempts.append(now)
                ends[step, caller] = now + TIMEOUT_S
            elif rules.take_probe(now):
                probes.append(now)
                assert probe_ends is None, "one at a time"
                probe_ends = now + PROBE_S
    assert len(attempts) <= (3 if not used else max(3, min(2 * callers, rules.terms.max_concurrent)))
    assert len(probes) <= 8
    assert [b - a > min(2.5 * 2**n, 150.0) for n, (a, b) in enumerate(pairwise(probes), 1)] == [True] * (len(probes) - 1)


def test_a_slot_is_given_back_once():
    """However often it leaves, and whoever else has come meanwhile."""
    rules = admission(Terms(max_concurrent=2))
    assert rules.enter("a", 0.0) is None
    for _ in range(3):
        rules.leave("a")
    assert [rules.enter(slot, 0.0) is None for slot in "bcd"] == [True, True, False]


def test_an_attempt_again_is_held_by_the_breaker_alone_and_a_probe_by_neither():
    """A probe pays for its bytes, and counts as no request that was held."""
    rules = admission(Terms(usd_per_call=1.0, usd_per_mb=1.0), Limits(usd_per_day=1.5, mb_per_day=1.0))
    assert rules.attempt(rules.cost(0.1, 1), 0.0, DAY) is None
    rules.hold(10.0, 0.0)
    assert rules.attempt(rules.cost(0.1), 1.0, DAY, again=True).code == "retry_after"
    assert rules.attempt(rules.cost(0.1), 1.0, DAY, again=True, probe=True) is None
    assert rules.attempt(rules.cost(2.0), 1.0, DAY, probe=True).code == "usd_per_day"
    assert tuple(rules.spending.spent(DAY)) == pytest.approx((1.2, 0.2, 0.0, 1))
    assert rules.rejected == 0


def test_less_time_than_usual_is_no_fault():
    """While nothing is known any time is enough; then what nine in ten answers keep to."""
    rules = admission()
    assert (rules.usual_s(), rules.too_late(0.0)) == (0.0, True)
    for took_s in [0.1] * 19 + [5.0]:
        rules.succeeded(0.0, took_s)
    assert [rules.too_late(had_s) for had_s in (0.05, 0.2)] == [False, True]


def test_headroom_is_half_of_everything():
    """Of the calls at a time, and of those of a second; and it is well."""
    rules = admission(Terms(max_concurrent=4, calls_per_s=4))
    said = [rules.has_headroom(0.0)]
    for slot in range(2):
        assert rules.enter(slot, 0.0) is None
        said.append(rules.has_headroom(0.0))
    assert said == [True, True, False]
    for slot in range(2):
        rules.leave(slot)
    assert rules.has_headroom(0.0)
    assert rules.enter(2, 0.0) is None
    rules.leave(2)
    assert [rules.has_headroom(now) for now in (0.0, 0.25)] == [False, True]
    rules.hold(10.0, 0.25)
    assert not rules.has_headroom(1.0)


def test_tokens_have_two_prices():
    """In dollars for a million."""
    terms = Terms(usd_per_million_input_tokens=2.0, usd_per_million_output_tokens=8.0)
    assert price(terms, Tokens(500_000, 250_000)) == pytest.approx(3.0)


def test_an_outage_from_its_first_fault_to_the_probe_that_ends_it():
    """Retries stop, one probe at a time is sent, a hold of its reply moves the next, and a link that is back brings it forward."""
    rules = admission(Terms(max_concurrent="auto"))
    rules.succeeded(0.0, 0.1)
    assert rules.retry()
    assert [rules.failed(now, 1.0) for now in range(FAULTS)] == [False] * (FAULTS - 1) + [True]
    assert rules.adapted.limit >= LEAST
    assert not rules.retry()
    assert [rules.take_probe(now) for now in (FAULTS, FAULTS + FIRST_S, FAULTS + FIRST_S)] == [False, True, False]
    now = FAULTS + FIRST_S + 1.0
    rules.probe_ended(now, 1.0, ok=False, wait_s=10.0)
    assert [rules.link_up(now + 1.0), rules.link_up(now + 11.0)] == [False, True]
    rules.probe_ended(now + 12.0, 1.0, ok=True)
    assert rules.state == "closed"
    assert not rules.succeeded(now + 13.0, 0.1, 1000)
    assert rules.link.count == 1


# any order

JITTERS = st.sampled_from([0.0, 0.25, 1.0])
SIZES = st.sampled_from([0.0, 0.1, 0.4])
PICKS = st.integers(0, 2)
WAITS = st.sampled_from([0.0, 2.0, 50.0, 1e6])


class Against(RuleBasedStateMachine):
    """Requests, probes and news in any order. The model is a record of what happened, from which all that holds is computed anew."""

    @initialize(
        most=st.integers(1, 3),
        per_s=st.sampled_from([1.0, 5.0, INF]),
        usd=st.sampled_from([3.0, INF]),
        mb=st.sampled_from([1.0, INF]),
    )
    def begin(self, most, per_s, usd, mb):
        terms = Terms(
            usd_per_call=0.5, usd_per_mb=1.0, joules_per_call=2.0, joules_per_mb=3.0, calls_per_s=per_s, max_concurrent=most
        )
        self.limits = Limits(usd_per_day=usd, mb_per_day=mb)
        self.rules, self.terms = Admission(terms, Spending(self.limits)), terms
        self.now, self.numbers = 1000.0, count()
        self.here: dict[int, dict[str, object]] = {}
        self.rejected = 0
        self.state, self.trips = "closed", 0
        self.faults = self.growth = 0
        self.due = self.held = -INF
        self.probes: list[float] = []
        self.tokens, self.budget, self.at = max(1.0, per_s), 100, 0.0
        self.usd = self.mb = self.joules = 0.0
        self.took: list[float] = []

    # the model

    def allowed(self):
        return self.state == "closed" and self.now >= self.held

    def code(self):
        return None if self.allowed() else "retry_after" if self.state == "closed" else "breaker"

    def trip(self, jitter):
        self.state, self.due = "open", self.now + min(300.0, 5.0 * 2**self.growth) * (1 + jitter) / 2
        self.growth += 1

    def fault(self, jitter):
        before = self.trips
        if self.state == "closed":
            self.faults += 1
            if self.faults >= 3:
                self.trips += 1
                self.trip(jitter)
        assert self.rules.failed(self.now, jitter) == (self.trips > before)

    def answer(self, took_s):
        away = self.state != "closed"
        self.state, self.faults, self.growth, self.budget = "closed", 0, 0, min(100, self.budget + 1)
        self.took += [] if took_s is None else [took_s]
        assert self.rules.succeeded(self.now, took_s) == away

    def late(self, had_s):
        """Whether no answer after so long is a fault; near what nine in ten answers took, the sketch may say either."""
        took, ninth = sorted(self.took), 9 * len(self.took) // 10
        least, most = (took[max(0, ninth - 2)], took[min(len(took) - 1, ninth + 1)]) if took else (0.0, 0.0)
        late = self.rules.too_late(had_s)
        assert late or had_s <= most * 1.03
        assert not late or had_s >= least * 0.97
        return late

    def probing(self, begun):
        due = self.now >= self.held and (
            (self.state == "open" and self.now >= self.due) or (self.state == "half-open" and self.now - self.probes[-1] >= 60.0)
        )
        assert begun == due
        if due:
            self.state = "half-open"
            self.probes.append(self.now)

    def holds(self, wait_s):
        self.held = max(self.held, self.now + min(wait_s, 300.0))

    def pay(self, mb, first):
        usd = mb * 1.0 + 0.5 * first
        if (usd and self.usd + usd > self.limits.usd_per_day + 1e-6) or (mb and self.mb + mb > self.limits.mb_per_day + 1e-6):
            return False
        self.usd, self.mb, self.joules = self.usd + usd, self.mb + mb, self.joules + 3 * mb + 2 * first
        return True

    # what happens

    @rule(dt=st.sampled_from([0.25, 1.0, 5.0, 60.0, 400.0]))
    def time_passes(self, dt):
        self.now += dt

    @rule()
    def request(self):
        slot, expected = next(self.numbers), self.code()
        if expected is None and len(self.here) >= self.terms.max_concurrent:
            expected = "max_concurrent"
        if expected is None:
            per_s = self.terms.calls_per_s
            self.tokens = min(max(1.0, per_s), self.tokens + (self.now - self.at) * per_s) if self.now > self.at else self.tokens
            self.at = self.now
            if self.tokens < 1:
                expected = "calls_per_s"
            else:
                self.tokens -= 1
        rejection = self.rules.enter(slot, self.now)
        assert (None if rejection is None else rejection.code) == expected
        if rejection is not None:
            self.rejected += 1
            self.probing(self.rules.take_probe(self.now))
        else:
            self.here[slot] = {"attempts": 0, "begun": None}

    def idle(self):
        return [call for call in self.here.values() if call["begun"] is None]

    def asking(self):
        return [call for call in self.here.values() if call["begun"] is not None]

    @precondition(lambda self: self.idle())
    @rule(which=PICKS, mb=SIZES)
    def attempt(self, which, mb):
        call = self.idle()[which % len(self.idle())]
        again = call["attempts"] > 0
        expected = self.code() if again else None
        expected = expected or (None if self.pay(mb, not again) else "limit")
        rejection = self.rules.attempt(self.rules.cost(mb, int(not again)), self.now, DAY, again=again)
        if rejection is None:
            assert expected is None
            call["begun"], call["attempts"] = self.now, call["attempts"] + 1
        else:
            self.rejected += not again
            assert ("limit" if rejection.code in {"usd_per_day", "mb_per_day"} else rejection.code) == expected

    @precondition(lambda self: self.asking())
    @rule(
        which=PICKS,
        failure=st.sampled_from(["away", "busy", "slow", "yours", "unread", "unfit"]),
        cut=st.booleans(),
        in_time=st.booleans(),
        jitter=JITTERS,
        wait_s=WAITS,
    )
    def fails(self, which, failure, cut, in_time, jitter, wait_s):
        call = self.asking()[which % len(self.asking())]
        had_s, call["begun"] = self.now - call["begun"], None
        kind = {
            "away": Failure("unreachable"), "busy": Failure("refused", 503), "slow": Failure("timeout"),
            "yours": Failure("refused", 422), "unread": Failure("bad_reply"), "unfit": Failure("bad_input"),
        }[failure]  # fmt: skip
        verdict = kind.verdict(cut=cut, in_time=in_time)
        if failure == "yours":
            assert verdict == "answered"
            self.answer(None)
            return
        if failure == "busy" and wait_s:
            self.holds(wait_s)
            self.rules.hold(wait_s, self.now)
        fault = failure not in {"unread", "unfit"} and not (cut and in_time)
        if fault and (cut or failure == "slow"):
            assert verdict == "late"
            fault = self.late(had_s)
        else:
            assert verdict == ("fault" if fault else "nothing")
        if fault:
            self.fault(jitter)

    @rule(times=st.integers(1, 4), jitter=JITTERS)
    def requests_fail(self, times, jitter):
        for _ in range(times):
            self.fault(jitter)

    @precondition(lambda self: self.asking())
    @rule(which=PICKS, mb=SIZES)
    def answers(self, which, mb):
        call = self.asking()[which % len(self.asking())]
        took_s, call["begun"] = self.now - call["begun"], None
        self.rules.spending.add(self.rules.cost(mb), DAY)
        self.usd, self.mb, self.joules = self.usd + mb, self.mb + mb, self.joules + 3 * mb
        self.answer(took_s)

    @rule(times=st.integers(1, 12), took_s=st.sampled_from([0.1, 1.0, 30.0]))
    def requests_are_answered(self, times, took_s):
        for _ in range(times):
            self.answer(took_s)

    @precondition(lambda self: self.took)
    @rule(had_s=st.sampled_from([0.05, 0.5, 10.0]))
    def an_answer_is_missed(self, had_s):
        self.late(had_s)

    @rule(times=st.integers(1, 12))
    def retries(self, times):
        for _ in range(times):
            may = self.state == "closed" and self.budget >= 10
            self.budget -= 10 * may
            assert self.rules.retry() == may

    @precondition(lambda self: self.here)
    @rule(which=PICKS, times=st.integers(1, 2))
    def ends(self, which, times):
        slot = [*self.here][which % len(self.here)]
        del self.here[slot]
        for _ in range(times):
            self.rules.leave(slot)

    @rule(jitter=JITTERS, ok=st.booleans(), wait_s=st.none() | WAITS)
    def a_probe_ends(self, jitter, ok, wait_s):
        if wait_s:
            self.holds(wait_s)
        if self.state == "half-open":
            if ok:
                self.state = "closed"
            else:
                self.trip(jitter)
        self.rules.probe_ended(self.now, jitter, ok=ok, wait_s=wait_s)

    @rule(wait_s=WAITS)
    def asks_for_peace(self, wait_s):
        self.holds(wait_s)
        self.rules.hold(wait_s, self.now)

    @rule()
    def the_link_comes_up(self):
        self.growth = 0
        if self.state == "open":
            self.due = self.now
        self.probing(self.rules.link_up(self.now))

    @precondition(lambda self: self.state != "closed")
    @rule()
    def somebody_looks(self):
        self.probing(self.rules.take_probe(self.now))

    @invariant()
    def agrees(self):
        if not hasattr(self, "rules"):
            return
        rules = self.rules
        why = rules.why(self.now)
        assert (None if why is None else why.code) == self.code()
        assert (rules.state, rules.breaker.opened, rules.rejected) == (self.state, self.trips, self.rejected)
        assert rules.under_way == self.here.keys()
        assert len(self.here) <= self.terms.max_concurrent
        usd, mb, joules, _ = rules.spending.spent(DAY)
        assert (usd, mb, joules) == pytest.approx((self.usd, self.mb, self.joules))
        free = self.tokens + max(0.0, self.now - self.at) * self.terms.calls_per_s >= max(1.0, self.terms.calls_per_s / 2)
        free = free or self.terms.calls_per_s == INF
        assert rules.has_headroom(self.now) == (self.allowed() and free and 2 * len(self.here) < self.terms.max_concurrent)


TestAgainstAModel = Against.TestCase
TestAgainstAModel.settings = settings(max_examples=draws(200), stateful_step_count=50, deadline=None)
