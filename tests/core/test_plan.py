"""Plans that depend on what was measured, and drivers that show what is provisional and leave what is late."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic

import pytest

from edgeroute import Prediction, Rule
from edgeroute.core.performance_estimates_and_encoding_choice import Latency
from edgeroute.core.plan import EARLIER, PARTIAL, Facts, Plan, judged_leg, plan, stays_on_device
from edgeroute.core.policy_egress_and_options import INF, Policy, Target
from edgeroute.core.stream_walk import StreamWalk
from edgeroute.core.walk import Done, Emit, Mark, outcome_when_left, walk
from edgeroute.router.drivers import asyncio_task as tasks
from edgeroute.router.drivers import blocking
from edgeroute.tools import walk_driver_in_virtual_time as virtual

HOT = Rule("heat", "only_edge", enter=80)
LOW, SPARING = Rule("battery", "only_edge", 0.5), Rule("battery", "prefer_edge", 0.5)
EDGE, A, B = Target("edge", "edge", 0.85), Target("a", "cloud"), Target("b", "cloud")


def known(seconds: float, times: int = 100) -> Latency:
    sketch = Latency()
    for _ in range(times):
        sketch.add(seconds)
    return sketch


def made(targets, facts, **policy) -> Plan:
    result = plan(Policy(**policy), targets, facts)
    assert isinstance(result, Plan)
    return result


def names(result: Plan) -> list[str]:
    return [leg.name for leg in result.legs]


def test_the_fastest_cloud_is_asked_first():
    """By its median; one of which nothing is known comes before all others, and ties stay as listed."""
    facts = Facts(latencies={"a": known(0.2), "b": known(0.1)})
    assert names(made((EDGE, A, B), facts, order="fastest")) == ["edge", "b", "a"]
    assert names(made((EDGE, A, B), facts, order="listed")) == ["edge", "a", "b"]
    assert names(made((EDGE, A, B), Facts(latencies={"a": known(0.2)}), order="fastest")) == ["edge", "b", "a"]
    assert names(made((EDGE, A, B), Facts(), order="fastest")) == ["edge", "a", "b"]


def test_a_certificate_confirms_nothing_of_another_arms_cloud():
    """Only the arm's own cloud is asked besides those that are not on trial."""
    edge, other = Target("edge", "edge", 0.85, certified=True), Target("b", "cloud", trial=True)
    result = plan(Policy(), (edge, A, other), Facts(), arm="b")
    assert isinstance(result, Plan)
    assert names(result) == ["edge", "b", "a"]
    assert result.legs[0].label == "uncalibrated: its certificate is for another cloud than b"
    assert names(made((edge, A, other), Facts())) == ["edge", "a"]


def test_a_certificate_of_several_edges_needs_all_of_them():
    """A busy one is spared for the worst: what is certified of all together, or of a later one, is of no use without it."""
    small, edge = (Target(name, "edge", 0.8, label="1 % worse at most", certified=True) for name in ("small", "edge"))
    assert [leg.label for leg in made((small, edge, A), Facts()).legs[:2]] == [small.label, edge.label]
    busy = Facts(busy=frozenset({"small"}))
    labels = {leg.name: leg.label for leg in made((small, edge, A), busy).legs}
    assert labels["edge"] == EARLIER
    together = tuple(one._replace(together=True) for one in (small, edge))
    labels = {leg.name: leg.label for leg in made((*together, A), busy).legs}
    assert labels["edge"] == PARTIAL


def test_a_certificate_holds_where_each_edge_before_has_judged():
    """One that failed, or was late, has not."""
    edge = Target("edge", "edge", 0.85, label="1 % worse at most", certified=True)
    result = made((Target("small", "edge", 0.7), edge, A), Facts())
    assert judged_leg(result, 1, {0}) == result.legs[1]
    assert judged_leg(result, 1, ()).label == EARLIER


def test_a_certificate_is_of_the_files_that_were_loaded():
    """A leg whose model has other ones has a threshold without a guarantee, and its label says why."""
    there = [""]
    edge = Target("edge", "edge", 0.85, label="1 % worse at most", certified=True, moved=lambda: there[0])
    result = made((edge, A), Facts())
    assert judged_leg(result, 0, ()) == result.legs[0]
    there[0] = "another file was loaded"
    leg = judged_leg(result, 0, ())
    assert leg.threshold == result.legs[0].threshold
    assert leg.label == "uncalibrated: another file was loaded"


def test_a_hedge_by_the_edges_own_quantile():
    """p90: once the edge takes longer than nine times of ten; not while too little is known."""
    facts = Facts(latencies={"edge": known(0.01), "a": known(0.1)})
    assert made((EDGE, A), facts, hedge_after="p90").legs[1].hedge_after_s == pytest.approx(0.01, rel=0.05)
    assert made((EDGE, A), Facts(latencies={"edge": known(0.01, 9), "a": known(0.1)}), hedge_after="p90").sequential
    assert made((EDGE, A), Facts(), hedge_after="p90").sequential
    assert made((EDGE,), facts, hedge_after="p90").sequential


def test_an_automatic_hedge_leaves_the_cloud_its_time():
    """auto: the deadline less what the cloud needs; where the edge's answer will do anyway, only if the edge may be late."""
    facts = Facts(latencies={"edge": known(0.01), "a": known(0.1)}, deferral_rate=0.2)
    assert made((EDGE, A), facts, hedge_after="auto", deadline_s=0.3).legs[1].hedge_after_s == pytest.approx(0.2, rel=0.05)
    assert made((EDGE, A), facts, hedge_after="auto").sequential, "without a deadline nothing is known of what time is worth"
    never = facts._replace(deferral_rate=0.0)
    assert made((EDGE, A), never, hedge_after="auto", deadline_s=0.3).legs[1].hedge_after_s == INF
    always = EDGE._replace(threshold=None)
    assert made((always, A), facts, hedge_after="auto", deadline_s=0.3).legs[1].hedge_after_s == INF
    slow = facts._replace(latencies={"edge": known(1.0), "a": known(0.1)})
    assert made((always, A), slow, hedge_after="auto", deadline_s=0.3).legs[1].hedge_after_s == pytest.approx(0.2, rel=0.05)


def test_nothing_is_asked_only_to_be_quicker_where_that_is_not_wanted():
    """Facts against hedging end it, and the steps say so; without a cloud there is nothing to say."""
    facts = Facts(no_hedge="the link is metered")
    result = made((EDGE, A), facts, hedge_after=0.1)
    assert result.sequential
    assert "no hedge: the link is metered" in result.steps
    assert "no hedge" not in " ".join(made((EDGE,), facts, hedge_after=0.1).steps)


# ------------------------------------------------------------------------------------- drivers that emit, and that leave
def script(cloud_s):
    return lambda start, now: [
        Done(start.leg, Prediction(start.leg, [0.1, None][start.leg], None), now + [0.0, cloud_s][start.leg])
    ]


def test_virtual_time_goes_on_while_an_answer_is_shown():
    """Showing takes no time there."""
    outcome, ended = virtual.drive(walk(made((EDGE, A), Facts()), 0.0, True), script(1.0))
    assert (outcome.leg, ended) == (1, 1.0)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_drivers_show_what_is_provisional(kind):
    """Each emitted answer is handed out while the next leg runs; a driver that has nobody to show it to goes on."""
    result, gate = made((EDGE, A), Facts()), threading.Event()

    def begin(start, send):
        if start.leg == 0:
            return Done(0, Prediction("edge", 0.1, None), monotonic())
        threading.Thread(target=lambda: (gate.wait(30), send(Done(1, Prediction("cloud", None, None), monotonic())))).start()
        return lambda: None

    if kind == "blocking":
        steps = blocking.stream(walk(result, monotonic(), True), begin)
        assert next(steps).prediction.value == "edge"
        gate.set()
        with pytest.raises(StopIteration) as end:
            next(steps)
        assert end.value.value.leg == 1
        return

    async def main():
        shown = []
        outcome = await tasks.drive(walk(result, monotonic(), True), begin, lambda emit: (shown.append(emit), gate.set()))
        unseen = await tasks.drive(walk(result, monotonic(), True), begin)
        return shown, outcome.leg, unseen.leg

    shown, *legs = asyncio.run(main())
    assert ([emit.prediction.value for emit in shown], legs) == (["edge"], [1, 1])


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize("keep", [True, False])
def test_drivers_leave_what_is_late_to_run_on(kind, keep):
    """At the deadline a leg is stopped, or left alone if its answer is of use later."""
    result, stopped = made((A,), Facts(), deadline_s=0.01), []

    def begin(start, send):
        return lambda: stopped.append(start.leg)

    steps = walk(result, monotonic(), False, keep)
    outcome = blocking.drive(steps, begin) if kind == "blocking" else asyncio.run(tasks.drive(steps, begin))
    assert [what for what, *_ in outcome.log] == ["start", "timeout"]
    assert stopped == ([] if keep else [0])


@pytest.mark.parametrize(
    ("policy", "facts", "why"),
    [
        (Policy(), Facts(), ""),
        (Policy("only_edge"), Facts(), "only_edge"),
        (Policy(device_rules=(LOW,)), Facts(), ""),
        (Policy(device_rules=(LOW,)), Facts(rules=(LOW,)), "only_edge, battery below 50%"),
        (Policy(device_rules=(LOW._replace(enter=0.4),)), Facts(rules=(LOW,)), ""),
        (Policy(device_rules=(HOT,)), Facts(rules=(HOT,)), "only_edge, heat above 80 C"),
        (Policy("only_edge", device_rules=(SPARING,)), Facts(rules=(SPARING,)), ""),
    ],
)
def test_what_keeps_all_at_home(policy, facts, why):
    """The mode for calls that name none, of the policy or of a rule; the plan of such a call says the same."""
    assert stays_on_device(policy, facts) == why
    made = plan(policy, (EDGE, A), facts)
    assert isinstance(made, Plan)
    assert bool(made.stays) is bool(why)


def test_what_its_caller_leaves_has_what_was_shown():
    """Of the leg that was shown, or else was started last; what still runs is cancelled, and nothing comes of what never began."""
    assert outcome_when_left([], [], 0.0, 1.0) is StreamWalk(made((EDGE, A), Facts()), 0.0).outcome_when_left(1.0) is None
    log = [Mark("start", 0, 0.0), Mark("below", 0, 0.1), Mark("start", 1, 0.1)]
    shown = Prediction("a", 0.4, None)
    outcome = outcome_when_left([*log], [Emit(0, shown, log)], 0.0, 1.0)
    assert (outcome.leg, outcome.prediction, outcome.accepted, outcome.ended) == (0, shown, False, 1.0)
    assert outcome.log == [*log, Mark("cancelled", 1, 1.0)]
    nothing = outcome_when_left([*log], [], 0.0, 1.0)
    assert (nothing.leg, nothing.prediction.value) == (1, None)
