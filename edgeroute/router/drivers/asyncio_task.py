"""Driver of a walk in an asyncio task. Cancelling the task stops all running legs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from threading import get_ident
from time import monotonic
from typing import TypeVar

from edgeroute.core.routing_policy import INF
from edgeroute.core.walk import Cancel, Done, Effect, Elapsed, Emit, Event, Failed, Start, Wait
from edgeroute.router.drivers import BeginOrDefer, Deferrable, Stop, do_nothing, in_time

T = TypeVar("T")
MOST_AT_ONCE = 64  # events handled without a pause: pieces may come faster than they are handled, and the loop has other tasks


async def drive(walk: Generator[Effect, Event | None, T], begin: BeginOrDefer, show: Callable[[Emit], object] | None = None) -> T:
    """Run a walk (a generator that says which legs to start, wait for and stop) on the event loop, and return its result.

    `begin` starts a leg, `show` is called with each effect `Emit`. Cancelling the task, or an exception, stops all running legs.
    Events of legs that were stopped are dropped. A leg that the walk leaves at the deadline runs on.
    """
    loop, thread = asyncio.get_running_loop(), get_ident()
    mail: deque[Event] = deque()
    waiting: asyncio.Future[None] | None = None
    stops: dict[int, Stop] = {}
    stopped: set[int] = set()  # legs that were stopped or left: their further events are dropped
    deferred: Deferrable | None = None
    taken = 0
    reply: Event | None = None

    def wake() -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def send(event: Event) -> None:
        mail.append(event)
        try:
            if get_ident() == thread:  # sent by a task of this loop, which therefore does not sleep in the system
                wake()
            else:
                loop.call_soon_threadsafe(wake)
        except RuntimeError:
            mail.clear()  # the loop is closed: nobody reads late events

    try:
        while True:
            effect = walk.send(reply)
            reply = None
            if deferred is not None:  # as in the driver for threads
                here, deferred = deferred, None
                if type(effect) is Wait and not stops and effect.until >= here.until:
                    reply = in_time(await here.run(), effect.until)
                    if type(reply) is Elapsed:
                        stops[here.leg] = do_nothing
                    continue
                late = here.begin()
                stops[here.leg] = do_nothing if isinstance(late, tuple) else late
                if isinstance(late, tuple):
                    send(late)
            if type(effect) is Start:
                begun = begin(effect, send)
                if isinstance(begun, Deferrable):
                    deferred = begun
                elif isinstance(begun, tuple):
                    reply = begun
                else:
                    stops[effect.leg] = begun
            elif type(effect) is Wait:
                taken += 1
                if taken % MOST_AT_ONCE == 0:
                    await asyncio.sleep(0)
                while not _next(mail, stopped) and (left_s := effect.until - monotonic()) > 0:
                    waiting = loop.create_future()
                    alarm = None if left_s == INF else loop.call_later(left_s, wake)
                    try:
                        await waiting  # may be woken by an event that was read already: hence the loop
                    finally:
                        if alarm is not None:
                            alarm.cancel()
                reply = mail.popleft() if mail else Elapsed(monotonic())
                if type(reply) is Done or type(reply) is Failed:
                    stops.pop(reply.leg, None)
            elif type(effect) is Emit:
                if show is not None:
                    show(effect)
                reply = Elapsed(monotonic())
            else:
                stop = stops.pop(effect.leg)
                stopped.add(effect.leg)
                if type(effect) is Cancel:
                    stop()
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        for stop in stops.values():
            stop()


def _next(mail: deque[Event], stopped: set[int]) -> bool:
    """Remove events of stopped legs from the front of the mailbox. Return True if others remain."""
    while mail and getattr(mail[0], "leg", None) in stopped:
        mail.popleft()
    return bool(mail)
