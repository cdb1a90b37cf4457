"""Driver of a walk in an asyncio task. Cancelling the task stops all running legs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from threading import get_ident
from time import monotonic
from typing import TypeVar

from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.walk import Effect, Emit, Event
from edgeroute.router.drivers import BeginOrDefer, Deferrable
from edgeroute.router.drivers.blocking import stream

T = TypeVar("T")


async def drive(walk: Generator[Effect, Event | None, T], begin: BeginOrDefer, show: Callable[[Emit], object] | None = None) -> T:
    """Run a walk (a generator that says which legs to start, wait for and stop) on the event loop, and return its result.

    `begin` starts a leg, `show` is called with each effect `Emit`. Cancelling the task, or an exception, stops all running legs.
    Events of legs that were stopped are dropped. A leg that the walk leaves at the deadline runs on.
    """
    loop, thread = asyncio.get_running_loop(), get_ident()
    waiting: asyncio.Future[None] | None = None
    event: Event | None = None

    def wake() -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def ring() -> None:
        if get_ident() == thread:  # sent by a task of this loop, which therefore does not sleep in the system
            wake()
            return
        try:  # noqa: SIM105 - as in `Mailbox.put`
            loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop is closed: nobody reads late events
            pass

    steps = stream(walk, begin, ring)
    try:
        while True:
            step, event = steps.send(event), None
            if type(step) is Deferrable:
                event = await step.run()
            elif type(step) is Emit:
                if show is not None:
                    show(step)
            elif (left_s := step.until - monotonic()) > 0:
                waiting = loop.create_future()
                alarm = None if left_s == INF else loop.call_later(left_s, wake)
                try:
                    await waiting  # may be woken by an event that was read already: then it is waited for again
                finally:
                    if alarm is not None:
                        alarm.cancel()
            else:
                await asyncio.sleep(0)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        steps.close()
