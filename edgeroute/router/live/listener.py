"""Chunks of audio -> segments of speech."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.policy import INF
from edgeroute.core.speech import Began, Ended, Loudness, Speech
from edgeroute.errors import BadInput
from edgeroute.router.live.audio_types import AudioSettings
from edgeroute.router.live.mailbox import Kind, items
from edgeroute.system import contained

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Segment(NamedTuple):
    """A segment of speech."""

    number: int
    start_s: float
    end_s: float
    audio: NDArray[Any]
    cut: bool


class Listener:
    """Turns chunks of audio into segments of speech. Holds one segment, and some windows before it.

    Args:
        settings: checked ones.
        began: called where speech begins, with its beginning in seconds.
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
        """The segments that end within a chunk: float32 or int16, [samples] or [samples, channels], or bytes of int16.

        Raises:
            BadInput: it is none.
        """
        import numpy as np

        samples = _mono(chunk)
        if self._rest is not None and len(self._rest):
            samples = np.concatenate([self._rest, samples])
        whole = len(samples) - len(samples) % self._size
        for at in range(0, whole, self._size):
            if (segment := self._window(samples[at : at + self._size])) is not None:
                yield segment
        self._rest = samples[whole:].copy()

    def finish(self) -> Iterator[Segment]:
        """The segment that the end of the audio ends."""
        ended = self._speech.finish()
        if ended is not None:
            yield self._segment(ended)

    def _window(self, window: Any) -> Segment | None:
        window = window.copy()
        self.windows += 1
        probability = self._loudness.hear(_level_db(window)) if self._settings.vad is None else self._heard(window)
        event = self._speech.hear(probability)
        (self._inside or self._before).append(window)
        if type(event) is Began:
            self._inside, self._before = [*self._before], deque(maxlen=self._before.maxlen)
            self._began(event.start * self._window_s)
        return self._segment(event) if type(event) is Ended else None

    def _heard(self, window: Any) -> float:
        assert self._settings.vad is not None, "it was looked at"
        try:
            return float(contained(self._settings.vad, window))
        except (TypeError, ValueError) as e:
            raise BadInput(f"vad= returns a probability for {self._size} samples: {type(e).__name__}: {e}") from e

    def _segment(self, ended: Ended) -> Segment:
        import numpy as np

        audio, self._inside = np.concatenate(self._inside), []
        if ended.cut:
            self._inside = [audio[:0]]  # the speech goes on
        number, self._segments = self._segments, self._segments + 1
        return Segment(number, ended.start * self._window_s, ended.end * self._window_s, audio, ended.cut)


def _mono(chunk: Any) -> NDArray[Any]:
    """A chunk as float32 [samples] from -1 to 1."""
    import numpy as np

    if isinstance(chunk, bytes | bytearray | memoryview):
        if len(chunk) % 2:
            raise BadInput(f"bytes of audio are samples of int16, two bytes each, and these are {len(chunk)}")
        chunk = np.frombuffer(chunk, "<i2")
    samples = np.asarray(chunk)
    if samples.ndim not in {1, 2} or samples.dtype.kind not in "if" or (samples.dtype.kind == "i" and samples.dtype != np.int16):
        raise BadInput(
            f"a chunk of audio is float32 from -1 to 1 or int16, [samples] or [samples, channels], not {samples.dtype} "
            f"{list(samples.shape)}"
        )
    with np.errstate(over="ignore"):  # of float64 that float32 has not
        scaled = samples.astype(np.float32) / np.float32(32768 if samples.dtype.kind == "i" else 1)
    if samples.dtype.kind == "f":
        scaled = np.nan_to_num(scaled, copy=False, nan=0.0, posinf=0.0, neginf=0.0)  # no sample is infinite: it counts as silence
    mixed = scaled.mean(1) if scaled.ndim == 2 else scaled  # noqa: PLR2004 - with channels
    return np.asarray(mixed, np.float32)


def _level_db(window: NDArray[Any]) -> float:
    """The level of a window in dB of full scale."""
    import numpy as np

    power = float(np.square(window - window.mean()).mean())
    return 10 * math.log10(power) if power > 0 else -INF


def segments(chunks: Any, kind: Kind, listener: Listener, stopped: threading.Event) -> Iterator[Segment]:
    """The segments of chunks, until it is stopped. Where the source fails, what was heard of a segment comes before its error."""
    try:
        for chunk in items(chunks, kind, stopped):
            yield from listener.hear(chunk)
            if stopped.is_set():
                return
    except Exception:
        yield from listener.finish()
        raise
    yield from listener.finish()
