"""OpenAI's chat and text completions on the gateway: clients' keys, checked; calls of the router; replies, whole or in chunks.

`read_request` makes a `CompletionRequest` of a body, `Routing` asks the router, `Completion` builds the reply. The other APIs use
the functions that read a reply, such as `text_of` and `origin_of`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from time import time
from typing import Any, Final, NamedTuple

from starlette.exceptions import HTTPException

from edgeroute.core.error_codes_and_texts import clean, error_text
from edgeroute.core.policy_egress_and_options import Rules
from edgeroute.errors import BadInput, EdgerouteError, NoAnswer
from edgeroute.router.async_router import AsyncRouter
from edgeroute.router.streams_sessions_chats import AsyncStream
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads, to_json_types
from edgeroute.tools.server.access_limits_call_options import Fault, Options
from edgeroute.tools.server.client_messages_and_json_bounds import client_messages, excess, is_bounded, levels
from edgeroute.tools.state_colours_and_marks import answer_state
from edgeroute.types import Answer

MOST_TOKENS = 131_072  # most tokens of an answer that a client may ask for
MOST_TOOLS, MOST_FORMAT = 128 << 10, 32 << 10  # most bytes of all tools, and of a format


class Range(NamedTuple):
    """Range of a key's values, as text, a function that tests a value, and one that says of a refused value what is beyond."""

    text: str
    has: Callable[[Any], bool]
    beyond: Callable[[Any], str] = lambda _: ""


def _number(least: float, most: float) -> Range:
    """Return the range of numbers between two bounds, both included."""
    return Range(f"{least:g}..{most:g}", lambda x: type(x) in {int, float} and least <= x <= most)


def _whole(text: str, least: int, most: int) -> Range:
    """Return the range of whole numbers between two bounds, both included."""
    return Range(text, lambda x: type(x) is int and least <= x <= most)


def _is_short(x: Any) -> bool:
    """Return True for a text of 1 to 256 characters."""
    return isinstance(x, str) and 0 < len(x) <= 256  # noqa: PLR2004 - the table's text


def _is_bias(x: Any) -> bool:
    """Return True for an object of at most 300 token numbers with a bias of -100 to 100."""
    return isinstance(x, dict) and len(x) <= 300 and all(_TOKEN.fullmatch(k) and _BIAS.has(v) for k, v in x.items())  # noqa: PLR2004


def _is_function(x: Any) -> bool:
    """Return True for a function as a tool, without unknown keys.

    Other kinds are services of the cloud, with a price or address.
    """
    return (
        isinstance(x, dict)
        and x.keys() == {"type", "function"}
        and x["type"] == "function"
        and isinstance(x["function"], dict)
        and x["function"].keys() <= FUNCTION
    )


def _is_choice(x: Any) -> bool:
    """Return True for the name of a choice, or for one function; other objects name services of the cloud."""
    if not isinstance(x, dict):
        return x in ("none", "auto", "required")
    function = x.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return _is_short(name) and x == {"type": "function", "function": {"name": name}}


def _is_format(x: Any) -> bool:
    """Return True for one of OpenAI's formats of an answer, within a schema's limits and 32 KiB.

    Others are grammars of other servers.
    """
    return (
        isinstance(x, dict)
        and x.get("type") in ("text", "json_object", "json_schema")
        and x.keys() <= {"type", "json_schema", "schema"}
        and isinstance(schema := x.get("json_schema") or {}, dict)
        and schema.keys() <= {"name", "description", "schema", "strict"}
        and is_bounded(x, MOST_FORMAT)
    )


def _beyond_of_tools(x: Any) -> str:
    """Return which of the tools is no function, or is beyond which limit; empty if they are no list."""
    for i, tool in enumerate(x if isinstance(x, list) else (), 1):
        if not _is_function(tool):
            return f"tool {i} is none, with the keys type and function, and therein {', '.join(sorted(FUNCTION))}"
        if why := excess([tool], MOST_TOOLS):
            return f"{clean(tool['function'].get('name'), 64)!r} has {why}"
    return f"together they have {excess(x, MOST_TOOLS)}" if isinstance(x, list) else ""


def _beyond_of_format(x: Any) -> str:
    """Return which limit the schema of a format is beyond; empty if that is not the reason."""
    schema = x.get("json_schema") if isinstance(x, dict) else None
    name = clean(schema.get("name"), 64) if isinstance(schema, dict) else "the schema"
    return f"{name!r} has {why}" if isinstance(x, dict) and (why := excess(x, MOST_FORMAT)) else ""


_BIAS = _number(-100, 100)
_TOKEN = re.compile("[0-9]{1,7}")
_TOKENS = _whole(f"1..{MOST_TOKENS:,}", 1, MOST_TOKENS)
# Key -> its range.
KEYS: Final[Mapping[str, Range]] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "seed": _whole("64 bits", -(2**63), 2**63 - 1),
    "stop": Range(
        "256 characters, or a list of 16",
        lambda x: _is_short(x) or (isinstance(x, list) and len(x) <= 16 and all(map(_is_short, x))),  # noqa: PLR2004
    ),
    "logit_bias": Range("300 tokens, -100..100", _is_bias),
    "tools": Range(
        "functions, 128 KiB",
        lambda x: isinstance(x, list) and all(map(_is_function, x)) and is_bounded(x, MOST_TOOLS),
        _beyond_of_tools,
    ),
    "tool_choice": Range('"none", "auto", "required", function', _is_choice),
    "parallel_tool_calls": Range("true or false", lambda x: isinstance(x, bool)),
    "response_format": Range("text, json_object or json_schema, 32 KiB", _is_format, _beyond_of_format),
}
# Keys that usual clients send and that change no answer: accepted, and not passed on.
DROPPED: Final = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key")
FUNCTION: Final = frozenset({"name", "description", "parameters", "strict"})


def client_keys(
    body: Mapping[str, Any], handled: Collection[str], allow: Collection[str], keys: Mapping[str, Range] = KEYS
) -> dict[str, Any]:
    """Return the keys of a request that are passed to the router, without those that are null, handled, or in `DROPPED`.

    Args:
        body: the parsed request.
        handled: keys that the gateway handles itself.
        allow: further keys, passed on as they are, with any value, even those in `DROPPED`.
        keys: declared keys, with their ranges.

    Raises:
        BadInput: a key is neither declared nor in `allow`, or its value is out of range.
    """
    passed = {}
    for key, value in body.items():
        if value is None or key in handled or (key in DROPPED and key not in allow):
            continue
        if key not in allow:
            if (declared := keys.get(key)) is None:
                name = clean(key, 40)
                raise BadInput(f"{name!r} is no open key: leave it out, or open it by {_opened_by(name)}")
            if not declared.has(value):
                beyond = f", and {why}" if (why := declared.beyond(value)) else ""
                raise BadInput(f"{key} takes {declared.text}{beyond}; {_opened_by(key)} lifts that")
        passed[key] = value
    return passed


def _opened_by(key: str) -> str:
    """Return what opens a key to any value: a line of the policy, or an argument of `gateway` and `InProcess`."""
    return f'[gateway] allow = ["{key}"] in the policy, or allow=["{key}"] of InProcess'


DEEPEST = 100  # most levels of lists and objects within each other
# Most commas and brackets in a body before it is parsed: each value takes some 60 bytes. A long text may have many, too.
MOST_SIGNS = 1_000_000
MOST_VALUES = 50_000  # most values in a parsed body: legs copy their input, and the event loop waits for that
# Keys that the gateway handles itself.
OURS = ("model", "stream", "stream_options", "n", "best_of", "echo", "logprobs", "top_logprobs", "messages", "prompt")


class CompletionRequest(NamedTuple):
    """Validated request for a chat or text completion."""

    x: dict[str, Any]  # input for the router: messages or prompt, and the keys that a client may send
    chat: bool
    model: str  # model name as the client wrote it
    stream: bool
    usage: bool  # True if a stream shall end with the usage
    logprobs: bool
    echo: Mapping[str, Any] = {}  # keys on which the reply depends, as the client sent them
    messages: list[dict[str, Any]] | None = None  # messages that are stored with the answer, for a later request; None: none are
    scope: bytes = b""  # digest of the conversation's key of an earlier request that this one continues; empty: it had none
    earlier: int = 0  # bytes of the stored messages that it continues, which are not in its body


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a body as a JSON object.

    Raises:
        BadInput: it is not JSON, no object, deeper than 100 levels, or has more than 50,000 values or a million commas and
            brackets.
    """
    signs = sum(map(body.count, (b",", b"[", b"{")))
    if signs > MOST_SIGNS:
        raise BadInput(f"the body has more than {MOST_SIGNS} commas and brackets")
    try:
        data = json_loads(body)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"the body is not JSON: {clean(e, 100)}") from None
    if not isinstance(data, dict):
        raise BadInput(f"the body is a {type(data).__name__}: send an object")
    if signs > DEEPEST:
        _check(data)
    return data


def _check(data: Any) -> None:
    """Raise `BadInput` if parsed JSON has more than 100 levels or 50,000 values."""
    values = 0
    for depth, level in enumerate(levels(data), 1):
        values += sum(map(len, level))
        if depth > DEEPEST:
            raise BadInput(f"the JSON is more than {DEEPEST} levels deep")
        if values > MOST_VALUES:
            raise BadInput(f"the JSON has more than {MOST_VALUES} values")


def read_request(
    body: Mapping[str, Any], *, chat: bool, names: Collection[str], allow: Collection[str] = ()
) -> CompletionRequest:
    """Validate a parsed body and return the request for the router, without the gateway's own keys, in a copy.

    Args:
        body: the parsed JSON.
        chat: True for `/v1/chat/completions`, which needs messages; False for `/v1/completions`, which needs a prompt.
        names: names of the model.
        allow: keys that clients may send beside those in `KEYS`.

    Raises:
        BadInput: the request has an unsupported or invalid option, such as several answers or `echo`.
        HTTPException: 404, for another model.
    """
    model, stream = check_names(body, names)
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise BadInput("stream_options is an object")
    for key in ("n", "best_of"):
        if body.get(key) not in (None, 1):
            raise BadInput(f"{key} is {clean(body[key], 20)}: a router gives one answer, so send 1 or leave it out")
    if body.get("echo"):
        raise BadInput("echo is not supported: the answer has no prompt in it")
    x = {"messages": client_messages(body.get("messages"))} if chat else {"prompt": _prompt(body.get("prompt"))}
    x |= client_keys(body, OURS, allow)
    logprobs = body.get("logprobs")
    return CompletionRequest(
        x, chat, model, stream, bool(options.get("include_usage")), logprobs is not None and logprobs is not False
    )


def check_names(body: Mapping[str, Any], names: Collection[str]) -> tuple[str, bool]:
    """Return the model's name that a body has, and True if it asks for a stream.

    Raises:
        BadInput: there is no name, or `stream` is no bool.
        HTTPException: 404, if the name is none of `names`.
    """
    model, stream = body.get("model"), body.get("stream") or False
    if not isinstance(model, str):
        raise BadInput(f"model is missing: send {' or '.join(names)}")
    if model not in names:
        raise missing(model, names)
    if not isinstance(stream, bool):
        raise BadInput("stream is true or false")
    return model, stream


def objects(value: Any, problem: str) -> list[Mapping[str, Any]]:
    """Return a list of objects as it is; raise `BadInput` with this text for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise BadInput(problem)
    return value


def content_of(parts: list[dict[str, Any]], role: Any) -> str | list[dict[str, Any]]:
    """Return the parts of a message as its content in a chat: texts as one, joined by line breaks, else the list.

    Several texts of a user stay apart, so that each is known by itself where the conversation must not leave.
    """
    several = role == "user" and len(parts) > 1
    return parts if several or any(part["type"] != "text" for part in parts) else "\n".join(part["text"] for part in parts)


def _prompt(prompt: Any) -> str:
    """Return the prompt as one text; a list with one text is accepted; raise `BadInput` for all else."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise BadInput("prompt is one text; send several as several requests")
    return prompt


def missing(model: str, names: Collection[str]) -> HTTPException:
    """Return the 404 error for an unknown model."""
    return HTTPException(404, f"there is no model {clean(model, 80)!r} here, only {', '.join(names)}: --name adds one")


MOST_FLOAT = sys.float_info.max
REASON = 400  # most characters of a reason, in a header and in the body
DONE = b"data: [DONE]\n\n"


def confidence_of(answer: Answer[Any]) -> float | None:
    """Return the answer's confidence as a float; None if there is none, or it is no finite number."""
    confidence = answer.confidence
    if not isinstance(confidence, float | int) or not abs(confidence) <= MOST_FLOAT:  # an int may be above any float
        return None
    return float(confidence)


def origin_of(answer: Answer[Any]) -> dict[str, Any]:
    """Return the JSON object that tells which model or server answered, its state for people, confidence, reason and latency.

    Texts are cut and made plain: 100 characters of a name, 400 of a reason.
    """
    return {
        "id": answer.id,
        "source": answer.source,
        "state": answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final),
        "leg": clean(answer.leg, 100),
        "confidence": confidence_of(answer),
        "degraded": answer.degraded,
        **({"malformed": answer.malformed} if answer.degraded and answer.malformed else {}),
        "reason": clean(answer.reason, REASON),
        "latency_s": round(answer.latency_s, 6),
    }


def headers_of(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return an answer's origin as response headers `x-edgeroute-*`, made ASCII on one line, without what is unknown."""
    headers = {
        f"x-edgeroute-{name}": str(origin[name])
        for name in ("id", "source", "leg", "reason", "confidence")
        if origin[name] is not None
    }
    if origin["degraded"]:
        headers["x-edgeroute-degraded"] = "true"
    return {name: ascii_of(text) for name, text in headers.items()}


def ascii_of(text: str) -> str:
    """Return a text with every character that a header cannot have replaced by "?"."""
    plain = text.isascii() and text.isprintable()
    return (text if plain else "".join(c if " " <= c <= "~" else "?" for c in text)).strip()


class Completion:
    """Builder of the reply to one request: a whole completion, or the chunks of a stream."""

    def __init__(self, request: CompletionRequest) -> None:
        self.request = request
        self.created = int(time())
        kind = "chat.completion" if request.chat else "text_completion"
        self._whole = {"id": "", "object": kind, "created": self.created, "model": request.model}
        chunk = "chat.completion.chunk" if request.chat else "text_completion"
        self._chunk: dict[str, Any] = {**self._whole, "object": chunk}

    def body(self, answer: Answer[Any]) -> dict[str, Any]:
        """Return the body of a reply that is not streamed, with calls of tools, usage and logprobs if there are any.

        The logprobs come only if the request asked for them. The origin of the answer is `edgeroute`.
        """
        reply, choice = reply_of(answer)
        text, content = text_of(answer, choice), dict[str, Any]()
        if self.request.chat:
            message = {**message_of(choice), "role": "assistant", "content": text}
            message.pop("tool_calls", None)
            if calls := calls_of(choice, answer.id):
                message |= {"content": text or None, "tool_calls": calls}
            content["message"] = message
        else:
            content["text"] = text
        body = {**self._whole, "id": self._id(answer.id)}
        body["choices"] = [
            {"index": 0, **content, "logprobs": self._logprobs(choice), "finish_reason": finish_of(answer, choice)}
        ]
        if isinstance(reply.get("usage"), Mapping):
            body["usage"] = reply["usage"]
        body["edgeroute"] = origin_of(answer)
        return body

    def begin(self) -> bytes:
        """Draw the stream's id at random and return its first chunk, with the role; empty for a text completion.

        Call it before `piece` and `end`, which use the id and what it encodes in advance.
        """
        self._chunk["id"] = self._id(os.urandom(9).hex())
        head, tail = json_dumps({**self._chunk, "choices": [self._chunk_choice({"content": _MARK})]}).rsplit(_MARKED, 1)
        self._head, self._tail = b"data: " + head, tail + b"\n\n"
        if not self.request.chat:
            return b""
        return self._event({**self._chunk, "choices": [self._chunk_choice({"role": "assistant", "content": ""})]})

    def piece(self, text: Any) -> bytes:
        """Return a chunk with a piece of the text; empty bytes if the piece is empty."""
        text = piece_text(text)
        return b"".join((self._head, json_dumps(text), self._tail)) if text else b""

    def end(self, answer: Answer[Any]) -> Iterator[bytes]:
        """Yield the last chunks: of a chat, all its message has beside the text; finish reason, usage if asked for, `[DONE]`.

        Usage that was not counted is left out. The last one before `[DONE]` has the origin of the answer as `edgeroute`.
        """
        reply, choice = reply_of(answer)
        message = message_of(choice)
        delta = {key: value for key, value in message.items() if value and key not in {"role", "content", "tool_calls"}}
        if calls := calls_of(choice, answer.id):
            delta["tool_calls"] = [{**call, "index": i} for i, call in enumerate(calls)]
        if self.request.chat and delta:
            yield self._event({**self._chunk, "choices": [self._chunk_choice(delta)]})
        last = self._chunk_choice({}, finish=finish_of(answer, choice), logprobs=self._logprobs(choice))
        about = {"edgeroute": origin_of(answer)}
        usage = reply.get("usage")
        if not (self.request.usage and isinstance(usage, Mapping)):
            yield self._event({**self._chunk, "choices": [last], **about})
        else:
            yield self._event({**self._chunk, "choices": [last]})
            yield self._event({**self._chunk, "choices": [], "usage": usage, **about})
        yield DONE

    def error(self, fault: Fault) -> bytes:
        """Return an error within a stream as an event."""
        return self._event(fault.openai())

    def _id(self, identity: str) -> str:
        """Return an identity with OpenAI's prefix."""
        return f"{'chatcmpl' if self.request.chat else 'cmpl'}-{identity}"

    def _logprobs(self, choice: Mapping[str, Any]) -> Any:
        """Return the choice's logprobs if the request asked for them, else None; those of a text in OpenAI's form of texts."""
        logprobs = choice.get("logprobs") if self.request.logprobs else None
        content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if self.request.chat or not isinstance(content, list):
            return logprobs
        content = [token for token in content if isinstance(token, Mapping)]
        tokens = [str(token.get("token", "")) for token in content]
        likely = [tops if isinstance(tops := token.get("top_logprobs"), list) else () for token in content]
        return {
            "tokens": tokens,
            "token_logprobs": [token.get("logprob") for token in content],
            "top_logprobs": [
                {str(top.get("token", "")): top.get("logprob") for top in tops if isinstance(top, Mapping)} for tops in likely
            ],
            "text_offset": [0, *accumulate(map(len, tokens))][: len(tokens)],
        }

    def _chunk_choice(self, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        """Return a chunk's only entry of `choices`."""
        content: dict[str, Any] = {"delta": delta} if self.request.chat else {"text": delta.get("content", "")}
        return {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, data: dict[str, Any]) -> bytes:
        """Encode an object as a server-sent event, arrays as plain data."""
        return b"data: " + json_dumps(data, to_json_types) + b"\n\n"


_MARK = "\N{SYMBOL FOR SUBSTITUTE}"
_MARKED = json_dumps(_MARK)


def reply_of(answer: Answer[Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return an answer's outputs with a list `choices`, and the first, {} if that is no object; two {} for other outputs."""
    reply: Any = answer.outputs
    if not isinstance(reply, Mapping) or not isinstance(choices := reply.get("choices"), list | tuple):
        return {}, {}
    return reply, choices[0] if choices and isinstance(choices[0], Mapping) else {}


def text_of(answer: Answer[Any], choice: Mapping[str, Any]) -> str:
    """Return the answer's value as text; a value that is no text is written as JSON; None beside a choice is empty."""
    value: Any = answer.value
    if isinstance(value, str):
        return value
    return "" if value is None and choice else json_dumps(to_json_types(value)).decode()


def piece_text(piece: Any) -> str:
    """Return a piece of a stream as text; None is empty."""
    return piece if isinstance(piece, str) else "" if piece is None else str(piece)


def tokens_of(reply: Mapping[str, Any]) -> tuple[int, int]:
    """Return the tokens of prompt and answer that the model counted; 0 if it does not count."""
    usage = reply.get("usage")
    counts = [usage.get(key) if isinstance(usage, Mapping) else None for key in ("prompt_tokens", "completion_tokens")]
    prompt, answer = (count if type(count) is int else 0 for count in counts)
    return prompt, answer


def typed_event(data: Mapping[str, Any]) -> bytes:
    """Encode an object as a server-sent event of its type."""
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + json_dumps(data, to_json_types) + b"\n\n"


def finish_of(answer: Answer[Any], choice: Mapping[str, Any]) -> str:
    """Return the finish reason that the choice states; else "length" if the answer's call was cut off or late, else "stop"."""
    if isinstance(reason := choice.get("finish_reason"), str):
        return reason
    if not answer.degraded:  # a trace takes its time
        return "stop"
    events = [event for event in answer.trace.get("events", ()) if event["leg"] == answer.leg]
    return "length" if events and events[-1]["what"] in {"failed", "timeout"} else "stop"


def message_of(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the choice's message; an empty mapping if it has none."""
    message = choice.get("message")
    return message if isinstance(message, Mapping) else {}


def thought_of(choice: Mapping[str, Any]) -> str:
    """Return the text of the thoughts in the choice's message, under either of the keys that servers use; empty without any."""
    message = message_of(choice)
    return next((text for key in ("reasoning_content", "reasoning") if isinstance(text := message.get(key), str) and text), "")


def calls_of(choice: Mapping[str, Any], identity: str) -> list[dict[str, Any]]:
    """Return copies of the choice's tool calls, [] without any. A call without an id gets one, which the client sends back."""
    raw = message_of(choice).get("tool_calls")
    calls = [call for call in raw if isinstance(call, Mapping)] if isinstance(raw, list | tuple) else []
    return [{"type": "function", **call, "id": call.get("id") or f"call-{identity}-{i}"} for i, call in enumerate(calls)]


# The gateway's calls of the router.


class Routing:
    """Calls of one router with the options of a request."""

    def __init__(self, router: AsyncRouter[Any]) -> None:
        self.router = router

    @property
    def rules(self) -> Rules:
        """Egress rules in force."""
        return self.router.engine.snapshot.policy.rules

    async def infer(self, x: Any, wanted: Options) -> Answer[Any]:
        """Route one input and return its answer."""
        with _wrap_exceptions():
            return await self.router.infer(x, **_router_arguments(wanted))

    async def infer_many(self, rows: list[Any], wanted: Options) -> list[Answer[Any]]:
        """Route several inputs and return their answers, in order."""
        with _wrap_exceptions():
            return await self.router.infer_many(rows, **_router_arguments(wanted))

    def stream(self, x: Any, wanted: Options) -> AsyncStream:
        """Start a stream of the answer to one input; errors are raised when it is read."""
        return self.router.stream(x, first_token=wanted.first_token, **_router_arguments(wanted))

    async def pieces(self, stream: AsyncStream) -> AsyncIterator[Any]:
        """Yield the pieces of a stream; exceptions that are not edgeroute's are raised as `NoAnswer`."""
        with _wrap_exceptions():
            async for piece in stream:
                yield piece

    def source(self, stream: AsyncStream) -> dict[str, str]:
        """Return headers with the side and leg of a stream that has begun, or "cache" or "stale" as its side.

        Empty if the policy no longer has that leg.
        """
        leg = stream.leg
        sides = {target.name: target.side for target in self.router.engine.snapshot.watched[0]}
        if leg in sides:
            return {"x-edgeroute-source": sides[leg], "x-edgeroute-leg": ascii_of(leg)}
        return {"x-edgeroute-source": leg} if leg in {"cache", "stale"} else {}  # none: the policy has changed meanwhile


@contextmanager
def _wrap_exceptions() -> Iterator[None]:
    """Raise any exception in the `with` block that is not edgeroute's as `NoAnswer`, with it as its cause.

    A router with one target passes on what a function of the application raised.
    """
    try:
        yield
    except EdgerouteError:
        raise
    except Exception as e:
        raise NoAnswer(f"no answer: {error_text(e)}", {"": e}) from e


def _router_arguments(wanted: Options) -> dict[str, Any]:
    """Return the router's keyword arguments for these options."""
    return {"mode": wanted.mode, "deadline": wanted.deadline, "data_class": wanted.data_class}
