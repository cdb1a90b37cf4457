"""Drivers: execute a walk's effects and send back its events, without decisions of their own.

They share one interface, `begin(start, send)`. It starts a leg, which reports once through `send`, from any thread,
possibly before `begin` returns. It returns a function that asks the leg to stop, which may be called too late. A leg that
runs to its end within `begin` returns its event instead, and sends nothing. The drivers for the caller's thread and for its
task may also be given a `Deferrable`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from edgeroute.core.walk import Elapsed, Event, Failed, Start

Send: TypeAlias = Callable[[Event], None]
Stop: TypeAlias = Callable[[], None]
Begin: TypeAlias = Callable[[Start, Send], Stop | Event]


class Deferrable:
    """A leg that has not begun, and ends by the instant `until` by itself: where nothing else goes on, its caller runs it.

    Attributes:
        leg: its number.
        run: runs it here, to its event; for asyncio a coroutine function.
        begin: starts it in a thread or task of its own, as `Begin` does.
    """

    __slots__ = ("begin", "leg", "run", "until")

    def __init__(self, leg: int, until: float, run: Callable[[], Any], begin: Callable[[], Stop | Event]) -> None:
        self.leg, self.until, self.run, self.begin = leg, until, run, begin


BeginOrDefer: TypeAlias = Callable[[Start, Send], "Stop | Event | Deferrable"]


def over() -> None:
    """Stops a leg that has ended."""


def in_time(event: Event, until: float) -> Event:
    """The event of a leg that its caller ran; where it failed as its time was over that, since the walk would have ended it."""
    return Elapsed(event.at) if type(event) is Failed and event.at >= until else event
