"""What the cloud says after the answer was given: replies that are late, and requests that wait until it is back."""

import asyncio
import contextlib
import json
import math
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from queue import Queue
from time import monotonic

import numpy as np
import pytest
import routes
from both import DOWN, GOOD, LONG, GatedServer, Link, Tasks, Threads, flat, header, nothing_left, open_files, sure, unsure
from tiny import linear

from edgeroute import AsyncRouter, BadInput, Egress, Held, Limits, NoAnswer, OpenInference, Outbox, PlainJson, PolicyError, Router
from edgeroute.cloud.function_backend_and_reply_checks import FunctionBackend
from edgeroute.stores.outbox.sqlite_queue import LONGEST_S, TIMES
from edgeroute.system.wall_clock import now
from edgeroute.testing import CannedServer, FakeCloud, http_reply


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch):
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.HURRY_S", 0.0)
    with nothing_left(monkeypatch):
        yield


@pytest.fixture
def make(kind):
    """Makes routers of either kind, and closes them."""
    with contextlib.ExitStack() as stack:

        def made(edge, cloud, **policy):
            router = stack.enter_context(kind(edge, cloud, **{"threshold": 0.5, **policy}))
            if getattr(policy.get("outbox"), "spread_s", 0):
                begun(router)
            return router

        yield made


@pytest.fixture
def box(tmp_path):
    """An outbox that delivers without rest."""
    return Outbox(tmp_path / "state" / "outbox.db", rate_per_s=1e6, spread_s=0.0)


def begun(router):
    """Delivery has begun, and with that has had everything tried: what is queued from now on waits."""
    end = monotonic() + LONG
    while router.engine.queue.delivery.hurry_at == -math.inf:
        assert monotonic() < end
        threading.Event().wait(0.001)


def listen(router):
    """What the router's listener is told."""
    told = Queue()
    router.on_late(lambda late: told.put(late))  # noqa: PLW0108 - its one parameter is what counts
    return told


def after(thing, method):
    """Set once that method of this object has been called, and has returned."""
    done, real = threading.Event(), getattr(thing, method)

    def call(*args, **kwargs):
        try:
            return real(*args, **kwargs)
        finally:
            done.set()

    setattr(thing, method, call)
    return done


def assert_queued(answer, note=routes.WAITING):
    """The edge's answer for now."""
    assert (answer.value, answer.source, answer.degraded, answer.final) == ("edge", "edge", True, False)
    assert routes.queued(answer) == note


def assert_stands(answer, queued, why=""):
    """The edge's answer, for good."""
    assert (answer.value, answer.source, answer.degraded, answer.final) == ("edge", "edge", True, True)
    assert (routes.queued(answer), why in routes.note(answer)) == (queued, True), answer.reason


def assert_told_once(told, answer, router, value="cloud"):
    """The late answer of this request, and by the time that the router is closed nothing else."""
    late = told.get(timeout=LONG)
    assert (late.id, late.value, late.confidence) == (answer.id, value, 0.9)
    router.close()
    assert told.empty()
    return late


@contextlib.contextmanager
def link(reply=GOOD):
    """A server, and the link to it."""
    with CannedServer(reply) as server, Link("127.0.0.1", server.port) as relay:
        yield server, relay


def posts(server):
    """The requests with user data."""
    return [request for request in server.requests if request.startswith(b"POST")]


# ------------------------------------------------------------------------------------------------------- late replies


@pytest.mark.parametrize("queue", [False, True])
def test_a_reply_after_the_deadline_is_told_once(make, box, queue, due):
    """Under the answer's id, with its value and confidence; with an outbox it is not sent a second time."""
    with GatedServer(GOOD) as server:
        router = make(
            unsure,
            PlainJson(server.url),
            deadline=due(lambda: server.requests),
            **({"offline": "queue", "outbox": box} if queue else {}),
        )
        told = listen(router)
        answer = router.infer(1)
        assert (answer.value, answer.degraded, answer.final) == ("edge", True, not queue)
        server.open()
        late = assert_told_once(told, answer, router)
        assert (late.target, late.data_class) == ("cloud", None)
        assert late.answered_at <= now()
        assert router.stats().late == 1
        if queue:
            assert late.queued_at <= late.answered_at
            assert late.provisional == {"value": "edge", "confidence": 0.1}
            assert (box.list(), box.counts()["delivered"]) == ([], 1)
            box.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize("queue", [False, True])
def test_a_function_that_is_late(make, box, queue, due):
    """As an endpoint: it was called once, and what it said is told."""
    gate = threading.Event()
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(unsure, cloud, deadline=due(cloud.begun.is_set), **({"offline": "queue", "outbox": box} if queue else {}))
    told = listen(router)
    answer = router.infer(1)
    assert answer.degraded
    gate.set()
    assert_told_once(told, answer, router)
    assert cloud.runs == 1


@pytest.mark.parametrize("queue", [False, True])
def test_a_coroutine_function_that_is_late(box, queue, due):
    """It goes on after the deadline, on the loop on which it was begun."""

    async def cloud(_):
        await gate.wait()
        return "cloud", 0.9

    async def main():
        policy = {"offline": "queue", "outbox": box} if queue else {}
        async with AsyncRouter(unsure, cloud, **flat(threshold=0.5, deadline=due(), **policy)) as router:
            told = listen(router)
            answer = await router.infer(1)
            assert answer.degraded
            gate.set()
            return answer, await asyncio.to_thread(told.get, timeout=LONG)

    gate = asyncio.Event()
    answer, late = asyncio.run(main())
    assert (late.id, late.value, late.confidence) == (answer.id, "cloud", 0.9)


def test_a_late_answer_to_refine(make, due):
    """Under the id of both of its answers."""
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), deadline=due(lambda: server.requests))
        told = listen(router)
        shown, answer = router.refine(1)
        assert (shown.final, answer.degraded, answer.id) == (False, True, shown.id)
        server.open()
        assert_told_once(told, answer, router)


def test_a_reply_in_time_is_not_told(make, box):
    """Nor is an edge that was sure, nor a request that is given up."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), deadline=LONG, offline="queue", outbox=box)
        told = listen(router)
        assert router.infer(1).source == "cloud"
        assert router.infer(1, mode="only_edge").source == "edge"
        router.close()
        assert told.empty()
        assert box.counts()["stored"] == 0
        box.close()


def test_without_a_listener_the_leg_is_cut(make, due):
    """At the deadline: the server sees its end."""
    with CannedServer(None) as server:
        assert make(unsure, PlainJson(server.url, timeout_s=600), deadline=due(lambda: server.requests)).infer(1).degraded
        server.wait_for(lambda: server.hung_up == 1)


def test_a_late_failure_is_not_told(make, due):
    """Without an outbox nothing comes of it."""
    with GatedServer(DOWN) as server:
        router = make(unsure, PlainJson(server.url, retries=0), deadline=due(lambda: server.requests))
        told, heard = listen(router), after(router.engine.late, "_hand_on")
        assert router.infer(1).degraded
        server.open()
        assert heard.wait(LONG)
        router.close()
        assert told.empty()
        assert router.stats().late == 0


@pytest.mark.parametrize("queue", [False, True])
def test_a_listener_that_fails_is_logged(make, box, queue, caplog, due):
    """Without an outbox the others are told all the same; with one there is only one, and it is told again."""
    failed = []

    def fails(late):
        if not failed:
            failed.append(late)
            raise ValueError("a listener's own")
        told.put(late)

    with GatedServer(GOOD) as server:
        router = make(
            unsure,
            PlainJson(server.url),
            deadline=due(lambda: server.requests),
            **({"offline": "queue", "outbox": box} if queue else {}),
        )
        told = Queue()
        router.on_late(fails)
        if not queue:
            router.on_late(lambda late: told.put(late))  # noqa: PLW0108 - its one parameter is what counts
        heard = after(router.engine.late, "_hand_on")
        answer = router.infer(1)
        server.open()
        assert heard.wait(LONG)
        if queue:
            assert_told_once(told, answer, router)
        else:
            assert told.get_nowait().id == answer.id
        assert "a listener's own" in caplog.text


def test_what_cannot_be_a_listener(make):
    """A thread calls it, so it is no coroutine or generator function; and without an outbox there is no transaction."""

    async def coroutine(late):
        pass

    def generator(late):
        yield

    router = make(unsure, sure)
    for function, why in ((coroutine, "coroutine"), (generator, "generator"), (lambda late, tx: None, "needs an outbox")):
        with pytest.raises(PolicyError, match=why):
            router.on_late(function)


def test_a_listener_that_returns_what_nothing_runs(make, due, caplog):
    """A plain function that returns a generator has handled nothing, without an outbox, too; it is logged, and others are called."""

    def pieces(late):
        yield late

    with GatedServer(GOOD) as server:
        router, told = make(unsure, PlainJson(server.url), deadline=due(lambda: server.requests)), Queue()
        router.on_late(lambda late: pieces(late))  # noqa: PLW0108 - as an application may have it
        router.on_late(lambda late: told.put(late))  # noqa: PLW0108 - its one parameter is what counts
        answer = router.infer(1)
        server.open()
        assert told.get(timeout=LONG).id == answer.id
        assert "which nothing runs" in caplog.text


def test_a_router_that_is_closed_while_a_reply_is_late(box, due):
    """Nothing of it is left once the reply has come, and the late answer is not lost: it is there or will be asked for."""
    with GatedServer(GOOD) as server:
        before = set(threading.enumerate())
        with Router(
            unsure, PlainJson(server.url), threshold=0.5, deadline=due(lambda: server.requests), offline="queue", outbox=box
        ) as router:
            stored = after(box, "put_all")
            answer = router.infer(1)
            assert_queued(answer)
            assert stored.wait(LONG)
        leg = set(threading.enumerate()) - before
        server.open()
        for thread in leg:
            thread.join(LONG)
        try:
            assert not [name for name in open_files() if "outbox" in name]
            assert not {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("edgeroute-")}
            assert [entry.id for entry in box.list()] == [answer.id]
        finally:
            box.close()


# ------------------------------------------------------------------------------------------------------------- queued


def tensors(request):
    """A server of the Open Inference Protocol, which takes binary tensors."""
    if request.startswith(b"GET"):
        return http_reply(json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}).encode())
    return http_reply(json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0, 9]}]}).encode())


ENDPOINTS = {
    "json": (GOOD, lambda url: PlainJson(url, retries=0), {"a": [1, 2.5]}, "cloud"),
    "binary": (tensors, lambda url: OpenInference(url, model="m", retries=0), np.arange(4, dtype=np.float32), 1),
}


@pytest.mark.parametrize("protocol", ENDPOINTS)
def test_the_outbox_sends_what_the_live_call_would_have(make, tmp_path, protocol):
    """The very bytes, but for the key: that is the answer's id, so a server may tell that it has seen it."""
    reply, endpoint, x, value = ENDPOINTS[protocol]
    with link(reply) as (server, relay):
        router = make(unsure, endpoint(relay.url), offline="queue", state=tmp_path / "state")
        told = listen(router)
        live = router.infer(x)
        assert live.value == value
        relay.down()
        answer = router.infer(x)
        assert_queued(answer)
        assert router.stats().queued == 1
        count = len(posts(server))
        relay.up(router)
        late = told.get(timeout=LONG)
        assert (late.id, late.value) == (answer.id, value)
        assert late.provisional == {"value": "edge", "confidence": 0.1}
        router.close()
        assert told.empty()
    *_, first, second = posts(server)
    assert len(posts(server)) == count + 1
    assert (header(first, "Idempotency-Key"), header(second, "Idempotency-Key")) == (live.id, answer.id)
    assert second.replace(answer.id.encode(), live.id.encode()) == first
    if protocol == "binary":
        assert x.tobytes() in second


def test_the_shipped_pair(make, fashion, fashion_server, tmp_path):
    """A real model, its real server, a link that comes back: the late answer is the cloud's for that image."""
    image = np.load(fashion / "sample.npz")["images"][0]
    with Link("127.0.0.1", int(fashion_server.rpartition(":")[2])) as relay:
        cloud = OpenInference(f"{relay.url}/v2/models/fashion-large", retries=0)
        router = make(fashion / "edge.int8.onnx", cloud, threshold=math.inf, offline="queue", state=tmp_path / "state")
        told = listen(router)
        relay.down()
        answer = router.infer(image)
        assert routes.queued(answer) == routes.WAITING, answer.reason
        relay.up(router)
        late = told.get(timeout=LONG)
        live = router.infer(image)
        assert (late.id, late.value, live.source) == (answer.id, live.value, "cloud")
        assert late.confidence == pytest.approx(live.confidence)


def test_a_reply_between_the_deadline_and_the_outbox(make, box, due):
    """It comes while the request is being queued: it is told once, and nothing is sent a second time."""
    with GatedServer(GOOD) as server:
        calls = []

        def encode(x):
            calls.append(x)
            if len(calls) == 2:  # to be stored
                server.open()
                heard.wait(0.2)  # it may have to wait for the outbox, as this waits for it
            return x

        router = make(
            unsure,
            PlainJson(server.url, encode=encode, timeout_s=600),
            deadline=due(lambda: server.requests),
            offline="queue",
            outbox=box,
        )
        told, heard = listen(router), after(router.engine.late, "_hand_on")
        answer = router.infer(1)
        assert_queued(answer)
        assert_told_once(told, answer, router)
    assert len(server.requests) == 1


def test_a_late_failure_makes_it_due_at_once(make, box, due):
    """Though it was to wait for the reply as long as that might take."""
    replies = iter([DOWN, GOOD])
    with GatedServer(lambda _: next(replies)) as server:
        router = make(
            unsure,
            PlainJson(server.url, retries=0, timeout_s=600),
            deadline=due(lambda: server.requests),
            offline="queue",
            outbox=box,
        )
        told, stored = listen(router), after(box, "put_all")
        answer = router.infer(1)
        assert_queued(answer)
        assert stored.wait(LONG)
        (entry,) = box.list()
        assert entry.ready_at > now() + LONG
        server.open()
        assert_told_once(told, answer, router)
        box.close()
    assert [header(request, "Idempotency-Key") for request in server.requests] == [answer.id] * 2


def test_what_is_stored_is_redacted(make, box):
    """As what is sent live; the input itself is not in the file."""
    with link() as (server, relay):
        relay.down()
        redact = lambda x, data_class: {**x, "name": f"a {data_class}"}  # noqa: E731
        router = make(
            unsure, PlainJson(relay.url, retries=0), offline="queue", outbox=box,
            egress=Egress(may_leave=["product"], redact=redact),
        )  # fmt: skip
        told = listen(router)
        answer = router.infer({"name": "SECRET NAME", "n": 1}, data_class="product")
        assert_queued(answer)
        (entry,) = box.export()
        assert (entry["data_class"], entry["rule"]) == ("product", "may_leave has 'product'")
        relay.up(router)
        late = assert_told_once(told, answer, router)
        assert late.data_class == "product"
        for file in box.path.parent.iterdir():
            assert b"SECRET NAME" not in file.read_bytes()
        box.close()
    assert json.loads(posts(server)[-1].partition(b"\r\n\r\n")[2]) == {"input": {"name": "a product", "n": 1}}


def test_without_consent_nothing_is_stored(make, box):
    """The answer says so."""
    router = make(unsure, FakeCloud([("cloud", 0.9)]), offline="queue", outbox=box, egress=Egress(consent=lambda *_: False))
    answer = router.infer(1)
    assert_stands(answer, routes.NOT_STORED)
    assert answer.reason_code == "consent"
    assert box.counts()["stored"] == 0


def test_a_redaction_that_fails_stores_nothing(make, box):
    """It is not the input itself that is stored then."""
    router = make(unsure, FakeCloud([("cloud", 0.9)]), offline="queue", outbox=box, egress=Egress(redact=lambda *_: 1 / 0))
    answer = router.infer(1)
    assert_stands(answer, routes.NOT_STORED, "ZeroDivisionError")
    assert answer.reason_code == "redaction"
    assert box.counts()["stored"] == 0


def test_what_may_not_leave_is_not_stored(make, box):
    """The edge's answer is final, and not even degraded: nobody else was to be asked."""
    router = make(
        unsure, FakeCloud([RuntimeError("away")]), offline="queue", outbox=box, egress=Egress(never_leave=["medical"], unknown_class="allow")
    )  # fmt: skip
    answer = router.infer(1, data_class="medical")
    assert (answer.source, answer.final, answer.degraded) == ("edge", True, False)
    assert router.infer(1, mode="only_edge").final
    assert box.counts()["stored"] == 0


@pytest.mark.parametrize("status", [400, 404])
def test_a_refusal_for_good_is_not_stored(make, box, status):
    """Sent again it would be refused again."""
    with CannedServer(http_reply(status=status)) as server:
        router = make(unsure, PlainJson(server.url), offline="queue", outbox=box)
        assert_stands(router.infer(1), "")
        assert box.counts()["stored"] == 0
    assert len(server.requests) == 1


class Odd:
    """Neither an array nor JSON."""


def test_an_input_that_cannot_be_stored(make, box):
    """The edge's answer stands, and says so."""
    router = make(unsure, FakeCloud([RuntimeError("away")]), offline="queue", outbox=box)
    assert_stands(router.infer(Odd()), routes.NOT_STORED, "stored")
    assert box.counts()["stored"] == 0


def test_an_input_that_the_endpoint_cannot_encode(make, box):
    """The edge's answer stands: it is no worse than without an outbox."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), offline="queue", outbox=box)
        answer = router.infer(Odd())
        assert (answer.value, answer.degraded, answer.final) == ("edge", True, True)
        assert routes.code(answer) == "bad_input"
        assert box.counts()["stored"] == 0


def test_wrong_input_is_not_stored(make, box, tmp_path):
    """It is the caller's fault, and an exception."""
    router = make(linear(tmp_path / "edge.onnx"), FakeCloud([RuntimeError("away")]), offline="queue", outbox=box)
    with pytest.raises(BadInput):
        router.infer(np.zeros(9, np.float32))
    assert box.counts()["stored"] == 0


def test_no_edge_to_fall_back_on(make, box):
    """The error says that the request was queued, and the late answer comes all the same."""
    with link() as (_, relay):
        relay.down()
        router = make(None, PlainJson(relay.url, retries=0), mode="only_cloud", threshold=None, offline="queue", outbox=box)
        told = listen(router)
        with pytest.raises(NoAnswer, match=f"; {routes.WAITING}$"):
            router.infer(1)
        relay.up(router)
        assert told.get(timeout=LONG).value == "cloud"


# ------------------------------------------------------------------------------------------------------------- reloads

POLICY = """
threshold = 0.5
offline = "queue"
state = "state"
{}
[outbox]
spread = "0s"
"""
CLOUD = '[[cloud]]\nurl = "{}"\nprotocol = "json"\nretries = 0\nname = "{}"\n'


@pytest.fixture
def policy(kind, tmp_path):
    """Writes the policy file -> the router that it makes, of either kind."""
    with contextlib.ExitStack() as stack:

        def policy(text, router=None):
            path = tmp_path / "policy.toml"
            path.write_text(POLICY.format(text))
            if router is None:
                return stack.enter_context(kind.from_policy(path, edge=unsure))
            router.reload()
            return router

        yield policy


@pytest.fixture
def no_hurry(monkeypatch):
    """What failed is tried again only when somebody says so."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.backoff", lambda *_: 2 * LONG)


@pytest.mark.usefixtures("no_hurry")
def test_rules_that_have_become_stricter(policy):
    """What waited is sent by the rules as they are then: it is dead, and nothing was sent."""
    with link() as (server, relay):
        cloud, rules = CLOUD.format(relay.url, "cloud"), "[egress]\n{} = ['product']\n"
        relay.down()
        router = policy(rules.format("may_leave") + cloud)
        failed = after(router.engine.queue.outbox, "failed")
        answer = router.infer(1, data_class="product")
        assert_queued(answer)
        assert failed.wait(LONG)
        buried = after(router.engine.queue.outbox, "bury")
        policy(rules.format("never_leave") + cloud, router)
        relay.up(router)
        assert buried.wait(LONG)
        (entry,) = router.engine.queue.outbox.list()
        assert (entry.id, entry.state) == (answer.id, "dead")
        assert "data class 'product' never leaves" in entry.error
    assert posts(server) == []


@pytest.mark.usefixtures("no_hurry")
def test_a_cloud_that_is_gone_from_the_policy(policy):
    """What was for it is dead, and goes to no other."""
    with link() as (server, relay):
        relay.down()
        other = CLOUD.format(relay.url, "near")
        router = policy(CLOUD.format(relay.url + "/far", "far") + other)
        failed = after(router.engine.queue.outbox, "failed")
        answer = router.infer(1)
        assert_queued(answer)
        assert failed.wait(LONG)
        buried = after(router.engine.queue.outbox, "bury")
        policy(other, router)
        relay.up(router)
        assert buried.wait(LONG)
        (entry,) = router.engine.queue.outbox.list()
        assert (entry.id, entry.state, entry.target) == (answer.id, "dead", "far")
        assert "no cloud 'far' any more" in entry.error
    assert posts(server) == []


def test_a_reload_while_a_request_is_under_way(policy):
    """It ends under the policy with which it began: it waits for the cloud that it was for, not for another in its place."""
    with GatedServer(DOWN) as first, GatedServer(DOWN) as second:
        router = policy(CLOUD.format(first.url, "near") + CLOUD.format(second.url, "far"))
        pending = router.start(1)
        first.wait_for(lambda: first.requests)
        policy(CLOUD.format(second.url, "far") + CLOUD.format(first.url, "near"), router)
        first.open()
        second.open()
        answer = pending.result(LONG)
        assert_queued(answer)
        (entry,) = router.engine.queue.outbox.list()
        assert (entry.id, entry.target) == (answer.id, "near")
        router.close()


def test_a_reload_that_drops_the_clouds_of_a_request_under_way(policy, kind):
    """The edge's answer stands, and no error takes its place; and what it still asked is closed after it."""
    with GatedServer(DOWN) as server:
        cloud = CLOUD.format(server.url, "cloud")
        router = policy(cloud + cloud.replace('"cloud"', '"other"'))
        dropped = router.engine.snapshot.clouds
        pending = router.start(1)
        server.wait_for(lambda: server.requests)
        policy(cloud, router)
        server.open()
        assert pending.result(LONG).value == "edge"
        try:
            server.wait_for(lambda: server.hung_up >= 2)  # the outbox may have asked the new one meanwhile
        finally:
            for runner in dropped:
                router.wait(runner.aclose()) if kind is Tasks else runner.close()
            router.close()


def test_a_reload_closes_what_it_drops(policy):
    """The connections of an endpoint that is gone."""
    with CannedServer(GOOD) as server, CannedServer(GOOD) as other:
        router = policy(CLOUD.format(server.url, "cloud"))
        assert router.infer(1).source == "cloud"
        policy(CLOUD.format(other.url, "cloud"), router)
        server.wait_for(lambda: server.hung_up == 1)


@pytest.mark.parametrize(
    "kind",
    [
        Threads,
        Tasks,
    ],
    ids=["threads", "asyncio"],
)
def test_a_server_that_ends_each_connection(kind):
    """By a header, as many proxies do: the next call makes a new one."""
    with (
        CannedServer(GOOD.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)) as server,
        kind(unsure, PlainJson(server.url), threshold=0.5) as router,
    ):
        assert [router.infer(x).source for x in range(3)] == ["cloud"] * 3
    assert server.connections == 3


# -------------------------------------------------------------------------------------- batches, and what matters most


def unsure_below_zero(x):
    return "edge", 0.9 if x >= 0 else 0.1


def test_a_batch_queues_the_rows_that_failed(make, box):
    """Each under its own id, and each late answer is that row's."""

    def echo(request):
        if request.startswith(b"OPTIONS"):
            return GOOD
        value = json.loads(request.partition(b"\r\n\r\n")[2])["input"]
        return http_reply(json.dumps({"value": f"cloud {value}"}).encode())

    with link(echo) as (server, relay):
        relay.down()
        router = make(unsure_below_zero, PlainJson(relay.url, retries=0), offline="queue", outbox=box)
        told = listen(router)
        first, second, third = router.infer_many([-1, 2, -3])
        assert_queued(first)
        assert_queued(third)
        assert (second.final, second.degraded) == (True, False)
        assert len({first.id, second.id, third.id}) == 3
        relay.up(router)
        assert {(late.id, late.value) for late in (told.get(timeout=LONG), told.get(timeout=LONG))} == {
            (first.id, "cloud -1"),
            (third.id, "cloud -3"),
        }
    assert {header(request, "Idempotency-Key") for request in posts(server)} == {first.id, third.id}


def test_a_batch_at_its_deadline_is_sent_again_if_its_reply_does_not_come(make, box, due, monkeypatch):
    """Its late reply is waited for as long as any reply of that endpoint is."""
    gate, calls = threading.Event(), []

    def cloud(x):
        calls.append(x)
        if len(calls) == 1:
            monkeypatch.setattr(FunctionBackend, "patience_s", 0.01)
            gate.wait(LONG)
        return "cloud", 0.9

    router = make(unsure, cloud, deadline=due(lambda: calls), offline="queue", outbox=box)
    told = listen(router)
    (answer,) = router.infer_many([1])
    assert_queued(answer)
    late = told.get(timeout=LONG)
    assert not gate.is_set()
    gate.set()
    assert (late.id, late.value, calls) == (answer.id, "cloud", [1, 1])


def test_the_least_important_make_room(make, tmp_path):
    """A full outbox drops what matters least, and refuses what matters less than all that it has."""
    box = Outbox(tmp_path / "outbox.db", max_bytes=1500, drop="least_important")
    with link() as (_, relay):
        relay.down()
        router = make(unsure, PlainJson(relay.url, retries=0), offline="queue", outbox=box)
        low, high = router.infer(1, importance=1.0), router.infer(2, importance=5.0)
        assert_queued(low)
        assert_queued(high)
        higher = router.infer(3, importance=3.0)
        assert_queued(higher)
        assert {(e.id, e.importance) for e in box.list()} == {(high.id, 5.0), (higher.id, 3.0)}
        answer = router.infer(4)
        assert (answer.final, answer.degraded) == (True, True)
        assert (routes.queued(answer), "full" in routes.note(answer)) == (routes.NOT_STORED, True)


# --------------------------------------------------------------------------------------------------------------- disks


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system of its own needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("deadline", [None, LONG])
def test_a_disk_that_is_full(disk, make, caplog, deadline):
    """The edge's answer all the same, and it says that nothing more will follow."""
    box = Outbox(disk / "outbox.db")
    with link() as (_, relay):
        relay.down()
        router = make(unsure, PlainJson(relay.url, retries=0), deadline=deadline, offline="queue", outbox=box)
        assert box.list() == []
        answer = router.infer("x" * (2 << 20))
        assert (answer.value, answer.degraded, answer.final) == ("edge", True, True)
        assert (routes.queued(answer), "full" in routes.note(answer)) == (routes.NOT_STORED, True)
        assert "could not be queued" in caplog.text
        assert_queued(router.infer("small"))


def test_a_disk_that_is_slow(make, box, no_time_left):
    """The answer does not wait for it past the deadline; the request is stored and delivered when the disk is ready."""
    gate, put = threading.Event(), box.put_all
    box.put_all = lambda *args: (gate.wait(LONG), put(*args))[1]
    with link() as (_, relay):
        relay.down()
        router = make(unsure, PlainJson(relay.url, retries=0), deadline=LONG, offline="queue", outbox=box)
        told = listen(router)
        answer = router.infer(1)
        assert not gate.is_set()
        assert_queued(answer, routes.BEING_STORED)
        assert box.list() == []
        gate.set()
        relay.up(router)
        assert_told_once(told, answer, router)


def test_a_late_reply_waits_for_a_slow_disk(make, box, due, no_time_left):
    """It comes before its request is stored: told once, and not sent again."""
    gate, put, begun = threading.Event(), box.put_all, threading.Event()
    box.put_all = lambda *args: (begun.set(), gate.wait(LONG), put(*args))[2]
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), deadline=due(lambda: server.requests), offline="queue", outbox=box)
        told, handed_over = listen(router), after(router.engine.late, "take")
        answer = router.infer(1)
        assert_queued(answer, routes.BEING_STORED)
        assert begun.wait(LONG)
        server.open()
        assert handed_over.wait(LONG)
        gate.set()
        assert_told_once(told, answer, router)
    assert len(server.requests) == 1


# -------------------------------------------------------------------------------------------------------- the spread


AGES = 1e6
"""Seconds that no test takes."""


@pytest.fixture
def wide(tmp_path, monkeypatch):
    """An outbox whose random waits are as long as they can be."""
    monkeypatch.setattr("edgeroute.stores.outbox.sqlite_queue.random.uniform", lambda _, most: most)
    return Outbox(tmp_path / "state" / "outbox.db", rate_per_s=1e6, spread_s=AGES)


def only(box):
    """Its one entry: how long it waits, and why."""
    (entry,) = box.list()
    return entry.ready_at - now(), entry.error


def test_a_failure_is_not_sent_again_at_once(make, wide):
    """The cloud has just failed at it."""
    with CannedServer(DOWN) as server:
        router = make(unsure, PlainJson(server.url, retries=0), offline="queue", outbox=wide)
        assert_queued(router.infer(1))
        wait_s, error = only(wide)
        assert wait_s > AGES / 2
        assert "503" in error
        router.close()
    assert len(posts(server)) == 1


def test_a_batch_that_was_late_is_not_sent_again_at_once(make, wide, due):
    """Its reply may still come: as that of one input."""
    gate = threading.Event()
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(unsure, cloud, deadline=due(cloud.begun.is_set), offline="queue", outbox=wide)
    stored = after(wide, "put_all")
    (answer,) = router.infer_many([1])
    assert_queued(answer)
    assert stored.wait(LONG)
    wait_s, error = only(wide)
    assert 0 < wait_s <= FunctionBackend.patience_s
    assert error == ""
    gate.set()


def test_a_late_reply_that_is_being_stored_is_stored_before_the_outbox_closes(make, box, due):
    """Else it would open the file again, which nobody closes then."""
    gate, entered, closed, order = threading.Event(), threading.Event(), threading.Event(), []
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(unsure, cloud, deadline=due(cloud.begun.is_set), offline="queue", outbox=box)
    answer_, close_ = box.answer, box.close

    def answer(*args, **kwargs):
        entered.set()
        closed.wait(0.2)  # as long as closing takes if it does not wait
        order.append("answer")
        return answer_(*args, **kwargs)

    def close():
        close_()
        order.append("close")
        closed.set()

    stored = after(box, "put_all")
    assert_queued(router.infer(1))
    assert stored.wait(LONG)
    box.answer, box.close = answer, close
    gate.set()
    assert entered.wait(LONG)
    router.close()
    assert order == ["answer", "close"]


def test_a_late_failure_is_not_sent_again_at_once(make, wide, due):
    """It waits for its reply at first, and from that on a part of the spread."""
    with GatedServer(DOWN) as server:
        router = make(
            unsure,
            PlainJson(server.url, retries=0, timeout_s=100),
            deadline=due(lambda: server.requests),
            offline="queue",
            outbox=wide,
        )
        stored, failed = after(wide, "put_all"), after(wide, "ready")
        assert_queued(router.infer(1))
        assert stored.wait(LONG)
        wait_s, error = only(wide)
        assert wait_s <= 100
        assert error == ""
        server.open()
        assert failed.wait(LONG)
        wait_s, error = only(wide)
        assert wait_s > AGES / 2
        assert "503" in error
        router.close()
    assert len(posts(server)) == 1


def test_what_was_held_waits_for_the_spread(wide):
    """Where the breaker holds it, the cloud is away, and delivery says so; a limit on this side is none of its business."""
    with (
        link() as (_, relay),
        Router(
            unsure,
            PlainJson(relay.url, retries=0),
            threshold=0.5,
            offline="queue",
            outbox=wide,
            limits=Limits(calls_per_minute=3),
        ) as router,
    ):
        begun(router)
        assert router.infer(0).source == "cloud"
        relay.down()
        router.infer(1)
        (entry,) = (wide.waiting(e.id) for e in wide.list())
        router.infer(2)
        with pytest.raises(Held, match="calls_per_minute") as limited:
            router.engine.queue.send(entry)
        assert limited.value.retry_after_s is None
        guard = router.engine.snapshot.clouds[0].guard
        while guard.state == "closed":
            guard.failed()
        with pytest.raises(Held, match="breaker") as held:
            router.engine.queue.send(entry)
        assert held.value.retry_after_s == AGES
        wide.spread_s = 60.0
        with pytest.raises(Held, match="breaker") as held:
            router.engine.queue.send(entry._replace(queued_at=now() - 100))
        assert 100 * TIMES <= held.value.retry_after_s <= LONGEST_S


def test_what_is_held_is_looked_at_at_once(make, wide):
    """It did not fail: should the breaker have closed meanwhile, it goes like any other request."""
    with link() as (_, relay):
        router = make(unsure, PlainJson(relay.url, retries=0), offline="queue", outbox=wide)
        relay.down()
        guard = router.engine.snapshot.clouds[0].guard
        while guard.state == "closed":
            guard.failed()
        looked = after(router.engine.queue.delivery, "_deliver")
        answer = router.infer(1)
        assert_queued(answer)
        assert answer.reason_code == "breaker"
        wait_s, error = only(wide)
        assert wait_s <= 0
        assert error == ""
        assert looked.wait(LONG)
        router.close()


def test_the_clouds_return_is_spread_and_the_links_is_not(make, wide, monkeypatch):
    """After a probe alone what waits goes within the spread; with the device's own link, and for a while after that, at once."""
    clock = [0.0]
    monkeypatch.setattr("edgeroute.observe.breaker_probes_and_network.monotonic", lambda: clock[0])
    with link() as (_, relay):
        router = make(unsure, PlainJson(relay.url, retries=0), offline="queue", outbox=wide)
        told, delivery = listen(router), router.engine.queue.delivery
        relay.down()
        answer = router.infer(1)
        assert_queued(answer)
        relay.refuse = False
        guard = router.engine.snapshot.clouds[0].guard
        guard.check_health()
        assert delivery.hurry_at > monotonic() + AGES / 2
        assert only(wide)[0] > AGES / 2
        router.link_up()
        assert_told_once(told, answer, router)
        wakes = []
        delivery.wake = lambda *, now: wakes.append(now)
        for clock[0] in (29.0, 31.0):
            router.engine.queue.delivery.wake(now=router.engine.health.outage_was_local())
        assert wakes == [True, False]
        router.close()
        router.link_up()
        assert wakes == [True, False], "a closed router does nothing"


# ------------------------------------------------------------------------------------------------- functions as clouds


@pytest.mark.parametrize("x", [{"a": [1, None]}, np.arange(6.0).reshape(2, 3), b"bytes", {"a": np.ones(2, np.uint8)}], ids=type)
def test_a_function_is_called_again(make, box, x):
    """With an input equal to the first."""
    seen = []

    def cloud(given):
        seen.append(given)
        if len(seen) == 1:
            raise RuntimeError("away")
        return "cloud", 0.9

    router = make(unsure, cloud, offline="queue", outbox=box)
    told = listen(router)
    answer = router.infer(x)
    assert_queued(answer)
    assert_told_once(told, answer, router)
    assert len(seen) == 2
    np.testing.assert_equal(seen[1], seen[0])


def test_a_coroutine_function_is_awaited_again(box):
    """From the outbox, on a loop of its own."""
    seen = []

    async def cloud(x):
        await asyncio.sleep(0)
        seen.append(x)
        if len(seen) == 1:
            raise RuntimeError("away")
        return "cloud", 0.9

    async def main():
        async with AsyncRouter(unsure, cloud, threshold=0.5, offline="queue", outbox=box) as router:
            told = listen(router)
            answer = await router.infer({"n": 1})
            assert_queued(answer)
            return answer, await asyncio.to_thread(told.get, timeout=LONG)

    answer, late = asyncio.run(main())
    assert (late.id, late.value, seen) == (answer.id, "cloud", [{"n": 1}] * 2)


# ------------------------------------------------------------------------------------------------ restarts, processes


def test_a_reply_from_before_a_restart(kind, tmp_path, due):
    """Nobody listened then; the next run that does is told, once."""
    policy = {"threshold": 0.5, "offline": "queue", "state": tmp_path / "state"}
    with GatedServer(GOOD) as server:
        with kind(unsure, PlainJson(server.url), deadline=due(lambda: server.requests), **policy) as router:
            answered = after(router.engine.queue.outbox, "answer")
            answer = router.infer(1)
            server.open()
            assert answered.wait(LONG)
        with kind(unsure, PlainJson(server.url), **policy) as router:
            assert_told_once(listen(router), answer, router)
        with kind(unsure, PlainJson(server.url), **policy) as router:
            told = listen(router)
            router.infer(2)
        assert told.empty()


def test_a_request_from_before_a_restart(kind, tmp_path):
    """What waited is sent by the next run, under the id that it had."""
    policy = {"threshold": 0.5, "offline": "queue", "state": tmp_path / "state"}
    with link() as (server, relay):
        relay.down()
        with kind(unsure, PlainJson(relay.url, retries=0), **policy) as router:
            answer = router.infer(1)
            assert_queued(answer)
        relay.refuse = False
        with kind(unsure, PlainJson(relay.url, retries=0), **policy) as router:
            assert_told_once(listen(router), answer, router)
    assert [header(request, "Idempotency-Key") for request in posts(server)] == [answer.id]


def test_what_an_endpoint_has_told_outlives_the_run(kind, tmp_path):
    """Offline from the start, the next run stores the call as it would be sent, and not only the input."""
    policy, x = {"threshold": 0.5, "offline": "queue", "state": tmp_path / "state"}, np.arange(4, dtype=np.float32)
    with link(tensors) as (server, relay):
        with kind(unsure, OpenInference(relay.url, model="m", retries=0), **policy) as router:
            assert router.infer(x).source == "cloud"
        count = len(posts(server))
        relay.down()
        with kind(unsure, OpenInference(relay.url, model="m", retries=0), **policy) as router:
            told = listen(router)
            answer = router.infer(x)
            assert_queued(answer)
            (entry,) = router.engine.queue.outbox.list()
            assert entry.kind == "call"
            relay.up(router)
            assert told.get(timeout=LONG).id == answer.id
        assert len(posts(server)) == count + 1
        assert x.tobytes() in posts(server)[-1]


def test_an_endpoint_that_was_never_met(kind, tmp_path):
    """The input is stored, and encoded once the endpoint has told what it takes."""
    x = np.arange(4, dtype=np.float32)
    with link(tensors) as (server, relay):
        relay.down()
        cloud = OpenInference(relay.url, model="m", retries=0)
        with kind(unsure, cloud, threshold=0.5, offline="queue", state=tmp_path / "state") as router:
            told = listen(router)
            answer = router.infer(x)
            assert_queued(answer)
            assert router.engine.queue.outbox.list()[0].kind == "input"
            relay.up(router)
            late = told.get(timeout=LONG)
            assert (late.id, late.value) == (answer.id, 1)
            np.testing.assert_array_equal(late.outputs, [0, 9])
    assert x.tobytes() in posts(server)[-1]
    assert header(posts(server)[-1], "Idempotency-Key") == answer.id


PROGRAM = """
import os, signal, sys
import edgeroute.core.endpoint_breaker_and_limits
from edgeroute import PlainJson, Router
from edgeroute.stores.outbox import Outbox

url, folder, effect, count, dies = sys.argv[1:]
edgeroute.core.endpoint_breaker_and_limits.FAULTS = 10**9  # it is the outbox that is tested, not when it is asked again
edgeroute.stores.outbox.delivery_and_callbacks.HURRY_S = 0.0
box = Outbox(folder + "/outbox.db", rate_per_s=1e6, spread_s=0.0)

def note(name, text):
    fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())  # by one write: threads speak at the same time

def once(late, tx):
    tx.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT)")
    tx.execute("INSERT INTO effects VALUES (?)", (late.id,))
    perhaps_die()
    say("late", late.id)

def again(late):
    note("effects", late.id)
    perhaps_die()
    say("late", late.id)

def perhaps_die(calls=[]):
    calls.append(1)
    if len(calls) == int(dies):
        os.kill(os.getpid(), signal.SIGKILL)

with Router(lambda x: ("edge", 0.1), PlainJson(url, retries=0), threshold=0.5, offline="queue", outbox=box) as router:
    say("ready", "")
    router.engine.queue.callbacks.loop.poll_s = router.engine.queue.delivery.loop.poll_s = 0.05
    router.on_late(once if effect == "once" else again)
    for n in range(int(count)):
        answer = router.infer(n)
        if not answer.final:
            note("queued", answer.id)
            say("queued", answer.id)
    sys.stdin.read()
"""


def program(url, folder, effect, count, dies=0):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, url, str(folder), effect, str(count), str(dies)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def away_at_first():
    """The reply to each request: 503 when its key is seen for the first time, and then the answer."""
    seen = set()

    def reply(request):
        key = header(request, "Idempotency-Key")
        if key is None or key in seen:
            return GOOD
        seen.add(key)
        return DOWN

    return reply


def noted(file):
    return file.read_text().split() if file.exists() else []


def effects(folder, effect):
    """The ids whose effect has happened, each as often as it did."""
    if effect == "again":
        return noted(folder / "effects")
    with contextlib.closing(sqlite3.connect(folder / "outbox.db")) as connection:
        return [name for (name,) in connection.execute("SELECT id FROM effects")]


@pytest.fixture
def memory(tmp_path):
    """A folder in memory, where there is one: what a process has written survives its end there too, and costs no fsync."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["once", "again"])
def test_kill_9_at_any_moment(memory, effect):
    """Every queued request has its effect: exactly once where that is written with the transaction, else at least once."""
    chance = random.Random(effect)
    with CannedServer(away_at_first()) as server:
        for n in range(6):
            within = chance.randint(1, 5) if n % 2 else 0  # the callback itself, of that late answer
            with program(server.url, memory, effect, 80, within) as process:
                assert process.stdout.readline() == "ready \n"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LONG if within else chance.uniform(0.0, 0.3))
                process.kill()
        box = Outbox(memory / "outbox.db")
        left = {entry.id for entry in box.list()}
        box.close()
        with program(server.url, memory, effect, 0) as process:
            while left:
                what, _, name = process.stdout.readline().strip().partition(" ")
                assert what in {"ready", "late"}
                left.discard(name)
            process.stdin.close()
            assert process.wait(LONG) == 0
    queued, done = noted(memory / "queued"), effects(memory, effect)
    assert len(queued) > 5
    assert set(queued) <= set(done)
    if effect == "once":
        assert len(done) == len(set(done))
    else:
        assert len(done) > len(set(done))  # those of which the callback was killed


def test_two_processes_share_an_outbox(memory):
    """Each late answer has its effect once, whoever queued it and whoever delivers it."""
    with CannedServer(away_at_first()) as server, contextlib.ExitStack() as stack:
        processes = [stack.enter_context(program(server.url, memory, "once", 15)) for _ in range(2)]
        said = Queue()
        readers = [threading.Thread(target=lambda p=p: [said.put(line.split()) for line in p.stdout]) for p in processes]
        for reader in readers:
            reader.start()
        queued, late = set(), set()
        while len(queued) < 30 or queued - late:
            what, *name = said.get(timeout=LONG)
            {"queued": queued, "late": late, "ready": set()}[what].update(name)
        for process in processes:
            process.stdin.close()
            assert process.wait(LONG) == 0
        for reader in readers:
            reader.join(LONG)
    done = effects(memory, "once")
    assert sorted(done) == sorted(queued)
    keys = [header(request, "Idempotency-Key") for request in posts(server)]
    assert sorted(keys) == sorted([*queued] * 2)  # once live, once from the outbox
