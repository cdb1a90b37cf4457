"""Anthropic's Messages API on the gateway: `read_request` makes a chat of a request, `MessageReply` its reply.

`count_tokens` is an estimate.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from edgeroute.cloud.openai import IMAGE
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import BadInput
from edgeroute.system.json_codec_and_short_repr import json_dumps
from edgeroute.system.untrusted_files import parse_json
from edgeroute.tools.server import openai_chat_completions as openai
from edgeroute.tools.server.access_limits_call_options import Fault, NoThreads
from edgeroute.tools.server.client_messages_and_json_bounds import client_messages, extra_of
from edgeroute.types import Answer

# Keys that usual clients send and that are not passed on. `thinking`: how a model thinks is the policy's.
IGNORED: Final = ("metadata", "service_tier", "thinking", "inference_geo", "context_management", "cache_control")
HANDLED: Final = (
    *IGNORED, "model", "stream", "messages", "system", "stop_sequences", "tools", "tool_choice", "output_config", "output_format",
)  # fmt: skip
# Finish reason of a chat -> Anthropic's stop reason; all others are `end_turn`, or `tool_use` if there are calls.
STOPS: Final = {"length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use", "content_filter": "refusal"}
# Bytes of a request that count as one token where tokens are estimated: more than the 4 of English prose, as code has.
BYTES_PER_TOKEN: Final = 3


def read_request(body: Mapping[str, Any], *, names: Collection[str], allow: Collection[str] = ()) -> openai.CompletionRequest:
    """Translate the parsed body of `/v1/messages` to a chat for the router; the text of `system` becomes its first message.

    Blocks of text, images (Base64 or an address), calls of tools and their results are translated; `thinking` of earlier answers
    is left out, and so are the keys in `IGNORED`. Tools are functions of the client.

    Raises:
        NoThreads: the server shall keep the conversation (`thread`).
        BadInput: the request has an unsupported or invalid option or block.
        HTTPException: 404, for another model.
    """
    model, stream = openai.check_names(body, names)
    if body.get("thread") is not None and "thread" not in allow:
        raise NoThreads("no conversation is kept for later messages: send all of it, without the key 'thread'")
    if not isinstance(messages := body.get("messages"), list) or not messages:
        raise BadInput('messages is a list of one or more {"role": ..., "content": ...}')
    chat = [{"role": "system", "content": _text(body["system"], "system")}] if body.get("system") else []
    for message in messages:
        chat += _chat_messages(message)
    keys = {key: value for key, value in body.items() if key not in HANDLED}
    keys |= {"stop": body["stop_sequences"]} if body.get("stop_sequences") else {}
    if body.get("tools"):
        keys["tools"] = [_tool(tool) for tool in openai.objects(body["tools"], "tools is a list of objects")]
    keys |= _tool_choice(body.get("tool_choice"))
    keys |= _response_format(body)
    x = {"messages": client_messages(chat), **openai.client_keys(keys, (), allow)}
    return openai.CompletionRequest(x, True, model, stream, True, False)


def count_tokens(request: openai.CompletionRequest) -> dict[str, int]:
    """Return an estimate of a request's tokens: one for `BYTES_PER_TOKEN` bytes of its JSON, rounded up, and `IMAGE` an image."""
    lists = [content for message in request.x["messages"] if isinstance(content := message["content"], list)]
    images = [part["image_url"] for parts in lists for part in parts if "image_url" in part]
    size = len(json_dumps(request.x)) - sum(len(json_dumps(image)) for image in images)
    return {"input_tokens": -(-size // BYTES_PER_TOKEN) + IMAGE * len(images)}


def _text(content: Any, what: str) -> str:
    """Return a text as it is, or the texts of a list of text blocks, joined by line breaks.

    Raises BadInput, which names `what`, for anything else.
    """
    if isinstance(content, str):
        return content
    blocks = openai.objects(content, f"{what} is a list of objects")
    if any(block.get("type") != "text" or not isinstance(block.get("text"), str) for block in blocks):
        raise BadInput(f'{what} is a text or a list of {{"type": "text", "text": ...}}')
    return "\n".join(block["text"] for block in blocks)


def _chat_messages(message: Any) -> list[dict[str, Any]]:
    """Return the chat messages of one message: results of tools, each its own message, then the rest of the turn, if any.

    Texts of the assistant are joined by line breaks. Blocks of `thinking` are left out. A message of the system stays at its
    place, and has texts alone. Raises BadInput for another role or block.
    """
    role = message.get("role") if isinstance(message, Mapping) else None
    if role == "system":
        return [{"role": role, "content": _text(message.get("content"), "the content of the system's message")}]
    if role not in ("user", "assistant"):
        raise BadInput("a message has the role user, assistant or system")
    if isinstance(content := message.get("content"), str):
        return [{"role": role, "content": content}]
    results, parts, calls = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for block in openai.objects(content, "content is a list of objects"):
        kind = block.get("type")
        if kind == "tool_result" and role == "user":
            results += _tool_result(block)
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": json_dumps(block.get("input") or {}).decode()}
            calls.append({"id": block.get("id"), "type": "function", "function": function, **extra_of(block)})
        elif kind not in ("thinking", "redacted_thinking"):
            parts.append(_part(block))
    if not parts and not calls:
        return results
    plain = openai.content_of(parts, role)
    said = {"content": plain or None, "tool_calls": calls} if calls else {"content": plain}
    return [*results, {"role": role, **said}]


def _part(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block of text or an image, Base64 as a data URL, as a part of a chat message.

    Raises BadInput for another block.
    """
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    source = block.get("source")
    if block.get("type") == "image" and isinstance(source, Mapping):
        if source.get("type") == "base64":
            return {"type": "image_url", "image_url": {"url": f"data:{source.get('media_type')};base64,{source.get('data')}"}}
        if source.get("type") == "url":
            return {"type": "image_url", "image_url": {"url": source.get("url")}}
    raise BadInput(f"a block of type {clean(str(block.get('type')), 40)!r}: send text, image, tool_use, tool_result")


def _tool_result(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a tool's result as a message of the tool, after "Error: " if it failed; its images follow as a message of the user.

    Raises BadInput for blocks other than texts and images.
    """
    content = block.get("content") or ""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [_part(part) for part in openai.objects(blocks, "a tool's result is a list of objects")]
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    images = [part for part in parts if part["type"] != "text"]
    content = f"Error: {text}" if block.get("is_error") else text
    result = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
    return [result, *([{"role": "user", "content": images}] if images else [])]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's tool as a function of a chat. Raises BadInput for a tool that a server would run."""
    if tool.get("type") not in (None, "custom"):
        raise BadInput(f"the tool {clean(str(tool['type']), 40)!r} is a server's: send tools of your own, with input_schema")
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema")}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _tool_choice(choice: Any) -> dict[str, Any]:
    """Return the keys of a chat for `tool_choice`, {} without one: `any` becomes `required`, and parallel calls may be disabled.

    Raises BadInput for an unknown choice.
    """
    if choice is None:
        return {}
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    plain = {"auto": "auto", "any": "required", "none": "none"}
    if kind == "tool":
        chosen: Any = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in plain:
        chosen = plain[kind]
    else:
        raise BadInput("tool_choice is an object of the type auto, any, tool or none")
    single = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") is True else {}
    return {"tool_choice": chosen, **single}


def _response_format(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the key of a chat for an answer by the JSON schema in `output_format` or `output_config`; {} without one.

    Raises BadInput for another format.
    """
    config = body.get("output_config")
    wanted = body.get("output_format") or (config.get("format") if isinstance(config, Mapping) else None)
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping) or wanted.get("type") != "json_schema":
        raise BadInput('the format of the output is {"type": "json_schema", "schema": ...}')
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.get("schema")}}}


class MessageReply:
    """Builder of the reply to one request of `/v1/messages`: a message, or the events of a stream."""

    def __init__(self, request: openai.CompletionRequest) -> None:
        self._message: dict[str, Any] = {
            "id": f"msg_{os.urandom(12).hex()}", "type": "message", "role": "assistant", "model": request.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 0, "output_tokens": 0},
        }  # fmt: skip
        self._open = False

    def body(self, answer: Answer[Any]) -> dict[str, Any]:
        """Return the whole message: text, calls of tools, stop reason, usage, and the origin of the answer as `edgeroute`."""
        _, choice = openai.reply_of(answer)
        text, uses = openai.text_of(answer, choice), _uses(answer, choice)
        content = [*([{"type": "text", "text": text}] if text else []), *uses]
        return {**self._message, "content": content, **_stop(answer, choice, uses), **_about(answer)}

    def begin(self) -> bytes:
        """Return the first event of a stream."""
        return openai.typed_event({"type": "message_start", "message": self._message})

    def piece(self, text: Any) -> bytes:
        """Return the event of a piece of the text, before the first one that opens the block; empty bytes for an empty piece."""
        if not (text := openai.piece_text(text)):
            return b""
        opening = b"" if self._open else _block("start", 0, content_block={"type": "text", "text": ""})
        self._open = True
        return opening + _block("delta", 0, delta={"type": "text_delta", "text": text})

    def end(self, answer: Answer[Any]) -> Iterator[bytes]:
        """Yield the last events: the text's end if any came, calls of tools, the stop reason with usage and origin, the stop."""
        _, choice = openai.reply_of(answer)
        uses = _uses(answer, choice)
        if self._open:
            yield _block("stop", 0)
        for index, use in enumerate(uses, int(self._open)):
            yield _block("start", index, content_block={**use, "input": {}})
            delta = {"type": "input_json_delta", "partial_json": json_dumps(use["input"]).decode()}
            yield _block("delta", index, delta=delta) + _block("stop", index)
        yield openai.typed_event({"type": "message_delta", "delta": _stop(answer, choice, uses), **_about(answer)})
        yield openai.typed_event({"type": "message_stop"})

    def error(self, fault: Fault) -> bytes:
        """Return an error within a stream as an event."""
        return openai.typed_event(fault.anthropic())


def _uses(answer: Answer[Any], choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the blocks of an answer's calls of tools. Calls without a function are left out."""
    return [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": function.get("name"),
            "input": _arguments(function.get("arguments")),
            **extra_of(call),
        }
        for call in openai.calls_of(choice, answer.id)
        if isinstance(function := call.get("function"), Mapping)
    ]


def _arguments(arguments: Any) -> Any:
    """Return the arguments of a call, JSON text, as an object, empty if there are none; other text under the key `arguments`."""
    text = str(arguments or "{}")
    with suppress(ValueError):
        if isinstance(value := parse_json(text), dict):
            return value
    return {"arguments": text}


def _stop(answer: Answer[Any], choice: Mapping[str, Any], uses: Collection[Any]) -> dict[str, Any]:
    """Return the stop reason: `tool_use` also where a server says "stop" beside calls of tools, which clients would not make."""
    other = "tool_use" if uses else "end_turn"
    return {"stop_reason": STOPS.get(openai.finish_of(answer, choice), other), "stop_sequence": None}


def _about(answer: Answer[Any]) -> dict[str, Any]:
    """Return the tokens that the model counted, 0 if it does not count, and the answer's origin."""
    prompt, completion = openai.tokens_of(openai.reply_of(answer)[0])
    return {"usage": {"input_tokens": prompt, "output_tokens": completion}, "edgeroute": openai.origin_of(answer)}


def _block(what: str, index: int, **fields: Any) -> bytes:
    """Return an event of a block of the content: its `start`, a `delta` with more of it, or its `stop`."""
    return openai.typed_event({"type": f"content_block_{what}", "index": index, **fields})
