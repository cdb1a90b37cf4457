"""Request bodies: read within limits of time and of size, of each and of all together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeroute.tools.server.protocol import reply

CLOSE = {"Connection": "close"}
_BUSY = "the requests in progress are too large together: try again later"


class Bodies:
    """The bodies that are held at present.

    Args:
        most: bytes of one.
        total: bytes of all together, those whose requests wait for the model included.
        timeout_s: from a request's head to the end of its body.
    """

    def __init__(self, most: int, total: int, timeout_s: float) -> None:
        self.most, self.total, self.timeout_s = most, total, timeout_s
        self.held = 0
        """Bytes that are held now."""

    @contextmanager
    def one(self) -> Iterator[Body]:
        """A request's body; its bytes count as held until the `with` block ends."""
        body = Body(self)
        try:
            yield body
        finally:
            self.held -= body.size


class Body:
    """One request's body; `size` is what has come of it."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.size = bodies, 0

    async def read(self, announced: bytes, receive: Receive) -> bytes | None:
        """The whole body; None: the client disconnected.

        Args:
            announced: the header Content-Length.
            receive: of the request.

        Raises:
            HTTPException: 413, it is too large; 503, all together are; 408, it took too long.
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
            if self._bodies.held > self._bodies.total:
                raise HTTPException(503, _BUSY, {"Retry-After": "1"})
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def grow(self, size: int) -> None:
        """Counts what its files are once they are decoded as held as well.

        Raises:
            HTTPException: 413, it is too large; 503, all together are.
        """
        if self.size + size > self._bodies.total:
            raise HTTPException(413, f"its files make {size} bytes, which is too large: send fewer rows at a time")
        if self._bodies.held + size > self._bodies.total:
            raise HTTPException(503, _BUSY, {"Retry-After": "1"})
        self.size += size
        self._bodies.held += size

    def _check(self, size: int) -> None:
        if size > self._bodies.most:
            raise HTTPException(413, f"the body has more than {self._bodies.most} bytes: send fewer rows at a time")


class OneLength:
    """Middleware that refuses a request with both Content-Length and Transfer-Encoding: proxies disagree where it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the others on."""
        app: ASGIApp = self.app
        if scope["type"] == "http" and {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            app = _two_lengths()
        await app(scope, receive, send)


def _two_lengths() -> Response:
    return reply({"error": "bad request: Content-Length and Transfer-Encoding contradict each other: send one"}, 400, CLOSE)
