"""What every call of the gateway goes through: its body, a free place, and the end of a client that has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.types import Receive

from edgeroute.gateway.faults import Busy
from edgeroute.serve.bodies import Bodies

T = TypeVar("T")
LARGE = 1 << 16
"""Bytes from which a body is parsed in a thread: the event loop goes on meanwhile."""


class Calls:
    """The calls in progress.

    Args:
        bodies: their bodies.
        most: calls that may be in progress at a time; a further one gets 429.
    """

    def __init__(self, bodies: Bodies, most: int) -> None:
        self.bodies, self.most = bodies, most
        self.running = 0
        self._parser = ThreadPoolExecutor(1, "edgeroute-gateway-json")  # one: parsed JSON takes several times its size

    def close(self) -> None:
        """Ends the thread."""
        self._parser.shutdown(wait=False)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places.

        Raises:
            Busy: there is none.
        """
        if self.running >= self.most:
            raise Busy(self.most)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def parse(self, body: bytes, read: Callable[[bytes], T]) -> T:
        """What `read` makes of a body; in the thread, if that may take long."""
        return read(body) if len(body) < LARGE else await self.aside(partial(read, body))

    async def aside(self, work: Callable[[], T]) -> T:
        """What `work` returns, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._parser, work)


def plain_body(headers: Mapping[bytes, bytes]) -> None:
    """Refuses a compressed body.

    Raises:
        HTTPException: 415.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HTTPException(415, "the body is compressed, which this gateway does not read: send it as it is")


LEFT: Any = object()
"""In place of a result: the client has left."""


async def unless_left(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client leaves; then `LEFT`, once it has ended."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else LEFT
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
