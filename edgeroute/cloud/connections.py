"""HTTP connections for threads: one call in, one reply out, within its time and size."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import weakref
from collections.abc import Iterable
from time import monotonic
from typing import Any

import httpcore

from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.wire import ERRORS, Wire
from edgeroute.core.policy import INF
from edgeroute.errors import TimedOut, Unreachable
from edgeroute.system import renew_after_fork
from edgeroute.types import StopToken


class Connections:
    """Kept-alive connections to one address, for threads.

    Each is a pool of its own: a call can then be cut off, by shutting its socket down, without touching others.
    """

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        weakref.finalize(self, _close_all, self._idle)  # a router that is dropped unclosed leaves no socket behind
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The connections are the parent's: closing the child's copies sends nothing, and leaves the parent's open."""
        self._lock = threading.Lock()
        _close_all(self._idle)

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """The reply, if it is there by the instant `until`.

        Raises:
            CloudError: it is not, or not one that can be used.
        """
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self._wire.address.origin} was not asked: its answer is not needed any more")
        channel = self._take()
        good = False
        try:
            reply = channel.send(call, until, cancel)
            good = True
            return reply
        finally:
            if cancel is not None:
                cancel.on_ask(None)
            if good and not (cancel is not None and cancel.asked):
                self._give(channel)
            else:
                channel.close()

    def _take(self) -> _Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Connection(self._wire)

    def _give(self, channel: _Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(channel)
                return
        channel.close()

    def close(self) -> None:
        """Closes what is idle now, and what is in use as soon as it is not."""
        with self._lock:
            self._closed = True
        _close_all(self._idle)


def _close_all(idle: list[_Connection]) -> None:
    with contextlib.suppress(IndexError):  # another thread may take the last
        while True:
            idle.pop().close()


class _Connection:
    """One connection, made again when the server has closed it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._connection: httpcore.HTTPConnection | httpcore.ConnectionPool = self._new()
        self._socket: socket.socket | None = None
        self._kept = False
        self._until = INF
        self._cancel: StopToken | None = None

    def send(self, call: Call, until: float, cancel: StopToken | None) -> Reply:
        wire = self._wire
        self._until, self._cancel = until, cancel
        if cancel is not None:
            cancel.on_ask(self.cut)
        try:
            request = wire.request(call, until - monotonic())
            old = self._connection
            if isinstance(old, httpcore.HTTPConnection) and (old.is_closed() or old.has_expired()):
                old.close()
                self._connection, self._kept = self._new(), False
            response = self._connection.handle_request(request)
            try:
                headers = wire.heard(response)
                parts, size = [], 0
                for part in response.iter_stream():
                    parts.append(part)
                    size += len(part)
                    wire.check_size(size)
            finally:
                response.close()
        except ERRORS as e:
            raise wire.error(e, stale=self._kept) from e
        self._kept = True
        return Reply(response.status, headers, parts[0] if len(parts) == 1 else b"".join(parts))

    def _new(self) -> httpcore.HTTPConnection | httpcore.ConnectionPool:
        options = self._wire.options()
        if options["proxy"] is not None:  # only a pool knows how to go through one
            return httpcore.ConnectionPool(**options, max_connections=1, network_backend=_Backend(self))
        del options["proxy"]
        return httpcore.HTTPConnection(self._wire.root.origin, **options, network_backend=_Backend(self))

    def left_s(self) -> float | None:
        """Seconds for the next step; None: as many as it takes."""
        if self._until == INF:
            return None
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise TimedOut(f"{self._wire.address.origin} did not finish its answer in time")
        return left_s

    def connected(self, sock: socket.socket) -> None:
        """Notes which socket to cut, and cuts it if that was asked for while there was none."""
        self._socket = sock
        if self._cancel is not None:
            self._cancel.on_ask(self.cut)

    def cut(self) -> None:
        """Ends the call in progress, from another thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # not ssl's own shutdown: from then on it would send in the clear
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket = None
        self._connection.close()


class _Backend(httpcore.SyncBackend):
    """Connects as httpcore does, and lets the channel see the sockets and keep the time."""

    def __init__(self, channel: _Connection) -> None:
        self._channel = weakref.proxy(channel)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(super().connect_tcp(host, port, timeout, local_address, socket_options), self._channel)


class _Stream(httpcore.NetworkStream):
    """A stream whose every step has the time that is left: a limit per step would begin anew with each byte that trickles."""

    def __init__(self, inner: httpcore.NetworkStream, channel: _Connection) -> None:
        self._inner, self._channel = inner, channel
        channel.connected(inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, timeout and self._channel.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        sock: socket.socket = self._inner.get_extra_info("socket")
        try:
            sock.settimeout(timeout and self._channel.left_s())
            sock.sendall(buffer)  # httpcore's own would copy what is left after each part that the kernel takes
        except TimeoutError as e:
            raise httpcore.WriteTimeout(str(e)) from e
        except OSError as e:
            raise httpcore.WriteError(str(e)) from e

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._channel)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
