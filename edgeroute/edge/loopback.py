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

import httpcore

from edgeroute.core.texts import clean
from edgeroute.errors import ModelError, PolicyError
from edgeroute.types import StopToken

CONNECT_S = 5.0
"""Time for a connection, seconds: on one device it is there at once, or the server is stuck."""
BASE = "/v1"
UNIX: Any = getattr(socket, "AF_UNIX", None)
"""The family of unix sockets; None: Python has none here."""
SHORT = 1 << 16
"""Bytes of a refusal that are read."""


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
        timeout_s: for all of it.
        most: bytes of a reply.
        cancel: what stops it.
    """

    def __init__(self, local: Local, timeout_s: float, most: int, cancel: StopToken | None) -> None:
        self._local, self._until, self._timeout_s, self._most = local, monotonic() + timeout_s, timeout_s, most
        self._cancel, self._backend = cancel, _Backend(local, cancel, self._until)
        if cancel is not None:
            cancel.on_ask(self._backend.cut)

    @contextlib.contextmanager
    def send(
        self, method: str, path: str, body: bytes, headers: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[Head, Iterator[bytes]]]:
        """Sends it -> the head of the reply, and its body as it comes.

        Raises:
            ModelError: there is no reply, it is too long, or none within the time; also while the body is read.
        """
        local = self._local
        url = httpcore.URL(scheme="http", host=local.host, port=local.port, target=quote(local.base + path, safe="/%:@"))
        sent = [
            ("Host", local.netloc),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "edgeroute"),
            ("Connection", "close"),
            *headers,
        ]
        if body:
            sent += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        left_s = self._left_s()
        limits = {"connect": min(left_s, CONNECT_S), "read": left_s, "write": left_s}
        with self._translated():
            connection = httpcore.HTTPConnection(url.origin, network_backend=self._backend, uds=local.socket_path)
            with connection, connection.stream(method, url, headers=sent, content=body, extensions={"timeout": limits}) as reply:
                said = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reply.headers}
                if 300 <= reply.status < 400:  # noqa: PLR2004 - a redirect
                    raise ModelError(
                        f"{local.origin} answered with a redirect, which is not followed: give the address that it leads to"
                    )
                if said.get("content-encoding", "identity") != "identity":
                    raise ModelError(f"{local.origin} answered in an encoding, though asked not to: unread")
                yield Head(reply.status, said.get("content-type", "").lower()), self._bounded(reply)

    def _bounded(self, reply: httpcore.Response) -> Iterator[bytes]:
        size = 0
        for part in reply.iter_stream():
            size += len(part)
            if size > self._most:
                raise ModelError(f"{self._local.origin} answered with more than {self._most:,} bytes: the rest is unread")
            self._left_s()
            yield part

    def _left_s(self) -> float:
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise ModelError(f"{self._local.origin} did not answer within {self._timeout_s:g} s")
        return left_s

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of httpcore as those of a model; after a stop request as that alone."""
        where = self._local.origin
        try:
            yield
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
            self._check()
            raise ModelError(f"no server at {where} ({clean(e, 100)}): is it started?") from e
        except httpcore.TimeoutException as e:
            self._check()
            raise ModelError(f"{where} did not answer within {self._timeout_s:g} s") from e
        except httpcore.ProtocolError as e:
            self._check()
            what = str(e).partition(":")[0]  # what follows are its bytes, which may quote the key
            raise ModelError(f"{where} broke off: {clean(what, 100) or type(e).__name__}") from None
        except (httpcore.NetworkError, OSError) as e:
            self._check()
            raise ModelError(f"{where} broke off: {clean(e, 100) or type(e).__name__}") from e

    def _check(self) -> None:
        if self._cancel is not None and self._cancel.asked:
            raise ModelError(f"{self._local.origin} was stopped within its answer") from None


class _Backend(httpcore.NetworkBackend):
    """Connects to loopback, and shuts down from another thread."""

    def __init__(self, local: Local, cancel: StopToken | None, until: float) -> None:
        self._local, self._cancel, self._until = local, cancel, until
        self._socket: socket.socket | None = None

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - looked up anew, and connected to by number
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - never passed
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - likewise
    ) -> httpcore.NetworkStream:
        """To the first of its addresses that accepts."""
        error: Exception | None = None
        for address in self._local.addresses():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                return self._connected(family, (address, port), timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                error = e
        raise error or httpcore.ConnectError("it has no address")

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.NetworkStream:
        """To the socket of this path."""
        return self._connected(UNIX, path, timeout)

    def _connected(self, family: int, address: Any, timeout: float | None) -> httpcore.NetworkStream:
        self._socket = sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
            if family != UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not is_loopback(str(sock.getpeername()[0])):
                    raise ModelError(f"{self._local.origin} led to another device: nothing was sent")  # noqa: TRY301
            if self._cancel is not None and self._cancel.asked:  # `cut` may have come before it was connected
                raise httpcore.ConnectError("stopped")  # noqa: TRY301
        except BaseException as e:
            sock.close()
            if isinstance(e, TimeoutError):
                raise httpcore.ConnectTimeout(str(e)) from e
            if isinstance(e, OSError) and not isinstance(e, ModelError):
                raise httpcore.ConnectError(str(e)) from e
            raise
        return _Stream(sock, self._until)

    def cut(self) -> None:
        """Ends the exchange, from another thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Stream(httpcore.NetworkStream):
    """The stream on that socket, which is read until a time: what comes byte by byte does not begin it anew."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._socket, self._until = sock, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has come."""
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise httpcore.ReadTimeout
        try:
            self._socket.settimeout(left_s if timeout is None else min(timeout, left_s))
            return self._socket.recv(max_bytes)
        except TimeoutError as e:
            raise httpcore.ReadTimeout(str(e)) from e
        except OSError as e:
            raise httpcore.ReadError(str(e)) from e

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Sends all of it."""
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)
        except TimeoutError as e:
            raise httpcore.WriteTimeout(str(e)) from e
        except OSError as e:
            raise httpcore.WriteError(str(e)) from e

    def close(self) -> None:
        """Closes it."""
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """None of it is known."""
        return {"socket": self._socket}.get(info)
