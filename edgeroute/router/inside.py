"""Legs that run in the tasks of their callers: a cloud call that ends by itself needs no task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any

from edgeroute.core.walk import Event, Failed
from edgeroute.errors import Unreachable

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
