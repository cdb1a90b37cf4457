"""Frames of a live source (`FrameFlow`, settings, results): the newest is answered by the edge, then refined by the cloud.

Older frames are dropped, an unchanged scene reuses its answer, and an outdated refinement is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from edgeroute.core.live_frames_speech_and_display import Display, Pace, Scene, Taken, next_display, scene_of, why_outdated
from edgeroute.core.policy_egress_and_options import INF, Mode
from edgeroute.core.setting_unit_types import Amount, Chance, Count
from edgeroute.errors import BadInput, DeadlineExceeded, PolicyError
from edgeroute.router.constructor_checks import check_seconds
from edgeroute.router.fallbacks_and_late_replies import AGREES, CORRECTS
from edgeroute.router.live.source_reader_mailbox_and_calls import Begin, Call, Mailbox, is_last
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.read_and_check_signatures import check_units
from edgeroute.system.sanitised_logs_and_contained_errors import Failures
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.router.engine import Engine


# Settings and results of `Router.frames`, and the default signature of a frame.

Drop = Literal["oldest", "never"]
HeldReason = Literal["", "scene", "in_flight"]
Signature = Callable[[Any], Sequence[float]]
# Samples of a frame in each direction, and the samples per direction of which a value of its signature is the mean.
ACROSS, BLOCK = 32, 4
FOREVER_S = 1e9  # refinements that are of use for so many seconds do not expire
# A float array with a larger value is 0..255: no resizing or normalising of 0..1 gives more, and dark pictures have less.
BYTES_ABOVE = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class FrameUpdate:
    """Answer to one frame.

    Attributes:
        frame_index: number of the frame from 0, counting dropped ones.
        frame: the frame.
        at: instant at which the source gave the frame (`time.monotonic`), seconds.
        age_s: seconds from then to this update.
        answer: answer to this frame, or with `reused_from` to an earlier frame of the scene.
        edge: the edge's answer to this frame; None: it gave none.
        final: True if no more follows for this frame. The outbox may have it: then `answer.final` is False.
        held: reason why the cloud is not called about this frame: "scene" (it was called about a similar one, or the outbox has
            one), or "in_flight" (it is being called about as many as allowed); empty: it may be called.
        reused_from: index of the frame whose refined answer this is; None: this frame's own.
        label: value for hysteresis: the answer's value, or the result of `label=`; None: not comparable, as numbers with a
            fraction and lists are not.
        shown: answer to show: the last one with the label that hysteresis lets through.
        changed: True if `shown` has another label than in the update before, or if labels cannot be compared.
    """

    frame_index: int
    frame: Any
    at: float
    age_s: float
    answer: Answer
    edge: Answer | None
    final: bool
    held: HeldReason
    reused_from: int | None
    label: Hashable
    shown: Answer
    changed: bool

    @property
    def provisional(self) -> bool:
        """True if the cloud is being called about this frame. A final update may follow."""
        return not self.final


class FrameStats(NamedTuple):
    """Statistics of the frames so far.

    Attributes:
        read: frames that the source gave.
        dropped: frames of these that were never processed, as a newer one was there.
        answered: frames with an answer of the edge, or of a cloud without an edge.
        refined: frames with an answer of the cloud.
        unrefined: frames about which the cloud was to be called, and did not answer: the reason of their final updates has the
            cause.
        reused: frames shown with the refined answer of an earlier frame of the scene.
        outdated: refinements that were cancelled or discarded, as they came too late, after a newer one, or after the scene.
        failed: frames for which the edge was too slow.
        scenes: scenes so far, as separated by `scene=`.
        in_flight: frames about which the cloud is being called now.
        edge_s: smoothed latency of the edge's answers, seconds.
    """

    read: int
    dropped: int
    answered: int
    refined: int
    unrefined: int
    reused: int
    outdated: int
    failed: int
    scenes: int
    in_flight: int
    edge_s: float


class FrameSettings(NamedTuple):
    """Arguments of `Router.frames`."""

    max_in_flight: Count = 2
    drop: Drop = "oldest"
    every: float | None = None
    stale: float | None = 1.0
    hold: Count = 3
    margin: Amount | None = 0.2
    scene: Amount | None = 0.03
    refresh: float | None = 30.0
    signature: Signature | None = None
    label: Callable[[Any], Hashable] | None = None
    busy: Chance = 1.0
    mode: Mode | None = None
    deadline: float | None = None
    data_class: str | None = None

    def check(self) -> FrameSettings:
        """Return the settings after validation; a `stale` of practically for ever becomes None.

        Raises:
            PolicyError: an argument is invalid.
        """
        check_units(FrameSettings, self._asdict())
        check_drop(self.drop)
        for name in ("every", "stale", "refresh", "deadline"):
            check_seconds(name, getattr(self, name))
        if self.every == inf:
            raise PolicyError("every= takes a finite number of seconds from one frame to the next")
        check_function("signature", self.signature)
        check_function("label", self.label)
        return self if self.stale is None or self.stale < FOREVER_S else self._replace(stale=None)


def check_function(name: str, value: object) -> None:
    """Raise PolicyError if an argument is neither a function nor None."""
    if value is not None and not callable(value):
        raise PolicyError(f"{name}= takes a function, not {value!r:.40}")


def check_drop(drop: object) -> None:
    """Raise PolicyError unless `drop` is "oldest" or "never"."""
    if drop not in {"oldest", "never"}:
        raise PolicyError(f'drop= takes "oldest" (a live source) or "never" (a recording), not {drop!r:.40}')


def signature_of(frame: Any) -> Sequence[float]:
    """Return the brightness of a frame's 8 by 8 grid: means of blocks of samples, 0..1.

    Integers are divided by their type's maximum. Floats are 0..1, or 0..255 if one is above 8; non-finite ones count as 0.
    Sampled, so that large frames take no longer.

    Args:
        frame: [rows, columns] or [rows, columns, channels].

    Raises:
        BadInput: the frame is no such array.
    """
    grid = np.asarray(frame)
    if grid.ndim not in {2, 3} or grid.dtype.kind not in "uifb":
        raise BadInput("scenes need frames as arrays [rows, columns(, channels)]: give signature=, or scene=None")
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


UNKNOWN = -1  # scene number of a frame whose signature failed
AGAIN = 3  # number of consecutive frames with another edge label after which a scene that looks the same counts as a new one


@dataclass(slots=True, eq=False)
class _PendingFrame:
    """Frame with a call under way."""

    taken: Taken
    frame: Any
    call: Call
    begun: float
    held: HeldReason
    ends: bool  # True if the call's deadline ends it once its refinement is of no use any more
    ours: bool  # True if that is its only deadline, so that passing it is no error
    edge: Answer | None = None


class _Refined(NamedTuple):
    """Last answer of the cloud in a scene."""

    number: int
    at: float
    answer: Answer


class FrameFlow:
    """Decider of the next step with the frames of one source: takes frames, begins, polls and cancels calls, detects scenes.

    A driver does the waiting, so that threads and asyncio share the rest.

    Args:
        engine: engine of the router.
        begin: begins a call of the router.
        mailbox: unread frames.
        settings: validated settings.
    """

    def __init__(self, engine: Engine, begin: Begin, mailbox: Mailbox[Any], settings: FrameSettings) -> None:
        self._engine, self._begin, self._mailbox, self._settings = engine, begin, mailbox, settings
        self._pace = Pace(settings.every or 0.0, settings.busy)
        self._signature_failed, self._label_failed = Failures(), Failures()
        self._scene, self._last = Scene(), -1
        # Number of the newest frame that the cloud answered: in a known scene, and in any.
        self._refined_until = self._cloud_until = -1
        self._refined: _Refined | None = None
        self._stored_at = -INF  # instant at which a frame of the scene was left to the outbox
        self._current: _PendingFrame | None = None
        self._flights: list[_PendingFrame] = []
        self._shown_label, self._edge_label = Display(), Display()
        self._shown: Answer | None = None
        self._answered = self._refined_count = self._unrefined = 0
        self._reused = self._outdated = self._failed = 0

    def step(self, now: float) -> FrameUpdate | float | None:
        """Return the next update at the instant `now`, or the instant until which to wait for it; None: the end.

        Takes frames, and begins, polls and cancels calls. Waits for none, but for threads an edge may run here.

        Raises:
            BadInput, NoAnswer, PolicyError: a frame failed; the next step goes on with the next one.
        """
        while True:
            for asked in [*self._flights]:
                if (update := self._refinement(asked, now)) is not None:
                    return update
            if self._current is not None:
                if (update := self._edge_answer(self._current, now)) is not None:
                    return update
                if self._current is not None:
                    return self._wake_at(now)
            ended = self._mailbox.ended  # before it is looked whether there is one
            if not self._take_frame(now):
                return None if ended and not self._flights and not self._mailbox else self._wake_at(now)

    def stats(self) -> FrameStats:
        """Return statistics of the frames so far."""
        box = self._mailbox
        return FrameStats(
            box.read, box.dropped, self._answered, self._refined_count, self._unrefined, self._reused, self._outdated,
            self._failed, self._scene.number, len(self._flights), self._pace.edge_s,
        )  # fmt: skip

    def close(self) -> None:
        """Discard the frames under way, and cancel their calls."""
        pending = [*self._flights, *([] if self._current is None else [self._current])]
        self._flights, self._current = [], None
        for frame in pending:
            frame.call.close()

    # Taking of frames

    def _take_frame(self, now: float) -> bool:
        """Take the next frame, if there is one and its time has come, and begin its call. Return True if so.

        A frame of a settled scene, or with enough clouds' calls under way, is the edge's alone; where only clouds answer, it
        waits for these.
        """
        full = len(self._flights) >= self._settings.max_in_flight
        alone = self._cloud_alone()
        if now < self._pace.due or (full and alone) or (got := self._mailbox.take()) is None:
            return False
        self._pace.due = now + (self._settings.every or 0.0)  # whoever answers, or nobody; an edge's run may put it off
        taken = Taken(got.number, got.at, self._next_scene(got.item))
        held: HeldReason = ""
        if not alone:  # else there is nobody else to ask
            held = "scene" if self._settled(taken, now) else "in_flight" if full else ""
        limit, useful = self._limits(held)
        asked = _PendingFrame(
            taken, got.item, self._begin(got.item, bool(held), limit), now, held, useful is not None, limit == useful
        )
        if alone:
            self._flights.append(asked)
        else:
            self._current = asked
        return True

    def _limits(self, held: HeldReason) -> tuple[float | None, float | None]:
        """Return the deadline of a call, and the seconds for which a refinement is of use, which may be the former.

        None: none or unknown.
        """
        given, stale = self._settings.deadline, self._settings.stale
        useful = None if held or stale is None else self._pace.deadline_s(stale)
        if useful is not None and useful < (given or self._engine.snapshot.policy.deadline_s):
            return useful, useful
        return given, useful

    def _cloud_alone(self) -> bool:
        """Return True if the mode (only_cloud, shadow) or a policy without edges leaves each frame to the cloud."""
        snapshot = self._engine.snapshot
        if (self._settings.mode or snapshot.policy.mode) in {"only_cloud", "shadow"}:
            return True
        return all(target.side == "cloud" for target in snapshot.targets)

    def _next_scene(self, frame: Any) -> int:
        """Return the number of the frame's scene, beginning a new one if it differs; `UNKNOWN` if the caller's function fails.

        That failure is logged, and the cloud is called about the frame as without scenes. 0 without scenes. Raises BadInput if no
        function is given and the frame has no signature.
        """
        if self._settings.scene is None:
            return 0
        custom = self._settings.signature
        try:
            signature = signature_of(frame) if custom is None else call_contained(lambda: [float(x) for x in custom(frame)])
        except Exception as e:
            if custom is None:
                raise
            self._signature_failed.log("signature= of a frame", e, coded=True)
            return UNKNOWN
        scene = scene_of(self._scene, signature, self._settings.scene)
        if scene is not self._scene:
            self._begin_scene(scene)
        return scene.number

    def _begin_scene(self, scene: Scene) -> None:
        """Begin a new scene, and discard the refined answer and labels of the one before."""
        self._scene, self._refined, self._stored_at = scene, None, -INF
        self._shown_label = self._edge_label = Display()

    def _settled(self, taken: Taken, now: float) -> bool:
        """Return True if the frame's scene needs no call of the cloud.

        The cloud has answered about it within `refresh` seconds, the outbox has got a frame of it, or a call is under way.

        False without scenes.
        """
        if self._settings.scene is None or taken.scene == UNKNOWN:
            return False
        fresh = self._settings.refresh or INF
        if now - max(self._stored_at, -INF if self._refined is None else self._refined.at) <= fresh:
            return True
        return any(asked.taken.scene == self._scene.number for asked in self._flights)

    # Answers to frames

    def _refinement(self, asked: _PendingFrame, now: float) -> FrameUpdate | None:
        """Poll the cloud's call about a frame. Return the update; None: not yet, or its answer is outdated.

        An outdated call is cancelled and counted, and its failure dropped; other failures are raised. A fallback to the edge is
        dropped if the frame is not the newest. A call that ended is removed.
        """
        scene = asked.taken.scene if self._settings.scene is None or asked.taken.scene == UNKNOWN else self._scene.number
        until = self._cloud_until if asked.taken.scene == UNKNOWN else self._refined_until
        why = why_outdated(asked.taken, now=now, scene=scene, refined=until, stale_s=self._settings.stale)
        if why in {"newer", "scene"} or (why and not asked.ends):
            self._flights.remove(asked)
            self._outdated += 1
            asked.call.close()
            return None
        try:
            answer = asked.call.poll()
        except BaseException as e:
            self._flights.remove(asked)
            if not why and not (asked.ours and isinstance(e, DeadlineExceeded)):
                raise
            self._outdated += 1
            return None
        if answer is None:
            return None
        if is_last(answer):
            self._flights.remove(asked)
        self._note_stored(asked, answer, now)
        if why:
            self._outdated += is_last(answer)
            return None
        self._unrefined += is_last(answer) and answer.source == "edge"
        if answer.source == "edge" and asked.taken.number < self._last:  # without the cloud, what is newer stands
            return None
        self._answered += asked.edge is None
        return self._update(asked, answer, now)

    def _edge_answer(self, asked: _PendingFrame, now: float) -> FrameUpdate | None:
        """Poll the call of the frame taken last; return the update of its first answer; None: not yet, or the edge was too slow.

        A provisional answer leaves its call among those of the cloud. Passing a deadline that staleness set is counted; the
        caller's deadline, and other errors, are raised. Updates the pace by the time taken.
        """
        try:
            answer = asked.call.poll()
        except DeadlineExceeded:
            self._current = None
            self._pace.took(asked.begun, now - asked.begun)
            if not asked.ours:
                raise
            self._failed += 1
            return None
        except BaseException:
            self._current = None
            raise
        if answer is None:
            return None
        self._current = None
        now = max(now, asked.begun + answer.latency_s)  # it may have run just now, here
        self._answered += 1
        self._last = asked.taken.number
        self._note_stored(asked, answer, now)
        if answer.source == "edge":
            asked.edge = answer
            self._pace.took(asked.begun, answer.latency_s)
            self._watch_label(asked, answer)
        if not is_last(answer):
            self._flights.append(asked)
        return self._update(asked, answer, now)

    def _note_stored(self, asked: _PendingFrame, answer: Answer, now: float) -> None:
        """Note if the outbox has got a frame of this scene, so that it gets no others."""
        if is_last(answer) and not answer.final and asked.taken.scene == self._scene.number:
            self._stored_at = now

    def _watch_label(self, asked: _PendingFrame, answer: Answer) -> None:
        """Begin a new scene if the edge keeps giving another label than at the scene's beginning, although it looks the same.

        Only after `AGAIN` frames or more, and once the cloud has answered about the scene.
        """
        label, comparable = self._label_of(answer)
        if self._settings.scene is None or asked.taken.scene == UNKNOWN or not comparable:
            return
        before = self._edge_label
        self._edge_label = next_display(before, label, None, hold=max(AGAIN, self._settings.hold))
        if before.begun and self._edge_label.label != before.label and self._refined is not None:
            self._begin_scene(Scene(self._scene.number + 1, self._scene.signature))
            asked.taken = asked.taken._replace(scene=self._scene.number)

    def _update(self, asked: _PendingFrame, answer: Answer, now: float) -> FrameUpdate:
        """Return the update for an answer, after updating the scene's refined answer, the hysteresis and the counts.

        In a settled scene the cloud's earlier answer is reused. A cloud's answer gets a note that compares it with the edge's.
        """
        taken, reused = asked.taken, None
        if answer.source != "edge" and answer.final:
            self._refined_count += 1
            self._cloud_until = max(self._cloud_until, taken.number)
            edge, known = (None, False) if asked.edge is None else self._label_of(asked.edge)
            if known and answer.source == "cloud":  # by label, where their values differ in what does not count
                answer.add_note(AGREES if self._label_of(answer) == (edge, True) else CORRECTS, final=True)
            if taken.scene != UNKNOWN:  # else the frames of the scene are in another one
                self._refined_until = max(self._refined_until, taken.number)
                self._refined = _Refined(taken.number, now, answer)
                self._edge_label = Display(edge, begun=True) if known else self._edge_label  # to which later ones are compared
        elif self._refined is not None and asked.held == "scene":
            self._reused += 1
            reused, answer = self._refined.number, self._refined.answer
        label, comparable = self._label_of(answer)
        changed = True
        if comparable:
            before, sure = self._shown_label, answer.source != "edge"
            self._shown_label = next_display(
                before, label, answer.confidence, hold=self._settings.hold, margin=self._settings.margin, sure=sure
            )
            changed = not before.begun or before.label != self._shown_label.label
        if not comparable or self._shown is None or label == self._shown_label.label:
            self._shown = answer
        return FrameUpdate(
            frame_index=taken.number, frame=asked.frame, at=taken.at, age_s=max(0.0, now - taken.at), answer=answer,
            edge=asked.edge, final=is_last(answer), held=asked.held, reused_from=reused, label=label,
            shown=self._shown, changed=changed,
        )  # fmt: skip

    def _label_of(self, answer: Answer) -> tuple[Hashable, bool]:
        """Return (label for hysteresis, True if it is comparable); a failure of the caller's function is logged.

        Not comparable are None, unhashable values and, without the function, fractions.
        """
        label = answer.value
        if self._settings.label is not None:
            try:
                label = call_contained(self._settings.label, label)
            except Exception as e:  # noqa: BLE001 - it is the caller's, and no answer is lost for it
                self._label_failed.log("label= of an answer", e, coded=True)
                return None, False
        elif isinstance(label, Real) and not isinstance(label, Integral):
            return None, False  # a measurement: no two are equal
        try:
            hash(label)
        except TypeError:
            return None, False
        return label, label is not None

    def _wake_at(self, now: float) -> float:
        """Return the monotonic instant of the next step, if nothing comes before; inf: none.

        It is that of a call, of a refinement's expiry, or of the next frame.
        """
        asked = [*self._flights, *([] if self._current is None else [self._current])]
        instants = [pending.call.until for pending in asked]
        if self._settings.stale is not None:
            instants += [
                math.nextafter(pending.taken.at + self._settings.stale, INF) for pending in self._flights if not pending.ends
            ]
        if self._current is None and self._mailbox and self._pace.due > now:
            instants.append(self._pace.due)
        return min(instants, default=INF)
