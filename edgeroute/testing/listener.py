"""TCP server on 127.0.0.1 with an event loop and thread of its own: base of the test servers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
TURNS = 5
"""Turns of an event loop after which an accepted connection has its task, and an ended one is closed."""


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
        """Close all connections, the listener and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    async def _main(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        """Listen until closed, then end all connections; runs in the thread."""
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
        """Open the port, the same as before if there was one."""
        if self._server is None:
            self._server = await asyncio.start_server(self._begin, "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close_port(self) -> None:
        """Close the port once every accepted connection has a task: asyncio would leave open those that it sets up later."""
        server, self._server = self._server, None
        if server is None:
            return
        for listening in server.sockets:
            with contextlib.suppress(NotImplementedError):  # not every loop has readers
                asyncio.get_running_loop().remove_reader(listening.fileno())
        await turns()
        server.close()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start a task for an accepted connection; its end, even before it begins, closes the connection."""
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
        """Handle one connection; ignore errors that mean its end."""
        # else the peer has gone, or this server closes: the connection ends
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            await self._serve(reader, writer)

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection until it ends."""

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop from another thread, wait for it, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


async def turns() -> None:
    """Wait until the event loop has handled connections that have just begun or ended."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def finish(writer: asyncio.StreamWriter) -> None:
    """Flush and close a connection (FIN)."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
