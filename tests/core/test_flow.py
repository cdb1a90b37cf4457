"""Boundaries and promptness of a walk, by example; the same scenarios through every driver."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic

import pytest

from edgeroute import Prediction
from edgeroute.core.plan import Facts, Plan, Refusal, plan
from edgeroute.core.policy_egress_and_options import INF, Policy, Target
from edgeroute.core.reason_text_and_trace_record import reason, reason_code, trace
from edgeroute.core.walk import (
    STARTS,
    Cancel,
    Done,
    Elapsed,
    Emit,
    Failed,
    Leave,
    Outcome,
    Start,
    Wait,
    first_leg_outcome,
    walk,
    walk_many,
)
from edgeroute.router.drivers import asyncio_task as tasks
from edgeroute.router.drivers import blocking
from edgeroute.tools import walk_driver_in_virtual_time as virtual

EDGE, CLOUD = Target("edge", "edge", 0.85), Target("cloud", "cloud")
PAIR = (EDGE, CLOUD)


def made(targets=PAIR, facts=None, **policy) -> Plan:
    result = plan(Policy(**policy), targets, facts or Facts())
    assert isinstance(result, Plan)
    return result


def said(confidence, value="v") -> Prediction:
    return Prediction(value, confidence, None)


# ------------------------------------------------------------------------------------------ by hand, effect by effect
def ends(steps, event):
    with pytest.raises(StopIteration) as end:
        steps.send(event)
    return end.value.value


def test_a_provisional_answer_is_shown_once_the_next_leg_has_begun():
    """The cloud is under way while the caller looks at what the edge says; then its answer is the last word."""
    steps = walk(made(deadline_s=1.0), 0.0, True)
    assert next(steps) == Start(0)
    assert steps.send(Done(0, said(0.1, "edge"), 0.01)) == Start(1)
    shown = steps.send(None)
    assert (type(shown), shown.leg, shown.prediction.value) == (Emit, 0, "edge")
    assert [(what, leg) for what, leg, _, _ in shown.log] == [("start", 0), ("below", 0), ("start", 1)]
    assert steps.send(Elapsed(0.3)) == Wait(1.0)
    outcome = ends(steps, Done(1, said(None, "cloud"), 0.4))
    assert (outcome.leg, outcome.accepted) == (1, True)


def test_a_sure_edge_has_nothing_provisional():
    """An answer that is accepted at once is not shown before."""
    steps = walk(made(), 0.0, True)
    next(steps)
    assert ends(steps, Done(0, said(0.9), 1.0)).accepted


def test_a_provisional_answer_that_was_looked_at_past_the_deadline_stands():
    """Whoever takes longer than the deadline over the provisional answer gets it once more, as the last word."""
    steps = walk(made(deadline_s=1.0), 0.0, True)
    next(steps)
    steps.send(Done(0, said(0.1, "edge"), 0.01))
    steps.send(None)
    assert steps.send(Elapsed(5.0)) == Wait(1.0)
    assert steps.send(Elapsed(5.0)) == Cancel(1)
    outcome = ends(steps, None)
    assert (outcome.leg, outcome.accepted, outcome.ended) == (0, False, 5.0)


def test_the_next_best_answer_is_shown_too():
    """In a ladder each answer that is better than the one before is shown; one that is not is not."""
    ladder = (Target("a", "edge", 0.9), Target("b", "edge", 0.9), CLOUD)
    steps = walk(made(ladder), 0.0, True)
    next(steps)
    assert steps.send(Done(0, said(0.1, "a"), 0.1)) == Start(1)
    assert steps.send(None).prediction.value == "a"
    assert steps.send(Elapsed(0.1)) == Wait(INF)
    assert steps.send(Done(1, said(0.2, "b"), 0.2)) == Start(2)
    assert steps.send(None).prediction.value == "b"


def test_the_standby_begins_at_once_where_its_answer_is_shown():
    """Preferring the cloud, a provisional answer is the edge's, which then does not wait for the deadline to come near."""
    known = made(mode="prefer_cloud", facts=Facts(reserves={"edge": 0.2}), deadline_s=5.0)
    assert known.legs[1].start_by_s == 4.8
    steps = walk(known, 0.0, True)
    assert next(steps) == Start(0)
    assert steps.send(None) == Start(1)
    assert steps.send(None) == Wait(5.0)
    assert steps.send(Done(1, said(0.9, "edge"), 0.1)).prediction.value == "edge"


def test_a_late_cloud_is_left_to_run_on_where_its_answer_is_of_use():
    """At the deadline an edge is cancelled, and a cloud left, if late answers are kept."""
    for keep, effect in ((True, Leave(1)), (False, Cancel(1))):
        steps = walk(made(deadline_s=1.0, hedge_after=0.0), 0.0, False, keep)
        assert [next(steps), steps.send(None), steps.send(None)] == [Start(0), Start(1), Wait(1.0)]
        assert steps.send(Elapsed(1.0)) == Cancel(0)
        assert steps.send(None) == effect
        outcome = ends(steps, None)
        assert [what for what, *_ in outcome.log] == ["start", "start", "timeout", "timeout"]


@pytest.mark.parametrize(
    ("confidence", "accepted"), [(0.85, True), (0.8499, False), (1.0, True), (None, False), (float("nan"), False)]
)
def test_the_threshold_itself_passes(confidence, accepted):
    """At the threshold an answer is accepted, just below it is not, and none or NaN is deferred by default."""
    steps = walk(made(), 0.0)
    assert next(steps) == Start(0)
    if accepted:
        with pytest.raises(StopIteration) as end:
            steps.send(Done(0, said(confidence), 1.0))
        assert end.value.value.accepted
    else:
        assert steps.send(Done(0, said(confidence), 1.0)) == Start(1)


def test_no_confidence_may_be_accepted_by_policy():
    """With no_confidence = accept, an answer without one stands."""
    steps = walk(made(no_confidence="accept"), 0.0)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(Done(0, said(None), 1.0))


def test_handover_is_prompt():
    """The next target starts at the very event that shows the one before insufficient, not at a later one."""
    steps = walk(made(hedge_after=5.0, deadline_s=9.0), 0.0)
    assert next(steps) == Start(0)
    assert steps.send(None) == Wait(5.0)
    assert steps.send(Failed(0, RuntimeError(), 1.0)) == Start(1)
    assert steps.send(None) == Wait(9.0)


def test_hedge_starts_at_its_time_and_the_loser_is_cancelled():
    """After the hedge delay both run; the first acceptable answer cancels the other."""
    steps = walk(made(hedge_after=0.15), 10.0)
    assert next(steps) == Start(0)
    assert steps.send(None) == Wait(10.15)
    assert steps.send(Elapsed(10.15)) == Start(1)
    assert steps.send(None) == Wait(INF)
    assert steps.send(Done(1, said(None), 10.2)) == Cancel(0)
    with pytest.raises(StopIteration) as end:
        steps.send(None)
    assert end.value.value.leg == 1


def test_race_starts_both_at_once():
    """hedge_after = 0 is a race."""
    steps = walk(made(hedge_after=0.0), 0.0)
    assert [next(steps), steps.send(None)] == [Start(0), Start(1)]


def test_at_the_deadline_the_edge_answer_stands():
    """The cloud is cut off at the deadline, and what the edge said before is the answer, marked."""
    steps = walk(made(deadline_s=1.0), 0.0)
    next(steps)
    assert steps.send(Done(0, said(0.2, "shirt"), 0.1)) == Start(1)
    assert steps.send(None) == Wait(1.0)
    assert steps.send(Elapsed(1.0)) == Cancel(1)
    with pytest.raises(StopIteration) as end:
        steps.send(None)
    outcome = end.value.value
    assert (outcome.prediction.value, outcome.accepted, outcome.ended) == ("shirt", False, 1.0)
    assert reason_code(made(deadline_s=1.0), outcome) == "deadline"


def test_an_edge_that_answers_after_the_deadline_starts_nothing():
    """Once the deadline has passed no cloud leg begins; the late answer is better than none."""
    steps = walk(made(deadline_s=1.0), 0.0)
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(Done(0, said(0.2), 1.5))
    assert end.value.value.prediction is not None


def test_wrong_input_asks_nobody_else():
    """A fatal failure ends the route, and stops what runs beside it."""
    steps = walk(made(hedge_after=0.0), 0.0)
    next(steps)
    steps.send(None)
    steps.send(None)
    assert steps.send(Failed(0, ValueError("shape"), 0.1, fatal=True)) == Cancel(1)
    assert ends(steps, None).leg is None


def test_the_first_answer_may_end_a_walk_without_one():
    """At its own threshold, if it has one; a standby's never does."""
    own = made((EDGE._replace(thresholds={"v": 0.5}), CLOUD))
    outcome = first_leg_outcome(own, 0.0, said(0.6), 0.1)
    assert [mark.kind for mark in outcome.log] == ["start", "limit", "accepted"]
    assert first_leg_outcome(own, 0.0, said(0.4), 0.1) is None
    assert first_leg_outcome(made(), 0.0, said(0.9), 0.1).accepted


def test_a_standby_alone_makes_way_for_the_next_cloud():
    """Which starts at once where the one before has failed."""
    steps = walk(
        made((EDGE, CLOUD, Target("cloud2", "cloud")), mode="prefer_cloud", deadline_s=1.0, facts=Facts(reserves={"edge": 0.9})),
        0.0,
    )
    assert next(steps) == Start(0)
    assert steps.send(None) == Wait(pytest.approx(0.1))
    assert steps.send(Elapsed(0.1)) == Start(2)
    assert steps.send(None) == Wait(1.0)
    assert steps.send(Failed(0, RuntimeError("away"), 0.2)) == Start(1)


def test_prefer_cloud_holds_the_edge_until_the_cloud_has_ended():
    """The standby's answer waits for the cloud, which overrules it; and replaces it when it fails."""
    known = made(mode="prefer_cloud", deadline_s=1.0, targets=PAIR, facts=Facts(reserves={"edge": 0.2}))
    steps = walk(known, 0.0)
    assert next(steps) == Start(0)
    assert steps.send(None) == Wait(0.8), "the edge starts when it still has the time to be left for it"
    assert steps.send(Elapsed(0.8)) == Start(1)
    assert steps.send(None) == Wait(1.0)
    assert steps.send(Done(1, said(0.99), 0.85)) == Wait(1.0), "an edge answer, however sure, does not end it"
    with pytest.raises(StopIteration) as end:
        steps.send(Failed(0, RuntimeError("down"), 0.9))
    assert not end.value.value.accepted
    assert [(mark.kind, mark.leg) for mark in end.value.value.log[2:]] == [("kept", 1), ("failed", 0)]
    assert reason_code(known, end.value.value) == "failed"


def test_prefer_cloud_tries_every_cloud_before_the_edge():
    """With time to spare the standby starts only after the last cloud."""
    known = made((EDGE, CLOUD, Target("cloud2", "cloud")), mode="prefer_cloud")
    steps = walk(known, 0.0)
    assert next(steps) == Start(0)
    assert steps.send(Failed(0, RuntimeError("a"), 0.1)) == Start(1)
    assert steps.send(Failed(1, RuntimeError("b"), 0.2)) == Start(2)
    assert known.legs[2].name == "edge"


def test_more_legs_than_prepared_starts():
    """A ladder may be longer than the starts that are kept ready."""
    known = made(tuple(Target(f"c{i}", "cloud") for i in range(len(STARTS) + 2)))
    outcome, _ = virtual.drive(walk(known, 0.0), lambda s, now: [Failed(s.leg, RuntimeError(), now)])
    assert len(outcome.log) == 2 * (len(STARTS) + 2)


def test_a_cancelled_leg_is_not_in_the_reason():
    """A hedge that lost says nothing about the answer; the trace has it."""
    known = made(hedge_after=0.0)
    outcome, _ = virtual.drive(walk(known, 0.0), lambda s, now: [Done(s.leg, said(0.9), now + s.leg)])
    assert "cloud" not in reason(known, outcome)
    assert [e["what"] for e in trace(known, outcome, "a")["events"]] == ["start", "start", "accepted", "cancelled"]


def test_a_batch_cancels_a_leg_once_no_row_needs_it():
    """In a hedged batch the cloud leg goes on for the rows that still need it, and is cancelled with the last."""
    known = made(hedge_after=0.0)
    steps = walk_many(known, 2, 0.0)
    assert [next(steps), steps.send(None)] == [Start(0, (0, 1)), Start(1, (0, 1))]
    assert steps.send(None) == Wait(INF)
    assert steps.send(Done(0, [said(0.9), said(0.1)], 1.0)) == Wait(INF), "row 1 still waits for the cloud"
    with pytest.raises(StopIteration) as end:
        steps.send(Done(1, [said(None), said(None)], 2.0))
    assert [o.leg for o in end.value.value] == [0, 1]
    steps = walk_many(known, 2, 0.0)
    next(steps), steps.send(None), steps.send(None)
    assert steps.send(Done(0, [said(0.9), said(0.9)], 1.0)) == Cancel(1)
    with pytest.raises(StopIteration):
        steps.send(None)


def test_a_batch_runs_inline_too():
    """A leg that runs where it is started answers its start, for a batch as for one."""
    known = made()

    def run(start):
        return Done(start.leg, [said(0.9 if row == start.leg else 0.1, row) for row in start.rows], 1.0 + start.leg)

    outcomes = blocking.drive_inline(walk_many(known, 3, 0.0), run)
    assert [(o.leg, o.prediction.value) for o in outcomes] == [(0, 0), (1, 1), (1, 2)]


# --------------------------------------------------------------------------------------------------------------- plans
def test_every_mode_is_a_plan():
    """Modes are orders of legs, nothing else."""
    assert [leg.name for leg in made().legs] == ["edge", "cloud"]
    assert [leg.name for leg in made(mode="prefer_cloud").legs] == ["cloud", "edge"]
    assert [leg.name for leg in made(mode="only_edge").legs] == ["edge"]
    assert [leg.name for leg in made(mode="only_cloud").legs] == ["cloud"]
    ladder = (Target("tiny", "edge", 0.9), Target("small", "edge", 0.8), CLOUD, Target("big", "cloud"))
    assert [leg.name for leg in made(ladder, mode="prefer_cloud").legs] == ["cloud", "big", "small", "tiny"]


def test_each_step_has_its_reason():
    """The plan says in words what it will do."""
    assert made(deadline_s=0.3).steps == (
        "mode prefer_edge, deadline 300 ms",
        "edge first; accepted from confidence 0.85 on (uncalibrated)",
        "cloud if edge does not settle it; its answer is accepted",
    )
    assert made(hedge_after=0.15).steps[2].startswith("cloud 150 ms after edge, or as soon as")
    assert "nothing leaves the device" in made(mode="only_edge").steps[1]
    assert made(mode="prefer_cloud", deadline_s=1.0).steps[2] == (
        "edge 0 ms after the start, or as soon as no other target is left; kept in case the cloud fails"
    )


@pytest.mark.parametrize(("mode", "targets", "missing"), [("only_edge", (CLOUD,), "edge="), ("only_cloud", (EDGE,), "cloud=")])
def test_a_plan_that_is_not_possible_is_refused(mode, targets, missing):
    """Without a target of the side that the mode needs there is a refusal that says so."""
    refusal = plan(Policy(mode=mode), targets, Facts())
    assert isinstance(refusal, Refusal)
    assert missing in refusal.reason


def test_a_busy_edge_is_left_alone_unless_there_is_nothing_else():
    """A target still held by an earlier run is skipped, with a reason, where another can answer; an edge stands by for the worst."""
    busy = made(facts=Facts(busy=frozenset({"edge"})))
    assert [(leg.name, leg.standby) for leg in busy.legs] == [("cloud", False), ("edge", True)]
    assert [leg.name for leg in made(facts=Facts(busy=frozenset({"cloud"}))).legs] == ["edge"]
    assert busy.steps[1] == "skip edge: an earlier run has not stopped yet"
    assert [leg.name for leg in made(facts=Facts(busy=frozenset({"edge", "cloud"}))).legs] == ["edge", "cloud"]


# ------------------------------------------------------------------------------------------------------------- reasons
def outcome_of(known: Plan, *answers) -> Outcome:
    events = list(answers)
    outcome, _ = virtual.drive(walk(known, 0.0), lambda s, now: [events.pop(0)(s.leg, now)])
    return outcome


def done(confidence):
    return lambda leg, now: Done(leg, said(confidence), now + 0.182)


def broken(message):
    return lambda leg, now: Failed(leg, RuntimeError(message), now + 0.01)


def test_trace_is_json_ready_and_complete():
    """A trace holds plan, events with times, errors by name, and no NaN."""
    import json

    known = made(deadline_s=2.0, hedge_after=1.0)
    outcome = outcome_of(known, done(float("nan")), broken("gone"))
    told = json.loads(json.dumps(trace(known, outcome, "a-1"), allow_nan=False))
    assert told["answered_by"] == "edge"
    assert told["deadline_s"] == 2.0
    assert [e["what"] for e in told["events"]] == ["start", "below", "start", "failed"]
    assert told["events"][1]["confidence"] is None
    assert told["events"][3]["error"] == "RuntimeError"
    assert trace(made(), outcome_of(made(), broken("x"), broken("y")), "a")["answered_by"] is None


# ------------------------------------------------------------------------------------- the same through every driver
# a scenario: the plan, and for each leg what its start brings, a list of (leg, confidence | exception), in order
SCENARIOS = {
    "accepted": (made(), {0: [(0, 0.9)]}),
    "deferred": (made(), {0: [(0, 0.1)], 1: [(1, None)]}),
    "cloud fails": (made(), {0: [(0, 0.1)], 1: [(1, OSError("cut"))]}),
    "both fail": (made(), {0: [(0, OSError("a"))], 1: [(1, OSError("b"))]}),
    "deadline": (made(deadline_s=0.02), {0: [(0, 0.1)], 1: []}),
    "nothing by the deadline": (made(deadline_s=0.02), {0: []}),
    "hedge": (made(hedge_after=0.01), {0: [], 1: [(1, None)]}),
    "hedge, edge wins": (made(hedge_after=0.01), {0: [], 1: [(0, 0.9)]}),
    "race, both come": (made(hedge_after=0.0), {0: [], 1: [(1, None), (0, 0.9)]}),
    "race, edge below": (made(hedge_after=0.0), {0: [], 1: [(0, 0.1), (1, None)]}),
    "prefer cloud, edge kept": (made(mode="prefer_cloud", deadline_s=0.5), {0: [], 1: [(1, 0.9)]}),
}


def events(start, now, scenario):
    for leg, what in scenario[start.leg]:
        if isinstance(what, Exception):
            yield Failed(leg, what, now)
        else:
            yield Done(leg, Prediction(leg, what, None), now)


def through_virtual(known, scenario):
    return virtual.drive(walk(known, 0.0), lambda s, now: events(s, now, scenario))[0]


def through_blocking(known, scenario, threads=False):
    begun = monotonic()  # when all events are: none is late on a busy machine
    return blocking.drive(walk(known, begun), lambda start, send: told(known, events(start, begun, scenario), send, threads))


def told(known, happened, send, threads):
    """Sends these events, from a thread or at once; where there is a deadline they are there before it is waited for."""

    def tell():
        for event in happened:
            send(event)

    if threads:
        thread = threading.Thread(target=tell)
        thread.start()
        if known.deadline_s < INF:
            thread.join()
    else:
        tell()
    return lambda: None


def through_tasks(known, scenario, threads=False):
    async def main():
        begun = monotonic()
        return await tasks.drive(
            walk(known, begun), lambda start, send: told(known, events(start, begun, scenario), send, threads)
        )

    return asyncio.run(main())


def through_blocking_in_place(known, scenario):
    return blocking.drive(walk(known, monotonic()), lambda s, send: next(iter(events(s, monotonic(), scenario))))


def through_tasks_in_place(known, scenario):
    async def main():
        return await tasks.drive(walk(known, monotonic()), lambda s, send: next(iter(events(s, monotonic(), scenario))))

    return asyncio.run(main())


def through_inline(known, scenario):
    return blocking.drive_inline(walk(known, monotonic()), lambda s: next(iter(events(s, monotonic(), scenario))))


DRIVERS = {
    "blocking": through_blocking,
    "blocking, from threads": lambda k, s: through_blocking(k, s, threads=True),
    "asyncio": through_tasks,
    "asyncio, from threads": lambda k, s: through_tasks(k, s, threads=True),
    "blocking, in place": through_blocking_in_place,
    "asyncio, in place": through_tasks_in_place,
    "inline": through_inline,
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_driver_walks_alike(name, driver):
    """What happens decides the outcome; which driver drove does not."""
    known, scenario = SCENARIOS[name]
    if ("inline" in driver or "in place" in driver) and not known.sequential:
        assert known.deadline_s < INF or any(leg.hedge_after_s < INF for leg in known.legs)
        return
    expected, got = through_virtual(known, scenario), DRIVERS[driver](known, scenario)
    assert (got.leg, got.accepted) == (expected.leg, expected.accepted)
    assert [(what, leg) for what, leg, _, _ in got.log] == [(what, leg) for what, leg, _, _ in expected.log]


def test_virtual_time_refuses_to_wait_for_ever():
    """A leg that never answers, without a deadline, is an error of the script, not a hang."""
    with pytest.raises(RuntimeError, match="has no deadline"):
        virtual.drive(walk(made(), 0.0), lambda s, now: [])


def test_virtual_time_drops_what_a_cancelled_leg_says():
    """Mail of a leg that was cancelled does not reach the walk."""
    known = made((EDGE, CLOUD, Target("late", "cloud")), hedge_after=0.0)
    seen = []

    def steps():
        inner = walk(known, 0.0)
        reply = None
        while True:
            try:
                effect = inner.send(reply)
            except StopIteration as end:
                yield Wait(50.0)
                return end.value
            reply = yield effect
            seen.append(reply)

    outcome, now = virtual.drive(steps(), lambda s, now: [Done(s.leg, said(0.9), now + 1 + s.leg)])
    assert outcome.leg == 0
    assert now == 50.0
    assert [e.leg for e in seen if isinstance(e, Done)] == [0]


# ------------------------------------------------------------------------------------------- stopping what is under way
def test_blocking_stops_every_leg_when_it_is_interrupted():
    """Whatever ends the driver early, Ctrl-C too, stops the legs that run."""
    stopped = []

    def begin(start, send):
        if start.leg == 1:
            raise KeyboardInterrupt
        return lambda: stopped.append(start.leg)

    with pytest.raises(KeyboardInterrupt):
        blocking.drive(walk(made(hedge_after=0.0), monotonic()), begin)
    assert stopped == [0]


def test_asyncio_stops_every_leg_when_its_task_is_cancelled():
    """Cancelling the task stops the legs, in the middle of a wait with an alarm or without."""

    async def main(deadline_s):
        stopped, begun = [], asyncio.Event()

        def begin(start, send):
            begun.set()
            return lambda: stopped.append(start.leg)

        task = asyncio.create_task(tasks.drive(walk(made(deadline_s=deadline_s), monotonic()), begin))
        await begun.wait()
        await asyncio.sleep(0)  # one turn of the loop: the driver reaches its wait
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stopped

    assert asyncio.run(main(INF)) == [0]
    assert asyncio.run(main(60.0)) == [0]


@pytest.mark.parametrize("deadline_s", [INF, 60.0])
def test_asyncio_is_not_fooled_by_a_stale_wake(deadline_s):
    """Mail that was read before its wake-up came does not pass for the next event, nor for the deadline."""

    async def main():
        loop = asyncio.get_running_loop()

        def begin(start, send):
            if start.leg == 1:
                send(Done(0, said(0.1), monotonic()))  # read at once; its wake-up comes while the cloud is waited for
                later = Done(1, said(None), monotonic())
                loop.call_soon(loop.call_soon, loop.call_soon, loop.call_soon, send, later)
            return lambda: None

        return await tasks.drive(walk(made(hedge_after=0.0, deadline_s=deadline_s), monotonic()), begin)

    assert asyncio.run(main()).leg == 1


def test_late_mail_to_a_closed_loop_is_dropped():
    """A leg that answers after the loop has gone disturbs nobody."""
    kept = []

    async def main():
        def begin(start, send):
            kept.append(send)
            return lambda: None

        return await tasks.drive(walk(made(deadline_s=0.01), monotonic()), begin)

    assert asyncio.run(main()).leg is None
    kept[0](Done(0, said(1.0), 0.0))
