"""Canned answers of a language model, as servers with OpenAI's API send them: server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeroute.testing.server import http_reply

DONE = b"data: [DONE]\n\n"


def chat_events(
    pieces: Iterable[str],
    *,
    logprobs: Sequence[float] | None = None,
    finish: str | None = "stop",
    usage: tuple[int, int] | None = None,
    model: str = "canned",
) -> list[dict[str, Any]]:
    """The chunks of a chat completion in these pieces.

    Args:
        pieces: of the text.
        logprobs: of the pieces, each taken for a token; None: the server does not give them.
        finish: the `finish_reason`, in a chunk of its own; None: the answer breaks off.
        usage: tokens of the prompt and of the answer, in a last chunk; None: none are counted.
        model: its name in the chunks.
    """
    about = {"id": "chatcmpl-canned", "object": "chat.completion.chunk", "created": 0, "model": model}
    found = [{**about, "choices": [_choice({"role": "assistant", "content": ""})]}]
    for i, piece in enumerate(pieces):
        choice = _choice({"content": piece})
        if logprobs is not None:
            choice["logprobs"] = {"content": [{"token": piece, "logprob": logprobs[i]}]}
        found.append({**about, "choices": [choice]})
    if finish is not None:
        found.append({**about, "choices": [{**_choice({}), "finish_reason": finish}]})
    if usage is not None:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        found.append({**about, "choices": [], "usage": counts})
    return found


def _choice(delta: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": 0, "delta": dict(delta), "finish_reason": None}


def sse_reply(events: Iterable[Mapping[str, Any] | bytes], *, done: bool = True) -> bytes:
    """An HTTP reply with these events, as JSON or as they are, for a `CannedServer`. done: with `[DONE]` after them."""
    body = b"".join(b"data: %s\n\n" % (one if isinstance(one, bytes) else json.dumps(one).encode()) for one in events)
    return http_reply(body + (DONE if done else b""), headers=[("Content-Type", "text/event-stream")])
