"""HTTP to a server on this device and to no other, since no permit guards what an edge sends: loopback and unix sockets alone."""

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
"""Time for a connection, seconds: on one device it is there at once, or the server is stuck."""
BASE = "/v1"
UNIX: Any = getattr(socket, "AF_UNIX", None)
"""The family of unix sockets; None: Python has none here."""
SHORT = 1 << 16
"""Bytes of a refusal that are read."""
_UNBOUNDED = 1 << 62


def is_loopback(address: str) -> bool:
    """Whether a numeric address is this device's own and no network's: 127.0.0.0/8, ::1, and the former within IPv6."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _is_path(text: str) -> bool:
    """Whether the system can take it as one."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


class Local:
    """Address of a server on this device.

    Args:
        url: `http://127.0.0.1:PORT/v1`, a name in place of the number, or `unix:/PATH` of a socket; without a path it is `/v1`.

    Attributes:
        origin: as quoted in messages.

    Raises:
        PolicyError: it is no such address, or one of another device.
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
            self._found(socket.AI_NUMERICHOST, PolicyError)

    def addresses(self) -> list[str]:
        """Its numeric addresses now.

        Raises:
            ModelError: it has none, or one of them is not this device's own.
        """
        try:
            return self._found(0, ModelError)
        except (OSError, UnicodeError) as e:
            raise ModelError(f"{self.origin} has no address: {clean(e, 100)}") from e

    def _found(self, flags: int, error: type[ModelError | PolicyError]) -> list[str]:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=flags)
        numbers = [str(address[0]) for _, _, _, _, address in found]
        if away := [number for number in numbers if not is_loopback(number)]:
            raise error(
                f"{self.origin} is at {away[0]}, which is not this device's loopback: nothing guards what an edge sends. "
                "A server elsewhere is a [cloud]"
            )
        return numbers


class Head(NamedTuple):
    """Of a reply."""

    status: int
    kind: str
    """Its Content-Type, lower case."""


class Exchange:
    """One request on a connection of its own, which a stop request shuts down.

    Args:
        local: where.
        timeout_s: for all of it: what comes byte by byte does not begin it anew.
        most: bytes of a reply.
        cancel: what stops it.
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
        """Sends it -> the head of the reply, and its body as it comes.

        Raises:
            ModelError: there is no reply, it is too long, or none within the time; also while the body is read.
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
        with self._translated(), self._connected() as sock:
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
        most = reading.most
        sock.settimeout(self._left_s())
        reading.feed(sock.recv(most))

    def _left_s(self) -> float:
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise ModelError(f"{self._local.origin} did not answer within {self._timeout_s:g} s")
        return left_s

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the connection as those of a model; after a stop request as that alone."""
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
        if self._cancel is not None and self._cancel.asked:
            raise ModelError(f"{self._local.origin} was stopped within its answer") from None

    def _connected(self) -> socket.socket:
        """A connection to the socket of its path, or to the first of its addresses that accepts."""
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
        """Ends the exchange, from another thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _NoServer(OSError):
    """No connection."""
