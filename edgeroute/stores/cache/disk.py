"""Second cache tier: entries in a SQLite file shared by processes, written behind."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from edgeroute.errors import StoreError
from edgeroute.stores.cache.entry import CachedEntry, Entry
from edgeroute.stores.mixed import pack, unpack
from edgeroute.stores.sqlite import Database
from edgeroute.system.process import renew_after_fork
from edgeroute.system.threads import ThreadPool

log = logging.getLogger("edgeroute")

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, at REAL NOT NULL, crc INTEGER NOT NULL, entry TEXT NOT NULL, outputs BLOB
);
CREATE INDEX IF NOT EXISTS answers_at ON answers (at)
"""
_FIND = "SELECT at, crc, CAST(entry AS TEXT), CAST(outputs AS BLOB) FROM answers WHERE key = ?"
"""The casts matter in a damaged file, where a column may have another type."""
_FAULTS = (StoreError, UnicodeDecodeError)
"""UnicodeDecodeError: raised by sqlite3 when SQLite quotes a damaged schema in its message."""
WAITING_BYTES = 4 << 20
"""Write-behind buffer limit; beyond it, new entries stay in memory only."""
MIXED_PARTS = 4
"""Parts of the JSON of an entry whose value and outputs are elsewhere."""
TOGETHER = 64
"""Entries per transaction."""
BUSY_MS = 100
"""How long to wait for another process's lock before going on without the disk."""
PAUSES_S = (0.001, 0.01, 0.1)
"""Back-off after each failed write: while another process opens the file, SQLite fails at once instead of waiting."""
REST_S = 30.0
"""After the second consecutive failure the disk is not used for so long."""


class _Row(NamedTuple):
    entry: str
    outputs: bytes | None


class _Resting:
    """Back-off for the disk: one failure is retried at once (a corrupt file was replaced), later ones after `REST_S`."""

    def __init__(self, what: str) -> None:
        self._what, self._failures, self._until, self._said = what, 0, 0.0, ""

    @property
    def now(self) -> bool:
        return self._failures > 1 and monotonic() < self._until

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, error: Exception) -> None:
        self._failures, self._until = self._failures + 1, monotonic() + REST_S
        if str(error) != self._said:
            self._said = str(error)
            log.warning("the cache cannot %s its disk, and goes on in memory: %s", self._what, error)


def _writer() -> ThreadPool:
    return ThreadPool("edgeroute-cache", 1, idle_s=5.0)


class Disk:
    """Writes in batches from its own thread: a put does no I/O in the caller; a crash loses entries not yet written.

    Args:
        path: of the SQLite file.
        max_bytes: of that file, without SQLite's WAL of usually up to 4 MB; the oldest entries are evicted.
        keep_s: entries older than this are deleted, seconds.
        clock: Unix time, seconds.
    """

    def __init__(self, path: Path, max_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._database = Database(path, SCHEMA, durable=False, busy_s=BUSY_MS / 1000)
        self._max_bytes, self._keep_s, self._clock = max_bytes, keep_s, clock
        self._writer = _writer()
        self._reading, self._writing = _Resting("read from"), _Resting("write to")
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Drops pending entries: the parent writes them."""
        self._lock, self._turn = threading.RLock(), threading.RLock()  # a signal handler may ask in the middle
        self._waiting: deque[tuple[bytes, CachedEntry]] = deque()
        self._waiting_bytes, self._begun = 0, False

    def get(self, key: bytes) -> Entry | None:
        """The entry, of any age; None also where the disk fails, a lock is in the way, or the entry's checksum does not match."""
        if self._reading.now:
            return None
        try:
            rows: list[Any] = self._database.read(_FIND, (key,))
        except _FAULTS as e:
            self._reading.failed(e)
            return None
        self._reading.succeeded()
        if not rows or rows[0][1] != _crc(key, rows[0][0], *rows[0][2:]):
            return None
        at, _, *packed = rows[0]
        return _unpacked(at, *packed)

    def late(self) -> None:
        """Notes that a reader did not wait for it any longer."""
        self._reading.failed(TimeoutError("it takes too long"))

    def put(self, key: bytes, kept: CachedEntry) -> None:
        """Queues the entry for writing, replacing an earlier one of the key."""
        with self._lock:
            if self._waiting_bytes > WAITING_BYTES:
                return
            self._waiting.append((key, kept))
            self._waiting_bytes += kept.bytes
            begun, self._begun = self._begun, True
        if not begun and not self._writer.submit(self.flush):
            self._begun = False  # no thread is to be had: the next put tries again, and close writes what waits

    def flush(self) -> None:
        """Writes pending entries, in the caller's thread."""
        with self._turn:
            while batch := self._next():
                if not self._writing.now:
                    self._store(batch)

    def close(self) -> None:
        """Writes pending entries and closes the file; a later call opens it again."""
        self.flush()
        self._writer.close()
        self._writer = _writer()
        self._database.close()

    def _next(self) -> list[tuple[bytes, CachedEntry]]:
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            self._waiting_bytes -= sum(kept.bytes for _, kept in batch)
            self._begun = bool(batch)
            return batch

    def _store(self, batch: list[tuple[bytes, CachedEntry]]) -> None:
        rows = [(key, float(kept.entry.at), _packed(kept.entry)) for key, kept in batch]
        for pause_s in PAUSES_S:
            try:
                self._insert(rows)
            except _FAULTS as e:  # noqa: PERF203 - there are three tries
                fault: Exception = e
                sleep(pause_s)
            else:
                self._writing.succeeded()
                return
        self._writing.failed(fault)

    def _insert(self, rows: list[tuple[bytes, float, _Row | None]]) -> None:
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM answers WHERE at < ?", (self._clock() - self._keep_s,))
            for key, at, row in rows:
                connection.execute("DELETE FROM answers WHERE key = ?", (key,))
                if row is not None and self._make_room(connection, len(row.entry) + len(row.outputs or b"")):
                    connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", (key, at, _crc(key, at, *row), *row))

    def _make_room(self, connection: sqlite3.Connection, size: int) -> bool:
        """Evicts the oldest entries until `size` more bytes fit -> whether they do."""
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


def _crc(key: bytes, at: float, entry: str, outputs: bytes | None) -> int:
    """Checksum of a row: SQLite detects a broken structure, but not a value changed by worn-out flash."""
    return crc32(outputs or b"", crc32(f"{at!r} {entry}".encode(), crc32(key)))


def _packed(entry: Entry) -> _Row | None:
    """Serialises to JSON and .npy, and what is nested or has bytes in it as `mixed`; None: it would not be restored unchanged."""
    return _plain(entry) or _mixed(entry)


def _mixed(entry: Entry) -> _Row | None:
    value, confidence, outputs, *rest, _ = entry
    try:
        packed, text = pack([value, outputs]), json.dumps([None if confidence is None else float(confidence), *rest])
    except Exception:  # noqa: BLE001 - likewise
        return None
    return None if packed is None else _Row(text, packed)


def _plain(entry: Entry) -> _Row | None:
    value, confidence, outputs, *rest, _ = entry
    names: Any = None
    arrays: list[Any] = []
    if type(outputs) is np.ndarray:
        names, arrays, outputs = "", [outputs], None
    elif type(outputs) is dict and outputs and all(type(array) is np.ndarray for array in outputs.values()):
        names, arrays, outputs = [*outputs], [*outputs.values()], None
    kind = "tuple" if type(outputs) is tuple else ""  # as a callable returns: (value, confidence)
    plain = [value, list(outputs) if kind else outputs, None if names is None else names]
    try:
        text = json.dumps([*plain, kind, None if confidence is None else float(confidence), *rest])
        if json.loads(text)[: len(plain)] != plain or any(a.dtype.isbuiltin != 1 or a.dtype.hasobject for a in arrays):
            return None
    except Exception:  # noqa: BLE001 - serialising or comparing a user's value may raise anything
        return None
    file = io.BytesIO()
    for array in arrays:
        np.save(file, array, allow_pickle=False)
    return _Row(text, file.getvalue() if arrays else None)


def _unpacked(at: float, entry: str, blob: bytes | None) -> Entry:
    found = json.loads(entry)
    if len(found) == MIXED_PARTS:
        confidence, leg, side, reason = found
        value, outputs = unpack(blob or b"")
        return Entry(value, confidence, outputs, leg, side, reason, at)
    value, outputs, names, kind, confidence, leg, side, reason = found
    if kind == "tuple":
        outputs = tuple(outputs)
    if blob is not None:
        file = io.BytesIO(blob)
        arrays = [np.load(file, allow_pickle=False) for _ in names or [""]]
        outputs = dict(zip(names, arrays, strict=True)) if names else arrays[0]
    return Entry(value, confidence, outputs, leg, side, reason, at)
