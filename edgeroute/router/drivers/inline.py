"""Driver without threads for sequential walks that cannot be interrupted: each leg runs where it is started.

No mailbox and no thread: handing over to another thread costs more than a small model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from edgeroute.core.walk import Effect, Event, Start

T = TypeVar("T")


def drive(walk: Generator[Effect, Event | None, T], run: Callable[[Start], Event], first: Event | None = None) -> T:
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
