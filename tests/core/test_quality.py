"""Quality ladders: which encoding is picked by the time that each is predicted to take, and what predicts it."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from edgeroute.core.performance_estimates_and_encoding_choice import (
    FEWEST_TRANSFERS,
    LADDER_SHARE,
    LEAST,
    MOST_TRANSFERS,
    Ceiling,
    Link,
    pick,
    seconds,
)

TIMES = st.lists(st.floats(0, 1e4) | st.just(math.inf) | st.just(math.nan), min_size=1, max_size=6)
LEFT = st.floats(-10, 1e4) | st.sampled_from([math.inf, -math.inf])
SIZES = st.lists(st.floats(1, 1e8), min_size=1, max_size=6)
SPEEDS = st.floats(1, 1e9)


@given(TIMES, LEFT, st.integers(0, 6))
def test_what_does_not_fit_is_not_picked_where_a_lower_one_does(took_s, left_s, best):
    """And of those that fit, and are not better than the best that is tried, it is the best; where none does, the last."""
    i = pick(took_s, left_s, best)
    fit = [n for n, one in enumerate(took_s) if one <= LADDER_SHARE * left_s and n >= best]
    assert i == (fit[0] if fit else len(took_s) - 1)
    assert took_s[i] <= LADDER_SHARE * left_s or not fit


@given(SIZES, st.floats(0, 10), SPEEDS, SPEEDS, LEFT)
@example([100.0, 10.0], 0.0, 10.0, 100.0, 1.3)
def test_a_faster_link_never_picks_a_lower_one(sizes, call_s, one, other, left_s):
    """Monotone in bandwidth."""
    slow, fast = sorted([one, other])
    at = [pick([seconds(size, call_s, speed) for size in sizes], left_s) for speed in (slow, fast)]
    assert at[1] <= at[0]


@given(TIMES, LEFT, LEFT)
def test_more_time_never_picks_a_lower_one(took_s, one, other):
    """Monotone in what is left before the deadline."""
    less, more = sorted([one, other])
    assert pick(took_s, more) <= pick(took_s, less)


def test_the_ends():
    """Without a deadline the best, though nothing is known; as certificates have it the last, though everything fits."""
    assert pick([math.inf, math.inf], math.inf) == 0
    assert pick([0.0, 0.0], -math.inf) == 1
    assert pick([math.nan, 0.0], math.inf) == 1
    assert pick([0.0, 0.0], 0.0) == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=400))
def test_what_was_late_is_not_tried_at_once_again(calls):
    """Below the last one that was late, until several in a row were in time; and in the end the best is tried again."""
    ceiling = Ceiling()
    for i, late in calls:
        before = ceiling.best
        ceiling.record_call(i, late=late)
        assert ceiling.best > i if late else before - 1 <= ceiling.best <= before
        assert 0 <= ceiling.best <= 5
    for _ in range(5 * MOST_TRANSFERS):
        ceiling.record_call(0, late=False)
    assert ceiling.best == 0


def test_a_better_one_is_tried_more_and_more_rarely():
    """While it is late each time."""
    ceiling, between = Ceiling(), []
    for _ in range(6):
        ceiling.record_call(0, late=True)
        count = 0
        while ceiling.best:
            ceiling.record_call(1, late=False)
            count += 1
        between.append(count)
    assert between == [
        2 * FEWEST_TRANSFERS,
        4 * FEWEST_TRANSFERS,
        8 * FEWEST_TRANSFERS,
        MOST_TRANSFERS,
        MOST_TRANSFERS,
        MOST_TRANSFERS,
    ]
    for _ in range(FEWEST_TRANSFERS):
        ceiling.record_call(0, late=False)
    ceiling.record_call(0, late=True)
    for _ in range(2 * FEWEST_TRANSFERS):
        assert ceiling.best
        ceiling.record_call(1, late=False)
    assert not ceiling.best


def test_a_call_that_is_late_below_the_best_lowers_it_no_further():
    """Such an encoding was given up already."""
    ceiling = Ceiling()
    for i in (3, 1):
        ceiling.record_call(i, late=True)
        assert ceiling.best == 4


def test_before_a_bandwidth_is_known_a_call_is_predicted_to_be_all_bytes():
    """That is too long rather than too short, and never shorter than calls are."""
    link = Link()
    assert link.predicted_s(0) == link.predicted_s(1e9) == math.inf
    for _ in range(2 * LEAST):
        link.add(1000, 0.5)
    assert link.bytes_per_s is None
    assert link.predicted_s(10) == link.predicted_s(1000) == 0.5
    assert link.predicted_s(4000) == 2.0


@given(st.floats(0, 2), SPEEDS, st.floats(1, 1e7))
def test_what_is_predicted_is_what_calls_take(call_s, speed, size):
    """Once calls of different sizes are known."""
    link = Link()
    for n in range(2 * LEAST):
        link.add(1000 * (n % 4 + 1), seconds(1000 * (n % 4 + 1), call_s, speed))
    known = link.bytes_per_s
    took = link.predicted_s(size)
    assert took >= 0
    if known is not None:
        assert math.isclose(took, seconds(size, call_s, speed), rel_tol=1e-3, abs_tol=1e-3)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 100)), max_size=40), st.floats(0, 1e8))
def test_a_prediction_is_a_time_whatever_calls_took(calls, size):
    """No NaN and nothing below 0, and more bytes take no less."""
    link = Link()
    for moved, took in calls:
        link.add(moved, took)
    assert 0 <= link.predicted_s(size) <= link.predicted_s(2 * size)
