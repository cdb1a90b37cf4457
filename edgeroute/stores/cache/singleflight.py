"""Singleflight: of equal concurrent requests one (the leader) runs, and the others (followers) wait for its result."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from edgeroute.system import renew_after_fork


class _Shared:
    """State shared by the leader and followers of one flight."""

    __slots__ = ("future", "held", "thread")

    def __init__(self, held: bool) -> None:
        self.held, self.thread = held, threading.get_ident()
        self.future: concurrent.futures.Future[Any] | None = None  # created for the first follower: most flights have none


class Flight:
    """One caller's part in a flight. The leader calls `done`, and always finally `failed`, which is a no-op after `done`."""

    __slots__ = ("_flights", "_key", "_shared", "leads")

    def __init__(self, flights: Flights, key: bytes, shared: _Shared, leads: bool) -> None:
        self._flights, self._key, self._shared, self.leads = flights, key, shared, leads

    @property
    def held(self) -> bool:
        """Whether the leader goes on only as somebody reads what it shows."""
        return self._shared.held

    def done(self, make: Callable[[], Any]) -> None:
        """Passes the result to all followers; `make` makes it, only if there are any. A no-op as `failed` is."""
        self._end(make)

    def failed(self) -> None:
        """Releases all followers without a result. A no-op for a follower, or once the flight has ended."""
        self._end(None)

    def wait(self, timeout_s: float) -> Any:
        """Blocks a follower for the leader's result, up to `timeout_s` seconds; None: it failed or timed out.

        A leader of the same thread is below this on the stack, in a generator or under a signal handler: it is not waited for.
        """
        future = self._shared.future
        assert future is not None, "the leader has nobody to wait for"
        if self._shared.thread == threading.get_ident() and not future.done():
            return None
        try:
            return future.result(min(timeout_s, threading.TIMEOUT_MAX))
        except concurrent.futures.TimeoutError:
            return None

    async def wait_async(self, timeout_s: float) -> Any:
        """`wait` on an event loop. Cancelling it affects this follower only."""
        assert self._shared.future is not None, "the leader has nobody to wait for"
        own = asyncio.wrap_future(self._shared.future)
        await asyncio.wait([own], timeout=timeout_s)  # cancelling this does not cancel `own`, nor affect other followers
        return own.result() if own.done() else None

    def _end(self, make: Callable[[], Any] | None) -> None:
        if self.leads:
            self._flights.end(self._key, self._shared, make)

    def __del__(self) -> None:
        self._end(None)


class Flights:
    """The flights in progress, by key. An ended one is removed, however it ended."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Starts empty: a child does not have the threads that lead the parent's flights."""
        self._lock = threading.RLock()  # an abandoned leader may be collected, and so ended, during a `join`
        self._open: dict[bytes, _Shared] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def followed(self) -> int:
        """How many of them have followers."""
        with self._lock:
            return sum(shared.future is not None for shared in self._open.values())

    def join(self, key: bytes, *, held: bool = False) -> Flight:
        """Starts a flight as its leader, or follows the one in progress. held: see `Flight.held`."""
        with self._lock:
            shared = self._open.get(key)
            if shared is None:
                shared = self._open[key] = _Shared(held)
                return Flight(self, key, shared, True)
            if shared.future is None:
                future: concurrent.futures.Future[Any] = concurrent.futures.Future()
                shared.future = future
                if self._open.get(key) is not shared and not future.done():  # its leader was collected meanwhile
                    future.set_result(None)
            return Flight(self, key, shared, False)

    def end(self, key: bytes, shared: _Shared, make: Callable[[], Any] | None) -> None:
        """Ends this flight, if it is still in progress: with what `make` makes, or without a result."""
        with self._lock:
            if self._open.get(key) is not shared:
                return
            del self._open[key]
            future = shared.future
        if future is None:
            return
        result = None
        try:
            result = None if make is None else make()
        finally:
            future.set_result(result)
