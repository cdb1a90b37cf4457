"""Threads: what hangs in the cloud cannot take what the edge needs, and every leg ends with an event."""

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from time import monotonic

import pytest
import routes
from both import CALLS, LONG, GatedServer, Tasks, ask, flat, makes, sure, unsure
from draws import slow
from test_threads import until_idle

from edgeroute import AsyncRouter, Cache, DeadlineExceeded, Egress, PlainJson, Router, Unreachable
from edgeroute.cloud.function_backend_and_reply_checks import MAX_ABANDONED
from edgeroute.observe.target_counts import TOGETHER
from edgeroute.router.engine import decide_alone
from edgeroute.router.leg_execution import STUCK_MOST
from edgeroute.system.thread_pool_and_workers import ThreadPool
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply

GOOD = http_reply(b'{"value": "cloud", "confidence": 0.9}')


pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)


@pytest.fixture
def gate():
    """Open once the test has ended, so that what hangs does not hang for ever."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.mark.parametrize("callers", [32, *slow(64)])
@pytest.mark.parametrize("late", [True, False], ids=["late replies wanted", "cut at the deadline"])
def test_many_callers_on_a_silent_server(make, callers, late, due):
    """Each has the edge's answer, while the cloud is asked for all of them at once."""
    edge = FakeModel([("edge", 0.1)])
    with GatedServer(GOOD) as server:
        router = make(edge, PlainJson(server.url), deadline=due(lambda: edge.runs >= callers))
        if late:
            router.on_late(lambda _: None)
        with ThreadPoolExecutor(callers) as pool:
            answers, more = (list(pool.map(router.infer, range(callers))) for _ in range(2))
        assert {(answer.value, answer.degraded) for answer in answers} == {("edge", True)}
        assert {answer.value for answer in more} == {"edge"}, "though many legs may still be at their end"
        server.open()


@pytest.mark.parametrize("call", CALLS)
def test_a_full_pool_of_cloud_threads(make, gate, call, due):
    """The cloud is not asked, which is said; the edge's answer stands."""
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(unsure, cloud, deadline=due(cloud.begun.is_set))
    router.engine.cloud_threads = ThreadPool("edgeroute-cloud", 1)
    first, second = (ask(router, call, x) for x in range(2))
    assert first.reason_code == "deadline"
    assert (second.value, second.degraded) == ("edge", True)
    assert second.reason_code == "threads"
    assert router.stats().legs[1].held == 1


@pytest.mark.parametrize("call", CALLS)
def test_no_thread_at_all(make, call, monkeypatch):
    """The edge runs in the caller's own."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    router = make(unsure, sure, deadline=LONG)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        answer = ask(router, call, 1)
    assert answer.value == "edge"
    assert answer.reason_code == "threads"


@pytest.mark.parametrize("call", CALLS)
def test_an_edge_thread_that_hangs_takes_no_other(make, gate, call):
    """With all of the edge's threads stuck the next run is the caller's."""
    model = FakeModel(lambda x: gate.wait(LONG) and ("edge", 0.9) if x == "hang" else ("edge", 0.9))
    router = make(model, None, deadline=LONG)
    router.engine.edge_threads = ThreadPool("edgeroute-edge", 1)
    with pytest.raises(DeadlineExceeded):
        ask(router, call, "hang", deadline=0.2)
    assert ask(router, call, "x").value == "edge"


def test_an_edge_that_always_hangs_does_not_take_the_callers(make, gate):
    """Once very many runs are stuck, a run for which there is no thread is refused."""
    router = make(FakeModel([("edge", 0.9)], gate=gate), None, deadline=0.01)
    router.engine.edge_threads = ThreadPool("edgeroute-edge", STUCK_MOST)
    for _ in range(STUCK_MOST):
        with pytest.raises(DeadlineExceeded):
            router.infer(1)
    with pytest.raises(Exception, match="runs go on after a request to stop"):
        router.infer(1)


def test_a_cloud_that_ignores_its_stop_is_counted_and_skipped(make, gate):
    """A race that the edge wins each time leaves a run each time, but no more than a few."""
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(lambda _: (cloud.begun.wait(LONG), ("edge", 0.9))[1], cloud, hedge_after=0, deadline=LONG)
    router.engine.snapshot.clouds[0].guard.succeeded(None)  # of one that is not known to be well three runs are too many
    for _ in range(MAX_ABANDONED):
        cloud.begun.clear()
        assert router.infer(1).source == "edge"
    assert "skip cloud" in str(decide_alone(router.engine, 1, None, None, None))
    runs = cloud.runs
    for _ in range(TOGETHER):
        router.infer(1)
    assert cloud.runs == runs


def test_an_edge_that_ignores_its_stop_is_left_alone_at_once_and_asked_again_at_once(make, gate):
    """However few requests come, the planner hears of its runs with the request that gave up the last one, or the next one."""
    model = FakeModel([("edge", 0.9)], gate=gate)
    router = make(model, FakeCloud([("cloud", 0.9)]), hedge_after=0.001, deadline=LONG)
    (backend,) = (one for one in router.engine.snapshot.backends if one.side == "edge")
    for _ in range(backend.max_abandoned):
        assert not router.engine.observer.facts.busy
        assert router.infer(1).source == "cloud"
    assert router.engine.observer.facts.busy == {"edge"}
    gate.set()
    end, pause = monotonic() + LONG, threading.Event()
    while backend.abandoned:
        assert monotonic() < end
        pause.wait(0.001)
    router.infer(1)
    assert not router.engine.observer.facts.busy
    assert router.infer(1).trace["plan"][0]["leg"] == "edge"


def test_stuck_edge_runs_do_not_cost_the_answer_while_the_cloud_is_away(make, gate):
    """The planner asks the cloud first then, and the edge all the same where that fails."""
    model = FakeModel(lambda x: gate.wait(LONG) and ("edge", 0.9) if x == "hang" else ("edge", 0.9))
    router = make(model, FakeCloud([Unreachable("away")]))
    for backend in router.engine.snapshot.backends:
        backend.max_abandoned = 1
    with pytest.raises(DeadlineExceeded):
        router.infer("hang", deadline=0.1)
    answers = [router.infer("x", deadline=LONG) for _ in range(4)]
    assert {answer.value for answer in answers} == {"edge"}
    assert any(answer.degraded for answer in answers)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_whatever_a_leg_in_a_thread_raises(call, error):
    """It has failed, and the edge's answer stands; its thread takes the next."""

    def cloud(_):
        raise error("a leg's own")

    with Router(unsure, cloud, threshold=0.5, deadline=LONG) as router:
        for _ in range(3):
            assert ask(router, call, 1).value == "edge"
            until_idle(router.engine.cloud_threads)  # it hands its answer over first
        assert len(router.engine.cloud_threads) == 1


VARIABLE = contextvars.ContextVar("VARIABLE", default="none")


@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize("side", ["edge", "cloud"])
@pytest.mark.parametrize("call", CALLS)
def test_context_variables_reach_every_leg(call, side, deadline):
    """In whichever thread it runs."""

    def told(_):
        return VARIABLE.get(), 0.9

    router = Router(told, None) if side == "edge" else Router(unsure, told, threshold=0.5)

    def asking():
        VARIABLE.set("tenant-7")
        with router:
            return ask(router, call, 1, deadline=deadline).value

    assert contextvars.copy_context().run(asking) == "tenant-7"


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_context_variables_reach_every_leg_of_asyncio(side):
    """Its threads, and its tasks."""

    async def tells(_):
        return VARIABLE.get(), 0.9

    async def main():
        VARIABLE.set("tenant-7")
        edge = (lambda _: (VARIABLE.get(), 0.9)) if side == "edge" else unsure
        async with AsyncRouter(edge, tells, threshold=0.5, deadline=LONG) as router:
            assert (await router.infer(1)).value == "tenant-7"
            assert (await router.infer_many([1]))[0].value == "tenant-7"

    asyncio.run(main())


def test_a_task_that_is_cancelled_inside():
    """It failed; the call does not wait for it."""

    async def cloud(_):
        inner = asyncio.ensure_future(asyncio.sleep(LONG))
        inner.cancel()
        await inner

    async def main():
        async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
            answer = await asyncio.wait_for(router.infer(1), LONG)
            assert (answer.value, answer.degraded) == ("edge", True)
            async with router.stream(1) as stream:
                assert [piece async for piece in stream] == ["edge"]

    asyncio.run(main())


@pytest.mark.parametrize("call", ["infer", "infer_many"])
def test_close_while_a_call_is_under_way(call):
    """The call ends with what it has."""

    async def main():
        begun = asyncio.Event()

        async def cloud(_):
            begun.set()
            await asyncio.sleep(LONG)

        router = AsyncRouter(unsure, cloud, threshold=0.5)
        asked = asyncio.ensure_future(router.infer(1) if call == "infer" else router.infer_many([1]))
        await asyncio.wait_for(begun.wait(), LONG)
        await router.close()
        answer = await asyncio.wait_for(asked, LONG)
        assert (answer if call == "infer" else answer[0]).value == "edge"

    asyncio.run(main())


class NoExecutor(ThreadPoolExecutor):
    """asyncio's own, of which nothing is to be asked."""

    def submit(self, *_, **__):
        """Is a failure."""
        raise AssertionError("it is everybody's")


def test_asyncios_own_executor_is_left_alone(tmp_path):
    """Edges, functions, names, consent, the disk, decide, check, close: none needs it."""

    async def main(url):
        asyncio.get_running_loop().set_default_executor(NoExecutor())
        policy = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "offline": "queue", "cache": Cache()}
        egress = Egress(consent=lambda *_: True)
        async with AsyncRouter(
            unsure, PlainJson(url.replace("127.0.0.1", "localhost")), **flat(egress=egress, **policy)
        ) as router:
            assert (await router.infer(1)).value == "cloud"
            await router.decide(1)
            await router.check()
        policy |= {"state": tmp_path / "other", "cache": Cache()}
        async with AsyncRouter(unsure, FakeCloud([Unreachable("away")]), **flat(**policy)) as router:
            assert routes.queued(await router.infer(1)) == routes.WAITING

    with GatedServer(GOOD) as server:
        server.open()
        asyncio.run(main(server.url))


def test_close_never_raises(caplog):
    """What a part raises is logged, and the others are closed all the same."""

    class Model(FakeModel):
        def close(self):
            closed.append(1)
            raise OSError("a model's own")

    closed = []
    router = Router(Model([("edge", 0.9)]), None)
    router.infer(1)
    router.close()
    router.close()
    assert len(closed) == 2
    assert "a part of it could not be closed" in caplog.text


def test_a_callback_for_late_answers_that_exits(make, gate, due):
    """`SystemExit` in it costs nothing but itself."""
    told = Queue()
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(unsure, cloud, deadline=due(cloud.begun.is_set))

    @router.on_late
    def exits(late):
        told.put(late)
        raise SystemExit

    ids = [router.infer(x).id for x in range(2)]
    gate.set()
    assert sorted(told.get(timeout=LONG).id for _ in ids) == sorted(ids)


def test_a_child_has_threads_of_its_own(gate, due):
    """However many of the parent's legs are under way, and whatever they hold."""
    begun = []

    def cloud(x):
        if x:
            begun.append(x)
            gate.wait(LONG)
        return "cloud", 0.9

    with Router(unsure, cloud, threshold=0.5) as router:
        for n in (1, 2):  # one more, and the breaker opens
            router.infer(1, deadline=due(lambda n=n: len(begun) == n))
        pid = os.fork()
        if not pid:
            os._exit(0 if router.infer(0, deadline=LONG).value == "cloud" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_model_is_not_closed_under_a_run(make, gate):
    """The run that outlived its call ends first; the last one closes it."""

    class Model(FakeModel):
        open = True

        def run(self, inputs, cancel=None):
            found = super().run(inputs, cancel)
            seen.put(self.open)
            return found

        def close(self):
            self.open = False
            closed.set()

    seen, closed = Queue(), threading.Event()
    router = make(Model([("edge", 0.9)], gate=gate), None, deadline=0.05)
    with pytest.raises(DeadlineExceeded):
        router.infer(1)
    router.close()
    assert not closed.is_set()
    gate.set()
    assert seen.get(timeout=LONG)
    assert closed.wait(LONG)


class NoCopy:
    """A tensor of which there can be no copy."""

    def __deepcopy__(self, memo):
        """There is no memory."""
        raise MemoryError("no memory for a copy")


@pytest.mark.parametrize("call", CALLS)
def test_a_leg_that_fails_as_it_is_begun(call):
    """Its failure is heard at once, also where the answer would have come in pieces."""

    async def cloud(_):
        yield "cloud"

    with Tasks(unsure, cloud, threshold=0.5) as router:
        answer = ask(router, call, NoCopy())
        assert answer.value == ("cloud" if call == "infer" else "edge")


@pytest.mark.parametrize("call", CALLS)
def test_consent_without_a_thread_does_not_run_on_the_loop(call):
    """The cloud is not asked, as a leg without one is not."""
    seen = []

    async def cloud(_):
        return "cloud", 0.9

    egress = Egress(consent=lambda *_: seen.append(1) or True)
    with Tasks(unsure, cloud, threshold=0.5, deadline=LONG, egress=egress) as router:
        router.engine.cloud_threads = ThreadPool("edgeroute-cloud", 0)
        answer = ask(router, call, 1)
        assert (answer.value, seen) == ("edge", [])
        assert answer.reason_code == "threads"
        assert router.stats().legs[1].held == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interrupt_as_a_leg_begins_ends_it(monkeypatch, streamed):
    """What a signal handler raises while the thread of a cloud starts: its connection is closed, and the thread free."""
    with CannedServer(None) as server, Router(unsure, PlainJson(server.url, timeout_s=600), threshold=0.5) as router:
        pool = router.engine.cloud_threads
        submit = pool.submit

        def interrupted(job):
            submit(job)
            server.wait_for(lambda: len(server.requests) == 1)
            raise KeyboardInterrupt

        monkeypatch.setattr(pool, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            [*router.stream("x")] if streamed else router.infer("x", deadline=600)
        server.wait_for(lambda: server.hung_up == 1)
