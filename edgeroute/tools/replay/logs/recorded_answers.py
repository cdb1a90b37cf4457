"""Parser of recorded answers of OpenAI's APIs (chat completions, completions, responses), in logs of OpenAI and LiteLLM."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from math import nan
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from edgeroute.confidence.scores import quantile
from edgeroute.system.foreign_files import parse_json
from edgeroute.tools.measure.deferral_curve import ROUNDING

# Parts of a recorded answer. No error contains text of a log.

Match = Literal["text", "exact"]
REDACTED: Final = "redacted-by-litellm"
"""Text that LiteLLM logs in place of messages and answers if these are not to be logged."""
LEAST: Final = -1e9
"""Least log-probability of a token; lower ones count as this: e to it is 0 already, and no number overflows."""
MOST_MODEL: Final = 200
"""Most characters of a model's name."""


class Skip(Exception):
    """Raised for a record that cannot be used; the message is the reason."""


class Answer(NamedTuple):
    """Recorded answer, without its texts."""

    key: bytes
    """Digest of the request's identity."""
    model: str
    answer: bytes
    """Digest of the answer, equal where two answers count as the same."""
    confidence: float
    """10 % quantile of the token probabilities, 0..1; NaN: not recorded."""
    score: float | None
    """Correctness, 0..1; None: not recorded."""
    usd: float | None
    tokens: tuple[float, float] | None
    """Tokens of prompt and completion."""


class Options(NamedTuple):
    """Options for reading a log."""

    id: str = ""
    """Dotted path of a request's id; empty: the format's own id, or its messages."""
    score: str = ""
    """Dotted path of the answer's correctness; empty: none."""
    match: Match = "text"


Reader = Callable[[Mapping[str, Any], Options], Answer]


def digest(value: object) -> bytes:
    """Return 16 bytes that are equal for equal JSON values, whatever the order of their keys."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of keys; None if there is none."""
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def request_key(record: Mapping[str, Any], options: Options, *ids: str, asked: object = None) -> bytes:
    """Return the digest of the request's identity: the value at `--id`, else the first of these paths, else the messages.

    Raises:
        Skip: there is nothing to identify it.
    """
    for path in (options.id,) if options.id else ids:
        value = value_at(record, path)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return digest(["id", str(value)])
    if options.id:
        raise Skip("no text or number at --id")
    if not asked:
        raise Skip("no ID and no messages that tell which request it answers (--id)")
    if REDACTED in json.dumps(asked):
        raise Skip("its messages were redacted, so that requests look alike (--id)")
    return digest(["asked", asked])


def number(value: Any, *, most: float = 1e15) -> float | None:
    """Return a number from 0 to `most`; None for None.

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


def score_of(record: Mapping[str, Any], options: Options) -> float | None:
    """Return the correctness of the answer, 0..1; None if no score is requested; true and false are 1 and 0.

    Raises:
        Skip: it is missing or invalid.
    """
    if not options.score:
        return None
    value = value_at(record, options.score)
    if value is None:
        raise Skip("no number at --score")
    return float(value) if isinstance(value, bool) else number(round_grade(value), most=1.0)


def round_grade(grade: Any) -> Any:
    """Return a grade that rounding moved slightly outside 0 to 1 put right; anything else unchanged."""
    near = type(grade) is float and (-ROUNDING <= grade < 0 or 1 < grade <= 1 + ROUNDING)
    return float(round(grade)) if near else grade


def confidence_of(logprobs: Any) -> float:
    """Return the confidence in a text, from the log-probabilities of its tokens; NaN without any.

    Raises:
        Skip: they are no valid log-probabilities.
    """
    if not isinstance(logprobs, list) or not logprobs:
        return nan
    if not all(type(value) in {int, float} and value <= 0 for value in logprobs):
        raise Skip("log-probabilities of tokens that are no numbers, or above 0")
    return min(1.0, quantile(np.array([max(value, LEAST) for value in logprobs], np.float64)))


def answer_digest(text: str, calls: list[list[object]], options: Options) -> bytes:
    """Return the digest of an answer: its text, and its tool calls.

    `text`: ignores case, spaces, width of characters, and punctuation and quotes around it; `exact`: to the letter.
    """
    if options.match == "text":
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .!?,;:'\"`*()")
    return digest([text, calls])


def model_name(model: Any) -> str:
    """Return the name of a model, cut to 200 characters.

    Raises:
        Skip: there is none.
    """
    if not isinstance(model, str) or not model:
        raise Skip("no model is named")
    return model[:MOST_MODEL]


class ParsedBody(NamedTuple):
    """Contents of an answer's body."""

    text: str
    calls: list[list[object]]
    """Name and arguments of each tool call."""
    confidence: float
    tokens: tuple[float, float] | None
    """Tokens of prompt and completion."""


def parsed_body(body: Mapping[str, Any]) -> ParsedBody:
    """Parse the first choice of a (chat) completion, or a response's output.

    Raises:
        Skip: it is neither, incomplete, or its answer was redacted.
    """
    if isinstance(body.get("output"), list):
        texts, calls, logprobs = _response(body["output"])
    elif isinstance(body.get("choices"), list) and body["choices"] and isinstance(body["choices"][0], dict):
        texts, calls, logprobs = _choice(body["choices"][0])
    else:
        raise Skip("no answer of a model in it")
    if REDACTED in texts:
        raise Skip("its answer was redacted")
    return ParsedBody("".join(texts), calls, confidence_of(logprobs), _tokens(body.get("usage")))


def _response(output: list[Any]) -> tuple[list[str], list[list[object]], list[Any]]:
    """Return the texts (refusals, too), tool calls and log-probabilities of a response's output."""
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
    """Return the texts, tool calls and log-probabilities of a chat's or text completion's choice."""
    logprobs = choice.get("logprobs")
    logs: Mapping[str, Any] = logprobs if isinstance(logprobs, dict) else {}
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
    """Return the tokens of prompt and completion; None if unknown; raise `Skip` if they are no numbers."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = (
        number(usage.get(chat, usage.get(response)))
        for chat, response in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    return None if prompt is None or completion is None else (prompt, completion)


def _arguments(text: Any) -> object:
    """Return a tool's arguments, parsed from JSON so that order and spaces do not count; as given if they are no JSON."""
    try:
        return parse_json(text)
    except (TypeError, ValueError):
        return text


def _text(value: Any) -> str:
    """Return a text; raise `Skip` for anything else."""
    if not isinstance(value, str):
        raise Skip("an answer that is no text")
    return value


def _dicts(values: Any) -> Iterator[dict[str, Any]]:
    """Return the mappings in a list, without other items; none if it is no list."""
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else iter(())


# LiteLLM's standard logging payload, as its proxy and its callbacks write it, one JSON object a line.


def litellm_answer(record: Mapping[str, Any], options: Options) -> Answer:
    """Return a payload's request key, model, digest of the answer, confidence, score, cost and tokens; texts are discarded.

    Takes a payload, or an object that has it as its `standard_logging_object`.

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
    key = request_key(payload, options, asked=payload.get("messages"))
    text, calls, confidence, tokens = parsed_body(response)
    prompt, completion = (number(payload.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    if tokens is None and prompt is not None and completion is not None:
        tokens = prompt, completion
    model, digest, score = model_name(payload.get("model")), answer_digest(text, calls, options), score_of(payload, options)
    return Answer(key, model, digest, confidence, score, number(payload.get("response_cost")), tokens)


# Logs of OpenAI's APIs: output files of batches, stored completions, and lines of a request with its response.

GOOD: Final = 200
ASKED: Final = ("messages", "input", "prompt")
"""Keys of the input: of chat completions, responses and completions."""


def openai_answer(record: Mapping[str, Any], options: Options) -> Answer:
    """Return a line's request key, model, digest of the answer, confidence, score and tokens; texts are discarded.

    Takes {custom_id, response: {status_code, body}, error}, {request, response}, or a completion.

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
    prompt = next(([name, asked[name], asked.get("instructions")] for name in ASKED if asked.get(name)), None)
    key = request_key(record, options, "custom_id", "metadata.custom_id", "metadata.request_id", asked=prompt)
    text, calls, confidence, tokens = parsed_body(body)
    model = model_name(body.get("model") or asked.get("model"))
    return Answer(key, model, answer_digest(text, calls, options), confidence, score_of(record, options), None, tokens)
