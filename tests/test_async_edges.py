"""Edges that are awaited: by `AsyncRouter` in every kind of call; `Router` refuses them when it is made."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading

import numpy as np
import pytest
import routes
from both import CALLS, LONG, Tasks, Threads, ask, unsure

from edgeroute import (
    AsyncRouter,
    Cache,
    CallableModel,
    DeadlineExceeded,
    Ensemble,
    Options,
    PolicyError,
    Prediction,
    Router,
)
from edgeroute.testing import FakeCloud


async def until(holds):
    """Waits until a condition holds that nobody tells of."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def sure(x):
    """Its own input, with confidence."""
    await asyncio.sleep(0)
    return f"edge {x}", 0.9


async def doubtful(x):
    """Unsure of everything."""
    return f"edge {x}", 0.1


class Called:
    """An object that is called and awaited."""

    async def __call__(self, x):
        """As `sure`."""
        return await sure(x)


class Model:
    """An edge model whose runs are awaited."""

    name = "model"

    async def run(self, inputs, cancel=None):
        """All inputs."""
        return [await sure(x) for x in inputs]


class One(Model):
    """And with a way for one input."""

    async def run_one(self, x, cancel=None):
        """One input."""
        return [await sure(x)]


async def speaks(x):
    """In pieces, with a confidence at the end."""
    yield "edge "
    yield str(x)
    yield Prediction(None, 0.9, None)


class Speaks(Model):
    """A model that streams."""

    async def stream(self, x, cancel=None):
        """As `speaks`."""
        async for piece in speaks(x):
            yield piece


class CalledSpeaks:
    """An object that is called and streams."""

    async def __call__(self, x):
        """As `speaks`."""
        async for piece in speaks(x):
            yield piece


EDGES = {
    "function": lambda: sure,
    "partial": lambda: functools.partial(sure),
    "bound method": lambda: Called().__call__,
    "object": Called,
    "CallableModel": lambda: CallableModel(sure),
    "run": Model,
    "run_one": One,
    "generator": lambda: speaks,
    "object that streams": CalledSpeaks,
    "stream": Speaks,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("edge", EDGES)
def test_each_is_awaited(edge, call):
    """In each kind of call, with a deadline and without."""
    with Tasks(EDGES[edge](), lambda _: "cloud", threshold=0.5) as router:
        for deadline in (None, LONG):
            answer = ask(router, call, 1, deadline=deadline)
            assert (answer.value, answer.source, answer.confidence) == ("edge 1", "edge", 0.9)


@pytest.mark.parametrize("edge", EDGES)
def test_a_router_of_threads_refuses_each_when_it_is_made(edge):
    """In one line that says what to do, and no thread is left behind."""
    before = set(threading.enumerate())
    with pytest.raises(PolicyError, match=r"^the edge '\w+' is async: use AsyncRouter, which awaits it, or make it a plain def$"):
        Router(EDGES[edge](), lambda _: "cloud", threshold=0.5)
    assert not set(threading.enumerate()) - before


def test_a_batch_runs_as_one_and_in_order():
    """Those below the threshold go on to the cloud."""

    async def edge(x):
        await asyncio.sleep(0)
        return x, x / 10

    with Tasks(edge, lambda x: f"cloud {x}", threshold=0.5) as router:
        assert [a.value for a in router.infer_many([9, 1, 7, 2])] == [9, "cloud 1", 7, "cloud 2"]


@pytest.mark.parametrize("call", CALLS)
def test_an_unsure_one_defers(call):
    """As any edge does."""
    with Tasks(doubtful, lambda _: "cloud", threshold=0.5) as router:
        assert ask(router, call, 1).value == "cloud"
        answer = ask(router, call, 1, mode="only_edge")
        assert (answer.value, answer.source) == ("edge 1", "edge")


def test_pieces_come_as_they_are_made():
    """Of an edge whose answer is accepted in any case the first is there before the second is made."""
    go = asyncio.Event()

    async def edge(_):
        yield "a"
        await go.wait()
        yield "b"

    async def main():
        async with AsyncRouter(edge) as router, router.stream(1) as stream:
            seen = []
            async for piece in stream:
                seen.append(piece)
                go.set()
            return seen, stream.answer.value

    assert asyncio.run(main()) == (["a", "b"], "ab")


class Hangs:
    """An edge that waits for ever; it notes that it began and how it ended."""

    def __init__(self):
        self.begun, self.ended = asyncio.Event(), []

    async def __call__(self, _):
        """Waits."""
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except BaseException as e:
            self.ended.append(type(e).__name__)
            raise


def test_a_call_that_is_cancelled_cancels_its_run():
    """With a deadline, in a batch and in a stream, too."""

    async def main():
        for call in ("infer", "infer_many", "stream", "refine"):
            for deadline in (None, LONG):
                edge = Hangs()
                async with AsyncRouter(edge) as router:
                    task = asyncio.ensure_future(_asked(router, call, deadline))
                    await edge.begun.wait()
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    await until(
                        lambda edge=edge, backend=router.engine.snapshot.backends[0]: edge.ended and not backend.abandoned
                    )
                assert edge.ended == ["CancelledError"], call

    asyncio.run(main())


async def _asked(router, call, deadline):
    if call == "infer":
        return await router.infer(1, deadline=deadline)
    if call == "infer_many":
        return await router.infer_many([1, 2], deadline=deadline)
    if call == "refine":
        return [answer async for answer in router.refine(1, deadline=deadline)]
    async with router.stream(1, deadline=deadline) as stream:
        return [piece async for piece in stream]


def test_a_deadline_cancels_it():
    """Alone there is no answer then; with a cloud its answer was there."""

    async def main():
        edge = Hangs()
        async with AsyncRouter(edge) as router:
            with pytest.raises(DeadlineExceeded):
                await router.infer(1, deadline=0.5)
        assert edge.ended == ["CancelledError"]
        edge = Hangs()

        async def cloud(_):
            await edge.begun.wait()
            return "cloud"

        async with AsyncRouter(edge, cloud, threshold=0.5, options=Options(hedge_after=0)) as router:
            answer = await router.infer(1, deadline=LONG)
            await until(lambda: edge.ended)
        assert (answer.value, edge.ended) == ("cloud", ["CancelledError"])

    asyncio.run(main())


def test_a_run_that_ignores_its_cancellation_is_counted():
    """The planner leaves such an edge alone, and comes back to it once its runs have ended."""

    async def main():
        go = asyncio.Event()

        async def edge(_):
            while not go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go.wait()
            return "edge", 0.9

        async with AsyncRouter(CallableModel(edge, parallel=1), lambda _: "cloud", threshold=0.5) as router:
            (backend, _) = router.engine.snapshot.backends
            with pytest.raises(DeadlineExceeded):
                await router.infer(1, deadline=0.5, mode="only_edge")
            assert backend.abandoned == 1
            router.engine.observe()
            assert (await router.infer(1)).value == "cloud"
            go.set()
            await until(lambda: not backend.abandoned)
            router.engine.observe()
            assert (await router.infer(1)).value == "edge"

    asyncio.run(main())


def test_it_reads_a_copy_of_its_input():
    """The caller may write its next input into the buffer while a run goes on that was cancelled."""

    async def main():
        go, seen = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def edge(x):
            try:
                await asyncio.Event().wait()
            finally:
                await go.wait()
                seen.set_result(x.tolist())

        async with AsyncRouter(edge) as router:
            x = np.array([1, 2])
            with pytest.raises(DeadlineExceeded):
                await router.infer(x, deadline=0.5)
            x[:] = 0
            go.set()
            assert await seen == [1, 2]

    asyncio.run(main())


class Uncopied:
    """An input that cannot be copied."""

    def __deepcopy__(self, memo):
        """It cannot."""
        raise MemoryError("too large")


def test_an_input_that_cannot_be_copied():
    """Is the edge's with a deadline, too: nothing of a run that outlives the call is used."""

    async def edge(_):
        return "edge", 0.9

    with Tasks(edge, lambda _: "cloud", threshold=0.5) as router:
        assert router.infer(Uncopied()).value == "edge"
        assert router.infer(Uncopied(), deadline=LONG).value == "edge"


@pytest.mark.parametrize("call", CALLS)
def test_no_more_run_at_a_time_than_its_parallel_says(call):
    """The others wait for their turn, whatever kind of call they are."""
    running = most = 0

    async def edge(x):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return f"edge {x}", 0.9

    async def main():
        async with AsyncRouter(CallableModel(edge, parallel=2)) as router:
            await asyncio.gather(*(_asked(router, call, None) for _ in range(8)))

    asyncio.run(main())
    assert most == 2


def test_one_that_waits_for_its_turn_can_be_cancelled():
    """And takes no turn from the next."""

    async def main():
        go = asyncio.Event()

        async def edge(x):
            await go.wait()
            return x, 0.9

        async with AsyncRouter(CallableModel(edge, parallel=1)) as router:
            first, second, third = (asyncio.ensure_future(router.infer(i)) for i in range(3))
            for _ in range(5):
                await asyncio.sleep(0)
            second.cancel()
            go.set()
            assert [(await first).value, (await third).value] == [0, 2]
            assert second.cancelled()

    asyncio.run(main())


def test_decide_and_check():
    """They await it as a call does; `check` loads it."""
    loaded = []

    class Loads(Model):
        def load(self):
            loaded.append(threading.current_thread())

    with Tasks(Loads(), lambda _: "cloud", threshold=0.95) as router:
        assert router.wait(router.router.check()).ok
        assert len(loaded) == 1
        decision = router.wait(router.router.decide(1))
        assert "edge 0.90 < 0.95" in str(decision)
        assert decision.sends_to


def test_cached_answers_and_failures():
    """An equal request is answered from the cache; one that fails hands over with its own error."""

    async def edge(x):
        if x == "bad":
            raise ZeroDivisionError("no")
        return "edge", 0.9

    with Tasks(edge, FakeCloud([("cloud", 0.9)]), threshold=0.5, cache=Cache()) as router:
        assert [router.infer(1).source for _ in range(2)] == ["edge", "cache"]
        answer = router.infer("bad")
        assert answer.value == "cloud"
        assert routes.error(answer, "edge") == "ZeroDivisionError"


def test_a_closed_router_awaits_nothing():
    """A run under way ends with the router, and the model is closed after it."""
    told = []

    class Closes:
        name = "closes"

        def __init__(self):
            self.begun = asyncio.Event()

        async def run(self, inputs, cancel=None):
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                told.append("run")

        def close(self):
            told.append("close")

    async def main():
        model = Closes()
        router = AsyncRouter(model)
        task = asyncio.ensure_future(router.infer(1))
        await model.begun.wait()
        await router.close()
        with pytest.raises(Exception, match="cancelled"):
            await task

    asyncio.run(main())
    assert told == ["run", "close"]


def test_what_is_half_async():
    """Some of its runs, or what is called from threads, is refused with what to change."""

    class Half(Model):
        def run_one(self, x, cancel=None):
            return None

    class Closes(Model):
        async def close(self):
            pass

    for edge, says in (
        (Half(), "the edge 'model': run async, run_one not: make all async or none"),
        (Closes(), "close is async def, and is called from threads: make it a plain def"),
    ):
        with pytest.raises(PolicyError, match=says):
            AsyncRouter(edge)
    with pytest.raises(PolicyError, match="an ensemble calls its models, and sure would be awaited"):
        Ensemble([sure, unsure])


@pytest.mark.parametrize("kind", [Router, Tasks])
def test_a_def_that_returns_a_coroutine(kind):
    """Cannot be told before it is called: the reason says what to write then."""

    def edge(x):
        return sure(x)

    with kind(edge, lambda _: "cloud", threshold=0.5) as router:
        answer = router.infer(1)
    assert answer.value == "cloud"
    assert "is a def that returns a coroutine: make it an async def, and use AsyncRouter" in routes.error(answer, "edge")


class Later:
    """What a client of its own returns to be awaited, and is no coroutine."""

    def __await__(self):
        yield


@pytest.mark.parametrize("kind", [Router, Tasks])
def test_an_awaitable_is_no_answer(kind):
    """It replaced the edge's answer."""
    with kind(lambda _: ("edge", 0.1), lambda _: Later(), threshold=0.5) as router:
        answer = router.infer(1)
        with router.stream(1) as stream:
            assert list(stream) == ["edge"]
    assert (answer.value, answer.degraded) == ("edge", True)
    assert "is a def that returns a Later" in routes.error(answer, "cloud")
    with kind(lambda _: Later(), lambda _: "cloud", threshold=0.5) as router:
        assert "is a def that returns a Later" in routes.error(router.infer(1), "edge")


def test_an_awaitable_that_is_awaited_gives_no_other():
    async def later(_):
        return Later()

    with Tasks(lambda _: ("edge", 0.1), later, threshold=0.5) as router:
        answer = router.infer(1)
        with router.stream(1) as stream:
            assert list(stream) == ["edge"]
    assert (answer.value, answer.degraded) == ("edge", True)
    assert "returns a Later: await it" in routes.error(answer, "cloud")


def test_a_reload_refuses_one_too(tmp_path, monkeypatch):
    """A policy that brings an async edge is refused by a router of threads, and the old one stays."""
    (tmp_path / "slow.py").write_text(
        "class Slow:\n    name = 'slow'\n    def __init__(self, path): self.path = path\n    async def run(self, inputs, cancel=None):"
        "\n        return [('slow', 0.9) for _ in inputs]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from edgeroute.edge import runtimes_variants_ensemble as runtimes

    monkeypatch.setitem(runtimes.BUILT_IN, ".slow", "slow:Slow")
    (tmp_path / "m.slow").touch()
    policy = tmp_path / "policy.toml"
    policy.write_text('[edge]\npath = "m.slow"\n')
    with pytest.raises(PolicyError, match="the edge 'slow' is async: use AsyncRouter"):
        Router.from_policy(policy)
    with Tasks.from_policy(policy) as router:
        assert router.infer(1).value == "slow"
        router.reload()
        assert router.infer(1).value == "slow"


# ------------------------------------------------------------------------------------------------------------------- clouds
@pytest.mark.parametrize("edge", ["function", "object", "generator"])
def test_a_router_of_threads_refuses_an_async_cloud(edge):
    """When it is made: each deferred request would fail otherwise."""
    with pytest.raises(PolicyError, match=r"^the cloud is the function '\w+', and async: use AsyncRouter"):
        Router(lambda _: ("edge", 0.1), EDGES[edge](), threshold=0.5)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_a_cloud_that_returns_what_is_to_be_awaited(kind, call):
    """That object is no answer; the edge's stands, and the reason says what to write."""

    async def later(x):
        return f"cloud {x}", 0.9

    def cloud(x):
        return later(x)

    with kind(lambda x: (f"edge {x}", 0.1), cloud, threshold=0.5) as router:
        answer = ask(router, call, 1)
    assert (answer.value, answer.degraded) == ("edge 1", True)
    assert "AsyncRouter" in routes.error(answer)
