"""Walks a plan whose answers come in pieces; pieces of two legs are never mixed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeAlias, final

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
from edgeroute.core.words import Coded

__all__ = ["FirstTokenLate", "Piece", "Pieces", "Restart", "joined", "single", "spoken", "walk_stream", "whole"]


# Answers in pieces: how they are joined, and what a piece may say of the tokens that it is made of.

Pieces: TypeAlias = Generator[Any, None, Prediction]
"""Yields the pieces of an answer, and returns the whole."""


class Piece(str):
    """A piece of a text, with the log-probabilities of its tokens: by them a stream is judged before its end (`Prefix`).

    An empty one brings tokens that are no text, as those of a model that thinks; it is shown to nobody.

    Attributes:
        logprobs: natural logarithms, one for each token since the piece before.
    """

    __slots__ = ("logprobs",)
    logprobs: tuple[float, ...]

    def __new__(cls, text: str, logprobs: Iterable[float] = ()) -> Piece:  # noqa: PYI034 - typing has no Self in Python 3.10
        """A text with log-probabilities."""
        self = super().__new__(cls, text)
        self.logprobs = tuple(logprobs)
        return self

    def __reduce__(self) -> tuple[type[Piece], tuple[str, tuple[float, ...]]]:
        return Piece, (str(self), self.logprobs)


def whole(pieces: list[object]) -> object:
    """Joins the pieces: text if all are text, else the list of them."""
    return "".join(map(str, pieces)) if all(isinstance(piece, str) for piece in pieces) else pieces


def joined(result: Any) -> Any:
    """Evaluates a callable's result: a generator's pieces joined, with its return value as the confidence; else unchanged."""
    if not isinstance(result, Generator):
        return result
    pieces: list[object] = []
    try:
        while True:
            pieces.append(next(result))
    except StopIteration as end:
        return whole(pieces), _returned(end.value, pieces)


def single(prediction: Prediction) -> Pieces:
    """An answer in one piece."""
    yield prediction.value
    return prediction


def spoken(result: Generator[Any, None, Any], read: Callable[[Any], Prediction]) -> Pieces:
    """Yields a generator's pieces. `read` takes (the whole, its return value): a confidence, or tokens' log-probabilities.

    A `Prediction` that it returns is taken as it is.
    """
    pieces: list[object] = []
    try:
        while True:
            pieces.append(next(result))
            yield pieces[-1]
    except StopIteration as end:
        return read(end.value if type(end.value) is Prediction else (whole(pieces), _returned(end.value, pieces)))
    finally:
        result.close()


def logprobs_of(pieces: Iterable[object]) -> list[float] | None:
    """The log-probabilities that pieces have brought, in order; None: none has any."""
    found = [one for piece in pieces if type(piece) is Piece for one in piece.logprobs]
    return found or None


def _returned(value: Any, pieces: list[object]) -> Any:
    """What a generator returned as its confidence; without that the log-probabilities of its pieces."""
    return logprobs_of(pieces) if value is None else value


# The legs of a stream that were started: which is waited for, which is due, and which is to be shown.


class Voice:
    """A leg that was started.

    Attributes:
        first_by: by when it has to begin.
        last: nobody else was left as it was started: its answer is accepted whatever its confidence.
        sure: whether it is accepted; None: it is not decided.
        passed: it is not waited for any more, though it may go on.
        ended, failed: it has, and without an answer.
        patient: it is waited for beyond `first_by`, since there is nobody else.
        answer: if it has one.
        error: why it failed, if it said so.
    """

    __slots__ = ("answer", "ended", "error", "failed", "first_by", "last", "passed", "patient", "pieces", "started", "sure")

    def __init__(self, started: float, first_by: float, last: bool) -> None:
        self.started, self.first_by, self.last = started, first_by, last
        self.pieces: list[object] = []
        self.sure: bool | None = None
        self.passed = self.ended = self.failed = self.patient = False
        self.answer: Prediction | None = None
        self.error: BaseException | None = None

    @property
    def active(self) -> bool:
        """Whether it is waited for."""
        return not self.ended and not self.passed

    @property
    def spoken(self) -> bool:
        """Whether anything has come from it that counts."""
        return bool(self.pieces) or self.answer is not None


class Voices:
    """The legs of a stream that were started, and what follows from how they stand.

    Attributes:
        now: the instant of the last event.
        voices: those that were started, in this order.
        pending: those that were not.
        shown: whose pieces are shown; None: nobody's yet.
        held: answers that were not accepted.
        stands: whether an edge's answer that is not accepted may be shown: otherwise the offline rule may replace it.
    """

    def __init__(self, plan: Plan, begun: float, first_s: float, restart: bool) -> None:
        self.plan, self.legs, self.begun, self.deadline = plan, plan.legs, begun, begun + plan.deadline_s
        self.first_s, self.restart = first_s, restart
        self.now = begun
        self.pending = [*plan.order]
        self.voices: dict[int, Voice] = {}
        self.shown: int | None = None
        self.held: dict[int, Prediction] = {}
        self.stands = plan.offline in {"edge", "queue"}

    def next(self) -> int:
        """The pending leg that is started next: a standby that is due before others are, or else the first."""
        first = self.pending[0]
        if not self.legs[first].standby and self._hedges_standby():
            return next((i for i in self.pending if self.legs[i].standby), first)
        return first

    def _hedges_standby(self) -> bool:
        """Whether an edge on standby is due, though others are waited for."""
        return self._standby_at() <= self.now and any(v.active for v in self.voices.values())

    def _standby_at(self) -> float:
        """When a standby is started beside others; inf: once they have ended, for which they leave it its time."""
        plan = self.plan
        leg = next((leg for leg in plan.legs if leg.standby), None)
        if leg is None or plan.hedge_s >= plan.deadline_s - min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2):
            return INF
        return self.begun + plan.hedge_s

    def due(self) -> float:
        """The instant at which the next leg is started; inf: not as things are."""
        if not self.pending or self.fixed():
            return INF
        if not (active := [v for v in self.voices.values() if v.active]):
            return self.now
        first = self.pending[0]
        due = INF if self.legs[first].standby else active[-1].started + self.legs[first].hedge_after_s
        if any(self.legs[i].standby for i in self.pending):
            due = min(due, self._standby_at())
        return due

    def fixed(self) -> bool:
        """Whether the source is."""
        if self.shown is None:
            return any(v.sure for v in self.voices.values() if not v.ended)
        v = self.voices[self.shown]
        return not self.restart or (v.active and (v.sure is True or not self.judged(self.shown)))

    def judged(self, i: int) -> bool:
        """Whether that leg's answer has to reach a threshold."""
        leg = self.legs[i]
        return not self.voices[i].last and (leg.standby or not (leg.final or leg.threshold is None))

    def until(self) -> float:
        """When the next thing is to be done, if nothing comes."""
        if self.shown is not None and self.fixed():
            return self.deadline
        waits = [v.first_by for v in self.voices.values() if v.active and not v.spoken and not v.patient]
        return min(self.deadline, self.due(), *waits)

    def running(self) -> list[int]:
        """Those that have not ended."""
        return [i for i, v in self.voices.items() if not v.ended]

    def reserve_s(self, i: int) -> float:
        """Time to leave a standby after this leg, seconds; half of the deadline where more is needed, or it is unknown.

        Likewise to an edge that is not in memory, which has to be loaded.
        """
        plan, own = self.plan, self.legs[i]
        coming = (self.legs[j] for j in self.pending if j > i)
        leg = next((leg for leg in coming if leg.standby or leg.start_by_s < INF), None)
        if leg is None or own.standby or own.start_by_s < INF or plan.deadline_s == INF or self._standby_at() < INF:
            return 0.0
        if not leg.standby:
            return plan.deadline_s / 2
        return min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2)

    def early(self, i: int) -> bool:
        """Whether that leg may be decided within its answer: its threshold does not depend on what the answer is."""
        leg = self.legs[i]
        return self.judged(i) and not leg.standby and not leg.thresholds

    def others(self, i: int) -> bool:
        """Whether there is anything else than this leg that an answer may come from."""
        others = any(j != i and not v.failed and (v.answer or not v.ended) for j, v in self.voices.items())
        return others or (bool(self.pending) and self.now < self.deadline)

    def best(self, cut: Iterable[int]) -> int | None:
        """The leg whose answer stands."""
        if self.shown is not None and not (self.restart and self.stands and self.held):
            return self.shown
        if self.held:
            return self.shown if self.shown in self.held else max(self.held, key=lambda i: self.legs[i].target)
        parts = [i for i in cut if self._stays(i)] or [i for i, v in self.voices.items() if v.failed and self._stays(i)]
        return parts[0] if parts and self.stands else None

    def speakers(self) -> Iterator[int]:
        """The leg to be shown, if there is one: the first that was yielded counts."""
        undecided = False
        for i, voice in self.voices.items():
            if voice.pieces and not (voice.failed or voice.passed or undecided or self.judged(i)):
                yield i
            undecided = undecided or (voice.active and self.judged(i) and not self.legs[i].standby)
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
