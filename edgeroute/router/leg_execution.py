"""Execution of a request's legs (a leg: one call of a target), in this thread, in others, or on an event loop.

Results become events, late ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

from edgeroute.core.endpoint_breaker_and_limits import price
from edgeroute.core.error_codes_and_texts import INPUTS_OWN, failure_text
from edgeroute.core.policy_egress_and_options import INF, Permit
from edgeroute.core.spending_limits import Tokens
from edgeroute.core.stream_walk import Pieces
from edgeroute.core.walk import Delta, Done, Event, Failed, Outcome, Prediction, Start, first_leg_outcome, new, of_row
from edgeroute.errors import BadInput, Busy, Held, ModelError, Refused, Unreachable
from edgeroute.router.drivers import Send, Stop
from edgeroute.router.input_views_and_edge_answers import EdgeAnswers
from edgeroute.router.leg_inputs_views_and_copies import CallInputs
from edgeroute.router.request import Request
from edgeroute.system import wall_clock
from edgeroute.system.contained_calls_and_tasks import is_task_cancelled
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.types import Answer, Backend, Spent, StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.attempt_accounting_and_turns import Exchange
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.cloud.personal_data_masks import MaskedData
    from edgeroute.edge.edge_backend import OffLoop
    from edgeroute.stores.cache import Cache
    from edgeroute.system.thread_pool_and_workers import ThreadPool


def cache_refusal(cache: Cache, key: bytes, backend: CloudBackend, exchange: Exchange, error: Refused) -> None:
    """Store an endpoint's rejection of the input itself in the negative cache, so that an equal request is not sent again.

    Does nothing for other statuses, or if the input was sent in another form than usual: with the edge's answer, or by a rung of
    a ladder above its floor.
    """
    if error.status in INPUTS_OWN and not exchange.edge and not backend.above_floor(exchange.codec):
        cache.refuse(key + backend.name.encode(), str(error), error.status)


# Pieces of a leg's answer, sent to the walk with the confidence that becomes known within it.

# Takes each piece of an answer; returns the answer's confidence with the piece that makes it known, else None.
Watch = Callable[[Any], float | None]


def new_watch(backend: Any) -> Watch:
    """Return a new watcher of an edge's pieces, if its score needs only the answer's beginning; else `nothing`."""
    watch: Callable[[], Watch] | None = getattr(backend.reader.score, "watch", None)
    return nothing if watch is None else watch()


def nothing(_: Any) -> None:
    """Return None: the confidence is known once the answer is complete."""


def forward(start: Start, pieces: Pieces, send: Send, stop: StopToken | None, watch: Watch = nothing) -> Prediction:
    """Send each piece of a leg's answer to the walk as it comes; return the whole answer. Closes the pieces in any case.

    Raises:
        Unreachable: the leg was requested to stop.
        Exception: of the pieces.
    """
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


def restored(start: Start, masks: list[MaskedData] | None, answers: list[Any], send: Send | None, many: bool) -> list[Any]:
    """Return answers with the masked data put back; first send what was held back of the pieces. Without masks, the same list.

    In a batch an exception takes an answer's place.

    Raises:
        BadReply: the only answer has a placeholder that was not sent.
    """
    if masks is None:
        return answers
    if send is not None and (rest := masks[0].rest()):
        send(Delta(start.leg, rest, monotonic()))
    answers = [mask.restore(answer) for mask, answer in zip(masks, answers, strict=True)]
    if not many and isinstance(answers[0], BaseException):
        raise answers[0]
    return answers


# Events of legs left running past the deadline, separated from those that the walk waits for.

# Receives (request, event, True if the thread may be blocked) of a leg that was left running past the request's deadline.
Late = Callable[[Request, Event, bool], object]


class LateEvents:
    """Router of legs' events: to the walk until it has ended, and then to the receiver of late events.

    Args:
        requests: one, or the rows of a batch.
        take: receives late events.
    """

    def __init__(self, requests: Sequence[Request], take: Late) -> None:
        self._requests, self._take = requests, take
        self._lock = SafeLock()
        # Leg left running -> rows that wanted its answer; None: the walk has not ended.
        self._left: dict[int, list[int]] | None = None
        self._early: dict[int, Event] = {}  # leg -> event sent to the walk
        self.rows: dict[int, tuple[int, ...]] = {}  # leg -> rows of the batch that it was started for
        self._answered: set[int] = set()  # rows with a late answer: of several late clouds the first counts

    def deliver(self, leg: int, send: Send, own_thread: bool, event: Event) -> None:
        """Send a leg's last event to the walk, or, once the walk has ended, report it as late if some row wanted it.

        Args:
            leg: the leg.
            send: receives events of the walk.
            own_thread: True if the calling thread may be blocked.
            event: the event.
        """
        with self._lock:
            left = self._left
            if left is None:
                self._early[leg] = event
        if left is None:
            send(event)
        else:
            self._report(left, leg, event, own_thread)

    def end(self, left: dict[int, list[int]]) -> None:
        """End the walk: events of these legs left running, also those that came just now, are reported as late.

        Args:
            left: leg -> rows that wanted its answer.
        """
        with self._lock:
            self._left = left
        for leg in left:
            if (event := self._early.get(leg)) is not None:  # it arrived between the deadline and now
                self._report(left, leg, event, False)

    def _report(self, left: dict[int, list[int]], leg: int, event: Event, own_thread: bool) -> None:
        """Report a leg's event for each row that wanted it; of several late answers to a row only the first, of failures each."""
        places = {row: place for place, row in enumerate(self.rows.get(leg, ()))}
        for row in left.get(leg, ()):
            row_event = event
            if self._requests[row].batch and type(event) is Done:
                row_event = of_row(event, places[row])
            if type(row_event) is Done:
                with self._lock:
                    known = row in self._answered
                    self._answered.add(row)
                if known:
                    continue
            self._take(self._requests[row], row_event, own_thread)


# Legs in threads: each always sends an event, and its backend counts it while it goes on after a stop request.

Measured = Callable[[str, float], object]
# Exceptions that are no failure of a leg in the caller's own thread, since a signal handler may have raised them.
PASSING = (KeyboardInterrupt, SystemExit)


class LegTask:
    """Leg in a thread, which always sends its event; a stopped one that goes on is counted at its backend, for the planner."""

    __slots__ = ("_backend", "_begun", "_ended", "_leg", "_measured", "_took_s", "token")

    def __init__(self, leg: int, backend: Backend, turn_by: float, measured: Measured | None = None) -> None:
        self._leg, self._backend, self._measured, self.token = leg, backend, measured, StopToken(turn_by)
        self._begun, self._ended = monotonic(), False
        self._took_s: float | None = None

    def run(self, execute: Callable[[], Event], send: Send, *, here: bool = False) -> None:
        """Run the leg, and always send its event; the backend no longer counts it as stopped and running.

        Exceptions become a `Failed`. The time of a run that was asked to stop is reported.

        Args:
            execute: returns the leg's event.
            send: receives it; called in this thread.
            here: True in the caller's own thread, where `PASSING` is raised.
        """
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
        """Request the leg to stop, and count it at its backend while it goes on. Lock-free: it may end at the same time.

        If it has ended, its time is reported.
        """
        if not self._ended:
            self._backend.stopping.add(self)
            if self._ended:
                self._backend.stopping.discard(self)
        else:
            self._measure()
        self.token()

    def _measure(self) -> None:
        """Report the seconds of a completed run, once; the walk, which stopped the leg, ignores its event.

        A no-op while it runs, or if it failed.
        """
        measured, self._measured = self._measured, None
        if measured is not None and self._took_s is not None:
            measured(self._backend.name, self._took_s)


T = TypeVar("T")
Prepared: TypeAlias = "tuple[list[Any], list[MaskedData] | None]"  # inputs to send, and the data masked in each
STUCK_MOST = 32  # number of abandoned runs of an edge model at which a further run without a free thread is refused


class Walked(NamedTuple):
    """Result of walking a request's plan; immutable."""

    request: Request
    outcome: Outcome
    costs: Mapping[int, Spent]  # leg -> cost of its exchange with the cloud
    shown: Answer | None = None  # last provisional answer that the caller got
    spoken: bool = False  # True if the caller got pieces of this answer
    legs: LegExecutor | None = None  # executor, if legs may still be running; None: none runs


class LegExecutor:
    """Runs the legs of one request or batch here, in threads or on a loop, with consent, admission and costs; sends their events.

    Legs that run beside the caller, in threads or tasks, read a copy of the inputs: they may outlive the call, and the caller may
    write its next input into the same buffer.

    Args:
        requests: one, or the rows of a batch, with one plan.
        edge_threads: pool for legs on the device.
        cloud_threads: pool for legs off it; separate, so that a hanging cloud cannot exhaust the edge's threads.
        cache: negative cache of inputs that an endpoint rejected; None: none.
        late: receives events of legs left running past the deadline; None: such legs are cancelled then.
        measured: receives name and seconds of an edge that was requested to stop and ran to its end; None: ignored.
    """

    def __init__(
        self, requests: Sequence[Request], edge_threads: ThreadPool, cloud_threads: ThreadPool, cache: Cache | None = None,
        late: Late | None = None, measured: Measured | None = None
    ) -> None:  # fmt: skip
        first = requests[0]
        self.plan, self.backends = first.plan, first.snapshot.backends
        self.exchanges: dict[int, Exchange] = {}  # leg -> its exchange with a cloud
        # True if the caller gets something before the last leg has ended, and may write to its buffer then.
        self.shows = bool(first.shows)
        self._many, self.until, self.egress = bool(first.batch), first.until, first.snapshot.egress
        self._id, self._key = first.batch or first.id, None if first.batch else first.key
        self._edge_threads, self._cloud_threads, self._cache = edge_threads, cloud_threads, cache
        self.inputs = CallInputs(requests, first.snapshot.targets, first.snapshot.views)
        # Answers of the edge, for clouds that take them along; None: none does.
        self.edge = EdgeAnswers([request.id for request in requests]) if first.snapshot.sends_edge else None
        # True if clouds are called as certificates assume: at the floor of a ladder of codecs.
        self.floor = first.snapshot.policy.mode == "shadow"
        self.late = None if late is None else LateEvents(requests, late)
        self._runs_until = self.until if late is None else INF  # late answers are wanted
        self._measured = None if self._many else measured  # a batch's time is not that of one input

    @property
    def sequential(self) -> bool:
        """True for a single input whose legs run one at a time and cannot be interrupted."""
        return self.plan.sequential and not self._many

    def backend(self, start: Start) -> Backend:
        """Return the leg's backend."""
        return self.backends[self.plan.legs[start.leg].target]

    def run(self, start: Start, stop: StopToken | None = None, send: Send | None = None) -> Event:
        """Run a leg (one run of a model, or one call of an endpoint) to its event in this thread; blocks.

        With `send`, the pieces of its answer are sent as they come. Consent, redaction, the guard's admission, the booking of
        costs and the call happen here; masked data are put back into the answer. Rows without a view do not run, and have the
        exception in their place. Exceptions become an event, but those in `PASSING` are raised. Notes the edge's answer for
        clouds that take it along.

        Args:
            start: the leg, and its rows.
            stop: token of a stop request.
            send: receives the pieces.
        """
        leg = self.plan.legs[start.leg]
        backend: Any = self.backends[leg.target]
        masks: list[MaskedData] | None = None
        try:
            fit = self.inputs.fit_rows(start, leg.target) if self._many else None
            if fit is not None:
                if (ended := fit.early_event()) is not None:
                    return ended
                start = fit.start
            if leg.permit is not None:
                inputs, masks = self._prepare_inputs(start, leg.permit, backend, stop)
                to = send if masks is None or send is None else partial(masks[0].show, send)
                entered = backend.guard.enter(leg.permit, self._id, *self._calls_and_patience(start, backend), stop)
                with self._exchange(start, entered) as exchange:
                    if exchange.prepay():
                        exchange.secure(self.until)
                    if to is not None:
                        answers: Any = [forward(start, backend.stream(inputs[0], self._runs_until, stop, exchange), to, stop)]
                    else:
                        answers = backend.run(inputs, self._runs_until, stop, exchange)
                answers = restored(start, masks, answers, send, self._many)
                answer: Any = answers if self._many else answers[0]
            elif self._many:
                answer = backend.run(self.inputs.of(leg.target, start.rows), stop)
            elif send is not None:
                answer = forward(start, backend.stream(self.inputs.of(leg.target)[0], stop), send, stop, new_watch(backend))
            else:
                answer = backend.run_one(self.inputs.of(leg.target)[0], stop)
            if self.edge is not None and leg.permit is None:
                self.edge.note(start.rows, answer if self._many else [answer])
        except PASSING:
            raise
        except BaseException as e:  # noqa: BLE001 - a leg's outermost frame
            return failed(start.leg, backend, e, masks)
        done = new(Done, (start.leg, answer, monotonic()))
        return done if fit is None else fit.for_all_rows(done)

    async def run_async(self, start: Start, off_loop: OffLoop, send: Send | None = None) -> Event:
        """Run a leg to its event on an event loop, as `run`; blocking preparations run in threads.

        Cancellation, and exceptions in `PASSING`, are raised; others become an event.

        Args:
            start: the leg, whose backend supports asyncio, and its rows.
            off_loop: awaits a blocking call.
            send: receives the pieces; None: no pieces.
        """
        leg, backend = self.plan.legs[start.leg], cast("Any", self.backend(start))
        prepare = partial(_run_beside, off_loop if self.blocks(start) else None)
        watch = new_watch(backend) if leg.permit is None and send is not None else nothing

        def show(piece: Any) -> None:
            assert to is not None, "the answer is shown in pieces"
            to(Delta(start.leg, piece, monotonic(), watch(piece)))

        to, masks = send, None
        try:
            fit = await prepare(partial(self.inputs.fit_rows, start, leg.target)) if self._many else None
            if fit is not None:
                if (ended := fit.early_event()) is not None:
                    return ended
                start = fit.start
            if leg.permit is None:
                inputs = await prepare(partial(self.inputs.of, leg.target, start.rows))
                if send is not None:
                    answers = [await backend.stream_async(inputs[0], show, off_loop)]
                else:
                    answers = await backend.run_async(inputs, self._many, off_loop)
                if self.edge is not None:
                    self.edge.note(start.rows, answers)
            else:
                inputs, masks = await prepare(partial(self._prepare_inputs, start, leg.permit, backend))
                to = send if masks is None or send is None else partial(masks[0].show, send)
                if (load := backend.load) is not None:
                    await off_loop(load)  # not on the loop, where it would hold up everybody
                entered = await backend.guard.enter_async(leg.permit, self._id, *self._calls_and_patience(start, backend))
                with self._exchange(start, entered) as exchange:
                    if (pack := getattr(backend, "pack", None)) is not None:
                        inputs = await off_loop(partial(pack, inputs, exchange))
                    if exchange.prepay():
                        await off_loop(partial(exchange.secure, self.until))
                    if backend.guard.spending.durable or backend.guard.journal is not None:
                        exchange.off_loop = partial(off_loop, later=True)
                    if send is not None:
                        answers = [await backend.stream_async(inputs[0], self._runs_until, exchange, show)]
                    else:
                        answers = await backend.run_async(inputs, self._runs_until, exchange)
                answers = restored(start, masks, answers, send, self._many)
        except PASSING:
            raise
        except BaseException as e:
            if is_task_cancelled(e):
                raise
            return failed(start.leg, backend, e, masks)
        done = Done(start.leg, answers if self._many else answers[0], monotonic())
        return done if fit is None else fit.for_all_rows(done)

    def blocks(self, start: Start) -> bool:
        """Return True if preparing the leg's inputs calls functions of the application, which may block."""
        leg = self.plan.legs[start.leg]
        return (leg.permit is not None and self.egress.asks) or self.inputs.blocks(leg.target)

    def _prepare_inputs(self, start: Start, permit: Permit, backend: CloudBackend, stop: StopToken | None = None) -> Prepared:
        """Return the inputs to send to a cloud, after view, consent and redaction, and what puts masked data back into answers.

        The latter is None without a mask. A cloud with `send_edge` gets the edge's answers with the inputs. Blocks for functions
        of the application.

        Raises:
            Held: consent or redaction refuses, or the leg was requested to stop; counted at the guard.
            BadInput: of the view.
        """
        try:
            seen = self.inputs.of(self.plan.legs[start.leg].target, start.rows)
            if stop is not None and stop.asked:
                raise Held(f"{backend.name} was not asked: its answer is not needed any more", code="stopped")  # noqa: TRY301
            sent, masks = self.egress.prepare_inputs(seen, permit, backend.where) if self.egress.asks else (seen, None)
            return self.edge.attach(start.leg, start.rows, sent) if self.edge is not None and backend.sends_edge else sent, masks
        except Held as e:
            backend.guard.count_rejected(e.code)
            raise

    def _calls_and_patience(self, start: Start, backend: CloudBackend) -> tuple[int, float]:
        """Return how many calls a cloud's leg makes, and the monotonic instant until which they wait for their turn.

        Raises:
            Refused: the negative cache has the input: the endpoint rejected it before.
        """
        cache, key = self._cache, self._key
        if cache is not None and key is not None and (refused := cache.refused(key + backend.name.encode())) is not None:
            raise Refused(f"{refused[0]} (as before, for the same input)", status=refused[1])
        rows = len(start.rows) if start.rows is not None else len(self.inputs) if self._many else 1
        return backend.calls(rows), min(self.until, monotonic() + backend.patience_s)

    def _exchange(self, start: Start, entered: Exchange) -> Exchange:
        """Store an admitted exchange in `exchanges`, set its deadline and what it was sent, and return it.

        Its end stores a rejection of the input in the negative cache.
        """
        self.exchanges[start.leg] = entered
        entered.edge = None if self.edge is None else self.edge.all_have_answers(start.leg)
        entered.wanted_by = -INF if self.floor else self.until
        if self._cache is not None and self._key is not None:
            entered.refused = partial(cache_refusal, self._cache, self._key, cast("CloudBackend", self.backend(start)))
        return entered

    def keeps_time(self, start: Start) -> bool:
        """Return True if a leg is a call that ends by the deadline by itself, and does not go on after it."""
        backend: Any = self.backend(start)
        cloud = self.plan.legs[start.leg].permit is not None
        return cloud and self.late is None and not self._many and not self.blocks(start) and backend.keeps_time

    def begin(self, start: Start, send: Send, *, streams: bool = False) -> Stop | Event:
        """Run a leg in a thread on a copy of the inputs, and return the function that stops it; its event goes to `send`.

        With `streams` so do its pieces. If no thread is free, run an edge here, and return its event; with `streams` send pieces
        and event, and return the function. Return a failure, and run nothing, for a cloud without a thread or a copy, and for an
        edge without a thread of which `STUCK_MOST` runs are stuck. After a failed copy an edge reads the original.
        """
        error, to = self.detach(start), self.mail(start, send)
        measured = None if streams or self.plan.legs[start.leg].permit is not None else self._measured
        task = LegTask(start.leg, self.backend(start), self._turn_by(start.leg), measured)
        execute = partial(self.run, start, task.token, send if streams else None)
        if error is None and self._submit(start, task, execute, to):
            return task.stop
        refusal = self._refusal(start, error)
        if refusal is not None:
            return Failed(start.leg, refusal, monotonic())
        if not streams:
            return self.run(start)
        task.run(execute, to, here=True)  # its pieces are read from the mail
        return task.stop

    def _turn_by(self, leg: int) -> float:
        """Return the monotonic instant until which a busy edge is waited for: half of the time left before a cloud, else inf.

        A cloud that may not be called now, as its breaker is open or a limit spent, gets no time.
        """
        legs, now = self.plan.legs, monotonic()
        if self.until == INF or legs[leg].permit is not None:
            return INF
        later: Any = [self.backends[other.target] for other in legs[leg + 1 :] if other.permit is not None]
        return now + max(0.0, self.until - now) / 2 if any(map(_may_be_asked, later)) else INF

    def _submit(self, start: Start, task: LegTask, execute: Callable[[], Event], send: Send) -> bool:
        """Submit a leg to its side's pool, with the caller's context variables. Return False if no thread is free.

        An interrupt stops the task, and is raised.
        """
        threads = self._edge_threads if self.plan.legs[start.leg].permit is None else self._cloud_threads
        try:
            return threads.submit(partial(copy_context().run, task.run, execute, send))
        except BaseException:  # a signal handler's, perhaps once the leg runs: nobody is told how to stop it
            task.stop()
            raise

    def _refusal(self, start: Start, error: Exception | None) -> Exception | None:
        """Return the error of a leg that got no thread, or no copy of its inputs, and does not run; None: it runs here.

        An edge runs here unless too many of its runs are stuck.

        Args:
            start: the leg.
            error: reason why the inputs cannot be copied; None: no thread is free, which is counted at a cloud's guard.
        """
        backend = self.backend(start)
        if self.plan.legs[start.leg].permit is not None:
            if error is not None:
                return error
            backend.guard.count_rejected("threads")  # type: ignore[attr-defined]  # a cloud has a guard
            return Held(f"{backend.name} was not asked: no thread is free", code="threads")
        return stuck_error(backend)

    def detach(self, start: Start) -> Exception | None:
        """Copy the inputs, before a leg begins that may outlive the call. Return the error if that fails for a cloud, else None.

        Copies once; notes the leg's rows for late events. A cloud's leg may run in the caller's thread only, after an error, also
        after one of an edge's: its copy may take a quarter of the deadline. An edge reads the original then: its answer is
        dropped once the call has returned, and nothing of it leaves the device.
        """
        if self.late is not None and start.rows is not None:
            self.late.rows[start.leg] = start.rows
        is_edge = self.plan.legs[start.leg].permit is None
        error = self.inputs.copy_inputs(0.25 if is_edge else 1.0)
        if error is None or is_edge:
            return None
        held = Held(f"{self.backend(start).name} was not asked: the input cannot be copied ({failure_text(error)})")
        held.__cause__ = error
        return held

    def mail(self, start: Start, send: Send, *, own_thread: bool = True) -> Send:
        """Return the function that takes a leg's last event: to the walk, or after its end, for a cloud, to the late receiver."""
        if self.late is None or self.plan.legs[start.leg].permit is None:
            return send
        return partial(self.late.deliver, start.leg, send, own_thread)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """End the walk, of a batch with one outcome per row: mark the clouds left running; their events are late from now on."""
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
        """Return leg -> cost of its exchange so far."""
        return {leg: exchange.spent for leg, exchange in [*self.exchanges.items()]}  # stopped ones may still begin


async def _run_beside(off_loop: OffLoop | None, call: Callable[[], T]) -> T:
    """Return the result of views, consent or redaction; if they may block, off the event loop, with the caller's context."""
    return call() if off_loop is None else await off_loop(partial(copy_context().run, call))


def _may_be_asked(cloud: Any) -> bool:
    """Return True if neither a cloud's breaker nor a spent limit forbids its smallest call now. Books nothing.

    That is of one byte, where bytes are known, and of a token each way.
    """
    guard = cloud.guard
    cost = guard.rules.cost(1e-6 if hasattr(cloud, "endpoint") else 0.0, 1)
    cost = cost._replace(usd=cost.usd + price(guard.terms, Tokens(1, 1)))
    return not guard.why() and guard.spending.reserve(cost, wall_clock.now(), book=False) is None


def stuck_error(backend: Backend) -> ModelError | None:
    """Return the error for a run of a model of which `STUCK_MOST` runs did not stop; None: fewer."""
    if backend.abandoned < STUCK_MOST:
        return None
    return ModelError(f"{backend.name}: {backend.abandoned} runs go on after a request to stop")


def failed(leg: int, backend: Backend, error: BaseException, masks: list[MaskedData] | None = None) -> Failed:
    """Return the event of a failure; fatal if an edge rejects the input (the caller's fault), but not if a cloud does.

    A cloud's rejection of the input lets other legs go on. An edge that says for how long it is busy counts as that from now on.
    The part of an answer that an error has gets its masked data.
    """
    if isinstance(error, Busy) and error.retry_after_s is not None:
        backend.rests_until = monotonic() + error.retry_after_s
    if masks is not None:
        masks[0].restore(error)
    return Failed(leg, error, monotonic(), fatal=backend.side == "edge" and isinstance(error, BadInput))


def run_first(request: Request) -> Outcome | Event | None:
    """Run the first leg in this thread if it is an edge that cannot be interrupted: the fast path of most calls.

    Return the outcome if that settles the request, else the leg's event; None: the plan begins otherwise, and nothing ran.
    Exceptions become an event, but those in `PASSING` are raised.
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
