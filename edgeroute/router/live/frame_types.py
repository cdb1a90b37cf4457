"""What the caller of `frames` gives and gets: settings, updates, and the default signature of a frame."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, NamedTuple

from edgeroute.core.policy import Mode
from edgeroute.errors import BadInput, PolicyError, check_number
from edgeroute.router.arguments import check_seconds
from edgeroute.types import Answer

Drop = Literal["oldest", "never"]
Held = Literal["", "scene", "in_flight"]
Signature = Callable[[Any], Sequence[float]]
ACROSS, BLOCK = 32, 4
"""Samples of a frame in each direction, and how many of them a value of its signature is the mean of."""
FOREVER_S = 1e9
"""Refinements that are of use for so many seconds are so for ever."""
BYTES_ABOVE = 8.0
"""Floats with a larger one among them are 0..255: more than resizing and normalising make of 0..1, less than in dark pictures."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameUpdate:
    """What is known of one frame.

    Attributes:
        frame_index: the frame's number from 0, counting those that were dropped.
        frame: the frame itself.
        at: instant at which the source gave it (`time.monotonic`), seconds.
        age_s: seconds from then to this update.
        answer: the answer to this frame; where `reused_from` is set, that of an earlier frame of the scene.
        edge: the edge's own answer to this frame; None: it gave none.
        final: nothing more comes for this frame.
        held: why the cloud was not to be asked about this frame: "scene" (it was asked about one like it), or "in_flight" (it is
            being asked about as many as may be); empty: it was not held back.
        reused_from: the index of the frame whose refined answer this is; None: it is this frame's own.
        label: what hysteresis looks at: the answer's value, or what `label=` makes of it; None: it cannot be compared, as numbers
            with a fraction and lists cannot.
        shown: the answer to show: the last one that has the label which hysteresis lets through.
        changed: whether `shown` has another label than in the update before; True where labels cannot be compared.
    """

    frame_index: int
    frame: Any
    at: float
    age_s: float
    answer: Answer
    edge: Answer | None
    final: bool
    held: Held
    reused_from: int | None
    label: Hashable
    shown: Answer
    changed: bool

    @property
    def provisional(self) -> bool:
        """Whether the cloud is being asked about this frame. A final update may follow."""
        return not self.final


class FrameStats(NamedTuple):
    """Statistics of the frames so far."""

    read: int
    """Frames that the source has given."""
    dropped: int
    """Of these: never looked at, as a newer one was there."""
    answered: int
    """Frames with an answer of the edge, or of a cloud that is alone."""
    refined: int
    """Frames with an answer of the cloud."""
    unrefined: int
    """Frames that the cloud was to be asked about, and did not answer: the reason of their final updates says why."""
    reused: int
    """Frames shown the refined answer of an earlier one of the scene."""
    outdated: int
    """Refinements that were cancelled or dropped, as they came too late, after a newer one, or after the scene."""
    failed: int
    """Frames for which the edge was too slow."""
    scenes: int
    """Scenes so far, as `scene=` tells them apart."""
    in_flight: int
    """Frames that the cloud is being asked about now."""
    edge_s: float
    """Smoothed latency of the edge's answers, seconds."""


class FrameSettings(NamedTuple):
    """The arguments of `Router.frames`."""

    max_in_flight: int = 2
    drop: Drop = "oldest"
    every: float | None = None
    stale: float | None = 1.0
    hold: int = 3
    margin: float | None = 0.2
    scene: float | None = 0.03
    refresh: float | None = 30.0
    signature: Signature | None = None
    label: Callable[[Any], Hashable] | None = None
    busy: float = 1.0
    mode: Mode | None = None
    deadline: float | None = None
    data_class: str | None = None

    def checked(self) -> FrameSettings:
        """Itself.

        Raises:
            PolicyError: an argument is invalid.
        """
        check_number("max_in_flight", self.max_in_flight, least=1, whole=True)
        check_number("hold", self.hold, least=1, whole=True)
        check_drop(self.drop)
        for name in ("every", "stale", "refresh", "deadline"):
            check_seconds(name, getattr(self, name))
        if self.every == inf:
            raise PolicyError("every= takes the seconds from one frame to the next, and with inf there is no next")
        for name in ("margin", "scene"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value)
        check_number("busy", self.busy, most=1)
        if not self.busy:
            raise PolicyError("busy= is the share of time that the edge may run, more than 0 up to 1")
        check_function("signature", self.signature)
        check_function("label", self.label)
        return self if self.stale is None or self.stale < FOREVER_S else self._replace(stale=None)


def check_function(name: str, value: object) -> None:
    """Raises PolicyError if it is no function; None is not given."""
    if value is not None and not callable(value):
        raise PolicyError(f"{name}= takes a function, not {value!r:.40}")


def check_drop(drop: object) -> None:
    """Raises PolicyError if it is no way to drop."""
    if drop not in {"oldest", "never"}:
        raise PolicyError(f'drop= takes "oldest" (a live source) or "never" (a recording), not {drop!r:.40}')


def signature_of(frame: Any) -> Sequence[float]:
    """Brightness of an 8 by 8 grid: means of blocks of samples, 0..1. frame: [rows, columns] or [rows, columns, channels].

    Integers are divided by their largest. Floats are 0..1, or 0..255 where one is above 8; what is not finite counts as 0.

    Raises:
        BadInput: the frame is no such array.
    """
    import numpy as np

    grid = np.asarray(frame)
    if grid.ndim not in {2, 3} or grid.dtype.kind not in "uifb":
        raise BadInput(
            "scenes are told apart by frames as arrays [rows, columns] or [rows, columns, channels]: give signature=, a function "
            "of a frame that returns numbers, or scene=None"
        )
    rows, columns = (np.linspace(0, size - 1, min(size, ACROSS)).astype(int) for size in grid.shape[:2])
    sampled = grid[rows[:, None], columns].astype(np.float32)
    if grid.dtype.kind == "f":
        sampled = np.nan_to_num(sampled, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        if sampled.max(initial=0.0) > BYTES_ABOVE:
            sampled /= 255
    if sampled.ndim == 3:  # noqa: PLR2004 - with channels
        sampled = sampled.mean(2)
    if grid.dtype.kind in "ui":
        sampled /= np.iinfo(grid.dtype).max
    starts = [np.arange(0, size, BLOCK) for size in sampled.shape]
    sums = np.add.reduceat(np.add.reduceat(sampled, starts[0], 0), starts[1], 1)
    down, across = (np.diff(np.append(start, size)) for start, size in zip(starts, sampled.shape, strict=True))
    return (sums / np.outer(down, across)).ravel().tolist()  # type: ignore[no-any-return]
