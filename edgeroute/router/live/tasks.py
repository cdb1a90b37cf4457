"""Live sources on an event loop: reading one, calls as tasks, and the iterator over what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, aclosing
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgeroute.core.policy import INF, Mode
from edgeroute.errors import Closed
from edgeroute.router.live.audio import (
    WAITING,
    AudioFlow,
    AudioSettings,
    AudioStats,
    BargeIn,
    Listener,
    Segment,
    Utterance,
    segments,
)
from edgeroute.router.live.frames import FrameFlow, FrameSettings, FrameStats, FrameUpdate
from edgeroute.router.live.source import Call, Kind, Mailbox, items, kind_of
from edgeroute.router.live.updates import CLOSE_S, ROUTER_CLOSED, Consumed, Flow
from edgeroute.system.process import limited
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
U = TypeVar("U", covariant=True)  # noqa: PLC0105 - one letter, as everywhere


class TaskCall:
    """A call in a task of its own."""

    until = INF

    def __init__(self, answers: AsyncGenerator[Answer, None], ring: Callable[[], object], tasks: set[asyncio.Task[None]]) -> None:
        self._mail: deque[Answer | BaseException] = deque()
        self._task = asyncio.get_running_loop().create_task(_collect(answers, self._mail, ring))
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)

    def poll(self) -> Answer | None:
        """As `Call.poll`."""
        found = self._mail.popleft() if self._mail else None
        if isinstance(found, BaseException):
            raise found
        return found

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
    """Reads an asynchronous source to its end, in a task of its own."""
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


async def segments_async(chunks: AsyncIterable[Any], listener: Listener) -> AsyncIterator[Segment]:
    """The segments of asynchronous chunks, as `listener.segments`."""
    try:
        async for chunk in chunks:
            for segment in listener.hear(chunk):
                yield segment
            await asyncio.sleep(0)  # as above
    except Exception:
        for segment in listener.finish():
            yield segment
        raise
    for segment in listener.finish():
        yield segment


class Bell:
    """An event of a loop that may be set from any thread."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        """Of who waits for it; None: nobody has yet."""
        self._pending = False

    def ring(self) -> None:
        """Sets it, once however often it is called until the loop comes to it: a source may be quick, and the loop busy."""
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


class AsyncUpdates(Consumed, Generic[U]):
    """`Updates` for an `async with` and an `async for`."""

    def __init__(
        self,
        flow: Flow[U],
        mailbox: Mailbox[Any],
        bell: Bell,
        tasks: set[asyncio.Task[None]],
        found: Iterable[Any] | AsyncIterable[Any],
        name: str,
    ) -> None:
        super().__init__(mailbox, found, name)
        self._flow, self._bell, self._tasks = flow, bell, tasks
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> U:
        """As `Updates.__next__`. Cancelling it does not end the iteration."""
        with self._alone():
            try:
                found = await self._next()
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

    async def _next(self) -> tuple[U] | None:
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
        if not isinstance(self._found, AsyncIterable):
            self._read_in_thread()
        else:
            found, self._found = self._found, None
            task = asyncio.get_running_loop().create_task(fill_async(self._mailbox, found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shut(self) -> None:
        self._closed = True
        self._bell.event.set()  # before anything is waited for: this may be cancelled
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
                await limited(left_s, self._bell.event.wait())
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


class AsyncFrames(AsyncUpdates[FrameUpdate]):
    """`Frames` of an `AsyncRouter`."""

    _flow: FrameFlow

    def stats(self) -> FrameStats:
        """As `Frames.stats`."""
        return self._flow.stats()


class AsyncAudio(AsyncUpdates[Utterance | BargeIn]):
    """`Audio` of an `AsyncRouter`."""

    _flow: AudioFlow

    def stats(self) -> AudioStats:
        """As `Audio.stats`."""
        return self._flow.stats()

    def speaking(self) -> AbstractContextManager[None]:
        """As `Audio.speaking`."""
        return self._flow.speaking()


def frames_of(router: Any, source: Any, settings: FrameSettings) -> AsyncFrames:
    """Return the iterator of `AsyncRouter.frames`."""
    kind, bell, tasks = kind_of(source, "frames", awaits=True), Bell(), set[asyncio.Task[None]]()
    mailbox: Mailbox[Any] = Mailbox(1, settings.drop == "oldest", bell.ring, _space(kind))
    flow = FrameFlow(
        router.engine, partial(_begin_async, router, bell.ring, tasks, settings.mode, settings.data_class), mailbox, settings
    )
    found = source if kind == "async" else items(source, kind, mailbox.stopped)
    return AsyncFrames(flow, mailbox, bell, tasks, found, "edgeroute-frames")


def audio_of(router: Any, chunks: Any, settings: AudioSettings) -> AsyncAudio:
    """Return the iterator of `AsyncRouter.audio`."""
    kind, bell, tasks = kind_of(chunks, "chunks", awaits=True, calls=False), Bell(), set[asyncio.Task[None]]()
    mailbox: Mailbox[Segment] = Mailbox(WAITING, settings.drop == "oldest", bell.ring, _space(kind))
    flow = AudioFlow(partial(_begin_async, router, bell.ring, tasks, settings.mode, settings.data_class), mailbox, settings)
    found: Any = segments_async(chunks, flow.listener)
    if kind != "async":
        found = segments(chunks, kind, flow.listener, mailbox.stopped)
    return AsyncAudio(flow, mailbox, bell, tasks, found, "edgeroute-audio")


def _space(kind: Kind) -> threading.Event | asyncio.Event:
    return asyncio.Event() if kind == "async" else threading.Event()


def _begin_async(
    router: Any,
    ring: Callable[[], object],
    tasks: set[asyncio.Task[None]],
    mode: Mode | None,
    data_class: str | None,
    x: Any,
    alone: bool,
    deadline: float | None,
) -> Call:
    """Begins a call of an `AsyncRouter`; alone: of its edge."""
    if alone:
        return TaskCall(_one(router.infer(x, mode="only_edge", deadline=deadline, data_class=data_class)), ring, tasks)
    return TaskCall(router.refine(x, mode=mode, deadline=deadline, data_class=data_class), ring, tasks)


async def _one(call: Coroutine[Any, Any, Answer]) -> AsyncGenerator[Answer, None]:
    yield await call
