"""Frames: each the newest there is, answered by the edge, and refined by the cloud while later ones are answered."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.frames import Pace, Taken, outdated
from edgeroute.core.policy import INF
from edgeroute.core.scene import Scene, scene_of
from edgeroute.core.steady import Steady, steadied
from edgeroute.errors import DeadlineExceeded
from edgeroute.failures import Failures
from edgeroute.router.live.calls import Begin, Call
from edgeroute.router.live.frame_types import FrameSettings, FrameStats, FrameUpdate, Held, signature_of
from edgeroute.router.live.mailbox import Mailbox
from edgeroute.system import contained
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.router.engine import Engine

UNKNOWN = -1
"""The scene of a frame whose signature could not be had."""
AGAIN = 3
"""So many frames in a row the edge says something else before a scene that looks the same counts as a new one."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A frame that an answer is awaited for."""

    taken: Taken
    frame: Any
    call: Call
    begun: float
    held: Held
    ends: bool
    """Whether its call ends by itself once its refinement is of no use any more."""
    ours: bool
    """Whether that is its only deadline: passing it is no error."""
    edge: Answer | None = None


class _Refined(NamedTuple):
    """The last answer of the cloud in a scene."""

    number: int
    at: float
    answer: Answer


class FrameFlow:
    """Decides what is done next with the frames of one source; a driver waits, and threads and asyncio share the rest.

    Args:
        engine: the router's.
        begin: begins a call of the router.
        mailbox: the frames.
        settings: of the caller.
    """

    def __init__(self, engine: Engine, begin: Begin, mailbox: Mailbox[Any], settings: FrameSettings) -> None:
        self._engine, self._begin, self._mailbox, self._settings = engine, begin, mailbox, settings
        self._pace = Pace(settings.every or 0.0, settings.busy)
        self._signature_failed, self._label_failed = Failures(), Failures()
        self._scene, self._last = Scene(), -1
        self._refined_until = self._cloud_until = -1
        """The newest frames that the cloud has answered: of a scene, and of any or none."""
        self._refined: _Refined | None = None
        self._current: _Asked | None = None
        self._flights: list[_Asked] = []
        self._shown_label, self._edge_label = Steady(), Steady()
        self._shown: Answer | None = None
        self._answered = self._refined_count = self._unrefined = 0
        self._reused = self._outdated = self._failed = 0

    def step(self, now: float) -> FrameUpdate | float | None:
        """The next update at the instant `now`, or the instant until which to wait for it; None: there will be none.

        Raises:
            BadInput, NoAnswer, PolicyError: of a frame; the next step goes on with the next one.
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
            if not self._take(now):
                return None if ended and not self._flights and not self._mailbox else self._wake_at(now)

    def stats(self) -> FrameStats:
        """Statistics of the frames so far."""
        box = self._mailbox
        return FrameStats(
            box.read, box.dropped, self._answered, self._refined_count, self._unrefined, self._reused, self._outdated,
            self._failed, self._scene.number, len(self._flights), self._pace.edge_s,
        )  # fmt: skip

    def close(self) -> None:
        """Cancels what is in progress."""
        asked = [*self._flights, *([] if self._current is None else [self._current])]
        self._flights, self._current = [], None
        for one in asked:
            one.call.close()

    # what is taken

    def _take(self, now: float) -> bool:
        """Takes the next frame, if there is one and it is time. Returns whether it did."""
        full = len(self._flights) >= self._settings.max_in_flight
        alone = self._cloud_alone()
        if now < self._pace.due or (full and alone) or (got := self._mailbox.take()) is None:
            return False
        self._pace.due = now + (self._settings.every or 0.0)  # whoever answers, or nobody; an edge's run may put it off
        taken = Taken(got.number, got.at, self._next_scene(got.item))
        held: Held = ""
        if not alone:  # else there is nobody else to ask
            held = "scene" if self._settled(taken, now) else "in_flight" if full else ""
        limit, useful = self._limits(held)
        asked = _Asked(taken, got.item, self._begin(got.item, bool(held), limit), now, held, useful is not None, limit == useful)
        if alone:
            self._flights.append(asked)
        else:
            self._current = asked
        return True

    def _limits(self, held: Held) -> tuple[float | None, float | None]:
        """The deadline of a call, and that by which a refinement is of use; None: there is none, or it is not known yet."""
        given, stale = self._settings.deadline, self._settings.stale
        useful = None if held or stale is None else self._pace.deadline_s(stale)
        if useful is not None and useful < (given or self._engine.snapshot.policy.deadline_s):
            return useful, useful
        return given, useful

    def _cloud_alone(self) -> bool:
        """Whether no edge answers: frames are with the cloud from the beginning."""
        snapshot = self._engine.snapshot
        if (self._settings.mode or snapshot.policy.mode) in {"only_cloud", "shadow"}:
            return True
        return all(target.side == "cloud" for target in snapshot.targets)

    def _next_scene(self, frame: Any) -> int:
        """The scene that the frame is in; `UNKNOWN` if the caller's function fails: then it is asked about as without scenes."""
        if self._settings.scene is None:
            return 0
        own = self._settings.signature
        try:
            signature = signature_of(frame) if own is None else contained(lambda: [float(x) for x in own(frame)])
        except Exception as e:
            if own is None:
                raise
            self._signature_failed.log("signature= of a frame", e, own=True)
            return UNKNOWN
        scene = scene_of(self._scene, signature, self._settings.scene)
        if scene is not self._scene:
            self._enter(scene)
        return scene.number

    def _enter(self, scene: Scene) -> None:
        """A new scene: nothing of the one before counts any more."""
        self._scene, self._refined = scene, None
        self._shown_label = self._edge_label = Steady()

    def _settled(self, taken: Taken, now: float) -> bool:
        """Whether the cloud was asked, or is being asked, about the scene of a frame."""
        if self._settings.scene is None or taken.scene == UNKNOWN:
            return False
        fresh = self._settings.refresh or INF
        if self._refined is not None and now - self._refined.at <= fresh:
            return True
        return any(asked.taken.scene == self._scene.number for asked in self._flights)

    # what comes

    def _refinement(self, asked: _Asked, now: float) -> FrameUpdate | None:
        """What has come of a frame that the cloud is being asked about."""
        scene = asked.taken.scene if self._settings.scene is None or asked.taken.scene == UNKNOWN else self._scene.number
        until = self._cloud_until if asked.taken.scene == UNKNOWN else self._refined_until
        why = outdated(asked.taken, now=now, scene=scene, refined=until, stale_s=self._settings.stale)
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
        if answer.final:
            self._flights.remove(asked)
        if why:
            self._outdated += answer.final
            return None
        self._unrefined += answer.final and answer.source == "edge"
        if answer.source == "edge" and asked.taken.number < self._last:  # without the cloud, what is newer stands
            return None
        self._answered += asked.edge is None
        return self._told(asked, answer, now)

    def _edge_answer(self, asked: _Asked, now: float) -> FrameUpdate | None:
        """The first answer to the frame that was taken last."""
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
        if answer.source == "edge":
            asked.edge = answer
            self._pace.took(asked.begun, answer.latency_s)
            self._looked(asked, answer)
        if not answer.final:
            self._flights.append(asked)
        return self._told(asked, answer, now)

    def _looked(self, asked: _Asked, answer: Answer) -> None:
        """Begins a new scene if the edge goes on saying something else than at its beginning, although it looks the same."""
        label, comparable = self._label_of(answer)
        if self._settings.scene is None or asked.taken.scene == UNKNOWN or not comparable:
            return
        before = self._edge_label
        self._edge_label = steadied(before, label, None, hold=max(AGAIN, self._settings.hold))
        if before.begun and self._edge_label.label != before.label and self._refined is not None:
            self._enter(Scene(self._scene.number + 1, self._scene.signature))
            asked.taken = asked.taken._replace(scene=self._scene.number)

    def _looked_at(self, asked: _Asked) -> None:
        """A cloud's answer is shown from now on: the edge's later ones are compared with its own to that frame."""
        label, comparable = (None, False) if asked.edge is None else self._label_of(asked.edge)
        if comparable:
            self._edge_label = Steady(label, begun=True)

    def _told(self, asked: _Asked, answer: Answer, now: float) -> FrameUpdate:
        """The update of an answer."""
        taken, reused = asked.taken, None
        if answer.source != "edge" and answer.final:
            self._refined_count += 1
            self._cloud_until = max(self._cloud_until, taken.number)
            if taken.scene != UNKNOWN:  # else the frames of the scene are in another one
                self._refined_until = max(self._refined_until, taken.number)
                self._refined = _Refined(taken.number, now, answer)
                self._looked_at(asked)
        elif self._refined is not None and asked.held == "scene":
            self._reused += 1
            reused, answer = self._refined.number, self._refined.answer
        label, comparable = self._label_of(answer)
        changed = True
        if comparable:
            before, sure = self._shown_label, answer.source != "edge"
            self._shown_label = steadied(
                before, label, _known(answer.confidence), hold=self._settings.hold, margin=self._settings.margin, sure=sure
            )
            changed = not before.begun or before.label != self._shown_label.label
        if not comparable or self._shown is None or label == self._shown_label.label:
            self._shown = answer
        return FrameUpdate(
            frame_index=taken.number,
            frame=asked.frame,
            at=taken.at,
            age_s=max(0.0, now - taken.at),
            answer=answer,
            edge=asked.edge,
            final=answer.final,
            held=asked.held,
            reused_from=reused,
            label=label,
            shown=self._shown,
            changed=changed,
        )

    def _label_of(self, answer: Answer) -> tuple[Hashable, bool]:
        """What hysteresis looks at, and whether it can."""
        label = answer.value
        if self._settings.label is not None:
            try:
                label = contained(self._settings.label, label)
            except Exception as e:  # noqa: BLE001 - it is the caller's, and no answer is lost for it
                self._label_failed.log("label= of an answer", e, own=True)
                return None, False
        elif isinstance(label, Real) and not isinstance(label, Integral):
            return None, False  # a measurement: no two are equal
        try:
            hash(label)
        except TypeError:
            return None, False
        return label, label is not None

    def _wake_at(self, now: float) -> float:
        """The instant of the next step, if nothing comes before."""
        asked = [*self._flights, *([] if self._current is None else [self._current])]
        instants = [one.call.until for one in asked]
        if self._settings.stale is not None:
            instants += [math.nextafter(one.taken.at + self._settings.stale, INF) for one in self._flights if not one.ends]
        if self._current is None and self._mailbox and self._pace.due > now:
            instants.append(self._pace.due)
        return min(instants, default=INF)


def _known(confidence: float | None) -> float | None:
    return None if confidence is None or math.isnan(confidence) else confidence
