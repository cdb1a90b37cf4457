"""An HTTP server with a canned reply, valid or not."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from edgeroute.testing.listener import Listener, finish

Parts: TypeAlias = "bytes | Iterable[bytes | None] | None"


class CannedServer(Listener):
    """An HTTP server that answers every request with exactly these bytes.

    Args:
        reply: status line, headers and body, as from `http_reply`, or a function of the request that returns them; None:
            never answers. In parts, a list of bytes: each is sent by itself, and None among them is where it stalls. From a
            function the parts may have no end. It runs on the event loop, so it must not block; an OSError that it raises
            closes the connection.
        close: close the connection after each reply, or keep it alive.
        tls: serve https with this context.

    Attributes:
        reply: as given; may be replaced at any time, for the requests from then on.
        requests: received requests, head and body.
        connections: number of connections accepted (after the TLS handshake).
        hung_up: number of connections closed by the client.
    """

    def __init__(
        self, reply: Parts | Callable[[bytes], Parts], *, close: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[bytes] = []
        self.hung_up = 0
        self.reply, self._close = reply, close
        self._gate = asyncio.Event()
        self._gate.set()
        self._changed = threading.Condition()
        super().__init__(tls)

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        """Blocks until `condition()`, over this server's attributes, is true.

        Raises:
            TimeoutError: not within `timeout_s` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"after {timeout_s} s: {len(self.requests)} requests, {self.hung_up} connections hung up")

    def shut(self) -> None:
        """Holds replies back: requests are received, and wait until `open`."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def open(self) -> None:
        """Sends the replies that `shut` has held back, and those from now on."""
        self._loop.call_soon_threadsafe(self._gate.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                request = head + await reader.readexactly(_length(head))
            except (OSError, asyncio.IncompleteReadError):
                self._note(hung_up=1)
                return
            self._note(request)
            await self._gate.wait()
            reply = self.reply(request) if callable(self.reply) else self.reply
            for part in [reply] if reply is None or isinstance(reply, bytes) else reply:
                try:
                    if part is None:
                        await reader.read()
                        raise ConnectionAbortedError
                    writer.write(part)
                    await writer.drain()
                except OSError:
                    self._note(hung_up=1)
                    return
                await asyncio.sleep(0)
            if self._close:
                await finish(writer)
                return

    def _note(self, *requests: bytes, hung_up: int = 0) -> None:
        with self._changed:
            self.requests += requests
            self.hung_up += hung_up
            self._changed.notify_all()


def http_reply(
    body: bytes = b"", *, status: int = 200, headers: Sequence[tuple[str, str]] = (), length: int | None = None
) -> bytes:
    """Builds an HTTP reply as bytes. `length`: the Content-Length header; None: the body's length."""
    said = [("Content-Length", str(len(body) if length is None else length)), *headers]
    head = "".join(f"{name}: {value}\r\n" for name, value in said)
    return f"HTTP/1.1 {status} -\r\n{head}\r\n".encode("latin-1") + body


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


# Canned answers of a language model, as servers with OpenAI's API send them: server-sent events.

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
