"""`frames` and `audio` of `AsyncRouter`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

from edgeroute.core.policy import Mode
from edgeroute.router.arguments import check_unknown
from edgeroute.router.live.audio import WAITING, AudioFlow
from edgeroute.router.live.audio_types import AudioSettings, AudioStats, BargeIn, Utterance, Vad
from edgeroute.router.live.calls import Call
from edgeroute.router.live.frame_types import Drop, FrameSettings, FrameStats, FrameUpdate, Signature
from edgeroute.router.live.frames import FrameFlow
from edgeroute.router.live.listener import Segment, segments
from edgeroute.router.live.mailbox import Kind, Mailbox, items, kind_of
from edgeroute.router.live.tasks import AsyncUpdates, Bell, TaskCall, segments_async
from edgeroute.router.streams import AsyncStreaming
from edgeroute.system import alive
from edgeroute.types import Answer

A = TypeVar("A", bound=AsyncUpdates[Any])


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


class AsyncLive(AsyncStreaming):
    """`frames` and `audio` of `AsyncRouter`."""

    _live: WeakSet[AsyncUpdates[Any]] | None = None

    def frames(
        self,
        source: Any,
        *,
        max_in_flight: int = 2,
        drop: Drop = "oldest",
        every: float | None = None,
        stale: float | None = 1.0,
        hold: int = 3,
        margin: float | None = 0.2,
        scene: float | None = 0.03,
        refresh: float | None = 30.0,
        signature: Signature | None = None,
        label: Callable[[Any], Hashable] | None = None,
        busy: float = 1.0,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        **unknown: NoReturn,
    ) -> AsyncFrames:
        """As `Router.frames`, for `async with` and `async for`; the source may be an async iterable, which is read in a task."""
        if unknown:
            check_unknown(AsyncLive.frames, unknown, type(self))
        settings = FrameSettings(
            max_in_flight, drop, every, stale, hold, margin, scene, refresh, signature, label, busy, mode, deadline, data_class
        ).checked()
        kind, bell, tasks = kind_of(source, "frames", awaits=True), Bell(), set[asyncio.Task[None]]()
        mailbox: Mailbox[Any] = Mailbox(1, drop == "oldest", bell.ring, _space(kind))
        flow = FrameFlow(self.engine, partial(_begin_async, self, bell.ring, tasks, mode, data_class), mailbox, settings)
        found = source if kind == "async" else items(source, kind, mailbox.stopped)
        return self._watched(AsyncFrames(flow, mailbox, bell, tasks, found, "edgeroute-frames"))

    def audio(
        self,
        chunks: Any,
        *,
        rate: int = 16_000,
        vad: Vad | None = None,
        window: int | None = None,
        on: float = 0.5,
        off: float = 0.35,
        min_speech: float = 0.1,
        hangover: float = 0.5,
        lead: float = 0.2,
        max_segment: float = 15.0,
        max_in_flight: int = 2,
        drop: Drop = "oldest",
        barge_in: bool | None = None,
        on_barge_in: Callable[[float], object] | None = None,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        **unknown: NoReturn,
    ) -> AsyncAudio:
        """As `Router.audio`, for `async with` and `async for`; the source may be an async iterable, which is read in a task.

        Of an async iterable `vad` and `on_barge_in` are called on the event loop.
        """
        if unknown:
            check_unknown(AsyncLive.audio, unknown, type(self))
        settings = AudioSettings(
            rate, vad, window, on, off, min_speech, hangover, lead, max_segment, max_in_flight, drop, barge_in, on_barge_in, mode,
            deadline, data_class,
        ).checked()  # fmt: skip
        kind, bell, tasks = kind_of(chunks, "chunks", awaits=True, calls=False), Bell(), set[asyncio.Task[None]]()
        mailbox: Mailbox[Segment] = Mailbox(WAITING, drop == "oldest", bell.ring, _space(kind))
        flow = AudioFlow(partial(_begin_async, self, bell.ring, tasks, mode, data_class), mailbox, settings)
        found: Any = segments_async(chunks, flow.listener)
        if kind != "async":
            found = segments(chunks, kind, flow.listener, mailbox.stopped)
        return self._watched(AsyncAudio(flow, mailbox, bell, tasks, found, "edgeroute-audio"))

    def _watched(self, updates: A) -> A:
        found: WeakSet[Any] = self.__dict__.setdefault("_live", WeakSet())  # atomic
        found.add(updates)
        return updates

    def _close(self) -> None:
        for one in [] if self._live is None else alive(self._live):
            one.router_closed()
        super()._close()


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
