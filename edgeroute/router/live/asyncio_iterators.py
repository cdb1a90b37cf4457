"""Live sources on an event loop: reading in a task, calls as tasks, and the asynchronous iterators over their results.

Cancelling or leaving an iterator ends its tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.core.policy_egress_and_options import INF, Mode
from edgeroute.errors import Closed
from edgeroute.router.live.blocking_iterators import CLOSE_S, AudioBase, FramesBase, LiveIterator
from edgeroute.router.live.frames import FrameUpdate
from edgeroute.router.live.source_reader_mailbox_and_calls import Call, Kind, Mailbox
from edgeroute.router.live.speech_segments import BargeIn, Utterance
from edgeroute.system.contained_calls_and_tasks import ClosedByAsyncWith, await_within
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
U = TypeVar("U", covariant=True)  # noqa: PLC0105 - one letter, as everywhere


class AsyncBell:
    """Event of a loop that may be set from any thread, and the tasks of one iterator."""

    awaits = True

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None  # loop of the consumer; None: not known yet
        self.tasks: set[asyncio.Task[None]] = set()
        self._pending = False

    def ring(self) -> None:
        """Set the event, from any thread; a further ring before the loop has handled it does nothing.

        Ignored once the loop is closed.
        """
        if self._pending:
            return
        loop = self.loop
        if loop is None:
            self.event.set()
            return
        self._pending = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        """Set the event, on the loop."""
        self._pending = False
        self.event.set()

    def space(self, kind: Kind) -> threading.Event | asyncio.Event:
        """Return a new event for which the reader of a source of this kind waits."""
        return asyncio.Event() if kind == "async" else threading.Event()

    def begin(self, router: Any, mode: Mode | None, data_class: str | None, x: Any, alone: bool, deadline: float | None) -> Call:
        """Begin a call of an `AsyncRouter` in a task, and return it, to be polled.

        `alone`: of its edge only, without a provisional answer.
        """
        if alone:
            return TaskCall(_as_generator(router.infer(x, mode="only_edge", deadline=deadline, data_class=data_class)), self)
        return TaskCall(router.refine(x, mode=mode, deadline=deadline, data_class=data_class), self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a coroutine as a task of the running loop, stored in `tasks` until it ends, and return the task."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


async def _as_generator(call: Coroutine[Any, Any, Answer]) -> AsyncGenerator[Answer, None]:
    """Yield the answer of a call."""
    yield await call


class TaskCall:
    """Call in a task of its own."""

    until = INF

    def __init__(self, answers: AsyncGenerator[Answer, None], bell: AsyncBell) -> None:
        self._mail: deque[Answer | BaseException] = deque()
        self._task = bell.spawn(_collect(answers, self._mail, bell.ring))

    def poll(self) -> Answer | None:
        """Return the next answer; None: not yet. Raise the error of the call."""
        item = self._mail.popleft() if self._mail else None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Cancel the task."""
        self._task.cancel()


async def _collect(
    answers: AsyncGenerator[Answer, None], mail: deque[Answer | BaseException], ring: Callable[[], object]
) -> None:
    """Append a call's answers, or its error, to `mail`, and ring after each; closes `answers`. A cancellation is raised."""
    try:
        async with aclosing(answers):
            async for answer in answers:
                mail.append(answer)
                ring()
    except asyncio.CancelledError:
        raise
    except BaseException as e:  # noqa: BLE001 - who polls it gets it
        mail.append(e)
        ring()


async def fill_async(mailbox: Mailbox[T], source: AsyncIterable[T]) -> None:
    """Read an asynchronous source to its end into the mailbox; run in a task.

    An exception of the source is stored in the mailbox. Waits while the mailbox is full; does not close the source. Cancellation
    is raised.
    """
    space = mailbox.space
    assert isinstance(space, asyncio.Event), "of a task"
    try:
        async for item in source:
            while not mailbox.offer(item):
                await space.wait()
            del item
            await asyncio.sleep(0)  # a source that never waits would keep the loop
        mailbox.end()
    except asyncio.CancelledError:
        raise
    except BaseException as e:  # noqa: BLE001 - who takes from it gets it
        mailbox.end(e)


class AsyncUpdates(LiveIterator[U], ClosedByAsyncWith):
    """Asynchronous iterator over the results of a live source, for an `async with` and an `async for`. See `Updates`."""

    _begun = False
    _bell: AsyncBell

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> U:
        """Return the next item, as `Updates.__next__`. Cancelling it does not end the iteration."""
        with self._one_consumer():
            try:
                item = await self._next()
            except Closed:
                await self._shut()
                raise
            if item is None:
                await self._shut()
                self._end(StopAsyncIteration())
            return item[0]

    async def _next(self) -> tuple[U] | None:
        """Wait for the next item; (item,), or None at the end. Begins to read the source at the first call. Raises as `_look`."""
        if not self._begun and not self._closed:
            self._begin()
        while isinstance(look := self._look(), float):
            if look > 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await await_within(look, self._bell.event.wait())
        return look

    def _begin(self) -> None:
        """Begin to read the source: an async iterable in a task of this loop, any other in a new thread."""
        self._begun, self._bell.loop = True, asyncio.get_running_loop()
        if isinstance(self._source, AsyncIterable):
            source, self._source = self._source, None
            self._bell.spawn(fill_async(self._mailbox, source))
        else:
            self._read_in_thread()

    async def _shut(self) -> None:
        """End the iteration: stop the reader, cancel all calls and tasks, and wait for them up to `CLOSE_S`."""
        self._closed = True
        self._bell.event.set()  # before anything is waited for: this may be cancelled
        self._mailbox.close()
        self._flow.close()
        tasks = [*self._bell.tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    async def close(self) -> None:
        """End the iteration, from any task of the loop: cancels the calls under way.

        Waits for tasks and the reader, `CLOSE_S` each. A thread that reads on is left.
        """
        await self._shut()
        until = monotonic() + CLOSE_S
        while self._reader is not None and (left_s := until - monotonic()) > 0:
            self._bell.event.clear()
            if self._mailbox.ended:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await await_within(left_s, self._bell.event.wait())
        self._bell.event.set()

    def __del__(self) -> None:
        """Stop the reader, and cancel the tasks, of an iterator that was garbage collected unclosed."""
        if self.__dict__.get("_busy") is None:
            return
        self._mailbox.close()
        for task in [*self._bell.tasks]:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)


class AsyncFrames(FramesBase, AsyncUpdates[FrameUpdate]):
    """Asynchronous iterator over the updates of a source's frames: `AsyncRouter.frames`."""


class AsyncAudio(AudioBase, AsyncUpdates[Utterance | BargeIn]):
    """Asynchronous iterator over the answers to a source's speech: `AsyncRouter.audio`."""
