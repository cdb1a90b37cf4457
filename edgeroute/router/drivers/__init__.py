"""Drivers: execute a walk's effects and send back its events, without decisions of their own.

They share one interface, `begin(start, send)`. It starts a leg, which reports once through `send`, from any thread,
possibly before `begin` returns. It returns a function that asks the leg to stop, which may be called too late. A leg that
runs to its end within `begin` returns its event instead, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from edgeroute.core.walk import Event, Start

Send: TypeAlias = Callable[[Event], None]
Stop: TypeAlias = Callable[[], None]
Begin: TypeAlias = Callable[[Start, Send], Stop | Event]
