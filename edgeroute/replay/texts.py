"""Classifies failures in traces of version 1, which have only texts."""

from __future__ import annotations

import re
from typing import Final

from edgeroute.core.codes import AnyCode, Failure, HeldCode

_KINDS: Final[dict[str, AnyCode]] = {
    "BadInput": "bad_input",
    "BadReply": "bad_reply",
    "TimedOut": "timeout",
    "TimeoutError": "timeout",
    "Unreachable": "unreachable",
}
_HELD: Final[dict[str, HeldCode]] = {
    "breaker": "breaker",
    "asked to wait": "retry_after",
    "(max_concurrent)": "max_concurrent",
    "(calls_per_s)": "calls_per_s",
    "usd_per_day": "usd_per_day",
    "mb_per_day": "mb_per_day",
    "joules_per_hour": "joules_per_hour",
    "calls_per_minute": "calls_per_minute",
    "egress ledger": "ledger",
    "consent": "consent",
    "redaction": "redaction",
}
"""Text -> code; the first match counts."""
_STATUS: Final = re.compile(r"answered (\d{3})")


def understood(error: str) -> Failure:
    """Parses the error type and message as edgeroute wrote them before traces had codes."""
    kind, _, text = error.partition(": ")
    if kind == "Refused":
        status = _STATUS.search(text)
        return Failure("refused", None if status is None else int(status[1]))
    if kind == "Held":
        code: HeldCode = next((code for words, code in _HELD.items() if words in text), "other")
        return Failure(code, again=" was not asked again: " in error)
    return Failure(_KINDS.get(kind, ""))
