"""AsyncRouter: the router for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from edgeroute.confidence.scores import Score
from edgeroute.core.policy import INF, CloudOrder, Mode, NoConfidence, Offline, Saver, Uncalibrated
from edgeroute.core.spending import Limits
from edgeroute.core.walk import Event, Failed, Outcome, Start, walk
from edgeroute.errors import Held, Unreachable
from edgeroute.router.arguments import check_unknown
from edgeroute.router.assemble import assemble
from edgeroute.router.calls import Block, Join, Result, Step, Steps, Walk, answer_of
from edgeroute.router.drivers import Send, Stop
from edgeroute.router.drivers.tasks import drive
from edgeroute.router.engine import Engine
from edgeroute.router.legs import LegExecutor, run_first
from edgeroute.router.owner import EngineOwner
from edgeroute.router.preflight import Check, Decision
from edgeroute.router.request import Request, length
from edgeroute.router.session import AsyncSession
from edgeroute.router.streams import AsyncStream, last
from edgeroute.system import ThreadPool
from edgeroute.types import Answer, V

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.cloud.backend import CloudBackend
    from edgeroute.cloud.egress import Egress
    from edgeroute.confidence.certificate import Certificate
    from edgeroute.observe.sensors import Sensors
    from edgeroute.record.drift_monitor import Audit
    from edgeroute.record.instruments import Instrument
    from edgeroute.record.trace import Trace
    from edgeroute.router.arguments import Cloud, Edge
    from edgeroute.stores.cache import Cache
    from edgeroute.stores.outbox import Outbox

T = TypeVar("T")
QUICK_S = 0.001
"""A model whose 99 % latency quantile is below this, seconds, runs on the event loop itself: a thread and back costs up to
0.2 ms, twice what a small model takes. With a deadline or a hedge, and for a batch, it always runs in a thread."""

CLOSE_S = 1.0
"""How long closing waits for tasks that were cancelled."""


class AsyncRouter(EngineOwner, Generic[V]):
    """`Router` for asyncio. Models run in threads, endpoints on the event loop; one router serves one loop at a time.

    The arguments are those of `Router`.
    """

    def __init__(
        self,
        edge: Edge[V] | Sequence[Edge[V]] | None = None,
        cloud: Cloud[V] | Sequence[Cloud[V]] | None = None,
        *,
        threshold: float | Certificate | Sequence[float | Certificate] | None = None,
        mode: Mode = "prefer_edge",
        deadline: float | None = None,
        hedge_after: float | str | None = None,
        first_token: float | None = None,
        score: str | Score = "msp",
        no_confidence: NoConfidence = "defer",
        offline: Offline = "edge",
        order: CloudOrder = "listed",
        egress: Egress | None = None,
        limits: Limits | None = None,
        metered: bool | Callable[[], bool] = False,
        cache: Cache | None = None,
        outbox: Outbox | None = None,
        audit: Audit | None = None,
        saver: Saver | None = None,
        sensors: Sensors | None = None,
        uncalibrated: Uncalibrated = "tell",
        certificate_max_age: float | None = None,
        state: str | Path | None = None,
        trace: Trace | Callable[[Mapping[str, Any]], object] | str | Path | None = None,
        instruments: Sequence[Instrument] = (),
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            check_unknown(AsyncRouter, unknown)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.engine = assemble(
            partial(_spawn, weakref.ref(self)),
            edge=edge, cloud=cloud, threshold=threshold, mode=mode, deadline=deadline, hedge_after=hedge_after,
            first_token=first_token, score=score, no_confidence=no_confidence, offline=offline, order=order, egress=egress,
            limits=limits, metered=metered, cache=cache, outbox=outbox, audit=audit, saver=saver, sensors=sensors,
            uncalibrated=uncalibrated, certificate_max_age=certificate_max_age, state=state, trace=trace, instruments=instruments,
        )  # fmt: skip

    async def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer[V]:
        """As `Router.infer`. Cancelling it cancels all running legs."""
        engine = self.engine
        request = engine.request(x, mode, deadline, data_class, importance)
        if engine.plain:
            result = await self._plain(request)
            if engine.tell is not None:
                engine.tell(request, result)
        else:
            (result,) = await self._pump(engine.steps([request]))
        return answer_of(result)

    async def _plain(self, request: Request) -> Result:
        """`infer` without optional stages: walk and record directly."""
        engine = self.engine
        first = run_first(request) if 0 < request.plan.facts.edge_s < QUICK_S else None
        if type(first) is Outcome:
            engine.record(request, first, None)
            return Answer(request.plan, first, request.id)
        legs = engine.legs([request])
        known: Any = first
        begin = partial(self._begin, legs, False, known)
        return engine.finish(request, await drive(walk(request.plan, request.begun), begin), legs)

    async def refine(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> AsyncGenerator[Answer[V], None]:
        """As `Router.refine`."""
        request = self.engine.request(x, mode, deadline, data_class, shows="provisional")
        async for shown in self._shown(request):
            yield shown if isinstance(shown, Answer) else answer_of(shown[0])

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        data_class: str | None = None,
    ) -> AsyncStream:
        """As `Router.stream`, for `async with` and `async for`; clouds may be asynchronous generator functions."""
        return AsyncStream(self._pieces(x, mode, deadline, first_token, data_class))

    async def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first_token: float | None, data_class: str | None
    ) -> AsyncGenerator[Any, None]:
        request = self.engine.request(x, mode, deadline, data_class, shows="pieces", first_token=first_token)
        spoken = False
        async for shown in self._shown(request):
            if not isinstance(shown, _End):
                spoken = True
                yield shown
                continue
            answer = answer_of(shown[0])
            if not spoken:  # from the cache, or in place of the cloud's
                yield answer.value
            yield last(answer)

    async def _shown(self, request: Request) -> AsyncGenerator[Any, None]:
        """Yields what the caller is shown, and finally an `_End` with the results."""
        mail: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.ensure_future(self._pump(self.engine.steps([request]), mail.put_nowait))
        task.add_done_callback(lambda _: mail.put_nowait(_END))
        try:
            while (shown := await mail.get()) is not _END:
                yield shown
            yield _End(await task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def infer_many(
        self, batch: Sequence[Any], *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> list[Answer[V]]:
        """As `Router.infer_many`."""
        if not length(batch):
            return []
        results = await self._pump(self.engine.steps(self.engine.rows(batch, mode, deadline, data_class)))
        return [answer_of(result) for result in results]

    def session(self) -> AsyncSession:
        """As `Router.session`, for `async with`."""
        return AsyncSession(self)

    async def decide(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> Decision:
        """As `Router.decide`."""
        return await self._in_thread(partial(self.engine.decide, x, mode, deadline, data_class))

    async def check(self, *, timeout: float = 5.0) -> Check:
        """As `Router.check`."""
        return await self._in_thread(partial(self.engine.check, timeout))

    async def close(self) -> None:
        """Ends threads, tasks and connections, also if it is cancelled. Calls under way end with what they have; never raises.

        A coroutine that goes on though it was cancelled is waited for up to a second, as threads are.
        """
        self.engine.closed = True  # no leg begins any more
        loop = asyncio.get_running_loop()
        tasks = {task for task in self._tasks if task.get_loop() is loop}  # another loop's cannot be ended from here
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=CLOSE_S)
            for backend in self.engine.snapshot.backends:
                if hasattr(backend, "aclose"):
                    await backend.aclose()
        finally:
            await self._in_thread(self._close)

    async def _pump(self, steps: Steps[T], show: Callable[[Any], object] | None = None) -> T:
        """Executes the steps of a call on the event loop; `show` is called with what the caller is shown."""
        value: Any = None
        move: Callable[[Any], Step] = steps.send
        try:
            while True:
                step = move(value)
                try:
                    value, move = await self._take(step, show), steps.send
                except BaseException as e:  # noqa: BLE001 - thrown into the stages, most of which let it pass
                    value, move = e, steps.throw
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _take(self, step: Step, show: Callable[[Any], object] | None) -> Any:
        if type(step) is Walk:
            to = None if step.show is None or show is None else partial(_show, step.show, show)
            return await drive(step.walk, partial(self._begin, step.legs, step.streams, None), to)
        if type(step) is Join:
            return await step.flight.wait_async(step.timeout_s)
        assert type(step) is Block, "there is no other step"
        return await self._in_thread(*step)

    def _begin(self, legs: LegExecutor, streams: bool, first: Event | None, start: Start, send: Send) -> Stop | Event:
        """Starts a leg: on the event loop if possible, else in a thread. first: the event of a first leg that has run already."""
        if first is not None and start.leg == 0:
            return first
        backend: Any = legs.backend(start)
        permit = legs.plan.legs[start.leg].permit
        if permit is None or backend.run_async is None or (streams and not backend.alone_async):
            if streams:
                return legs.begin_stream(start, send)
            quick = permit is None and legs.sequential and 0 < legs.plan.facts.edge_s < QUICK_S
            return legs.run(start) if quick else legs.begin(start, send)
        if self.engine.closed:
            return Failed(start.leg, Held(f"{backend.name} was not asked: the router is closed", code="stopped"), monotonic())
        if not legs.sequential or legs.shows or legs.egress.asks:
            error = legs.detach(start)  # it may outlive the call
            if error is not None:
                return Failed(start.leg, error, monotonic())
        to = legs.mail(start, send, own_thread=False)
        off_loop = partial(_in_cloud_thread, self.engine.cloud_threads, backend)
        if streams:
            return self._leg(legs.run_stream_async(start, permit, backend, send, off_loop), start, to)
        return self._leg(legs.run_async(start, permit, backend, off_loop), start, to)

    def _leg(self, leg: Coroutine[Any, Any, Event], start: Start, send: Send) -> Stop:
        """Runs a leg as a task, which always sends an event."""

        def ended(task: asyncio.Task[Event]) -> None:
            error = Unreachable("it was cancelled") if task.cancelled() else task.exception()
            send(task.result() if error is None else Failed(start.leg, error, monotonic()))

        task = self._task(leg)
        task.add_done_callback(ended)
        return task.cancel  # type: ignore[return-value]  # its result, whether it was in time, is not used

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_thread(self, call: Callable[[], T], until: float = INF, late: Any = None, needed: bool = True) -> T:
        """The result of `call` in a thread; `late` if there is none by the instant `until`.

        Called here if it is needed, and there is no thread for it, or too much waits for one.
        """
        threads = self.engine.local_threads
        done = _submitted(threads.submit_later if needed and until < INF else threads.submit, call)
        if done is None:
            return call() if needed else late
        await asyncio.wait([done], timeout=None if until == INF else max(0.0, until - monotonic()))
        return done.result() if done.done() else late

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _spawn(router: weakref.ref[AsyncRouter], engine: Engine, steps: Steps[None]) -> bool:  # noqa: ARG001 - there is one
    """Executes steps in the background, unless the router was dropped: its parts do not keep it alive."""
    owner = router()
    if owner is None:
        return False
    owner._task(owner._pump(steps))  # noqa: SLF001 - its own module's
    return True


class _End(list[Result]):
    """The results of a finished call."""


_END = object()


def _show(shown: Callable[[Any], Any], show: Callable[[Any], object], emit: Any) -> None:
    show(shown(emit))


async def _in_cloud_thread(threads: ThreadPool, backend: CloudBackend, call: Callable[[], T]) -> T:
    """The result of consent, redaction or loading a client, which may block like a cloud call.

    Raises:
        Held: no thread is free.
    """
    done = _submitted(threads.submit, call)
    if done is None:
        backend.guard.count_rejected("threads")
        raise Held(f"{backend.name} was not asked: no thread is free", code="threads")
    return await done


def _submitted(submit: Callable[[Callable[[], object]], bool], call: Callable[[], T]) -> asyncio.Future[T] | None:
    """A future of `call` in a thread; None: there is no thread for it.

    Not asyncio's own executor, which is shared: hanging name look-ups may fill it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def job() -> None:
        try:
            result, error = call(), None
        except BaseException as e:  # noqa: BLE001 - passed to the caller
            result, error = None, e
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_set, done, result, error)

    return done if submit(job) else None


def _set(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return  # the waiting task was cancelled
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
