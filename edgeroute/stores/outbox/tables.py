"""The outbox's SQLite tables: schema, expiry, eviction and counts, as functions on a connection inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import chain, islice, pairwise
from math import inf
from typing import NamedTuple, TypeAlias

from edgeroute.stores.outbox.entries import Listed, State
from edgeroute.stores.outbox.rows import LISTED, MOST_BYTES, Damaged, is_whole, listed, size_of, sound

# Queries that find the next entry of an outbox in a time that does not depend on how many there are.

MOST_LANES = 100
"""Lanes that are looked at in one step; if there are more, the next step goes on."""
SLICE = 200
"""Entries that one `hurry` looks at."""


class Lane(NamedTuple):
    """Entries of one target and data class: what holds one of them mostly holds all."""

    target: str
    data_class: str | None


class Heads:
    """Reads an outbox by its indexes, within a transaction. Each method raises Damaged at a row that it cannot read."""

    def __init__(self, c: sqlite3.Connection) -> None:
        self._c = c

    def targets(self, *states: State) -> list[str]:
        """The targets with entries in one of these states."""
        found = set[str]()
        for state in states:
            select = "SELECT min(target), NULL, seq FROM outbox_entries WHERE state = ?"
            row = self._lane(select, state)
            while row is not None:
                found.add(row.target)
                row = self._lane(f"{select} AND target > ?", state, row.target)
        return sorted(found)

    def lanes(self, state: State, after: Lane | None = None) -> Iterator[Lane]:
        """The lanes with entries in this state, those after the given one."""
        select = "SELECT target, data_class, seq FROM outbox_entries WHERE state = ?"
        by = "ORDER BY target, data_class LIMIT 1"
        while True:
            if after is None:
                lane = self._lane(f"{select} {by}", state)
            else:
                more = ">= ''" if after.data_class is None else "> ?"
                values = after if after.data_class is not None else after[:1]
                lane = self._lane(f"{select} AND target = ? AND data_class {more} {by}", state, *values)
                lane = lane or self._lane(f"{select} AND target > ? {by}", state, after.target)
            if lane is None:
                return
            yield (after := lane)

    def ready(self, state: State, lane: Lane, n: int, after: tuple[float, int] | None = None) -> list[Listed]:
        """The `n` entries of a lane that are due first, of those after this time and sequence number."""
        select = f"SELECT {LISTED} FROM outbox_entries WHERE state = ? AND target = ? AND data_class IS ?"  # noqa: S608 - a constant
        if after is None:
            return self._listed(f"{select} ORDER BY ready_at, seq LIMIT ?", state, *lane, n)
        at, seq = after
        found = self._listed(f"{select} AND ready_at = ? AND seq > ? ORDER BY seq LIMIT ?", state, *lane, at, seq, n)
        more = f"{select} AND ready_at > ? ORDER BY ready_at, seq LIMIT ?"
        return found + self._listed(more, state, *lane, at, n - len(found))

    def check(self, state: State, lane: Lane) -> None:
        """Reads the entry of a lane that is due last: if a time is no number, or too large a one, it is found there."""
        by = "ORDER BY ready_at DESC, seq DESC LIMIT 1"
        where = f"state = ? AND target = ? AND data_class IS ? {by}"
        self._listed(f"SELECT {LISTED} FROM outbox_entries WHERE {where}", state, *lane)  # noqa: S608 - a constant

    def oldest(self, target: str, *states: State) -> Listed | None:
        """The entry of a target, in one of these states, that was put first."""
        select = f"SELECT {LISTED} FROM outbox_entries WHERE state = ? AND target = ? ORDER BY seq LIMIT 1"  # noqa: S608 - a constant
        found = [row for state in states for row in self._listed(select, state, target)]
        return min(found, default=None)

    def check_states(self) -> None:
        """Reads entries in a state that there is not, or without a target, which nothing else would find."""
        none = ["state = 'waiting' AND target IS NULL", "state = 'answered' AND target IS NULL", "state IS NULL"]
        bounds = ["", "answered", "dead", "waiting", None]
        none += [f"state > '{a}'" + ("" if b is None else f" AND state < '{b}'") for a, b in pairwise(bounds)]
        for where in (*none, "state = ''"):
            self._listed(f"SELECT {LISTED} FROM outbox_entries WHERE {where} LIMIT 1")  # noqa: S608 - constants

    def newest(self) -> int:
        """The last sequence number; 0: there are no entries."""
        return self._c.execute("SELECT max(seq) FROM outbox_entries").fetchone()[0] or 0

    def hurry(self, target: str, at: float, after: int, through: int) -> int:
        """Makes due those of a target's next waiting entries whose attempt failed -> after which to go on; `through`: none."""
        rows = self._c.execute(
            "SELECT seq, error != '' AND ready_at > ? FROM outbox_entries"
            " WHERE state = 'waiting' AND target = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            (at, target, after, through, SLICE),
        ).fetchall()
        waits = [(at, seq) for seq, failed in rows if failed]
        self._c.executemany("UPDATE outbox_entries SET ready_at = ? WHERE seq = ?", waits)
        return rows[-1][0] if len(rows) == SLICE else through

    def _lane(self, statement: str, *values: object) -> Lane | None:
        row = self._c.execute(statement, values).fetchone()
        if row is None or row[0] is None:
            return None
        for value in row[:2]:
            if not (value is None or (isinstance(value, str) and is_whole(value))):
                raise Damaged(f"its target or data class is {value!r}", row[2])
        return Lane(*row[:2])

    def _listed(self, statement: str, *values: object) -> list[Listed]:
        return [sound(row) for row in self._c.execute(statement, values)]


Look: TypeAlias = Callable[[Lane], "Listed | float"]
"""Returns the entry of a lane to take, or the seconds until there may be one."""


class Turns:
    """Looks at the lanes of a state in turn, at most `MOST_LANES` at a time."""

    def __init__(self) -> None:
        self._after: Lane | None = None
        self._whole, self._soon_s = True, inf

    def first(self, heads: Heads, state: State, look: Look) -> tuple[Listed | None, float]:
        """The entry that is due first of those found, or the seconds until there may be one."""
        begun = self._after is None
        lanes = list(islice(heads.lanes(state, self._after), MOST_LANES + 1))
        if begun:
            self._whole, self._soon_s = True, inf
        more = len(lanes) > MOST_LANES
        self._after = lanes[MOST_LANES - 1] if more else None
        found = [look(lane) for lane in lanes[:MOST_LANES]]
        rows = [one for one in found if isinstance(one, Listed)]
        if rows:
            self._whole = False
            return min(rows, key=lambda row: (row.ready_at, row.seq)), 0.0
        self._soon_s = min([self._soon_s, *(one for one in found if isinstance(one, float))])
        return None, 0.0 if more or not self._whole else self._soon_s


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
