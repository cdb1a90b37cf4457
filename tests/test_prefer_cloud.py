"""The edge on standby beside a preferred cloud: what routers measure of it, and when it is spared."""

import threading

import pytest
from both import CALLS, LONG, Tasks, Threads, ask

from edgeroute import Cache, NoAnswer, Unreachable
from edgeroute.core.plan import ENOUGH_RUNS
from edgeroute.core.policy_egress_and_options import INF

MANY = 5_000
"""Requests after which a test that waits for something has failed."""


@pytest.fixture(params=[Threads, Tasks])
def make(request):
    return request.param


@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize("call", CALLS)
def test_the_edges_answer_in_place_of_the_clouds_is_degraded(make, call, deadline):
    """However it is asked for, and however sure the edge is: it is not stored, and the offline rule decides."""

    def cloud(_):
        raise Unreachable("the link is down")

    def edge(x):
        return "edge", x

    options = {"threshold": 0.5, "mode": "prefer_cloud", "deadline": deadline}
    with make(edge, cloud, cache=Cache(), **options) as router:
        answers = [ask(router, call, sure) for sure in (0.9, 0.1) for _ in range(2)]
    assert {(answer.value, answer.source, answer.degraded) for answer in answers} == {("edge", "edge", True)}
    with make(edge, cloud, offline="raise", **options) as router, pytest.raises(NoAnswer):
        ask(router, call, 0.9)


@pytest.mark.parametrize("late", [False, True])
def test_a_stopped_run_is_measured_when_it_ends(make, late, due):
    """A cloud that is quicker stops the standby, and so does the deadline; the model runs on, and then its time is known.

    Otherwise the standby would start at once for ever, and nothing would be known of its slowest runs.
    """
    gate, away, begun = threading.Event(), threading.Event(), threading.Event()

    def edge(_):
        begun.set()
        gate.wait(LONG)
        return "edge", 0.9

    def cloud(_):
        if late:
            away.wait(LONG)
        return "cloud", 0.9

    with make(edge, cloud, threshold=0.5, mode="prefer_cloud", deadline=due(begun.is_set) if late else LONG) as router:
        if late:
            with pytest.raises(TimeoutError):
                router.infer(1)
        else:
            assert router.infer(1).source == "cloud"
        assert router.stats().legs[0].p99_s is None, "it runs on"
        gate.set()
        edges = router.engine.edge_threads
        while not edges.idle:
            threading.Event().wait(0.001)
        assert router.stats().legs[0].p99_s > 0
        assert router.stats().legs[0].answered == 0
        away.set()


def test_a_standby_of_which_enough_is_known_is_spared(make):
    """Until then it runs beside each request; afterwards a quick cloud leaves it idle."""
    runs = []

    def edge(x):
        runs.append(x)
        return "edge", 0.9

    with make(edge, lambda x: ("cloud", 0.9), threshold=0.5, mode="prefer_cloud", deadline=LONG) as router:
        assert router.infer(0).source == "cloud"
        for x in range(1, MANY):
            if router.engine.observer.facts.reserves.get("edge", INF) < INF:
                break
            assert router.infer(x).source == "cloud"
        assert ENOUGH_RUNS <= x < MANY
        while len(router.engine.edge_threads.idle) < len(router.engine.edge_threads):
            threading.Event().wait(0.001)
        before = len(runs)
        assert before == x, "it ran beside each"
        for _ in range(10):
            assert router.infer(-1).source == "cloud"
        assert len(runs) == before


def test_a_batch_is_not_measured_as_one_input(make):
    """Its time says nothing of one input's, also where it is stopped."""
    gate = threading.Event()

    def edge(_):
        gate.wait(LONG)
        return "edge", 0.9

    with make(edge, lambda x: ("cloud", 0.9), threshold=0.5, mode="prefer_cloud", deadline=LONG) as router:
        assert [answer.source for answer in router.infer_many([1, 2])] == ["cloud", "cloud"]
        gate.set()
        while not router.engine.edge_threads.idle:
            threading.Event().wait(0.001)
        assert router.stats().legs[0].p99_s is None
