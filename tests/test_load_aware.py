"""What clients do with the load that a cloud reports, over real connections."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import numpy as np
import pytest
import routes
from both import LONG
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import AsyncRouter, Function, OpenInference, Options, PlainJson, PolicyError, Router, Trial
from edgeroute.cloud.load_reports import LONGEST, report_in
from edgeroute.core.performance_estimates_and_encoding_choice import ENOUGH_DEFERRED, Load, Report
from edgeroute.edge.model_card import Card
from edgeroute.router.audits_and_hidden_trials import AuditCalls
from edgeroute.testing import CannedServer, FakeModel, http_reply
from edgeroute.tools.server import batching_and_tensor_models as batching
from edgeroute.tools.server.batching_and_tensor_models import Batcher, Full, Meter
from edgeroute.types import TensorSpec


def report(text):
    return report_in({"endpoint-load-metrics": text})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TEXT application_utilization=0.83, named_metrics.queue_s=0.4", Report(0.83, 0.4)),
        ("TEXT cpu_utilization=0.3,mem_utilization=0.8", Report(0.3)),
        ("cpu_utilization=0.3", Report(0.3)),
        ('JSON {"application_utilization": 0, "cpu_utilization": 1.5, "named_metrics": {"queue_s": 2}}', Report(1.5, 2)),
        ('JSON {"named_metrics": {"kv_cache_usage_perc": 0.9}}', Report(0.9)),
        ("TEXT application_utilization=0", Report(0.0)),
        ("TEXT application_utilization=nan, queue_s=1", Report(0.0, 1.0)),
        ("TEXT application_utilization=-3", None),
        ("TEXT application_utilization=1e300", None),
        ("TEXT application_utilization=inf", None),
        ('JSON {"application_utilization": true}', None),
        ("JSON [1]", None),
        ("JSON " + "[" * 1500, None),
        ("JSON {", None),
        ("BIN CgMxMjM=", None),
        ("", None),
        ("TEXT mem_utilization=0.9", None),
        ("TEXT application_utilization=0.9" + " " * LONGEST, None),
        ("TEXT " + ",".join(f"a{i}=1" for i in range(100)) + "," + "application_utilization=0.9", None),
    ],
)
def test_reports_are_read_and_what_cannot_be_is_ignored(text, said):
    assert report(text) == said


@given(st.text() | st.text().map("TEXT application_utilization={}".format) | st.text().map("JSON {}".format))
def test_no_header_fails_a_call(text):
    said = report(text)
    assert said is None or 0 <= said.load <= 4


def loaded(says, status=200):
    """A cloud that answers `cat` and reports what `says` is."""

    def reply(_):
        headers = [("endpoint-load-metrics", says["load"])] if says["load"] else []
        return http_reply(json.dumps({"value": "cat"}).encode(), status=status, headers=headers)

    return CannedServer(reply)


def unsure():
    """An edge whose answers are from .01 to .79 sure, in turn."""
    return FakeModel([("dog", i / 100) for _ in range(20) for i in range(1, 80)])


FULL, EASY = "TEXT application_utilization=1.0", "TEXT application_utilization=0.1"


def test_a_loaded_cloud_keeps_more_on_the_edge_and_an_idle_one_none():
    says = {"load": ""}
    with loaded(says) as server, Router(unsure(), PlainJson(server.url), threshold=0.8) as router:
        assert {router.infer(0).source for _ in range(100)} == {"cloud"}
        assert router.stats().spared == 0
        says["load"] = FULL
        answers = [router.infer(0) for _ in range(200)]
        spared = [one for one in answers if one.source == "edge"]
        assert 40 <= len(spared) < 200
        assert routes.judged(spared[0]).threshold < 0.8
        assert routes.label(spared[0]) != "uncalibrated"
        assert min(one.confidence for one in spared) > 0.2, "the least unsure are kept"
        assert router.stats().spared == len(spared)
        assert "is loaded" in router.engine.observer.no_hedge(router.engine.snapshot.backends)
        says["load"] = EASY
        for _ in range(100):
            router.infer(0)
        assert {router.infer(0).source for _ in range(79)} == {"cloud"}


def test_a_load_that_is_no_longer_reported_fades(monkeypatch):
    says = {"load": FULL}
    with loaded(says) as server, Router(unsure(), PlainJson(server.url), threshold=0.8) as router:
        for _ in range(100):
            router.infer(0)
        assert router.engine.observer.facts.kept > 0
        guard = router.engine.snapshot.clouds[0].guard
        guard.rules.load = Load()  # a hundred seconds go by
        guard.rules.load.add(1.0, monotonic() - 100)
        router.engine.observer.eases_at -= 100
        says["load"] = ""
        assert {router.infer(0).source for _ in range(80)} == {"cloud"}


def report_load(router, name, load):
    guard = next(one.guard for one in router.engine.snapshot.clouds if one.name == name)
    guard.rules.load.add(load, monotonic())
    router.engine.observe()
    return guard


def test_an_endpoint_on_trial_decides_nothing_for_the_others():
    one, tried = (Function(lambda x: ("cat", 1.0), name=name) for name in ("cloud", "b"))
    trial = Trial(cloud=tried, shown=False, share=0.0)
    with Router(unsure(), one, threshold=0.8, deadline=60, trial=trial, options=Options(hedge_after=30)) as router:
        assert {router.infer(0).source for _ in range(60)} == {"cloud"}
        trial = report_load(router, "b", 2.0)
        assert (router.engine.observer.facts.kept, router.engine.observer.facts.no_hedge) == (0, "")
        assert AuditCalls(router.engine).allowed()
        assert not trial.has_headroom(), "it is itself asked in shadow no more"
        for _ in range(3):
            trial.failed()
        router.engine.observe()
        assert trial.state == "open"
        assert router.engine.observer.facts.no_hedge == ""
        assert AuditCalls(router.engine).allowed()
        report_load(router, "cloud", 2.0)
        assert router.engine.observer.facts.kept > 0
        assert "cloud is loaded" in router.engine.observer.facts.no_hedge
        assert not AuditCalls(router.engine).allowed()


def test_it_is_the_load_of_the_cloud_that_is_asked_first_that_counts():
    clouds = [Function(lambda x: ("cat", 1.0), name=name) for name in ("a", "b")]
    with Router(unsure(), clouds, threshold=0.8) as router:
        assert {router.infer(0).source for _ in range(60)} == {"cloud"}
        report_load(router, "b", 2.0)
        assert router.engine.observer.facts.kept == 0
        for _ in range(3):
            router.engine.snapshot.clouds[0].guard.failed()
        router.engine.observe()
        assert router.engine.observer.facts.kept > 0, "the second is asked, while the first is away"


def test_few_deferrals_keep_nothing():
    with loaded({"load": FULL}) as server, Router(unsure(), PlainJson(server.url), threshold=0.8) as router:
        assert {router.infer(0).source for _ in range(ENOUGH_DEFERRED - 1)} == {"cloud"}


def test_a_hostile_report_changes_nothing():
    says = {"load": "TEXT application_utilization=1e999, named_metrics.queue_s=-1"}
    with loaded(says) as server, Router(unsure(), PlainJson(server.url), threshold=0.8) as router:
        assert {router.infer(0).source for _ in range(100)} == {"cloud"}


def test_asyncio_likewise():
    async def run(server):
        async with AsyncRouter(unsure(), PlainJson(server.url), threshold=0.8) as router:
            return [(await router.infer(0)).source for _ in range(200)]

    with loaded({"load": FULL}) as server:
        sources = asyncio.run(run(server))
    assert "edge" not in sources[:ENOUGH_DEFERRED]
    assert sources.count("edge") > 50


def test_serve_reports_its_load(fashion_server, fashion):
    image = np.load(fashion / "sample.npz")["images"][0]
    reports = []

    class Told(Load):
        def add(self, load, now):
            reports.append(load)
            return super().add(load, now)

    with Router(cloud=OpenInference(f"{fashion_server}/v2/models/fashion-large"), mode="only_cloud") as router:
        router.engine.snapshot.clouds[0].guard.rules.load = Told()
        router.infer(image, deadline=30)
    assert reports, "a report came"
    assert 0 <= reports[-1] < 0.8, "one request is no load"


def test_a_full_queue_says_so(monkeypatch):
    gate, ahead_s = threading.Event(), [0.0]
    monkeypatch.setattr(batching, "monotonic", lambda: monotonic() + ahead_s[0])

    class Slow:
        name, card, inputs = "slow", Card(), (TensorSpec("x", "float32", (-1, 1)),)

        def run_feed(self, feed):
            gate.wait(LONG)
            return feed["x"]

    async def run():
        batcher = Batcher(Slow(), (TensorSpec("y", "float32", (-1, 1)),), max_batch=1, queue=1)
        one = {"x": np.ones((1, 1), np.float32)}
        done = [batcher.submit(one, 1)]
        await asyncio.sleep(0)
        done.append(batcher.submit(one, 1))
        ahead_s[0] = 1000.0  # the run goes for long
        with pytest.raises(Full) as full:
            batcher.submit(one, 1)
        gate.set()
        await asyncio.gather(*done)
        batcher.close()
        return report_in(full.value.headers), report_in(batcher.load())

    busy, after = asyncio.run(run())
    assert busy.utilization == 1
    assert busy.queue_s >= 1000
    assert after.queue_s == 0


def test_the_used_share_is_that_of_the_time_in_which_full_runs_go():
    meter = Meter()
    for second in range(60):
        meter.level(0.5, second)
        meter.level(0.0, second + 0.5)
    assert 0.2 < meter.used(60) < 0.3
    meter.level(1.0, 60)
    assert meter.used(100) == pytest.approx(1)
    meter.level(0.0, 100)
    assert meter.used(200) == pytest.approx(0)


def test_more_calls_than_an_adaptive_limit_keep_the_edges_answer_at_once():
    """Nobody waits for a turn, whatever the deadline; a number of places makes them wait."""
    gate, began = threading.Event(), threading.Semaphore(0)

    def slow(x):
        began.release()
        gate.wait(LONG)
        return "cat", 1.0

    cloud = Function(slow, max_concurrent="auto")
    with Router(FakeModel([("dog", 0.1)]), cloud, threshold=0.8, deadline=60) as router:
        rules = router.engine.snapshot.clouds[0].guard.rules
        rules.adapted.limit = 2.0
        rules.breaker.success(monotonic())
        with ThreadPoolExecutor(2) as threads:
            answers = [threads.submit(router.infer, 0) for _ in range(2)]
            assert began.acquire(timeout=LONG)
            assert began.acquire(timeout=LONG)
            kept = router.infer(0)
            gate.set()
            assert [one.result(LONG).source for one in answers] == ["cloud", "cloud"]
        assert kept.source == "edge"
        assert "2" in routes.error(kept)
        assert [event["code"] for event in kept.trace["events"] if "code" in event] == ["concurrency"], "which nobody waits for"
        assert rules.under_way == set()


@pytest.mark.parametrize(("callers", "answered"), [(8, 8), (12, 8)])
def test_a_burst_waits_its_turn_until_it_is_known_whether_the_cloud_is_well(callers, answered):
    """At the start, and after it was idle; what is over the limit once that is known is not waited for."""
    gate, began = threading.Event(), threading.Semaphore(0)

    def slow(x):
        began.release()
        gate.wait(LONG)
        return "cat", 1.0

    cloud = Function(slow, max_concurrent="auto")
    with Router(FakeModel([("dog", 0.1)]), cloud, threshold=0.8, deadline=60) as router, ThreadPoolExecutor(callers) as threads:
        guard = router.engine.snapshot.clouds[0].guard
        burst = [threads.submit(router.infer, 0) for _ in range(callers)]
        for _ in range(3):
            assert began.acquire(timeout=LONG)
        until = monotonic() + 30
        while monotonic() < until and sum(one.done() for one in burst) + len(guard.turns.waiting) < callers - 3:
            threading.Event().wait(0.001)
        assert len(guard.turns.waiting) == callers - 3
        guard.rules.breaker.success(monotonic())  # as by another call
        guard.turns.advance()
        for _ in range(5):
            assert began.acquire(timeout=LONG)
        assert not guard.turns.waiting
        gate.set()
        sources = [one.result(LONG).source for one in burst]
        assert (sources.count("cloud"), sources.count("edge")) == (answered, callers - answered)
        assert guard.rules.under_way == set()


def test_a_policy_may_say_auto(tmp_path):
    path = tmp_path / "policy.toml"
    text = '[[cloud]]\nprotocol = "json"\nurl = "http://127.0.0.1:1/"\nmax_concurrent = {}\n'
    path.write_text('mode = "only_cloud"\n' + text.format('"auto"'))
    with Router.from_policy(path) as router:
        assert router.engine.snapshot.clouds[0].guard.rules.adapted is not None
    path.write_text('mode = "only_cloud"\n' + text.format('"most"'))
    with pytest.raises(PolicyError, match="max_concurrent"):
        Router.from_policy(path)
