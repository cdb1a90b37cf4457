"""Work of an event loop that may block: in threads of a router's pools."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.core.walk import Event, Failed
from edgeroute.errors import Held, Unreachable
from edgeroute.system.threads import ThreadPool

if TYPE_CHECKING:
    from edgeroute.cloud.backend import CloudBackend

T = TypeVar("T")


async def in_cloud_thread(threads: ThreadPool, backend: CloudBackend, call: Callable[[], T]) -> T:
    """The result of consent, redaction or loading a client, which may block like a cloud call.

    Raises:
        Held: no thread is free.
    """
    done = submitted(threads.submit, call)
    if done is None:
        backend.guard.count_rejected("threads")
        raise Held(f"{backend.name} was not asked: no thread is free", code="threads")
    return await done


async def in_edge_thread(threads: ThreadPool, call: Callable[[], T]) -> T:
    """The result of an edge's view of an input; computed here if no thread is free."""
    done = submitted(threads.submit, call)
    return call() if done is None else await done


def submitted(submit: Callable[[Callable[[], object]], bool], call: Callable[[], T]) -> asyncio.Future[T] | None:
    """A future of `call` in a thread; None: there is no thread for it.

    Not asyncio's own executor, which is shared: hanging name look-ups may fill it.
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
    if done.done():
        return  # the waiting task was cancelled
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


# Legs that run in the tasks of their callers: a cloud call that ends by itself needs no task of its own.

TAKES_BACK = hasattr(asyncio.Task, "uncancel")
"""Whether a request to cancel a task can be taken back; before Python 3.11 legs have tasks of their own."""


class _Leg:
    __slots__ = ("before", "closed", "ended", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task, self.closed = task, False
        self.before = task.cancelling() if TAKES_BACK else 0
        """Requests to cancel the task that are none of ours: a caller may clean up in a task that was cancelled."""
        self.ended: asyncio.Future[None] | None = None


class InsideLegs:
    """Runs legs in the callers' tasks. When the router is closed they end as its own tasks do, and the callers go on."""

    def __init__(self) -> None:
        self._legs: set[_Leg] = set()

    async def run(self, leg: int, steps: Coroutine[Any, Any, Event]) -> Event:
        """Runs a leg to its event; one that `close` has cancelled has failed."""
        task = asyncio.current_task()
        assert task is not None, "a coroutine of asyncio runs in a task"
        self._legs.add(one := _Leg(task))
        try:
            event = await steps
            if one.closed:
                _taken_back(task)
        except asyncio.CancelledError:
            if not one.closed or _taken_back(task) > one.before:
                raise  # somebody else has cancelled it
            event = Failed(leg, Unreachable("it was cancelled"), monotonic())
        finally:
            self._legs.discard(one)
            if one.ended is not None and not one.ended.done():
                one.ended.set_result(None)
        return event

    def close(self, loop: asyncio.AbstractEventLoop) -> set[asyncio.Future[None]]:
        """Cancels the legs on that loop -> futures of their ends."""
        ends = set[asyncio.Future[None]]()
        for one in self._legs.copy():
            if one.task.get_loop() is loop and not one.closed:
                one.closed, one.ended = True, loop.create_future()
                ends.add(one.ended)
                one.task.cancel()
        return ends


def _taken_back(task: asyncio.Task[Any]) -> int:
    """Takes back our own request to cancel a task. Returns how many others there are."""
    return task.uncancel() if TAKES_BACK else 0
