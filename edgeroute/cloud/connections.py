"""HTTP connections for threads: sends a call and returns its reply, within limits of time and size."""

from __future__ import annotations

import contextlib
import socket
import ssl
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic
from typing import Any, TypeVar

import httpcore

from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.sockets import BlockingSockets, Early, readable, ready
from edgeroute.cloud.tls import RECORD, Steps, Tls
from edgeroute.cloud.wire import ERRORS, Incoming, Wire, overfull
from edgeroute.errors import BadReply, CloudError, TimedOut, Unreachable
from edgeroute.system import renew_after_fork
from edgeroute.types import StopToken

T = TypeVar("T")
_FULL = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connections:
    """Keep-alive connections to one address, for threads.

    Each is a pool of its own: a call can then be cancelled, by shutting its socket down, without affecting others. There is
    no lock: a list's `append` and `pop` are atomic, in threads, in signal handlers and across a fork.
    """

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._idle: list[_Connection] = []
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._closed = False
        weakref.finalize(self, _close_all, self._idle)  # a router that is dropped unclosed leaks no socket
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Drops the parent's connections: closing the child's copies sends nothing, and leaves the parent's open."""
        self._idle.clear()
        for channel in list(self._all):
            channel.close()

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Sends the call and returns the reply, by the instant `until`.

        Raises:
            CloudError: there is no reply in time, or no valid one.
        """
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self._wire.address.origin} was not asked: its answer is not needed any more")
        channel = self._take()
        kept = False
        try:
            reply = channel.send(call, until, cancel)
            if cancel is not None:
                cancel.on_ask(None)
            if cancel is None or not cancel.asked:
                self._give(channel)
                kept = True
            return reply
        finally:
            if not kept:
                channel.close()

    @contextlib.contextmanager
    def open(self, call: Call, until: float, cancel: StopToken | None = None) -> Iterator[Response]:
        """Sends the call and opens its reply, whose body comes in pieces. Left before its end, the connection is closed.

        Raises:
            CloudError: as `send`; also while the body is read.
        """
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self._wire.address.origin} was not asked: its answer is not needed any more")
        channel, response = self._take(), None
        try:
            response = channel.open(call, until, cancel)
            yield response
        finally:
            if response is not None:
                response.close()
            if cancel is not None:
                cancel.on_ask(None)
            if response is not None and response.ended and (cancel is None or not cancel.asked):
                self._give(channel)
            else:
                channel.close()

    def _take(self) -> _Connection:
        try:
            return self._idle.pop()
        except IndexError:
            channel = _Connection(self._wire)
            self._all.add(channel)
            return channel

    def _give(self, channel: _Connection) -> None:
        self._idle.append(channel)
        if self._closed:
            _close_all(self._idle)

    def close(self) -> None:
        """Closes idle connections now, and those in use when they become idle."""
        self._closed = True
        _close_all(self._idle)


def _close_all(idle: list[_Connection]) -> None:
    with contextlib.suppress(IndexError):  # another thread may take the last
        while True:
            idle.pop().close()


class _Connection:
    """One connection, reopened when the server has closed it."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._sockets = wire, BlockingSockets(wire.address.origin)
        self._connection = self._new()
        self._kept = False

    def send(self, call: Call, until: float, cancel: StopToken | None) -> Reply:
        wire, failed = self._wire, None
        try:
            response = self._requested(call, until, cancel)
            try:
                incoming = wire.heard(call, response, whole=not self._sockets.unsent)
                if not incoming.unread:
                    try:
                        for part in response.iter_stream():
                            incoming.add(part)
                            if incoming.unread:
                                break
                            self._sockets.framing.content(len(part))
                    except BadReply as e:
                        incoming.leave(e)
            finally:
                response.close()
        except ERRORS as e:
            failed = wire.error(e, stale=self._kept)
        if failed is not None:
            raise failed
        self.end()
        return incoming.reply()

    def _requested(self, call: Call, until: float, cancel: StopToken | None) -> httpcore.Response:
        self._sockets.begin(until, cancel)
        request = self._wire.request(call, until - monotonic())
        old = self._connection
        if isinstance(old, httpcore.HTTPConnection) and (old.is_closed() or old.has_expired()):
            self._sockets.close()
            self._connection, self._kept = self._new(), False
        return self._connection.handle_request(request)

    def open(self, call: Call, until: float, cancel: StopToken | None) -> Response:
        failed = None
        try:
            response = self._requested(call, until, cancel)
            incoming = self._wire.heard(call, response, whole=not self._sockets.unsent)
        except ERRORS as e:
            failed = self.error(e)
        if failed is not None:
            raise failed
        return Response(self, response, incoming, self._sockets)

    def error(self, e: Exception) -> CloudError:
        return self._wire.error(e, stale=self._kept)

    def end(self) -> None:
        self._kept = True
        if overfull(self._connection):
            self._sockets.close()
            self._connection, self._kept = self._new(), False

    def _new(self) -> httpcore.HTTPConnection | httpcore.ConnectionPool:
        options, backend = self._wire.options(), _Backend(self._sockets)
        if options["proxy"] is not None:  # only httpcore's pool supports proxies
            return httpcore.ConnectionPool(**options, max_connections=1, network_backend=backend)
        del options["proxy"]
        return httpcore.HTTPConnection(self._wire.root.origin, **options, network_backend=backend)

    def close(self) -> None:
        """Closes the sockets, whatever httpcore's state: it may not know of them yet."""
        self._sockets.close()


class Response:
    """A reply whose body comes in pieces, each by the instant `until`, which may be set."""

    def __init__(
        self, connection: _Connection, response: httpcore.Response, incoming: Incoming, sockets: BlockingSockets
    ) -> None:
        self._connection, self._response, self._incoming, self._sockets = connection, response, incoming, sockets
        self.status: int = incoming.status
        self.headers: Mapping[str, str] = incoming.headers
        self.ended = False
        """Whether the body has been read to its end."""

    @property
    def until(self) -> float:
        """The instant by which the next piece must come."""
        return self._sockets.until

    @until.setter
    def until(self, until: float) -> None:
        self._sockets.until = until

    def __iter__(self) -> Iterator[bytes]:
        failed = None
        try:
            for part in self._response.iter_stream():
                self._incoming.count(len(part))
                self._sockets.framing.content(len(part))
                yield part
            self.ended = True
        except ERRORS as e:
            failed = self._connection.error(e)
        if failed is not None:
            raise failed
        self._connection.end()

    def close(self) -> None:
        """Lets go of the reply."""
        with contextlib.suppress(*ERRORS):
            self._response.close()


class _Backend(httpcore.NetworkBackend):
    """Connects for httpcore, with sockets that can be shut down from another thread and enforce the time limit."""

    def __init__(self, sockets: BlockingSockets) -> None:
        self._sockets = sockets

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the sockets enforce the limit
        local_address: str | None = None,  # noqa: ARG002 - never passed
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - likewise
    ) -> httpcore.NetworkStream:
        try:
            return _Stream(self._sockets.connect(host, port), self._sockets)
        except TimedOut:
            raise
        except OSError as e:
            raise httpcore.ConnectError(str(e)) from e


class _Stream(httpcore.NetworkStream):
    """A stream on one socket, with or without TLS."""

    def __init__(self, sock: socket.socket, sockets: BlockingSockets) -> None:
        self._sock, self._sockets = sock, sockets
        self._early = Early()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the sockets enforce the limit
        framing = self._sockets.framing
        if early := self._early.take(max_bytes):
            return framing.received(early)
        left_s, most = self._sockets.left_s(), framing.most(max_bytes)
        try:
            self._sock.settimeout(left_s)
            return framing.received(self._sock.recv(most))
        except TimeoutError as e:
            raise httpcore.ReadTimeout(str(e)) from e
        except OSError as e:
            raise httpcore.ReadError(str(e)) from e

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - likewise
        self.send(buffer, self._early.heard)

    def send(self, data: bytes, heard: Callable[[bytes], bool] | None) -> None:
        """Sends the data. What comes meanwhile is passed to `heard`, if there is one, which says whether to stop.

        Raises:
            httpcore.WriteError: it was stopped, or cannot be sent. httpcore then reads the reply, if there is any.
        """
        sock, rest = self._sock, memoryview(data)
        left_s = self._sockets.left_s()
        try:
            sock.settimeout(left_s if heard is None else 0)
            if heard is None:
                sock.sendall(rest)
                return
            while rest:
                try:
                    rest = rest[sock.send(rest) :]
                    continue
                except _FULL:
                    pass
                if ready(sock, left_s):
                    with contextlib.suppress(*_FULL):  # a session ticket, for one, is nothing that was said
                        if heard(sock.recv(RECORD)):
                            self._sockets.unsent = True
                            raise httpcore.WriteError("a reply has come before the whole request was sent")
                left_s = self._sockets.left_s()
        except TimeoutError as e:
            raise httpcore.WriteTimeout(str(e)) from e
        except OSError as e:
            raise httpcore.WriteError(str(e)) from e

    def close(self) -> None:
        self._sockets.drop(self._sock)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - likewise
    ) -> httpcore.NetworkStream:
        if isinstance(self._sock, ssl.SSLSocket):
            return _Tunnel(self, ssl_context, server_hostname)
        left_s = self._sockets.left_s("accept a connection")
        try:
            sock = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname, do_handshake_on_connect=False)
            self._sockets.adopt(sock)
            self._sockets.keep_only(sock)
            self._sockets.check()
            sock.settimeout(left_s)
            sock.do_handshake()
        except TimeoutError as e:
            raise httpcore.ConnectTimeout(str(e)) from e
        except OSError as e:
            raise httpcore.ConnectError(str(e)) from e
        return _Stream(sock, self._sockets)

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        if info == "is_readable":
            return (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0) or readable(self._sock)
        return self._sock if info == "socket" else None


class _Tunnel(httpcore.NetworkStream):
    """TLS to the endpoint, through TLS to a proxy."""

    def __init__(self, inner: _Stream, ssl_context: ssl.SSLContext, hostname: str | None) -> None:
        self._inner, self._tls, self._early = inner, Tls(ssl_context, hostname), Early()
        try:
            self._pump(self._tls.handshake())
        except (OSError, httpcore.NetworkError) as e:
            raise httpcore.ConnectError(str(e)) from e

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the sockets enforce the limit
        if early := self._early.take(max_bytes):
            return early
        try:
            return self._pump(self._tls.read(max_bytes))
        except ssl.SSLError as e:
            raise httpcore.ReadError(str(e)) from e

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - likewise
        try:
            self._pump(self._tls.write(buffer), lambda data: self._tls.heard(data, self._early.heard))
        except ssl.SSLError as e:
            raise httpcore.WriteError(str(e)) from e

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._tls.surplus():
            return True
        return self._tls.object if info == "ssl_object" else self._inner.get_extra_info(info)

    def _pump(self, steps: Steps[T], heard: Callable[[bytes], bool] | None = None) -> T:
        received = b""
        try:
            to_send = next(steps)
            while True:
                if to_send is None:
                    received = self._inner.read(RECORD)
                else:
                    self._inner.send(to_send, heard)
                to_send = steps.send(received)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
