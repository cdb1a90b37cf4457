"""Drivers of a walk in the caller's thread, which block: with legs in other threads, whole or in pieces, or inline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from queue import Empty
from time import monotonic
from typing import Any, TypeVar

from edgeroute.core.walk import Cancel, Done, Effect, Elapsed, Emit, Event, Failed, Start, Wait
from edgeroute.router.drivers import BeginOrDefer, Deferrable, Stop
from edgeroute.system.mailbox import Mailbox

T = TypeVar("T")
# Events handled without a pause by a walk that does not block: pieces may come faster than they are handled, and others wait.
MOST_AT_ONCE = 64


def drive(walk: Generator[Effect, Event | None, T], begin: BeginOrDefer) -> T:
    """Run a walk with its legs in other threads, and return its result; blocks.

    Any early end (Ctrl-C too) stops all running legs.
    """
    return run_to_end(stream(walk, begin))


def run_to_end(steps: Generator[Any, None, T]) -> T:
    """Run a generator, ignoring what it yields, and return its result."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def stream(
    walk: Generator[Effect, Event | None, T], begin: BeginOrDefer, ring: Callable[[], object] | None = None
) -> Generator[Any, Any, T]:
    """Run a walk, yielding each effect `Emit`, and return its result; blocks. Closing the generator early stops all running legs.

    Events of legs that were stopped are dropped. A `Deferrable` leg runs in this thread if nothing else is under way.

    Args:
        walk: the walk.
        begin: starts a leg.
        ring: called, in any thread, when an event comes. With it the generator never blocks. While there is no event, it yields
            the walk's `Wait`, and is resumed once it rings, or at that instant; after many events one whose instant has come. A
            `Deferrable` leg that would run in this thread is yielded, and its event is sent back.
    """
    mail: Mailbox[Event] | _Bell = Mailbox() if ring is None else _Bell(ring)
    send = mail.put
    stops: dict[int, Stop] = {}
    stopped: set[int] = set()  # legs that were stopped or left: their further events are dropped
    deferred: Deferrable | None = None
    taken = 0
    reply: Event | None = None
    try:
        while True:
            effect = walk.send(reply)
            reply = None
            if deferred is not None:
                here, deferred = deferred, None  # it is run here, if nothing else is waited for
                if type(effect) is Wait and not stops and effect.until >= here.until:
                    reply = _in_time(here.run() if ring is None else (yield here), effect.until)
                    if type(reply) is Elapsed:
                        stops[here.leg] = _do_nothing
                    continue
                late = here.begin()
                stops[here.leg] = _do_nothing if isinstance(late, tuple) else late
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
                if ring is not None and taken % MOST_AT_ONCE == 0:
                    yield Wait(monotonic())
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


def _do_nothing() -> None:
    """Do nothing: the stop function of a leg that has ended."""


def _in_time(event: Event, until: float) -> Event:
    """Return the event of a leg that its caller ran; after `until`, Elapsed in place of a failure, as the walk would have it."""
    return Elapsed(event.at) if type(event) is Failed and event.at >= until else event


class _Bell:
    """Mailbox at which nobody waits: `put` calls `ring`, in the sender's thread."""

    __slots__ = ("_items", "_ring")

    def __init__(self, ring: Callable[[], object]) -> None:
        self._items, self._ring = deque[Event](), ring

    def put(self, event: Event) -> None:
        """Append an event, and ring."""
        self._items.append(event)
        self._ring()

    def get(self, _: float) -> Event:
        """Remove and return the first event; raise Empty if there is none."""
        if not self._items:
            raise Empty
        return self._items.popleft()

    def empty(self) -> bool:
        """Return True if there is no event."""
        return not self._items


def _receive(mail: Mailbox[Event] | _Bell, until: float) -> Event:
    """Return the next event, blocking until one comes; `Elapsed` at the instant `until`. An event that is there comes first."""
    try:
        return mail.get(until - monotonic())
    except Empty:
        return Elapsed(monotonic())


# Driver without threads for sequential walks that cannot be interrupted: each leg runs where it is started.
#
# It has no mailbox, since handing over to another thread takes longer than a small model runs.


def drive_inline(walk: Generator[Effect, Event | None, T], run: Callable[[Start], Event], first: Event | None = None) -> T:
    """Run a sequential walk, each leg in this thread, and return its result.

    Blocks; an exception of `run` ends the walk, and is raised.

    Args:
        walk: the walk of a sequential plan.
        run: runs a leg to its end, and returns its event.
        first: event of the first leg, if it has run already.
    """
    reply: Event | None = None
    try:
        while True:
            effect = walk.send(reply)
            assert type(effect) is Start, "a sequential plan neither waits nor cancels"
            reply, first = (run(effect), None) if first is None else (first, None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
