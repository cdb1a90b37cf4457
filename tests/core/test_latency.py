"""The latency sketch against exact quantiles."""

from __future__ import annotations

import json

import numpy as np
import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute.core import performance_estimates_and_encoding_choice as estimates
from edgeroute.core.performance_estimates_and_encoding_choice import ERROR, Latency


def filled(values) -> Latency:
    sketch = Latency()
    for value in values:
        sketch.add(value)
    return sketch


@settings(max_examples=draws(200), deadline=None)
@given(st.lists(st.floats(2e-6, 900.0), min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_quantiles_are_within_the_stated_error(values, q):
    """With fewer values than the half-life, a quantile lies within 2 % of one of the two exact ones around it."""
    got, exact = filled(values).quantile(q), np.sort(values)
    near = q * len(values)
    around = exact[max(0, int(near) - 3) : int(near) + 3]
    assert min(abs(got - value) / value for value in around) <= ERROR + 1e-9


def test_a_known_distribution():
    """Quantiles of 10,000 exponential latencies come out within 2 % and sampling."""
    values = np.random.default_rng(1).exponential(0.05, 800)
    sketch = filled(values)
    for q in (0.5, 0.9, 0.99):
        assert sketch.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.12)


def test_nothing_is_known_before_the_first():
    """An empty sketch has no quantile."""
    assert Latency().quantile(0.5) is None


def test_it_forgets():
    """After a few half-lives the old regime is gone from the median and from the 99 % quantile."""
    sketch = filled([1.0] * 2000 + [0.01] * 8000)
    assert sketch.quantile(0.5) == pytest.approx(0.01, rel=ERROR)
    assert sketch.quantile(0.99) == pytest.approx(0.01, rel=ERROR)
    assert sketch.count == 10_000


def test_extremes_are_counted_at_the_ends():
    """Zero, negative and absurd values do not break it."""
    sketch = filled([0.0, -1.0, 1e9])
    assert sketch.quantile(0.0) == pytest.approx(estimates.LOWEST_S, rel=0.05)
    assert sketch.quantile(1.0) == pytest.approx(estimates.HIGHEST_S, rel=0.1)


def test_weights_are_rescaled_long_before_they_overflow():
    """Half a million values later it still answers."""
    sketch = filled([0.02] * 400_000)
    assert sketch.quantile(0.5) == pytest.approx(0.02, rel=ERROR)


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_value_survives_rounding(seed):
    """The 100 % quantile is the largest value, though the weights do not add up to their total to the last bit."""
    values = np.random.default_rng(seed).exponential(0.05, 300)
    assert filled(values).quantile(1.0) == pytest.approx(values.max(), rel=ERROR + 1e-9)


@settings(max_examples=draws(200), deadline=None)
@given(st.lists(st.floats(2e-6, 900.0), min_size=1, max_size=60), st.floats(2e-6, 900.0))
def test_the_share_above(values, seconds):
    """It lies between the shares above a little more and a little less, by the error of the sketch."""
    share, values = filled(values).share_above(seconds), np.array(values)
    decay = len(values) / estimates.HALF_LIFE  # a value counts up to so much less than another
    most, least = (np.mean(values > seconds * by) for by in (1 - 2 * ERROR, 1 + 2 * ERROR))
    assert least - decay <= share <= most + decay


@given(st.lists(st.floats(1e-7, 2_000.0), min_size=1, max_size=20), st.floats(0.0, 1e3), st.floats(1.0, 1.1))
def test_the_share_above_only_falls(values, seconds, by):
    """No share above a longer time is greater."""
    sketch = filled(values)
    assert sketch.share_above(seconds * by) <= sketch.share_above(seconds) + 1e-9


def test_the_share_above_the_ends():
    """All but the shortest are longer than nothing, none is longer than the longest, and before the first it is unknown."""
    sketch = filled([0.1, 1.0, 10.0, 5_000.0])
    assert sketch.share_above(0.0) == sketch.share_above(-1.0) == pytest.approx(1.0)
    assert sketch.share_above(float("inf")) == 0.0
    assert sketch.share_above(0.3) == pytest.approx(0.75, abs=0.01)
    assert Latency().share_above(0.1) is None


def test_a_constant_latency_is_above_what_is_just_shorter():
    """The share falls evenly within the bucket, so that a latency just over a deadline does not look like one under it."""
    sketch = filled([0.05] * 100)
    assert sketch.share_above(0.05 * (1 - 2.1 * ERROR)) == pytest.approx(1.0)
    assert sketch.share_above(0.05 * (1 + 2.1 * ERROR)) == pytest.approx(0.0)
    assert 0.0 < sketch.share_above(0.05) < 1.0


def test_a_copy_goes_its_own_way():
    """What is added to the one is not added to the other."""
    sketch = filled([0.01] * 100)
    other, before = sketch.copy(), sketch.dump()
    for _ in range(500):
        sketch.add(1.0)
    assert other.dump() == before
    assert (sketch.count, sketch.quantile(0.5)) == (600, pytest.approx(1.0, rel=ERROR))


@settings(max_examples=draws(100), deadline=None)
@given(st.lists(st.floats(0.0, 2_000.0), max_size=60), st.lists(st.floats(1e-5, 10.0), max_size=10))
def test_it_survives_a_restart(values, newer):
    """Through JSON and back it knows the same, and weighs newer values the same against the old ones."""
    sketch = filled(values)
    other = Latency.load(json.loads(json.dumps(sketch.dump())))
    for value in newer:
        sketch.add(value)
        other.add(value)
    assert other.count == sketch.count
    before, after = ([number for pair in one.dump()["values"] for number in pair] for one in (sketch, other))
    assert after == pytest.approx(before)


def test_a_sketch_is_the_same_after_a_restart():
    """By example."""
    again = Latency.load(json.loads(json.dumps(filled([0.1, 0.2]).dump())))
    assert (again.count, again.quantile(1.0)) == (2, pytest.approx(0.2, rel=ERROR))


NO_DUMPS = [
    None, 3, [], {}, {"count": 1}, {"values": [[0.1, 1.0]]}, {"count": 1, "values": []}, {"count": 0, "values": [[0.1, 1.0]]},
    {"count": -1, "values": []}, {"count": None, "values": []}, {"count": float("inf"), "values": []},
    *[{"count": 9, "values": bad} for bad in (
        None, 3, [3], [[0.1]], [["0.1", 1.0]], [[0.1, None]], [[0.1, 0.0]], [[0.1, -1.0]], [[0.1, float("inf")]],
        [[float("nan"), 1.0]], [[float("inf"), 1.0]], [[0.1, float("nan")]], [[-0.1, 1.0]], [[0.1, 10**400]],
    )],
]  # fmt: skip


@pytest.mark.parametrize("dumped", NO_DUMPS, ids=lambda d: repr(d)[:60])
def test_what_is_no_dump(dumped):
    """Whatever else is loaded is a ValueError."""
    with pytest.raises(ValueError, match="not a dump of latencies"):
        Latency.load(dumped)
