"""The online threshold: where it stands, what it costs, what it must never do."""

from __future__ import annotations

import json
from itertools import pairwise
from math import inf, nan
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute.core import online as module
from edgeroute.core.online import Online, falling

EVEN = [i / 32 for i in range(33)]
scores = st.one_of(st.floats(0.0, 1.0), st.floats(allow_nan=True), st.none())
fed = st.lists(
    st.one_of(
        st.tuples(st.just("judged"), scores, st.booleans()),
        st.tuples(st.just("many"), st.floats(0.0, 1.0), st.booleans()),
        st.integers(0, 500).flatmap(lambda n: st.tuples(st.just("routed"), st.integers(0, n), st.just(n))),
    ),
    max_size=60,
)
ladders = st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=40).map(sorted)
prices = st.floats(0.01, 1000.0)


def feed(online: Online, what) -> None:
    for kind, a, b in what:
        if kind == "routed":
            online.routed(a, b)
        else:
            for _ in range(1 if kind == "judged" else 50):
                online.judged(a, b)


def wrong(score: float) -> float:
    """How often the edge is wrong at a score. A wrong answer costs ten calls: the best threshold is .45; three times as bad: .62."""
    return 0.6 * (1 - score) ** 3


def simulate(worlds, floor=0.45, audit=0.01, budget=1.0, seed=0, online=None):
    """A stream of requests: for each of the worlds, (requests, how many times as often wrong), what the threshold comes to.

    Returns:
        For each, (cost of a request, that of the floor alone, the share deferred, that in its second half,
        the median threshold of its second half); and the lowest threshold of all.
    """
    random, results, lowest = Random(seed), [], inf
    online = online or Online(EVEN, budget=budget)
    for requests, worse in worlds:
        cost = fixed = 0
        deferred, thresholds = [], []
        for _ in range(requests):
            score = random.random()
            is_wrong, audited = random.random() < min(1.0, worse * wrong(score)), random.random() < audit
            threshold = online.threshold(floor)
            below = score < threshold
            cost += 1 if below else 10 * is_wrong
            fixed += 1 if score < floor else 10 * is_wrong
            online.routed(below, 1)
            if below or audited:
                online.judged(score, is_wrong)
            deferred.append(below)
            thresholds.append(threshold)
        half = requests // 2
        row = cost / requests, fixed / requests, np.mean(deferred), np.mean(deferred[half:]), float(np.median(thresholds[half:]))
        results.append(row)
        lowest = min(lowest, *thresholds)
    return results, lowest


@settings(deadline=None)
@given(ladders, st.floats(0.0, 1.0), prices, prices, fed, st.one_of(st.floats(-6.0, 6.0), st.just(inf), st.just(-inf)))
def test_never_below_the_floor(quantiles, budget, wrong_cost, call_cost, what, floor):
    """Whatever it is told, the threshold is the floor, a quantile above it, or infinite."""
    online = Online(quantiles, budget=budget, wrong_cost=wrong_cost, call_cost=call_cost)
    for one in what:
        feed(online, [one])
        threshold = online.threshold(floor)
        assert threshold >= floor
        assert threshold in {floor, inf, *quantiles[1:-1]}


@given(st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.5, 60.0)), min_size=1, max_size=40))
def test_the_fit_is_isotonic_regression(bins):
    """Pools are the best means that nowhere rise: the min-max formula, bin by bin."""
    sums, weights = zip(*bins, strict=True)
    n = len(bins)

    def mean(i: int, j: int) -> float:
        return sum(sums[i : j + 1]) / sum(weights[i : j + 1])

    expected = [min(max(mean(j, k) for k in range(i, n)) for j in range(i + 1)) for i in range(n)]
    pools = falling(sums, weights)
    assert [total / weight for total, weight, bins in pools for _ in range(bins)] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert sum(total for total, _, _ in pools) == pytest.approx(sum(sums))
    assert sum(weight for _, weight, _ in pools) == pytest.approx(sum(weights))


@settings(deadline=None)
@given(fed)
def test_bounds_fall_and_are_shares(what):
    """No bound is above that of a lower score, and each is in 0..1."""
    online = Online(EVEN, budget=0.5)
    feed(online, what)
    bounds = online._bounds
    assert len(bounds) == 32
    assert all(a >= b for a, b in pairwise(bounds))
    assert 0 <= min(bounds) <= max(bounds) <= 1


@given(ladders, st.floats(-6.0, 6.0))
def test_a_score_is_in_the_bin_that_begins_below_it(quantiles, score):
    """A score that is a quantile is in the bin above; one beyond the ends is in the outermost."""
    online = Online(quantiles, budget=1.0)
    before = online._answers[:]
    online.judged(score, False)
    changed = [i for i, (a, b) in enumerate(zip(before, online._answers, strict=True)) if a != b]
    assert changed == [np.searchsorted(online._starts, score, side="right") - 1]


def test_answers_are_forgotten():
    """An answer's weight falls by KEPT with each newer one, in every bin, and lately wrong ones weigh most."""
    online = Online([0, 0.5, 1], budget=1.0)
    for i in range(100):
        online.judged(0.25 if i < 30 else 0.75, i in {7, 80})
    n = online.dump()["bins"]
    kept = module.KEPT
    first = 15 * kept**100
    assert n[0] == pytest.approx([first + sum(kept ** (99 - i) for i in range(30)), kept**92])
    assert n[1] == pytest.approx([first + sum(kept ** (99 - i) for i in range(30, 100)), kept**19])


@pytest.mark.parametrize("none", [None, nan])
def test_no_confidence_is_in_no_bin(none):
    """An answer without a confidence teaches nothing."""
    online = Online(EVEN, budget=1.0)
    before = online.dump()
    online.judged(none, True)
    assert online.dump() == before


@given(ladders, st.floats(0.1, 100.0))
def test_at_the_beginning_it_is_the_floor(quantiles, worth):
    """Before there is evidence the certificate is taken at its word, whatever a wrong answer is worth."""
    assert Online(quantiles, budget=1.0, wrong_cost=worth).threshold(-1.0) == -1.0


def test_what_is_wrong_is_deferred_and_all_below_it():
    """One bin that is always wrong takes all below it along, since a threshold is one number; the price can buy it back."""
    online = Online(EVEN, budget=0.5)
    for _ in range(200):
        online.judged(0.51, True)
    assert online.threshold(0.1) >= 0.53125
    for _ in range(2_000):
        online.judged(0.99, True)
    assert online.threshold(0.1) == inf
    online.routed(100_000, 100_000)
    assert online.threshold(0.1) == 0.1


def test_what_was_not_heard_of_for_long_is_not_known():
    """When all that is known of the scores above has been forgotten, they are deferred, and judged, until they are known again."""
    online = Online(EVEN, budget=1.0)
    for _ in range(20_000):
        online.judged(0.01, True)
    assert online.threshold(0.1) == inf
    random = Random(1)
    for _ in range(1_000):
        online.judged(random.uniform(0.1, 1.0), False)
    assert online.threshold(0.1) <= 0.15


def test_nothing_is_left_after_ever_so_long():
    """Millions of answers in one bin leave nothing in the others, and nothing is divided by it."""
    online = Online([0, 0.5, 1], budget=1.0)
    for _ in range(60):
        online._weight *= module.KEPT**-50_000  # as so many answers would leave it
        online.judged(0.1, True)
    assert online.dump()["bins"][1][0] == 0.0
    assert online.threshold(0.0) == inf


def test_the_price():
    """It rises by what is deferred beyond the budget, falls by what is not, and stays between nothing and what a wrong answer costs."""
    online = Online(EVEN, budget=0.25, wrong_cost=20.0, call_cost=2.0)
    online.routed(64, 64)
    assert online.price == pytest.approx(module.STEP * 48)
    online.routed(0, 64)
    assert online.price == pytest.approx(module.STEP * 32)
    online.routed(0, 10_000)
    assert online.price == 0.0
    online.routed(100_000, 100_000)
    assert online.price == 10.0


@pytest.mark.parametrize("quantiles", [[], [0.0, nan, 1.0], [nan], [0.0, 2.0, 1.0]])
def test_no_quantiles(quantiles):
    """None, NaN among them, and any that fall are refused."""
    with pytest.raises(ValueError, match="quantiles"):
        Online(quantiles, budget=0.5)


@pytest.mark.parametrize(
    "bad", [{"budget": -0.1}, {"budget": 1.1}, {"budget": nan}]
    + [{"budget": 0.5, cost: bad} for cost in ("wrong_cost", "call_cost") for bad in (0.0, -1.0, nan, inf)],
    ids=repr,
)  # fmt: skip
def test_no_numbers(bad):
    """A budget that is no share, and costs that are nothing or infinite, are refused."""
    with pytest.raises(ValueError, match="not in its range"):
        Online(EVEN, **bad)


@settings(deadline=None)
@given(ladders, fed, fed)
def test_it_survives_a_restart(quantiles, before, newer):
    """Through JSON and back it knows the same, and once estimates are made again goes on the same."""
    online = Online(quantiles, budget=0.3)
    feed(online, before)
    other = Online.load(json.loads(json.dumps(online.dump())), quantiles, budget=0.3)
    online._fit()
    feed(online, newer)
    feed(other, newer)
    assert (other.count, other.price) == (online.count, online.price)
    assert np.array(other.dump()["bins"]) == pytest.approx(np.array(online.dump()["bins"]))
    assert other._bounds == pytest.approx(online._bounds)


def test_other_bins_begin_anew_and_other_costs_do_not():
    """What was learned in other bins is of another score; a price may not exceed what a wrong answer is worth now."""
    online = Online(EVEN, budget=0.3)
    feed(online, [("many", 0.9, True), ("routed", 10_000, 10_000)])
    anew = Online.load(online.dump(), [q / 2 for q in EVEN], budget=0.3)
    assert anew.dump() == Online([q / 2 for q in EVEN], budget=0.3).dump()
    cheaper = Online.load(online.dump(), EVEN, budget=0.3, wrong_cost=2.0)
    assert (cheaper.price, cheaper.count) == (2.0, 50)
    assert cheaper.dump()["bins"] == online.dump()["bins"]


GOOD = Online([0, 0.5, 1], budget=0.5).dump()
NO_DUMPS = [
    None, 3, [], {}, *[{k: v for k, v in GOOD.items() if k != left_out} for left_out in GOOD],
    *[GOOD | {"starts": bad} for bad in (None, 3, [], [0.1, 0.2])],
    *[GOOD | {"count": bad} for bad in (None, "3", -1, 3.0, nan, True)],
    *[GOOD | {"price": bad} for bad in (None, "1", -1, nan, inf, 10**400)],
    *[GOOD | {"bins": bad} for bad in (None, 3, [], [[1, 0]], [[1, 0]] * 3, [[1], [1]], [3, 3], [["1", 0]] * 2, [[1, 2]] * 2, [[1, -1]] * 2,
                                       [[inf, 0]] * 2, [[nan, 0]] * 2, [[1, nan]] * 2, [[10**400, 0]] * 2)],
]  # fmt: skip


@pytest.mark.parametrize("dumped", NO_DUMPS, ids=lambda d: repr(d)[:80])
def test_what_is_no_dump(dumped):
    """Whatever else is loaded is a ValueError."""
    with pytest.raises(ValueError, match="not a dump of an online threshold"):
        Online.load(dumped, [0, 0.5, 1], budget=0.5)


@pytest.mark.parametrize("audit", [0.01, 0.05])
def test_a_world_as_it_was(audit):
    """Where the floor is the best threshold it settles just above it, and costs a little; where the floor is too low, it rises."""
    ((cost, fixed, *_, settled),), _ = simulate([(30_000, 1)], audit=audit)
    assert settled <= 0.55
    assert cost <= 1.05 * fixed
    ((cost, fixed, *_, settled),), _ = simulate([(30_000, 1)], floor=0.2, audit=audit)
    assert 0.4 <= settled <= 0.55
    assert cost < 0.9 * fixed


@pytest.mark.parametrize("seed", range(3))
def test_a_world_that_gets_worse_and_better(seed):
    """The edge is wrong three times as often for a while: the threshold rises, costs less than the floor alone, and comes back."""
    (_, drifted, better), lowest = simulate([(15_000, 1), (15_000, 3), (15_000, 0.1)], seed=seed)
    cost, fixed, *_, settled = drifted
    assert 0.55 <= settled <= 0.75
    assert cost < 0.92 * fixed
    assert better[-1] == lowest == 0.45


@pytest.mark.parametrize("worse", [1, 3, 10])
def test_the_budget_holds(worse):
    """Where the floor defers less than the budget, what is deferred in the long run is the budget at most, up to a little."""
    online = Online(EVEN, budget=0.3)
    ((*_, deferred, late, _),), _ = simulate([(40_000, worse)], floor=0.2, online=online)
    assert online.price < 10.0
    assert deferred * 40_000 <= 0.3 * 40_000 + online.price / module.STEP + 1e-6  # what is over is in the price
    assert late <= 0.34


def test_a_floor_beyond_the_budget():
    """It is kept all the same, and nothing else is deferred."""
    ((*_, late, settled),), lowest = simulate([(20_000, 3)], floor=0.45, budget=0.3)
    assert settled == lowest == 0.45
    assert late == pytest.approx(0.45, abs=0.02)
