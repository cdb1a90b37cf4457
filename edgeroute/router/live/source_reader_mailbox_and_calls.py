"""Live sources: kinds of source, a thread that reads one, a bounded mailbox that drops unread items, calls that run meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from time import monotonic
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from edgeroute.confidence import output_forms_labels_and_comparison as output_forms
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.walk import Wait
from edgeroute.errors import BadInput
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.types import Answer

T = TypeVar("T")
Kind = Literal["async", "read", "iterate", "call"]
POLL_S = 0.01  # seconds between two calls of a function that returns its newest item


class SourceItem(NamedTuple):
    """Item of a source."""

    number: int  # number from 0, counting dropped items
    at: float  # monotonic instant at which the item came, seconds
    item: Any


class SpaceEvent(Protocol):
    """Event for "the mailbox has space", of threads or of asyncio."""

    def set(self) -> None:
        """Set the event: there is space."""

    def clear(self) -> None:
        """Clear the event: there is none."""


class Mailbox(Generic[T]):
    """Bounded queue of items between a source's reader and its consumer. If full, it drops the oldest, or the reader waits.

    Args:
        most: maximum items.
        drops: True: drop the oldest; False: the reader waits.
        ring: called, in the reader's thread, after an item or the end has come.
        space: set when there is space.
    """

    def __init__(self, most: int, drops: bool, ring: Callable[[], object], space: SpaceEvent) -> None:
        self._items: deque[SourceItem] = deque()
        self._lock = SafeLock()
        self._most, self._drops, self.ring, self.space = most, drops, ring, space
        self.stopped = threading.Event()  # set when nobody takes items any more
        self.read = self.dropped = 0
        self.ended = False
        self.error: BaseException | None = None  # exception that ended the source; None: none

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T) -> bool:
        """Add an item, dropping the oldest if need be. Return False if there is no space: wait for `space`, and offer it again.

        After `close` the item is ignored. Dropped items are counted.
        """
        with self._lock:
            if len(self._items) >= self._most:
                if not self._drops:
                    self.space.clear()
                    return False
                self._items.popleft()
                self.dropped += 1
            if self.stopped.is_set():
                return True
            self._items.append(SourceItem(self.read, monotonic(), item))
            self.read += 1
        self.ring()
        return True

    def take(self) -> SourceItem | None:
        """Remove and return the oldest item, and tell a waiting reader that there is space; None: there is none.

        Does not wait.
        """
        with self._lock:
            if not self._items:
                return None
            got = self._items.popleft()
            self.space.set()
        return got

    def end(self, error: BaseException | None = None) -> None:
        """Mark the source as ended, and ring. Items that it has stay."""
        self.error, self.ended = error, True
        self.ring()

    def close(self) -> None:
        """Discard all items, and stop the reader: a thread ends after the item it is reading; a task has to be cancelled.

        Does not wait.
        """
        self.stopped.set()
        with self._lock:
            self._items.clear()
        if isinstance(self.space, threading.Event):
            self.space.set()


def kind_of(source: Any, what: str, *, awaits: bool, calls: bool = True) -> Kind:
    """Return how a source is read: "async", "iterate", "read" (an object's method) or "call" (a function). Reads nothing.

    Args:
        source: the source.
        what: name of its items, for messages.
        awaits: True if it may be asynchronous.
        calls: True if it may be a function, or an object with `read`.

    Raises:
        BadInput: it is no source.
    """
    kind = type(source)
    if hasattr(kind, "__aiter__"):
        if awaits:
            return "async"
        raise BadInput(f"an asynchronous source of {what} needs an AsyncRouter ({kind.__name__})")
    if isinstance(source, str | bytes | bytearray | Mapping):
        raise BadInput(f"a source of {what} is an iterable of them, not a {kind.__name__}")
    if hasattr(kind, "__iter__"):
        return "iterate"
    if calls and callable(getattr(source, "read", None)):
        return "read"
    if isgeneratorfunction(source) or isasyncgenfunction(source):
        raise BadInput(f"a source of {what} is what {source.__name__}() returns: call it")
    if iscoroutinefunction(source):
        raise BadInput(f"a source of {what} is no async function: give an async iterable, such as an async generator")
    if calls and callable(source) and not isinstance(source, type):
        return "call"
    others = ", a function that gives the newest, or an object with read() -> (ok, frame)" if calls else ""
    raise BadInput(f"a source of {what} is an iterable of them{others}; not a {kind.__name__}")


def items(source: Any, kind: Kind, stopped: threading.Event) -> Iterator[Any]:
    """Yield the items of a synchronous source by its kind; blocks. Ends once a function's `stopped` is set.

    An object's `read()` returns (True, item), or (False, ...) at the end. A function is polled every `POLL_S`: without a new item
    it returns None, or the same object again; it raises StopIteration at the end. BadInput for a `read()` that returns no pair.
    """
    if kind == "iterate":
        for item in source:
            yield item
    elif kind == "read":
        while True:
            try:
                read = source.read()
            except StopIteration:
                return
            if not isinstance(read, tuple | list) or len(read) != 2:  # noqa: PLR2004 - a pair
                name = type(source).__name__
                raise BadInput(f"read() of a {name} returns (ok, frame), as cv2.VideoCapture's, not a {type(read).__name__}")
            ok, item = read
            if not ok:
                return
            yield item
    else:
        last = None
        while not stopped.is_set():
            try:
                item = source()
            except StopIteration:
                return
            if item is None or item is last:
                stopped.wait(POLL_S)
                continue
            last = item
            yield item


def fill(mailbox: Mailbox[T], source: Iterable[T]) -> None:
    """Read a source into the mailbox to its end, or until it is closed; run in a thread of its own.

    An exception of the source is not raised, but stored in the mailbox. Waits while the mailbox is full.
    """
    stopped, space = mailbox.stopped, mailbox.space
    assert isinstance(space, threading.Event), "of a thread"
    try:
        for item in source:
            while not stopped.is_set() and not mailbox.offer(item):
                space.wait()
            del item  # not kept alive while the next one is waited for
            if stopped.is_set():
                break
        mailbox.end()
    except BaseException as e:  # noqa: BLE001 - who takes from it gets it
        mailbox.end(e)


# Calls of a router under way at the same time: polled for their answers, and closed when these are not needed any more.


class Call(Protocol):
    """Call under way. `until`: monotonic instant at which it is polled although nothing rang."""

    until: float

    def poll(self) -> Answer | None:
        """Return the next answer, provisional ones first; None: not yet. Raise the error of the call."""

    def close(self) -> None:
        """Cancel the call."""


# Begins a call: (input, True for the device alone, deadline in seconds) -> the call.
Begin = Callable[[Any, bool, float | None], Call]


class PolledCall:
    """Call whose steps run in the thread that polls it; no other thread waits for it."""

    def __init__(self, steps: Generator[Any, None, None]) -> None:
        self._steps, self.until = steps, INF

    def poll(self) -> Answer | None:
        """Run the call's next steps in this thread. Return the next answer; None: not yet, or no more.

        Raise the error of the call. Sets `until`. Never waits for a leg that runs in a thread; an edge may run here.
        """
        shown = next(self._steps, None)
        self.until = shown.until if type(shown) is Wait else INF
        return shown if isinstance(shown, Answer) else None

    def close(self) -> None:
        """Cancel the call."""
        self._steps.close()


def is_last(answer: Answer) -> bool:
    """Return True if a call gives no answer after this one, which is final, or whose request is left to the outbox."""
    return answer.final or answer.degraded


def once(call: Callable[[], Answer]) -> Generator[Answer, None, None]:
    """Yield the answer of a call, which runs when it is polled."""
    yield call()


def equal(value: Any, other: Any) -> bool:
    """Return True if two values are equal; False if their comparison raises."""
    try:
        return output_forms.equal(value, other)
    except Exception:  # noqa: BLE001 - of a value's own comparison
        return False
