"""Reads LiteLLM's standard logging payload, as its proxy and its callbacks write it, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeroute.replay.logs.answer import Answer, Ask, Skip, identified, named, number, same, scored
from edgeroute.replay.logs.bodies import said


def litellm_answer(record: Mapping[str, Any], ask: Ask) -> Answer:
    """A payload, or an object that has one as its `standard_logging_object`.

    Raises:
        Skip: it cannot be used.
    """
    inner = record.get("standard_logging_object")
    payload: Mapping[str, Any] = inner if isinstance(inner, dict) else record
    if payload.get("status") == "failure":
        raise Skip("the request failed")
    if payload.get("cache_hit") is True:
        raise Skip("it was answered from a cache")
    response = payload.get("response")
    if not isinstance(response, dict):
        raise Skip("no answer of a model in it")
    key = identified(payload, ask, asked=payload.get("messages"))
    text, calls, confidence, tokens = said(response)
    prompt, completion = (number(payload.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    if tokens is None and prompt is not None and completion is not None:
        tokens = prompt, completion
    usd = number(payload.get("response_cost"))
    return Answer(key, named(payload.get("model")), same(text, calls, ask), confidence, scored(payload, ask), usd, tokens)
