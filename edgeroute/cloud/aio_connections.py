"""HTTP connections for asyncio: sends a call and returns its reply, within limits of time and size."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Any, TypeVar

import httpcore

from edgeroute.cloud.aio_sockets import AsyncSockets
from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.sockets import Early, readable
from edgeroute.cloud.tls import RECORD, Steps, Tls
from edgeroute.cloud.wire import ERRORS, Wire, overfull
from edgeroute.core.policy import INF
from edgeroute.errors import BadReply, CloudError, TimedOut
from edgeroute.system import renew_after_fork

T = TypeVar("T")
FREE_READS = 4
"""Reads of a reply without a pause for the event loop's other tasks."""
PART = 1 << 14
"""Bytes read at a time: chunks of one byte take long to parse, and nothing else runs meanwhile."""


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
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._close_idle()  # connections of another loop cannot be used here
            self._loop, self._idle = loop, []
        idle = self._idle
        left_s = until - monotonic()
        request = self._wire.request(call, min(left_s, 0.0) or INF)  # the limit is wait_for's alone: two timers would race
        channel = idle.pop() if idle else self._new(loop)
        good, failed = False, None
        try:
            reply = await asyncio.wait_for(channel.send(call, request), None if left_s == INF else left_s)
            good = True
        except ERRORS as e:
            failed = self._wire.error(e, stale=channel.kept)
        except CloudError:
            raise
        except (asyncio.TimeoutError, TimeoutError) as e:
            raise TimedOut(f"{self._wire.address.origin} did not {channel.sockets.doing} in time") from e
        finally:
            if good and not self._closed:
                idle.append(channel)
            else:
                channel.sockets.close()
        if failed is not None:
            raise failed
        return reply

    @contextlib.asynccontextmanager
    async def open(self, call: Call, until: float) -> AsyncIterator[AsyncResponse]:
        """As `Connections.open`; cancelling the task cancels the call."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._close_idle()
            self._loop, self._idle = loop, []
        idle = self._idle
        left_s = until - monotonic()
        request = self._wire.request(call, min(left_s, 0.0) or INF)
        channel, response = idle.pop() if idle else self._new(loop), None
        try:
            response = AsyncResponse(channel, self._wire, until)
            await response.begin(call, request)
            yield response
        finally:
            if response is not None:
                await response.close()
            if response is not None and response.ended and not self._closed:
                idle.append(channel)
            else:
                channel.sockets.close()

    def _new(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        channel = _Connection(self._wire, loop)
        self._all.add(channel)
        return channel

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().sockets.close()

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


class _Connection:
    """One connection, reopened when the server has closed it."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self._wire, self.sockets = wire, AsyncSockets(wire.address.origin, loop)
        self.kept = False
        """Whether it has served a call: then the server may just have closed it."""
        self._connection = self._new()

    async def send(self, call: Call, request: httpcore.Request) -> Reply:
        wire = self._wire
        response = await self.requested(request)
        try:
            incoming = wire.heard(call, response, whole=not self.sockets.unsent)
            if not incoming.unread:
                try:
                    async for part in response.aiter_stream():
                        incoming.add(part)
                        if incoming.unread:
                            break
                        self.sockets.framing.content(len(part))
                except BadReply as e:
                    incoming.leave(e)
        finally:
            await response.aclose()
        self.end()
        return incoming.reply()

    async def requested(self, request: httpcore.Request) -> httpcore.Response:
        """Sends the request, and returns the reply with its body unread."""
        old = self._connection
        if isinstance(old, httpcore.AsyncHTTPConnection) and (old.is_closed() or old.has_expired()):
            self.sockets.close()
            self._connection, self.kept = self._new(), False
        self.sockets.unsent = False
        self.sockets.framing.begin()
        return await self._connection.handle_async_request(request)

    def end(self) -> None:
        """The reply has been read to its end."""
        self.kept = True
        if overfull(self._connection):
            self.sockets.close()
            self._connection, self.kept = self._new(), False

    def _new(self) -> httpcore.AsyncHTTPConnection | httpcore.AsyncConnectionPool:
        options, backend = self._wire.options(), _Backend(self.sockets)
        if options["proxy"] is not None:  # only httpcore's pool supports proxies
            return httpcore.AsyncConnectionPool(**options, max_connections=1, network_backend=backend)
        del options["proxy"]
        return httpcore.AsyncHTTPConnection(self._wire.root.origin, **options, network_backend=backend)


class AsyncResponse:
    """As `connections.Response`, for `async for`."""

    status: int
    headers: Mapping[str, str]

    def __init__(self, connection: _Connection, wire: Wire, until: float) -> None:
        self._connection, self._wire, self.until = connection, wire, until
        self._response: httpcore.Response | None = None
        self.ended = False

    async def begin(self, call: Call, request: httpcore.Request) -> None:
        """Sends the request, and reads the head of the reply."""
        self._response = await self._bounded(self._connection.requested(request))
        self._incoming = self._wire.heard(call, self._response, whole=not self._connection.sockets.unsent)
        self.status, self.headers = self._incoming.status, self._incoming.headers

    async def _bounded(self, step: Awaitable[T]) -> T:
        left_s, failed = self.until - monotonic(), None
        try:
            return await asyncio.wait_for(step, None if left_s == INF else left_s)
        except ERRORS as e:
            failed = self._wire.error(e, stale=self._connection.kept)
        except CloudError:
            raise
        except (asyncio.TimeoutError, TimeoutError) as e:
            raise TimedOut(f"{self._wire.address.origin} did not {self._connection.sockets.doing} in time") from e
        raise failed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self._response is not None, "it has begun"
        parts = self._response.aiter_stream().__aiter__()
        while (part := await self._bounded(_next(parts))) is not None:
            self._incoming.count(len(part))
            self._connection.sockets.framing.content(len(part))
            yield part
        self.ended = True
        await self.close()
        self._connection.end()

    async def close(self) -> None:
        """Lets go of the reply."""
        if self._response is not None:
            with contextlib.suppress(*ERRORS):
                await self._response.aclose()


async def _next(parts: AsyncIterator[bytes]) -> bytes | None:
    async for part in parts:
        return part
    return None


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects for httpcore, without the loop's default executor, which others may have filled."""

    def __init__(self, sockets: AsyncSockets) -> None:
        self._sockets = sockets

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the limit is on the whole call
        local_address: str | None = None,  # noqa: ARG002 - never passed
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - likewise
    ) -> httpcore.AsyncNetworkStream:
        try:
            return _Stream(await self._sockets.connect(host, port), self._sockets)
        except OSError as e:
            raise httpcore.ConnectError(str(e)) from e


class _Stream(httpcore.AsyncNetworkStream):
    """A stream on one socket."""

    def __init__(self, sock: socket.socket, sockets: AsyncSockets) -> None:
        self._sock, self._sockets = sock, sockets
        self._early = Early()
        self._reads = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - as above
        framing = self._sockets.framing
        if early := self._early.take(max_bytes):
            return framing.received(early)
        self._reads += 1
        if self._reads > FREE_READS:
            await asyncio.sleep(0)  # what has come is read without a pause, so a fast sender would hold up the loop
        try:
            return framing.received(await self._sockets.loop.sock_recv(self._sock, framing.most(min(max_bytes, PART))))
        except OSError as e:
            raise httpcore.ReadError(str(e)) from e

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - as above
        self._reads = 0
        await self.send(buffer, self._early.heard)

    async def send(self, data: bytes, heard: Callable[[bytes], bool] | None) -> None:
        """As of the stream for threads."""
        rest, loop = memoryview(data), self._sockets.loop
        try:
            while rest:
                try:
                    rest = rest[self._sock.send(rest) :]
                    continue
                except BlockingIOError:
                    pass
                try:
                    come = heard is not None and await self._sockets.ready(self._sock)
                except NotImplementedError:  # Windows' own loop does not tell
                    heard = None
                if heard is None:
                    return await loop.sock_sendall(self._sock, rest)
                with contextlib.suppress(BlockingIOError):
                    if come and heard(self._sock.recv(RECORD)):
                        self._sockets.unsent = True
                        raise httpcore.WriteError("a reply has come before the whole request was sent")
        except OSError as e:
            raise httpcore.WriteError(str(e)) from e

    async def aclose(self) -> None:
        self._sockets.drop(self._sock)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.AsyncNetworkStream:
        return await _secured(self, ssl_context, server_hostname)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return readable(self._sock)
        return self._sock if info == "socket" else None


class _TlsStream(httpcore.AsyncNetworkStream):
    """TLS on top of another stream."""

    def __init__(self, inner: _Stream | _TlsStream, tls: Tls) -> None:
        self._inner, self._tls = inner, tls
        self._early = Early()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - as above
        if early := self._early.take(max_bytes):
            return early
        try:
            return await _pump(self._inner, self._tls.read(max_bytes))
        except ssl.SSLError as e:
            raise httpcore.ReadError(str(e)) from e

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - as above
        await self.send(buffer, self._early.heard)

    async def send(self, data: bytes, heard: Callable[[bytes], bool] | None) -> None:
        """As of a stream on a socket."""
        try:
            await _pump(
                self._inner,
                self._tls.write(data),
                None if heard is None else lambda received: self._tls.heard(received, heard),
            )
        except ssl.SSLError as e:
            raise httpcore.WriteError(str(e)) from e

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.AsyncNetworkStream:
        return await _secured(self, ssl_context, server_hostname)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._tls.surplus():
            return True
        return self._tls.object if info == "ssl_object" else self._inner.get_extra_info(info)


async def _secured(inner: _Stream | _TlsStream, context: ssl.SSLContext, hostname: str | None) -> _TlsStream:
    tls = Tls(context, hostname)
    try:
        await _pump(inner, tls.handshake())
    except (OSError, httpcore.NetworkError) as e:
        raise httpcore.ConnectError(str(e)) from e
    return _TlsStream(inner, tls)


async def _pump(inner: _Stream | _TlsStream, steps: Steps[T], heard: Callable[[bytes], bool] | None = None) -> T:
    received = b""
    try:
        to_send = next(steps)
        while True:
            if to_send is None:
                received = await inner.read(RECORD)
            else:
                await inner.send(to_send, heard)
            to_send = steps.send(received)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
