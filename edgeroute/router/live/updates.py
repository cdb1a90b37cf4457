"""Iterator over what comes of a live source, for threads. A flow, which asyncio's (tasks.py) shares, decides what comes next."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from edgeroute.core.policy import INF, Mode
from edgeroute.errors import BadInput, Closed
from edgeroute.router.live.audio import WAITING, AudioFlow, AudioSettings, AudioStats, BargeIn, Segment, Utterance, Vad, segments
from edgeroute.router.live.frames import Drop, FrameFlow, FrameSettings, FrameStats, FrameUpdate, Signature
from edgeroute.router.live.source import Call, DirectCall, Mailbox, PolledCall, fill, items, kind_of
from edgeroute.router.streams import Streaming
from edgeroute.system.logs import quietly
from edgeroute.system.process import alive

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


# `frames` and `audio` of `Router`.

W = TypeVar("W", bound=Updates[Any])


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


class Live(Streaming):
    """`frames` and `audio` of `Router`."""

    _live: WeakSet[Updates[Any]] | None = None

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
    ) -> Frames:
        """Answers the frames of a live source: each time the newest, by the edge, and by the cloud while others are answered.

        Yields a `FrameUpdate` for each frame that is taken, in their order, with the edge's answer; for some of them another one
        later, with the cloud's, also in their order. A refinement that is there comes before the next frame's answer. Nothing is
        queued: what the source gives while a frame is being answered, or before the program asks for the next update, is replaced
        by what it gives next.

        Args:
            source: an iterable of frames, an object with `read() -> (ok, frame)` (`cv2.VideoCapture`), or a function that gives
                the newest frame (None or the same object again: there is none; StopIteration: the end). It is read in one
                thread. Each frame is an object of its own, which is not written to later.
            max_in_flight: frames that the cloud is asked about at once; meanwhile others are answered by the edge alone.
            drop: "oldest": a newer frame replaces one that was not taken; "never": the source waits (a recording).
            every: seconds between two frames that are taken, at least; None: as quickly as the edge answers.
            stale: seconds from a frame on within which its refinement is of use; a call that takes longer is cancelled. None:
                no limit. A refinement is also dropped after a newer one, and after the scene.
            hold: another label is shown once it has come for so many frames in a row; 1: at once (no hysteresis).
            margin: or once its confidence exceeds that of the one shown by so much; None: that changes nothing. The cloud's is
                shown at once.
            scene: the largest mean difference of two frames' signatures within a scene. In a scene the cloud is asked once, and
                its answer is that of the frames that follow. None: no scenes.
            refresh: seconds after which the cloud is asked about a scene again; None: never.
            signature: a function of a frame that returns some numbers; None: the brightness of an 8 by 8 grid, 0..1, of integers,
                or of floats that are 0..1 or 0..255 (those with one above 8); NaN and infinities count as 0.
            label: a function of an answer's value that returns what hysteresis compares; None: the value, if it is hashable.
            busy: the share of time that the edge may run, more than 0 up to 1: it rests in proportion to its measured latency.
            mode: overrides the policy's.
            deadline: seconds for a frame; overrides the policy's.
            data_class: the kind of data.

        Raises:
            PolicyError, BadInput: an argument, or the source, is invalid.
        """
        settings = FrameSettings(
            max_in_flight, drop, every, stale, hold, margin, scene, refresh, signature, label, busy, mode, deadline, data_class
        ).checked()
        kind, bell = kind_of(source, "frames", awaits=False), threading.Event()
        mailbox: Mailbox[Any] = Mailbox(1, drop == "oldest", bell.set, threading.Event())
        begin = partial(begin_call, self, bell.set, mode, data_class)
        flow = FrameFlow(self.engine, begin, mailbox, settings)
        return self._watched(Frames(flow, mailbox, bell, items(source, kind, mailbox.stopped), "edgeroute-frames"))

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
    ) -> Audio:
        """Answers speech: yields an `Utterance` for each of its segments with the edge's answer, and then with the cloud's.

        The input of the router is a segment, float32 [samples]. First answers come in the order of the segments, and so do final
        ones. `changed` is False where a final answer is what was said already. A `BargeIn` comes where speech begins while an
        answer is being consumed (the program has not asked for the next item) or spoken (`Audio.speaking`), or while the cloud is
        being asked about an earlier segment: what was pending is cancelled, and the provisional answers stand.

        Args:
            chunks: an iterable of chunks: float32 from -1 to 1 or int16, [samples] or [samples, channels] (which are mixed), or
                bytes of int16. It is read in one thread.
            rate: samples a second.
            vad: the probability (0..1) of speech in a window, float32 [window]; called in the order of the windows. None: by
                loudness above the noise.
            window: samples of a window; None: 32 ms.
            on: speech begins with windows of at least this probability,
            off: and ends with windows below this one.
            min_speech: seconds of speech with which a segment begins.
            hangover: seconds without speech with which it ends.
            lead: seconds before it that are part of its audio.
            max_segment: seconds of a segment; a longer one is cut, and goes on as the next.
            max_in_flight: segments that the cloud is asked about at once.
            drop: "oldest" (a live source): where more than four segments wait, one is dropped, and while the cloud is being asked
                about as many as may be, the edge alone answers; "never" (a recording): the source waits.
            barge_in: whether new speech cancels what is pending; None: of a live source it does.
            on_barge_in: called at once, with the position of the speech in seconds, in the thread that reads the source: to stop
                speaking.
            mode: overrides the policy's.
            deadline: seconds for a segment, from when it is taken; overrides the policy's.
            data_class: the kind of data.

        Raises:
            PolicyError, BadInput: an argument, or the source, is invalid.
        """
        settings = AudioSettings(
            rate, vad, window, on, off, min_speech, hangover, lead, max_segment, max_in_flight, drop, barge_in, on_barge_in, mode,
            deadline, data_class,
        ).checked()  # fmt: skip
        kind, bell = kind_of(chunks, "chunks", awaits=False, calls=False), threading.Event()
        mailbox: Mailbox[Segment] = Mailbox(WAITING, drop == "oldest", bell.set, threading.Event())
        flow = AudioFlow(partial(begin_call, self, bell.set, mode, data_class), mailbox, settings)
        found = segments(chunks, kind, flow.listener, mailbox.stopped)
        return self._watched(Audio(flow, mailbox, bell, found, "edgeroute-audio"))

    def _watched(self, updates: W) -> W:
        found: WeakSet[Any] = self.__dict__.setdefault("_live", WeakSet())  # atomic
        found.add(updates)
        return updates

    def _close(self) -> None:
        for one in [] if self._live is None else alive(self._live):
            one.router_closed()
        super()._close()


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
