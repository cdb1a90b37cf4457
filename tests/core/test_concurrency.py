# ruff: noqa: D102 - a rule is named for what happens
"""The limit of concurrent calls that finds itself: every sequence of events, and a queue that it is to find the size of."""

from __future__ import annotations

from draws import draws
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeroute import Limits
from edgeroute.core.endpoint_breaker_and_limits import FAULT, LEAST, MOST, ROUND, SLOWER, Admission, Concurrency
from edgeroute.core.error_codes_and_texts import Crowded, Rejection
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.core.spending_limits import Spending


class Calls(RuleBasedStateMachine):
    """Calls to an endpoint with `max_concurrent = "auto"`."""

    def __init__(self):
        super().__init__()
        self.rules = Admission(Terms(max_concurrent="auto"), Spending(Limits()))
        self.now, self.slots, self.numbers = 0.0, [], 0

    @property
    def limit(self):
        return self.rules.adapted.limit

    @rule()
    def enter(self):
        busy, self.numbers = len(self.slots), self.numbers + 1
        rejection = self.rules.enter(self.numbers, self.now)
        if rejection is None:
            assert busy < self.rules.adapted.most
            self.slots.append(self.numbers)
        elif rejection.code == "concurrency":
            assert busy >= self.rules.adapted.most
        else:
            assert rejection.code == "breaker"

    @precondition(lambda self: self.slots)
    @rule(took_s=st.floats(0.001, 10))
    def answer(self, took_s):
        before = self.limit
        self.rules.leave(self.slots.pop(0))
        self.rules.succeeded(self.now, took_s, 0)
        assert before * SLOWER - 1e-9 <= max(self.limit, before * SLOWER)
        assert self.limit <= before + 1

    @precondition(lambda self: self.slots)
    @rule()
    def fail(self):
        before = self.limit
        self.rules.leave(self.slots.pop())
        self.rules.failed(self.now, 0.5)
        assert before * FAULT <= max(self.limit, LEAST)
        assert self.limit <= before

    @rule(passed=st.floats(0, 100))
    def wait(self, passed):
        self.now += passed

    @invariant()
    def is_in_bounds(self):
        assert LEAST <= self.limit <= MOST
        assert self.rules.adapted.most >= 1


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=draws(60), stateful_step_count=50)


def test_what_is_over_the_limit_is_told_apart_from_an_endpoint_that_may_be_well():
    """Nobody waits for the first; for the second one waits a turn, as for a number of places. The code is the same."""
    rules = Admission(Terms(max_concurrent="auto"), Spending(Limits()), careful=True)
    assert [rules.enter(slot, 0.0) for slot in range(3)] == [None] * 3
    unknown = rules.enter(3, 0.0)
    assert (unknown.code, type(unknown)) == ("concurrency", Crowded), "nothing is known yet"
    rules.succeeded(0.0, 0.1)
    assert [rules.enter(slot, 1.0) for slot in range(3, 8)] == [None] * 5
    full = rules.enter(8, 1.0)
    assert (full.code, type(full)) == ("concurrency", Rejection), "the limit"
    rules.under_way -= {3, 4, 5, 6, 7}
    assert isinstance(rules.enter(9, 100.0), Crowded), "it has been idle"


def served(servers, rounds=400, each_s=0.1, most=MOST):
    """The limit after callers that always use it have asked an endpoint that answers so many calls at a time."""
    limit = Concurrency()
    for _ in range(rounds):
        busy = min(limit.most, most)
        for _ in range(max(ROUND, limit.most)):
            limit.succeeded(each_s * max(1.0, busy / servers), int(busy))
    return limit.limit


def test_it_grows_to_what_is_answered_without_waiting():
    assert served(servers=1000) == MOST
    assert 10 <= served(servers=8) <= 17, "twice its servers is twice the time"
    assert 2 <= served(servers=2) <= 6


def test_what_is_not_used_does_not_grow():
    limit = Concurrency()
    for _ in range(1000):
        limit.succeeded(0.1, 1)
    assert limit.limit == 8


def test_faults_of_one_moment_count_once_and_it_comes_back():
    limit = Concurrency()
    for _ in range(50):
        limit.failed(10.0)
    assert limit.limit == 4
    limit.failed(11.0)
    limit.failed(12.0)
    limit.failed(13.0)
    assert limit.limit == LEAST
    for _ in range(64 * 64):
        limit.succeeded(0.1, limit.most)
    assert limit.limit == MOST


def test_one_slow_answer_says_nothing_and_a_slower_link_is_the_new_base():
    limit = Concurrency()
    for i in range(8 * 40):
        limit.succeeded(5.0 if i % 8 == 0 else 0.1, 8)
    while limit.most < int(limit.limit):  # the base is being measured
        limit.succeeded(0.1, limit.most)
    grown = limit.limit
    assert grown > 8
    lowest = grown
    for _ in range(64 * 32):
        limit.succeeded(1.0, limit.most)
        lowest = min(lowest, limit.limit)
    assert lowest < grown
    for _ in range(64 * 64):
        limit.succeeded(1.0, limit.most)
    assert limit.limit == MOST
