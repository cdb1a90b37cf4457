"""SQLite file shared by threads and processes: one transaction at a time, safe to fork, a corrupt file renamed and replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from weakref import WeakSet, finalize

from edgeroute.errors import StoreError
from edgeroute.system.forks import ForkSafe, initially, per_process, per_process_of
from edgeroute.system.process import list_weakset

log = logging.getLogger("edgeroute")
BUSY_S = 5.0
"""Default of how long a transaction waits for another process's, seconds."""
CLOSE_S = 1.0
"""Time that `close` waits for running transactions before it makes those that wait for another process fail, seconds."""
READ_BUSY_S = 0.5
"""Maximum time that a transaction which only reads waits for another process that has the whole file, seconds."""
READS_S = 0.005
"""Maximum time that a read waits for another read of this process, seconds."""
CHECKPOINT_PAGES = 256
"""WAL pages (4 KB each) before a checkpoint: a megabyte, for small disks."""
_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}
_parents: list[sqlite3.Connection | None] = []
"""Connections inherited through fork, kept referenced: SQLite forbids a child even to close them."""


class Database(ForkSafe):
    """SQLite file, opened or created at the first transaction.

    Args:
        path: path of the file; its folder is created. Mode 0600.
        schema: idempotent statements (CREATE TABLE IF NOT EXISTS ...).
        version: schema version (`user_version`); a file of another version is refused.
        busy_s: how long to wait for another process's transaction, seconds.
        durable: if True, a committed transaction survives a power cut (synchronous=FULL). It survives a process crash anyway.
        lenient: if True, text that is not valid UTF-8 is read as lone surrogates; if False, reading it is an error.
        check: called with the connection to a file as the file is opened; raises sqlite3.DatabaseError if the content is damaged.
            A file without a schema is passed, too: a new file has its schema before it has its path.
    """

    _lock, _reads = per_process(threading.RLock), per_process(threading.RLock)
    _connection: sqlite3.Connection | None = initially(None, _parents.append)
    _reader: sqlite3.Connection | None = initially(None, _parents.append)
    _closes, _begun_after = initially(0), initially(0)
    """How often `close` has made waiting transactions fail, and that number when the current transaction began."""
    _opened: set[sqlite3.Connection] = per_process_of(lambda self: _closed_at_end(self), set.clear)  # noqa: PLW0108 - defined below
    """Connections to close. A finaliser holds this set too, so that an object dropped without `close` leaves none open."""

    def __init__(
        self, path: Path, schema: str, *, version: int = 1, durable: bool, busy_s: float = BUSY_S, lenient: bool = False,
        check: Callable[[sqlite3.Connection], None] | None = None
    ) -> None:  # fmt: skip
        self.path, self._busy_s, self._lenient, self._check_content = path, busy_s, lenient, check
        self._version, self._durable = version, durable
        self._create_script = f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version={version}; COMMIT"
        self._wait_s = busy_s
        self._file: tuple[int, int] | None = None
        self._read_file: tuple[int, int] | None = None
        _databases.add(self)

    def before_fork(self) -> bool:
        """Take both locks and close the connections. Return True if the locks were taken.

        A child then inherits no lock of SQLite's, which tracks the process's file locks in memory. With inherited lock state a
        child waited for ever for a transaction of the parent, or wrote to a file about to be removed. A transaction's own
        connection stays open. Waits up to `BUSY_S` for each lock.
        """
        if not self._lock.acquire(timeout=BUSY_S):
            return False
        if not self._reads.acquire(timeout=BUSY_S):
            self._lock.release()
            return False
        if self._connection is not None and not self._connection.in_transaction:
            self._drop()
        self._drop_reader()
        return True

    def after_fork_in_parent(self) -> None:
        """Release the locks that `before_fork` took."""
        self._reads.release()
        self._lock.release()

    @contextlib.contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        """Run the `with` block in a transaction, and commit; an exception rolls back. One that only reads waits for no writer.

        One transaction runs at a time, across threads and processes: entering blocks up to `busy_s` for other processes. A nested
        call joins the outer transaction.

        Raises:
            StoreError: the disk is full, read-only or broken. A corrupt file has been renamed; the next call creates a new one.
        """
        closes = self._closes
        with self._lock:
            self._begun_after, self._wait_s = closes, self._busy_s if write else min(self._busy_s, READ_BUSY_S)
            try:
                connection = self._open()
                if connection.in_transaction:  # of this thread, since it holds the lock
                    yield connection
                    return
                self._retry(connection.execute, "BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield connection
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
            except (sqlite3.Error, UnicodeDecodeError) as e:  # the second: SQLite quotes a damaged schema in its message
                raise self._translate(e) from e
            except StoreError:
                raise
            except OSError as e:
                raise StoreError(f"{self.path}: {e.strerror or e}") from e

    def read(self, statement: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        """Return the rows of a query, on a read-only connection; no rows if a lock would have to be waited for.

        Transactions of other threads and processes do not delay the call. No rows either if there is no file yet.

        Raises:
            StoreError: the file cannot be read. A corrupt one has been renamed.
        """
        if not self._reads.acquire(timeout=READS_S):  # another read takes long: the disk does
            return []
        try:
            connection = self._open_reader()
            return [] if connection is None else connection.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as e:
            if isinstance(e, sqlite3.OperationalError) and "locked" in str(e):
                return []
            self._drop_reader()
            if not self._lock.acquire(blocking=False):  # a writer sees the same, soon
                raise StoreError(f"{self.path}: {e}") from e
            try:
                raise self._translate(e, self._read_file) from e
            finally:
                self._lock.release()
        except OSError as e:
            raise StoreError(f"{self.path}: {e.strerror or e}") from e
        finally:
            self._reads.release()

    def _open_reader(self) -> sqlite3.Connection | None:
        """Return the read-only connection, opened again if the file was replaced; None if there is no file or no schema yet.

        Raises StoreError for another version.
        """
        current = _file_identity(self.path)
        if self._reader is not None and current != self._read_file:
            self._drop_reader()  # the file was quarantined, or deleted
        if self._reader is None and current is not None:
            address, self._read_file = f"{self.path.absolute().as_uri()}?mode=ro", current
            connection = sqlite3.connect(address, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                self._check(version)
            except BaseException:
                connection.close()
                raise
            if not version:
                connection.close()
                return None
            self._reader = connection
            self._opened.add(connection)
        return self._reader

    def _drop_reader(self) -> None:
        """Close the read-only connection, if open; errors of SQLite are suppressed."""
        if self._reader is not None:
            self._opened.discard(self._reader)
            with contextlib.suppress(sqlite3.Error):
                self._reader.close()
            self._reader = None

    def _check(self, version: int) -> None:
        """Raise StoreError for a file of another schema version; 0 is a file without a schema."""
        if version not in {0, self._version}:
            raise StoreError(f"{self.path} is of version {version}, and this edgeroute knows version {self._version}")

    def _open(self) -> sqlite3.Connection:
        """Return the connection; open it if needed, create the file, set the pragmas and run the schema.

        Another file at the path is opened in place of the present one. Raises StoreError for another version, DatabaseError for
        an empty file.
        """
        if self._connection is not None and not self._connection.in_transaction and _file_identity(self.path) != self._file:
            self._drop()  # another process has quarantined the file: writes to it would be lost
        if self._connection is None:
            self._file = _file_identity(self.path)
            if self._file is None:
                self._create()
            elif not self.path.stat().st_size:
                raise sqlite3.DatabaseError("a file of length 0 is not a database")
            connection = sqlite3.connect(self.path, timeout=0.05, isolation_level=None, check_same_thread=False)
            try:
                self._retry(connection.execute, "PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten; some builds do not by default
                connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
                (version,) = self._retry(connection.execute, "PRAGMA user_version").fetchone()
                self._check(version)
                if self._lenient:
                    connection.text_factory = _decode
                if self._check_content is not None:
                    self._check_content(connection)
                elif not version:
                    self._retry(connection.executescript, self._create_script)
            except BaseException:
                connection.close()
                raise
            self._opened.add(connection)
            self._connection, self._file = connection, _file_identity(self.path)
        return self._connection

    def _create(self) -> None:
        """Create the file with its schema under a temporary name, then link it to its path.

        An empty file at the path thus is a damaged one. Readable for the user alone. A file that another process has created
        first stays.
        """
        self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.new-{os.urandom(6).hex()}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o600))  # it may hold user inputs: for its owner only
        try:
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
                connection.executescript(self._create_script)
            try:
                os.link(temporary, self.path)
            except FileExistsError:  # another thread or process was faster
                pass
            except OSError:  # a file system without hard links
                with contextlib.suppress(FileExistsError):  # on Windows, if another was faster
                    temporary.rename(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _retry(self, run: Callable[[str], sqlite3.Cursor], statement: str) -> sqlite3.Cursor:
        """Run a statement, retrying up to `_wait_s` while the file is locked: SQLite's own busy handler backs off too long.

        Waits are random, 1 to 3 ms. Raises at once if the database is closed meanwhile.
        """
        until = monotonic() + self._wait_s
        while True:
            try:
                return run(statement)
            except sqlite3.OperationalError as e:  # noqa: PERF203 - it waits
                if "locked" not in str(e) or self._closes != self._begun_after or monotonic() >= until:
                    raise
                sleep(0.001 + 0.002 * random.random())  # noqa: S311 - jitter, so that two processes do not collide again

    def _translate(self, error: sqlite3.Error | UnicodeDecodeError, file: tuple[int, int] | None = None) -> StoreError:
        """Close the connection, rename the file if it is corrupt, and return the StoreError to raise.

        Logs the renaming. A file that was replaced meanwhile is not renamed.
        """
        self._drop()
        if getattr(error, "sqlite_errorname", _guess(error)) in _CORRUPT and _file_identity(self.path) == (file or self._file):
            aside = self._quarantine()
            if aside is None:
                return StoreError(f"{self.path} is corrupt, and cannot be renamed while others have it open: {error}")
            log.error("%s was corrupt (%s); it is kept as %s, and a new one is begun", self.path, error, aside)
            return StoreError(f"{self.path} was corrupt, and is kept as {aside.name}: {error}")
        return StoreError(f"{self.path}: {error}")

    def _quarantine(self) -> Path | None:
        """Rename the corrupt file to `path.corrupt-N`, and return that path; None if it cannot be renamed (Windows).

        Its -wal and -shm go with it; the reader is closed.
        """
        if self._reads.acquire(timeout=READS_S):
            self._drop_reader()
            self._reads.release()
        aside = next(p for n in count(1) if not (p := self.path.with_name(f"{self.path.name}.corrupt-{n}")).exists())
        for end in ("-wal", "-shm", ""):
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + end).rename(aside.with_name(aside.name + end))
        return aside if aside.exists() else None

    def _drop(self) -> None:
        """Close the connection, if open; errors of SQLite are suppressed."""
        if self._connection is not None:
            self._opened.discard(self._connection)
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the file; the next transaction opens it again. Those waiting for another process fail after `CLOSE_S`.

        Blocks for a transaction in progress.
        """
        with self._reads:
            self._drop_reader()  # first: the last connection tidies up, if it may write
        if not self._lock.acquire(timeout=CLOSE_S):
            self._closes += 1  # whoever waits by now, for the lock or for the file, fails
            self._lock.acquire()
        try:
            self._drop()
        finally:
            self._lock.release()


def _closed_at_end(database: Database) -> set[sqlite3.Connection]:
    """Return a set whose connections are closed as the database is dropped."""
    opened: set[sqlite3.Connection] = set()
    finalize(database, _close_each, opened).atexit = False
    return opened


def _close_each(connections: Iterable[sqlite3.Connection]) -> None:
    """Close connections, ignoring errors."""
    for connection in connections:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the file now at this path; None if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def _decode(text: bytes) -> str:
    """Decode UTF-8; invalid bytes become lone surrogates."""
    return text.decode(errors="surrogateescape")


def _guess(error: sqlite3.Error | UnicodeDecodeError) -> str:
    """Return SQLite's error name by the message: Python 3.10 has no `sqlite_errorname`, and a damaged schema may give none.

    Only 'SQLITE_CORRUPT' is known, else empty.
    """
    text = str(error)
    known = "malformed" in text or "not a database" in text or isinstance(error, UnicodeDecodeError)
    return "SQLITE_CORRUPT" if known else ""


_databases: WeakSet[Database] = WeakSet()
_forking = threading.local()


def _before_fork() -> None:
    """Lock all databases of the process, just before it forks."""
    _forking.held = [database for database in list_weakset(_databases) if database.before_fork()]


def _in_parent() -> None:
    """Unlock, in the parent, the databases that were locked before the fork."""
    for database in _forking.__dict__.pop("held", ()):
        database.after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent)
