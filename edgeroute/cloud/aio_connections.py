"""HTTP connections for asyncio: sends a call and returns its reply, within limits of time and size."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import AsyncIterator, Coroutine, Mapping
from time import monotonic
from typing import Any, TypeVar

from edgeroute.cloud.aio_sockets import AsyncSockets
from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.sockets import Poll, send_some
from edgeroute.cloud.tls import RECORD, Steps
from edgeroute.cloud.wire import KEEP_S, Line, Wire
from edgeroute.core.policy import INF
from edgeroute.core.walk import new
from edgeroute.errors import CloudError, TimedOut
from edgeroute.http1.parsers import Malformed
from edgeroute.http1.reading import Reading
from edgeroute.system import limited, renew_after_fork

T = TypeVar("T")
FREE_READS = 4
"""Reads of a reply without a pause for the event loop's other tasks."""


class AsyncConnections:
    """Keep-alive connections to one address, for one event loop at a time.

    Each call has a connection to itself, as in threads: cancelling it closes that connection, and affects no other.
    """

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._idle: list[_Connection] = []
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """As `Connections`; the loop is the parent's as well."""
        self._idle, self._loop = [], None
        for channel in list(self._all):
            channel.sockets.abandon()

    async def send(self, call: Call, until: float) -> Reply:
        """As `Connections.send`; cancelling the task cancels the call."""
        channel = self._take(until)
        kept = False
        try:
            reading = self._wire.reading(call)
            await channel.begin(call, reading, until)
            while not reading.ended:
                await channel.more(reading, until)
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
            reading = self._wire.reading(call)
            await channel.begin(call, reading, until)
            yield AsyncResponse(channel, reading, until)
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
        channel = _Connection(self._wire, loop)
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


class AsyncResponse:
    """As `Response`, for `async for`.

    Attributes:
        status: of HTTP.
        headers: names are lower case.
        until: the instant by which the next piece must come; to be set anew for each, if it is a limit between pieces.
    """

    __slots__ = ("_channel", "_reading", "headers", "status", "until")

    def __init__(self, channel: _Connection, reading: Reading, until: float) -> None:
        self._channel, self._reading, self.until = channel, reading, until
        self.status: int = reading.status
        self.headers: Mapping[str, str] = reading.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """As of `Response`."""
        reading, channel = self._reading, self._channel
        while True:
            if piece := reading.take():
                yield piece
            elif reading.ended:
                return
            else:
                await channel.more(reading, self.until)


class _Connection:
    """One connection, opened at its first call, and again when the server has closed it."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self._wire, self.sockets = wire, AsyncSockets(wire.address.origin, loop)
        self._line: Line | None = None
        self._sock: socket.socket | None = None
        self._poll: Poll | None = None
        self._idle_since = 0.0
        self._until = INF
        self._reads = 0

    def _left_s(self) -> float:
        """Seconds left for the next step."""
        left_s = self._until - monotonic()
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
            found, error = await limited(left_s, _told(steps))
        except asyncio.TimeoutError as e:
            raise self._late() from e
        if error is not None:
            raise error
        return found  # type: ignore[return-value]  # there is one, or the error

    def _late(self) -> TimedOut:
        return TimedOut(f"{self._wire.address.origin} did not {self.sockets.doing} in time")

    async def begin(self, call: Call, reading: Reading, until: float) -> None:
        """Sends a call, and reads until its reply's head has come, by that instant."""
        line, self._reads, failed = self._line, 0, None
        self._until = until
        if line is None or self._poll is None or monotonic() - self._idle_since > KEEP_S or self._poll.readable():
            self.close()
            self._line = line = Line(self._wire)
        try:
            if not line.opened:
                await self._open(line)
            await self._pump(line.ask(call, reading))
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            failed = self._failed(e, reading)
        if failed is not None:
            raise failed

    async def _open(self, line: Line) -> None:
        sockets = self.sockets
        self._sock = sock = await self._in_time(sockets.connect(*line.there))
        self._poll = Poll(sock)
        sockets.doing = "accept a connection"
        await self._pump(line.open())
        sockets.doing = "answer"

    async def more(self, reading: Reading, until: float) -> None:
        """Reads on in the body, by that instant."""
        failed, self._until = None, until
        assert self._line is not None
        try:
            await self._pump(self._line.more(reading))
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            failed = self._failed(e, reading)
        if failed is not None:
            raise failed

    def _failed(self, e: Exception, reading: Reading) -> CloudError:
        line = self._line
        assert line is not None
        error = self._wire.error(e, opened=line.opened, stale=line.served and not reading.heard)
        error.__cause__ = e
        return error

    def clean(self, reading: Reading) -> bool:
        """Whether it may be used again, after this reply."""
        self._idle_since = monotonic()
        return self._line is not None and self._line.clean(reading)

    def close(self) -> None:
        """Closes its sockets. It can be used again."""
        self._line = self._sock = self._poll = None
        self.sockets.close()

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
            if monotonic() >= self._until:  # of one that never stops sending
                raise self._late()
            try:  # `suppress` would take four calls
                return sock.recv(most)
            except BlockingIOError:
                pass
        try:
            came = await sockets.receive(sock, most, self._until)
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
