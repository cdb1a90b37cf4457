"""What the caller of `audio` gives and gets: settings, utterances, barge-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.policy import Mode
from edgeroute.errors import PolicyError, check_number
from edgeroute.router.arguments import check_seconds
from edgeroute.router.live.frame_types import Drop, check_drop, check_function
from edgeroute.types import Answer

LONGEST_S = 86400.0
"""Audio that is held in memory, and pauses within it."""

if TYPE_CHECKING:
    from numpy.typing import NDArray

Vad = Callable[[Any], float]


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """An answer to one segment of speech.

    Attributes:
        index: the segment's number from 0, counting those that were dropped.
        start_s: where it begins in the audio, seconds from the first sample.
        end_s: where it ends.
        audio: its samples, float32 [samples] from -1 to 1, with what was heard just before and after it.
        answer: to it.
        final: nothing more comes for it. False: the cloud is being asked, and its answer may follow.
        changed: whether the answer differs from the one before to this segment: what is to be spoken. True for its first answer.
        cut: the segment was cut for its length; the speech goes on in the next one.
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
        """Whether the cloud is being asked about it."""
        return not self.final


class BargeIn(NamedTuple):
    """Speech has begun while an answer was being spoken, or was yet to come from the cloud.

    What had not come to earlier segments does not come any more: their provisional answers stand.
    """

    at_s: float
    """Where the speech begins in the audio, seconds."""
    cancelled: tuple[int, ...]
    """The indices of the segments whose final answers do not come any more."""


class AudioStats(NamedTuple):
    """Statistics of the audio so far."""

    heard_s: float
    """Seconds of audio."""
    segments: int
    """Segments of speech that were heard."""
    dropped: int
    """Segments that were dropped, as too many waited."""
    answered: int
    """Those with a first answer."""
    refined: int
    """Segments with a final answer after a provisional one."""
    barge_ins: int
    """How often new speech cancelled what earlier segments waited for."""
    in_flight: int
    """Segments that the cloud is being asked about now."""


class AudioSettings(NamedTuple):
    """The arguments of `Router.audio`."""

    rate: int = 16_000
    vad: Vad | None = None
    window: int | None = None
    on: float = 0.5
    off: float = 0.35
    min_speech: float = 0.1
    hangover: float = 0.5
    lead: float = 0.2
    max_segment: float = 15.0
    max_in_flight: int = 2
    drop: Drop = "oldest"
    barge_in: bool | None = None
    on_barge_in: Callable[[float], object] | None = None
    mode: Mode | None = None
    deadline: float | None = None
    data_class: str | None = None

    def checked(self) -> AudioSettings:
        """Itself, with the window and whether new speech cancels.

        Raises:
            PolicyError: an argument is invalid.
        """
        for name in ("rate", "max_in_flight"):
            check_number(name, getattr(self, name), least=1, whole=True)
        if self.window is not None:
            check_number("window", self.window, least=1, whole=True)
        check_number("on", self.on, most=1)
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
