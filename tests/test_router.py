"""The router as a user meets it: what goes in, what comes out, what is refused."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
import threading

import numpy as np
import pytest
import routes
import tiny
from both import LONG, flat

import edgeroute
from edgeroute import (
    AsyncRouter,
    BadInput,
    BadReply,
    CallableModel,
    Closed,
    DeadlineExceeded,
    Egress,
    Limits,
    NoAnswer,
    OnnxModel,
    OpenInference,
    Options,
    PlainJson,
    PolicyError,
    Router,
)
from edgeroute.core.plan import Facts
from edgeroute.router import policy_reload
from edgeroute.testing import CannedServer, FakeCloud, http_reply


def edge(x):
    """Sure of what is positive."""
    return "edge", 0.9 if x > 0 else 0.2


def cloud(x):
    return "cloud", 0.8


def broken(x):
    raise OSError("the line is dead")


def both(given, *, x=1, call=None, **options):
    """The same call through both routers; they must agree. -> the answer of the blocking one."""
    with Router(**flat(**given, **options)) as router:
        one = router.infer(x, **(call or {}))

    async def main():
        async with AsyncRouter(**flat(**given, **options)) as router:
            return await router.infer(x, **(call or {}))

    other = asyncio.run(main())
    assert (other.value, other.source, other.degraded, other.confidence) == (one.value, one.source, one.degraded, one.confidence)
    return one


PAIR = {"edge": edge, "cloud": cloud, "threshold": 0.85}


# -------------------------------------------------------------------------------------------------------------- answers
def test_a_sure_edge_answers():
    """At or above the threshold the edge's answer is the answer, and its fields say so."""
    answer = both(PAIR, x=1)
    assert (answer.value, answer.source, answer.leg, answer.confidence) == ("edge", "edge", "edge", 0.9)
    assert (answer.degraded, answer.final, answer.outputs) == (False, True, ("edge", 0.9))
    assert routes.judged(answer) == ("accepted", 0.9, 0.85, "uncalibrated")
    assert 0 < answer.latency_s < 10
    assert json.loads(json.dumps(answer.trace))["id"] == answer.id
    assert repr(answer) == f"<Answer 'edge' from edge, 0.90: {answer.reason}>"


def test_an_unsure_edge_defers():
    """Below the threshold the cloud is asked, and its answer stands."""
    answer = both(PAIR, x=-1)
    assert (answer.value, answer.source, answer.degraded) == ("cloud", "cloud", False)
    assert routes.judged(answer) == ("below", 0.2, 0.85, "uncalibrated")


def test_a_cloud_fault_returns_the_edge_answer():
    """Whatever the cloud raises, the edge's answer is returned, degraded, with the reason."""
    answer = both({**PAIR, "cloud": broken}, x=-1)
    assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)
    assert routes.judged(answer) == ("below", 0.2, 0.85, "uncalibrated")
    assert routes.error(answer) == "OSError"
    assert "degraded" in repr(answer)


@pytest.mark.parametrize(
    ("mode", "x", "value", "degraded"),
    [
        ("only_edge", -1, "edge", False),
        ("prefer_cloud", 1, "cloud", False),
        ("only_cloud", 1, "cloud", False),
        ("prefer_edge", 1, "edge", False),
    ],
)
def test_modes(mode, x, value, degraded):
    """A mode in the policy and the same mode on a call do the same."""
    assert both({**PAIR, "mode": mode}, x=x).value == value
    answer = both(PAIR, x=x, call={"mode": mode})
    assert (answer.value, answer.degraded) == (value, degraded)


def test_prefer_cloud_falls_back_to_the_edge():
    """When the preferred cloud fails the edge answers, marked degraded."""
    answer = both({**PAIR, "cloud": broken, "mode": "prefer_cloud"})
    assert (answer.value, answer.degraded) == ("edge", True)


def test_a_ladder_is_tried_in_order():
    """Several edges and clouds: each is asked when the one before does not settle it, under its own name."""
    tiny_ = CallableModel(lambda x: ("tiny", 0.3), name="tiny")
    small = CallableModel(lambda x: ("small", 0.6), name="small")
    given = {"edge": [tiny_, small], "cloud": [broken, cloud]}
    assert both(given, threshold=[0.9, 0.5]).leg == "small"
    assert both(given, threshold=0.2).leg == "tiny"
    answer = both(given, threshold=0.95)
    assert (answer.leg, answer.value) == ("cloud-2", "cloud")
    assert routes.judged(answer, "tiny") == ("below", 0.3, 0.95, "uncalibrated")
    assert routes.judged(answer, "small") == ("below", 0.6, 0.95, "uncalibrated")
    assert routes.error(answer, "cloud-1") == "OSError"


def test_equal_names_are_made_unique():
    """Two models of one name can still be told apart."""
    with Router(edge=[CallableModel(edge, name="m"), CallableModel(edge, name="m")]) as router:
        assert [leg.name for leg in router.stats().legs] == ["m", "m-2"]


def test_without_a_confidence_the_policy_decides():
    """None and NaN defer by default, and are accepted where the policy says so."""
    for sure in (None, float("nan")):
        given = {"edge": lambda x, sure=sure: ("edge", sure), "cloud": cloud, "threshold": 0.5}
        with Router(**flat(**given)) as router:
            assert router.infer(0).value == "cloud"
        with Router(**flat(**given, no_confidence="accept")) as router:
            assert routes.judged(router.infer(0))[:2] == ("accepted", None)


def test_logits_labels_and_scores(tmp_path):
    """A real model: labels from its card, any score, outputs without the batch axis."""
    path = tiny.linear(tmp_path / "m.onnx", card={"labels": ["a", "b", "c"], "name": "abc"})
    x = np.float32([0, 3, 1, 9])
    with Router(edge=path, score="margin") as router:
        answer = router.infer(x)
    p = np.exp([0, 3, 1]) / np.exp([0, 3, 1]).sum()
    assert (answer.value, answer.outputs.tolist()) == ("b", [0, 3, 1])
    assert answer.confidence == pytest.approx(p[1] - p[2], rel=1e-5)
    with Router(edge=path, score=lambda outputs: float(outputs[0])) as router:
        assert router.infer(x).confidence == 0.0


def test_a_cloud_takes_the_edges_labels(tmp_path):
    """Logits from a callable cloud are read with the labels of the edge model, unless they are another model's."""
    path = tiny.linear(tmp_path / "m.onnx", card={"labels": ["a", "b", "c"]})
    given = {"edge": path, "threshold": 0.99, "mode": "prefer_cloud"}
    x = np.zeros(4, np.float32)
    assert both({**given, "cloud": lambda x: np.float32([0, 0, 5])}, x=x).value == "c"
    answer = both({**given, "cloud": lambda x: np.zeros(7)}, x=x)
    assert (answer.source, answer.degraded) == ("edge", True)
    assert "7 outputs, but 3 labels" in routes.error(answer)


def test_deadline_with_nothing_to_show():
    """With no answer at the deadline the error is a TimeoutError, and names what was waited for."""
    gate = threading.Event()
    router = Router(edge=lambda x: (gate.wait(LONG), 1.0))
    with pytest.raises(DeadlineExceeded, match=r"edge .* 50 ms"):
        router.infer(0, deadline=0.05)
    gate.set()
    router.close()
    assert issubclass(DeadlineExceeded, TimeoutError)


def test_deadline_with_an_edge_answer(due):
    """A cloud that does not answer costs no more than the deadline, and the edge's answer is returned."""
    gate, deadline_s = threading.Event(), due()
    router = Router(edge=edge, cloud=lambda x: gate.wait(LONG), threshold=0.85, deadline=deadline_s)
    answer = router.infer(-1)
    gate.set()
    router.close()
    assert (answer.value, answer.degraded) == ("edge", True)
    assert (answer.reason_code, str(round(1000 * deadline_s)) in answer.reason) == ("deadline", True)


def test_hedge_asks_the_cloud_while_the_edge_is_at_it():
    """With hedge_after the cloud may win against an edge that takes too long, which is then told to stop."""
    gate, stopped = threading.Event(), []

    class Slow:
        name, labels, kind = "slow", None, "logits"

        def run(self, inputs, cancel):
            cancel.on_ask(gate.set)
            gate.wait(LONG)
            stopped.append(cancel.asked)
            return [("edge", 1.0)]

    with Router(edge=Slow(), cloud=cloud, threshold=0.5, options=Options(hedge_after=0.0)) as router:
        assert router.infer(0).value == "cloud"
    assert stopped == [True]


def test_an_edge_that_does_not_stop_is_left_alone():
    """After as many stuck runs as it may have, the planner goes around a model, and back to it once they have ended."""
    gate = threading.Event()

    class Stuck:
        name, parallel = "stuck", 1

        def run(self, inputs, cancel):
            gate.wait(LONG)
            return [("edge", 1.0)]

    clouds = FakeCloud([OSError("dead"), ("cloud", 0.9), OSError("dead")])
    router = Router(edge=Stuck(), cloud=clouds, threshold=0.5)
    with pytest.raises(DeadlineExceeded):
        router.infer(0, deadline=0.2)
    with pytest.raises(DeadlineExceeded):  # it stands by, since the cloud is away
        router.infer(0, deadline=0.5)
    assert router.infer(0).value == "cloud"
    assert "skip edge" in str(router.decide(0))
    gate.set()
    router.engine.edge_threads.close(30)
    answer = router.infer(0)  # at once, not only after another answer
    assert (answer.value, answer.degraded) == ("edge", False)
    assert router.stats().legs[1].failed == 1
    router.close()


def test_exhausted_may_raise():
    """offline = raise: no answer below the threshold is returned, and the error has each leg's."""
    with Router(**flat(**{**PAIR, "cloud": broken}, offline="raise")) as router:
        assert router.infer(1).value == "edge"
        with pytest.raises(NoAnswer, match=r"edge 0\.20 < 0\.85") as caught:
            router.infer(-1)
    assert list(caught.value.errors) == ["cloud"]


def test_when_all_fail():
    """Every leg's error is in the one that is raised; a single leg's error is raised itself."""
    with Router(edge=broken, cloud=broken, threshold=0.5) as router:
        with pytest.raises(NoAnswer, match="edge failed: OSError; cloud failed: OSError") as caught:
            router.infer(0)
        assert set(caught.value.errors) == {"edge", "cloud"}
        assert isinstance(caught.value.__cause__, OSError)
    with Router(edge=broken) as router, pytest.raises(OSError, match="dead"):
        router.infer(0)


def test_wrong_input_never_leaves(tmp_path):
    """Input that the edge cannot take is the caller's fault: nobody else is asked."""
    asked = []
    path = tiny.linear(tmp_path / "m.onnx")
    with Router(edge=path, cloud=asked.append, threshold=0.5) as router:
        with pytest.raises(BadInput, match="NaN"):
            router.infer(np.float32([np.nan] * 4))
        with pytest.raises(BadInput, match=r"input 1 of the batch: x: expected \[4\]"):
            router.infer_many([np.zeros(4, np.float32), np.zeros(5, np.float32)])
        with pytest.raises(BadInput):
            router.decide(np.zeros(5, np.float32))
    assert asked == []


def test_input_that_only_the_cloud_cannot_take_is_the_clouds_affair():
    """An endpoint that wants another input is a cloud fault like any other: the edge answers."""

    def picky(x):
        raise BadInput("takes another input")

    answer = both({**PAIR, "cloud": picky, "mode": "prefer_cloud"})
    assert (answer.value, answer.degraded) == ("edge", True)
    assert routes.error(answer) == "BadInput: takes another input"


def test_system_exit_in_a_thread_does_not_hang():
    """A callable that exits ends its leg, not the wait."""

    def leave(x):
        raise SystemExit(3)

    with Router(edge=edge, cloud=leave, threshold=0.85, deadline=30) as router:
        assert routes.error(router.infer(-1)) == "SystemExit"


# ---------------------------------------------------------------------------------------------------------------- batch
def test_a_batch_comes_back_in_order():
    """The edge runs the batch at once; the deferred rows go on together; the answers keep their places."""
    runs = []

    class Model:
        name, labels, kind = "m", None, "answers"

        def run(self, inputs, cancel=None):
            runs.append(list(inputs))
            return [(f"e{x}", 0.9 if x % 2 else 0.1) for x in inputs]

    given = {"edge": Model(), "cloud": lambda x: f"c{x}", "threshold": 0.5}
    with Router(**flat(**given)) as router:
        answers = router.infer_many([1, 2, 3, 4])
        assert router.infer_many([]) == []
        assert router.infer_many(np.empty((0, 3))) == []
        later = router.infer_many([6, 7], deadline=30)
        stats = router.stats()
    assert [a.value for a in answers] == ["e1", "c2", "e3", "c4"]
    assert [a.value for a in later] == ["c6", "e7"]
    assert runs == [[1, 2, 3, 4], [6, 7]]
    assert (stats.requests, stats.deferred) == (6, 3)

    async def main():
        async with AsyncRouter(**flat(**given)) as router:
            assert await router.infer_many([]) == []
            return [a.value for a in await router.infer_many([1, 2, 3, 4])]

    assert asyncio.run(main()) == ["e1", "c2", "e3", "c4"]


# --------------------------------------------------------------------------------------------------- decide, check, stats
@pytest.mark.parametrize(
    ("limits", "terms"),
    [
        (Limits(usd_per_day=1), {"usd_per_call": 0.6}),
        (Limits(calls_per_minute=1), {}),
        (Limits(usd_per_day=1), {"usd_per_mb": 0.6e6 / 12}),
    ],
)
def test_decide_knows_what_is_spent(limits, terms):
    """A limit without room for this call: the input would stay, and nothing is booked; another endpoint may have room."""
    with CannedServer(http_reply(b'{"value": 1}')) as server:
        paid = PlainJson(f"{server.url}/ask", **terms)
        with Router(edge=edge, cloud=paid, threshold=0.85, limits=limits) as router:
            assert router.decide(-1).sends_to == (paid.where,)
            assert [router.infer(-1).source, router.infer(-1).source] == ["cloud", "edge"]
            before = router.status().spent
            decision = router.decide(-1)
            assert decision.sends_to == ()
            assert f"would not be asked now: {limits._fields[0 if limits.usd_per_day == 1 else 3]} = 1 is spent" in str(decision)
            assert router.status().spent == before
        free = PlainJson(f"{server.url}/free", name="free")
        both = [PlainJson(f"{server.url}/ask", name="paid", usd_per_call=2), free]
        with Router(edge=edge, cloud=both, threshold=0.85, limits=Limits(usd_per_day=1)) as router:
            assert router.decide(-1).sends_to == (free.where,)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("limits", "terms", "why"),
    [
        (Limits(usd_per_day=1), {"usd_per_call": 0.6}, "usd_per_day = 1 is spent (0.6 so far, and a call takes 0.6)"),
        (Limits(calls_per_minute=1), {}, "calls_per_minute = 1 is spent (1 so far, and a call takes 1)"),
    ],
)
def test_check_knows_what_is_spent(limits, terms, why):
    """It says until when, and that is no problem; before that it says nothing."""
    with (
        CannedServer(http_reply(b'{"value": 1}')) as server,
        Router(edge=edge, cloud=PlainJson(f"{server.url}/ask", **terms), threshold=0.85, limits=limits) as router,
    ):
        before = router.check(timeout=LONG)
        assert router.infer(-1).source == "cloud"
        after = router.check(timeout=LONG)
        (told,) = set(after.lines) - set(before.lines)
    assert told.startswith(f"cloud is not called now: {why}, and such a call may be made again in ")
    assert before.ok == after.ok


def test_decide_sends_nothing_and_says_why():
    """A dry run: the plan with reasons, what the edge says, and where the input would go."""
    asked = []
    with Router(edge=edge, cloud=asked.append, threshold=0.85) as router:
        stays, goes = router.decide(1), router.decide(-1)
        assert stays.sends_to == ()
        assert str(stays).endswith("=> edge 0.90 >= 0.85 (uncalibrated)")
        assert goes.sends_to == ("the function 'append'",)
        assert str(goes).splitlines()[-2:] == [
            "=> edge 0.20 < 0.85 (uncalibrated)",
            "=> cloud: would send this input to the function 'append'",
        ]
        assert router.decide(1, mode="prefer_cloud").sends_to == ("the function 'append'",)
        assert router.stats().requests == 0
    with Router(edge=broken, cloud=asked.append, threshold=0.5) as router:
        assert "=> edge failed: OSError" in router.decide(0).steps
    assert asked == []

    async def main():
        async with AsyncRouter(**flat(**PAIR)) as router:
            return await router.decide(1), await router.check()

    decision, check = asyncio.run(main())
    assert decision.sends_to == ()
    assert check.ok


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"edge": edge}, "nothing can leave this device: there is no cloud"),
        (
            {**PAIR, "mode": "only_edge"},
            "nothing leaves this device unless a call asks for another mode than only_edge; then to the function 'cloud'",
        ),
        (PAIR, "inputs may leave this device, to the function 'cloud'"),
        ({**PAIR, "egress": Egress(may_leave=[])}, "by its rules nothing may leave this device, to the function 'cloud'"),
        ({**PAIR, "egress": Egress(may_leave=[])}, "any data class stays"),
        ({"cloud": cloud}, "there is no edge model: without the cloud there is no answer"),
        (PAIR, "the threshold of edge: uncalibrated, picked by hand, with no guarantee about errors"),
    ],
)
def test_check_says_what_may_leave(given, line):
    """What may leave, where to, and what is missing."""
    with Router(**flat(**given)) as router:
        check = router.check()
    assert check.ok
    assert line in check.lines


def test_check_finds_problems(tmp_path):
    """A model that does not load and an endpoint that nobody serves are problems, each on a line with `!`."""
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with Router(edge=tmp_path / "bad.onnx", cloud=PlainJson("http://127.0.0.1:9/x"), threshold=0.5) as router:
        check = router.check()
    assert not check.ok
    assert str(check).startswith("! edge: onnxruntime cannot load")
    assert str(check).count("! ") == 2


def test_stats_count():
    """Requests, deferrals, degraded and unanswered ones, and each leg's fate with its latencies."""
    with Router(edge=edge, cloud=lambda x: broken(x) if x < -1 else "cloud", threshold=0.85) as router:
        for x in (1, 2, 3, -1, -2):
            router.infer(x)
        with pytest.raises(OSError, match="dead"):
            router.infer(-2, mode="only_cloud")
        stats = router.stats()
    assert (stats.requests, stats.deferred, stats.degraded, stats.unanswered) == (6, 3, 1, 1)
    assert stats.deferral_rate == 0.5
    by_edge, by_cloud = stats.legs
    assert (by_edge.started, by_edge.answered, by_edge.accepted, by_edge.failed) == (5, 5, 3, 0)
    assert (by_cloud.started, by_cloud.answered, by_cloud.accepted, by_cloud.failed) == (3, 1, 1, 2)
    assert 0 < by_edge.p50_s <= by_edge.p90_s <= by_edge.p99_s
    with Router(edge=edge) as router:
        assert router.stats().deferral_rate == 0.0
        assert router.stats().legs[0].p50_s is None


def test_threads_share_a_router():
    """Counts add up and ids stay unique when 50 threads call at once."""
    ids, lock = [], threading.Lock()

    with Router(**flat(**PAIR)) as router:

        def work():
            mine = [router.infer(1 if i % 2 else -1).id for i in range(40)]
            with lock:
                ids.extend(mine)

        threads = [threading.Thread(target=work) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = router.stats()
    assert (stats.requests, stats.deferred) == (2000, 1000)
    assert len(set(ids)) == 2000


def test_trace_function():
    """Each answer's trace goes to the function given; one that fails is logged, and costs no answer."""
    seen = []
    with Router(**flat(**PAIR, trace=seen.append)) as router:
        router.infer(1)
        router.infer_many([1, -1])
    assert [t["answered_by"] for t in seen] == ["edge", "edge", "cloud"]


def test_a_failing_trace_function(caplog):
    """The answer is returned all the same."""
    with Router(**flat(**PAIR, trace=broken)) as router, caplog.at_level(logging.ERROR, "edgeroute"):
        assert router.infer(1).value == "edge"
    assert "an instrument failed" in caplog.text


# -------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs edge=, cloud= or both"),
        ({"edge": edge, "cloud": cloud}, "threshold= is missing"),
        ({"edge": edge, "mode": "only_cloud"}, "'only_cloud' needs cloud="),
        ({"edge": edge, "mode": "prefer_cloud"}, "'prefer_cloud' needs cloud="),
        ({"cloud": cloud, "mode": "only_edge"}, "'only_edge' needs edge="),
        ({"edge": edge, "mode": "prefer_egde"}, 'did you mean "prefer_edge"'),
        ({"edge": edge, "no_confidence": "reject"}, "expected one of defer, accept"),
        ({"edge": edge, "offline": "rais"}, 'did you mean "raise"'),
        ({"edge": edge, "deadline": 0}, "deadline= takes seconds, a number of more than 0"),
        ({"edge": edge, "hedge_after": -1}, "hedge_after= takes seconds, a number of 0 or more"),
        ({"edge": edge, "threshold": "high"}, "a threshold is a number or a certificate, not 'high'"),
        ({"edge": edge, "threshold": True}, "a threshold is a number"),
        ({"edge": edge, "threshold": float("nan")}, "a threshold is a number"),
        ({"edge": edge, "threshold": [0.1, 0.2]}, "2 thresholds for 1 edge models"),
        ({"edge": edge, "score": "mps"}, "there is no score 'mps'"),
        ({"edge": 3}, "edge= takes a path"),
        ({"cloud": 3}, "cloud= takes a URL"),
        ({"cloud": "http://host/predict"}, "Pass OpenInference"),
        ({"cloud": "http://user:hunter2@host/predict"}, "the cloud's address speak"),
        ({"cloud": "ftp://host/v2/models/m"}, "not an http"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(given, message):
    """When the router is made, with what to do about it; passwords are not repeated."""
    with pytest.raises(PolicyError, match=message) as caught:
        Router(**flat(**given))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mode": "only_egde"}, 'did you mean "only_edge"'),
        ({"mode": "only_cloud"}, "needs cloud="),
        ({"deadline": -1}, "more than 0"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(call, message):
    """A wrong mode or deadline on a call is named."""
    with Router(edge=edge) as router, pytest.raises(PolicyError, match=message):
        router.infer(1, **call)


def test_a_closed_router_says_so():
    """After close() a call is refused; closing twice is fine."""
    router = Router(**flat(**PAIR))
    router.close()
    router.close()
    with pytest.raises(Closed):
        router.infer(1)


def test_no_thread_is_left_behind():
    """close() ends the threads that deadlines needed."""
    before = set(threading.enumerate())
    with Router(**flat(**PAIR, deadline=30)) as router:
        router.infer(-1)
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before


def test_ever_new_deadlines_do_not_pile_up_plans():
    """A caller that passes what is left of its own deadline has a new one each time: plans are kept, but not without end."""
    with Router(**flat(**PAIR)) as router:
        for i in range(1100):
            router.infer(1, deadline=30 + i / 1000)
        assert len(router.engine.snapshot.plans) <= 1000


# -------------------------------------------------------------------------------------------------------------- asyncio
def test_coroutine_functions_are_awaited():
    """AsyncRouter awaits a coroutine function on its loop, and an object whose call is one; Router refuses it."""

    async def ask(x):
        await asyncio.sleep(0)
        return "async cloud"

    class Ask:
        async def __call__(self, x):
            return await ask(x)

    async def main(function):
        async with AsyncRouter(edge=edge, cloud=function, threshold=0.85) as router:
            return (await router.infer(-1)).value, (await router.infer(-1, deadline=30)).value

    assert asyncio.run(main(ask)) == asyncio.run(main(Ask())) == ("async cloud",) * 2
    with pytest.raises(PolicyError, match="use AsyncRouter"):
        Router(edge=edge, cloud=ask, threshold=0.85)


def test_a_failing_coroutine_degrades():
    """What a coroutine raises is a leg's failure like any other."""

    async def main():
        async def fail(x):
            raise BadReply("nonsense")

        async with AsyncRouter(edge=edge, cloud=fail, threshold=0.85) as router:
            return await router.infer(-1)

    answer = asyncio.run(main())
    assert answer.degraded
    assert (routes.code(answer), routes.error(answer)) == ("bad_reply", "BadReply: nonsense")


def test_cancelling_a_call_cancels_its_legs():
    """A cancelled infer cancels the coroutine that it waits for."""

    async def main():
        entered, left = asyncio.Event(), asyncio.Event()

        async def hang(x):
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        async with AsyncRouter(edge=edge, cloud=hang, threshold=0.85) as router:
            task = asyncio.create_task(router.infer(-1))
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(left.wait(), 30)

    asyncio.run(main())


def test_many_at_once_on_one_loop():
    """A hundred calls at once on one loop each get their own answer."""

    async def main():
        async with AsyncRouter(edge=lambda x: (x, 1.0), cloud=None) as router:
            return [a.value for a in await asyncio.gather(*(router.infer(i) for i in range(100)))]

    assert asyncio.run(main()) == list(range(100))


def test_a_quick_model_runs_on_the_loop():
    """Once a model is known to take less than a thread would cost, it runs on the loop; with a deadline it does not."""
    where = []

    async def main():
        async with AsyncRouter(
            edge=lambda x: (where.append(threading.current_thread()), 1.0), cloud=cloud, threshold=0.5
        ) as router:
            await router.infer(0)
            router.engine.observer.facts = Facts(edge_s=0.0001)
            router.engine.snapshot.plans.clear()
            await router.infer(0)
            await router.infer(0, deadline=30)
            await router.infer_many([0])
            router.engine.observer.facts = Facts(edge_s=0.1)
            router.engine.snapshot.plans.clear()
            await router.infer(0)

    asyncio.run(main())
    assert [thread is threading.main_thread() for thread in where] == [False, True, False, False, False]


# --------------------------------------------------------------------------------------------------------------- policies
@pytest.fixture
def policy(tmp_path):
    tiny.linear(tmp_path / "m.onnx", card={"labels": ["a", "b", "c"]})
    file = tmp_path / "policy.toml"
    file.write_text('threshold = 0.5\n[edge]\npath = "m.onnx"\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\n')
    return file


X = np.float32([0, 9, 0, 0])


def test_a_policy_file_makes_the_router(policy):
    """The same router from a file, for threads and for asyncio, with paths from the file's folder."""
    with Router.from_policy(policy) as router:
        assert router.infer(X).value == "b"

    async def main():
        async with AsyncRouter.from_policy(policy) as router:
            return (await router.infer(X)).value

    assert asyncio.run(main()) == "b"


def test_reload_keeps_what_stays_the_same(policy):
    """A new threshold takes effect at once; the loaded model and the connections are kept."""
    with Router.from_policy(policy) as router:
        router.infer(X)
        runners = router.engine.snapshot.backends
        policy.write_text(policy.read_text().replace("0.5", "0.9999999"))
        router.reload()
        assert all(a is b for a, b in zip(router.engine.snapshot.backends, runners, strict=True))
        assert "0.9999999" in str(router.engine.snapshot.targets)
        assert "< 0.99" in router.decide(np.float32([0, 1, 0, 0])).steps[-2]


def test_reload_drops_what_is_gone(policy, tmp_path):
    """A section that changed is made anew, and one that is gone is closed."""
    with Router.from_policy(policy) as router:
        router.infer(X)
        tiny.linear(tmp_path / "n.onnx", classes=2)
        policy.write_text('[edge]\npath = "n.onnx"\n')
        router.reload()
        assert router.infer(X).value == 1
        assert [leg.name for leg in router.stats().legs] == ["edge"]


def test_a_reload_reads_the_file_that_was_named(tmp_path, monkeypatch):
    """A program that changes its working directory gets no other policy, whose rules let more leave."""
    text, sent = 'threshold = 0.5\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\n[egress]\n{} = ["chat"]\n', []
    (there := tmp_path / "there").mkdir()
    (tmp_path / "policy.toml").write_text(text.format("never_leave"))
    (there / "policy.toml").write_text(text.format("may_leave"))
    monkeypatch.chdir(tmp_path)
    with Router.from_policy("policy.toml", edge=lambda _: ("edge", 0.1), cloud=lambda x: sent.append(x) or "cloud") as router:
        monkeypatch.chdir(there)
        router.reload()
        assert router.infer(1, data_class="chat").source == "edge"
    assert sent == []


def test_a_model_is_read_where_it_was_named(tmp_path, monkeypatch):
    """At its first use, from whatever directory the program works in by then."""
    tiny.linear(tmp_path / "m.onnx", classes=2)
    (there := tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    with Router("m.onnx", None) as router:
        monkeypatch.chdir(there)
        assert router.infer(X).value == 1


def test_a_model_whose_file_is_gone_answers_on(tmp_path, caplog):
    """It is loaded: only the cache, whose keys are of its content, is not used."""
    path = tiny.linear(tmp_path / "m.onnx", classes=2)
    with Router(path, None, cache=edgeroute.Cache()) as router:
        router.warm()
        path.unlink()
        assert [router.infer(X).source for _ in range(2)] == ["edge", "edge"]
    assert caplog.text.count("the identity of a target, for the cache") == 1


def test_a_policy_that_cannot_be_used_leaves_the_old_one(policy):
    """reload() raises, and the router goes on as before."""
    with Router.from_policy(policy) as router:
        policy.write_text("threshhold = 1\n")
        with pytest.raises(PolicyError, match="threshold"):
            router.reload()
        assert router.infer(X).value == "b"
    with Router(edge=edge) as router, pytest.raises(PolicyError, match="not made from a policy file"):
        router.reload()


def test_reload_drops_no_request(policy):
    """Threads that call all the while get every answer, whatever is reloaded under them."""
    texts = [policy.read_text(), policy.read_text().replace("0.5", "0.4"), '[edge]\npath = "m.onnx"\nthreads = 2\n']
    errors, going = [], threading.Event()

    with Router.from_policy(policy) as router:

        def work():
            try:
                for _ in range(300):
                    assert router.infer(X).value == "b"
                    going.set()
            except Exception as e:  # noqa: BLE001
                errors.append(e)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        going.wait(LONG)
        for i in range(12):
            policy.write_text(texts[i % 3])
            router.reload()
        for thread in threads:
            thread.join()
    assert errors == []


def test_watch_reloads(policy, caplog, monkeypatch):
    """With watch the router follows its file, and says what it could not use."""
    changed = threading.Event()

    class Watched(Router):
        def reload(self):
            try:
                super().reload()
            finally:
                changed.set()

    monkeypatch.setattr(policy_reload, "LOOKS_S", 0.01)
    monkeypatch.setattr(policy_reload, "SETTLES_S", 0.01)
    with caplog.at_level(logging.ERROR, "edgeroute"), Watched.from_policy(policy, watch=True) as router:
        new = policy.with_name("new.toml")  # put there whole: what is read as it is written may be half of it
        for threshold in (0.25, 0.75):  # the second of the same size and time
            new.write_text(f'threshold = {threshold}\n[edge]\npath = "m.onnx"\n')
            os.utime(new, (1, 1))
            new.replace(policy)
            assert changed.wait(LONG)
            assert router.engine.snapshot.targets[0].threshold == threshold
            changed.clear()
        policy.write_text("nonsense")
        assert changed.wait(LONG)
        policy.unlink()
        assert router.infer(X).value == "b"


def test_a_policy_that_is_written_in_parts(policy, monkeypatch):
    """Is put in force once it stays the same: its first lines are a valid policy, too."""
    parts, left, stamp, changed = (
        ["threshold = 0.25\n", '[edge]\npath = "m.onnx"\n', "[limits]\n"],
        [],
        policy_reload.file_stamp,
        threading.Event(),
    )

    def growing(path):
        if parts:
            with path.open("a" if len(parts) < 3 else "w") as file:
                file.write(parts.pop(0))
        return stamp(path)

    class Watched(Router):
        def reload(self):
            left.extend(parts)
            super().reload()
            changed.set()

    monkeypatch.setattr(policy_reload, "LOOKS_S", 0.01)
    monkeypatch.setattr(policy_reload, "SETTLES_S", 0.01)
    with Watched.from_policy(policy, watch=True) as router:
        monkeypatch.setattr(policy_reload, "file_stamp", growing)
        assert changed.wait(LONG)
        assert left == []
        assert router.engine.snapshot.targets[0].threshold == 0.25


def test_a_policy_that_changes_as_it_is_read(policy, monkeypatch):
    """Is refused, as what was read may be half of it; what the program asks for is read at once."""
    with Router.from_policy(policy) as router:
        load = edgeroute.policy.load

        def written(*args, **options):
            policy.write_text('threshold = 0.75\n[edge]\npath = "m.onnx"\n')
            return load(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr("edgeroute.policy.load", written)
            with pytest.raises(PolicyError, match="changed as it was read"):
                router.reload()
        assert router.engine.snapshot.targets[0].threshold == 0.5
        router.reload()
        assert router.engine.snapshot.targets[0].threshold == 0.75


def test_endpoints_are_objects_or_urls():
    """A URL of a model makes an Open Inference endpoint; objects are taken as they are."""
    for given in ("http://h/v2/models/m", OpenInference("http://h", model="m"), PlainJson("http://h/p")):
        Router(cloud=given).close()
    assert repr(OpenInference("http://h/v2", model="m")) == "OpenInference('http://h/v2/models/m')"
    assert isinstance(OnnxModel, type)
    assert edgeroute.__version__


def test_what_is_raised_where_nobody_answers():
    """The error itself if one leg alone was asked, as docs/faults.md says; else `NoAnswer`, which has all of them."""

    def away(x):
        raise edgeroute.Unreachable("the link is down")

    def broken(x):
        raise KeyError("mine")

    with Router(lambda x: ("cat", 0.4), away, threshold=0.8) as router:
        for ask in (router.infer, router.refine, lambda x, **how: router.infer_many([x], **how)):
            with pytest.raises(edgeroute.Unreachable, match="the link is down"):
                list(ask(1, mode="only_cloud"))
    with Router(broken, away, threshold=0.8) as router:
        with pytest.raises(KeyError, match="mine"):
            router.infer(1, mode="only_edge")
        with pytest.raises(edgeroute.NoAnswer) as told:
            router.infer(1)
        assert {name: type(error) for name, error in told.value.errors.items()} == {
            "edge": KeyError,
            "cloud": edgeroute.Unreachable,
        }


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps, lambda router: copy.deepcopy({"router": router})])
@pytest.mark.parametrize("kind", [Router, AsyncRouter])
def test_a_router_is_not_copied(again, kind):
    """Two would own the same threads and files: as the copy was dropped, the router was closed."""
    router = kind(lambda x: (x, 0.9), threshold=0.5)
    with pytest.raises(TypeError, match=f"a {kind.__name__} is neither copied nor pickled"):
        again(router)
    if kind is Router:
        assert router.infer(1).value == 1
        router.close()
    else:
        asyncio.run(router.close())
