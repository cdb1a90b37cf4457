"""Walk of a plan whose answers come in pieces (`StreamWalk`), its state, `Piece`, and readers of generators of pieces.

Pieces of two legs are never mixed.

State of a leg that was started (`LegState`):

      Start
        |
        v              first_by has come, an edge: it runs on
    +---------+-----------------------------------------------+
    | WAITING |                                               |
    +---------+---------------------------+                   |
        |        first_by has come,       |                   |
        | Delta  a cloud: Cancel          |                   |
        v                                 v                   v
    +----------+        Failed        +--------+ Failed  +-------------+
    | SPEAKING |--------------------->| FAILED |<--------| PASSED OVER |
    +----------+                      +--------+         +-------------+
      |  |  |                                               ^   |
      |  |  |  Delta.confidence below the threshold         |   |
      |  |  +-----------------------------------------------+   |
      |  |                                                      |
      |  | Delta.confidence at least the threshold              |
      |  v                                                      |
      | +----------+                                            |
      | | ACCEPTED |   shown; all other legs: Cancel            |
      | +----------+                                            |
      |    |                                                    |
      |    | Done: end of the walk, accepted                    |
      |                                                         |
      | Done                     +-------+                 Done |
      +------------------------->| ENDED |<---------------------+
                                 +-------+
           judged by the whole answer, unless its beginning was below: accepted, shown, end of the walk;
           or below the threshold, or a standby's: the answer is held

A leg may also end or fail while it is waiting. Pieces of a leg that is not shown are stored.

State of the stream (`StreamState.shown`: the source, the leg whose pieces are emitted):

    +-----------+   nothing runs or is pending, a fatal failure, the deadline
    | NO SOURCE |-----------------------------------------------------------> end: the best held answer, the part
    +-----------+                                                                  that an edge gave, or no answer
        |
        | a leg is accepted; or has a piece and need not be judged; or is an edge with a piece and the only leg left
        v
    +-----------+   Done
    |  SOURCE   |--------------------> end: its answer
    |           |   Failed, deadline
    |           |--------------------> end: the part that was shown, not accepted
    +-----------+
      |       ^
      +-------+   with `restart` only: another leg is accepted, or begins after this one was passed over or has failed:
                  Emit(Restart), then the pieces of the other leg from the first on
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeAlias, final

import edgeroute.core.walk as walks
from edgeroute.core.error_codes_and_texts import Coded
from edgeroute.core.plan import Plan
from edgeroute.core.policy_egress_and_options import INF

__all__ = ["FirstTokenLate", "Piece", "Pieces", "Restart", "join_pieces", "join_result", "one_piece", "read_pieces"]


# Answers in pieces: joining, and the log-probabilities that a piece may bring.

Pieces: TypeAlias = Generator[Any, None, walks.Prediction]  # yields the pieces of an answer, and returns the whole


class Piece(str):
    """Piece of a text, with the log-probabilities of its tokens: by them a stream is judged before its end (`Prefix`).

    An empty piece brings tokens that are no text, as those of a model that thinks; it is shown to nobody.

    Attributes:
        logprobs: natural logarithms, one for each token since the piece before.
    """

    __slots__ = ("logprobs",)
    logprobs: tuple[float, ...]

    def __new__(cls, text: str, logprobs: Iterable[float] = ()) -> Piece:  # noqa: PYI034 - typing has no Self in Python 3.10
        """Create a text with log-probabilities."""
        self = super().__new__(cls, text)
        self.logprobs = tuple(logprobs)
        return self

    def __reduce__(self) -> tuple[type[Piece], tuple[str, tuple[float, ...]]]:
        return Piece, (str(self), self.logprobs)


def join_pieces(pieces: list[object]) -> object:
    """Return the pieces joined: text if all are text, else the list of them."""
    return "".join(map(str, pieces)) if all(isinstance(piece, str) for piece in pieces) else pieces


def join_result(result: Any) -> Any:
    """Return a callable's result; a generator is run to its end: (joined pieces, its return value as the confidence).

    Any other result is returned unchanged.
    """
    if not isinstance(result, Generator):
        return result
    pieces: list[object] = []
    try:
        while True:
            pieces.append(next(result))
    except StopIteration as end:
        return join_pieces(pieces), _confidence_of(end.value, pieces)


def one_piece(prediction: walks.Prediction) -> Pieces:
    """Yield an answer as one piece."""
    yield prediction.value
    return prediction


def read_pieces(result: Generator[Any, None, Any], read: Callable[[Any], walks.Prediction]) -> Pieces:
    """Yield a generator's pieces, and return the prediction that `read` makes of the whole; closes the generator.

    `read` takes (the whole, the generator's return value: a confidence, or tokens' log-probabilities), or the `Prediction` that
    the generator returned. Closes it also if the reader leaves early.
    """
    pieces: list[object] = []
    try:
        while True:
            pieces.append(next(result))
            yield pieces[-1]
    except StopIteration as end:
        whole = end.value
        return read(whole if type(whole) is walks.Prediction else (join_pieces(pieces), _confidence_of(whole, pieces)))
    finally:
        result.close()


def logprobs_of(pieces: Iterable[object]) -> list[float] | None:
    """Return the log-probabilities that pieces have brought, in order; None: none has any. Also None if they are empty."""
    logprobs = [logprob for piece in pieces if type(piece) is Piece for logprob in piece.logprobs]
    return logprobs or None


def _confidence_of(value: Any, pieces: list[object]) -> Any:
    """Return a generator's return value, its confidence; without one, the log-probabilities of its pieces."""
    return logprobs_of(pieces) if value is None else value


# States of a stream and of its legs, as drawn above.


class LegState:
    """State of a leg that was started.

    Attributes:
        first_by: instant by which it has to begin.
        last: True if no other leg was left when it was started, and it is no standby: its answer is accepted whatever its
            confidence.
        accepted: True or False once it is decided; None: undecided.
        passed_over: True if it is not waited for any more, though it may go on.
        ended: True if it has answered, failed or was stopped.
        failed: True if it ended without an answer.
        no_time_limit: True if it is waited for beyond `first_by`, since there is no other leg.
        answer: its whole answer; None: none yet.
        error: the exception of its failure.
    """

    __slots__ = (
        "accepted", "answer", "ended", "error", "failed", "first_by", "last", "no_time_limit", "passed_over", "pieces", "started",
    )  # fmt: skip

    def __init__(self, started: float, first_by: float, last: bool) -> None:
        self.started, self.first_by, self.last = started, first_by, last
        self.pieces: list[object] = []
        self.accepted: bool | None = None
        self.passed_over = self.ended = self.failed = self.no_time_limit = False
        self.answer: walks.Prediction | None = None
        self.error: BaseException | None = None

    @property
    def active(self) -> bool:
        """True if the leg is waited for."""
        return not self.ended and not self.passed_over

    @property
    def has_begun(self) -> bool:
        """True if a piece or an answer has come from the leg."""
        return bool(self.pieces) or self.answer is not None


class StreamState:
    """State of a stream: its legs, the source, and the decisions that follow from them.

    Attributes:
        now: instant of the last event.
        states: leg -> state, of the legs that were started, in this order.
        pending: legs that were not started.
        shown: leg whose pieces are shown, the source; None: none yet.
        held: leg -> its answer that was not accepted.
        may_degrade: True if an edge's answer that is not accepted may be shown; else the offline rule may replace it.
    """

    def __init__(self, plan: Plan, begun: float, first_s: float, restart: bool) -> None:
        self.plan, self.legs, self.begun, self.deadline = plan, plan.legs, begun, begun + plan.deadline_s
        self.first_s, self.restart = first_s, restart
        self.now = begun
        self.pending = list(range(len(plan.legs)))
        self.states: dict[int, LegState] = {}
        self.shown: int | None = None
        self.held: dict[int, walks.Prediction] = {}
        self.may_degrade = plan.offline in {"edge", "queue"}

    def next(self) -> int:
        """Return the pending leg to start next: a standby that is due before others are, or else the first."""
        first, is_awaiting = self.pending[0], any(v.active for v in self.states.values())
        if not self.legs[first].standby and is_awaiting and self._standby_at() <= self.now:
            return next((i for i in self.pending if self.legs[i].standby), first)
        return first

    def _standby_at(self) -> float:
        """Return when a standby is started beside others: the hedging delay after the beginning.

        inf, only once the others have ended: if there is none, or that is later than the time it needs (`reserves`) before the
        deadline.
        """
        plan = self.plan
        leg = next((leg for leg in plan.legs if leg.standby), None)
        if leg is None or plan.hedge_s >= plan.deadline_s - min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2):
            return INF
        return self.begun + plan.hedge_s

    def due(self) -> float:
        """Return the instant at which the next leg starts: by the first pending leg's hedging delay, or by a standby's start.

        The earlier one; now if no leg is waited for; inf if none is to start, or the source is final.
        """
        if not self.pending or self.is_final():
            return INF
        if not (active := [v for v in self.states.values() if v.active]):
            return self.now
        first = self.pending[0]
        due = INF if self.legs[first].standby else active[-1].started + self.legs[first].hedge_after_s
        if any(self.legs[i].standby for i in self.pending):
            due = min(due, self._standby_at())
        return due

    def is_final(self) -> bool:
        """Return True if the source, the leg whose pieces are shown, cannot change any more.

        Without `restart` the source is fixed once shown; otherwise only while its answer is accepted or need not be judged.
        """
        if self.shown is None:
            return False
        v = self.states[self.shown]
        return not self.restart or (v.active and (v.accepted is True or not self.judged(self.shown)))

    def judged(self, i: int) -> bool:
        """Return True if the leg's answer has to reach a threshold, or is a standby's; False if it began as the only leg left."""
        leg = self.legs[i]
        return not self.states[i].last and (leg.standby or not (leg.final or leg.threshold is None))

    def until(self) -> float:
        """Return the instant at which something is to be done if no event comes: a leg starts or is late, or the deadline."""
        if self.is_final():
            return self.deadline
        waits = [v.first_by for v in self.states.values() if v.active and not v.has_begun and not v.no_time_limit]
        return min(self.deadline, self.due(), *waits)

    def running(self) -> list[int]:
        """Return the legs that have not ended."""
        return [i for i, v in self.states.items() if not v.ended]

    def reserve_s(self, i: int) -> float:
        """Return the time that a leg leaves for a standby after it, seconds: what that needs, or half of the deadline.

        Half at most, half if unknown, and half for an edge that is not in memory, as it has to be loaded. 0 without a deadline,
        without such an edge, for a standby itself, and if the hedging delay starts the standby.
        """
        plan, this = self.plan, self.legs[i]
        coming = (self.legs[j] for j in self.pending if j > i)
        leg = next((leg for leg in coming if leg.standby or leg.start_by_s < INF), None)
        if leg is None or this.standby or this.start_by_s < INF or plan.deadline_s == INF or self._standby_at() < INF:
            return 0.0
        if not leg.standby:
            return plan.deadline_s / 2
        return min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2)

    def early(self, i: int) -> bool:
        """Return True if the leg may be decided within its answer: it is judged, no standby, and has a single threshold."""
        leg = self.legs[i]
        return self.judged(i) and not leg.standby and not leg.thresholds

    def others(self, i: int) -> bool:
        """Return True if an answer may come from any other leg."""
        others = any(j != i and not v.failed and (v.answer or not v.ended) for j, v in self.states.items())
        return others or (bool(self.pending) and self.now < self.deadline)

    def best(self, cut: Iterable[int]) -> int | None:
        """Return the leg whose answer is the result if none is accepted; None: no answer. `cut`: legs that the deadline ended.

        An answer held goes before parts; parts count only of edges, and only if the plan may degrade.
        """
        if self.shown is not None and not (self.restart and self.may_degrade and self.held):
            return self.shown
        if self.held:
            return self.shown if self.shown in self.held else walks.best_held(self.legs, self.held)
        failed = (i for i, v in self.states.items() if v.failed)
        return next((i for i in (*cut, *failed) if self._edge_has_begun(i)), None) if self.may_degrade else None

    def candidate(self) -> int | None:
        """Return the leg to show now: the first with a piece that need not be judged, before any that is still judged.

        Else the first edge that has begun: with `restart` while nothing is shown or the leg shown has failed, and if no other leg
        is left, the plan may degrade and no answer is held. None: there is no such leg.
        """
        for i, state in self.states.items():
            if state.pieces and not (state.failed or state.passed_over or self.judged(i)):
                return i
            if state.active and self.judged(i) and not self.legs[i].standby:
                break
        anew = self.restart and (self.shown is None or self.states[self.shown].failed)
        alone = self.may_degrade and not self.pending and not self.held and len(self.running()) == 1
        begun = (i for i, v in self.states.items() if not v.failed and self._edge_has_begun(i))
        return next(begun, None) if anew or alone else None

    def _edge_has_begun(self, i: int) -> bool:
        """Return True if the leg is an edge that has given a piece."""
        return self.legs[i].permit is None and bool(self.states[i].pieces)


class FirstTokenLate(Coded, TimeoutError):
    """Error of a leg that gave no first piece within its time limit."""

    code = "timeout"


@final
class Restart(str):
    """Piece of a stream that voids the pieces so far: the answer begins anew, from another source, which is its text."""

    __slots__ = ()


_Steps = Generator[walks.Effect, walks.Event | None, None]


class StreamWalk:
    """Walk of one input along a plan, which emits the pieces of one leg's answer as they come; see the drawing above.

    Its state can be read before its end.

    A malformed answer is never accepted, and brings no pieces: it is shown whole, once no other leg is left.

    A leg with a threshold is judged once: by its beginning, with the piece that brings a confidence (`Delta.confidence`), or else
    by its whole answer. Until then its pieces are held back, and so are those of a later leg that was started meanwhile (hedge).
    Once it is accepted they are shown, and further ones as they come. If it is not, the next leg is shown from its first piece
    on, while the first goes on until then. If no other leg is left, it is shown as it comes.

    Once a piece was shown the source is fixed, and all other legs are cancelled: if it fails, the part that was shown is the
    answer. With `restart` the source may change: an edge's pieces are shown at once, until the next leg, if one is needed, has a
    piece; and a leg that breaks off is followed by an edge's answer. `Restart` is emitted before the first piece of another leg
    than so far.

    A fallback answer that was not accepted is emitted, unless the plan's offline rule may replace it. An edge that does not begin
    in time is not stopped: its answer is used if no other leg answers.

    Args:
        plan: the plan.
        begun: instant at which the walk begins.
        first_s: time after which a leg without a first piece counts as failed, unless no other is left, seconds.
        keep_late: True: at the deadline, leave a cloud running rather than cancel it.
        restart: True: the answer may begin anew.
    """

    def __init__(self, plan: Plan, begun: float, first_s: float = INF, keep_late: bool = False, restart: bool = False) -> None:
        self.stream, self.keep_late = StreamState(plan, begun, first_s, restart), keep_late
        self.log: list[walks.Mark] = []
        self.outcome: walks.Outcome | None = None

    def steps(self) -> walks.Walk:
        """Yield effects, take events, and return the outcome: start due legs, wait for an event, act on it, until the walk ends.

        An instant that has come gives up legs that are late; the deadline, or a piece that comes after it, ends the walk.
        """
        while self.outcome is None:
            event = yield from self._start()
            if event is None:
                if not self.stream.running():
                    yield from self._finish()
                    break
                event = yield walks.Wait(self.stream.until())
            assert event is not None, "a driver answers Wait with an event"
            self.stream.now = max(self.stream.now, event.at)
            late = type(event) is walks.Delta and event.at > self.stream.deadline  # a reader was slow, and its leg goes on and on
            if type(event) is walks.Elapsed or late:
                if self.stream.now >= self.stream.deadline:
                    running = self.stream.running()
                    for i in running:
                        yield walks.Leave(i) if self.keep_late and self.stream.legs[i].permit is not None else walks.Cancel(i)
                        self.log.append(walks.Mark("timeout", i, self.stream.now))
                        self.stream.states[i].ended = True
                    self.stream.pending.clear()
                    yield from self._finish(running)
                else:
                    yield from self._drop_late()
                    yield from self._choose_source()
            else:
                yield from self._on_event(event)
        assert self.outcome is not None, "a walk that has finished has an outcome"
        return self.outcome

    def outcome_when_left(self, instant: float) -> walks.Left | None:
        """Return the outcome if the caller leaves at an instant, all legs being stopped; None if none was started.

        Logs the stopped legs. The prediction has the pieces shown so far.
        """
        started = [mark.leg for mark in self.log if mark.kind == "start"]
        if not started:
            return None
        self.log += [walks.Mark("cancelled", i, instant) for i in self.stream.running() if i in started]
        i = started[-1] if self.stream.shown is None else self.stream.shown
        shown = walks.Prediction(join_pieces(self.stream.states[i].pieces if i == self.stream.shown else []), None, None)
        return walks.Left(i, shown, False, self.log, self.stream.begun, instant, self.stream.held)

    # starting

    def _start(self) -> Generator[walks.Effect, walks.Event | None, walks.Event | None]:
        """Start the legs that are due, and note by when each has to begin. Return the event of a leg that has ended at once.

        None: all that is due was started, without such an event. Nothing starts from the deadline on.
        """
        stream = self.stream
        while stream.due() <= stream.now < stream.deadline:
            i = stream.next()
            stream.pending.remove(i)
            others = stream.pending or stream.plan.skipped or any(v.active for v in stream.states.values())
            first_by = min(stream.now + stream.first_s, stream.deadline - stream.reserve_s(i))
            last = not others and not stream.legs[i].standby
            stream.states[i] = LegState(stream.now, max(stream.now, first_by), last)
            event = yield walks.Start(i)
            self.log.append(walks.Mark("start", i, stream.now))
            if event is not None:
                return event
        return None

    # events of legs

    def _on_event(self, event: walks.Delta | walks.Done | walks.Failed) -> _Steps:
        """Update a leg by its event, log a failure, and show or end what follows from that.

        Events of a leg that has ended are ignored; empty pieces are not kept.
        """
        i = event.leg
        state = self.stream.states[i]
        if state.ended:
            return  # it was stopped
        if type(event) is walks.Delta:
            if not (type(event.piece) is Piece and not event.piece):
                state.pieces.append(event.piece)
                if self.stream.shown == i:
                    yield from self._emit(i, event.piece)
            if event.confidence is not None and state.accepted is None and self.stream.early(i):
                yield from self._decide_early(i, event.confidence)
        elif type(event) is walks.Done:
            state.ended, state.answer = True, event.answer
            yield from self._on_answer(i, state, event.answer)
        else:
            assert type(event) is walks.Failed, "there is no other event of a leg"
            state.ended, state.failed, state.error = True, True, event.error
            self.log.append(walks.Mark("failed", i, self.stream.now, event.error))
            yield from self._on_failure(i, state, fatal=event.fatal)
        if self.outcome is None:
            yield from self._choose_source()

    def _decide_early(self, i: int, confidence: float) -> _Steps:
        """Decide a leg by the confidence of its beginning: show it, or pass it over. Logs the decision."""
        state = self.stream.states[i]
        state.accepted = walks.acceptable(self.stream.legs[i], walks.Prediction(None, confidence, None))
        self.log.append(walks.Mark("decided", i, self.stream.now, confidence))
        if state.accepted:
            yield from self._show(i)
        else:
            state.passed_over = True
            self.log.append(walks.Mark("below", i, self.stream.now, confidence))

    def _on_answer(self, i: int, state: LegState, answer: walks.Prediction) -> _Steps:
        """Judge a leg's whole answer, unless its beginning was: log it; show it and end the walk, or hold it.

        The last leg's is accepted whatever its confidence, if not malformed; a standby's is held. A held answer gives up legs
        that have not begun and had lost their time limit.
        """
        leg = self.stream.legs[i]
        kind = "kept"
        if state.accepted is None:
            if leg.thresholds:
                self.log.append(walks.Mark("limit", i, self.stream.now, walks.own_threshold(leg, answer)))
            last = state.last and type(answer.confidence) is not walks.Malformed
            state.accepted = last or (not leg.standby and walks.acceptable(leg, answer))
            kind = "kept" if leg.standby else "below"
        if state.accepted:
            self.log.append(walks.Mark("accepted", i, self.stream.now, answer.confidence))
            yield from self._show(i)
            self._end(i, answer, accepted=True)
            return
        self.log.append(walks.Mark(kind, i, self.stream.now, answer.confidence))  # type: ignore[arg-type]
        state.passed_over = True
        self.stream.held[i] = answer
        for j, other in self.stream.states.items():  # whoever was waited for since there was nobody else
            if other.no_time_limit and other.active and not other.has_begun:
                yield from self._give_up(j)

    def _on_failure(self, i: int, state: LegState, *, fatal: bool) -> _Steps:
        """End the walk if the source has failed, or the failure is fatal, and no other leg can answer; cancel what runs then.

        The part that the source had shown is then the answer, not accepted; after a fatal failure there is none.
        """
        if self.stream.shown == i:
            if not self.stream.restart or not self.stream.others(i):
                yield from self._cancel(self.stream.running())
                self._end(i, _partial_answer(state.pieces, state.error), accepted=False)
        elif fatal and not self.stream.held and self.stream.shown is None:
            yield from self._cancel(self.stream.running())
            self._end(None, None, accepted=False)

    # lateness, and the end

    def _drop_late(self) -> _Steps:
        """Pass over each leg that has not begun in time; one without an alternative loses its time limit instead."""
        stream = self.stream
        for i, state in [*stream.states.items()]:
            waits = state.active and not (state.has_begun or state.no_time_limit or stream.shown == i)
            if not waits or stream.now < state.first_by:
                continue
            begun = any(v.pieces for v in stream.states.values() if not v.failed)
            if not (stream.pending or stream.held or begun):
                state.no_time_limit = True  # nothing is won by giving it up
            else:
                yield from self._give_up(i)

    def _give_up(self, i: int) -> _Steps:
        """Log a leg as late and pass over it; cancel it if it is a cloud, while an edge runs on."""
        state = self.stream.states[i]
        late = FirstTokenLate(f"it had not begun to answer after {(self.stream.now - state.started) * 1000:.0f} ms")
        self.log.append(walks.Mark("failed", i, self.stream.now, late))
        state.passed_over = True
        if self.stream.legs[i].permit is not None:
            state.ended = state.failed = True
            yield walks.Cancel(i)

    def _finish(self, cut: Iterable[int] = ()) -> _Steps:
        """End the walk with the best answer; no more events come. `cut`: legs that the deadline ended.

        Without an answer the outcome has None. Its leg is shown first, if the stream may degrade or has shown another.
        """
        i = self.stream.best(cut)
        if i is None:
            self._end(None, None, accepted=False)
            return
        state = self.stream.states[i]
        if type((held := self.stream.held.get(i, NOTHING)).confidence) is walks.Malformed:
            state.pieces = [held.value]  # its pieces were never sent
        if i != self.stream.shown and (self.stream.may_degrade or self.stream.shown is not None):
            yield from self._show(i)
        answer = self.stream.held.get(i) or _partial_answer(state.pieces, state.error)
        self._end(i, answer, accepted=False)

    # showing

    def _choose_source(self) -> _Steps:
        """Show the best of the legs that may be shown now, if it is not shown yet, unless the source is fixed."""
        i = None if self.stream.is_final() else self.stream.candidate()
        if i is not None and self.stream.shown != i:
            yield from self._show(i)

    def _show(self, i: int) -> _Steps:
        """Show a leg from its first piece on. Cancel the others, unless the answer may begin anew.

        A change of the source emits a `Restart` first. A no-op, apart from the cancelling, if it is shown already.
        """
        state, before = self.stream.states[i], self.stream.shown
        others = [j for j in self.stream.running() if j != i]
        if self.stream.restart and not state.accepted:
            others = [j for j in others if self.stream.legs[j].permit is not None and not self.stream.judged(i)]
        yield from self._cancel(others)
        if before == i:
            return
        self.stream.shown = i
        if before is not None:
            yield from self._emit(i, Restart(self.stream.legs[i].name))
        for piece in [*state.pieces]:
            yield from self._emit(i, piece)

    def _emit(self, i: int, piece: object) -> _Steps:
        """Emit a piece, and take over the time that showing it took."""
        shown = yield walks.Emit(i, walks.Prediction(piece, None, None), ())
        self.stream.now = max(self.stream.now, shown.at)  # type: ignore[union-attr]  # showing it may have taken time

    def _cancel(self, legs: Iterable[int]) -> _Steps:
        """Cancel legs, mark them as ended and failed, and log that."""
        for i in [*legs]:
            yield walks.Cancel(i)
            self.log.append(walks.Mark("cancelled", i, self.stream.now))
            self.stream.states[i].ended = self.stream.states[i].failed = True

    def _end(self, i: int | None, prediction: walks.Prediction | None, *, accepted: bool) -> None:
        """Set the outcome: the answer of leg `i`, or None for both."""
        self.outcome = walks.Outcome(i, prediction, accepted, self.log, self.stream.begun, self.stream.now, self.stream.held)


NOTHING = walks.Prediction(None, None, None)


def _partial_answer(pieces: list[object], error: BaseException | None = None) -> walks.Prediction:
    """Return the part of an answer that was shown; with the outputs so far, if the error has them."""
    partial: Any = getattr(error, "partial", None) if isinstance(error, Coded) else None
    return walks.Prediction(join_pieces(pieces), None, partial.outputs if type(partial) is walks.Prediction else None)
