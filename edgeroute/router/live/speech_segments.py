"""Speech of a live source (`AudioFlow`, `Listener`, settings): cut into segments, each answered by the edge, then the cloud.

New speech cancels pending answers.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeroute.core.live_frames_speech_and_display import Began, Ended, Loudness, Speech
from edgeroute.core.policy_egress_and_options import INF, Mode
from edgeroute.core.setting_unit_types import Count, Share
from edgeroute.errors import BadInput, PolicyError, check_number
from edgeroute.router.constructor_checks import check_seconds
from edgeroute.router.live.frames import Drop, check_drop, check_function
from edgeroute.router.live.source_reader_mailbox_and_calls import Begin, Call, Kind, Mailbox, equal, is_last, items
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.read_and_check_signatures import check_units
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.types import Answer

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Settings and results of `Router.audio`.

LOUDEST = 16.0  # largest sample of floats, whose full scale is 1; larger ones are in the scale of int16
LONGEST_S = 86400.0  # maximum seconds of a segment, and of pauses: a segment is held in memory

Vad = Callable[[Any], float]  # voice activity detector: samples of a window, float32 [samples] -> probability of speech, 0..1


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """Answer to one segment of speech.

    Attributes:
        index: number of the segment from 0, counting dropped ones.
        start_s: begin of the segment in the audio, seconds from the first sample.
        end_s: end of the segment.
        audio: samples of the segment, float32 [samples] from -1 to 1, with some of the audio just before and after it.
        answer: answer to the segment.
        final: True if no more follows for the segment; the outbox may have it (`answer.final` is False). False: the cloud is
            being called, and its answer may follow.
        changed: True if the answer differs from the one before to this segment, and so is to be spoken; True for the first
            answer.
        cut: True if the segment was cut for its length; the speech goes on in the next one.
    """

    index: int
    start_s: float
    end_s: float
    audio: NDArray[Any]
    answer: Answer
    final: bool
    changed: bool
    cut: bool

    @property
    def provisional(self) -> bool:
        """True if the cloud is being called about the segment."""
        return not self.final


class BargeIn(NamedTuple):
    """Speech began while an answer was being spoken, or was still expected from the cloud.

    Pending answers to earlier segments do not come any more: their provisional answers stand.

    Attributes:
        at_s: begin of the speech in the audio, seconds.
        cancelled: indices of the segments whose final answers were cancelled.
    """

    at_s: float
    cancelled: tuple[int, ...]


class AudioStats(NamedTuple):
    """Statistics of the audio so far.

    Attributes:
        heard_s: seconds of audio.
        segments: segments of speech.
        dropped: segments that were dropped, as too many waited.
        answered: segments with a first answer.
        refined: segments with a final answer after a provisional one.
        barge_ins: number of times that new speech cancelled pending answers.
        in_flight: segments that the cloud is being called about now.
    """

    heard_s: float
    segments: int
    dropped: int
    answered: int
    refined: int
    barge_ins: int
    in_flight: int


class AudioSettings(NamedTuple):
    """Arguments of `Router.audio`."""

    rate: Count = 16_000
    vad: Vad | None = None
    window: Count | None = None
    on: Share = 0.5
    off: float = 0.35
    min_speech: float = 0.1
    hangover: float = 0.5
    lead: float = 0.2
    max_segment: float = 15.0
    max_in_flight: Count = 2
    drop: Drop = "oldest"
    barge_in: bool | None = None
    on_barge_in: Callable[[float], object] | None = None
    mode: Mode | None = None
    deadline: float | None = None
    data_class: str | None = None

    def check(self) -> AudioSettings:
        """Return the settings after validation, with defaults for `window` and `barge_in`.

        Raises:
            PolicyError: an argument is invalid.
        """
        check_units(AudioSettings, self._asdict())
        check_number("off", self.off, most=self.on)
        check_drop(self.drop)
        for name in ("min_speech", "hangover", "max_segment", "deadline"):
            check_seconds(name, getattr(self, name))
        check_seconds("lead", self.lead, least=True)
        for name in ("min_speech", "hangover", "lead", "max_segment"):
            if getattr(self, name) > LONGEST_S:
                raise PolicyError(f"{name}= takes at most {LONGEST_S:g} seconds: a segment is held in memory until it ends")
        check_function("vad", self.vad)
        check_function("on_barge_in", self.on_barge_in)
        if self.barge_in is not None and not isinstance(self.barge_in, bool):
            raise PolicyError(f"barge_in= takes True, False or None, not {self.barge_in!r:.40}")
        if self.max_segment <= self.min_speech:
            raise PolicyError("max_segment= has to be longer than min_speech=")
        window = self.window or max(1, round(0.032 * self.rate))
        barge_in = self.drop == "oldest" if self.barge_in is None else self.barge_in
        return self._replace(window=window, barge_in=barge_in)


# Division of audio into segments of speech.


class Segment(NamedTuple):
    """Segment of speech."""

    number: int
    start_s: float
    end_s: float
    audio: NDArray[Any]
    cut: bool


class Listener:
    """Divider of audio chunks into segments of speech. Holds one segment, and some windows before it, in memory.

    Args:
        settings: validated settings.
        began: called at the begin of speech, with its instant in the audio, seconds.
    """

    def __init__(self, settings: AudioSettings, began: Callable[[float], object]) -> None:
        assert settings.window is not None, "it was checked"
        self._settings, self._began, self._size = settings, began, settings.window
        self._window_s = settings.window / settings.rate

        def windows(seconds: float) -> int:
            return max(1, math.ceil(seconds / self._window_s - 1e-9))

        self._speech = Speech(
            on=settings.on, off=settings.off, least=windows(settings.min_speech), hangover=windows(settings.hangover),
            most=windows(settings.max_segment),
        )  # fmt: skip
        self._loudness = Loudness(self._window_s)
        before = windows(settings.min_speech) + (windows(settings.lead) if settings.lead else 0)
        self._before: deque[Any] = deque(maxlen=before)
        self._inside: list[Any] = []
        self._rest: Any = None
        self._segments = self.windows = 0

    @property
    def heard_s(self) -> float:
        """Seconds of audio so far."""
        return self.windows * self._window_s

    def hear(self, chunk: Any) -> Iterator[Segment]:
        """Yield the segments that end within a chunk, whose beginnings are reported.

        Samples that fill no window wait for the next chunk.

        Args:
            chunk: float32 or int16, [samples] or [samples, channels], or bytes of int16.

        Raises:
            BadInput: the chunk is of another type, or `vad` returns no number.
        """
        samples = _as_mono(chunk)
        if self._rest is not None and len(self._rest):
            samples = np.concatenate([self._rest, samples])
        whole = len(samples) - len(samples) % self._size
        for begin in range(0, whole, self._size):
            if (segment := self._process_window(samples[begin : begin + self._size])) is not None:
                yield segment
        self._rest = samples[whole:].copy()

    def finish(self) -> Iterator[Segment]:
        """Yield the segment that is open at the end of the audio, if any."""
        if (end := self._speech.finish()) is not None:
            yield self._segment(end)

    def _process_window(self, window: Any) -> Segment | None:
        """Process one window. Return the segment that ends with it, or None; call `began` if speech begins. Copies the window."""
        window = window.copy()
        self.windows += 1
        probability = self._loudness.hear(_level_db(window)) if self._settings.vad is None else self._vad_probability(window)
        event = self._speech.hear(probability)
        (self._inside or self._before).append(window)
        if type(event) is Began:
            self._inside, self._before = [*self._before], deque(maxlen=self._before.maxlen)
            self._began(event.start * self._window_s)
        return self._segment(event) if type(event) is Ended else None

    def _vad_probability(self, window: Any) -> float:
        """Return the application's probability of speech in a window; raise BadInput if it is no number."""
        assert self._settings.vad is not None, "it was looked at"
        try:
            return float(call_contained(self._settings.vad, window))
        except (TypeError, ValueError) as e:
            raise BadInput(f"vad= returns a probability for {self._size} samples: {type(e).__name__}: {e}") from e

    def _segment(self, ended: Ended) -> Segment:
        """Return the segment that ends here, and begin anew; after a cut the speech goes on in the next segment."""
        audio, self._inside = np.concatenate(self._inside), []
        if ended.cut:
            self._inside = [audio[:0]]  # the speech goes on
        number, self._segments = self._segments, self._segments + 1
        return Segment(number, ended.start * self._window_s, ended.end * self._window_s, audio, ended.cut)


def _as_mono(chunk: Any) -> NDArray[Any]:
    """Return a chunk as float32 [samples], the mean of its channels: floats as they are, int16 and bytes of it from -1 to 1.

    NaN and infinities count as 0. Raises BadInput for other types, an odd number of bytes, and floats beyond 16.
    """
    if isinstance(chunk, bytes | bytearray) or (isinstance(chunk, memoryview) and chunk.itemsize == 1):
        if len(chunk) % 2:
            raise BadInput(f"bytes of audio are samples of int16, two bytes each, and these are {len(chunk)}")
        chunk = np.frombuffer(chunk, "<i2")
    samples = np.asarray(chunk)
    if samples.ndim not in {1, 2} or samples.dtype.kind not in "if" or (samples.dtype.kind == "i" and samples.dtype != np.int16):
        raise BadInput(f"audio is float32 (-1 to 1) or int16, [samples(, channels)], not {samples.dtype} {list(samples.shape)}")
    with np.errstate(over="ignore"):  # of float64 that float32 has not
        scaled = samples.astype(np.float32) / np.float32(32768 if samples.dtype.kind == "i" else 1)
    if samples.dtype.kind == "f":
        scaled = np.nan_to_num(scaled, copy=False, nan=0.0, posinf=0.0, neginf=0.0)  # no sample is infinite: it counts as silence
        if scaled.size and (peak := float(np.abs(scaled).max())) > LOUDEST:
            raise BadInput(f"audio as float32 is from -1 to 1, and has {peak:.6g}: divide it by 32768, or give it as int16")
    mixed = scaled.mean(1) if scaled.ndim == 2 else scaled  # noqa: PLR2004 - with channels
    return np.asarray(mixed, np.float32)


def _level_db(window: NDArray[Any]) -> float:
    """Return the level of a window of floats, less its mean, in dB of full scale. -inf for silence."""
    power = float(np.square(window - window.mean()).mean())
    return 10 * math.log10(power) if power > 0 else -INF


def segments(chunks: Any, kind: Kind, listener: Listener, stopped: threading.Event) -> Iterator[Segment]:
    """Read chunks and yield their segments of speech, until `stopped` is set; blocks. The open segment comes at the end.

    At an error of the source, too, it comes before the exception.
    """
    try:
        for chunk in items(chunks, kind, stopped):
            yield from listener.hear(chunk)
            if stopped.is_set():
                return
    except Exception:
        yield from listener.finish()
        raise
    yield from listener.finish()


async def segments_async(chunks: AsyncIterable[Any], listener: Listener) -> AsyncIterator[Segment]:
    """Yield the segments of asynchronous chunks, and at the end the open one.

    At an error of the source it comes before the exception.
    """
    import asyncio  # not for a router of threads

    try:
        async for chunk in chunks:
            for segment in listener.hear(chunk):
                yield segment
            await asyncio.sleep(0)  # a source that never waits would keep the loop
    except Exception:
        for segment in listener.finish():
            yield segment
        raise
    for segment in listener.finish():
        yield segment


WAITING = 4  # maximum segments that wait to be answered


@dataclass(slots=True, eq=False)
class _PendingSegment:
    """Segment with a call under way."""

    segment: Segment
    call: Call
    shown: Answer | None = None  # provisional answer that the caller got; None: none
    ready: Answer | BaseException | None = None  # next answer, or error, of the call after the provisional one; None: not yet


class AudioFlow:
    """Decider of the next step with the segments of one source: begins, polls and cancels calls, and reports a barge-in.

    A driver does the waiting, so that threads and asyncio share the rest.

    Args:
        begin: begins a call of the router.
        mailbox: unread segments.
        settings: validated settings.
    """

    def __init__(self, begin: Begin, mailbox: Mailbox[Segment], settings: AudioSettings) -> None:
        self._begin, self._mailbox, self._settings = begin, mailbox, settings
        self._current: _PendingSegment | None = None
        self._flights: list[_PendingSegment] = []
        self._barged: deque[float] = deque()
        self._answered = self._refined = self._barge_ins = self._speaking = 0
        self._consumed = False
        self.listener = Listener(settings, self.began)

    def began(self, at_s: float) -> None:
        """Record the begin of speech, if it interrupts an answer that is spoken or pending; call `on_barge_in`, and ring.

        Called by the source's reader, in its thread. The function's exception is logged.
        """
        pending = self._consumed or self._speaking or self._flights
        if not (self._settings.barge_in and pending):
            return
        self._barged.append(at_s)
        if self._settings.on_barge_in is not None:
            try:
                call_contained(self._settings.on_barge_in, at_s)
            except Exception:
                log.exception("on_barge_in failed; the audio goes on")
        self._mailbox.ring()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Mark an answer as being spoken within the block."""
        self._speaking += 1
        try:
            yield
        finally:
            self._speaking -= 1

    def step(self, now: float) -> Utterance | BargeIn | float | None:
        """Return the next event, or the instant until which to wait for it; None: the end.

        Begins, polls and cancels calls. Waits for none, but for threads an edge may run here.

        Raises:
            BadInput, NoAnswer, PolicyError: a segment failed; the next step goes on with the next one.
        """
        del now  # a segment waits for nothing but its calls
        self._consumed = False
        event = self._step()
        self._consumed = isinstance(event, Utterance)
        return event

    def _step(self) -> Utterance | BargeIn | float | None:
        """Advance the calls, begin the next segment, and return the next event, or the instant to wait for; None: the end.

        Barge-ins come first, then later answers in the order of segments, then first answers. Raises the error of a call.
        """
        if self._barged:  # the call of the current segment, which has no answer yet, goes on
            at_s = self._barged.popleft()
            earlier = [asked for asked in self._flights if asked.segment.start_s < at_s]
            for asked in earlier:
                self._flights.remove(asked)
                asked.call.close()
            self._barge_ins += 1
            return BargeIn(at_s, tuple(asked.segment.number for asked in earlier))
        for asked in self._flights:
            if asked.ready is None:
                asked.ready = _poll(asked.call)
        if self._flights and self._flights[0].ready is not None:
            return self._later_answer(self._flights.pop(0))
        ended = self._mailbox.ended  # before it is looked whether there is one
        if self._current is None:
            self._begin_next()
        if self._current is not None and (utterance := self._first_answer(self._current)) is not None:
            return utterance
        if ended and self._current is None and not self._flights and not self._mailbox and not self._barged:
            return None
        asked_now = [*self._flights, *([] if self._current is None else [self._current])]
        return min((asked.call.until for asked in asked_now), default=INF)

    def stats(self) -> AudioStats:
        """Return statistics of the audio so far."""
        box = self._mailbox
        return AudioStats(
            self.listener.heard_s, box.read, box.dropped, self._answered, self._refined, self._barge_ins, len(self._flights)
        )

    def close(self) -> None:
        """Discard the segments under way, and cancel their calls."""
        pending = [*self._flights, *([] if self._current is None else [self._current])]
        self._flights, self._current = [], None
        for segment in pending:
            segment.call.close()

    def _begin_next(self) -> None:
        """Begin a call for the next waiting segment, if there is one.

        If enough clouds' calls are under way, the edge alone is asked; with `drop="never"` the segment waits.
        """
        full = len(self._flights) >= self._settings.max_in_flight
        if full and self._settings.drop == "never":
            return
        if (got := self._mailbox.take()) is not None:
            self._current = _PendingSegment(got.item, self._begin(got.item.audio, full, self._settings.deadline))

    def _first_answer(self, asked: _PendingSegment) -> Utterance | None:
        """Return the first answer to a segment and count it; None: not yet. Raises the error of the call.

        After an answer or an error no segment is current; a provisional answer is awaited further, among `_flights`.
        """
        try:
            answer = asked.call.poll()
        except BaseException:
            self._current = None
            raise
        if answer is None:
            return None
        self._current = None
        self._answered += 1
        if not is_last(answer):
            asked.shown = answer
            self._flights.append(asked)
        return _utterance(asked.segment, answer, changed=True)

    def _later_answer(self, asked: _PendingSegment) -> Utterance:
        """Return a later answer to a segment, or raise its error. A final one is counted; another is awaited further."""
        assert asked.ready is not None, "it has come"
        if isinstance(asked.ready, BaseException):
            raise asked.ready
        assert asked.shown is not None, "there was a provisional one"
        changed = not equal(asked.shown.value, asked.ready.value)
        if not is_last(asked.ready):  # of a larger edge: the cloud's may follow
            answer = asked.shown = asked.ready
            asked.ready = None
            self._flights.insert(0, asked)
            return _utterance(asked.segment, answer, changed=changed)
        self._refined += 1
        return _utterance(asked.segment, asked.ready, changed=changed)


def _poll(call: Call) -> Answer | BaseException | None:
    """Return the next answer of a call, or its exception; None: not yet."""
    try:
        return call.poll()
    except Exception as e:  # noqa: BLE001 - raised where its answer would have come
        return e


def _utterance(segment: Segment, answer: Answer, *, changed: bool) -> Utterance:
    """Return an answer as an `Utterance`."""
    return Utterance(segment.number, segment.start_s, segment.end_s, segment.audio, answer, is_last(answer), changed, segment.cut)
