"""HTTP connections for asyncio: keep-alive pool, sockets, time limits and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections import deque
from collections.abc import Coroutine
from time import monotonic
from typing import Any, TypeVar

from edgeroute.core.policy_egress_and_options import INF
from edgeroute.http.connections import STAGGER_S, Connection, Pool, Sockets, send_some, system_error
from edgeroute.http.dns_resolver import RESOLVER, SocketAddress
from edgeroute.http.messages_addresses_and_secrets import Call, Reply
from edgeroute.http.reply_parser import Reading
from edgeroute.http.sans_io_tls_connection import RECORD, Line
from edgeroute.system.contained_calls_and_tasks import await_within
from edgeroute.system.fork_safety import initially, per_process
from edgeroute.types import StopToken


class AsyncSockets(Sockets):
    """Sockets of one event loop. Closing them takes no `await`, so it cannot be interrupted."""

    def __init__(self, origin: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(origin)
        self.loop = loop
        self._read: socket.socket | None = None  # socket with a registered reader; None: none
        self._most = 0
        self._waiting: asyncio.Future[bytes | None] | None = None
        self._rings_at = INF  # instant of the alarm, which may be sooner than `until`
        self._alarm: asyncio.TimerHandle | None = None

    async def receive(self, sock: socket.socket, most: int) -> bytes | None:
        """Return up to `most` bytes, once there are some; b"" at the end of the stream; None if none come by `self.until`.

        The reader stays registered for the next time, also while the connection is idle: adding and removing it takes 25 Python
        calls and two of the system. So does the alarm, which is set again if it rings early.

        Raises:
            OSError: of the socket.
            NotImplementedError: the event loop has no readers.
        """
        self._most = most
        waiting = self._waiting = self.loop.create_future()
        try:
            if self._read is not sock:
                self.loop.add_reader(sock, self._readable, sock)
                self._read = sock
            if self.until < self._rings_at:
                self._set_alarm(self.until)
            received: bytes | None = await waiting
        finally:
            self._waiting = None
        return received

    def _set_alarm(self, instant: float) -> None:
        """Replace the alarm by one at an instant."""
        self._no_alarm()
        self._rings_at = instant
        self._alarm = self.loop.call_later(max(0.0, instant - monotonic()), self._ring)

    def _no_alarm(self) -> None:
        """Cancel the alarm."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._rings_at = None, INF

    def _ring(self) -> None:
        """End the wait with None if its time is over; else set the alarm again. A no-op if nothing waits."""
        self._no_alarm()
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if monotonic() >= self.until:
            waiting.set_result(None)
        else:
            self._set_alarm(self.until)

    def _readable(self, sock: socket.socket) -> None:
        """Receive bytes as the result of the wait, or the socket's error; the loop calls this when bytes or the end have come.

        If nothing waits, the reader is unregistered, as the loop would call again and again. A spurious wake changes nothing.
        """
        waiting = self._waiting
        # Nobody waits: the server ended or sent unasked; the loop would call this again and again.
        if waiting is None or waiting.done():
            self._unread(sock)
            return
        try:
            waiting.set_result(sock.recv(self._most))
        except BlockingIOError:  # the system took it back
            pass
        except OSError as e:
            waiting.set_exception(e)

    def _unread(self, sock: socket.socket) -> None:
        """Unregister a socket's reader."""
        if self._read is sock:
            self._read = None
        self.loop.remove_reader(sock)

    async def ready(self, sock: socket.socket) -> bool:
        """Wait until more can be sent, or bytes have come. Return True if bytes have come. It has no time limit of its own.

        Registers a reader and a writer for the wait; `receive` has to register its reader again. NotImplementedError passes.
        """
        ready: asyncio.Future[bool] = self.loop.create_future()

        def settle(come: bool) -> None:
            if not ready.done():
                ready.set_result(come)

        self.loop.add_reader(sock, settle, True)
        self.loop.add_writer(sock, settle, False)
        try:
            return await ready
        finally:
            self._unread(sock)
            self.loop.remove_writer(sock)

    def drop(self, sock: socket.socket) -> None:
        """Close and disown one socket, once its reader and writer are removed from the loop: its number may be reused at once.

        A loop that is closed, or has no readers, is no error.
        """
        with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):  # closed, or without readers, or closed
            self._unread(sock)
            self.loop.remove_writer(sock)
        super().drop(sock)

    def abandon(self) -> None:
        """Close all sockets in a forked child, and forget reader and alarm, without touching the loop, which is the parent's."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._read = self._alarm = None
        self._rings_at = INF

    def close(self) -> None:
        """Cancel the alarm, and close all sockets."""
        self._no_alarm()
        super().close()

    async def connect(self, host: str, port: int) -> socket.socket:
        """Resolve the host, and return a socket connected to the first address that accepts (RFC 8305).

        It has no time limit itself. The next address is tried when one fails, or in parallel after `STAGGER_S`. Other attempts
        are then cancelled, and their sockets closed.

        Raises:
            OSError: no address accepts, the first one's error; or the name has none.
        """
        waiting = deque(await self._look_up(host, port))
        self.doing = "accept a connection"
        errors: list[BaseException] = []
        tasks: set[asyncio.Task[socket.socket]] = set()
        try:
            if len(waiting) == 1:
                return await self._connect(waiting.popleft())
            while waiting or tasks:
                if waiting:
                    tasks.add(self.loop.create_task(self._connect(waiting.popleft())))
                limit_s = STAGGER_S if waiting else None
                done, tasks = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (error := task.exception()) is None:
                        self.keep_only(task.result())
                        return task.result()
                    errors.append(error)
        finally:
            for task in tasks:
                if not task.cancel() and not task.cancelled():
                    task.exception()  # retrieved, so that asyncio does not warn
        raise errors[0] if errors else OSError(f"{host} has no address")

    async def _connect(self, address: SocketAddress) -> socket.socket:
        """Return a socket connected to one address; if that fails, close it, and raise the system's OSError."""
        sock = self.open(address.family)
        try:
            await self.loop.sock_connect(sock, address.address)
        except OSError as e:
            self.drop(sock)
            raise system_error(e.errno) from e
        return sock

    async def _look_up(self, host: str, port: int) -> list[SocketAddress]:
        """Return the addresses of a name; waits for the look-up, but only until addresses of an earlier one are to be used.

        Cancelling leaves the look-up running for others. Raises OSError if it fails.
        """
        lookup = RESOLVER.find(host, port)
        if lookup.done:
            return lookup.addresses()
        over: asyncio.Future[None] = self.loop.create_future()

        def settle() -> None:
            if not over.done():
                over.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(settle)

        lookup.add(wake)
        self.doing = "have its name looked up"
        timer = self.loop.call_later(max(0.0, lookup.patience_s()), settle) if lookup.earlier else None
        try:
            await over
        finally:
            lookup.discard(wake)
            if timer is not None:
                timer.cancel()
        return lookup.addresses()


T = TypeVar("T")
FREE_READS = 4  # reads of a reply without a pause for the event loop's other tasks


class AsyncConnections(Pool):
    """Keep-alive connections to one address, for one event loop at a time.

    Each call has a connection to itself, as in threads: cancelling its task closes that connection, and affects no other.
    """

    _idle: list[_Connection] = per_process(list)
    _all: weakref.WeakSet[_Connection] = per_process(weakref.WeakSet, lambda parents: _abandon(list(parents)))
    _loop: asyncio.AbstractEventLoop | None = initially(None)

    async def send(self, call: Call, until: float) -> Reply:
        """Send the call and return the reply by the instant `until`. Cancelling the task cancels the call.

        Raises:
            CloudError: there is no reply in time, or no valid one.
        """
        return await self._send_alone(call, until)

    def _take(self, cancel: StopToken | None) -> _Connection:  # noqa: ARG002 - its task is cancelled
        """Return an idle connection, removed from the pool, or a new one. Idle ones of another event loop are closed first."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._close_idle()  # connections of another loop cannot be used here
            self._loop, self._idle = loop, []
        if self._idle:
            return self._idle.pop()
        channel = _Connection(self._wire, AsyncSockets(self._wire.address.origin, loop))
        self._all.add(channel)
        return channel

    def _done(self, channel: _Connection, reading: Reading, cancel: StopToken | None) -> bool:  # noqa: ARG002 - likewise
        """Put a connection back into the pool after a call, and return True; False if it cannot be used again.

        The caller closes it then. That is so if the pool is closed or belongs to another loop now, or the reply or the server
        ended the connection.
        """
        if self._closed or channel.sockets.loop is not self._loop or not channel.clean(reading):
            return False
        self._idle.append(channel)
        return True

    async def close(self) -> None:
        """Close idle connections now, and those in use at the end of their calls."""
        self._closed = True
        self._close_idle()

    def abandon(self) -> None:
        """Close as `close` does, from outside the loop or from a thread; idle connections are closed on the loop if it runs.

        Calls under way go on, and close theirs.
        """
        self._closed = True
        if self._loop is not None and self._loop.is_running():
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._close_idle)
        else:
            self._close_idle()


def _abandon(connections: list[_Connection]) -> None:
    """Close the sockets of a parent's connections in a forked child."""
    for connection in connections:
        connection.sockets.abandon()


class _Connection(Connection):
    """Connection for one event loop."""

    sockets: AsyncSockets

    async def _in_time(self, steps: Coroutine[Any, Any, T]) -> T:
        """Await steps until the instant `sockets.until`, and return their result; their OSErrors pass.

        If the time is over, also before it began, the steps are cancelled or closed, and TimedOut is raised.
        """
        if (left_s := self.sockets.until - monotonic()) <= 0:
            steps.close()
            self.sockets.late()
        try:
            result, error = await await_within(left_s, _result_or_error(steps))
        except asyncio.TimeoutError:
            self.sockets.late()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # there is one, or the error

    async def _connected_socket(self, line: Line) -> socket.socket:
        """Return a socket connected to the line's host. Raises TimedOut or OSError."""
        return await self._in_time(self.sockets.connect(*line.there))

    async def _receive(self, most: int) -> bytes:
        """Return up to `most` received bytes, once there are some; b"" at the end of the stream; raise TimedOut.

        After `FREE_READS` reads of a reply each read first lets the loop's other tasks run.
        """
        sock, sockets = self._sock, self.sockets
        assert sock is not None
        self._reads += 1
        if self._reads > FREE_READS:
            await asyncio.sleep(0)  # what has come is read without a pause, so a fast sender would hold up the loop
        if self._reads > 1:  # the first time nothing has come yet
            if monotonic() >= sockets.until:  # of one that never stops sending
                sockets.late()
            try:  # `suppress` would take four calls
                return sock.recv(most)
            except BlockingIOError:
                pass
        try:
            received = await sockets.receive(sock, most)
        except NotImplementedError:  # Windows' own loop
            received = await self._in_time(sockets.loop.sock_recv(sock, most))
        if received is None:
            sockets.late()
        return received

    async def _send(self, parts: list[memoryview]) -> tuple[int, bytes | None]:
        """Send some bytes, once that is possible; raise TimedOut.

        Return (number sent, None), or (0, received bytes) if the server sent first.
        """
        sock, sockets = self._sock, self.sockets
        assert sock is not None
        while True:
            try:
                return send_some(sock, parts), None
            except BlockingIOError:
                pass
            try:
                has_bytes = await self._in_time(sockets.ready(sock))
            except NotImplementedError:  # Windows' own loop does not tell
                await self._in_time(sockets.loop.sock_sendall(sock, parts[0]))
                return len(parts[0]), None
            if has_bytes:
                with contextlib.suppress(BlockingIOError):
                    return 0, sock.recv(RECORD)


async def _result_or_error(steps: Coroutine[Any, Any, T]) -> tuple[T | None, OSError | None]:
    """Return (result, None), or (None, any OSError): so a system's ETIMEDOUT is not taken for the end of the time limit."""
    try:
        return await steps, None
    except OSError as e:
        return None, e
