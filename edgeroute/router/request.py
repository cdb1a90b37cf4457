"""One request as a value, and what runs its legs."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgeroute.core.egress import Permit
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.stream import Pieces, whole
from edgeroute.core.walk import Delta, Done, Event, Failed, Outcome, Prediction, Start, new, settled
from edgeroute.errors import INPUTS_OWN, BadInput, Held, ModelError, Refused, Unreachable
from edgeroute.router.drivers import Send, Stop
from edgeroute.types import Answer, Backend, Spent, StopToken, own_copy

if TYPE_CHECKING:
    from edgeroute.cloud.backend import CloudBackend, FunctionBackend
    from edgeroute.cloud.guard import Exchange
    from edgeroute.router.snapshot import Snapshot
    from edgeroute.stores.cache import Cache
    from edgeroute.system import ThreadPool

Shows = Literal["", "provisional", "pieces"]
OffLoop = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls something that blocks, without holding up the event loop."""
STUCK_MOST = 32
"""So many runs of an edge model may go on past their stop before one more, for which no thread is free, is refused."""


class Request(NamedTuple):
    """One request; never written to."""

    id: str
    """Names it in traces and ledgers, and to endpoints, as the idempotency key."""
    inputs: Any
    """One input, without the batch axis."""
    plan: Plan
    snapshot: Snapshot
    begun: float
    """Instant of the monotonic clock, seconds."""
    until: float
    """The deadline's instant; inf: there is none."""
    importance: float = 0.0
    batch: str = ""
    """The id of the batch of which it is a row; empty: none."""
    shows: Shows = ""
    """What the caller is shown before the answer is there: nothing, a provisional answer, or its pieces."""
    first_token_s: float = INF
    key: bytes | None = None
    """What the cache knows the input by; None: it is not cached."""


class Walked(NamedTuple):
    """What came of walking a request's plan; never written to."""

    request: Request
    outcome: Outcome
    costs: Mapping[int, Spent]
    """By leg: what its exchange with the cloud has cost."""
    shown: Answer | None = None
    """The provisional answer that the caller was shown last."""
    spoken: bool = False
    """Whether the caller was shown pieces of this answer."""
    legs: LegExecutor | None = None
    """What may still run; None: nothing."""


Late = Callable[[Request, Event, bool], object]
"""Takes what a leg answers, or fails with, that was left to run past the deadline of that request; and whether the thread is one
for which nobody waits."""


class LegExecutor:
    """Runs the legs of one request, or those of a batch, and turns what comes of them into events.

    Legs beside the caller, in threads or tasks, read a copy of the inputs: they may outlive the call, and the caller may
    write its next input into the same buffer.

    Args:
        requests: one, or the rows of a batch, with one plan.
        edge_threads: for legs on the device.
        cloud_threads: for legs off it; others, so that a cloud which hangs cannot take what the edge needs.
        cache: knows which inputs an endpoint has refused; None: nobody does.
        late: takes what legs report that were left to run past the deadline; None: they are stopped then.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        edge_threads: ThreadPool,
        cloud_threads: ThreadPool,
        cache: Cache | None = None,
        late: Late | None = None,
    ) -> None:
        first = requests[0]
        self.requests, self.plan, self.backends, self.late = requests, first.plan, first.snapshot.backends, late
        self.exchanges: dict[int, Exchange] = {}
        """By leg."""
        self._many, self._until, self._egress = bool(first.batch), first.until, first.snapshot.egress
        self._id, self._key = first.batch or first.id, None if first.batch else first.key
        self._edge_threads, self._cloud_threads, self._cache = edge_threads, cloud_threads, cache
        self._inputs, self._copied = [request.inputs for request in requests], False
        self._rows: dict[int, tuple[int, ...]] = {}
        """By leg: the rows of the batch that it was started for."""
        self._lock: threading.Lock | None = None if late is None else threading.Lock()
        self._ended = False
        self._early: dict[int, Event] = {}
        """By leg: what was reported while the walk had not ended."""
        self._left: dict[int, list[int]] = {}
        """By leg that was left to run: the rows that wanted its answer."""

    @property
    def sequential(self) -> bool:
        """Whether this is one input, of which one leg runs at a time, and nothing can interrupt it."""
        return self.plan.sequential and not self._many

    @property
    def asks(self) -> bool:
        """Whether consent or redaction is asked before an input leaves."""
        return self._egress.asks

    def backend(self, start: Start) -> Backend:
        """What runs that leg."""
        return self.backends[self.plan.legs[start.leg].target]

    def run(self, start: Start, stop: StopToken | None = None) -> Event:
        """Runs a leg to its event, here: the one place where what a leg raises becomes a value."""
        leg = self.plan.legs[start.leg]
        backend: Any = self.backends[leg.target]
        try:
            if leg.permit is not None:
                inputs = self._prepared(start, leg.permit, backend)
                with self._exchange(start, leg.permit, backend) as (until, exchange):
                    answers = backend.run(inputs, until, stop, exchange)
                answer: Any = answers if self._many else answers[0]
            elif self._many:
                answer = backend.run(self._input_rows(start), stop)
            else:
                answer = backend.run_one(self._inputs[0], stop)
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return failed(start.leg, backend, e)
        return new(Done, (start.leg, answer, monotonic()))

    async def run_async(self, start: Start, permit: Permit, backend: CloudBackend, off_loop: OffLoop) -> Event:
        """The same on an event loop, for a backend that can."""
        try:
            inputs = await self._prepared_async(start, permit, backend, off_loop)
            with self._exchange(start, permit, backend) as (until, exchange):
                answers = await backend.run_async(inputs, until, exchange)  # type: ignore[misc]  # it is not None here
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return failed(start.leg, backend, e)
        return Done(start.leg, answers if self._many else answers[0], monotonic())

    def _prepared(self, start: Start, permit: Permit, backend: CloudBackend) -> list[Any]:
        """The inputs as they may leave."""
        try:
            return self._egress.prepared(self._input_rows(start), permit, backend.where)
        except Held:
            backend.guard.count_rejected()
            raise

    async def _prepared_async(self, start: Start, permit: Permit, backend: CloudBackend, off_loop: OffLoop) -> list[Any]:
        """The same; consent and redaction, which may take their time, do not hold up the event loop."""
        if not self._egress.asks:
            return self._prepared(start, permit, backend)
        return await off_loop(partial(self._prepared, start, permit, backend))  # type: ignore[no-any-return]

    @contextmanager
    def _exchange(self, start: Start, permit: Permit, backend: CloudBackend) -> Iterator[tuple[float, Exchange]]:
        """The guard's leave to go, and until when; unless the endpoint is known to refuse this input."""
        cache, key = self._cache, None if self._key is None else self._key + backend.name.encode()
        if cache is not None and key is not None and (refused := cache.refused(key)) is not None:
            raise Refused(f"{refused[0]} (said before, of the same input)", status=refused[1])
        with backend.guard.enter(permit, self._id) as exchange:
            self.exchanges[start.leg] = exchange
            try:
                yield INF if self.late is not None else self._until, exchange
            except Refused as e:
                if cache is not None and key is not None and e.status in INPUTS_OWN:
                    cache.refuse(key, str(e), e.status)
                raise

    def begin(self, start: Start, send: Send) -> Stop | Event:
        """Runs a leg in a thread. Where none is to be had, the cloud is not asked, and the edge runs here."""
        self.detach(start)
        task = LegTask(start.leg, self.backend(start))
        if self._submit(start, task, partial(self.run, start, task.token), self.mail(start, send)):
            return task.stop
        refusal = self._refusal(start)
        return self.run(start) if refusal is None else Failed(start.leg, refusal, monotonic())

    def begin_stream(self, start: Start, send: Send) -> Stop:
        """The same for an answer that comes in pieces."""
        self.detach(start)
        task, to = LegTask(start.leg, self.backend(start)), self.mail(start, send)
        execute = partial(self._run_stream, start, send, task.token)
        if not self._submit(start, task, execute, to):
            refusal = self._refusal(start)
            if refusal is None:
                task.run(execute, to)
            else:
                to(Failed(start.leg, refusal, monotonic()))
        return task.stop

    def _submit(self, start: Start, task: LegTask, execute: Callable[[], Event], send: Send) -> bool:
        threads = self._edge_threads if self.plan.legs[start.leg].permit is None else self._cloud_threads
        return threads.submit(partial(copy_context().run, task.run, execute, send))

    def _refusal(self, start: Start) -> Exception | None:
        """Why a leg for which there is no thread does not run; None: it runs in the caller's."""
        backend = self.backend(start)
        if self.plan.legs[start.leg].permit is not None:
            backend.guard.count_rejected()  # type: ignore[attr-defined]  # a cloud has a guard
            return Held(f"{backend.name} was not asked: no thread is free", code="threads")
        if backend.abandoned >= STUCK_MOST:
            return ModelError(f"{backend.name}: {backend.abandoned} runs that were told to stop go on")
        return None

    def _run_stream(self, start: Start, send: Send, stop: StopToken) -> Event:
        leg = self.plan.legs[start.leg]
        backend: Any = self.backends[leg.target]
        try:
            if leg.permit is None:
                answer = self._forward(start, backend.stream(self._inputs[0], stop), send, stop)
            else:
                inputs = self._prepared(start, leg.permit, backend)
                with self._exchange(start, leg.permit, backend) as (until, exchange):
                    answer = self._forward(start, backend.stream(inputs[0], until, stop, exchange), send, stop)
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return failed(start.leg, backend, e)
        return Done(start.leg, answer, monotonic())

    def _forward(self, start: Start, pieces: Pieces, send: Send, stop: StopToken) -> Prediction:
        try:
            while True:
                send(Delta(start.leg, next(pieces), monotonic()))
                if stop.asked:
                    raise Unreachable("its answer is not needed any more")
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            pieces.close()

    async def run_stream_async(
        self, start: Start, permit: Permit, backend: FunctionBackend, send: Send, off_loop: OffLoop
    ) -> Event:
        """The same on an event loop, for an asynchronous generator function."""
        try:
            inputs = await self._prepared_async(start, permit, backend, off_loop)
            with self._exchange(start, permit, backend) as (until, exchange):
                pieces: list[Any] = []
                async for piece in backend.stream_async(inputs[0], until, exchange):
                    pieces.append(piece)
                    send(Delta(start.leg, piece, monotonic()))
            answer = backend.reader.many([(whole(pieces), None)], 1)[0]
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return failed(start.leg, backend, e)
        return Done(start.leg, answer, monotonic())

    def detach(self, start: Start) -> None:
        """Before a leg begins that may outlive the call: from now on legs read inputs that are the request's own."""
        if start.rows is not None:
            self._rows[start.leg] = start.rows
        if not self._copied:
            self._inputs, self._copied = [own_copy(x) for x in self._inputs], True

    def mail(self, start: Start, send: Send, *, own_thread: bool = True) -> Send:
        """Where a leg's last event goes: to the walk, or once that has ended without it, to whoever takes what is late."""
        if self.late is None or self.plan.legs[start.leg].permit is None:
            return send

        def deliver(event: Event) -> None:
            assert self._lock is not None, "it is there for late events"
            with self._lock:
                ended = self._ended
                if not ended:
                    self._early[start.leg] = event
            if ended:
                self._report(start.leg, event, own_thread)
            else:
                send(event)

        return deliver

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """The walk has ended, of a batch with an outcome a row: from now on what was left running is late."""
        left = self._left
        for row, outcome in enumerate(outcomes):
            for what, leg, _, _ in outcome.log:
                if what == "timeout":
                    left.setdefault(leg, []).append(row)
        if self._lock is not None:
            with self._lock:
                self._ended = True
        for leg in left:
            if (exchange := self.exchanges.get(leg)) is not None:
                exchange.overdue()
            if self.late is not None and (event := self._early.get(leg)) is not None:
                self._report(leg, event, False)  # it came between the deadline and now

    def _report(self, leg: int, event: Event, own_thread: bool) -> None:
        assert self.late is not None, "somebody takes it"
        for row in self._left.get(leg, ()):
            own = event
            if self._many and type(event) is Done:
                own = Done(leg, event.answer[self._rows[leg].index(row)], event.at)
            self.late(self.requests[row], own, own_thread)

    def costs(self) -> Mapping[int, Spent]:
        """What the exchanges have cost so far, by leg."""
        return {leg: exchange.spent for leg, exchange in self.exchanges.items()}

    def _input_rows(self, start: Start) -> list[Any]:
        return self._inputs if start.rows is None else [self._inputs[row] for row in start.rows]


class LegTask:
    """A leg in a thread. The backend counts those that go on after they were told to stop, so that the planner can too."""

    __slots__ = ("_backend", "_ended", "_leg", "token")

    def __init__(self, leg: int, backend: Backend) -> None:
        self._leg, self._backend, self.token = leg, backend, StopToken()
        self._ended = False

    def run(self, execute: Callable[[], Event], send: Send) -> None:
        """Runs it and sends its event, whatever comes of it."""
        try:
            event = execute()
        except BaseException as e:  # noqa: BLE001 - SystemExit in a callable ends its leg; the caller must not wait for ever
            event = Failed(self._leg, e, monotonic())
        self._ended = True
        self._backend.stopping.discard(self)
        send(event)

    def stop(self) -> None:
        """Asks it to stop. Without a lock: what is noted too late is taken back at once."""
        if not self._ended:
            self._backend.stopping.add(self)
            if self._ended:
                self._backend.stopping.discard(self)
        self.token()


def failed(leg: int, backend: Backend, error: BaseException) -> Failed:
    """Input that the edge cannot take is the caller's fault, and no other leg is asked; the cloud's view is its own."""
    return Failed(leg, error, monotonic(), fatal=backend.side == "edge" and isinstance(error, BadInput))


def run_first(request: Request) -> Outcome | Event | None:
    """Runs the first leg here, where it is an edge that nothing can interrupt: the short way of most calls.

    -> the outcome if that settles it, else the leg's event; None: the plan does not begin so.
    """
    plan = request.plan
    leg = plan.legs[0]
    if leg.permit is not None or not plan.sequential:
        return None
    backend: Any = request.snapshot.backends[leg.target]
    try:
        prediction: Prediction = backend.run_one(request.inputs, None)
    except Exception as e:  # noqa: BLE001 - a leg's outermost frame
        return failed(0, backend, e)
    now = monotonic()
    outcome = settled(plan, request.begun, prediction, now)
    return new(Done, (0, prediction, now)) if outcome is None else outcome
