"""Delivery of the outbox's requests to their endpoints (`Delivery`), and of late answers to the app's function (`Callbacks`).

Each runs in one process at a time, in the thread of a `LockedWorker`, a loop under a lock file; both retry after a back-off.
`Delivery` makes requests dead letters that fail for good.
"""

from __future__ import annotations

import inspect
import random
import sqlite3
import threading
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import TypeAlias

from edgeroute.core.error_codes_and_texts import INPUTS_OWN, failure_text
from edgeroute.core.walk import Prediction
from edgeroute.errors import Closed, CloudError, PolicyError, StoreError
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.stores.outbox.outbox_entries import Late, Listed, Waiting
from edgeroute.stores.outbox.schema_queries_and_eviction import Heads, Lane, Turns
from edgeroute.stores.outbox.sqlite_queue import Outbox, Tx
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.read_and_check_signatures import check_has_run, runs_later
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.thread_pool_and_workers import ThreadPool, Worker

# Delivery of late answers to the app's callback, by a thread of one process.

MOST_FAILURES = 10_000  # maximum ids whose failures are counted


class _CallbackError(Exception):
    """Raised for an exception of the callback, as opposed to one of the store."""


class Callbacks(ForkSafe):
    """Calls the app's function with each late answer, again after a failure, in the one process with the lock `path.callback`.

    If the outbox is ordered, it delivers the answers of a target in the order of its requests, each only after all earlier ones
    are delivered or dead. Else an answer whose callback fails does not block others.

    Args:
        outbox: the outbox that holds the answers.
        poll_s: seconds between polls for other processes' answers.
    """

    _failures: dict[str, int] = per_process(dict)  # id -> number of failures, of the latest `MOST_FAILURES` that have failed
    _called: set[str] = per_process(set)  # ids whose callback returned, but whose call is not recorded yet
    _turns, _soon_s = per_process(Turns), initially(inf)

    def __init__(self, outbox: Outbox, *, poll_s: float = 5.0) -> None:
        self._outbox = outbox
        # The callback, and True if it takes a transaction; in one attribute, since `register` may come at any time.
        self._f: tuple[Callable[..., object], bool] | None = None
        place = outbox.path.with_name(outbox.path.name + ".callback")
        self.loop = LockedWorker("edgeroute-late", place, self.step, poll_s=poll_s)
        outbox.listen(self.loop.nudge)

    def register(self, f: Callable[..., object]) -> None:
        """Register the callback for late answers, replacing an earlier one, and start the thread that calls it.

        `f(late)` is called at least once: again if the process was killed before the call was recorded, or if it raised. `f(late,
        tx)`, chosen if the second parameter is required or is named tx, takes effect exactly once as far as it writes with
        `tx.execute(sql, values)`: those writes and the record of the call are one transaction. It should be brief, since other
        writers of the file wait for it. An exception rolls it back.

        Raises:
            PolicyError: wrong signature, or a coroutine or generator function: a call from a thread would run nothing.
        """
        if runs_later(f):
            raise PolicyError("a callback for late answers is a plain function: a coroutine or generator would not run")
        self._f = f, _takes_tx(f)
        self.loop.start()
        self.loop.nudge()

    def close(self, wait_s: float = 1.0) -> None:
        """Stop calling the callback, waiting up to `wait_s` seconds for a call in progress; then the lock is released."""
        self.loop.close(wait_s)

    def step(self) -> float:
        """Call the callback with one answer, if one is due; run by the loop. Return the seconds until the next may be due.

        A delivered answer is deleted from the outbox. A failed call is logged, and repeated after a back-off. An exception of the
        store passes on.
        """
        row = self._outbox.pick(self._choose)
        if row is None:
            return self._soon_s
        assert self._f is not None, "the loop begins with a function"
        f, takes_tx = self._f
        try:
            if takes_tx:
                self._outbox.settle(row.id, partial(self._call_within, f))
            else:
                self._call(f, row.id)
        except _CallbackError as e:
            n = self._failures[row.id] = self._failures.pop(row.id, 0) + 1
            if len(self._failures) > MOST_FAILURES:
                del self._failures[next(iter(self._failures))]
            log.error(  # noqa: TRY400 - the cause is what the app's author wants to see
                "the callback for late answers failed at %s, and will be called again", row.id, exc_info=e.__cause__
            )
            self._outbox.postpone(row.id, self._outbox.clock() + backoff(n))
        else:
            self._failures.pop(row.id, None)
        return 0.0

    def _choose(self, heads: Heads) -> Listed | None:
        """Return the answer to deliver next, or None; store in `_soon_s` the seconds until one may be due.

        If ordered, a target's answer waits until all its older requests are answered and delivered, or dead; else lanes (target
        and data class) take turns.
        """
        if not self._outbox.ordered:
            row_or_none, self._soon_s = self._turns.first(heads, "answered", partial(self._of_lane, heads))
            return row_or_none
        self._soon_s, due = inf, list[Listed]()
        for target in heads.targets("answered"):
            row = heads.oldest(target, "answered", "waiting")
            if row is not None and row.state == "answered":
                wait_s = row.ready_at - self._outbox.clock()
                if wait_s <= 0:
                    due.append(row)
                self._soon_s = min(self._soon_s, wait_s)
        return min(due, default=None)

    def _of_lane(self, heads: Heads, lane: Lane) -> Listed | float:
        """Return the due answer of this lane (target and data class), or the seconds until there may be one; inf: it has none.

        Raises Damaged for a row that cannot be read.
        """
        row = next(iter(heads.ready("answered", lane, 1)), None)
        if row is None:
            return inf
        heads.check("answered", lane)
        wait_s = row.ready_at - self._outbox.clock()
        return row if wait_s <= 0 else wait_s

    def _call(self, f: Callable[..., object], name: str) -> None:
        """Call the callback with the answer, then delete the answer as delivered.

        If that fails, it alone is retried at the next call. An answer that is gone is not called for. Raises _CallbackError for
        the callback's exception, StoreError for the disk's.
        """
        if name not in self._called:
            late = self._outbox.late(name)
            if late is not None:
                self._run_callback(f, late)
            self._called.add(name)
        self._outbox.settle(name)
        self._called.discard(name)

    def _call_within(self, f: Callable[..., object], late: Late, connection: sqlite3.Connection) -> None:
        """Call the callback with the answer and a transaction handle, which is void afterwards.

        Raises _CallbackError for its exception, and StoreError if the transaction was rolled back meanwhile.
        """
        tx = Tx(connection)
        try:
            self._run_callback(f, late, tx)
        finally:
            tx.end()
        if not connection.in_transaction:
            raise StoreError("an error in the callback has rolled back its transaction")

    def _run_callback(self, f: Callable[..., object], *args: object) -> None:
        """Call the callback; raise _CallbackError from any exception of it, also a BaseException.

        A returned coroutine or generator, which has done nothing, counts as one.
        """
        try:
            check_has_run(f(*args))
        except BaseException as e:
            raise _CallbackError from e


def _takes_tx(f: Callable[..., object]) -> bool:
    """Return True if the callback's second parameter is required, or is named `tx`.

    False if the signature is unknown.

    Raises:
        PolicyError: the callback takes neither one argument nor two.
    """
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except ValueError:
        return False  # a builtin without a signature
    places = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    takes = len(places) > 1 and (places[1].default is places[1].empty or places[1].name == "tx")
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if (not places and not takes_any) or set(map(id, needed)) - set(map(id, places[: 1 + takes])):
        raise PolicyError("a callback for late answers takes one argument, the late answer, or two, that and a transaction")
    return takes


class LockedWorker(Worker):
    """Worker that calls `step()` after as many seconds as the last call returned, or at once when nudged.

    Only one process at a time, the holder of the lock, calls its step.

    Args:
        name: name of the thread.
        lock_path: path of the lock file. The system releases the lock when the process ends, `kill -9` included.
        step: function that returns the seconds until the next call.
        poll_s: maximum seconds between calls, to notice other processes' writes and to take over the lock.
        busy: returns True while the lock must still be held after `close()`.
    """

    def __init__(
        self, name: str, lock_path: Path, step: Callable[[], float], *, poll_s: float, busy: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(name, self._step_alone, "the outbox waits", retry_s=poll_s)
        self.lock, self._step, self.poll_s, self._busy = ProcessLock(lock_path), step, poll_s, busy

    def _step_alone(self) -> float:
        """Take the lock without waiting, and call `step`; return the seconds until the next turn, at most `poll_s`.

        Without the lock `step` is not called.
        """
        return min(self.poll_s, self._step()) if self.lock.take() else self.poll_s

    def _run_turns(self) -> None:
        """Take turns until closed; then wait until not busy, however long, and release the lock."""
        super()._run_turns()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy())
        self.lock.leave()


MOST_S = 60.0  # maximum back-off after a failure, unless `spread_s` or the endpoint's Retry-After is longer, seconds
ASKED_MOST_S = 3600.0  # longest Retry-After that is honoured, seconds
HURRY_S = 1.0  # minimum seconds between two `wake()` that cut waits short
MOST_PAUSED = 10_000  # maximum lanes that are paused at a time
Send: TypeAlias = Callable[[Waiting], Prediction]
_NOT_ABOUT_REQUEST = (StoreError, Closed, MemoryError)  # errors that are not about the request, which then stays waiting


def longest(attempts: int, spread_s: float = 0.0) -> float:
    """Return the upper end of the back-off after so many failures, seconds: 1, doubled at each up to `MOST_S`; or `spread_s`.

    The larger of both counts.
    """
    return max(min(MOST_S, 2.0 ** min(attempts - 1, 30)), spread_s)


def backoff(attempts: int, spread_s: float = 0.0) -> float:
    """Draw a back-off after so many failures, seconds: full jitter, so that devices do not return at once.

    From 0 to `longest`.
    """
    return random.uniform(0, longest(attempts, spread_s))  # noqa: S311 - a jitter, not a secret


class Delivery(ForkSafe):
    """Sends the requests of an outbox, in the one process that holds the lock `path.deliver`; others poll to take over.

    A request whose answer could not be stored before a crash is sent again with the same id (at-least-once delivery). If the
    outbox is ordered, a waiting request blocks those behind it (head-of-line); a dead one does not.

    Args:
        outbox: the outbox to deliver from, by its settings `ordered`, `parallel` and `rate_per_s`.
        send: sends one request, and returns the answer. A CloudError with `held` leaves the request waiting without counting an
            attempt; a `retriable` one counts and backs off; both for at least `retry_after_s`. Any other exception makes the
            entry dead.
        poll_s: seconds between polls when idle, and before a held request is retried.
    """

    _in_flight: set[str] = per_process(set)
    # Ids in flight when the current scan began.
    #
    # The outcome of any other request is stored, and its lane paused, before the scan reads either: a request that ends during a
    # scan would look as if it were due.
    _began: frozenset[str] = initially(frozenset())
    # Lane -> time until which it is paused (monotonic), and the entry that was held last.
    _paused: dict[Lane, tuple[float, Listed]] = per_process(dict)
    _turns, _soon_s = per_process(Turns), initially(inf)
    # Target -> last entry whose wait was cut short; None: the cut has yet to begin at each target.
    _hurry: dict[str, int] | None = initially(None)
    _through = initially(0)  # last entry in the outbox when waits were to be cut short
    _starts = initially(True)  # True if waits are cut short for the start: entries put from now on wait for their own time
    _since: float | None = initially(None)  # time when the oldest waiting entry was queued, as of the last scan
    _next, _hurried = initially(-inf), initially(-inf)
    # Instant at which to cut waits short (monotonic); initially at once: the reason for earlier waits may be over.
    hurry_at = initially(-inf)
    _stop = per_process(threading.Event)

    def __init__(self, outbox: Outbox, send: Send, *, poll_s: float = 5.0) -> None:
        self._outbox, self._send, self._poll_s = outbox, send, poll_s
        self._workers = ThreadPool("edgeroute-delivery", outbox.parallel)
        outbox.first_put = None
        place = outbox.path.with_name(outbox.path.name + ".deliver")
        self.loop = LockedWorker("edgeroute-outbox", place, self.step, poll_s=poll_s, busy=lambda: bool(self._in_flight))
        outbox.listen(self.loop.nudge)

    def start(self) -> None:
        """Start the delivering thread, or wake it. While another process holds the lock, it polls."""
        self.loop.start()
        self.loop.nudge()

    def wake(self, *, now: bool = False) -> None:
        """Make entries due that wait because an attempt failed. Not needed after a put.

        Args:
            now: True: this device was offline, so retry at once. False: the cloud was down, for other devices too, so retry after
                a random part of the oldest entry's spread.
        """
        now_s = monotonic()
        self.hurry_at = now_s if now else min(self.hurry_at, now_s + self._outbox.part_s(self._since))
        self.loop.nudge()

    def close(self, wait_s: float = 1.0) -> None:
        """Start no more requests, and wait up to `wait_s` seconds for those in flight. Slower ones end by themselves.

        An outcome that cannot be stored after this is discarded: its request is sent again by the next process.
        """
        self._stop.set()
        self.loop.close(wait_s)
        self._workers.close(wait_s)

    def step(self) -> float:
        """Send one request in a worker thread, if one is due; run by the loop. Return the seconds until the next may be due.

        At most `parallel` at a time, and spaced. An entry that cannot be handed to a worker stays in the queue.
        """
        now_s = monotonic()
        if now_s >= max(self.hurry_at, self._hurried + HURRY_S):
            self._starts = self.hurry_at == -inf
            self.hurry_at, self._hurried, self._paused, self._hurry = inf, now_s, {}, None
        if len(self._in_flight) >= self._outbox.parallel:
            return inf  # a finished request nudges
        if now_s < self._next:
            return self._next - now_s
        self._began = frozenset(self._in_flight)
        chosen = self._outbox.pick(self._choose)
        if chosen is None:
            return min(self._soon_s, max(self.hurry_at, self._hurried + HURRY_S) - now_s)
        waiting = self._outbox.waiting(chosen.id)
        if waiting is None:
            return 0.0  # it is damaged, or too old, or somebody was faster
        self._next = max(self._next, now_s) + 1 / self._outbox.rate_per_s
        self._in_flight.add(chosen.id)
        if not self._workers.submit(lambda: self._deliver(chosen, waiting)):
            self._in_flight.discard(chosen.id)
            return self._poll_s
        return 0.0

    def _choose(self, heads: Heads) -> Listed | None:
        """Return a due entry, or None; set `_soon_s`, seconds until one may be due, and `_since`, when the oldest was queued.

        If ordered, only each target's oldest entry counts; else lanes (target and data class) take turns, and entries held last
        time come after others of their lane. Begins cutting waits short if `wake` asked for it. If none is due, raises Damaged
        for a row without a valid state or target.
        """
        targets = heads.targets("waiting")
        oldest = [row for target in targets if (row := heads.oldest(target, "waiting")) is not None]
        self._since = min(oldest).queued_at if oldest else None
        if self._hurry is None:
            self._hurry, self._through, first = {}, heads.newest(), self._outbox.first_put
            if self._starts and first is not None:
                self._through = first - 1
            for target in targets:
                self._cut_waits(heads, target)
        if self._outbox.ordered:
            row_or_none, self._soon_s = self._first_in_order(heads, targets)
        else:
            row_or_none, self._soon_s = self._turns.first(heads, "waiting", partial(self._of_lane, heads))
        if row_or_none is None:
            heads.check_states()
        return row_or_none

    def _of_lane(self, heads: Heads, lane: Lane) -> Listed | float:
        """Return the entry of this lane (target and data class) to send, or the seconds until there may be one; inf: it has none.

        A paused lane has none until its pause ends. Cuts waits short that are to be cut, and then returns 0. Raises Damaged.
        """
        until, last = self._paused.get(lane, (-inf, None))
        if until > (now_s := monotonic()):
            return until - now_s
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
        """Return the first due entry of the targets' oldest ones, or None, and the seconds until one may be due.

        A target whose oldest entry is being sent or is paused is passed over: its order is kept. Cuts waits short that are to be
        cut.
        """
        due, soon_s = list[Listed](), inf
        for target in targets:
            row = heads.oldest(target, "waiting")
            if row is None or row.id in self._began:
                continue
            until, _ = self._paused.get(Lane(row.target, row.data_class), (-inf, None))
            wait_s = max(row.ready_at - self._outbox.clock(), until - monotonic())
            if wait_s <= 0:
                due.append(row)
            else:
                soon_s = min(soon_s, 0.0 if until < monotonic() and self._cut_waits(heads, target) else wait_s)
        return min(due, default=None), soon_s

    def _cut_waits(self, heads: Heads, target: str) -> bool:
        """Make the next entries of a target due that wait because an attempt failed. Return False if all are done.

        One call writes for up to 200 entries, and none put after the hurry began.
        """
        assert self._hurry is not None, "it has begun"
        after = self._hurry.get(target, 0)
        if after >= self._through:
            return False
        self._hurry[target] = heads.hurry(target, self._outbox.clock(), after, self._through)
        return True

    def _deliver(self, row: Listed, waiting: Waiting) -> None:
        """Send a request, in a worker's thread, and store the outcome: the answer, a failure to retry, a dead letter, or a pause.

        Failures not about the request, and all once the main thread has ended, pause its lane, without counting an attempt.
        Retriable ones, and statuses that are not about the input (401, 404), back off at random, at least as long as the server
        demands. Others are logged and make it a dead letter. Never raises; nudges the loop at the end.
        """
        name = row.id
        try:
            answer = self._send(waiting)
            self._store_outcome(lambda: self._outbox.answer(name, answer, attempts=1))
        except BaseException as e:  # noqa: BLE001 - any failure is recorded with its entry, SystemExit of a function too
            failure, own = failure_text(e), e if isinstance(e, CloudError) else None
            if isinstance(e, _NOT_ABOUT_REQUEST) or (own is not None and own.held) or not threading.main_thread().is_alive():
                pause_s = self._poll_s + (0.0 if own is None else own.retry_after_s or 0.0)
                self._pause(Lane(row.target, row.data_class), pause_s, row)
            elif isinstance(e, CloudError) and (e.retriable or (e.status or 400) not in INPUTS_OWN):
                spread_s = self._outbox.spread_for(row.queued_at)
                wait_s = max(backoff(row.attempts + 1, spread_s), min(e.retry_after_s or 0.0, ASKED_MOST_S))
                self._store_outcome(lambda: self._outbox.failed(name, failure, self._outbox.clock() + wait_s))
            else:
                log.warning("%s cannot be delivered to %s: %s", name, row.target, failure)
                self._store_outcome(lambda: self._outbox.bury(name, failure))
        finally:
            self._in_flight.discard(name)
            self.loop.nudge()

    def _pause(self, lane: Lane, pause_s: float, row: Listed) -> None:
        """Pause a lane (target and data class) for `pause_s` seconds; afterwards `row` comes after its other entries.

        A no-op if too many lanes are paused.
        """
        if len(self._paused) >= MOST_PAUSED:
            self._paused = {name: (until, last) for name, (until, last) in self._paused.items() if until > monotonic()}
        if len(self._paused) < MOST_PAUSED or lane in self._paused:
            self._paused[lane] = monotonic() + pause_s, row

    def _store_outcome(self, write: Callable[[], object]) -> None:
        """Store an outcome, trying again every `poll_s` seconds while the disk fails, which is logged.

        Blocks the worker's thread. Meanwhile the request's slot is not reused. Discards the outcome once the delivery is stopped.
        """
        while True:
            try:
                write()
            except StoreError as e:  # noqa: PERF203 - the loop is there for it
                log.warning("the outcome of a delivery cannot be stored yet: %s", e)
                if self._stop.wait(self._poll_s):
                    return
            else:
                return
