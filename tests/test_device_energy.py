"""Energy in a router: fitted from its device's power, in `stats` and `status`, and what a rule makes of it."""

import json
from itertools import chain, repeat
from time import monotonic

import pytest
import routes
from both import flat
from draws import slow

from edgeroute import Function, Limits, Options, Reading, Router, Rule
from edgeroute.core.performance_estimates_and_encoding_choice import ENOUGH_READINGS
from edgeroute.observe import plan_facts_energy_rules as observer
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system.late_imports_and_plugins import package_folder
from edgeroute.tools.cli.status_and_trial_arms import status
from edgeroute.tools.replay import replay
from edgeroute.tools.replay.recorded_requests_and_statistics import collect

FRUGAL = Rule("power", "cheapest_energy", enter=1.0)


pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(autouse=True, scope="module")
def unread():
    """Sensors are read when a test says so, however long it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "READS_S", 3600.0)
        yield


def metered(router):
    """Readings a second apart of a device that takes 5 W, and 20 W more while its edge runs: now more, now less."""
    watching, before = router.engine.observer, 0.0
    begun = watching.read_at
    watching.energy.note(5.0, ["edge"], begun + 1.0)
    for i in range(3 * ENOUGH_READINGS):
        for _ in range(1 + 7 * (i % 3)):
            router.infer(0.9)
        _, seconds = router.engine.counts.busy(["edge"])["edge"]
        watching.energy.note(5.0 + 20.0 * (seconds - before), ["edge"], begun + 2.0 + i)
        before = seconds
    watching.observe(router.engine.snapshot.policy, router.engine.snapshot.targets, router.engine.snapshot.backends)
    router.engine.snapshot.plans.clear()


def spin(x):
    end = monotonic() + 0.001
    while monotonic() < end:
        pass
    return "edge", x


@pytest.mark.parametrize(("price", "first"), [(100.0, "edge"), (1e-6, "cloud")])
def test_the_edges_energy_is_fitted_and_the_cheaper_side_is_first(price, first, tmp_path, capsys):
    """The joules of a run are its time by 20 W; a cloud's are its price. `stats` has the break-even, `status` the joules."""
    cloud = Function(lambda _: ("cloud", 0.9), joules_per_call=price)
    with Router(
        spin,
        cloud,
        threshold=0.5,
        state=tmp_path / "state",
        options=Options(sensors=lambda: Reading(power_w=5.0), rules=[FRUGAL]),
    ) as router:
        assert any("it is not known what energy a call of edge" in step for step in router.decide(0.9).steps)
        metered(router)
        joules = router.stats().joules
        runs, seconds = router.engine.counts.busy(["edge"])["edge"]
        assert joules["edge"] == pytest.approx(20.0 * seconds / runs, rel=0.01)
        assert joules["cloud"] == price
        assert router.stats().break_even == pytest.approx(max(0.0, 1 - joules["edge"] / price), abs=0.01)
        answer = router.infer(0.9)
        assert answer.source == first
        assert routes.rules(answer) == [("power", "cheapest_energy")]
    status(policy=None, state=tmp_path / "state")
    assert "J a call of edge" in capsys.readouterr().out


def test_without_a_sensor_there_is_no_energy():
    """It is left off, and the order stays as it is."""
    cloud = Function(lambda _: ("cloud", 0.9), joules_per_call=1.0)
    rule = Rule("load", "cheapest_energy", enter=0.1)
    with Router(spin, cloud, threshold=0.5, options=Options(sensors=lambda: Reading(cpu=0.9), rules=[rule])) as router:
        for _ in range(2 * ENOUGH_READINGS):
            router.infer(0.9)
            router.engine.read_sensors()
        assert (router.stats().joules, router.stats().break_even) == ({"cloud": 1.0}, None)
        assert router.infer(0.9).source == "edge"


def test_status_has_the_break_even(tmp_path, capsys):
    """With the policy, whose sides it compares; where the cloud always takes less, it says that."""
    policy, state = tmp_path / "policy.toml", tmp_path / "state"
    model = package_folder("models", "fashion", has="edge.int8.onnx") / "edge.int8.onnx"
    policy.write_text(
        f'threshold = 0.5\nstate = "state"\n[edge]\npath = "{model.as_posix()}"\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n'
        "[limits]\njoules_per_hour = 100\n"
    )
    state.mkdir()
    for joules, line in (
        ({"edge": 0.02, "cloud": 0.05}, "energy: the edge first takes less while under 60 % are deferred"),
        ({"edge": 0.06, "cloud": 0.05}, "energy: the cloud takes less"),
        ({"cloud": 0.05}, None),
        ({"edge": 0.02}, None),
    ):
        store = KeyValueStore(state / "state.db")
        store.put("energy", joules)
        store.close()
        status(policy=policy, state=None)
        out, err = capsys.readouterr()
        assert [one for one in out.splitlines() if one.startswith("energy: the")] == ([] if line is None else [line])
        assert ("joules_per_hour counts no runs of edge, since their energy is not known" in err) is ("edge" not in joules)


# ------------------------------------------------------------------------------------------------------- the joule budget
def once():
    """Sensors that tell 5 W once: what a run takes, `metered` says."""
    powers = chain([5.0], repeat(None))
    return lambda: Reading(power_w=next(powers))


def ran(router):
    """Has the sensors read, and so books what the edge has taken since; returns the joules that are booked in all."""
    router.engine.read_sensors()
    return router.engine.spending.spent().joules


def limited(joules, price, tmp_path=None, **policy):
    return Router(spin, Function(lambda _: ("cloud", 0.9), joules_per_call=price), **flat(threshold=0.5, limits=Limits(joules_per_hour=joules), sensors=once(), state=None if tmp_path is None else tmp_path / "state", **policy))  # fmt: skip


def test_runs_of_the_edge_count_against_the_joule_budget(tmp_path):
    """As soon as it is known what they take: their time by 20 W, beside the cloud's calls; a restart does not forget them."""
    with limited(1e6, 7.0, tmp_path) as router:
        assert "the cloud's calls alone, until the energy of an edge's run is known" in str(router.check())
        metered(router)
        assert ran(router) == 0.0
        _, before = router.engine.counts.busy(["edge"])["edge"]
        for _ in range(5):
            assert router.infer(0.9).source == "edge"
        _, after = router.engine.counts.busy(["edge"])["edge"]
        spent = ran(router)
        assert spent == pytest.approx(20.0 * (after - before), rel=0.01)
        assert ran(router) == spent, "once"
        assert router.infer(0.1).source == "cloud"
        _, last = router.engine.counts.busy(["edge"])["edge"]
        assert router.engine.spending.spent().joules == pytest.approx(spent + 7.0), "and not yet its own run"
        assert ran(router) == pytest.approx(spent + 7.0 + 20.0 * (last - after), rel=0.01)
        assert "joules_per_hour counts the cloud's calls and the edge's runs, at 20 W while one goes" in str(router.check())
        spent = ran(router)
        for _ in range(5):
            router.infer(0.9)
    with limited(1e6, 7.0, tmp_path) as router:
        assert router.engine.spending.spent().joules >= spent + 5 * 0.018, "those since the last reading count as well"


@pytest.mark.parametrize("mode", ["prefer_edge", *slow("prefer_cloud")])
def test_past_the_budget_the_dearer_cloud_is_refused(mode):
    """The edge answers everything: it is refused nothing, and what it is not sure of is marked as degraded."""
    with limited(0.1, 100.0, mode=mode) as router:
        metered(router)
        for _ in range(10):
            router.infer(0.9, mode="only_edge")
        assert ran(router) > 0.1
        answer = router.infer(0.9)
        assert (answer.source, answer.degraded) == ("edge", False)
        assert "joules_per_hour is spent: " in " ".join(router.decide(0.9).steps)
        answer = router.infer(0.1)
        assert (answer.source, answer.degraded) == ("edge", True)
        assert routes.code(answer) == "joules_per_hour"
        assert [one.leg for one in router.infer_many([0.9, 0.1])] == ["edge", "edge"]
        assert router.infer(0.9, mode="only_edge").source == "edge"


def test_past_the_budget_the_cheaper_cloud_comes_first():
    """And is not refused: the edge would run in its place, and take more. Where it is away, the edge answers."""
    away = []

    def answered(_):
        if away:
            raise ConnectionError("away")
        return "cloud", 0.9

    cloud = Function(answered, joules_per_call=1e-6)
    with Router(spin, cloud, threshold=0.5, limits=Limits(joules_per_hour=1e6), options=Options(sensors=once())) as router:
        metered(router)
        budget = 5 * router.stats().joules["edge"]  # of runs as long as they take on this machine
        router.engine.spending.set_limits(Limits(joules_per_hour=budget))
        assert router.infer(0.9).source == "edge"
        while ran(router) <= budget:
            router.infer(0.9, mode="only_edge")
        assert router.infer(0.9).source == "cloud"
        assert router.infer(0.9, mode="prefer_edge").source == "edge", "the call's own mode goes before it"
        away.append(True)
        assert router.infer(0.9).source == "edge"


def test_without_a_sensor_the_budget_counts_the_cloud_alone(caplog):
    """Said when the router is made, and in `check`; the edge runs on as before."""
    cloud = Function(lambda _: ("cloud", 0.9), joules_per_call=1.0)
    with Router(spin, cloud, threshold=0.5, limits=Limits(joules_per_hour=1.5), options=Options(sensors=Reading)) as router:
        assert router.infer(0.1).source == "cloud"
        assert router.infer(0.1).source == "edge"
        assert ran(router) == 1.0
        assert "joules_per_hour counts the cloud's calls alone: " in caplog.text
        assert "reports no power here" in str(router.check())
    with Router(None, cloud, limits=Limits(joules_per_hour=1.5), options=Options(sensors=Reading)) as router:
        assert "joules_per_hour counts" not in str(router.check()), "there is no edge"


# ------------------------------------------------------------------------------------------------------- traces and replay
@pytest.fixture(scope="module")
def recorded():
    """A trace of 60 requests, whose runs take 0.02 J or so each; every third is deferred, for 1 J."""
    records = []
    cloud = Function(lambda _: ("cloud", 0.9), joules_per_call=1.0)
    with Router(spin, cloud, threshold=0.5, trace=records.append, options=Options(sensors=once(), rules=[FRUGAL])) as router:
        metered(router)
        before = len(records)
        for i in range(60):
            router.infer(0.1 if i % 3 == 0 else 0.9, mode="prefer_edge")
        assert all("joules" not in event for record in records[:10] for event in record["events"] if event["leg"] == "edge")
        router.infer_many([0.9, 0.9], mode="prefer_edge")
        return json.loads(json.dumps(records[before:]))


def steady(records):
    """The same trace of a device on which each run takes 0.02 J, however slow this one was."""
    even = [
        [{**e, "joules": 0.02} if "joules" in e and e["leg"] == "edge" else e for e in record["events"]] for record in records
    ]
    return [{**record, "events": events} for record, events in zip(records, even, strict=True)]


def replayed(tmp_path, records, more, price=1.0, **options):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'threshold = 0.5\n[edge]\npath = "edge.onnx"\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\njoules_per_call = {price}\n{more}'
    )
    return replay(collect(records), policy, **options)


def test_a_trace_has_the_energy_of_runs(recorded, tmp_path):
    """Where it is known: of each run its time by the power. Replay adds it up beside the calls', of a batch once."""
    runs = [e for record in recorded[:60] for e in record["events"] if e["leg"] == "edge" and e["what"] != "start"]
    assert len(runs) == 60
    took = [e["at_s"] for e in runs]
    assert [e["joules"] for e in runs] == pytest.approx([20.0 * seconds for seconds in took], rel=0.01, abs=1e-4)
    batch = [record["events"][1]["joules"] for record in recorded[60:]]
    assert batch[0] == batch[1]
    known = sum(e["joules"] for e in runs) + batch[0]
    found = replayed(tmp_path, recorded, "")
    assert found.recorded.joules == pytest.approx(known + 20.0)
    assert found.replayed.joules == pytest.approx(known + 20.0)
    assert replayed(tmp_path, recorded, "", edge_joules=2.0).replayed.joules == pytest.approx(62 * 2.0 + 20.0)
    hot = replayed(tmp_path, recorded, "", thermal="hot")
    assert hot.replayed.joules == pytest.approx(known + 20.0), "in the first two minutes it is as fast"
    odd = json.loads(json.dumps(recorded))
    for record, joules in zip(odd, (None, -1e9, 0), strict=False):
        record["events"][1]["joules"] = joules
    assert replayed(tmp_path, odd, "", thermal="warm").recorded.joules == pytest.approx(
        known + 20.0 - sum(e["joules"] for e in runs[:3])
    )
    only = replayed(tmp_path, recorded, "", price=0.0).replayed
    assert only.joules == pytest.approx(known)


RULE = '[[rule]]\nof = "power"\nenter = 1.0\nthen = "cheapest_energy"\n'


def test_the_cheaper_side_is_first_in_replay_too(recorded, tmp_path):
    """By the energy that the trace has; with another price the other side is."""
    recorded = steady(recorded)
    found = replayed(tmp_path, recorded, RULE)
    assert (found.replayed.edge, found.replayed.cloud) == (42, 20)
    found = replayed(tmp_path, recorded, RULE, price=1e-6)
    assert sum(found.unknown.values()) + found.replayed.cloud == 62, "where it was not asked then, its answer is not known"
    assert found.replayed.cloud > 0
    assert found.replayed.edge == 0
    assert any(note.startswith("the energy of a call is known from the first request on") for note in found.notes)


def test_a_joule_budget_in_replay(recorded, tmp_path):
    """Runs count; past it calls that take more than a run are refused, and no run is."""
    recorded = steady(recorded)
    found = replayed(tmp_path, recorded, "[limits]\njoules_per_hour = 5\n")
    assert found.replayed.calls == 4, "four joules of calls, and the fifth has no room beside the runs"
    assert (found.replayed.unanswered, found.replayed.degraded) == (0, 16)
    assert found.replayed.edge + found.replayed.cloud == 62
    spent = replayed(tmp_path, recorded, "[limits]\njoules_per_hour = 0.1\n", price=1e-6)
    assert spent.replayed.edge < 10
    assert spent.replayed.held == 0
    plain = [{**record, "events": [{k: v for k, v in e.items() if k != "joules" or e["leg"] == "cloud"} for e in record["events"]]}
             for record in recorded]  # fmt: skip
    found = replayed(tmp_path, plain, "[limits]\njoules_per_hour = 5\n")
    assert found.replayed.calls == 5, "it is not known what runs take"
    assert any("no record has the energy of a run of edge" in note for note in found.notes)
