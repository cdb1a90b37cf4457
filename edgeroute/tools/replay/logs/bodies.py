"""Reads what OpenAI's APIs answer: chat completions, completions, and responses."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from math import nan
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from edgeroute.confidence.scores import quantile
from edgeroute.tools.measure.curve import ROUNDING

# One recorded answer of a model, and what its parts are read from; nothing of a log's text is ever in an error.

Match = Literal["text", "exact"]
REDACTED: Final = "redacted-by-litellm"
"""What LiteLLM logs in place of messages and answers that it was told not to log."""
LEAST: Final = -1e9
"""Log-probability of a token below which it counts as this: e to it is 0 already, and no number overflows."""
MOST_MODEL: Final = 200
"""Characters of a model's name."""


class Skip(Exception):
    """A record that cannot be used, and why."""


class Answer(NamedTuple):
    """What is kept of a recorded answer. The texts themselves are not."""

    key: bytes
    """Digest of what identifies the request."""
    model: str
    answer: bytes
    """Digest of the answer, equal where two answers count as the same."""
    confidence: float
    """10 % quantile of the token probabilities, 0..1; NaN: not recorded."""
    score: float | None
    """How correct it is, 0..1; None: not recorded."""
    usd: float | None
    tokens: tuple[float, float] | None
    """Of prompt and completion."""


class Ask(NamedTuple):
    """How a log is read."""

    id: str = ""
    """Dotted path of what identifies a request; empty: the format's own, or its messages."""
    score: str = ""
    """Dotted path of how correct the answer is; empty: none."""
    match: Match = "text"


Reader = Callable[[Mapping[str, Any], Ask], Answer]


def digest(value: object) -> bytes:
    """16 bytes that are equal for equal JSON values, whatever the order of their keys."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()


def at(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of keys; None: there is none."""
    found: Any = record
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def identified(record: Mapping[str, Any], ask: Ask, *ids: str, asked: object = None) -> bytes:
    """Digest of what identifies the request: the value at `--id`, else the first of these paths, else what was asked.

    Raises:
        Skip: there is nothing.
    """
    for path in (ask.id,) if ask.id else ids:
        found = at(record, path)
        if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
            return digest(["id", str(found)])
    if ask.id:
        raise Skip("no text or number at --id")
    if not asked:
        raise Skip("no ID and no messages that tell which request it answers (--id)")
    if REDACTED in json.dumps(asked):
        raise Skip("its messages were redacted, so that requests look alike (--id)")
    return digest(["asked", asked])


def number(value: Any, *, most: float = 1e15) -> float | None:
    """A number from 0 to `most`; None where there is none.

    Raises:
        Skip: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Skip("something else where a number is expected")
    if not 0 <= value <= most:
        raise Skip(f"a number that is not from 0 to {most:g}")
    return float(value)


def scored(record: Mapping[str, Any], ask: Ask) -> float | None:
    """How correct the answer is, 0..1, or a bool.

    Raises:
        Skip: it was asked for, and is not there or something else.
    """
    if not ask.score:
        return None
    found = at(record, ask.score)
    if found is None:
        raise Skip("no number at --score")
    return float(found) if isinstance(found, bool) else number(rounded(found), most=1.0)


def rounded(grade: Any) -> Any:
    """A number that arithmetic made a little less than 0 or more than 1 put right; anything else as it is."""
    near = type(grade) is float and (-ROUNDING <= grade < 0 or 1 < grade <= 1 + ROUNDING)
    return float(round(grade)) if near else grade


def sure(logprobs: Any) -> float:
    """The confidence in a text, from the log-probabilities of its tokens; NaN without any.

    Raises:
        Skip: they are none.
    """
    if not isinstance(logprobs, list) or not logprobs:
        return nan
    if not all(type(value) in {int, float} and value <= 0 for value in logprobs):
        raise Skip("log-probabilities of tokens that are no numbers, or above 0")
    return min(1.0, quantile(np.array([max(value, LEAST) for value in logprobs], np.float64)))


def same(text: str, calls: list[list[object]], ask: Ask) -> bytes:
    """Digest of an answer: its text, and the tools that it calls.

    `text`: alike but for case, spaces, width of characters, and punctuation and quotes around it; `exact`: to the letter.
    """
    if ask.match == "text":
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .!?,;:'\"`*()")
    return digest([text, calls])


def named(model: Any) -> str:
    """The name of a model.

    Raises:
        Skip: there is none.
    """
    if not isinstance(model, str) or not model:
        raise Skip("no model is named")
    return model[:MOST_MODEL]


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


# Reads LiteLLM's standard logging payload, as its proxy and its callbacks write it, one JSON object a line.


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


# Reads logs of OpenAI's APIs: output files of batches, stored completions, and lines of a request beside its response.

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
