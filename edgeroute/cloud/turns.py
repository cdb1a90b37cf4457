"""Turns: requests that wait for a place among an endpoint's calls under way, in order of arrival, for threads and asyncio."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from edgeroute.core.codes import Crowded, Rejection
from edgeroute.system import renew_after_fork

if TYPE_CHECKING:
    import asyncio

    from edgeroute.core.admission import Admission
    from edgeroute.types import StopToken

MOST_THREADS = 200
"""Most threads that may wait in this process, of the 256 for the clouds of a router: others have some left."""
MOST_TASKS = 1000
"""Most tasks that may wait for one endpoint."""
LOOK_S = 0.5
"""Interval at which a waiting request looks for itself, as the place of one that was dropped is freed without notice, seconds."""
_CLOSED = Rejection("stopped", "the router is closed")


class Turn:
    """One waiting request."""

    __slots__ = ("calls", "done", "rejection", "slot", "wake")

    def __init__(self, slot: Hashable, calls: int, wake: Callable[[], object]) -> None:
        self.slot, self.calls, self.wake = slot, calls, wake
        self.done = False
        """Whether it was admitted, or rejected for another reason than the places."""
        self.rejection: Rejection | None = None


class _WaitingThreads:
    """The turns that threads of this process wait for: endpoints share their threads."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has none."""
        self.turns: set[Turn] = set()


_threads = _WaitingThreads()


class Turns:
    """The waiting requests of one endpoint. A place that becomes free goes to the first of them; no lock is held while they wait.

    Args:
        rules: admit a request.
        lock: of the rules.
    """

    def __init__(self, rules: Admission, lock: AbstractContextManager[Any]) -> None:
        self._rules, self._lock, self._closed = rules, lock, False
        self.waiting: dict[Turn, None] = {}
        """In order of arrival."""

    def advance(self) -> None:
        """Admits those who are first, while there are places for them."""
        if not self.waiting:
            return
        ready, now = list[Turn](), monotonic()
        with self._lock:
            while self.waiting:
                turn = next(iter(self.waiting))
                crowded = None if self._closed or self._rules.why(now) is not None else self._rules.crowded(now)
                if isinstance(crowded, Crowded):
                    break
                del self.waiting[turn]
                turn.rejection = _CLOSED if self._closed else self._rules.enter(turn.slot, now, turn.calls)
                turn.done = True
                ready.append(turn)
        for turn in ready:
            turn.wake()

    def wait(self, slot: Hashable, calls: int, until: float, stop: StopToken | None, why: Rejection) -> Rejection | None:
        """Waits in this thread. Returns None once it is admitted, or why it was not: `why`, if the instant `until` came first."""
        if len(_threads.turns) >= MOST_THREADS or self._is_inside():
            return why
        awake = threading.Event()
        turn = Turn(slot, calls, awake.set)
        _threads.turns.add(turn)
        try:
            if stop is not None:
                stop.on_ask(awake.set)
            self._join(turn)
            while not turn.done and (left_s := until - monotonic()) > 0 and not (stop is not None and stop.asked):
                if not awake.wait(min(left_s, LOOK_S)):
                    self.advance()
            return self._left(turn, why)
        except BaseException:
            self._drop(turn)
            raise
        finally:
            _threads.turns.discard(turn)
            if stop is not None:
                stop.on_ask(None)

    async def wait_async(self, slot: Hashable, calls: int, until: float, why: Rejection) -> Rejection | None:
        """Waits in this task; as `wait`. Cancelling it gives its turn up."""
        if len(self.waiting) >= MOST_TASKS:
            return why
        import asyncio  # not for a router without a cloud

        loop = asyncio.get_running_loop()
        awake: asyncio.Future[None] | None = None

        def awaken() -> None:
            if awake is not None and not awake.done():
                awake.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(awaken)

        turn = Turn(slot, calls, wake)
        try:
            self._join(turn)
            while not turn.done and (left_s := until - monotonic()) > 0:
                awake = loop.create_future()
                alarm = loop.call_later(min(left_s, LOOK_S), awaken)
                try:
                    await awake
                finally:
                    alarm.cancel()
                self.advance()
            return self._left(turn, why)
        except BaseException:
            self._drop(turn)
            raise

    def close(self) -> None:
        """Rejects all who wait, and will."""
        self._closed = True
        self.advance()

    def _is_inside(self) -> bool:
        """Whether this thread has a request under way, as under a signal handler: it would wait for itself."""
        this = threading.get_ident()
        inside = (slot() for slot in list(self._rules.under_way) if isinstance(slot, ref))
        return any(exchange is not None and exchange.thread == this for exchange in inside)

    def _join(self, turn: Turn) -> None:
        with self._lock:
            self._rules.rejected -= 1  # it is counted at the end
            self.waiting[turn] = None
        self.advance()

    def _left(self, turn: Turn, why: Rejection) -> Rejection | None:
        with self._lock:
            self.waiting.pop(turn, None)
            self._rules.rejected += not turn.done
            return turn.rejection if turn.done else why

    def _drop(self, turn: Turn) -> None:
        """Gives up a turn, and the place that it may just have been given."""
        with self._lock:
            self.waiting.pop(turn, None)
        self._rules.leave(turn.slot)
        self.advance()
