"""Devices of a fleet with a state: battery, heat and load by their formulas, and the rules of their policy, stepped as on a device."""

from __future__ import annotations

import json
from math import exp

import numpy as np
import pytest
from commands import cli

from edgeroute import Reading, Rule
from edgeroute.core.device_rules import in_force, step
from edgeroute.core.plan import Facts, Plan, plan
from edgeroute.core.policy_egress_and_options import Policy, Target
from edgeroute.tools.cli.simulate_fleets_and_overload import show
from edgeroute.tools.replay.fleet import simulated_devices_and_cloud as devices
from edgeroute.tools.replay.fleet.outage_simulation_and_capacity_search import simulate
from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import Course, Device, Scenario, Shares
from edgeroute.tools.replay.replay_setup_and_result import Setup

LOW, HOT = Rule("battery", "only_edge", 0.3), Rule("heat", "prefer_cloud", 40)
TARGETS = (Target("small", "edge", 0.8), Target("large", "edge", 0.9), Target("cloud", "cloud"))
PAIR = TARGETS[1:]


def device(*rules, targets=PAIR, mode="prefer_edge", every_s=None, **more):
    return Device(Policy(mode, device_rules=rules, sensors_every_s=every_s), targets, **more)


def fleet(of, **more):
    return Scenario(
        **{"devices": 1000, "per_minute": 60.0, "length_s": 600.0, "outage_at_s": 0.0, "outage_s": 0.0, "device": of, **more}
    )


@pytest.mark.parametrize(
    ("rules", "mode", "shares"),
    [
        ((), "prefer_edge", Shares(1.0, 0.2)),
        ((), "prefer_cloud", Shares(0.0, 1.0)),
        ((), "only_edge", Shares(1.0, 0.0)),
        ((LOW,), "prefer_edge", Shares(1.0, 0.0)),
        ((HOT,), "prefer_edge", Shares(0.0, 1.0)),
        ((LOW, HOT), "prefer_edge", Shares(1.0, 0.0)),
        ((Rule("memory", "unload", 0.1),), "prefer_edge", Shares(0.0, 1.0)),
        ((Rule("load", "small_model", 0.9),), "prefer_edge", Shares(0.5, 0.2)),
        ((Rule("power", "cheapest_energy", 1),), "prefer_edge", Shares(0.0, 1.0)),
    ],
)
def test_the_plan_says_where_requests_go(rules, mode, shares):
    """With the rules in force; the cheaper side is the cloud here, as a call takes 1 J and a run 2 J."""
    assert device(*rules, targets=TARGETS, mode=mode, run_j=2.0, call_j=1.0).shares(rules, 0.2) == pytest.approx(shares)


def by_hand(of, scenario, charge, around, first_s, until):
    """One device, a reading after the other, by the formulas and the core's own functions -> charge, heat, in force (s), switches."""
    every_s, per_s, at = of.policy.sensors_every_s or 10.0, scenario.per_minute / 60, 0.0
    celsius, state, seconds, switches, rules = (
        around + of.c_per_w * of.idle_w,
        (),
        dict.fromkeys(of.policy.device_rules, 0.0),
        0,
        (),
    )
    due = first_s
    while True:
        end = min(due, until)
        made = plan(of.policy, of.targets, Facts(rules=rules))
        assert isinstance(made, Plan)
        cloud = 1.0 if made.legs[0].permit else scenario.defer if made.legs[-1].permit else 0.0
        edge = 0.0 if made.legs[0].permit else 1.0
        power = of.idle_w + per_s * (edge * of.run_j + cloud * of.call_j) if charge > 0 else 0.0
        charge = max(0.0, charge - power * (end - at) / 3600 / of.battery_wh)
        celsius += (around + of.c_per_w * power - celsius) * (1 - exp(-(end - at) / of.warming_s))
        for rule in rules:
            seconds[rule] += end - at
        at = end
        if due > until:
            return charge, celsius, seconds, switches
        if charge > 0:
            state = step(of.policy.device_rules, state, Reading(charge, celsius, mains=False), at)
            switches += len({*in_force(state)} ^ {*rules})
            rules = in_force(state)
        else:
            rules, state = (), ()
        due += every_s


@pytest.mark.parametrize("every_s", [None, 2.0])
def test_each_kind_is_a_device_by_the_formulas_and_the_cores_own_step(every_s):
    """Charge, heat, and how long which rule was in force, each as one device has it by hand; read as often as the policy says."""
    of = device(LOW, HOT, every_s=every_s, battery=0.35, battery_wh=0.5, run_j=1.5, call_j=0.3)
    scenario = fleet(of, devices=7, defer=0.2)
    found = Course(scenario, of)
    charge, around, first = found.charge.copy(), found.around_c.copy(), found.due.copy()
    result = found.result(600.0)
    expected = [by_hand(of, scenario, *one, 600.0) for one in zip(charge.tolist(), around.tolist(), first.tolist(), strict=True)]
    assert found.charge == pytest.approx([one[0] for one in expected])
    assert found.celsius == pytest.approx([one[1] for one in expected])
    for rule in result.rules:
        assert rule.share == pytest.approx(np.mean([one[2][rule.rule] for one in expected]) / 600)
    assert sum(rule.switches for rule in result.rules) == pytest.approx(np.mean([one[3] for one in expected]))
    assert all(0 < rule.share < 1 for rule in result.rules)
    assert result.battery == pytest.approx(np.mean([one[0] for one in expected]))


def test_the_cloud_has_the_load_that_the_rules_leave():
    """Above a heat all go to the cloud, below a charge none; an empty device asks nothing; and every request has an answer."""
    hot = simulate(fleet(device(HOT._replace(enter=20)), margin=12.0, length_s=200.0))
    assert hot.asked[:5].sum() < 0.35 * hot.asked[100:105].sum()
    assert hot.asked[100:200].sum() == pytest.approx(1000 * 100, rel=0.02)
    low = simulate(fleet(device(LOW, battery=0.1), length_s=200.0))
    assert low.asked[:10].sum() > 0
    assert low.asked[11:].sum() == 0
    assert low.device.rules[0].share > 0.9
    empty = simulate(fleet(device(battery=0.5, battery_wh=0.01), length_s=200.0))
    assert empty.asked[:10].sum() > 0
    assert empty.asked[60:].sum() == 0
    assert (empty.device.battery, empty.device.empty) == pytest.approx((0.0, 1.0))
    assert hot.lost == low.lost == empty.lost == 0


def test_outboxes_wait_while_nothing_leaves_by_itself():
    """What the outage has put there stays while only_edge is in force."""
    of = fleet(device(LOW, battery=0.1, every_s=30.0), offline="queue", outage_s=30.0, length_s=200.0)
    found = simulate(of)
    assert found.queued > 0
    assert found.delivered < found.queued / 2
    assert found.waiting == found.queued - found.delivered


def test_no_more_switches_than_the_hysteresis_allows():
    """Load about a level: with a band it switches once, whatever the number of readings."""
    rule = Rule("power", "prefer_cloud", 1.05)
    result = Course(fleet(device(rule, run_j=0.1)), device(rule, run_j=0.1)).result(3600.0)
    assert result.rules[0].switches == pytest.approx(1.0), "1.1 W is more; once it rests, 1 W is more than nine tenths of that"


@pytest.mark.slow
def test_the_same_seed_and_devices_without_a_state():
    """The same numbers again; and a fleet without a state has those that it had."""
    of = fleet(device(LOW, HOT, battery=0.3), length_s=60.0)
    one, same, other = simulate(of), simulate(of), simulate(of._replace(seed=1))
    assert one.asked.tolist() == same.asked.tolist()
    assert one.device == same.device
    assert one.device != other.device
    plain = simulate(of._replace(device=None))
    assert plain.device is None
    idle = simulate(of._replace(device=device()))
    assert idle.asked.sum() == pytest.approx(plain.asked.sum(), rel=0.02)
    assert of.devices > devices.KINDS


POLICY = """
threshold = 0.85
sensors_every = "5s"
[edge]
path = "edge.onnx"
[cloud]
url = "http://127.0.0.1:1/v2/models/m"
joules_per_call = 0.5
[[rule]]
of = "battery"
enter = "30%"
then = "only_edge"
[[rule]]
of = "memory"
enter = "10%"
then = "unload"
"""


@pytest.mark.slow
def test_the_command_steps_the_rules_of_a_policy(tmp_path, capsys):
    """It shows how long each was in force and how often it switched; of what is not simulated it says so."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    options = (
        "simulate",
        "fleet",
        "--devices",
        "50",
        "--outage",
        "2s",
        "--per-minute",
        "60",
        "--length",
        "75s",
        "--battery",
        "25%",
        "-p",
        str(policy),
    )
    code, out, _ = cli(*options, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["scenario"]["device"]["call_j"] == 0.5
    assert told["scenario"]["device"]["battery"] == 0.25
    state = told["clients"][0]["device"]
    low, memory = state["rules"]
    assert (low["text"], low["rule"]["leave"]) == ("battery below 30%: only_edge", 0.35)
    assert 0.5 < low["share"] < 1
    assert 0.5 < low["switches"] <= 1
    assert (memory["share"], memory["switches"]) == (0, 0)
    assert all(client["device"] == state for client in told["clients"])
    show(fleet(Device.of(Setup.read(policy), battery=0.25)), told["clients"])
    out = capsys.readouterr().out
    for text in (
        "battery below 30%: only_edge",
        "memory is not simulated: its rules were never in force",
        "of a full battery were",
    ):
        assert text in out
    for wrong in (("--battery", "20%"), ("--policy", str(policy), "--ambient", "nan"), ("--policy", str(tmp_path / "none.toml"))):
        code, _, err = cli("simulate", "fleet", *wrong)
        assert code != 0
        assert "Traceback" not in err
    policy.write_text(POLICY.replace("threshold = 0.85", 'threshold = 0.85\nmode = "only_edge"'))
    code, _, err = cli(*options)
    assert code == 2
    assert "has no load" in err.replace("\n", " ")
    policy.write_text(POLICY.partition("[cloud]")[0])
    code, _, err = cli(*options)
    assert code == 2
    assert "[cloud]" in err
