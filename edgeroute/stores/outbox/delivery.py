"""Delivers queued requests of the outbox when their endpoint is available, with retries, jitter and a rate limit."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import TypeAlias

from edgeroute.core.words import named
from edgeroute.errors import Closed, CloudError, StoreError
from edgeroute.stores.journal import ProcessLock
from edgeroute.stores.outbox.entries import Answering, Listed, Waiting
from edgeroute.stores.outbox.store import Outbox
from edgeroute.stores.outbox.tables import Heads, Lane, Turns
from edgeroute.system.process import renew_after_fork
from edgeroute.system.threads import ThreadPool

# Background thread with leader election: it works while its process holds a lock, which one process has at a time.

log = logging.getLogger("edgeroute")


class Loop:
    """Calls `step()` repeatedly, after as many seconds as the last call returned, or at once when nudged.

    Args:
        name: of the thread.
        place: lock file. The system releases the lock when the process ends, `kill -9` included.
        step: returns seconds until the next call; exceptions are logged.
        poll_s: maximum seconds between calls, to notice other processes' writes and to take over the lock.
        busy: whether the lock must still be held after `close()`.
    """

    def __init__(
        self, name: str, place: Path, step: Callable[[], float], *, poll_s: float, busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._name, self.lock, self._step, self.poll_s, self._busy = name, ProcessLock(place), step, poll_s, busy
        self._begun = self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Closes the inherited descriptor: the lock stays with the parent."""
        self.lock.leave()
        self._changed = threading.Condition()
        self._nudged, self._said = False, ""
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def start(self) -> None:
        """Starts the thread, if not started."""
        self._begun = True
        self.nudge()

    def nudge(self) -> None:
        """Runs the next step at once. In a forked child, starts the thread there."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()
            if self._begun and not self._closed and self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter ends: the next nudge tries again
                    thread.start()
                    self._thread = thread

    def close(self, wait_s: float = 1.0) -> None:
        """Ends the thread after the current step, once not busy; waits up to `wait_s` seconds."""
        with self._changed:
            self._closed, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait_s)

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._nudged or self._closed, pause)
                self._nudged = False
                if self._closed:
                    break
            pause = self.poll_s
            try:
                if self.lock.take():
                    pause = min(pause, self._step())
                self._said = ""
            except Exception as e:
                if (said := str(e)) != self._said:  # log a lasting error, such as a full disk, once
                    self._said = said
                    log.warning("the outbox waits: %s", said, exc_info=not isinstance(e, OSError))
        with self._changed:
            self._changed.wait_for(lambda: not self._busy())
        self.lock.leave()


MOST_S = 60.0
"""Maximum back-off after a failure, unless `spread_s` or the endpoint's Retry-After is longer ..."""
ASKED_MOST_S = 3600.0
"""... which is honoured up to this."""
HURRY_S = 1.0
"""Minimum interval between two `wake()` that cut waits short, seconds."""
MOST_PAUSED = 10_000
"""Lanes that are paused at a time."""
Send: TypeAlias = Callable[[Waiting], Answering]
_OURS = (StoreError, Closed, MemoryError)
"""Errors that are not about the request."""


def longest(attempts: int, spread_s: float = 0.0) -> float:
    """Upper end of the back-off after so many failures, seconds: 1, doubled each time up to `MOST_S`, or `spread_s` if longer."""
    return max(min(MOST_S, 2.0 ** min(attempts - 1, 30)), spread_s)


def backoff(attempts: int, spread_s: float = 0.0) -> float:
    """Back-off after so many failures, seconds, with full jitter: devices that lost the same link do not return at once."""
    return random.uniform(0, longest(attempts, spread_s))  # noqa: S311 - a jitter, not a secret


class Delivery:
    """Delivers from one process at a time, the holder of the lock `path.deliver`; others poll to take over.

    A request whose answer could not be stored before a crash is sent again with the same id (at-least-once delivery).

    Args:
        outbox: to deliver from.
        send: sends one request. A CloudError with `held` leaves it waiting without counting an attempt; a `retriable` one
            counts and backs off; both for at least `retry_after_s`. Any other exception makes the entry dead.
        ordered: deliver the requests of a target one at a time, in the order of puts. A waiting one blocks those behind it
            (head-of-line); a dead one does not.
        parallel: maximum concurrent requests.
        rate_per_s: maximum requests started per second.
        poll_s: seconds between polls when idle, and before a held request is retried.
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
        self.loop = Loop("edgeroute-outbox", place, self.step, poll_s=poll_s, busy=lambda: bool(self._flying))
        outbox.listen(self.loop.nudge)

    def after_fork(self) -> None:
        """Resets delivery state: requests in flight are the parent's."""
        self._flying: set[str] = set()
        self._began: frozenset[str] = frozenset()
        """Those in flight when the current scan began. What came of any other is stored and its lane paused before the scan reads
        either: a request that ends during a scan would look as if it were due."""
        self._paused: dict[Lane, tuple[float, Listed]] = {}
        """Lane -> paused until (monotonic), and the entry that was held last."""
        self._turns, self._soon_s = Turns(), inf
        self._hurry: dict[str, int] | None = None
        """Target -> the last entry whose wait was cut short; None: those at the start of each target are due for it."""
        self._through = 0
        """The last entry that there was when waits were to be cut short."""
        self._starts = True
        """Whether they are cut short for the start: what is put from now on waits for its own time."""
        self._outbox.first_put = None
        self._since: float | None = None
        """When the oldest waiting entry was queued, as of the last scan."""
        self._next = self._hurried = -inf
        self.hurry_at = -inf
        """When to cut waits short; initially at once: the reason an earlier process waited for may have passed."""
        self._stop = threading.Event()

    def start(self) -> None:
        """Starts delivering."""
        self.loop.start()

    def wake(self, *, now: bool = False) -> None:
        """Cuts short the waits of entries that failed. Not needed after a put.

        Args:
            now: this device was offline: retry at once. Else the cloud was down, for other devices too: retry after a random
                part of the oldest entry's spread.
        """
        at = monotonic()
        self.hurry_at = at if now else min(self.hurry_at, at + self._outbox.part_s(self._since))
        self.loop.nudge()

    def close(self, wait_s: float = 1.0) -> None:
        """Starts no more requests; waits for those in flight, up to `wait_s` seconds. Slower ones end by themselves."""
        self._stop.set()
        self.loop.close(wait_s)
        self._workers.close(wait_s)

    def step(self) -> float:
        """Starts one request, if one is due; called by the loop. Returns the seconds until the next may be due."""
        at = monotonic()
        if at >= max(self.hurry_at, self._hurried + HURRY_S):
            self._starts = self.hurry_at == -inf
            self.hurry_at, self._hurried, self._paused, self._hurry = inf, at, {}, None
        if len(self._flying) >= self._parallel:
            return inf  # a finished request nudges
        if at < self._next:
            return self._next - at
        self._began = frozenset(self._flying)
        chosen = self._outbox.pick(self._choose)
        if chosen is None:
            return min(self._soon_s, max(self.hurry_at, self._hurried + HURRY_S) - at)
        waiting = self._outbox.waiting(chosen.id)
        if waiting is None:
            return 0.0  # it is damaged, or too old, or somebody was faster
        self._next = max(self._next, at) + self._spacing_s
        self._flying.add(chosen.id)
        if not self._workers.submit(lambda: self._deliver(chosen, waiting)):
            self._flying.discard(chosen.id)
            return self._poll_s
        return 0.0

    def _choose(self, heads: Heads) -> Listed | None:
        """An entry that is due. Entries held last time come after others of the same target and data class."""
        targets = heads.targets("waiting")
        oldest = [row for target in targets if (row := heads.oldest(target, "waiting")) is not None]
        self._since = min(oldest).queued_at if oldest else None
        if self._hurry is None:
            self._hurry, self._through, first = {}, heads.newest(), self._outbox.first_put
            if self._starts and first is not None:
                self._through = first - 1
            for target in targets:
                self._cut_waits(heads, target)
        if self._ordered:
            found, self._soon_s = self._first_in_order(heads, targets)
        else:
            found, self._soon_s = self._turns.first(heads, "waiting", partial(self._of_lane, heads))
        if found is None:
            heads.check_states()
        return found

    def _of_lane(self, heads: Heads, lane: Lane) -> Listed | float:
        """The entry of this lane to send, or the seconds until there may be one."""
        until, last = self._paused.get(lane, (-inf, None))
        if until > (at := monotonic()):
            return until - at
        now, most = self._outbox.clock(), len(self._began) + 1
        for after in (None,) if last is None else ((last.ready_at, last.seq), None):
            row = next((row for row in heads.ready("waiting", lane, most, after) if row.id not in self._began), None)
            if row is not None and row.ready_at <= now:
                return row
        if row is None:
            return inf
        heads.check("waiting", lane)
        return 0.0 if self._cut_waits(heads, lane.target) else row.ready_at - now

    def _first_in_order(self, heads: Heads, targets: Iterable[str]) -> tuple[Listed | None, float]:
        """The first of the targets' oldest entries that is due, or the seconds until there may be one."""
        found, soon_s = list[Listed](), inf
        for target in targets:
            row = heads.oldest(target, "waiting")
            if row is None or row.id in self._began:
                continue
            until, _ = self._paused.get(Lane(row.target, row.data_class), (-inf, None))
            wait_s = max(row.ready_at - self._outbox.clock(), until - monotonic())
            if wait_s <= 0:
                found.append(row)
            else:
                soon_s = min(soon_s, 0.0 if until < monotonic() and self._cut_waits(heads, target) else wait_s)
        return min(found, default=None), soon_s

    def _cut_waits(self, heads: Heads, target: str) -> bool:
        """Makes due the next of a target's entries that wait because an attempt failed -> False: that is done."""
        assert self._hurry is not None, "it has begun"
        after = self._hurry.get(target, 0)
        if after >= self._through:
            return False
        self._hurry[target] = heads.hurry(target, self._outbox.clock(), after, self._through)
        return True

    def _deliver(self, row: Listed, waiting: Waiting) -> None:
        name = row.id
        try:
            answer = self._send(waiting)
            self._keep(lambda: self._outbox.answer(name, answer, attempts=1))
        except BaseException as e:  # noqa: BLE001 - any failure is recorded with its entry, SystemExit of a function too
            failure = named(e)
            if isinstance(e, _OURS) or getattr(e, "held", False) or not threading.main_thread().is_alive():
                pause_s = self._poll_s + (getattr(e, "retry_after_s", None) or 0.0)
                self._pause(Lane(row.target, row.data_class), pause_s, row)
            elif isinstance(e, CloudError) and e.retriable:
                spread_s = self._outbox.spread_for(row.queued_at)
                wait_s = max(backoff(row.attempts + 1, spread_s), min(e.retry_after_s or 0.0, ASKED_MOST_S))
                self._keep(lambda: self._outbox.failed(name, failure, self._outbox.clock() + wait_s))
            else:
                log.warning("%s cannot be delivered to %s: %s", name, row.target, failure)
                self._keep(lambda: self._outbox.bury(name, failure))
        finally:
            self._flying.discard(name)
            self.loop.nudge()

    def _pause(self, lane: Lane, pause_s: float, row: Listed) -> None:
        """Sends nothing of this lane for a while."""
        if len(self._paused) >= MOST_PAUSED:
            self._paused = {name: (until, last) for name, (until, last) in self._paused.items() if until > monotonic()}
        if len(self._paused) < MOST_PAUSED or lane in self._paused:
            self._paused[lane] = monotonic() + pause_s, row

    def _keep(self, write: Callable[[], object]) -> None:
        """Stores the outcome, retrying while the disk fails; meanwhile its slot is not reused."""
        while True:
            try:
                write()
            except StoreError as e:  # noqa: PERF203 - the loop is there for it
                log.warning("what came of a delivery cannot be kept yet: %s", e)
                if self._stop.wait(self._poll_s):
                    return
            else:
                return
