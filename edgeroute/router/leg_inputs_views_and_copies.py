"""Inputs of one call: each leg's view of them, computed once; copies for legs that may outlive the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from edgeroute.core.policy_egress_and_options import Side, Target
from edgeroute.core.walk import Done, Event, Failed, Start
from edgeroute.errors import BadInput
from edgeroute.router.input_views_and_edge_answers import TargetViews
from edgeroute.router.request import Request
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.input_copies import copy_input, copy_value
from edgeroute.system.signal_safe_locks import SafeLock

COPIED_BYTES_PER_S = 4e9  # how fast inputs are copied, about; a slow device takes four times as long


class Fitting(NamedTuple):
    """Start of a batch's leg for those rows whose view could be computed."""

    start: Start
    rows: Sequence[int]  # all rows for which the leg was to be started
    misfits: Mapping[int, Exception]  # row -> exception of its view
    side: Side

    def early_event(self) -> Event | None:
        """Return the leg's event if nothing is to run: no row is left, or an edge's row is invalid, which fails the batch.

        None: the leg has to run for the rows that are left.
        """
        invalid = next((e for e in self.misfits.values() if isinstance(e, BadInput)), None)
        if self.side == "edge" and invalid is not None:
            return Failed(self.start.leg, invalid, monotonic(), fatal=True)
        return None if self.start.rows else self.for_all_rows(Done(self.start.leg, [], monotonic()))

    def for_all_rows(self, event: Event) -> Event:
        """Return the event for all rows: in the answers of the rows that ran, each row without a view has its exception."""
        if type(event) is not Done:
            return event
        answers = iter(event.answer)
        return event._replace(answer=[self.misfits[row] if row in self.misfits else next(answers) for row in self.rows])


class CallInputs:
    """Inputs of one call, and the views of them, each computed once for a side, in the thread of the leg that needs it first.

    A view's exception is raised again for each later leg. Legs that may outlive the call read a copy (`copy_inputs`).

    Args:
        requests: the request, or the rows of a batch.
        targets: targets of the policy.
        views: their views.
    """

    def __init__(self, requests: Sequence[Request], targets: Sequence[Target], views: TargetViews) -> None:
        single = len(requests) == 1
        self._inputs: list[Any] = [requests[0].inputs] if single else [request.inputs for request in requests]
        self._copied: bool | Exception = False
        self._deadline_s = requests[0].plan.deadline_s
        self._targets, self._views = targets, views
        if views.given:
            self._ids = {request.id: row for row, request in enumerate(requests)}
            self._seen: dict[tuple[int, int], tuple[Any, Exception | None]] = {}
            self._locks = [SafeLock() for _ in targets]

    def __len__(self) -> int:
        return len(self._inputs)

    def of(self, target: int, rows: Sequence[int] | None = None) -> list[Any]:
        """Return each input as a target gets it: its view (a key's item, or a function's result), or else the input itself.

        Views are computed now if need be, by the application's function, which may block.

        Args:
            target: index of the target.
            rows: rows of the batch; None: all.

        Raises:
            BadInput, ModelError, Held: as by `TargetViews.of`.
        """
        if self._views.views[target] is None:
            return self._inputs if rows is None else [self._inputs[row] for row in rows]
        return [self._view_once(target, row) for row in (range(len(self._inputs)) if rows is None else rows)]

    def blocks(self, target: int) -> bool:
        """Return True if the target's view is a function of the application, which may block."""
        return self._views.blocks(target)

    def fit_rows(self, start: Start, target: int) -> Fitting | None:
        """Compute a target's views of a batch's rows. Return the start without the rows that failed, with their errors.

        None: none failed, or the target has no view.
        """
        if self._views.views[target] is None:
            return None
        rows, misfits = range(len(self._inputs)) if start.rows is None else start.rows, {}
        for row in rows:
            try:
                self._view_once(target, row)
            except Exception as e:  # noqa: BLE001, PERF203 - each is its row's
                misfits[row] = e
        if not misfits:
            return None
        fit = start._replace(rows=tuple(row for row in rows if row not in misfits))
        return Fitting(fit, rows, misfits, self._targets[target].side)

    def for_outbox(self, identity: str, target: int, x: Any) -> Any:
        """Return a target's view of the request with this id, whose input is `x`. Waits for a leg that is computing it.

        Raises:
            BadInput, ModelError, Held: as by `TargetViews.of`.
        """
        return x if self._views.views[target] is None else self._view_once(target, self._ids[identity])

    def copy_inputs(self, share: float) -> Exception | None:
        """Replace the inputs, and the views computed so far, by copies, once.

        Return the error if they cannot be copied, also later, else None: a leg may be reading them. Views that failed are kept.

        Args:
            share: share of the deadline that copying may take.
        """
        if self._copied is False:
            most = COPIED_BYTES_PER_S * share * self._deadline_s / len(self._inputs)
            try:
                self._inputs = [call_contained(copy_input, x, most) for x in self._inputs]
                if self._views.given:
                    self._seen = {cell: (call_contained(copy_input, x, most), e) for cell, (x, e) in self._seen.items()}
                self._copied = True
            except Exception as e:  # noqa: BLE001 - an input's own way of being copied may raise anything
                self._copied = BaseException.with_traceback(e, None)  # its frames, and earlier errors', would keep the inputs
                for link in ("__cause__", "__context__"):
                    getattr(BaseException, link).__set__(e, None)  # whatever its own way of setting is
        return self._copied if isinstance(self._copied, Exception) else None

    def _view_once(self, target: int, row: int) -> Any:
        """Return a target's view of a row, computed once under a lock, also for later legs; raise the exception of the view.

        Waits for another thread that computes it.
        """
        cell = self._views.cells[target]
        entry = self._seen.get((row, cell))
        if entry is None:
            with self._locks[cell]:
                entry = self._seen.get((row, cell)) or self._compute_view(target, row)
                self._seen[row, cell] = entry
        seen, error = entry
        if error is not None:
            raise error
        return seen

    def _compute_view(self, target: int, row: int) -> tuple[Any, Exception | None]:
        """Compute a view. Return (view, None) or (None, exception).

        What a function makes of a batch's row is copied: it may return one buffer each time.
        """
        try:
            x = self._inputs[row]
            seen = self._views.of(self._targets[target], target, x)
            return seen if len(self._inputs) == 1 or seen is x or not self.blocks(target) else copy_value(seen), None
        except Exception as e:  # noqa: BLE001 - raised by `_view_once`
            return None, e
