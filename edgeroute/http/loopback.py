"""HTTP to a server on this device only: loopback addresses and unix sockets. No permit guards what an edge sends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from edgeroute.core.words import clean
from edgeroute.errors import BadReply, EdgerouteError, ModelError, PolicyError
from edgeroute.http.reading import Malformed, Reading
from edgeroute.types import StopToken

CONNECT_S = 5.0
"""Timeout of a connection, seconds: on one device it is made at once, or the server is stuck."""
BASE = "/v1"
"""Path prefix if the address has none."""
UNIX: Any = getattr(socket, "AF_UNIX", None)
"""Address family of unix sockets; None: Python has none here."""
SHORT = 1 << 16
"""Maximum bytes to read of an error reply's body."""
_UNBOUNDED = 1 << 62


def is_loopback(address: str) -> bool:
    """Return True if a numeric address belongs to this device alone: 127.0.0.0/8, ::1, and the former mapped into IPv6."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


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
        netloc: value of the Host header.

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
            self.netloc = "localhost"
            return
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if host and not host.isascii():
            raise PolicyError("a local server's address has a name in ASCII, or a number")
        if not host or "@" in url or "?" in url or "#" in url or not url.isprintable():
            raise PolicyError(
                "a local server's address is http://127.0.0.1:PORT/v1 or unix:/PATH, without user, password and query"
            )
        if parts.scheme.lower() != "http":
            raise PolicyError("a local server's address begins with http:// or unix: a server on another device is a [cloud]")
        self.host, self.port, self.base = str(host), port or 80, parts.path.rstrip("/") or BASE
        self.netloc = parts.netloc
        self.origin = f"http://{parts.netloc}"
        with contextlib.suppress(OSError, UnicodeError):  # a name, which is looked up before each connection
            self._resolve(socket.AI_NUMERICHOST, PolicyError)

    def addresses(self) -> list[str]:
        """Resolve the host, blocking, and return its numeric addresses.

        Raises:
            ModelError: the host has no address, or one that is not this device's own.
        """
        try:
            return self._resolve(0, ModelError)
        except (OSError, UnicodeError) as e:
            raise ModelError(f"{self.origin} has no address: {clean(e, 100)}") from e

    def _resolve(self, flags: int, error: type[ModelError | PolicyError]) -> list[str]:
        """Resolve the host with flags of getaddrinfo, and return its numeric addresses; raise `error` if one is not loopback."""
        infos = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=flags)
        addresses = [str(entry[0]) for _, _, _, _, entry in infos]
        if away := [address for address in addresses if not is_loopback(address)]:
            raise error(
                f"{self.origin} is at {away[0]}, which is not this device's loopback: nothing guards what an edge sends. "
                "A server elsewhere is a [cloud]"
            )
        return addresses


class Head(NamedTuple):
    """Status and content type of a reply."""

    status: int
    kind: str
    """Content-Type in lower case; empty: none."""


class Exchange:
    """One request and its reply on a connection of their own. A stop request shuts the connection down.

    Args:
        local: address of the server.
        timeout_s: seconds for the whole exchange; received bytes do not restart it.
        most: maximum bytes of the reply's body.
        cancel: token of the stop request; None: cannot be stopped.
    """

    def __init__(self, local: Local, timeout_s: float, most: int, cancel: StopToken | None) -> None:
        self._local, self._until, self._timeout_s, self._most = local, monotonic() + timeout_s, timeout_s, most
        self._cancel = cancel
        self._socket: socket.socket | None = None
        if cancel is not None:
            cancel.on_ask(self._cut)

    @contextlib.contextmanager
    def send(
        self, method: str, path: str, body: bytes, headers: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[Head, Iterator[bytes]]]:
        """Connect, send a request, and yield the reply's head with an iterator over its body; close the connection at the end.

        Redirects are not followed. The iterator reads from the connection, and so blocks.

        Raises:
            ModelError: no server, no reply in time, a malformed, too long or redirecting one; also while the body is read.
        """
        local = self._local
        sent = [
            ("Host", local.netloc),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "edgeroute"),
            ("Connection", "close"),
            *headers,
        ]
        if body:
            sent += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        head = f"{method} {quote(local.base + path, safe='/%:@')} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in sent)
        reading = Reading(local.origin, method, _UNBOUNDED)
        with self._translated(), self._open_socket() as sock:
            try:
                sock.settimeout(self._left_s())
                sock.sendall(head.encode("latin-1") + b"\r\n" + body)
            except TimeoutError:
                raise
            except OSError:  # a server that refuses and closes: what it said can often be read
                pass
            while not reading.status:
                self._read(sock, reading)
            if 300 <= reading.status < 400:  # noqa: PLR2004 - a redirect
                raise ModelError(
                    f"{local.origin} answered with a redirect, which is not followed: give the address that it leads to"
                )
            yield Head(reading.status, reading.headers.get("content-type", "").lower()), self._bounded(sock, reading)

    def _bounded(self, sock: socket.socket, reading: Reading) -> Iterator[bytes]:
        """Yield the body's pieces, reading from the socket; raise ModelError beyond the maximum size or the time."""
        size = 0
        while (part := reading.take()) or not reading.ended:
            size += len(part)
            if size > self._most:
                raise ModelError(f"{self._local.origin} answered with more than {self._most:,} bytes: the rest is unread")
            self._left_s()
            if part:
                yield part
            else:
                self._read(sock, reading)

    def _read(self, sock: socket.socket, reading: Reading) -> None:
        """Receive bytes, blocking within the time, and feed them to the parser."""
        most = reading.most
        sock.settimeout(self._left_s())
        reading.feed(sock.recv(most))

    def _left_s(self) -> float:
        """Return the seconds left; raise ModelError if there are none."""
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise ModelError(f"{self._local.origin} did not answer within {self._timeout_s:g} s")
        return left_s

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Convert errors of the connection to ModelError; after a stop request to its error alone."""
        where = self._local.origin
        try:
            yield
        except _NoServer as e:
            self._check()
            raise ModelError(f"no server at {where} ({clean(e, 100)}): is it started?") from e
        except TimeoutError as e:
            self._check()
            raise ModelError(f"{where} did not answer within {self._timeout_s:g} s") from e
        except BadReply as e:  # its encoding, or its framing
            raise ModelError(str(e)) from None
        except (Malformed, OSError) as e:
            if isinstance(e, EdgerouteError):
                raise
            self._check()
            raise ModelError(f"{where} broke off: {clean(e, 100) or type(e).__name__}") from e

    def _check(self) -> None:
        """Raise ModelError if a stop was requested."""
        if self._cancel is not None and self._cancel.asked:
            raise ModelError(f"{self._local.origin} was stopped within its answer") from None

    def _open_socket(self) -> socket.socket:
        """Return a connection to the unix socket, or to the first of the host's addresses that accepts."""
        if self._local.socket_path is not None:
            return self._connect(UNIX, self._local.socket_path)
        error: _NoServer | None = None
        for address in self._local.addresses():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                return self._connect(family, (address, self._local.port))
            except _NoServer as e:
                error = e
        raise error or _NoServer("it has no address")

    def _connect(self, family: int, address: Any) -> socket.socket:
        """Return a socket connected to one address, after a check that its peer is this device.

        Raises:
            _NoServer: the connection failed, or a stop was requested.
            ModelError: the peer is another device, or no time is left.
        """
        self._socket = sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(min(self._left_s(), CONNECT_S))
            sock.connect(address)
            if family != UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not is_loopback(str(sock.getpeername()[0])):
                    raise ModelError(f"{self._local.origin} led to another device: nothing was sent")  # noqa: TRY301
            if self._cancel is not None and self._cancel.asked:  # `_cut` may have come before it was connected
                raise _NoServer("stopped")  # noqa: TRY301
        except BaseException as e:
            sock.close()
            if isinstance(e, OSError) and not isinstance(e, EdgerouteError | _NoServer):
                raise _NoServer(str(e)) from e
            raise
        return sock

    def _cut(self) -> None:
        """Shut the connection down; called from another thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _NoServer(OSError):
    """Failure to connect."""
