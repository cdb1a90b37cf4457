"""Of many who ask the same at the same time one asks, and the others wait for its answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

from edgeroute.system import renew_after_fork


class _Shared:
    """What the leader and the followers of one flight have in common."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[Any] | None = None  # made for the first follower: most have none


class Flight:
    """One caller's place in it. The leader calls `done`, and in any case at last `failed`, which then does nothing."""

    __slots__ = ("_flights", "_key", "_shared", "leads")

    def __init__(self, flights: Flights, key: bytes, shared: _Shared, leads: bool) -> None:
        self._flights, self._key, self._shared, self.leads = flights, key, shared, leads

    def done(self, result: Any) -> None:
        """Gives the result to all who wait. Of a follower, and after the end, it does nothing."""
        self._end(result)

    def failed(self) -> None:
        """Sends all who wait on their own ways. Of a follower, and after the end, it does nothing."""
        self._end(None)

    def wait(self, timeout_s: float) -> Any:
        """The leader's result; None: it failed, or there was none within the time. For a follower in a thread."""
        assert self._shared.future is not None, "the leader has nobody to wait for"
        try:
            return self._shared.future.result(min(timeout_s, threading.TIMEOUT_MAX))
        except concurrent.futures.TimeoutError:
            return None

    async def wait_async(self, timeout_s: float) -> Any:
        """The same on an event loop. To cancel it is this follower's matter alone."""
        assert self._shared.future is not None, "the leader has nobody to wait for"
        own = asyncio.wrap_future(self._shared.future)
        await asyncio.wait([own], timeout=timeout_s)  # it leaves `own` alone when it is cancelled, and so the other followers
        return own.result() if own.done() else None

    def _end(self, result: Any) -> None:
        if self.leads:
            self._flights.end(self._key, self._shared, result)

    def __del__(self) -> None:
        self._end(None)


class Flights:
    """Those under way. One that ended, however it did, leaves nothing behind."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forgets the parent's: a child has not the threads that lead them."""
        self._lock = threading.RLock()  # a forgotten leader may be collected, and so ended, in the middle of a `join`
        self._open: dict[bytes, _Shared] = {}

    def __len__(self) -> int:
        return len(self._open)

    def join(self, key: bytes) -> Flight:
        """Leads a new flight, or follows the one that is under way."""
        with self._lock:
            shared = self._open.get(key)
            if shared is None:
                shared = self._open[key] = _Shared()
                return Flight(self, key, shared, True)
            if shared.future is None:
                future: concurrent.futures.Future[Any] = concurrent.futures.Future()
                shared.future = future
                if self._open.get(key) is not shared and not future.done():  # its leader was collected since the first line
                    future.set_result(None)
            return Flight(self, key, shared, False)

    def end(self, key: bytes, shared: _Shared, result: Any) -> None:
        """Ends that flight, if it is still under way here."""
        with self._lock:
            if self._open.get(key) is not shared:
                return
            del self._open[key]
            future = shared.future
        if future is not None:
            future.set_result(result)
