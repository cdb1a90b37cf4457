"""SQLite file shared by threads and processes (`Database`), and JSON values by name in one, written behind (`KeyValueStore`).

Both are safe to fork. A corrupt file is renamed, and an empty one takes its place. `KeyValueStore` writes in a thread: `kill -9`
loses about a second of changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from weakref import WeakSet, WeakValueDictionary, finalize

from edgeroute.errors import StoreError
from edgeroute.system.files_and_lock_waits import file_identity, held_in_time, wait_s
from edgeroute.system.fork_safety import ForkSafe, initially, list_weakset, per_process, per_process_of
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import Worker
from edgeroute.system.wall_clock import now

BUSY_S = 5.0  # default of how long a transaction waits for another process's, seconds
CLOSE_S = 1.0  # maximum time that an end waits for running transactions before those fail that wait for a process, seconds
READ_BUSY_S = 0.5  # maximum time that a transaction which only reads waits for another process that has the whole file, seconds
LOCKED_S = 0.1  # wait for another process from which on the file counts as locked, seconds
READS_S = 0.005  # maximum time that a read waits for another read of this process, seconds
CHECKPOINT_PAGES = 256  # WAL pages (4 KB each) before a checkpoint: a megabyte, for small disks
_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}
# Connections inherited through fork, kept referenced: SQLite forbids a child even to close them.
_parents: list[sqlite3.Connection | None] = []


class Database(ForkSafe):
    """SQLite file, opened or created at the first transaction; retries while it is locked, and renames it if it is corrupt.

    Args:
        path: path of the file; its folder is created. Mode 0600.
        schema: idempotent statements (CREATE TABLE IF NOT EXISTS ...).
        version: schema version (`user_version`); a file of another version is refused.
        busy_s: how long to wait for another process's transaction, seconds.
        durable: if True, a committed transaction survives a power cut (synchronous=FULL). It survives a process crash anyway.
        lenient: if True, text that is not valid UTF-8 is read as lone surrogates; if False, reading it is an error.
        check: called with each connection to a file as it is opened; raises sqlite3.DatabaseError if the content is damaged.
            A file without a schema is passed, too: a new file has its schema before it has its path. That of `read` cannot write.
    """

    _lock, _reads = per_process(SafeLock), per_process(SafeLock)
    _connection: sqlite3.Connection | None = initially(None, _parents.append)
    _reader: sqlite3.Connection | None = initially(None, _parents.append)
    locked = initially(False)  # True if a transaction has waited `LOCKED_S` for another process, until the next one that writes
    # How often `close` has made waiting transactions fail, and that number when the current transaction began.
    _closes, _begun_after = initially(0), initially(0)
    # Connections to close. A finaliser holds this set too, so that an object dropped without `close` leaves none open.
    _opened: set[sqlite3.Connection] = per_process_of(lambda self: _closed_at_end(self), set.clear)  # noqa: PLW0108 - defined below

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        version: int = 1,
        durable: bool,
        busy_s: float = BUSY_S,
        lenient: bool = False,
        check: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self.path, self._busy_s, self._lenient, self._check_content = path, busy_s, lenient, check
        self._version, self._durable = version, durable
        self._create_script = f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version={version}; COMMIT"
        self._wait_s = busy_s
        self._file: tuple[int, int] | None = None
        self._read_file: tuple[int, int] | None = None
        _databases.add(self)

    def before_fork(self) -> bool:
        """Take both locks, waiting up to `BUSY_S` for each, and close the connections. Return True if the locks were taken.

        A child would inherit SQLite's locks of files, and wait for ever. A connection in a transaction of this thread stays open.
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
        """Run the `with` block in a transaction, opening or creating the file if needed, and commit; an exception rolls back.

        One transaction runs at a time in the process, and entering blocks up to `busy_s` for a writer of another process, or less
        in `limited_waits`; with `write=False` a writer delays nothing, but who locks the whole file does, up to `READ_BUSY_S`.
        A nested call joins the outer transaction. SQLite's errors and OSErrors of the block itself come as StoreError, too.

        Raises:
            StoreError: the disk is full, read-only or broken, the wait was too long, or `close` ended it. A corrupt file has been
                renamed; the next call creates a new one.
        """
        closes = self._closes
        with held_in_time(self._lock) as is_held:
            if not is_held:
                raise StoreError(f"{self.path}: another thread waits for it")
            self._begun_after, self._wait_s = closes, self._busy_s if write else min(self._busy_s, READ_BUSY_S)
            try:
                connection = self._open()
                if connection.in_transaction:  # of this thread, since it holds the lock
                    yield connection
                    return
                self._retry(connection.execute, "BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    self.locked = self.locked and not write
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
        """Return the rows of a query, on a read-only connection; no rows if a lock would have to be waited for beyond 5 ms.

        Transactions of other threads and processes do not delay the call. No rows either if there is no file or no schema yet.

        Raises:
            StoreError: the file cannot be read, or is of another version. A corrupt one has been renamed, if no writer was busy.
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
        """Return the read-only connection, opened again if the file was replaced; None: no file or schema. Raises as `_check`."""
        current = file_identity(self.path)
        if self._reader is not None and current != self._read_file:
            self._drop_reader()  # the file was quarantined, or deleted
        if self._reader is None and current is not None:
            self._check_regular()
            address, self._read_file = f"{self.path.absolute().as_uri()}?mode=ro", current
            connection = sqlite3.connect(address, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                self._check(version)
                if self._check_content is not None:
                    self._check_content(connection)
                elif not version:
                    connection.close()
                    return None
            except BaseException:
                connection.close()
                raise
            self._reader = connection
            self._opened.add(connection)
        return self._reader

    def _drop_reader(self) -> None:
        """Close the read-only connection, if open; errors of SQLite are suppressed."""
        if self._reader is not None:
            self._opened.discard(self._reader)
            _close_each([self._reader])
            self._reader = None

    def _check_regular(self) -> None:
        """Raise StoreError unless the path is a regular file: opening a FIFO would wait, and a device has no content to lose."""
        if not self.path.is_file():
            raise StoreError(f"{self.path} is not a regular file")

    def _check(self, version: int) -> None:
        """Raise StoreError for a file of another schema version; 0 is a file without a schema."""
        if version not in {0, self._version}:
            raise StoreError(f"{self.path} is of version {version}, and this edgeroute knows version {self._version}")

    def _open(self) -> sqlite3.Connection:
        """Return the connection, opened if needed: create the file, set the pragmas, check version and content or run the schema.

        Another file at the path is opened in place of the present one. Raises StoreError for another version, DatabaseError for
        an empty file or damaged content.
        """
        if self._connection is not None and not self._connection.in_transaction and file_identity(self.path) != self._file:
            self._drop()  # another process has quarantined the file: writes to it would be lost
        if self._connection is None:
            self._file = file_identity(self.path)
            if self._file is None:
                self._create()
            else:
                self._check_regular()
                if not self.path.stat().st_size:
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
                    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
                if self._check_content is not None:
                    self._check_content(connection)
                elif not version:
                    self._retry(connection.executescript, self._create_script)
            except BaseException:
                connection.close()
                raise
            self._opened.add(connection)
            self._connection, self._file = connection, file_identity(self.path)
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
        began, most_s = monotonic(), wait_s(self._wait_s)
        while True:
            try:
                return run(statement)
            except sqlite3.OperationalError as e:  # noqa: PERF203 - it waits
                is_locked, waited_s = "locked" in str(e), monotonic() - began
                self.locked |= is_locked and waited_s >= LOCKED_S
                if not is_locked or self._closes != self._begun_after or waited_s >= most_s:
                    raise
                sleep(0.001 + 0.002 * random.random())  # noqa: S311 - jitter, so that two processes do not collide again

    def _translate(self, error: sqlite3.Error | UnicodeDecodeError, file: tuple[int, int] | None = None) -> StoreError:
        """Close the connection, rename the file if it is corrupt, and return the StoreError to raise.

        Logs the renaming. A file that was replaced meanwhile is not renamed: `file` is the identity of the one that failed, None
        for the connection's.
        """
        self._drop()
        if getattr(error, "sqlite_errorname", _guess(error)) in _CORRUPT and file_identity(self.path) == (file or self._file):
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
            _close_each([self._connection])
            self._connection = None

    def close(self) -> None:
        """Close the file, after a transaction in progress, by `end_waits`; the next transaction opens it again."""
        with self._reads:
            self._drop_reader()  # first: the last connection tidies up, if it may write
        self.end_waits()
        with self._lock:
            self._drop()

    def end_waits(self) -> None:
        """Wait for running transactions up to `CLOSE_S`; then make those fail, soon, that wait for another process."""
        if self._lock.acquire(timeout=wait_s(CLOSE_S)):
            self._lock.release()
        else:
            self._closes += 1  # whoever waits by now, for the lock or for the file, fails


def _closed_at_end(database: Database) -> set[sqlite3.Connection]:
    """Return an empty set; the connections in it are closed as the database is collected, but not at the program's exit."""
    opened: set[sqlite3.Connection] = set()
    finalize(database, _close_each, opened).atexit = False
    return opened


def _close_each(connections: Iterable[sqlite3.Connection]) -> None:
    """Close connections, ignoring errors."""
    for connection in connections:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


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
    """Lock all databases of the process just before it forks, and note them for `_in_parent`.

    One whose locks are not free in time is left out.
    """
    _forking.held = [database for database in list_weakset(_databases) if database.before_fork()]


def _in_parent() -> None:
    """Unlock, in the parent, the databases that were locked before the fork."""
    for database in _forking.__dict__.pop("held", ()):
        database.after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent)


# Key-value store for small JSON values, kept in memory and written to a SQLite file about a second later (write-behind).

DELAY_S = 1.0  # write-behind delay, seconds. Values put within it are lost if the process is killed.
# Statements for number and sum of the checksums in the column `crc` of a table; who deletes rows takes them from the total.
TOTAL = """
CREATE TABLE total (rows INTEGER NOT NULL, crc INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER added AFTER INSERT ON {0} BEGIN UPDATE total SET rows = rows + 1, crc = crc + NEW.crc; END;
CREATE TRIGGER changed AFTER UPDATE ON {0} BEGIN UPDATE total SET crc = crc - OLD.crc + NEW.crc; END"""
_SCHEMA = f"""
CREATE TABLE kept (name TEXT PRIMARY KEY, value TEXT NOT NULL, updated REAL NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
{TOTAL.format("kept")};
CREATE TRIGGER deleted AFTER DELETE ON kept BEGIN UPDATE total SET rows = rows - 1, crc = crc - OLD.crc; END
"""  # noqa: S608 - constants
_PUT = """
INSERT INTO kept VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated = excluded.updated, crc = excluded.crc
"""
_MATCH = "substr(name, 1, ?) = ?"


class KeyValueStore(ForkSafe):
    """JSON values by name, in a file shared by processes. The last writer of a name wins.

    Disk errors are never raised, except by `rows`: each distinct error is logged once, and values stay in memory meanwhile. A
    damaged value is deleted with a warning. Each value has a checksum, and the file their number and sum: what is lost is noticed
    as the file is opened, and the row `DAMAGED` has the time.

    Args:
        path: path of the file.
    """

    DAMAGED = "damaged"  # name of the value whose time is that of the latest damage
    _lock = per_process(SafeLock)

    def __init__(self, path: Path) -> None:
        self.path = path
        # None once it is closed.
        self._database: Database | None = Database(path, _SCHEMA, version=2, durable=True, lenient=True, check=self._check)
        # name -> JSON and Unix time of the put, of values not yet written to the file.
        self._fresh: dict[str, tuple[str, float]] = {}
        self._sums: dict[str, Counter[str]] = {}  # name -> numbers that are not added to those in the file yet
        self._logged: set[str] = set()
        self._users: WeakSet[object] = WeakSet()
        self._writer = Worker("edgeroute-state", self._write, "state cannot be written", first_s=DELAY_S, retry_s=DELAY_S)

    @property
    def locked(self) -> bool:
        """True if another process has the file, as `Database.locked` says."""
        return self._database is not None and self._database.locked

    def after_fork(self) -> None:
        """Reset the state of a forked child; unwritten values are dropped, too, unless it is closed: the parent writes them."""
        super().after_fork()
        if self._database is not None:
            self._fresh, self._sums = {}, {}

    @classmethod
    def shared_store(cls, path: Path, user: object) -> KeyValueStore:
        """Return the process-wide store of this file, created at the first call, and register `user` with it until `leave`.

        The registry refers to store and users weakly.
        """
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

        A damaged value is deleted; a failing disk is logged once. What `add` has not written yet is not included.
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

        Unwritten values are left out; [] if the store is closed.

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

    def _check(self, connection: sqlite3.Connection) -> None:
        """Check all values and their number in a file that is opened.

        Delete damaged ones, note the time under `DAMAGED`, and log it. Nothing is written if all are sound. Raises
        sqlite3.DatabaseError if the file as a whole is damaged, or a name is.
        """
        number, damaged, is_whole = read_checked(connection, "SELECT name, value, updated, crc FROM kept")
        if is_whole:
            return
        names = [row[0] for row in damaged]
        if any(type(name) is not str or name != name.encode(errors="replace").decode() for name in names):
            raise sqlite3.DatabaseError("malformed: a name is no text")
        log.error("%s is damaged: of its values %d are there, %d of them damaged", self.path, number, len(names))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM total")
        for name in names:
            log.warning("the value of %r in %s is damaged, and was deleted", name, self.path)
            connection.execute("DELETE FROM kept WHERE name = ?", (name,))
        connection.execute("INSERT INTO total SELECT count(*), total(crc) FROM kept")
        connection.execute(_PUT, (self.DAMAGED, "null", instant := now(), checksum(self.DAMAGED, "null", instant)))
        connection.execute("COMMIT")

    def put(self, name: str, value: Any) -> None:
        """Store a snapshot of the value in memory; a thread writes it to the file about a second later.

        Replaces an earlier value; stays in memory if the store is closed. Raises TypeError or ValueError for what JSON does not
        have.
        """
        text = json.dumps(value, separators=(",", ":"))
        with self._lock:
            self._fresh[name] = text, now()
        if self._database is not None:
            self._writer.start()  # without a thread, a later put or close writes it

    def add(self, sums: Mapping[str, Mapping[str, int]]) -> None:
        """Add to the numbers of values that hold numbers by key; a thread does it about a second later, all in one transaction.

        So those of several processes add up. Numbers that become 0 or less are deleted. Those that come after `close` are lost.
        """
        with self._lock:
            for name, numbers in sums.items():
                self._sums.setdefault(name, Counter()).update(numbers)
        if self._database is not None:
            self._writer.start()

    def hurry(self) -> None:
        """Have pending values written now, by the thread. Does not block."""
        if self._database is not None:
            self._writer.nudge()

    def forget(self, prefix: str, older_than_s: float) -> None:
        """Delete names that begin with `prefix` and were last put more than `older_than_s` seconds ago, from memory and file.

        A failing disk is logged once, and changes nothing there.
        """
        before = now() - older_than_s
        with self._lock:
            for name in [n for n, (_, updated) in self._fresh.items() if n.startswith(prefix) and updated < before]:
                del self._fresh[name]
        self._rows(f"DELETE FROM kept WHERE {_MATCH} AND updated < ?", (len(prefix), prefix, before))  # noqa: S608 - constants

    def flush(self) -> bool:
        """Write pending values to the file now, and add pending numbers to those there. Return True if all were written.

        Returns False once it is closed, and after a failure, which is logged; what could not be written stays pending.
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

        Blocks for the writer thread, which waits no longer for another process then. Logs how many values are not written.
        """
        self._writer.close(0.0)
        if (database := self._database) is not None:
            database.end_waits()
            self._writer.close()
            if not self.flush():
                log.error("%s: %d values are not written as it is closed, and lost", self.path, len({*self._fresh, *self._sums}))
            self._database = None
            database.close()

    def _write(self) -> float | None:
        """Flush for the writer thread; return the seconds until the next flush, or None: nothing is pending, or it failed.

        After a failure the next put starts it again.
        """
        return DELAY_S if self.flush() and (self._fresh or self._sums) else None

    def _parse_values(self, texts: Iterable[tuple[str, Any]]) -> Iterator[Any]:
        """Yield the values of (name, JSON) pairs. Those that cannot be parsed are deleted in memory and file, with a warning."""
        for name, text in texts:
            try:
                value = json.loads(text.encode())  # fails for text that is not valid UTF-8
            except (ValueError, AttributeError, RecursionError) as e:  # noqa: PERF203 - the loop is there for it
                self.drop(name, e)
            else:
                yield value

    def _rows(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        """Run a statement and return its rows; none if the store is closed or the disk fails, which is logged once."""
        if (database := self._database) is None:
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


def checksum(*row: object) -> int:
    """Return the checksum of a row."""
    return zlib.crc32(repr(row).encode(errors="backslashreplace"))


def read_checked(connection: sqlite3.Connection, query: str) -> tuple[int, list[Any], bool]:
    """Check a query's rows, whose last value is the checksum. Return their number, the damaged ones, and True if all are whole.

    False also if others than these are in `total`. Raises sqlite3.DatabaseError if the file as a whole is damaged.
    """
    connection.execute("BEGIN")
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        rows, total = (connection.execute(each).fetchall() for each in (query, "SELECT rows, crc FROM total"))
    except sqlite3.OperationalError as e:
        found = f"malformed schema: {e}"
        if "no such" not in found and "UTF-8" not in found:
            raise
    finally:
        connection.execute("ROLLBACK")
    if found != "ok":
        raise sqlite3.DatabaseError(f"malformed: {found}")
    damaged = [row for row in rows if row[-1] != checksum(*row[:-1])]
    return len(rows), damaged, not damaged and total == [(len(rows), sum(row[-1] for row in rows))]


class _Shared(ForkSafe):
    """Registry of the stores of `KeyValueStore.shared_store`, by real path."""

    lock = per_process(SafeLock)

    def __init__(self) -> None:
        self.stores: WeakValueDictionary[str, KeyValueStore] = WeakValueDictionary()


_shared = _Shared()
