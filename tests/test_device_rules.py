"""Rules on the device's state in a router: what they change, in policy files, `check`, traces and replay; memory that is short."""

import json
import os
import threading

import pytest
import routes
from both import LONG, Threads, flat, makes, sure, unsure
from devices import Device, engine_of, now_it_reads

from edgeroute import Options, PolicyError, Reading, Router, Rule, Trace
from edgeroute.record.instrument_interface import RequestEnded
from edgeroute.router.engine import read_sensors_once
from edgeroute.tools.replay import replay
from edgeroute.tools.replay.recorded_requests_and_statistics import collect
from edgeroute.tools.replay.replay_setup_and_result import Setup

HOT = Rule("heat", "prefer_cloud", enter=80)
LOW = Rule("battery", "only_edge", enter=0.2)
TIGHT = Rule("memory", "unload", enter=0.1)


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes(threshold=0.5)


def cloud(_):
    return "cloud", 0.9


class Model:
    """Says when it is loaded and freed; `gate` holds up its loading."""

    name, parallel = "model", None

    def __init__(self, confidence=0.9, error=None):
        self.confidence, self.error, self.log, self.gate = confidence, error, [], None

    def load(self):
        """Loads it."""
        if self.gate is not None:
            assert self.gate.wait(LONG)
        self.log.append("load")

    def run(self, inputs, cancel=None):
        """Answers, or fails."""
        self.log.append("run")
        if self.error is not None:
            raise self.error
        return [("edge", self.confidence) for _ in inputs]

    def close(self):
        """Frees it."""
        self.log.append("close")


# ------------------------------------------------------------------------------------------------------- what they change
def test_a_rule_in_force_is_in_the_reason(make):
    """Of an answer that is accepted, too; after it has ended, the policy's own mode is back."""
    device = Device(temperature_c=85)
    router = make(sure, cloud, rules=[HOT], sensors=device)
    assert routes.rules(router.infer(1)) == [("heat", "prefer_cloud")]
    device.says = Reading(temperature_c=76)
    now_it_reads(router, device)
    assert router.infer(1).source == "cloud", "it ends at 75"
    device.says = Reading(temperature_c=75)
    now_it_reads(router, device)
    answer = router.infer(1)
    assert routes.judged(answer) == ("accepted", 0.9, 0.5, "uncalibrated")
    assert routes.rules(answer) == []


def test_plans_are_kept_while_no_rule_begins_or_ends(make):
    """However the readings change: facts are the rules in force."""
    device = Device(battery=0.201)
    router = make(unsure, cloud, rules=[LOW], sensors=device)
    router.infer(1)
    engine = engine_of(router)
    facts, plans = engine.observer.facts, dict(engine.snapshot.plans)
    device.says = Reading(battery=0.9, temperature_c=30.0)
    now_it_reads(router, device)
    assert engine.observer.reading.battery == 0.9
    assert engine.observer.facts is facts
    assert all(engine.snapshot.plans[key] is plan for key, plan in plans.items())
    device.says = Reading(battery=0.199)
    now_it_reads(router, device)
    assert engine.observer.facts.rules == (LOW,)
    for charge in (0.201, 0.199, 0.201):
        facts, device.says = engine.observer.facts, Reading(battery=charge)
        now_it_reads(router, device)
        assert engine.observer.facts is facts


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rules": [LOW._replace(enter=20)]}, "rules: enter of battery is a share from 0 to 1, not 20"),
        ({"rules": [HOT], "cloud": None}, "a rule with then='prefer_cloud' needs cloud="),
        ({"rules": [TIGHT], "edge": None}, "a rule with then='unload' needs edge="),
        (
            {"rules": [TIGHT._replace(then="small_model")]},
            "needs several edge models, of which it leaves the smallest, and there are 1",
        ),
        ({"rules": HOT}, "rules= takes a list of rules"),
        ({"rules": ["heat"]}, "rules= takes a list of rules"),
    ],
)
def test_rules_that_cannot_be(given, says):
    """They are refused when the router is made."""
    with pytest.raises(PolicyError, match=says):
        Router(**flat(**{"edge": sure, "cloud": cloud, "threshold": 0.5, **given}))


@pytest.mark.parametrize("battery", [15, -5, float("inf")])
def test_a_share_that_is_none_is_not_known(battery, caplog):
    """Per cent, say: 15 would be far above 20 %, and -5 below. It is said, and what else was read counts."""
    rules = [Rule("battery", "only_edge", 0.2), Rule("heat", "only_edge", 80)]
    sensors = lambda: Reading(battery=battery, temperature_c=90)  # noqa: E731 - short
    with Router(unsure, cloud, threshold=0.5, options=Options(sensors=sensors, rules=rules)) as router:
        assert routes.rules(router.infer(1)) == [("heat", "only_edge")]
        assert router.engine.observer.reading.battery is None
    assert [record.message for record in caplog.records if "shares from 0 to 1" in record.message] == [
        f"the sensors say that battery is {battery:g}: these are shares from 0 to 1, so they count as unknown"
    ]


def test_check_shows_the_rules_and_what_is_not_known():
    """Whether each is in force, where it ends, and of what there is no reading here."""
    rules = [
        LOW,
        HOT._replace(leave=60, then="only_edge"),
        Rule("gpu", "prefer_cloud", enter=0.9),
        Rule("throttled", "only_edge"),
    ]
    with Router(
        sure, cloud, threshold=0.5, options=Options(sensors=Device(battery=0.1, temperature_c=50), rules=rules)
    ) as router:
        lines = "\n".join(router.check().lines)
    assert "rule: battery below 20% until 25%: only_edge (in force)" in lines
    assert "rule: heat above 80 C until 60: only_edge\n" in lines
    assert "rule: GPU load above 90% until 80%: prefer_cloud\nrule: throttled: only_edge\n" in lines
    for of in ("gpu", "throttled"):
        assert f"rule of {of}: " in lines
    assert "rule of heat" not in lines
    assert "never applies" in lines


# ------------------------------------------------------------------------------------------------------------- memory
def test_memory_that_is_short_frees_the_edge(make):
    """It is freed, and calls go to the cloud; afterwards it is loaded again, and meanwhile they do as well."""
    model, device = Model(), Device(memory_available=0.5)
    router = make(model, cloud, rules=[TIGHT], sensors=device)
    assert router.infer(1).source == "edge"
    device.says = Reading(memory_available=0.05)
    now_it_reads(router, device)
    assert "close" in model.log
    runs = model.log.count("run")
    answer = router.infer(1)
    assert (answer.source, answer.degraded) == ("cloud", False)
    assert routes.rules(answer) == [("memory", "unload")]
    assert model.log.count("run") == runs
    model.gate, device.says = threading.Event(), Reading(memory_available=0.5)
    device.read.clear()
    engine = engine_of(router)
    engine.observer.reads_at = 0.0
    router.infer(1)
    wait_for(lambda: engine.observer.facts.loading)
    assert router.infer(1).source == "cloud"
    model.gate.set()
    wait_for(lambda: not engine.observer.facts.loading)
    assert router.infer(1).source == "edge"
    assert model.log[-2:] == ["load", "run"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it has no fork")
def test_a_child_that_was_forked_while_a_model_was_loaded(tmp_path):
    """It has not the thread that loads it: it loads it anew."""
    model, device = Model(), Device(memory_available=0.05)
    with Threads(model, cloud, threshold=0.5, rules=[TIGHT], sensors=device) as router:
        assert router.infer(1).source == "cloud"
        model.gate, device.says = threading.Event(), Reading(memory_available=0.5)
        now_it_reads(router, device)
        wait_for(lambda: router.engine.observer.facts.loading)
        child = os.fork()
        if not child:
            code = 1
            try:
                model.gate, device.read = None, threading.Event()
                wait_for(lambda: router.infer(1).source == "edge")
                code = 0
            except BaseException as e:  # noqa: BLE001 - the parent has it
                (tmp_path / "said").write_text(repr(e))
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0, (tmp_path / "said").read_text()
        model.gate.set()
        wait_for(lambda: router.infer(1).source == "edge")


def test_without_a_cloud_a_freed_model_answers_all_the_same(make):
    """And it is freed at each reading."""
    model, device = Model(), Device(memory_available=0.05)
    router = make(model, None, rules=[TIGHT], sensors=device)
    assert router.infer(1).source == "edge"
    closed = model.log.count("close")
    now_it_reads(router, device)
    assert model.log.count("close") == closed + 1


def test_a_model_is_not_freed_under_a_run(make):
    """It is freed when the run has ended."""
    gate, begun, model, device = threading.Event(), threading.Event(), Model(), Device(memory_available=0.5)

    def run(inputs, cancel=None):
        begun.set()
        assert gate.wait(LONG)
        model.log.append("ran")
        return [("edge", 0.9) for _ in inputs]

    model.run = run
    router = make(model, cloud, rules=[TIGHT], sensors=device)
    answer = router.start(1)
    assert begun.wait(LONG)
    device.says = Reading(memory_available=0.05)
    read_sensors_once(engine_of(router))
    assert model.log == []
    gate.set()
    assert answer.result(LONG).source == "edge"
    wait_for(lambda: model.log == ["ran", "close"])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("the model is being loaded")])
def test_a_model_that_is_out_of_memory(make, error):
    """The next target answers."""
    answer = make(Model(error=error), cloud).infer(1)
    assert answer.source == "cloud"
    assert routes.error(answer, "edge").startswith(type(error).__name__)


def wait_for(what):
    waited = threading.Event()
    for _ in range(int(LONG * 200)):
        if what():
            return
        waited.wait(0.005)
    raise AssertionError("it did not happen")


# ------------------------------------------------------------------------------------------------ policy files and replay
POLICY = """
threshold = 0.5
[cloud]
url = "http://127.0.0.1:1/v2/models/m"
[[rule]]
of = "battery"
enter = "20%"
then = "only_edge"
[[rule]]
of = "heat"
enter = 80
leave = 70.5
hold = "30s"
then = "prefer_cloud"
"""


def test_a_policy_file_has_them(tmp_path, monkeypatch):
    """With units; a variable beats one; a reload changes them, and a rule that stays is as it was."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    device = Device(battery=0.1)
    with Router.from_policy(policy, edge=unsure, cloud=cloud, sensors=device) as router:
        assert router.engine.snapshot.policy.device_rules == (LOW, Rule("heat", "prefer_cloud", 80.0, 70.5, 30.0))
        assert router.infer(1).source == "edge"
        device.says = Reading(battery=0.22)
        now_it_reads(router, device)
        policy.write_text(POLICY.replace('"30s"', '"0s"'))
        router.reload()
        assert router.infer(1).source == "edge", "it is in force until 25 %"
        policy.write_text(POLICY.partition("[[rule]]")[0])
        router.reload()
        assert router.infer(1).source == "cloud"
    monkeypatch.setenv("EDGEROUTE_RULE__0__ENTER", "50%")
    policy.write_text(POLICY)
    with Router.from_policy(policy, edge=unsure, cloud=cloud, sensors=device) as router:
        assert router.engine.snapshot.policy.device_rules[0].enter == 0.5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (('enter = "20%"', "enter = 20"), 'rule[0].enter: expected a share such as "1%" or 0.01, found 20; did you mean "20%"?'),
        (("enter = 80", 'enter = "80%"'), 'rule[1].enter: expected degrees Celsius, a number such as 80, found "80%"'),
        (('enter = "20%"', 'enter = "20%"\nleave = "10%"'), "rule[0]: a rule of battery ends at more than it begins at"),
        (('enter = "20%"', ""), "rule[0]: a rule of battery needs enter"),
        (('of = "heat"', 'of = "throttled"'), "rule[1]: a rule of throttled has neither enter nor leave"),
        (('then = "only_edge"', 'then = "shadow"'), 'rule[0].then: found "shadow"'),
        (('then = "only_edge"', ""), "rule[0].then: is missing"),
        (
            ('then = "only_edge"', 'then = "only_cloud"'),
            "rule[0].then: only_cloud would cost answers that the edge has: prefer_cloud ",
        ),
        (('of = "battery"', 'of = "charge"'), 'rule[0].of: found "charge"'),
        (('hold = "30s"', "hold = 30"), "rule[1].hold: expected a duration"),
        (('hold = "30s"', 'wait = "30s"'), "rule[1].wait: there is no such key"),
    ],
)
def test_mistakes_in_a_policy_file(tmp_path, wrong, says):
    """A line each, with the key."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.replace(*wrong))
    with pytest.raises(PolicyError) as error:
        Router.from_policy(policy, edge=unsure, cloud=cloud)
    assert says in str(error.value)


def test_a_reading_has_three_digits():
    """Of rules, status and traces: more are noise, and cost 8 bytes each in a trace of Parquet."""
    device, records = Device(), []
    with Router(sure, cloud, threshold=0.5, trace=records.append, options=Options(sensors=device, rules=[LOW])) as router:
        device.says = Reading(
            battery=0.0361, temperature_c=63.797, cpu=0.52525, memory_available=0.7177361, power_w=6893.2, mains=True
        )
        now_it_reads(router, device)
        router.infer(1)
        reading = {**records[-1]["reading"]}
        reading.pop("age_s")
        expected = {
            "battery": 0.036,
            "temperature_c": 63.8,
            "mains": True,
            "cpu": 0.525,
            "memory_available": 0.718,
            "power_w": 6890.0,
        }
        assert reading == expected
        assert router.status().reading == Reading(**expected)


@pytest.mark.parametrize(("age_s", "written"), [(-4e-4, -4e-4), (4e-4, 4e-4), (0.0, 0.0), (2.50049, 2.5)])
def test_the_age_of_a_reading_is_exact_while_it_is_new(age_s, written):
    """A replay has to know whether it came before a request, during it, or since; later, milliseconds are enough."""
    records = []
    with Router(sure) as router:
        answer = router.infer(0.9)
    Trace(records.append).request_ended(RequestEnded("id", None, answer, None, reading=Reading(battery=0.5), reading_age_s=age_s))
    assert records[0]["reading"]["age_s"] == pytest.approx(written)


def test_other_rules_over_a_trace_with_readings(tmp_path):
    """A trace has the readings of its time, so rules that were not there then can be replayed; by the same step."""
    device, records = Device(temperature_c=50), []
    with Router(sure, cloud, threshold=0.5, trace=records.append, options=Options(sensors=device, rules=[LOW])) as router:
        for i in range(40):
            device.says = Reading(battery=0.9, temperature_c=50 + i)
            now_it_reads(router, device)
    assert {"battery", "temperature_c", "age_s"} <= records[-1]["reading"].keys()
    trace = collect(json.loads(json.dumps(records)))
    policy = tmp_path / "new.toml"
    policy.write_text('threshold = 0.5\n[edge]\npath = "edge.onnx"\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n')
    setup = Setup.read(policy)
    assert replay(trace, setup).changed == 0
    found = replay(trace, setup._replace(policy=setup.policy._replace(device_rules=(Rule("heat", "prefer_cloud", enter=70),))))
    # above 70 degrees, from the next request on; a reading may come so late that it counts for the one after that
    assert 17 <= found.changed + sum(found.unknown.values()) <= 18
    held = Rule("heat", "prefer_cloud", enter=70, hold_s=3600.0)
    assert replay(trace, setup._replace(policy=setup.policy._replace(device_rules=(held,)))).changed == 0


def test_a_replay_of_the_same_rules_changes_nothing(tmp_path):
    """Each request has the rules in force that it had."""
    device, path = Device(battery=0.5), tmp_path / "trace.jsonl"
    with Router(unsure, cloud, threshold=0.5, trace=path, options=Options(sensors=device, rules=[LOW])) as router:
        for charge in (0.3, 0.21, 0.19, 0.21, 0.24, 0.26, 0.21, 0.1, 0.3):
            device.says = Reading(battery=charge)
            now_it_reads(router, device)
            router.infer(2)
    policy = tmp_path / "new.toml"
    policy.write_text(POLICY.partition('[[rule]]\nof = "heat"')[0] + '[edge]\npath = "edge.onnx"\n')
    found = replay(path, policy)
    assert (found.changed, found.replayed.edge, found.replayed.cloud) == (0, found.recorded.edge, found.recorded.cloud)
    assert found.recorded.edge >= 6
