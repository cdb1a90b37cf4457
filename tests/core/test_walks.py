"""Thousands of random walks in virtual time: what must hold on each, whatever the plan and whatever happens."""

from __future__ import annotations

import copy
import math
import pickle

from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import Prediction
from edgeroute.core.plan import Facts, Plan, plan
from edgeroute.core.policy_egress_and_options import INF, MODES, Policy, Target
from edgeroute.core.walk import Done, Failed, Malformed, acceptable, first_leg_outcome, for_rows, walk, walk_many
from edgeroute.router.drivers import blocking
from edgeroute.tools import walk_driver_in_virtual_time as virtual

BEGUN = 100.0
WALKS = 2000
times = st.integers(0, 60).map(lambda n: n / 10)
confidences = st.one_of(st.none(), st.just(float("nan")), st.integers(0, 10).map(lambda n: n / 10))
happenings = st.one_of(
    st.tuples(st.just("done"), times, confidences),
    st.tuples(st.just("failed"), times, st.booleans()),
    st.tuples(st.just("silent"), st.just(0.0), st.none()),
)


@st.composite
def targets(draw):
    edges, clouds = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    limits = st.one_of(st.none(), st.integers(0, 10).map(lambda n: n / 10))
    made = [Target(f"edge{i}", "edge", draw(limits)) for i in range(edges)]
    made += [Target(f"cloud{i}", "cloud", draw(limits) if draw(st.booleans()) else None) for i in range(clouds)]
    return tuple(made)


@st.composite
def walks(draw):
    policy = Policy(
        mode=draw(st.sampled_from(MODES)),
        deadline_s=draw(st.one_of(st.just(INF), times.filter(bool))),
        hedge_after=draw(st.one_of(st.just(INF), times)),
        no_confidence=draw(st.sampled_from(["defer", "accept"])),
    )
    known = draw(targets())
    reserves = {t.name: draw(times) for t in known if t.side == "edge" and draw(st.booleans())}
    busy = frozenset(draw(st.sets(st.sampled_from([t.name for t in known]))) if known else ())
    facts = Facts(busy, draw(times), reserves)
    made = plan(policy, known, facts)
    happens = [draw(happenings) for _ in known]
    if policy.deadline_s == INF:  # without a deadline a silent leg is waited for, rightly
        happens = [h if h[0] != "silent" else ("failed", 0.0, False) for h in happens]
    return made, happens


def run(made: Plan, happens, walk_it=walk):
    """-> the outcome, and when and how each started leg ended by itself."""
    ends: dict[int, tuple[str, float, object]] = {}

    def script(start, now):
        what, after, detail = happens[made.legs[start.leg].target]
        ends[start.leg] = (what, now + after, detail)
        if what == "done":
            answer = Prediction(made.legs[start.leg].name, detail, None)
            yield Done(start.leg, answer if start.rows is None else [answer] * len(start.rows), now + after)
        elif what == "failed":
            yield Failed(start.leg, RuntimeError("broken"), now + after, fatal=bool(detail))

    outcome, ended = virtual.drive(walk_it(made), script, BEGUN)
    return outcome, ended, ends


@settings(max_examples=draws(WALKS), deadline=None)
@given(walks())
def test_random_walks(case):
    """No answer is lost, none is late, the first acceptable one wins, and every leg is accounted for."""
    made, happens = case
    if not isinstance(made, Plan):
        return  # a refusal: nothing to walk
    outcome, ended, ends = run(made, happens, lambda m: walk(m, BEGUN))
    legs, limit = made.legs, BEGUN + made.deadline_s
    assert outcome.ended == ended <= limit

    marks: dict[int, list[tuple[str, float]]] = {}
    for what, i, at, _ in outcome.log:
        marks.setdefault(i, []).append((what, at))
    fatal = any(what == "failed" and detail and ends[i][1] <= ended for i, (what, _, detail) in ends.items())
    for history in marks.values():
        assert [what for what, _ in history][0] == "start"
        assert len(history) == 2, "started once, ended once"
        assert history[0][1] < limit, "nothing starts at the deadline or after"

    answered = {i for i, h in marks.items() if h[1][0] in {"accepted", "below", "kept"}}
    fine = sorted(
        at
        for i, (what, at, detail) in ends.items()
        if what == "done" and not legs[i].standby and acceptable(legs[i], Prediction("", detail, None)) and at <= limit
    )
    if outcome.accepted:
        assert outcome.ended == fine[0], "the first acceptable answer ends it"
        assert acceptable(legs[outcome.leg], outcome.prediction)
    elif answered:
        assert outcome.leg == max(answered, key=lambda i: legs[i].target), "of what there is, the most capable target's"
        assert not [at for at in fine if at < outcome.ended]
    else:
        assert outcome.leg is None
        assert fatal or ended == limit or {h[1][0] for h in marks.values()} <= {"failed"}

    # never worse than the edge: an edge answer that was there in time is not lost to anything the cloud does
    for i, (what, at, _) in ends.items():
        if legs[i].side == "edge" and what == "done" and (at < ended or (at == ended and not fatal)):
            assert outcome.leg is not None

    started = [marks[i][0][1] for i in range(len(legs)) if i in marks and not legs[i].standby]
    assert started == sorted(started), "targets are tried in order"
    if made.mode == "only_edge":
        assert all(leg.side == "edge" for leg in legs)
    if made.mode == "only_cloud":
        assert all(leg.side == "cloud" for leg in legs)


@settings(max_examples=draws(400), deadline=None)
@given(walks(), st.integers(1, 5))
def test_a_batch_of_equals_goes_the_way_of_one(case, count):
    """Rows to which the same happens end as one input would, and each leg is begun once for all of them.

    A standby has the time of all rows to be left for it.
    """
    made, happens = case
    if not isinstance(made, Plan):
        return
    one, ended, _ = run(made, happens, lambda m: walk(for_rows(m, count), BEGUN))
    many, ended_together, _ = run(made, happens, lambda m: walk_many(m, count, BEGUN))
    assert ended_together == ended
    for outcome in many:
        assert (outcome.leg, outcome.accepted, outcome.ended) == (one.leg, one.accepted, one.ended)
        assert [mark[:3] for mark in outcome.log] == [mark[:3] for mark in one.log]


@settings(max_examples=draws(300), deadline=None)
@given(st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=1, max_size=8), st.integers(1, 9).map(lambda n: n / 10))
def test_a_batch_asks_the_next_target_for_the_deferred_rows_alone(sure, threshold):
    """Of a batch, exactly the rows below the threshold are sent on, in one start, and the answers keep their order."""
    known = (Target("edge", "edge", threshold), Target("cloud", "cloud"))
    made = plan(Policy(), known, Facts())
    asked = []

    def script(start, now):
        asked.append(start)
        name = made.legs[start.leg].name
        yield Done(
            start.leg, [Prediction((name, row), sure[row] if name == "edge" else None, None) for row in start.rows], now + 1
        )

    outcomes, _ = virtual.drive(walk_many(made, len(sure), 0.0), script)
    deferred = tuple(row for row, s in enumerate(sure) if s < threshold)
    assert [start.rows for start in asked] == [tuple(range(len(sure))), deferred][: 1 + bool(deferred)]
    for row, outcome in enumerate(outcomes):
        assert outcome.prediction.value == ("cloud" if row in deferred else "edge", row)


@settings(max_examples=draws(300), deadline=None)
@given(times.filter(bool), times, st.sampled_from(["silent", "failed", "done"]), times)
def test_prefer_cloud_with_a_deadline_has_the_edge_in_reserve(deadline, edge_s, what, cloud_s):
    """With a deadline that leaves the edge its time, there is an answer at the deadline, whatever the cloud does."""
    known = (Target("edge", "edge", 0.5), Target("cloud", "cloud"))
    made = plan(Policy(mode="prefer_cloud", deadline_s=deadline), known, Facts(reserves={"edge": 2 * edge_s} if edge_s else {}))
    outcome, ended, _ = run(made, [("done", edge_s, 0.1), (what, cloud_s, None)], lambda m: walk(m, BEGUN))
    if edge_s <= deadline or (what == "done" and cloud_s <= deadline):
        assert outcome.prediction is not None
    assert ended <= BEGUN + deadline


class Deferred(Exception):
    """The walk has begun another leg, or the first one cannot settle it."""


@settings(max_examples=draws(WALKS), deadline=None)
@given(walks(), confidences, st.booleans())
def test_what_settles_a_walk_at_once_is_what_the_walk_returns(case, confidence, own):
    """The short way of most calls, beside the whole one: the same outcome where there is one, and none where it goes on."""
    made, _ = case
    if not isinstance(made, Plan) or not made.sequential or made.legs[0].permit is not None:
        return
    if own and made.legs[0].threshold is not None:
        legs = (made.legs[0]._replace(thresholds={"value": 0.5}), *made.legs[1:])
        made = made._replace(legs=legs)
    prediction = Prediction("value", confidence, None)

    def first(start):
        if start.leg:
            raise Deferred
        return Done(0, prediction, BEGUN + 1)

    short = first_leg_outcome(made, BEGUN, prediction, BEGUN + 1)
    try:
        whole = blocking.drive_inline(walk(made, BEGUN), first)
    except Deferred:
        assert short is None
    else:
        assert short == (whole if whole.accepted else None)
        again = blocking.drive_inline(walk(made, BEGUN), lambda _: None, Done(0, prediction, BEGUN + 1))
        assert again == whole


@settings(max_examples=draws(WALKS // 8), deadline=None)
@given(walks(), st.data())
def test_a_row_that_fails_alone_goes_its_own_way(case, data):
    """It ends as if it had been asked alone; each leg is started once, for just the rows that need it."""
    made, happens = case
    if not isinstance(made, Plan):
        return
    broken = [data.draw(st.sets(st.integers(0, len(happens) - 1))) if happens else set() for _ in range(3)]
    started, wanted = {}, {}

    def script(start, now):
        assert start.leg not in started
        started[start.leg] = start.rows
        target = made.legs[start.leg].target
        what, after, detail = happens[target]
        if what == "done":
            answer = Prediction(made.legs[start.leg].name, detail, None)
            yield Done(start.leg, [OSError() if target in broken[row] else answer for row in start.rows], now + after)
        elif what == "failed":
            yield Failed(start.leg, RuntimeError("broken"), now + after, fatal=bool(detail))

    outcomes, _ = virtual.drive(walk_many(made, 3, BEGUN), script, BEGUN)
    assert len(outcomes) == 3
    for row, outcome in enumerate(outcomes):
        for mark in outcome.log:
            if mark.kind == "start":
                wanted.setdefault(mark.leg, set()).add(row)
        alone = [("failed", h[1], False) if target in broken[row] and h[0] == "done" else h for target, h in enumerate(happens)]
        one, _, _ = run(made, alone, lambda m: walk(for_rows(m, 3), BEGUN))
        assert (outcome.leg, outcome.accepted, outcome.ended) == (one.leg, one.accepted, one.ended)
        assert [mark[:3] for mark in outcome.log] == [mark[:3] for mark in one.log]
    assert {leg: set(rows) for leg, rows in started.items()} == wanted


def test_a_fault_of_an_answer_outlives_a_copy():
    """Answers are copied, and pass between processes."""
    for same in (copy.deepcopy(Malformed("schema", "no name")), pickle.loads(pickle.dumps(Malformed("schema", "no name")))):
        assert (same.code, same.why) == ("schema", "no name")
        assert math.isnan(same)
