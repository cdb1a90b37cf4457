"""OpenAI's requests: checked, and as the router takes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from edgeroute.core.words import clean
from edgeroute.errors import BadInput
from edgeroute.system.process import json_loads

DEEPEST = 100
"""How deep lists and objects may be within each other."""
MOST_SIGNS = 1_000_000
"""Commas and brackets in a body, before it is parsed: each value takes some 60 bytes. A long text may have many, too."""
MOST_VALUES = 50_000
"""Values in it, parsed: legs copy what they are given, and the event loop waits for that."""
OURS = ("model", "stream", "stream_options", "n", "best_of", "echo", "logprobs", "top_logprobs")
"""Keys that are answered here; the router's own models set them as they need."""


class Asked(NamedTuple):
    """A request."""

    x: dict[str, Any]
    """The router's input: the body without `OURS`."""
    chat: bool
    model: str
    """As the client calls it."""
    stream: bool
    usage: bool
    """Whether a stream is to end with the usage."""
    logprobs: bool


def parsed(body: bytes) -> dict[str, Any]:
    """A body's JSON.

    Raises:
        BadInput: it is none, no object, too deep, or has too many values in it.
    """
    signs = sum(map(body.count, (b",", b"[", b"{")))
    if signs > MOST_SIGNS:
        raise BadInput(f"the body has more than {MOST_SIGNS} commas and brackets")
    try:
        found = json_loads(body)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"the body is not JSON: {clean(e, 100)}") from None
    if not isinstance(found, dict):
        raise BadInput(f"the body is a {type(found).__name__}: send an object")
    if signs > DEEPEST:
        _check(found)
    return found


def _check(found: Any) -> None:
    """Counts its levels, and its values."""
    level, depth, values = [found], 0, 0
    while level:
        depth, values = depth + 1, values + sum(map(len, level))
        if depth > DEEPEST:
            raise BadInput(f"the JSON is more than {DEEPEST} levels deep")
        if values > MOST_VALUES:
            raise BadInput(f"the JSON has more than {MOST_VALUES} values")
        inside = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level = [part for part in inside if isinstance(part, dict | list)]


def asked(body: Mapping[str, Any], *, chat: bool, names: Collection[str]) -> Asked:
    """Checks a request.

    Args:
        body: its JSON.
        chat: whether it is for `/v1/chat/completions`.
        names: of the model.

    Raises:
        BadInput: it asks for what there is not.
        HTTPException: 404, for another model.
    """
    model = body.get("model")
    if not isinstance(model, str):
        raise BadInput(f"model is missing: send {' or '.join(names)}")
    if model not in names:
        raise missing(model, names)
    stream, about = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(about, Mapping):
        raise BadInput("stream is true or false, and stream_options an object")
    for key in ("n", "best_of"):
        if body.get(key) not in (None, 1):
            raise BadInput(f"{key} is {clean(body[key], 20)}: a router gives one answer, so send 1 or leave it out")
    if body.get("echo"):
        raise BadInput("echo is not supported: the answer has no prompt in it")
    x = {key: value for key, value in body.items() if key not in OURS}
    if chat:
        x.pop("prompt", None)
        messages = x.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise BadInput('messages is a list of one or more {"role": ..., "content": ...}')
    else:
        x.pop("messages", None)
        x["prompt"] = _prompt(x.get("prompt"))
    logprobs = body.get("logprobs")
    return Asked(x, chat, model, stream, bool(about.get("include_usage")), logprobs is not None and logprobs is not False)


def _prompt(given: Any) -> str:
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str):
        raise BadInput("prompt is one text; send several as several requests")
    return given


def missing(model: str, names: Collection[str]) -> HTTPException:
    """404 for a model that there is not."""
    return HTTPException(404, f"there is no model {clean(model, 80)!r} here, only {', '.join(names)}")
