"""An edge that says for how long it is busy, as a system's model beyond its quota: the cloud meanwhile, and the edge where there is none."""

from __future__ import annotations

import asyncio
import math
import threading
from time import monotonic

import httpx
import pytest
from both import CALLS, LONG, Tasks, Threads, ask
from gateways import CHAT, serving

from edgeroute import AsyncRouter, Function, Limits, LocalServer, PlainJson, PolicyError, Unreachable
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.edge.edge_backend import MAX_ABANDONED
from edgeroute.errors import Busy
from edgeroute.testing import CannedServer, http_reply


class Quota:
    """An edge that is busy at its first run."""

    def __init__(self, retry_after_s):
        self.runs, self.retry_after_s = 0, retry_after_s

    def __call__(self, x):
        """As a function of the application."""
        self.runs += 1
        if self.runs == 1:
            raise Busy("the quota is spent", retry_after_s=self.retry_after_s)
        return "edge", 0.9


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    return request.param


@pytest.mark.parametrize(("retry_after_s", "later"), [(3600, "cloud"), (0, "edge"), (None, "edge")])
def test_the_cloud_answers_meanwhile(make, retry_after_s, later):
    """And the edge is not run; without a time the next request runs it."""
    edge = Quota(retry_after_s)
    with make(edge, lambda x: "cloud", threshold=0.5) as router:
        first = router.infer(1)
        assert (first.value, first.degraded) == ("cloud", False)
        assert [router.infer(1).value for _ in range(3)] == [later] * 3
    assert edge.runs == (1 if later == "cloud" else 4)


@pytest.mark.parametrize("call", CALLS)
def test_the_first_request_after_it_is_the_edges(make, call):
    """However it is asked: nothing leaves, and no call waits for a cloud, once the edge is free again."""
    edge, left = Quota(3600), []
    with make(edge, lambda x: (left.append(x), "cloud")[1], threshold=0.5) as router:
        assert ask(router, call, "first").value == "cloud"
        router.engine.snapshot.backends[0].rests_until = monotonic()  # its time is over
        assert ask(router, call, "private").value == "edge"
        assert set(left) == {"first"}


def test_the_first_batch_after_it_is_the_edges(make):
    edge = Quota(3600)
    with make(edge, lambda x: "cloud", threshold=0.5) as router:
        assert router.infer(1).value == "cloud"
        router.engine.snapshot.backends[0].rests_until = monotonic()
        assert [answer.value for answer in router.infer_many(range(20))] == ["edge"] * 20


@pytest.mark.parametrize("many", [False, True])
def test_runs_that_cancelled_calls_leave_are_observed(many):
    """The next call goes to the cloud at once, as after runs that passed their deadline; and to the edge once they have ended."""
    go, begun = threading.Event(), threading.Semaphore(0)

    def edge(x):
        if x != "quick":
            begun.release()
            go.wait(LONG)
        return "edge", 0.9

    async def main():
        async with AsyncRouter(edge, lambda x: "cloud", threshold=0.5) as router:
            tasks = [asyncio.ensure_future(router.infer_many([x]) if many else router.infer(x)) for x in range(MAX_ABANDONED)]
            for _ in tasks:
                await asyncio.to_thread(begun.acquire, timeout=LONG)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            meanwhile = (await router.infer("quick")).source
            go.set()
            await asyncio.to_thread(router.engine.edge_threads.close, LONG)
            return meanwhile, (await router.infer("quick")).source

    try:
        assert asyncio.run(main()) == ("cloud", "edge")
    finally:
        go.set()


def test_it_is_asked_where_nobody_else_answers(make):
    """Never worse than the edge: a cloud that is away, or none, leaves the busy edge as the last resort."""

    def away(_):
        raise ConnectionError

    edge = Quota(3600)
    with make(edge, away, threshold=0.5) as router:
        with pytest.raises(Exception, match="answer"):
            router.infer(1)
        assert router.infer(1).value == "edge"
    alone = Quota(3600)
    with make(alone) as router:
        with pytest.raises(Busy):
            router.infer(1)
        assert router.infer(1).value == "edge"


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_says_for_how_long(stream):
    """Where nobody else answers, on each API: 503 with Retry-After, so that clients come again then."""

    def edge(_):
        raise Busy("the quota is spent", retry_after_s=37)

    bodies = {"chat/completions": CHAT, "messages": {**CHAT, "max_tokens": 9}, "responses": {"model": "edgeroute", "input": "x"}}
    with serving(AsyncRouter(edge)) as url:
        replies = [httpx.post(f"{url}/v1/{path}", json={**body, "stream": stream}, timeout=LONG) for path, body in bodies.items()]
    assert [(reply.status_code, reply.headers.get("retry-after")) for reply in replies] == [(503, "37")] * 3


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("retry_after", "later"), [("3600", 1), ("9999999", 1), ("0", 5), ("soon", 5), (None, 5)])
def test_a_server_on_the_device_says_for_how_long(make, status, retry_after, later):
    """By Retry-After: it is not asked meanwhile, whatever the body says."""
    headers = [] if retry_after is None else [("Retry-After", retry_after)]
    with CannedServer(http_reply(b'{"error": {"message": "all slots are busy"}}', status=status, headers=headers)) as server:
        with make(LocalServer(f"{server.url}/v1"), lambda x: "cloud", threshold=0.5) as router:
            answers = [router.infer("hi") for _ in range(5)]
        assert [answer.value for answer in answers] == ["cloud"] * 5
        assert len(server.requests) == later


class Waits:
    """A model that may be busy, and is told until when a run waits for its turn."""

    name, version = "waits", "1"

    def __init__(self):
        self.told = []

    def run(self, inputs, cancel=None):
        """As of any model."""
        self.told.append(cancel.turn_by)
        return [("edge", 0.1) for _ in inputs]


def test_no_time_is_left_to_a_cloud_that_may_not_be_called(make, monkeypatch):
    """Half of it to one that may; with an open breaker all of it is the edge's, so that calls at the same time get their turns."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)  # no probe is due while this runs, however slow the machine

    def away(_):
        raise Unreachable("the link is down")

    model = Waits()
    with make(model, Function(away), threshold=0.5) as router:
        begun = monotonic()
        while router.guard.state == "closed":
            assert router.infer(1, deadline=60.0).degraded
        assert all(begun + 30 <= instant <= monotonic() + 30 for instant in model.told)
        assert router.infer(1, deadline=60.0).degraded
        assert model.told[-1] == math.inf


@pytest.mark.parametrize(
    ("limits", "price"),
    [({"usd_per_day": 1.0}, {"usd_per_call": 0.6}), ({"usd_per_day": 0.5}, {"usd_per_call": 0.6}), ({"calls_per_minute": 1}, {})],
)
def test_no_time_is_left_to_a_cloud_whose_limit_is_spent(make, limits, price):
    """Half of it while a call is left; one of a price above the limit never has any."""
    model, calls = Waits(), math.floor(limits.get("usd_per_day", 1) / price.get("usd_per_call", 1))
    with make(model, Function(lambda x: "cloud", **price), threshold=0.5, limits=Limits(**limits)) as router:
        for left in (1, 0):
            begun = monotonic()
            degraded = router.infer(1, deadline=60.0).degraded
            assert degraded == (left > calls or not left)
            assert (begun + 30 <= model.told[-1] <= monotonic() + 30) if not degraded else model.told[-1] == math.inf


def test_no_time_is_left_to_a_cloud_whose_bytes_are_spent(make):
    """Bytes count where they are known: a function's are not."""
    reply = http_reply(b'{"value": "cloud", "confidence": 0.9}')
    for function, later in ((False, True), (True, False)):
        model = Waits()
        with CannedServer(reply) as server:
            cloud = [PlainJson(server.url), *([Function(lambda x: "function")] if function else [])]
            with make(model, cloud, threshold=0.5, limits=Limits(mb_per_day=6e-5)) as router:
                for _ in range(3):
                    router.infer("x" * 20, deadline=60.0)
                assert (model.told[0] < math.inf, model.told[-1] == math.inf) == (True, later)


@pytest.mark.parametrize(
    ("said", "meant"),
    [(-0.2, 0), (-math.inf, 0), (0, 0), (86_400, 86_400), (90_000, 86_400), (1e300, 86_400), (math.inf, 86_400)],
)
def test_seconds_beyond_the_range(make, said, meant):
    """A quota that was renewed an instant ago is free, and one of a month is not asked for a day: neither is a failure of the model."""
    assert Busy("x", retry_after_s=said).retry_after_s == meant
    edge = Quota(said)
    with make(edge, lambda x: "cloud", threshold=0.5) as router:
        assert router.infer(1).value == "cloud"
        assert router.infer(1).value == ("cloud" if meant else "edge")
        assert router.leg("edge").failed == 0


@pytest.mark.parametrize("seconds", [float("nan"), "1", True])
def test_seconds_that_are_none(seconds):
    with pytest.raises(PolicyError, match="retry_after_s"):
        Busy("x", retry_after_s=seconds)
