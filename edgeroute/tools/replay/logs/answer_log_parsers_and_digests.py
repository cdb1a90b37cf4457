"""Parsers of recorded answers in logs of LiteLLM, Langfuse and OpenAI: chat completions, completions and responses.

Each parser turns one record into an `Exchange`, or raises `Skip` with the reason. Digests and text forms of answers are here too.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from hashlib import blake2b
from math import isfinite, nan
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from edgeroute.confidence.scores import quantile
from edgeroute.system.untrusted_files import parse_json
from edgeroute.tools.data_classes_of_records import data_classes, parsed_text
from edgeroute.tools.measure.deferral_curve import ROUNDING

# Parts of a recorded answer. No error contains text of a log.

Match = Literal["text", "exact"]
REDACTED: Final = "redacted-by-litellm"  # text that LiteLLM logs in place of messages and answers if these are not to be logged
LEAST: Final = -1e9  # least log-probability of a token; lower ones count as this: e to it is 0 already, and no number overflows
MOST_MODEL: Final = 200  # most characters of a model's name
UNNAMED: Final = "no model is named"
ASKED: Final = ("messages", "input", "prompt")  # keys of the input: of chat completions, responses and completions
FORMS: Final = ("tools", "tool_choice", "response_format")  # keys of a request on which the form of its answer depends
# Name of a call's duration -> its unit, seconds.
DURATIONS: Final = {"latency_s": 1.0, "latency_ms": 1e-3, "duration_ms": 1e-3, "response_time": 1.0, "latency": 1.0}
MOST_S: Final = 1e6  # longest duration that is believed, seconds


class Skip(Exception):
    """Raised for a record that cannot be used; the message is the reason."""


class RequestAlone(Skip):
    """Raised for a request whose answer is in another line, as in the input file of a batch."""

    def __init__(self, key: bytes, request: Mapping[str, Any], classes: tuple[Any, ...] = ()) -> None:
        super().__init__("a request without its response")
        self.key, self.request, self.classes = key, request, classes


class RecordedAnswer(NamedTuple):
    """Recorded answer, without its texts.

    Attributes:
        key: digest of the request's identity.
        model: empty: not recorded.
        answer: digest of the answer, equal where two answers count as the same.
        confidence: 10 % quantile of the token probabilities, 0..1; NaN: not recorded.
        score: correctness, 0..1; None: not recorded.
        tokens: tokens of prompt and completion.
    """

    key: bytes
    model: str
    answer: bytes
    confidence: float
    score: float | None
    usd: float | None
    tokens: tuple[float, float] | None


class Options(NamedTuple):
    """Options for reading a log.

    Attributes:
        id: dotted path of a request's id; empty: the format's own id, or its messages.
        score: dotted path of the answer's correctness; empty: none.
    """

    id: str = ""
    score: str = ""
    match: Match = "text"


class Exchange(NamedTuple):
    """Answer of a line with its texts."""

    answer: RecordedAnswer
    # `messages` or `prompt`, with tools and format; empty: in another line, or of a form that no other model takes.
    request: Mapping[str, Any]
    text: str
    calls: list[list[object]]  # name and arguments of each tool call
    took_s: float | None  # duration of the call, seconds; None: not recorded
    classes: tuple[Any, ...] = ()  # data classes that the line names, of whatever type


Reader = Callable[[Mapping[str, Any], Options], Exchange]


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
        Skip: there is nothing to identify it: no value at `--id`, no messages, or redacted ones.
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
    """Return the correctness of the answer, 0..1, rounding errors put right; None if no score is requested; true is 1, false 0.

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
    """Return the confidence in a text: the 10 % quantile of its tokens' probabilities, from their logarithms; NaN without any.

    Raises:
        Skip: they are no valid log-probabilities.
    """
    if not isinstance(logprobs, list) or not logprobs:
        return nan
    if not all(type(value) in {int, float} and value <= 0 for value in logprobs):
        raise Skip("log-probabilities of tokens that are no numbers, or above 0")
    return min(1.0, quantile(np.array([max(value, LEAST) for value in logprobs], np.float64)))


def answer_digest(text: str, calls: list[list[object]], options: Options) -> bytes:
    """Return the digest of an answer: its text, and its tool calls. Equal digests count as the same answer.

    With `match` as `text` case, spaces, width of characters, and punctuation and quotes around it do not count; `exact`: to the
    letter.
    """
    return digest([text if options.match == "exact" else text_form(text), calls])


def text_form(text: str) -> str:
    """Return a text in lower case, without repeated spaces, width of characters, and punctuation and quotes around it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .!?,;:'\"`*()")


def model_name(model: Any) -> str:
    """Return the name of a model, cut to 200 characters; empty for None.

    Raises:
        Skip: it is no text.
    """
    if not isinstance(model, str | None):
        raise Skip(UNNAMED)
    return (model or "")[:MOST_MODEL]


def request_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the request for another model: `messages` or `prompt`, with tools and format; empty if there is none.

    A response's `input` and `instructions` become messages.
    """
    messages, turns, prompt = (body.get(name) for name in ASKED)
    if isinstance(turns, str | list) and not messages:  # of responses
        messages = [{"role": "user", "content": turns}] if isinstance(turns, str) else [_message(item) for item in turns]
        system = body.get("instructions")
        messages = [{"role": "system", "content": system}, *messages] if isinstance(system, str) and system else messages
    if isinstance(messages, list) and messages:
        request: dict[str, Any] = {"messages": messages}
    elif isinstance(prompt, str) and prompt:
        request = {"prompt": prompt}
    else:
        return {}
    return request | {name: body[name] for name in FORMS if body.get(name)}


def _message(item: Any) -> Any:
    """Return an item of a response's input as a message: its texts are of the type `text`."""
    if not isinstance(item, dict) or not isinstance(item.get("content"), list):
        return item
    parts = [
        {"type": "text", "text": part.get("text")} if part.get("type") in {"input_text", "output_text"} else part
        for part in _dicts(item["content"])
    ]
    return {"role": item.get("role"), "content": parts}


def duration_of(record: Mapping[str, Any]) -> float | None:
    """Return the duration of a call in seconds: the first believable value of `DURATIONS`, else end minus start.

    None without any.
    """
    for name, unit in DURATIONS.items():
        value: Any = record.get(name)
        if type(value) in {int, float} and 0 <= value < MOST_S:
            return float(value * unit)
    times = [_time(record.get(name)) for name in ("startTime", "endTime")]
    spent = nan if None in times else times[1] - times[0]  # type: ignore[operator]
    return spent if 0 <= spent < MOST_S else None


def _time(value: Any) -> float | None:
    """Return a time as seconds, of a float or ISO's text; None for all else, whole numbers too."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    return float(value) if type(value) is float and isfinite(value) else None


class ParsedBody(NamedTuple):
    """Contents of an answer's body."""

    text: str
    calls: list[list[object]]  # name and arguments of each tool call
    confidence: float
    tokens: tuple[float, float] | None  # tokens of prompt and completion


def parsed_body(body: Mapping[str, Any]) -> ParsedBody:
    """Parse the first choice of a (chat) completion, or a response's output.

    Raises:
        Skip: it is neither, its answer is no text or was redacted, or its log-probabilities or token counts are invalid.
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
    """Return the texts (refusals, too), tool calls and log-probabilities of a response's output.

    Raise `Skip` for a text that is none.
    """
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
    """Return the texts, tool calls and log-probabilities of a chat's or text completion's choice.

    Raise `Skip` for a text that is none.
    """
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
    """Return the tokens of prompt and completion, with thoughts; None if one is unknown; raise `Skip` for what is no number."""
    if not isinstance(usage, dict):
        return None
    prompt, completion, total = (
        number(usage.get(chat, usage.get(response)))
        for chat, response in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"), ("total_tokens",) * 2)
    )
    if prompt is None or completion is None:
        return None
    return prompt, max(completion, (total or 0.0) - prompt)  # some providers count thoughts in the total alone


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


def litellm_answer(record: Mapping[str, Any], options: Options) -> Exchange:
    """Parse a payload, or an object that has it as its `standard_logging_object`.

    Raises:
        Skip: the request failed or was answered from a cache, has no identity, or its answer cannot be used.
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
    body = parsed_body(response)
    prompt, completion = (number(payload.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    if body.tokens is None and prompt is not None and completion is not None:
        body = body._replace(tokens=(prompt, completion))
    settings = payload.get("model_parameters")
    asked = {**(settings if isinstance(settings, dict) else {}), "messages": payload.get("messages")}
    usd = number(payload.get("response_cost"))
    return _exchange(key, payload.get("model"), body, payload, options, usd, asked)


def _exchange(
    key: bytes, model: Any, body: ParsedBody, record: Mapping[str, Any], options: Options, usd: float | None,
    asked: Mapping[str, Any],
) -> Exchange:  # fmt: skip
    """Return the exchange of a record, with its digests, score and duration; raise `Skip` if its model or score is invalid."""
    answered = answer_digest(body.text, body.calls, options)
    answer = RecordedAnswer(key, model_name(model), answered, body.confidence, score_of(record, options), usd, body.tokens)
    return Exchange(answer, request_of(asked), body.text, body.calls, duration_of(record))


# Observations of Langfuse, as its exports and API have them, one JSON object a line.


def langfuse_answer(record: Mapping[str, Any], options: Options) -> Exchange:
    """Parse an observation of the type GENERATION, whose input and output may be texts of JSON.

    Raises:
        Skip: it is of another type, an error, has no identity, or its answer cannot be used.
    """
    if record.get("type", "GENERATION") != "GENERATION":
        raise Skip("no generation of a model")
    if record.get("level") == "ERROR":
        raise Skip("the request failed")
    request, output = (parsed_text(record.get(name)) for name in ("input", "output"))
    asked = request if isinstance(request, dict) else {"messages" if isinstance(request, list) else "prompt": request}
    key = request_key(record, options, asked=request)
    usage = record.get("usageDetails") or record.get("usage")
    used = usage if isinstance(usage, dict) else {}
    tokens = {"input_tokens": used.get("input"), "output_tokens": used.get("output")}
    body = parsed_body({**_body(output), "usage": tokens})
    usd = next((record[name] for name in ("totalCost", "calculatedTotalCost") if record.get(name) is not None), None)
    return _exchange(key, record.get("model"), body, record, options, number(usd), asked)


# Logs of OpenAI's APIs: files of batches, stored completions, conversations, and lines of a request with its response.

GOOD: Final = 200
TEXTS: Final = ("completion", "output", "answer")  # names under which programs log the text of an answer


def openai_answer(record: Mapping[str, Any], options: Options) -> Exchange:
    """Parse {custom_id, response: {status_code, body}, error}, {request, response}, a completion, or {messages, response}.

    A response may also be a text or a message, be named as in `TEXTS`, or be the last of the messages.

    Raises:
        RequestAlone: it is a request of a batch's input file.
        Skip: the request failed, has no identity, or its answer cannot be used.
    """
    request, response = record.get("request"), record.get("response")
    if record.get("error") or ("response" in record and not (isinstance(response, dict) or (response and type(response) is str))):
        raise Skip("the request failed")
    text = next((record[name] for name in TEXTS if isinstance(record.get(name), str) and record[name]), None)
    body: Mapping[str, Any] = _body(response or text) if response or text else record
    if "status_code" in body and isinstance(body.get("body"), dict):
        if body["status_code"] != GOOD:
            raise Skip("the request failed")
        body = body["body"]
    asked: Mapping[str, Any] = request if isinstance(request, dict) else record
    asked = asked["body"] if isinstance(asked.get("body"), dict) else asked
    messages = asked.get("messages")
    if body is record and not {"choices", "output"} & {*record} and isinstance(messages, list):
        last = messages[-1] if messages else None
        if isinstance(last, dict) and last.get("role") == "assistant":
            body, asked = _body(last), {**asked, "messages": messages[:-1]}
    prompt = next(([name, asked[name], asked.get("instructions")] for name in ASKED if asked.get(name)), None)
    ids = ("custom_id", "metadata.custom_id", "metadata.request_id")
    if body is record and isinstance(record.get("body"), dict):
        raise RequestAlone(request_key(record, options, *ids, asked=prompt), request_of(asked), (*data_classes(record),))
    key = request_key(record, options, *ids, asked=prompt)
    return _exchange(key, body.get("model") or asked.get("model"), parsed_body(body), record, options, None, asked)


def _body(response: Any) -> Mapping[str, Any]:
    """Return a response as the body of a completion: a text or a message is its only choice; empty if it is none of these."""
    if isinstance(response, str):
        return {"choices": [{"message": {"content": response}}]}
    if not isinstance(response, dict):
        return {}
    message = not {"choices", "output", "body"} & {*response} and {"content", "tool_calls"} & {*response}
    return {"choices": [{"message": response}]} if message else response
