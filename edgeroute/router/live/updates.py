"""Iterator over what comes of a live source, for threads. A flow, which asyncio's (tasks.py) shares, decides what comes next."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from edgeroute.core.policy import INF, Mode
from edgeroute.errors import BadInput, Closed
from edgeroute.router.live.audio import WAITING, AudioFlow, AudioSettings, AudioStats, BargeIn, Segment, Utterance, segments
from edgeroute.router.live.frames import FrameFlow, FrameSettings, FrameStats, FrameUpdate
from edgeroute.router.live.source import Call, DirectCall, Mailbox, PolledCall, fill, items, kind_of
from edgeroute.system.logs import quietly

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


class Consumed:
    """State that both kinds of iterators have.

    Args:
        mailbox: what the source gave.
        found: what is read into it.
        name: of the thread that reads it.
    """

    def __init__(self, mailbox: Mailbox[Any], found: Any, name: str) -> None:
        self._mailbox, self._found, self._name = mailbox, found, name
        self._closed = self._router_closed = False
        self._reader: threading.Thread | None = None
        self._busy: dict[None, object] = {}

    def _read_in_thread(self) -> None:
        reader = threading.Thread(target=fill, args=(self._mailbox, self._found), name=self._name, daemon=True)
        reader.start()
        self._reader, self._found = reader, None

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


class Updates(Consumed, Generic[U]):
    """An iterator over what comes of a live source, for a `with` and a `for`. One thread at a time.

    Leaving the `with`, or `close`, cancels the calls that are in progress, and ends the thread that reads the source as soon as
    that has given what it is at. The source itself is the program's to close.
    """

    def __init__(self, flow: Flow[U], mailbox: Mailbox[Any], bell: threading.Event, found: Iterable[Any], name: str) -> None:
        super().__init__(mailbox, found, name)
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
                found = self._next()
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

    def _next(self) -> tuple[U] | None:
        if self._reader is None and not self._closed:
            self._read_in_thread()
        while True:
            self._bell.clear()  # before it is looked for what rings it: what comes from here on is not missed
            if self._closed:
                return None
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


class Frames(Updates[FrameUpdate]):
    """Iterator over the updates of a source's frames: `with router.frames(camera) as frames: for update in frames: ...`."""

    _flow: FrameFlow

    def stats(self) -> FrameStats:
        """Statistics of the frames so far."""
        return self._flow.stats()


class Audio(Updates[Utterance | BargeIn]):
    """Iterator over the answers to a source's speech: `with router.audio(chunks) as audio: for heard in audio: ...`."""

    _flow: AudioFlow

    def stats(self) -> AudioStats:
        """Statistics of the audio so far."""
        return self._flow.stats()

    def speaking(self) -> AbstractContextManager[None]:
        """A `with` for while an answer is spoken elsewhere than in the body of the `for`: new speech cancels what is pending."""
        return self._flow.speaking()


def frames_of(router: Any, source: Any, settings: FrameSettings) -> Frames:
    """Return the iterator of `Router.frames`."""
    kind, bell = kind_of(source, "frames", awaits=False), threading.Event()
    mailbox: Mailbox[Any] = Mailbox(1, settings.drop == "oldest", bell.set, threading.Event())
    begin = partial(begin_call, router, bell.set, settings.mode, settings.data_class)
    flow = FrameFlow(router.engine, begin, mailbox, settings)
    return Frames(flow, mailbox, bell, items(source, kind, mailbox.stopped), "edgeroute-frames")


def audio_of(router: Any, chunks: Any, settings: AudioSettings) -> Audio:
    """Return the iterator of `Router.audio`."""
    kind, bell = kind_of(chunks, "chunks", awaits=False, calls=False), threading.Event()
    mailbox: Mailbox[Segment] = Mailbox(WAITING, settings.drop == "oldest", bell.set, threading.Event())
    flow = AudioFlow(partial(begin_call, router, bell.set, settings.mode, settings.data_class), mailbox, settings)
    found = segments(chunks, kind, flow.listener, mailbox.stopped)
    return Audio(flow, mailbox, bell, found, "edgeroute-audio")


def begin_call(
    router: Any,
    ring: Callable[[], object],
    mode: Mode | None,
    data_class: str | None,
    x: Any,
    alone: bool,
    deadline: float | None,
) -> Call:
    """Begins a call of a `Router`; alone: of its edge."""
    if alone:
        return DirectCall(partial(router.infer, x, mode="only_edge", deadline=deadline, data_class=data_class))
    return PolledCall(router._refined(x, mode, deadline, data_class, ring))  # noqa: SLF001 - a part of it
