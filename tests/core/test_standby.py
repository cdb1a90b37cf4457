"""How much time a standby edge is left: enough for what hardly ever happens, and no more once it is known."""

from __future__ import annotations

from random import Random

import pytest

from edgeroute import Prediction
from edgeroute.core.performance_estimates_and_encoding_choice import ERROR, HALF_LIFE, Latency
from edgeroute.core.plan import ENOUGH_RUNS, LEAST_S, MANY, RECENT, Facts, Plan, plan, reserve_s
from edgeroute.core.policy_egress_and_options import INF, Policy, Target
from edgeroute.core.walk import Done, for_rows, walk
from edgeroute.tools import walk_driver_in_virtual_time as virtual

EDGE, CLOUD = Target("edge", "edge", 0.85), Target("cloud", "cloud")
CLOSE = 2 * ERROR


def known(*seconds: float) -> Latency:
    sketch = Latency()
    for s in seconds:
        sketch.add(s)
    return sketch


def made(facts: Facts, **policy) -> Plan:
    result = plan(Policy(mode="prefer_cloud", **policy), (EDGE, CLOUD), facts)
    assert isinstance(result, Plan)
    return result


def test_too_few_runs_say_nothing():
    """So the standby starts at once, as if none were known."""
    assert reserve_s(Latency()) == INF
    assert reserve_s(known(*[0.01] * (ENOUGH_RUNS - 1))) == INF
    for facts in (Facts(), Facts(reserves={"edge": INF})):
        assert made(facts, deadline_s=1.0).legs[1].start_by_s == 0.0
    assert (
        made(
            Facts(),
        )
        .legs[1]
        .start_by_s
        == INF
    ), "without a deadline the cloud is waited for"


def test_few_runs_leave_room_for_what_they_do_not_show():
    """Twenty times the median, until a thousand are known; then twice the longest."""
    assert reserve_s(known(*[0.01] * ENOUGH_RUNS)) == pytest.approx(0.2, rel=CLOSE)
    assert reserve_s(known(*[0.01] * (MANY - 1))) == pytest.approx(0.2, rel=CLOSE)
    assert reserve_s(known(*[0.03] * MANY)) == pytest.approx(0.06, rel=CLOSE)


@pytest.mark.parametrize("count", [ENOUGH_RUNS, MANY])
def test_one_long_run_counts_however_rare(count):
    """A quantile would not see it."""
    assert reserve_s(known(*[0.01] * (count - 1), 0.5)) == pytest.approx(1.0, rel=CLOSE)


def test_what_was_long_ago_is_forgotten():
    """A run that was held up once does not keep the standby early for ever; and it counts until then."""
    sketch = known(1.0, *[0.01] * (RECENT - HALF_LIFE))
    assert reserve_s(sketch) == pytest.approx(2.0, rel=CLOSE)
    for _ in range(2 * HALF_LIFE):
        sketch.add(0.01)
    assert reserve_s(sketch) == pytest.approx(LEAST_S)
    assert Latency().longest(RECENT) is None


def test_a_quick_edge_is_left_the_time_to_be_started():
    """However quick: a busy machine takes longer to begin than it to run."""
    assert reserve_s(known(*[1e-5] * MANY)) == LEAST_S


def test_a_batch_has_the_time_of_all_its_rows():
    """What was measured is one input's; a standby without a start, and one at once, stay as they are."""
    facts = Facts(reserves={"edge": 0.1})
    assert for_rows(made(facts, deadline_s=1.0), 4).legs[1].start_by_s == pytest.approx(0.6)
    assert for_rows(made(facts, deadline_s=1.0), 40).legs[1].start_by_s == 0.0
    assert for_rows(made(facts, deadline_s=1.0), 4).legs[0].start_by_s == INF
    assert for_rows(made(facts, hedge_after=0.3), 4).legs[1].start_by_s == 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("usual_s", "deadline_s"), [(0.002, 0.15), (0.012, 0.15), (0.03, 0.5), (0.0005, 0.05)])
@pytest.mark.parametrize("seed", range(3))
def test_no_answer_is_lost_to_a_cloud_that_is_always_late(usual_s, deadline_s, seed):
    """20,000 calls that prefer the cloud, of whose edge runs 1 % take ten times as long: each has the edge's answer in time.

    The edge is measured as a router does it, and the plan follows what was measured, 64 calls later.
    """
    random, sketch, lost = Random(seed), Latency(), 0
    result = made(Facts(), deadline_s=deadline_s)
    for call in range(20_000):
        took_s = usual_s * random.uniform(0.8, 1.2) * (10 if random.random() < 0.01 else 1)

        def script(start, now, took_s=took_s):
            wait_s = took_s if start.leg == 1 else 2 * deadline_s
            yield Done(start.leg, Prediction("edge", 0.9, None), now + wait_s)

        outcome, _ = virtual.drive(walk(result, 0.0), script)
        lost += outcome.leg is None
        sketch.add(took_s)
        if call % 64 == 0:
            result = made(Facts(reserves={"edge": reserve_s(sketch)}), deadline_s=deadline_s)
    assert lost == 0
    if deadline_s > 25 * usual_s:
        assert result.legs[1].start_by_s > deadline_s / 10, "by then a cloud that is quick has the edge spared"
