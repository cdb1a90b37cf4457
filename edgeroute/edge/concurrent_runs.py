"""Runs of an edge model, counted across routers: the model is not closed during one, and runs beyond its number wait in turn."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeroute.edge.edge_model_members_and_fingerprints import member, model_text
from edgeroute.errors import Busy, ModelError
from edgeroute.system.fork_safety import ForkSafe, Shared, initially, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import call_logged, log
from edgeroute.system.signal_safe_locks import SafeCondition
from edgeroute.types import EdgeModel, StopToken

if TYPE_CHECKING:
    import asyncio


class Runs(ForkSafe):
    """Counter of the runs of one model, shared by all routers that have it: further runs wait in turn; `close` frees the model.

    Args:
        model: its `parallel` limits the runs at a time; its `close` is called after the last run.
    """

    _free = per_process(SafeCondition)  # on a lock that its owner may take again: a signal handler may run the model
    _count, _closing = initially(0), initially(False)
    _freeing = initially(False)  # True while the model is being closed: until that has ended, no run begins
    _threads: Counter[int] = per_process(Counter)
    _tasks: deque[asyncio.Future[None]] = per_process(deque)

    def __init__(self, model: EdgeModel) -> None:
        self._model, self._close = model, member(model, "close")
        self._most: float = member(model, "parallel") or inf

    def count_runs(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that waits for a turn, calls `run(x, cancel)`, and ends the turn."""

        def counting(x: Any, cancel: StopToken | None = None) -> Any:
            """Wait for a turn, run the input, and give the turn back; raises what waiting and the run raise."""
            self._enter(cancel)
            try:
                return run(x, cancel)
            finally:
                self._leave(threading.get_ident())

        return counting

    @contextmanager
    def one(self, cancel: StopToken | None) -> Iterator[None]:
        """Count one run for the time of the block, after waiting for a turn.

        Raises:
            ModelError: a stop was requested before the turn came, or this thread runs the model already and it takes no more
                runs.
            Busy: no turn came by the instant `cancel.turn_by`.
        """
        self._enter(cancel)
        me = threading.get_ident()
        try:
            yield
        finally:
            self._leave(me)

    @asynccontextmanager
    async def one_async(self) -> AsyncIterator[None]:
        """Count one run on an event loop for the time of the block, after awaiting a turn. Cancelling gives up the turn."""
        import asyncio

        while not self._try_enter():
            turn = asyncio.get_running_loop().create_future()
            self._tasks.append(turn)
            try:
                if not self._is_free():  # else the last one ended before it could know of this one
                    await turn
            finally:
                self._tasks.remove(turn)
        try:
            yield
        finally:
            self._leave()

    def _is_free(self) -> bool:
        """Return True if a run may begin now. The caller holds the lock, or looks again."""
        return self._count < self._most and not self._freeing

    def _try_enter(self) -> bool:
        """Count a run if one may begin now; return True if so. Never blocks."""
        with self._free:
            free = self._is_free()
            self._count += free
        return free

    def _enter(self, cancel: StopToken | None) -> None:
        """Wait for a turn, and count a run of this thread.

        Raises:
            ModelError, Busy: as `one`.
        """
        me = threading.get_ident()
        with self._free:
            if not self._is_free():
                self._wait(me, cancel)
            self._count += 1
            self._threads[me] += 1

    def _wait(self, me: int, cancel: StopToken | None) -> None:
        """Block until a run may begin, or a stop is requested. Counts none.

        The caller holds the lock.

        Raises:
            ModelError: as `one`.
            Busy: the run has no turn by the instant `cancel.turn_by`.
        """
        if self._threads[me]:  # as in a signal handler: what it waits for would wait for it
            raise ModelError(f"{model_text(self._model)} runs in this thread already, and takes {self._most:g} at a time")
        stop = StopToken() if cancel is None else cancel
        stop.on_ask(self._wake)
        turn_by = stop.turn_by
        while not self._is_free() and not stop.asked:
            if not self._free.wait(None if turn_by == inf else max(0.0, turn_by - monotonic())) and monotonic() >= turn_by:
                raise Busy(f"{model_text(self._model)} was busy: it takes {self._most:g} at a time")
        if stop.asked:
            raise ModelError(f"{model_text(self._model)} was stopped before its turn came")
        stop.on_ask(None)

    def _wake(self) -> None:
        """Wake the waiting threads, so that they look for a stop request."""
        with self._free:
            self._free.notify_all()

    def _leave(self, thread: int | None = None) -> None:
        """End a run, wake those that wait for a turn, and close the model if that was asked for and this was the last run.

        What closing raises is logged, except Ctrl-C. thread: the run's; None: it ran on an event loop.
        """
        with self._free:
            self._count -= 1
            if thread is not None:
                self._threads[thread] -= 1
                if not self._threads[thread]:
                    del self._threads[thread]
            last = self._closing and not self._count
            self._closing = self._closing and not last
            if last:
                self._begin_freeing()
            self._free.notify_all()
        for turn in list(self._tasks):
            _wake_task(turn)
        if last:
            call_logged(self._close_now, "a model could not be closed")  # not raised: the run's result counts in this thread

    def _begin_freeing(self) -> None:
        """Note that the model is being closed, and by which thread. The caller holds the lock."""
        self._freeing = True
        self._threads[threading.get_ident()] += 1  # so a signal handler's run raises, and does not wait

    def _close_now(self) -> None:
        """Call the model's `close`, and then, even if it raises, let the waiting runs begin, which load the model again."""
        try:
            self._close()
        finally:
            with self._free:
                self._freeing = False
                self._threads[threading.get_ident()] -= 1
                self._threads += Counter()
                self._free.notify_all()
            for turn in list(self._tasks):
                _wake_task(turn)

    def close(self) -> None:
        """Close the model now, or after the last run that is in progress.

        A no-op if it has no `close`, or is closing. What `close` raises passes, if called here.
        """
        if self._close is None:
            return
        with self._free:
            if self._freeing:
                return
            self._closing = self._count > 0
            now = not self._closing
            if now:
                self._begin_freeing()
        if now:
            self._close_now()


_shared: Shared[int, Runs] = Shared()  # id of a model -> its runs


def runs_of(model: EdgeModel) -> Runs:
    """Return the model's runs, the same object wherever the model is used. For models whose runs are counted."""
    return _shared.first(id(model), Runs(model))  # not by `==`, as two models may be equal


def _wake_task(turn: asyncio.Future[None]) -> None:
    """Make a task that waits for its turn look again, by resolving its future in its event loop; from any thread.

    A closed loop is only logged.
    """

    def done() -> None:
        """Resolve the future, in the thread of its loop."""
        if not turn.done():
            turn.set_result(None)

    try:
        turn.get_loop().call_soon_threadsafe(done)
    except RuntimeError:  # its loop is closed, and with it the task
        log.debug("a task that waited for a model has no event loop any more")
