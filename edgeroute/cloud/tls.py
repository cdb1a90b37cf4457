"""Sans-I/O TLS: the owner of the socket sends and receives on its behalf."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[bytes | None, bytes, T]
"""Yields bytes to send, or None to be sent received bytes; empty bytes are the end."""
PIECE = 1 << 18
"""Bytes encrypted at a time."""
RECORD = 1 << 16
"""Bytes received at a time."""


class Tls:
    """The client side of a TLS connection."""

    def __init__(self, context: ssl.SSLContext, hostname: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    def handshake(self) -> Steps[None]:
        """Performs the handshake, including certificate verification."""
        return self._do(self.object.do_handshake)

    def read(self, size: int) -> Steps[bytes]:
        """Up to `size` bytes; empty: the end. Whether that is premature is for HTTP to decide."""
        try:
            return (yield from self._do(self.object.read, size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def heard(self, received: bytes, heard: Callable[[bytes], bool]) -> bool:
        """Decrypts what came while something was being sent, and passes on what the other side said, as `Early.heard`."""
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()
        data = b""
        try:
            while part := self.object.read(RECORD):
                data += part
        except ssl.SSLWantReadError:
            return bool(data) and heard(data)  # a session ticket is none of it
        except ssl.SSLError:
            pass
        return heard(data) or heard(b"")

    def surplus(self) -> bool:
        """Whether there is more to read, or the connection has ended, of what was received already."""
        try:
            self.object.read(1)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            pass
        return True

    def write(self, data: bytes) -> Steps[None]:
        """Encrypts and sends the data."""
        for at in range(0, len(data), PIECE):
            yield from self._do(self.object.write, memoryview(data)[at : at + PIECE])

    def _do(self, operation: Callable[..., T], *arguments: Any) -> Steps[T]:
        while True:
            try:
                result = operation(*arguments)
            except ssl.SSLWantReadError:  # noqa: PERF203 - ssl's way to request input
                if self._outgoing.pending:
                    yield self._outgoing.read()
                received = yield None
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                if self._outgoing.pending:  # the alert that states the reason
                    yield self._outgoing.read()
                raise
            else:
                if self._outgoing.pending:
                    yield self._outgoing.read()
                return result
