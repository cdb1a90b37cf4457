"""Semantic cache (`Semantic`), in memory only: answer to a similar text, by cosine similarity of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeroute.core.error_codes_and_texts import class_name
from edgeroute.errors import BadInput, check_number
from edgeroute.stores.cache.cache_entries_and_copies import CachedEntry, Entry, private_copy
from edgeroute.stores.cache.interrupt_safe_lru import Recent
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.fork_safety import ForkSafe, initially, per_process, per_process_of
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.wall_clock import now

Vector = np.ndarray[Any, np.dtype[Any]]
EMBEDDED = 64  # number of embeddings kept between a miss and the `add` that follows it


class Semantic(ForkSafe):
    """Answers to the latest `max_entries` texts of all prefixes, in memory, found by similarity.

    Text inputs only. An error in `embed` is logged, and counts as a miss.

    Args:
        embed: function from a text to its vector [d]; need not be normalised.
        threshold: minimum cosine similarity for a hit, -1..1.
        max_entries: capacity; the oldest text is replaced first.
        ttl_s: how long an answer is fresh, seconds; a `Cache` sets its own.
        clock: returns the Unix time, seconds; a `Cache` sets its own.
    """

    _lock = per_process(SafeLock)
    # Empty in a child, as all of these: another thread of the parent may have been in the middle of a change.
    _vectors: Vector | None = initially(None)
    _owners: Any = per_process_of(lambda self: np.zeros(self._max_entries, np.int64))
    _at: Any = per_process_of(lambda self: np.full(self._max_entries, -np.inf))
    _kept: list[tuple[bytes, str, CachedEntry]] = per_process(list)
    _rows: dict[tuple[bytes, str], int] = per_process(dict)
    _next = initially(0)
    _embedded: Recent[str, Vector] = per_process(lambda: Recent(EMBEDDED))

    def __init__(
        self,
        embed: Callable[[str], Any],
        threshold: float = 0.95,
        max_entries: int = 10_000,
        *,
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = now,
    ) -> None:
        check_number("threshold", threshold, least=-1, most=1)
        check_number("max_entries", max_entries, least=1, whole=True)
        check_number("ttl_s", ttl_s, infinite=True)
        self.threshold, self.ttl_s, self.clock = threshold, ttl_s, clock
        self._embed, self._max_entries = embed, max_entries
        self._off, self._length = False, 0

    def find(self, prefix: bytes, text: str) -> tuple[Entry, float] | None:
        """Return the fresh answer to the most similar text of this prefix, and the similarity; None if none reaches `threshold`.

        Runs `embed` unless the text is among the latest ones; None, with a warning, if that fails. Times in the future become
        now.

        Raises:
            BadInput: the embedding's length differs from the first one's; raised once, then the semantic cache is off.
        """
        vector = self._unit(text)
        if vector is None:
            return None
        now_s = self.clock()
        with self._lock:
            count = len(self._kept)
            if self._vectors is None or not count:
                return None
            when = np.minimum(self._at[:count], now_s, out=self._at[:count])  # a time in the future: the clock was set back
            mine = (self._owners[:count] == hash(prefix)) & (now_s - when < self.ttl_s)
            similar = np.where(mine, self._vectors[:count] @ vector, -np.inf)
            best = int(similar.argmax())
            similarity = min(1.0, float(similar[best]))
            prefix_of_best, _, cached = self._kept[best]
        return (cached.for_caller(), similarity) if similarity >= self.threshold and prefix_of_best == prefix else None

    def embedded(self, text: str) -> bool:
        """Return True if the text's embedding is still cached from a recent `find`, so that `add` calls no model."""
        with self._lock:
            return text in self._embedded

    def add(self, prefix: bytes, text: str, entry: Entry) -> None:
        """Store a copy of the entry for this text, replacing an earlier one, or else the oldest when full.

        Runs `embed` unless the text is among the latest ones. A no-op if there is no embedding, or the entry cannot be copied.

        Raises:
            BadInput: see `find`.
        """
        vector, cached = self._unit(text), private_copy(entry)
        if vector is None or cached is None:
            return
        with self._lock:
            if self._vectors is None:
                # The system allocates pages as they are filled.
                self._vectors = np.zeros((self._max_entries, vector.size), np.float32)
            row = self._rows.get((prefix, text))
            if row is None:
                row = self._rows[prefix, text] = self._next
                self._next = (row + 1) % self._max_entries
                if row < len(self._kept):
                    del self._rows[self._kept[row][:2]]
            self._vectors[row], self._owners[row], self._at[row] = vector, hash(prefix), min(entry.at, self.clock())
            self._kept[row : row + 1] = [(prefix, text, cached)]

    def _unit(self, text: str) -> Vector | None:
        """Return the text's normalised embedding, from the latest `EMBEDDED` ones or computed by `embed`; None if there is none.

        None for what is no text, for zero or infinite vectors, and, with a warning, if `embed` raises. Another length turns the
        cache off, and raises BadInput once.
        """
        if self._off or type(text) is not str:
            return None
        with self._lock:
            vector = self._embedded.get(text)
        if vector is not None:
            return vector
        try:
            raw = np.asarray(call_contained(self._embed, text), np.float64)
        except Exception as e:  # noqa: BLE001 - a user's function may raise anything; it counts as a miss
            log.warning("the semantic cache was skipped, since embed raised %s", class_name(e))
            return None
        with self._lock:
            if self._off:
                return None
            self._length = self._length or raw.size
            if raw.ndim != 1 or raw.size != self._length:
                self._off = True
                raise BadInput(f"embed gave {raw.shape} after [{self._length}]: the semantic cache needs one size, and is off")
            largest = float(np.abs(raw).max(initial=0.0))
            if not 0 < largest < np.inf:
                return None
            scaled = raw / largest  # so that no square overflows
            unit: Vector = (scaled / np.linalg.norm(scaled)).astype(np.float32)
            self._embedded.put(text, unit)
        return unit
