"""The latency sketch against exact quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute.core import latency
from edgeroute.core.latency import ERROR, Latency


def filled(values) -> Latency:
    sketch = Latency()
    for value in values:
        sketch.add(value)
    return sketch


@settings(max_examples=200, deadline=None)
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
    assert sketch.quantile(0.0) == pytest.approx(latency.LOWEST_S, rel=0.05)
    assert sketch.quantile(1.0) == pytest.approx(latency.HIGHEST_S, rel=0.1)


def test_weights_are_rescaled_long_before_they_overflow():
    """Half a million values later it still answers."""
    sketch = filled([0.02] * 400_000)
    assert sketch.quantile(0.5) == pytest.approx(0.02, rel=ERROR)


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_value_survives_rounding(seed):
    """The 100 % quantile is the largest value, though the weights do not add up to their total to the last bit."""
    values = np.random.default_rng(seed).exponential(0.05, 300)
    assert filled(values).quantile(1.0) == pytest.approx(values.max(), rel=ERROR + 1e-9)
