"""HTTP connections for asyncio: one call in, one reply out, within its time and size."""

from __future__ import annotations

import asyncio
from time import monotonic

import httpcore

from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.wire import ERRORS, Wire
from edgeroute.core.policy import INF
from edgeroute.errors import CloudError, TimedOut


class AsyncChannels:
    """Kept-alive connections to one address, for one event loop at a time."""

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept = False

    async def send(self, call: Call, until: float) -> Reply:
        """As `Channels.send`; cancelling the task ends it."""
        loop = asyncio.get_running_loop()
        if self._pool is None or self._loop is not loop:
            self._pool = httpcore.AsyncConnectionPool(**self._wire.options(), max_connections=None)
            self._loop, self._kept = loop, False
        left_s = until - monotonic()
        request = self._wire.request(call, left_s)
        try:
            reply = await asyncio.wait_for(self._exchange(self._pool, request), None if left_s == INF else left_s)
        except ERRORS as e:
            raise self._wire.error(e, stale=self._kept) from e
        except CloudError:
            raise
        except (asyncio.TimeoutError, TimeoutError) as e:
            raise TimedOut(f"{self._wire.address.origin} did not answer in time") from e
        self._kept = True
        return reply

    async def _exchange(self, pool: httpcore.AsyncConnectionPool, request: httpcore.Request) -> Reply:
        response = await pool.handle_async_request(request)
        try:
            headers = self._wire.heard(response)
            parts, size = [], 0
            async for part in response.aiter_stream():
                parts.append(part)
                size += len(part)
                self._wire.check_size(size)
        finally:
            await response.aclose()
        return Reply(response.status, headers, parts[0] if len(parts) == 1 else b"".join(parts))

    async def close(self) -> None:
        """Closes every connection."""
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None
