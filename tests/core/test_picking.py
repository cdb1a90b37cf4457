"""A group of variants: one member is in the plan, by rules, deadline and what is free; and the times by which it is picked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import Rule
from edgeroute.core.plan import ENOUGH_RUNS, Facts, Plan, plan
from edgeroute.core.policy_egress_and_options import INF, Policy, Target
from edgeroute.observe.plan_facts_energy_rules import AGAIN_S, Paces

FP32, INT8, TINY = (
    Target(f"edge {name}", "edge", limit, group="edge") for name, limit in (("fp32", 0.8), ("int8", 0.9), ("tiny", 0.95))
)
LARGE, CLOUD = Target("large", "edge", 0.7), Target("cloud", "cloud")
BUSY = Rule("load", "small_model", enter=0.9)
TOOK = {"edge fp32": 0.3, "edge int8": 0.1, "edge tiny": 0.01}


NOTHING = Facts()


def made(facts=NOTHING, targets=(FP32, INT8, TINY, CLOUD), mode="prefer_edge", deadline_s=INF, rules=(BUSY,)) -> Plan:
    found = plan(Policy(mode, deadline_s=deadline_s, device_rules=rules), targets, facts)
    assert isinstance(found, Plan)
    return found


def names(found: Plan) -> list[str]:
    return [leg.name for leg in found.legs]


def test_one_member_is_in_the_plan():
    """The first, with its own threshold; the others are none of its legs, in any mode."""
    found = made()
    assert [(leg.name, leg.threshold) for leg in found.legs] == [("edge fp32", 0.8), ("cloud", None)]
    assert "of the variants of edge: edge fp32, the first" in found.steps
    assert names(made(mode="only_edge")) == ["edge fp32"]
    assert names(made(mode="prefer_cloud")) == ["cloud", "edge fp32"]
    assert names(made(mode="only_cloud")) == ["cloud"]
    assert "variants" not in " ".join(made(mode="only_cloud").steps)
    assert [leg.name for leg in made(mode="shadow").shadow_legs] == ["edge fp32"]


def test_a_group_is_one_step_of_a_ladder():
    """Before or after other edge models; two groups have one member each."""
    assert names(made(targets=(FP32, INT8, LARGE, CLOUD))) == ["edge fp32", "large", "cloud"]
    assert names(made(targets=(LARGE, FP32, INT8, CLOUD))) == ["large", "edge fp32", "cloud"]
    other = [Target(f"other {name}", "edge", 0.5, group="other") for name in ("a", "b")]
    assert names(made(targets=(FP32, INT8, *other, CLOUD))) == ["edge fp32", "other a", "cloud"]


def test_under_load_it_is_the_smallest():
    """While the rule is in force; the steps say it."""
    found = made(Facts(rules=(BUSY,), took_s=TOOK))
    assert [(leg.name, leg.threshold) for leg in found.legs] == [("edge tiny", 0.95), ("cloud", None)]
    assert "of the variants of edge: edge tiny, the smallest (load above 90%)" in found.steps
    assert found.rules == (BUSY,)


@pytest.mark.parametrize(
    ("deadline_s", "member", "why"),
    [
        (1.0, "edge fp32", "the first"),
        (0.3, "edge fp32", "the first"),
        (0.2, "edge int8", "as one in ten runs of edge fp32 takes 300 ms or more, longer than the deadline"),
        (0.05, "edge tiny", "longer than the deadline"),
        (0.001, "edge tiny", "the fastest: none meets the deadline"),
    ],
)
def test_a_deadline_that_a_member_cannot_meet(deadline_s, member, why):
    """The first that meets it; unknown times count as short."""
    found = made(Facts(took_s=TOOK), deadline_s=deadline_s)
    assert names(found)[0] == member
    assert why in " ".join(found.steps)
    assert names(made(deadline_s=deadline_s))[0] == "edge fp32"


def test_a_member_that_is_not_free_is_passed_over():
    """Earlier runs of it go on, or it is being loaded; if that is so of all, it is as if of none."""
    found = made(Facts(busy=frozenset({"edge fp32"})))
    assert names(found) == ["edge int8", "cloud"]
    assert "of the variants of edge: edge int8, as edge fp32 is not free" in found.steps
    assert names(made(Facts(loading=frozenset({"edge fp32", "edge int8"})))) == ["edge tiny", "cloud"]
    assert names(made(Facts(busy=frozenset(TOOK)))) == ["cloud", "edge fp32"]
    assert names(made(Facts(rules=(BUSY,), busy=frozenset({"edge tiny"})))) == ["edge int8", "cloud"]


@given(
    st.lists(st.sampled_from([*TOOK]), unique=True).map(frozenset),
    st.dictionaries(st.sampled_from([*TOOK]), st.floats(0.001, 1)),
    st.sampled_from([INF, 0.01, 0.1, 0.5]),
    st.booleans(),
)
def test_always_one_member_and_one_that_meets_the_deadline_if_any_does(busy, took_s, deadline_s, small):
    """Whatever is known."""
    found = made(Facts(busy=busy, took_s=took_s, rules=(BUSY,) if small else ()), deadline_s=deadline_s)
    picked = [name for name in names(found) if name in TOOK]
    assert len(picked) == 1
    free = [name for name in TOOK if name not in busy] or [*TOOK]
    if not small and any(took_s.get(name, 0.0) <= deadline_s for name in free):
        assert took_s.get(picked[0], 0.0) <= deadline_s
        assert picked[0] in free


def test_times_count_once_there_are_enough():
    """And no longer after a pause, so that a member that was slow is tried again."""
    paces = Paces()
    assert paces.known([("a", ENOUGH_RUNS - 1, 0.5)], 0.0) == {}
    assert paces.known([("a", ENOUGH_RUNS, 0.5)], 1.0) == {"a": 0.5}
    assert paces.known([("a", ENOUGH_RUNS, 0.5)], 1.0 + AGAIN_S) == {"a": 0.5}
    assert paces.known([("a", ENOUGH_RUNS, 0.5)], 1.1 + AGAIN_S) == {}
    assert paces.known([("a", 2 * ENOUGH_RUNS - 1, 0.4)], 2.0 + AGAIN_S) == {}
    assert paces.known([("a", 2 * ENOUGH_RUNS, 0.3)], 3.0 + AGAIN_S) == {"a": 0.3}
