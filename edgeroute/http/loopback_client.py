"""HTTP to a server on this device only: loopback addresses and unix sockets. No permit guards what an edge sends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import CloudError, ModelError, PolicyError, TimedOut
from edgeroute.http.connections import BlockingSockets, Response, ThreadConnection
from edgeroute.http.dns_resolver import SocketAddress
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.http.sans_io_tls_connection import Wire
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.system.numeric_loopback_check import is_loopback
from edgeroute.types import StopToken

CONNECT_S = 5.0  # timeout of a connection, seconds: on one device it is made at once, or the server is stuck
BASE = "/v1"  # path prefix if the address has none
UNIX: Any = getattr(socket, "AF_UNIX", None)  # address family of unix sockets; None: Python has none here
SHORT = 1 << 16  # maximum bytes to read of an error reply's body


def _is_path(text: str) -> bool:
    """Return True if the system can encode a text as a path."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


class Local:
    """Address of a server on this device; another device's address is refused.

    A host name is resolved anew before each connection, and each of its addresses is checked then.

    Args:
        url: `http://127.0.0.1:PORT/v1`, a name in place of the number, or `unix:/PATH` of a socket; the default path is `/v1`.

    Attributes:
        origin: the address as quoted in messages.
        socket_path: path of the unix socket; None: TCP.
        host, port: of the server.
        base: path prefix of each request.
        address: the address as HTTP has it.

    Raises:
        PolicyError: the URL is malformed, or its address is another device's.
    """

    def __init__(self, url: str) -> None:
        self.socket_path: str | None = None
        if url[:5].lower() == "unix:":
            self.socket_path = url[5:]
            if UNIX is None or not Path(self.socket_path).is_absolute() or not _is_path(self.socket_path):
                raise PolicyError("the address of a unix socket is unix:/PATH, absolute, on a system that has them")
            self.origin, self.host, self.port, self.base = f"unix:{self.socket_path}", "localhost", 80, BASE
            self.address = Address("http://localhost")
            return
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if host and not host.isascii():
            raise PolicyError("a local server's address has a name in ASCII, or a number")
        if not host or "@" in url or "?" in url or "#" in url or not url.isprintable():
            raise PolicyError("a local server's address is http://127.0.0.1:PORT/v1 or unix:/PATH, without user or query")
        if parts.scheme.lower() != "http":
            raise PolicyError("a local server's address begins with http:// or unix: a server on another device is a [cloud]")
        self.host, self.port, self.base = str(host), port or 80, parts.path.rstrip("/") or BASE
        self.origin = f"http://{parts.netloc}"
        self.address = Address(self.origin)
        with contextlib.suppress(OSError, UnicodeError):  # a name, which is looked up before each connection
            self._resolve(socket.AI_NUMERICHOST, PolicyError)

    def addresses(self) -> list[SocketAddress]:
        """Resolve the host, blocking, and return its addresses.

        Raises:
            ModelError: the host has no address, or one that is not this device's own.
        """
        try:
            return self._resolve(0, ModelError)
        except (OSError, UnicodeError) as e:
            raise ModelError(f"{self.origin} has no address: {clean(e, 100)}") from e

    def _resolve(self, flags: int, error: type[ModelError | PolicyError]) -> list[SocketAddress]:
        """Resolve the host, blocking, with these flags of getaddrinfo, and return its addresses, all of them loopback.

        Raise `error` if one is not, and OSError if there is none.
        """
        infos = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=flags)
        if away := [str(address[0]) for *_, address in infos if not is_loopback(str(address[0]))]:
            raise error(f"{self.origin} is at {away[0]}, not this device's loopback: give a server elsewhere as [cloud]")
        return [SocketAddress(family, address) for family, *_, address in infos]


class _LocalWire(Wire):
    """Requests and errors of a local server: no proxy, and a connection for each request."""

    def __init__(self, local: Local) -> None:
        super().__init__(local.address)
        self._origin = local.origin

    def proxy(self) -> None:
        """Return None: inputs of an edge do not leave the device."""

    def error(self, e: Exception, *, opened: bool, stale: bool) -> CloudError:  # noqa: ARG002 - no connection is kept
        """Return the error of a connection: it broke off if it was opened, otherwise there is no server."""
        reason = clean(e, 100) or type(e).__name__
        return CloudError(f"{self._origin} broke off: {reason}" if opened else f"no server at {self._origin}: {reason}: start it")


class _LocalSockets(BlockingSockets):
    """Sockets that connect to this device only."""

    def __init__(self, local: Local) -> None:
        super().__init__(local.origin)
        self._local = local

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a socket connected to the server's unix socket, or to one of its addresses; blocks for at most `CONNECT_S`.

        Raises:
            ModelError: an address is not loopback, or the socket is connected to another device; nothing was sent.
            OSError: none accepts.
            TimedOut: the time is over.
            ConnectionAbortedError: a stop was requested.
        """
        path, until = self._local.socket_path, self.until
        self.until = min(until, monotonic() + CONNECT_S)
        try:
            if path is None:
                sock = super().connect(host, port)
                if not is_loopback(str(sock.getpeername()[0])):
                    raise ModelError(f"{self._local.origin} led to another device: nothing was sent")
                return sock
            self._sockets.append(sock := socket.socket(UNIX, socket.SOCK_STREAM))
            sock.settimeout(self.left_s())
            sock.connect(path)
            sock.setblocking(False)
            self.check()
            return sock
        finally:
            self.until = until

    def _look_up(self, host: str, port: int) -> list[SocketAddress]:  # noqa: ARG002 - the server's are known
        """Return the server's addresses, each checked; blocks. Raises ModelError."""
        return self._local.addresses()


@contextlib.contextmanager
def exchange(
    local: Local, call: Call, timeout_s: float, cancel: StopToken | None = None
) -> Iterator[tuple[Response, Iterator[bytes]]]:
    """Connect, send a call, and yield the reply with an iterator over its body; close the connection at the end.

    Redirects are not followed. The iterator reads from the connection, and so blocks. A stop request shuts the connection down.
    Other exceptions of the body pass.

    Args:
        local: address of the server.
        call: the call, whose path begins with `Local.base`.
        timeout_s: seconds for the whole exchange; received bytes do not restart it.
        cancel: token of the stop request; None: cannot be stopped.

    Raises:
        ModelError: there is no reply, it is too long or a redirect, the time is over, or a stop was requested; also while the
            body is read.
    """
    connection = ThreadConnection(_LocalWire(local), _LocalSockets(local))
    try:
        reading = settle(connection.begin(call, monotonic() + timeout_s, cancel))
        if 300 <= reading.status < 400:  # noqa: PLR2004 - a redirect
            raise ModelError(f"{local.origin} answered with a redirect, which is not followed: give the address that it leads to")
        response = Response(connection, reading)
        yield response, _pieces(response)
    except CloudError as e:
        if cancel is not None and cancel.asked:
            raise ModelError(f"{local.origin} was stopped within its answer") from None
        if isinstance(e, TimedOut):
            raise ModelError(f"{local.origin} did not answer within {timeout_s:g} s") from e
        raise ModelError(str(e)) from e.__cause__
    finally:
        connection.close()


def _pieces(response: Response) -> Iterator[bytes]:
    """Yield the pieces of a reply's body as they come; blocks."""
    while (piece := settle(response.read())) is not None:
        yield piece
