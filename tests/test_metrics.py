"""Metrics for Prometheus, and the status that they are made of; read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import httpx
import pytest
from both import DOWN, GOOD, LONG, GatedServer, makes, sure, unsure
from gateways import serving
from live import until

from edgeroute import (
    AsyncRouter,
    BadInput,
    Cache,
    Egress,
    Limits,
    NoAnswer,
    Options,
    Outbox,
    PlainJson,
    PolicyError,
    Reading,
    Refused,
    Router,
    Rule,
    RuntimeMissing,
    Stats,
    Status,
    metrics,
)
from edgeroute.core.reason_text_and_trace_record import CODES, Took
from edgeroute.core.spending_limits import Cost, Tokens
from edgeroute.observe.stats_and_status_types import ArmStats, AuditStats, Interval, LegStats
from edgeroute.record import event_tally_and_histograms as tally
from edgeroute.record.event_tally_and_histograms import Kind, Tally
from edgeroute.record.instrument_interface import AttemptEnded, RequestEnded
from edgeroute.record.prometheus import PREFIX, of_router, shown
from edgeroute.testing import CannedServer, FakeCloud
from edgeroute.tools.server.gateway import router_of

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families as parsed  # noqa: E402 - where it is there

from edgeroute import Prometheus  # noqa: E402 - likewise

ROOT = Path(__file__).parents[1]
SECRET = "a-text-of-the-user"


make = makes(threshold=0.5)


def scraped(router, accept=""):
    """Sample -> value, as Prometheus reads them; a sample is its name and the labels that are not empty."""
    text = metrics(router, accept).body.decode()
    found = {}
    for family in parsed(text):
        for sample in family.samples:
            key = (sample.name, *sorted((name, value) for name, value in sample.labels.items() if value))
            assert key not in found, "Prometheus refuses what is there twice"
            found[key] = sample.value
    return found


def one(samples, name, **labels):
    """The value of the samples of that name with these labels, added up."""
    rows = [value for (own, *pairs), value in samples.items() if own == f"edgeroute_{name}" and {*labels.items()} <= {*pairs}]
    assert rows, (name, labels)
    return sum(rows)


def test_what_answered_and_why(make):
    """Requests by source and reason, the times of both sides, the share of deferrals, and what was sent."""
    with CannedServer(GOOD) as server:
        router = make(
            lambda x: ("edge", x), PlainJson(server.url, usd_per_call=0.5), limits=Limits(usd_per_day=9), instruments=[Prometheus()],
        )  # fmt: skip
        for x in (0.9, 0.8, 0.1):
            router.infer(x)
        assert [a.source for a in router.infer_many([0.9, 0.1])] == ["edge", "cloud"]
        samples = scraped(router)
    assert one(samples, "requests_total", source="edge", reason="confident", leg="edge", degraded="false") == 3
    assert one(samples, "requests_total", source="cloud", reason="below", leg="cloud") == 2
    assert one(samples, "request_duration_seconds_count") == 5
    assert one(samples, "leg_duration_seconds_count", side="edge") == 3, "a batch's time is not that of one input"
    assert one(samples, "leg_duration_seconds_bucket", side="cloud", le="+Inf") == 1
    assert one(samples, "attempts_total", result="ok") == 2
    assert one(samples, "deferral_ratio") == 0.4
    assert one(samples, "deferred_total") == 2
    assert (one(samples, "spent", limit="usd_per_day"), one(samples, "limit", limit="usd_per_day")) == (1.0, 9)
    assert one(samples, "sent_bytes_total") > 0
    assert one(samples, "breaker", state="closed") == 1
    assert one(samples, "breaker", state="open") == 0


def test_an_endpoint_that_is_down(make):
    """Its errors, its breaker, and what was held because of it."""
    with CannedServer(DOWN) as server:
        router = make(unsure, PlainJson(server.url, retries=0), instruments=[Prometheus()])
        while router.infer("x").reason_code != "breaker":
            pass
        samples = scraped(router)
    assert one(samples, "requests_total", reason="refused", source="edge", degraded="true") >= 1
    assert one(samples, "requests_total", reason="breaker", source="edge", degraded="true") == 1
    assert one(samples, "attempts_total", result="refused") == one(samples, "requests_total", reason="refused")
    assert one(samples, "breaker", state="open") == 1
    assert one(samples, "held_total", reason="breaker") == 1


def test_a_call_that_is_not_needed_any_more(make):
    """It is cancelled, and its endpoint is not to blame."""
    with GatedServer(GOOD) as server:

        def slow(x):
            server.wait_for(lambda: bool(server.requests))
            return sure(x)

        router = make(slow, PlainJson(server.url, retries=0, timeout_s=LONG), hedge_after=0, instruments=[Prometheus()])
        assert router.infer("x").source == "edge"
        until(lambda: any(key[0] == "edgeroute_attempts_total" for key in scraped(router)))
        samples = scraped(router)
        assert one(samples, "attempts_total", result="cancelled") == one(samples, "attempts_total") == 1
        server.open()


def test_what_waits_and_the_device(make, tmp_path):
    """The outbox, the sensors, the rules in force, and the cache."""
    router = make(
        unsure, FakeCloud([OSError("away")] * 9), offline="queue", outbox=Outbox(tmp_path / "outbox.db"), cache=Cache(),
        sensors=lambda: Reading(battery=0.1, temperature_c=41.5, mains=False), rules=[Rule("battery", "prefer_cloud", enter=0.2)],
        instruments=[Prometheus()],
    )  # fmt: skip
    router.infer("x")
    samples = scraped(router)
    assert one(samples, "outbox_waiting") == 1
    assert one(samples, "queued_total") == one(samples, "events_total", what="queued") == 1
    assert one(samples, "device_battery_ratio") == 0.1
    assert one(samples, "device_temperature_celsius") == 41.5
    assert one(samples, "device_mains") == 0
    assert one(samples, "rule", rule="battery below 10%: prefer_cloud".replace("10", "20")) == 1
    assert not [key for key in samples if key[0] == "edgeroute_device_gpu_ratio"], "what is not known is left out"


def test_the_devices_own_sensors(monkeypatch):
    """They are read for the metrics, in the background, although no rule goes by them; not if that is not wanted."""
    read = threading.Event()

    def sensors():
        read.set()
        return Reading(battery=0.7)

    monkeypatch.setattr("edgeroute.observe.plan_facts_energy_rules.read", sensors)
    with Router(sure, None, options=Options(instruments=[Prometheus()])) as router:
        assert read.wait(LONG)
        assert router.engine.observer.wanted
    with Router(sure, None, options=Options(instruments=[Prometheus(device=False)])) as router:
        assert not router.engine.observer.wanted


def test_errors_and_the_cache(make):
    """Requests without an answer are counted by the error's code, those of the cache by themselves."""

    def edge(x):
        if x == "bad":
            raise BadInput("not this")
        raise RuntimeError(SECRET)

    router = make(edge, FakeCloud([OSError(SECRET)] * 9), offline="raise", instruments=[Prometheus()])
    with pytest.raises(BadInput):
        router.infer("bad")
    with pytest.raises(NoAnswer):
        router.infer(SECRET)
    samples = scraped(router)
    assert one(samples, "requests_total", source="none", reason="bad_input") == 1
    assert one(samples, "requests_total", source="none", reason="error") == 1
    assert one(samples, "attempts_total", result="error") == 1
    cached = make(sure, None, cache=Cache(), instruments=[Prometheus()])
    for _ in range(2):
        cached.infer("x")
    samples = scraped(cached)
    assert one(samples, "requests_total", source="cache", reason="cached") == one(samples, "cached_total") == 1


def test_no_text_of_anybody_is_in_it(make):
    """Whatever an input, an answer, an error, a data class or a server's reply says."""
    reply = DOWN.replace(b"oops", SECRET.encode()[:4])
    with CannedServer(reply) as server:
        router = make(
            lambda x: (SECRET, 0.1), PlainJson(server.url, retries=0, api_key=SECRET), instruments=[Prometheus()],
            egress=Egress(may_leave=["photo"]),
        )  # fmt: skip
        for data_class in ("photo", SECRET):
            router.infer(SECRET, data_class=data_class)
    page = metrics(router).body.decode()
    assert "edgeroute_requests_total" in page
    assert SECRET not in page
    assert {labels["reason"] for f in parsed(page) for _, labels, *_ in f.samples if "reason" in labels} <= CODES


def test_several_routers_in_one_process(make):
    """Each has a registry of its own, unless it is given one: there they differ by name, and the registry's others are shown too."""
    first, second = make(sure, None, instruments=[Prometheus()]), make(sure, None, instruments=[Prometheus()])
    first.infer("x")
    assert one(scraped(first), "requests_total") == 1
    assert not [key for key in scraped(second) if key[0] == "edgeroute_requests_total"]
    shared = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("mine", "Of the program", registry=shared).inc()
    routers = [make(sure, None, instruments=[Prometheus(registry=shared, router=name)]) for name in ("left", "right")]
    for router in (routers[0], *routers):
        router.infer("x")
    samples = scraped(routers[1])
    assert (one(samples, "requests_total", router="left"), one(samples, "requests_total", router="right")) == (2, 1)
    assert samples["mine_total",] == 1
    with pytest.raises(PolicyError, match="name each"):
        Prometheus(registry=shared, router="left")
    routers[0].close()
    again = make(sure, None, instruments=[Prometheus(registry=shared, router="left")])
    assert "left" not in {dict(key[1:]).get("router") for key in scraped(again) if key[0] == "edgeroute_requests_total"}


@pytest.mark.parametrize("name", ["\ud800", "camera \udcff", b"camera", 3, None])
def test_a_name_that_no_page_can_have_is_refused(name):
    """When the instrument is made, not at the first scrape; any other text is a name."""
    with pytest.raises(PolicyError, match="router= is a text"):
        Prometheus(router=name)
    assert Prometheus(router="Küche\n\u202e").router == "Küche\n\u202e"


def test_one_instrument_of_two_routers():
    """Counts both together, and is there until the last of them is closed."""
    both = Prometheus(device=False)
    with Router(sure, None, options=Options(instruments=[both])) as left:
        with Router(sure, None, options=Options(instruments=[both])) as right:
            right.infer(GOOD)
        left.infer(GOOD)
        assert one(scraped(left), "requests_total") == 2
        assert not both.closed
    assert both.closed
    assert b"edgeroute_" not in metrics(left).body


def test_without_the_instrument(make):
    """What the router knows of itself is there all the same."""
    router = make(sure, None)
    router.infer("x")
    samples = scraped(router)
    assert one(samples, "routed_total") == one(samples, "leg_runs_total", result="accepted") == 1
    assert not [key for key in samples if "bucket" in key[0] or key[0] == "edgeroute_requests_total"]


def test_openmetrics(make):
    """By the header, as newer versions of Prometheus ask for it; its own parser takes it."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    router = make(sure, None, instruments=[Prometheus()])
    router.infer("x")
    body, kind = metrics(router, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert {family.name for family in text_string_to_metric_families(body.decode())} >= {"edgeroute_requests"}


def test_many_threads_and_a_scraper():
    """No request is lost, counted while it is scraped; the buckets of a histogram and its count agree."""
    with Router(sure, None, options=Options(instruments=[Prometheus()])) as router:
        gate = threading.Barrier(5)

        def ask():
            gate.wait(LONG)
            for _ in range(400):
                router.infer("x")

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        gate.wait(LONG)
        for _ in range(5):
            samples = scraped(router)
        for thread in threads:
            thread.join(LONG)
        samples = scraped(router)
    assert one(samples, "requests_total") == one(samples, "request_duration_seconds_count") == 1600
    assert one(samples, "leg_duration_seconds_bucket", le="+Inf") == 1600


def test_bounded_memory(monkeypatch):
    """Requests are counted 64 at a time, and kinds are told apart up to a limit: policies may be reloaded for ever."""
    monkeypatch.setattr(tally, "MOST", 10)
    counts = Tally()

    class Answered:
        source, degraded, latency_s, reason_code = "edge", False, 0.1, "confident"

        def __init__(self, leg):
            self.leg = leg
            self.took = (Times((leg, "edge", 0.1)),)
            waiting.append(weakref.ref(self.took[0]))

    class Times(list):
        """As a tuple, which has no weak references."""

    waiting = []
    for i in range(500):
        counts.request_ended(RequestEnded("id", None, Answered(f"leg{i}"), None))
    assert sum(one() is not None for one in waiting) < tally.TOGETHER
    found = counts.read()
    assert len(found.requests) <= 11
    assert len(found.legs) <= 11
    assert sum(found.requests.values()) == 500
    assert found.requests[Kind("edge", "other", "confident", False)] == 490


def test_as_many_endpoints_as_there_may_be(monkeypatch):
    """A policy that is reloaded with other names again and again takes no more memory."""
    monkeypatch.setattr(tally, "MOST", 10)
    counts = Tally()
    for n in range(200):
        counts.attempt_ended(AttemptEnded(f"leg{n}", "r", 1, 1, 0.1, None, tokens=Tokens(3, 2)))
        counts.limit_hit(f"leg{n}", "breaker")
        counts.limit_hit(f"another{n}", "breaker")
    found = counts.read()
    assert [len(each) for each in (found.attempts, found.endpoints, found.held, found.tokens)] == [11, 11, 11, 22]
    assert found.attempts[tally.OTHER, "ok"] == 190
    assert found.held[tally.OTHER, "breaker"] == 390


@contextlib.contextmanager
def scraped_slowly(counts):
    """In the body a scrape is in the middle of what it reads, in another thread."""
    held, over, add = threading.Event(), threading.Event(), tally.Histogram.add
    counts.attempt_ended(AttemptEnded("a", "before", 1, 1, 0.1, None))
    scrape = threading.Thread(target=counts.read)

    def slowly(histogram, seconds):
        if threading.current_thread() is scrape and not held.is_set():
            held.set()
            assert over.wait(LONG)
        add(histogram, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally.Histogram, "add", slowly)
        scrape.start()
        assert held.wait(LONG)
        try:
            yield
        finally:
            over.set()
            scrape.join()


def test_no_call_waits_for_a_scrape():
    """What happens while a scrape holds the lock is counted after it."""
    counts = Tally()

    def calls():
        for n in range(2 * tally.TOGETHER):
            counts.request_ended(RequestEnded(f"{n}", None, None, ValueError()))
            counts.attempt_ended(AttemptEnded("a", f"{n}", 1, 1, 0.1, None))
            counts.limit_hit("a", "breaker")
            counts.outbox_changed(f"{n}", "queued")
            counts.alarm("a", "drift")

    thread = threading.Thread(target=calls, daemon=True)
    with scraped_slowly(counts):
        thread.start()
        thread.join(LONG)
        waits = thread.is_alive()
    assert not waits
    n, found = 2 * tally.TOGETHER, counts.read()
    assert [sum(each.values()) for each in (found.requests, found.attempts, found.held, found.events)] == [n, 1 + n, n, 2 * n]


def test_codes_of_foreign_errors():
    """A code that nobody knows is no label."""

    class Odd(Refused):
        code = SECRET

    counts = Tally()
    counts.request_ended(RequestEnded("id", None, None, Odd("x", status=500)))
    assert [kind.reason for kind in counts.read().requests] == ["error"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_it_counts(make):
    """The child counts on: the lock that another thread held is its own."""
    router = make(sure, None, instruments=[Prometheus()])
    counts = router.engine.instruments.all[0]
    with scraped_slowly(counts):
        child = os.fork()
        if not child:
            os._exit(0 if counts.read().events == {} else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_status(make):
    """What metrics and dashboards show, also without any instrument."""
    status = make(sure, None, limits=Limits(calls_per_minute=7)).status()
    assert (status.limits.calls_per_minute, status.outbox, status.closed, status.stats.requests) == (7, None, False, 0)


def policy(tmp_path, fashion, telemetry):
    path = tmp_path / "policy.toml"
    path.write_text(f'mode = "only_edge"\n[edge]\npath = "{(fashion / "edge.int8.onnx").as_posix()}"\n[telemetry]\n{telemetry}')
    return path


def test_a_policy_asks_for_it(tmp_path, fashion):
    """Instruments that are given beside it are added; one of the same kind takes the file's place."""
    path = policy(tmp_path, fashion, 'prometheus = true\nrouter = "camera"\n')
    own = Prometheus(router="mine")
    with Router.from_policy(path) as router:
        assert [one.router for one in router.engine.instruments.all] == ["camera"]
        router.reload()
        assert [one.router for one in router.engine.instruments.all] == ["camera"]
    with Router.from_policy(path, instruments=[]) as router:  # nothing is added: not the same as None
        assert [one.router for one in router.engine.instruments.all] == ["camera"]
    with Router.from_policy(path, instruments=[Tally(), own]) as router:
        assert [type(one) for one in router.engine.instruments.all] == [Tally, Prometheus]
        assert router.engine.instruments.all[1] is own
    with pytest.raises(PolicyError, match=r"telemetry\.propagate: has no effect without opentelemetry"):
        Router.from_policy(policy(tmp_path, fashion, 'propagate = ["a"]\n'))


@pytest.mark.parametrize(
    ("telemetry", "named"), [('prometheus = true\nrouter = "camera"\n', "camera"), ("requests = true\n", "")]
)
def test_the_gateway_keeps_the_policys_own(tmp_path, fashion, telemetry, named):
    """`--metrics` adds the instrument only where the file has none; the file's has the router's name."""
    router = router_of(policy(tmp_path, fashion, telemetry), metrics=True)
    found = of_router(router)
    asyncio.run(router.close())
    assert found.router == named


BLOCKED = "import sys; sys.modules.update(dict.fromkeys(['prometheus_client', 'opentelemetry']))\n"
"""What a program begins with where neither is installed."""


def program(code, *args):
    """Runs it in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    argv = [sys.executable, "-c", code, *args]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr


POLICY = """
from edgeroute import Router, RuntimeMissing
with Router.from_policy(sys.argv[1], instruments=None) as router:  # as `edgeroute status` does
    assert not router.engine.instruments
try:
    Router.from_policy(sys.argv[1])
except RuntimeMissing as e:
    assert "prometheus" in str(e), e
else:
    raise AssertionError("it was made")
"""


def test_a_policy_without_the_extra(tmp_path, fashion):
    """Its instrument cannot be made, and a router that has no instruments can."""
    program(BLOCKED + POLICY, policy(tmp_path, fashion, 'prometheus = true\nrouter = "camera"\n'))


GATEWAY = """
import asyncio
from edgeroute import AsyncRouter, RuntimeMissing
from edgeroute.tools.server.gateway import app
router = AsyncRouter(lambda _: ("a", 1.0), None)
try:
    app(router, metrics=True)
except RuntimeMissing as e:
    assert "prometheus" in str(e), e
else:
    raise AssertionError("it was made")
asyncio.run(router.close())
"""


@pytest.mark.slow
def test_a_gateway_without_the_extra():
    """Says so as it is made, not at each scrape."""
    program(BLOCKED + GATEWAY)


IMAGE = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}]}


def test_the_gateway_has_it_where_it_is_asked_for():
    """Behind the same guard as everything else."""
    router = AsyncRouter(sure, None, options=Options(instruments=[Prometheus()]))
    with (
        serving(router, token="t" * 20, metrics=True) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {'t' * 20}"}, timeout=LONG) as client,
    ):
        reply = client.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        assert "edgeroute_deferral_ratio" in reply.text
        assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/metrics", headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == 421
        assert client.post("/metrics", json={}).status_code == 405
    with serving(AsyncRouter(sure, None)) as url:
        assert httpx.get(f"{url}/metrics", timeout=LONG).status_code == 404


def test_the_server_of_models(fashion):
    """Inferences, runs and queues of each model, and the durations of requests by model and status; only if asked for."""
    pytest.importorskip("onnxruntime")
    from starlette.testclient import TestClient

    from edgeroute import OnnxModel
    from edgeroute.tools.server.serve import app as models_app

    model = OnnxModel(fashion / "cloud.onnx")
    with TestClient(models_app([model], metrics=True), raise_server_exceptions=False) as client:
        assert client.post(f"/v2/models/{model.name}/infer", json=IMAGE).status_code == 200
        assert client.post(f"/v2/models/{model.name}/infer", json={"inputs": []}).status_code == 400
        assert client.post(f"/v2/models/{SECRET}/infer", json=IMAGE).status_code == 404
        page = client.get("/metrics").text
        found = {(s.name, *sorted(s.labels.values())): s.value for family in parsed(page) for s in family.samples}
        assert found["edgeroute_serve_inferences_total", model.name] == 1
        assert found["edgeroute_serve_requests_total", model.name, "success"] == 1
        assert found["edgeroute_serve_request_duration_seconds_count", "200", model.name] == 1
        assert found["edgeroute_serve_request_duration_seconds_count", "400", model.name] == 1
        assert found["edgeroute_serve_request_duration_seconds_count", "", "404"] == 1
        assert SECRET not in page
    with TestClient(models_app([OnnxModel(fashion / "cloud.onnx")])) as client:
        assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "192.0.2.1"])
def test_no_web_page_reads_the_servers_metrics(host, fashion):
    """A page of another site, and on the loopback one whose own name resolves to this machine; a scrape by address may."""
    pytest.importorskip("onnxruntime")
    from starlette.testclient import TestClient

    from edgeroute import OnnxModel
    from edgeroute.tools.server.serve import app as models_app

    url = f"http://[{host}]:8080" if ":" in host else f"http://{host}:8080"
    with TestClient(models_app([OnnxModel(fashion / "cloud.onnx")], metrics=True), base_url=url) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/metrics", headers={"Host": "localhost:8080", "Sec-Fetch-Site": "none"}).status_code == 200
        assert client.get("/metrics", headers={"Origin": "http://evil.example"}).status_code == 403
        for site in ("cross-site", "same-site"):
            assert client.get("/metrics", headers={"Sec-Fetch-Site": site}).status_code == 403
        named = client.get("/metrics", headers={"Host": "evil.example:8080"}).status_code
        assert named == (200 if host == "192.0.2.1" else 421)
        assert client.get("/v2/health/live", headers={"Host": "evil.example:8080"}).status_code == 200


OFF = """
import edgeroute
from edgeroute import OpenTelemetry, Prometheus, Router, RuntimeMissing, metrics
with Router(lambda _: ("a", 1.0)) as router:
    router.infer(0)
    for name, make in (("prometheus", Prometheus), ("otel", OpenTelemetry), ("prometheus", lambda: metrics(router))):
        try:
            make()
        except RuntimeMissing as e:
            assert f"edgeroute[{name}]" in str(e), e
        else:
            raise AssertionError(name)
"""


def test_without_the_extras():
    """Names can be imported; who makes one is told what to install. `import edgeroute` and a router import neither."""
    program(BLOCKED + OFF)
    idle = "import sys, edgeroute; edgeroute.Router(lambda _: ('a', 1.0)).close()\n"
    program(idle + "assert not {'prometheus_client', 'opentelemetry', 'edgeroute.record.prometheus'} & {*sys.modules}")
    assert issubclass(RuntimeMissing, ImportError)


def everything():
    """Every metric that there is, by the names under which Prometheus has them."""
    return {sample.name.removeprefix(PREFIX): {*sample.labels} for family in full_page().collect() for sample in family.samples}


def full_page():
    """A page with every metric that there is."""
    from edgeroute.record.prometheus import Page, of_status, of_tally

    leg = LegStats("cloud", "cloud", 1, 1, 1, 0, 0, 0.1, 0.1, 0.1, 1, 1, "closed", 0, 0.1, 1e6)
    share = Interval(0.5, 0.4, 0.6)
    arm = ArmStats("edge", "edge", "m", 0.1, True, 1, share, share, 1, share, share, None, share, 0.1, 0.1, "")
    audits = (AuditStats("edge", 1, 0, 0.1, 1.0, ""),)
    stats = Stats(
        1, 1, 0, 0, 1.0, 0, 0, 0, 1, 1, 0.1, (leg,), audits, (), (arm,), joules={"cloud": 1.0}, break_even=0.5
    )  # fmt: skip
    reading = Reading(*[1.0] * len(Reading._fields))
    status = Status(stats, Limits(1, 1, 1, 1), Cost(), {"waiting": 1, "bytes": 1, "delivered": 1}, reading, 1.0, ("heat",))
    counts = Tally()
    kind = Kind("edge", "edge", "confident", False)
    counts.count(kind, 0.1, (Took("edge", "edge", 0.1),))
    counts.attempt_ended(AttemptEnded("cloud", "id", 1, 1, 0.1, None, 1, 200, Tokens(1, 1)))
    counts.limit_hit("cloud", "breaker")
    counts.outbox_changed("id", "queued")
    page = Page()
    of_tally(page, counts.read(), "")
    of_status(page, status, "")
    return page


def test_two_targets_of_one_name():
    """The page has the first: one that has something twice Prometheus refuses as a whole."""
    from edgeroute.record.prometheus import Page, of_status

    leg = LegStats("same", "cloud", 1, 1, 1, 0, 0, 0.1, 0.1, 0.1, 1, 1, "closed", 0, 0.1, 1e6)
    stats = Stats(1, 1, 0, 0, 1.0, 0, 0, 0, 1, 1, 0.1, (leg, leg._replace(bytes_sent=9)), ())
    page = Page()
    of_status(page, Status(stats, Limits(), Cost()), "")
    samples = [(sample.name, *sorted(sample.labels.items())) for family in page.collect() for sample in family.samples]
    assert len(samples) == len({*samples}) > 20


HISTOGRAM = re.compile("_(bucket|count|sum)$")


def test_the_page_has_each_metric_and_no_other():
    """docs/observe.md names them all, with their labels; and none that there is not."""
    text = (ROOT / "docs" / "observe.md").read_text(encoding="utf-8")
    page = text.split("### Counts")[1].split("## OpenTelemetry")[0].replace("\n ", "")
    told = {}
    for names, labels in re.findall(r"^\* ((?:`\w+`(?:, ?)?)+)(?: ?\((.*?)\))?:", page, re.MULTILINE):
        told |= {name: {*re.findall(r"\w+", labels)} for name in re.findall(r"\w+", names)}
    for codes in ("confident", "below", "left"):  # those of `reason`
        told.pop(codes)
    there = {HISTOGRAM.sub("", name): labels - {"router", "le"} for name, labels in everything().items()}
    assert told.keys() == there.keys()
    for name, labels in there.items():
        assert labels <= told[name], name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing():
    """Of every metric, with its own rules on names, labels and types."""
    done = subprocess.run(["promtool", "check", "metrics"], input=shown(full_page()).body, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_labels_that_only_one_type_may_have():
    """The rule that promtool found broken, and its like: `quantile` is a summary's, `le` a histogram's; only counters end in _total."""
    for family in parsed(shown(full_page()).body.decode()):
        labels = {label for sample in family.samples for label in sample.labels}
        names = {sample.name for sample in family.samples}
        assert family.documentation
        assert ("quantile" in labels) == (family.type == "summary"), family.name
        assert ("le" in labels) == (family.type == "histogram"), family.name
        assert all(name.endswith("_total") for name in names) == (family.type == "counter"), family.name


def test_the_dashboard_shows_what_there_is():
    """Each metric in examples/grafana.json exists, has the labels that it is asked for, and each query is a panel's own."""
    dashboard = json.loads((ROOT / "examples" / "grafana.json").read_text(encoding="utf-8"))
    there = everything()
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) >= 20
    for query in queries:
        found = re.findall(r"edgeroute_(\w+)\{([^}]*)\}", query)
        assert found, query
        assert len(found) == query.count("edgeroute_"), f"{query}: each is of the routers that are chosen"
        for name, selected in found:
            assert name in there, name
            labels = {*re.findall(r"(\w+)=~?\"", selected)}
            assert "router" in labels
            assert labels <= there[name], query
        for by in re.findall(r"by \(([^)]*)\)", query):
            assert {*re.findall(r"\w+", by)} <= there[found[0][0]], query
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
