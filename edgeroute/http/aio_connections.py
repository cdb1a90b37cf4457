"""HTTP connections for asyncio: sends a call and returns its reply, within limits of time and size."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from time import monotonic
from typing import Any, TypeVar

from edgeroute.core.policy import INF
from edgeroute.core.walk import new
from edgeroute.errors import CloudError, TimedOut
from edgeroute.http.connections import STAGGER_S, Connection, Poll, ResponseHead, Sockets, refused, send_some
from edgeroute.http.messages import Address, Call, Reply
from edgeroute.http.reading import Malformed, Reading
from edgeroute.http.resolver import RESOLVER, SocketAddress
from edgeroute.http.wire import RECORD, Line, Steps, Wire
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.process import await_within

# Sockets of one connection for asyncio.


class AsyncSockets(Sockets):
    """Sockets of one event loop. Closing them takes no `await`, so it cannot be interrupted."""

    def __init__(self, origin: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(origin)
        self.loop = loop
        self.doing = "answer"
        self.until = INF
        """The instant by which the next step must be done."""
        self._read: socket.socket | None = None
        """The socket that has a reader."""
        self._most = 0
        self._waiting: asyncio.Future[bytes | None] | None = None
        self._rings_at = INF
        """The instant of the alarm, which may be sooner than `until`."""
        self._alarm: asyncio.TimerHandle | None = None

    async def receive(self, sock: socket.socket, most: int) -> bytes | None:
        """Return up to so many bytes, once there are some; None: not by the instant `until`.

        The reader stays for the next time, also while the connection is idle: to add and to remove it takes 25 calls of Python
        and two of the system. So does the alarm: one that rings while there is still time is set again.

        Raises:
            NotImplementedError: the loop has no readers.
        """
        self._most = most
        found = self._waiting = self.loop.create_future()
        try:
            if self._read is not sock:
                self.loop.add_reader(sock, self._readable, sock)
                self._read = sock
            if self.until < self._rings_at:
                self._set_alarm(self.until)
            came: bytes | None = await found
        finally:
            self._waiting = None
        return came

    def _set_alarm(self, at: float) -> None:
        self._no_alarm()
        self._rings_at = at
        self._alarm = self.loop.call_later(max(0.0, at - monotonic()), self._ring)

    def _no_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._rings_at = None, INF

    def _ring(self) -> None:
        self._no_alarm()
        found = self._waiting
        if found is None or found.done():
            return
        if monotonic() >= self.until:
            found.set_result(None)
        else:
            self._set_alarm(self.until)

    def _readable(self, sock: socket.socket) -> None:
        found = self._waiting
        if found is None or found.done():  # nobody reads: it ended, or sends unasked; the loop would tell so again and again
            self._unread(sock)
            return
        try:
            found.set_result(sock.recv(self._most))
        except BlockingIOError:  # the system took it back
            pass
        except OSError as e:
            found.set_exception(e)

    def _unread(self, sock: socket.socket) -> None:
        if self._read is sock:
            self._read = None
        self.loop.remove_reader(sock)

    async def ready(self, sock: socket.socket) -> bool:
        """Waits until more can be sent, or something has come. Returns whether something has."""
        found: asyncio.Future[bool] = self.loop.create_future()

        def settle(come: bool) -> None:
            if not found.done():
                found.set_result(come)

        self.loop.add_reader(sock, settle, True)
        self.loop.add_writer(sock, settle, False)
        try:
            return await found
        finally:
            self._unread(sock)
            self.loop.remove_writer(sock)

    def drop(self, sock: socket.socket) -> None:
        """Closes one socket and removes its readers first: its file descriptor may be reused at once."""
        with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):  # closed, or without readers, or closed
            self._unread(sock)
            self.loop.remove_writer(sock)
        super().drop(sock)

    def abandon(self) -> None:
        """Closes all in a forked child, whose copies of the loop's own descriptors still belong to the parent."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._read = self._alarm = None
        self._rings_at = INF

    def close(self) -> None:
        """Closes all."""
        self._no_alarm()
        super().close()

    async def connect(self, host: str, port: int) -> socket.socket:
        """Connects to the first address that accepts (RFC 8305): the next is tried once one fails, or after `STAGGER_S`."""
        waiting = deque(await self._look_up(host, port))
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
                    error = task.exception()
                    if error is None:
                        self.keep_only(task.result())
                        return task.result()
                    errors.append(error)
        finally:
            for task in tasks:
                if not task.cancel() and not task.cancelled():
                    task.exception()  # retrieved, so that asyncio does not warn
        raise errors[0] if errors else OSError(f"{host} has no address")

    async def _connect(self, there: SocketAddress) -> socket.socket:
        sock = self.open(there.family)
        try:
            await self.loop.sock_connect(sock, there.address)
        except OSError as e:
            self.drop(sock)
            raise refused(e.errno) from e
        return sock

    async def _look_up(self, host: str, port: int) -> list[SocketAddress]:
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
        self.doing = "answer"
        return lookup.addresses()


T = TypeVar("T")
FREE_READS = 4
"""Reads of a reply without a pause for the event loop's other tasks."""


class AsyncConnections(ForkSafe):
    """Keep-alive connections to one address, for one event loop at a time.

    Each call has a connection to itself, as in threads: cancelling it closes that connection, and affects no other.
    """

    _idle: list[_Connection] = per_process(list)
    _all: weakref.WeakSet[_Connection] = per_process(weakref.WeakSet, lambda parents: _abandon(list(parents)))
    _loop: asyncio.AbstractEventLoop | None = initially(None)

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._closed = False

    async def send(self, call: Call, until: float) -> Reply:
        """As `Connections.send`; cancelling the task cancels the call."""
        channel = self._take(until)
        kept = False
        try:
            reading = await channel.begin(call, until)
            while not reading.ended:
                await channel.more(reading)
            kept = self._done(channel, reading)
            return new(Reply, (reading.status, reading.headers, reading.take()))
        finally:
            if not kept:
                channel.close()

    @contextlib.asynccontextmanager
    async def open(self, call: Call, until: float) -> AsyncIterator[AsyncResponse]:
        """As `Connections.open`."""
        channel = self._take(until)
        kept = False
        try:
            reading = await channel.begin(call, until)
            yield AsyncResponse(channel, reading)
            kept = self._done(channel, reading)
        finally:
            if not kept:
                channel.close()

    def _take(self, until: float) -> _Connection:
        if until <= monotonic():
            raise self._wire.not_asked()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._close_idle()  # connections of another loop cannot be used here
            self._loop, self._idle = loop, []
        if self._idle:
            return self._idle.pop()
        channel = _Connection(self._wire, AsyncSockets(self._wire.address.origin, loop))
        self._all.add(channel)
        return channel

    def _done(self, channel: _Connection, reading: Reading) -> bool:
        """Keeps a connection after a call, if it may be used again. Returns whether it is."""
        if self._closed or channel.sockets.loop is not self._loop or not channel.clean(reading):
            return False
        self._idle.append(channel)
        return True

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def close(self) -> None:
        """Closes idle connections now, and those in use when they become idle."""
        self._closed = True
        self._close_idle()

    def abandon(self) -> None:
        """`close` from outside the loop, or from a thread."""
        self._closed = True
        if self._loop is not None and self._loop.is_running():
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._close_idle)
        else:
            self._close_idle()


def _abandon(connections: list[_Connection]) -> None:
    for connection in connections:
        connection.sockets.abandon()


class AsyncResponse(ResponseHead):
    """As `Response`, for `async for`."""

    __slots__ = ()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """As of `Response`."""
        reading, channel = self._reading, self._channel
        while True:
            if piece := reading.take():
                yield piece
            elif reading.ended:
                return
            else:
                await channel.more(reading)


class _Connection(Connection):
    """Connection for one event loop."""

    sockets: AsyncSockets
    _reads = 0

    def _left_s(self) -> float:
        """Seconds left for the next step."""
        left_s = self.sockets.until - monotonic()
        if left_s <= 0:
            raise self._late()
        return left_s

    async def _in_time(self, steps: Coroutine[Any, Any, T]) -> T:
        """Awaits what has no limit of its own, by the instant."""
        try:
            left_s = self._left_s()
        except CloudError:
            steps.close()
            raise
        try:
            found, error = await await_within(left_s, _told(steps))
        except asyncio.TimeoutError as e:
            raise self._late() from e
        if error is not None:
            raise error
        return found  # type: ignore[return-value]  # there is one, or the error

    def _late(self) -> TimedOut:
        return TimedOut(f"{self._wire.address.origin} did not {self.sockets.doing} in time")

    async def begin(self, call: Call, until: float) -> Reading:
        """Send a call, and read until its reply's head has come, by that instant."""
        self._reads, self.sockets.until = 0, until
        line, reading = self._usable_line(), self._wire.reading(call)
        try:
            if not line.opened:
                await self._open(line)
            await self._pump(line.ask(call, reading))
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            raise self._failed(e, reading) from e
        return reading

    async def _open(self, line: Line) -> None:
        sockets = self.sockets
        self._sock = sock = await self._in_time(sockets.connect(*line.there))
        self._poll = Poll(sock)
        sockets.doing = "accept a connection"
        await self._pump(line.open())
        sockets.doing = "answer"

    async def more(self, reading: Reading) -> None:
        """Read on in the body."""
        assert self._line is not None
        try:
            await self._pump(self._line.more(reading))
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            raise self._failed(e, reading) from e

    async def _pump(self, steps: Steps[T]) -> T:
        """Sends and receives what the steps ask for."""
        try:
            step = next(steps)
            while True:
                came: Any
                try:
                    came = await (self._receive(step) if isinstance(step, int) else self._send(step))
                except CloudError:
                    raise
                except OSError as e:
                    step = steps.throw(e)
                    continue
                step = steps.send(came)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _receive(self, most: int) -> bytes:
        sock, sockets = self._sock, self.sockets
        assert sock is not None
        self._reads += 1
        if self._reads > FREE_READS:
            await asyncio.sleep(0)  # what has come is read without a pause, so a fast sender would hold up the loop
        if self._reads > 1:  # the first time nothing has come yet
            if monotonic() >= sockets.until:  # of one that never stops sending
                raise self._late()
            try:  # `suppress` would take four calls
                return sock.recv(most)
            except BlockingIOError:
                pass
        try:
            came = await sockets.receive(sock, most)
        except NotImplementedError:  # Windows' own loop
            came = await self._in_time(sockets.loop.sock_recv(sock, most))
        if came is None:
            raise self._late()
        return came

    async def _send(self, parts: list[memoryview]) -> tuple[int, bytes | None]:
        """As of the connection for threads."""
        sock, sockets = self._sock, self.sockets
        assert sock is not None
        while True:
            try:
                return send_some(sock, parts), None
            except BlockingIOError:
                pass
            try:
                come = await self._in_time(sockets.ready(sock))
            except NotImplementedError:  # Windows' own loop does not tell
                await self._in_time(sockets.loop.sock_sendall(sock, parts[0]))
                return len(parts[0]), None
            if come:
                with contextlib.suppress(BlockingIOError):
                    return 0, sock.recv(RECORD)


async def _told(steps: Coroutine[Any, Any, T]) -> tuple[T | None, OSError | None]:
    """What the steps come to: an error of the system may be ETIMEDOUT, which is none of ours."""
    try:
        return await steps, None
    except OSError as e:
        return None, e
