"""Sentences in which the app says who answered and why: one for each reason code and state."""

from __future__ import annotations

from typing import Final, Literal

from edgeroute.tools.state_colours_and_marks import StateName

# Reason code (edgeroute.core.reason_text_and_trace_record.CODES) -> why the one that was to answer did not, or what was found
# out before.
WHY: Final = {
    "bad_input": "the picture could not be read",
    "bad_reply": "the cloud sent no proper answer",
    "below": "nobody else could be asked",
    "breaker": "the cloud is away",
    "busy": "the cloud is busy",
    "cached": "the same picture was answered before",
    "calls_per_minute": "the cloud was asked too often",
    "calls_per_s": "the cloud was asked too often",
    "concurrency": "too many pictures are on their way",
    "confident": "nobody else was asked",
    "consent": "sending pictures is not allowed yet",
    "context": "the picture does not fit the model",
    "deadline": "the cloud took too long",
    "error": "something went wrong",
    "failed": "the cloud could not answer",
    "faster": "the other one was faster",
    "first": "the cloud is asked first",
    "held": "the cloud may not be asked now",
    "input": "the picture looked difficult",
    "joules_per_hour": "this hour's energy for the cloud is used up",
    "ledger": "what is sent cannot be recorded",
    "left": "another picture was chosen",
    "malformed": "the answer did not pass its check",
    "max_concurrent": "too many pictures are on their way",
    "mb_per_day": "today's data for the cloud is used up",
    "other": "the cloud may not be asked now",
    "redaction": "the picture could not be made fit for sending",
    "refused": "the cloud refused the picture",
    "retry_after": "the cloud asked for a pause",
    "stale": "the same picture was answered long before",
    "stays": "the picture may not leave the phone",
    "stopped": "the answer was no longer needed",
    "threads": "the phone is busy",
    "timeout": "the cloud took too long",
    "unreachable": "the cloud is away",
    "unsupported": "the picture does not fit the model",
    "usd_per_day": "today's money for the cloud is spent",
    "view": "the picture could not be made fit for sending",
}
# Answers of the cloud for another reason than that it stood in for one that failed.
CLOUD: Final = {
    "first": "The cloud is asked first, and answered.",
    "faster": "The cloud was faster than the phone.",
    "input": "The picture looked difficult, so the cloud was asked at once, and answered.",
    "malformed": "The phone's answer did not pass its check, so the cloud answered.",
    "confident": "The cloud answered.",
}
CACHE: Final = {"stale": "The same picture was answered long before, and the cloud is away: this is the old answer."}


def percent(sure: float) -> str:
    """Return a confidence in whole per cent, never as certain: at most "more than 99 %"."""
    if sure > 0.99:  # noqa: PLR2004
        return "more than 99 %"
    return "less than 1 %" if sure < 0.01 else f"{100 * sure:.0f} %"  # noqa: PLR2004


def sentence(
    code: str,
    state: StateName | None,
    *,
    sure: float | None = None,
    unsure: bool = True,
    asking: bool = False,
    late: Literal["same", "other"] | None = None,
) -> str:
    """Return why the card shows what it shows, in one sentence for a person.

    Args:
        code: reason code of the answer, or of the error.
        state: state of the answer; None: there is no answer.
        sure: confidence of the phone; None: the phone has not answered, or without one.
        unsure: True if that is below what the policy asks.
        asking: True while the cloud is being asked.
        late: the answer came late, and is the same as the phone's or another; None: it did not come late.
    """
    why = WHY.get(code, WHY["error"])
    brackets = "" if sure is None else f" ({percent(sure)})"
    phone = f"The phone was not sure{brackets}" if unsure or sure is None else f"The phone was {percent(sure)} sure"
    if state is None:
        return f"{why[0].upper()}{why[1:]}."
    if late is not None:
        return f"{phone}; the cloud, asked later, says {'the same' if late == 'same' else 'something else'}."
    if asking:
        return f"{phone}; the cloud is being asked."
    if state == "waiting":
        return f"{phone}, {why}; {'it' if why.startswith('the cloud ') else 'the cloud'} will be asked later."
    if state == "degraded":
        return f"{phone}, {why}; this answer stands."
    if state == "cloud":
        return CLOUD.get(code) or (
            f"{phone}, so the cloud answered." if code == "below" else f"{why[0].upper()}{why[1:]}; the cloud answered."
        )
    if state == "cache":
        return CACHE.get(code, "The same picture was answered before.")
    answered = "the phone answered" if sure is None else f"the phone was {percent(sure)} sure"
    if state == "private":
        return f"Nothing of this picture leaves the phone; {answered}."
    if code == "confident":
        return f"T{answered[1:]}."
    return f"{why[0].upper()}{why[1:]}; {answered}."
