"""Reason codes: why an answer is what it is, as one of few words. For counting; `explain.reason` is for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

from edgeroute.core.codes import ErrorCode, Failure, HeldCode
from edgeroute.core.plan import Plan
from edgeroute.core.policy import Side
from edgeroute.core.walk import Left, Mark, Outcome, new

Own = Literal[
    "confident", "first", "stays", "below", "input", "faster", "failed", "deadline", "busy", "left", "cached", "stale", "error",
]  # fmt: skip
"""Of accepted answers: the edge asked first is confident enough, or always accepted; the cloud is asked first; nothing may
leave; an edge was below its threshold, or would be by the score of the input; a target asked later was faster; one asked before
failed. Of degraded ones: the deadline came; the cloud is busy with runs that were given up. Of streams: the caller has left. Of
errors, also: any other."""
ReasonCode = Own | ErrorCode | HeldCode
CODES: Final = frozenset[str]({*get_args(Own), *get_args(ErrorCode), *get_args(HeldCode)} - {""})
ALONE = 2
"""Marks of a request with a single leg."""


def reason_code(plan: Plan, outcome: Outcome) -> str:
    """The reason code of an answer, one of `CODES`; where a target failed or was not asked, the error's own."""
    log, i = outcome.log, outcome.leg
    if not outcome.accepted or i is None:
        return "left" if type(outcome) is Left else _degraded(plan, log)
    away = plan.legs[i].permit is not None
    if len(log) > ALONE or plan.unsure:  # few
        if plan.unsure and away:
            return "input"
        for mark in log:
            if mark.kind == "below":
                return "below"
            if mark.kind == "failed":
                return _failed(mark)
        if i and any(mark.kind == "cancelled" for mark in log):
            return "faster"
    return "first" if away else "stays" if plan.stays else "confident"


def _degraded(plan: Plan, log: Sequence[Mark]) -> str:
    """Why the best answer there is stands: what came of the last target that was asked and did not answer."""
    for mark in reversed(log):
        if mark.kind == "timeout":
            return "deadline"
        if mark.kind == "failed":
            return _failed(mark)
    return "busy" if plan.skipped else "below"


def _failed(mark: Mark) -> str:
    return Failure.of(mark.detail).code or "failed"


def error_code(error: BaseException | None) -> str:
    """The code of what was raised in place of an answer, one of `CODES`: of several failures that of the last target."""
    errors = getattr(error, "errors", None)
    if isinstance(error, TimeoutError) and errors is not None:
        return "deadline"
    last = [*errors.values()][-1] if errors else error
    return Failure.of(last).code or "error"


class Took(NamedTuple):
    """The time of a target that answered."""

    leg: str
    side: Side
    seconds: float


def took(plan: Plan, outcome: Outcome) -> tuple[Took, ...]:
    """Times of the targets that answered, whether or not their answers were accepted."""
    log, legs = outcome.log, plan.legs
    if outcome.accepted and len(log) == ALONE:  # most
        leg = legs[log[1].leg]
        return (new(Took, (leg.name, "edge" if leg.permit is None else "cloud", log[1].at - log[0].at)),)
    started: dict[int, float] = {}
    found = []
    for kind, i, at, _ in log:
        if kind == "start":
            started[i] = at
        elif kind in ENDS:
            found.append(Took(legs[i].name, legs[i].side, at - started[i]))
    return tuple(found)


ENDS = frozenset({"accepted", "below", "kept"})
