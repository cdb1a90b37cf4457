"""Walks a plan whose answers come in pieces; pieces of two legs are never mixed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from edgeroute.core.codes import Coded
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import (
    Cancel,
    Delta,
    Done,
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

Pieces: TypeAlias = Generator[Any, None, Prediction]
"""Yields the pieces of an answer, and returns the whole."""


class FirstTokenLate(Coded, TimeoutError):
    """A leg gave no first piece within its time limit."""

    code = "timeout"


def walk_stream(plan: Plan, begun: float, first_s: float = INF, keep_late: bool = False) -> Walk:
    """Routes one input along the plan, one leg after the other, and emits the pieces of the accepted answer.

    A leg with a threshold is judged by its whole answer, so its pieces are held back until that is accepted. Any other leg is
    committed to with its first piece: if it fails after that, its pieces so far are the answer, and no other leg continues it.
    A fallback answer that was not accepted is emitted at the end, unless the plan's offline rule may replace it. An edge that
    does not begin in time is not stopped: if nobody else answers, it is listened to after all.

    Args:
        plan: the plan. Its hedges are not used: two legs that stream at once would be paid for twice.
        begun: the instant at which it begins.
        first_s: a leg without a first piece after so many seconds counts as failed, unless nothing else is left.
        keep_late: at the deadline, leave a cloud running rather than cancel it.
    """
    legs, deadline = plan.legs, begun + plan.deadline_s
    log: list[Mark] = []
    now = begun
    best: tuple[int, Prediction, list[object]] | None = None
    held: dict[int, Prediction] = {}

    pending = [*plan.order]
    quiet: dict[int, list[Event]] = {}
    """Edges that had not begun in time -> what came from them since."""
    while True:
        if pending and now < deadline:
            i, again = pending.pop(0), False
        else:
            left = [j for j in quiet if now < deadline or _ended(quiet[j])]
            if best is not None or not left:
                break
            i, again = left[0], True
        inbox = quiet.pop(i, [])
        leg, last = legs[i], not (again or pending or plan.skipped)
        first_by = max(now, min(now + first_s, deadline - _reserve_s(plan, i)))
        open_at_once = last or leg.threshold is None
        pieces: list[object] = []
        spoken = patient = False
        event: Event | None = None
        if not again:
            event = yield Start(i)
            log.append(Mark("start", i, now))
        while True:
            if event is None:
                event = inbox.pop(0) if inbox else (yield Wait(deadline if spoken or patient else min(first_by, deadline)))
            assert event is not None, "a driver answers Wait with an event"
            now = max(now, event.at)  # what was put aside came before
            if type(event) is not Elapsed and event.leg in quiet:
                quiet[event.leg].append(event)
                event = Elapsed(now) if patient and not spoken else None
            elif type(event) is Delta:
                spoken = True
                pieces.append(event.piece)
                if open_at_once:
                    for j in [j for j in quiet if not _ended(quiet[j])]:
                        yield Cancel(j)
                    quiet.clear()
                    shown = yield Emit(i, Prediction(event.piece, None, None), ())
                    now = shown.at  # type: ignore[union-attr]
                event = None
            elif type(event) is Done:
                prediction: Prediction = event.answer
                if leg.thresholds:
                    log.append(Mark("limit", i, now, own_threshold(leg, prediction)))
                if last or acceptable(leg, prediction):
                    log.append(Mark("accepted", i, now, prediction.confidence))
                    for piece in () if open_at_once else pieces:
                        yield Emit(i, Prediction(piece, None, None), ())
                    return Outcome(i, prediction, True, log, begun, now, held)
                log.append(Mark("below", i, now, prediction.confidence))
                best = i, prediction, pieces
                held[i] = prediction
                break
            elif type(event) is Failed:
                log.append(Mark("failed", i, now, event.error))
                if spoken and open_at_once:
                    return Outcome(i, _part(pieces, event.error), False, log, begun, now, held)
                if event.fatal and best is None:
                    return Outcome(None, None, False, log, begun, now)
                break
            elif now < deadline and not pending and best is None and not any(map(_answered, quiet.values())):
                patient, event = True, None  # nothing is won by giving it up
            else:
                if now < deadline and leg.permit is None:
                    quiet[i] = []
                else:
                    yield Leave(i) if keep_late and now >= deadline and leg.permit is not None else Cancel(i)
                if now >= deadline:
                    log.append(Mark("timeout", i, now))
                    if spoken and open_at_once:
                        return Outcome(i, _part(pieces), False, log, begun, now, held)
                else:
                    late = FirstTokenLate(f"it had not begun to answer after {(now - log[-1][2]) * 1000:.0f} ms")
                    log.append(Mark("failed", i, now, late))
                break

    if best is None:
        return Outcome(None, None, False, log, begun, now)
    i, prediction, pieces = best
    for piece in pieces if plan.offline in {"edge", "queue"} else ():  # otherwise the offline rule replaces it
        yield Emit(i, Prediction(piece, None, None), ())
    return Outcome(i, prediction, False, log, begun, now, held)


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
        return whole(pieces), end.value


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
        return read(end.value if type(end.value) is Prediction else (whole(pieces), end.value))
    finally:
        result.close()


def _answered(events: list[Event]) -> bool:
    """Whether the leg's answer is among them."""
    return bool(events) and type(events[-1]) is Done


def _ended(events: list[Event]) -> bool:
    """Whether they are all that comes from a leg."""
    return bool(events) and type(events[-1]) is not Delta


def _reserve_s(plan: Plan, i: int) -> float:
    """Time to leave the standby after this leg, seconds; half of the deadline where more is needed, or it is unknown.

    Likewise to an edge that is not in memory, which has to be loaded.
    """
    leg = next((leg for leg in plan.legs[i + 1 :] if leg.standby or leg.start_by_s < INF), None)
    if leg is None or plan.legs[i].standby or plan.legs[i].start_by_s < INF or plan.deadline_s == INF:
        return 0.0
    if not leg.standby:
        return plan.deadline_s / 2
    return min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2)


def _part(pieces: list[object], error: BaseException | None = None) -> Prediction:
    """What of an answer was shown; with the outputs so far, where the error has them."""
    partial = getattr(error, "partial", None)
    return Prediction(whole(pieces), None, partial.outputs if type(partial) is Prediction else None)
