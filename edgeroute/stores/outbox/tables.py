"""The outbox's SQLite tables: schema, expiry, eviction and counts, as functions on a connection inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

TRUSTED_S = 1_577_836_800.0
"""2020-01-01. An earlier clock was never set: it expires nothing, and its timestamps are replaced once the clock is set."""

SCHEMA = """
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


def tidy(c: sqlite3.Connection, at: float, ttl_s: float) -> None:
    """Replaces timestamps of a wrong clock (before 2020, or in the future), and deletes expired entries."""
    if at < TRUSTED_S:
        return
    c.execute(
        "UPDATE outbox_entries SET ready_at = CASE WHEN attempts THEN :at ELSE :at + max(0, ready_at - since) END, since = :at,"
        " queued_at = CASE WHEN queued_at > :at OR queued_at < :trusted THEN :at ELSE queued_at END"
        " WHERE since > :at OR since < :trusted",
        {"at": at, "trusted": TRUSTED_S},
    )
    add_count(c, "dropped_expired", c.execute("DELETE FROM outbox_entries WHERE since < ?", (at - ttl_s,)).rowcount)


def add_count(c: sqlite3.Connection, name: str, n: int = 1) -> None:
    """Adds to one of the counts."""
    if n:
        c.execute("INSERT INTO outbox_counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n", (name, n))


def evictions(
    c: sqlite3.Connection, size: int, importance: float, *, max_bytes: int, drop: str
) -> Sequence[tuple[int, str]] | None:
    """(seq, id) of the entries to evict for `size` more bytes; None: the new entry is rejected."""
    (total,) = c.execute("SELECT n FROM outbox_counts WHERE name = 'bytes'").fetchone()
    over, gone = total + size - max_bytes, list[tuple[int, str]]()
    if over <= 0:
        return gone
    if drop == "newest" or size > max_bytes:
        return None
    by = "seq" if drop == "oldest" else "importance, seq"
    most = importance if drop == "least_important" else float("inf")
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
