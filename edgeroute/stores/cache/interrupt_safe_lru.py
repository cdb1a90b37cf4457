"""LRU table (`Recent`) that an interrupt in the middle of a change, or a signal handler that uses it, leaves intact."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Mapping that evicts the least recently used entries beyond a total size.

    The caller holds a reentrant lock. Each step on the entries is one call into C, which no signal interrupts; after a change
    that was interrupted the total is summed anew.

    Args:
        most: maximum total size.
        size_of: returns the size of a value.

    Attributes:
        size: total size of the values.
    """

    def __init__(self, most: float, size_of: Callable[[V], int] = lambda _: 1) -> None:
        self._most, self._size_of = most, size_of
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.size = 0
        self._changes, self._changing = 0, False

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """Return the value, which becomes the most recently used; None if there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        try:  # noqa: SIM105 - which would take four calls
            self._entries.move_to_end(key)
        except KeyError:  # a signal handler has evicted it
            pass
        return entry[0]

    def put(self, key: K, value: V) -> int:
        """Store a value as the most recently used. Return the number of others that were evicted for it.

        A value that alone exceeds the total size is not stored; the key's earlier value is deleted all the same.
        """
        size = self._size_of(value)
        return self._change(key, (value, size) if size <= self._most else None)

    def pop(self, key: K) -> None:
        """Delete a value, if there is one."""
        self._change(key, None)

    def _change(self, key: K, entry: tuple[V, int] | None) -> int:
        """Replace the entry of a key, or delete it, and evict the least recently used others. Return the number evicted.

        The total size is counted again if another change was interrupted.
        """
        self._changes += 1
        change, evicted = self._changes, 0
        if self._changing:  # an earlier change was interrupted, or is below on this stack
            self.size = sum(size for _, size in [*self._entries.values()])
        self._changing = True
        self.size -= self._entries.pop(key, (None, 0))[1]
        if entry is not None:
            self._entries[key] = entry
            self.size += entry[1]
            with suppress(KeyError):  # a signal handler has emptied it
                while self.size > self._most:
                    self.size -= self._entries.popitem(last=False)[1][1]
                    evicted += 1
        self._changing = change != self._changes  # a signal handler changed it meanwhile: the total is summed anew
        return evicted
