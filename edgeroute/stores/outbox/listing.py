"""Lists, counts and exports the entries of an outbox, as far as each can be read."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from edgeroute.stores.outbox.entries import Listed, State
from edgeroute.stores.outbox.rows import LISTED, listed
from edgeroute.stores.outbox.tables import counts

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
