"""The inputs of one call, as each of its legs takes them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from edgeroute.core.policy import Side, Target
from edgeroute.core.walk import Done, Event, Failed, Start
from edgeroute.errors import BadInput
from edgeroute.router.request import Request
from edgeroute.router.views import TargetViews
from edgeroute.system.copies import copy_input
from edgeroute.system.process import call_contained


class Fitting(NamedTuple):
    """The start of a batch's leg for those rows that its view has."""

    start: Start
    rows: Sequence[int]
    """All rows that it was to be started for."""
    misfits: Mapping[int, Exception]
    side: Side

    def ended(self) -> Event | None:
        """The leg's event, if there is nothing to run: no row is left, or one is invalid for the edge, which ends a batch."""
        invalid = next((e for e in self.misfits.values() if isinstance(e, BadInput)), None)
        if self.side == "edge" and invalid is not None:
            return Failed(self.start.leg, invalid, monotonic(), fatal=True)
        return None if self.start.rows else self.whole(Done(self.start.leg, [], monotonic()))

    def whole(self, event: Event) -> Event:
        """The event for all rows: those without a view have failed."""
        if type(event) is not Done:
            return event
        answers = iter(event.answer)
        return event._replace(answer=[self.misfits[row] if row in self.misfits else next(answers) for row in self.rows])


class CallInputs:
    """The inputs of one call, and the views of them: each is computed once a side, in the thread of the leg that needs it first.

    What a view raised is raised again. Legs that may outlive the call read a copy (`own`).

    Args:
        requests: one, or the rows of a batch.
        targets: of the policy.
        views: theirs; None: there are none.
    """

    def __init__(self, requests: Sequence[Request], targets: Sequence[Target], views: TargetViews | None) -> None:
        single = len(requests) == 1
        self._inputs: list[Any] = [requests[0].inputs] if single else [request.inputs for request in requests]
        self._copied = False
        self._targets, self._views = targets, views or None
        if self._views is not None:
            self._ids = {request.id: row for row, request in enumerate(requests)}
            self._seen: dict[tuple[int, int], tuple[Any, Exception | None]] = {}
            self._locks = [threading.Lock() for _ in targets]

    def __len__(self) -> int:
        return len(self._inputs)

    def of(self, target: int, rows: Sequence[int] | None = None) -> list[Any]:
        """What that target takes of these inputs; None: of all.

        Raises:
            BadInput, ModelError, Held: as `TargetViews.of`.
        """
        if self._views is None or self._views.views[target] is None:
            return self._inputs if rows is None else [self._inputs[row] for row in rows]
        return [self._one(self._views, target, row) for row in (range(len(self._inputs)) if rows is None else rows)]

    def blocks(self, target: int) -> bool:
        """Whether finding out takes a function of the application, which may block."""
        return self._views is not None and self._views.blocks(target)

    def fitting(self, start: Start, target: int) -> Fitting | None:
        """Which rows of a batch have what that target takes; None: all."""
        if self._views is None or self._views.views[target] is None:
            return None
        rows, misfits = range(len(self._inputs)) if start.rows is None else start.rows, {}
        for row in rows:
            try:
                self._one(self._views, target, row)
            except Exception as e:  # noqa: BLE001, PERF203 - each is its row's
                misfits[row] = e
        if not misfits:
            return None
        fit = start._replace(rows=tuple(row for row in rows if row not in misfits))
        return Fitting(fit, rows, misfits, self._targets[target].side)

    def for_outbox(self, identity: str, target: int, x: Any) -> Any:
        """What that target takes of the request with this id, whose own input `x` is. Waits for a leg that is computing it."""
        if self._views is None or self._views.views[target] is None:
            return x
        return self._one(self._views, target, self._ids[identity])

    def own(self) -> Exception | None:
        """From now on the inputs are copies, and so is what was computed of them. -> why they cannot be copied."""
        if not self._copied:
            try:
                self._inputs = [call_contained(copy_input, x) for x in self._inputs]
                if self._views is not None:
                    self._seen = {at: (call_contained(copy_input, seen), error) for at, (seen, error) in self._seen.items()}
            except Exception as e:  # noqa: BLE001 - an input's own way of being copied may raise anything
                return e
            self._copied = True
        return None

    def _one(self, views: TargetViews, target: int, row: int) -> Any:
        cell = views.cells[target]
        found = self._seen.get((row, cell))
        if found is None:
            with self._locks[cell]:
                found = self._seen.get((row, cell)) or self._computed(views, target, row)
                self._seen[row, cell] = found
        seen, error = found
        if error is not None:
            raise error
        return seen

    def _computed(self, views: TargetViews, target: int, row: int) -> tuple[Any, Exception | None]:
        try:
            return views.of(self._targets[target], target, self._inputs[row]), None
        except Exception as e:  # noqa: BLE001 - raised by `_one`
            return None, e
