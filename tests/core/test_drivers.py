"""Drivers of a walk: legs that their caller may run, mail from other threads, and what comes once nobody waits for it."""

from __future__ import annotations

import asyncio
import math
import threading
from functools import partial
from time import monotonic

import pytest

from edgeroute import Prediction
from edgeroute.core.plan import Facts, Plan, plan
from edgeroute.core.policy_egress_and_options import Policy, Target
from edgeroute.core.walk import Done, Elapsed, Failed, Start, Wait, walk
from edgeroute.router.drivers import Deferrable, blocking
from edgeroute.router.drivers import asyncio_task as tasks

LONG_S = 30.0
EDGE, ONE, TWO = Target("edge", "edge", 0.8), Target("one", "cloud"), Target("two", "cloud")


@pytest.fixture(params=["blocking", "asyncio"])
def driven(request):
    """`driven_by` with each of the drivers."""
    return partial(driven_by, request.param)


def driven_by(kind, targets, *ends, late=False, provisional=False, **policy):
    """The log of a walk whose clouds are deferrable and end so, and what the driver did with them."""
    made, begun, did = plan(Policy(**policy), targets, Facts()), monotonic(), []
    assert isinstance(made, Plan)
    ends_of = dict(zip((leg for leg, one in enumerate(made.legs) if one.permit is not None), ends, strict=True))

    def begin(start, send):
        if start.leg not in ends_of:
            return Done(start.leg, Prediction("edge", 0.1, None), monotonic())
        event, at = ends_of[start.leg](start.leg), begun + made.deadline_s + 1.0 if late else monotonic()

        def in_thread():
            did.append(f"{start.leg} in a thread")
            if event is None:
                return Failed(start.leg, OSError("no thread"), monotonic())
            send(event._replace(at=at))
            return lambda: did.append(f"{start.leg} stopped")

        def here():
            did.append(f"{start.leg} here")
            return event._replace(at=at)

        async def here_async():
            return here()

        run = here if kind == "blocking" else here_async
        return Deferrable(start.leg, begun + made.deadline_s, run, in_thread)

    steps = walk(made, begun, provisional)
    if kind == "asyncio":
        outcome = asyncio.run(tasks.drive(steps, begin, lambda _: did.append("shown")))
        return [(mark.kind, mark.leg) for mark in outcome.log], did
    shown = blocking.stream(steps, begin)
    try:
        while True:
            next(shown)
            did.append("shown")
    except StopIteration as end:
        return [(mark.kind, mark.leg) for mark in end.value.log], did


def done(leg):
    """It answers."""
    return Done(leg, Prediction("cloud", 0.9, None), 0.0)


def failed(leg):
    """It fails."""
    return Failed(leg, OSError(), 0.0)


def no_thread(_):
    """It would answer, and there is no thread for it."""
    return


def test_alone_it_runs_here(driven):
    """After the edge, and after another that has failed."""
    log, did = driven((EDGE, ONE, TWO), failed, done, deadline_s=LONG_S)
    assert log == [("start", 0), ("below", 0), ("start", 1), ("failed", 1), ("start", 2), ("accepted", 2)]
    assert did == ["1 here", "2 here"]


def test_a_failure_once_the_time_is_over_is_the_deadline(driven):
    """As of one in a thread, whose end the walk does not see; an answer that has come all the same is given."""
    assert driven((ONE,), failed, deadline_s=LONG_S, late=True) == ([("start", 0), ("timeout", 0)], ["0 here"])
    assert driven((ONE,), done, deadline_s=LONG_S, late=True) == ([("start", 0), ("accepted", 0)], ["0 here"])


def test_two_at_once_have_threads(driven):
    """A race, and a hedge, whose time comes before the deadline."""
    log, did = driven((ONE, TWO), done, done, deadline_s=LONG_S, hedge_after=0.0)
    assert log[:2] == [("start", 0), ("start", 1)]
    assert did[:2] == ["0 in a thread", "1 in a thread"]
    log, did = driven((ONE, TWO), done, done, deadline_s=LONG_S, hedge_after=LONG_S / 2)
    assert (log, did) == ([("start", 0), ("accepted", 0)], ["0 in a thread"])


def test_while_a_provisional_answer_is_shown_it_goes_on(driven):
    """The caller may take its time."""
    log, did = driven((EDGE, ONE), done, provisional=True, deadline_s=LONG_S)
    assert log[-1] == ("accepted", 1)
    assert did == ["1 in a thread", "shown"]


def test_where_it_needs_a_thread_and_there_is_none(driven):
    """Its refusal is an event as any other."""
    log, did = driven((ONE, TWO), no_thread, done, deadline_s=LONG_S, hedge_after=0.0)
    assert ("failed", 0) in log
    assert log[-1] == ("accepted", 1)
    assert did == ["0 in a thread", "1 in a thread"]


def test_pieces_that_come_faster_than_they_are_taken_leave_the_loop_to_others():
    """The one who listens among them, who may leave."""

    def flood():
        yield Start(0)
        for _ in range(1000):
            yield Wait(math.inf)
        return "the end"

    def begin(_, send):
        for _ in range(1000):
            send(Elapsed(0.0))
        return lambda: None

    async def main():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        assert await tasks.drive(flood(), begin) == "the end"
        task.cancel()
        return turns

    assert asyncio.run(main()) > 10


def test_what_comes_once_the_loop_is_closed_is_dropped():
    """A leg that was left at the deadline may answer when its caller, and the loop, are gone."""
    sends = []

    def begin(_, send):
        sends.append(send)
        return lambda: None

    made = plan(Policy(deadline_s=0.01), (ONE,), Facts())
    caller = threading.Thread(target=lambda: asyncio.run(tasks.drive(walk(made, monotonic()), begin)))
    caller.start()
    caller.join(LONG_S)
    assert sends[0](done(0)) is None


def test_with_a_bell_a_stream_never_blocks():
    """While there is no event it yields for what it waits; the bell rings for each event."""
    rung, sends = [], []

    def begin(_, send):
        sends.append(send)
        return lambda: None

    made = plan(Policy(deadline_s=LONG_S), (ONE,), Facts())
    steps = blocking.stream(walk(made, monotonic()), begin, lambda: rung.append("ring"))
    waited = next(steps)
    assert (type(waited), next(steps), rung) == (Wait, waited, [])
    sends[0](done(0))
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert (end.value.value.prediction.value, rung) == ("cloud", ["ring"])
