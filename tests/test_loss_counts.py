"""Counts of audits by confidence: what they certify at any look, that they add up, and what is no dump of them."""

from __future__ import annotations

import json
from math import exp, inf, log, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute.core.sequential_tests import GRID
from edgeroute.tools.measure.audit_counts_and_evidence import FIRST, NONE, LossCounts, log_evidence
from edgeroute.tools.measure.certification_and_verdicts import Audited, counts_of
from edgeroute.tools.measure.threshold_evaluation import Examples

LIMIT, RISK = 0.02, 0.05
examples = st.lists(st.tuples(st.one_of(st.none(), st.just(nan), st.floats(-1e6, 1e6)), st.booleans()), max_size=60)


def counted(rows, rate=1.0, alarms=0):
    counts = LossCounts()
    counts.alarms = alarms
    for confidence, harm in rows:
        counts.count(confidence, int(harm), rate)
    return counts


def stored(counts, since=0):
    """As a router stores them."""
    return {f"{since} {rate!r} {index} {loss}": n for (rate, index, loss), n in counts.numbers.items()}


def loaded(counts, since=0):
    return LossCounts.load(json.loads(json.dumps(stored(counts, since))))


def test_the_thresholds_are_fixed():
    """Ascending, dense where confidences are near 1, and of scores without bounds, too."""
    assert [*GRID] == sorted(set(GRID))
    assert 600 < len(GRID) < 800
    assert sum(0.99 < threshold < 1 for threshold in GRID) > 50
    assert GRID[0] < -10
    assert GRID[-1] > 10


@settings(max_examples=50, deadline=None)
@given(examples, examples)
def test_two_devices_add_up_to_one(one, other):
    """The counts, what is accepted and what is certified are those of a device with all the audits, whatever their order."""
    total, every = counted(one), counted([*other, *one])
    total.add(counted(other))
    assert total.numbers == every.numbers
    if one or other:
        assert loaded(total).numbers == total.numbers
    for index in (-1, 0, 100, NONE):
        assert total.accepted(index) == every.accepted(index)
    assert total.n == every.n == len(one) + len(other)
    assert total.lowest(LIMIT, RISK) == every.lowest(LIMIT, RISK)


@settings(max_examples=50, deadline=None)
@given(examples)
def test_what_a_threshold_accepts(rows):
    """As by comparison with it; what has no confidence is accepted by none."""
    counts = counted(rows)
    for index in (0, 60, 150, NONE - 1):
        kept = [harm for confidence, harm in rows if confidence is not None and confidence >= GRID[index]]
        assert counts.accepted(index) == (len(kept), sum(kept), 0)


def test_counts_of_the_log():
    """As counted one by one."""
    rng = np.random.default_rng(2)
    score, agree = np.array([nan, inf, -inf, *GRID, *rng.normal(size=200)]), [*(rng.random(203 + len(GRID)) < 0.5).tolist()]
    examples = Examples(score, agree, [True] * len(agree), labels=None)
    one_by_one = counted(zip(score.tolist(), (not same for same in agree), strict=True))
    assert counts_of(Audited(examples, [], [], [])).numbers == one_by_one.numbers


def test_thresholds_outside_the_grid():
    """The extreme ones stand for all beyond."""
    counts = counted([(inf, False), (1e9, False), (-1e9, True), (-inf, True), (nan, True)])
    assert counts.numbers == {(1.0, NONE - 1, 0): 2, (1.0, -1, 1): 3}


def test_how_many_are_needed():
    """Without a harm every threshold holds from that number on, and none before."""
    n = LossCounts().needed(LIMIT, RISK)
    assert log(RISK) / log(1 - LIMIT) < n < 400
    rows = [(0.9, False)] * n
    assert counted(rows).lowest(LIMIT, RISK) == 0
    assert counted(rows[1:]).lowest(LIMIT, RISK) == NONE
    assert counted([(0.9, True)] * n).lowest(LIMIT, RISK) > GRID.index(0.880797077978)


def test_harms_below_defer_and_wins_pay_for_them():
    """The lowest threshold is above the region with many harms, unless as many wins are there."""
    rng = np.random.default_rng(0)
    counts, paid = LossCounts(), LossCounts()
    for score, luck in rng.random((5000, 2)).tolist():
        harm = score < 0.5 and luck < 0.2
        counts.count(score, int(harm))
        paid.count(score, harm - (score < 0.5 and luck > 0.8))
    assert 0.3 < GRID[counts.lowest(LIMIT, RISK)] < 0.5
    assert paid.lowest(LIMIT, RISK) == 0


@pytest.mark.parametrize("score", [lambda u: 0.5 - 0.02 * u, lambda u: -0.01 * u, lambda u: 12 - 4 * u, lambda u: 1 - 1e-4 * u])
def test_scores_that_are_close_together(score):
    """Learned ones, log-probabilities of texts, energies, an overconfident model's: the threshold is near the best, score(0.6)."""
    counts = LossCounts()
    for place, luck in np.random.default_rng(0).random((5000, 2)).tolist():
        counts.count(score(place), int(place > 0.5 and luck < 0.2))
    lowest = GRID[counts.lowest(LIMIT, RISK)]
    assert score(0.45) > lowest > score(0.7)


def test_it_tightens_for_ever():
    """A threshold that was certified at a look stays so, though the audits since would not certify it."""
    counts = counted([(0.9, False)] * 1000)
    reached = counts.lowest(LIMIT, RISK)
    assert reached == 0
    counts.add(counted([(0.9, True)] * 200))
    assert counts.lowest(LIMIT, RISK) > 0
    assert counts.lowest(LIMIT, RISK, reached) == 0


def test_a_million_audits():
    """No overflow, whatever they are."""
    n = 10**6
    for harms, wins in ((0, 0), (n, 0), (0, n), (20_000, 0), (n // 2, n // 2)):
        assert -inf < log_evidence(LIMIT, (1.0, n, harms, wins)) < inf
    assert log_evidence(LIMIT, (1.0, n, 0, 0)) > 1e4
    assert log_evidence(LIMIT, (1.0, n, n, 0)) < 0
    for loss, lowest in ((1, 101), (-1, 0)):
        counts = LossCounts()
        counts.numbers[1.0, 100, loss] = n
        assert counts.lowest(LIMIT, RISK) == lowest


def test_a_new_beginning_has_its_own_part_of_the_risk():
    """Counts from before the last alarm are left out, and more evidence is needed; all parts are the risk at most."""
    both = stored(counted([(0.9, True)] * 50)) | stored(counted([(0.9, False)] * 500), 17)
    counts = LossCounts.load(both)
    assert (counts.alarms, counts.n, counts.accepted(0)) == (1, 500, (500, 0, 0))
    needed = [counted([], alarms=k).needed(LIMIT, RISK) for k in range(3)]
    assert needed == sorted(set(needed))
    assert LossCounts.load(both | {"18": 1}).n == 0
    parts = []
    for alarms in range(40):
        counts = counted([], alarms=alarms)
        for rates in range(40):
            counts.count(0.9, 0, 1 / (1 + rates))
            parts.append(exp(-counts.least(RISK)))
    assert 0.999 * RISK < sum(parts) < 1.0001 * RISK
    assert parts[0] == pytest.approx(RISK * FIRST)


def test_audits_of_a_higher_rate_count_less():
    """A request counts the same whatever the rate: four times as many audits of half of the traffic do not hide its other half."""
    half = [(0.9, i % 50 < 2) for i in range(2000)]
    mixed = counted([(0.9, False)] * 8000, 1.0)
    mixed.add(counted(half, 0.25))
    wrong = counted([*[(0.9, False)] * 8000, *half])
    assert wrong.lowest(LIMIT, RISK) == 0
    assert mixed.lowest(LIMIT, RISK) > 0
    assert mixed.least(RISK) > wrong.least(RISK)


GOOD = {"0 0.01 -1 0": 1, "0 0.01 9 1": 3, "0 0.5 9 -1": 2}
BAD = [
    None, 3, [], "text",
    *[{bad: 1} for bad in ("", "0", "-1", "x 1 1 1", "0 0 1 1", "0 2 1 1", "0 nan 1 1", "0 1 -2 1", f"0 1 {NONE} 1", "0 1 1 2", "0 1 1 1 1")],
    *[{"0 1.0 1 1": bad} for bad in (None, "1", -1, 1.0, True, 2**60)],
]  # fmt: skip


@pytest.mark.parametrize("dumped", BAD, ids=lambda d: repr(d)[:80])
def test_what_is_no_dump(dumped):
    """Whatever else is loaded is a ValueError."""
    assert stored(LossCounts.load(GOOD)) == GOOD
    with pytest.raises(ValueError, match="these are no counts of audits"):
        LossCounts.load(dumped)


@pytest.mark.parametrize(("share", "most"), [(LIMIT, 0.05), (0.2, 0.0)])
def test_ever_broken(share, most):
    """A threshold that loses the limit is certified at any of 60 looks in 5 % of cases at most."""
    rng, broken, cases = np.random.default_rng(3), 0, 100
    for _ in range(cases):
        harms = np.cumsum(rng.random(1200) < share)[19::20].tolist()
        broken += any(log_evidence(LIMIT, (1.0, 20 * i + 20, h, 0)) >= -log(RISK) for i, h in enumerate(harms))
    assert broken <= cases * most + 3 * (cases * most * (1 - most)) ** 0.5
