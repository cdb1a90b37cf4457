"""Runs of an edge model: counted, so that it is not closed under one, and so that no more go at a time than it takes."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import TYPE_CHECKING, Any

from edgeroute.edge.members import member, named
from edgeroute.errors import ModelError
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.process import Shared
from edgeroute.types import EdgeModel, StopToken

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("edgeroute")


class Runs(ForkSafe):
    """The runs of one model, of all routers that have it.

    Args:
        model: its `parallel` says how many may go at a time; its `close` is called after the last one.
    """

    _free = per_process(threading.Condition)  # on a lock that its owner may take again: a signal handler may run the model
    _count, _closing = initially(0), initially(False)
    _freeing = initially(False)
    """Whether it is being closed: until it is, no run begins."""
    _threads: Counter[int] = per_process(Counter)
    _tasks: deque[asyncio.Future[None]] = per_process(deque)

    def __init__(self, model: EdgeModel) -> None:
        self._model, self._close = model, member(model, "close")
        self._most: float = member(model, "parallel") or inf

    def counted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, of an input and a stop token, counted."""

        def counting(x: Any, cancel: StopToken | None = None) -> Any:
            self._enter(cancel)
            try:
                return run(x, cancel)
            finally:
                self._leave(threading.get_ident())

        return counting

    @contextmanager
    def one(self, cancel: StopToken | None) -> Iterator[None]:
        """A run, to its end."""
        self._enter(cancel)
        me = threading.get_ident()
        try:
            yield
        finally:
            self._leave(me)

    @asynccontextmanager
    async def one_async(self) -> AsyncIterator[None]:
        """A run on an event loop."""
        import asyncio

        while not self._entered():
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
        return self._count < self._most and not self._freeing

    def _entered(self) -> bool:
        with self._free:
            free = self._is_free()
            self._count += free
        return free

    def _enter(self, cancel: StopToken | None) -> None:
        me = threading.get_ident()
        with self._free:
            if not self._is_free():
                self._wait(me, cancel)
            self._count += 1
            self._threads[me] += 1

    def _wait(self, me: int, cancel: StopToken | None) -> None:
        """Waits for a turn, which a stop request ends."""
        if self._threads[me]:  # as in a signal handler: what it waits for would wait for it
            raise ModelError(f"{named(self._model)} runs in this thread already, and takes {self._most:g} at a time")
        if cancel is not None:
            cancel.on_ask(self._wake)
        while not self._is_free() and not (cancel is not None and cancel.asked):
            self._free.wait()
        if cancel is not None and cancel.asked:
            raise ModelError(f"{named(self._model)} was stopped before its turn came")
        if cancel is not None:
            cancel.on_ask(None)

    def _wake(self) -> None:
        with self._free:
            self._free.notify_all()

    def _leave(self, thread: int | None = None) -> None:
        with self._free:
            self._count -= 1
            if thread is not None:
                self._threads[thread] -= 1
                self._threads += Counter()  # drops those at zero
            last = self._closing and not self._count
            self._closing = self._closing and not last
            if last:
                self._begin_freeing()
            self._free.notify_all()
        for turn in list(self._tasks):
            _wake_task(turn)
        if last:
            self._close_last()

    def _close_last(self) -> None:
        """Closes it in the thread of a run that has ended well, or with an error of its own: that is what counts there."""
        try:
            self._close_now()
        except KeyboardInterrupt:
            raise
        except BaseException:
            log.exception("a model could not be closed")

    def _begin_freeing(self) -> None:
        self._freeing = True
        self._threads[threading.get_ident()] += 1  # a signal handler that runs it meanwhile is told, and does not wait for itself

    def _close_now(self) -> None:
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
        """Closes it now, or after the last run that is under way."""
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


_shared: Shared[int, Runs] = Shared()


def runs_of(model: EdgeModel) -> Runs | None:
    """The model's runs, the same wherever it is used; None: they need not be counted."""
    if member(model, "parallel") is None and (member(model, "close") is None or member(model, "closes_after_runs")):
        return None
    return _shared.first(id(model), Runs(model))  # not by `==`, as two models may be equal


def _wake_task(turn: asyncio.Future[None]) -> None:
    """Lets a task look again whether it is its turn; from any thread."""

    def done() -> None:
        if not turn.done():
            turn.set_result(None)

    try:
        turn.get_loop().call_soon_threadsafe(done)
    except RuntimeError:  # its loop is closed, and with it the task
        log.debug("a task that waited for a model has no event loop any more")
