"""Disk tier of the answer cache: entries in a SQLite file shared by processes, written by a thread (write-behind)."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from zlib import crc32

from edgeroute.errors import StoreError
from edgeroute.stores.cache.entry_copies import CachedEntry, Entry
from edgeroute.stores.serialisation import pack, unpack
from edgeroute.stores.sqlite_file import Database
from edgeroute.system.process import ForkSafe, initially, per_process
from edgeroute.system.thread_pool import ThreadPool

log = logging.getLogger("edgeroute")

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, at REAL NOT NULL, crc INTEGER NOT NULL, entry BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_at ON answers (at)
"""
_FIND = "SELECT at, crc, CAST(entry AS BLOB) FROM answers WHERE key = ?"
"""Query of an entry. The cast matters in a damaged file, where a column may have another type."""
_FAULTS = (StoreError, UnicodeDecodeError)
"""UnicodeDecodeError: raised by sqlite3 when SQLite quotes a damaged schema in its message."""
WAITING_BYTES = 4 << 20
"""Write-behind buffer limit; beyond it, new entries stay in memory only."""
TOGETHER = 64
"""Maximum entries written in one transaction."""
BUSY_MS = 100
"""Maximum time that a write waits for another process's lock, milliseconds; the entries are dropped then."""
PAUSES_S = (0.001, 0.01, 0.1)
"""Back-off after each failed write: while another process opens the file, SQLite fails at once instead of waiting."""
REST_S = 30.0
"""Time for which the disk is not used after the second consecutive failure, seconds."""


class _BackOff:
    """Back-off of disk reads or writes: one failure is retried at once (a corrupt file was replaced), more after `REST_S`."""

    def __init__(self, what: str) -> None:
        self._what, self._failures, self._until, self._logged_text = what, 0, 0.0, ""

    @property
    def now(self) -> bool:
        """Return True while the disk is not to be used."""
        return self._failures > 1 and monotonic() < self._until

    def succeeded(self) -> None:
        """Reset the number of failures."""
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Count a failure, begin the pause, and log it unless the last one had the same text."""
        self._failures, self._until = self._failures + 1, monotonic() + REST_S
        if str(error) != self._logged_text:
            self._logged_text = str(error)
            log.warning("the cache cannot %s its disk, and goes on in memory: %s", self._what, error)


def _writer() -> ThreadPool:
    """Return a pool of one thread for writes."""
    return ThreadPool("edgeroute-cache", 1, idle_s=5.0)


class Disk(ForkSafe):
    """Cache entries in a SQLite file. A put does no I/O in the caller; a crash loses entries not yet written.

    Args:
        path: path of the SQLite file.
        max_bytes: maximum size of that file, without SQLite's WAL of usually up to 4 MB; the oldest entries are evicted.
        keep_s: entries older than this are deleted, seconds.
        clock: returns the Unix time, seconds.
    """

    _lock, _turn = per_process(threading.RLock), per_process(threading.RLock)  # a signal handler may ask in the middle
    _waiting: deque[tuple[bytes, CachedEntry]] = per_process(deque)
    """Entries to write; a child writes none of its parent's."""
    _waiting_bytes, _begun = initially(0), initially(False)

    def __init__(self, path: Path, max_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._database = Database(path, SCHEMA, version=2, durable=False, busy_s=BUSY_MS / 1000)
        self._max_bytes, self._keep_s, self._clock = max_bytes, keep_s, clock
        self._writer = _writer()
        self._reads, self._writes = _BackOff("read from"), _BackOff("write to")

    def get(self, key: bytes) -> Entry | None:
        """Return the entry of any age; None also if the disk fails, a lock is in the way, or the checksum does not match.

        No read while reads are backed off.
        """
        if self._reads.now:
            return None
        try:
            rows: list[Any] = self._database.read(_FIND, (key,))
        except _FAULTS as e:
            self._reads.failed(e)
            return None
        self._reads.succeeded()
        if not rows or rows[0][1] != _crc(key, rows[0][0], rows[0][2]):
            return None
        return Entry._make([*unpack(rows[0][2]), rows[0][0]])

    def late(self) -> None:
        """Count a read that its caller stopped waiting for as a failure of the disk."""
        self._reads.failed(TimeoutError("it takes too long"))

    def put(self, key: bytes, cached: CachedEntry) -> None:
        """Queue an entry for writing by the thread, replacing an earlier one of the key; a full queue drops it."""
        with self._lock:
            if self._waiting_bytes > WAITING_BYTES:
                return
            self._waiting.append((key, cached))
            self._waiting_bytes += cached.bytes
            scheduled, self._begun = self._begun, True
        if not scheduled and not self._writer.submit(self.flush):
            self._begun = False  # no thread is to be had: the next put tries again, and close writes what waits

    def flush(self) -> None:
        """Write pending entries in the caller's thread; drop them while the disk rests. Blocks for another flush."""
        with self._turn:
            while batch := self._next():
                if not self._writes.now:
                    self._store(batch)

    def close(self) -> None:
        """Write pending entries and close the file; a later call opens it again."""
        self.flush()
        self._writer.close()
        self._writer = _writer()
        self._database.close()

    def _next(self) -> list[tuple[bytes, CachedEntry]]:
        """Take up to `TOGETHER` entries to write from the queue; an empty queue marks the writer as stopped."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            self._waiting_bytes -= sum(cached.bytes for _, cached in batch)
            self._begun = bool(batch)
            return batch

    def _store(self, batch: list[tuple[bytes, CachedEntry]]) -> None:
        """Write entries, with retries after `PAUSES_S`; a last failure drops them. Blocks; the last failure begins a back-off."""
        rows = [(key, float(cached.entry.at), _pack_entry(cached.entry)) for key, cached in batch]
        for pause_s in PAUSES_S:
            try:
                self._insert(rows)
            except _FAULTS as e:  # noqa: PERF203 - there are three tries
                fault: Exception = e
                sleep(pause_s)
            else:
                self._writes.succeeded()
                return
        self._writes.failed(fault)

    def _insert(self, rows: list[tuple[bytes, float, bytes | None]]) -> None:
        """Write entries in one transaction; delete expired ones before.

        An entry that cannot be packed, or does not fit, is left out, its older one deleted all the same.
        """
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM answers WHERE at < ?", (self._clock() - self._keep_s,))
            for key, stored_s, entry in rows:
                connection.execute("DELETE FROM answers WHERE key = ?", (key,))
                if entry is not None and self._make_room(connection, len(entry)):
                    crc = _crc(key, stored_s, entry)
                    connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (key, stored_s, crc, entry))

    def _make_room(self, connection: sqlite3.Connection, size: int) -> bool:
        """Delete the oldest entries until `size` more bytes fit in the file. Return True if they do.

        False, with nothing deleted, for more than the whole file may have.
        """
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        needed, count = size + 4 * page, 1  # the row and its two places in indices may each begin a page
        if needed > self._max_bytes:
            return False
        while True:
            (pages,), (free,) = (connection.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "freelist_count"))
            if (pages - free) * page + needed <= self._max_bytes:
                return True
            oldest = "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers ORDER BY at LIMIT ?)"
            if not connection.execute(oldest, (count,)).rowcount:
                return False
            count *= 2


def _crc(key: bytes, stored_s: float, entry: bytes) -> int:
    """Return a checksum of a row: SQLite detects a broken structure, but not a value changed by worn-out flash."""
    return crc32(entry, crc32(repr(stored_s).encode(), crc32(key)))


def _pack_entry(entry: Entry) -> bytes | None:
    """Return an entry without its time as bytes; None if it would not be restored unchanged."""
    try:
        sure = None if entry.confidence is None else float(entry.confidence)
        return pack(list(entry._replace(confidence=sure)[:-1]))
    except Exception:  # noqa: BLE001 - serialising a user's value may raise anything
        return None
