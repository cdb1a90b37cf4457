"""A device that is low on energy, or hot, has another mode."""

import pytest
import routes
from both import flat, makes, sure, unsure
from devices import Device, now_it_reads

from edgeroute import Options, PolicyError, Reading, Router, Rule

pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes(threshold=0.5)
LOW = Rule("battery", "only_edge", 0.2)


def cloud(_):
    return "cloud"


def test_below_that_charge_the_mode_is_the_rules(make):
    """And the policy's again once it is 5 points more, or on mains. What is unknown changes nothing. The reason says it."""
    device = Device(battery=0.5)
    router = make(unsure, cloud, rules=[LOW], sensors=device)
    assert router.infer(1).source == "cloud"
    device.says = Reading(battery=0.19)
    now_it_reads(router, device)
    low = router.infer(1)
    assert (low.source, low.degraded) == ("edge", False)
    assert routes.judged(low) == ("accepted", 0.1, 0.5, "uncalibrated")
    assert (low.reason_code, low.trace["stays"], routes.rules(low)) == ("stays", "only_edge", [("battery", "only_edge")])
    assert low.trace["facts"]["rules"] == [
        {"of": "battery", "then": "only_edge", "enter": 0.2, "leave": 0.25, "hold_s": 0.0, "applied": True}
    ]
    assert router.infer(1, mode="prefer_edge").source == "cloud", "a call's own mode goes before it"
    if isinstance(router, Router):
        assert any("battery below 20%: this mode instead of prefer_edge" in step for step in router.decide(1).steps)
    for says, source in (
        (Reading(battery=0.2), "edge"),
        (Reading(), "edge"),
        (Reading(battery=0.25), "cloud"),
        (Reading(), "cloud"),
    ):
        device.says = says
        now_it_reads(router, device)
        assert router.infer(1).source == source


def test_a_hot_device_may_leave_the_work_to_the_cloud(make):
    """From the first request on, since the sensors are read before it."""
    router = make(sure, cloud, rules=[Rule("heat", "prefer_cloud", 80)], sensors=Device(temperature_c=81.4))
    assert router.infer(1).source == "cloud"
    if isinstance(router, Router):
        assert router.decide(1).steps[:2] == ("mode prefer_cloud", "heat above 80 C: this mode instead of prefer_edge")


def test_sensors_are_not_read_for_each_request(monkeypatch):
    """In a thousand requests within the period they are read once."""
    monkeypatch.setattr("edgeroute.observe.plan_facts_energy_rules.READS_S", 3600.0)
    device = Device(battery=0.1)
    with Router(unsure, cloud, threshold=0.5, options=Options(sensors=device, rules=[LOW])) as router:
        for _ in range(1000):
            assert router.infer(1).source == "edge"
        assert device.reads == 1


def test_sensors_that_fail_change_nothing(make):
    """What they said before counts, and they are asked again."""
    device = Device(battery=0.1)
    router = make(unsure, cloud, rules=[LOW], sensors=device)
    device.says = OSError("gone")
    now_it_reads(router, device)
    assert router.infer(1).source == "edge"
    device.says = Reading(battery=0.9)
    now_it_reads(router, device)
    assert router.infer(1).source == "cloud"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rules": [LOW._replace(then="fast")]}, "then is one of small_model, only_edge"),
        ({"rules": [LOW._replace(then="only_cloud")]}, "only_cloud would cost answers that the edge has"),
        ({"rules": [LOW._replace(then="prefer_cloud")], "cloud": None}, "then='prefer_cloud' needs cloud="),
        ({"rules": [LOW], "edge": None}, "then='only_edge' needs edge="),
    ],
)
def test_a_rules_mode_has_to_be_possible(given, says):
    """As the policy's own."""
    with pytest.raises(PolicyError, match=says):
        Router(**flat(**{"edge": sure, "cloud": cloud, "threshold": 0.5, **given}))


def test_a_policy_file_has_it(tmp_path):
    """A reload changes it."""
    policy = tmp_path / "policy.toml"
    text = 'threshold = 0.5\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n'
    policy.write_text(text + '[[rule]]\nof = "battery"\nenter = "20%"\nthen = "only_edge"\n')
    with Router.from_policy(policy, edge=unsure, cloud=cloud, sensors=Device(battery=0.1)) as router:
        assert router.engine.snapshot.policy.device_rules == (LOW,)
        assert router.infer(1).source == "edge"
        policy.write_text(text)
        router.reload()
        assert router.infer(1).source == "cloud"


def test_a_rule_spares_no_battery_that_is_charged(make):
    """The charge is known then, too."""
    router = make(unsure, cloud, rules=[LOW], sensors=Device(battery=0.1, mains=True))
    assert router.infer(1).source == "cloud"


def test_a_saver_in_a_file_is_told_which_rules_replace_it(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('threshold = 0.5\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n[saver]\nbattery_below = "20%"\n')
    with pytest.raises(PolicyError, match=r'saver: there is no such key: a \[\[rule\]\] of = "battery" and one of = "heat"'):
        Router.from_policy(policy, edge=unsure)
