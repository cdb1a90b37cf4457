"""HTTP connections for asyncio: one call in, one reply out, within its time and size."""

from __future__ import annotations

import asyncio
from time import monotonic

import httpcore

from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.wire import ERRORS, Wire
from edgeroute.core.policy import INF
from edgeroute.errors import CloudError, TimedOut


class AsyncConnections:
    """Kept-alive connections to one address, for one event loop at a time.

    Each call has one to itself, as in threads: who is cancelled in the middle closes it, and touches no other.
    """

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._idle: list[_Connection] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def send(self, call: Call, until: float) -> Reply:
        """As `Connections.send`; cancelling the task ends it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._idle = loop, []  # what another loop opened is of no use here
        idle = self._idle
        left_s = until - monotonic()
        request = self._wire.request(call, min(left_s, 0.0) or INF)  # wait_for alone keeps the time: two clocks race
        channel = idle.pop() if idle else _Connection(self._wire)
        good = False
        try:
            reply = await asyncio.wait_for(channel.send(request), None if left_s == INF else left_s)
            good = True
        except ERRORS as e:
            raise self._wire.error(e, stale=channel.kept) from e
        except CloudError:
            raise
        except (asyncio.TimeoutError, TimeoutError) as e:
            raise TimedOut(f"{self._wire.address.origin} did not answer in time") from e
        finally:
            if good and not self._closed:
                idle.append(channel)
            else:
                await channel.close()
        return reply

    async def close(self) -> None:
        """Closes what is idle now, and what is in use as soon as it is not."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    def abandon(self) -> None:
        """The same from outside the loop, or from a thread."""
        self._closed = True
        if self._idle and self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self.close(), self._loop)


class _Connection:
    """One connection, made again when the server has closed it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.kept = False
        """Whether it has served a call before: then the server may just have closed it."""
        self._connection = self._new()

    async def send(self, request: httpcore.Request) -> Reply:
        wire = self._wire
        old = self._connection
        if isinstance(old, httpcore.AsyncHTTPConnection) and (old.is_closed() or old.has_expired()):
            await old.aclose()
            self._connection, self.kept = self._new(), False
        response = await self._connection.handle_async_request(request)
        try:
            headers = wire.heard(response)
            parts, size = [], 0
            async for part in response.aiter_stream():
                parts.append(part)
                size += len(part)
                wire.check_size(size)
        finally:
            await response.aclose()
        self.kept = True
        return Reply(response.status, headers, parts[0] if len(parts) == 1 else b"".join(parts))

    def _new(self) -> httpcore.AsyncHTTPConnection | httpcore.AsyncConnectionPool:
        options = self._wire.options()
        if options["proxy"] is not None:  # only a pool knows how to go through one
            return httpcore.AsyncConnectionPool(**options, max_connections=1)
        del options["proxy"]
        return httpcore.AsyncHTTPConnection(self._wire.root.origin, **options)

    async def close(self) -> None:
        await self._connection.aclose()
