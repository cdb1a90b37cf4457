"""Driver of walks in virtual time (`drive`), for tests, replay and simulation: no sleeping, no execution of models or calls.

A walk is the generator of a request's route, which yields effects (start, wait, cancel) and is sent events.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

from edgeroute.core.walk import Effect, Elapsed, Emit, Event, Start, Wait

T = TypeVar("T")

# (effect that starts a leg, now) -> the leg's events, none before `now`; no event: the leg never answers.
Script = Callable[[Start, float], Iterable[Event]]


def drive(walk: Generator[Effect, Event | None, T], script: Script, begun: float = 0.0) -> tuple[T, float]:
    """Run a walk in virtual time. Return its result, and the virtual instant at which it ended.

    Emits are not returned; a leg that is stopped gives no further events. Errors of `script` and of the walk pass.

    Raises:
        RuntimeError: the walk waits for ever.
    """
    now, order = begun, count()
    mail: list[tuple[float, int, Event]] = []
    cancelled: set[int] = set()
    reply: Event | None = None
    try:
        while True:
            effect = walk.send(reply)
            reply = None
            if type(effect) is Start:
                for event in script(effect, now):
                    heappush(mail, (event.at, next(order), event))
            elif type(effect) is Wait:
                while mail and getattr(mail[0][2], "leg", None) in cancelled:
                    heappop(mail)
                if mail and mail[0][0] <= effect.until:
                    now, _, reply = heappop(mail)
                elif effect.until < float("inf"):
                    now = max(now, effect.until)
                    reply = Elapsed(now)
                else:
                    raise RuntimeError("the walk waits for a leg that never answers, and has no deadline")
            elif type(effect) is Emit:
                reply = Elapsed(now)
            else:
                cancelled.add(effect.leg)
    except StopIteration as end:
        return end.value, now
