"""Answers of a router as OpenAI's completions, whole and in chunks, with where they came from."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from time import time
from typing import Any

from edgeroute.core.egress import Rules
from edgeroute.core.words import clean, named
from edgeroute.errors import EdgerouteError, NoAnswer
from edgeroute.router.aio import AsyncRouter
from edgeroute.router.streams import AsyncStream
from edgeroute.system.process import json_dumps, plain
from edgeroute.tools.server.gateway_requests import Asked
from edgeroute.tools.server.guard import Options
from edgeroute.types import Answer

REASON = 400
"""Characters of a reason, in a header and beside the usage."""
DONE = b"data: [DONE]\n\n"


def confidence_of(answer: Answer[Any]) -> float | None:
    """The answer's confidence as JSON can have it."""
    found = answer.confidence
    return float(found) if isinstance(found, float | int) and isfinite(found) else None


def told(answer: Answer[Any]) -> dict[str, Any]:
    """Where an answer came from, and why."""
    return {
        "id": answer.id,
        "source": answer.source,
        "leg": clean(answer.leg, 100),
        "confidence": confidence_of(answer),
        "degraded": answer.degraded,
        "reason": clean(answer.reason, REASON),
        "latency_s": round(answer.latency_s, 6),
    }


def headers_of(answer: Answer[Any]) -> dict[str, str]:
    """The same as headers of a reply: ASCII on one line, whatever a model or a server said."""
    about = told(answer)
    found = {
        f"x-edgeroute-{name}": str(about[name])
        for name in ("id", "source", "leg", "reason", "confidence")
        if about[name] is not None
    }
    if answer.degraded:
        found["x-edgeroute-degraded"] = "true"
    return {name: ascii_of(text) for name, text in found.items()}


def ascii_of(text: str) -> str:
    """A text that a header can have."""
    return "".join(c if " " <= c <= "~" else "?" for c in text).strip()


class Completion:
    """What is said of one request's answer."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.created = int(time())
        kind = "chat.completion" if asked.chat else "text_completion"
        self._whole = {"id": "", "object": kind, "created": self.created, "model": asked.model}
        chunk = "chat.completion.chunk" if asked.chat else "text_completion"
        self._chunk: dict[str, Any] = {**self._whole, "object": chunk}

    def whole(self, answer: Answer[Any]) -> dict[str, Any]:
        """The reply to a request that is answered whole."""
        reply = _reply(answer)
        choice = _choice(reply)
        text, what = _text(answer, choice), dict[str, Any]()
        if self.asked.chat:
            message = {**_message(choice), "role": "assistant", "content": text}
            message.pop("tool_calls", None)
            if calls := _calls(choice, answer.id):
                message |= {"content": text or None, "tool_calls": calls}
            what["message"] = message
        else:
            what["text"] = text
        made = {**self._whole, "id": self._id(answer.id)}
        made["choices"] = [{"index": 0, **what, "logprobs": self._logprobs(choice), "finish_reason": _finish(answer, choice)}]
        if isinstance(reply.get("usage"), Mapping):
            made["usage"] = reply["usage"]
        made["edgeroute"] = told(answer)
        return made

    def begin(self) -> bytes:
        """The first chunk of a stream, which has the role. Empty: there is none."""
        self._chunk["id"] = self._id(os.urandom(9).hex())
        head, tail = json_dumps(self._chunked(_MARK)).rsplit(_MARKED, 1)
        self._head, self._tail = b"data: " + head, tail + b"\n\n"
        if not self.asked.chat:
            return b""
        return self._event({**self._chunk, "choices": [self._of({"role": "assistant", "content": ""})]})

    def piece(self, text: Any) -> bytes:
        """A chunk with a piece of the text; empty: there is nothing in it."""
        text = text if isinstance(text, str) else "" if text is None else str(text)
        return b"".join((self._head, json_dumps(text), self._tail)) if text else b""

    def end(self, answer: Answer[Any]) -> Iterator[bytes]:
        """The last chunks: calls of tools, why it ended, and with the usage, if that was asked for, where it came from."""
        reply = _reply(answer)
        choice = _choice(reply)
        if self.asked.chat and (calls := _calls(choice, answer.id)):
            named = [{**call, "index": i} for i, call in enumerate(calls)]
            yield self._event({**self._chunk, "choices": [self._of({"tool_calls": named})]})
        last = self._of({}, finish=_finish(answer, choice), logprobs=self._logprobs(choice))
        about = {"edgeroute": told(answer)}
        usage = reply.get("usage")
        if not (self.asked.usage and isinstance(usage, Mapping)):
            yield self._event({**self._chunk, "choices": [last], **about})
        else:
            yield self._event({**self._chunk, "choices": [last]})
            yield self._event({**self._chunk, "choices": [], "usage": usage, **about})
        yield DONE

    def _id(self, identity: str) -> str:
        return f"{'chatcmpl' if self.asked.chat else 'cmpl'}-{identity}"

    def _logprobs(self, choice: Mapping[str, Any]) -> Any:
        return choice.get("logprobs") if self.asked.logprobs else None

    def _chunked(self, text: str) -> dict[str, Any]:
        return {**self._chunk, "choices": [self._of({"content": text})]}

    def _of(self, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        what: dict[str, Any] = {"delta": delta} if self.asked.chat else {"text": delta.get("content", "")}
        return {"index": 0, **what, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, data: dict[str, Any]) -> bytes:
        return b"data: " + json_dumps(data, plain) + b"\n\n"


_MARK = "\N{SYMBOL FOR SUBSTITUTE}"
_MARKED = json_dumps(_MARK)


def event_of(error: dict[str, Any]) -> bytes:
    """An error within a stream, as OpenAI's clients know it."""
    return b"data: " + json_dumps(error) + b"\n\n"


def _reply(answer: Answer[Any]) -> Mapping[str, Any]:
    """The completion that a model or server gave; empty: it gave something else."""
    found = answer.outputs
    return found if isinstance(found, Mapping) and isinstance(found.get("choices"), list | tuple) else {}


def _choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices: Any = reply.get("choices") or ({},)
    return choices[0] if isinstance(choices[0], Mapping) else {}


def _text(answer: Answer[Any], choice: Mapping[str, Any]) -> str:
    value: Any = answer.value
    if isinstance(value, str):
        return value
    return "" if value is None and choice else json_dumps(plain(value)).decode()


def _finish(answer: Answer[Any], choice: Mapping[str, Any]) -> str:
    """Why it ended. A stream that was cut, and whose answer is what had come, has the word for a truncated one."""
    if isinstance(found := choice.get("finish_reason"), str):
        return found
    events = [event for event in answer.trace.get("events", ()) if event["leg"] == answer.leg]
    return "length" if events and events[-1]["what"] in {"failed", "timeout"} else "stop"


def _message(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    found = choice.get("message")
    return found if isinstance(found, Mapping) else {}


def _calls(choice: Mapping[str, Any], identity: str) -> list[dict[str, Any]]:
    """Calls of tools, each with an id, which a client sends back with its result."""
    given = _message(choice).get("tool_calls")
    calls = [call for call in given if isinstance(call, Mapping)] if isinstance(given, list | tuple) else []
    return [{"type": "function", **call, "id": call.get("id") or f"call-{identity}-{i}"} for i, call in enumerate(calls)]


# The router, as the gateway asks it.


class Routing:
    """Calls of one router, with the options of requests."""

    def __init__(self, router: AsyncRouter[Any]) -> None:
        self.router = router

    @property
    def rules(self) -> Rules:
        """The egress rules in force."""
        return self.router.engine.snapshot.policy.rules

    async def infer(self, x: Any, wanted: Options) -> Answer[Any]:
        """The answer to one input."""
        with _coded():
            return await self.router.infer(x, **_arguments(wanted))

    async def infer_many(self, rows: list[Any], wanted: Options) -> list[Answer[Any]]:
        """The answers to several."""
        with _coded():
            return await self.router.infer_many(rows, **_arguments(wanted))

    def stream(self, x: Any, wanted: Options) -> AsyncStream:
        """The answer in pieces."""
        return self.router.stream(x, first_token=wanted.first_token, **_arguments(wanted))

    async def pieces(self, stream: AsyncStream) -> AsyncIterator[Any]:
        """The pieces of it."""
        with _coded():
            async for piece in stream:
                yield piece

    def source(self, stream: AsyncStream) -> dict[str, str]:
        """What is known at a stream's first piece of where it comes from, as headers."""
        leg = stream.leg
        sides = {target.name: target.side for target in self.router.engine.snapshot.watched[0]}
        if leg in sides:
            return {"x-edgeroute-source": sides[leg], "x-edgeroute-leg": ascii_of(leg)}
        return {"x-edgeroute-source": leg} if leg in {"cache", "stale"} else {}  # none: the policy has changed meanwhile


@contextmanager
def _coded() -> Iterator[None]:
    """Raises what a function of the application raised, which a router with one target passes on, as `NoAnswer`."""
    try:
        yield
    except EdgerouteError:
        raise
    except Exception as e:
        raise NoAnswer(f"no answer: {named(e)}", {"": e}) from e


def _arguments(wanted: Options) -> dict[str, Any]:
    return {"mode": wanted.mode, "deadline": wanted.deadline, "data_class": wanted.data_class}
