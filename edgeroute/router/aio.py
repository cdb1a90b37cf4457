"""The router for asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeroute.cloud.backend import FunctionBackend
from edgeroute.core.batch import walk_many
from edgeroute.core.plan import Plan
from edgeroute.core.policy import Mode
from edgeroute.core.stream import walk_stream
from edgeroute.core.walk import Emit, Event, Outcome, Start, walk
from edgeroute.errors import EdgerouteError
from edgeroute.router.drivers import Send, Stop
from edgeroute.router.drivers.tasks import drive
from edgeroute.router.engine import Routing
from edgeroute.router.preflight import Check, Decision
from edgeroute.router.request import Route
from edgeroute.router.streams import AsyncStream, last
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("edgeroute")
QUICK_S = 0.001
"""A model whose 99 % quantile is below this runs on the event loop itself: a thread and back costs up to 0.2 ms, twice
what a small model takes. With a deadline or a hedge, and for a batch, it gets a thread all the same."""


class AsyncRouter(Routing):
    """`Router`, awaited. Models run in threads, endpoints on the event loop; one router serves one loop at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tasks: set[asyncio.Task[None]] = set()

    async def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer:
        """As `Router.infer`. Cancelling it stops every leg that is under way."""
        plan, route, begun = self._begin(x, mode, deadline, data_class)
        if self._special or importance:
            self._prepare(route, importance)
            if self._recall is not None:
                return await self._cached(plan, route, begun)
        return await self._walk(plan, route, begun)

    async def _walk(self, plan: Plan, route: Route, begun: float) -> Answer:
        outcome = await drive(walk(plan, begun, False, route.late is not None), partial(self._leg, route))
        return await self._ended(plan, outcome, route)

    async def _ended(self, plan: Plan, outcome: Outcome, route: Route, shown: Answer | None = None) -> Answer:
        if outcome.accepted or plan.offline != "queue":
            return self._end(plan, outcome, route, shown=shown)
        return await asyncio.to_thread(self._end, plan, outcome, route)  # the outbox waits for the disk

    async def _cached(self, plan: Plan, route: Route, begun: float) -> Answer:
        answer = self._known(route, begun)
        if answer is not None:
            return answer
        flight = route.flight
        if flight is not None and not flight.leads:
            leader = await flight.wait_async(self._patience_s(route, begun))
            if leader is not None:
                return self._shared(leader, route, begun)
        answer = None
        try:
            answer = await self._walk(plan, route, begun)
        finally:
            self._keep(route, answer)
        return answer

    def _renew(self, stale: Route) -> None:
        async def again() -> None:
            answer = None
            try:
                plan, route, begun = self._again(stale)
                answer = await self._walk(plan, route, begun)
            except EdgerouteError as e:
                log.info("what the cache has past its time could not be renewed: %s", e)
            finally:
                self._keep(stale, answer)

        self._task(again())

    async def refine(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> AsyncGenerator[Answer, None]:
        """As `Router.refine`."""
        plan, route, begun = self._begin(x, mode, deadline, data_class)
        if self._special:
            self._prepare(route, 0.0)
            if self._recall is not None and (known := self._known(route, begun)) is not None:
                yield known
                return
        answer = provisional = None
        mail: asyncio.Queue[Emit | None] = asyncio.Queue()
        steps = drive(walk(plan, begun, True, route.late is not None), partial(self._leg, route), mail.put_nowait)
        task = asyncio.ensure_future(steps)
        task.add_done_callback(lambda _: mail.put_nowait(None))
        try:
            while (shown := await mail.get()) is not None:
                provisional = self._provisional(plan, shown, route, begun)
                yield provisional
            answer = await self._ended(plan, await task, route, provisional)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if self._recall is not None:
                self._keep(route, answer)
        yield answer

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
        plan, route, begun = self._begin(x, mode, deadline, data_class)
        mail: asyncio.Queue[Emit | None] = asyncio.Queue()
        steps = drive(walk_stream(plan, begun, self._first_s(first_token)), partial(self._speak, route), mail.put_nowait)
        task = asyncio.ensure_future(steps)
        task.add_done_callback(lambda _: mail.put_nowait(None))
        try:
            while (shown := await mail.get()) is not None:
                yield shown.prediction.value
            answer = await self._ended(plan, await task, route)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        yield last(answer)

    def _speak(self, route: Route, start: Start, send: Send) -> Stop:
        runner, permit = route.runner(start), route.plan.legs[start.leg].permit
        if permit is None or not isinstance(runner, FunctionBackend) or not runner.alone_async:
            return route.begin_stream(start, send)

        async def run() -> None:
            send(await route.run_stream_async(start, permit, runner, send))

        return self._task(run()).cancel  # type: ignore[return-value]  # likewise

    async def infer_many(
        self, batch: Sequence[Any], *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> list[Answer]:
        """As `Router.infer_many`."""
        if not len(batch):
            return []
        plan, route, begun = self._begin(batch, mode, deadline, data_class, True)
        found, rows = self._known_rows(route, begun)
        if rows:
            outcomes = await drive(walk_many(plan, len(rows), begun), partial(self._leg, route))
            await asyncio.to_thread(self._end_rows, plan, outcomes, route, rows, found)
        return found

    async def decide(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> Decision:
        """As `Router.decide`."""
        return await asyncio.to_thread(self._decide, x, mode, deadline, data_class)

    async def check(self, *, timeout: float = 5.0) -> Check:
        """As `Router.check`."""
        return await asyncio.to_thread(self._check, timeout)

    async def close(self) -> None:
        """Ends threads, tasks and connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._live.runners:
            if hasattr(runner, "aclose"):
                await runner.aclose()
        await asyncio.to_thread(self._shut)

    def _leg(self, route: Route, start: Start, send: Send) -> Stop | Event:
        runner: Any = route.runner(start)
        permit = route.plan.legs[start.leg].permit
        if permit is None or runner.run_async is None:
            quick = permit is None and 0 < self._observer.facts.edge_s < QUICK_S
            return route.run(start) if quick and route.sequential else route.begin(start, send)
        send = route.mail(start, send)

        async def run() -> None:
            send(await route.run_async(start, permit, runner))

        return self._task(run()).cancel  # type: ignore[return-value]  # whether it was in time interests nobody

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
