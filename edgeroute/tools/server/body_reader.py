"""Reader of request bodies with limits of size, of total size in memory, and of time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeroute.tools.server.oip_messages import reply

LARGE = 1 << 16
"""Bytes from which a body is large: parsed in a thread, and without a part of the total that is kept for smaller ones."""
LARGE_SHARE = 0.9
"""Most memory of all bodies while a large one comes, as a share of the total."""
CLOSE = {"Connection": "close"}
TWO_LENGTHS = "bad request: Content-Length and Transfer-Encoding contradict each other: send one"
_BUSY = "the requests in progress are too large together: try again later"


class Bodies:
    """Limits on request bodies, and the count of the bytes in memory.

    Args:
        most: bytes of one body.
        total: bytes of all bodies together, including those whose requests wait for the model.
        timeout_s: time from a request's head to the end of its body.
    """

    def __init__(self, most: int, total: int, timeout_s: float) -> None:
        self.most, self.total, self.timeout_s = most, total, timeout_s
        self.held = 0
        """Bytes in memory now."""

    @contextmanager
    def open_body(self) -> Iterator[Body]:
        """Provide a `Body` for one request; at the end of the `with` block its bytes no longer count in the total."""
        body = Body(self)
        try:
            yield body
        finally:
            self.held -= body.size


class Body:
    """Body of one request. `size` is the number of its bytes in memory."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.size = bodies, 0

    async def read(self, announced: bytes, receive: Receive) -> bytes | None:
        """Read the whole body; return None if the client disconnected.

        Each part counts at once, here and in the total.

        Args:
            announced: value of the header Content-Length.
            receive: the ASGI channel of the request.

        Raises:
            HTTPException: 413 if it is too large, 503 if all bodies together are, 408 if it takes too long.
        """
        self._check(int(announced) if announced.isdigit() else 0)
        loop = asyncio.get_running_loop()
        until, parts, more = loop.time() + self._bodies.timeout_s, list[bytes](), True
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - loop.time()))
            except asyncio.TimeoutError:  # another one in Python 3.10
                raise HTTPException(408, f"the body did not come within {self._bodies.timeout_s:g} s", CLOSE) from None
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            self.size += len(parts[-1])
            self._bodies.held += len(parts[-1])
            self._check(self.size)
            if self._bodies.held > self._bodies.total * (LARGE_SHARE if LARGE < self.size < self._bodies.held else 1):
                raise HTTPException(503, _BUSY, {"Retry-After": "1"})
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def grow(self, size: int) -> None:
        """Count the bytes of the request's decoded files in addition.

        Raises:
            HTTPException: 413 if they can never fit the total, 503 if they do not fit beside the other requests.
        """
        if self.size + size > self._bodies.total:
            raise HTTPException(413, f"its files make {size} bytes, which is too large: send fewer rows at a time")
        if self._bodies.held + size > self._bodies.total:
            raise HTTPException(503, _BUSY, {"Retry-After": "1"})
        self.size += size
        self._bodies.held += size

    def _check(self, size: int) -> None:
        """Raise 413 if a size exceeds the limit of one body."""
        if size > self._bodies.most:
            raise HTTPException(413, f"the body has more than {self._bodies.most} bytes: send fewer rows at a time")


class OneLength:
    """ASGI middleware that answers 400 to a request with both Content-Length and Transfer-Encoding.

    Proxies disagree where such a request ends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400 to a request with both headers; pass any other to the application."""
        app: ASGIApp = self.app
        if scope["type"] == "http" and {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            app = reply({"error": TWO_LENGTHS}, 400, CLOSE)
        await app(scope, receive, send)
