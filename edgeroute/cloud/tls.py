"""Layers of a connection without I/O: the socket's own bytes, and TLS above them, which may be above another TLS.

A layer's steps are a generator: it yields a number, and is sent up to so many received bytes (empty: the end); or it yields
buffers, and is sent how many of their bytes were sent, and what was received meanwhile, or None.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import certifi

from edgeroute.cloud.base import Address
from edgeroute.cloud.pins import pin_of
from edgeroute.errors import PolicyError

T = TypeVar("T")
Buffers: TypeAlias = list[memoryview]
Steps: TypeAlias = Generator[int | Buffers, Any, T]
Heard: TypeAlias = Callable[[bytes], bool]
"""Is given what was received while something was being sent; empty: the end. Returns whether to send no further."""
PIECE = 1 << 18
"""Bytes encrypted at a time."""
RECORD = 1 << 16
"""Bytes received at a time."""
MEANWHILE = 1 << 18
"""Bytes received while a handshake's messages are being sent, at most."""


class WrongKey(OSError):
    """The server's certificate holds another key than those that are pinned."""


class Layer(Protocol):
    """What a connection sends and receives by."""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """Sends the parts. Returns whether it sent all of them, and was not stopped by `heard`."""

    def read(self, most: int) -> Steps[bytes]:
        """Up to so many bytes; empty: the end. Whether that is premature is for HTTP to decide."""

    def surplus(self) -> bool:
        """Whether there is more to read, or the connection has ended, of what was received already."""


class Plain:
    """The socket's own bytes."""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """As of `Layer`."""
        rest = [memoryview(part) for part in parts if part]
        while rest:
            sent, came = yield rest
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = rest[0][sent:]
            if came is not None and rest and heard(came):
                return False
        return True

    def read(self, most: int) -> Steps[bytes]:
        """As of `Layer`."""
        return (yield most)  # type: ignore[no-any-return]

    def surplus(self) -> bool:
        """As of `Layer`: the socket tells."""
        return False


class Tls:
    """The client side of TLS above another layer."""

    def __init__(self, inner: Layer, context: ssl.SSLContext, hostname: str | None) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    def handshake(self, pins: frozenset[bytes] = frozenset()) -> Steps[None]:
        """Performs the handshake: verifies the certificate, and compares its key with the pins, if there are any.

        Raises:
            WrongKey: it is none of them.
        """
        yield from self._do(self._object.do_handshake)
        if pins:
            certificate = self._object.getpeercert(binary_form=True) or b""
            try:
                pinned = pin_of(certificate) in pins
            except ValueError:
                pinned = False
            if not pinned:
                raise WrongKey("its certificate holds another public key than those that are pinned (pin=)")

    def read(self, most: int) -> Steps[bytes]:
        """As of `Layer`."""
        try:
            return (yield from self._do(self._object.read, most))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """As of `Layer`."""
        for data in parts:
            for at in range(0, len(data), PIECE):
                yield from self._do(self._object.write, memoryview(data)[at : at + PIECE], flush=False)
                if not (yield from self._inner.write([self._outgoing.read()], lambda came: self._heard(came, heard))):
                    return False
        return True

    def _heard(self, received: bytes, heard: Heard) -> bool:
        """Decrypts what came while something was being sent, and passes on what the other side said."""
        self._received(received)
        data = b""
        try:
            while part := self._object.read(RECORD):
                data += part
        except ssl.SSLWantReadError:
            return bool(data) and heard(data)  # a session ticket is none of it
        except ssl.SSLError:
            pass
        return (bool(data) and heard(data)) or heard(b"")

    def surplus(self) -> bool:
        """As of `Layer`."""
        try:
            self._object.read(1)
        except ssl.SSLWantReadError:
            return self._inner.surplus()
        except ssl.SSLError:
            pass
        return True

    def _received(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _meanwhile(self, data: bytes) -> bool:
        self._received(data)
        return not data or self._incoming.pending > MEANWHILE

    def _do(self, operation: Callable[..., T], *arguments: Any, flush: bool = True) -> Steps[T]:
        while True:
            try:
                result = operation(*arguments)
            except ssl.SSLWantReadError:  # noqa: PERF203 - ssl's way to request input
                yield from self._flush()
                self._received((yield from self._inner.read(RECORD)))
            except ssl.SSLError as e:
                failed = e
                break
            else:
                if flush:
                    yield from self._flush()
                return result
        with contextlib.suppress(OSError):  # the other side may be gone
            yield from self._flush()  # the alert that states the reason
        raise failed

    def _flush(self) -> Steps[None]:
        if self._outgoing.pending and not (yield from self._inner.write([self._outgoing.read()], self._meanwhile)):
            raise ConnectionAbortedError("the connection was lost in its handshake")


def context_for(address: Address) -> ssl.SSLContext:
    """The settings of TLS to an endpoint: 1.2 or later, its authorities, the client's certificate.

    Raises:
        PolicyError: the certificates cannot be read.
    """
    verify, cert = address.verify, address.cert
    try:
        made = ssl.create_default_context(cafile=None if isinstance(verify, bool) else str(verify))
        made.minimum_version = max(made.minimum_version, ssl.TLSVersion.TLSv1_2)
        if verify is True:
            made.load_verify_locations(certifi.where())
        elif verify is False:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if cert is not None:
            made.load_cert_chain(*map(str, cert))
    except (OSError, ssl.SSLError) as e:
        raise PolicyError(f"the certificates for {address.origin} cannot be read: {e}") from e
    return made


def context_for_proxy() -> ssl.SSLContext:
    """The settings of TLS to a proxy: the system's authorities and certifi's."""
    made = ssl.create_default_context()
    made.minimum_version = max(made.minimum_version, ssl.TLSVersion.TLSv1_2)
    made.load_verify_locations(certifi.where())
    return made


def is_tls(error: BaseException | None) -> bool:
    """Whether TLS failed: the error, or its cause."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    return error is not None
