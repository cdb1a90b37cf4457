"""AsyncRouter: the router for asyncio, and `Loop`, which runs its steps, tasks and blocking work on one event loop at a time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from contextvars import copy_context
from functools import cached_property, partial, wraps
from inspect import signature
from time import monotonic
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from edgeroute.core.plan import Plan
from edgeroute.core.policy_egress_and_options import INF, Mode
from edgeroute.core.walk import Event, Failed, Outcome, Start, walk
from edgeroute.errors import Held, Unreachable
from edgeroute.router.base_router import BaseRouter
from edgeroute.router.decision_and_check_results import Check, Decision
from edgeroute.router.drivers import Deferrable, Send, Stop
from edgeroute.router.drivers.asyncio_task import drive
from edgeroute.router.engine import Engine, batch_steps
from edgeroute.router.engine_assembly import Spawn
from edgeroute.router.leg_execution import LegExecutor, run_first, stuck_error
from edgeroute.router.pool_calls_and_task_legs import TAKES_BACK, InsideLegs, in_cloud_thread, in_edge_thread, submit_call
from edgeroute.router.private_conversations_and_digest_store import SCOPE
from edgeroute.router.request import Request, Shows, checked_batch
from edgeroute.router.router import Router
from edgeroute.router.steps_and_composed_stages import Block, Join, Pause, Result, Step, Steps, Walk, answer_of
from edgeroute.router.streams_sessions_chats import AsyncConversation, AsyncSession, AsyncStream, End, Last, as_one_piece
from edgeroute.router.warm_up_and_release_checks import Warmed, Warming, models_to_warm, warm_up, warm_up_async
from edgeroute.system.contained_calls_and_tasks import ClosedByAsyncWith, set_within
from edgeroute.system.late_imports_and_plugins import import_tool
from edgeroute.types import Answer, Batch, V

if TYPE_CHECKING:
    from edgeroute.router.live.asyncio_iterators import AsyncAudio, AsyncFrames
    from edgeroute.system.thread_pool_and_workers import ThreadPool
    from edgeroute.tools.measure.report.report_pages_and_results import CalibrationResult, EvaluationResult

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
# Maximum 99 % quantile, seconds, of the latency of a model that runs on the event loop itself. A thread and back takes up to 0.2
# ms, twice as long as a small model. With a deadline or a hedge, and for a batch, a model always runs in a thread.
QUICK_S = 0.001
CLOSE_S = 1.0  # maximum seconds that closing waits for cancelled tasks


def like(method: Callable[Concatenate[Any, P], Any]) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Return a decorator that gives a method the arguments and defaults of another one; its body gets them by name."""
    arguments = signature(method)

    def decorated(inner: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        @wraps(inner)
        def call(self: Any, *positional: P.args, **named: P.kwargs) -> R:
            bound = arguments.bind(self, *positional, **named)
            bound.apply_defaults()
            return inner(**bound.arguments)

        call.__signature__ = arguments.replace(return_annotation=signature(inner).return_annotation)  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]  # the name of its first argument

    return decorated


class Loop:
    """Event loop's side of a router: executes a call's steps, starts legs as tasks or in threads, and ends them at the close.

    Args:
        engine: engine of the router.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._tasks: set[asyncio.Task[Any]] = set()
        self._inside = InsideLegs()

    async def request(self, *arguments: Any, **more: Any) -> Request:
        """Make a request, with the errors of `Engine.request`.

        It is made in a thread if the application's function gives its data class, which may block.
        """
        make = partial(self.engine.request, *arguments, **more)
        if self.engine.snapshot.egress.data_class is None:
            return make()
        return await self.in_thread(partial(copy_context().run, make))

    async def pump(self, steps: Steps[T], show: Callable[[Any], object] | None = None) -> T:
        """Execute the steps of a call on the event loop, one by one, and return their result.

        A step's exception is thrown into the steps. `show` is called with each answer or piece that the caller gets before the
        result.
        """
        value: Any = None
        move: Callable[[Any], Step] = steps.send
        try:
            while True:
                step = move(value)
                try:
                    value, move = await self._execute(step, show), steps.send
                except BaseException as e:  # noqa: BLE001 - thrown into the stages, most of which let it pass
                    self.engine.observer.eases_at = -INF  # as in `_plain`
                    value, move = e, steps.throw
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _execute(self, step: Step, show: Callable[[Any], object] | None) -> Any:
        """Execute one step (drive a walk, wait for an equal request, sleep, or call in a thread), and return its result.

        Raises what it raises. With `show` None, nothing is shown.
        """
        if type(step) is Walk:
            to = None if step.show is None or show is None else partial(_show, step.show, show)
            return await drive(step.walk, partial(self.begin, step.legs, step.streams, None), to)
        if type(step) is Join:
            return await step.flight.wait_async(step.timeout_s)
        if type(step) is Pause:
            return await asyncio.sleep(step.seconds)
        assert type(step) is Block, "there is no other step"
        return await self.in_thread(*step)

    def begin(self, legs: LegExecutor, streams: bool, first: Event | None, start: Start, send: Send) -> Stop | Event | Deferrable:
        """Start a leg (one run of a model or call of an endpoint): a task if it is async, else a thread.

        Return how to stop it, or its event. A quick edge runs here at once, and its event is returned. A call that keeps its time
        is returned as a `Deferrable`, for its caller to run. `first`: the event of a first leg that has run already.
        """
        if first is not None and start.leg == 0:
            return first
        backend: Any = legs.backend(start)
        permit = legs.plan.legs[start.leg].permit
        if backend.run_async is None:
            if streams:
                return legs.begin(start, send, streams=True)
            quick = permit is None and legs.sequential and _quick(legs.plan, backend)
            return legs.run(start) if quick else legs.begin(start, send)
        off_loop: Any = partial(in_cloud_thread, self.engine.cloud_threads, backend)
        if permit is None:
            off_loop = partial(in_edge_thread, self.engine.edge_threads)
        begin = partial(self._begin_async, legs, streams, off_loop, start, send)
        if permit is None or streams or self.engine.closed or not TAKES_BACK or not legs.keeps_time(start):
            return begin()
        return Deferrable(start.leg, legs.until, lambda: self._inside.run(start.leg, legs.run_async(start, off_loop)), begin)

    def _begin_async(self, legs: LegExecutor, streams: bool, off_loop: Any, start: Start, send: Send) -> Stop | Event:
        """Start an asynchronous leg in a task of its own, which always sends an event, also when cancelled.

        Return the function that cancels it; or a failure, if the router is closed, or too many of the edge's runs did not stop.
        Copies the inputs if the leg may outlive the call. An edge that goes on after its cancellation is counted in
        `backend.stopping` until it ends.
        """
        backend: Any = legs.backend(start)
        if (error := _refusal(self.engine, legs, start, backend)) is not None:
            return Failed(start.leg, error, monotonic())
        to = legs.mail(start, send, own_thread=False)

        def ended(task: asyncio.Task[Event]) -> None:
            backend.stopping.discard(task)
            error = Unreachable("it was cancelled") if task.cancelled() else task.exception()
            to(task.result() if error is None else Failed(start.leg, error, monotonic()))

        def stop() -> None:
            if not task.done():
                if backend.side == "edge":
                    backend.stopping.add(task)
                task.cancel()

        task = self.task(legs.run_async(start, off_loop, send if streams else None))
        task.add_done_callback(ended)
        return stop

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, which `end` cancels, and return it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        """Cancel the tasks and legs on this loop, wait for them up to a second, and close the backends that have an `aclose`.

        Legs that outlast that are left, and so are those of other loops.
        """
        loop = asyncio.get_running_loop()
        tasks = {task for task in self._tasks.copy() if task.get_loop() is loop}  # another loop's cannot be ended from here
        for task in tasks:
            task.cancel()
        if ends := {*tasks, *self._inside.close(loop)}:
            await asyncio.wait(ends, timeout=CLOSE_S)
        for backend in self.engine.snapshot.backends:
            if hasattr(backend, "aclose"):
                await backend.aclose()

    async def in_thread(
        self, call: Callable[[], T], until: float = INF, late: Any = None, needed: bool = True, threads: ThreadPool | None = None
    ) -> T:
        """Return the result of `call` in a thread; `late` if there is none by the monotonic instant `until`.

        Its exceptions are raised. Called here, blocking the loop, if it is needed and no thread takes it. Not called at all, with
        `late` returned, if it is not needed and no thread is free.
        """
        threads = self.engine.local_threads if threads is None else threads
        done = submit_call(threads.submit_later if needed and until < INF else threads.submit, call)
        if done is None:
            return call() if needed else late
        await asyncio.wait([done], timeout=None if until == INF else max(0.0, until - monotonic()))
        return done.result() if done.done() else late


class AsyncRouter(BaseRouter[V], ClosedByAsyncWith):
    """Router for one event loop at a time. Endpoints, and edges that are `async def`, run on it, other models in threads.

    The arguments are those of `Router`.
    """

    _awaits = True

    def _spawner(self) -> Spawn:
        """Return a function that executes steps in a task."""
        return partial(_spawn, weakref.ref(self))

    @cached_property
    def _loop(self) -> Loop:
        """Event loop's side of the router."""
        return Loop(self.engine)

    async def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer[V]:
        """Return the answer to one input, like `Router.infer`, with its errors. Cancelling the call cancels all running legs."""
        engine = self.engine
        request = await self._loop.request(x, mode, deadline, data_class, importance)
        if engine.plain and request.id not in engine.private.awaited:
            result = await _plain(self._loop, request)
            for ended in engine.ended:
                ended(request, result)
        else:
            (result,) = await self._loop.pump(engine.steps([request]))
        return answer_of(result)

    async def refine(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> AsyncGenerator[Answer[V], None]:
        """Yield the edge's answer at once, if the cloud is asked, and then the final one, like `Router.refine`, with its errors.

        Leaving the iteration early cancels the call.
        """
        request = await self._loop.request(x, mode, deadline, data_class, shows="provisional")
        async with aclosing(self._shown(request)) as answers:
            async for shown in answers:
                yield shown if isinstance(shown, Answer) else answer_of(shown[0])

    async def _shown(self, request: Request) -> AsyncGenerator[Any, None]:
        """Yield the answers or pieces for the caller, and finally an `End` with the results.

        Left early, the task is cancelled and awaited. Raises what the call raises.
        """
        mail: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.ensure_future(self._loop.pump(self.engine.steps([request]), mail.put_nowait))
        task.add_done_callback(lambda _: mail.put_nowait(_END))
        try:
            while (shown := await mail.get()) is not _END:
                yield shown
            yield End(await task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def infer_many(
        self, batch: Batch, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> list[Answer[V]]:
        """Return the answers to several inputs, in order, like `Router.infer_many`, with its errors; none for an empty batch."""
        if not len(rows := checked_batch(batch)):
            return []
        return [answer_of(result) for result in await self._loop.pump(batch_steps(self.engine, rows, mode, deadline, data_class))]

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
    ) -> AsyncStream:
        """Return the answer in pieces, like `Router.stream`, for `async with` and `async for`.

        Clouds may be asynchronous generator functions.
        """
        shows: Shows = "restarts" if restart else "pieces"
        return AsyncStream(self._pieces(x, mode, deadline, first_token, shows, data_class, SCOPE.get()))

    async def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first: float | None, shows: Shows, kind: str | None, scope: bytes
    ) -> AsyncGenerator[Any, None]:
        """Yield the pieces of an answer, and the answer as `Last`. An answer without pieces is one piece.

        Arguments as of `Router._pieces`. Raises NoAnswer and the like.
        """
        with set_within(SCOPE, scope):
            request = await self._loop.request(x, mode, deadline, kind, shows=shows, first_token=first)
        spoken = False
        async with aclosing(self._shown(request)) as pieces:
            async for shown in pieces:
                if not isinstance(shown, End):
                    spoken = True
                    yield shown
                    continue
                answer = answer_of(shown[0])
                if not spoken:  # from the cache, or in place of the cloud's
                    yield as_one_piece(answer)
                yield Last(answer)

    @like(Router.frames)
    def frames(self, source: Any, **settings: Any) -> AsyncFrames:
        """Return an iterator that answers a live source's frames, like `Router.frames`, for `async with` and `async for`.

        The source may be an async iterable, which is read in a task. The iterator ends when the router is closed. Raises
        PolicyError for an invalid setting.
        """
        from edgeroute.router.live.asyncio_iterators import AsyncBell, AsyncFrames
        from edgeroute.router.live.blocking_iterators import live_frames
        from edgeroute.router.live.frames import FrameSettings

        return self._watch(live_frames(self, source, FrameSettings(**settings).check(), AsyncFrames, AsyncBell()))

    @like(Router.audio)
    def audio(self, chunks: Any, **settings: Any) -> AsyncAudio:
        """Return an iterator that answers speech, like `Router.audio`, for `async with` and `async for`.

        It ends when the router is closed. The source may be an async iterable, which is read in a task; `vad` and `on_barge_in`
        are called on the event loop then. Raises PolicyError for an invalid setting.
        """
        from edgeroute.router.live.asyncio_iterators import AsyncAudio, AsyncBell
        from edgeroute.router.live.blocking_iterators import live_audio
        from edgeroute.router.live.speech_segments import AudioSettings

        return self._watch(live_audio(self, chunks, AudioSettings(**settings).check(), AsyncAudio, AsyncBell()))

    def conversation(self, system: str | None = None) -> AsyncConversation:
        """Return a conversation that stores its messages, like `Router.conversation`."""
        return AsyncConversation(self, system)

    def session(self) -> AsyncSession:
        """Return a session, a stream of inputs, like `Router.session`, for `async with`."""
        return AsyncSession(self)

    async def decide(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> Decision:
        """Return the route that this input would take, like `Router.decide`: runs edges, and sends nothing."""
        request = await self._loop.request(x, mode, deadline, data_class)
        legs, event = self.engine.legs([request]), None
        steps = import_tool("inspect.decide_and_check").decide(request.plan, legs, x, self.engine.audited)
        try:
            while True:
                start = steps.send(event)
                backend: Any = legs.backend(start)
                if backend.alone_async:
                    event = await legs.run_async(start, self._loop.in_thread)
                else:
                    event = await self._loop.in_thread(partial(legs.run, start))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def check(self, *, timeout: float = 5.0) -> Check:
        """Load the models and ping the endpoints, in a thread, and return their status, like `Router.check`."""
        check = import_tool("inspect.decide_and_check").check
        return await self._loop.in_thread(partial(check, self.engine, timeout))

    async def warm(self, samples: Sequence[Any] = (), *, progress: Warming | None = None) -> list[Warmed]:
        """Load each model and run it twice on samples; return the times, like `Router.warm`.

        Models that are async are awaited, others run in a thread. Raises what a model raises. `progress(done, all, name)` is
        called before each and at the end.
        """
        timings, off_loop = list[Warmed](), cast("Any", partial(in_edge_thread, self.engine.edge_threads))
        for name, backend, seen in models_to_warm(self.engine.snapshot, samples, progress):
            if backend.run_async is not None:
                timings.append(await warm_up_async(name, backend, seen, off_loop))
            else:
                timings.append(await off_loop(partial(warm_up, name, backend, seen)))
        return timings

    @like(Router.calibrate)
    async def calibrate(self, X: Any, y: Any, **options: Any) -> CalibrationResult:  # noqa: N803 - as in scikit-learn
        """Find the lowest threshold with a guarantee, like `Router.calibrate`, beside other tasks.

        Cancelling the call ends it; `progress` is called on the event loop.
        """
        return await self._loop.pump(self._calibration(X, y, **options))

    @like(Router.evaluate)
    async def evaluate(self, X: Any, y: Any, **options: Any) -> EvaluationResult:  # noqa: N803 - as in scikit-learn
        """Evaluate the threshold in use, like `Router.evaluate`, beside other tasks. Cancelling it ends it."""
        return await self._loop.pump(self._evaluation(X, y, **options))

    async def close(self) -> None:
        """End threads, tasks and connections, also if the call is cancelled. Never raises.

        Calls under way end with the answers so far. Coroutines that ignore their cancellation, and threads, are waited for up to
        a second.
        """
        self.engine.closed = True  # no leg begins any more
        try:
            await self._loop.end()
        finally:
            await self._loop.in_thread(self._close)


async def _plain(loop: Loop, request: Request) -> Result:
    """Return the result of one request without optional stages: walk and record directly.

    A quick edge runs first, on the loop itself.
    """
    engine = loop.engine
    backend: Any = request.snapshot.backends[request.plan.legs[0].target]
    first: Any = run_first(request) if _quick(request.plan, backend) else None
    if type(first) is Outcome:
        return engine.finish(request, first)
    legs = engine.legs([request], first)
    try:
        outcome = await drive(walk(request.plan, request.begun), partial(loop.begin, legs, False, first))
    except BaseException:
        engine.observer.eases_at = -INF  # a leg that goes on may keep its target busy: the next request observes that
        raise
    return engine.finish(request, outcome, legs)


def _spawn(router: weakref.ref[AsyncRouter], engine: Engine, steps: Steps[None]) -> bool:  # noqa: ARG001 - there is one
    """Start a task that executes steps; return False if the router is gone: its parts do not keep it alive."""
    if (owner := router()) is None:
        return False
    owner._loop.task(owner._loop.pump(steps))  # noqa: SLF001 - its own module's
    return True


def _refusal(engine: Engine, legs: LegExecutor, start: Start, backend: Any) -> Exception | None:
    """Return the error of an asynchronous leg that may not begin; None: it begins.

    It may not if the router is closed, too many of an edge's runs did not stop, or the inputs of a cloud cannot be copied. Copies
    the inputs if it may outlive the call. It begins without a copy if the caller waits for it in any case, with inputs that no
    function prepares.
    """
    if engine.closed:
        return Held(f"{backend.name} was not asked: the router is closed", code="stopped")
    if backend.side == "edge":
        return stuck_error(backend) or legs.detach(start)  # what it began, as in a thread, may go on once its task was cancelled
    return legs.detach(start) if not legs.sequential or legs.shows or legs.blocks(start) else None


def _quick(plan: Plan, backend: Any) -> bool:
    """Return True if an edge may run on the event loop itself: its known time is below `QUICK_S`, and no run waits for a turn."""
    return 0 < plan.facts.edge_s < QUICK_S and backend.side == "edge" and backend.at_once


_END = object()


def _show(shown: Callable[[Any], Any], show: Callable[[Any], object], emit: Any) -> None:
    """Convert an effect, and show the result."""
    show(shown(emit))
