"""The load of an endpoint, and what is kept on the edge for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute.core import performance_estimates_and_encoding_choice as estimates
from edgeroute.core.performance_estimates_and_encoding_choice import Load, Report, rounded_share_to_keep, slack
from edgeroute.core.plan import Facts, plan
from edgeroute.core.policy_egress_and_options import Policy, Target

numbers = st.floats(allow_nan=True, allow_infinity=True)
loads = st.floats(0, 10)
instants = st.floats(0, 1e6)


@given(numbers, numbers)
def test_a_report_is_a_load_in_bounds_whatever_it_says(used, queue_s):
    assert 0 <= Report(used, queue_s).load <= estimates.CAP


@given(st.lists(st.tuples(numbers, instants)), instants)
def test_the_load_is_in_bounds_whatever_is_reported_and_when(reports, now):
    seen = Load()
    for value, at in reports:
        seen.add(value, at)
    assert 0 <= seen.at(now) <= estimates.CAP


@given(instants)
def test_without_a_report_nothing_is_kept(now):
    assert rounded_share_to_keep(Load().at(now)) == 0


@given(loads, instants, st.floats(estimates.STALE_S, 1e6))
def test_an_old_report_keeps_nothing(value, at, age):
    seen = Load()
    seen.add(value, at)
    assert seen.at(at + age * 1.001) == 0


@given(loads, st.floats(0, 100), st.floats(0, 100))
def test_a_load_fades_while_none_is_reported(value, first, more):
    seen = Load()
    seen.add(value, 0.0)
    assert seen.at(first + more) <= seen.at(first) <= min(value, estimates.CAP)


@given(loads, loads)
def test_more_load_never_keeps_less_and_a_part_is_always_sent(a, b):
    low, high = (
        sorted((rounded_share_to_keep(a), rounded_share_to_keep(b)))
        if a <= b
        else sorted((rounded_share_to_keep(b), rounded_share_to_keep(a)))
    )
    assert (rounded_share_to_keep(min(a, b)), rounded_share_to_keep(max(a, b))) == (low, high)
    assert 0 <= low <= high <= estimates.MOST < 1
    assert rounded_share_to_keep(estimates.FROM) == 0
    assert rounded_share_to_keep(float("nan")) == 0


@given(st.lists(numbers), st.floats(0, 1), st.floats(0, 1))
def test_thresholds_are_lowered_within_what_was_deferred(deficits, a, b):
    known = sorted(one for one in deficits if 0 <= one < float("inf"))
    low, high = slack(deficits, min(a, b)), slack(deficits, max(a, b))
    assert 0 <= low <= high <= (known[-1] if known else 0)
    if len(known) < estimates.ENOUGH_DEFERRED:
        assert high == 0
    for share in (a, b):
        lower = slack(deficits, share)
        assert not lower or sum(one <= lower for one in known) <= share * len(known) + 1e-6, "ties keep no more"


def test_a_report_counts_until_it_is_old():
    """Use and queue add up; what is no number counts nothing; and few deferrals lower no threshold."""
    seen = Load()
    assert seen.add(Report(0.9, 0.3).load, 0.0)
    assert seen.at(0.0) == pytest.approx(1.2)
    assert not seen.add(float("nan"), 1.0)
    assert rounded_share_to_keep(seen.at(0.0)) == estimates.MOST
    assert seen.at(estimates.STALE_S) == 0
    assert slack([0.5], 0.9) == 0


def test_answers_that_are_all_as_unsure_are_all_sent():
    assert slack([0.5] * 100, 0.9) == 0
    assert slack([0.1] * 50 + [0.5] * 50, 0.9) == 0.1
    assert slack([i / 100 for i in range(1, 101)], 0.5) == 0.5


def planned(certified=False, **facts):
    edge = Target("edge", "edge", 0.8, thresholds={"cat": 0.9}, certified=certified)
    return plan(Policy(), (edge, Target("cloud", "cloud")), Facts(**facts))


def test_a_loaded_cloud_lowers_a_plain_threshold_and_never_that_of_a_certificate():
    relieved = planned(kept=0.5, slack={"edge": 0.25}).legs[0]
    assert (relieved.threshold, relieved.thresholds, relieved.lowered) == (
        pytest.approx(0.55),
        {"cat": pytest.approx(0.65)},
        0.25,
    )
    assert "lowered by 0.25 as the cloud is loaded" in relieved.label
    assert planned(kept=0.5, slack={}).legs[0].lowered == 0  # nothing is known of what it defers
    kept = planned(certified=True, kept=0.5, slack={"edge": 0.25})
    assert (kept.legs[0].threshold, kept.legs[0].lowered) == (0.8, 0.0)
    assert any("a certificate's" in step for step in kept.steps)
    assert planned().legs[0].threshold == 0.8
    without = plan(Policy(), (Target("edge", "edge", None), Target("cloud", "cloud")), Facts(kept=0.5, slack={"edge": 0.25}))
    assert [leg.lowered for leg in without.legs] == [0.0, 0.0]


@given(st.booleans(), st.floats(0, 0.9), st.floats(0, 2))
def test_a_certified_threshold_is_not_lowered_by_any_load(certified, kept, lower):
    leg = planned(certified=certified, kept=kept, slack={"edge": lower}).legs[0]
    assert leg.threshold is not None
    assert leg.threshold == 0.8 if certified or not kept else leg.threshold <= 0.8


def test_of_a_ladder_only_the_last_before_the_cloud_keeps_more():
    """What the first defers goes to the second, whose certificate is of just these inputs."""
    edges = Target("small", "edge", 0.8), Target("medium", "edge", 0.7)
    made = plan(Policy(), (*edges, Target("cloud", "cloud")), Facts(kept=0.5, slack={"small": 0.3, "medium": 0.2}))
    assert [leg.threshold for leg in made.legs] == [0.8, pytest.approx(0.5), None]


def test_nothing_is_lowered_where_nothing_may_leave():
    targets = Target("edge", "edge", 0.8), Target("cloud", "cloud")
    facts = Facts(kept=0.5, slack={"edge": 0.3})
    for mode in ("only_edge", "prefer_cloud", "only_cloud"):
        legs = plan(Policy(), targets, facts, mode=mode).legs
        assert all(leg.lowered == 0 for leg in legs)
