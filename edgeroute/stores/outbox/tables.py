"""The outbox's SQLite tables: schema, expiry, eviction and counts, as functions on a connection inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import chain

from edgeroute.stores.outbox.entries import State
from edgeroute.stores.outbox.heads import Heads
from edgeroute.stores.outbox.rows import LISTED, listed

TRUSTED_S = 1_577_836_800.0
"""2020-01-01. An earlier clock was never set: it expires nothing, and its timestamps are replaced once the clock is set."""

MOST_TIDIED = 500
"""Entries whose time is replaced, and that are deleted, in one transaction."""
LATEST = "outbox_due"
"""What the first version's files lack."""

SCHEMA = """
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


def tidy(c: sqlite3.Connection, at: float, ttl_s: float) -> None:
    """Replaces timestamps of a wrong clock (before 2020, or in the future), and deletes expired entries."""
    if at < TRUSTED_S:
        return
    c.execute(
        "UPDATE outbox_entries SET ready_at = CASE WHEN attempts THEN :at ELSE :at + max(0, ready_at - since) END, since = :at,"
        " queued_at = CASE WHEN queued_at > :at OR queued_at < :trusted THEN :at ELSE queued_at END"
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
    _recount(c)
    add_count(c, "dead")
    return name


def _recount(c: sqlite3.Connection) -> int:
    (total,) = c.execute("SELECT coalesce(sum(bytes), 0) FROM outbox_entries").fetchone()
    c.execute("INSERT OR REPLACE INTO outbox_counts VALUES ('bytes', ?)", (total,))
    return int(total)


def counts(c: sqlite3.Connection) -> dict[str, int]:
    """The counters, by name."""
    return {name: n for name, n in c.execute("SELECT name, n FROM outbox_counts") if isinstance(n, int)}


def add_count(c: sqlite3.Connection, name: str, n: int = 1) -> None:
    """Adds to one of the counts."""
    if n:
        c.execute("INSERT INTO outbox_counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n", (name, n))


def evictions(
    c: sqlite3.Connection, size: int, importance: float, *, max_bytes: int, drop: str
) -> Sequence[tuple[int, str]] | None:
    """(seq, id) of the entries to evict for `size` more bytes; None: the new entry is rejected."""
    total = counts(c).get("bytes", -1)
    if total < 0:  # damaged
        total = _recount(c)
    over, gone = total + size - max_bytes, list[tuple[int, str]]()
    if over <= 0:
        return gone
    if drop == "newest" or size > max_bytes:
        return None
    most = importance if drop == "least_important" else None
    for row in chain(merge(_dispensable(c, "waiting", most), _dispensable(c, "dead", most)), _dispensable(c, "answered", most)):
        _, seq, name, freed = row
        gone.append((seq, name))
        over -= freed if isinstance(freed, int) else 0
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
