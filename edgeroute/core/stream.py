"""Walks a plan whose answers come in pieces; pieces of two legs are never mixed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import final

from edgeroute.core.codes import Coded
from edgeroute.core.pieces import Piece, Pieces, joined, single, spoken, whole
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import (
    Cancel,
    Delta,
    Done,
    Effect,
    Elapsed,
    Emit,
    Event,
    Failed,
    Leave,
    Mark,
    Outcome,
    Prediction,
    Start,
    Wait,
    Walk,
    acceptable,
    own_threshold,
)

__all__ = ["FirstTokenLate", "Piece", "Pieces", "Restart", "joined", "single", "spoken", "walk_stream", "whole"]


class FirstTokenLate(Coded, TimeoutError):
    """A leg gave no first piece within its time limit."""

    code = "timeout"


@final
class Restart(str):
    """Among the pieces of a stream: what was shown so far is void, and the answer begins anew, from another source, its text."""

    __slots__ = ()


def walk_stream(plan: Plan, begun: float, first_s: float = INF, keep_late: bool = False, restart: bool = False) -> Walk:
    """Routes one input along the plan, and emits the pieces of one leg's answer as they come.

    A leg with a threshold is judged once: by its beginning, with the piece that brings a confidence (`Delta.confidence`), or else
    by its whole answer. Until then its pieces are held back, and so are those of a later leg that was started meanwhile (hedge).
    Once it is accepted they are shown, and further ones as they come; if it is not, the next leg is shown from its first piece on,
    while the first goes on until then. If nobody else is left, it is shown as it comes.

    Once a piece was shown the source is fixed, and all other legs are cancelled: if it fails, what was shown is the answer.
    With `restart` it is not: what an edge says is shown at once, until the next leg, if one is needed, has something; and a leg
    that breaks off is followed by what an edge has. `Restart` is emitted before the first piece of another leg than so far.

    A fallback answer that was not accepted is emitted, unless the plan's offline rule may replace it. An edge that does not begin
    in time is not stopped: it is used if nobody else answers.

    Args:
        plan: the plan.
        begun: the instant at which it begins.
        first_s: a leg without a first piece after so many seconds counts as failed, unless nothing else is left.
        keep_late: at the deadline, leave a cloud running rather than cancel it.
        restart: the answer may begin anew.
    """
    return (yield from _StreamWalk(plan, begun, first_s, keep_late, restart).steps())


class _Voice:
    """A leg that was started.

    Attributes:
        first_by: by when it has to begin.
        last: nobody else was left as it was started: its answer is accepted whatever its confidence.
        sure: whether it is accepted; None: it is not decided.
        passed: it is not waited for any more, though it may go on.
        ended, failed: it has, and without an answer.
        patient: it is waited for beyond `first_by`, since there is nobody else.
        answer: if it has one.
    """

    __slots__ = ("answer", "ended", "failed", "first_by", "last", "passed", "patient", "pieces", "started", "sure")

    def __init__(self, started: float, first_by: float, last: bool) -> None:
        self.started, self.first_by, self.last = started, first_by, last
        self.pieces: list[object] = []
        self.sure: bool | None = None
        self.passed = self.ended = self.failed = self.patient = False
        self.answer: Prediction | None = None

    @property
    def active(self) -> bool:
        """Whether it is waited for."""
        return not self.ended and not self.passed

    @property
    def spoken(self) -> bool:
        """Whether anything has come from it that counts."""
        return bool(self.pieces) or self.answer is not None


_Steps = Generator[Effect, Event | None, None]


class _StreamWalk:
    """State of `walk_stream`."""

    def __init__(self, plan: Plan, begun: float, first_s: float, keep_late: bool, restart: bool) -> None:
        self.plan, self.legs, self.begun, self.deadline = plan, plan.legs, begun, begun + plan.deadline_s
        self.first_s, self.keep_late, self.restart = first_s, keep_late, restart
        self.now = begun
        self.pending = [*plan.order]
        self.voices: dict[int, _Voice] = {}
        """Those that were started, in this order."""
        self.shown: int | None = None
        self.log: list[Mark] = []
        self.held: dict[int, Prediction] = {}
        self.outcome: Outcome | None = None
        self.stands = plan.offline in {"edge", "queue"}
        """Whether an edge's answer that is not accepted may be shown: otherwise the offline rule may replace it."""

    def steps(self) -> Walk:
        """The walk."""
        while self.outcome is None:
            event = yield from self._start()
            if event is None:
                if not self._running():
                    yield from self._finish()
                    break
                event = yield Wait(self._until())
            assert event is not None, "a driver answers Wait with an event"
            self.now = max(self.now, event.at)
            late = type(event) is Delta and event.at > self.deadline  # a reader was slow, and its leg goes on and on
            if type(event) is Elapsed or late:
                if self.now >= self.deadline:
                    yield from self._deadline()
                else:
                    yield from self._late()
                    yield from self._settle()
            else:
                yield from self._heard(event)  # type: ignore[arg-type]  # there is no other event
        assert self.outcome is not None, "a walk that has finished has an outcome"
        return self.outcome

    # what is started, and waited for

    def _start(self) -> Generator[Effect, Event | None, Event | None]:
        """Starts what is due. Returns the event of a leg that has ended at once."""
        while self._due() <= self.now < self.deadline:
            i = self._next()
            self.pending.remove(i)
            last = not self.pending and not self.plan.skipped and not any(v.active for v in self.voices.values())
            first_by = max(self.now, min(self.now + self.first_s, self.deadline - self._reserve_s(i)))
            self.voices[i] = _Voice(self.now, first_by, last)
            event = yield Start(i)
            self.log.append(Mark("start", i, self.now))
            if event is not None:
                return event
        return None

    def _next(self) -> int:
        """The pending leg that is started next: a standby that is due before others are, or else the first."""
        first = self.pending[0]
        if not self.legs[first].standby and self._hedges_standby():
            return next((i for i in self.pending if self.legs[i].standby), first)
        return first

    def _hedges_standby(self) -> bool:
        """Whether an edge on standby is due, though others are waited for."""
        return self.begun + self.plan.hedge_s <= self.now and any(v.active for v in self.voices.values())

    def _due(self) -> float:
        """The instant at which the next leg is started; inf: not as things are."""
        if not self.pending or self._fixed():
            return INF
        if not (active := [v for v in self.voices.values() if v.active]):
            return self.now
        first = self.pending[0]
        due = INF if self.legs[first].standby else active[-1].started + self.legs[first].hedge_after_s
        if any(self.legs[i].standby for i in self.pending):
            due = min(due, self.begun + self.plan.hedge_s)
        return due

    def _fixed(self) -> bool:
        """Whether the source is."""
        if self.shown is None:
            return any(v.sure for v in self.voices.values() if not v.ended)
        v = self.voices[self.shown]
        return not self.restart or (v.active and (v.sure is True or not self._judged(self.shown)))

    def _judged(self, i: int) -> bool:
        """Whether that leg's answer has to reach a threshold."""
        leg = self.legs[i]
        return not self.voices[i].last and (leg.standby or not (leg.final or leg.threshold is None))

    def _until(self) -> float:
        """When the next thing is to be done, if nothing comes."""
        if self.shown is not None and self._fixed():
            return self.deadline
        waits = [v.first_by for v in self.voices.values() if v.active and not v.spoken and not v.patient]
        return min(self.deadline, self._due(), *waits)

    def _running(self) -> Iterable[int]:
        return [i for i, v in self.voices.items() if not v.ended]

    def _reserve_s(self, i: int) -> float:
        """Time to leave a standby after this leg, seconds; half of the deadline where more is needed, or it is unknown.

        Likewise to an edge that is not in memory, which has to be loaded.
        """
        plan, own = self.plan, self.legs[i]
        coming = (self.legs[j] for j in self.pending if j > i)
        leg = next((leg for leg in coming if leg.standby or leg.start_by_s < INF), None)
        if leg is None or own.standby or own.start_by_s < INF or plan.deadline_s == INF or plan.hedge_s < INF:
            return 0.0
        if not leg.standby:
            return plan.deadline_s / 2
        return min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2)

    # what comes

    def _heard(self, event: Delta | Done | Failed) -> _Steps:
        i = event.leg
        voice = self.voices[i]
        if voice.ended:
            return  # it was stopped
        if type(event) is Delta:
            if not (type(event.piece) is Piece and not event.piece):
                voice.pieces.append(event.piece)
                if self.shown == i:
                    yield from self._emit(i, event.piece)
            if event.confidence is not None and voice.sure is None and self._early(i):
                yield from self._decide(i, event.confidence)
        elif type(event) is Done:
            voice.ended, voice.answer = True, event.answer
            yield from self._answered(i, voice, event.answer)
        elif type(event) is Failed:
            voice.ended = voice.failed = True
            self.log.append(Mark("failed", i, self.now, event.error))
            yield from self._broken(i, voice, fatal=event.fatal)
        if self.outcome is None:
            yield from self._settle()

    def _early(self, i: int) -> bool:
        """Whether that leg may be decided within its answer: its threshold does not depend on what the answer is."""
        leg = self.legs[i]
        return self._judged(i) and not leg.standby and not leg.thresholds

    def _decide(self, i: int, confidence: float) -> _Steps:
        voice = self.voices[i]
        voice.sure = acceptable(self.legs[i], Prediction(None, confidence, None))
        self.log.append(Mark("decided", i, self.now, confidence))
        if voice.sure:
            yield from self._show(i)
        else:
            voice.passed = True
            self.log.append(Mark("below", i, self.now, confidence))

    def _answered(self, i: int, voice: _Voice, answer: Prediction) -> _Steps:
        leg = self.legs[i]
        if voice.sure is None and leg.thresholds:
            self.log.append(Mark("limit", i, self.now, own_threshold(leg, answer)))
        if voice.sure is None:
            voice.sure = voice.last or (not leg.standby and acceptable(leg, answer))
            kind = "kept" if leg.standby else "below"
        else:
            kind = "kept"
        if voice.sure:
            self.log.append(Mark("accepted", i, self.now, answer.confidence))
            yield from self._show(i)
            self._end(i, answer, accepted=True)
            return
        self.log.append(Mark(kind, i, self.now, answer.confidence))  # type: ignore[arg-type]
        voice.passed = True
        self.held[i] = answer
        for j, other in self.voices.items():  # whoever was waited for since there was nobody else
            if other.patient and other.active and not other.spoken:
                yield from self._give_up(j)

    def _broken(self, i: int, voice: _Voice, *, fatal: bool) -> _Steps:
        if self.shown == i:
            if not self.restart or not self._others(i):
                yield from self._cancel(self._running())
                self._end(i, _part(voice.pieces), accepted=False)
        elif fatal and not self.held and self.shown is None:
            yield from self._cancel(self._running())
            self.outcome = Outcome(None, None, False, self.log, self.begun, self.now)

    def _others(self, i: int) -> bool:
        """Whether there is anything else than this leg that an answer may come from."""
        others = any(j != i and not v.failed and (v.answer or not v.ended) for j, v in self.voices.items())
        return others or (bool(self.pending) and self.now < self.deadline)

    # when nothing comes

    def _late(self) -> _Steps:
        """Gives up whoever has not begun in time."""
        for i, voice in [*self.voices.items()]:
            if not voice.active or voice.spoken or voice.patient or self.now < voice.first_by or self.shown == i:
                continue
            if not self.pending and not self.held and not any(v.pieces for v in self.voices.values() if not v.failed):
                voice.patient = True  # nothing is won by giving it up
            else:
                yield from self._give_up(i)

    def _give_up(self, i: int) -> _Steps:
        voice = self.voices[i]
        late = FirstTokenLate(f"it had not begun to answer after {(self.now - voice.started) * 1000:.0f} ms")
        self.log.append(Mark("failed", i, self.now, late))
        voice.passed = True
        if self.legs[i].permit is not None:
            voice.ended = voice.failed = True
            yield Cancel(i)

    def _deadline(self) -> _Steps:
        running = [*self._running()]
        for i in running:
            yield Leave(i) if self.keep_late and self.legs[i].permit is not None else Cancel(i)
            self.log.append(Mark("timeout", i, self.now))
            self.voices[i].ended = True
        self.pending.clear()
        yield from self._finish(running)

    def _finish(self, cut: Iterable[int] = ()) -> _Steps:
        """Nothing more comes. `cut`: the legs that the deadline has ended."""
        i = self._best(cut)
        if i is None:
            self.outcome = Outcome(None, None, False, self.log, self.begun, self.now)
            return
        if i != self.shown and (self.stands or self.shown is not None):
            yield from self._show(i)
        self._end(i, self.held.get(i) or _part(self.voices[i].pieces), accepted=False)

    def _best(self, cut: Iterable[int]) -> int | None:
        """The leg whose answer stands."""
        if self.shown is not None and not (self.restart and self.stands and self.held):
            return self.shown
        if self.held:
            return self.shown if self.shown in self.held else max(self.held, key=lambda i: self.legs[i].target)
        parts = [i for i in cut if self.voices[i].pieces and self.legs[i].permit is None]
        return parts[0] if parts and self.stands else None

    # what is shown

    def _settle(self) -> _Steps:
        """Shows a leg that may be shown now."""
        if self.shown is not None and self._fixed():
            return
        for i in self._speakers():
            if self.shown != i:
                yield from self._show(i)
            return

    def _speakers(self) -> Iterator[int]:
        """The leg to be shown, if there is one: the first that was yielded counts."""
        undecided = False
        for i, voice in self.voices.items():
            if voice.pieces and not (voice.failed or voice.passed or undecided or self._judged(i)):
                yield i
            undecided = undecided or (voice.active and self._judged(i) and not self.legs[i].standby)
        if self.restart and self.shown is None:
            yield from (i for i, v in self.voices.items() if self._stays(i) and not v.failed)
        left = [i for i, v in self.voices.items() if not v.failed and not v.ended]
        if self.stands and not self.pending and len(left) == 1 and not self.held and self._stays(left[0]):
            yield left[0]  # nobody else is left
        elif self.restart and self.shown is not None and self.voices[self.shown].failed:
            yield from (i for i, v in self.voices.items() if self._stays(i) and not v.failed)

    def _stays(self, i: int) -> bool:
        """Whether that leg is an edge that has begun."""
        return self.legs[i].permit is None and bool(self.voices[i].pieces)

    def _show(self, i: int) -> _Steps:
        """Shows a leg from its first piece on. The others are cancelled, unless the answer may yet begin anew."""
        voice, before = self.voices[i], self.shown
        others = [j for j in self._running() if j != i]
        if self.restart and not voice.sure:
            others = [j for j in others if self.legs[j].permit is not None and not self._judged(i)]
        yield from self._cancel(others)
        if before == i:
            return
        self.shown = i
        if before is not None:
            yield from self._emit(i, Restart(self.legs[i].name))
        for piece in [*voice.pieces]:
            yield from self._emit(i, piece)

    def _emit(self, i: int, piece: object) -> _Steps:
        shown = yield Emit(i, Prediction(piece, None, None), ())
        self.now = max(self.now, shown.at)  # type: ignore[union-attr]  # showing it may have taken time

    def _cancel(self, legs: Iterable[int]) -> _Steps:
        for i in [*legs]:
            yield Cancel(i)
            self.log.append(Mark("cancelled", i, self.now))
            self.voices[i].ended = self.voices[i].failed = True

    def _end(self, i: int, prediction: Prediction, *, accepted: bool) -> None:
        self.outcome = Outcome(i, prediction, accepted, self.log, self.begun, self.now, self.held)


def _part(pieces: list[object]) -> Prediction:
    return Prediction(whole(pieces), None, None)
