"""Steps of a call, and stages around the walk.

A stage takes requests (one, or the rows of a batch) and the rest of the call, and is a generator: it yields what requires
I/O (a walk with its legs, an equal request to wait for, a disk), is sent the result, and returns one result per request.
`compose` makes one function from several stages. So threads and asyncio share everything except the pump.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from edgeroute.core.batch import walk_many
from edgeroute.core.stream import StreamWalk
from edgeroute.core.walk import Emit, Left, Mark, Outcome, left, walk
from edgeroute.router.legs import LegExecutor, Walked
from edgeroute.router.request import Request
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.stores.cache import Flight

T = TypeVar("T")


class Walk(NamedTuple):
    """Step: drive this walk. Its result is what the walk returns."""

    walk: Generator[Any, Any, Any]
    legs: LegExecutor
    show: Callable[[Emit], Any] | None = None
    """Converts what the walk emits to what the caller is shown; None: it emits nothing."""
    streams: bool = False
    """Legs start as streams."""


class Join(NamedTuple):
    """Step: wait for an equal request in progress. Its result is that answer; None: there is none in time."""

    flight: Flight
    timeout_s: float


class Block(NamedTuple):
    """Step: call a function that may block. Its result is the function's; `late` if there is none by the instant `until`."""

    call: Callable[[], Any]
    until: float
    late: Any = None
    needed: bool = True
    """Without a free thread it is called in the next one, or in the caller's if too many wait; False: then it is late."""


class Pause(NamedTuple):
    """Step: let others run, for so many seconds at least. It has no result."""

    seconds: float


Step: TypeAlias = Walk | Join | Block | Pause
Steps: TypeAlias = Generator[Step, Any, T]
Result: TypeAlias = Answer | BaseException
"""Result of one request: an answer, or the exception to raise."""
Proceed: TypeAlias = Callable[[Sequence[Request]], Steps[list[Result]]]


class Shown(NamedTuple):
    """What the caller of a stream is shown."""

    source: str
    """The target's name."""
    piece: Any


Stage: TypeAlias = Callable[[Sequence[Request], Proceed], Steps[list[Result]]]
"""Stage around the walk of each request: returns the results in order; its `proceed` runs everything inside it."""


def answer_of(result: Result) -> Answer:
    """The answer; raises the exception if there is none."""
    if isinstance(result, Answer):
        return result
    raise result


def compose(stages: Sequence[Stage], inner: Proceed) -> Proceed:
    """Compose stages, the outermost first, around the innermost step."""
    for stage in reversed(stages):
        inner = partial(stage, proceed=inner)
    return inner


def walked(
    requests: Sequence[Request], legs: LegExecutor, leaves: Callable[[Request, Left, LegExecutor], object] | None = None
) -> Steps[list[Walked]]:
    """The innermost step: walks the plan, which the requests share. leaves: called where its caller leaves early."""
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
        outcomes = [(yield from _shown(steps, first, stream.left, leaves))]
    elif first.shows:
        log = list[Mark]()
        steps = Walk(walk(first.plan, first.begun, True, late, log), legs, show)
        outcomes = [(yield from _shown(steps, first, partial(left, log, emitted, first.begun), leaves))]
    else:
        outcomes = [(yield Walk(walk(first.plan, first.begun, False, late), legs))]
    costs, spoken = legs.costs(), first.streams and bool(shown)
    last = shown[-1] if shown and not spoken else None
    return [Walked(request, outcome, costs, last, spoken, legs) for request, outcome in zip(requests, outcomes, strict=True)]


def _shown(
    step: Walk, request: Request, so_far: Callable[[float], Left | None],
    leaves: Callable[[Request, Left, LegExecutor], object] | None,
) -> Steps[Outcome]:  # fmt: skip
    """A walk that shows something; so_far: its outcome if its caller leaves at an instant."""
    try:
        return (yield step)  # type: ignore[no-any-return]
    except BaseException as e:
        outcome = None if leaves is None or isinstance(e, Exception) else so_far(monotonic())
        if leaves is not None and outcome is not None:  # closed, cancelled or interrupted
            leaves(request, outcome, step.legs)
        raise


def provisional(request: Request, emit: Emit) -> Answer:
    """The edge's provisional answer."""
    outcome = Outcome(emit.leg, emit.prediction, True, emit.log, request.begun, request.begun)
    answer = Answer(request.plan, outcome, request.id).add_note("provisional", final=False)
    answer.latency_s = emit.log[-1][2] - request.begun
    return answer
