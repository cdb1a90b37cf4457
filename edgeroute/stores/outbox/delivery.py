"""Sends what waits in the outbox, once its endpoint can be asked again."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from math import inf
from time import monotonic
from typing import TypeAlias

from edgeroute.errors import Closed, CloudError, StoreError
from edgeroute.stores.outbox.entries import Answering, Listed, Waiting
from edgeroute.stores.outbox.loop import Loop
from edgeroute.stores.outbox.store import Outbox
from edgeroute.system import ThreadPool, renew_after_fork

log = logging.getLogger("edgeroute")
MOST_S = 60.0
"""The longest wait after a failure, unless the outbox spreads it over longer or the endpoint itself asks for more ..."""
ASKED_MOST_S = 3600.0
"""... and the most that it may ask for."""
HURRY_S = 1.0
"""`wake()` cuts waits short at most so often."""
Send: TypeAlias = Callable[[Waiting], Answering]
_OURS = (StoreError, Closed, MemoryError)
"""What says nothing about the request."""


def longest(attempts: int, spread_s: float = 0.0) -> float:
    """The most seconds to wait after so many failures: 1, and twice as many each time, or what it is spread over."""
    return max(min(MOST_S, 2.0 ** min(attempts - 1, 30)), spread_s)


def backoff(attempts: int, spread_s: float = 0.0) -> float:
    """Seconds to wait after so many failures: full jitter, so that devices which lost the same link do not return as one."""
    return random.uniform(0, longest(attempts, spread_s))  # noqa: S311 - a jitter, not a secret


class Delivery:
    """Delivers from one process at a time, whichever has `path.deliver` locked; the others try to take over now and then.

    A request that was sent, and whose answer could not be kept before a crash, is sent again with the same id.

    Args:
        outbox: what is to be delivered.
        send: sends one request. A CloudError that is `held` leaves it waiting and does not count, a `retriable` one leaves it
            waiting for a while; either for `retry_after_s` at least. Whatever else it raises makes the entry dead.
        ordered: whether requests to a target go one at a time, in the order in which they were put. One that has to wait then
            holds up those behind it; a dead one does not.
        parallel: requests under way at once.
        rate_per_s: how many are begun in a second, at most.
        poll_s: seconds between two looks when nothing happens, and before a held request is tried again.
    """

    def __init__(
        self,
        outbox: Outbox,
        send: Send,
        *,
        ordered: bool = False,
        parallel: int = 2,
        rate_per_s: float = 10.0,
        poll_s: float = 5.0,
    ) -> None:
        self._outbox, self._send, self._ordered, self._parallel = outbox, send, ordered, parallel
        self._spacing_s, self._poll_s = 1.0 / rate_per_s, poll_s
        self._workers = ThreadPool("edgeroute-delivery", parallel)
        self.after_fork()
        renew_after_fork(self)
        place = outbox.path.with_name(outbox.path.name + ".deliver")
        self._loop = Loop("edgeroute-outbox", place, self._step, poll_s=poll_s, busy=lambda: bool(self._flying))
        outbox.listen(self._loop.nudge)

    def after_fork(self) -> None:
        """What is under way is the parent's."""
        self._flying: set[str] = set()
        self._paused: dict[tuple[str, str | None], tuple[float, int]] = {}
        """target and data class -> until when they are held, and the last entry that was."""
        self._soon_s = inf
        self._since: float | None = None
        """When the oldest was queued that waited at the last look."""
        self._next = self._hurried = -inf
        self._hurry_at = -inf
        """When waits are cut short; at first at once: what an earlier process waited for need not hold any more."""
        self._stop = threading.Event()

    def start(self) -> None:
        """Begins to deliver."""
        self._loop.start()

    def wake(self, *, now: bool = False) -> None:
        """Has everything tried that waits because something failed. After a put there is no need to.

        Args:
            now: it was this device that was away. Else the cloud was, for others too: then after a part of what the oldest
                is spread over.
        """
        self._hurry_at = min(self._hurry_at, monotonic() + (0.0 if now else self._outbox.part_s(self._since)))
        self._loop.nudge()

    def close(self, wait_s: float = 1.0) -> None:
        """Begins no more; waits for what is under way, up to `wait_s` seconds. What takes longer ends by itself."""
        self._stop.set()
        self._loop.close(wait_s)
        self._workers.close(wait_s)

    def _step(self) -> float:
        """Begins one request, if one is due and may go. -> seconds until there may be another."""
        at = monotonic()
        if at >= max(self._hurry_at, self._hurried + HURRY_S):
            self._hurry_at, self._hurried, self._paused = inf, at, {}
            self._outbox.hurry()
        if len(self._flying) >= self._parallel:
            return inf  # the end of one nudges
        if at < self._next:
            return self._next - at
        chosen = self._outbox.pick(self._choose, "waiting")
        waiting = None if chosen is None else self._outbox.waiting(chosen.id)
        if chosen is None or waiting is None:
            return min(self._soon_s, max(self._hurry_at, self._hurried + HURRY_S) - at)
        self._next = max(self._next, at) + self._spacing_s
        self._flying.add(chosen.id)
        if not self._workers.submit(lambda: self._deliver(chosen, waiting)):
            self._flying.discard(chosen.id)
            return self._poll_s
        return 0.0

    def _choose(self, rows: Iterator[Listed]) -> Listed | None:
        """The first that is due; those that were held last time come after the others of their kind."""
        now, at, seen, held = self._outbox.clock(), monotonic(), set[str](), None
        self._soon_s, first = inf, next(rows, None)
        self._since = None if first is None else first.queued_at
        for row in () if first is None else chain((first,), rows):
            if self._ordered:
                if row.target in seen:
                    continue
                seen.add(row.target)
            until, last = self._paused.get((row.target, row.data_class), (-inf, -1))
            wait_s = max(row.ready_at - now, until - at)
            if row.id in self._flying:
                continue
            if wait_s > 0:
                self._soon_s = min(self._soon_s, wait_s)
            elif row.seq > last or self._ordered:
                return row
            else:
                held = held or row
        return held

    def _deliver(self, row: Listed, waiting: Waiting) -> None:
        name = row.id
        try:
            answer = self._send(waiting)
            self._keep(lambda: self._outbox.answer(name, answer, attempts=1))
        except Exception as e:  # noqa: BLE001 - whatever it is, it is this request's, and kept with it
            failure = str(e) or repr(e)
            if isinstance(e, _OURS) or getattr(e, "held", False) or not threading.main_thread().is_alive():
                pause_s = self._poll_s + (getattr(e, "retry_after_s", None) or 0.0)
                self._paused[row.target, row.data_class] = monotonic() + pause_s, row.seq
            elif isinstance(e, CloudError) and e.retriable:
                spread_s = self._outbox.spread_for(row.queued_at)
                wait_s = max(backoff(row.attempts + 1, spread_s), min(e.retry_after_s or 0.0, ASKED_MOST_S))
                self._keep(lambda: self._outbox.failed(name, failure, self._outbox.clock() + wait_s))
            else:
                log.warning("%s cannot be delivered to %s: %s", name, row.target, failure)
                self._keep(lambda: self._outbox.bury(name, failure))
        finally:
            self._flying.discard(name)
            self._loop.nudge()

    def _keep(self, write: Callable[[], object]) -> None:
        """Writes what came of it. While the disk is full nothing else is sent in its place."""
        while True:
            try:
                write()
            except StoreError as e:  # noqa: PERF203 - the loop is there for it
                log.warning("what came of a delivery cannot be kept yet: %s", e)
                if self._stop.wait(self._poll_s):
                    return
            else:
                return
