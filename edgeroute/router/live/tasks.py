"""Live sources on an event loop: reading one, calls as tasks, and the iterator over what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextlib import aclosing
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.core.policy import INF, Mode
from edgeroute.errors import Closed
from edgeroute.router.live.audio import AudioSettings, BargeIn, Utterance
from edgeroute.router.live.frames import FrameSettings, FrameUpdate
from edgeroute.router.live.source import Call, Kind, Mailbox
from edgeroute.router.live.updates import CLOSE_S, AudioBase, Consumed, FramesBase, live_audio, live_frames
from edgeroute.system.process import await_within
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
        self.loop: asyncio.AbstractEventLoop | None = None
        """Of who waits for it; None: nobody has yet."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._pending = False

    def ring(self) -> None:
        """Set the event, once however often it is called until the loop comes to it: a source may be quick, and the loop busy."""
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
        self._pending = False
        self.event.set()

    def space(self, kind: Kind) -> threading.Event | asyncio.Event:
        """As `Bell.space`."""
        return asyncio.Event() if kind == "async" else threading.Event()

    def begin(self, router: Any, mode: Mode | None, data_class: str | None, x: Any, alone: bool, deadline: float | None) -> Call:
        """As `Bell.begin`, for an `AsyncRouter`."""
        if alone:
            return TaskCall(_one(router.infer(x, mode="only_edge", deadline=deadline, data_class=data_class)), self)
        return TaskCall(router.refine(x, mode=mode, deadline=deadline, data_class=data_class), self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task that ends with the iterator."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


async def _one(call: Coroutine[Any, Any, Answer]) -> AsyncGenerator[Answer, None]:
    yield await call


class TaskCall:
    """A call in a task of its own."""

    until = INF

    def __init__(self, answers: AsyncGenerator[Answer, None], bell: AsyncBell) -> None:
        self._mail: deque[Answer | BaseException] = deque()
        self._task = bell.spawn(_collect(answers, self._mail, bell.ring))

    def poll(self) -> Answer | None:
        """As `Call.poll`."""
        came = self._mail.popleft() if self._mail else None
        if isinstance(came, BaseException):
            raise came
        return came

    def close(self) -> None:
        """As `Call.close`."""
        self._task.cancel()


async def _collect(
    answers: AsyncGenerator[Answer, None], mail: deque[Answer | BaseException], ring: Callable[[], object]
) -> None:
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


async def fill_async(mailbox: Mailbox[T], found: AsyncIterable[T]) -> None:
    """Read an asynchronous source to its end, in a task of its own."""
    space = mailbox.space
    assert isinstance(space, asyncio.Event), "of a task"
    try:
        async for item in found:
            while not mailbox.offer(item):
                await space.wait()
            del item
            await asyncio.sleep(0)  # a source that never waits would keep the loop
        mailbox.end()
    except asyncio.CancelledError:
        raise
    except BaseException as e:  # noqa: BLE001 - who takes from it gets it
        mailbox.end(e)


class AsyncUpdates(Consumed[U]):
    """`Updates` for an `async with` and an `async for`."""

    _begun = False
    _bell: AsyncBell

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> U:
        """Return the next item, as `Updates.__next__`. Cancelling it does not end the iteration."""
        with self._alone():
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
        if not self._begun and not self._closed:
            self._begin()
        loop = asyncio.get_running_loop()
        while isinstance(look := self._look(), float):
            if look > 0:
                alarm = None if look == INF else loop.call_later(look, self._bell.event.set)
                try:
                    await self._bell.event.wait()
                finally:
                    if alarm is not None:
                        alarm.cancel()
        return look

    def _begin(self) -> None:
        self._begun, self._bell.loop = True, asyncio.get_running_loop()
        if isinstance(self._found, AsyncIterable):
            found, self._found = self._found, None
            self._bell.spawn(fill_async(self._mailbox, found))
        else:
            self._read_in_thread()

    async def _shut(self) -> None:
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
        """End the iteration. From another task than the one in the `async for`, this ends the `async for`."""
        await self._shut()
        until = monotonic() + CLOSE_S
        while self._reader is not None and (left_s := until - monotonic()) > 0:
            self._bell.event.clear()
            if self._mailbox.ended:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await await_within(left_s, self._bell.event.wait())
        self._bell.event.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __del__(self) -> None:
        """End the reader and the tasks of an iterator that was dropped."""
        if self.__dict__.get("_busy") is None:
            return
        self._mailbox.close()
        for task in [*self._bell.tasks]:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)


class AsyncFrames(FramesBase, AsyncUpdates[FrameUpdate]):
    """`Frames` of an `AsyncRouter`."""


class AsyncAudio(AudioBase, AsyncUpdates[Utterance | BargeIn]):
    """`Audio` of an `AsyncRouter`."""


def frames_of(router: Any, source: Any, settings: FrameSettings) -> AsyncFrames:
    """Return the iterator of `AsyncRouter.frames`."""
    return live_frames(router, source, settings, AsyncFrames, AsyncBell())


def audio_of(router: Any, chunks: Any, settings: AudioSettings) -> AsyncAudio:
    """Return the iterator of `AsyncRouter.audio`."""
    return live_audio(router, chunks, settings, AsyncAudio, AsyncBell())
