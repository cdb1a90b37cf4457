"""The cache inside the routers: what is kept, for what it is given again, and who waits for whom."""

import asyncio
import contextlib
import json
import threading

import numpy as np
import pytest
import routes
from both import DOWN, GOOD, LONG, GatedServer, Link, Threads, sure, unsure
from tiny import linear

from edgeroute import AsyncRouter, Cache, Egress, NoAnswer, Outbox, PlainJson, PolicyError, Refused, Router, Semantic
from edgeroute.stores.cache import Flight
from edgeroute.stores.outbox import Put
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply

T0 = 1_800_000_000.0


pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def make(kind):
    """Makes routers of either kind, with a cache, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(edge, cloud, **policy):
            return stack.enter_context(kind(edge, cloud, **{"threshold": 0.5, "cache": Cache(), **policy}))

        yield make


class Clock:
    """A time of day that stands still."""

    def __init__(self):
        self.at = T0

    def __call__(self):
        """The time."""
        return self.at


@pytest.fixture
def clock(monkeypatch):
    """The time of day, for the router as for its cache."""
    clock = Clock()
    monkeypatch.setattr("edgeroute.system.wall_clock.now", clock)
    return clock


def echo(request):
    """The cloud's answer names its input."""
    given = json.loads(request.partition(b"\r\n\r\n")[2] or "{}").get("input")
    return http_reply(json.dumps({"value": f"cloud {given}"}).encode())


def assert_cached(answer, like, source="cache"):
    """The same answer again, under an id of its own."""
    assert (answer.value, answer.confidence, answer.leg) == (like.value, like.confidence, like.leg)
    assert (answer.source, answer.final, answer.degraded) == (source, True, False)
    assert answer.id != like.id


# ------------------------------------------------------------------------------------------------ what is given again


def test_the_second_time_nobody_is_asked(make):
    """Neither the edge nor the cloud; the reason says why the answer was given then."""
    edge = FakeModel([("edge", 0.1)])
    with CannedServer(GOOD) as server:
        router = make(edge, PlainJson(server.url))
        first, second = router.infer(1), router.infer(1)
        assert (first.source, first.value) == ("cloud", "cloud")
        assert_cached(second, first)
        assert second.reason.endswith(first.reason)
        assert second.reason_code == "cached"
        assert (router.stats().requests, router.stats().cached) == (1, 1)
        assert router.infer(2).source == "cloud"
    assert (edge.runs, len(server.requests)) == (2, 2)


def test_what_the_edge_said_is_kept_too(make):
    """If it was sure."""
    edge = FakeModel([("edge", 0.9)])
    router = make(edge, None)
    first = router.infer(1)
    assert_cached(router.infer(1), first)
    assert edge.runs == 1


def test_outputs_cannot_be_changed_for_others(make):
    """The arrays are read-only, and the same numbers."""
    router = make(lambda _: np.array([0.0, 9.0], np.float32), None)
    first, second, third = (router.infer(1) for _ in range(3))
    np.testing.assert_array_equal(second.outputs, first.outputs)
    with pytest.raises(ValueError, match="read-only"):
        second.outputs[0] = 7
    np.testing.assert_array_equal(third.outputs, [0, 9])


def test_inputs_that_no_key_can_be_made_of(make):
    """They are answered as without a cache."""
    edge = FakeModel([("edge", 0.9)])
    router, x = make(edge, None), object()
    assert [router.infer(x).source for _ in range(2)] == ["edge", "edge"]
    assert edge.runs == 2


def test_degraded_answers_are_not_kept(make):
    """Once the cloud is back, it is asked."""
    with CannedServer(GOOD) as server, Link("127.0.0.1", server.port) as link:
        router = make(unsure, PlainJson(link.url, retries=0))
        link.down()
        assert router.infer(1).degraded
        link.refuse = False
        assert router.infer(1).source == "cloud"


def test_queued_answers_are_not_kept(make, tmp_path):
    """They are not final."""
    edge = FakeModel([("edge", 0.1)])
    with CannedServer(DOWN) as server:
        router = make(edge, PlainJson(server.url, retries=0), offline="queue", outbox=Outbox(tmp_path / "outbox.db"))
        assert [router.infer(1).final for _ in range(2)] == [False, False]
        router.close()
    assert edge.runs == 2


# -------------------------------------------------------------------------------------------------------------- the key


def test_the_key_has_the_input(make):
    """Its numbers, and their kind and shape."""
    edge = FakeModel(lambda x: (repr(x), 0.9))
    router = make(edge, None)
    inputs = [1, 1.0, True, "1", b"1", [1], np.array([1]), np.array([[1]]), np.array([1], np.int8), {"a": 1}, {"b": 1}, None]
    answers = [router.infer(x) for x in inputs]
    assert {answer.source for answer in answers} == {"edge"}
    assert [router.infer(x).value for x in inputs] == [answer.value for answer in answers]
    assert edge.runs == len(inputs)


def test_the_key_has_the_mode_and_the_data_class(make):
    """An answer by other rules is another answer."""
    edge = FakeModel([("edge", 0.9)])
    router = make(edge, FakeCloud([("cloud", 0.9)]), egress=Egress(may_leave=["a", "b"], unknown_class="allow"))
    for options in ({}, {"mode": "prefer_cloud"}, {"mode": "only_edge"}, {"data_class": "a"}, {"data_class": "b"}):
        first = router.infer(1, **options)
        assert first.source != "cache"
        assert_cached(router.infer(1, **options), first)


def test_the_key_has_the_threshold(kind):
    """What was sure enough then is not now."""
    cache = Cache()
    with CannedServer(GOOD) as server:
        for threshold, source in ((0.05, "edge"), (0.5, "cloud"), (0.05, "cache"), (0.5, "cache")):
            with kind(unsure, PlainJson(server.url), threshold=threshold, cache=cache) as router:
                assert router.infer(1).source == source


def test_the_key_has_the_models_content(kind, tmp_path):
    """Another model in the file's place gives its own answers; the first one's are found again when it is back."""
    path, cache, x = tmp_path / "edge.onnx", Cache(), np.ones(4, np.float32)

    def ask(weights):
        linear(path, weights=weights)
        with kind(path, None, cache=cache) as router:
            return router.infer(x)

    one, two = np.zeros((4, 3)), np.zeros((4, 3))
    one[0, 1], two[0, 2] = 9, 9
    assert [(a.value, a.source) for a in (ask(one), ask(two), ask(one))] == [(1, "edge"), (2, "edge"), (1, "cache")]


@pytest.mark.parametrize("named", [True, False])
def test_a_class_that_is_never_kept(make, named):
    """Nor if it is the one that a call without a class has."""
    edge = FakeModel([("edge", 0.9)])
    rules = Egress(never_leave=["medical"], default_class=None if named else "medical", unknown_class="allow")
    router = make(edge, FakeCloud([("cloud", 0.9)]), egress=rules, cache=Cache(never=frozenset({"medical"})))
    options = {"data_class": "medical"} if named else {}
    assert [router.infer(1, **options).source for _ in range(2)] == ["edge", "edge"]
    assert [answer.source for answer in router.infer_many([1, 1], **options)] == ["edge", "edge"]
    assert router.infer(1, data_class="product").source == "edge"
    assert router.infer(1, data_class="product").source == "cache"


# ----------------------------------------------------------------------------------------------------------------- time


def test_an_answer_has_its_time(make, clock):
    """`ttl_s` seconds; then it is asked for again."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache(ttl_s=60, clock=clock))
        first = router.infer(1)
        clock.at += 59
        second = router.infer(1)
        assert_cached(second, first)
        assert "59" in second.reason.removesuffix(first.reason)
        clock.at += 1
        assert router.infer(1).source == "cloud"
    assert len(server.requests) == 2


def test_past_its_time_it_is_given_while_it_is_renewed(make, clock):
    """At once, though the cloud has not replied; it is asked once for all who come meanwhile, and then has its time anew."""
    with GatedServer(GOOD) as server:
        server.open()
        cache = Cache(ttl_s=60, stale_while_revalidate_s=60, clock=clock)
        router = make(unsure, PlainJson(server.url), cache=cache)
        first = router.infer(1)
        server.shut()
        clock.at += 90
        for _ in range(3):
            again = router.infer(1)
            assert_cached(again, first, "stale")
            assert (again.reason_code, "90" in again.reason.removesuffix(first.reason)) == ("stale", True)
        server.wait_for(lambda: len(server.requests) == 2)
        renewed, put = threading.Event(), cache.put
        cache.put = lambda *args: (put(*args), renewed.set())
        server.open()
        assert renewed.wait(LONG)
        answer = router.infer(1)
        assert_cached(answer, first)
        assert answer.reason_code == "cached"
    assert len(server.requests) == 2


def test_a_renewal_that_fails(make, clock):
    """The old answer is given until its time is quite over; each request tries anew."""
    replies = iter([GOOD])
    with CannedServer(lambda _: next(replies, DOWN)) as server:
        router = make(unsure, PlainJson(server.url, retries=0), cache=Cache(ttl_s=60, stale_while_revalidate_s=60, clock=clock))
        first = router.infer(1)
        clock.at += 90
        assert_cached(router.infer(1), first, "stale")
        server.wait_for(lambda: len(server.requests) == 2)
        while len(router.engine.caching.flights):  # it is under way until its failure was noted
            assert_cached(router.infer(1), first, "stale")
        clock.at += 60
        answer = router.infer(1)
        assert (answer.source, answer.degraded) == ("edge", True)


def test_a_renewal_by_a_closed_router(clock):
    """It is not begun, and nothing is raised where nobody would see it."""
    jobs = []
    with CannedServer(GOOD) as server:
        cache = Cache(ttl_s=60, stale_while_revalidate_s=60, clock=clock)
        with Threads(unsure, PlainJson(server.url), threshold=0.5, cache=cache) as router:
            router.infer(1)
            clock.at += 90
            router.engine.cloud_threads.submit = lambda job: jobs.append(job) or True
            assert router.infer(1).source == "stale"
        (job,) = jobs
        job()
    assert len(server.requests) == 1


def test_a_renewal_is_not_queued(make, clock, tmp_path):
    """Nobody waits for its answer: the app would be told of a request that it never made."""
    box = Outbox(tmp_path / "outbox.db")
    replies = iter([GOOD, http_reply(status=503)])
    with CannedServer(lambda _: next(replies)) as server:
        router = make(
            unsure, PlainJson(server.url, retries=0), offline="queue", outbox=box,
            cache=Cache(ttl_s=60, stale_while_revalidate_s=60, clock=clock),
        )  # fmt: skip
        first, stored = router.infer(1), threading.Event()
        box.put_all = lambda *_: stored.set() or [Put(stored=True)]
        clock.at += 90
        assert_cached(router.infer(1), first, "stale")
        server.wait_for(lambda: len(server.requests) == 2)
        assert not stored.wait(0.5)


def test_offline_the_old_answer_stands_in(make, clock):
    """While the cloud is away; the edge's where there is none, and for what is too old even then."""
    with CannedServer(GOOD) as server, Link("127.0.0.1", server.port) as link:
        cache = Cache(ttl_s=60, stale_if_offline_s=600, clock=clock)
        router = make(unsure, PlainJson(link.url, retries=0), offline="stale", cache=cache)
        first = router.infer(1)
        link.down()
        clock.at += 300
        again = router.infer(1)
        assert_cached(again, first, "stale")
        assert (again.reason_code, "300" in again.reason.removesuffix(first.reason)) == ("stale", True)
        other = router.infer(2)
        assert (other.source, other.degraded) == ("edge", True)
        clock.at += 600
        over = router.infer(1)
        assert (over.source, over.degraded) == ("edge", True)


def test_online_the_old_answer_is_not_given(make, clock):
    """offline="stale" is for when the cloud is away, and not for when it is slow to be asked."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), offline="stale", cache=Cache(ttl_s=60, clock=clock))
        router.infer(1)
        clock.at += 300
        assert router.infer(1).source == "cloud"
    assert len(server.requests) == 2


def test_stale_needs_a_cache(kind):
    """The policy says so at once."""
    with pytest.raises(PolicyError, match="there is no cache"):
        kind(unsure, sure, threshold=0.5, offline="stale")


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_refused_input_is_not_sent_again(make, clock):
    """For `negative_ttl_s`; the edge's answer stands each time, and says what was said."""
    with CannedServer(http_reply(status=400)) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache(negative_ttl_s=60, clock=clock))
        for n in range(3):
            answer = router.infer(1)
            assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)
            assert routes.status(answer) == 400
            assert ("before" in routes.error(answer)) is (n > 0)
        assert len(server.requests) == 1
        router.infer(2)
        assert len(server.requests) == 2
        clock.at += 61
        router.infer(1)
        assert len(server.requests) == 3
        assert router.stats().legs[1].breaker == "closed"


@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_what_is_not_the_inputs_fault_is_not_remembered(make, status):
    """Another time it may go well."""
    replies = iter([http_reply(status=status), GOOD])
    with CannedServer(lambda _: next(replies)) as server:
        router = make(unsure, PlainJson(server.url, retries=0))
        assert router.infer(1).degraded
        assert router.infer(1).source == "cloud"


def test_a_refusal_without_an_edge(make):
    """It is raised each time, and sent once."""
    with CannedServer(http_reply(status=422)) as server:
        router = make(None, PlainJson(server.url), mode="only_cloud", threshold=None)
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                router.infer(1)
            assert caught.value.status == 422
    assert len(server.requests) == 1


# ------------------------------------------------------------------------------------------------------- single flight


@pytest.mark.parametrize("deadline", [None, LONG])
def test_fifty_who_ask_the_same(make, deadline):
    """One request to the cloud; all get its answer, each under an id of its own."""
    edge = FakeModel([("edge", 0.1)])
    with GatedServer(GOOD) as server:
        router = make(edge, PlainJson(server.url), deadline=deadline)
        joined = flights(router)
        answers = [router.start(1) for _ in range(50)]
        joined.wait_for(50)
        server.open()
        answers = [answer.result(LONG) for answer in answers]
    assert {(a.value, a.confidence, a.degraded, a.final) for a in answers} == {("cloud", 0.9, False, True)}
    (leader,) = (a for a in answers if a.source == "cloud")
    others = [a for a in answers if a is not leader]
    assert {a.source for a in others} == {"cache"}
    assert all(leader.id in a.reason for a in others)
    assert len({a.id for a in answers}) == 50
    assert (edge.runs, len(server.requests)) == (1, 1)


class Counter:
    """Counts, and lets others wait for it."""

    def __init__(self):
        self.n, self._changed = 0, threading.Condition()

    def add(self):
        """One more."""
        with self._changed:
            self.n += 1
            self._changed.notify_all()

    def wait_for(self, n):
        """Returns once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.n >= n, LONG), self.n


def flights(router):
    """Counts those who have joined a flight."""
    joined, join = Counter(), router.engine.caching.flights.join
    router.engine.caching.flights.join = lambda key, **how: (join(key, **how), joined.add())[0]
    return joined


def test_a_leader_that_fails(make):
    """Those who waited for it go on by themselves, the edge first."""
    edge = FakeModel([RuntimeError("the leader's"), ("edge", 0.9)])
    with GatedServer(DOWN) as server:
        router = make(edge, PlainJson(server.url, retries=0))
        joined = flights(router)
        answers = [router.start(1) for _ in range(3)]
        joined.wait_for(3)
        server.open()
        ends = []
        for answer in answers:
            with contextlib.suppress(NoAnswer):
                ends.append(answer.result(LONG))
        assert len(ends) == 2
        assert {(a.value, a.degraded) for a in ends} == {("edge", False)}


def test_a_leader_that_is_cancelled():
    """As one that fails: another asks, and has its answer."""

    async def main(server):
        async with AsyncRouter(unsure, PlainJson(server.url), threshold=0.5, cache=Cache()) as router:
            leader = asyncio.create_task(router.infer(1))
            await asyncio.to_thread(server.wait_for, lambda: server.requests)
            follower = asyncio.create_task(router.infer(1))
            await asyncio.sleep(0)
            leader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 2)
            server.open()
            return await follower

    with GatedServer(GOOD) as server:
        answer = asyncio.run(main(server))
    assert (answer.value, answer.source) == ("cloud", "cloud")


def test_a_follower_that_is_cancelled():
    """It ends alone; the leader and the others have their answer."""

    async def main(server):
        async with AsyncRouter(unsure, PlainJson(server.url), threshold=0.5, cache=Cache()) as router:
            tasks = [asyncio.create_task(router.infer(1)) for _ in range(3)]
            await asyncio.to_thread(server.wait_for, lambda: server.requests)
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            server.open()
            return await tasks[0], await tasks[2]

    with GatedServer(GOOD) as server:
        first, third = asyncio.run(main(server))
    assert (first.source, third.source, third.value) == ("cloud", "cache", "cloud")
    assert len(server.requests) == 1


def test_a_follower_has_its_own_deadline(make, due, monkeypatch):
    """It does not wait for the leader past the time that the edge needs: the edge's answer, by its own deadline."""
    waited = []

    async def wait_async(_, timeout_s):
        waited.append(timeout_s)

    def edge(_):
        threading.Event().wait(0.02)  # its own time, as any model has
        return "edge", 0.1

    with GatedServer(GOOD) as server:
        router = make(edge, PlainJson(server.url))
        leader = router.start(1)
        server.wait_for(lambda: server.requests)
        monkeypatch.setattr(Flight, "wait", lambda _, timeout_s: waited.append(timeout_s))  # in vain, and over at once
        monkeypatch.setattr(Flight, "wait_async", wait_async)
        deadline = due(lambda: len(server.requests) == 2)
        answer = router.infer(1, deadline=deadline)
        assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)
        assert 0 < waited[0] <= deadline - 0.02
        server.open()
        assert leader.result(LONG).source == "cloud"


def test_a_leader_with_less_time(make, due):
    """Its degraded answer is not for those who have the time to wait for the cloud."""
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url))
        joined = flights(router)
        leader = router.start(1, deadline=due(lambda: joined.n >= 2))
        server.wait_for(lambda: server.requests)
        follower = router.start(1)
        joined.wait_for(2)
        assert leader.result(LONG).degraded
        server.open()
        assert follower.result(LONG).source == "cloud"


@pytest.mark.pure
def test_followers_of_what_is_queued(make, tmp_path):
    """One request is stored, and whose answer is not final is told the late one under its own id."""
    told, box = set(), Outbox(tmp_path / "outbox.db", rate_per_s=1e6, spread_s=0.0)
    replies = iter([DOWN])
    with GatedServer(lambda _: next(replies, GOOD)) as server:
        router = make(unsure, PlainJson(server.url, retries=0), offline="queue", outbox=box)
        joined, heard = flights(router), Counter()
        router.on_late(lambda late: (told.add(late.id), heard.add()))
        answers = [router.start(1) for _ in range(3)]
        joined.wait_for(3)
        server.open()
        waiting = {answer.id for answer in (a.result(LONG) for a in answers) if not answer.final}
        heard.wait_for(1)
        router.close()
        told |= {entry.id for entry in box.list()}
        box.close()
    assert waiting == told


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_sends_only_what_is_not_cached(make):
    """The answers are in the order of the inputs, each under an id of its own, and those that are new are kept."""
    with CannedServer(echo) as server:
        router = make(unsure, PlainJson(server.url))
        router.infer("b")
        first = router.infer_many(["a", "b", "c"])
        assert [a.value for a in first] == ["cloud a", "cloud b", "cloud c"]
        assert [a.source for a in first] == ["cloud", "cache", "cloud"]
        assert len(server.requests) == 3
        second = router.infer_many(["c", "a", "b", "d"])
        assert [(a.value, a.source) for a in second] == [
            ("cloud c", "cache"),
            ("cloud a", "cache"),
            ("cloud b", "cache"),
            ("cloud d", "cloud"),
        ]
        assert len(server.requests) == 4
        assert router.stats().cached == 4


def test_a_batch_of_which_all_is_cached(make):
    """Nobody is asked."""
    edge = FakeModel([("edge", 0.9)])
    router = make(edge, None)
    for _ in range(2):
        assert [a.value for a in router.infer_many([1, 2])] == ["edge", "edge"]
    assert edge.runs == 2


def test_each_row_has_its_own_id(make):
    """Those from the cache, too."""
    router = make(sure, None)
    router.infer_many([1, 2, 3])
    answers = router.infer_many([1, 2, 3, 4, 5])
    assert len({a.id for a in answers}) == 5


def test_a_batch_renews_what_is_past_its_time(make, clock):
    """As single requests do."""
    edge, renewed = FakeModel([("old", 0.9), ("new", 0.9)]), threading.Event()
    cache = Cache(ttl_s=60, stale_while_revalidate_s=60, clock=clock)
    router = make(edge, None, cache=cache)
    router.infer(1)
    put, cache.put = cache.put, lambda *args: (put(*args), renewed.set())
    clock.at += 90
    (answer,) = router.infer_many([1])
    assert (answer.value, answer.source) == ("old", "stale")
    assert renewed.wait(LONG)


# -------------------------------------------------------------------------------------------------------------- meaning


def embed(text):
    """Words as directions: two texts are as similar as they have words in common."""
    words = ["what", "is", "the", "weather", "like", "today", "price"]
    return np.array([1.0 * (word in text.split()) for word in words])


def test_a_text_that_means_the_same(make):
    """Its answer says so, and how similar it was; another text is asked for."""
    with CannedServer(echo) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache(semantic=Semantic(embed, 0.9)))
        first = router.infer("what is the weather like today")
        like = router.infer("today what is the weather like")
        assert_cached(like, first)
        assert "1.00 >= 0.9" in like.reason
        assert router.infer("price").value == "cloud price"
        assert len(server.requests) == 2
        assert router.infer("what is the weather like today", mode="only_edge").source == "edge"


def test_an_embedding_that_fails(make, caplog):
    """It costs the hit and not the answer."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache(semantic=Semantic(lambda _: 1 / 0)))
        assert [router.infer(x).source for x in ("a", "b", "a")] == ["cloud", "cloud", "cache"]
    assert "ZeroDivisionError" in caplog.text


def test_an_embedding_of_changing_size(make, caplog):
    """It is said once, and from then on texts are found by their letters alone."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache(semantic=Semantic(lambda text: np.ones(len(text)))))
        assert [router.infer(x).source for x in ("a", "bb", "ccc", "a")] == ["cloud", "cloud", "cloud", "cache"]
    assert caplog.text.count("the semantic cache needs one size") == 1


def test_a_reload_while_a_text_is_asked_for(kind, tmp_path):
    """Its answer comes all the same, whether it is kept or not."""
    path = tmp_path / "policy.toml"
    with GatedServer(GOOD) as server:
        text = f'threshold = 0.5\n[cloud]\nprotocol = "json"\nurl = "{server.url}"\n'
        path.write_text(text)
        with kind.from_policy(path, edge=unsure, cache=Cache(semantic=Semantic(embed))) as router:
            pending = router.start("what is the weather")
            server.wait_for(lambda: server.requests)
            path.write_text(text.replace("0.5", "0.6"))
            router.reload()
            server.open()
            assert pending.result(LONG).value == "cloud"


# ----------------------------------------------------------------------------------------------------------------- disk


def test_answers_outlive_the_router(kind, tmp_path):
    """With their outputs, in the file that the cache was given."""
    with CannedServer(GOOD) as server:
        for source in ("cloud", "cache"):
            with kind(unsure, PlainJson(server.url), threshold=0.5, cache=Cache(disk=tmp_path / "cache.db")) as router:
                answer = router.infer(np.arange(3))
                assert (answer.value, answer.confidence, answer.source) == ("cloud", 0.9, source)
    assert len(server.requests) == 1


@pytest.mark.parametrize("damage", ["all", "middle", "end"])
def test_a_file_that_is_corrupt(kind, tmp_path, damage):
    """The answers come from where they came first, and are right; the cache goes on."""
    path = tmp_path / "cache.db"
    with CannedServer(echo) as server:
        with kind(unsure, PlainJson(server.url), threshold=0.5, cache=Cache(disk=path)) as router:
            for x in range(50):
                router.infer(x)
        data = bytearray(path.read_bytes())
        start = {"all": 0, "middle": len(data) // 2, "end": len(data) - 100}[damage]
        data[start:] = bytes(0xA5 for _ in data[start:])
        path.write_bytes(data)
        with kind(unsure, PlainJson(server.url), threshold=0.5, cache=Cache(disk=path)) as router:
            for _ in range(2):
                answers = [router.infer(x) for x in range(50)]
                assert [a.value for a in answers] == [f"cloud {x}" for x in range(50)]
                assert not any(a.degraded for a in answers)
            assert {a.source for a in answers} == {"cache"}


@pytest.mark.parametrize("mode", ["only_edge", "prefer_edge"])
def test_the_default_class_counts_for_never_in_every_mode(mode):
    """A call that names no class is of the default one, also where nothing could leave anyway: it is not kept."""
    edge = FakeModel([("edge", 0.9)])
    egress = Egress(never_leave=["medical"], default_class="medical")
    with Router(
        edge, lambda x: "cloud", threshold=0.5, mode=mode, egress=egress, cache=Cache(never=frozenset({"medical"}))
    ) as router:
        for _ in range(2):
            assert router.infer(1).source == "edge"
    assert edge.runs == 2
