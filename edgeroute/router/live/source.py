"""What a live source gave and nobody has taken yet: bounded, and filled by one reader, in a thread or a task (tasks.py)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from time import monotonic
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from edgeroute.core.policy import INF
from edgeroute.core.walk import Wait
from edgeroute.errors import BadInput
from edgeroute.trials.audit import same
from edgeroute.types import Answer

T = TypeVar("T")
Kind = Literal["async", "read", "iterate", "call"]
POLL_S = 0.01
"""Seconds between two looks for something new at a function that gives the newest."""


class Got(NamedTuple):
    """An item of a source."""

    number: int
    """From 0, counting those that were dropped."""
    at: float
    """Instant at which it came, seconds."""
    item: Any


class Space(Protocol):
    """An event, of threads or of asyncio."""

    def set(self) -> None:
        """There is space."""

    def clear(self) -> None:
        """There is none."""


class Mailbox(Generic[T]):
    """Up to `most` items. If it is full, the oldest is dropped, or its reader waits.

    Args:
        most: items.
        drops: the oldest one is dropped.
        ring: called, in the reader's thread, as there is something to look at.
        space: is set as there is space.
    """

    def __init__(self, most: int, drops: bool, ring: Callable[[], object], space: Space) -> None:
        self._items: deque[Got] = deque()
        self._lock = threading.Lock()
        self._most, self._drops, self.ring, self.space = most, drops, ring, space
        self.stopped = threading.Event()
        """Whether nobody takes anything any more."""
        self.read = self.dropped = 0
        self.ended = False
        self.error: BaseException | None = None
        """What has ended the source."""

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T) -> bool:
        """Takes an item in. Returns False if there is no space: the reader waits for `space`, and offers it again."""
        with self._lock:
            if len(self._items) >= self._most:
                if not self._drops:
                    self.space.clear()
                    return False
                self._items.popleft()
                self.dropped += 1
            if self.stopped.is_set():
                return True
            self._items.append(Got(self.read, monotonic(), item))
            self.read += 1
        self.ring()
        return True

    def take(self) -> Got | None:
        """The oldest item; None: there is none."""
        with self._lock:
            if not self._items:
                return None
            got = self._items.popleft()
            self.space.set()
        return got

    def end(self, error: BaseException | None = None) -> None:
        """No further item comes."""
        self.error, self.ended = error, True
        self.ring()

    def close(self) -> None:
        """Nobody takes anything any more: a thread ends once its source has given what it is at. A task has to be cancelled."""
        self.stopped.set()
        with self._lock:
            self._items.clear()
        if isinstance(self.space, threading.Event):
            self.space.set()


def kind_of(source: Any, what: str, *, awaits: bool, calls: bool = True) -> Kind:
    """How a source is read.

    Args:
        source: of `what`.
        what: in words.
        awaits: whether it may be asynchronous.
        calls: whether it may be a function, or an object with `read`.

    Raises:
        BadInput: it is none.
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
    """What a source gives that is not asynchronous.

    A function that has nothing new returns None, or the same object again; to end it raises StopIteration.
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


def fill(mailbox: Mailbox[T], found: Iterable[T]) -> None:
    """Reads a source to its end, in a thread of its own."""
    stopped, space = mailbox.stopped, mailbox.space
    assert isinstance(space, threading.Event), "of a thread"
    try:
        for item in found:
            while not stopped.is_set() and not mailbox.offer(item):
                space.wait()
            del item  # not kept alive while the next one is waited for
            if stopped.is_set():
                break
        mailbox.end()
    except BaseException as e:  # noqa: BLE001 - who takes from it gets it
        mailbox.end(e)


# Calls of a router that go on while others begin: polled for their answers, and closed when these are of no use any more.


class Call(Protocol):
    """A call under way. `until`: the instant at which it is polled though nothing rang."""

    until: float

    def poll(self) -> Answer | None:
        """Its next answer, the provisional ones first; None: not yet. Raises what it ended with."""

    def close(self) -> None:
        """Cancels what of it is in progress."""


Begin = Callable[[Any, bool, float | None], Call]
"""Begins a call of this input; on the device alone; with this deadline in seconds."""


class PolledCall:
    """A call whose steps are taken by whoever polls it: there is no thread that waits for it."""

    def __init__(self, steps: Generator[Any, None, None]) -> None:
        self._steps, self.until = steps, INF

    def poll(self) -> Answer | None:
        """As `Call.poll`."""
        shown = next(self._steps, None)
        self.until = shown.until if type(shown) is Wait else INF
        return shown if isinstance(shown, Answer) else None

    def close(self) -> None:
        """As `Call.close`."""
        self._steps.close()


class DirectCall:
    """A call that ends as it is polled."""

    until = INF

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._call = call

    def poll(self) -> Answer | None:
        """As `Call.poll`."""
        return self._call()

    def close(self) -> None:
        """As `Call.close`."""


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; False if that cannot be told."""
    try:
        return same(one, other)
    except Exception:  # noqa: BLE001 - of a value's own comparison
        return False
