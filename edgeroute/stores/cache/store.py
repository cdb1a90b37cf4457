"""The answer cache: in memory, least recently used first to go, and if wanted on disk behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from cachetools import LRUCache

from edgeroute.stores.cache.disk import Disk
from edgeroute.stores.cache.entry import CachedEntry, Entry, keep
from edgeroute.stores.cache.semantic import Semantic
from edgeroute.system import now, renew_after_fork

State = Literal["fresh", "revalidate", "stale"]
REFUSALS = 4096
"""So many refusals are remembered, the latest."""


class CacheStats(NamedTuple):
    """The cache, so far."""

    hits: int
    """Fresh entries given from memory."""
    disk_hits: int
    """Fresh entries given from the disk."""
    misses: int
    stale: int
    """Entries that `lookup` gave past their time."""
    stored: int
    evicted: int
    """Entries that made room in memory for others."""
    bytes: int
    """In memory now."""


class Cache:
    """Answers by key. Any thread may use it; a forked child begins with an empty memory and the same disk.

    An entry's age counts from its `at`. One from the future, since the clock was set back, counts from when it is first seen.

    Args:
        max_bytes: of memory, contents and overhead.
        ttl_s: how long an entry is fresh.
        stale_while_revalidate_s: how long after that it may be given while it is renewed.
        stale_if_offline_s: how long after that it may be given if the cloud cannot be reached.
        negative_ttl_s: how long a refusal is remembered.
        disk: the file for entries that outlive the process; None: they do not.
        disk_max_bytes: of that file.
        never: data classes that are not cached.
        semantic: finds the answer to a text that means the same; it takes on this cache's `ttl_s` and `clock`.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 16 << 20,
        ttl_s: float = 3600.0,
        stale_while_revalidate_s: float = 0.0,
        stale_if_offline_s: float = 86400.0,
        negative_ttl_s: float = 60.0,
        disk: Path | None = None,
        disk_max_bytes: int = 256 << 20,
        never: frozenset[str] = frozenset(),
        semantic: Semantic | None = None,
        clock: Callable[[], float] = now,
    ) -> None:
        self.never, self.semantic = never, semantic
        self._max_bytes, self._ttl_s, self._negative_ttl_s, self._clock = max_bytes, ttl_s, negative_ttl_s, clock
        self._renewing_s, self._offline_s = ttl_s + stale_while_revalidate_s, ttl_s + stale_if_offline_s
        keep_s = max(self._renewing_s, self._offline_s)
        self._disk = None if disk is None else Disk(disk, disk_max_bytes, keep_s, clock)
        if semantic is not None:
            semantic.ttl_s, semantic.clock = ttl_s, clock
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Begins anew: another thread of the parent may have been in the middle of a change."""
        self._lock = threading.Lock()
        self._recent: LRUCache[bytes, CachedEntry] = LRUCache(self._max_bytes, getsizeof=_bytes)
        self._refusals: LRUCache[bytes, tuple[str, int, float]] = LRUCache(REFUSALS)
        self._hits = self._disk_hits = self._misses = self._stale = self._stored = self._evicted = 0

    def get(self, key: bytes) -> Entry | None:
        """The entry, if it is fresh. Its arrays are read-only."""
        return self._find(key, False)[0]

    def lookup(self, key: bytes) -> tuple[Entry | None, State | None]:
        """The entry, and whether it is fresh, may be given while it is renewed, or only if the cloud cannot be reached."""
        return self._find(key, True)

    def put(self, key: bytes, entry: Entry, data_class: str | None = None) -> None:
        """Keeps a copy in memory, and has it written to the disk soon, by a thread.

        Not kept is what is of a class in `never`, cannot be copied, or alone is larger than the memory allowed. On disk is
        only what comes back as it was: a value of JSON's kinds, outputs that are arrays, or of JSON's kinds too.
        """
        kept = None if data_class in self.never else keep(entry._replace(at=min(entry.at, self._clock())))
        if kept is not None:
            with self._lock:
                self._insert(key, kept)
                self._stored += 1
            if self._disk is not None:
                self._disk.put(key, kept)

    def refuse(self, key: bytes, text: str, status: int) -> None:
        """Notes that the endpoint refused this input, with what it said and its HTTP status."""
        with self._lock:
            self._refusals[key] = text, status, self._clock()

    def refused(self, key: bytes) -> tuple[str, int] | None:
        """What was noted by `refuse` within the last `negative_ttl_s`."""
        at = self._clock()
        with self._lock:
            text, status, since = self._refusals.get(key, ("", 0, -float("inf")))
        return (text, status) if 0 <= at - since < self._negative_ttl_s else None

    def stats(self) -> CacheStats:
        """Everything so far."""
        with self._lock:
            counts = self._hits, self._disk_hits, self._misses, self._stale, self._stored, self._evicted
            return CacheStats(*counts, int(self._recent.currsize))

    def close(self) -> None:
        """Writes what waits for the disk, and closes it; a later call opens it again."""
        if self._disk is not None:
            self._disk.close()

    def _find(self, key: bytes, late: bool) -> tuple[Entry | None, State | None]:
        at = self._clock()
        with self._lock:
            seen = self._recent.get(key)
            if fresh := seen is not None and 0 <= at - seen.entry.at < self._ttl_s:
                self._hits += 1
        if seen is not None and fresh:
            return seen.given(), "fresh"
        kept = self._newer(key, seen)
        if kept is not None and kept.entry.at > at:
            kept = kept._replace(entry=kept.entry._replace(at=at))
            if self._disk is not None:
                self._disk.put(key, kept)  # else it would be young again each time it comes from there
        state = None if kept is None else self._state(at - kept.entry.at)
        with self._lock:
            if self._recent.get(key) is seen:  # nobody has put another meanwhile
                if kept is None or state is None:
                    self._recent.pop(key, None)
                elif kept is not seen:
                    self._insert(key, kept)
            if kept is None or state is None or (state != "fresh" and not late):
                self._misses += 1
                return None, None
            if state != "fresh":
                self._stale += 1
            elif self._disk is None:
                self._hits += 1
            else:
                self._disk_hits += 1
        return kept.given(), state

    def _newer(self, key: bytes, seen: CachedEntry | None) -> CachedEntry | None:
        """What the disk has, if it is newer: another process may have renewed it."""
        entry = None if self._disk is None else self._disk.get(key)
        return keep(entry) if entry is not None and (seen is None or entry.at > seen.entry.at) else seen

    def _state(self, age_s: float) -> State | None:
        if age_s < self._ttl_s:
            return "fresh"
        if age_s < self._renewing_s:
            return "revalidate"
        return "stale" if age_s < self._offline_s else None

    def _insert(self, key: bytes, kept: CachedEntry) -> None:
        recent = self._recent
        recent.pop(key, None)
        if kept.bytes <= self._max_bytes:
            before = len(recent)
            recent[key] = kept
            self._evicted += before + 1 - len(recent)


def _bytes(kept: CachedEntry) -> int:
    return kept.bytes
