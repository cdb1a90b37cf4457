"""Test doubles for routing: scripted models and clouds, an HTTP server with canned replies, and a faulty TCP relay.

Servers listen on 127.0.0.1 only, in a thread that ends with their `with` block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from edgeroute.types import StopToken

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Answers", "CannedServer", "FakeCloud", "FakeModel", "Relay", "http_reply"]

T = TypeVar("T")
Answers: TypeAlias = Sequence[Any] | Callable[[Any], Any]
"""Scripted answers: `(value, confidence)` pairs, one per run, the last one repeated; or a function of the input.
An exception in place of a pair is raised."""

PIECE = 1 << 16
QUEUE = 256
"""Pieces in transit per direction of a relay before the sender is blocked."""


class FakeCloud:
    """A scripted cloud, or edge: a callable of one input. Its attributes may be read from any thread.

    Args:
        answers: see `Answers`.
        gate: if given, each run waits for this event before it answers.

    Attributes:
        runs: number of inputs received.
        begun: set when the first run has started.
    """

    def __init__(self, answers: Answers, *, gate: threading.Event | None = None) -> None:
        self.runs, self.begun = 0, threading.Event()
        self._answers, self._gate, self._lock = answers, gate, threading.Lock()

    def __call__(self, x: Any) -> Any:
        """The next answer."""
        with self._lock:
            run, self.runs = self.runs, self.runs + 1
        self.begun.set()
        if self._gate is not None:
            self._gate.wait()
        answers = self._answers
        answer = answers(x) if callable(answers) else answers[min(run, len(answers) - 1)]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class FakeModel(FakeCloud):
    """A scripted `EdgeModel`. Like most models it cannot be stopped; it records that a stop was requested.

    Args:
        answers: see `Answers`.
        gate: if given, each run waits for this event before it answers.
        name: of the model, where there are several.

    Attributes:
        runs: number of inputs received.
        begun: set when the first run has started.
        cancelled: set when a run was requested to stop.
    """

    labels: tuple[str, ...] | None = None
    kind = "answers"

    def __init__(self, answers: Answers, *, gate: threading.Event | None = None, name: str = "fake") -> None:
        super().__init__(answers, gate=gate)
        self.name, self.cancelled = name, threading.Event()

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:
        """One answer per input."""
        if cancel is not None:
            cancel.on_ask(self.cancelled.set)
        return [self(x) for x in inputs]


class _Listener(ABC):
    """A TCP server on a free port of 127.0.0.1, with its own event loop and thread, started on construction."""

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
        """http://127.0.0.1:PORT, or https."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Closes all connections, the listener and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    async def _main(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            await self._listen()
        except BaseException as e:
            ready.set_exception(e)
            raise
        ready.set_result(asyncio.get_running_loop())
        await self._ended.wait()
        self._deafen()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

    def _deafen(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this in a task"
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the peer disconnected, or close() was called: this connection ends
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handles one connection until it ends."""

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop from another thread -> its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class CannedServer(_Listener):
    """An HTTP server that answers every request with exactly these bytes.

    Args:
        reply: status line, headers and body, as from `http_reply`, or a function of the request that returns them; None:
            never answers. The function runs on the event loop, so it must not block; an OSError that it raises closes the
            connection.
        close: close the connection after each reply, or keep it alive.
        tls: serve https with this context.

    Attributes:
        requests: received requests, head and body.
        connections: number of connections accepted (after the TLS handshake).
        hung_up: number of connections closed by the client.
    """

    def __init__(
        self, reply: bytes | Callable[[bytes], bytes | None] | None, *, close: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[bytes] = []
        self.hung_up = 0
        self._reply, self._close = reply, close
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                request = head + await reader.readexactly(_length(head))
            except (OSError, asyncio.IncompleteReadError):
                self._note(hung_up=1)
                return
            self._note(request)
            reply = self._reply(request) if callable(self._reply) else self._reply
            if reply is None:
                with contextlib.suppress(OSError):
                    await reader.read()
                self._note(hung_up=1)
                return
            writer.write(reply)
            await writer.drain()
            if self._close:
                await _finish(writer)
                return

    def _note(self, *requests: bytes, hung_up: int = 0) -> None:
        with self._changed:
            self.requests += requests
            self.hung_up += hung_up
            self._changed.notify_all()


class Relay(_Listener):
    """A TCP relay to a server with injected link faults. Faults are attributes, set at any time.

    Args:
        host: of the server.
        port: of the server.

    Attributes:
        delay_s: one-way latency, seconds. Bandwidth is not affected; a new connection takes one round trip more.
        throttle: bandwidth in bytes per second, per direction and connection; None: unlimited.
        truncate_after: bytes of a connection's replies after which it is closed (FIN).
        reset_after: bytes of a connection's replies after which it is reset (RST).
        black_hole: connections are accepted, and all data is dropped.
        refuse: the port is closed; existing connections continue.
        connections: number of connections accepted.
        bytes_up: bytes forwarded to the server.
        bytes_down: bytes forwarded from the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self.delay_s = 0.0
        self.throttle: float | None = None
        self.truncate_after: int | None = None
        self.reset_after: int | None = None
        self.black_hole = False
        self.bytes_up = self.bytes_down = 0
        self._to = host, port
        super().__init__(None)

    @property
    def refuse(self) -> bool:
        """Whether the port is closed."""
        return self._server is None

    @refuse.setter
    def refuse(self, refuse: bool) -> None:
        async def switch() -> None:
            if refuse:
                self._deafen()
            else:
                await self._listen()

        self._do(switch())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected = monotonic() + 2 * self.delay_s
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            _reset(writer)
            return
        ways = [
            asyncio.ensure_future(self._forward(reader, far_writer, connected, down=False)),
            asyncio.ensure_future(self._forward(far_reader, writer, connected, down=True)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            far_writer.transport.abort()  # before any await, which close() may cancel
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connected: float, *, down: bool) -> None:
        """One direction, pipelined: reading continues while earlier data is delayed."""
        under_way: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(QUEUE)
        writer.transport.set_write_buffer_limits(0)  # drained means sent

        async def take() -> None:
            data: bytes | None = b"more"
            while data:
                try:
                    data = await reader.read(PIECE)
                except OSError:
                    data = None
                await under_way.put((max(monotonic(), connected) + self.delay_s, data))

        taking = asyncio.ensure_future(take())
        try:
            passed = 0
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - monotonic())
                if data is None:
                    _reset(writer)
                    return
                if not data:
                    writer.write_eof()
                    return
                passed += await self._pass(data, writer, passed, down=down)
        finally:
            taking.cancel()

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter, passed: int, *, down: bool) -> int:
        """Forwards the data that the faults let through -> bytes consumed."""
        reset_after = self.reset_after  # read once: another thread may change it at any time
        ends = [n for n in (self.truncate_after, reset_after) if down and n is not None]
        allowed = data if not ends else data[: max(0, min(ends) - passed)]
        step = PIECE if self.throttle is None else max(1, int(self.throttle / 50))
        for start in range(0, 0 if self.black_hole else len(allowed), step):
            piece = allowed[start : start + step]
            if self.throttle is not None:
                await asyncio.sleep(len(piece) / self.throttle)
            writer.write(piece)
            await writer.drain()
            if down:
                self.bytes_down += len(piece)
            else:
                self.bytes_up += len(piece)
        if ends and passed + len(data) >= min(ends):
            if reset_after == min(ends):
                _reset(writer)
            else:
                await _finish(writer)
            raise ConnectionAbortedError
        return len(data)


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


async def _finish(writer: asyncio.StreamWriter) -> None:
    """Flushes and closes a connection (FIN)."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes a connection with a reset (RST)."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
