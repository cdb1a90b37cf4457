"""OpenAI's Responses API on the gateway: `read_request` makes a chat for the router of a request, `ResponseReply` its reply.

`StoredResponses` has the conversations that a request may continue: at most 1,000, and 32 MiB, in this process's memory alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from time import time
from typing import Any, Final, NamedTuple

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import BadInput
from edgeroute.router.private_conversations_and_digest_store import SCOPE
from edgeroute.system.json_codec_and_short_repr import json_dumps, to_json_types
from edgeroute.tools.server import openai_chat_completions as openai
from edgeroute.tools.server.access_limits_call_options import Fault
from edgeroute.tools.server.client_messages_and_json_bounds import client_messages, extra_of
from edgeroute.types import Answer

# Keys that usual clients send and that are not passed on
IGNORED: Final = (
    "include", "truncation", "service_tier", "max_tool_calls", "stream_options", "prompt_cache_retention", "prompt_cache_options",
)  # fmt: skip
HANDLED: Final = (
    *IGNORED, "model", "stream", "store", "metadata", "input", "instructions", "previous_response_id", "max_output_tokens",
    "tools", "tool_choice", "text", "reasoning", "background", "top_logprobs",
)  # fmt: skip
# Keys of a request that its response has, too.
ECHOED: Final = (
    "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "previous_response_id", "temperature", "text",
    "tool_choice", "tools", "top_p",
)  # fmt: skip
# Maximum responses that are stored, and bytes of their messages as JSON, of which each counts once.
MOST_STORED, MOST_STORED_BYTES = 1_000, 32 << 20


class Stored(NamedTuple):
    """Stored response."""

    messages: list[dict[str, Any]]  # the conversation up to it, itself included; empty if they were too large
    size: int  # bytes of their JSON
    scope: bytes  # digest of its conversation's key


class _Conversation:
    """Responses that continue each other, all with the same first message.

    Attributes:
        size: bytes of their messages, of which each counts once.
        used: number of the response that was stored last.
        identities: identities of the responses, the oldest first.
    """

    def __init__(self) -> None:
        self.size, self.used, self.identities = 0, 0, dict[str, None]()


class StoredResponses:
    """Messages of the responses that a later request may continue, in the memory of this process alone.

    Each has the key of its request's conversation, of which a later request continues to be.

    Responses of a conversation share the messages before them, which count once, until the last one that has them is discarded.
    No conversation takes the place of all others: beyond 1,000 responses the longest one loses its oldest; beyond 32 MiB one that
    is large or old loses as many as needed. The identities of the latter stay, for the error's text.

    It has no lock: the event loop alone writes to it; the parser thread, which reads large requests, calls `get`.
    """

    def __init__(self) -> None:
        self._stored = dict[str, Stored]()
        self._conversations = dict[int, _Conversation]()  # by the `id` of the first message; 0: those without messages
        self._messages = dict[int, list[int]]()  # by the `id` of a message: its bytes, and the stored responses that have it
        self._size = self._number = 0  # bytes of all messages; responses ever stored

    def get(self, identity: Any) -> Stored:
        """Return a stored response, of which nothing is a copy.

        Raises:
            BadInput: it is not stored here, or no longer.
        """
        stored = self._stored.get(identity) if isinstance(identity, str) else None
        if stored is None:
            raise BadInput("previous_response_id names no response that is stored here: send the conversation as input")
        if not stored.messages:
            raise BadInput(
                "previous_response_id names a response that is not stored, as its conversation is too large: all together have"
                f" {MOST_STORED_BYTES} bytes at most; send the conversation as input"
            )
        return stored

    def put(self, identity: str, messages: list[dict[str, Any]]) -> None:
        """Store the messages of a response with a new identity, without a lock: call it in the request's task on the event loop.

        Those of an earlier response have to be the same objects. What alone has more than 32 MiB of JSON is not stored. Then
        discards the responses beyond 32 MiB: of the conversation with the most bytes, times the responses stored since its last.
        """
        sizes = [
            self._messages[id(message)][0] if id(message) in self._messages else len(json_dumps(message, to_json_types))
            for message in messages
        ]
        if sum(sizes) > MOST_STORED_BYTES:
            messages, sizes = [], []
        self._number += 1
        self._add(identity, Stored(messages, sum(sizes), SCOPE.get()), sizes)
        conversations = self._conversations.values()
        while self._size > MOST_STORED_BYTES:
            largest = max(conversations, key=lambda c: c.size * (self._number - c.used + 1))
            oldest = next(iter(largest.identities))
            self._add(oldest, self._remove(oldest)._replace(messages=[], size=0), [])
        while len(self._stored) > MOST_STORED:
            longest = max(conversations, key=lambda c: (len(c.identities), -c.used))
            self._remove(next(iter(longest.identities)))

    def delete(self, identity: str) -> bool:
        """Delete a response. Return True if it was stored."""
        return identity in self._stored and bool(self._remove(identity).messages)

    def _add(self, identity: str, stored: Stored, sizes: list[int]) -> None:
        """Add a response, whose messages have these sizes, and count those messages that no other response has."""
        self._stored[identity] = stored
        conversation = self._conversations.setdefault(_first(stored), _Conversation())
        conversation.identities[identity], conversation.used = None, self._number
        for message, size in zip(stored.messages, sizes, strict=True):
            if id(message) not in self._messages:
                self._messages[id(message)] = [size, 0]
                conversation.size += size
                self._size += size
            self._messages[id(message)][1] += 1

    def _remove(self, identity: str) -> Stored:
        """Remove a response, and count its messages no longer that no other one has; return it."""
        stored = self._stored.pop(identity)
        conversation = self._conversations[_first(stored)]
        del conversation.identities[identity]
        for message in stored.messages:
            counted = self._messages[id(message)]
            counted[1] -= 1
            if not counted[1]:
                del self._messages[id(message)]
                conversation.size -= counted[0]
                self._size -= counted[0]
        if not conversation.identities:
            del self._conversations[_first(stored)]
        return stored


def _first(stored: Stored) -> int:
    """Return the `id` of the first message of a response, by which its conversation is known; 0 if it has no messages."""
    return id(stored.messages[0]) if stored.messages else 0


def read_request(
    body: Mapping[str, Any], *, names: Collection[str], allow: Collection[str] = (), stored: StoredResponses
) -> openai.CompletionRequest:
    """Translate the parsed body of `/v1/responses` to a chat for the router: instructions, an earlier response's messages, input.

    Items are messages, calls of functions, their outputs and reasoning. Tools are functions of the client. The effort of
    reasoning is passed on only if `allow` has "reasoning_effort"; keys in `IGNORED` never. Nothing is stored yet: the result has
    the messages to store, without the instructions; None if `store` is false. May run in the parser thread.

    Raises:
        BadInput: the request has an unsupported or invalid option or item, or continues a response that is not stored.
        HTTPException: 404, for another model.
    """
    model, stream = openai.check_names(body, names)
    for key in ("background", "conversation", "prompt"):
        if body.get(key):
            raise BadInput(f"{key} is not supported: send the whole request, and wait for the answer")
    instructions, items = body.get("instructions"), body.get("input")
    if not isinstance(instructions, str | None):
        raise BadInput("instructions is a text")
    previous = body.get("previous_response_id")
    earlier = Stored([], 0, b"") if previous is None else stored.get(previous)
    if not isinstance(store := body.get("store"), bool | None):
        raise BadInput("store is true or false")
    messages = [*earlier.messages, *_chat_messages(items)]
    system = [{"role": "system", "content": instructions}] if instructions else []
    keys = {key: value for key, value in body.items() if key not in HANDLED}
    keys |= {"max_completion_tokens": body.get("max_output_tokens"), "response_format": _response_format(body.get("text"))}
    keys |= {"tools": _tools(body.get("tools")), "tool_choice": _tool_choice(body.get("tool_choice"))}
    if "reasoning_effort" in allow and isinstance(reasoning := body.get("reasoning"), Mapping):  # else it is the policy's
        keys["reasoning_effort"] = reasoning.get("effort")
    x = {"messages": client_messages([*system, *messages]), **openai.client_keys(keys, (), allow)}
    echo = {key: body[key] for key in ECHOED if body.get(key) is not None}
    if not isinstance(included := body.get("include") or [], list):
        raise BadInput("include is a list of names")
    logprobs = "message.output_text.logprobs" in included
    kept = None if store is False else messages
    return openai.CompletionRequest(x, True, model, stream, True, logprobs, echo, kept, earlier.scope, earlier.size)


def _chat_messages(items: Any) -> list[dict[str, Any]]:
    """Return an input, a text or a list of items, as chat messages. Raises BadInput for other items.

    Successive calls join the message of the assistant before them. Reasoning becomes `reasoning_content` of the assistant's
    message that it belongs to, this or the next one.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages, thought = list[dict[str, Any]](), ""
    for item in openai.objects(items or None, 'input is a text, or a list of items such as {"role": "user", "content": ...}'):
        kind = item.get("type") or "message"
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _content(item.get("content"), item.get("role"))})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function, **extra_of(item)}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = _content(item.get("output"), "tool")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind == "reasoning":
            thought = _reasoning_text(item)
        else:
            raise BadInput(f"an item of type {clean(str(kind), 40)!r}: send messages, calls of functions, outputs")
        if thought and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("reasoning_content", thought)
            thought = ""
    return messages


def _reasoning_text(item: Mapping[str, Any]) -> str:
    """Return the text of a reasoning item; empty if it is encrypted, or has none."""
    parts = item.get("content") or item.get("summary") or []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    return "\n".join(text for text in texts if isinstance(text, str))


def _content(content: Any, role: Any) -> Any:
    """Return the content of a message as that of a chat: text, None, or see `content_of`.

    Raises BadInput for others.
    """
    if isinstance(content, str) or content is None:
        return content
    parts = [_part(part) for part in openai.objects(content, "content is a text, or a list of parts")]
    return openai.content_of(parts, role)


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a message, a text, refusal, image, file or sound within the request, as that of a chat.

    Raises BadInput for others, such as files that another server stores.
    """
    kind, text = part.get("type"), part.get("text")
    if kind in ("input_text", "output_text", "text") and isinstance(text, str):
        return {"type": "text", "text": text}
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind == "input_image" and isinstance(url := part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") not in (None, "auto") else {}
        return {"type": "image_url", "image_url": {"url": url, **detail}}
    if kind == "input_file" and part.get("file_data"):
        return {"type": "file", "file": {key: part[key] for key in ("filename", "file_data") if part.get(key)}}
    if kind == "input_audio" and part.get("input_audio"):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise BadInput(f"a part of type {clean(str(kind), 40)!r}: send texts, images and files within the request")


def _tools(tools: Any) -> Any:
    """Return the functions of a request as a chat has them, without unknown keys; None for none.

    Raises BadInput for a server's tool, and for another form than a list.
    """
    if not tools:
        return None
    for tool in openai.objects(tools, "tools is a list of functions"):
        if tool.get("type") != "function":
            raise BadInput(f"the tool {clean(str(tool.get('type')), 40)!r} is a server's: send functions of your own")
    names = ("name", "description", "parameters", "strict")
    return [
        {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}} for tool in tools
    ]


def _tool_choice(choice: Any) -> Any:
    """Return `tool_choice` as a chat has it: a function by its name; anything else as it is."""
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _response_format(text: Any) -> Any:
    """Return the format of a response's text as a chat has it: a JSON schema in its own object, others as they are.

    None: plain text. Raises BadInput for what is no object.
    """
    wanted = text.get("format") if isinstance(text, Mapping) else text
    if not isinstance(wanted, Mapping | None):
        raise BadInput("text is an object, and its format, too")
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted.get("type") != "json_schema":
        return dict(wanted)
    names = ("name", "description", "schema", "strict")
    return {"type": "json_schema", "json_schema": {name: wanted[name] for name in names if wanted.get(name) is not None}}


class ResponseReply:
    """Builder of the reply to one request of `/v1/responses`: a response, or the events of a stream.

    Args:
        request: the request.
        stored: receives the messages of a response that is stored.
    """

    def __init__(self, request: openai.CompletionRequest, stored: StoredResponses) -> None:
        self._request, self._stored, self._number, self._text = request, stored, 0, list[str]()
        self._item = f"msg_{os.urandom(12).hex()}"
        self._response: dict[str, Any] = {
            "id": f"resp_{os.urandom(18).hex()}", "object": "response", "created_at": int(time()), "status": "in_progress",
            "error": None, "incomplete_details": None, "model": request.model, "output": [], "parallel_tool_calls": True,
            "tool_choice": "auto", "tools": [], "instructions": None, "metadata": {}, "previous_response_id": None,
            "temperature": None, "top_p": None, "usage": None, **request.echo, "store": request.messages is not None,
        }  # fmt: skip

    def body(self, answer: Answer[Any]) -> dict[str, Any]:
        """Return the whole response, with the answer's origin as `edgeroute`; store its messages unless the request forbids it.

        Stored are those of the request, and the answer's text, calls and reasoning. The status is "incomplete" if the
        model was cut off by a limit of tokens or a filter. Calls and reasoning get new random ids. Call it once.
        """
        reply, choice = openai.reply_of(answer)
        text, calls = openai.text_of(answer, choice), openai.calls_of(choice, answer.id)
        thought = openai.thought_of(choice)
        output = [_reasoning(thought)] if thought else []
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(openai.finish_of(answer, choice))
        status = "incomplete" if cut else "completed"
        output += [self._message(text, choice, status)] if text or not calls else []
        output += [_call_item(call) for call in calls]
        if self._request.messages is not None:
            said = {"content": text or None, "tool_calls": calls} if calls else {"content": text}
            said |= {"reasoning_content": thought} if thought else {}
            self._stored.put(self._response["id"], [*self._request.messages, {"role": "assistant", **said}])
        response = {**self._response, "status": status, "incomplete_details": {"reason": cut} if cut else None}
        return {**response, "output": output, "usage": _usage(reply), "edgeroute": openai.origin_of(answer)}

    def begin(self) -> bytes:
        """Return the first two events of a stream, which have the response without output; each event gets the next number."""
        return b"".join(self._event(f"response.{name}", response=self._response) for name in ("created", "in_progress"))

    def piece(self, text: Any) -> bytes:
        """Return the event of a piece of the text, the first one after those that open the message; empty for an empty piece.

        The piece is kept, as a sign that the message is open.
        """
        if not (text := openai.piece_text(text)):
            return b""
        opening = b"" if self._text else self._open()
        self._text.append(text)
        return opening + self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def end(self, answer: Answer[Any]) -> Iterator[bytes]:
        """Yield the last events: the end of the message, calls of functions, then reasoning, and the whole response.

        Stores the messages, as `body` does, when the first event is taken.
        """
        response = self.body(answer)
        response["output"].sort(key=lambda item: item["type"] == "reasoning")
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                yield (b"" if self._text else self._open()) + self._close(item)
                continue
            empty = {**item, "status": "in_progress", **({"arguments": ""} if item["type"] == "function_call" else {})}
            yield self._event("response.output_item.added", output_index=index, item=empty)
            if item["type"] == "function_call":
                place, arguments = {"item_id": item["id"], "output_index": index}, item["arguments"]
                yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
                yield self._event("response.function_call_arguments.done", **place, arguments=arguments, name=item["name"])
            yield self._event("response.output_item.done", output_index=index, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    def error(self, fault: Fault) -> bytes:
        """Return an error within a stream as an event."""
        return self._event("error", code=fault.code, message=fault.message, param=None)

    def _open(self) -> bytes:
        """Return the two events that open the message: its item and its empty text."""
        item = {"id": self._item, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        added = self._event("response.output_item.added", output_index=0, item=item)
        return added + self._event("response.content_part.added", **self._place(), part=part)

    def _close(self, item: dict[str, Any]) -> bytes:
        """Return the three events that close the message: its text, its content and its item."""
        part = item["content"][0]
        text = self._event("response.output_text.done", **self._place(), text=part["text"], logprobs=[])
        done = self._event("response.content_part.done", **self._place(), part=part)
        return text + done + self._event("response.output_item.done", output_index=0, item=item)

    def _place(self) -> dict[str, Any]:
        """Return the keys of an event that name the text of the message."""
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _message(self, text: str, choice: Mapping[str, Any], status: str) -> dict[str, Any]:
        """Return the item of a message with its text, and the logprobs if the request asked for them.

        A refusal is a part of its own, but in a stream, where it was sent as text.
        """
        logprobs = choice.get("logprobs") if self._request.logprobs else None
        tokens = (logprobs.get("content") if isinstance(logprobs, Mapping) else None) or []
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}
        if text and not self._request.stream and openai.message_of(choice).get("refusal") == text:
            part = {"type": "refusal", "refusal": text}
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": [part]}

    def _event(self, kind: str, **fields: Any) -> bytes:
        """Encode fields as a server-sent event of a type, with the next number."""
        self._number += 1
        return openai.typed_event({"type": kind, **fields, "sequence_number": self._number - 1})


def _reasoning(text: str) -> dict[str, Any]:
    """Return the item of a model's reasoning."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": f"rs_{os.urandom(12).hex()}", "type": "reasoning", "summary": [], "content": content}


def _call_item(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the item of a call of a function, with a new random id and the call's own; arguments that are missing are "{}"."""
    fields: Mapping[str, Any] = given if isinstance(given := call.get("function"), Mapping) else {}
    return {
        "id": f"fc_{os.urandom(12).hex()}", "type": "function_call", "call_id": call["id"], "name": fields.get("name"),
        "arguments": str(fields.get("arguments") or "{}"), "status": "completed", **extra_of(call),
    }  # fmt: skip


def _usage(reply: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the tokens that the model counted in the API's form, 0 for what it does not count; None if it counts none."""
    if not isinstance(usage := reply.get("usage"), Mapping):
        return None
    prompt, answer = openai.tokens_of(reply)
    parts = [usage.get(f"{of}_tokens_details") for of in ("prompt", "completion")]
    known = {key: count for part in parts if isinstance(part, Mapping) for key, count in part.items() if type(count) is int}
    return {
        "input_tokens": prompt, "output_tokens": answer, "total_tokens": prompt + answer,
        "input_tokens_details": {key: known.get(key, 0) for key in ("cached_tokens", "cache_write_tokens")},
        "output_tokens_details": {"reasoning_tokens": known.get("reasoning_tokens", 0)},
    }  # fmt: skip
