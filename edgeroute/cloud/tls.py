"""TLS without a socket: what it wants to send and needs to receive is done by whoever has one."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[bytes | None, bytes, T]
"""Yields bytes to be sent, or None to be sent what was received; no bytes are the end."""
PIECE = 1 << 18
"""Bytes encrypted at once."""
RECORD = 1 << 16
"""Bytes received at once."""


class Tls:
    """One side of a TLS connection, the client's."""

    def __init__(self, context: ssl.SSLContext, hostname: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    def handshake(self) -> Steps[None]:
        """Agrees on keys, and checks the certificate."""
        return self._do(self.object.do_handshake)

    def read(self, size: int) -> Steps[bytes]:
        """Up to that many bytes; none: the end. Whether it came too early is HTTP's to say."""
        try:
            return (yield from self._do(self.object.read, size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def write(self, data: bytes) -> Steps[None]:
        """Sends it."""
        for at in range(0, len(data), PIECE):
            yield from self._do(self.object.write, memoryview(data)[at : at + PIECE])

    def _do(self, operation: Callable[..., T], *arguments: Any) -> Steps[T]:
        while True:
            try:
                result = operation(*arguments)
            except ssl.SSLWantReadError:  # noqa: PERF203 - it is how it says so
                if self._outgoing.pending:
                    yield self._outgoing.read()
                received = yield None
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                if self._outgoing.pending:  # the alert that says why
                    yield self._outgoing.read()
                raise
            else:
                if self._outgoing.pending:
                    yield self._outgoing.read()
                return result
