"""Outbox on disk: a SQLite queue of requests, late answers, dead letters and counters (`Outbox`); evicts beyond its size.

No threads.

`GroupCommit` shares transactions between threads; `Listing` has the queries; `Tx` is the transaction handle of a callback.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import edgeroute.stores.outbox.outbox_entries as stored
import edgeroute.stores.outbox.schema_queries_and_eviction as tables
from edgeroute.core.setting_unit_types import Bytes, Count, Delay, Rate, Seconds
from edgeroute.core.walk import Prediction
from edgeroute.errors import Closed, PolicyError, StoreError
from edgeroute.stores.outbox.outbox_entries import Late, Listed, Put, State, Waiting
from edgeroute.stores.serialisation import encode_input
from edgeroute.stores.sqlite_file_and_key_values import Database
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.read_and_check_signatures import check_units, plain_number
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.wall_clock import now

# Group commit: entries that threads store at the same time share one transaction, and so one wait for the disk.

MOST = 256  # maximum entries in one transaction
Write: TypeAlias = Callable[[Sequence[Waiting]], Sequence[Put]]
Refuse: TypeAlias = Callable[[], str]  # returns why entries are not stored any more; empty: they are stored


class _PendingEntry:
    """Entry to store, and its result."""

    __slots__ = ("refuse", "result", "waiting")

    def __init__(self, waiting: Waiting, refuse: Refuse) -> None:
        self.waiting, self.refuse = waiting, refuse
        self.result: Put | Exception | None = None


class GroupCommit(ForkSafe):
    """Stores entries of concurrent callers together: one thread stores its own and those of all threads that wait.

    Args:
        write: stores entries in one transaction; all or none.
    """

    _pending: dict[_PendingEntry, None] = per_process(dict)  # entries to store, in order of arrival
    _turn = per_process(SafeLock)  # lock for the transaction; reentrant for a signal handler that stores an entry too

    def __init__(self, write: Write) -> None:
        self._write = write

    def __len__(self) -> int:
        """Return the number of entries that wait for their transaction."""
        return len(self._pending)

    def put(self, entries: Sequence[Waiting], refuse: Refuse = str) -> list[Put | Exception]:
        """Store entries durably, with other threads' in one transaction; blocks. Return for each its result, or its error.

        The first thread with the lock stores for all that wait. An entry whose `refuse` returns a reason gets Closed.
        """
        tickets = [_PendingEntry(entry, refuse) for entry in entries]
        try:
            self._pending.update(dict.fromkeys(tickets))
            while _unfinished(tickets):
                with self._turn:
                    if _unfinished(tickets):  # nobody did it meanwhile
                        self._store(list(islice(self._pending.copy(), MOST)))
        finally:
            for ticket in tickets:
                self._pending.pop(ticket, None)
        return [_result(ticket) for ticket in tickets]

    def _store(self, pending: Sequence[_PendingEntry]) -> None:
        """Store entries in one transaction, and set their results; those whose `refuse` returns a reason get Closed.

        If the transaction fails with an error that is not about the disk, each entry is stored alone, to find the one at fault. A
        store's error becomes the result of all.
        """
        accepted = list[_PendingEntry]()
        for entry in pending:
            if why := entry.refuse():
                self._end(entry, Closed(why))
            else:
                accepted.append(entry)
        if not accepted:
            return
        try:
            results: Sequence[Put | Exception] = self._write([entry.waiting for entry in accepted])
        except Exception as e:  # noqa: BLE001 - passed to whoever brought them
            if len(accepted) > 1 and not isinstance(e, StoreError):  # one of them is at fault
                for entry in accepted:
                    self._store([entry])
                return
            results = [StoreError(str(e)) for _ in accepted] if isinstance(e, StoreError) else [e]
        for entry, result in zip(accepted, results, strict=True):
            self._end(entry, result)

    def _end(self, ticket: _PendingEntry, result: Put | Exception) -> None:
        """Set an entry's result, and remove it from those to store."""
        ticket.result = result
        self._pending.pop(ticket, None)


def _unfinished(tickets: Sequence[_PendingEntry]) -> bool:
    """Return True if an entry has no result yet."""
    return any(ticket.result is None for ticket in tickets)


def _result(ticket: _PendingEntry) -> Put | Exception:
    """Return an entry's result."""
    assert ticket.result is not None, "it was stored, or was not"
    return ticket.result


# Lists, counts and exports of an outbox's entries, as far as each can be read.

# Names of the counters.
COUNTED = ("stored", "delivered", "called", "dead", "withdrawn", "dropped_full", "dropped_expired", "dropped_by_hand")
PAGE = 1000  # entries that `pages` reads at a time


class Listing(ForkSafe):
    """Queries about the entries of an outbox. Each call also deletes expired entries."""

    def _transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Open a transaction; overridden."""
        raise NotImplementedError

    def list(self, state: State | None = None, *, latest: int | None = None) -> list[Listed]:
        """Return the entries, in the order of puts; deletes expired ones first. Damaged columns are replaced by neutral values.

        Args:
            state: only entries in this state; None: all.
            latest: maximum number of entries, the latest; None: all.
        """
        of = "" if state is None else "INDEXED BY outbox_order WHERE state = :state"
        which = f"SELECT seq FROM outbox_entries {of} ORDER BY seq DESC LIMIT :most"  # noqa: S608 - a constant
        with self._transaction() as c:
            rows = c.execute(
                f"SELECT {stored.LISTED} FROM outbox_entries WHERE seq IN ({which}) ORDER BY seq",  # noqa: S608 - constants
                {"state": state, "most": -1 if latest is None else latest},
            )
            return [stored.read_lenient(row) for row in rows]

    def pages(self, state: State | None = None) -> Iterator[Listed]:
        """Yield the entries, as `list` returns them, `PAGE` per transaction, so that memory and writers' waits are bounded.

        Each transaction deletes expired entries first.
        """
        seq, of = -1, "" if state is None else "AND state = :state"
        while True:
            with self._transaction() as c:
                rows = c.execute(
                    f"SELECT {stored.LISTED} FROM outbox_entries WHERE seq > :seq {of} ORDER BY seq LIMIT {PAGE}",  # noqa: S608 - constants
                    {"seq": seq, "state": state},
                )
                page = [stored.read_lenient(row) for row in rows]
            if not page:
                return
            yield from page
            seq = page[-1].seq

    def size(self, state: State | None = None) -> int:
        """Return the number of entries in this state, or in any; deletes expired ones first."""
        of = "" if state is None else "WHERE state = :state"
        with self._transaction() as c:
            (n,) = c.execute(f"SELECT count(*) FROM outbox_entries {of}", {"state": state}).fetchone()  # noqa: S608 - a constant
        return int(n)

    def states(self, names: Iterable[str]) -> dict[str, State]:
        """Return id -> state of the entries with these ids, after deleting expired ones. Unknown ids are left out."""
        with self._transaction() as c:
            rows = (c.execute("SELECT id, state FROM outbox_entries WHERE id = ?", (name,)).fetchone() for name in names)
            return dict(row for row in rows if row is not None)

    def counts(self) -> dict[str, int]:
        """Return the counters since the file was created (`COUNTED`), the current number `waiting`, and the total `bytes`.

        Deletes expired entries first, which are counted too.
        """
        with self._transaction() as c:
            return {**dict.fromkeys((*COUNTED, "bytes"), 0), **tables.counts(c), "waiting": self.size("waiting")}

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield every entry with all its contents, ready for JSON; bytes are base64.

        In the order of puts, each in a transaction of its own, which deletes expired ones first; damaged JSON stays text.
        """
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
            record = dict(zip((column[0] for column in cursor.description), row, strict=True))
            seq = record["seq"]
            for name in ("headers", "provisional", "value"):
                with contextlib.suppress(TypeError, ValueError, RecursionError):  # damaged: as it is
                    record[name] = json.loads(record[name])
            yield {name: base64.b64encode(v).decode() if isinstance(v, bytes) else v for name, v in record.items()}


# Retry spreading: queued requests wait a random time, so that devices that lost a cloud do not return at once.

TIMES = 4.0  # requests are spread over this multiple of their age: after a longer outage more devices have a backlog
LONGEST_S = 3600.0  # maximum spread, unless `spread_s` is longer, seconds


def spread_for(spread_s: float, age_s: float) -> float:
    """Return the upper end of the uniformly random wait of a request, seconds.

    Args:
        spread_s: minimum of that end; 0: no spreading.
        age_s: seconds since the request was queued.
    """
    return min(max(LONGEST_S, spread_s), max(spread_s, TIMES * age_s)) if spread_s else 0.0


Drop: TypeAlias = Literal["oldest", "least_important", "newest"]
ROW_BYTES = 512  # overhead per entry counted towards `max_bytes`
REMEMBERED = 50_000  # number of completed ids stored for deduplication; older ones are deleted
MOST_TEXT = 1000  # characters of an error that are stored

T = TypeVar("T")


class Outbox(Listing):
    """Durable queue in one file, shared by threads and processes. Entries survive `kill -9` and a power cut.

    Every method raises StoreError if the disk is full, read-only or broken. A corrupt file has then been renamed, and the next
    call starts a new one. Every method first deletes expired entries.

    Args:
        path: path of the file; its folder is created. `path.deliver` and `path.callback` beside it are lock files.
        max_bytes: maximum size of all entries, with the overhead of each.
        ttl_s: time to live, seconds: of a waiting entry, of an answer without a callback, and of a dead letter.
        drop: eviction when full. oldest: oldest first. least_important: least important first, of those the oldest, but none more
            important than the new one. newest: the new one is rejected. Answers not delivered yet are evicted last.
        ordered: requests to an endpoint go one at a time, in the order in which they came.
        parallel: maximum concurrent requests.
        rate_per_s: maximum requests started per second.
        spread_s: after a failure of the cloud, entries are sent after a random part of this time, or of more for old entries, so
            that many devices do not return at once. 0: no spreading.
        clock: returns the Unix time, seconds.

    Raises:
        PolicyError: `drop` is unknown, or a number is out of range.
    """

    # Sequence number of the first entry put since this was None: a delivery sets it to None as it is made.
    first_put: int | None = initially(None)

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: Bytes = 64 << 20,
        ttl_s: Seconds = 7 * 86400.0,
        drop: Drop = "oldest",
        ordered: bool = False,
        parallel: Count = 2,
        rate_per_s: Rate = 10.0,
        spread_s: Delay = 60.0,
        clock: Callable[[], float] = now,
    ) -> None:
        if drop not in get_args(Drop):
            raise PolicyError(f"drop is one of {', '.join(get_args(Drop))}, not {drop!r}")
        check_units(Outbox, locals())
        self.path, self.drop_policy, self.clock, self.ordered = Path(path).absolute(), drop, clock, ordered
        self.max_bytes, self.parallel = plain_number(max_bytes), plain_number(parallel)
        self.ttl_s, self.spread_s, self.rate_per_s = plain_number(ttl_s), plain_number(spread_s), plain_number(rate_per_s)
        self._database = Database(self.path, tables.SCHEMA, durable=True, lenient=True)
        self.group = GroupCommit(self._write)
        self._plausible = -1  # total size up to which the stored count is trusted, bytes
        self._owner = 0  # id of the thread that is in a transaction
        self._listeners: list[Callable[[], object]] = []
        # Called with the id of each entry that became a dead letter because its row is damaged.
        self.report_damaged: Callable[[str], object] = lambda _: None

    @property
    def locked(self) -> bool:
        """True if another process has the file, as `Database.locked` says."""
        return self._database.locked

    def listen(self, f: Callable[[], object]) -> None:
        """Register a function to call when this process adds something to deliver or to pass to the callback.

        Called in the thread that adds it; its exceptions pass.
        """
        self._listeners.append(f)

    def spread_for(self, since: float | None) -> float:
        """Return the spread of an entry queued at `since`, seconds; None: queued now."""
        return spread_for(self.spread_s, 0.0 if since is None else max(0.0, self.clock() - since))

    def part_s(self, since: float | None = None) -> float:
        """Draw a uniformly random part of `spread_for(since)`, seconds."""
        return random.uniform(0, self.spread_for(since))  # noqa: S311 - a jitter, not a secret

    def put(self, waiting: Waiting) -> Put:
        """Store a request durably; it will be delivered unless it is evicted, which is counted. See `Put` for the result.

        Blocks for the disk; may evict others; an id that is known is not stored again. Raises StoreError if the disk fails.
        """
        (put,) = self.put_all([waiting])
        if isinstance(put, Exception):
            raise put
        return put

    def put_all(self, entries: Sequence[Waiting], refuse: Refuse = str) -> list[Put | Exception]:
        """Store requests durably, with as few waits for the disk as possible. Return for each its result, or the error.

        A call within a transaction of this thread joins it, without asking `refuse`, and raises instead. Notifies the listeners.

        Args:
            entries: the requests.
            refuse: called before the transaction; returns why they are not to be stored any more; empty: they are.
        """
        if self._owner == threading.get_ident():  # within an effect of `settle`: all or none
            return list(self._write(entries))
        return self.group.put(entries, refuse)

    def _write(self, entries: Sequence[Waiting]) -> list[Put]:
        """Store requests in one transaction, evicting others if needed, and notify the listeners.

        A known id is not stored again.
        """
        now_s = self.clock()
        with self._transaction(now_s) as c:
            puts = [self._insert(c, now_s, entry) for entry in entries]
        self._notify()
        return puts

    def _insert(self, c: sqlite3.Connection, now_s: float, waiting: Waiting) -> Put:
        """Store one request in the open transaction, evicting others if needed, with counts. A known id is not stored again.

        A known id counts as stored, unless it is a dead letter. A request that does not fit is not stored: see `reason`. After a
        failure of the live request it is due after a random part of the spread.
        """
        queued_at = now_s if waiting.queued_at is None else waiting.queued_at
        soon_at = queued_at + self.part_s() if waiting.error else queued_at
        ready_at = soon_at if waiting.ready_at is None else waiting.ready_at
        headers, provisional = json.dumps(waiting.headers), json.dumps(to_json_types(waiting.provisional))
        size = ROW_BYTES + len(waiting.body) + len(headers) + len(provisional)
        known = c.execute(
            "SELECT state, error FROM outbox_entries WHERE id = :id UNION ALL SELECT 'done', '' FROM outbox_done WHERE id = :id",
            {"id": waiting.id},
        ).fetchone()
        if known is not None:
            return Put(stored=False, reason=f"refused for good: {known[1]}") if known[0] == "dead" else Put(stored=True)
        over = self._total(c, size) + size - self.max_bytes
        fits = size <= self.max_bytes
        gone = tables.evictions(c, over, waiting.importance, drop=self.drop_policy) if fits else None
        if gone is None:
            tables.add_count(c, "dropped_full")
            return Put(stored=False, reason=f"the outbox is full: {size} bytes more would make it exceed {self.max_bytes}")
        c.executemany("DELETE FROM outbox_entries WHERE seq = ?", [(seq,) for seq, _ in gone])
        tables.add_count(c, "dropped_full", len(gone))
        tables.add_count(c, "stored")
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
        """Return the size of all entries; count it again if `more` would not fit and it is above the last plausible total.

        So nothing is refused or evicted for a damaged count. A recount stores the total, and updates the plausible one.
        """
        total = tables.total_bytes(c)
        if total + more > self.max_bytes and total > self._plausible:
            total = tables.recount(c)
            self._plausible = max(total, self.max_bytes)
        return total

    def answer(self, name: str, answer: Prediction, *, attempts: int = 0) -> bool:
        """Store the answer to the request with this id, for the callback, and notify the listeners.

        The request's body is deleted, and the delivery counted. A dead letter may be answered too.

        Args:
            name: id of the request.
            answer: its value is stored as JSON, its outputs if they can be serialised.
            attempts: number added to the entry's attempts.

        Returns:
            False if the request is already answered, or gone.
        """
        value = json.dumps(to_json_types(answer.value))
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
            tables.add_count(c, "delivered")
        self._notify()
        return True

    def failed(self, name: str, error: str, ready_at: float) -> None:
        """Record a failed attempt of a waiting request with its error; the next is not before `ready_at` (Unix time).

        A no-op unless it is waiting.
        """
        self._change("attempts = attempts + 1, error = ?, ready_at = ?", (_text(error), ready_at), name)

    def postpone(self, name: str, ready_at: float) -> None:
        """Delay the callback for this answer until `ready_at` (Unix time). A no-op unless it is answered."""
        with self._transaction() as c:
            c.execute("UPDATE outbox_entries SET ready_at = ? WHERE id = ? AND state = 'answered'", (ready_at, name))

    def bury(self, name: str, error: str) -> None:
        """Make a waiting entry a dead letter. Counts the attempt, and a dead letter; a no-op unless it waits."""
        change = "state = 'dead', attempts = attempts + 1, error = ?, since = ?"
        self._change(change, (_text(error), self.clock()), name, count="dead")

    def ready(self, name: str, error: str = "") -> None:
        """Make a waiting request due now, or after a random part of `spread_s` if `error` is given, which is stored.

        Notifies the listeners. Nothing changes for an id that is not waiting.
        """
        self._change("ready_at = ?, error = ?", (self.clock() + (self.part_s() if error else 0.0), _text(error)), name)
        self._notify()

    def withdraw(self, name: str) -> bool:
        """Delete a request whose answer came in time, waiting or dead, and count it.

        Returns False if it is gone, or answered: then the callback comes.
        """
        with self._transaction() as c:
            there = c.execute("DELETE FROM outbox_entries WHERE id = ? AND state != 'answered'", (name,)).rowcount
            tables.add_count(c, "withdrawn", there)
        return there > 0

    def retry(self, names: Collection[str] | None = None) -> int:
        """Requeue dead letters with a new time to live, and return their number.

        Ids that are no dead letters are ignored. Notifies the listeners.

        Args:
            names: ids of dead letters; None: all dead letters.
        """
        now_s, n = self.clock(), 0
        statement = "UPDATE outbox_entries SET state = 'waiting', since = :at, ready_at = :at WHERE state = 'dead'"
        with self._transaction(now_s) as c:
            if names is None:
                n = c.execute(statement, {"at": now_s}).rowcount
            for name in names or ():
                n += c.execute(f"{statement} AND id = :id", {"at": now_s, "id": name}).rowcount
        self._notify()
        return n

    def drop(self, names: Iterable[str]) -> int:
        """Delete the entries with these ids, in any state, and return their number. Counts them; unknown ids are ignored."""
        with self._transaction() as c:
            n = sum(c.execute("DELETE FROM outbox_entries WHERE id = ?", (name,)).rowcount for name in names)
            tables.add_count(c, "dropped_by_hand", n)
        return n

    def pick(self, choose: Callable[[tables.Heads], Listed | None]) -> Listed | None:
        """Return the entry that `choose` returns, in a transaction.

        Entries that it cannot read become dead letters; then it is asked again. Deletes expired entries first.
        """
        while True:
            with self._transaction() as c:
                try:
                    return choose(tables.Heads(c))
                except stored.Damaged as e:
                    self._bury(c, e.seq, e)

    def waiting(self, name: str) -> Waiting | None:
        """Return the request with this id if it is waiting and not expired, else None; a damaged one becomes a dead letter."""
        return self._read(
            f"SELECT outbox_entries.seq, {stored.WAITING} FROM outbox_entries"  # noqa: S608 - a constant
            " LEFT JOIN outbox_bodies USING (seq) LEFT JOIN outbox_origins USING (seq)"
            " WHERE id = ? AND state = 'waiting' AND since >= ?",
            name,
            stored.read_waiting,
        )

    def late(self, name: str) -> Late | None:
        """Return the answer to this request if its callback is still to be called, else None.

        A damaged one becomes a dead letter. Expired answers count as gone.
        """
        return self._read(
            f"SELECT seq, {stored.LATE} FROM outbox_entries LEFT JOIN outbox_answers USING (seq)"  # noqa: S608 - a constant
            " WHERE id = ? AND state = 'answered' AND since >= ?",
            name,
            stored.read_late,
        )

    def _read(self, statement: str, name: str, read: Callable[[Sequence[Any]], T]) -> T | None:
        """Return the row of this id, parsed by `read`; None if it is gone or expired. A damaged one becomes a dead letter."""
        with self._transaction() as c:
            now_s = self.clock()
            row = c.execute(statement, (name, now_s - self.ttl_s if now_s >= tables.TRUSTED_S else -inf)).fetchone()
            if row is None:
                return None
            try:
                return read(row[1:])
            except stored.Damaged as e:
                self._bury(c, row[0], e)
                return None

    def _bury(self, c: sqlite3.Connection, seq: int, why: stored.Damaged) -> None:
        """Make a damaged entry a dead letter in the open transaction, log it, and pass its id to `report_damaged`."""
        name = tables.bury(c, seq, _text(str(why)), self.clock())
        log.error("%s: entry %s is damaged, and a dead letter now: %s", self.path, name, why)
        self.report_damaged(name)

    def settle(self, name: str, effect: Callable[[Late, sqlite3.Connection], object] | None = None) -> bool:
        """Delete an answer as delivered, in one transaction with `effect`, and count it. Return False if it is gone already.

        An exception from `effect` rolls back both. The id is remembered, the latest `REMEMBERED` of them, so that a repeated put
        is not stored again.
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
            tables.add_count(c, "called")
        return True

    def known_counts(self) -> dict[str, int]:
        """Return `counts` as a read without a lock finds them; empty if it fails, or another process has the whole file.

        Expired entries are not deleted, and count.
        """
        query = (
            "SELECT name, n FROM outbox_counts UNION ALL SELECT 'waiting', count(*) FROM outbox_entries WHERE state = 'waiting'"
        )
        try:
            rows: Any = self._database.read(query, ())
        except StoreError:
            return {}
        if not rows and self.path.exists():
            return {}
        zeros = dict.fromkeys((*COUNTED, "bytes", "waiting"), 0)
        return zeros | {name: max(0, n) for name, n in rows if name in zeros and isinstance(n, int)}

    def end_waits(self) -> None:
        """Make calls fail that go on waiting for another process, also in other threads; blocks about a second for them."""
        self._database.end_waits()

    def close(self) -> None:
        """Close the file; the next call opens it again. Calls that wait long for another process fail."""
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self, now_s: float | None = None) -> Iterator[sqlite3.Connection]:
        """Open a transaction that first deletes expired entries, and note this thread, so that `put_all` within joins it."""
        with self._database.transaction() as c:
            outer, self._owner = self._owner, threading.get_ident()
            try:
                tables.tidy(c, self.clock() if now_s is None else now_s, self.ttl_s)
                yield c
            finally:
                self._owner = outer

    def _change(self, change: str, values: tuple[Any, ...], name: str, *, count: str | None = None) -> None:
        """Set columns of the waiting entry with this id, and add to the counter `count` if there is one."""
        with self._transaction() as c:
            statement = f"UPDATE outbox_entries SET {change} WHERE id = ? AND state = 'waiting'"  # noqa: S608 - constants
            n = c.execute(statement, (*values, name)).rowcount
            if count is not None:
                tables.add_count(c, count, n)

    def _notify(self) -> None:
        """Call the listeners."""
        for f in self._listeners:
            f()


def _text(error: str) -> str:
    """Return an error truncated, and without lone surrogates, which cannot be stored."""
    return error[:MOST_TEXT].encode(errors="replace").decode()


# Transaction handle of a callback: for tables of the app, not the outbox's; it cannot commit or roll back.

Values: TypeAlias = Sequence[Any] | Mapping[str, Any]
_CONTROL = {
    sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA,
}  # fmt: skip


class Tx:
    """Transaction handle: its writes commit together with the record of the callback. Valid until the callback returns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: sqlite3.Connection | None = connection
        self._refused = False

    def execute(self, sql: str, values: Values = ()) -> list[Any]:
        """Run a statement and return its rows.

        Raises:
            PolicyError: the statement would begin or end a transaction, open another file, or change the outbox itself.
            StoreError: the transaction is over, because the callback has returned or an error ended it.
            sqlite3.Error: the statement failed.
        """
        rows: list[Any] = self._run(lambda c: c.execute(sql, values).fetchall())
        return rows

    def executemany(self, sql: str, values: Iterable[Values]) -> None:
        """Run a statement once for each item of `values`. Raises as `execute` does."""
        self._run(lambda c: c.executemany(sql, values))

    def end(self) -> None:
        """Invalidate the handle."""
        self._connection = None

    def _run(self, work: Any) -> Any:
        """Run `work` on the connection, with statements forbidden that would control the transaction or change the outbox.

        Raises PolicyError for such a statement, StoreError once the transaction is over; SQLite's other errors pass.
        """
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
            c.set_authorizer(lambda *_: sqlite3.SQLITE_OK)  # before 3.11, None would forbid everything

    def _authorize(self, action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None) -> int:
        """Return SQLITE_OK, or note a refusal and return SQLITE_DENY: for transactions, other files, the outbox's tables."""
        is_outbox = action != sqlite3.SQLITE_READ and any(
            n is not None and n.lower().startswith("outbox_") for n in (first, second)
        )
        if action in _CONTROL or is_outbox:
            self._refused = True
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK
