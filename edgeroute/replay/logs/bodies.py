"""Reads what OpenAI's APIs answer: chat completions, completions, and responses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from edgeroute.replay.logs.answer import REDACTED, Skip, number, sure


class Said(NamedTuple):
    """What an answer's body says."""

    text: str
    calls: list[list[object]]
    """Name and arguments of each tool that is called."""
    confidence: float
    tokens: tuple[float, float] | None
    """Of prompt and completion."""


def said(body: Mapping[str, Any]) -> Said:
    """The first choice of a (chat) completion, or a response's output.

    Raises:
        Skip: it is neither, or not whole.
    """
    if isinstance(body.get("output"), list):
        texts, calls, logprobs = _response(body["output"])
    elif isinstance(body.get("choices"), list) and body["choices"] and isinstance(body["choices"][0], dict):
        texts, calls, logprobs = _choice(body["choices"][0])
    else:
        raise Skip("no answer of a model in it")
    if REDACTED in texts:
        raise Skip("its answer was redacted")
    return Said("".join(texts), calls, sure(logprobs), _tokens(body.get("usage")))


def _response(output: list[Any]) -> tuple[list[str], list[list[object]], list[Any]]:
    texts, calls, logprobs = list[str](), list[list[object]](), list[Any]()
    for item in _dicts(output):
        if item.get("type") == "function_call":
            calls.append([item.get("name"), _arguments(item.get("arguments"))])
        for part in _dicts(item.get("content")):
            if part.get("type") in {"output_text", "refusal"}:
                texts.append(_text(part.get("text", part.get("refusal"))))
                logprobs += [token.get("logprob") for token in _dicts(part.get("logprobs"))]
    return texts, calls, logprobs


def _choice(choice: Mapping[str, Any]) -> tuple[list[str], list[list[object]], list[Any]]:
    given = choice.get("logprobs")
    logs: Mapping[str, Any] = given if isinstance(given, dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        legacy = logs.get("token_logprobs")
        return [_text(choice.get("text"))], [], legacy if isinstance(legacy, list) else []
    content = message.get("content")
    texts = [_text(part.get("text")) for part in _dicts(content)] if isinstance(content, list) else [_text(content or "")]
    calls = list[list[object]]()
    for call in _dicts(message.get("tool_calls")):
        function = call.get("function")
        if isinstance(function, dict):
            calls.append([function.get("name"), _arguments(function.get("arguments"))])
    return texts, calls, [token.get("logprob") for token in _dicts(logs.get("content"))]


def _tokens(usage: Any) -> tuple[float, float] | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = (
        number(usage.get(chat, usage.get(response)))
        for chat, response in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    return None if prompt is None or completion is None else (prompt, completion)


def _arguments(text: Any) -> object:
    """The arguments of a tool, which are JSON in a text: their order and spaces do not count."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Skip("an answer that is no text")
    return value


def _dicts(values: Any) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else iter(())
