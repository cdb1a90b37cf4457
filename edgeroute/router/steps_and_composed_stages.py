"""Steps that stages yield (`Walk`, `Join`, `Block`, `Pause`), and stages around the walk, which `compose` joins.

A stage takes requests (one, or the rows of a batch) and the rest of the call, and is a generator: it yields steps that require
I/O (a walk with its legs, an equal request to wait for, a disk), is sent their results, and returns one result per request.
So threads and asyncio share everything except the pump. `walk_stage` is the innermost one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from edgeroute.core.stream_walk import StreamWalk
from edgeroute.core.walk import Emit, Left, Mark, Outcome, outcome_when_left, walk, walk_many
from edgeroute.router.leg_execution import LegExecutor, Walked
from edgeroute.router.request import Request
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.stores.cache import Flight
    from edgeroute.system.thread_pool_and_workers import ThreadPool

T = TypeVar("T")


class Walk(NamedTuple):
    """Step: drive this walk; its result is the walk's."""

    walk: Generator[Any, Any, Any]
    legs: LegExecutor
    # Converts an effect `Emit` to the object that the caller gets; None: the walk emits nothing.
    show: Callable[[Emit], Any] | None = None
    streams: bool = False  # True if legs are started as streams


class Join(NamedTuple):
    """Step: wait for an equal request in progress; its result is that request's answer, None if there is none in time."""

    flight: Flight
    timeout_s: float


class Block(NamedTuple):
    """Step: call a function that may block; its result is the function's, or `late` if there is none by the instant `until`."""

    call: Callable[[], Any]
    until: float
    late: Any = None
    # True: without a free thread the function waits for one, or runs in the caller's if too many wait. False: `late` instead.
    needed: bool = True
    threads: ThreadPool | None = None  # that may run it; None: those that the router has for all that blocks


class Pause(NamedTuple):
    """Step: let other work run, for at least so many seconds; without result."""

    seconds: float


Step: TypeAlias = Walk | Join | Block | Pause
Steps: TypeAlias = Generator[Step, Any, T]
Result: TypeAlias = Answer | BaseException  # result of one request: an answer, or the exception to raise
Proceed: TypeAlias = Callable[[Sequence[Request]], Steps[list[Result]]]


class Shown(NamedTuple):
    """Piece of an answer that the caller of a stream gets."""

    source: str  # name of the target, or of the cache
    piece: Any


# Stage around the walk of each request: returns the results in order. Its `proceed` runs all stages inside it, and the walk.
Stage: TypeAlias = Callable[[Sequence[Request], Proceed], Steps[list[Result]]]


def answer_of(result: Result) -> Answer:
    """Return the answer; raise the exception if the result is one."""
    if isinstance(result, Answer):
        return result
    raise result


def compose(stages: Sequence[Stage], inner: Proceed) -> Proceed:
    """Return one function of several stages, the outermost first, around the innermost step."""
    for stage in reversed(stages):
        inner = partial(stage, proceed=inner)
    return inner


def walk_stage(
    requests: Sequence[Request], legs: LegExecutor, leaves: Callable[[Request, Left, LegExecutor], object] | None = None
) -> Steps[list[Walked]]:
    """Yield the step that walks the plan that the requests share, and return one result for each request: the innermost stage.

    Args:
        requests: one, or the rows of a batch.
        legs: executor of the plan's legs.
        leaves: called with the outcome so far if the caller of a stream or refinement leaves early.
    """
    first, late, shown, emitted = requests[0], legs.late is not None, list[Any](), list[Emit]()

    def show(emit: Emit) -> Any:
        emitted[:] = [emit]  # the last one alone
        shown.append(Shown(first.plan.legs[emit.leg].name, emit.prediction.value) if first.streams else provisional(first, emit))
        return shown[-1]

    if first.batch:
        outcomes = yield Walk(walk_many(first.plan, len(requests), first.begun, late), legs)
    elif first.streams:
        stream = StreamWalk(first.plan, first.begun, first.first_token_s, late, first.shows == "restarts")
        steps = Walk(stream.steps(), legs, show, streams=True)
        outcomes = [(yield from _shown(steps, first, stream.outcome_when_left, leaves))]
    elif first.shows:
        log = list[Mark]()
        steps = Walk(walk(first.plan, first.begun, True, late, log), legs, show)
        outcomes = [(yield from _shown(steps, first, partial(outcome_when_left, log, emitted, first.begun), leaves))]
    else:
        outcomes = [(yield Walk(walk(first.plan, first.begun, False, late), legs))]
    costs, spoken = legs.costs(), first.streams and bool(shown)
    last = shown[-1] if shown and not spoken else None
    return [Walked(request, outcome, costs, last, spoken, legs) for request, outcome in zip(requests, outcomes, strict=True)]


def _shown(
    step: Walk, request: Request, so_far: Callable[[float], Left | None],
    leaves: Callable[[Request, Left, LegExecutor], object] | None
) -> Steps[Outcome]:  # fmt: skip
    """Yield the step of a walk that shows answers, and return its outcome; call `leaves` if the caller leaves early.

    Raises what the walk raises.

    Args:
        step: the walk.
        request: its request.
        so_far: returns the outcome if the caller leaves at an instant.
        leaves: called with that outcome on close, cancellation or interruption.
    """
    try:
        return (yield step)  # type: ignore[no-any-return]
    except BaseException as e:
        outcome = None if leaves is None or isinstance(e, Exception) else so_far(monotonic())
        if leaves is not None and outcome is not None:  # closed, cancelled or interrupted
            leaves(request, outcome, step.legs)
        raise


def provisional(request: Request, emit: Emit) -> Answer:
    """Return a provisional answer to show for an effect `Emit` of a walk: not final, with the time from the call to it."""
    outcome = Outcome(emit.leg, emit.prediction, True, emit.log, request.begun, request.begun)
    answer = Answer(request.plan, outcome, request.id).add_note("provisional", final=False)
    answer.latency_s = emit.log[-1][2] - request.begun
    return answer
