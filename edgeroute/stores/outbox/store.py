"""The outbox on disk. No threads, no network: what waits, what was answered, and what became of the rest."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from edgeroute.errors import PolicyError
from edgeroute.stores.outbox.entries import Answering, Late, Listed, Put, State, Waiting
from edgeroute.stores.outbox.inputs import decode_input, encode_input
from edgeroute.stores.outbox.spread import spread_for
from edgeroute.stores.sqlite import Database
from edgeroute.system import now, plain

Drop: TypeAlias = Literal["oldest", "least_important", "newest"]
ROW_BYTES = 512
"""What an entry counts towards `max_bytes` beside its contents."""
REMEMBERED = 50_000
"""Ids that are done and are not stored again; of more, the oldest are forgotten."""
TRUSTED_S = 1_577_836_800.0
"""2020. A clock that shows less was never set: by it nothing is too old, and what it stamped counts from when that is seen."""
MOST_TEXT = 1000
"""Characters of an error that are kept."""
COUNTED = ("stored", "delivered", "called", "dead", "withdrawn", "dropped_full", "dropped_expired", "dropped_by_hand")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox_entries (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, target TEXT NOT NULL, kind TEXT NOT NULL,
    data_class TEXT, rule TEXT NOT NULL, importance REAL NOT NULL, queued_at REAL NOT NULL, ready_at REAL NOT NULL,
    attempts INTEGER NOT NULL, bytes INTEGER NOT NULL, error TEXT NOT NULL,
    since REAL NOT NULL,  -- when it came into its state, from which its time to live counts
    method TEXT NOT NULL, path TEXT NOT NULL, headers TEXT NOT NULL, provisional TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS outbox_since ON outbox_entries (since);
CREATE INDEX IF NOT EXISTS outbox_importance ON outbox_entries (importance);
CREATE TABLE IF NOT EXISTS outbox_bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);  -- apart, so that a scan stays short
CREATE TABLE IF NOT EXISTS outbox_answers (
    seq INTEGER PRIMARY KEY, value TEXT NOT NULL, confidence REAL, outputs_type TEXT, outputs BLOB);
CREATE TABLE IF NOT EXISTS outbox_done (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS outbox_counts (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO outbox_counts VALUES ('bytes', 0);
CREATE TRIGGER IF NOT EXISTS outbox_in AFTER INSERT ON outbox_entries BEGIN
    UPDATE outbox_counts SET n = n + new.bytes WHERE name = 'bytes';
END;
CREATE TRIGGER IF NOT EXISTS outbox_changed AFTER UPDATE OF bytes ON outbox_entries BEGIN
    UPDATE outbox_counts SET n = n + new.bytes - old.bytes WHERE name = 'bytes';
END;
CREATE TRIGGER IF NOT EXISTS outbox_out AFTER DELETE ON outbox_entries BEGIN
    UPDATE outbox_counts SET n = n - old.bytes WHERE name = 'bytes';
    DELETE FROM outbox_bodies WHERE seq = old.seq;
    DELETE FROM outbox_answers WHERE seq = old.seq;
END
"""
_LISTED = ", ".join(Listed._fields)
_WAITING = ", ".join(Waiting._fields)
_LATE = "id, value, confidence, outputs_type, outputs, provisional, data_class, target, queued_at, since"


class Outbox:
    """One file, which threads and processes share. What is in it survives `kill -9` and a power cut.

    Everything here raises StoreError where the disk is full, read-only or broken. A corrupt file has then been set aside, and
    the next call begins a new one.

    Args:
        path: of the file; its folder is made. Beside it lie `path.deliver` and `path.callback`, which are only locked.
        max_bytes: of all entries, their contents and `ROW_BYTES` each.
        ttl_s: seconds for which an entry waits for delivery, an answer for its callback, or a dead entry for someone to look.
        drop: what makes room. oldest: the oldest go. least_important: the least important go, of those the oldest, but none
            that is more important than the new one. newest: the new one is refused. Answers that nobody took go last.
        ordered: for a router: whether requests to an endpoint go one at a time, in their order; see `Delivery`.
        parallel: for a router: how many are under way at once.
        rate_per_s: for a router: how many are begun in a second, at most.
        spread_s: after the cloud has failed, what waits is sent after a random part of so many seconds, or of more once it has
            waited long (`edgeroute.stores.outbox.spread`), so that many devices do not return as one. 0: as soon as it may be.
        clock: gives the time, seconds since 1970.
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
        self.path, self.max_bytes, self.ttl_s, self.drop_policy, self.clock = Path(path), max_bytes, ttl_s, drop, clock
        self.ordered, self.parallel, self.rate_per_s, self.spread_s = ordered, parallel, rate_per_s, spread_s
        self._database = Database(self.path, _SCHEMA, durable=True)
        self._listeners: list[Callable[[], object]] = []

    def listen(self, f: Callable[[], object]) -> None:
        """Has `f` called when there is something new to deliver or to tell, by this process."""
        self._listeners.append(f)

    def spread_for(self, since: float | None) -> float:
        """Over how many seconds that is spread which has waited since then; None: it has only just failed."""
        return spread_for(self.spread_s, 0.0 if since is None else max(0.0, self.clock() - since))

    def part_s(self, since: float | None = None) -> float:
        """A random part of that."""
        return random.uniform(0, self.spread_for(since))  # noqa: S311 - a jitter, not a secret

    def put(self, waiting: Waiting) -> Put:
        """Stores a request. Once this has returned it will be delivered, unless it is dropped, and that is counted."""
        at = self.clock()
        queued_at = at if waiting.queued_at is None else waiting.queued_at
        soon_at = queued_at + self.part_s() if waiting.error else queued_at
        ready_at = soon_at if waiting.ready_at is None else waiting.ready_at
        headers, provisional = json.dumps(waiting.headers), json.dumps(plain(waiting.provisional))
        size = ROW_BYTES + len(waiting.body) + len(headers) + len(provisional)
        with self._transaction(at) as c:
            known = c.execute(
                "SELECT state, error FROM outbox_entries WHERE id = :id"
                " UNION ALL SELECT 'done', '' FROM outbox_done WHERE id = :id",
                {"id": waiting.id},
            ).fetchone()
            if known is not None:
                return Put(stored=False, reason=f"refused for good: {known[1]}") if known[0] == "dead" else Put(stored=True)
            room = self._room(c, size, waiting.importance)
            if room is None:
                _count(c, "dropped_full")
                return Put(stored=False, reason=f"the outbox is full: {size} bytes more would make it exceed {self.max_bytes}")
            c.executemany("DELETE FROM outbox_entries WHERE seq = ?", [(seq,) for seq, _ in room])
            _count(c, "dropped_full", len(room))
            _count(c, "stored")
            seq = c.execute(
                "INSERT INTO outbox_entries VALUES (NULL, ?, 'waiting', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    waiting.id, waiting.target, waiting.kind, waiting.data_class, waiting.rule, waiting.importance, queued_at,
                    ready_at, waiting.attempts, size, _text(waiting.error), queued_at, waiting.method, waiting.path, headers,
                    provisional,
                ),
            ).lastrowid  # fmt: skip
            c.execute("INSERT INTO outbox_bodies VALUES (?, ?)", (seq, waiting.body))
        self._tell()
        return Put(stored=True, dropped=tuple(name for _, name in room))

    def answer(self, name: str, answer: Answering, *, attempts: int = 0) -> bool:
        """Keeps the answer of the request with this id, for the app. -> False: it has one, or is not there any more.

        Args:
            name: the id.
            answer: its value is kept as JSON can hold it, its outputs where they can be stored.
            attempts: how many times it was sent for this, beside those that failed.
        """
        value = json.dumps(plain(answer.value))
        outputs = (None if answer.outputs is None else encode_input(answer.outputs)) or (None, b"")
        confidence = None if answer.confidence is None else float(answer.confidence)  # numpy's are not SQLite's
        with self._transaction() as c:
            row = c.execute(
                "SELECT seq, length(provisional) FROM outbox_entries WHERE id = ? AND state IN ('waiting', 'dead')", (name,)
            ).fetchone()
            if row is None:
                return False
            c.execute(
                "UPDATE outbox_entries SET state = 'answered', since = ?, error = '', bytes = ?, attempts = attempts + ?"
                " WHERE seq = ?",
                (self.clock(), ROW_BYTES + row[1] + len(value) + len(outputs[1]), attempts, row[0]),
            )
            c.execute("DELETE FROM outbox_bodies WHERE seq = ?", row[:1])
            c.execute("INSERT INTO outbox_answers VALUES (?, ?, ?, ?, ?)", (row[0], value, confidence, *outputs))
            _count(c, "delivered")
        self._tell()
        return True

    def failed(self, name: str, error: str, ready_at: float) -> None:
        """Notes an attempt that did not succeed; the next one is not before `ready_at`."""
        self._change("attempts = attempts + 1, error = ?, ready_at = ?", (_text(error), ready_at), name)

    def bury(self, name: str, error: str) -> None:
        """Notes that no further attempt would succeed."""
        change = "state = 'dead', attempts = attempts + 1, error = ?, since = ?"
        self._change(change, (_text(error), self.clock()), name, count="dead")

    def ready(self, name: str, error: str = "") -> None:
        """Makes a request due now; or within `spread_s`, if what it waited for has ended with an error."""
        self._change("ready_at = ?, error = ?", (self.clock() + (self.part_s() if error else 0.0), _text(error)), name)
        self._tell()

    def hurry(self) -> None:
        """Makes those due now that wait only because an attempt failed, their first one too."""
        with self._transaction() as c:
            at = self.clock()
            c.execute(
                "UPDATE outbox_entries SET ready_at = :at WHERE state = 'waiting' AND error != '' AND ready_at > :at", {"at": at}
            )

    def withdraw(self, name: str) -> bool:
        """Takes a request back: its answer came in time. -> False: it was answered, so the app will be told, or is not there."""
        with self._transaction() as c:
            there = c.execute("DELETE FROM outbox_entries WHERE id = ? AND state != 'answered'", (name,)).rowcount
            _count(c, "withdrawn", there)
        return there > 0

    def retry(self, names: Collection[str] | None = None) -> int:
        """Makes dead entries wait for delivery again, with a new time to live. -> how many.

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
        """Removes the entries with these ids, whatever their state. -> how many there were."""
        with self._transaction() as c:
            n = sum(c.execute("DELETE FROM outbox_entries WHERE id = ?", (name,)).rowcount for name in names)
            _count(c, "dropped_by_hand", n)
        return n

    def list(self, state: State | None = None) -> list[Listed]:
        """The entries, in the order of puts."""
        with self._transaction() as c:
            rows = c.execute(
                f"SELECT {_LISTED} FROM outbox_entries WHERE :state IS NULL OR state = :state ORDER BY seq",  # noqa: S608 - a constant
                {"state": state},
            )
            return [Listed(*row) for row in rows]

    def counts(self) -> dict[str, int]:
        """What became of the requests since the file was made (`COUNTED`), and now: how many wait, and the bytes of all."""
        with self._transaction() as c:
            (waiting,) = c.execute("SELECT count(*) FROM outbox_entries WHERE state = 'waiting'").fetchone()
            return {**dict.fromkeys(COUNTED, 0), **dict(c.execute("SELECT name, n FROM outbox_counts")), "waiting": waiting}

    def export(self) -> Iterator[dict[str, Any]]:
        """Every entry with all its contents, ready for JSON; bytes are base64."""
        seq = -1
        while True:
            with self._transaction() as c:
                cursor = c.execute(
                    "SELECT * FROM outbox_entries LEFT JOIN outbox_bodies USING (seq) LEFT JOIN outbox_answers USING (seq)"
                    " WHERE seq > ? ORDER BY seq LIMIT 1",
                    (seq,),
                )
                row = cursor.fetchone()
                if row is None:
                    return
            told = dict(zip((column[0] for column in cursor.description), row, strict=True))
            seq = told["seq"]
            for name in ("body", "outputs"):
                told[name] = None if told[name] is None else base64.b64encode(told[name]).decode()
            for name in ("headers", "provisional", "value"):
                told[name] = None if told[name] is None else json.loads(told[name])
            yield told

    def pick(self, choose: Callable[[Iterator[Listed]], Listed | None], *states: State) -> Listed | None:
        """What `choose` chooses among the entries in these states, which it is given in the order of puts."""
        with self._transaction() as c:
            marks = ", ".join("?" * len(states))
            rows = c.execute(
                f"SELECT {_LISTED} FROM outbox_entries WHERE state IN ({marks}) ORDER BY seq",  # noqa: S608 - constants
                states,
            )
            return choose(Listed(*row) for row in rows)

    def waiting(self, name: str) -> Waiting | None:
        """The request with this id, if it still waits."""
        with self._transaction() as c:
            row = c.execute(
                f"SELECT {_WAITING} FROM outbox_entries JOIN outbox_bodies USING (seq)"  # noqa: S608 - a constant
                " WHERE id = ? AND state = 'waiting'",
                (name,),
            ).fetchone()
        if row is None:
            return None
        read = Waiting(*row)
        headers = tuple((key, value) for key, value in json.loads(row[6]))
        return read._replace(headers=headers, provisional=json.loads(read.provisional))

    def late(self, name: str) -> Late | None:
        """The answer to the request with this id, if the app still has to be told."""
        with self._transaction() as c:
            row = c.execute(
                f"SELECT {_LATE} FROM outbox_entries JOIN outbox_answers USING (seq)"  # noqa: S608 - a constant
                " WHERE id = ? AND state = 'answered'",
                (name,),
            ).fetchone()
        if row is None:
            return None
        _, value, confidence, outputs_type, outputs, provisional, *rest = row
        read = None if outputs_type is None else decode_input(outputs_type, outputs)
        return Late(name, json.loads(value), confidence, read, json.loads(provisional), *rest)

    def settle(self, name: str, effect: Callable[[Late, sqlite3.Connection], object] | None = None) -> bool:
        """Marks an answer as given to the app, all in one transaction with what `effect` does. -> False: it is so already.

        What `effect` raises undoes both.
        """
        with self._transaction() as c:
            late = self.late(name)
            if late is None:
                return False
            if effect is not None:
                effect(late, c)
            c.execute("DELETE FROM outbox_entries WHERE id = ?", (name,))
            c.execute("INSERT OR REPLACE INTO outbox_done (id) VALUES (?)", (name,))
            c.execute("DELETE FROM outbox_done WHERE seq <= (SELECT max(seq) FROM outbox_done) - ?", (REMEMBERED,))
            _count(c, "called")
        return True

    def close(self) -> None:
        """Closes the file; the next call opens it again."""
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self, at: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction that sees nothing whose time is over."""
        with self._database.transaction() as c:
            _tidy(c, self.clock() if at is None else at, self.ttl_s)
            yield c

    def _change(self, change: str, values: tuple[Any, ...], name: str, *, count: str | None = None) -> None:
        with self._transaction() as c:
            statement = f"UPDATE outbox_entries SET {change} WHERE id = ? AND state = 'waiting'"  # noqa: S608 - constants
            n = c.execute(statement, (*values, name)).rowcount
            if count is not None:
                _count(c, count, n)

    def _room(self, c: sqlite3.Connection, size: int, importance: float) -> Sequence[tuple[int, str]] | None:
        """The seq and id of those that must go for so many bytes more; None: these are not to be stored."""
        (total,) = c.execute("SELECT n FROM outbox_counts WHERE name = 'bytes'").fetchone()
        over, gone = total + size - self.max_bytes, list[tuple[int, str]]()
        if over <= 0:
            return gone
        if self.drop_policy == "newest" or size > self.max_bytes:
            return None
        by = "seq" if self.drop_policy == "oldest" else "importance, seq"
        most = importance if self.drop_policy == "least_important" else float("inf")
        for which in ("!=", "="):
            rows = c.execute(
                f"SELECT seq, id, bytes FROM outbox_entries WHERE state {which} 'answered' AND importance <= ?"  # noqa: S608 - constants
                f" ORDER BY {by}",
                (most,),
            )
            for seq, name, freed in rows:
                gone.append((seq, name))
                over -= freed
                if over <= 0:
                    return gone
        return None

    def _tell(self) -> None:
        for f in self._listeners:
            f()


def _text(error: str) -> str:
    """As much of it as one reads, in characters that can be stored."""
    return error[:MOST_TEXT].encode(errors="replace").decode()


def _tidy(c: sqlite3.Connection, at: float, ttl_s: float) -> None:
    """Stamps anew what a clock that was wrong has stamped, and drops what is too old."""
    if at < TRUSTED_S:
        return
    c.execute(
        "UPDATE outbox_entries SET ready_at = CASE WHEN attempts THEN :at ELSE :at + max(0, ready_at - since) END, since = :at,"
        " queued_at = CASE WHEN queued_at > :at OR queued_at < :trusted THEN :at ELSE queued_at END"
        " WHERE since > :at OR since < :trusted",
        {"at": at, "trusted": TRUSTED_S},
    )
    _count(c, "dropped_expired", c.execute("DELETE FROM outbox_entries WHERE since < ?", (at - ttl_s,)).rowcount)


def _count(c: sqlite3.Connection, name: str, n: int = 1) -> None:
    if n:
        c.execute("INSERT INTO outbox_counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n", (name, n))
