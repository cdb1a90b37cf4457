"""Separates the events that a walk still waits for from those of legs that were left to run past the deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from edgeroute.core.batch import of_row
from edgeroute.core.walk import Done, Event
from edgeroute.router.drivers import Send
from edgeroute.router.request import Request

Late = Callable[[Request, Event, bool], object]
"""Receives the event of a leg that was left running past that request's deadline, and whether the thread may be blocked."""


class LateEvents:
    """Separates events that a walk still waits for from late ones, of legs left running past the deadline.

    Args:
        requests: one, or the rows of a batch.
        take: receives late events.
    """

    def __init__(self, requests: Sequence[Request], take: Late) -> None:
        self._requests, self._take = requests, take
        self._lock = threading.Lock()
        self._left: dict[int, list[int]] | None = None
        """Leg left running -> the rows that wanted its answer; None: the walk has not ended."""
        self._early: dict[int, Event] = {}
        """Leg -> the event sent to the walk."""
        self.rows: dict[int, tuple[int, ...]] = {}
        """By leg: the rows of the batch that it was started for."""
        self._answered: set[int] = set()
        """The rows of which a late answer was taken: of several clouds that are late the first counts."""

    def deliver(self, leg: int, send: Send, own_thread: bool, event: Event) -> None:
        """Delivers a leg's last event. own_thread: the calling thread may be blocked."""
        with self._lock:
            left = self._left
            if left is None:
                self._early[leg] = event
        if left is None:
            send(event)
        else:
            self._report(left, leg, event, own_thread)

    def end(self, left: dict[int, list[int]]) -> None:
        """Ends the walk, with these legs left running."""
        with self._lock:
            self._left = left
        for leg in left:
            if (event := self._early.get(leg)) is not None:  # it arrived between the deadline and now
                self._report(left, leg, event, False)

    def _report(self, left: dict[int, list[int]], leg: int, event: Event, own_thread: bool) -> None:
        places = {row: place for place, row in enumerate(self.rows.get(leg, ()))}
        for row in left.get(leg, ()):
            own = event
            if self._requests[row].batch and type(event) is Done:
                own = of_row(event, places[row])
            if type(own) is Done:
                with self._lock:
                    known = row in self._answered
                    self._answered.add(row)
                if known:
                    continue
            self._take(self._requests[row], own, own_thread)
