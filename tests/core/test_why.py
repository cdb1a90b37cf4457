"""Reason codes, one for each way in which a walk may end, and the times of who answered."""

from __future__ import annotations

import pytest

from edgeroute import BadInput, DeadlineExceeded, Held, NoAnswer, Prediction, Refused, Unreachable
from edgeroute.core.plan import Facts, Plan, Unsure, plan
from edgeroute.core.policy_egress_and_options import Policy, Rules, Target
from edgeroute.core.reason_text_and_trace_record import CODES, CUT, Took, error_code, reason_code, took, truncated
from edgeroute.core.walk import Mark, Outcome
from edgeroute.errors import Unfit

PAIR = (Target("edge", "edge", 0.85), Target("cloud", "cloud"))
START = (("start", 0, 0.0), ("start", 1, 0.25))


def made(**policy) -> Plan:
    result = plan(Policy(**policy), PAIR, Facts())
    assert isinstance(result, Plan)
    return result


def ended(leg, *marks, accepted=True) -> Outcome:
    log = [Mark(*mark) for mark in marks]
    answer = None if leg is None else Prediction("v", 0.9, None)
    return Outcome(leg, answer, accepted, log, 0.0, 1.0)


@pytest.mark.parametrize(
    ("code", "policy", "leg", "marks"),
    [
        ("confident", {}, 0, [START[0], ("accepted", 0, 0.5, 0.9)]),
        ("confident", {}, 0, [START[0], ("limit", 0, 0.5, 0.8), ("accepted", 0, 0.5, 0.9)]),
        ("confident", {}, 0, [*START, ("accepted", 0, 0.5, 0.9), ("cancelled", 1, 0.5)]),
        ("stays", {"mode": "only_edge"}, 0, [START[0], ("accepted", 0, 0.5, 0.1)]),
        ("stays", {"rules": Rules(never_leave=("x",), default_class="x")}, 0, [START[0], ("accepted", 0, 0.5, 0.1)]),
        ("first", {"mode": "only_cloud"}, 0, [START[0], ("accepted", 0, 0.5)]),
        ("first", {"mode": "prefer_cloud"}, 0, [*START, ("kept", 1, 0.4, 0.9), ("accepted", 0, 0.5)]),
        ("below", {}, 1, [START[0], ("below", 0, 0.2, 0.1), START[1], ("accepted", 1, 0.5)]),
        ("faster", {"hedge_after": 0.25}, 1, [*START, ("accepted", 1, 0.5), ("cancelled", 0, 0.5)]),
        ("failed", {}, 1, [START[0], ("failed", 0, 0.2, RuntimeError()), START[1], ("accepted", 1, 0.5)]),
        ("context", {}, 1, [START[0], ("failed", 0, 0.2, Unfit("long", code="context")), START[1], ("accepted", 1, 0.5)]),
    ],
)  # fmt: skip
def test_accepted_answers(code, policy, leg, marks):
    """Why this target, and not the one before it."""
    assert reason_code(made(**policy), ended(leg, *marks)) == code
    assert code in CODES


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("deadline", ("timeout", 1, 1.0)),
        ("breaker", ("failed", 1, 0.5, Held("away", code="breaker"))),
        ("refused", ("failed", 1, 0.5, Refused("no", status=500))),
        ("unreachable", ("failed", 1, 0.5, Unreachable("gone"))),
        ("failed", ("failed", 1, 0.5, OSError())),
    ],
)
def test_degraded_answers(code, last):
    """What came of the target that was to answer."""
    marks = [START[0], ("below", 0, 0.2, 0.1), START[1], last]
    assert reason_code(made(), ended(0, *marks, accepted=False)) == code


def test_a_degraded_answer_of_whom_nobody_else_was_asked():
    """The cloud is busy with runs that were given up; or there was nobody."""
    marks = [START[0], ("below", 0, 0.2, 0.1)]
    assert reason_code(made()._replace(skipped=("cloud",)), ended(0, *marks, accepted=False)) == "busy"
    assert reason_code(made(), ended(0, *marks, accepted=False)) == "below"


def test_a_score_of_the_input():
    """The edge was not asked first; if it answers all the same, that is what counts."""
    unsure = made(mode="prefer_cloud")._replace(unsure=(Unsure(made().legs[0], 0.2),))
    assert reason_code(unsure, ended(0, START[0], ("accepted", 0, 0.5))) == "input"
    alone = made(mode="only_edge")._replace(unsure=unsure.unsure)
    assert reason_code(alone, ended(0, START[0], ("accepted", 0, 0.5))) == "stays"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("bad_input", BadInput("no")),
        ("deadline", DeadlineExceeded("late", {"cloud": OSError()})),
        ("timeout", TimeoutError()),
        ("breaker", NoAnswer("none", {"edge": OSError(), "cloud": Held("away", code="breaker")})),
        ("error", NoAnswer("none", {"edge": RuntimeError()})),
        ("error", NoAnswer("none")),
        ("error", None),
    ],
)
def test_errors(code, error):
    """The code of the last target's failure."""
    assert error_code(error) == code


def test_codes_are_words():
    """None is empty: a label without a value is none."""
    assert "" not in CODES
    assert {"breaker", "usd_per_day", "refused", "confident"} <= CODES
    assert all(code.isidentifier() for code in CODES)


def test_times():
    """From each start to its end, accepted or not; a target that failed has none."""
    marks = [START[0], ("below", 0, 0.2, 0.1), START[1], ("accepted", 1, 0.5)]
    assert took(made(), ended(1, *marks)) == (Took("edge", "edge", 0.2), Took("cloud", "cloud", 0.25))
    assert took(made(), ended(0, START[0], ("accepted", 0, 0.5, 0.9))) == (Took("edge", "edge", 0.5),)
    assert took(made(), ended(0, START[0], ("failed", 0, 0.2, OSError()), accepted=False)) == ()


@pytest.mark.parametrize(("finish", "why"), [("stop", ""), ("Length", "length"), ("as I please", "other"), (7, ""), (None, CUT)])
def test_why_a_text_ended(finish, why):
    """A server's own word for it is not quoted; what is no word counts as a regular end."""
    assert truncated({"choices": [{"finish_reason": finish}]}) == why
    assert truncated({"choices": [{}]}) == truncated({"choices": []}) == truncated("text") == ""
