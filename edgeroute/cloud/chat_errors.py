"""What goes wrong at a language model behind OpenAI's API, as exceptions: the key, the model, the length, the rate."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from edgeroute.chat.reply import LONG
from edgeroute.cloud.base import Address, Reply, checked
from edgeroute.errors import CloudError, Refused
from edgeroute.system import json_loads

SHORT = 1 << 16
"""Bytes of an error that are read."""
NOT_FOUND, TOO_MANY, FAILED = 404, 429, 500
_LONG = re.compile(
    r"context.{0,20}(length|size|window)|maximum context|prompt is too long|too many (input )?tokens", re.IGNORECASE
)
_SPENT = {"insufficient_quota", "billing_hard_limit_reached"}
_STATUS = {
    **dict.fromkeys(LONG, 400), "invalid_request_error": 400, "authentication_error": 401,
    "invalid_api_key": 401, "permission_error": 403, "not_found_error": 404, "rate_limit_error": 429,
    "rate_limit_exceeded": 429, "insufficient_quota": 429, "overloaded_error": 503, "unavailable_error": 503,
}  # fmt: skip
"""Type or code of an error within a stream -> the status that it would have had before."""


def refusal(reply: Reply, sent: bytes, where: str, model: str, address: Address) -> CloudError:
    """The exception for a reply that is no success. What a server says is quoted as of other endpoints: almost never."""
    try:
        checked(reply, where, sent, address)
    except Refused as e:
        said = _error(reply)
        if e.status < FAILED and _is_long(said):
            counts = [said.get(name) for name in ("n_prompt_tokens", "n_ctx")]
            known = all(type(count) is int for count in counts)
            more = f": it has {counts[0]} tokens, and {counts[1]} are the most" if known else ""
            return Refused(f"{where} does not take it: the prompt is longer than the model's context{more}", status=e.status)
        if e.status == NOT_FOUND:
            return Refused(
                f"{where} answered 404: it has no model {model!r}, or its API has another path than the url", status=e.status
            )
        if e.status == TOO_MANY:
            return _too_many(where, said, e)
        return e
    raise AssertionError("the reply is a success")


def _too_many(where: str, said: Mapping[str, Any], e: Refused) -> Refused:
    spent = bool(_codes(said) & _SPENT)
    wait = "" if e.retry_after_s is None else f", and says to wait {e.retry_after_s:g} s"
    what = "the quota of this key is spent" if spent else "too many requests or tokens for this key"
    made = Refused(f"{where} answered 429: {what}{wait}", status=e.status, retry_after_s=e.retry_after_s)
    made.retriable = not spent
    return made


def of_event(error: Any, sent: bytes, where: str, model: str, address: Address) -> CloudError:
    """The exception for an error that came in place of an answer, or within one, with the status of a success."""
    said = error if isinstance(error, Mapping) else {"message": str(error)}
    codes = [said.get(name) for name in ("code", "status", "type")]
    status = next((code for code in codes if type(code) is int and 400 <= code < 600), None)  # noqa: PLR2004 - HTTP's errors
    status = status or next((_STATUS[code] for code in codes if isinstance(code, str) and code in _STATUS), FAILED)
    body = json.dumps({"error": dict(said)}, default=str).encode()
    return refusal(Reply(status, {"content-type": "application/json"}, body), sent, where, model, address)


def _error(reply: Reply) -> Mapping[str, Any]:
    """What it says, as OpenAI's JSON has errors; empty: it is none."""
    with suppress(ValueError, RecursionError):
        said = json_loads(reply.body)
        said = said.get("error", said) if isinstance(said, dict) else said
        if isinstance(said, Mapping):
            return said
        if isinstance(said, str):
            return {"message": said}
    return {}


def _codes(said: Mapping[str, Any]) -> set[str]:
    return {code for code in (said.get("type"), said.get("code")) if isinstance(code, str)}


def _is_long(said: Mapping[str, Any]) -> bool:
    """Whether it says that the prompt does not fit."""
    if _codes(said) & LONG:
        return True
    message = said.get("message")
    return isinstance(message, str) and _LONG.search(message[:1000]) is not None
