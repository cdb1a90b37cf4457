"""Parser and validator of OpenAI requests to the gateway."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from edgeroute.core.error_codes import clean
from edgeroute.errors import BadInput
from edgeroute.system.process import json_loads
from edgeroute.tools.server.client_keys import client_keys, client_messages

DEEPEST = 100
"""Most levels of lists and objects within each other."""
MOST_SIGNS = 1_000_000
"""Most commas and brackets in a body before it is parsed: each value takes some 60 bytes. A long text may have many, too."""
MOST_VALUES = 50_000
"""Most values in a parsed body: legs copy their input, and the event loop waits for that."""
OURS = ("model", "stream", "stream_options", "n", "best_of", "echo", "logprobs", "top_logprobs", "messages", "prompt")
"""Keys that the gateway handles itself."""


class CompletionRequest(NamedTuple):
    """Validated request for a chat or text completion."""

    x: dict[str, Any]
    """Input for the router: messages or prompt, and the keys that a client may send."""
    chat: bool
    model: str
    """Model name as the client wrote it."""
    stream: bool
    usage: bool
    """True if a stream shall end with the usage."""
    logprobs: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a body as a JSON object.

    Raises:
        BadInput: it is not JSON, no object, too deep, or has too many values.
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
    """Raise `BadInput` if parsed JSON has too many levels or values."""
    level, depth, values = [data], 0, 0
    while level:
        depth, values = depth + 1, values + sum(map(len, level))
        if depth > DEEPEST:
            raise BadInput(f"the JSON is more than {DEEPEST} levels deep")
        if values > MOST_VALUES:
            raise BadInput(f"the JSON has more than {MOST_VALUES} values")
        children = [part for node in level for part in (node.values() if isinstance(node, dict) else node)]
        level = [part for part in children if isinstance(part, dict | list)]


def read_request(
    body: Mapping[str, Any], *, chat: bool, names: Collection[str], allow: Collection[str] = ()
) -> CompletionRequest:
    """Validate a parsed body and return the request for the router, without the gateway's own keys, in a copy.

    Args:
        body: the parsed JSON.
        chat: True for `/v1/chat/completions`.
        names: names of the model.
        allow: keys that clients may send beside those in `client_keys.KEYS`.

    Raises:
        BadInput: the request has an unsupported or invalid option.
        HTTPException: 404, for another model.
    """
    model = body.get("model")
    if not isinstance(model, str):
        raise BadInput(f"model is missing: send {' or '.join(names)}")
    if model not in names:
        raise missing(model, names)
    stream, options = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, Mapping):
        raise BadInput("stream is true or false, and stream_options an object")
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


def _prompt(prompt: Any) -> str:
    """Return the prompt as one text; a list with one text is accepted; raise `BadInput` for all else."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise BadInput("prompt is one text; send several as several requests")
    return prompt


def missing(model: str, names: Collection[str]) -> HTTPException:
    """Return the 404 error for an unknown model."""
    return HTTPException(404, f"there is no model {clean(model, 80)!r} here, only {', '.join(names)}")
