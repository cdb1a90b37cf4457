"""Token buckets: never more than the bucket and what has flowed in since."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute.core.endpoint_breaker_and_limits import Rate, RetryBudget

INF = float("inf")


def test_a_retry_is_earned_by_ten_successes():
    """Ten retries are there at first; after that ten successes buy one, and nine do not."""
    budget = RetryBudget()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(9):
        budget.success()
    assert not budget.take()
    budget.success()
    assert budget.take()
    assert not budget.take()


def test_no_more_than_ten_retries_are_saved_up():
    """However many successes came before, ten retries are at hand."""
    budget = RetryBudget()
    for _ in range(500):
        budget.success()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]


@given(st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_ten_and_a_tenth_of_the_successes(asks):
    """Whatever the order, no more retries than 10 + successes / 10, and never more than 10 without a success."""
    budget, successes, taken, in_a_row = RetryBudget(), 0, 0, 0
    for ask in asks:
        if ask:
            granted = budget.take()
            taken, in_a_row = taken + granted, in_a_row + granted
        else:
            budget.success()
            successes, in_a_row = successes + 1, 0
        assert taken <= 10 + successes / 10
        assert in_a_row <= 10


def test_rate():
    """Two a second: two at once, then one each half second, and two again after a pause however long."""
    rate = Rate(2)
    assert [rate.take(100.0) for _ in range(3)] == [True, True, False]
    assert not rate.take(100.49)
    assert rate.take(100.5)
    assert not rate.take(100.5)
    assert [rate.take(900.0) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(("per_s", "burst", "at_once"), [(0.1, None, 1), (3, None, 3), (0.1, 4, 4), (0, None, 1)])
def test_burst(per_s, burst, at_once):
    """At once go the burst, which is a second's calls unless it is given, and at least one."""
    rate = Rate(per_s, burst)
    assert [rate.take(5.0) for _ in range(at_once + 1)] == [True] * at_once + [False]


@pytest.mark.parametrize("burst", [None, 1.0])
def test_no_limit(burst):
    """inf a second is no limit at all, at one instant too."""
    rate = Rate(INF, burst)
    assert all(rate.take(now) for now in [0.0, 0.0, 0.0, 7.0, 7.0, 3.0])


def test_time_going_back_gives_nothing():
    """An instant before the last one brings no tokens and takes none, and neither does the way back up to it."""
    rate = Rate(1, burst=2)
    assert rate.take(100.0)
    assert rate.take(90.0)
    assert not rate.take(50.0)
    assert not rate.take(100.0)
    assert rate.take(101.0)


@given(
    st.floats(0.1, 20.0),
    st.floats(1.0, 8.0),
    st.lists(st.floats(-0.5, 1.0), max_size=100),
)
def test_any_stretch_of_time_has_its_share(per_s, burst, steps):
    """Between any two calls, as many as the burst and the rate allow, though the clock may jitter."""
    rate, now, latest, taken = Rate(per_s, burst), 1000.0, 0.0, []
    for step in steps:
        now += step
        latest = max(latest, now)
        if rate.take(now):
            taken.append(latest)
    for i, first in enumerate(taken):
        for j, last in enumerate(taken[i:], 1):
            assert j <= burst + (last - first) * per_s + 1e-6


def test_what_is_not_urgent_leaves_half():
    """At first it may have one, and with half of the burst gone none, until time has filled it up; without a limit always."""
    rate = Rate(2.0, burst=4.0)
    assert rate.spare_in(0.0) == 0
    assert [rate.take(0.0), rate.take(0.0), rate.spare_in(0.0)] == [True, True, 0]
    assert rate.take(0.0)
    assert rate.spare_in(0.0) == 0.5
    assert rate.spare_in(-1.0) == 0.5, "an earlier instant adds nothing"
    assert rate.spare_in(0.5) == 0
    assert Rate(INF).spare_in(0.0, 1000) == 0


def test_how_long_several_calls_wait():
    """Until the bucket has them all, and half of it is there; more than it ever holds wait for ever."""
    rate = Rate(2.0, burst=4.0)
    assert all(rate.take(0.0) for _ in range(4))
    assert [rate.spare_in(0.0, calls) for calls in (1, 2, 3, 4, 5)] == [1.0, 1.0, 1.5, 2.0, INF]
    slow = Rate(0.5)
    assert slow.take(0.0)
    assert [slow.spare_in(now) for now in (0.0, 1.0, 2.0)] == [2.0, 1.0, 0.0], "half of a burst of one is no call yet"
