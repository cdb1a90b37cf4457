"""The outbox's SQLite tables: schema, expiry, eviction and counts, as functions on a connection inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import chain

from edgeroute.stores.outbox.entries import State
from edgeroute.stores.outbox.heads import Heads
from edgeroute.stores.outbox.rows import LISTED, MOST_BYTES, listed, size_of

TRUSTED_S = 1_577_836_800.0
"""2020-01-01. An earlier clock was never set: it expires nothing, and its timestamps are replaced once the clock is set."""

MOST_TIDIED = 500
"""Entries whose time is replaced, and that are deleted, in one transaction."""
LATEST = "outbox_origins"
"""What files of earlier versions lack."""
_SOUND = f"typeof({{0}}) = 'integer' AND {{0}} BETWEEN 0 AND {MOST_BYTES}"


def _counted(new: str, old: str) -> str:
    """The statement that replaces a size in the total; below 0 that is to be counted anew, since something is damaged."""
    sound = f"typeof(n) = 'integer' AND n >= 0 AND {_SOUND.format(new)} AND {_SOUND.format(old)}"
    return f"UPDATE outbox_counts SET n = CASE WHEN {sound} THEN n + {new} - {old} ELSE -1 END WHERE name = 'bytes'"  # noqa: S608 - constants


SCHEMA = f"""
CREATE TABLE IF NOT EXISTS outbox_entries (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, target TEXT NOT NULL, kind TEXT NOT NULL,
    data_class TEXT, rule TEXT NOT NULL, importance REAL NOT NULL, queued_at REAL NOT NULL, ready_at REAL NOT NULL,
    attempts INTEGER NOT NULL, bytes INTEGER NOT NULL, error TEXT NOT NULL,
    since REAL NOT NULL,  -- when it came into its state, from which its time to live counts
    method TEXT NOT NULL, path TEXT NOT NULL, headers TEXT NOT NULL, provisional TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS outbox_since ON outbox_entries (since);
DROP INDEX IF EXISTS outbox_importance;
CREATE INDEX IF NOT EXISTS outbox_least ON outbox_entries (state, importance);
CREATE INDEX IF NOT EXISTS outbox_order ON outbox_entries (state, target);
CREATE INDEX IF NOT EXISTS outbox_due ON outbox_entries (state, target, data_class, ready_at);
CREATE TABLE IF NOT EXISTS outbox_bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);  -- apart: a list reads none
CREATE TABLE IF NOT EXISTS outbox_answers (
    seq INTEGER PRIMARY KEY, value TEXT NOT NULL, confidence REAL, outputs_type TEXT, outputs BLOB);
CREATE TABLE IF NOT EXISTS outbox_done (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS outbox_counts (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO outbox_counts VALUES ('bytes', 0);
CREATE TABLE IF NOT EXISTS outbox_origins (seq INTEGER PRIMARY KEY, origin TEXT NOT NULL);
DROP TRIGGER IF EXISTS outbox_in;
DROP TRIGGER IF EXISTS outbox_changed;
DROP TRIGGER IF EXISTS outbox_out;
CREATE TRIGGER outbox_in AFTER INSERT ON outbox_entries BEGIN
    {_counted("new.bytes", "0")};
END;
CREATE TRIGGER outbox_changed AFTER UPDATE OF bytes ON outbox_entries BEGIN
    {_counted("new.bytes", "old.bytes")};
END;
CREATE TRIGGER outbox_out AFTER DELETE ON outbox_entries BEGIN
    {_counted("0", "old.bytes")};
    DELETE FROM outbox_bodies WHERE seq = old.seq;
    DELETE FROM outbox_answers WHERE seq = old.seq;
    DELETE FROM outbox_origins WHERE seq = old.seq;
END
"""  # noqa: S608 - constants


def tidy(c: sqlite3.Connection, at: float, ttl_s: float) -> None:
    """Replaces timestamps of a wrong clock (before 2020, or in the future), and deletes expired entries."""
    if at < TRUSTED_S:
        return
    c.execute(
        "UPDATE outbox_entries SET since = :at,"
        " ready_at = CASE WHEN attempts THEN :at ELSE :at + coalesce(max(0, ready_at - since), 0) END,"  # NULL: inf - inf
        " queued_at = CASE WHEN queued_at BETWEEN :trusted AND :at THEN queued_at ELSE :at END"
        " WHERE seq IN (SELECT seq FROM outbox_entries WHERE since > :at OR since < :trusted LIMIT :most)",
        {"at": at, "trusted": TRUSTED_S, "most": MOST_TIDIED},
    )
    old = "SELECT seq FROM outbox_entries WHERE since >= ? AND since < ? LIMIT ?"
    deleted = c.execute(f"DELETE FROM outbox_entries WHERE seq IN ({old})", (TRUSTED_S, at - ttl_s, MOST_TIDIED))  # noqa: S608 - a constant
    add_count(c, "dropped_expired", deleted.rowcount)


def bury(c: sqlite3.Connection, seq: int, why: str, at: float) -> str:
    """Makes a damaged entry a dead letter that can be listed -> its id."""
    (row,) = c.execute(f"SELECT {LISTED} FROM outbox_entries WHERE seq = ?", (seq,))  # noqa: S608 - a constant
    e = listed(row)
    name = e.id if e.id == row[1] and e.id else f"damaged-{seq}"
    c.execute(
        "UPDATE outbox_entries SET id = ?, state = 'dead', target = ?, kind = ?, data_class = ?, rule = ?, importance = ?,"
        " queued_at = ?, ready_at = ?, attempts = ?, bytes = ?, error = ?, since = ? WHERE seq = ?",
        (
            name, e.target, e.kind, e.data_class, e.rule, e.importance, e.queued_at, at, e.attempts, e.bytes,
            f"damaged: {why}", at, seq,
        ),
    )  # fmt: skip
    recount(c)
    add_count(c, "dead")
    return name


def recount(c: sqlite3.Connection) -> int:
    """Adds up the sizes of all entries -> their sum, bytes."""
    sizes = f"SELECT coalesce(sum(bytes), 0) FROM outbox_entries WHERE {_SOUND.format('bytes')}"  # noqa: S608 - a constant
    (total,) = c.execute(sizes).fetchone()
    c.execute("INSERT OR REPLACE INTO outbox_counts VALUES ('bytes', ?)", (total,))
    return int(total)


def total_bytes(c: sqlite3.Connection) -> int:
    """The size of all entries, bytes."""
    row = c.execute("SELECT n FROM outbox_counts WHERE name = 'bytes'").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) and row[0] >= 0 else recount(c)


def counts(c: sqlite3.Connection) -> dict[str, int]:
    """The counters, by name."""
    found = {name: n for name, n in c.execute("SELECT name, n FROM outbox_counts") if isinstance(n, int)}
    return {**found, "bytes": total_bytes(c)}


def add_count(c: sqlite3.Connection, name: str, n: int = 1) -> None:
    """Adds to one of the counts."""
    if n:
        known = "CASE WHEN typeof(n) = 'integer' THEN n ELSE 0 END"  # else damaged
        added = f"INSERT INTO outbox_counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = {known} + excluded.n"  # noqa: S608 - a constant
        c.execute(added, (name, n))


def evictions(c: sqlite3.Connection, over: int, importance: float, *, drop: str) -> Sequence[tuple[int, str]] | None:
    """(seq, id) of the entries to evict to free `over` bytes; None: the new entry is rejected."""
    gone = list[tuple[int, str]]()
    if over <= 0:
        return gone
    if drop == "newest":
        return None
    most = importance if drop == "least_important" else None
    for row in chain(merge(_dispensable(c, "waiting", most), _dispensable(c, "dead", most)), _dispensable(c, "answered", most)):
        _, seq, name, freed = row
        gone.append((seq, name))
        over -= size_of(freed)
        if over <= 0:
            return gone
    return None


def _dispensable(c: sqlite3.Connection, state: State, most: float | None) -> Iterator[tuple[float, int, str, int]]:
    """Entries in this state, the first to evict first: by age, or if `most` is given those no more important, the least first."""
    if most is not None:
        by = "SELECT importance, seq, id, bytes FROM outbox_entries WHERE state = ? AND importance <= ? ORDER BY importance, seq"
        yield from c.execute(by, (state, most))
        return
    by = "SELECT 0.0, seq, id, bytes FROM outbox_entries WHERE state = ? AND target = ? ORDER BY seq"
    yield from merge(*(c.execute(by, (state, target)) for target in Heads(c).targets(state)))
