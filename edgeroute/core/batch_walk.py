"""Walk of a plan with a batch: each row follows the rules for one input; a leg is started once for all rows that need it."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

from edgeroute.core.plan import Plan
from edgeroute.core.routing_policy import INF
from edgeroute.core.walk import Cancel, Done, Effect, Emit, Event, Failed, Leave, Outcome, Start, Wait, Walk, walk

BatchWalk: TypeAlias = Generator[Effect, Event | None, list[Outcome]]


def walk_many(plan: Plan, count: int, begun: float, keep_late: bool = False) -> BatchWalk:
    """Route `count` inputs together; yields effects as `walk` does, and returns the outcomes in order.

    Rows still in progress have all seen the same legs end, each with an answer or a failure of its own, since a row either ends
    or goes on with the others. So they request the same legs at the same time, and one `Start` with their row numbers serves them
    all. A leg is cancelled when no remaining row could use it. At the deadline clouds still running are cancelled, or with
    `keep_late` left running.
    """
    plan = for_rows(plan, count)
    live: dict[int, Walk] = {row: walk(plan, begun, False, keep_late) for row in range(count)}
    outcomes: list[Outcome | None] = [None] * count
    asked: dict[int, dict[int, int]] = {}
    """Leg -> rows that it was started for, each with its place among them."""
    events: list[Event | None] = [None]

    while True:
        event = events.pop(0)
        starts: dict[int, list[int]] = {}
        ends: dict[int, Cancel | Leave] = {}
        until = begun
        for row, row_walk in list(live.items()):
            reply = _for_row(event, row, asked)
            try:
                while type(effect := row_walk.send(reply)) is not Wait:
                    reply = None
                    if type(effect) is Start:
                        starts.setdefault(effect.leg, []).append(row)
                    else:
                        assert type(effect) is not Emit, "a batch shows nothing"
                        ends[effect.leg] = effect
                until = effect.until
            except StopIteration as end:
                outcomes[row] = end.value
                del live[row]
        for leg, rows in starts.items():
            asked[leg] = {row: place for place, row in enumerate(rows)}
            at_once = yield Start(leg, tuple(rows))
            if at_once is not None:
                events.append(at_once)
        if not live:
            yield from ends.values()
            return [outcome for outcome in outcomes if outcome is not None]
        if not events:
            events.append((yield Wait(until)))


def for_rows(plan: Plan, count: int) -> Plan:
    """Return the plan with a standby started early enough to run `count` inputs: measured times are those of one input.

    Unchanged without a deadline.
    """
    deadline_s = plan.deadline_s
    if deadline_s == INF:
        return plan
    legs = (
        leg._replace(start_by_s=max(0.0, deadline_s - count * (deadline_s - leg.start_by_s))) if leg.start_by_s < INF else leg
        for leg in plan.legs
    )
    return plan._replace(legs=tuple(legs))


def of_row(event: Done, position: int) -> Done | Failed:
    """Return the event of one row. An exception among the answers is the failure of that row alone."""
    answer = event.answer[position]
    return Failed(event.leg, answer, event.at) if isinstance(answer, BaseException) else Done(event.leg, answer, event.at)


def _for_row(event: Event | None, row: int, asked: dict[int, dict[int, int]]) -> Event | None:
    """Return an event of a batch as one of this row.

    Only `Done` differs by row; other events, and None, are returned unchanged.
    """
    return of_row(event, asked[event.leg][row]) if type(event) is Done else event
