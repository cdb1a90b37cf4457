"""Queue whose waits end in time, as those of `queue.SimpleQueue` may not."""

from __future__ import annotations

from collections import deque
from queue import Empty
from threading import TIMEOUT_MAX, Lock
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Queue of one reader and any number of writers.

    In place of `queue.SimpleQueue`, whose `get` may never return, up to CPython 3.12 at least: where its time ends between two
    looks at the clock within it, or while a signal's handler runs, it goes on with a negative time, which means no limit.
    """

    __slots__ = ("_filled", "_items")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._filled = Lock()  # released by `put`
        self._filled.acquire()

    def put(self, item: T) -> None:
        """Append an item, and wake the reader. Never blocks, and may be called in a signal's handler."""
        self._items.append(item)
        try:  # noqa: SIM105 - `suppress` takes three times as long
            self._filled.release()
        except RuntimeError:  # it is released already
            pass

    def get(self, timeout: float | None = None) -> T:
        """Remove and return the first item, blocking until there is one.

        Args:
            timeout: how long to wait at most, seconds; 0 or less: not at all; None: without a limit.

        Raises:
            Empty: none came in time.
        """
        until = None if timeout is None else monotonic() + timeout
        while not self._items:
            left = TIMEOUT_MAX if until is None else min(until - monotonic(), TIMEOUT_MAX)
            if not (self._filled.acquire(timeout=left) if left > 0 else self._filled.acquire(blocking=False)):
                break
        try:
            return self._items.popleft()
        except IndexError:
            raise Empty from None

    def empty(self) -> bool:
        """Return True if there is no item."""
        return not self._items
