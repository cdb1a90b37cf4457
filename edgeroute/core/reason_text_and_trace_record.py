"""Explanation of an answer: `reason`, one line for people; `trace`, a mapping, and `reason_code`, a word, for programs.

Inputs are in none of them; a text that was cut off, and the times of the targets, are reported too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import edgeroute.core.error_codes_and_texts as codes
from edgeroute.core.plan import Leg, Plan, judged_leg, two_digits
from edgeroute.core.policy_egress_and_options import INF, Side
from edgeroute.core.walk import Left, Malformed, Mark, Outcome, new

# Version of the trace's layout. Version 1 had no codes in the events of failures; 2 had a battery and a heat for rules.
VERSION = 3


def reason(plan: Plan, outcome: Outcome) -> str:
    """Return the route as one line, e.g. `edge 0.41 < 0.85 (uncalibrated); cloud 182 ms`.

    Parts in order: edges judged before their run; each answer, failure and missed deadline; that the caller has left, or, of an
    answer that was not accepted, targets that were skipped as earlier runs of them go on, and whose answer stands; why a text was
    cut off; the device's rules in force.
    """
    started: dict[int, float] = {}
    limits: dict[int, float] = {}
    decided = set[int]()
    parts = [before_run(plan, edge.leg, edge.confidence) for edge in plan.unsure]
    below = below_threshold(outcome.log)
    for kind, i, instant, detail in outcome.log:
        leg = judged_leg(plan, i, below)
        if kind == "start":
            started[i] = instant
        elif kind == "limit":
            limits[i] = detail
        elif kind == "decided":
            decided.add(i)
        elif kind in {"accepted", "below"} or (kind == "kept" and i not in decided):
            parts.append(answer_part(plan, leg, detail, instant - started[i], limits.get(i)))
        elif kind == "failed":
            text = codes.failure_text(detail)
            code = codes.Failure.of(detail).code
            unfit = code in codes.UNFIT or (leg.permit is not None and code == "bad_input")  # the caller's fault
            failure = f"{leg.name} does not take this input: {text}" if unfit else f"{leg.name} failed: {text}"
            parts.append(text if isinstance(detail, codes.Coded) and getattr(detail, "held", False) else failure)
        elif kind == "timeout":
            parts.append(f"{leg.name} not there by the deadline of {plan.deadline_s * 1000:g} ms")
    if type(outcome) is Left:
        parts.append(f"left by its caller after {(outcome.ended - outcome.begun) * 1000:.0f} ms")
    elif not outcome.accepted:
        parts += [f"{name} was not asked: earlier runs of it go on" for name in plan.skipped]
    if outcome.leg is not None and not outcome.accepted and plan.offline != "raise" and type(outcome) is not Left:
        part = "what came of the " if broken(outcome) else "the "
        parts.append(f"so {part}{plan.legs[outcome.leg].name} answer stands")
    why = truncated(outcome.prediction and outcome.prediction.outputs)
    if why and why != CUT:
        parts.append(f"its answer {TRUNCATED.get(why, f'was cut off: {why}')}")
    parts += [f"{rule}: {rule.then}" for rule in plan.rules]
    return "; ".join(parts)


def below_threshold(log: Sequence[Mark]) -> set[int]:
    """Return the legs whose answers were below their thresholds."""
    return {mark.leg for mark in log if mark.kind == "below"}


CUT = "cut"  # result of `truncated` for a text whose end never came
# `finish_reason` of a text that was cut off -> the words for it; other reasons stand for themselves.
TRUNCATED = {"length": "was cut off at the most tokens that it may have", "content_filter": "was cut off by a content filter"}
# Values of `finish_reason`, of any server, of a text that came to its own end.
WHOLE = frozenset(
    {"", "stop", "tool_calls", "function_call", "tool_use", "eos", "eos_token", "end_turn", "stop_sequence", "complete"}
)
# Values of `finish_reason` of a text that did not; others become "other", since a server may write the request's words there.
KNOWN = frozenset({
    *TRUNCATED, "model_length", "max_tokens", "max_output_tokens", "error", "abort", "aborted", "cancelled", "timeout",
    "network_error", "insufficient_system_resource", "safety", "recitation", "blocklist", "prohibited_content", "spii",
    "language", "repetition", "malformed_function_call", "refusal", "pause_turn",
})  # fmt: skip


def truncated(outputs: Any) -> str:
    """Return why a text was cut off, if outputs are those of one, in OpenAI's JSON with a `finish_reason`; empty: it was not.

    "cut": its end never came. "other": for a reason that is not in `KNOWN`. A missing `finish_reason` counts as a regular end.
    """
    choices = outputs.get("choices") if isinstance(outputs, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return ""
    finish_reason = choices[0].get("finish_reason", "stop")
    if finish_reason is None:
        return CUT
    reason = finish_reason.lower() if isinstance(finish_reason, str) else ""
    if reason in WHOLE:
        return ""
    return reason if reason in KNOWN else "other"


def broken(outcome: Outcome) -> bool:
    """Return True if the answer is that of a leg that ended within it."""
    kinds = [mark.kind for mark in outcome.log if mark.leg == outcome.leg]
    return bool(kinds) and kinds[-1] in {"failed", "timeout"}


def answer_part(plan: Plan, leg: Leg, confidence: float | None, took_s: float, threshold: float | None = None) -> str:
    """Return the part of a reason about one leg's answer. `threshold`: that of this answer; None: that of the leg.

    The confidence against the threshold, with the threshold's label, or how it counts without one, on standby, or malformed; of a
    cloud that needs no threshold only its time.
    """
    if type(confidence) is Malformed:
        return f"{leg.name} failed its check ({confidence.why})"
    known = confidence is not None and confidence == confidence  # noqa: PLR0124 - NaN, without an import
    sure = two_digits(confidence) if known else "without confidence"  # type: ignore[arg-type]
    if why := getattr(confidence, "why", ""):
        sure += f" ({why})"
    if leg.side == "cloud" and (leg.threshold is None or leg.final):
        return f"{leg.name} {took_s * 1000:.0f} ms"
    if leg.standby:
        return f"{leg.name} {sure}, on standby"
    if leg.threshold is None:
        return f"{leg.name} {sure}, always accepted"
    if confidence is None or not known:
        rule = plan.stays if leg.final else "accepted by policy" if leg.accept_unsure else "deferred by policy"
        return f"{leg.name} {sure}" + (f", {rule}" if rule else "")
    threshold = leg.threshold if threshold is None else threshold
    sign, limit = ">=" if confidence >= threshold != INF else "<", two_digits(threshold)
    if sign == "<" and sure == limit:  # more digits: 0.71 < 0.71 would explain nothing
        sure, limit = f"{confidence:.6g}", f"{threshold:.6g}"
    text = f"{leg.name} {sure} {sign} {limit} ({leg.label})"
    if leg.final and sign == "<":
        text += f", {plan.stays}" if plan.stays else ", and there is nothing else to ask"
    return text


def before_run(plan: Plan, leg: Leg, confidence: float | None) -> str:
    """Return the part of a reason about an edge that was judged by the input alone."""
    return answer_part(plan, leg, confidence, 0.0) + ", before it ran"


def trace(plan: Plan, outcome: Outcome, identity: str, costs: Mapping[int, dict[str, object]] | None = None) -> dict[str, Any]:
    """Return the full decision record, ready for `json.dumps`, without inputs: mode, facts, legs, events, and who answered.

    Instants are seconds from the beginning. `costs`: leg number -> bytes sent and received, and cost.
    """
    facts, below = plan.facts, below_threshold(outcome.log)
    started = {mark.leg for mark in outcome.log}
    legs = [judged_leg(plan, i, below) if i in started else leg for i, leg in enumerate(plan.legs)]
    return {
        "version": VERSION,
        "id": identity,
        "mode": plan.mode,
        "deadline_s": None if plan.deadline_s == INF else plan.deadline_s,
        "data_class": plan.data_class,
        "offline": plan.offline,
        "stays": plan.stays,
        **({"arm": plan.arm} if plan.arm else {}),
        "facts": {
            "busy": sorted(facts.busy),
            "edge_p99_s": round(facts.edge_s, 6),
            "no_hedge": facts.no_hedge,
            "kept": facts.kept,
            "deferral_rate": round(facts.deferral_rate, 4),
            "rules": [{**rule._asdict(), "leave": rule.ends, "applied": rule in plan.rules} for rule in facts.rules],
        },
        "plan": [
            {
                "leg": leg.name,
                "side": leg.side,
                "threshold": finite(leg.threshold),
                "label": leg.label,
                "hedge_after_s": None if leg.hedge_after_s == INF else leg.hedge_after_s,
                "rule": None if leg.permit is None else leg.permit.rule,
            }
            for leg in legs
        ],
        "events": [
            {"at_s": round(mark.at - outcome.begun, 6), "leg": plan.legs[mark.leg].name, "what": mark.kind}
            | _detail(mark)
            | ({} if mark.kind == "start" or costs is None else costs.get(mark.leg, {}))
            for mark in outcome.log
        ],
        "answered_by": None if outcome.leg is None else plan.legs[outcome.leg].name,
        "accepted": outcome.accepted,
        "latency_s": round(outcome.ended - outcome.begun, 6),
    }


def _detail(mark: Mark) -> dict[str, object]:
    """Return the details of an event: its confidence or threshold, or a failure's text and codes; empty fields are left out."""
    detail = mark.detail
    if detail is None:
        return {}
    if mark.kind != "failed":
        check = {"check": detail.code} if type(detail) is Malformed else {}
        return {"threshold" if mark.kind == "limit" else "confidence": finite(detail), **check}
    message = f": {codes.error_message(detail)}" if isinstance(detail, codes.Coded) and not detail.foreign else ""
    return {"error": codes.class_name(detail) + message} | {
        name: part for name, part in codes.Failure.of(detail)._asdict().items() if part
    }


def finite(value: Any) -> Any:
    """Return a number as JSON has it: NaN (no confidence) becomes None, infinities become text."""
    if value is None or value != value:  # noqa: PLR0124 - NaN, without an import
        return None
    return str(value) if value in {INF, -INF} else value


# Reason codes: one of few words, for counting; `reason` is for people.

# Reason codes besides those of errors. Of accepted answers: the edge asked first is confident enough, or always accepted; the
# cloud is asked first; nothing may leave; an edge was below its threshold, or failed its check, or would be below by the score of
# the input; a target asked later was faster; one asked before failed. Of degraded ones: the deadline came; the cloud is busy with
# runs that were given up. Of streams: the caller has left. Of errors, also: any other.
Own = Literal[
    "confident", "first", "stays", "below", "malformed", "input", "faster", "failed", "deadline", "busy", "left", "cached",
    "stale", "error",
]  # fmt: skip
CODES: Final = frozenset[str]({*get_args(Own), *get_args(codes.ErrorCode), *get_args(codes.HeldCode)} - {""})
ALONE = 2  # number of marks in the log of a request with a single leg


def reason_code(plan: Plan, outcome: Outcome) -> str:
    """Return the reason code of an answer, one of `CODES`; if a target failed or was not asked, the error's code.

    Codes of routes without failure: confident, first, stays, below, malformed, faster, input, left. Of an answer that was not
    accepted: as `_degraded_reason` says.
    """
    log, i = outcome.log, outcome.leg
    if not outcome.accepted or i is None:
        return "left" if type(outcome) is Left else _degraded_reason(plan, log)
    away = plan.legs[i].permit is not None
    if len(log) > ALONE or plan.unsure:  # few
        if plan.unsure and away:
            return "input"
        for mark in log:
            if mark.kind == "below":
                return _below(mark)
            if mark.kind == "failed":
                return _failure_code(mark)
        if i and any(mark.kind == "cancelled" for mark in log):
            return "faster"
    return "first" if away else "stays" if plan.stays else "confident"


def _degraded_reason(plan: Plan, log: Sequence[Mark]) -> str:
    """Return why the best answer so far stands: code of the last target that did not answer, else `busy`, `malformed` or `below`.

    Codes of that target: `deadline`, or a failure's own.
    """
    for mark in reversed(log):
        if mark.kind == "timeout":
            return "deadline"
        if mark.kind == "failed":
            return _failure_code(mark)
    return "busy" if plan.skipped else "malformed" if any(_below(mark) == "malformed" for mark in log) else "below"


def _below(mark: Mark) -> str:
    """Return the reason code of an answer below its threshold: `malformed` if it failed its check."""
    return "malformed" if type(mark.detail) is Malformed else "below"


def _failure_code(mark: Mark) -> str:
    """Return the code of a failure. `failed` for an error without a code."""
    return codes.Failure.of(mark.detail).code or "failed"


def error_code(error: BaseException | None) -> str:
    """Return the code of an exception raised in place of an answer, one of `CODES`: `deadline` for `DeadlineExceeded` alone.

    Of several failures the last one's code; `timeout` for any other TimeoutError, `error` for an exception without a code.
    """
    errors = getattr(error, "errors", None) if isinstance(error, codes.Coded) else None  # a foreign one's may be anything
    if isinstance(error, TimeoutError) and errors is not None:
        return "deadline"
    last = [*errors.values()][-1] if errors else error
    return codes.Failure.of(last).code or "error"


class Took(NamedTuple):
    """Time of a target that answered."""

    leg: str
    side: Side
    seconds: float


def took(plan: Plan, outcome: Outcome) -> tuple[Took, ...]:
    """Return target, side and time of each target that answered, accepted or not.

    Targets that failed or were cancelled are left out.
    """
    log, legs = outcome.log, plan.legs
    if outcome.accepted and len(log) == ALONE:  # most
        leg = legs[log[1].leg]
        return (new(Took, (leg.name, "edge" if leg.permit is None else "cloud", log[1].at - log[0].at)),)
    started: dict[int, float] = {}
    times = []
    for kind, i, instant, _ in log:
        if kind == "start":
            started[i] = instant
        elif kind in ENDS:
            times.append(Took(legs[i].name, legs[i].side, instant - started[i]))
    return tuple(times)


ENDS = frozenset({"accepted", "below", "kept"})
