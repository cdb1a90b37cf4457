"""Reads logs of OpenAI's APIs: output files of batches, stored completions, and lines of a request beside its response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgeroute.replay.logs.answer import Answer, Ask, Skip, identified, named, same, scored
from edgeroute.replay.logs.bodies import said

GOOD: Final = 200
ASKED: Final = ("messages", "input", "prompt")
"""What is asked: of chat completions, responses and completions."""


def openai_answer(record: Mapping[str, Any], ask: Ask) -> Answer:
    """A line of the log: {custom_id, response: {status_code, body}, error}, {request, response}, or a completion itself.

    Raises:
        Skip: it cannot be used.
    """
    request, response = record.get("request"), record.get("response")
    if record.get("error") or ("response" in record and not isinstance(response, dict)):
        raise Skip("the request failed")
    body: Mapping[str, Any] = response if isinstance(response, dict) else record
    if "status_code" in body and isinstance(body.get("body"), dict):
        if body["status_code"] != GOOD:
            raise Skip("the request failed")
        body = body["body"]
    elif not isinstance(response, dict) and isinstance(record.get("body"), dict):
        raise Skip("a request without its response")
    asked = request if isinstance(request, dict) else record
    asked = asked["body"] if isinstance(asked.get("body"), dict) else asked
    what = next(([name, asked[name], asked.get("instructions")] for name in ASKED if asked.get(name)), None)
    key = identified(record, ask, "custom_id", "metadata.custom_id", "metadata.request_id", asked=what)
    text, calls, confidence, tokens = said(body)
    model = named(body.get("model") or asked.get("model"))
    return Answer(key, model, same(text, calls, ask), confidence, scored(record, ask), None, tokens)
