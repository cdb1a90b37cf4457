"""Queries that find the next entry of an outbox in a time that does not depend on how many there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from math import inf
from typing import NamedTuple, TypeAlias

from edgeroute.stores.outbox.entries import Listed, State
from edgeroute.stores.outbox.rows import LISTED, Damaged, is_whole, sound

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
