"""One request under way: runs the legs that the walk asks for, and turns whatever comes of them into events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeroute.cloud.backend import Backend, CloudBackend, FunctionBackend
from edgeroute.core.egress import Permit
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.stream import Pieces, whole
from edgeroute.core.walk import Delta, Done, Event, Failed, Outcome, Prediction, Start, new
from edgeroute.errors import INPUTS_OWN, BadInput, Held, Refused, Unreachable
from edgeroute.router.drivers import Send, Stop
from edgeroute.router.snapshot import Snapshot
from edgeroute.system import Workers
from edgeroute.types import StopToken

if TYPE_CHECKING:
    from concurrent.futures import Future

    from edgeroute.cloud.guard import Exchange
    from edgeroute.stores.cache import Cache, Flight

Late = Callable[["Route", Event], None]
_lock = threading.Lock()
"""For a few instructions, and for all requests: taken only where legs run in threads."""


class Route:
    """What a driver's `begin` or `run` is for one request.

    Args:
        plan: the plan that is walked.
        live: the policy's targets, ready to run.
        inputs: one input, or with `many` a sequence of them.
        workers: threads for legs that must not hold up the caller.
        until: the deadline's instant.
        many: whether it is a batch.
        router: what the router's requests are called.
        number: which one this is.
    """

    # what few requests have stays here, on the class: no instance pays for it
    exchanges: dict[int, Exchange] | None = None
    """By leg: the talks with the cloud."""
    cache: Cache | None = None
    key: bytes | None = None
    """What the cache knows this input by; None: it is not to be cached."""
    flight: Flight | None = None
    """The equal requests that wait for this one, or which this one waits for."""
    importance = 0.0
    queued: Future[str] | None = None
    """Whether the outbox has it, where that is still being found out."""
    late: Late | None = None
    """Takes what legs that were left to run on past the deadline say in the end; None: they are cancelled."""
    _ended = False
    _said: dict[int, Event] | None = None

    def __init__(
        self, plan: Plan, live: Snapshot, inputs: Any, workers: Workers, until: float, many: bool, router: str, number: int | str
    ) -> None:
        self.plan, self.live, self.inputs, self._workers, self.until, self.many = plan, live, inputs, workers, until, many
        self.router, self.number = router, number

    @property
    def identity(self) -> str:
        """Names the request in traces and ledgers, and to the endpoints, as their idempotency key."""
        return f"{self.router}-{self.number}"

    @property
    def sequential(self) -> bool:
        """Whether this is one input, of which one leg runs at a time, and nothing can interrupt it."""
        return self.plan.sequential and not self.many

    def runner(self, start: Start) -> Backend:
        """What runs that leg."""
        return self.live.runners[self.plan.legs[start.leg].target]

    def run(self, start: Start, cancel: StopToken | None = None) -> Event:
        """Runs a leg to its event, here: the one place where what a leg raises becomes a value."""
        leg = self.plan.legs[start.leg]
        runner: Any = self.live.runners[leg.target]
        try:
            if leg.permit is not None:
                with self._away(start, leg.permit, runner) as (inputs, until, exchange):
                    answers = runner.run(inputs, until, cancel, exchange)
                answer: Any = answers if self.many else answers[0]
            elif self.many:
                answer = runner.run(self._rows(start), cancel)
            else:
                answer = runner.run_one(self.inputs, cancel)
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return _failed(start, runner, e)
        return new(Done, (start.leg, answer, monotonic()))

    async def run_async(self, start: Start, permit: Permit, runner: CloudBackend) -> Event:
        """The same on an event loop, for a runner that can."""
        try:
            with self._away(start, permit, runner) as (inputs, until, exchange):
                answers = await runner.run_async(inputs, until, exchange)  # type: ignore[misc]  # it is not None here
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return _failed(start, runner, e)
        return Done(start.leg, answers if self.many else answers[0], monotonic())

    @contextmanager
    def _away(self, start: Start, permit: Permit, runner: CloudBackend) -> Iterator[tuple[list[Any], float, Exchange]]:
        """All that a leg off the device needs: the inputs as they may leave, until when, and the guard's leave to go."""
        try:
            inputs = self.live.egress.prepared(self._rows(start), permit, runner.where)
        except Held:
            runner.guard.count_rejected()
            raise
        cache, key = self.cache, None if self.key is None else self.key + runner.name.encode()
        if cache is not None and key is not None and (refused := cache.refused(key)) is not None:
            raise Refused(f"{refused[0]} (said before, of the same input)", status=refused[1])
        with runner.guard.enter(permit, self.identity) as exchange:
            if self.exchanges is None:
                self.exchanges = {}
            self.exchanges[start.leg] = exchange
            try:
                yield inputs, INF if self.late is not None else self.until, exchange
            except Refused as e:
                if cache is not None and key is not None and e.status in INPUTS_OWN:
                    cache.refuse(key, str(e), e.status)
                raise

    def begin(self, start: Start, send: Send) -> Stop:
        """The same in a thread of the pool."""
        job = _Job(self.runner(start))
        self._workers.submit(partial(job.run, start, partial(self.run, start, job.cancel), self.mail(start, send)))
        return job.stop

    def begin_stream(self, start: Start, send: Send) -> Stop:
        """The same for an answer that comes in pieces."""
        job = _Job(self.runner(start))
        self._workers.submit(partial(job.run, start, partial(self._run_stream, start, send, job.cancel), send))
        return job.stop

    def _run_stream(self, start: Start, send: Send, cancel: StopToken) -> Event:
        leg = self.plan.legs[start.leg]
        runner: Any = self.live.runners[leg.target]
        try:
            if leg.permit is None:
                answer = self._forward(start, runner.stream(self.inputs, cancel), send, cancel)
            else:
                with self._away(start, leg.permit, runner) as (inputs, until, exchange):
                    answer = self._forward(start, runner.stream(inputs[0], until, cancel, exchange), send, cancel)
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return _failed(start, runner, e)
        return Done(start.leg, answer, monotonic())

    def _forward(self, start: Start, pieces: Pieces, send: Send, cancel: StopToken) -> Prediction:
        try:
            while True:
                send(Delta(start.leg, next(pieces), monotonic()))
                if cancel.asked:
                    raise Unreachable("its answer is not needed any more")
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            pieces.close()

    async def run_stream_async(self, start: Start, permit: Permit, runner: FunctionBackend, send: Send) -> Event:
        """The same on an event loop, for an asynchronous generator function."""
        try:
            with self._away(start, permit, runner) as (inputs, until, exchange):
                pieces: list[Any] = []
                async for piece in runner.stream_async(inputs[0], until, exchange):
                    pieces.append(piece)
                    send(Delta(start.leg, piece, monotonic()))
            answer = runner.reader.many([(whole(pieces), None)], 1)[0]
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return _failed(start, runner, e)
        return Done(start.leg, answer, monotonic())

    def mail(self, start: Start, send: Send) -> Send:
        """Where a leg's event goes: to the walk, or once that has ended without it, to whoever takes what is late."""
        if self.late is None or self.plan.legs[start.leg].permit is None:
            return send

        def deliver(event: Event) -> None:
            with _lock:
                ended = self._ended
                if not ended:
                    self._said = {**(self._said or {}), start.leg: event}
            if ended:
                self.late(self, event)  # type: ignore[misc]  # it is not None here
            else:
                send(event)

        return deliver

    def end(self, outcome: Outcome) -> None:
        """The walk has ended, without an answer that it could accept: what it left running is late from now on."""
        with _lock:
            self._ended = True
        for what, leg, _, _ in outcome.log:
            if what != "timeout":
                continue
            exchange = (self.exchanges or {}).get(leg)
            if exchange is not None:
                exchange.overdue()
            said = (self._said or {}).get(leg)
            if self.late is not None and said is not None:  # it came between the deadline and now
                self.late(self, said)

    def _rows(self, start: Start) -> list[Any]:
        return [self.inputs] if start.rows is None else [self.inputs[row] for row in start.rows]


class _Job:
    """A leg in a thread. Knows whether it still goes on after it was told to stop, so that the planner can too."""

    __slots__ = ("_ended", "_runner", "_stuck", "cancel")

    def __init__(self, runner: Backend) -> None:
        self._runner, self.cancel = runner, StopToken()
        self._ended = self._stuck = False

    def run(self, start: Start, execute: Callable[[], Event], send: Send) -> None:
        try:
            event = execute()
        except BaseException as e:  # noqa: BLE001 - SystemExit in a callable ends its leg; the caller must not wait for ever
            event = Failed(start.leg, e, monotonic())
        with _lock:
            self._ended = True
            if self._stuck:
                self._runner.abandoned -= 1
        send(event)

    def stop(self) -> None:
        with _lock:
            if not self._ended:
                self._stuck = True
                self._runner.abandoned += 1
        self.cancel()


def _failed(start: Start, runner: Backend, error: Exception) -> Failed:
    """Input that the edge cannot take is the caller's fault, and no other leg is asked; the cloud's view is its own."""
    return Failed(start.leg, error, monotonic(), fatal=runner.side == "edge" and isinstance(error, BadInput))
