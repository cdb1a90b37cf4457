"""`router.stream`: pieces of real generators, in threads and on asyncio."""

import asyncio
import threading

import pytest
import routes
from both import LONG, flat

from edgeroute import AsyncRouter, Cache, Function, Instrument, NoAnswer, Piece, PlainJson, PolicyError, Prefix, Router
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.dashboard.request_window_and_replays import row_of
from edgeroute.tools.replay import Setup, collect, replay


def edge(x):
    """Sure of what is positive."""
    yield from ("it", " is", " small")
    return 0.9 if x > 0 else 0.1


def cloud(_):
    yield from ("it", " is", " large")


async def async_cloud(_):
    for piece in ("it", " is", " async"):
        yield piece


def unanswered(stream):
    """-> whether it says that it was not read to its end."""
    with pytest.raises(NoAnswer, match="not read to its end"):
        _ = stream.answer
    return True


@pytest.fixture(params=["threads", "asyncio"])
def listen(request):
    """-> the pieces and the answer."""

    def threads(x, policy, options):
        with Router(**flat(**policy)) as router, router.stream(x, **options) as stream:
            return list(stream), stream.answer

    async def main(x, policy, options):
        async with AsyncRouter(**flat(**policy)) as router, router.stream(x, **options) as stream:
            return [piece async for piece in stream], stream.answer

    if request.param == "threads":
        return lambda x, options=None, **policy: threads(x, {"threshold": 0.5, **policy}, options or {})
    return lambda x, options=None, **policy: asyncio.run(main(x, {"threshold": 0.5, **policy}, options or {}))


def test_the_edge_speaks(listen):
    """Its pieces, then its answer with the confidence it returned."""
    pieces, answer = listen(1, edge=edge, cloud=cloud)
    assert pieces == ["it", " is", " small"]
    assert (answer.value, answer.source, answer.confidence, answer.degraded) == ("it is small", "edge", 0.9, False)


@pytest.mark.parametrize("said", ["large", ("large", 0.8), {"label": "large", "score": 0.8}, ("none of them", 0.9)])
def test_a_coroutine_function_answers_in_one_piece(said):
    """It is read as `infer` reads it: value, confidence, and a label that is one of those known."""

    async def whole(_):
        return said

    async def main():
        options = {"threshold": 0.5, "cache": Cache()}
        async with AsyncRouter(lambda _: ("small", 0.1), Function(whole, labels=["small", "large"]), **options) as router:
            async with router.stream("a") as stream:
                pieces = [piece async for piece in stream]
            return pieces, stream.answer, await router.infer("a"), await router.infer("b")

    pieces, *answers = asyncio.run(main())
    wanted = ("small", 0.1, True) if "none of them" in said else ("large", None if said == "large" else 0.8, False)
    assert pieces == [wanted[0]]
    assert [(answer.value, answer.confidence, answer.degraded) for answer in answers] == [wanted] * 3


def test_the_cloud_speaks(listen):
    """Where the edge is not sure, nothing of it is heard."""
    pieces, answer = listen(-1, edge=edge, cloud=cloud)
    assert pieces == ["it", " is", " large"]
    assert (answer.value, answer.source) == ("it is large", "cloud")


def test_one_piece_is_a_stream_too(listen):
    """Targets that answer whole give one piece: a function, an endpoint."""
    assert listen(-1, edge=lambda x: ("edge", 0.1), cloud=lambda x: "cloud")[0] == ["cloud"]
    with CannedServer(http_reply(b'{"value": "far"}')) as server:
        pieces, answer = listen(-1, edge=lambda x: ("edge", 0.1), cloud=PlainJson(server.url))
        assert (pieces, answer.source) == (["far"], "cloud")


@pytest.mark.pure
def test_a_cloud_that_does_not_begin(listen):
    """After first_token the edge's pieces come; by the call or by the policy."""
    gate = threading.Event()

    def silent(_):
        gate.wait(LONG)
        yield "late"

    for options, policy in (({"first_token": 0.05}, {}), ({}, {"first_token": 0.05})):
        pieces, answer = listen(-1, options, edge=edge, cloud=silent, **policy)
        assert pieces == ["it", " is", " small"]
        assert (answer.source, answer.degraded) == ("edge", True)
        assert routes.code(answer) == "timeout"
    gate.set()


def test_a_cloud_that_breaks_in_the_middle(listen):
    """What was heard stands, and says that it is not whole."""

    def breaking(_):
        yield "it"
        raise OSError("cut")

    pieces, answer = listen(-1, edge=edge, cloud=breaking)
    assert pieces == ["it"]
    assert (answer.value, answer.degraded) == ("it", True)
    assert routes.error(answer) == "OSError"


def test_what_yields_answers_whole_too():
    """`infer` joins the pieces of a generator function."""
    with Router(edge, cloud, threshold=0.5) as router:
        assert (router.infer(1).value, router.infer(1).confidence) == ("it is small", 0.9)
        assert router.infer(-1).value == "it is large"


class Speaks:
    """A cloud with a state, say."""

    async def __call__(self, x):
        """The pieces."""
        async for piece in async_cloud(x):
            yield piece


@pytest.mark.parametrize("function", [async_cloud, Speaks()])
def test_an_asynchronous_generator_is_a_cloud(function):
    """On asyncio, in pieces and whole; a router of threads refuses it."""

    async def main():
        async with AsyncRouter(edge, function, threshold=0.5) as router:
            async with router.stream(-1) as stream:
                pieces = [piece async for piece in stream]
            return pieces, stream.answer, await router.infer(-1)

    pieces, answer, whole = asyncio.run(main())
    assert pieces == ["it", " is", " async"]
    assert answer.value == whole.value == "it is async"
    with pytest.raises(PolicyError, match="use AsyncRouter"):
        Router(edge, function, threshold=0.5)


def test_an_asynchronous_cloud_that_fails():
    """The edge's answer is given."""

    async def broken(_):
        raise OSError("down")
        yield

    async def main():
        async with AsyncRouter(edge, broken, threshold=0.5) as router, router.stream(-1) as stream:
            return [piece async for piece in stream], stream.answer

    pieces, answer = asyncio.run(main())
    assert pieces == ["it", " is", " small"]
    assert answer.degraded


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_leaving_early_stops_the_generator(kind):
    """Whoever has heard enough leaves the `with`; the target's generator is closed."""
    closed = threading.Event()
    heard = threading.Event()

    def endless(_):
        try:
            while True:
                yield "la"
                heard.wait(LONG)
        finally:
            closed.set()

    async def main():
        async with AsyncRouter(cloud=endless) as router:
            async with router.stream(1) as stream:
                async for piece in stream:
                    assert piece == "la"
                    break
            heard.set()
            return unanswered(stream)

    if kind == "threads":
        with Router(cloud=endless) as router:
            with router.stream(1) as stream:
                assert next(iter(stream)) == "la"
            heard.set()
            assert closed.wait(LONG)
            assert unanswered(stream)
    else:
        assert asyncio.run(main())
        assert closed.wait(LONG)


class Ends(Instrument):
    """The answers that it is told of."""

    def __init__(self):
        self.answers = []

    def request_ended(self, ended):
        """Keeps it."""
        self.answers.append(ended.answer)


def whole(record):
    """The events of a record whose stream was left, as if it had gone on for a second."""
    *events, last = record["events"]
    return [*events, {**last, "what": "accepted", "confidence": 0.9, "at_s": last["at_s"] + 1}]


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
@pytest.mark.parametrize(("x", "leg"), [(-1, "cloud"), (1, "edge")])
def test_a_stream_that_is_left_is_counted_and_traced(kind, x, leg):
    """With what was shown, and what its calls have cost; it is neither degraded nor without an answer. Replay can read it."""
    left, traced, ends = threading.Event(), [], Ends()

    def early(x):
        yield Piece("it", [-0.1 if x > 0 else -3.0])
        left.wait(LONG)
        yield Piece(" is", [-0.1])

    def dear(_):
        yield "far"
        left.wait(LONG)
        yield " away"

    targets = {"edge": early, "cloud": Function(dear, name="cloud", usd_per_call=0.5)}
    policy = {**targets, "threshold": 0.5, "score": Prefix(1, of="mean"), "trace": traced.append, "instruments": [ends]}

    async def main():
        async with AsyncRouter(**flat(**policy)) as router:
            async with router.stream(x) as stream:
                async for _ in stream:
                    break
            left.set()
            return stream, router.stats(), Setup.of(router.engine.snapshot, None, cached=False)

    if kind == "asyncio":
        stream, stats, setup = asyncio.run(main())
    else:
        with Router(**flat(**policy)) as router:
            with router.stream(x) as stream:
                next(iter(stream))
            left.set()
            stats, setup = router.stats(), Setup.of(router.engine.snapshot, None, cached=False)
    assert unanswered(stream)
    (record,), (answer,) = traced, ends.answers
    assert (answer.value, answer.source, answer.degraded) == ("it" if leg == "edge" else "far", leg, False)
    assert answer.reason_code == "left"
    assert (record["answered_by"], record["reason_code"], record["accepted"]) == (stream.leg, "left", False)
    assert [one.get("usd", 0) for one in record["events"] if (one["leg"], one["what"]) == (stream.leg, "cancelled")] == [
        0.5 if leg == "cloud" else 0
    ]
    assert (stats.requests, stats.degraded, stats.unanswered, stats.deferred) == (1, 0, 0, int(leg == "cloud"))
    assert {one.name: (one.started, one.cancelled) for one in stats.legs}[stream.leg] == (1, 1)
    assert not row_of(record).degraded
    found = replay(collect([record]), setup)
    assert (found.recorded.requests, found.recorded.degraded, found.recorded.usd) == (1, 0, stats.usd_today)
    assert (found.replayed.requests, sum(found.unknown.values())) == (0, 1), "how long it would have taken is not known"
    found = replay(
        collect([record, {**record, "id": "q-2", "events": whole(record), "accepted": True, "reason_code": "below"}]), setup
    )
    assert (found.replayed.requests, found.changed) == (2 if leg == "cloud" else 1, 0), "but from those that took longer"


def test_an_unheard_stream_is_traced_where_its_task_is_cancelled():
    """Before its first piece: what was asked last is named, and the reason says that the caller left."""
    traced = []

    async def main():
        begun = asyncio.Event()

        async def silent(_):
            begun.set()
            await asyncio.sleep(30)
            yield "too late"

        async def listening(router):
            async with router.stream(-1) as stream:
                async for _ in stream:
                    pass

        async with AsyncRouter(edge, silent, threshold=0.5, trace=traced.append) as router:
            task = asyncio.create_task(listening(router))
            await asyncio.wait_for(begun.wait(), 30)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            return router.stats()

    stats = asyncio.run(main())
    assert [(one["answered_by"], one["reason_code"]) for one in traced] == [("cloud", "left")]
    assert (stats.requests, stats.unanswered) == (1, 0)


def test_nobody_speaks(listen):
    """All fail: NoAnswer, as from `infer`."""

    def broken(_):
        raise OSError("down")
        yield

    with pytest.raises((NoAnswer, OSError)):
        listen(1, cloud=broken, threshold=None)


@pytest.mark.parametrize("first_token", [0, -1])
def test_wrong_times_are_refused(listen, first_token):
    """By the call and by the policy."""
    with pytest.raises(PolicyError, match="first_token= takes seconds, a number of more than 0"):
        listen(1, {"first_token": first_token}, edge=edge, cloud=cloud)
    with pytest.raises(PolicyError, match="first_token= takes seconds, a number of more than 0"):
        listen(1, edge=edge, cloud=cloud, first_token=first_token)


@pytest.mark.parametrize("mode", ["prefer_edge", "prefer_cloud"])
def test_first_token_costs_no_answer_that_the_edge_has(listen, mode):
    """The edge is slow to begin, and the cloud away: whichever was asked first, the edge is listened to."""
    gate, failed = threading.Event(), threading.Event()

    def slow(_):
        assert failed.wait(LONG)
        gate.wait(0.2)
        yield from ("it", " is", " small")
        return 0.9

    def away(_):
        failed.set()
        raise OSError("down")

    pieces, answer = listen(1, {"first_token": 0.05}, edge=slow, cloud=away, mode=mode)
    assert pieces == ["it", " is", " small"]
    assert (answer.source, answer.value) == ("edge", "it is small")
    assert routes.error(answer) == "OSError"


def test_words_of_a_cloud_that_was_given_up_are_not_mixed_in(listen):
    """It speaks while the edge does."""
    late, edge_speaks = threading.Event(), threading.Event()

    def slow(_):
        edge_speaks.wait(LONG)
        yield from ("CLOUD ", "CLOUD ")
        late.set()
        return 0.9

    def speaks(_):
        yield "edge-0 "
        edge_speaks.set()
        late.wait(0.1)
        yield "edge-1"
        return 0.8

    pieces, answer = listen(1, {"first_token": 0.05}, edge=speaks, cloud=slow, mode="prefer_cloud")
    assert pieces == ["edge-0 ", "edge-1"]
    assert (answer.value, answer.source, answer.confidence) == ("edge-0 edge-1", "edge", 0.8)
