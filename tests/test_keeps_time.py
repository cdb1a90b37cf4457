"""A cloud call with a deadline that ends by itself runs in the caller's thread; what may not end by itself has its own."""

from __future__ import annotations

import asyncio
import json
from math import inf
from time import monotonic

import pytest
from both import LONG, flat

from edgeroute import AsyncRouter, Egress, Instrument, Limits, PlainJson, Router
from edgeroute.http import aio_connections
from edgeroute.router.pool_calls_and_task_legs import TAKES_BACK
from edgeroute.testing import CannedServer, http_reply

REPLY = http_reply(json.dumps({"value": "cloud", "confidence": 0.9}).encode(), headers=[("Content-Type", "application/json")])
LONG_S, SHORT_S = LONG, 2.0


class OfOnesOwn(PlainJson):
    """A protocol of the application's: what it does takes as long as it takes."""

    def talk(self, inputs):
        """As the plain one's."""
        return super().talk(inputs)


class Follows(Instrument):
    """An instrument of the application's, which may take its time over an attempt."""

    def attempt_ended(self, ended):
        """Does nothing, as far as is known here."""


@pytest.fixture
def server():
    """One that answers."""
    with CannedServer(REPLY) as server:
        yield server


def threads_of(router, **call):
    """How many threads a call takes, once its client is there."""
    router.check()
    assert router.infer([1], **call).value == "cloud"
    return len(router.engine.cloud_threads)


def test_what_keeps_its_time_runs_in_the_callers_thread(server):
    """With a deadline and without."""
    with Router(None, PlainJson(server.url), deadline=LONG_S) as router:
        assert threads_of(router) == 0
    with Router(lambda _: ("edge", 0.1), PlainJson(server.url), threshold=0.8) as router:
        assert threads_of(router, deadline=LONG_S) == 0


@pytest.mark.parametrize(
    "why", ["consent", "redaction", "view", "score", "encode", "own", "client", "limits", "ledger", "late", "race", "instrument"]
)
def test_what_may_not_keep_it_has_a_thread(why, server, tmp_path):
    """A function of the application, a disk, or a client of httpx may outlast the deadline; and a race takes two at once."""
    url, given = server.url, {"deadline": LONG_S}
    cloud, edge = PlainJson(url), None
    if why == "consent":
        given["egress"] = Egress(consent=lambda *_: True)
    elif why == "redaction":
        given["egress"] = Egress(redact=lambda x, _: x)
    elif why == "view":
        given["views"] = {"cloud": lambda x: x}
    elif why == "score":
        given["score"] = lambda _: 0.9
    elif why == "encode":
        cloud = PlainJson(url, encode=lambda x: x)
    elif why == "own":
        cloud = OfOnesOwn(url)
    elif why == "client":
        cloud = PlainJson(url, client="httpx")
    elif why == "limits":
        given |= {"limits": Limits(calls_per_minute=100), "state": tmp_path}
    elif why == "ledger":
        given["state"] = tmp_path
    elif why == "instrument":
        given["instruments"] = [Follows()]
    elif why == "race":
        edge = lambda _: ("edge", 0.1)  # noqa: E731 - an edge is a callable
        given |= {"hedge_after": 0.0, "threshold": 0.8}
    with Router(edge, cloud, **flat(**given)) as router:
        if why == "late":
            router.on_late(lambda *_: None)
        assert threads_of(router) == 1


HEAD = REPLY[: REPLY.index(b"\r\n\r\n")]
FAULTS = {
    "silence": [None],
    "a head that stops": [HEAD[:20], None],
    "a body that stops": [REPLY[:-5], None],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_deadline_ends_it(fault):
    """It is told as of a leg in a thread, and the connection is closed."""
    replies = iter([REPLY, FAULTS[fault]])
    with (
        CannedServer(lambda _: next(replies)) as server,
        Router(lambda _: ("edge", 0.1), PlainJson(server.url), threshold=0.8) as router,
    ):
        router.infer([1])
        begun = monotonic()
        answer = router.infer([1], deadline=SHORT_S)
        assert monotonic() - begun >= SHORT_S
        assert (answer.value, answer.degraded, len(router.engine.cloud_threads)) == ("edge", True, 0)
        assert [step["what"] for step in answer.trace["events"]][-1] == "timeout"
        server.wait_for(lambda: server.hung_up == 1)
        assert router.engine.snapshot.clouds[0].guard.under_way == 0


def test_a_failure_before_the_deadline_is_told_as_one():
    """And the edge's answer is given at once."""
    replies = iter([REPLY, http_reply(b"", status=400)])
    with (
        CannedServer(lambda _: next(replies)) as server,
        Router(lambda _: ("edge", 0.1), PlainJson(server.url), threshold=0.8) as router,
    ):
        router.infer([1])
        answer = router.infer([1], deadline=LONG_S)
        assert (answer.value, answer.degraded) == ("edge", True)
        assert [step["what"] for step in answer.trace["events"]][-1] == "failed"


# ------------------------------------------------------------------------------------------------------------- asyncio
@pytest.mark.skipif(not TAKES_BACK, reason="legs have tasks of their own")
def test_on_asyncio_it_has_no_task_of_its_own(server):
    """Nor with a deadline; the caller's own cancellation ends it, and the connection with it."""

    async def main(stalling):
        async with AsyncRouter(None, PlainJson(server.url)) as router:
            await router.infer([1])  # opens the connection, which takes a task before Python 3.11
            for call in ({}, {"deadline": LONG_S}):
                made = count_tasks(asyncio.get_running_loop())
                assert (await router.infer([1], **call)).value == "cloud"
                assert made() == 0
        async with AsyncRouter(None, PlainJson(stalling.url)) as router:
            await router.infer([1])
            call = asyncio.ensure_future(router.infer([1], deadline=LONG_S))
            await asyncio.to_thread(stalling.wait_for, lambda: len(stalling.requests) == 2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.to_thread(stalling.wait_for, lambda: stalling.hung_up == 1)

    replies = iter([REPLY, [None]])
    with CannedServer(lambda _: next(replies)) as stalling:
        asyncio.run(main(stalling))


def count_tasks(loop):
    """Counts the tasks that are made from now on."""
    made = []

    def factory(loop, coroutine, **options):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop.set_task_factory(factory)

    def stop():
        loop.set_task_factory(None)
        return len(made)

    return stop


def test_closing_ends_what_runs_in_a_callers_task():
    """The caller has the edge's answer and goes on, uncancelled."""

    async def main(server):
        router = AsyncRouter(lambda _: ("edge", 0.1), PlainJson(server.url, timeout_s=10 * LONG_S), threshold=0.8)
        await router.infer([1])

        async def ask():
            answer = await router.infer([1])
            await asyncio.sleep(0)  # where a cancellation that was left over would show
            assert not getattr(asyncio.current_task(), "cancelling", int)()
            return answer

        call = asyncio.ensure_future(ask())
        await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 2)
        await router.close()
        done, _ = await asyncio.wait([call], timeout=LONG_S)
        assert done
        answer = call.result()
        assert (answer.value, answer.degraded) == ("edge", True)
        await asyncio.to_thread(server.wait_for, lambda: server.hung_up == 1)

    replies = iter([REPLY, [None]])
    with CannedServer(lambda _: next(replies)) as server:
        asyncio.run(main(server))


@pytest.mark.skipif(not TAKES_BACK, reason="legs have tasks of their own, and no task knows how often it was cancelled")
def test_closing_ends_what_runs_in_a_task_that_was_cancelled():
    """A caller that cleans up has the edge's answer all the same: that cancellation was not of ours."""

    async def main(server):
        router = AsyncRouter(lambda _: ("edge", 0.1), PlainJson(server.url, timeout_s=10 * LONG_S), threshold=0.8)
        await router.infer([1])
        begun = asyncio.Event()

        async def ask():
            try:
                begun.set()
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                return await router.infer([1])

        call = asyncio.ensure_future(ask())
        await begun.wait()
        call.cancel()
        await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 2)
        await router.close()
        assert (await call).value == "edge"

    replies = iter([REPLY, [None]])
    with CannedServer(lambda _: next(replies)) as server:
        asyncio.run(main(server))


def test_on_asyncio_the_deadline_ends_a_reply_that_never_stops(monkeypatch):
    """What has come is read without waiting, and the time is looked at all the same."""
    chunk = b"40\r\n" + b" " * 64 + b"\r\n"
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 10_000
    replies = iter([REPLY, [endless, None]])

    async def main(server):
        async with AsyncRouter(lambda _: ("edge", 0.1), PlainJson(server.url, timeout_s=LONG_S), threshold=0.8) as router:
            await router.infer([1])
            # once it has sent its request, the connection's time is over at each look: while there is more to read
            monkeypatch.setattr(aio_connections, "monotonic", lambda: inf if len(server.requests) > 1 else monotonic())
            begun = monotonic()
            assert (await router.infer([1], deadline=LONG_S)).value == "edge"
            await asyncio.to_thread(server.wait_for, lambda: server.hung_up == 1)
            assert monotonic() - begun < LONG_S / 2, "what ended it was not the deadline of a read that waits"

    with CannedServer(lambda _: next(replies)) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("fault", FAULTS)
def test_on_asyncio_the_deadline_ends_it(fault):
    """As in threads; a shorter limit than that of the call before counts, and a longer one."""
    replies = iter([REPLY, FAULTS[fault], REPLY])

    async def main(server):
        async with AsyncRouter(lambda _: ("edge", 0.1), PlainJson(server.url, timeout_s=LONG_S), threshold=0.8) as router:
            await router.infer([1])
            begun = monotonic()
            answer = await router.infer([1], deadline=SHORT_S)
            assert monotonic() - begun >= SHORT_S
            assert (answer.value, answer.degraded) == ("edge", True)
            assert [step["what"] for step in answer.trace["events"]][-1] == "timeout"
            await asyncio.to_thread(server.wait_for, lambda: server.hung_up == 1)
            assert (await router.infer([1])).value == "cloud"

    with CannedServer(lambda _: next(replies)) as server:
        asyncio.run(main(server))


def test_an_earlier_limit_of_the_same_connection_ends_nothing():
    """An alarm stays set from call to call; it rings in the second one here, which has more time."""
    replies = iter([REPLY, REPLY, [None]])

    async def main(server):
        async with AsyncRouter(lambda _: ("edge", 0.1), PlainJson(server.url), threshold=0.8) as router:
            await router.check()
            assert (await router.infer([1], deadline=2 * SHORT_S)).value == "cloud"
            begun = monotonic()
            assert (await router.infer([1], deadline=2.5 * SHORT_S)).degraded
            assert monotonic() - begun >= 2.5 * SHORT_S
            assert server.connections == 2  # that of `check`, and one for both

    with CannedServer(lambda _: next(replies, REPLY)) as server:
        asyncio.run(main(server))
