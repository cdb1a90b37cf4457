"""Walk of a plan, for one input or a batch: a generator yields effects; a driver executes them and sends events back.

    effects, yielded      Start(leg)   Wait(until)   Cancel(leg)   Leave(leg)   Emit(leg, prediction)
    events, sent back     Done   Failed   Elapsed   (and Delta, in streams only)

A driver answers `Wait` with the next event, or with `Elapsed` once `until` has come; `Start` with None, or with the
leg's event if it ran to its end at once; `Emit` with `Elapsed`; `Cancel` and `Leave` with None.
All instants are seconds of one monotonic clock.
Starting is separate from waiting, so a race needs no thread here; acceptance, hedging, deadline and degradation are
all in this one function.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, final

from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy_egress_and_options import INF


@final
class Start(NamedTuple):
    """Effect: start this leg. `rows`: for these rows of a batch; None: for a single input."""

    leg: int
    rows: tuple[int, ...] | None = None


@final
class Wait(NamedTuple):
    """Effect: wait for the next event, or for this instant (`Elapsed`)."""

    until: float


@final
class Cancel(NamedTuple):
    """Effect: stop this leg, whose answer is no longer needed."""

    leg: int


@final
class Leave(NamedTuple):
    """Effect: stop waiting for this leg, but let it run on, since its answer is still of use."""

    leg: int


Kind = Literal["start", "limit", "decided", "accepted", "below", "kept", "failed", "cancelled", "timeout"]


@final
class Mark(NamedTuple):
    """Entry in a route's log."""

    kind: Kind
    leg: int
    at: float
    # by kind: the confidence of an answer (accepted, below, kept), or of its beginning (decided, which comes before these: the
    # decision was made within the answer, and kept of an answer below says that it went on to its end); the exception of a
    # failure (failed); the threshold of this answer, if it depends on the answer (limit, before accepted and below); else None.
    detail: Any = None


@final
class Malformed(float):
    """Confidence of an answer that failed the check of its structure: NaN, never accepted, by whatever threshold.

    Attributes:
        code: code of the fault, such as "schema".
        why: the fault in words, without content of the answer.
    """

    __slots__ = ("code", "why")
    code: str
    why: str

    def __new__(cls, code: str, why: str) -> Malformed:
        """Create a NaN with a code and its words."""
        self = super().__new__(cls, "nan")
        self.code, self.why = code, why
        return self

    def __reduce__(self) -> tuple[type[Malformed], tuple[str, str]]:
        return Malformed, (self.code, self.why)


class Prediction(NamedTuple):
    """Answer of a leg.

    Attributes:
        value: value decoded from the outputs: a class's label, a text, ...
        confidence: 0..1 for most scores, higher is more confident; None or NaN: there is none.
        outputs: raw outputs from which the value was decoded.
    """

    value: Any
    confidence: float | None
    outputs: Any


@final
class Delta(NamedTuple):
    """Event: a piece of the leg's answer; more may follow, then Done or Failed."""

    leg: int
    piece: Any
    at: float
    # Confidence of the whole answer, if it is taken of its beginning alone and known with this piece; else None.
    confidence: float | None = None


@final
class Done(NamedTuple):
    """Event: the leg answered; for a batch, `answer` has a prediction, or an exception, for each row it was started with."""

    leg: int
    answer: Any
    at: float


@final
class Failed(NamedTuple):
    """Event: the leg failed."""

    leg: int
    error: BaseException
    at: float
    fatal: bool = False  # True if the input itself is invalid: no other leg is tried


@final
class Elapsed(NamedTuple):
    """Event: the instant waited for has come."""

    at: float


@final
class Emit(NamedTuple):
    """Effect: show this answer now; a better one may follow."""

    leg: int
    prediction: Prediction
    log: Sequence[Mark]


Effect: TypeAlias = Start | Wait | Cancel | Leave | Emit
Event: TypeAlias = Delta | Done | Failed | Elapsed


class Outcome(NamedTuple):
    """Result of a route."""

    leg: int | None  # leg that gave the answer; None: there is no answer
    prediction: Prediction | None
    accepted: bool  # False: the best available answer, not the one the policy requires
    log: Sequence[Mark]
    begun: float
    ended: float
    held: Mapping[int, Prediction] = {}  # leg -> its answer that was not accepted


class Left(Outcome):
    """Result if the caller leaves before the end: the answer shown by then, of the leg shown, or else of the one started last."""

    __slots__ = ()


Walk: TypeAlias = Generator[Effect, Event | None, Outcome]

STARTS = tuple(Start(i) for i in range(16))
FOREVER = Wait(INF)
new = tuple.__new__  # build a NamedTuple from its fields without a Python-level call: for objects that every request makes


def acceptable(leg: Leg, prediction: Prediction) -> bool:
    """Return True if an answer is accepted; at exactly the threshold it is.

    Never if it is malformed. Always for a final leg or without a threshold; without confidence as `accept_unsure` demands; never
    at a threshold of inf.
    """
    threshold, confidence = leg.threshold, prediction.confidence
    if type(confidence) is Malformed:
        return False
    if leg.final or threshold is None:
        return True
    if confidence is None or confidence != confidence:  # noqa: PLR0124 - NaN, without an import
        return leg.accept_unsure
    if leg.thresholds:
        threshold = own_threshold(leg, prediction)
    return confidence >= threshold != INF


def judged(leg: Leg) -> bool:
    """Return True if an edge's answer is compared with a threshold, with another leg to call if it fails."""
    return leg.permit is None and leg.threshold is not None and not leg.final and not leg.standby


def own_threshold(leg: Leg, prediction: Prediction) -> float:
    """Return the threshold for this answer: that of its value as text, else the leg's."""
    assert leg.threshold is not None, "a leg with thresholds has one for the rest, too"
    return leg.thresholds.get(str(prediction.value), leg.threshold)


def best_held(legs: Sequence[Leg], held: Mapping[int, Prediction]) -> int:
    """Return the leg whose answer is the best fallback: the most capable one's, and a malformed answer only if all are."""
    return max(held, key=lambda i: (type(held[i].confidence) is not Malformed, legs[i].target))


def first_leg_outcome(plan: Plan, begun: float, prediction: Prediction, instant: float) -> Outcome | None:
    """Return the outcome of `walk` if the first leg's answer at an instant ends it; None if it does not.

    For sequential plans that begin on the device: the fast path of most calls, without a generator.
    """
    leg, confidence = plan.legs[0], prediction.confidence
    thresholds, threshold = leg.thresholds, leg.threshold
    # Most are clear, which saves a call.
    clear = not thresholds and confidence is not None and threshold is not None and confidence >= threshold != INF
    if leg.standby or not (clear or acceptable(leg, prediction)):
        return None
    log = [new(Mark, ("start", 0, begun, None)), new(Mark, ("accepted", 0, instant, confidence))]
    if thresholds:
        log.insert(1, Mark("limit", 0, instant, own_threshold(leg, prediction)))
    return new(Outcome, (0, prediction, True, log, begun, instant, _NONE))


_NONE: Mapping[int, Prediction] = {}


def outcome_when_left(log: list[Mark], emitted: Sequence[Emit], begun: float, instant: float) -> Left | None:
    """Return the outcome of `walk` if its caller leaves at an instant, all legs being stopped; None if none was started.

    Args:
        log: log of the walk; marks of the stopped legs are appended.
        emitted: answers that it has emitted; the last one counts.
        begun: instant at which it began.
        instant: instant at which the caller leaves.
    """
    started = [mark.leg for mark in log if mark.kind == "start"]
    if not started:
        return None
    ended = {mark.leg for mark in log if mark.kind not in {"start", "limit"}}
    log += [Mark("cancelled", i, instant) for i in started if i not in ended]
    if not emitted:
        return Left(started[-1], Prediction(None, None, None), False, log, begun, instant)
    i, prediction, _ = emitted[-1]
    return Left(i, prediction, False, log, begun, instant, {i: prediction})


def walk(plan: Plan, begun: float, provisional: bool = False, keep_late: bool = False, log: list[Mark] | None = None) -> Walk:
    """Route one input along the plan, beginning at the instant `begun`; yields effects, and returns the outcome.

    The first accepted answer ends it, and the running legs are cancelled. Else it ends at the deadline, when no leg is left, or
    at a fatal failure with no answer held: with the best answer that was not accepted, a part that had arrived, or none.

    Args:
        plan: the plan.
        begun: instant at which it begins.
        provisional: True: emit each answer that is the best so far but not final.
        keep_late: True: at the deadline, let running clouds go on, rather than cancel them.
        log: list to which the route's log is appended; None: nobody reads it before the end.
    """
    legs, deadline = _at_once(plan) if provisional else plan.legs, begun + plan.deadline_s
    pending = [*range(len(legs))]
    running: list[int] = []  # `list[int]()` costs 0.1 us
    held: dict[int, Prediction] = {}
    log = [] if log is None else log
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
                fresh, best = False, best_held(legs, held)
                shown = yield Emit(best, held[best], tuple(log))
                now = shown.at  # type: ignore[union-attr]  # showing it may have taken time
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
            held[i] = prediction
            fresh = provisional and type(prediction.confidence) is not Malformed and best_held(legs, held) == i
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
        broken, part = _partial(log)
        return Outcome(broken, part, False, log, begun, now)
    best = best_held(legs, held)
    return Outcome(best, held[best], False, log, begun, now, held)


def _partial(log: list[Mark]) -> tuple[int | None, Prediction | None]:
    """Return the leg whose answer broke off, and the part that had arrived; of several the last; (None, None) if none did."""
    for mark in reversed(log):
        part = getattr(mark.detail, "partial", None) if mark.kind == "failed" else None
        if type(part) is Prediction:
            return mark.leg, part
    return None, None


def _at_once(plan: Plan) -> tuple[Leg, ...]:
    """Return the legs, with the first standby in memory started at the beginning, for a provisional answer."""
    freed = any(rule.then == "unload" for rule in plan.rules)
    ready = (i for i, leg in enumerate(plan.legs) if leg.standby and not freed and leg.name not in plan.facts.loading)
    first = next(ready, None)
    return tuple(leg._replace(start_by_s=0.0) if i == first else leg for i, leg in enumerate(plan.legs))


def _next(
    legs: tuple[Leg, ...], pending: list[int], running: list[int], held: dict[int, Prediction], begun: float, started: float
) -> tuple[int, float]:
    """Return the pending leg that starts next, and the instant; `begun`: at once.

    The first starts at once if no leg but standbys runs, unless it is a standby itself and an answer is held. Otherwise the
    earlier of its hedging delay after `started`, the last start, and of the `start_by_s` of a standby or of an edge that is not
    in memory.
    """
    first = pending[0]
    if not running and not (held and legs[first].standby):
        return first, begun
    if not legs[first].standby and all(legs[i].standby for i in running):
        return first, begun
    choices = [(begun + legs[i].start_by_s, i) for i in pending if legs[i].standby or legs[i].start_by_s < INF]
    if not legs[first].standby:
        choices.append((started + legs[first].hedge_after_s, first))
    start, i = min(choices)
    return i, start


def _cancel(running: list[int], now: float, log: list[Mark]) -> Generator[Effect, Event | None, None]:
    """Cancel all running legs, log that, and empty `running` in place."""
    for i in running:
        yield Cancel(i)
        log.append(Mark("cancelled", i, now))
    running.clear()


# Walk of a plan with a batch: each row follows the rules for one input; a leg is started once for all rows that need it.

BatchWalk: TypeAlias = Generator[Effect, Event | None, list[Outcome]]


def walk_many(plan: Plan, count: int, begun: float, keep_late: bool = False) -> BatchWalk:
    """Route `count` inputs together; yields effects as `walk` does, and returns the outcomes in order.

    Rows still in progress have all seen the same legs end, each with an answer or a failure of its own, since a row either ends
    or goes on with the others. So they request the same legs at the same time, and one `Start` with their row numbers serves them
    all. A leg is cancelled when no remaining row could use it. At the deadline clouds still running are cancelled, or with
    `keep_late` left running.
    """
    plan = for_rows(plan, count)
    live: dict[int, Walk] = {row: walk(plan, begun, False, keep_late) for row in range(count)}
    outcomes: list[Outcome | None] = [None] * count
    asked: dict[int, dict[int, int]] = {}  # leg -> rows that it was started for, each with its place among them
    events: list[Event | None] = [None]

    while True:
        event = events.pop(0)
        starts: dict[int, list[int]] = {}
        ends: dict[int, Cancel | Leave] = {}
        until = begun
        for row, row_walk in list(live.items()):
            reply = of_row(event, asked[event.leg][row]) if type(event) is Done else event  # others are the same for all rows
            try:
                while type(effect := row_walk.send(reply)) is not Wait:
                    reply = None
                    if type(effect) is Start:
                        starts.setdefault(effect.leg, []).append(row)
                    else:
                        assert type(effect) is not Emit, "a batch shows nothing"
                        ends[effect.leg] = effect
                until = effect.until
            except StopIteration as end:
                outcomes[row] = end.value
                del live[row]
        for leg, rows in starts.items():
            asked[leg] = {row: place for place, row in enumerate(rows)}
            at_once = yield Start(leg, tuple(rows))
            if at_once is not None:
                events.append(at_once)
        if not live:
            yield from ends.values()
            return [outcome for outcome in outcomes if outcome is not None]
        if not events:
            events.append((yield Wait(until)))


def for_rows(plan: Plan, count: int) -> Plan:
    """Return the plan with a standby started early enough to run `count` inputs: measured times are those of one input.

    Unchanged without a deadline.
    """
    deadline_s = plan.deadline_s
    if deadline_s == INF:
        return plan
    legs = (
        leg._replace(start_by_s=max(0.0, deadline_s - count * (deadline_s - leg.start_by_s))) if leg.start_by_s < INF else leg
        for leg in plan.legs
    )
    return plan._replace(legs=tuple(legs))


def of_row(event: Done, position: int) -> Done | Failed:
    """Return the event of one row. An exception among the answers is the failure of that row alone."""
    answer = event.answer[position]
    return Failed(event.leg, answer, event.at) if isinstance(answer, BaseException) else Done(event.leg, answer, event.at)
