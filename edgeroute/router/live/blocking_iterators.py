"""Blocking iterators over the results of a live source, for threads; base of those for asyncio (asyncio_iterators.py)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from edgeroute.core.policy_egress_and_options import INF, Mode
from edgeroute.errors import BadInput, Closed
from edgeroute.router.live import speech_segments as speech
from edgeroute.router.live.frames import FrameFlow, FrameSettings, FrameStats, FrameUpdate
from edgeroute.router.live.source_reader_mailbox_and_calls import Call, Kind, Mailbox, PolledCall, fill, items, kind_of, once
from edgeroute.system.contained_calls_and_tasks import ClosedByWith
from edgeroute.system.sanitised_logs_and_contained_errors import call_quietly

if TYPE_CHECKING:
    from typing_extensions import Self

U = TypeVar("U", covariant=True)  # noqa: PLC0105 - one letter, as everywhere
CLOSE_S = 1.0  # maximum seconds that `close` waits for a source that is being read
ROUTER_CLOSED = "the router was closed while its answers were being iterated over"
BUSY = "another thread or task is at this iterator: one consumer for each"


class Flow(Protocol[U]):
    """Decider of the next step of an iterator."""

    def step(self, now: float) -> U | float | None:
        """Return the next item at this instant, or the instant until which to wait; None: the end."""

    def close(self) -> None:
        """Discard the items under way, and cancel their calls."""


class Bell:
    """Event that wakes the thread at an iterator, and the other differences between threads and asyncio."""

    awaits = False  # True if a source may be asynchronous

    def __init__(self) -> None:
        self.event = threading.Event()
        self.ring = self.event.set

    def space(self, kind: Kind) -> Any:  # noqa: ARG002 - asyncio's depends on it
        """Return a new event for which the reader of a source of this kind waits."""
        return threading.Event()

    def begin(self, router: Any, mode: Mode | None, data_class: str | None, x: Any, alone: bool, deadline: float | None) -> Call:
        """Return a call of a router, which begins only when it is first polled; `alone`: of its edge only, within that poll."""
        if alone:
            return PolledCall(once(partial(router.infer, x, mode="only_edge", deadline=deadline, data_class=data_class)))
        return PolledCall(router._refine_steps(x, mode, deadline, data_class, self.ring))  # noqa: SLF001 - a part of it


class LiveIterator(Generic[U]):
    """Base of both iterators over a live source: the reader's thread, one consumer at a time, the flow's next step, and the end.

    Args:
        flow: decider of the next step.
        mailbox: unread items of the source.
        bell: rung after an item, an answer or the end has come.
        source: source to be read into the mailbox.
        name: name of the reader's thread.
    """

    def __init__(self, flow: Flow[U], mailbox: Mailbox[Any], bell: Any, source: Any, name: str) -> None:
        self._flow, self._mailbox, self._bell, self._source, self._name = flow, mailbox, bell, source, name
        self._closed = self._router_closed = False
        self._reader: threading.Thread | None = None
        self._busy: dict[None, object] = {}

    def _read_in_thread(self) -> None:
        """Start the daemon thread that reads the source into the mailbox, and release the source."""
        reader = threading.Thread(target=fill, args=(self._mailbox, self._source), name=self._name, daemon=True)
        reader.start()
        self._reader, self._source = reader, None

    def router_closed(self) -> None:
        """End the iteration with `Closed`, as the router was closed; from any thread. Waiting items are dropped."""
        self._router_closed = True
        self._mailbox.close()
        self._mailbox.ring()

    @contextlib.contextmanager
    def _one_consumer(self) -> Iterator[None]:
        """Allow one consumer at a time within the block.

        Raises:
            BadInput: another thread or task is in it.
        """
        token = object()
        if self._busy.setdefault(None, token) is not token:  # atomic
            raise BadInput(BUSY)
        try:
            yield
        finally:
            self._busy.clear()

    def _look(self) -> tuple[U] | float | None:
        """Take the flow's next step at once. Return (item,), the seconds to wait for it, or None at the end.

        Clears the bell's event first. Raises what the flow raises for an input, and:

        Raises:
            Closed: the router was closed.
        """
        self._bell.event.clear()  # before it is looked for what rings it: what comes from here on is not missed
        if self._closed:
            return None
        if self._router_closed:
            raise Closed(ROUTER_CLOSED)
        now = monotonic()
        step = self._flow.step(now)
        if isinstance(step, float):
            return step - now
        return None if step is None else (step,)

    def _end(self, stop: Exception) -> NoReturn:
        """Raise the source's exception, if there is one, and forget it; or else raise `stop`."""
        error, self._mailbox.error = self._mailbox.error, None
        raise error or stop


class Updates(LiveIterator[U], ClosedByWith):
    """Iterator over the results of a live source, for a `with` and a `for`. One thread at a time.

    Leaving the `with`, or `close`, cancels the calls under way, and ends the thread that reads the source after the item it is
    reading. The program closes the source itself.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> U:
        """Return the next item; blocks. Begins to read the source at the first call.

        StopIteration at the end of the source, and after `close`.

        Raises:
            BadInput, NoAnswer: one input failed; the iteration may go on with the next one.
            Closed: the router was closed.
            Exception: of the source, once all items before it are answered.
        """
        with self._one_consumer():
            try:
                item = self._next()
            except Closed:
                self._shut()
                raise
            if item is None:
                self._shut()
                self._end(StopIteration())
            return item[0]

    def _next(self) -> tuple[U] | None:
        """Wait for the next item; (item,), or None at the end. Begins to read the source at the first call. Raises as `_look`."""
        if self._reader is None and not self._closed:
            self._read_in_thread()
        while isinstance(look := self._look(), float):
            if look > 0:
                self._bell.event.wait(None if look == INF else min(look, threading.TIMEOUT_MAX))
        return look

    def _shut(self) -> None:
        """Stop the reader, and cancel the calls under way."""
        self._closed = True
        self._mailbox.close()
        self._flow.close()

    def close(self) -> None:
        """End the iteration, from any thread: cancels the calls under way.

        Waits for the reader up to `CLOSE_S`; it may go on longer. A thread that is at the iterator is woken, and cancels the
        calls itself.
        """
        self._closed = True
        self._mailbox.close()
        self._bell.ring()
        with contextlib.suppress(BadInput), self._one_consumer():  # else the thread at it closes what is in progress
            self._flow.close()
        reader = self._reader
        if reader is not None and reader is not threading.current_thread():
            reader.join(CLOSE_S)

    def __del__(self) -> None:
        """Stop the reader and the calls of an iterator that was garbage collected unclosed."""
        if self.__dict__.get("_flow") is not None:
            self._mailbox.close()
            call_quietly(self._flow.close, "dropping an iterator over a live source")


class FramesBase:
    """Mixin with the statistics of an iterator over frames."""

    _flow: Any

    def stats(self) -> FrameStats:
        """Return statistics of the frames so far."""
        return self._flow.stats()  # type: ignore[no-any-return]


class AudioBase:
    """Mixin with the statistics and the barge-in of an iterator over speech."""

    _flow: Any

    def stats(self) -> speech.AudioStats:
        """Return statistics of the audio so far."""
        return self._flow.stats()  # type: ignore[no-any-return]

    def speaking(self) -> AbstractContextManager[None]:
        """Return a context manager for the time in which an answer is spoken: new speech then cancels pending answers.

        Use it outside the body of the `for`.
        """
        return self._flow.speaking()  # type: ignore[no-any-return]


class Frames(FramesBase, Updates[FrameUpdate]):
    """Iterator over the updates of a source's frames: `with router.frames(camera) as frames: for update in frames: ...`."""


class Audio(AudioBase, Updates[speech.Utterance | speech.BargeIn]):
    """Iterator over the answers to a source's speech: `with router.audio(chunks) as audio: for heard in audio: ...`."""


T = TypeVar("T")


def live_frames(router: Any, source: Any, settings: FrameSettings, make: Callable[..., T], bell: Any) -> T:
    """Return an iterator over the frames of a source, made by `make`; reads nothing yet. The mailbox has room for one frame.

    Raises BadInput for a source of another kind.
    """
    kind = kind_of(source, "frames", awaits=bell.awaits)
    mailbox: Mailbox[Any] = Mailbox(1, settings.drop == "oldest", bell.ring, bell.space(kind))
    begin = partial(bell.begin, router, settings.mode, settings.data_class)
    flow = FrameFlow(router.engine, begin, mailbox, settings)
    unread = source if kind == "async" else items(source, kind, mailbox.stopped)
    return make(flow, mailbox, bell, unread, "edgeroute-frames")


def live_audio(router: Any, chunks: Any, settings: speech.AudioSettings, make: Callable[..., T], bell: Any) -> T:
    """Return an iterator over the speech of a source, made by `make`; reads nothing yet.

    Raises BadInput for a source of another kind.
    """
    kind = kind_of(chunks, "chunks", awaits=bell.awaits, calls=False)
    mailbox: Mailbox[speech.Segment] = Mailbox(speech.WAITING, settings.drop == "oldest", bell.ring, bell.space(kind))
    flow = speech.AudioFlow(partial(bell.begin, router, settings.mode, settings.data_class), mailbox, settings)
    unread: Any = speech.segments_async(chunks, flow.listener)
    if kind != "async":
        unread = speech.segments(chunks, kind, flow.listener, mailbox.stopped)
    return make(flow, mailbox, bell, unread, "edgeroute-audio")
