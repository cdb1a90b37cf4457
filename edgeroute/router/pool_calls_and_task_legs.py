"""Blocking work of an event loop, in threads of a router's pools; and legs that run in their callers' tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.core.walk import Event, Failed
from edgeroute.errors import Held, Unreachable
from edgeroute.system.thread_pool_and_workers import ThreadPool

if TYPE_CHECKING:
    from edgeroute.cloud.http_backend import CloudBackend

T = TypeVar("T")


async def in_cloud_thread(threads: ThreadPool, backend: CloudBackend, call: Callable[[], T], *, later: bool = False) -> T:
    """Return the result of `call` (consent, redaction, loading a client), run in a thread for clouds.

    later: it may wait for a thread, as it waits for no other job itself: a booking.

    Raises:
        Held: no thread is free; counted at the guard.
    """
    done = submit_call(threads.submit_later if later else threads.submit, call)
    if done is None:
        backend.guard.count_rejected("threads")
        raise Held(f"{backend.name} was not asked: no thread is free", code="threads")
    return await done


async def in_edge_thread(threads: ThreadPool, call: Callable[[], T]) -> T:
    """Return the result of `call` (an edge's view of an input), run in a thread for edges, or here if none is free."""
    done = submit_call(threads.submit, call)
    return call() if done is None else await done


def submit_call(submit: Callable[[Callable[[], object]], bool], call: Callable[[], T]) -> asyncio.Future[T] | None:
    """Submit `call` to a pool of threads. Return a future of its result, or of what it raises; None: there is no thread.

    asyncio's own executor is not used, since it is shared: hanging name look-ups may fill it. The result of a cancelled waiter is
    dropped.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def job() -> None:
        try:
            result, error = call(), None
        except BaseException as e:  # noqa: BLE001 - passed to the caller
            result, error = None, e
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_set, done, result, error)

    return done if submit(job) else None


def _set(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Set a future's result or error, unless the waiting task was cancelled."""
    if done.done():
        return  # the waiting task was cancelled
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


# Legs that run in their callers' tasks: a cloud call that ends by itself needs no task of its own.

# True if the cancellation of a task can be revoked; before Python 3.11, legs have tasks of their own.
TAKES_BACK = hasattr(asyncio.Task, "uncancel")


class _Leg:
    """Leg that runs in its caller's task."""

    __slots__ = ("before", "closed", "ended", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task, self.closed = task, False
        # Earlier requests of others to cancel the task: a caller may clean up in a cancelled task.
        self.before = task.cancelling() if TAKES_BACK else 0
        self.ended: asyncio.Future[None] | None = None


class InsideLegs:
    """Runner of legs in their callers' tasks. `close` ends the legs, while the callers go on."""

    def __init__(self) -> None:
        self._legs: set[_Leg] = set()

    async def run(self, leg: int, steps: Coroutine[Any, Any, Event]) -> Event:
        """Run a leg in this task, and return its event; a failure (`Unreachable`) if `close` cancels it, and the task goes on.

        A cancellation of the caller itself is raised.
        """
        task = asyncio.current_task()
        assert task is not None, "a coroutine of asyncio runs in a task"
        self._legs.add(entry := _Leg(task))
        try:
            event = await steps
            if entry.closed:
                _uncancel(task)
        except asyncio.CancelledError:
            if not entry.closed or _uncancel(task) > entry.before:
                raise  # somebody else has cancelled it
            event = Failed(leg, Unreachable("it was cancelled"), monotonic())
        finally:
            self._legs.discard(entry)
            if entry.ended is not None and not entry.ended.done():
                entry.ended.set_result(None)
        return event

    def close(self, loop: asyncio.AbstractEventLoop) -> set[asyncio.Future[None]]:
        """Cancel the legs that run on a loop, but not those closed before. Return a future of each one's end; does not wait."""
        ends = set[asyncio.Future[None]]()
        for entry in self._legs.copy():
            if entry.task.get_loop() is loop and not entry.closed:
                entry.closed, entry.ended = True, loop.create_future()
                ends.add(entry.ended)
                entry.task.cancel()
        return ends


def _uncancel(task: asyncio.Task[Any]) -> int:
    """Revoke one cancellation of a task. Return the number of the others."""
    return task.uncancel() if TAKES_BACK else 0
