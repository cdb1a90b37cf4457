"""Answers in pieces: who is heard, when, and what happens to whoever does not begin."""

from __future__ import annotations

import asyncio
import pickle
from itertools import pairwise
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import Piece, Prediction, Restart
from edgeroute.core.plan import Facts, Plan, plan
from edgeroute.core.policy_egress_and_options import INF, Policy, Target
from edgeroute.core.reason_text_and_trace_record import broken, reason, reason_code
from edgeroute.core.stream_walk import FirstTokenLate, StreamWalk, join_result, one_piece, read_pieces
from edgeroute.core.walk import Cancel, Delta, Done, Elapsed, Emit, Failed, Leave, Malformed, Start, Wait
from edgeroute.router.drivers import asyncio_task as tasks
from edgeroute.router.drivers import blocking
from edgeroute.tools import walk_driver_in_virtual_time as virtual

EDGE, CLOUD = Target("edge", "edge", 0.85), Target("cloud", "cloud")


def made(targets=(EDGE, CLOUD), facts=None, **policy) -> Plan:
    result = plan(Policy(**policy), targets, facts or Facts())
    assert isinstance(result, Plan)
    return result


def run(known, happens, first_s=INF, restart=False):
    """happens: leg name -> [(seconds after its start, what)]. -> outcome, what was heard.

    What: a piece, (a piece, the confidence that is known with it), the last confidence in a list, or an error.
    """
    outcome, heard, _ = watched(known, happens, first_s, False, restart)
    return outcome, [(name, piece) for name, piece, _ in heard]


def watched(known, happens, first_s, keep, restart):
    """-> outcome, what was heard, with its time, and the effects."""
    heard, effects = [], []

    def script(start, now):
        for after, what in happens[known.legs[start.leg].name]:
            at = now + after
            if isinstance(what, str | tuple):
                piece, sure = what if isinstance(what, tuple) else (what, None)
                yield Delta(start.leg, piece, at, sure)
            elif isinstance(what, list):
                yield Done(start.leg, Prediction("whole", *what, None), at)
            else:
                yield Failed(start.leg, what, at, isinstance(what, ValueError))

    walk = StreamWalk(known, 0.0, first_s, keep, restart).steps()

    def listening():
        reply = None
        while True:
            try:
                effect = walk.send(reply)
            except StopIteration as end:
                return end.value
            effects.append(effect)
            reply = yield effect
            if type(effect) is Emit:
                heard.append((known.legs[effect.leg].name, effect.prediction.value, reply.at))

    return virtual.drive(listening(), script)[0], heard, effects


def marks(outcome):
    return [(what, leg) for what, leg, _, _ in outcome.log]


def test_a_sure_edge_is_heard_once_it_is_known_to_be_sure():
    """What has a threshold is judged whole; then its pieces come, and nobody else's."""
    outcome, heard = run(made(), {"edge": [(0.1, "a"), (0.2, "b"), (0.3, [0.9])]})
    assert heard == [("edge", "a"), ("edge", "b")]
    assert (outcome.leg, outcome.accepted, outcome.ended) == (0, True, 0.3)


def test_an_unsure_edge_is_not_heard():
    """The cloud's pieces come, and none of the edge's."""
    outcome, heard = run(made(), {"edge": [(0.1, "a"), (0.2, [0.1])], "cloud": [(0.1, "x"), (0.2, "y"), (0.3, [None])]})
    assert heard == [("cloud", "x"), ("cloud", "y")]
    assert (outcome.leg, outcome.accepted) == (1, True)


def test_a_cloud_that_does_not_begin_costs_no_more_than_its_time_for_that():
    """After first_token the edge's answer, which was held back, is given; the reason says why."""
    known = made()
    outcome, heard = run(known, {"edge": [(0.1, "a"), (0.2, [0.1])], "cloud": [(9.0, "x")]}, first_s=0.5)
    assert heard == [("edge", "a")]
    assert (outcome.leg, outcome.accepted, outcome.ended) == (0, False, 0.7)
    assert reason_code(known, outcome) == "timeout"
    assert "500" in str(outcome.log[-1].detail)
    assert isinstance(outcome.log[-1][3], FirstTokenLate)


def test_the_next_cloud_is_asked_when_the_first_does_not_begin():
    """Fail-over by first token."""
    known = made((Target("a", "cloud"), Target("b", "cloud")))
    outcome, heard = run(known, {"a": [], "b": [(0.1, "x"), (0.2, [None])]}, first_s=0.5)
    assert heard == [("b", "x")]
    assert outcome.ended == 0.7


def test_once_it_has_begun_it_may_take_its_time():
    """first_token is for the first piece alone."""
    known = made((Target("a", "cloud"), Target("b", "cloud")))
    _, heard = run(known, {"a": [(0.4, "x"), (5.0, "y"), (6.0, [None])]}, first_s=0.5)
    assert heard == [("a", "x"), ("a", "y")]


def test_a_leg_that_breaks_in_the_middle_is_not_continued_by_another():
    """What was heard stands, degraded."""
    known = made((Target("a", "cloud"), Target("b", "cloud")))
    outcome, heard = run(known, {"a": [(0.1, "x"), (0.2, OSError("cut"))], "b": [(0.0, [None])]})
    assert heard == [("a", "x")]
    assert (outcome.leg, outcome.accepted, outcome.prediction.value) == (0, False, "x")


def test_a_leg_that_breaks_before_it_was_heard_is_followed_by_the_next():
    """Also where it had begun, but was held back for its threshold."""
    _, heard = run(made(), {"edge": [(0.1, "a"), (0.2, OSError("cut"))], "cloud": [(0.1, "x"), (0.2, [None])]})
    assert heard == [("cloud", "x")]


def test_the_deadline_ends_a_stream():
    """What was heard until then stands."""
    known = made((CLOUD,), deadline_s=1.0)
    outcome, heard = run(known, {"cloud": [(0.5, "x"), (1.5, "y")]})
    assert heard == [("cloud", "x")]
    assert (outcome.accepted, outcome.ended, outcome.prediction.value) == (False, 1.0, "x")
    assert marks(outcome) == [("start", 0), ("timeout", 0)]


def test_at_the_deadline_the_edges_answer_is_given():
    """It was below the threshold, and the cloud silent."""
    outcome, heard = run(made(deadline_s=1.0), {"edge": [(0.1, "a"), (0.2, [0.1])], "cloud": []})
    assert heard == [("edge", "a")]
    assert (outcome.leg, outcome.ended) == (0, 1.0)


def test_nothing_begins_at_the_deadline():
    """An edge that ends at the deadline is the last."""
    outcome, _ = run(made(deadline_s=1.0), {"edge": [(1.0, [0.1])]})
    assert marks(outcome) == [("start", 0), ("below", 0)]


def test_preferring_the_cloud_leaves_the_edge_its_time():
    """A cloud that does not begin is left when the edge can still be on time."""
    known = made(mode="prefer_cloud", deadline_s=2.0, facts=Facts(reserves={"edge": 0.5}))
    outcome, heard = run(known, {"cloud": [], "edge": [(0.2, "a"), (0.3, [0.1])]})
    assert heard == [("edge", "a")]
    assert (outcome.accepted, outcome.ended) == (False, 1.8)


@pytest.mark.parametrize(("fatal", "leg"), [(True, None), (False, 1)])
def test_wrong_input_asks_nobody_else(fatal, leg):
    """The caller's fault ends it; another's does not."""
    error = ValueError("shape") if fatal else OSError("gone")
    outcome, _ = run(made(), {"edge": [(0.1, error)], "cloud": [(0.1, "x"), (0.2, [None])]})
    assert outcome.leg == leg


def test_nobody_answers():
    """All fail: there is no answer, and nothing is heard."""
    outcome, heard = run(made(), {"edge": [(0.1, OSError("a"))], "cloud": [(0.1, OSError("b"))]})
    assert (outcome.leg, heard) == (None, [])


times = st.integers(0, 20).map(lambda n: n / 10)
speech = st.lists(st.tuples(times, st.sampled_from("abc")), max_size=3)
ends = st.one_of(st.none(), st.tuples(times, st.one_of(st.just(OSError("x")), st.sampled_from([[0.9], [0.1], [None]]))))
sure = st.dictionaries(st.integers(0, 2), st.sampled_from([0.9, 0.1]), max_size=3)
"""With which piece the answer's confidence is said, and what it is: the first counts."""
times_s = st.one_of(st.just(INF), times)


@given(st.lists(st.tuples(speech, ends, sure), min_size=4, max_size=4), times.filter(bool),
       st.one_of(st.just(INF), times.filter(bool)), st.sampled_from(["prefer_edge", "prefer_cloud", "only_edge"]), times_s,
       st.booleans(), st.sampled_from(["edge", "raise"]), st.booleans())  # fmt: skip
def test_words_are_never_mixed(legs, deadline, first_s, mode, hedge, restart, offline, keep):
    """Whatever happens: what is heard is of one leg alone, in its order, and the outcome is that leg's, by the deadline.

    With `restart`: since the last one. Each leg is decided once, and nobody is left running.
    """
    targets = (EDGE, EDGE._replace(name="large"), Target("a", "cloud"), Target("b", "cloud"))
    known = made(targets, mode=mode, deadline_s=deadline, hedge_after=hedge, offline=offline)
    happens = {}
    for target, (said, end, early) in zip(("edge", "large", "a", "b"), legs, strict=True):
        inorder: list = sorted(said, key=lambda s: s[0])
        for k, confidence in early.items():
            if k < len(inorder):
                at, piece = inorder[k]
                inorder[k] = at, (piece, confidence)
        happens[target] = [*inorder, *([(max([end[0], *(at for at, _ in inorder)]), end[1])] if end else [])]
    outcome, heard, effects = watched(known, happens, first_s, keep, restart)
    assert outcome.ended <= deadline
    assert all(at <= deadline for _, _, at in heard), "nothing is shown after the deadline"
    begun = [k for k, (_, piece, _) in enumerate(heard) if type(piece) is Restart]
    assert restart or not begun
    parts = [heard[a:b] for a, b in pairwise([0, *begun, len(heard)])]
    for part in parts:
        names = {name for name, _, _ in part}
        assert len(names) <= 1, "one source at a time"
        if part:
            said = [piece for _, piece, _ in part if type(piece) is not Restart]
            assert said == words(happens[part[0][0]])[: len(said)], "from its beginning, in its order"
    if heard:
        assert known.legs[outcome.leg].name == heard[-1][0]
        assert outcome.leg is not None
    started = [effect.leg for effect in effects if type(effect) is Start]
    assert len(started) == len(set(started)), "nobody is asked twice"
    stopped = {effect.leg for effect in effects if type(effect) in {Cancel, Leave}}
    ended = {leg for kind, leg, _, error in outcome.log if kind in {"accepted", "kept"} or (kind == "failed" and not late(error))}
    ended |= {leg for kind, leg, _, _ in outcome.log if kind == "below"} - {
        leg for kind, leg, *_ in outcome.log if kind == "decided"
    }
    assert set(started) - ended - stopped == set(), "whoever is not needed any more is stopped"
    for leg in started:
        assert sum(mark.leg == leg and mark.kind == "decided" for mark in outcome.log) <= 1, "it is decided once"
        assert sum(mark.leg == leg and mark.kind in {"below", "accepted"} for mark in outcome.log) <= 1
    done = [at for at, what in happens["edge"] if isinstance(what, list)]
    if mode != "prefer_cloud" and done and done[0] <= deadline:
        assert outcome.leg is not None, "an edge answer that was there in time is not lost, whenever it began"


def late(error):
    return isinstance(error, FirstTokenLate)


def words(happens):
    """What a leg says."""
    return [what[0] if isinstance(what, tuple) else what for _, what in happens if isinstance(what, str | tuple)]


def test_a_sure_edge_is_heard_from_the_decision_on():
    """Its held pieces at once, further ones as they come; that its confidence falls later changes nothing."""
    happens = {"edge": [(0.1, "a"), (0.2, ("b", 0.9)), (0.5, "c"), (0.9, [0.1])], "cloud": []}
    outcome, heard, _ = watched(made(), happens, INF, False, False)
    assert heard == [("edge", "a", 0.2), ("edge", "b", 0.2), ("edge", "c", 0.5)]
    assert (outcome.leg, outcome.accepted, outcome.ended) == (0, True, 0.9)
    assert marks(outcome) == [("start", 0), ("decided", 0), ("accepted", 0)]


def test_an_unsure_edge_is_known_from_the_decision_on():
    """The cloud is asked at once. The edge goes on until the cloud's first piece; that its confidence rises changes nothing."""
    happens = {"edge": [(0.1, ("a", 0.1)), (0.3, "b"), (2.0, [0.9])], "cloud": [(0.5, "x"), (0.9, [None])]}
    outcome, heard, effects = watched(made(), happens, INF, False, False)
    assert heard == [("cloud", "x", 0.6)]
    assert (outcome.leg, outcome.accepted, outcome.ended) == (1, True, 1.0)
    assert Cancel(0) in effects
    assert marks(outcome) == [("start", 0), ("decided", 0), ("below", 0), ("start", 1), ("cancelled", 0), ("accepted", 1)]
    assert reason_code(made(), outcome) == "below"
    assert [mark.detail for mark in outcome.log if mark.kind == "below"] == [0.1]
    happens["edge"][1:] = [(0.3, [0.9])]
    assert watched(made(), happens, INF, False, False)[1] == [("cloud", "x", 0.6)]


@pytest.mark.parametrize("cloud", [[(0.1, OSError("down"))], []])
def test_the_edge_that_went_on_stands_if_the_cloud_fails(cloud):
    """Or does not begin in time: what it has is shown at once, and what follows as it comes."""
    happens = {"edge": [(0.1, ("a", 0.1)), (0.3, "b"), (2.0, "c"), (2.1, [0.1])], "cloud": cloud}
    outcome, heard, _ = watched(made(), happens, 0.5, False, False)
    at = 0.2 if cloud else 0.6
    assert heard == [("edge", "a", at), ("edge", "b", 0.3 if cloud else at), ("edge", "c", 2.0)]
    assert (outcome.leg, outcome.accepted, outcome.prediction.value) == (0, False, "whole")
    happens["edge"][-1] = (2.1, OSError("broke off"))
    outcome, heard = run(made(), happens, 0.5)
    assert (outcome.leg, outcome.accepted, outcome.prediction.value) == (0, False, "abc"), "a part"


@pytest.mark.parametrize("sure", [0.1, None], ids=["unsure", "undecided"])
@pytest.mark.parametrize("cloud", [[(0.0, OSError("down"))], [(2.0, OSError("down"))], []], ids=["at once", "later", "never"])
def test_what_came_of_an_edge_that_breaks_off_stands_if_the_cloud_fails(cloud, sure):
    """Whichever of them fails first; not where the offline rule has something else."""
    happens = {"edge": [(0.1, ("a", sure)), (0.3, "b"), (0.4, OSError("broke off"))], "cloud": cloud}
    outcome, heard = run(made(deadline_s=5.0), happens)
    assert heard == [("edge", "a"), ("edge", "b")]
    assert (outcome.leg, outcome.accepted, outcome.prediction.value) == (0, False, "ab")
    assert broken(outcome)
    outcome, heard = run(made(deadline_s=5.0, offline="raise"), happens)
    assert (outcome.leg, heard) == (None, [])


def test_a_cloud_that_was_asked_early_is_heard_from_the_decision_on():
    """Hedged: it is held back, and shown at once if the edge is not sure; else it is cancelled."""
    known = made(hedge_after=0.0)
    cloud = [(0.1, "x"), (0.2, "y"), (2.0, "z"), (2.1, [None])]
    happens = {"edge": [(0.4, ("a", 0.1)), (3.0, [0.1])], "cloud": cloud}
    outcome, heard, effects = watched(known, happens, INF, False, False)
    assert heard == [("cloud", "x", 0.4), ("cloud", "y", 0.4), ("cloud", "z", 2.0)]
    assert (outcome.leg, Cancel(0) in effects) == (1, True)
    happens["edge"] = [(0.4, ("a", 0.9)), (3.0, [0.9])]
    outcome, heard, effects = watched(known, happens, INF, False, False)
    assert heard == [("edge", "a", 0.4)]
    assert (outcome.leg, effects.count(Cancel(1))) == (0, 1)
    happens = {"edge": [(0.4, ("a", 0.1)), (3.0, [0.1])], "cloud": [(0.1, "x"), (0.3, [None])]}
    outcome, heard, _ = watched(known, happens, INF, False, False)
    assert (heard, outcome.ended) == ([("cloud", "x", 0.3)], 0.3), "a whole answer need not wait for a decision"


def test_two_clouds_that_were_asked_the_first_to_speak_is_heard():
    """The other is cancelled."""
    known = made((Target("a", "cloud"), Target("b", "cloud")), hedge_after=0.2)
    outcome, heard, effects = watched(known, {"a": [(0.9, "x")], "b": [(0.1, "y"), (0.4, [None])]}, INF, False, False)
    assert (heard, Cancel(0) in effects) == ([("b", "y", pytest.approx(0.3))], True)
    assert outcome.leg == 1


def test_a_hedged_standby_stands_if_the_cloud_fails():
    """It was asked beside it, and what it has is shown."""
    known = made(mode="prefer_cloud", hedge_after=0.2)
    happens = {"cloud": [(0.9, OSError("down"))], "edge": [(0.1, "a"), (2.0, "b"), (2.1, [0.1])]}
    outcome, heard, _ = watched(known, happens, INF, False, False)
    assert heard == [("edge", "a", 0.9), ("edge", "b", pytest.approx(2.2))]
    assert (known.legs[outcome.leg].name, outcome.accepted) == ("edge", False)


def test_a_hedge_past_the_standbys_time_takes_none_of_it():
    """The edge is asked once it has to be, as without a hedge."""
    known = made(mode="prefer_cloud", hedge_after=9.0, deadline_s=2.0, facts=Facts(reserves={"edge": 0.5}))
    outcome, heard = run(known, {"cloud": [], "edge": [(0.2, "a"), (0.3, [0.1])]})
    assert (heard, outcome.ended) == ([("edge", "a")], 1.8)


def test_with_restart_an_edge_is_shown_while_it_is_judged():
    """Until the cloud speaks, which begins anew."""
    happens = {
        "edge": [(0.1, "a"), (0.2, ("b", 0.1)), (0.5, "c"), (3.0, [0.1])],
        "cloud": [(0.4, "x"), (0.9, "y"), (1.0, [None])],
    }
    outcome, heard, effects = watched(made(), happens, INF, False, True)
    assert [(piece, at) for _, piece, at in heard] == [
        ("a", 0.1), ("b", 0.2), ("c", 0.5), ("cloud", pytest.approx(0.6)), ("x", pytest.approx(0.6)), ("y", pytest.approx(1.1)),
    ]  # fmt: skip
    assert type(heard[3][1]) is Restart
    assert (outcome.leg, outcome.accepted, effects[-1]) == (1, True, Cancel(0))


def test_with_restart_an_edge_that_is_shown_is_not_begun_anew_when_the_cloud_fails():
    """It is the only leg left, and goes on."""
    happens = {"edge": [(0.1, "a"), (0.3, "b"), (0.4, [0.1])], "cloud": [(0.2, OSError("away"))]}
    outcome, heard = run(made(hedge_after=0.0), happens, restart=True)
    assert heard == [("edge", "a"), ("edge", "b")]
    assert (outcome.leg, outcome.accepted) == (0, False)


@pytest.mark.parametrize("ends", [(0.3, [0.1]), (3.0, [0.1])])
def test_with_restart_a_cloud_that_breaks_off_gives_way_to_the_edge(ends):
    """Its answer, or what it has of it so far, from the beginning."""
    happens = {"edge": [(0.1, ("a", 0.1)), (0.2, "b"), ends], "cloud": [(0.4, "x"), (0.9, OSError("cut"))]}
    outcome, heard = run(made(), happens, restart=True)
    assert [piece for _, piece in heard] == ["a", "b", "cloud", "x", "edge", "a", "b"]
    assert (outcome.leg, outcome.accepted, outcome.prediction.value) == (0, False, "whole")
    outcome, heard = run(made(deadline_s=0.8), happens, restart=True)
    assert (outcome.leg, outcome.ended) == (0 if ends[0] < 1 else 1, 0.8), "at the deadline the whole answer, if there is one"


def test_a_leg_with_thresholds_of_its_answers_is_judged_whole():
    """Which of them applies is not known before."""
    known = made((EDGE._replace(thresholds={"whole": 0.5}), CLOUD))
    outcome, heard, _ = watched(known, {"edge": [(0.1, ("a", 0.1)), (0.5, [0.6])], "cloud": []}, INF, False, False)
    assert heard == [("edge", "a", 0.5)]
    assert outcome.accepted


def test_a_leg_that_goes_on_past_the_deadline_is_not_heard():
    """Also where its pieces wait already, as a reader was slow."""
    steps = StreamWalk(made((CLOUD,), deadline_s=1.0), 0.0).steps()
    assert [next(steps), steps.send(None)] == [Start(0), Wait(1.0)]
    steps.send(Delta(0, "x", 0.5))
    assert steps.send(Elapsed(3.0)) == Wait(1.0)
    assert steps.send(Delta(0, "y", 1.5)) == Cancel(0)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_what_a_stopped_leg_still_says_is_not_taken_for_the_next_ones(kind):
    """Its words come while the next leg is listened to, and are dropped: two legs are never mixed."""
    known = made((CLOUD, CLOUD._replace(name="other")), deadline_s=60.0)

    def begin(start, send):
        def speak(leg, words):
            for word in words:
                send(Delta(leg, word, monotonic()))
            send(Done(leg, Prediction("".join(words), None, None), monotonic()))

        if start.leg == 1:
            speak(0, ["late ", "words"])
            speak(1, ["its ", "own"])
        return lambda: None

    heard = []
    walk = StreamWalk(known, monotonic(), 0.01).steps()
    if kind == "blocking":
        steps = blocking.stream(walk, begin)
        try:
            while True:
                heard.append(next(steps).prediction.value)
        except StopIteration as end:
            outcome = end.value
    else:
        outcome = asyncio.run(tasks.drive(walk, begin, lambda emit: heard.append(emit.prediction.value)))
    assert (heard, outcome.leg, outcome.prediction.value) == (["its ", "own"], 1, "its own")
    assert [mark.kind for mark in outcome.log] == ["start", "failed", "start", "accepted"]


@pytest.mark.parametrize("keep", [True, False])
def test_a_cloud_that_is_late_is_left_or_cancelled(keep):
    """At the deadline: what it answers may be of use later."""
    steps = StreamWalk(made((CLOUD,), deadline_s=1.0), 0.0, INF, keep).steps()
    assert next(steps) == Start(0)
    assert steps.send(None) == Wait(1.0)
    assert steps.send(Elapsed(1.0)) == (Leave(0) if keep else Cancel(0))


@pytest.mark.parametrize(("offline", "shown"), [("edge", ["edge"]), ("queue", ["edge"]), ("stale", []), ("raise", [])])
def test_what_was_not_accepted_is_shown_where_it_stands(offline, shown):
    """Where the offline rule may put something else in its place, it is not."""
    happens = {"edge": [(0.0, "edge"), (0.1, [0.1])], "cloud": [(0.1, OSError("away"))]}
    outcome, heard = run(made(offline=offline), happens)
    assert (outcome.leg, outcome.accepted) == (0, False)
    assert [piece for _, piece in heard] == shown


def test_a_leg_that_fails_as_it_is_started():
    """A driver may answer `Start` with the leg's event: the next leg is asked, and nothing is waited for."""
    steps = StreamWalk(made(), 0.0).steps()
    assert next(steps) == Start(0)
    assert steps.send(Failed(0, OSError("no"), 0.5)) == Start(1)
    with pytest.raises(StopIteration) as end:
        steps.send(Done(1, Prediction("whole", None, None), 0.6))
    assert (end.value.value.leg, marks(end.value.value)) == (1, [("start", 0), ("failed", 0), ("start", 1), ("accepted", 1)])


@pytest.mark.parametrize(("happens", "targets"), [
    ({"cloud": [(0.1, OSError("down"))], "edge": [(2.0, "a"), (3.0, [0.1])]}, (EDGE, CLOUD)),
    ({"edge": [(2.0, "a"), (3.0, [0.1])]}, (EDGE,)),
])  # fmt: skip
def test_the_last_leg_there_is_may_take_its_time_to_begin(happens, targets):
    """first_token is to call the next one, and there is none: it would give up the only answer."""
    known = made(targets, mode="prefer_cloud" if len(targets) > 1 else "only_edge")
    outcome, heard = run(known, happens, first_s=0.5)
    assert heard == [("edge", "a")]
    assert (known.legs[outcome.leg].name, outcome.accepted) == ("edge", len(targets) == 1)


def test_the_deadline_holds_for_the_last_leg_too():
    """Without a first piece by then there is no answer."""
    outcome, heard = run(made((EDGE,), deadline_s=1.0), {"edge": [(2.0, "a")]}, first_s=0.5)
    assert (outcome.leg, heard, outcome.ended) == (None, [], 1.0)
    assert marks(outcome) == [("start", 0), ("timeout", 0)]


@pytest.mark.parametrize("reserves", [{}, {"edge": 1.9}])
def test_a_standby_of_which_little_is_known_has_half_of_the_time(reserves):
    """Nothing runs beside the cloud, which is not given up before it could begin: it has the other half."""
    known = made(mode="prefer_cloud", deadline_s=2.0, facts=Facts(reserves=reserves))
    outcome, heard = run(known, {"cloud": [], "edge": [(0.2, "a"), (0.3, [0.1])]})
    assert (heard, outcome.ended) == ([("edge", "a")], 1.3)
    _, heard = run(known, {"cloud": [(0.9, "x"), (1.5, [None])], "edge": []})
    assert heard == [("cloud", "x")]


@pytest.mark.parametrize("policy", [{"hedge_after": 0.1}, {"hedge_after": 0.1, "deadline_s": 2.0}])
def test_a_hedge_does_not_end_a_stream(policy):
    """A cloud that begins after that time is listened to, if the edge has not answered."""
    known = made(mode="prefer_cloud", facts=Facts(reserves={"edge": 0.5}), **policy)
    _, heard = run(known, {"cloud": [(0.9, "x"), (1.5, [None])], "edge": []})
    assert heard == [("cloud", "x")]


def test_several_standbys_take_turns():
    """Only what precedes the first of them has its time cut."""
    known = made((EDGE, EDGE._replace(name="other"), CLOUD), mode="prefer_cloud", deadline_s=2.0)
    outcome, heard = run(known, {"cloud": [], "other": [(0.9, OSError("x"))], "edge": [(0.05, "a"), (0.06, [0.1])]})
    assert (heard, outcome.ended) == ([("edge", "a")], 1.96)


@pytest.mark.parametrize(
    ("cloud", "ended"),
    [
        ([(0.1, OSError("down"))], 2.0),  # it fails before the edge has answered
        ([(0.4, OSError("down"))], 2.0),
        ([], 2.0),  # neither begins in time, and the edge answers first
    ],
)
@pytest.mark.parametrize("sure", [0.1, 0.9])
def test_an_edge_that_did_not_begin_in_time_is_listened_to_if_nobody_else_answers(cloud, ended, sure):
    """It runs on while the cloud is asked, and its answer is not lost."""
    known = made(deadline_s=4.0)
    outcome, heard = run(known, {"edge": [(1.0, "a"), (2.0, [sure])], "cloud": cloud}, 0.5)
    assert heard == [("edge", "a")]
    assert (outcome.leg, outcome.accepted, outcome.prediction.confidence) == (0, sure > 0.5, sure)
    assert outcome.ended == ended


def test_an_edge_that_did_not_begin_in_time_is_stopped_once_the_cloud_is_heard():
    """What it says before and after is not mixed in."""
    known = made(deadline_s=4.0)
    happens = {"edge": [(0.55, "a"), (0.58, "b"), (2.0, [0.9])], "cloud": [(0.1, "x"), (2.0, "y"), (2.1, [None])]}
    _, heard = run(known, happens, 0.5)
    assert heard == [("cloud", "x"), ("cloud", "y")]
    steps = StreamWalk(known, 0.0, 0.5).steps()
    assert [next(steps), steps.send(None), steps.send(Elapsed(0.5)), steps.send(None)] == [
        Start(0),
        Wait(0.5),
        Start(1),
        Wait(1.0),
    ]
    assert steps.send(Delta(0, "a", 0.6)) == Wait(1.0)
    assert steps.send(Delta(1, "x", 0.7)) == Cancel(0)


def test_of_two_that_do_not_begin_in_time_the_first_to_answer_counts():
    """The cloud, if the edge is even slower; the edge's answer is used where it was there before the deadline."""
    known = made(deadline_s=4.0)
    _, heard = run(known, {"edge": [(3.0, [0.9])], "cloud": [(1.5, "x"), (2.0, [None])]}, 0.5)
    assert heard == [("cloud", "x")]
    cloud = Target("cloud", "cloud", 0.5)
    known = made((EDGE, cloud, Target("other", "cloud")), deadline_s=4.0)
    outcome, _ = run(known, {"edge": [(0.6, [0.1])], "cloud": [(0.1, "x")], "other": []}, 0.5)
    assert (outcome.leg, outcome.accepted, outcome.ended) == (0, False, 4.0)
    assert [mark.kind for mark in outcome.log] == ["start", "failed", "start", "below", "timeout"]


def test_two_edges_that_do_not_begin_in_time():
    """The one that has answered is listened to; what fails is not, and of what does not end by the deadline there is a part."""
    known = made((EDGE, EDGE._replace(name="other"), CLOUD), deadline_s=4.0)
    away = [(0.1, OSError("down"))]
    outcome, _ = run(known, {"edge": [(0.6, OSError("x"))], "other": [(2.0, [0.9])], "cloud": away}, 0.5)
    assert (outcome.leg, outcome.accepted) == (1, True)
    outcome, _ = run(known, {"edge": [], "other": [(2.0, [0.9])], "cloud": away}, 0.5)
    assert (outcome.leg, outcome.accepted, outcome.ended) == (1, True, 2.5)
    outcome, heard = run(known, {"edge": [(1.5, "a")], "other": [], "cloud": away}, 0.5)
    assert (outcome.leg, heard, outcome.ended, outcome.accepted) == (0, [("edge", "a")], 4.0, False)


def test_what_comes_of_a_leg_that_was_stopped_counts_for_nothing():
    """It was given up for the next one before it spoke."""
    walk = StreamWalk(made((Target("a", "cloud"), Target("b", "cloud"))), 0.0, 0.5).steps()
    events = iter([Elapsed(0.5), Delta(0, "late", 0.6), Delta(1, "x", 0.7), Done(1, Prediction("x", None, None), 0.8)])
    heard, effects = [], []

    def driven():
        reply = None
        while True:
            try:
                effect = walk.send(reply)
            except StopIteration as end:
                return end.value
            effects.append(type(effect))
            reply = next(events) if type(effect) is Wait else None
            if type(effect) is Emit:
                heard.append(effect.prediction.value)
                reply = Elapsed(0.7)

    assert (driven().leg, heard, effects.count(Cancel)) == (1, ["x"], 1)


def test_a_piece_without_text_shows_nothing():
    """It may bring the confidence all the same, as tokens that are none of the text do."""
    outcome, heard = run(made(), {"edge": [(0.1, "a"), (0.2, (Piece("", [-0.01]), 0.9)), (0.3, "b"), (0.4, [0.9])]})
    assert heard == [("edge", "a"), ("edge", "b")]
    assert outcome.accepted


def test_a_piece_is_a_text_in_other_processes_too():
    """With the log-probabilities of its tokens."""
    again = pickle.loads(pickle.dumps(Piece("so", [-0.5, -1])))
    assert (again, again.logprobs, type(again)) == ("so", (-0.5, -1), Piece)


def test_who_was_waited_for_as_there_was_nobody_is_given_up_once_there_is_an_answer():
    """Neither begins in time, so both are waited for; then the edge has an answer, and the cloud still nothing."""
    known = made(hedge_after=0.0)
    outcome, heard, effects = watched(known, {"edge": [(0.8, [0.1])], "cloud": []}, 0.5, False, False)
    assert (outcome.leg, outcome.accepted, outcome.ended, heard) == (0, False, 0.8, [])
    assert Cancel(1) in effects
    assert reason_code(known, outcome) == "timeout"
    assert ["800" in str(mark.detail) for mark in outcome.log if mark.kind == "failed"] == [True]


def test_a_standby_that_is_due_comes_before_the_next_cloud():
    """At the time of hedges the edge is started first: it costs nothing."""
    known = made((EDGE, CLOUD, Target("other", "cloud")), mode="prefer_cloud", hedge_after=0.1, deadline_s=10.0)
    _, heard, effects = watched(
        known, {"cloud": [], "other": [(0.2, "x"), (0.3, [None])], "edge": [(0.5, "a"), (0.6, [0.9])]}, INF, False, False
    )
    started = [known.legs[effect.leg].name for effect in effects if type(effect) is Start]
    assert started == ["cloud", "edge", "other"]
    assert [name for name, _, _ in heard] == ["other"]


def test_a_stream_that_its_caller_leaves_has_what_was_shown():
    """Its text so far; or nothing, of the leg that was started last."""
    raced = StreamWalk(made(hedge_after=0.0), 0.0)
    steps = raced.steps()
    assert [next(steps), steps.send(None), steps.send(None)] == [Start(0), Start(1), Wait(INF)]
    left = raced.outcome_when_left(0.1)
    assert (left.leg, left.prediction.value, left.accepted, left.ended) == (1, "", False, 0.1)
    assert [(kind, leg) for kind, leg in marks(left) if kind == "cancelled"] == [("cancelled", 0), ("cancelled", 1)]
    alone = StreamWalk(made((CLOUD,)), 0.0)
    steps = alone.steps()
    assert [next(steps), steps.send(None)] == [Start(0), Wait(INF)]
    for piece, at in (("so ", 0.2), ("far", 0.3)):
        assert type(steps.send(Delta(0, piece, at))) is Emit
        assert steps.send(Elapsed(at)) == Wait(INF)
    left = alone.outcome_when_left(0.4)
    assert (left.leg, left.prediction.value) == (0, "so far")


def test_a_malformed_answer_stands_if_there_is_no_other():
    """Whole, since none of its pieces was shown."""
    known = made((EDGE, CLOUD))
    outcome, heard = run(
        known, {"edge": [(0.1, "{"), (0.2, [Malformed("json", "it is no JSON")])], "cloud": [(0.1, OSError("away"))]}
    )
    assert (heard, outcome.prediction.value, outcome.accepted) == ([("edge", "whole")], "whole", False)


def test_a_decision_within_an_answer_is_told_once():
    """Not again at its end."""
    known = made()
    outcome, _ = run(known, {"edge": [(0.1, ("a", 0.1)), (0.3, [0.1])], "cloud": [(0.5, "c"), (0.6, [None])]})
    assert [kind for kind, _ in marks(outcome)] == ["start", "decided", "below", "start", "kept", "accepted"]
    assert reason(known, outcome).count("edge") == 1


def pieces_of(*pieces, ends=None):
    yield from pieces
    return ends


@pytest.mark.parametrize(
    ("result", "whole"),
    [
        ("text", "text"),
        (pieces_of("so ", "far", ends=0.5), ("so far", 0.5)),
        (pieces_of(1, "a"), ([1, "a"], None)),
        (pieces_of(Piece("a", [-0.5]), "b", Piece("", [-1])), ("ab", [-0.5, -1])),
    ],
    ids=["no generator", "texts", "others", "tokens"],
)
def test_a_generators_pieces_are_joined(result, whole):
    """With what it returns, or else with the log-probabilities of its tokens."""
    assert join_result(result) == whole


def heard_of(pieces):
    """-> the pieces of a generator, and what it returns."""
    heard = []
    try:
        while True:
            heard.append(next(pieces))
    except StopIteration as end:
        return heard, end.value


def test_pieces_are_read_as_they_come():
    """And the whole is judged at the end; a generator that says so itself is believed."""
    said = Prediction("it", 0.9, None)

    def read(whole):
        return whole if type(whole) is Prediction else Prediction(*whole, None)

    assert heard_of(read_pieces(pieces_of("so ", "far", ends=0.5), read)) == (["so ", "far"], Prediction("so far", 0.5, None))
    assert heard_of(read_pieces(pieces_of("it", ends=said), read)) == (["it"], said)
    assert heard_of(one_piece(said)) == (["it"], said)


def test_pieces_that_are_read_no_further_end():
    """Their generator is closed."""
    ended = []

    def speak():
        try:
            yield "a"
            yield "b"
        finally:
            ended.append("closed")

    spoken = speak()  # which this refers to all the time, so that no collection closes it
    pieces = read_pieces(spoken, lambda whole: whole)
    assert next(pieces) == "a"
    pieces.close()
    assert ended == ["closed"]
