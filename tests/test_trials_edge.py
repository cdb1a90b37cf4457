"""Trials of an edge: a stable share of requests or devices, statistics of each arm, the guardrail, and promotion."""

import asyncio
import contextlib
import json
import threading
from time import sleep

import numpy as np
import pytest
import tiny
from both import LONG, Tasks, Threads
from catalogs import FIRST, LABELS, SECOND, Publisher
from commands import cli
from test_recertify import until

from edgeroute import AsyncRouter, Audit, Cache, Options, PolicyError, Router, Trial, Variants
from edgeroute.edge.edge_backend import TURN, Turn
from edgeroute.router.trial_arms_and_guardrail import RunningTrial, Seen
from edgeroute.trials.trial_setting import check_trials

X = np.array([1, 0, 0, 0], np.float32)


@pytest.fixture
def two(tmp_path):
    """Two models: what one calls a, the other calls c."""
    return [
        tiny.linear(tmp_path / f"{name}.onnx", weights=weights, card={"labels": LABELS})
        for name, weights in (("one", FIRST), ("two", SECOND))
    ]


def cloud(x):
    return "a"


@pytest.fixture(params=[Threads, Tasks])
def client(request):
    return request.param


def test_a_share_of_the_requests(two, client):
    """Each is drawn for itself; its trace and the statistics name the arm."""
    with client(two[0], trial=Trial(two[1], share=0.3)) as r:
        found = [r.infer(X) for _ in range(500)]
        assert 100 < sum(one.value == "c" for one in found) < 200
        assert all(one.leg == ("edge-trial" if one.value == "c" else "edge") for one in found)
        a, b = r.stats().arms
        assert (a.arm, a.model, b.arm, b.model) == ("edge", "one", "edge-trial", "two")
        assert a.requests + b.requests == 500
        assert b.requests == sum(one.value == "c" for one in found)
        assert a.failed.low == b.failed.share == 0.0
        assert 0 < b.failed.high < 0.06
        assert 0 <= b.mean_s.low < b.mean_s.share < b.mean_s.high
        assert b.p50_s <= b.p99_s
        assert [leg.name for leg in r.stats().legs] == ["edge", "edge-trial"]


def test_equal_keys_are_in_one_arm(two):
    """Whatever the process, and in whichever order they come; another salt draws another share."""

    def arms(salt=""):
        with Router(two[0], trial=Trial(two[1], share=0.5, by=lambda x: x.tobytes(), salt=salt)) as router:
            inputs = [np.array([i, 0, 0, 0], np.float32) for i in range(1, 41)]
            first = [router.infer(x).value for x in inputs]
            assert [router.infer(x).value for x in inputs[::-1]] == first[::-1]
            assert [router.infer_many([x, x])[1].value for x in inputs] == first
            return first

    one = arms()
    assert arms() == one
    assert 5 < one.count("c") < 35
    assert arms("other") != one


def test_users_are_the_units_of_the_guardrail(two, client, tmp_path):
    """A user who asks often bets as often as others: one alone stops nothing, a hundred do; also after a restart."""

    def failing(x):
        raise RuntimeError("broken")

    trial = Trial(failing, share=0.5, by=lambda x: x[0])
    with client(two[0], trial=trial, state=tmp_path) as router:
        for i in (1, 2, 3, 4):
            for _ in range(200):
                with contextlib.suppress(RuntimeError):
                    router.infer(np.array([i, 0, 0, 0], np.float32))
        assert not router.stats().arms[1].stopped
        units = router.engine.trials.dump()[0]["tests"]["more_errors"]["units"]
        assert len(units) == 4
    with client(two[0], trial=trial, state=tmp_path) as router:
        assert router.engine.trials.dump()[0]["tests"]["more_errors"]["units"] == units
        for i in range(100, 200):
            with contextlib.suppress(RuntimeError):
                router.infer(np.array([i, 0, 0, 0], np.float32))
        assert "more requests that its edge model failed on" in router.stats().arms[1].stopped


def test_a_share_of_the_devices(two):
    """All requests of a device are in one arm; of many devices that share is in B."""
    found = []
    for device in range(40):
        with Router(two[0], trial=Trial(two[1], share=0.5, device=f"device-{device}")) as router:
            values = {router.infer(X).value for _ in range(5)}
            assert len(values) == 1
            found += values
    assert 8 < found.count("c") < 32


def test_a_session_is_in_one_arm(two):
    """A model that keeps a state would miss the inputs that the other one got."""

    def blocking(router):
        with router.session() as session:
            return {session.infer(X).value for _ in range(5)}

    async def awaited():
        async with AsyncRouter(two[0], trial=Trial(two[1], share=0.5)) as router:
            for _ in range(20):
                async with router.session() as session:
                    found.append({(await session.infer(X)).value for _ in range(5)})

    with Router(two[0], trial=Trial(two[1], share=0.5)) as router:
        found = [blocking(router) for _ in range(20)]
    asyncio.run(awaited())
    for some in (found[:20], found[20:]):
        assert {tuple(values) for values in some} == {("a",), ("c",)}


def test_what_the_cache_renews_is_of_the_same_arm():
    """The entry of one arm never holds an answer of the other's model."""
    now, runs = [0.0], []

    def model(name):
        return lambda x: runs.append(name) or (name, 0.9)

    cache = Cache(ttl_s=1, stale_while_revalidate_s=1e6, clock=lambda: now[0])
    with Router(model("a"), mode="only_edge", trial=Trial(model("b"), share=0.5), cache=cache) as router:
        for _ in range(60):
            now[0] += 2
            before = len(runs)
            answer = router.infer("x")
            until(lambda before=before: len(runs) > before)
            until(lambda: not len(router.engine.caching.flights))
            assert runs[-1] == answer.value, "by the model whose answer it was"
        assert set(runs) == {"a", "b"}


def test_the_key_takes_its_time_from_the_deadline(two):
    """One deadline: what `by` takes is part of it."""

    def by(x):
        sleep(0.2)
        return x.tobytes()

    with Router(two[0], trial=Trial(two[1], share=0.5, by=by)) as router:
        assert router.infer(X).latency_s >= 0.2


@pytest.mark.parametrize(("share", "value"), [(0, "a"), (1, "c")])
def test_all_or_nothing(two, share, value):
    with Router(two[0], trial=Trial(two[1], share=share)) as router:
        assert {router.infer(X).value for _ in range(50)} == {value}


def test_a_function_that_fails_costs_no_answer(two):
    """The request is in the arm in use."""

    class Key:
        def __str__(self):
            raise SystemExit

    for by in (lambda x: 1 / 0, lambda x: Key()):
        with Router(two[0], trial=Trial(two[1], share=1, by=by)) as router:
            assert router.infer(X).value == "a"


def test_each_arm_has_its_threshold(two):
    """And what is deferred is counted for each."""
    with Router(two[0], cloud, threshold=0.5, trial=Trial(two[1], share=0.5, threshold=1.0, more_deferred=1)) as router:
        for _ in range(400):
            router.infer(X)
        a, b = router.stats().arms
        assert a.deferred.share == 0
        assert b.deferred.share == 1
        assert b.deferred.low > 0.9
    with Router(two[0], cloud, threshold=0.5, trial=Trial(two[1], share=0.5)) as router:
        assert router.engine.snapshot.trial.targets[0].threshold == 0.5


def test_audits_compare_each_arm(two):
    """The loss and what differs have intervals; the guardrail stops B, whose answers differ from the cloud's, and tells."""
    alarms = []

    class Sink:
        def alarm(self, target, text):
            alarms.append((target, text))

    audit = Audit(share=1.0, scene=1)
    with Router(
        two[0], cloud, threshold=0.5, audit=audit, options=Options(instruments=[Sink()]), trial=Trial(two[1], share=0.5)
    ) as router:

        def stopped():
            for _ in range(20):
                router.infer(X)
            return router.stats().arms[1].stopped

        until(stopped)
        a, b = router.stats().arms
        assert "answers that differ from the cloud's" in b.stopped
        assert a.differs.share == 0
        assert b.differs.share == 1
        assert b.compared >= 10
        assert b.loss.low > 0.4  # after ten bets, each on one value or more
        assert a.loss.low == 0
        assert a.stopped == ""
        assert {router.infer(X).value for _ in range(100)} == {"a"}
        assert ("edge-trial", b.stopped) in alarms


def test_a_model_that_fails_is_stopped(two, tmp_path):
    """The requests that it failed on are answered by the cloud."""
    wrong = tiny.linear(tmp_path / "wrong.onnx", size=4, weights=FIRST, card={"labels": LABELS})

    class Failing:
        name = "failing"
        labels = tuple(LABELS)

        def run(self, inputs, cancel=None):
            raise RuntimeError("no memory")

    with Router(wrong, cloud, threshold=0.5, trial=Trial(Failing(), share=0.5)) as router:
        for _ in range(300):
            assert router.infer(X).value == "a"
        b = router.stats().arms[1]
        assert "failed" in b.stopped
        assert b.requests < 100
        assert b.failed.share == 1


def test_arms_that_are_equal_are_not_stopped(two):
    with Router(two[0], cloud, threshold=0.5, trial=Trial(two[0], share=0.5)) as router:
        for _ in range(1000):
            router.infer(X)
        assert router.stats().arms[1].stopped == ""


def test_promote(two):
    """B is the edge model, with its threshold; the comparison is over."""
    with Router(two[0], cloud, threshold=0.5, trial=Trial(two[1], share=0.2, threshold=0.7)) as router:
        assert {router.infer(X).value for _ in range(60)} == {"a", "c"}
        router.promote()
        assert {router.infer(X).value for _ in range(60)} == {"c"}
        assert router.stats().arms == ()
        assert router.engine.snapshot.targets[0].threshold == 0.7
        with pytest.raises(PolicyError, match="no edge on trial"):
            router.promote()


def test_versions_of_a_catalog(tmp_path):
    """B is a version that is here and not active; to promote it is to activate it, which other routers follow."""
    pytest.importorskip("tuf")
    pytest.importorskip("cryptography")
    publisher = Publisher(tmp_path)
    publisher.publish("1.0")
    publisher.publish("1.1", SECOND)
    device = publisher.device()
    device.pull("doors", "1.0")
    device.pull("doors", "1.1")
    device.activate("doors", "1.0")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({
        "mode": "only_edge", "edge": {"path": "store/doors.active"}, "trial": {"edge": "store/doors@1.1.active", "share": "50%"},
    }))  # fmt: skip
    with (
        Router.from_policy(policy) as router,
        Router(device.path("doors"), trial=Trial(device.path("doors", "1.1"), share=0.5)) as other,
    ):
        assert {router.infer(X).value for _ in range(60)} == {"a", "c"}
        assert [arm.model for arm in router.stats().arms] == ["doors 1.0", "doors 1.1"]
        assert "edge-trial, on trial: " in str(router.check())
        assert [one.name for one in router.warm()] == ["edge", "edge-trial"]
        router.promote()
        assert device.active("doors")[:2] == ("1.1", "1.0")
        assert {router.infer(X).value for _ in range(60)} == {"c"}
        other.reload()
        assert {other.infer(X).value for _ in range(60)} == {"c"}


def test_a_policy_with_arms(two, tmp_path):
    """A reload changes the share; a promotion is a change of the file."""
    policy = tmp_path / "policy.json"

    def write(**trial):
        policy.write_text(json.dumps({"mode": "only_edge", "edge": {"path": "one.onnx"}, "trial": {"edge": "two.onnx", **trial}}))

    write(share=1.0, salt="x")
    with Router.from_policy(policy) as router:
        assert {router.infer(X).value for _ in range(30)} == {"c"}
        with pytest.raises(PolicyError, match=r"make the edge of \[trial\]"):
            router.promote()
        write(share="0%")
        router.reload()
        assert {router.infer(X).value for _ in range(30)} == {"a"}
        policy.write_text(json.dumps({"mode": "only_edge", "edge": {"path": "two.onnx"}}))
        router.reload()
        assert router.stats().arms == ()
        assert router.infer(X).value == "c"
    policy.write_text(json.dumps({"edge": [{"path": "one.onnx"}, {"path": "two.onnx"}], "trial": {"edge": "two.onnx"}}))
    with pytest.raises(PolicyError, match="is on trial beside the only"):
        Router.from_policy(policy)


def test_what_came_of_them_outlives_the_process(two, tmp_path):
    """A guardrail's stop, too; and `edgeroute status` shows it. Other models, or another salt, begin anew."""

    def run(n, **more):
        settings = {"share": 0.5, "threshold": 1.0, "more_deferred": 0.0, **more}
        with Router(two[0], cloud, threshold=0.5, state=tmp_path / "state", trial=Trial(two[1], **settings)) as router:
            for _ in range(n):
                router.infer(X)
            return router.stats().arms

    first = run(200)[1]
    assert "deferrals" in first.stopped
    again = run(50)[1]
    assert (again.requests, again.stopped) == (first.requests, first.stopped)
    assert "edge-trial is stopped: edge-trial has more deferrals than edge" in cli("status", "--state", tmp_path / "state")[1]
    told = json.loads(cli("status", "--state", tmp_path / "state", "--json")[1])
    assert [one["arm"] for one in told["trials"][0]["arms"]] == ["edge", "edge-trial"]
    assert told["trials"][0]["arms"][1]["deferred"][0] == 1.0
    assert run(0, salt="other")[1].requests == 0


def test_another_version_of_a_begins_anew(tmp_path):
    """What came of the arms is about two models."""
    pytest.importorskip("tuf")
    pytest.importorskip("cryptography")
    publisher = Publisher(tmp_path)
    for version, weights in (("1.0", FIRST), ("1.1", SECOND), ("1.2", FIRST)):
        publisher.publish(version, weights)
    device = publisher.device()
    for version in ("1.0", "1.1", "1.2"):
        device.pull("doors", version)
    device.activate("doors", "1.0")
    with Router(device.path("doors"), trial=Trial(device.path("doors", "1.1"), share=0.5)) as router:
        router.infer(X)
        device.activate("doors", "1.2")
        router.reload()
        assert [(arm.model, arm.requests) for arm in router.stats().arms] == [("doors 1.2", 0), ("doors 1.1", 0)]


def test_wrong_arguments(two):
    async def by(x):
        return x

    for wrong, says in (
        ({"share": 2}, "share"), ({"alpha": 0}, "alpha"), ({"more_errors": -1}, "more_errors"), ({"by": 3}, "by is a function"),
        ({"by": by}, "plain def"),
        ({"by": len, "device": "x"}, "device is not given"),
    ):  # fmt: skip
        with pytest.raises(PolicyError, match=says):
            Router(two[0], trial=Trial(two[1], **wrong))
    with pytest.raises(PolicyError, match="beside the only edge model"):
        Router(two, threshold=0.5, trial=Trial(two[1]))
    for several in (Variants(a=two[0], b=two[1]), two):
        with pytest.raises(PolicyError, match="takes a path, a model or a callable, not"):
            Router(two[0], cloud, threshold=0.5, trial=Trial(edge=several))
    with pytest.raises(PolicyError, match=r"takes an edgeroute\.Trial"):
        Router(two[0], trial=two[1])


def test_many_callers(two):
    """No request is lost or counted twice, and each is in one arm."""
    with Router(two[0], trial=Trial(two[1], share=0.5)) as router:
        wrong = []

        def ask():
            for _ in range(300):
                answer = router.infer(X)
                if answer.value not in {"a", "c"}:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert not wrong
        assert sum(arm.requests for arm in router.stats().arms) == 2400


def stopped(seed):
    """Whether requests of which a session fails much or hardly stop a trial of the same model."""
    names = ("edge", "edge-trial")
    (trial,) = check_trials(Trial(edge="other", share=0.5, more_errors=0.0, salt=str(seed)))
    running = RunningTrial(trial, names, names, names, 1.0, 0.5, lambda *_: None)
    rng = np.random.default_rng(seed)
    rates, busy = rng.beta(0.4, 1.6, 30), rng.pareto(1.0, 30) + 0.1
    for i, session in enumerate(rng.choice(30, 3000, p=busy / busy.sum())):
        identity, failed = f"request-{i}", bool(rng.random() < rates[session])
        turn = TURN.set(Turn({}, f"session-{session}"))
        b = running.draws(identity, X)
        TURN.reset(turn)
        running.count([Seen(names[b], failed, False, None, None, None)], identity)
    return bool(running.stopped)


@pytest.mark.slow
def test_sessions_are_units_as_users_are():
    """Thirty unequal sessions, each in one arm: at most 5 % of the trials of the same model stop; with requests as units 37 %."""
    runs = 60
    assert sum(map(stopped, range(runs))) <= runs * 0.05 + 2 * (runs * 0.05 * 0.95) ** 0.5


def test_sessions_of_a_worse_model_stop_it():
    """And the test of requests goes on beside that of sessions, also after a restart."""
    names = ("edge", "edge-trial")
    (trial,) = check_trials(Trial(edge="other", share=0.5))
    running = RunningTrial(trial, names, names, names, 1.0, 0.5, lambda *_: None)
    for i in range(600):
        turn = TURN.set(Turn({}, f"session-{i // 10}"))
        b = running.draws(str(i), X)
        TURN.reset(turn)
        running.count([Seen(names[b], b, False, None, None, None)], str(i))
    assert "more requests that its edge model failed on" in running.stopped
    again = RunningTrial(trial, names, names, names, 1.0, 0.5, lambda *_: None)
    again.load([json.loads(json.dumps(running.dump()))])
    assert again.dump() == running.dump()
