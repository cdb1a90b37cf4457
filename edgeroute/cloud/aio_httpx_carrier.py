"""Carries calls by an httpx client on asyncio; see `httpx_carrier`.

Here the time limit is for all of a call, which its task's cancellation ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from time import monotonic
from typing import Any, TypeVar

from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.httpx_carrier import Carrier
from edgeroute.errors import CloudError
from edgeroute.system import begin_on, limited

T = TypeVar("T")


class AsyncHttpxConnections(Carrier):
    """As `AsyncConnections`, by an `httpx.AsyncClient`: the one given, which stays open, or one of its own for an event loop."""

    def __init__(self, address: Address, client: Any) -> None:
        super().__init__(address, client)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, call: Call, until: float) -> Reply:
        """As `AsyncConnections.send`."""
        async with self.open(call, until) as response:
            pieces = [piece async for piece in response]
            return Reply(response.status, response.headers, b"" if response.unread else b"".join(pieces))

    @contextlib.asynccontextmanager
    async def open(self, call: Call, until: float) -> AsyncIterator[AsyncHttpxResponse]:
        """As `AsyncConnections.open`."""
        client, loop = self.given or self.own, asyncio.get_running_loop()
        if client is None or (self.given is None and self._loop is not loop):  # one of another loop cannot be used here
            client, self._loop = self.made("AsyncClient"), loop
            self.own = client
        request = self.request(client, call, until - monotonic(), limited=False)
        response = await self.carried(until, self._answered(client, request), "answer")
        try:
            yield AsyncHttpxResponse(self, call, response, until)
        finally:
            with contextlib.suppress(Exception):
                await response.aclose()

    async def carried(self, until: float, steps: Coroutine[Any, Any, T], doing: str = "finish its answer") -> T:
        """Awaits what the client does, by that instant.

        Raises:
            CloudError: it fails.
        """
        left_s = until - monotonic()
        if left_s <= 0:
            steps.close()
            raise self.late(doing)
        try:
            return await limited(left_s, steps)
        except CloudError:
            raise
        except (asyncio.TimeoutError, TimeoutError):
            failed: CloudError = self.late(doing)
        except Exception as e:  # noqa: BLE001 - code of the application may run in it
            failed = self.error(e)
        raise failed

    async def _answered(self, client: Any, request: Any) -> Any:
        for _ in range(client.max_redirects + 1):
            response = await client.send(request, stream=True, follow_redirects=False)
            request = self.onward(client, response)
            if request is None:
                break
            await response.aclose()
        return response

    async def close(self) -> None:
        """Closes a client of its own."""
        own = self.own
        if own is not None and self._loop is asyncio.get_running_loop():  # else `abandon` has its own loop close it
            self.own = None
            await own.aclose()

    def abandon(self) -> None:
        """`close` from outside the loop, or from a thread."""
        own, loop, self.own = self.own, self._loop, None
        if own is not None and loop is not None and loop.is_running():
            begin_on(loop, own.aclose)


class AsyncHttpxResponse:
    """As `AsyncResponse`."""

    def __init__(self, carrier: AsyncHttpxConnections, call: Call, response: Any, until: float) -> None:
        self._carrier, self._response = carrier, response
        self._body = body = carrier.body(call, response)
        self.status, self.headers, self.until = body.status, body.headers, until

    @property
    def unread(self) -> bool:
        """Whether the rest of the body was left unread."""
        return self._body.unread

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """As of `AsyncResponse`."""
        response, body = self._response, self._body
        if response.is_stream_consumed:  # a mock's may be there
            if body.add(response.content):
                yield response.content
            return
        pieces = response.aiter_raw()
        while not body.unread:
            piece = await self._carrier.carried(self.until, _next(pieces))
            if piece is None:
                return
            if body.add(piece):
                yield piece


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
