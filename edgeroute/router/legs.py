"""Executes the legs of a request, in this thread, in others, or on an event loop; each leg's result is an event."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from edgeroute.core.batch import of_row
from edgeroute.core.egress import Permit
from edgeroute.core.policy import INF
from edgeroute.core.stream import Pieces
from edgeroute.core.walk import Delta, Done, Event, Failed, Outcome, Prediction, Start, first_leg_outcome, new
from edgeroute.errors import INPUTS_OWN, BadInput, Held, ModelError, Refused, Unreachable
from edgeroute.router.drivers import Send, Stop
from edgeroute.router.inputs import CallInputs
from edgeroute.router.request import Request
from edgeroute.router.views import EdgeAnswers
from edgeroute.system.process import is_task_cancelled
from edgeroute.types import Answer, Backend, Spent, StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.backend import CloudBackend
    from edgeroute.cloud.exchange import Exchange
    from edgeroute.stores.cache import Cache
    from edgeroute.system.threads import ThreadPool


# An exchange with a cloud while its leg runs.


class Asking:
    """Context manager of one exchange, which it ends: yields its deadline and the exchange.

    Not a generator function for `contextmanager`, which would take three more calls of Python: each request has one.

    Args:
        until: the deadline.
        exchange: of the guard.
        refuses: is told if the endpoint refuses the input itself, and by which status; None: nobody is. Not of one that was sent
            in another form than it will be: with the edge's answer, or by a rung of a ladder above its floor.
        above_floor: of the endpoint: whether that rung is.
    """

    __slots__ = ("_above_floor", "_exchange", "_refuses", "_until")

    def __init__(
        self,
        until: float,
        exchange: Exchange,
        refuses: Callable[[str, int], object] | None,
        above_floor: Callable[[str], bool],
    ) -> None:
        self._until, self._exchange, self._refuses, self._above_floor = until, exchange, refuses, above_floor

    def __enter__(self) -> tuple[float, Exchange]:
        return self._until, self._exchange

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._refuses is not None and isinstance(error, Refused) and error.status in INPUTS_OWN:
                exchange = self._exchange
                if not exchange.edge and not self._above_floor(exchange.codec):
                    self._refuses(str(error), error.status)
        finally:
            self._exchange.__exit__(kind, error, trace)


# Pieces of a leg's answer on their way to the walk, with the confidence that becomes known within it.

Watch = Callable[[Any], float | None]
"""Takes each piece of an answer -> its confidence, with the piece that makes it known."""


def watching(backend: Any) -> Watch:
    """Watches the pieces of an edge's answer, where its score is that of the answer's beginning."""
    watch: Callable[[], Watch] | None = getattr(backend.reader.score, "watch", None)
    return nothing if watch is None else watch()


def nothing(_: Any) -> None:
    """The confidence is known once the answer is whole."""


def forward(start: Start, pieces: Pieces, send: Send, stop: StopToken | None, watch: Watch = nothing) -> Prediction:
    """Sends the pieces of a leg as they come; returns its answer."""
    try:
        while True:
            piece = next(pieces)
            send(Delta(start.leg, piece, monotonic(), watch(piece)))
            if stop is not None and stop.asked:
                raise Unreachable("its answer is not needed any more")
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        pieces.close()


# Separates the events that a walk still waits for from those of legs that were left to run past the deadline.

Late = Callable[[Request, Event, bool], object]
"""Receives the event of a leg that was left running past that request's deadline, and whether the thread may be blocked."""


class LateEvents:
    """Separates events that a walk still waits for from late ones, of legs left running past the deadline.

    Args:
        requests: one, or the rows of a batch.
        take: receives late events.
    """

    def __init__(self, requests: Sequence[Request], take: Late) -> None:
        self._requests, self._take = requests, take
        self._lock = threading.Lock()
        self._left: dict[int, list[int]] | None = None
        """Leg left running -> the rows that wanted its answer; None: the walk has not ended."""
        self._early: dict[int, Event] = {}
        """Leg -> the event sent to the walk."""
        self.rows: dict[int, tuple[int, ...]] = {}
        """By leg: the rows of the batch that it was started for."""
        self._answered: set[int] = set()
        """The rows of which a late answer was taken: of several clouds that are late the first counts."""

    def deliver(self, leg: int, send: Send, own_thread: bool, event: Event) -> None:
        """Delivers a leg's last event. own_thread: the calling thread may be blocked."""
        with self._lock:
            left = self._left
            if left is None:
                self._early[leg] = event
        if left is None:
            send(event)
        else:
            self._report(left, leg, event, own_thread)

    def end(self, left: dict[int, list[int]]) -> None:
        """Ends the walk, with these legs left running."""
        with self._lock:
            self._left = left
        for leg in left:
            if (event := self._early.get(leg)) is not None:  # it arrived between the deadline and now
                self._report(left, leg, event, False)

    def _report(self, left: dict[int, list[int]], leg: int, event: Event, own_thread: bool) -> None:
        places = {row: place for place, row in enumerate(self.rows.get(leg, ()))}
        for row in left.get(leg, ()):
            own = event
            if self._requests[row].batch and type(event) is Done:
                own = of_row(event, places[row])
            if type(own) is Done:
                with self._lock:
                    known = row in self._answered
                    self._answered.add(row)
                if known:
                    continue
            self._take(self._requests[row], own, own_thread)


# A leg in a thread: it always sends an event, and its backend counts it if it goes on after it was told to stop.

Measured = Callable[[str, float], object]
PASSING = (KeyboardInterrupt, SystemExit)
"""What is no failure of a leg in the caller's own thread, since a signal handler may have raised it; anything else is one."""


class LegTask:
    """A leg in a thread. The backend counts abandoned ones, for the planner."""

    __slots__ = ("_backend", "_begun", "_ended", "_leg", "_measured", "_took_s", "token")

    def __init__(self, leg: int, backend: Backend, measured: Measured | None = None) -> None:
        self._leg, self._backend, self._measured, self.token = leg, backend, measured, StopToken()
        self._begun, self._ended = monotonic(), False
        self._took_s: float | None = None

    def run(self, execute: Callable[[], Event], send: Send, *, here: bool = False) -> None:
        """Runs the leg and always sends an event; but `PASSING` passes in the caller's own thread (here)."""
        try:
            event = execute()
        except BaseException as e:
            if here and isinstance(e, PASSING):
                raise
            event = Failed(self._leg, e, monotonic())
        self._took_s = event.at - self._begun if type(event) is Done else None
        self._ended = True
        self._backend.stopping.discard(self)
        if self.token.asked:
            self._measure()
        send(event)

    def stop(self) -> None:
        """Asks it to stop. Lock-free: if it has just ended, the count is corrected at once."""
        if not self._ended:
            self._backend.stopping.add(self)
            if self._ended:
                self._backend.stopping.discard(self)
        else:
            self._measure()
        self.token()

    def _measure(self) -> None:
        """Reports how long the run took: the walk, which stops it, does not see its event any more."""
        measured, self._measured = self._measured, None
        if measured is not None and self._took_s is not None:
            measured(self._backend.name, self._took_s)


T = TypeVar("T")
OffLoop = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a blocking call without blocking the event loop."""
STUCK_MOST = 32
"""Number of abandoned runs of an edge model at which another, for which no thread is free, is rejected."""


class Walked(NamedTuple):
    """Result of walking a request's plan; never written to."""

    request: Request
    outcome: Outcome
    costs: Mapping[int, Spent]
    """Leg -> cost of its exchange with the cloud."""
    shown: Answer | None = None
    """The last provisional answer shown to the caller."""
    spoken: bool = False
    """Whether the caller was shown pieces of this answer."""
    legs: LegExecutor | None = None
    """The executor, if legs may still be running; None: none."""


class LegExecutor:
    """Runs the legs of one request or of a batch, and turns their results into events.

    Legs that run beside the caller, in threads or tasks, read a copy of the inputs: they may outlive the call, and the caller
    may write its next input into the same buffer.

    Args:
        requests: one, or the rows of a batch, with one plan.
        edge_threads: for legs on the device.
        cloud_threads: for legs off it; separate, so that a hanging cloud cannot exhaust the edge's threads.
        cache: negative cache of inputs that an endpoint rejected; None: there is none.
        late: receives events of legs left running past the deadline; None: they are cancelled then.
        measured: receives the name and the seconds of an edge that was told to stop and ran to its end; None: nobody does.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        edge_threads: ThreadPool,
        cloud_threads: ThreadPool,
        cache: Cache | None = None,
        late: Late | None = None,
        measured: Measured | None = None,
    ) -> None:
        first = requests[0]
        self.plan, self.backends = first.plan, first.snapshot.backends
        self.exchanges: dict[int, Exchange] = {}
        """By leg."""
        self.shows = bool(first.shows)
        """Whether the caller gets something before the last leg has ended, and may write to its buffer then."""
        self._many, self.until, self.egress = bool(first.batch), first.until, first.snapshot.egress
        self._id, self._key = first.batch or first.id, None if first.batch else first.key
        self._edge_threads, self._cloud_threads, self._cache = edge_threads, cloud_threads, cache
        self.inputs = CallInputs(requests, first.snapshot.targets, first.snapshot.views)
        self.edge = EdgeAnswers([request.id for request in requests]) if first.snapshot.sends_edge else None
        """What the edge has answered, for clouds that take it along; None: none does."""
        self.floor = first.snapshot.policy.mode == "shadow"
        """Whether clouds are asked as certificates have it: at the floor of a ladder of codecs."""
        self.late = None if late is None else LateEvents(requests, late)
        self._measured = None if self._many else measured  # a batch's time is not that of one input

    @property
    def sequential(self) -> bool:
        """Whether this is a single input, whose legs run one at a time and cannot be interrupted."""
        return self.plan.sequential and not self._many

    def backend(self, start: Start) -> Backend:
        """The backend of that leg."""
        return self.backends[self.plan.legs[start.leg].target]

    def run(self, start: Start, stop: StopToken | None = None, send: Send | None = None) -> Event:
        """Run a leg to its event in this thread; with `send`, send the pieces of its answer as they come.

        This and `run_async` are the only places where a leg's exception becomes a value.
        """
        leg = self.plan.legs[start.leg]
        backend: Any = self.backends[leg.target]
        try:
            fit = self.inputs.fitting(start, leg.target) if self._many else None
            if fit is not None:
                if (ended := fit.ended()) is not None:
                    return ended
                start = fit.start
            if leg.permit is not None:
                inputs = self._prepared(start, leg.permit, backend, stop)
                with self._exchange(start, backend.guard.enter(leg.permit, self._id, *self._asking(start, backend), stop)) as (
                    until,
                    exchange,
                ):
                    if exchange.prepay():
                        exchange.secure()
                    if send is not None:
                        answers: Any = [forward(start, backend.stream(inputs[0], until, stop, exchange), send, stop)]
                    else:
                        answers = backend.run(inputs, until, stop, exchange)
                answer: Any = answers if self._many else answers[0]
            elif self._many:
                answer = backend.run(self.inputs.of(leg.target, start.rows), stop)
            elif send is not None:
                answer = forward(start, backend.stream(self.inputs.of(leg.target)[0], stop), send, stop, watching(backend))
            else:
                answer = backend.run_one(self.inputs.of(leg.target)[0], stop)
            if self.edge is not None and leg.permit is None:
                self.edge.note(start.rows, answer if self._many else [answer])
        except PASSING:
            raise
        except BaseException as e:  # noqa: BLE001 - a leg's outermost frame
            return failed(start.leg, backend, e)
        done = new(Done, (start.leg, answer, monotonic()))
        return done if fit is None else fit.whole(done)

    async def run_async(
        self, start: Start, permit: Permit | None, backend: Any, off_loop: OffLoop, send: Send | None = None
    ) -> Event:
        """`run` on an event loop, for a backend that supports it."""
        aside, target = partial(_aside, off_loop if self.blocks(start) else None), self.plan.legs[start.leg].target
        watch = watching(backend) if permit is None and send is not None else nothing

        def show(piece: Any) -> None:
            assert send is not None, "the answer is shown in pieces"
            send(Delta(start.leg, piece, monotonic(), watch(piece)))

        try:
            fit = await aside(partial(self.inputs.fitting, start, target)) if self._many else None
            if fit is not None:
                if (ended := fit.ended()) is not None:
                    return ended
                start = fit.start
            if permit is None:
                inputs = await aside(partial(self.inputs.of, target, start.rows))
                if send is not None:
                    answers = [await backend.stream_async(inputs[0], show)]
                else:
                    answers = await backend.run_async(inputs, self._many)
                if self.edge is not None:
                    self.edge.note(start.rows, answers)
            else:
                inputs = await aside(partial(self._prepared, start, permit, backend))
                if (load := backend.load) is not None:
                    await off_loop(load)  # not on the loop, where it would hold up everybody
                entered = await backend.guard.enter_async(permit, self._id, *self._asking(start, backend))
                with self._exchange(start, entered) as (until, exchange):
                    if (pack := getattr(backend, "pack", None)) is not None:
                        inputs = await off_loop(partial(pack, inputs, exchange))
                    if exchange.prepay():
                        await off_loop(exchange.secure)
                    if send is not None:
                        answers = [await backend.stream_async(inputs[0], until, exchange, show)]
                    else:
                        answers = await backend.run_async(inputs, until, exchange)
        except PASSING:
            raise
        except BaseException as e:
            if is_task_cancelled(e):
                raise
            return failed(start.leg, backend, e)
        done = Done(start.leg, answers if self._many else answers[0], monotonic())
        return done if fit is None else fit.whole(done)

    def blocks(self, start: Start) -> bool:
        """Whether preparing that leg's inputs takes functions of the application."""
        leg = self.plan.legs[start.leg]
        return (leg.permit is not None and self.egress.asks) or self.inputs.blocks(leg.target)

    def _prepared(self, start: Start, permit: Permit, backend: CloudBackend, stop: StopToken | None = None) -> list[Any]:
        """What the cloud takes of the inputs, after consent and redaction; with the edge's answers, where it takes those."""
        try:
            seen = self.inputs.of(self.plan.legs[start.leg].target, start.rows)
            if stop is not None and stop.asked:
                raise Held(f"{backend.name} was not asked: its answer is not needed any more", code="stopped")  # noqa: TRY301
            sent = self.egress.prepared(seen, permit, backend.where)
            return self.edge.beside(start.leg, start.rows, sent) if self.edge is not None and backend.sends_edge else sent
        except Held as e:
            backend.guard.count_rejected(e.code)
            raise

    def _asking(self, start: Start, backend: CloudBackend) -> tuple[int, float]:
        """The number of calls, and until when to wait for their turn. Raises if the negative cache has the input."""
        cache, key = self._cache, self._key
        if cache is not None and key is not None and (refused := cache.refused(key + backend.name.encode())) is not None:
            raise Refused(f"{refused[0]} (said before, of the same input)", status=refused[1])
        rows = len(start.rows) if start.rows is not None else len(self.inputs) if self._many else 1
        return backend.calls(rows), min(self.until, monotonic() + backend.patience_s)

    def _exchange(self, start: Start, entered: Exchange) -> Asking:
        """The exchange while its leg runs, with its deadline; caches a refusal of the input."""
        self.exchanges[start.leg] = entered
        entered.edge = None if self.edge is None else self.edge.went(start.leg)
        entered.wanted_by = -INF if self.floor else self.until
        until, refuses = INF if self.late is not None else self.until, None
        if self._cache is not None and self._key is not None:
            refuses = partial(self._cache.refuse, self._key + self.backend(start).name.encode())
        backend: Any = self.backend(start)
        return Asking(until, entered, refuses, backend.above_floor)

    def keeps_time(self, start: Start) -> bool:
        """Whether a leg is a call that ends by the deadline by itself, and is not to go on after it."""
        backend: Any = self.backend(start)
        cloud = self.plan.legs[start.leg].permit is not None
        return cloud and self.late is None and not self._many and not self.blocks(start) and backend.keeps_time

    def begin(self, start: Start, send: Send) -> Stop | Event:
        """Runs a leg in a thread. Where none is to be had, the cloud is not asked, and the edge runs here."""
        error = self.detach(start)
        task = LegTask(start.leg, self.backend(start), None if self.plan.legs[start.leg].permit else self._measured)
        if error is None and self._submit(start, task, partial(self.run, start, task.token), self.mail(start, send)):
            return task.stop
        refusal = self._refusal(start, error)
        return self.run(start) if refusal is None else Failed(start.leg, refusal, monotonic())

    def begin_stream(self, start: Start, send: Send) -> Stop | Event:
        """`begin` for an answer in pieces."""
        error = self.detach(start)
        task = LegTask(start.leg, self.backend(start))
        execute, to = partial(self.run, start, task.token, send), self.mail(start, send)
        if error is None and self._submit(start, task, execute, to):
            return task.stop
        refusal = self._refusal(start, error)
        if refusal is not None:
            return Failed(start.leg, refusal, monotonic())
        task.run(execute, to, here=True)  # its pieces are read from the mail
        return task.stop

    def _submit(self, start: Start, task: LegTask, execute: Callable[[], Event], send: Send) -> bool:
        threads = self._edge_threads if self.plan.legs[start.leg].permit is None else self._cloud_threads
        try:
            return threads.submit(partial(copy_context().run, task.run, execute, send))
        except BaseException:  # a signal handler's, perhaps once the leg runs: nobody is told how to stop it
            task.stop()
            raise

    def _refusal(self, start: Start, error: Exception | None) -> Exception | None:
        """Why a leg for which there is no thread, or no copy of its inputs (error), does not run; None: it runs here."""
        backend = self.backend(start)
        if self.plan.legs[start.leg].permit is not None:
            if error is not None:
                return error
            backend.guard.count_rejected("threads")  # type: ignore[attr-defined]  # a cloud has a guard
            return Held(f"{backend.name} was not asked: no thread is free", code="threads")
        if backend.abandoned >= STUCK_MOST:
            return ModelError(f"{backend.name}: {backend.abandoned} runs that were told to stop go on")
        return None

    def detach(self, start: Start) -> Exception | None:
        """Before a leg begins that may outlive the call: from now on legs read inputs that are the request's own.

        -> why they cannot be copied; then it may run in the caller's thread alone.
        """
        if self.late is not None and start.rows is not None:
            self.late.rows[start.leg] = start.rows
        return self.inputs.own()

    def mail(self, start: Start, send: Send, *, own_thread: bool = True) -> Send:
        """Routes a leg's last event: to the walk, or once that has ended to the receiver of late events."""
        if self.late is None or self.plan.legs[start.leg].permit is None:
            return send
        return partial(self.late.deliver, start.leg, send, own_thread)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Ends the walk, of a batch with one outcome per row: further events are late."""
        left: dict[int, list[int]] = {}
        for row, outcome in enumerate(outcomes):
            for kind, leg, _, _ in outcome.log:
                if kind == "timeout":
                    left.setdefault(leg, []).append(row)
        for leg in left:
            if (exchange := self.exchanges.get(leg)) is not None:
                exchange.overdue()
        if self.late is not None:
            self.late.end(left)

    def costs(self) -> Mapping[int, Spent]:
        """Leg -> cost of its exchange so far."""
        return {leg: exchange.spent for leg, exchange in [*self.exchanges.items()]}  # stopped ones may still begin


async def _aside(off_loop: OffLoop | None, call: Callable[[], T]) -> T:
    """Runs views, consent and redaction off the event loop if they may block; with the caller's context, as everywhere."""
    return call() if off_loop is None else await off_loop(partial(copy_context().run, call))


def failed(leg: int, backend: Backend, error: BaseException) -> Failed:
    """The event of a failure. Input that the edge rejects is fatal (the caller's fault); input that a cloud rejects is not."""
    return Failed(leg, error, monotonic(), fatal=backend.side == "edge" and isinstance(error, BadInput))


def run_first(request: Request) -> Outcome | Event | None:
    """Runs the first leg here if it is an edge that cannot be interrupted: the fast path of most calls.

    Returns the outcome if that settles it, else the leg's event; None: the plan begins otherwise.
    """
    plan = request.plan
    leg = plan.legs[0]
    if leg.permit is not None or not plan.sequential:
        return None
    backend: Any = request.snapshot.backends[leg.target]
    try:
        prediction: Prediction = backend.run_one(request.inputs, None)
    except PASSING:
        raise
    except BaseException as e:  # noqa: BLE001 - a leg's outermost frame
        return failed(0, backend, e)
    now = monotonic()
    outcome = first_leg_outcome(plan, request.begun, prediction, now)
    return new(Done, (0, prediction, now)) if outcome is None else outcome
