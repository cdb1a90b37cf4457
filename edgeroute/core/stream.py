"""Walks a plan whose answers come in pieces; pieces of two legs are never mixed."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import final

from edgeroute.core.codes import Coded
from edgeroute.core.pieces import Piece, Pieces, joined, single, spoken, whole
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.voices import Voice, Voices
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
    Left,
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
    Once it is accepted they are shown, and further ones as they come. If it is not, the next leg is shown from its first piece
    on, while the first goes on until then. If nobody else is left, it is shown as it comes.

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
    return StreamWalk(plan, begun, first_s, keep_late, restart).steps()


_Steps = Generator[Effect, Event | None, None]


class StreamWalk:
    """The walk of `walk_stream`, with the same arguments: what came of it can be told before its end."""

    def __init__(self, plan: Plan, begun: float, first_s: float = INF, keep_late: bool = False, restart: bool = False) -> None:
        self.at, self.keep_late = Voices(plan, begun, first_s, restart), keep_late
        self.log: list[Mark] = []
        self.outcome: Outcome | None = None

    def steps(self) -> Walk:
        """The walk."""
        while self.outcome is None:
            event = yield from self._start()
            if event is None:
                if not self.at.running():
                    yield from self._finish()
                    break
                event = yield Wait(self.at.until())
            assert event is not None, "a driver answers Wait with an event"
            self.at.now = max(self.at.now, event.at)
            late = type(event) is Delta and event.at > self.at.deadline  # a reader was slow, and its leg goes on and on
            if type(event) is Elapsed or late:
                if self.at.now >= self.at.deadline:
                    yield from self._deadline()
                else:
                    yield from self._late()
                    yield from self._settle()
            else:
                yield from self._heard(event)
        assert self.outcome is not None, "a walk that has finished has an outcome"
        return self.outcome

    def left(self, at: float) -> Left | None:
        """The outcome if the caller leaves at that instant, and its driver has stopped all legs; None: none was started."""
        started = [mark.leg for mark in self.log if mark.kind == "start"]
        if not started:
            return None
        self.log += [Mark("cancelled", i, at) for i in self.at.running() if i in started]
        i = started[-1] if self.at.shown is None else self.at.shown
        shown = Prediction(whole(self.at.voices[i].pieces if i == self.at.shown else []), None, None)
        return Left(i, shown, False, self.log, self.at.begun, at, self.at.held)

    # what is started, and waited for

    def _start(self) -> Generator[Effect, Event | None, Event | None]:
        """Starts what is due. Returns the event of a leg that has ended at once."""
        while self.at.due() <= self.at.now < self.at.deadline:
            i = self.at.next()
            self.at.pending.remove(i)
            last = not self.at.pending and not self.at.plan.skipped and not any(v.active for v in self.at.voices.values())
            first_by = max(self.at.now, min(self.at.now + self.at.first_s, self.at.deadline - self.at.reserve_s(i)))
            self.at.voices[i] = Voice(self.at.now, first_by, last)
            event = yield Start(i)
            self.log.append(Mark("start", i, self.at.now))
            if event is not None:
                return event
        return None

    # what comes

    def _heard(self, event: Delta | Done | Failed) -> _Steps:
        i = event.leg
        voice = self.at.voices[i]
        if voice.ended:
            return  # it was stopped
        if type(event) is Delta:
            if not (type(event.piece) is Piece and not event.piece):
                voice.pieces.append(event.piece)
                if self.at.shown == i:
                    yield from self._emit(i, event.piece)
            if event.confidence is not None and voice.sure is None and self.at.early(i):
                yield from self._decide(i, event.confidence)
        elif type(event) is Done:
            voice.ended, voice.answer = True, event.answer
            yield from self._answered(i, voice, event.answer)
        else:
            assert type(event) is Failed, "there is no other event of a leg"
            voice.ended, voice.failed, voice.error = True, True, event.error
            self.log.append(Mark("failed", i, self.at.now, event.error))
            yield from self._broken(i, voice, fatal=event.fatal)
        if self.outcome is None:
            yield from self._settle()

    def _decide(self, i: int, confidence: float) -> _Steps:
        voice = self.at.voices[i]
        voice.sure = acceptable(self.at.legs[i], Prediction(None, confidence, None))
        self.log.append(Mark("decided", i, self.at.now, confidence))
        if voice.sure:
            yield from self._show(i)
        else:
            voice.passed = True
            self.log.append(Mark("below", i, self.at.now, confidence))

    def _answered(self, i: int, voice: Voice, answer: Prediction) -> _Steps:
        leg = self.at.legs[i]
        if voice.sure is None and leg.thresholds:
            self.log.append(Mark("limit", i, self.at.now, own_threshold(leg, answer)))
        if voice.sure is None:
            voice.sure = voice.last or (not leg.standby and acceptable(leg, answer))
            kind = "kept" if leg.standby else "below"
        else:
            kind = "kept"
        if voice.sure:
            self.log.append(Mark("accepted", i, self.at.now, answer.confidence))
            yield from self._show(i)
            self._end(i, answer, accepted=True)
            return
        self.log.append(Mark(kind, i, self.at.now, answer.confidence))  # type: ignore[arg-type]
        voice.passed = True
        self.at.held[i] = answer
        for j, other in self.at.voices.items():  # whoever was waited for since there was nobody else
            if other.patient and other.active and not other.spoken:
                yield from self._give_up(j)

    def _broken(self, i: int, voice: Voice, *, fatal: bool) -> _Steps:
        if self.at.shown == i:
            if not self.at.restart or not self.at.others(i):
                yield from self._cancel(self.at.running())
                self._end(i, _part(voice.pieces, voice.error), accepted=False)
        elif fatal and not self.at.held and self.at.shown is None:
            yield from self._cancel(self.at.running())
            self.outcome = Outcome(None, None, False, self.log, self.at.begun, self.at.now)

    # when nothing comes

    def _late(self) -> _Steps:
        """Gives up whoever has not begun in time."""
        for i, voice in [*self.at.voices.items()]:
            if not voice.active or voice.spoken or voice.patient or self.at.now < voice.first_by or self.at.shown == i:
                continue
            if not self.at.pending and not self.at.held and not any(v.pieces for v in self.at.voices.values() if not v.failed):
                voice.patient = True  # nothing is won by giving it up
            else:
                yield from self._give_up(i)

    def _give_up(self, i: int) -> _Steps:
        voice = self.at.voices[i]
        late = FirstTokenLate(f"it had not begun to answer after {(self.at.now - voice.started) * 1000:.0f} ms")
        self.log.append(Mark("failed", i, self.at.now, late))
        voice.passed = True
        if self.at.legs[i].permit is not None:
            voice.ended = voice.failed = True
            yield Cancel(i)

    def _deadline(self) -> _Steps:
        running = self.at.running()
        for i in running:
            yield Leave(i) if self.keep_late and self.at.legs[i].permit is not None else Cancel(i)
            self.log.append(Mark("timeout", i, self.at.now))
            self.at.voices[i].ended = True
        self.at.pending.clear()
        yield from self._finish(running)

    def _finish(self, cut: Iterable[int] = ()) -> _Steps:
        """Nothing more comes. `cut`: the legs that the deadline has ended."""
        i = self.at.best(cut)
        if i is None:
            self.outcome = Outcome(None, None, False, self.log, self.at.begun, self.at.now)
            return
        if i != self.at.shown and (self.at.stands or self.at.shown is not None):
            yield from self._show(i)
        self._end(i, self.at.held.get(i) or _part(self.at.voices[i].pieces, self.at.voices[i].error), accepted=False)

    # what is shown

    def _settle(self) -> _Steps:
        """Shows a leg that may be shown now."""
        if self.at.shown is not None and self.at.fixed():
            return
        for i in self.at.speakers():
            if self.at.shown != i:
                yield from self._show(i)
            return

    def _show(self, i: int) -> _Steps:
        """Shows a leg from its first piece on. The others are cancelled, unless the answer may yet begin anew."""
        voice, before = self.at.voices[i], self.at.shown
        others = [j for j in self.at.running() if j != i]
        if self.at.restart and not voice.sure:
            others = [j for j in others if self.at.legs[j].permit is not None and not self.at.judged(i)]
        yield from self._cancel(others)
        if before == i:
            return
        self.at.shown = i
        if before is not None:
            yield from self._emit(i, Restart(self.at.legs[i].name))
        for piece in [*voice.pieces]:
            yield from self._emit(i, piece)

    def _emit(self, i: int, piece: object) -> _Steps:
        shown = yield Emit(i, Prediction(piece, None, None), ())
        self.at.now = max(self.at.now, shown.at)  # type: ignore[union-attr]  # showing it may have taken time

    def _cancel(self, legs: Iterable[int]) -> _Steps:
        for i in [*legs]:
            yield Cancel(i)
            self.log.append(Mark("cancelled", i, self.at.now))
            self.at.voices[i].ended = self.at.voices[i].failed = True

    def _end(self, i: int, prediction: Prediction, *, accepted: bool) -> None:
        self.outcome = Outcome(i, prediction, accepted, self.log, self.at.begun, self.at.now, self.at.held)


def _part(pieces: list[object], error: BaseException | None = None) -> Prediction:
    """What of an answer was shown; with the outputs so far, where the error has them."""
    partial = getattr(error, "partial", None)
    return Prediction(whole(pieces), None, partial.outputs if type(partial) is Prediction else None)
