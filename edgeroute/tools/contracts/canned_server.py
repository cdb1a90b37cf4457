"""Servers on 127.0.0.1: a TCP listener in a thread of its own, and an HTTP server with canned replies, streams or faults.

Also bytes of HTTP replies and of chat streams to give them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
TURNS = 5  # turns of an event loop after which an accepted connection has its task, and an ended one is closed


class Listener(ABC):
    """TCP server on a free port of 127.0.0.1, with its own event loop and thread, started on construction."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.port = self.connections = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="edgeroute-testing", daemon=True)
        self._thread.start()
        self._loop = ready.result()

    @property
    def url(self) -> str:
        """Address of the server: http://127.0.0.1:PORT, or https."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Close all connections, the listener and the thread. Blocks. A no-op the second time."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    async def _main(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        """Open the port, set `ready` to the event loop (or to the error), wait for `close`, then end all connections.

        It is all that the thread runs.
        """
        try:
            await self._listen()
        except BaseException as e:
            ready.set_exception(e)
            raise
        ready.set_result(asyncio.get_running_loop())
        await self._ended.wait()
        await self._close_port()
        await self._end_connections()

    async def _end_connections(self) -> None:
        """Cancel the tasks of all connections, and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        """Open the port, the same as before if there was one. A no-op if it is open."""
        if self._server is None:
            self._server = await asyncio.start_server(self._begin, "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close_port(self) -> None:
        """Stop listening; accepted connections go on. Before, each of them gets its task: asyncio would leave later ones open.

        A no-op if the port is closed.
        """
        server, self._server = self._server, None
        if server is None:
            return
        for listening in server.sockets:
            with contextlib.suppress(NotImplementedError):  # not every loop has readers
                asyncio.get_running_loop().remove_reader(listening.fileno())
        await turns()
        server.close()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count an accepted connection and start a task for it, whose end, even before it begins, closes the connection.

        An exception of the task is raised in the loop.
        """
        task = asyncio.ensure_future(self._accept(reader, writer))
        self._tasks.add(task)
        self.connections += 1

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            writer.transport.abort()
            if not task.cancelled():
                task.result()

        task.add_done_callback(ended)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; suppress socket errors, a truncated request, a head that is too long, and cancellation."""
        # the peer has gone, or this server closes
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            await self._serve(reader, writer)

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection until it ends."""

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop from another thread, wait for it, and return its result. Its exception is raised."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def turns() -> None:
    """Wait until the event loop has handled connections that have just begun or ended."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def finish(writer: asyncio.StreamWriter) -> None:
    """Flush and close a connection (FIN). Errors of the system are ignored."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


# Bytes of a reply, in one piece or several; None among them: the server stalls.
Parts: TypeAlias = "bytes | Iterable[bytes | None] | None"


class CannedServer(Listener):
    """HTTP server that answers every request with exactly these bytes.

    Args:
        reply: status line, headers and body, as from `http_reply`, or a function of the request that returns them; None: never
            answers. In parts, a list of bytes: each is sent by itself, and at None among them the server stalls. From a function
            the parts may have no end. It runs on the event loop, so it must not block; an OSError that it raises closes the
            connection.
        close: True: close the connection after each reply; False: keep it alive.
        tls: serve https with this context.

    Attributes:
        reply: as passed; may be replaced at any time, for the requests from then on.
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

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
        """Block until `condition()`, over this server's attributes, is true; it is tried again at each request and hang-up.

        Raises:
            TimeoutError: it is not true within `timeout_s` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"after {timeout_s} s: {len(self.requests)} requests, {self.hung_up} connections hung up")

    def shut(self) -> None:
        """Hold replies back: requests are received, and wait until `open`. Returns before the loop has done so."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def open(self) -> None:
        """Send the replies that `shut` has held back, and those from now on. Returns before the loop has done so."""
        self._loop.call_soon_threadsafe(self._gate.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a connection's requests until it ends, or one if `close` is set; record each in `requests` before its reply.

        Replies wait while shut. A `None` in place of bytes waits until the client hangs up. A connection that the client ends or
        that fails counts in `hung_up`.
        """
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
        """Record requests and hang-ups, and wake `wait_for`."""
        with self._changed:
            self.requests += requests
            self.hung_up += hung_up
            self._changed.notify_all()


def http_reply(
    body: bytes = b"", *, status: int = 200, headers: Sequence[tuple[str, str]] = (), length: int | None = None
) -> bytes:
    """Return an HTTP reply as bytes. `length`: the Content-Length header; None: the body's length."""
    lines = [("Content-Length", str(len(body) if length is None else length)), *headers]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"HTTP/1.1 {status} -\r\n{head}\r\n".encode("latin-1") + body


def _length(head: bytes) -> int:
    """Return the Content-Length of a request's head; 0 without one."""
    length = re.search(rb"(?i)\r\ncontent-length:([^\r]*)", head)
    return 0 if length is None else int(length[1])


# Canned answers of a language model, as server-sent events in the form of OpenAI's API.

DONE = b"data: [DONE]\n\n"


def chat_events(
    pieces: Iterable[str],
    *,
    logprobs: Sequence[float] | None = None,
    finish: str | None = "stop",
    usage: tuple[int, int] | None = None,
    model: str = "canned",
) -> list[dict[str, Any]]:
    """Return the chunks, as JSON data, of a streamed chat completion in OpenAI's form: role, a piece each, end, counts.

    Args:
        pieces: pieces of the text.
        logprobs: log-probability of each piece, taken for a token; None: the server does not give them.
        finish: the `finish_reason`, in a chunk of its own; None: the answer breaks off.
        usage: tokens of the prompt and of the answer, in a last chunk; None: no counts.
        model: name of the model in the chunks.
    """
    about = {"id": "chatcmpl-canned", "object": "chat.completion.chunk", "created": 0, "model": model}
    chunks = [{**about, "choices": [_choice({"role": "assistant", "content": ""})]}]
    for i, piece in enumerate(pieces):
        choice = _choice({"content": piece})
        if logprobs is not None:
            choice["logprobs"] = {"content": [{"token": piece, "logprob": logprobs[i]}]}
        chunks.append({**about, "choices": [choice]})
    if finish is not None:
        chunks.append({**about, "choices": [{**_choice({}), "finish_reason": finish}]})
    if usage is not None:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        chunks.append({**about, "choices": [], "usage": counts})
    return chunks


def _choice(delta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a choice of a chunk with this delta."""
    return {"index": 0, "delta": dict(delta), "finish_reason": None}


def sse_reply(events: Iterable[Mapping[str, Any] | bytes], *, done: bool = True) -> bytes:
    """Return an HTTP reply with these events, mappings as JSON or bytes as they are. `done`: append `[DONE]`."""
    body = b"".join(b"data: %s\n\n" % (event if isinstance(event, bytes) else json.dumps(event).encode()) for event in events)
    return http_reply(body + (DONE if done else b""), headers=[("Content-Type", "text/event-stream")])
