"""Answer cache (`Cache`): LRU in memory, disk tier with a writer's thread (`Disk`), refusals; singleflight by key (`Flights`)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal, NamedTuple
from zlib import crc32

from edgeroute.core.setting_unit_types import Bytes, Seconds
from edgeroute.errors import StoreError
from edgeroute.stores.cache.cache_entries_and_copies import CachedEntry, Entry, private_copy
from edgeroute.stores.cache.interrupt_safe_lru import Recent
from edgeroute.stores.cache.semantic_cache import Semantic
from edgeroute.stores.serialisation import pack, unpack
from edgeroute.stores.sqlite_file_and_key_values import Database
from edgeroute.system.fork_safety import ForkSafe, initially, per_process, per_process_of
from edgeroute.system.read_and_check_signatures import check_units, data_classes, plain_number
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import ThreadPool
from edgeroute.system.wall_clock import now

# Disk tier of the answer cache: entries in a SQLite file shared by processes, written by a thread (write-behind).


SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, at REAL NOT NULL, crc INTEGER NOT NULL, entry BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_at ON answers (at)
"""
# Query of an entry. The cast matters in a damaged file, where a column may have another type.
_FIND = "SELECT at, crc, CAST(entry AS BLOB) FROM answers WHERE key = ?"
WAITING_BYTES = 4 << 20  # write-behind buffer limit; beyond it, new entries stay in memory only
TOGETHER = 64  # maximum entries written in one transaction
BUSY_MS = 100  # maximum time that a write waits for another process's lock, milliseconds; the entries are dropped then
# Back-off after each failed write: while another process opens the file, SQLite fails at once instead of waiting.
PAUSES_S = (0.001, 0.01, 0.1)
REST_S = 30.0  # time for which the disk is not used after the second consecutive failure, seconds


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
        """Count a failure, and log it unless the last one had the same text.

        From the second in a row, `now` is True for `REST_S`.
        """
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

    _lock, _turn = per_process(SafeLock), per_process(SafeLock)  # a signal handler may ask in the middle
    _waiting: deque[tuple[bytes, CachedEntry]] = per_process(deque)  # entries to write; a child writes none of its parent's
    _waiting_bytes, _begun = initially(0), initially(False)

    def __init__(self, path: Path, max_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._database = Database(path, SCHEMA, version=2, durable=False, busy_s=BUSY_MS / 1000)
        self._max_bytes, self._keep_s, self._clock = max_bytes, keep_s, clock
        self._writer = _writer()
        self._reads, self._writes = _BackOff("read from"), _BackOff("write to")

    def get(self, key: bytes) -> Entry | None:
        """Return the entry of any age; None also if the disk fails, a lock is in the way, or the checksum does not match.

        A failure counts towards the back-off of reads; no read during it.
        """
        if self._reads.now:
            return None
        try:
            rows: list[Any] = self._database.read(_FIND, (key,))
        except StoreError as e:
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
        """Queue an entry, which replaces an earlier one of the key in the file, and start the writer's thread if it rests.

        The entry is dropped silently if more than `WAITING_BYTES` wait.
        """
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
        """Write pending entries, end the writer's thread, and close the file; a later call opens it again. Blocks."""
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
            except StoreError as e:  # noqa: PERF203 - there are three tries
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

        False, with nothing deleted, for more than the whole file may have; False too if deleting all is not enough.
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


State = Literal["fresh", "revalidate", "stale"]
REFUSALS = 4096  # capacity of the negative cache; least recently used refusals are evicted


class CacheStats(NamedTuple):
    """Counters of the cache since it was created."""

    hits: int  # fresh entries returned from memory
    disk_hits: int  # fresh entries returned from disk
    misses: int  # look-ups without an entry that could be used
    stale: int  # expired entries returned by `lookup`
    stored: int  # entries put
    evicted: int  # entries evicted from memory
    bytes: int  # current size in memory


class Cache(ForkSafe):
    """Answers by key, in memory and in an optional file. Thread-safe; a forked child starts with empty memory and the same file.

    The age of an entry counts from its `at`. A time in the future (the clock was set back) counts from the first lookup.

    Args:
        max_bytes: maximum size in memory, contents and overhead.
        ttl_s: how long an entry is fresh, seconds; 0: never.
        stale_while_revalidate_s: how long after that an entry may be returned while it is refreshed, seconds.
        stale_if_offline_s: how long after its time `offline="stale"` returns an entry if the cloud is unavailable, seconds.
        negative_ttl_s: how long a refusal is cached, seconds.
        disk: path of the disk tier's file; None: memory only.
        disk_max_bytes: maximum size of the file on disk.
        never: data classes that are not cached.
        semantic: semantic cache for text inputs; this cache sets its `ttl_s` and `clock`.
        clock: returns the Unix time, seconds.

    Raises:
        PolicyError: a size or a time is not valid.
    """

    _lock = per_process(SafeLock)
    # Empty in a child: another thread of the parent may have been in the middle of a change.
    _recent: Recent[bytes, CachedEntry] = per_process_of(lambda self: Recent(self._max_bytes, attrgetter("bytes")))
    _refusals: Recent[bytes, tuple[str, int, float]] = per_process(lambda: Recent(REFUSALS))
    _hits, _disk_hits, _misses = initially(0), initially(0), initially(0)
    _stale, _stored, _evicted = initially(0), initially(0), initially(0)

    def __init__(
        self,
        *,
        max_bytes: Bytes = 16 << 20,
        ttl_s: Seconds = 3600.0,
        stale_while_revalidate_s: Seconds = 0.0,
        stale_if_offline_s: Seconds = 86400.0,
        negative_ttl_s: Seconds = 60.0,
        disk: str | Path | None = None,
        disk_max_bytes: Bytes = 256 << 20,
        never: frozenset[str] = frozenset(),
        semantic: Semantic | None = None,
        clock: Callable[[], float] = now,
    ) -> None:
        check_units(Cache, locals())
        max_bytes, disk_max_bytes = plain_number(max_bytes), plain_number(disk_max_bytes)
        ages_s = ttl_s, stale_while_revalidate_s, stale_if_offline_s, negative_ttl_s
        ttl_s, stale_while_revalidate_s, stale_if_offline_s, negative_ttl_s = map(plain_number, ages_s)
        self.never, self.semantic = data_classes("never", never), semantic
        self._max_bytes, self._ttl_s, self._negative_ttl_s, self._clock = max_bytes, ttl_s, negative_ttl_s, clock
        self._renewing_s, self._offline_s = ttl_s + stale_while_revalidate_s, ttl_s + stale_if_offline_s
        keep_s = max(self._renewing_s, self._offline_s)
        self._disk = None if disk is None else Disk(Path(disk).absolute(), disk_max_bytes, keep_s, clock)
        if semantic is not None:
            semantic.ttl_s, semantic.clock = ttl_s, clock

    def get(self, key: bytes) -> Entry | None:
        """Return the entry if it is fresh, else None; counts a hit or a miss. Arrays are read-only, mutable values are copies.

        Reads the disk if memory has no fresh one, and takes a newer entry from there into memory. One too old for any use is
        deleted from memory.
        """
        return self.lookup(key, late=False)[0]

    def lookup(
        self, key: bytes, fetched: Mapping[bytes, Entry] | None = None, *, late: bool = True
    ) -> tuple[Entry | None, State | None]:
        """Return the entry and its state: fresh, revalidate (usable, but to be refreshed), or stale (for failures of the cloud).

        Without a fresh entry in memory, one from disk is used if it is newer, and taken into memory. An entry beyond all limits
        is deleted from memory, and (None, None) is returned. One dated in the future is dated now, on disk too. Counts a hit, a
        miss or a stale entry.

        Args:
            key: key of the answer.
            fetched: result of `fetch`, used in place of the disk; None: the disk is read.
            late: expired entries are returned, too; else they count as misses.
        """
        now_s = self._clock()
        with self._lock:
            seen = self._recent.get(key)
            if fresh := seen is not None and 0 <= now_s - seen.entry.at < self._ttl_s:
                self._hits += 1
        if seen is not None and fresh:
            return seen.for_caller(), "fresh"
        entry = (self.fetch([key]) if fetched is None else fetched).get(key)
        cached = seen
        if entry is not None and (seen is None or entry.at > seen.entry.at):  # another process may have refreshed it
            cached = private_copy(entry)
        if cached is not None and cached.entry.at > now_s:
            cached = cached._replace(entry=cached.entry._replace(at=now_s))
            if self._disk is not None:
                self._disk.put(key, cached)  # else it would be fresh again each time it is read from there
        state = None if cached is None else self._state(now_s - cached.entry.at)
        with self._lock:
            if self._recent.get(key) is seen:  # no newer entry was put meanwhile
                if cached is None or state is None:
                    self._recent.pop(key)
                elif cached is not seen:
                    self._evicted += self._recent.put(key, cached)
            if cached is None or state is None or (state != "fresh" and not late):
                self._misses += 1
                return None, None
            if state != "fresh":
                self._stale += 1
            elif self._disk is None:
                self._hits += 1
            else:
                self._disk_hits += 1
        return cached.for_caller(), state

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return the keys of which memory has no fresh entry, for `fetch`; none without a disk. Counts nothing."""
        if self._disk is None:
            return []
        now_s = self._clock()
        with self._lock:
            return [
                key for key in keys if (seen := self._recent.get(key)) is None or not 0 <= now_s - seen.entry.at < self._ttl_s
            ]

    def fetch(self, keys: Iterable[bytes]) -> dict[bytes, Entry]:
        """Read the entries of these keys from disk, for `lookup`. Waits for the disk, but never for a lock.

        Missing or damaged entries are left out.
        """
        return {} if self._disk is None else {key: entry for key in keys if (entry := self._disk.get(key)) is not None}

    def late(self) -> None:
        """Report that a `fetch` took too long: after two reports the disk is not used for a while."""
        if self._disk is not None:
            self._disk.late()

    def put(self, key: bytes, entry: Entry, data_class: str | None = None) -> None:
        """Store a copy of the entry in memory, evicting others if needed, and queue it for the disk, without waiting for it.

        Not stored: entries of a class in `never`, or that cannot be copied. An entry that alone exceeds `max_bytes` is stored on
        disk only, which has its own `disk_max_bytes`, and takes only values that are restored unchanged: JSON values, with
        outputs that are arrays or JSON values. An entry dated in the future is dated now.
        """
        cached = None if data_class in self.never else private_copy(entry._replace(at=min(entry.at, self._clock())))
        if cached is not None:
            with self._lock:
                self._evicted += self._recent.put(key, cached)
                self._stored += 1
            if self._disk is not None:
                self._disk.put(key, cached)

    def refuse(self, key: bytes, text: str, status: int) -> None:
        """Cache that the endpoint refused this input, with its message and HTTP status."""
        with self._lock:
            self._refusals.put(key, (text, status, self._clock()))

    def refused(self, key: bytes) -> tuple[str, int] | None:
        """Return message and status of a refusal within the last `negative_ttl_s`, else None. The refusal stays stored."""
        now_s = self._clock()
        with self._lock:
            text, status, since = self._refusals.get(key) or ("", 0, -float("inf"))
        return (text, status) if 0 <= now_s - since < self._negative_ttl_s else None

    def stats(self) -> CacheStats:
        """Return the counters so far."""
        with self._lock:
            counts = self._hits, self._disk_hits, self._misses, self._stale, self._stored, self._evicted
            return CacheStats(*counts, self._recent.size)

    def flush(self) -> None:
        """Write pending entries to disk now; usually a thread writes them within moments.

        Blocks. Entries that cannot be written are dropped.
        """
        if self._disk is not None:
            self._disk.flush()

    def close(self) -> None:
        """Write pending entries to disk and close it; a later call opens it again. Blocks."""
        if self._disk is not None:
            self._disk.close()

    def _state(self, age_s: float) -> State | None:
        """Return the state of an entry of this age; None if it is too old for any use."""
        if age_s < self._ttl_s:
            return "fresh"
        if age_s < self._renewing_s:
            return "revalidate"
        return "stale" if age_s < self._offline_s else None


# Singleflight: one of several equal concurrent requests (the leader) runs, and the others (followers) wait for its result.


class _Shared:
    """State shared by the leader and the followers of one flight."""

    __slots__ = ("future", "held", "thread")

    def __init__(self, held: bool) -> None:
        self.held, self.thread = held, threading.get_ident()
        self.future: concurrent.futures.Future[Any] | None = None  # created for the first follower: most flights have none


class Flight:
    """Part of one caller in a flight, which the leader ends in any case, with `end`.

    `held`: the leader's answer is a stream that goes on only while its caller reads.
    """

    __slots__ = ("_flights", "_key", "_shared", "held", "leads")

    def __init__(self, flights: Flights, key: bytes, shared: _Shared, leads: bool) -> None:
        self._flights, self._key, self._shared, self.held, self.leads = flights, key, shared, shared.held, leads

    def end(self, make: Callable[[], Any] | None = None) -> None:
        """End the flight, and pass `make()` to all followers, or release them without a result.

        `make` is not called if there are none. A no-op for a follower, or once the flight has ended.
        """
        if self.leads:
            self._flights.end(self._key, self._shared, make)

    def wait(self, timeout_s: float) -> Any:
        """Block a follower for the leader's result, up to `timeout_s` seconds. Return None if the leader failed or time ran out.

        A leader of the same thread is lower on this stack, in a generator or under a signal handler: the call returns None at
        once.
        """
        future = self._shared.future
        assert future is not None, "the leader has nobody to wait for"
        if self._shared.thread == threading.get_ident() and not future.done():
            return None
        try:
            return future.result(min(timeout_s, threading.TIMEOUT_MAX))
        except concurrent.futures.TimeoutError:
            return None

    async def wait_async(self, timeout_s: float) -> Any:
        """Await the leader's result, up to `timeout_s` seconds; None if the leader failed or time ran out.

        Cancelling affects this follower only. Only for followers.
        """
        assert self._shared.future is not None, "the leader has nobody to wait for"
        result = asyncio.wrap_future(self._shared.future)
        await asyncio.wait([result], timeout=timeout_s)  # cancelling this does not cancel `own`, nor affect other followers
        return result.result() if result.done() else None

    def __del__(self) -> None:
        if hasattr(self, "leads"):  # else interrupted as it was made
            self.end()


class Flights(ForkSafe):
    """Flights in progress, by key. A flight is removed when it ends, however it ended."""

    _lock = per_process(SafeLock)  # an abandoned leader may be collected, and so ended, during a `join`
    # Empty in a forked child, which does not have the threads that lead the parent's flights.
    _open: dict[bytes, _Shared] = per_process(dict)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def followed(self) -> int:
        """Number of flights that have followers."""
        with self._lock:
            return sum(shared.future is not None for shared in self._open.values())

    def join(self, key: bytes, *, held: bool = False) -> Flight:
        """Start a flight and return its leader's part, or a follower's part of the one in progress, to `wait` with.

        Does not wait. `held`: the leader's answer is a stream that goes on only while its caller reads.
        """
        with self._lock:
            shared = self._open.get(key)
            if shared is None:
                flight = Flight(self, key, shared := _Shared(held), True)
                self._open[key] = shared  # after the leader, which ends it if Ctrl-C breaks in
                return flight
            if shared.future is None:
                shared.future = future = concurrent.futures.Future[Any]()
                if self._open.get(key) is not shared and not future.done():  # its leader was collected meanwhile
                    future.set_result(None)
            return Flight(self, key, shared, False)

    def end(self, key: bytes, shared: _Shared, make: Callable[[], Any] | None) -> None:
        """Remove this flight if it is still in progress, and release its followers with the result of `make()`, or with None.

        A no-op for a flight that has ended. `make` is called only if there are followers; what it raises passes on.
        """
        with self._lock:
            if self._open.get(key) is not shared:
                return
            del self._open[key]
            future = shared.future
        if future is not None:
            result = None
            try:
                result = None if make is None else make()
            finally:
                future.set_result(result)
