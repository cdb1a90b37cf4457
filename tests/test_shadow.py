"""Shadow mode: the cloud answers as before, and it is recorded what the edge would have answered."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
import routes
import tiny
from both import LONG, Tasks, Threads, flat, makes, unsure
from commands import cli
from hypothesis import given
from hypothesis import strategies as st
from lazily import Later

from edgeroute import AsyncRouter, Audit, BadInput, OpenInference, PolicyError, Router
from edgeroute.confidence import Certificate
from edgeroute.router.policy_reload import replace
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.testing import FakeCloud
from edgeroute.trials.audits_and_drift_alarms import MOST_WAITING
from edgeroute.trials.shadow_statistics_and_job_queue import Tally

stats = Later("scipy.stats")
LABELS = ["a", "b", "c"]
EDGE = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [2, -1.5, 0]]


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes(threshold=0.5, mode="shadow")


def until(condition):
    """Returns once it holds."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


def idle(router):
    """No audit is under way."""
    until(lambda: not router.engine.auditor.jobs.busy)


def edge(x):
    """It says `a`, as surely as it is told."""
    return "a", x


def cloud(x):
    """It says `a` of most."""
    return "a" if x != 0.75 else "b"


# ------------------------------------------------------------------------------------------------------ what callers see
def test_the_cloud_answers_everything_and_the_edge_is_recorded(make, tmp_path):
    """Of four requests the edge would answer two, one of them otherwise; the calls are those of `only_cloud`."""
    asked = FakeCloud(cloud)
    router = make(edge, asked, state=tmp_path)
    answers = [router.infer(x) for x in (0.1, 0.2, 0.6, 0.75)]
    assert [(a.value, a.source) for a in answers] == [("a", "cloud")] * 3 + [("b", "cloud")]
    idle(router)
    assert asked.runs == 4
    lines = list(read(tmp_path / "audit.jsonl"))
    known = {(line["id"], line["edge_confidence"], line["audited"], line["agrees"]) for line in lines}
    how = ("deferred", "deferred", "shadow", "shadow")
    agrees = (True, True, True, False)
    assert known == {(a.id, x, h, g) for a, x, h, g in zip(answers, (0.1, 0.2, 0.6, 0.75), how, agrees, strict=True)}
    assert {(line["target"], line["probability"], line["unheard"]) for line in lines} == {("edge", 1.0, True)}
    (told,) = router.stats().shadows
    assert (told.target, told.compared, told.failed, told.answers, told.differs, told.saved_calls) == (
        "edge",
        4,
        0,
        0.5,
        0.5,
        500,
    )
    assert told.answers_low < 0.1
    assert told.answers_high > 0.9
    assert told.edge_p50_s is not None
    assert told.cloud_p50_s is not None
    assert router.stats().deferred == 4


def test_every_kind_of_call(tmp_path):
    """Of a batch each row; a stream, provisional answers, and in a session."""
    with Router(edge, cloud, threshold=0.5, mode="shadow", state=tmp_path) as router:
        router.infer_many([0.1, 0.9])
        list(router.refine(0.8))
        with router.stream(0.7) as stream:
            assert list(stream) == ["a"]
        with router.session() as session:
            session.infer(0.6)
        idle(router)
    lines = list(read(tmp_path / "audit.jsonl"))
    assert sorted(line["edge_confidence"] for line in lines) == [0.1, 0.6, 0.7, 0.8, 0.9]
    assert sum("usd" in line for line in lines) == 3, "a batch has one price"


def test_without_a_cloud_there_is_no_answer_and_no_comparison(make, tmp_path):
    """As with `only_cloud`: the edge does not help, and what the cloud did not say is not compared with."""

    def broken(_):
        raise RuntimeError("not now")

    router = make(edge, broken, state=tmp_path)
    with pytest.raises(RuntimeError, match="not now"):
        router.infer(0.9)
    idle(router)
    assert not list(read(tmp_path / "audit.jsonl"))
    assert not router.stats().shadows


def test_an_edge_that_fails_costs_nothing(make, tmp_path, caplog):
    """The answer is the cloud's; the failure is logged and counted, and the input is one that the edge would not answer."""

    def broken(_):
        raise RuntimeError("no such layer")

    router = make(broken, cloud, state=tmp_path)
    assert router.infer(0.9).value == "a"
    idle(router)
    (line,) = read(tmp_path / "audit.jsonl")
    assert (line["edge_confidence"], line["agrees"], line["audited"], line["error"]) == (None, False, "deferred", "RuntimeError")
    (told,) = router.stats().shadows
    assert (told.compared, told.failed, told.answers) == (1, 1, 0)
    assert "no such layer" in caplog.text


def test_a_ladder_runs_until_one_would_answer(make, tmp_path):
    """In its order, and a later edge only on what reaches it; an input that is no input ends it."""

    def second(x):
        if x == 0.3:
            raise BadInput("not this one")
        return "b", 0.5

    third = FakeCloud(lambda _: ("c", 0.9))
    router = make([edge, second, third], cloud, threshold=[0.8, 0.6, 0.7], state=tmp_path)
    for x in (0.9, 0.2, 0.3):
        router.infer(x)
        idle(router)
    lines = [(line["target"], line["edge_confidence"], line["audited"]) for line in read(tmp_path / "audit.jsonl")]
    names = [one.target for one in router.stats().shadows]
    assert lines == [
        (names[0], 0.9, "shadow"),
        (names[0], 0.2, "deferred"), (names[1], 0.5, "deferred"), (names[2], 0.9, "shadow"),
        (names[0], 0.3, "deferred"), (names[1], None, "deferred"),
    ]  # fmt: skip
    assert third.runs == 1


def test_without_a_threshold_nothing_would_be_answered_yet(make, tmp_path):
    """There is something to calibrate from, also where answers without a confidence are accepted."""
    router = make(edge, cloud, threshold=None, no_confidence="accept", state=tmp_path)
    router.infer(1.0)
    router.infer(None)
    idle(router)
    assert [line["audited"] for line in read(tmp_path / "audit.jsonl")] == ["deferred"] * 2


def test_the_input_may_be_overwritten_at_once():
    """As a camera's buffer is: the edge runs on what the cloud saw."""
    seen, go = [], threading.Event()

    def slow(x):
        go.wait(LONG)
        seen.append(x.tolist())
        return "a", 0.9

    with Router(slow, lambda _: "a", threshold=0.5, mode="shadow") as router:
        frame = np.zeros(3)
        router.infer(frame)
        frame[:] = 7
        go.set()
        idle(router)
    assert seen == [[0, 0, 0]]


@pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
def test_an_edge_that_hangs_delays_nothing_and_few_inputs_wait(kind):
    """Two run, and at most so many wait; further requests are answered, and not compared."""
    go, asked = threading.Event(), FakeCloud(cloud)

    def stuck(x):
        go.wait(LONG)
        return "a", x

    with kind(stuck, asked, threshold=0.5, mode="shadow") as router:
        for _ in range(20 * MOST_WAITING):
            assert router.infer(0.9).value == "a"
            assert router.engine.auditor.jobs.busy <= MOST_WAITING + 2
        assert asked.runs == 20 * MOST_WAITING
        waited = router.engine.auditor.jobs.busy
        go.set()
        idle(router)
        (told,) = router.stats().shadows
        assert told.compared == waited > 8


def test_a_share_and_a_call_that_names_its_mode(tmp_path):
    """`[audit]` says of how many; a call with a mode of its own is not one that a policy in another mode would change."""
    with Router(edge, cloud, threshold=0.5, mode="shadow", audit=Audit(share=0.1), state=tmp_path) as router:
        for _ in range(2000):
            router.infer(0.9)
            idle(router)
        count = router.stats().shadows[0].compared
        assert 130 < count < 270
        for _ in range(200):
            assert router.infer(0.1, mode="only_cloud").source == "cloud"
        idle(router)
        assert router.stats().shadows[0].compared == count
        assert {line["probability"] for line in read(tmp_path / "audit.jsonl")} == {0.1}


# ------------------------------------------------------------------------------------------------------ what is refused
def test_what_is_refused(tmp_path):
    """A call cannot have the mode, nor a rule; both sides are needed; an edge that is awaited would need the loop."""
    with Router(edge, cloud, threshold=0.5) as router, pytest.raises(PolicyError, match="a call has no mode 'shadow': it is for"):
        router.infer(0.9, mode="shadow")

    async def awaited(x):
        return "a", x

    with pytest.raises(PolicyError, match="is async, and in shadow it runs in a thread: make it a plain def"):
        AsyncRouter(awaited, cloud, mode="shadow")
    for sides in ({"edge": edge}, {"cloud": cloud}):
        with pytest.raises(PolicyError, match=r"mode 'shadow' needs (edge|cloud)=, and there is none"):
            Router(**flat(**sides, mode="shadow"))
    path = tmp_path / "policy.toml"
    for text, words in (
        ('mode = "shadow"\n[edge]\npath = "edge.onnx"', r'mode: "shadow" needs a \[cloud\] section'),
        ('mode = "shadow"\n[cloud]\nurl = "http://127.0.0.1:9"', r'mode: "shadow" needs an \[edge\] section'),
        ('mode = "shadoe"\n[cloud]\nurl = "http://127.0.0.1:9"', 'did you mean "shadow"'),
        (
            '[[rule]]\nof = "battery"\nthen = "shadow"\nenter = "5%"\n[cloud]\nurl = "http://127.0.0.1:9"',
            "rule.then: found",
        ),
    ):
        path.write_text(text)
        with pytest.raises(PolicyError, match=words):
            Router.from_policy(path)


# ------------------------------------------------------------------------------------------------------ the figures
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_intervals_are_exact(runs):
    """Those of Clopper and Pearson, where all were drawn with the same probability."""
    tally = Tally()
    for accepted, agrees in runs:
        tally.add({"probability": 0.25, "agrees": agrees, "edge_s": 0.1}, accepted=accepted)
    told, n, k = tally.stats("edge"), len(runs), sum(accepted for accepted, _ in runs)
    wrong = sum(accepted and not agrees for accepted, agrees in runs)
    assert told.answers == pytest.approx(k / n)
    for low, high, found, of in (
        (told.answers_low, told.answers_high, k, n),
        (told.differs_low, told.differs_high, wrong, k),
    ):
        assert low == pytest.approx(stats.beta.ppf(0.025, found, of - found + 1) if found else 0, abs=1e-6)
        assert high == pytest.approx(stats.beta.ppf(0.975, found + 1, of - found) if found < of else 1, abs=1e-6)


def test_runs_weigh_by_the_inverse_of_their_probability():
    """Half of the traffic was drawn at 1, half at 1/10: it counts as much, and the interval covers what it cost."""
    missed = 0
    for seed in range(200):
        random, tally = np.random.default_rng(seed), Tally()
        for i in range(1000):
            probability, accepted = (1.0, random.random() < 0.9) if i % 2 else (0.1, random.random() < 0.1)
            if random.random() < probability:
                tally.add({"probability": probability, "agrees": True, "usd": 0.5, "bytes": 1e6}, accepted=accepted)
        told = tally.stats("edge")
        assert told.saved_usd == pytest.approx(0.5 * told.saved_calls)
        assert told.saved_mb == pytest.approx(told.saved_calls)
        missed += not told.answers_low <= 0.5 <= told.answers_high
    assert missed <= 15  # 10 expected


# ------------------------------------------------------------------------------------------------------ end to end
def drawn(n, seed):
    """Inputs [n, 4]."""
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def test_from_shadow_to_a_promise(tmp_path, right_server):
    """Real models and a real server: shadow, status, a certificate from its log, and the router in use enforces it by a reload."""
    tiny.linear(tmp_path / "edge.onnx", weights=EDGE, card={"labels": LABELS})
    path = tmp_path / "policy.toml"
    rest = f'state = "state"\n[edge]\npath = "edge.onnx"\n[cloud]\nurl = "{right_server}"\ntimeout = "60s"\nusd_per_call = 0.01\n'
    path.write_text(f'mode = "shadow"\n{rest}')
    with Router.from_policy(path) as router:
        code, out, _ = cli("status", "-p", path)
        assert (code, "no request has been compared yet" in out) == (0, True)
        results = [[] for _ in range(4)]

        def call(number):
            for x in drawn(150, number):
                results[number].append(router.infer(x).source)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {source for one in results for source in one} == {"cloud"}
        idle(router)
        assert "compared; no threshold yet" in cli("status", "-p", path)[1]
        code, out, err = cli("calibrate", "-p", path, "--audited", "--max-loss", "20%")
        assert (code, "from audits" in err) == (0, False), err
        certificate = Certificate.load(tmp_path / "certificate.json")
        path.write_text(f'mode = "shadow"\nthreshold = "certificate.json"\n{rest}')
        code, out, _ = cli("status", "-p", path)
        assert code == 0
        assert "edge in shadow: of " in out
        told = json.loads(cli("status", "-p", path, "--json")[1])
        (one,) = told["shadow"]
        lines = [line for line in read(tmp_path / "state" / "audit.jsonl") if line["target"] == "edge"]
        kept = [line for line in lines if line["edge_confidence"] >= certificate.threshold]
        assert one["compared"] == len(lines)
        weights = [1 / line["probability"] for line in lines]
        assert one["answers"] == pytest.approx(sum(1 / line["probability"] for line in kept) / sum(weights))
        assert one["answers_low"] <= 1 - certificate.deferral_rate <= one["answers_high"]
        assert one["saved_usd"] == pytest.approx(0.01 * one["saved_calls"])
        assert one["saved_mb"] > 0
        path.write_text(f'mode = "prefer_edge"\nthreshold = "certificate.json"\nuncalibrated = "error"\n{rest}')
        router.reload()
        assert router.engine.auditor is None, "there is no [audit] in the policy, and nothing is asked beside it"
        found = [router.infer(x) for x in drawn(150, 9)]
        assert {a.source for a in found} == {"edge", "cloud"}
        assert routes.label(next(a for a in found if a.source == "edge")) == certificate.label
        path.write_text(f'mode = "shadow"\nthreshold = "certificate.json"\n{rest}')
        router.reload()
        assert router.infer(drawn(1, 9)[0]).source == "cloud"
        idle(router)
        assert router.stats().shadows[0].compared == 1


def test_many_at_a_time_on_an_event_loop(tmp_path, right_server):
    """All are answered by the cloud; of those that were compared each was drawn with the probability in its line."""
    tiny.linear(tmp_path / "edge.onnx", weights=EDGE, card={"labels": LABELS})

    async def run():
        router = AsyncRouter(
            str(tmp_path / "edge.onnx"),
            OpenInference(right_server, timeout_s=LONG),
            threshold=0.6,
            mode="shadow",
            state=tmp_path / "state",
            trace=tmp_path / "t.jsonl",
        )
        try:
            answers = await asyncio.gather(*(router.infer(x) for x in drawn(300, 3)))
            await asyncio.to_thread(idle, router)
            return answers
        finally:
            await router.close()

    answers = asyncio.run(run())
    assert {a.source for a in answers} == {"cloud"}
    lines = list(read(tmp_path / "state" / "audit.jsonl"))
    assert {line["id"] for line in lines} <= {a.id for a in answers}
    assert len({line["id"] for line in lines}) == len(lines) > 8
    code, out, _ = cli("status", "--state", tmp_path / "state")
    assert (code, f"edge in shadow: of {len(lines)} requests it would answer" in out) == (0, True)


def test_measuring_leaves_the_state_as_it_was(tmp_path, right_server):
    """`calibrate` on a policy in shadow mode makes a router with its state folder, too: its monitors are not those in use."""
    tiny.linear(tmp_path / "edge.onnx", weights=EDGE, card={"labels": LABELS})
    path = tmp_path / "policy.toml"
    path.write_text(
        f'mode = "shadow"\nthreshold = 0.6\nstate = "state"\n[edge]\npath = "edge.onnx"\n[cloud]\nurl = "{right_server}"\ntimeout = "60s"\n'
    )
    with Router.from_policy(path) as router:
        for x in drawn(300, 1):
            router.infer(x)
        idle(router)
    before = json.loads(cli("status", "-p", path, "--json")[1])
    assert before["edges"][0]["audited"] > 0
    assert cli("calibrate", "-p", path, "--audited", "--max-loss", "30%")[0] == 0
    after = json.loads(cli("status", "-p", path, "--json")[1])
    assert [after[key] for key in ("edges", "shadow", "latency")] == [before[key] for key in ("edges", "shadow", "latency")]


def test_a_reload_in_the_middle(tmp_path):
    """Models change while requests and shadow runs are under way: each line has the fingerprints of the model that made it."""

    class Named:
        def __init__(self, name, confidence):
            self.name, self.version, self.labels, self.confidence = name, name, None, confidence
            self.closed = False

        def run(self, inputs, _=None):
            assert not self.closed
            return [("a", self.confidence)] * len(inputs)

        def close(self):
            self.closed = True

    from edgeroute import Limits
    from edgeroute.confidence.certificate import digest
    from edgeroute.router.policy_snapshot import PolicyArguments

    models, stop, errors = [Named(str(i), i / 100) for i in range(20)], threading.Event(), []
    with Router(models[0], cloud, threshold=0.5, mode="shadow", state=tmp_path) as router:
        prints = {digest(router.fingerprints()): 0.0}

        def call():
            try:
                while not stop.is_set():
                    router.infer(0.1)
            except Exception as e:  # noqa: BLE001 - looked at below
                errors.append(e)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for model in models[1:]:
            until(lambda: router.stats().shadows)
            replace(router.engine, PolicyArguments(model, cloud, threshold=0.5, mode="shadow"), Limits(), False)
            prints[digest(router.fingerprints())] = model.confidence
        until(lambda: router.stats().shadows)
        stop.set()
        for thread in threads:
            thread.join()
        idle(router)
    assert not errors
    lines = list(read(tmp_path / "audit.jsonl"))
    assert len(prints) == 20
    assert {line["fingerprints"] for line in lines} == {*prints}
    assert all("error" not in line and line["edge_confidence"] == prints[line["fingerprints"]] for line in lines)


def test_check_and_decide_say_so():
    """`check` tells what happens, and `decide` the route."""
    with Router(unsure, cloud, threshold=0.5, mode="shadow") as router:
        assert "of each request it is recorded what the edge would have answered (shadow)" in str(router.check())
        assert "mode shadow" in str(router.decide(0.1))
