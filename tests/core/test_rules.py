"""Rules on the device's state: a pure step with hysteresis, and what the rules in force make of a plan."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeroute import Prediction, Reading, Rule
from edgeroute.core import reason_text_and_trace_record as explain
from edgeroute.core.device_rules import OF, Standing, in_force, problem, step
from edgeroute.core.plan import Facts, Plan, plan
from edgeroute.core.policy_egress_and_options import INF, Policy, Target
from edgeroute.core.stream_walk import StreamWalk
from edgeroute.core.walk import Done, Failed, walk
from edgeroute.tools import walk_driver_in_virtual_time as virtual

LOW = Rule("battery", "only_edge", enter=0.2)
HOT = Rule("heat", "prefer_cloud", enter=80)
TIGHT = Rule("memory", "unload", enter=0.1)
BUSY = Rule("load", "small_model", enter=0.9)
SMALL, LARGE, CLOUD = Target("small", "edge", 0.8), Target("large", "edge", 0.9), Target("cloud", "cloud")
ALL = (SMALL, LARGE, CLOUD)


def course(rule, *values, every_s=10.0, state=()):
    """Whether the rule is in force after each of these readings."""
    found = []
    for i, value in enumerate(values):
        reading = value if isinstance(value, Reading) else Reading(**{OF[rule.of].reading: value})
        state = step((rule,), state, reading, i * every_s)
        found.append(bool(in_force(state)))
    return found


# ------------------------------------------------------------------------------------------------------------ the step
def test_a_charge_about_the_limit_changes_nothing():
    """19.9 and 20.1 % by turns: the rule comes into force once, and ends at 25 %."""
    assert course(LOW, *[0.201, 0.199] * 50) == [False, *[True] * 99]
    assert course(LOW, 0.2, 0.1999, 0.2499, 0.25, 0.2, 0.24) == [False, True, True, False, False, False]


@pytest.mark.parametrize(
    ("rule", "inside", "between", "outside"),
    [
        (LOW, 0.19, 0.22, 0.25),
        (HOT, 80.1, 78, 75),
        (TIGHT, 0.09, 0.12, 0.15),
        (BUSY, 0.91, 0.85, 0.8),
        (Rule("gpu", "prefer_cloud", enter=0.5, leave=0.2), 0.6, 0.3, 0.2),
        (Rule("power", "cheapest_energy", enter=10.0), 10.1, 9.5, 9.0),
    ],
)
def test_each_quantity_has_its_side_and_its_band(rule, inside, between, outside):
    """In force on the one side of `enter`, until the other side of `leave`; between them it is as it was, unknown as well."""
    assert course(rule, between, rule.enter, inside, between, None, math.nan, rule.enter, outside, between) == [
        False, False, True, True, True, True, True, False, False,
    ]  # fmt: skip


def test_a_throttled_processor():
    """It is, or it is not: there is no band."""
    rule = Rule("throttled", "small_model")
    assert course(rule, None, False, True, None, True, False) == [False, False, True, True, True, False]
    assert (str(rule), rule.ends) == ("throttled", 0.0)


def test_on_mains_no_battery_is_spared():
    """It counts as full, whatever the charge, and also if that is unknown."""
    plugged = Reading(battery=0.05, mains=True)
    assert course(LOW, 0.1, plugged, Reading(battery=0.05, mains=False), Reading(mains=True)) == [True, False, True, False]


def test_a_change_has_to_last():
    """With `hold` the readings have to ask for it that long; one that does not begins it anew, an unknown one does not."""
    rule = HOT._replace(hold_s=25.0)
    assert course(rule, 90, 90, 90, 90) == [False, False, False, True]
    assert course(rule, 90, 90, 79, 90, 90, 90, 90) == [False] * 6 + [True]
    assert course(rule, 90, None, None, 90) == [False, False, False, True]
    assert course(rule, 90, 90, 90, 90, 70, 70, 76, 70, 70, 70, 70) == [False] * 3 + [True] * 7 + [False]


def test_other_rules_leave_those_that_stay_alone():
    """After a reload; a new one begins as not in force, and steps at once."""
    state = step((LOW, HOT), (), Reading(0.1, 90), 0.0)
    assert in_force(state) == (LOW, HOT)
    state = step((HOT, BUSY), state, Reading(0.1, 77, cpu=0.95), 1.0)
    assert state == (Standing(HOT, in_force=True), Standing(BUSY, in_force=True))
    assert step((), state, Reading(), 2.0) == ()


RULES = st.one_of(
    st.builds(
        lambda of, enter, gap, hold: Rule(of, "only_edge", enter, enter + gap if OF[of].low else enter - gap, hold),
        st.sampled_from(["battery", "memory", "load", "gpu"]),
        st.floats(0.3, 0.7),
        st.floats(0.01, 0.3),
        st.sampled_from([0.0, 5.0, 30.0]),
    ),
    st.builds(
        lambda of, enter, gap, hold: Rule(of, "only_edge", enter, enter - gap, hold),
        st.sampled_from(["heat", "power"]),
        st.floats(50, 90),
        st.floats(0.1, 20),
        st.sampled_from([0.0, 5.0, 30.0]),
    ),
)


@given(RULES, st.lists(st.tuples(st.floats(0, 20), st.one_of(st.none(), st.just(math.nan), st.floats(0, 1))), max_size=60))
@example(LOW._replace(leave=0.3), [(1.0, 0.1), (1.0, 0.4)] * 5)
def test_never_more_switches_than_the_band_and_the_hold_allow(rule, readings):
    """Per switch the course has crossed the whole band, and `hold` has gone by; which rule is in force is as the band says."""
    assert problem(rule) == ""
    kind, now_s, state, on, sides, switches, last_s = OF[rule.of], 0.0, (), False, [], 0, -INF
    for wait_s, share in readings:
        now_s += wait_s
        value = None if share is None else share if kind.share else 100 * share
        state = step((rule,), state, Reading(**{kind.reading: value}), now_s)
        if value is not None and not math.isnan(value):
            begins = value < rule.enter if kind.low else value > rule.enter
            ends = value >= rule.ends if kind.low else value <= rule.ends
            if (begins or ends) and (not sides or sides[-1] is not begins):
                sides.append(begins)
        if bool(in_force(state)) is not on:
            on = not on
            switches += 1
            assert sides
            assert sides[-1] is on
            assert now_s - last_s >= rule.hold_s
            last_s = now_s
        if not rule.hold_s and sides:
            assert on is sides[-1], "without a hold it follows the band"
    if sides and not sides[0]:
        sides.pop(0)  # it was not in force before
    assert switches <= len(sides)


# ----------------------------------------------------------------------------------------------------------- its mistakes
@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (LOW._replace(of="charge"), "of is one of battery, heat, memory, load, throttled, gpu, power, not 'charge'"),
        (LOW._replace(of=[]), "of is one of .*, not a list"),
        (LOW._replace(then="sleep"), "then is one of small_model, .*, not 'sleep'"),
        (LOW._replace(then="only_cloud"), "only_cloud would cost answers that the edge has: prefer_cloud asks the cloud first"),
        (LOW._replace(hold_s=-1), "hold is seconds, 0 or more, not -1"),
        (LOW._replace(hold_s=math.inf), "hold is seconds"),
        (LOW._replace(enter=None), "a rule of battery needs enter, a share from 0 to 1"),
        (LOW._replace(enter=20), "enter of battery is a share from 0 to 1, not 20"),
        (LOW._replace(enter=True), "enter of battery is a share from 0 to 1, not True"),
        (LOW._replace(enter=10**400), "enter of battery is a share from 0 to 1, not a huge number"),
        (LOW._replace(leave="30%"), "leave of battery is a share from 0 to 1, not '30%'"),
        (HOT._replace(enter=math.nan), "enter of heat is degrees Celsius, not nan"),
        (Rule("power", "only_edge", enter=-1), "enter of power is watts, not -1"),
        (LOW._replace(leave=0.2), "ends at more than it begins at, or it would flicker: leave is 20%, and enter is 20%"),
        (LOW._replace(leave=0.1), "ends at more than it begins at"),
        (LOW._replace(enter=1.0), "leave is 100%, and enter is 100%"),
        (HOT._replace(leave=81), "ends at less than it begins at, or it would flicker: leave is 81, and enter is 80"),
        (BUSY._replace(enter=0.0), "leave is 0%, and enter is 0%"),
        (Rule("throttled", "only_edge", enter=1), "a rule of throttled has neither enter nor leave"),
    ],
)
def test_rules_that_are_none(rule, says):
    """One line says what is wrong, and what to write."""
    from re import search

    assert search(says, problem(rule))


@pytest.mark.parametrize("rule", [LOW, HOT, TIGHT, BUSY, Rule("heat", "only_edge", enter=-5), Rule("throttled", "unload")])
def test_rules_that_are_some(rule):
    """With the band that they have by default."""
    assert problem(rule) == ""


# ------------------------------------------------------------------------------------------------------------- the plans
def made(rules=(), targets=ALL, mode=None, *, among=(), loading=(), joules=None, unsure=None, **policy) -> Plan:
    facts = Facts(rules=tuple(rules), loading=frozenset(loading), joules=joules or {}, unsure=unsure, **dict(among))
    found = plan(Policy(device_rules=tuple(rules), **policy), targets, facts, mode=mode)
    assert isinstance(found, Plan)
    return found


def names(found: Plan) -> list[str]:
    return [leg.name for leg in found.legs]


def said(found: Plan) -> str:
    return "\n".join(found.steps)


def test_a_rule_changes_the_mode():
    """Its mode is in the steps, and it is named."""
    found = made([HOT])
    assert (found.mode, names(found), found.rules) == ("prefer_cloud", ["cloud", "large", "small"], (HOT,))
    assert found.steps[:2] == ("mode prefer_cloud", "heat above 80 C: this mode instead of prefer_edge")
    assert made([LOW]).stays == "only_edge"


def test_a_rule_that_the_policy_has_not_changes_nothing():
    """As after a reload, until the next reading."""
    found = plan(Policy(), ALL, Facts(rules=(LOW,)))
    assert (found.mode, found.rules) == ("prefer_edge", ())


def test_the_first_rule_that_changes_the_mode_counts():
    """Others are told as not applied."""
    found = made([LOW, HOT])
    assert (found.mode, found.rules) == ("only_edge", (LOW,))
    assert "heat above 80 C: prefer_cloud does not apply, as another rule goes before it (battery below 20%)" in said(found)


@pytest.mark.parametrize(
    ("of", "binding"),
    [
        ("battery", False),
        ("heat", True),
        ("memory", True),
        ("load", False),
        ("throttled", False),
        ("gpu", False),
        ("power", False),
    ],
)
def test_which_rules_a_calls_own_mode_goes_before(of, binding):
    """Before all but those of heat and memory, which protect the device."""
    rule = Rule(of, "prefer_cloud", None if of == "throttled" else 0.5)
    found = made([rule], mode="prefer_edge")
    assert (found.mode, found.rules) == (("prefer_cloud", (rule,)) if binding else ("prefer_edge", ()))
    assert ("does not apply, as the call has a mode of its own" in said(found)) is not binding
    small = Rule(of, "small_model", None if of == "throttled" else 0.5)
    assert names(made([small], mode="only_edge")) == (["small"] if binding else ["small", "large"])


@pytest.mark.parametrize("then", ["prefer_cloud", "prefer_edge"])
def test_no_rule_sends_what_a_call_keeps(then):
    """A call that asks for only_edge stays on the device, however hot that is."""
    found = made([HOT._replace(then=then)], mode="only_edge")
    assert (found.mode, names(found)) == ("only_edge", ["small", "large"])
    assert "does not apply, as the call asks for only_edge" in said(found)
    assert made([HOT._replace(then="only_edge")], mode="only_edge").mode == "only_edge"


def test_the_smallest_model_alone():
    """Of several edge models; one alone stays."""
    found = made([BUSY])
    assert names(found) == ["small", "cloud"]
    assert "load above 90%: of the edges only small, the smallest" in said(found)
    assert names(made([BUSY], mode="only_cloud")) == ["cloud"]
    assert names(made([BUSY], (SMALL, CLOUD))) == ["small", "cloud"]
    assert names(made([BUSY], (SMALL, LARGE))) == ["small"]


def test_models_that_were_freed_are_asked_last():
    """After every cloud, and the first one at half of the deadline, which leaves time to load it."""
    for policy in ({}, {"mode": "prefer_cloud"}, {"hedge_after": 0.1}):
        for deadline_s in (1.0, INF):
            found = made([TIGHT], deadline_s=deadline_s, **policy)
            assert names(found)[0] == "cloud"
            assert {*names(found)[1:]} == {"small", "large"}
            assert not any(leg.final or leg.hedge_after_s < INF for leg in found.legs[1:])
            assert [leg.start_by_s for leg in found.legs] == [INF, deadline_s / 2, INF]
            assert found.legs[1].standby == ("mode" in policy and deadline_s < INF)
        assert "free memory below 10%: small is unloaded, so it is asked last" in said(found)
    assert made([TIGHT], mode="only_cloud").legs[-1].final


def test_where_nothing_else_answers_a_freed_model_does():
    """Without a cloud, or where the data may not leave."""
    found = made([TIGHT], (SMALL, LARGE))
    assert names(found) == ["small", "large"]
    assert found.legs[-1].final
    assert "small is unloaded, and asked all the same, as there is no cloud to ask" in said(found)
    assert names(made([TIGHT], mode="only_edge")) == ["small", "large"]


def test_a_freed_model_runs_once_every_cloud_has_failed():
    """Its answer is accepted from its threshold on, and else the best there is, marked as degraded."""
    found = made([TIGHT], (SMALL, CLOUD))
    for confidence, accepted in ((0.9, True), (0.1, False)):

        def answered(start, now, confidence=confidence):
            if start.leg == 0:
                return [Failed(0, OSError("away"), now + 1.0)]
            return [Done(1, Prediction("edge", confidence, None), now + 1.0)]

        outcome, _ = virtual.drive(walk(found, 0.0), answered)
        assert (outcome.leg, outcome.accepted) == (1, accepted)
        assert explain.trace(found, outcome, "id")["facts"]["rules"][0]["applied"] is True


@pytest.mark.parametrize("mode", ["prefer_edge", "prefer_cloud"])
@pytest.mark.parametrize("among", [{"rules": [TIGHT]}, {"loading": ["small"]}])
@pytest.mark.parametrize("clouds", [1, 2])
def test_a_cloud_that_hangs_does_not_cost_the_answer_of_a_freed_model(mode, among, clouds):
    """The deadline is not waited for; in streams, neither. A provisional answer is not worth loading it."""
    more = (CLOUD._replace(name="far"),) if clouds > 1 else ()
    found = made(targets=(SMALL, CLOUD, *more), deadline_s=1.0, mode=mode, **among)

    def answered(start, now):
        return [Done(start.leg, Prediction("edge", 0.9, None), now + 0.2)] if found.legs[start.leg].name == "small" else []

    for walked in (walk(found, 0.0), StreamWalk(found, 0.0).steps(), walk(found, 0.0, True)):
        outcome, _ = virtual.drive(walked, answered)
        assert outcome.prediction.value == "edge"
        assert next(mark.at for mark in outcome.log if mark.kind == "start" and mark.leg == outcome.leg) >= 0.5
    reserved = made(targets=(SMALL, CLOUD), deadline_s=1.0, mode=mode, **{"among": {"reserves": {"small": 0.7}}, **among})
    assert reserved.legs[1].start_by_s == pytest.approx(0.3)


def test_a_model_that_is_being_loaded_is_asked_last():
    """Others are not kept waiting by it."""
    found = made(loading=["small"])
    assert names(found) == ["large", "cloud", "small"]
    assert "small is being loaded, so it is asked last" in said(found)


def test_a_freed_model_that_is_stuck():
    """It is no standby either."""
    found = made([TIGHT], (SMALL, CLOUD), among={"busy": frozenset({"small"})})
    assert [(leg.name, leg.standby) for leg in found.legs] == [("cloud", False), ("small", False)]


def test_in_shadow_a_freed_model_is_not_run():
    """It would be loaded for nobody."""
    assert made([BUSY]).shadow_legs == ()
    shadow = plan(Policy("shadow", device_rules=(TIGHT,)), (SMALL, CLOUD), Facts())
    assert [leg.name for leg in shadow.shadow_legs] == ["small"]
    shadow = plan(Policy("shadow", device_rules=(TIGHT,)), (SMALL, CLOUD), Facts(rules=(TIGHT,)))
    assert shadow.shadow_legs == ()


FRUGAL = Rule("power", "cheapest_energy", enter=10)


@pytest.mark.parametrize(
    ("joules", "unsure", "mode", "first"),
    [
        ({"small": 1.0, "cloud": 2.0}, None, "prefer_edge", "small"),
        ({"small": 1.0, "cloud": 2.0}, 0.4, "prefer_cloud", "small"),
        ({"small": 1.0, "cloud": 2.0}, 0.6, "prefer_edge", "cloud"),
        ({"small": 3.0, "cloud": 2.0}, 0.0, "prefer_edge", "cloud"),
    ],
)
def test_the_side_that_takes_less_energy_is_first(joules, unsure, mode, first):
    """The edge's run, and the cloud's call where the edge is unsure, against the call alone."""
    facts = Facts(rules=(FRUGAL,), joules=joules, unsure=unsure)
    found = plan(Policy(mode, device_rules=(FRUGAL,)), (SMALL, CLOUD), facts)
    assert names(found)[0] == first
    assert "J a call with small first, 2 J with cloud first" in said(found)


def test_of_variants_the_energy_of_the_one_that_runs_counts():
    """Whether or not that of its neighbours is known."""
    one, other = (Target(name, "edge", 0.8, group="edge") for name in ("fp32", "int8"))
    found = made([FRUGAL], (one, other, CLOUD), among={"busy": frozenset({"fp32"})}, joules={"int8": 9.0, "cloud": 1.0})
    assert names(found) == ["cloud", "int8"]
    assert "9 J a call with int8 first" in said(found)


def test_energy_that_is_not_known_changes_nothing():
    """And that is said."""
    for joules, what in (({}, "small and cloud"), ({"cloud": 1.0}, "small"), ({"small": 1.0}, "cloud")):
        found = made([FRUGAL], (SMALL, CLOUD), joules=joules)
        assert names(found) == ["small", "cloud"]
        assert f"power above 10 W: the order stays as it is, as it is not known what energy a call of {what} takes" in said(found)
    assert names(made([FRUGAL], (SMALL, LARGE))) == ["small", "large"]
    assert made([FRUGAL], (SMALL, CLOUD), joules={"small": 9.0, "cloud": 1.0}, mode="only_cloud").mode == "only_cloud"


@given(
    st.sampled_from(["prefer_edge", "prefer_cloud", "only_edge", "only_cloud"]),
    st.dictionaries(st.sampled_from(["small", "cloud"]), st.floats(0, 100)),
    st.sampled_from([None, "prefer_edge", "prefer_cloud", "only_edge"]),
)
def test_a_joule_budget_that_is_spent_costs_no_leg(policy, joules, own):
    """It changes the order alone, to the side that takes less; a call's own mode and a rule's go before it."""
    targets = (SMALL, CLOUD)
    facts = Facts(joules=joules, energy_spent=True)
    found, usual = (plan(Policy(policy), targets, one, mode=own) for one in (facts, Facts()))
    assert isinstance(found, Plan)
    assert isinstance(usual, Plan)
    assert {*names(found)} == {*names(usual)}
    if own is not None or policy.startswith("only_") or len(joules) < 2:
        assert found.mode == usual.mode
    else:
        assert names(found)[0] == ("small" if joules["small"] < joules["cloud"] else "cloud")
        assert "joules_per_hour is spent: " in said(found)
    ruled = plan(Policy(policy, device_rules=(HOT,)), targets, facts._replace(rules=(HOT,)))
    assert isinstance(ruled, Plan)
    assert ruled.mode == "prefer_cloud"


def test_the_trace_has_what_is_in_force_and_what_applied():
    """Each with its band."""
    found = made([LOW, HOT], mode=None)
    outcome, _ = virtual.drive(walk(found, 0.0), lambda start, now: [Done(start.leg, Prediction("a", 0.99, None), now)])
    rules = explain.trace(found, outcome, "id")["facts"]["rules"]
    assert [(rule["of"], rule["then"], rule["leave"], rule["applied"]) for rule in rules] == [
        ("battery", "only_edge", 0.25, True), ("heat", "prefer_cloud", 75.0, False),
    ]  # fmt: skip
