"""Drivers of live sources: an iterator for threads, and one for asyncio. A flow, which they share, decides what comes next."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterable, Iterable, Iterator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from edgeroute.core.policy import INF
from edgeroute.errors import BadInput, Closed
from edgeroute.failures import quietly
from edgeroute.router.live.mailbox import Mailbox, fill, fill_async

if TYPE_CHECKING:
    from typing_extensions import Self

U = TypeVar("U", covariant=True)  # noqa: PLC0105 - one letter, as everywhere
CLOSE_S = 1.0
"""How long closing waits for a source that is being read."""
ROUTER_CLOSED = "the router was closed while its answers were being iterated over"
BUSY = "another thread or task is at this iterator: one consumer for each"


class Flow(Protocol[U]):
    """Decides what comes next."""

    def step(self, now: float) -> U | float | None:
        """The next item at this instant, or the instant until which to wait; None: there is none any more."""

    def close(self) -> None:
        """Cancels what is in progress."""


class Reading(Protocol):
    """How a source is read into a mailbox: one of both."""

    def items(self, mailbox: Mailbox[Any]) -> Iterable[Any]:
        """Of a source that may block, for a thread."""

    def items_async(self, mailbox: Mailbox[Any]) -> AsyncIterable[Any] | None:
        """Of an asynchronous source, for a task; None: it is none."""


class _Consumed:
    """State that both kinds of iterators have.

    Args:
        mailbox: what the source gave.
        reading: how it is read.
        name: of the thread that reads it.
    """

    def __init__(self, mailbox: Mailbox[Any], reading: Reading, name: str) -> None:
        self._mailbox, self._reading, self._name = mailbox, reading, name
        self._closed = self._router_closed = False
        self._reader: threading.Thread | None = None
        self._busy: dict[None, object] = {}

    def _read_in_thread(self) -> None:
        found = self._reading.items(self._mailbox)
        self._reader = threading.Thread(target=fill, args=(self._mailbox, found), name=self._name, daemon=True)
        self._reader.start()

    def router_closed(self) -> None:
        """Ends it, as the router was closed: who waits for the next item gets `Closed`. From any thread."""
        self._router_closed = True
        self._mailbox.close()
        self._mailbox.ring()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        own = object()
        if self._busy.setdefault(None, own) is not own:  # atomic
            raise BadInput(BUSY)
        try:
            yield
        finally:
            self._busy.clear()


class Updates(_Consumed, Generic[U]):
    """An iterator over what comes of a live source, for a `with` and a `for`. One thread at a time.

    Leaving the `with`, or `close`, cancels the calls that are in progress, and ends the thread that reads the source as soon as
    that has given what it is at. The source itself is the program's to close.
    """

    def __init__(self, flow: Flow[U], mailbox: Mailbox[Any], bell: threading.Event, reading: Reading, name: str) -> None:
        super().__init__(mailbox, reading, name)
        self._flow, self._bell = flow, bell

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> U:
        """The next item.

        Raises:
            BadInput, NoAnswer: of one input; the iteration may go on with the next one.
            Closed: the router was closed.
            Exception: what the source has raised, once all that it gave before is answered.
        """
        with self._alone():
            try:
                found = self._found()
            except Closed:
                self._shut()
                raise
            if found is None:
                self._shut()
                error, self._mailbox.error = self._mailbox.error, None
                if error is not None:
                    raise error
                raise StopIteration
            return found[0]

    def _found(self) -> tuple[U] | None:
        if self._reader is None and not self._closed:
            self._read_in_thread()
        while not self._closed:
            self._bell.clear()
            if self._router_closed:
                raise Closed(ROUTER_CLOSED)
            now = monotonic()
            step = self._flow.step(now)
            if step is None:
                return None
            if not isinstance(step, float):
                return (step,)
            if (left_s := step - now) > 0:
                self._bell.wait(None if left_s == INF else min(left_s, threading.TIMEOUT_MAX))
        return None

    def _shut(self) -> None:
        self._closed = True
        self._mailbox.close()
        self._flow.close()

    def close(self) -> None:
        """Ends it. From another thread than the one that is in the `for`, this ends the `for`."""
        self._closed = True
        self._mailbox.close()
        self._bell.set()
        with contextlib.suppress(BadInput), self._alone():  # else the thread at it closes what is in progress
            self._flow.close()
        reader = self._reader
        if reader is not None and reader is not threading.current_thread():
            reader.join(CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        """Ends what an iterator that was dropped has in progress."""
        if self.__dict__.get("_flow") is not None:
            self._mailbox.close()
            quietly(self._flow.close, "dropping an iterator over a live source")


class Bell:
    """An event of a loop that may be set from any thread."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        """Of who waits for it; None: nobody has yet."""

    def ring(self) -> None:
        """Sets it."""
        loop = self.loop
        if loop is None:
            self.event.set()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self.event.set)


class AsyncUpdates(_Consumed, Generic[U]):
    """`Updates` for an `async with` and an `async for`."""

    def __init__(
        self,
        flow: Flow[U],
        mailbox: Mailbox[Any],
        bell: Bell,
        tasks: set[asyncio.Task[None]],
        reading: Reading,
        name: str,
    ) -> None:
        super().__init__(mailbox, reading, name)
        self._flow, self._bell, self._tasks = flow, bell, tasks
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> U:
        """As `Updates.__next__`. Cancelling it does not end the iteration."""
        with self._alone():
            try:
                found = await self._found()
            except Closed:
                await self._shut()
                raise
            if found is None:
                await self._shut()
                error, self._mailbox.error = self._mailbox.error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            return found[0]

    async def _found(self) -> tuple[U] | None:
        if not self._begun and not self._closed:
            self._begin()
        loop = asyncio.get_running_loop()
        while not self._closed:
            self._bell.event.clear()
            if self._router_closed:
                raise Closed(ROUTER_CLOSED)
            now = monotonic()
            step = self._flow.step(now)
            if step is None:
                return None
            if not isinstance(step, float):
                return (step,)
            if (left_s := step - now) > 0:
                alarm = None if left_s == INF else loop.call_later(left_s, self._bell.event.set)
                try:
                    await self._bell.event.wait()
                finally:
                    if alarm is not None:
                        alarm.cancel()
        return None

    def _begin(self) -> None:
        self._begun, self._bell.loop = True, asyncio.get_running_loop()
        found = self._reading.items_async(self._mailbox)
        if found is None:
            self._read_in_thread()
        else:
            task = asyncio.get_running_loop().create_task(fill_async(self._mailbox, found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shut(self) -> None:
        self._closed = True
        self._mailbox.close()
        self._flow.close()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    async def close(self) -> None:
        """Ends it. From another task than the one in the `async for`, this ends the `async for`."""
        await self._shut()
        until = monotonic() + CLOSE_S
        while self._reader is not None and (left_s := until - monotonic()) > 0:
            self._bell.event.clear()
            if self._mailbox.ended:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._bell.event.wait(), left_s)
        self._bell.event.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __del__(self) -> None:
        """Ends the reader and the tasks of an iterator that was dropped."""
        if self.__dict__.get("_tasks") is None:
            return
        self._mailbox.close()
        for task in [*self._tasks]:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)
