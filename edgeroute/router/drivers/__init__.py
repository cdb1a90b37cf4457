"""Interface of the drivers: each executes a walk's effects and sends back its events, without decisions of its own.

`begin(start, send)` starts a leg, which reports once through `send`, from any thread, possibly before `begin` returns. It returns
a function that requests the leg to stop, which may be called too late. A leg that runs to its end within `begin` returns its
event instead, and sends nothing. The drivers for the caller's thread and for its task also accept a `Deferrable`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from edgeroute.core.walk import Event, Start

Send: TypeAlias = Callable[[Event], None]
Stop: TypeAlias = Callable[[], None]


class Deferrable:
    """Leg that has not begun, and ends by the instant `until` by itself; if nothing else is under way, its caller runs it.

    Attributes:
        leg: index of the leg.
        until: monotonic instant by which it ends.
        run: runs the leg here, and returns its event; for asyncio a coroutine function.
        begin: starts the leg in a thread or task of its own; returns the function that stops it, or its event.
    """

    __slots__ = ("begin", "leg", "run", "until")

    def __init__(self, leg: int, until: float, run: Callable[[], Any], begin: Callable[[], Stop | Event]) -> None:
        self.leg, self.until, self.run, self.begin = leg, until, run, begin


BeginOrDefer: TypeAlias = Callable[[Start, Send], "Stop | Event | Deferrable"]
