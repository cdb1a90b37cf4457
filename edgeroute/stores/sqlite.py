"""A SQLite file that several threads and processes share: a corrupt one is set aside, a fork opens its own."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from weakref import WeakSet

from edgeroute.errors import StoreError
from edgeroute.system import renew_after_fork

log = logging.getLogger("edgeroute")
BUSY_S = 5.0
CHECKPOINT_PAGES = 256
"""So much, of 4 KB each, the journal beside the file holds before it is emptied: a megabyte, for disks that are small."""
_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}
_parents: list[sqlite3.Connection | None] = []
"""Connections of a parent process that were open as it forked: SQLite forbids a child even to close them."""


class Database:
    """One file, opened at the first transaction.

    Args:
        path: of the file; its folder is made.
        schema: statements that make what is not there (CREATE TABLE IF NOT EXISTS ...).
        version: of the schema; a file with another is refused.
        busy_s: how long to wait for another process to finish its transaction.
        durable: whether a transaction that has ended survives a power cut; every process crash it survives anyway.
    """

    def __init__(self, path: Path, schema: str, *, version: int = 1, durable: bool, busy_s: float = BUSY_S) -> None:
        self.path, self._busy_s = path, busy_s
        self._schema, self._version, self._durable = schema, version, durable
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._lock = threading.RLock()
        renew_after_fork(self)
        _databases.add(self)

    def before_fork(self) -> bool:
        """Closes the file, and keeps it closed if so: SQLite notes in memory which locks the process has, and a child has none.

        With such notes it waited for ever for a transaction of the parent's, or wrote to what the parent was about to remove.
        """
        if not self._lock.acquire(timeout=BUSY_S):
            return False
        if self._connection is not None and not self._connection.in_transaction:
            self._drop()
        return True

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork(self) -> None:
        """Leaves the parent's connection alone; the child opens its own."""
        _parents.append(self._connection)
        self._connection, self._lock = None, threading.RLock()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the `with`, or nothing. One at a time; other processes wait. Within another, it is a part of that.

        Raises:
            StoreError: the disk is full, read-only or broken. A corrupt file has been set aside, and the next try begins anew.
        """
        with self._lock:
            try:
                connection = self._open()
                if connection.in_transaction:  # this thread's own, or the lock would not have let it in
                    yield connection
                    return
                self._patiently(connection.execute, "BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
            except (sqlite3.Error, UnicodeDecodeError) as e:  # the second: SQLite quotes a damaged schema in its message
                raise self._failed(e) from e
            except StoreError:
                raise
            except OSError as e:
                raise StoreError(f"{self.path}: {e.strerror or e}") from e

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and not self._connection.in_transaction and _which(self.path) != self._file:
            self._drop()  # another process has set it aside: what is written there now would be lost
        if self._connection is None:
            self._file = _which(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # inputs may be in it: they are its owner's alone
            connection = sqlite3.connect(self.path, timeout=0.05, isolation_level=None, check_same_thread=False)
            try:
                self._patiently(connection.execute, "PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
                (found,) = self._patiently(connection.execute, "PRAGMA user_version").fetchone()
                if found not in {0, self._version}:
                    raise StoreError(  # noqa: TRY301 - what is open has to be closed, like after any other error
                        f"{self.path} is of version {found}, and this edgeroute knows version {self._version}"
                    )
                if not found:
                    made = f"BEGIN IMMEDIATE; {self._schema}; PRAGMA user_version={self._version}; COMMIT"
                    self._patiently(connection.executescript, made)
            except BaseException:
                connection.close()
                raise
            self._connection, self._file = connection, _which(self.path)
        return self._connection

    def _patiently(self, run: Callable[[str], sqlite3.Cursor], statement: str) -> sqlite3.Cursor:
        """Runs it as soon as no other process is in its way. SQLite's own waiting sleeps ever longer, and so comes too late."""
        until = monotonic() + self._busy_s
        while True:
            try:
                return run(statement)
            except sqlite3.OperationalError as e:  # noqa: PERF203 - it waits
                if "locked" not in str(e) or monotonic() >= until:
                    raise
                sleep(0.001 + 0.002 * random.random())  # noqa: S311 - so that two do not always meet

    def _failed(self, error: sqlite3.Error | UnicodeDecodeError) -> StoreError:
        """The error in our words; a corrupt file is renamed, so that nothing in it is lost and nothing goes on failing."""
        self._drop()
        if getattr(error, "sqlite_errorname", _guess(error)) in _CORRUPT and _which(self.path) == self._file:
            aside = self._set_aside()
            log.error("%s was corrupt (%s); it is kept as %s, and a new one is begun", self.path, error, aside)
            return StoreError(f"{self.path} was corrupt, and is kept as {aside.name}: {error}")
        return StoreError(f"{self.path}: {error}")

    def _set_aside(self) -> Path:
        aside = next(p for n in count(1) if not (p := self.path.with_name(f"{self.path.name}.corrupt-{n}")).exists())
        for end in ("-wal", "-shm", ""):
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + end).rename(aside.with_name(aside.name + end))
        return aside

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Closes the file; the next transaction opens it again."""
        with self._lock:
            self._drop()


def _which(path: Path) -> tuple[int, int] | None:
    """The file that is there now."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _guess(error: sqlite3.Error | UnicodeDecodeError) -> str:
    """Python 3.10 does not tell SQLite's own code; a damaged schema may have none."""
    text = str(error)
    known = "malformed" in text or "not a database" in text or isinstance(error, UnicodeDecodeError)
    return "SQLITE_CORRUPT" if known else ""


_databases: WeakSet[Database] = WeakSet()
_forking = threading.local()


def _before_fork() -> None:
    _forking.held = [database for database in list(_databases) if database.before_fork()]


def _in_parent() -> None:
    for database in _forking.__dict__.pop("held", ()):
        database.after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent)
