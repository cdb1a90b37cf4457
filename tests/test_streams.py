"""`router.stream`: pieces of real generators, in threads and on asyncio."""

import asyncio
import threading

import pytest

from edgeroute import AsyncRouter, NoAnswer, PlainJson, PolicyError, Router
from edgeroute.testing import CannedServer, http_reply


def edge(x):
    """Sure of what is positive."""
    yield from ("it", " is", " small")
    return 0.9 if x > 0 else 0.1


def cloud(_):
    yield from ("it", " is", " large")


async def async_cloud(_):
    for piece in ("it", " is", " async"):
        yield piece


@pytest.fixture(params=["threads", "asyncio"])
def listen(request):
    """-> the pieces and the answer."""

    def threads(x, policy, options):
        with Router(**policy) as router, router.stream(x, **options) as stream:
            return list(stream), stream.answer

    async def main(x, policy, options):
        async with AsyncRouter(**policy) as router, router.stream(x, **options) as stream:
            return [piece async for piece in stream], stream.answer

    if request.param == "threads":
        return lambda x, options=None, **policy: threads(x, {"threshold": 0.5, **policy}, options or {})
    return lambda x, options=None, **policy: asyncio.run(main(x, {"threshold": 0.5, **policy}, options or {}))


def test_the_edge_speaks(listen):
    """Its pieces, then its answer with the confidence it returned."""
    pieces, answer = listen(1, edge=edge, cloud=cloud)
    assert pieces == ["it", " is", " small"]
    assert (answer.value, answer.source, answer.confidence, answer.degraded) == ("it is small", "edge", 0.9, False)


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


def test_a_cloud_that_does_not_begin(listen):
    """After first_token the edge's pieces come; by the call or by the policy."""
    gate = threading.Event()

    def silent(_):
        gate.wait(30)
        yield "late"

    for options, policy in (({"first_token": 0.05}, {}), ({}, {"first_token": 0.05})):
        pieces, answer = listen(-1, options, edge=edge, cloud=silent, **policy)
        assert pieces == ["it", " is", " small"]
        assert (answer.source, answer.degraded) == ("edge", True)
        assert "had not begun to answer" in answer.reason
    gate.set()


def test_a_cloud_that_breaks_in_the_middle(listen):
    """What was heard stands, and says that it is not whole."""

    def breaking(_):
        yield "it"
        raise OSError("cut")

    pieces, answer = listen(-1, edge=edge, cloud=breaking)
    assert pieces == ["it"]
    assert (answer.value, answer.degraded) == ("it", True)
    assert "cloud failed: OSError: cut" in answer.reason


def test_what_yields_answers_whole_too():
    """`infer` joins the pieces of a generator function."""
    with Router(edge, cloud, threshold=0.5) as router:
        assert (router.infer(1).value, router.infer(1).confidence) == ("it is small", 0.9)
        assert router.infer(-1).value == "it is large"


def test_an_asynchronous_generator_is_a_cloud():
    """On asyncio, in pieces and whole; a router of threads refuses it."""

    async def main():
        async with AsyncRouter(edge, async_cloud, threshold=0.5) as router:
            async with router.stream(-1) as stream:
                pieces = [piece async for piece in stream]
            return pieces, stream.answer, await router.infer(-1)

    pieces, answer, whole = asyncio.run(main())
    assert pieces == ["it", " is", " async"]
    assert answer.value == whole.value == "it is async"
    with pytest.raises(PolicyError, match="use AsyncRouter"):
        Router(edge, async_cloud, threshold=0.5)


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
                heard.wait(30)
        finally:
            closed.set()

    async def main():
        async with AsyncRouter(cloud=endless) as router:
            async with router.stream(1) as stream:
                async for piece in stream:
                    assert piece == "la"
                    break
            heard.set()
            return stream.answer

    if kind == "threads":
        with Router(cloud=endless) as router:
            with router.stream(1) as stream:
                assert next(iter(stream)) == "la"
            heard.set()
            assert closed.wait(30)
            assert stream.answer is None
    else:
        assert asyncio.run(main()) is None
        assert closed.wait(30)


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
        assert failed.wait(30)
        gate.wait(0.2)
        yield from ("it", " is", " small")
        return 0.9

    def away(_):
        failed.set()
        raise OSError("down")

    pieces, answer = listen(1, {"first_token": 0.05}, edge=slow, cloud=away, mode=mode)
    assert pieces == ["it", " is", " small"]
    assert (answer.source, answer.value) == ("edge", "it is small")
    assert "cloud failed: OSError: down" in answer.reason


def test_words_of_a_cloud_that_was_given_up_are_not_mixed_in(listen):
    """It speaks while the edge does."""
    late, edge_speaks = threading.Event(), threading.Event()

    def slow(_):
        edge_speaks.wait(30)
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
