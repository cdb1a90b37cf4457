"""Driver for the caller's thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX
from time import monotonic
from typing import TypeVar

from edgeroute.core.policy import INF
from edgeroute.core.walk import Cancel, Done, Effect, Elapsed, Emit, Event, Failed, Start, Wait
from edgeroute.router.drivers import BeginOrDefer, Deferrable, Stop, in_time, over

T = TypeVar("T")


def drive(walk: Generator[Effect, Event | None, T], begin: BeginOrDefer) -> T:
    """Drives a walk and returns its result. Any early end (Ctrl-C too) stops all running legs."""
    steps = stream(walk, begin)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def stream(
    walk: Generator[Effect, Event | None, T], begin: BeginOrDefer, ring: Callable[[], object] | None = None
) -> Generator[Emit | Wait, None, T]:
    """Yields what the walk emits, and returns its result. Closing it early stops all running legs.

    ring: called, in any thread, as an event comes. With it nothing is waited for here: while there is no event, the walk's `Wait`
        is yielded, and whoever has several walks goes on with this one once it rings, or at that instant.
    """
    mail: SimpleQueue[Event] = SimpleQueue()
    send = mail.put if ring is None else partial(_send, mail, ring)
    stops: dict[int, Stop] = {}
    stopped: set[int] = set()
    """Legs that were stopped or left: their further events are dropped."""
    deferred: Deferrable | None = None
    reply: Event | None = None
    try:
        while True:
            effect = walk.send(reply)
            reply = None
            if deferred is not None:
                here, deferred = deferred, None  # it is run here, if nothing else is waited for
                if (
                    ring is None and type(effect) is Wait and not stops and effect.until >= here.until
                ):  # nothing else is waited for
                    reply = in_time(here.run(), effect.until)
                    if type(reply) is Elapsed:
                        stops[here.leg] = over
                    continue
                late = here.begin()
                stops[here.leg] = over if isinstance(late, tuple) else late
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
                while True:
                    while ring is not None and mail.empty() and monotonic() < effect.until:
                        yield effect
                    reply = _receive(mail, effect.until)
                    if getattr(reply, "leg", None) not in stopped:
                        break
                if type(reply) is Done or type(reply) is Failed:
                    stops.pop(reply.leg, None)
            elif type(effect) is Emit:
                yield effect
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


def _send(mail: SimpleQueue[Event], ring: Callable[[], object], event: Event) -> None:
    mail.put(event)
    ring()


def _receive(mail: SimpleQueue[Event], until: float) -> Event:
    """The next event; one already received goes before an expired deadline."""
    try:
        return mail.get_nowait()
    except Empty:
        pass
    try:
        return mail.get(timeout=None if until == INF else min(max(0.0, until - monotonic()), TIMEOUT_MAX))
    except Empty:
        return Elapsed(monotonic())


# Driver without threads for sequential walks that cannot be interrupted: each leg runs where it is started.
#
# No mailbox and no thread: handing over to another thread costs more than a small model takes.


def drive_inline(walk: Generator[Effect, Event | None, T], run: Callable[[Start], Event], first: Event | None = None) -> T:
    """Drives a walk and returns its result. `run` runs a leg to its end; what it raises ends the walk.

    first: the event of the first leg, if that has run already.
    """
    reply: Event | None = None
    try:
        while True:
            effect = walk.send(reply)
            assert type(effect) is Start, "a sequential plan neither waits nor cancels"
            reply, first = (run(effect), None) if first is None else (first, None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
