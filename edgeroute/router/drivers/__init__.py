"""Each does what a walk asks and tells it what happened; no driver decides anything.

The one plug they share: `begin(start, send)`. It starts a leg, which reports once through `send`, from any thread,
perhaps before `begin` returns. What it returns is called to ask the leg to stop, and may be called too late. A leg that
runs to its end within `begin` returns its event instead, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from edgeroute.core.walk import Event, Start

Send: TypeAlias = Callable[[Event], None]
Stop: TypeAlias = Callable[[], None]
Begin: TypeAlias = Callable[[Start, Send], Stop | Event]
