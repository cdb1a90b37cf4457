"""Key-value store for small JSON values, kept in memory and written to a SQLite file about a second later (write-behind)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from edgeroute.errors import StoreError
from edgeroute.stores.sqlite_file import Database
from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.system.process import now
from edgeroute.system.workers import Worker

log = logging.getLogger("edgeroute")
DELAY_S = 1.0
"""Write-behind delay, seconds. Values put within it are lost if the process is killed."""
DAMAGED = "damaged"
"""Name of the value whose time is that of the latest damage."""
_SCHEMA = """
CREATE TABLE kept (name TEXT PRIMARY KEY, value TEXT NOT NULL, updated REAL NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE total (rows INTEGER NOT NULL, crc INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER added AFTER INSERT ON kept BEGIN UPDATE total SET rows = rows + 1, crc = crc + NEW.crc; END;
CREATE TRIGGER changed AFTER UPDATE ON kept BEGIN UPDATE total SET crc = crc - OLD.crc + NEW.crc; END;
CREATE TRIGGER deleted AFTER DELETE ON kept BEGIN UPDATE total SET rows = rows - 1, crc = crc - OLD.crc; END
"""
_PUT = """
INSERT INTO kept VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated = excluded.updated, crc = excluded.crc
"""
_MATCH = "substr(name, 1, ?) = ?"


class KeyValueStore(ForkSafe):
    """JSON values by name, in a file shared by processes. The last writer of a name wins.

    Disk errors are never raised, except by `rows`: each distinct error is logged once, and values stay in memory meanwhile. A
    damaged value is deleted with a warning. Each value has a checksum, and the file their number and sum: what is lost is noticed
    as the file is opened, and `damaged` has the time.

    Args:
        path: path of the file; None: values are in memory only.
    """

    _lock = per_process(threading.RLock)

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._database = (
            None if path is None else Database(path, _SCHEMA, version=2, durable=True, lenient=True, check=self._check)
        )
        self._fresh: dict[str, tuple[str, float]] = {}
        """name -> JSON and Unix time of the put, of values not yet written to the file."""
        self._sums: dict[str, Counter[str]] = {}
        """name -> numbers that are not added to those in the file yet."""
        self._logged: set[str] = set()
        self._users: WeakSet[object] = WeakSet()
        self._writer = Worker("edgeroute-state", self._write, "state cannot be written", first_s=DELAY_S, retry_s=DELAY_S)

    def after_fork(self) -> None:
        """Drop unwritten values too: the parent writes them."""
        super().after_fork()
        if self._database is not None:
            self._fresh, self._sums = {}, {}

    @classmethod
    def shared_store(cls, path: Path, user: object) -> KeyValueStore:
        """Return the process-wide store of this file, created at the first call, and register `user` with it until `leave`."""
        key = os.path.realpath(path)
        with _shared.lock:
            store = _shared.stores.get(key)
            if store is None:
                store = _shared.stores[key] = cls(path)
            store._users.add(user)
        return store

    def leave(self, user: object) -> None:
        """Unregister `user` and write pending values; close the file if no other user is registered.

        Then it is no longer shared.
        """
        with _shared.lock:
            self._users.discard(user)
            last = not self._users
            for key in [key for key, store in _shared.stores.items() if last and store is self]:
                del _shared.stores[key]
        if last:
            self.close()
        else:
            self.flush()

    def get(self, name: str) -> Any | None:
        """Return the value of a name, also one not written to the file yet; None if there is none or it cannot be read.

        A damaged value is deleted.
        """
        with self._lock:
            fresh = self._fresh.get(name)
        if fresh is not None:
            return json.loads(fresh[0])
        rows = self._rows("SELECT value FROM kept WHERE name = ?", (name,))
        return next(self._parse_values((name, text) for (text,) in rows), None)

    def others(self, prefix: str, mine: str) -> list[Any]:
        """Return the values of all names that begin with `prefix`, except `mine`; also those not written to the file yet.

        Damaged values are deleted; those of a file that cannot be read are left out.
        """
        with self._lock:
            fresh = {name: text for name, (text, _) in self._fresh.items() if name.startswith(prefix)}
        stored = dict(self._rows(f"SELECT name, value FROM kept WHERE {_MATCH}", (len(prefix), prefix)))  # noqa: S608 - constants
        return list(self._parse_values((name, text) for name, text in (stored | fresh).items() if name != mine))

    def drop(self, name: str, why: object) -> None:
        """Delete a damaged value from memory and file, and log a warning with the reason. A failing disk is logged only."""
        log.warning("the value of %r in %s is damaged, and was deleted: %s", name, self.path, why)
        with self._lock:
            self._fresh.pop(name, None)
        with contextlib.suppress(UnicodeEncodeError):  # the name is damaged, too
            self._rows("DELETE FROM kept WHERE name = ?", (name,))

    def rows(self, prefix: str) -> list[tuple[str, str, float]]:
        """Return (name, JSON, Unix time of the put) of all names in the file that begin with `prefix`, newest first.

        Unwritten values are left out; [] if the store is in memory.

        Raises:
            StoreError: the file cannot be read.
        """
        database = self._database  # `close` may come at any time
        if database is None:
            return []
        with database.transaction(write=False) as connection:
            return connection.execute(
                f"SELECT name, value, updated FROM kept WHERE {_MATCH} ORDER BY updated DESC",  # noqa: S608 - constants
                (len(prefix), prefix),
            ).fetchall()

    def damaged(self) -> float | None:
        """Return the Unix time at which it was last noticed that values are damaged or missing, None: never.

        Raises:
            StoreError: the file cannot be read.
        """
        return max((updated for _, _, updated in self.rows(DAMAGED)), default=None)

    def _check(self, connection: sqlite3.Connection) -> None:
        """Delete damaged values from a file that is opened, and note the time of damage.

        Raises:
            sqlite3.DatabaseError: the file as a whole is damaged.
        """
        connection.execute("BEGIN")
        try:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            rows = connection.execute("SELECT name, value, updated, crc FROM kept").fetchall()
            total = connection.execute("SELECT rows, crc FROM total").fetchall()
        except sqlite3.OperationalError as e:
            found = f"malformed schema: {e}"
            if "no such" not in found:
                raise
        finally:
            connection.execute("ROLLBACK")
        if found != "ok":
            raise sqlite3.DatabaseError(f"malformed: {found}")
        damaged = [name for name, *row, crc in rows if crc != checksum(name, *row)]
        actual = len(rows), sum(row[3] for row in rows if type(row[3]) is int)
        if not damaged and total == [actual]:
            return
        if any(type(name) is not str or name != name.encode(errors="replace").decode() for name in damaged):
            raise sqlite3.DatabaseError("malformed: a name is no text")
        log.error("%s is damaged: of its values %d are there, %d of them damaged", self.path, len(rows), len(damaged))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM total")
        connection.execute("INSERT INTO total VALUES (?, ?)", actual)
        for name in damaged:
            log.warning("the value of %r in %s is damaged, and was deleted", name, self.path)
            connection.execute("DELETE FROM kept WHERE name = ?", (name,))
        connection.execute(_PUT, (DAMAGED, "null", instant := now(), checksum(DAMAGED, "null", instant)))
        connection.execute("COMMIT")

    def put(self, name: str, value: Any) -> None:
        """Store a snapshot of the value in memory; a thread writes it to the file about a second later.

        Replaces an earlier value; stays in memory if the store has no file or is closed. Raises TypeError or ValueError for what
        JSON does not have.
        """
        text = json.dumps(value, separators=(",", ":"))
        with self._lock:
            self._fresh[name] = text, now()
        if self._database is not None:
            self._writer.start()  # without a thread, a later put or close writes it

    def add(self, name: str, key: str) -> None:
        """Add 1 to a number of a value that holds numbers by key, about a second later, in one transaction.

        So those of several processes add up. Numbers of a store without a file are lost.
        """
        with self._lock:
            self._sums.setdefault(name, Counter())[key] += 1
        if self._database is not None:
            self._writer.start()

    def forget(self, prefix: str, older_than_s: float) -> None:
        """Delete names that begin with `prefix` and were last put more than `older_than_s` seconds ago, from memory and file."""
        before = now() - older_than_s
        with self._lock:
            for name in [n for n, (_, updated) in self._fresh.items() if n.startswith(prefix) and updated < before]:
                del self._fresh[name]
        self._rows(f"DELETE FROM kept WHERE {_MATCH} AND updated < ?", (len(prefix), prefix, before))  # noqa: S608 - constants

    def flush(self) -> bool:
        """Write pending values to the file now. Return True if all were written; a failure is logged, and returns False.

        False too without a file.
        """
        database = self._database
        sums: dict[str, Counter[str]] = {}
        if database is None or not (self._fresh or self._sums):
            return database is not None
        try:
            with database.transaction() as connection:
                with self._lock:  # only now: a later writer then has newer values
                    batch, sums, self._sums = dict(self._fresh), self._sums, {}
                for name, numbers in sums.items():
                    rows = connection.execute("SELECT name, value FROM kept WHERE name = ?", (name,)).fetchall()
                    stored = next(self._parse_values(rows), None)
                    known = stored.items() if isinstance(stored, dict) else ()
                    total = Counter({key: number for key, number in known if type(number) is int}) + numbers
                    row = json.dumps(total, separators=(",", ":")), now()
                    connection.execute(_PUT, (name, *row, checksum(name, *row)))
                connection.executemany(_PUT, [(n, *v, checksum(n, *v)) for n, v in batch.items()])
        except StoreError as e:
            self._log_once(e)
            with self._lock:
                for name, numbers in sums.items():
                    self._sums.setdefault(name, Counter()).update(numbers)
            return False
        with self._lock:
            for name, written in batch.items():
                if self._fresh.get(name) is written:
                    del self._fresh[name]
        return True

    def close(self) -> None:
        """Write pending values and close the file; later values stay in memory.

        Blocks for the writer thread; a failure to write is logged.
        """
        self._writer.close()
        self.flush()
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _write(self) -> float | None:
        """Flush; return the seconds until the next flush; None: nothing is pending, or it failed: the next put starts again."""
        return DELAY_S if self.flush() and (self._fresh or self._sums) else None

    def _parse_values(self, texts: Iterable[tuple[str, Any]]) -> Iterator[Any]:
        """Yield the values of (name, JSON) pairs; delete those that cannot be parsed."""
        for name, text in texts:
            try:
                value = json.loads(text.encode())  # fails for text that is not valid UTF-8
            except (ValueError, AttributeError, RecursionError) as e:  # noqa: PERF203 - the loop is there for it
                self.drop(name, e)
            else:
                yield value

    def _rows(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        """Run a statement and return its rows; none if the store is in memory or the disk fails, which is logged once."""
        database = self._database
        if database is None:
            return []
        try:
            with database.transaction(write=not statement.startswith("SELECT")) as connection:
                return connection.execute(statement, values).fetchall()
        except StoreError as e:
            self._log_once(e)
            return []

    def _log_once(self, error: StoreError) -> None:
        """Log a disk error, unless the same was logged before."""
        if (text := str(error)) not in self._logged:
            self._logged.add(text)
            log.warning("state that should survive a restart cannot be written or read: %s", text)


def checksum(name: str, value: str, updated: float) -> int:
    """Return the checksum of a row."""
    return zlib.crc32(repr((name, value, updated)).encode(errors="backslashreplace"))


class _Shared(ForkSafe):
    """Registry of the stores of `KeyValueStore.shared`, by real path."""

    lock = per_process(threading.RLock)

    def __init__(self) -> None:
        self.stores: WeakValueDictionary[str, KeyValueStore] = WeakValueDictionary()


_shared = _Shared()
