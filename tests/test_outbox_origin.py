"""What is queued for an endpoint goes to that endpoint, whatever its name is by then, and to no other."""

from __future__ import annotations

import contextlib
import threading
from queue import Queue
from time import monotonic

import numpy as np
import pytest
import routes
from both import DOWN, GOOD, LONG, came, header, unsure
from test_largest_batch import Limited

from edgeroute import Egress, Function, Outbox, PlainJson, Trial, Unreachable
from edgeroute.testing import CannedServer, http_reply

SECRET = "a-key-of-the-first"


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]


@pytest.fixture
def make(kind, tmp_path):
    """Makes routers with an outbox on the same file, closes them, and has what they are told of."""
    with contextlib.ExitStack() as stack:

        def make(cloud, **policy):
            box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
            router = kind(unsure, cloud, threshold=0.5, offline="queue", outbox=box, **policy)
            stack.callback(box.close)
            stack.callback(router.close)
            told = Queue()
            getattr(router, "router", router).on_late(told.put)
            return router, box, told

        yield make


@pytest.fixture
def servers():
    """Two endpoints that are down, until `up`."""
    with CannedServer(DOWN) as first, CannedServer(GOOD) as second:
        yield first, second


def up(server):
    """Answers from now on."""
    came(server)
    server.reply = GOOD
    server.requests.clear()


def queued(make, cloud, call="infer", **policy):
    """The ids of requests that are queued for this cloud, whose router is closed then."""
    router, _, _ = make(cloud, **policy)
    answers = [router.infer(1)] if call == "infer" else router.infer_many([1, 2])
    assert {routes.queued(answer) for answer in answers} == {routes.WAITING}
    router.close()
    return [answer.id for answer in answers]


def buried(box, count=1):
    """The dead letters, once there are so many."""
    until = monotonic() + LONG
    while box.size("dead") < count:
        assert monotonic() < until, "it was delivered, or waits"
        threading.Event().wait(0.001)
    return box.list()


def of(server, path="/first", key=SECRET):
    return PlainJson(server.url + path, api_key=key, retries=0)


@pytest.mark.parametrize("call", ["infer", "infer_many"])
def test_another_endpoint_under_the_same_name(make, servers, call):
    """It gets nothing; the entries are dead letters without any credentials, and go once theirs is back and they are retried."""
    first, second = servers
    asked = []
    agreed = Egress(consent=lambda where, _: (asked.append(where), where.startswith(first.url))[1])
    names = queued(make, of(first), call, egress=agreed)
    router, box, _ = make(of(second, "/other", "another-key"), egress=agreed)
    for entry in buried(box, len(names)):
        assert (entry.id in names, entry.target) == (True, "cloud")
        assert "queued for another endpoint" in entry.error
        assert SECRET not in str(entry)
        assert first.url not in str(entry)
    router.close()
    assert [r for r in second.requests if r.startswith(b"POST")] == []
    up(first)
    router, box, told = make(of(first, key="a-new-key"), egress=agreed)
    assert box.retry() == len(names)
    assert {told.get(timeout=LONG).id for _ in names} == {*names}
    posts = [r for r in first.requests if r.startswith(b"POST")]
    assert {(r.split()[1], header(r, "Authorization")) for r in posts} == {(b"/first", "Bearer a-new-key")}


@pytest.mark.parametrize(
    "stranger",
    [
        http_reply(b"<html>", status=404),
        http_reply(b"<html>"),
        http_reply(b"{}"),
        http_reply(b'{"name": "other", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]}'),
    ],
    ids=["no such page", "a page", "JSON", "another model"],
)
def test_another_program_at_the_port(make, stranger):
    """Nothing that is queued for a model server is sent to it, and none becomes a dead letter; the server gets them later."""
    with Limited(8) as model:
        model.server.reply = DOWN
        x = np.array([7], "float32")
        router, _, _ = make(model.endpoint())
        assert routes.queued(router.infer(x)) == routes.WAITING
        router.close()
        came(model.server)
        model.server.reply = stranger
        model.server.requests.clear()
        router, box, told = make(model.endpoint())
        model.server.wait_for(lambda: len(model.server.requests) >= 2)
        assert box.list()[0].state == "waiting"
        assert {request.split()[0] for request in model.server.requests} == {b"GET"}
        model.server.reply = model.reply
        assert told.get(timeout=LONG).value == pytest.approx(7)
        assert model.sizes == [1]


@pytest.mark.parametrize("same_host", [True, False])
@pytest.mark.parametrize("after", ["first", "only"])
def test_another_name_for_the_same_endpoint(make, servers, same_host, after):
    """Delivered there, not to the one that has its name now."""
    first, second = servers
    other = first if same_host else second
    (name,) = queued(make, [of(first)])
    up(first)
    moved = PlainJson(first.url + "/first", api_key=SECRET, retries=0, name="far")
    router, _, told = make([of(other, "/other"), of(first)] if after == "first" else [moved])
    late = told.get(timeout=LONG)
    assert (late.id, late.target) == (name, "cloud")
    router.close()
    posts = [r.split()[1] for r in first.requests + second.requests if r.startswith(b"POST")]
    assert posts == [b"/first"]


def test_the_name_counts_where_two_are_the_same_endpoint(make, servers):
    """Of two with one address, each with its key, the one with the entry's name."""
    first, _ = servers

    def clouds(*names):
        return [PlainJson(first.url, api_key=f"key-of-{name}", retries=0, name=name) for name in names]

    router, box, _ = make(clouds("two", "one"))
    router.infer(1)
    router.close()
    assert [e.target for e in box.list()] == ["two"]
    up(first)
    _, _, told = make(clouds("one", "two"))
    told.get(timeout=LONG)
    assert {header(r, "Authorization") for r in first.requests if r.startswith(b"POST")} == {"Bearer key-of-two"}


class Other(PlainJson):
    """Another protocol at the same address."""


def test_another_protocol_at_the_same_address(make, servers):
    """It would not understand what was encoded for the first."""
    first, _ = servers
    queued(make, of(first))
    up(first)
    _, box, _ = make(Other(first.url + "/first", api_key=SECRET, retries=0))
    assert "queued for another endpoint" in buried(box)[0].error
    assert [r for r in first.requests if r.startswith(b"POST")] == []


def named(name, f):
    f.__name__ = name
    return f


def away(_):
    raise Unreachable("away")


def test_a_function_is_known_by_its_name(make, servers):
    """Neither a function of another name nor an endpoint gets what was queued for it; one of the same name does."""
    asked = []
    (name,) = queued(make, Function(named("first", away)))
    for other in (named("other", lambda x: (asked.append(x), ("cloud", 0.9))[1]), of(servers[1])):
        router, box, _ = make(other)
        assert "queued for another endpoint" in buried(box)[0].error
        router.close()
        assert box.retry() == 1
    assert (asked, [r for r in servers[1].requests if r.startswith(b"POST")]) == ([], [])
    _, _, told = make(named("first", lambda _: ("cloud", 0.9)))
    assert told.get(timeout=LONG).id == name


POLICY = """
threshold = 0.5
offline = "queue"
state = "state"
[cloud]
url = "{}"
protocol = "json"
retries = 0
[outbox]
spread = "0s"
"""


def test_a_reload(kind, servers, tmp_path):
    """The name is another endpoint's from then on, and what waits does not go there."""
    first, second = servers
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.format(first.url))
    with contextlib.closing(kind.from_policy(path, edge=unsure)) as router:
        router.infer(1)
        path.write_text(POLICY.format(second.url))
        router.reload()
        router.engine.queue.delivery.wake(now=True)
        assert "queued for another endpoint" in buried(router.engine.queue.outbox)[0].error
    assert [r for r in second.requests if r.startswith(b"POST")] == []


@pytest.mark.parametrize("call", ["infer", "infer_many"])
@pytest.mark.parametrize("busy", [False, True])
def test_what_was_in_an_arm_is_queued_for_the_first_endpoint(make, servers, call, busy):
    """The arm may be stopped or gone by then; consent is asked for where it goes."""
    first, second = servers
    second.reply = DOWN
    asked = []
    agreed = Egress(consent=lambda where, _: (asked.append(where), where.startswith(first.url))[1]) if busy else None
    trial = Trial(cloud=of(second, "/other", "another-key"), share=1.0)
    router, box, _ = make(of(first), egress=agreed, trial=trial)
    if busy:  # calls of it go on that were given up
        router.engine.snapshot.clouds[0].max_abandoned = 0
        router.engine.observe()
        assert router.engine.observer.facts.busy == {"cloud"}
    answers = [router.infer(1)] if call == "infer" else router.infer_many([1, 2])
    assert {routes.queued(answer) for answer in answers} == {routes.WAITING}
    assert {entry.target for entry in box.list()} == {"cloud"}
    router.close()
    up(first)
    up(second)
    _, _, told = make(of(first), egress=agreed)
    assert {told.get(timeout=LONG).id for _ in answers} == {answer.id for answer in answers}
    assert {header(r, "Authorization") for r in first.requests if r.startswith(b"POST")} == {f"Bearer {SECRET}"}
    assert second.requests == []
    assert not asked or any(where.startswith(first.url) for where in asked)
