"""`refine`: what the edge says at once, what the cloud makes of it, and every way in which that can end."""

import asyncio
import contextlib
import re
import threading
from time import monotonic

import numpy as np
import pytest
import routes
from both import DOWN, GOOD, LONG, GatedServer, makes, sure, unsure
from tiny import linear

from edgeroute import AsyncRouter, BadInput, Cache, Egress, NoAnswer, PlainJson, Router
from edgeroute.router.fallbacks_and_late_replies import AGREES, CORRECTS
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply

LATE = "cloud (timeout|deadline)"
"""The leg and the driver share a deadline, and either may see it first."""


pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)


def assert_provisional(answer, value="edge"):
    """Shown meanwhile."""
    assert (answer.value, answer.source, answer.final, answer.degraded) == (value, "edge", False, False)
    assert routes.note(answer)


def assert_stands(answer, why):
    """The edge's answer, once more and for good."""
    assert (answer.value, answer.source, answer.final, answer.degraded) == ("edge", "edge", True, True)
    assert re.search(why, routes.failures(answer)), answer.reason


def test_a_sure_edge_has_the_only_word(make):
    """One answer, final, and nothing is sent."""
    with CannedServer(GOOD) as server:
        (answer,) = make(sure, PlainJson(server.url)).refine(1)
        assert (answer.value, answer.source, answer.final, answer.degraded) == ("edge", "edge", True, False)
    assert server.connections == 0


@pytest.mark.parametrize("policy", [{}, {"deadline": LONG}])
@pytest.mark.parametrize(("value", "note"), [("cloud", CORRECTS), ("edge", AGREES)])
def test_the_edge_speaks_while_the_cloud_thinks(make, policy, value, note):
    """Its answer is there though the cloud has not been allowed to reply; then the cloud's is the last, with the same id."""
    with GatedServer(http_reply(b'{"value": "%b"}' % value.encode())) as server:
        steps = make(unsure, PlainJson(server.url), **policy).refine(1)
        shown = next(steps)
        assert_provisional(shown)
        server.wait_for(lambda: len(server.requests) == 1)  # it was under way before anybody asked for more
        server.open()
        (answer,) = steps
        assert (answer.value, answer.source, answer.final, answer.degraded) == (value, "cloud", True, False)
        assert routes.note(answer) == note
        assert answer.id == shown.id
    assert len(server.requests) == 1


def test_values_that_cannot_be_compared_are_answers_too(make):
    """Then nothing is said of agreement."""
    cloud = FakeCloud([(np.zeros(2), 0.9)])
    _, answer = make(lambda _: (np.zeros(2), 0.1), cloud).refine(1)
    assert (answer.source, answer.final) == ("cloud", True)
    assert routes.note(answer) == ""


def test_a_cloud_that_fails(make):
    """The edge's answer comes once more, now for good, and says what failed."""
    with CannedServer(DOWN) as server:
        shown, answer = make(unsure, PlainJson(server.url, retries=0)).refine(1)
        assert_provisional(shown)
        assert_stands(answer, "cloud refused 503")


def test_the_deadline(make, due):
    """A cloud that never replies: the edge's answer is final without it, and the request is cut."""
    with CannedServer(None) as server:
        shown, answer = make(unsure, PlainJson(server.url), deadline=due(lambda: server.requests)).refine(1)
        assert_provisional(shown)
        assert_stands(answer, LATE)
        server.wait_for(lambda: server.hung_up == 1)


def test_a_deadline_of_the_call(make, due):
    """As the policy's."""
    with CannedServer(None) as server:
        *_, answer = make(unsure, PlainJson(server.url)).refine(1, deadline=due(lambda: server.requests))
        assert_stands(answer, LATE)
        server.wait_for(lambda: server.hung_up == 1)


def test_closing_early_cuts_the_cloud(make):
    """The server sees its end while the router goes on, and nothing is left behind."""
    with CannedServer(None) as server:
        router = make(unsure, PlainJson(server.url))
        steps = router.refine(1)
        assert_provisional(next(steps))
        server.wait_for(lambda: server.requests)
        steps.close()
        server.wait_for(lambda: server.hung_up == 1)


def test_closing_before_the_first_answer_asks_nobody(make):
    """Nothing was begun."""
    edge = FakeModel([("edge", 0.1)])
    with CannedServer(None) as server:
        make(edge, PlainJson(server.url)).refine(1).close()
    assert (edge.runs, server.connections) == (0, 0)


@pytest.mark.pure
@pytest.mark.parametrize("early", [True, False])
def test_a_consumer_that_is_slow(make, early):
    """It asks again long after the deadline: a reply that came in time counts, and the edge's answer stands otherwise."""
    deadline = 4.0
    with GatedServer(GOOD) as server:
        counted = threading.Event()
        cloud = PlainJson(server.url, encode=lambda x: {"input": x})
        decode, cloud.decode = cloud.decode, lambda *args: (counted.set(), decode(*args))[1]
        steps = make(unsure, cloud, deadline=deadline).refine(1)
        begun = monotonic()
        assert_provisional(next(steps))
        server.wait_for(lambda: server.requests)
        if early:
            server.open()
            assert counted.wait(LONG)
        threading.Event().wait(begun + deadline + 0.1 - monotonic())  # the consumer's own time, which the deadline does not know
        (answer,) = steps
        if early:
            assert (answer.source, answer.final) == ("cloud", True)
        else:
            assert_stands(answer, LATE)
        server.open()


def test_prefer_cloud_shows_the_edge_at_once(make):
    """Though it is on standby there, and starts late elsewhere."""
    with GatedServer(GOOD) as server:
        steps = make(unsure, PlainJson(server.url), mode="prefer_cloud").refine(1)
        shown = next(steps)
        assert_provisional(shown)
        assert routes.judged(shown).what == "kept"
        server.open()
        (answer,) = steps
        assert (answer.source, answer.final) == ("cloud", True)


def test_prefer_cloud_where_the_edge_is_slower(make):
    """There is nothing to show before the final answer."""
    gate = threading.Event()
    edge = FakeModel([("edge", 0.9)], gate=gate)
    with CannedServer(GOOD) as server:
        (answer,) = make(edge, PlainJson(server.url), mode="prefer_cloud").refine(1)
        assert (answer.source, answer.final) == ("cloud", True)
        gate.set()


def test_a_mode_of_the_call(make):
    """only_edge: one answer, and nothing is sent."""
    with CannedServer(GOOD) as server:
        (answer,) = make(unsure, PlainJson(server.url)).refine(1, mode="only_edge")
        assert (answer.source, answer.final, answer.degraded) == ("edge", True, False)
    assert server.connections == 0


def test_a_class_that_stays(make):
    """One answer: no better one can come."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), egress=Egress(never_leave=["medical"], may_leave=["product"]))
        (answer,) = router.refine(1, data_class="medical")
        assert (answer.source, answer.final) == ("edge", True)
        assert (answer.reason_code, "'medical'" in answer.reason) == ("stays", True)
        assert server.connections == 0
        shown, answer = router.refine(1, data_class="product")
        assert (shown.source, answer.source) == ("edge", "cloud")


def test_a_ladder_shows_each_better_answer(make):
    """The small model's, then the large one's, then the cloud's: each while the next is at it."""
    gate = threading.Event()
    small, large = FakeModel([("small", 0.1)], name="small"), FakeModel([("large", 0.2)], gate=gate, name="large")
    with GatedServer(GOOD) as server:
        steps = make([small, large], PlainJson(server.url)).refine(1)
        assert_provisional(next(steps), "small")
        gate.set()
        assert_provisional(next(steps), "large")
        server.open()
        (answer,) = steps
        assert (answer.source, answer.final) == ("cloud", True)


def test_a_ladder_that_ends_on_its_way(make):
    """The large model is sure: it has the last word, and it is no correction of the cloud's."""
    small, large = FakeModel([("small", 0.1)], name="small"), FakeModel([("large", 0.8)], name="large")
    with CannedServer(GOOD) as server:
        shown, answer = make([small, large], PlainJson(server.url)).refine(1)
        assert_provisional(shown, "small")
        assert (answer.value, answer.source, answer.final, answer.degraded) == ("large", "edge", True, False)
    assert server.connections == 0


def test_input_that_the_edge_cannot_take(make, tmp_path):
    """BadInput, before anything is shown or sent."""
    with CannedServer(GOOD) as server, pytest.raises(BadInput):
        next(make(linear(tmp_path / "edge.onnx"), PlainJson(server.url)).refine(np.zeros(9, np.float32)))
    assert server.connections == 0


def test_a_policy_that_raises(make):
    """What the edge says is shown; that the cloud was needed and away is an error in its place."""
    with CannedServer(DOWN) as server:
        steps = make(unsure, PlainJson(server.url, retries=0), offline="raise").refine(1)
        assert_provisional(next(steps))
        with pytest.raises(NoAnswer, match="answered 503"):
            next(steps)


def test_nobody_answers(make):
    """An edge that fails and a cloud that does: nothing is shown, and both are in the error."""
    with CannedServer(DOWN) as server:
        edge = FakeModel([ValueError("broken")])
        with pytest.raises(NoAnswer) as caught:
            next(make(edge, PlainJson(server.url, retries=0)).refine(1))
        assert set(caught.value.errors) == {"edge", "cloud"}


def test_an_edge_that_fails(make):
    """Nothing is provisional: the cloud's answer is the only one."""
    with CannedServer(GOOD) as server:
        (answer,) = make(FakeModel([ValueError("broken")]), PlainJson(server.url)).refine(1)
        assert (answer.source, answer.final, answer.degraded) == ("cloud", True, False)


def test_the_second_time_the_cache_answers(make):
    """One answer, final; and what was provisional was never kept."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache())
        shown, answer = router.refine(1)
        assert (shown.final, answer.source) == (False, "cloud")
        (again,) = router.refine(1)
        assert (again.value, again.source, again.final) == ("cloud", "cache", True)
        assert again.id != answer.id
    assert len(server.requests) == 1


def test_an_early_end_keeps_nothing(make):
    """The provisional answer is not in the cache, and nobody waits for the request that was given up."""
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache())
        steps = router.refine(1)
        next(steps)
        server.wait_for(lambda: server.requests)
        steps.close()
        server.open()
        assert router.infer(1).source == "cloud"


def test_stats_count_it_once(make):
    """One request, however many answers."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url))
        list(router.refine(1))
        stats = router.stats()
        assert (stats.requests, stats.deferred, stats.degraded) == (1, 1, 0)


def test_one_that_is_left_is_counted_and_traced(make):
    """By its edge's answer, which was shown, with what the cloud's call has cost; it is not degraded."""
    traced = []
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url, usd_per_call=0.5, retries=0), trace=traced.append)
        steps = router.refine(1)
        assert_provisional(next(steps))
        server.wait_for(lambda: server.requests)
        steps.close()
        stats = router.stats()
        server.open()
    (record,) = traced
    assert (record["answered_by"], record["reason_code"]) == ("edge", "left")
    assert [(event["leg"], event["what"]) for event in record["events"]] == [
        ("edge", "start"), ("edge", "below"), ("cloud", "start"), ("cloud", "cancelled"),
    ]  # fmt: skip
    assert record["events"][-1]["usd"] == 0.5
    assert (stats.requests, stats.deferred, stats.degraded, stats.unanswered) == (1, 1, 0, 0)
    assert [(leg.started, leg.answered, leg.cancelled) for leg in stats.legs] == [(1, 1, 0), (1, 0, 1)]


def test_a_break_out_of_async_for():
    """With `aclosing` the cloud is cut where the block ends; without it, once the generator is collected."""

    async def main(server):
        async with AsyncRouter(unsure, PlainJson(server.url), threshold=0.5) as router:
            async with contextlib.aclosing(router.refine(1)) as steps:
                async for answer in steps:
                    assert_provisional(answer)
                    await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 1)
                    break
            await asyncio.to_thread(server.wait_for, lambda: server.hung_up == 1)
            async for answer in router.refine(2):
                assert_provisional(answer)
                await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 2)
                break
            await asyncio.to_thread(server.wait_for, lambda: server.hung_up == 2)

    with CannedServer(None) as server:
        asyncio.run(main(server))


def test_cancelling_a_task_that_refines():
    """The cloud is cut, and the task ends as cancelled."""

    async def main(server):
        async with AsyncRouter(unsure, PlainJson(server.url), threshold=0.5) as router:

            async def use():
                return [answer async for answer in router.refine(1)]

            task = asyncio.create_task(use())
            await asyncio.to_thread(server.wait_for, lambda: server.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_for, lambda: server.hung_up == 1)

    with CannedServer(None) as server:
        asyncio.run(main(server))


def test_a_coroutine_function_as_the_cloud():
    """It runs while the edge's answer is shown, and is cancelled where that is enough."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def cloud(x):
        begun.set()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "cloud", 0.9

    async def main():
        async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
            steps = router.refine(1)
            assert_provisional(await anext(steps))
            gate.set()
            assert (await anext(steps)).source == "cloud"
            gate.clear()
            begun.clear()
            await steps.aclose()
            steps = router.refine(2)
            assert_provisional(await anext(steps))
            await begun.wait()
            await steps.aclose()
            await cancelled.wait()

    gate = asyncio.Event()
    asyncio.run(asyncio.wait_for(main(), LONG))


def test_a_generator_that_is_forgotten():
    """Once it is collected, the cloud is cut, as if it had been closed."""
    with CannedServer(None) as server, Router(unsure, PlainJson(server.url), threshold=0.5) as router:
        for answer in router.refine(1):
            assert_provisional(answer)
            server.wait_for(lambda: server.requests)
            break
        server.wait_for(lambda: server.hung_up == 1)
