"""The outbox on disk: a SQLite queue of requests, late answers, dead letters and counts. No threads, no network."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from edgeroute.errors import Closed, PolicyError, StoreError, check_number
from edgeroute.stores.outbox.entries import Answering, Late, Listed, Put, State, Waiting
from edgeroute.stores.outbox.inputs import encode_input
from edgeroute.stores.outbox.rows import LATE, LISTED, WAITING, Damaged, late, listed, waiting
from edgeroute.stores.outbox.tables import (
    LATEST,
    SCHEMA,
    TRUSTED_S,
    Heads,
    add_count,
    bury,
    counts,
    evictions,
    recount,
    tidy,
    total_bytes,
)
from edgeroute.stores.sqlite import Database
from edgeroute.system.process import now, plain, renew_after_fork

# Group commit: entries that several threads store at the same time share one transaction, and so one wait for the disk.

MOST = 256
"""Entries in one transaction."""
Write: TypeAlias = Callable[[Sequence[Waiting]], Sequence[Put]]
Refuse: TypeAlias = Callable[[], str]
"""Says why entries are not stored any more; empty: they are."""


class _Ticket:
    """One entry, and what became of it."""

    __slots__ = ("refuse", "result", "waiting")

    def __init__(self, waiting: Waiting, refuse: Refuse) -> None:
        self.waiting, self.refuse = waiting, refuse
        self.result: Put | Exception | None = None


class GroupCommit:
    """Stores entries. A thread that has its turn stores what all others have brought by then, and its own.

    Args:
        write: stores entries in one transaction; all or none.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has none of its parent's threads."""
        self._brought: dict[_Ticket, None] = {}
        """In order of arrival."""
        self._turn = threading.RLock()
        """Reentrant for a signal handler that stores an entry, too."""

    def __len__(self) -> int:
        """Number of entries that wait for their transaction."""
        return len(self._brought)

    def put(self, entries: Sequence[Waiting], refuse: Refuse = str) -> list[Put | Exception]:
        """Stores entries durably -> for each what became of it, or why it could not be stored.

        Args:
            entries: to store.
            refuse: asked before the transaction.
        """
        tickets = [_Ticket(entry, refuse) for entry in entries]
        try:
            self._brought.update(dict.fromkeys(tickets))
            while _unfinished(tickets):
                with self._turn:
                    if _unfinished(tickets):  # nobody did it meanwhile
                        self._store(list(islice(self._brought.copy(), MOST)))
        finally:
            for ticket in tickets:
                self._brought.pop(ticket, None)
        return [_result(ticket) for ticket in tickets]

    def _store(self, brought: Sequence[_Ticket]) -> None:
        tickets = list[_Ticket]()
        for ticket in brought:
            if why := ticket.refuse():
                self._end(ticket, Closed(why))
            else:
                tickets.append(ticket)
        if not tickets:
            return
        try:
            results: Sequence[Put | Exception] = self._write([ticket.waiting for ticket in tickets])
        except Exception as e:  # noqa: BLE001 - passed to whoever brought them
            if len(tickets) > 1 and not isinstance(e, StoreError):  # one of them is at fault
                for ticket in tickets:
                    self._store([ticket])
                return
            results = [StoreError(str(e)) for _ in tickets] if isinstance(e, StoreError) else [e]
        for ticket, result in zip(tickets, results, strict=True):
            self._end(ticket, result)

    def _end(self, ticket: _Ticket, result: Put | Exception) -> None:
        ticket.result = result
        self._brought.pop(ticket, None)


def _unfinished(tickets: Sequence[_Ticket]) -> bool:
    return any(ticket.result is None for ticket in tickets)


def _result(ticket: _Ticket) -> Put | Exception:
    assert ticket.result is not None, "it was stored, or was not"
    return ticket.result


# Lists, counts and exports the entries of an outbox, as far as each can be read.

COUNTED = ("stored", "delivered", "called", "dead", "withdrawn", "dropped_full", "dropped_expired", "dropped_by_hand")
PAGE = 1000
"""Entries that a list reads at a time."""


class Listing:
    """What an outbox has: changes nothing but what is too old."""

    def _transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        raise NotImplementedError

    def list(self, state: State | None = None, *, latest: int | None = None) -> list[Listed]:
        """The entries, in the order of puts.

        Args:
            state: those in this state alone.
            latest: at most so many, the latest.
        """
        of = "" if state is None else "INDEXED BY outbox_order WHERE state = :state"
        which = f"SELECT seq FROM outbox_entries {of} ORDER BY seq DESC LIMIT :most"  # noqa: S608 - a constant
        with self._transaction() as c:
            rows = c.execute(
                f"SELECT {LISTED} FROM outbox_entries WHERE seq IN ({which}) ORDER BY seq",  # noqa: S608 - constants
                {"state": state, "most": -1 if latest is None else latest},
            )
            return [listed(row) for row in rows]

    def pages(self, state: State | None = None) -> Iterator[Listed]:
        """`list` for any number of entries: only so many are read at a time, and writers wait for no more."""
        seq, of = -1, "" if state is None else "AND state = :state"
        while True:
            with self._transaction() as c:
                rows = c.execute(
                    f"SELECT {LISTED} FROM outbox_entries WHERE seq > :seq {of} ORDER BY seq LIMIT {PAGE}",  # noqa: S608 - constants
                    {"seq": seq, "state": state},
                )
                page = [listed(row) for row in rows]
            if not page:
                return
            yield from page
            seq = page[-1].seq

    def size(self, state: State | None = None) -> int:
        """How many entries there are, in this state or in any."""
        of = "" if state is None else "WHERE state = :state"
        with self._transaction() as c:
            (n,) = c.execute(f"SELECT count(*) FROM outbox_entries {of}", {"state": state}).fetchone()  # noqa: S608 - a constant
        return int(n)

    def states(self, names: Iterable[str]) -> dict[str, State]:
        """The states of the entries with these ids."""
        with self._transaction() as c:
            found = (c.execute("SELECT id, state FROM outbox_entries WHERE id = ?", (name,)).fetchone() for name in names)
            return dict(row for row in found if row is not None)

    def counts(self) -> dict[str, int]:
        """Counters since the file was created (`COUNTED`), and current: `waiting` entries and total `bytes`."""
        with self._transaction() as c:
            return {**dict.fromkeys((*COUNTED, "bytes"), 0), **counts(c), "waiting": self.size("waiting")}

    def export(self) -> Iterator[dict[str, Any]]:
        """Every entry with all its contents, ready for JSON; bytes are base64."""
        seq = -1
        while True:
            with self._transaction() as c:
                cursor = c.execute(
                    "SELECT * FROM outbox_entries LEFT JOIN outbox_bodies USING (seq) LEFT JOIN outbox_answers USING (seq)"
                    " LEFT JOIN outbox_origins USING (seq)"
                    " WHERE seq > ? ORDER BY seq LIMIT 1",
                    (seq,),
                )
                row = cursor.fetchone()
                if row is None:
                    return
            told = dict(zip((column[0] for column in cursor.description), row, strict=True))
            seq = told["seq"]
            for name in ("body", "outputs"):
                told[name] = base64.b64encode(told[name]).decode() if isinstance(told[name], bytes) else told[name]
            for name in ("headers", "provisional", "value"):
                with contextlib.suppress(TypeError, ValueError, RecursionError):  # damaged: as it is
                    told[name] = json.loads(told[name])
            yield {name: base64.b64encode(v).decode() if isinstance(v, bytes) else v for name, v in told.items()}


# Retry spreading: how long queued requests are randomised over, so that devices that lost a cloud do not return at once.

TIMES = 4.0
"""Requests are spread over this multiple of their age: after a longer outage more devices have a backlog ..."""
LONGEST_S = 3600.0
"""... but over at most this (or `spread_s`, if that is longer)."""


def spread_for(spread_s: float, age_s: float) -> float:
    """Upper end of the uniformly random wait, seconds.

    Args:
        spread_s: its minimum; 0: no spreading.
        age_s: seconds since the request was queued.
    """
    return min(max(LONGEST_S, spread_s), max(spread_s, TIMES * age_s)) if spread_s else 0.0


log = logging.getLogger("edgeroute")
Drop: TypeAlias = Literal["oldest", "least_important", "newest"]
ROW_BYTES = 512
"""Overhead per entry counted towards `max_bytes`."""
REMEMBERED = 50_000
"""Number of completed ids stored for deduplication; older ones are deleted."""
MOST_TEXT = 1000
"""Characters of an error that are stored."""

T = TypeVar("T")


class Outbox(Listing):
    """Durable queue in one file, shared by threads and processes. Entries survive `kill -9` and a power cut.

    Every method raises StoreError if the disk is full, read-only or broken. A corrupt file has then been quarantined, and the
    next call starts a new one.

    Args:
        path: of the file; its folder is created. `path.deliver` and `path.callback` beside it are lock files.
        max_bytes: of all entries, their contents and `ROW_BYTES` each.
        ttl_s: time to live, seconds: of a waiting entry, of an answer without a callback, and of a dead letter.
        drop: eviction when full. oldest: oldest first. least_important: least important first, of those the oldest, but none
            more important than the new one. newest: the new one is rejected. Answers not handed over yet are evicted last.
        ordered: for a router: requests to an endpoint go one at a time, in order; see `Delivery`.
        parallel: for a router: maximum concurrent requests.
        rate_per_s: for a router: maximum requests started per second.
        spread_s: after a failure of the cloud, entries are sent after a random part of so many seconds, more for old entries
            (`edgeroute.stores.outbox.store`), so that many devices do not return at once. 0: no spreading.
        clock: Unix time, seconds.

    Raises:
        PolicyError: unknown `drop`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int = 64 << 20,
        ttl_s: float = 7 * 86400.0,
        drop: Drop = "oldest",
        ordered: bool = False,
        parallel: int = 2,
        rate_per_s: float = 10.0,
        spread_s: float = 60.0,
        clock: Callable[[], float] = now,
    ) -> None:
        if drop not in get_args(Drop):
            raise PolicyError(f"drop is one of {', '.join(get_args(Drop))}, not {drop!r}")
        check_number("max_bytes", max_bytes, whole=True)
        check_number("ttl_s", ttl_s, infinite=True)
        check_number("parallel", parallel, least=1, whole=True)
        check_number("rate_per_s", rate_per_s, above=True, infinite=True)
        check_number("spread_s", spread_s)
        self.path, self.max_bytes, self.ttl_s, self.drop_policy, self.clock = Path(path), max_bytes, ttl_s, drop, clock
        self.ordered, self.parallel, self.rate_per_s, self.spread_s = ordered, parallel, rate_per_s, spread_s
        self._database = Database(self.path, SCHEMA, durable=True, latest=LATEST, lenient=True)
        self._group = GroupCommit(self._write)
        self._plausible = -1
        """A total size up to which the count is believed, bytes."""
        self._owner = 0
        """The thread that is in a transaction."""
        self._listeners: list[Callable[[], object]] = []
        self.first_put: int | None = None
        """Sequence number of the first entry put since this was None: delivery sets it to None when it is made."""
        self.report_damaged: Callable[[str], object] = lambda _: None
        """Called with the id of each entry that became a dead letter because its row is damaged."""

    @property
    def storing(self) -> int:
        """Number of entries that callers of `put` and `put_all` wait for now: in a transaction, or before it."""
        return len(self._group)

    def listen(self, f: Callable[[], object]) -> None:
        """Registers a function called when this process adds something to deliver or to hand over."""
        self._listeners.append(f)

    def spread_for(self, since: float | None) -> float:
        """Spread in seconds for an entry queued at `since`; None: queued now."""
        return spread_for(self.spread_s, 0.0 if since is None else max(0.0, self.clock() - since))

    def part_s(self, since: float | None = None) -> float:
        """A uniformly random part of `spread_for(since)`, seconds."""
        return random.uniform(0, self.spread_for(since))  # noqa: S311 - a jitter, not a secret

    def put(self, waiting: Waiting) -> Put:
        """Stores a request durably. It will be delivered unless it is dropped, which is counted."""
        (put,) = self.put_all([waiting])
        if isinstance(put, Exception):
            raise put
        return put

    def put_all(self, entries: Sequence[Waiting], refuse: Refuse = str) -> list[Put | Exception]:
        """Stores requests durably, with as few waits for the disk as possible -> for each its result, or why it is not stored.

        Args:
            entries: the requests.
            refuse: asked before the transaction why they are not to be stored any more; empty: they are.
        """
        if self._owner == threading.get_ident():  # within an effect of `settle`: all or none
            return list(self._write(entries))
        return self._group.put(entries, refuse)

    def _write(self, entries: Sequence[Waiting]) -> list[Put]:
        at = self.clock()
        with self._transaction(at) as c:
            puts = [self._insert(c, at, entry) for entry in entries]
        self._tell()
        return puts

    def _insert(self, c: sqlite3.Connection, at: float, waiting: Waiting) -> Put:
        queued_at = at if waiting.queued_at is None else waiting.queued_at
        soon_at = queued_at + self.part_s() if waiting.error else queued_at
        ready_at = soon_at if waiting.ready_at is None else waiting.ready_at
        headers, provisional = json.dumps(waiting.headers), json.dumps(plain(waiting.provisional))
        size = ROW_BYTES + len(waiting.body) + len(headers) + len(provisional)
        known = c.execute(
            "SELECT state, error FROM outbox_entries WHERE id = :id UNION ALL SELECT 'done', '' FROM outbox_done WHERE id = :id",
            {"id": waiting.id},
        ).fetchone()
        if known is not None:
            return Put(stored=False, reason=f"refused for good: {known[1]}") if known[0] == "dead" else Put(stored=True)
        over = self._total(c, size) + size - self.max_bytes
        fits = size <= self.max_bytes
        gone = evictions(c, over, waiting.importance, drop=self.drop_policy) if fits else None
        if gone is None:
            add_count(c, "dropped_full")
            return Put(stored=False, reason=f"the outbox is full: {size} bytes more would make it exceed {self.max_bytes}")
        c.executemany("DELETE FROM outbox_entries WHERE seq = ?", [(seq,) for seq, _ in gone])
        add_count(c, "dropped_full", len(gone))
        add_count(c, "stored")
        seq = c.execute(
            "INSERT INTO outbox_entries VALUES (NULL, ?, 'waiting', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                waiting.id, waiting.target, waiting.kind, waiting.data_class, waiting.rule, waiting.importance, queued_at,
                ready_at, waiting.attempts, size, _text(waiting.error), queued_at, waiting.method, waiting.path, headers,
                provisional,
            ),
        ).lastrowid  # fmt: skip
        if self.first_put is None:
            self.first_put = seq
        c.execute("INSERT INTO outbox_bodies VALUES (?, ?)", (seq, waiting.body))
        if waiting.origin:
            c.execute("INSERT OR REPLACE INTO outbox_origins VALUES (?, ?)", (seq, waiting.origin))
        return Put(stored=True, dropped=tuple(name for _, name in gone))

    def _total(self, c: sqlite3.Connection, more: int) -> int:
        """The size of all entries. Before anything is refused or evicted for it, a count that may be damaged is made anew."""
        total = total_bytes(c)
        if total + more > self.max_bytes and total > self._plausible:
            total = recount(c)
            self._plausible = max(total, self.max_bytes)
        return total

    def answer(self, name: str, answer: Answering, *, attempts: int = 0) -> bool:
        """Stores the answer to the request with this id, for the callback -> False: already answered, or gone.

        Args:
            name: the id.
            answer: its value is stored as JSON, its outputs if they can be serialised.
            attempts: added to the entry's attempts.
        """
        value = json.dumps(plain(answer.value))
        outputs = (None if answer.outputs is None else encode_input(answer.outputs)) or (None, b"")
        confidence = None if answer.confidence is None else float(answer.confidence)  # numpy's are not SQLite's
        with self._transaction() as c:
            row = c.execute(
                "SELECT seq, coalesce(length(provisional), 0) FROM outbox_entries WHERE id = ? AND state IN ('waiting', 'dead')",
                (name,),
            ).fetchone()
            if row is None:
                return False
            c.execute(
                "UPDATE outbox_entries SET state = 'answered', since = :at, ready_at = :at, error = '', bytes = :bytes,"
                " attempts = attempts + :more WHERE seq = :seq",
                {"at": self.clock(), "bytes": ROW_BYTES + row[1] + len(value) + len(outputs[1]), "more": attempts, "seq": row[0]},
            )
            c.execute("DELETE FROM outbox_bodies WHERE seq = ?", row[:1])
            c.execute("INSERT INTO outbox_answers VALUES (?, ?, ?, ?, ?)", (row[0], value, confidence, *outputs))
            add_count(c, "delivered")
        self._tell()
        return True

    def failed(self, name: str, error: str, ready_at: float) -> None:
        """Records a failed attempt; the next is not before `ready_at` (Unix time)."""
        self._change("attempts = attempts + 1, error = ?, ready_at = ?", (_text(error), ready_at), name)

    def postpone(self, name: str, ready_at: float) -> None:
        """The callback for this answer is not due before `ready_at` (Unix time)."""
        with self._transaction() as c:
            c.execute("UPDATE outbox_entries SET ready_at = ? WHERE id = ? AND state = 'answered'", (ready_at, name))

    def bury(self, name: str, error: str) -> None:
        """Makes a waiting entry a dead letter."""
        change = "state = 'dead', attempts = attempts + 1, error = ?, since = ?"
        self._change(change, (_text(error), self.clock()), name, count="dead")

    def ready(self, name: str, error: str = "") -> None:
        """Makes a request due now, or after a random part of `spread_s` if the attempt it waited for ended with an error."""
        self._change("ready_at = ?, error = ?", (self.clock() + (self.part_s() if error else 0.0), _text(error)), name)
        self._tell()

    def withdraw(self, name: str) -> bool:
        """Removes a request whose answer came in time -> False: it is answered, so the callback will be called, or it is gone."""
        with self._transaction() as c:
            there = c.execute("DELETE FROM outbox_entries WHERE id = ? AND state != 'answered'", (name,)).rowcount
            add_count(c, "withdrawn", there)
        return there > 0

    def retry(self, names: Collection[str] | None = None) -> int:
        """Requeues dead letters with a new time to live -> how many.

        Args:
            names: their ids; None: all dead ones.
        """
        at, n = self.clock(), 0
        statement = "UPDATE outbox_entries SET state = 'waiting', since = :at, ready_at = :at WHERE state = 'dead'"
        with self._transaction(at) as c:
            if names is None:
                n = c.execute(statement, {"at": at}).rowcount
            for name in names or ():
                n += c.execute(f"{statement} AND id = :id", {"at": at, "id": name}).rowcount
        self._tell()
        return n

    def drop(self, names: Iterable[str]) -> int:
        """Deletes the entries with these ids, in any state -> how many there were."""
        with self._transaction() as c:
            n = sum(c.execute("DELETE FROM outbox_entries WHERE id = ?", (name,)).rowcount for name in names)
            add_count(c, "dropped_by_hand", n)
        return n

    def pick(self, choose: Callable[[Heads], Listed | None]) -> Listed | None:
        """The entry that `choose` finds. Entries that it cannot read are made dead letters, and it is called again."""
        while True:
            with self._transaction() as c:
                try:
                    return choose(Heads(c))
                except Damaged as e:
                    self._bury(c, e.seq, e)

    def waiting(self, name: str) -> Waiting | None:
        """The request with this id if it is waiting, else None; a damaged one is made a dead letter."""
        return self._read(
            f"SELECT outbox_entries.seq, {WAITING} FROM outbox_entries"  # noqa: S608 - a constant
            " LEFT JOIN outbox_bodies USING (seq) LEFT JOIN outbox_origins USING (seq)"
            " WHERE id = ? AND state = 'waiting' AND since >= ?",
            name,
            waiting,
        )

    def late(self, name: str) -> Late | None:
        """The answer to the request with this id if its callback is still due, else None; a damaged one is made a dead letter."""
        return self._read(
            f"SELECT seq, {LATE} FROM outbox_entries LEFT JOIN outbox_answers USING (seq)"  # noqa: S608 - a constant
            " WHERE id = ? AND state = 'answered' AND since >= ?",
            name,
            late,
        )

    def _read(self, statement: str, name: str, read: Callable[[Sequence[Any]], T]) -> T | None:
        with self._transaction() as c:
            at = self.clock()
            row = c.execute(statement, (name, at - self.ttl_s if at >= TRUSTED_S else -inf)).fetchone()
            if row is None:
                return None
            try:
                return read(row[1:])
            except Damaged as e:
                self._bury(c, row[0], e)
                return None

    def _bury(self, c: sqlite3.Connection, seq: int, why: Damaged) -> None:
        name = bury(c, seq, _text(str(why)), self.clock())
        log.error("%s: entry %s is damaged, and a dead letter now: %s", self.path, name, why)
        self.report_damaged(name)

    def settle(self, name: str, effect: Callable[[Late, sqlite3.Connection], object] | None = None) -> bool:
        """Marks an answer as handed over, in one transaction with `effect` -> False: it was already.

        An exception from `effect` rolls back both.
        """
        with self._transaction() as c:
            answer = self.late(name)
            if answer is None:
                return False
            if effect is not None:
                effect(answer, c)
            c.execute("DELETE FROM outbox_entries WHERE id = ?", (name,))
            c.execute("INSERT OR REPLACE INTO outbox_done (id) VALUES (?)", (name,))
            c.execute("DELETE FROM outbox_done WHERE seq <= (SELECT max(seq) FROM outbox_done) - ?", (REMEMBERED,))
            add_count(c, "called")
        return True

    def close(self) -> None:
        """Closes the file; the next call opens it again. Calls that wait long for another process fail."""
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self, at: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction that first deletes expired entries."""
        with self._database.transaction() as c:
            outer, self._owner = self._owner, threading.get_ident()
            try:
                tidy(c, self.clock() if at is None else at, self.ttl_s)
                yield c
            finally:
                self._owner = outer

    def _change(self, change: str, values: tuple[Any, ...], name: str, *, count: str | None = None) -> None:
        with self._transaction() as c:
            statement = f"UPDATE outbox_entries SET {change} WHERE id = ? AND state = 'waiting'"  # noqa: S608 - constants
            n = c.execute(statement, (*values, name)).rowcount
            if count is not None:
                add_count(c, count, n)

    def _tell(self) -> None:
        for f in self._listeners:
            f()


def _text(error: str) -> str:
    """The error truncated, and without lone surrogates, which cannot be stored."""
    return error[:MOST_TEXT].encode(errors="replace").decode()


# The transaction handle of a callback: it may use its own tables, but not the outbox's, and cannot commit or roll back.

Values: TypeAlias = Sequence[Any] | Mapping[str, Any]
_CONTROL = {
    sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA,
}  # fmt: skip


class Tx:
    """Writes to the outbox's file that commit atomically with the record of the callback. Valid until it returns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: sqlite3.Connection | None = connection
        self._refused = False

    def execute(self, sql: str, values: Values = ()) -> list[Any]:
        """Runs a statement -> its rows.

        Raises:
            PolicyError: it would begin or end a transaction, open another file, or change the outbox itself.
            StoreError: the transaction is over, because the callback has returned or an error ended it.
            sqlite3.Error: the statement failed.
        """
        rows: list[Any] = self._run(lambda c: c.execute(sql, values).fetchall())
        return rows

    def executemany(self, sql: str, values: Iterable[Values]) -> None:
        """Runs a statement once for each of the values; raises as `execute` does."""
        self._run(lambda c: c.executemany(sql, values))

    def end(self) -> None:
        """Invalidates the handle."""
        self._connection = None

    def _run(self, work: Any) -> Any:
        c = self._connection
        if c is None or not c.in_transaction:  # some errors, such as a full disk, roll everything back
            raise StoreError("the transaction is over: what is written now would not be part of it")
        self._refused = False
        c.set_authorizer(self._authorize)
        try:
            return work(c)
        except sqlite3.DatabaseError as e:
            if self._refused:
                raise PolicyError("a callback cannot end its transaction, open another file or change the outbox's tables") from e
            raise
        finally:
            c.set_authorizer(_allow)  # before 3.11, None would forbid everything

    def _authorize(self, action: int, one: str | None, two: str | None, _database: str | None, _trigger: str | None) -> int:
        ours = action != sqlite3.SQLITE_READ and any(n is not None and n.lower().startswith("outbox_") for n in (one, two))
        if action in _CONTROL or ours:
            self._refused = True
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK


def _allow(*_: object) -> int:
    return sqlite3.SQLITE_OK
