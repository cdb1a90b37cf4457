"""Delivery of late answers to the app's callback, by a thread of one process."""

from __future__ import annotations

import inspect
import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from math import inf

from edgeroute.errors import PolicyError, StoreError
from edgeroute.stores.outbox.delivery import Loop, backoff
from edgeroute.stores.outbox.outbox_entries import Late, Listed
from edgeroute.stores.outbox.sql_tables import Heads, Lane, Turns
from edgeroute.stores.outbox.sqlite_queue import Outbox, Tx
from edgeroute.system.forks import ForkSafe, initially, per_process

MOST_FAILURES = 10_000
"""Maximum ids whose failures are counted."""
log = logging.getLogger("edgeroute")


class _CallbackError(Exception):
    """Raised for an exception of the callback, as opposed to one of the store."""


class Callbacks(ForkSafe):
    """Calls the app's function with each late answer, in the one process that holds the lock `path.callback`.

    Args:
        outbox: the outbox that holds the answers.
        ordered: if True, deliver the answers of a target in the order of its requests, each only after all earlier ones are
            delivered or dead. If False, an answer whose callback fails does not block others.
        poll_s: seconds between polls for other processes' answers.
    """

    _failures: dict[str, int] = per_process(dict)
    """id -> number of failures, of the latest `MOST_FAILURES` that have failed."""
    _called: set[str] = per_process(set)
    """Ids whose callback returned, but whose call is not recorded yet."""
    _turns, _soon_s = per_process(Turns), initially(inf)

    def __init__(self, outbox: Outbox, *, ordered: bool = False, poll_s: float = 5.0) -> None:
        self._outbox, self._ordered = outbox, ordered
        self._f: tuple[Callable[..., object], bool] | None = None
        """The callback, and True if it takes a transaction; in one attribute, since `register` may come at any time."""
        place = outbox.path.with_name(outbox.path.name + ".callback")
        self.loop = Loop("edgeroute-late", place, self.step, poll_s=poll_s)
        outbox.listen(self.loop.nudge)

    def register(self, f: Callable[..., object]) -> None:
        """Register the callback for late answers, replacing an earlier one, and start the thread that calls it.

        `f(late)` is called at least once: again if the process was killed before the call was recorded, or if it raised. `f(late,
        tx)`, chosen if the second parameter is required or is named tx, takes effect exactly once as far as it writes with
        `tx.execute(sql, values)`: those writes and the record of the call are one transaction. It should be brief, since other
        writers of the file wait for it. An exception rolls it back.

        Raises:
            PolicyError: wrong signature, or a coroutine function: the callback is called from a thread without an event loop.
        """
        if inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(getattr(f, "__call__", None)):  # noqa: B004 - what a call would run
            raise PolicyError("a callback for late answers is a plain function: it is called from a thread, where no loop runs")
        self._f = f, _takes_tx(f)
        self.loop.start()
        self.loop.nudge()

    def wake(self) -> None:
        """Poll now. Not needed after a put by this process."""
        self.loop.nudge()

    def close(self, wait_s: float = 1.0) -> None:
        """Stop calling the callback, and wait up to `wait_s` seconds for a call in progress."""
        self.loop.close(wait_s)

    def step(self) -> float:
        """Call the callback with one answer, if one is due; run by the loop. Return the seconds until the next may be due.

        A failed call is logged, and repeated after a back-off. An exception of the store passes on.
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

        In order: a target's answer waits for its older requests.
        """
        if not self._ordered:
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
        """Return the due answer of this lane, or the seconds until there may be one."""
        row = next(iter(heads.ready("answered", lane, 1)), None)
        if row is None:
            return inf
        heads.check("answered", lane)
        wait_s = row.ready_at - self._outbox.clock()
        return row if wait_s <= 0 else wait_s

    def _call(self, f: Callable[..., object], name: str) -> None:
        """Call the callback, then record the call. If recording fails, only that is retried.

        A late answer that is gone is not called for.
        """
        if name not in self._called:
            late = self._outbox.late(name)
            if late is not None:
                self._run(f, late)
            self._called.add(name)
        self._outbox.settle(name)
        self._called.discard(name)

    def _call_within(self, f: Callable[..., object], late: Late, connection: sqlite3.Connection) -> None:
        """Call the callback with a transaction handle. Raise StoreError if the transaction was rolled back meanwhile.

        The handle is void afterwards.
        """
        tx = Tx(connection)
        try:
            self._run(f, late, tx)
        finally:
            tx.end()
        if not connection.in_transaction:
            raise StoreError("an error in the callback has rolled back its transaction")

    def _run(self, f: Callable[..., object], *args: object) -> None:
        """Call the callback; wrap any exception in _CallbackError, also BaseException.

        A returned coroutine is closed, and counts as one.
        """
        try:
            result = f(*args)
            if inspect.iscoroutine(result):
                result.close()
                raise PolicyError("the callback returned a coroutine, which nothing awaits here")  # noqa: TRY301 - like any other failure
        except BaseException as e:
            raise _CallbackError from e


def _takes_tx(f: Callable[..., object]) -> bool:
    """Return True if the callback takes a transaction as second argument.

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
