"""OpenAI's response format for a router's answers: whole completions, stream chunks, and headers with the answer's origin.

Also `Routing`, the gateway's calls of the router.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from time import time
from typing import Any

from edgeroute.core.egress import Rules
from edgeroute.core.error_codes import clean, error_text
from edgeroute.errors import EdgerouteError, NoAnswer
from edgeroute.router.async_router import AsyncRouter
from edgeroute.router.streams import AsyncStream
from edgeroute.system.process import json_dumps, to_json_types
from edgeroute.tools.server.access import Options
from edgeroute.tools.server.gateway_requests import CompletionRequest
from edgeroute.types import Answer

MOST_FLOAT = sys.float_info.max
REASON = 400
"""Most characters of a reason, in a header and in the body."""
DONE = b"data: [DONE]\n\n"


def confidence_of(answer: Answer[Any]) -> float | None:
    """Return the answer's confidence as a float; None if there is none or it is not finite."""
    confidence = answer.confidence
    if not isinstance(confidence, float | int) or not abs(confidence) <= MOST_FLOAT:  # an int may be above any float
        return None
    return float(confidence)


def origin_of(answer: Answer[Any]) -> dict[str, Any]:
    """Return the JSON object that tells which leg answered, its confidence, the reason and the latency."""
    return {
        "id": answer.id,
        "source": answer.source,
        "leg": clean(answer.leg, 100),
        "confidence": confidence_of(answer),
        "degraded": answer.degraded,
        **({"malformed": answer.malformed} if answer.degraded and answer.malformed else {}),
        "reason": clean(answer.reason, REASON),
        "latency_s": round(answer.latency_s, 6),
    }


def headers_of(answer: Answer[Any]) -> dict[str, str]:
    """Return the answer's origin as response headers, made ASCII on one line, without what is unknown."""
    origin = origin_of(answer)
    headers = {
        f"x-edgeroute-{name}": str(origin[name])
        for name in ("id", "source", "leg", "reason", "confidence")
        if origin[name] is not None
    }
    if answer.degraded:
        headers["x-edgeroute-degraded"] = "true"
    return {name: ascii_of(text) for name, text in headers.items()}


def ascii_of(text: str) -> str:
    """Return a text with every character that a header cannot have replaced by "?"."""
    return "".join(c if " " <= c <= "~" else "?" for c in text).strip()


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
        """Return the body of a reply that is not streamed, with the origin of the answer as `edgeroute`."""
        reply = _reply(answer)
        choice = _choice(reply)
        text, content = _text(answer, choice), dict[str, Any]()
        if self.request.chat:
            message = {**_message(choice), "role": "assistant", "content": text}
            message.pop("tool_calls", None)
            if calls := _calls(choice, answer.id):
                message |= {"content": text or None, "tool_calls": calls}
            content["message"] = message
        else:
            content["text"] = text
        body = {**self._whole, "id": self._id(answer.id)}
        body["choices"] = [{"index": 0, **content, "logprobs": self._logprobs(choice), "finish_reason": _finish(answer, choice)}]
        if isinstance(reply.get("usage"), Mapping):
            body["usage"] = reply["usage"]
        body["edgeroute"] = origin_of(answer)
        return body

    def begin(self) -> bytes:
        """Draw the stream's id at random and return its first chunk, with the role; empty for a text completion.

        Call it before `piece` and `end`.
        """
        self._chunk["id"] = self._id(os.urandom(9).hex())
        head, tail = json_dumps(self._text_chunk(_MARK)).rsplit(_MARKED, 1)
        self._head, self._tail = b"data: " + head, tail + b"\n\n"
        if not self.request.chat:
            return b""
        return self._event({**self._chunk, "choices": [self._chunk_choice({"role": "assistant", "content": ""})]})

    def piece(self, text: Any) -> bytes:
        """Return a chunk with a piece of the text; empty bytes if the piece is empty."""
        text = text if isinstance(text, str) else "" if text is None else str(text)
        return b"".join((self._head, json_dumps(text), self._tail)) if text else b""

    def end(self, answer: Answer[Any]) -> Iterator[bytes]:
        """Yield the last chunks: tool calls, the finish reason with the origin, the usage if requested, and `[DONE]`."""
        reply = _reply(answer)
        choice = _choice(reply)
        if self.request.chat and (calls := _calls(choice, answer.id)):
            indexed = [{**call, "index": i} for i, call in enumerate(calls)]
            yield self._event({**self._chunk, "choices": [self._chunk_choice({"tool_calls": indexed})]})
        last = self._chunk_choice({}, finish=_finish(answer, choice), logprobs=self._logprobs(choice))
        about = {"edgeroute": origin_of(answer)}
        usage = reply.get("usage")
        if not (self.request.usage and isinstance(usage, Mapping)):
            yield self._event({**self._chunk, "choices": [last], **about})
        else:
            yield self._event({**self._chunk, "choices": [last]})
            yield self._event({**self._chunk, "choices": [], "usage": usage, **about})
        yield DONE

    def _id(self, identity: str) -> str:
        """Return an identity with OpenAI's prefix."""
        return f"{'chatcmpl' if self.request.chat else 'cmpl'}-{identity}"

    def _logprobs(self, choice: Mapping[str, Any]) -> Any:
        """Return the choice's logprobs in OpenAI's form of chats or of texts if the request asked for them, else None."""
        logprobs = choice.get("logprobs") if self.request.logprobs else None
        content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if self.request.chat or not isinstance(content, list):
            return logprobs
        tokens = [str(token.get("token", "")) for token in content]
        return {
            "tokens": tokens,
            "token_logprobs": [token.get("logprob") for token in content],
            "top_logprobs": [
                {top.get("token", ""): top.get("logprob") for top in token.get("top_logprobs") or ()} for token in content
            ],
            "text_offset": [0, *accumulate(map(len, tokens))][: len(tokens)],
        }

    def _text_chunk(self, text: str) -> dict[str, Any]:
        """Return the object of a chunk with this text."""
        return {**self._chunk, "choices": [self._chunk_choice({"content": text})]}

    def _chunk_choice(self, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        """Return a chunk's only entry of `choices`."""
        content: dict[str, Any] = {"delta": delta} if self.request.chat else {"text": delta.get("content", "")}
        return {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, data: dict[str, Any]) -> bytes:
        """Encode an object as a server-sent event, arrays as plain data."""
        return b"data: " + json_dumps(data, to_json_types) + b"\n\n"


_MARK = "\N{SYMBOL FOR SUBSTITUTE}"
_MARKED = json_dumps(_MARK)


def error_event(error: dict[str, Any]) -> bytes:
    """Encode an error as a server-sent event within a stream, in the form that OpenAI's clients read."""
    return b"data: " + json_dumps(error) + b"\n\n"


def _reply(answer: Answer[Any]) -> Mapping[str, Any]:
    """Return the completion object that a model or server returned; an empty mapping if the outputs are something else."""
    outputs = answer.outputs
    return outputs if isinstance(outputs, Mapping) and isinstance(outputs.get("choices"), list | tuple) else {}


def _choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first choice of a completion; an empty mapping if there is none."""
    choices: Any = reply.get("choices") or ({},)
    return choices[0] if isinstance(choices[0], Mapping) else {}


def _text(answer: Answer[Any], choice: Mapping[str, Any]) -> str:
    """Return the answer's value as text; a value that is no text is written as JSON; None beside a choice is empty."""
    value: Any = answer.value
    if isinstance(value, str):
        return value
    return "" if value is None and choice else json_dumps(to_json_types(value)).decode()


def _finish(answer: Answer[Any], choice: Mapping[str, Any]) -> str:
    """Return the finish reason of a choice; "length" for a stream that was cut off, else "stop"."""
    if isinstance(reason := choice.get("finish_reason"), str):
        return reason
    events = [event for event in answer.trace.get("events", ()) if event["leg"] == answer.leg]
    return "length" if events and events[-1]["what"] in {"failed", "timeout"} else "stop"


def _message(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the choice's message; an empty mapping if it has none."""
    message = choice.get("message")
    return message if isinstance(message, Mapping) else {}


def _calls(choice: Mapping[str, Any], identity: str) -> list[dict[str, Any]]:
    """Return the choice's tool calls, [] without any. A call without an id gets one, which the client sends back."""
    raw = _message(choice).get("tool_calls")
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
        """Yield the pieces of a stream, with the application's own exceptions raised as `NoAnswer`."""
        with _wrap_exceptions():
            async for piece in stream:
                yield piece

    def source(self, stream: AsyncStream) -> dict[str, str]:
        """Return headers with the side and leg of a stream that has begun; empty if the policy no longer has that leg."""
        leg = stream.leg
        sides = {target.name: target.side for target in self.router.engine.snapshot.watched[0]}
        if leg in sides:
            return {"x-edgeroute-source": sides[leg], "x-edgeroute-leg": ascii_of(leg)}
        return {"x-edgeroute-source": leg} if leg in {"cache", "stale"} else {}  # none: the policy has changed meanwhile


@contextmanager
def _wrap_exceptions() -> Iterator[None]:
    """Raise any exception that is not edgeroute's as `NoAnswer`.

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
