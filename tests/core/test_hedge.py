"""The hedge delay: by formula, at its edges, and in simulation."""

from __future__ import annotations

from random import Random

import pytest

from edgeroute.core import plan
from edgeroute.core.performance_estimates_and_encoding_choice import ERROR, Latency

INF = float("inf")


def filled(values) -> Latency:
    sketch = Latency()
    for value in values:
        sketch.add(value)
    return sketch


def lognormal(random: Random, n: int, median_s: float, sigma: float) -> list[float]:
    return [random.lognormvariate(0.0, sigma) * median_s for _ in range(n)]


EDGE = filled(Random(1).sample([n / 1000 for n in range(1, 101)], 100))  # 1..100 ms
CLOUD = filled(Random(2).sample([n / 1000 for n in range(101, 201)], 100))  # 101..200 ms


def test_cascade():
    """h = D - Q_C(1 - p/q): with a tenth deferred and 1 % to miss, the cloud gets the time of its 90 % quantile."""
    after_s = plan.auto_hedge_s(EDGE, CLOUD, deadline_s=0.3, deferral_rate=0.1)
    assert after_s == pytest.approx(0.3 - 0.19, abs=0.19 * 2 * ERROR)
    assert after_s == pytest.approx(0.3 - CLOUD.quantile(0.9))


def test_either_answer():
    """h = D - Q_C(1 - p/S_E(D)): where a tenth of edges is late, and half of those may miss, the cloud gets its median."""
    late = filled([0.01] * 90 + [1.0] * 10)
    share = late.share_above(0.3)
    assert share == pytest.approx(0.1, abs=0.005)
    after_s = plan.auto_hedge_s(late, CLOUD, deadline_s=0.3, deferral_rate=0.0, miss=share / 2, either=True)
    assert after_s == pytest.approx(0.3 - CLOUD.quantile(0.5))


def test_no_hedge():
    """Without a deadline there is none, nor where so few need the cloud that they may all miss."""
    assert plan.auto_hedge_s(EDGE, CLOUD, deadline_s=INF, deferral_rate=1.0) == INF
    assert plan.auto_hedge_s(EDGE, CLOUD, deadline_s=0.3, deferral_rate=0.01) == INF
    assert plan.auto_hedge_s(EDGE, CLOUD, deadline_s=0.3, deferral_rate=0.0) == INF
    assert plan.auto_hedge_s(EDGE, CLOUD, deadline_s=0.3, deferral_rate=1.0, either=True) == INF


def test_a_cloud_that_needs_it_all_starts_at_once():
    """Where the deadline is shorter than what the cloud takes, the delay is 0 and not less."""
    assert plan.auto_hedge_s(EDGE, CLOUD, deadline_s=0.05, deferral_rate=0.5) == 0.0


@pytest.mark.parametrize(("edges", "clouds"), [(plan.ENOUGH_LATENCIES - 1, 100), (100, plan.ENOUGH_LATENCIES - 1), (0, 0)])
@pytest.mark.parametrize("either", [True, False])
def test_too_little_is_known(edges, clouds, either):
    """With fewer than 50 latencies on a side there is no hedge; with 50 there is."""
    few = filled([1.0] * edges), filled([0.01] * clouds)
    assert plan.auto_hedge_s(*few, deadline_s=0.5, deferral_rate=0.5, either=either) == INF
    enough = filled([1.0] * plan.ENOUGH_LATENCIES), filled([0.01] * plan.ENOUGH_LATENCIES)
    assert plan.auto_hedge_s(*enough, deadline_s=0.5, deferral_rate=0.5, either=either) == pytest.approx(0.49, abs=0.001)


def test_quantile_of_the_edge():
    """p90 is the edge's own 90 % quantile, once 50 of its latencies are known."""
    assert plan.quantile_hedge_s(EDGE, 0.9) == pytest.approx(0.09, rel=2 * ERROR)
    assert plan.quantile_hedge_s(filled([0.1] * (plan.ENOUGH_LATENCIES - 1)), 0.9) == INF
    assert plan.quantile_hedge_s(filled([0.1] * plan.ENOUGH_LATENCIES), 0.9) == pytest.approx(0.1, rel=ERROR)


@pytest.mark.parametrize(("miss", "extra"), [(0.01, 0.014), (0.001, 0.025)])
def test_simulated_either(miss, extra):
    """The promised share misses the deadline, within what the sketch can know of it, at 1.4 % and 2.5 % extra calls."""
    missed = asked = n = 0
    for seed in range(8):
        random = Random(seed)
        edge, cloud = filled(lognormal(random, 8_000, 0.03, 0.5)), filled(lognormal(random, 8_000, 0.006, 0.4))
        after_s = plan.auto_hedge_s(edge, cloud, deadline_s=0.0906, deferral_rate=0.0, miss=miss, either=True)
        edges, clouds = lognormal(random, 20_000, 0.03, 0.5), lognormal(random, 20_000, 0.006, 0.4)
        n += len(edges)
        asked += sum(e > after_s for e in edges)
        missed += sum(e > 0.0906 and after_s + c > 0.0906 for e, c in zip(edges, clouds, strict=True))
    assert missed / n == pytest.approx(miss, rel=0.25)
    assert asked / n == pytest.approx(extra, rel=0.25)


@pytest.mark.parametrize(("edge_s", "least"), [(0.08, 0.75), (0.03, 0.0)])
def test_simulated_cascade(edge_s, least):
    """No more than the promised share misses it, and about as many where the edge is always slower than the delay."""
    deadline_s, deferred, miss = 0.1, 0.3, 0.01
    missed = n = 0
    for seed in range(8):
        random = Random(seed)
        edge, cloud = filled(lognormal(random, 8_000, edge_s, 0.05)), filled(lognormal(random, 8_000, 0.025, 0.4))
        after_s = plan.auto_hedge_s(edge, cloud, deadline_s=deadline_s, deferral_rate=deferred, miss=miss)
        edges, clouds = lognormal(random, 20_000, edge_s, 0.05), lognormal(random, 20_000, 0.025, 0.4)
        n += len(edges)
        missed += sum(random.random() < deferred and min(e, after_s) + c > deadline_s for e, c in zip(edges, clouds, strict=True))
    assert least * miss <= missed / n <= 1.25 * miss
