"""What each way of asking does with each part of a router: the table in docs/design.md, row by row."""

import asyncio
import json
import threading
from queue import Queue

import numpy as np
import pytest
import routes
from both import CALLS, DOWN, LONG, GatedServer, Tasks, ask, header, makes, sure, unsure

from edgeroute import Audit, Cache, Egress, Instrument, Limits, NoAnswer, Outbox, PlainJson, Router
from edgeroute.router import cache_and_singleflight
from edgeroute.testing import CannedServer, FakeCloud, http_reply

BODY = b'{"value": "cloud", "confidence": 0.9}'
GOOD = http_reply(BODY)


pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_is_stored_and_given_again(make, call):
    """By whichever way it was asked for first, and is asked for next."""
    cloud = FakeCloud([("cloud", 0.9)])
    router = make(unsure, cloud, cache=Cache())
    assert ask(router, call, "x").source == "cloud"
    for again in CALLS:
        answer = ask(router, again, "x")
        assert (answer.source, answer.value) == ("cache", "cloud")
    assert cloud.runs == 1
    assert router.stats().cached == len(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_past_its_time_is_given_and_renewed(make, call):
    """Stale while it is revalidated, in the background."""
    cloud = FakeCloud([("old", 0.9), ("new", 0.9)])
    cache = Cache(ttl_s=0, stale_while_revalidate_s=1e6)
    router = make(unsure, cloud, cache=cache)
    ask(router, "infer", "x")
    assert ask(router, call, "x").value == "old"
    for _ in range(int(LONG / 0.001)):
        if ask(router, call, "x").value == "new":
            break
        threading.Event().wait(0.001)
    else:
        raise AssertionError("it was not renewed")


@pytest.mark.parametrize("call", ["infer", "infer_many"])
@pytest.mark.parametrize("first", CALLS)
def test_equal_requests_share_one_answer(make, first, call, monkeypatch):
    """Whoever is shown nothing before waits for an equal request that is under way, whichever way that was asked."""
    monkeypatch.setattr(cache_and_singleflight, "HELD_S", LONG)
    gate = threading.Event()
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router, answers = make(unsure, cloud, cache=Cache()), Queue()
    threads = [threading.Thread(target=lambda c=c: answers.put(ask(router, c, "x"))) for c in (first, call)]
    threads[0].start()
    assert cloud.begun.wait(LONG)
    threads[1].start()
    while not router.engine.caching.flights.followed:
        threading.Event().wait(0.001)
    gate.set()
    for thread in threads:
        thread.join(LONG)
    assert sorted(answers.get().source for _ in threads) == ["cache", "cloud"]
    assert cloud.runs == 1


def test_equal_rows_are_asked_once(make):
    """A batch leads for its first and shares with the others; a row that the cache has shifts nothing."""
    asked = []
    router = make(lambda x: (x, 0.1), lambda x: (asked.append(x), (x, 0.9))[1], cache=Cache())
    router.infer("a")
    answers = router.infer_many(["b", "a", "b", "c", "a"])
    assert [answer.value for answer in answers] == ["b", "a", "b", "c", "a"]
    assert asked == ["a", "b", "c"]
    assert [answer.source for answer in answers] == ["cloud", "cache", "cache", "cloud", "cache"]
    assert [answer.id.rpartition(".")[2] for answer in answers] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("call", CALLS)
def test_a_reply_after_the_deadline_is_told(make, call, due):
    """Once, with the answer's own id."""
    gate, told = threading.Event(), Queue()
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(unsure, cloud)
    router.on_late(lambda late: told.put(late))  # noqa: PLW0108 - its one parameter is what counts
    answer = ask(router, call, "x", deadline=due(cloud.begun.is_set))
    assert (answer.value, answer.degraded) == ("edge", True)
    gate.set()
    late = told.get(timeout=LONG)
    assert (late.id, late.value) == (answer.id, "cloud")
    assert told.empty()


@pytest.mark.parametrize("call", CALLS)
def test_a_reply_after_the_deadline_is_stored(make, call, due):
    """For the next equal request."""
    gate = threading.Event()
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    router = make(unsure, cloud, cache=Cache())
    assert ask(router, call, "x", deadline=due(cloud.begun.is_set)).degraded
    gate.set()
    while router.stats().late < 1:
        threading.Event().wait(0.001)
    assert ask(router, call, "x").value == "cloud"


@pytest.mark.parametrize("call", CALLS)
def test_what_the_cloud_did_not_answer_is_queued(make, call, tmp_path):
    """And its answer told once the cloud is back."""
    said, told = [DOWN], Queue()
    with CannedServer(lambda _: said[0]) as server:
        box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
        router = make(unsure, PlainJson(server.url, retries=0), offline="queue", outbox=box)
        router.on_late(lambda late: told.put(late))  # noqa: PLW0108 - its one parameter is what counts
        answer = ask(router, call, "x")
        assert (answer.value, answer.final) == ("edge", False)
        assert routes.queued(answer) == routes.WAITING
        said[0] = GOOD
        router.link_up()
        late = told.get(timeout=LONG)
        assert (late.id, late.value) == (answer.id, "cloud")
        router.close()


@pytest.mark.parametrize("call", CALLS)
def test_offline_stale_gives_what_was_stored(make, call):
    """Past its time, when the cloud is away."""
    cloud = FakeCloud([("old", 0.9), OSError("away")])
    router = make(unsure, cloud, offline="stale", cache=Cache(ttl_s=0, stale_if_offline_s=1e6))
    ask(router, "infer", "x")
    answer = ask(router, call, "x")
    assert (answer.source, answer.value) == ("stale", "old")


def test_a_stream_that_was_begun_is_not_exchanged_for_what_is_stale():
    """What was shown is what is answered."""

    def cloud(x):
        yield "new"
        if x in seen:
            raise OSError("away")
        seen.append(x)

    seen = []
    with Router(unsure, cloud, threshold=0.5, offline="stale", cache=Cache(ttl_s=0, stale_if_offline_s=1e6)) as router:
        ask(router, "infer", "x")
        with router.stream("x") as stream:
            assert list(stream) == ["new"]
        assert (stream.answer.value, stream.answer.source, stream.answer.degraded) == ("new", "cloud", True)


@pytest.mark.parametrize("call", CALLS)
def test_offline_raise(make, call):
    """No answer that was not accepted."""
    router = make(unsure, FakeCloud([OSError("away")]), offline="raise")
    with pytest.raises(NoAnswer, match="edge "):
        ask(router, call, "x")


@pytest.mark.parametrize("call", CALLS)
def test_a_sample_is_audited(make, call, tmp_path):
    """What the edge answers is compared, in the background, with what the cloud says to that very input."""
    asked = Queue()
    router = make(lambda x: (x, 0.9), lambda x: (asked.put(x), (x, 0.9))[1], audit=Audit(share=1), state=tmp_path)
    answer = ask(router, call, "x")
    assert asked.get(timeout=LONG) == "x"
    router.close()
    (line,) = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (line["id"], line["agrees"], line["audited"]) == (answer.id, True, "shadow")


def test_a_cached_row_does_not_shift_what_is_audited(make, tmp_path):
    """Each row is compared with its own answer."""
    router = make(lambda x: (x, 0.1), lambda x: (x, 0.9), audit=Audit(share=1), state=tmp_path, cache=Cache())
    router.infer(1)
    answers = router.infer_many([1, 2])
    router.close()
    lines = list(map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines()))
    assert [line["id"] for line in lines][1:] == [answers[1].id]
    assert all(line["agrees"] for line in lines)


class Heard(Instrument):
    """Notes what it is told."""

    def __init__(self):
        self.ended = []

    def request_ended(self, ended):
        """Once a request."""
        self.ended.append(ended)


@pytest.mark.parametrize("parts", [{}, {"cache": True}], ids=["plain", "cached"])
@pytest.mark.parametrize("call", CALLS)
def test_an_instrument_hears_of_each_request(make, call, parts):
    """Also of one that has no answer, and of one that the cache answered."""
    heard = Heard()
    policy = {"cache": Cache()} if parts else {}
    router = make(unsure, FakeCloud([("cloud", 0.9), OSError("away")]), offline="raise", instruments=[heard], **policy)
    answer = ask(router, call, "x")
    with pytest.raises(NoAnswer):
        ask(router, call, "y")
    first, second = heard.ended
    assert (first.id, first.inputs, first.answer, first.error) == (answer.id, "x", answer, None)
    assert (second.inputs, second.answer, type(second.error)) == ("y", None, NoAnswer)


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("call", CALLS)
def test_an_instrument_that_raises_costs_no_answer(make, call, error, caplog):
    """Whatever it is; the next one is told all the same."""

    class Broken(Instrument):
        def request_ended(self, ended):
            raise error("its own")

    heard = Heard()
    assert ask(make(sure, None, instruments=[Broken(), heard]), call, "x").value == "edge"
    assert len(heard.ended) == 1
    assert "an instrument failed at request_ended" in caplog.text


def test_rows_are_all_answered_before_one_is_raised(make):
    """What the others came to is stored, though one of them has no answer."""
    cloud = FakeCloud(lambda x: ("cloud", 0.9) if x != "b" else OSError("away"))

    def edge(x):
        return ("edge", 0.9) if x == "a" else ("edge", 0.1)

    router = make(edge, cloud, offline="raise", cache=Cache())
    with pytest.raises(NoAnswer):
        router.infer_many(["a", "b"])
    assert router.infer("a").source == "cache"


@pytest.mark.parametrize("call", CALLS)
def test_a_deadline_beside_a_hanging_server(make, call, due):
    """The edge's answer, by every way, with every part that may be there."""
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache(), deadline=due(lambda: server.requests))
        assert ask(router, call, np.zeros(3)).value == "edge"
        server.open()


class Everything(Instrument):
    """Notes all that it is told, but for requests."""

    def __init__(self):
        self.heard = Queue()

    def attempt_ended(self, ended):
        """One attempt."""
        self.heard.put(
            (
                "attempt",
                ended.target,
                ended.request,
                ended.sent_bytes > 0,
                ended.received_bytes,
                getattr(ended.error, "code", None),
            )
        )

    def breaker_changed(self, target, state):
        """Of a breaker."""
        self.heard.put(("breaker", target, state))

    def limit_hit(self, target, code):
        """One that was held."""
        self.heard.put(("limit", target, code))

    def outbox_changed(self, identity, what):
        """Of the outbox."""
        self.heard.put(("outbox", identity, what))


def heard(instrument):
    """What it has been told so far."""
    return [instrument.heard.get_nowait() for _ in range(instrument.heard.qsize())]


def test_instruments_hear_of_attempts_breakers_limits_and_the_outbox(make, tmp_path):
    """Each as it happens, in the field's terms."""
    tells, says = Everything(), [GOOD]
    with CannedServer(lambda _: says[0]) as server:
        box = Outbox(tmp_path / "outbox.db", spread_s=1e6)
        egress = Egress(never_leave=["secret"], may_leave=["open"], consent=lambda _, kind: consents[0])
        consents = [True]
        router = make(
            unsure, PlainJson(server.url, retries=0), offline="queue", outbox=box, instruments=[tells], egress=egress
        )  # fmt: skip
        answer = router.infer(1, data_class="open")
        assert heard(tells) == [("attempt", "cloud", answer.id, True, len(BODY), None)]
        says[0] = DOWN
        ids = [router.infer(x, data_class="open").id for x in range(3)]
        told = heard(tells)
        assert [event for event in told if event[0] == "attempt"] == [("attempt", "cloud", i, True, 4, "refused") for i in ids]
        assert ("breaker", "cloud", "open") in told
        assert [event for event in told if event[0] == "outbox"] == [("outbox", i, "queued") for i in ids]
        router.infer(4, data_class="open")
        assert ("limit", "cloud", "breaker") in heard(tells)
        consents[0] = False
        router.infer(5, data_class="open")
        assert ("limit", "cloud", "consent") in heard(tells)
        router.close()


def per_row(trouble):
    """A server that answers `c` with the input, and to that one as given."""

    def reply(request):
        x = json.loads(request.partition(b"\r\n\r\n")[2])["input"]
        return trouble.get(x) or http_reply(json.dumps({"value": f"c{x}", "confidence": 0.9}).encode())

    return CannedServer(reply)


@pytest.mark.parametrize(
    ("trouble", "values", "asked"),
    [
        ({1: http_reply(status=422)}, ["c0", "edge", "c2", "c3"], 4),
        ({0: http_reply(status=422)}, ["edge", "c1", "c2", "c3"], 4),
        ({1: http_reply(b'{"value": null}')}, ["c0", "edge", "c2", "c3"], 4),
        ({1: http_reply(status=503)}, ["c0", "edge", "edge", "edge"], 2),
        ({1: http_reply(status=422), 2: http_reply(status=401)}, ["c0", "edge", "edge", "edge"], 3),
        ({0: http_reply(status=503)}, ["edge"] * 4, 1),
    ],
)
@pytest.mark.parametrize("deadline", [None, LONG])
def test_a_row_that_an_endpoint_does_not_answer(make, tmp_path, trouble, values, asked, deadline):
    """The others keep their answers; after a fault of the endpoint itself the rest is not asked. Each call is paid for once."""
    with per_row(trouble) as server:
        cloud = PlainJson(server.url, retries=0, usd_per_call=0.5)
        router = make(unsure, cloud, deadline=deadline, limits=Limits(usd_per_day=100.0), state=tmp_path)
        answers = router.infer_many([0, 1, 2, 3])
        assert [answer.value for answer in answers] == values
        assert [answer.degraded for answer in answers] == [value == "edge" for value in values]
        assert len(server.requests) == asked
        keys = [header(request, "idempotency-key") for request in server.requests]
        assert len(set(keys)) == asked
        (backend,) = router.engine.snapshot.clouds
        assert backend.guard.spending.spent().usd == pytest.approx(0.5 * asked)
        assert len((tmp_path / "egress.jsonl").read_text().splitlines()) == asked


@pytest.mark.parametrize(("error", "values"), [(ValueError, ["c0", "edge", "c2"]), (TimeoutError, ["c0", "edge", "edge"])])
def test_a_row_for_which_a_function_raises(make, error, values):
    """As of an endpoint."""

    def cloud(x):
        if x == 1:
            raise error("not this one")
        return f"c{x}", 0.9

    async def coroutine(x):
        return cloud(x)

    router = make(unsure, cloud)
    for one in (router, make(unsure, coroutine)) if isinstance(router, Tasks) else (router,):
        answers = one.infer_many([0, 1, 2])
        assert [answer.value for answer in answers] == values
        assert routes.error(answers[1]) == error.__name__


def test_a_cancellation_that_a_function_raises_in_a_thread_is_of_its_row(make):
    """As of `asyncio.run` within the function: no task of the caller is cancelled."""

    def cloud(x):
        if x == 1:
            raise asyncio.CancelledError
        return f"c{x}", 0.9

    answers = make(unsure, cloud).infer_many([0, 1, 2])
    assert [answer.value for answer in answers] == ["c0", "edge", "c2"]
    assert routes.error(answers[1]) == "CancelledError"
