"""SQLite tables of the outbox: schema, indexed queries (`Heads`), fair turns (`Turns`), expiry, eviction, counters, repair.

All run on a connection in a transaction of the caller.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import chain, islice, pairwise
from math import inf
from typing import NamedTuple, TypeAlias

import edgeroute.stores.outbox.outbox_entries as entries

# Queries by index that find the next entry of an outbox; their time does not depend on the number of entries.

MOST_LANES = 100  # number of lanes examined in one step; the next step continues with the rest
SLICE = 200  # number of entries that one `hurry` examines


class Lane(NamedTuple):
    """Target and data class: entries that share both are mostly delayed together."""

    target: str
    data_class: str | None


class Heads:
    """Queries on an outbox by its indexes, in a transaction. Each method raises Damaged at a row that it cannot read."""

    def __init__(self, c: sqlite3.Connection) -> None:
        self._c = c

    def targets(self, *states: entries.State) -> list[str]:
        """Return the targets that have entries in one of these states, sorted."""
        names = set[str]()
        for state in states:
            select = "SELECT min(target), NULL, seq FROM outbox_entries WHERE state = ?"
            row = self._lane(select, state)
            while row is not None:
                names.add(row.target)
                row = self._lane(f"{select} AND target > ?", state, row.target)
        return sorted(names)

    def lanes(self, state: entries.State, after: Lane | None = None) -> Iterator[Lane]:
        """Yield the lanes (pairs of target and data class) that have entries in this state, in order, those after the given one.

        Each is one query. Raises Damaged for a lane that is no valid text.
        """
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

    def ready(self, state: entries.State, lane: Lane, n: int, after: tuple[float, int] | None = None) -> list[entries.Listed]:
        """Return up to `n` entries of a lane by due time, only those after the given due time and sequence number.

        Entries not due yet are included. Raises Damaged for a row that cannot be read.
        """
        select = f"SELECT {entries.LISTED} FROM outbox_entries WHERE state = ? AND target = ? AND data_class IS ?"  # noqa: S608 - a constant
        if after is None:
            return self._checked_entries(f"{select} ORDER BY ready_at, seq LIMIT ?", state, *lane, n)
        due_s, seq = after
        same_time = self._checked_entries(
            f"{select} AND ready_at = ? AND seq > ? ORDER BY seq LIMIT ?", state, *lane, due_s, seq, n
        )
        more = f"{select} AND ready_at > ? ORDER BY ready_at, seq LIMIT ?"
        return same_time + self._checked_entries(more, state, *lane, due_s, n - len(same_time))

    def check(self, state: entries.State, lane: Lane) -> None:
        """Raise Damaged if the entry of a lane with the latest due time is unreadable: a bad time sorts last."""
        by = "ORDER BY ready_at DESC, seq DESC LIMIT 1"
        where = f"state = ? AND target = ? AND data_class IS ? {by}"
        self._checked_entries(f"SELECT {entries.LISTED} FROM outbox_entries WHERE {where}", state, *lane)  # noqa: S608 - a constant

    def oldest(self, target: str, *states: entries.State) -> entries.Listed | None:
        """Return the entry of a target, in one of these states, that was put first; None if there is none."""
        select = f"SELECT {entries.LISTED} FROM outbox_entries WHERE state = ? AND target = ? ORDER BY seq LIMIT 1"  # noqa: S608 - a constant
        rows = [row for state in states for row in self._checked_entries(select, state, target)]
        return min(rows, default=None)

    def check_states(self) -> None:
        """Raise Damaged for the first entry with an unknown state or without a target, which no other query would find."""
        none = ["state = 'waiting' AND target IS NULL", "state = 'answered' AND target IS NULL", "state IS NULL"]
        bounds = ["", "answered", "dead", "waiting", None]
        none += [f"state > '{a}'" + ("" if b is None else f" AND state < '{b}'") for a, b in pairwise(bounds)]
        for where in (*none, "state = ''"):
            self._checked_entries(f"SELECT {entries.LISTED} FROM outbox_entries WHERE {where} LIMIT 1")  # noqa: S608 - constants

    def newest(self) -> int:
        """Return the last sequence number; 0 if there are no entries."""
        return self._c.execute("SELECT max(seq) FROM outbox_entries").fetchone()[0] or 0

    def hurry(self, target: str, now_s: float, after: int, through: int) -> int:
        """Make those of the next `SLICE` waiting entries of a target due at `now_s` that are due later because an attempt failed.

        Returns:
            The sequence number to continue after; `through` if all entries up to that were examined.
        """
        rows = self._c.execute(
            "SELECT seq, error != '' AND ready_at > ? FROM outbox_entries"
            " WHERE state = 'waiting' AND target = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            (now_s, target, after, through, SLICE),
        ).fetchall()
        waits = [(now_s, seq) for seq, failed in rows if failed]
        self._c.executemany("UPDATE outbox_entries SET ready_at = ? WHERE seq = ?", waits)
        return rows[-1][0] if len(rows) == SLICE else through

    def _lane(self, statement: str, *values: object) -> Lane | None:
        """Return the lane in the first row of a query; None if there is no row.

        Raises Damaged for a target or class that is no valid text.
        """
        row = self._c.execute(statement, values).fetchone()
        if row is None or row[0] is None:
            return None
        for value in row[:2]:
            if not (value is None or (isinstance(value, str) and entries.is_whole(value))):
                raise entries.Damaged(f"its target or data class is {value!r}", row[2])
        return Lane(*row[:2])

    def _checked_entries(self, statement: str, *values: object) -> list[entries.Listed]:
        """Return the entries of a query, checked."""
        return [entries.read_checked(row) for row in self._c.execute(statement, values)]


# Function from a lane to the entry to take, or to the seconds until the lane may have one.
Look: TypeAlias = Callable[[Lane], "entries.Listed | float"]


class Turns:
    """Round-robin over the lanes of a state, at most `MOST_LANES` in one step."""

    def __init__(self) -> None:
        self._after: Lane | None = None
        self._whole, self._soon_s = True, inf

    def first(self, heads: Heads, state: entries.State, look: Look) -> tuple[entries.Listed | None, float]:
        """Ask `look` about the next lanes, up to 100. Return the entry due first, or None and the seconds until one may be due.

        The next call goes on with the lanes after these. The pause is 0 while lanes are left in this round, and at its end if it
        had an entry.
        """
        starts = self._after is None
        lanes = list(islice(heads.lanes(state, self._after), MOST_LANES + 1))
        if starts:
            self._whole, self._soon_s = True, inf
        more = len(lanes) > MOST_LANES
        self._after = lanes[MOST_LANES - 1] if more else None
        results = [look(lane) for lane in lanes[:MOST_LANES]]
        rows = [result for result in results if isinstance(result, entries.Listed)]
        if rows:
            self._whole = False
            return min(rows, key=lambda row: (row.ready_at, row.seq)), 0.0
        self._soon_s = min([self._soon_s, *(result for result in results if isinstance(result, float))])
        return None, 0.0 if more or not self._whole else self._soon_s


# 2020-01-01, Unix time. An earlier clock was never set: no entry expires by it, and its timestamps are replaced later.
TRUSTED_S = 1_577_836_800.0

MOST_TIDIED = 500  # maximum entries whose time is replaced, and maximum entries deleted, in one transaction
_SOUND = f"typeof({{0}}) = 'integer' AND {{0}} BETWEEN 0 AND {entries.MOST_BYTES}"


def _total_update(new: str, old: str) -> str:
    """Return the SQL that updates the total when an entry's size changes; a damaged size sets it to -1, for a recount."""
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
CREATE TRIGGER IF NOT EXISTS outbox_in AFTER INSERT ON outbox_entries BEGIN
    {_total_update("new.bytes", "0")};
END;
CREATE TRIGGER IF NOT EXISTS outbox_changed AFTER UPDATE OF bytes ON outbox_entries BEGIN
    {_total_update("new.bytes", "old.bytes")};
END;
CREATE TRIGGER IF NOT EXISTS outbox_out AFTER DELETE ON outbox_entries BEGIN
    {_total_update("0", "old.bytes")};
    DELETE FROM outbox_bodies WHERE seq = old.seq;
    DELETE FROM outbox_answers WHERE seq = old.seq;
    DELETE FROM outbox_origins WHERE seq = old.seq;
END
"""  # noqa: S608 - constants


def tidy(c: sqlite3.Connection, now_s: float, ttl_s: float) -> None:
    """Replace timestamps of a wrong clock (before 2020, or in the future) by the present, and delete expired entries.

    A replaced entry keeps its wait, unless an attempt failed. At most `MOST_TIDIED` of each, and none while the clock itself is
    before 2020; deletions are counted.
    """
    if now_s < TRUSTED_S:
        return
    c.execute(
        "UPDATE outbox_entries SET since = :at,"
        " ready_at = CASE WHEN attempts THEN :at ELSE :at + coalesce(max(0, ready_at - since), 0) END,"  # NULL: inf - inf
        " queued_at = CASE WHEN queued_at BETWEEN :trusted AND :at THEN queued_at ELSE :at END"
        " WHERE seq IN (SELECT seq FROM outbox_entries WHERE since > :at OR since < :trusted LIMIT :most)",
        {"at": now_s, "trusted": TRUSTED_S, "most": MOST_TIDIED},
    )
    old = "SELECT seq FROM outbox_entries WHERE since >= ? AND since < ? LIMIT ?"
    deleted = c.execute(f"DELETE FROM outbox_entries WHERE seq IN ({old})", (TRUSTED_S, now_s - ttl_s, MOST_TIDIED))  # noqa: S608 - a constant
    add_count(c, "dropped_expired", deleted.rowcount)


def bury(c: sqlite3.Connection, seq: int, why: str, now_s: float) -> str:
    """Turn a damaged entry into a dead letter with readable columns, and return its id, a new one if the old was damaged.

    Counts all sizes again.
    """
    (row,) = c.execute(f"SELECT {entries.LISTED} FROM outbox_entries WHERE seq = ?", (seq,))  # noqa: S608 - a constant
    e = entries.read_lenient(row)
    name = e.id if e.id == row[1] and e.id else f"damaged-{seq}"
    c.execute(
        "UPDATE outbox_entries SET id = ?, state = 'dead', target = ?, kind = ?, data_class = ?, rule = ?, importance = ?,"
        " queued_at = ?, ready_at = ?, attempts = ?, bytes = ?, error = ?, since = ? WHERE seq = ?",
        (
            name, e.target, e.kind, e.data_class, e.rule, e.importance, e.queued_at, now_s, e.attempts, e.bytes,
            f"damaged: {why}", now_s, seq,
        ),
    )  # fmt: skip
    recount(c)
    add_count(c, "dead")
    return name


def recount(c: sqlite3.Connection) -> int:
    """Add up the sizes of all entries, store the total, and return it, bytes."""
    sizes = f"SELECT coalesce(sum(bytes), 0) FROM outbox_entries WHERE {_SOUND.format('bytes')}"  # noqa: S608 - a constant
    (total,) = c.execute(sizes).fetchone()
    c.execute("INSERT OR REPLACE INTO outbox_counts VALUES ('bytes', ?)", (total,))
    return int(total)


def total_bytes(c: sqlite3.Connection) -> int:
    """Return the stored size of all entries, bytes. A damaged or missing total is counted again and stored."""
    row = c.execute("SELECT n FROM outbox_counts WHERE name = 'bytes'").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) and row[0] >= 0 else recount(c)


def counts(c: sqlite3.Connection) -> dict[str, int]:
    """Return the counters, by name. Damaged counters are left out."""
    numbers = {name: n for name, n in c.execute("SELECT name, n FROM outbox_counts") if isinstance(n, int)}
    return {**numbers, "bytes": total_bytes(c)}


def add_count(c: sqlite3.Connection, name: str, n: int = 1) -> None:
    """Add `n` to the counter of this name. A damaged counter begins at 0 again."""
    if n:
        known = "CASE WHEN typeof(n) = 'integer' THEN n ELSE 0 END"  # else damaged
        added = f"INSERT INTO outbox_counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = {known} + excluded.n"  # noqa: S608 - a constant
        c.execute(added, (name, n))


def evictions(c: sqlite3.Connection, over: int, importance: float, *, drop: str) -> Sequence[tuple[int, str]] | None:
    """Return (seq, id) of the entries to delete to free `over` bytes; None to reject the new entry. Deletes nothing.

    By policy `newest` none is evicted, by `least_important` none more important than the new one. Waiting and dead entries go
    before answered ones; None too if all of them together are not enough.
    """
    gone = list[tuple[int, str]]()
    if over <= 0:
        return gone
    if drop == "newest":
        return None
    most = importance if drop == "least_important" else None
    for row in chain(merge(_evictable(c, "waiting", most), _evictable(c, "dead", most)), _evictable(c, "answered", most)):
        _, seq, name, freed = row
        gone.append((seq, name))
        over -= entries.size_of(freed)
        if over <= 0:
            return gone
    return None


def _evictable(c: sqlite3.Connection, state: entries.State, most: float | None) -> Iterator[tuple[float, int, str, int]]:
    """Yield (importance, seq, id, bytes) of entries in this state, those to evict first first.

    Without `most` the order is by age. With `most`: only entries that are no more important, the least important first.
    """
    if most is not None:
        by = "SELECT importance, seq, id, bytes FROM outbox_entries WHERE state = ? AND importance <= ? ORDER BY importance, seq"
        yield from c.execute(by, (state, most))
        return
    by = "SELECT 0.0, seq, id, bytes FROM outbox_entries WHERE state = ? AND target = ? ORDER BY seq"
    yield from merge(*(c.execute(by, (state, target)) for target in Heads(c).targets(state)))
