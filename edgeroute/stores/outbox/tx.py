"""The transaction handle of a callback: it may use its own tables, but not the outbox's, and cannot commit or roll back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from edgeroute.errors import PolicyError, StoreError

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
