"""Driver for the walk of a replayed request."""

from __future__ import annotations

from collections.abc import Callable

from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import Elapsed, Event, Outcome, Start, Wait, Walk
from edgeroute.router.drivers import virtual

Answer = Callable[[Start, float], Event]
"""(effect that starts a leg, now) -> its event, not before `now`."""


def alone(plan: Plan) -> bool:
    """Whether legs run one at a time: each begins when the previous one has ended."""
    return all(leg.hedge_after_s == INF and leg.start_by_s == INF for leg in plan.legs)


def drive(walk: Walk, answer: Answer, begun: float, until: float, *, one: bool) -> Outcome:
    """Drives a walk up to the deadline `until`; returns its outcome. `one`, as from `alone`, avoids sorting events."""
    if not one:
        return virtual.drive(walk, lambda start, now: (answer(start, now),), begun)[0]
    now, reply = begun, None
    try:
        while True:
            effect = walk.send(reply)
            reply = None
            if type(effect) is Start:
                event = answer(effect, now)
                if event.at <= until:
                    reply, now = event, event.at
            elif type(effect) is Wait:
                reply = Elapsed(until)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
