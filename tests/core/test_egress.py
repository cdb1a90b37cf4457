"""What may leave: rules, permits, and plans that cannot have a cloud leg without one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import Rule
from edgeroute.core.plan import Facts, Plan, Refusal, by_itself, plan, withdrawn
from edgeroute.core.policy_egress_and_options import MODES, Denied, Permit, Policy, Rules, Target, permit

TARGETS = (Target("small", "edge", 0.7), Target("edge", "edge", 0.85), Target("eu", "cloud"), Target("us", "cloud"))
RULES = Rules(never_leave=frozenset({"medical"}), may_leave=frozenset({"public"}))
NAMES = st.sampled_from(["medical", "public", "faces"])


@pytest.mark.parametrize(
    ("rules", "name", "leaves", "why"),
    [
        (Rules(), None, True, "no data class is declared"),
        (Rules(), "medical", False, "data class 'medical', which no rule knows, may not leave (unknown_class is deny)"),
        (Rules(declared=True), None, False, "a call without data_class may not leave (unknown_class is deny)"),
        (Rules(declared=True), "faces", False, "data class 'faces', which no rule knows, may not leave (unknown_class is deny)"),
        (Rules(declared=True, unknown_class="allow"), None, True, "unknown_class is allow"),
        (RULES, "medical", False, "data class 'medical' never leaves"),
        (RULES, "public", True, "may_leave has 'public'"),
        (RULES, "faces", False, "data class 'faces', which no rule knows, may not leave (unknown_class is deny)"),
        (RULES, None, False, "a call without data_class may not leave (unknown_class is deny)"),
        (RULES._replace(unknown_class="allow"), "faces", True, "unknown_class is allow"),
        (RULES._replace(unknown_class="allow"), "medical", False, "data class 'medical' never leaves"),
        (RULES._replace(unknown_class="allow"), None, True, "unknown_class is allow"),
        (RULES._replace(default_class="public"), None, True, "may_leave has 'public'"),
        (RULES._replace(default_class="medical"), None, False, "data class 'medical' never leaves"),
        (RULES._replace(default_class="public"), "medical", False, "data class 'medical' never leaves"),
    ],
)
def test_rules(rules, name, leaves, why):
    """Each class leaves or stays as the rules say; what they do not know stays, unless they say otherwise."""
    verdict = permit(rules, name)
    if leaves:
        assert isinstance(verdict, Permit)
        assert verdict.rule == why
    else:
        assert isinstance(verdict, Denied)
        assert verdict.why == why


@pytest.mark.parametrize(
    ("rules", "nothing"),
    [(Rules(), False), (Rules(declared=True), True), (RULES, False), (RULES._replace(may_leave=frozenset()), True)],
)
def test_rules_by_which_nothing_leaves(rules, nothing):
    """Whatever class a call names."""
    assert rules.nothing is nothing


def test_nobody_else_makes_a_permit():
    """A permit cannot be made but by the rules."""
    with pytest.raises(TypeError, match="only the egress rules"):
        Permit(None, "medical", "because I say so", RULES, True)
    assert repr(permit(RULES, "public")) == "<Permit for 'public' by \"may_leave has 'public'\">"


@given(
    st.frozensets(NAMES), st.frozensets(NAMES), st.sampled_from(["deny", "allow"]), st.none() | NAMES, st.none() | NAMES,
    st.none() | st.sampled_from(MODES), st.sampled_from(["listed", "fastest"]),
)  # fmt: skip
def test_what_never_leaves_has_no_leg_that_could_take_it(never, may, unknown, default, name, mode, order):
    """Whatever the rules and the mode: a class that must not leave is in no plan with a leg off the device."""
    rules = Rules(never, may, unknown, default)
    made = plan(Policy(rules=rules, order=order), TARGETS, Facts(), mode=mode, data_class=name)
    actual = default if name is None else name
    known = actual in never or actual in may
    allowed = actual not in never and (actual in may or unknown == "allow" or (actual is None and not never and not may))
    assert known or allowed == (unknown == "allow" or (actual is None and not never | may))
    if isinstance(made, Refusal):
        assert (mode, allowed, made.denied) == ("only_cloud", False, True)
        return
    leaving = [leg for leg in made.legs if leg.permit is not None]
    assert [leg.side for leg in leaving] == ["cloud"] * len(leaving)
    assert bool(leaving) == (allowed and mode != "only_edge")
    assert all(TARGETS[leg.target].side == leg.side for leg in made.legs)
    if not allowed and mode != "only_edge":
        assert made.stays
        assert any("nothing leaves the device" in step for step in made.steps)
        assert made.legs[-1].final, "the edge has the last word"


def test_the_plan_says_by_which_rule_it_leaves():
    """The steps name the class and the rule."""
    made = plan(Policy(rules=RULES), TARGETS, Facts(), data_class="public")
    assert isinstance(made, Plan)
    assert "data class 'public' may leave: may_leave has 'public'" in made.steps
    assert (made.data_class, made.stays) == ("public", "")


def test_the_cloud_alone_and_a_class_that_stays():
    """Where the mode asks the cloud alone, a class that must not leave has no plan, and the refusal says whose doing it is."""
    made = plan(Policy(rules=RULES), TARGETS, Facts(), mode="only_cloud", data_class="medical")
    assert made == Refusal(
        "no answer is possible: data class 'medical' never leaves, and mode 'only_cloud' asks nothing else", denied=True
    )
    made = plan(Policy(rules=RULES), TARGETS[2:], Facts(), data_class="medical")
    assert made == Refusal("no answer is possible: data class 'medical' never leaves, and there is no edge", denied=True)


@pytest.mark.parametrize(
    ("by_now", "mode", "holds"),
    [
        (Policy(rules=RULES), None, True),
        (Policy(rules=Rules(may_leave=frozenset({"public"}))), None, True),
        (Policy(rules=Rules(never_leave=frozenset({"public"}))), None, False),
        (Policy(rules=Rules()), None, False),
        (Policy(mode="only_edge", rules=RULES), None, False),
        (Policy(mode="only_edge", rules=RULES), "prefer_cloud", True),
        (Policy(mode="only_edge", rules=Rules(never_leave=frozenset({"public"}))), "prefer_cloud", False),
    ],
)
def test_a_permit_under_another_policy(by_now, mode, holds):
    """It holds as long as the policy in force would give it again; a mode of the call's own is not that of the policy."""
    allowed = permit(RULES, "public", mode)
    assert isinstance(allowed, Permit)
    assert (not withdrawn(by_now, Facts(), allowed)) == holds


AWAY = (Rule("battery", "prefer_cloud", 0.2), Rule("heat", "prefer_cloud", 70))
HOME = (Rule("battery", "only_edge", 0.2), Rule("heat", "only_edge", 70))


@pytest.mark.parametrize("by_then", ["prefer_edge", "only_edge"])
@pytest.mark.parametrize("mode", [None, "prefer_edge", "only_cloud"])
@pytest.mark.parametrize("there", [*AWAY, *HOME], ids=str)
@pytest.mark.parametrize("now", [True, False])
def test_a_permit_holds_as_long_as_a_new_call_would_have_one(by_then, mode, there, now):
    """Rules on the device's state that are in force by now say it, too; of a call for which nobody waits its mode does not."""
    made = plan(Policy(rules=RULES), TARGETS, Facts(), mode=mode, data_class="public")
    policy, facts = Policy(by_then, rules=RULES, device_rules=(there,)), Facts(rules=(there,) if now else ())
    for before, asked in ((made, mode), (by_itself(made), None)):
        (allowed, *_) = [leg.permit for leg in before.legs if leg.permit is not None]
        again = plan(policy, TARGETS, facts, mode=asked, data_class="public")
        assert bool(withdrawn(policy, facts, allowed)) == all(leg.permit is None for leg in again.legs)
