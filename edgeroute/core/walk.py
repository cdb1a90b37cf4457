"""Walks a plan. One generator says what to do next; a driver does it and says what happened.

    effects, yielded      Start(leg)   Wait(until)   Cancel(leg)   Leave(leg)   Emit(leg, prediction)
    events, sent back     Done   Failed   Elapsed   (and Delta, in streams alone)

A driver answers `Wait` with the next event, or with `Elapsed` once `until` has come; `Start` with None, or with the
leg's event if it ran to its end there and then; `Emit` with `Elapsed`; `Cancel` and `Leave` with None.
All instants are seconds of one monotonic clock.
Starting is separate from waiting, so a race needs no thread in here, and the whole of acceptance, hedging, deadline
and degradation is this one function.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, final

from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy import INF


@final
class Start(NamedTuple):
    """Begin this leg. `rows`: for these rows of a batch; None: for the one input."""

    leg: int
    rows: tuple[int, ...] | None = None


@final
class Wait(NamedTuple):
    """Give me the next event, or Elapsed at this instant."""

    until: float


@final
class Cancel(NamedTuple):
    """This leg's answer is not needed any more."""

    leg: int


@final
class Leave(NamedTuple):
    """Nobody waits for this leg any more, but what it answers is still of use: let it run on."""

    leg: int


Kind = Literal["start", "limit", "accepted", "below", "kept", "failed", "cancelled", "timeout"]


@final
class Mark(NamedTuple):
    """One line of a route's log."""

    kind: Kind
    leg: int
    at: float
    detail: Any = None
    """The confidence of an answer (accepted, below, kept), the exception of a failure (failed), the threshold that this very
    answer has, where that depends on it (limit, which comes before accepted and below); else None."""


class Prediction(NamedTuple):
    """What a leg answered."""

    value: Any
    confidence: float | None
    """0..1 for most scores, higher is surer; None or NaN: there is none."""
    outputs: Any
    """The raw outputs that the value was read from."""


@final
class Delta(NamedTuple):
    """A piece of the leg's answer; more may follow, and Done or Failed in the end."""

    leg: int
    piece: Any
    at: float


@final
class Done(NamedTuple):
    """The leg answered; for a batch, `answer` has a prediction for each of the rows it was started with."""

    leg: int
    answer: Any
    at: float


@final
class Failed(NamedTuple):
    """The leg did not answer."""

    leg: int
    error: BaseException
    at: float
    fatal: bool = False
    """The input itself is wrong: no other leg need try."""


@final
class Elapsed(NamedTuple):
    """The instant that was waited for has come."""

    at: float


@final
class Emit(NamedTuple):
    """Show this answer now; a better one may follow."""

    leg: int
    prediction: Prediction
    log: Sequence[Mark]


Effect: TypeAlias = Start | Wait | Cancel | Leave | Emit
Event: TypeAlias = Delta | Done | Failed | Elapsed


class Outcome(NamedTuple):
    """How a route ended."""

    leg: int | None
    """The leg whose answer this is; None: there is none."""
    prediction: Prediction | None
    accepted: bool
    """False: the best of what there was, not what the policy asked for."""
    log: Sequence[Mark]
    begun: float
    ended: float
    held: Mapping[int, Prediction] = {}
    """Leg -> what it answered and was not accepted."""


Walk: TypeAlias = Generator[Effect, Event | None, Outcome]

STARTS = tuple(Start(i) for i in range(16))
FOREVER = Wait(INF)
new = tuple.__new__
"""Makes a NamedTuple of its fields without the Python function in between: for what every call makes."""


def acceptable(leg: Leg, prediction: Prediction) -> bool:
    """Whether an answer may stand; at the threshold itself it does."""
    threshold = leg.threshold
    if leg.final or threshold is None:
        return True
    confidence = prediction.confidence
    if confidence is None or confidence != confidence:  # noqa: PLR0124 - NaN, without an import
        return leg.accept_unsure
    if leg.thresholds:
        threshold = own_threshold(leg, prediction)
    return confidence >= threshold != INF


def judged(leg: Leg) -> bool:
    """Whether an edge's answer is held against a threshold, with another leg to ask where it fails."""
    return leg.permit is None and leg.threshold is not None and not leg.final and not leg.standby


def own_threshold(leg: Leg, prediction: Prediction) -> float:
    """The threshold of this very answer."""
    assert leg.threshold is not None, "a leg with thresholds has one for the rest, too"
    return leg.thresholds.get(str(prediction.value), leg.threshold)


def settled(plan: Plan, begun: float, prediction: Prediction, at: float) -> Outcome | None:
    """What `walk` returns if the first leg answered so at the instant `at`, and that is the end of it; None: it is not.

    For plans that are sequential and begin on the device: the short way of most calls, without a generator.
    """
    leg, confidence = plan.legs[0], prediction.confidence
    own, threshold = leg.thresholds, leg.threshold
    clear = not own and confidence is not None and threshold is not None and confidence >= threshold != INF  # most: saves a call
    if leg.standby or not (clear or acceptable(leg, prediction)):
        return None
    log = [new(Mark, ("start", 0, begun, None)), new(Mark, ("accepted", 0, at, confidence))]
    if own:
        log.insert(1, Mark("limit", 0, at, own_threshold(leg, prediction)))
    return new(Outcome, (0, prediction, True, log, begun, at, _NONE))


_NONE: Mapping[int, Prediction] = {}


def walk(plan: Plan, begun: float, provisional: bool = False, keep_late: bool = False) -> Walk:
    """Routes one input along the plan, beginning at the instant `begun`.

    Args:
        plan: the plan.
        begun: the instant at which it begins.
        provisional: emit each answer that is the best so far and not the last word.
        keep_late: at the deadline, leave clouds that are still at it, rather than cancel them.
    """
    legs, deadline = _at_once(plan.legs) if provisional else plan.legs, begun + plan.deadline_s
    pending = [*plan.order]
    running: list[int] = []  # `list[int]()` costs 0.1 us
    held: dict[int, Prediction] = {}
    log: list[Mark] = []
    now = started = begun
    fresh = False

    while True:
        event, due = None, INF
        while pending and now < deadline:
            if running or held:
                i, due = _next(legs, pending, running, held, begun, started)
                if due > now:
                    break
            else:
                i = pending[0]
            event = yield STARTS[i] if i < len(STARTS) else Start(i)
            pending.remove(i)
            running.append(i)
            log.append(new(Mark, ("start", i, now, None)))
            due, started = INF, started if legs[i].standby else now
            if event is not None:
                break
        if event is None:
            if not running or (held and all(legs[i].standby for i in running)):
                yield from _cancel(running, now, log)
                break
            if fresh:
                fresh, best = False, max(held, key=lambda i: legs[i].target)
                shown = yield Emit(best, held[best], tuple(log))
                now = shown.at  # type: ignore[union-attr]  # whoever was shown it may have taken its time
                continue
            until = due if due < deadline else deadline
            event = yield FOREVER if until == INF else Wait(until)

        now = event.at  # type: ignore[union-attr]  # a driver answers Wait with an event
        if type(event) is Done:
            i, prediction = event.leg, event.answer
            running.remove(i)
            leg = legs[i]
            if leg.thresholds:
                log.append(Mark("limit", i, now, own_threshold(leg, prediction)))
            if not leg.standby and acceptable(leg, prediction):
                log.append(new(Mark, ("accepted", i, now, prediction.confidence)))
                if running:
                    yield from _cancel(running, now, log)
                return new(Outcome, (i, prediction, True, log, begun, now, held))
            log.append(new(Mark, ("kept" if leg.standby else "below", i, now, prediction.confidence)))
            fresh = provisional and all(legs[i].target > legs[j].target for j in held)
            held[i] = prediction
        elif type(event) is Failed:
            running.remove(event.leg)
            log.append(Mark("failed", event.leg, now, event.error))
            if event.fatal and not held:
                yield from _cancel(running, now, log)
                break
        elif now >= deadline:
            for i in running:
                yield Leave(i) if keep_late and legs[i].permit is not None else Cancel(i)
                log.append(Mark("timeout", i, now))
            break

    if not held:
        return Outcome(None, None, False, log, begun, now)
    best = max(held, key=lambda i: legs[i].target)
    return Outcome(best, held[best], False, log, begun, now, held)


def _at_once(legs: tuple[Leg, ...]) -> tuple[Leg, ...]:
    """The legs, with the first standby starting at the beginning: its answer is wanted even if it is not the last."""
    first = next((i for i, leg in enumerate(legs) if leg.standby), None)
    return tuple(leg._replace(start_by_s=0.0) if i == first else leg for i, leg in enumerate(legs))


def _next(
    legs: tuple[Leg, ...], pending: list[int], running: list[int], held: dict[int, Prediction], begun: float, started: float
) -> tuple[int, float]:
    """The pending leg that starts next, and the instant at which it does; `begun` means: nothing holds it back."""
    first = pending[0]
    if not running and not (held and legs[first].standby):
        return first, begun
    if not legs[first].standby and all(legs[i].standby for i in running):
        return first, begun
    choices = [(begun + legs[i].start_by_s, i) for i in pending if legs[i].standby]
    if not legs[first].standby:
        choices.append((started + legs[first].hedge_after_s, first))
    at, i = min(choices)
    return i, at


def _cancel(running: list[int], now: float, log: list[Mark]) -> Generator[Effect, Event | None, None]:
    for i in running:
        yield Cancel(i)
        log.append(Mark("cancelled", i, now))
    running.clear()
