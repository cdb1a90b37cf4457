"""The router for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeroute.core.batch import walk_many
from edgeroute.core.flow import Event, Start, walk
from edgeroute.core.policy import Mode
from edgeroute.drivers import Send, Stop
from edgeroute.drivers.tasks import drive
from edgeroute.route import Route
from edgeroute.routing import Check, Decision, Routing
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self


QUICK_S = 0.001
"""A model whose 99 % quantile is below this runs on the event loop itself: a thread and back costs up to 0.2 ms, twice
what a small model takes. With a deadline or a hedge, and for a batch, it gets a thread all the same."""


class AsyncRouter(Routing):
    """`Router`, awaited. Models run in threads, endpoints on the event loop; one router serves one loop at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tasks: set[asyncio.Task[None]] = set()

    async def infer(self, x: Any, *, mode: Mode | None = None, deadline: float | None = None) -> Answer:
        """As `Router.infer`. Cancelling it stops every leg that is under way."""
        plan, route, begun = self._begin(x, mode, deadline)
        return self._end(plan, await drive(walk(plan, begun), partial(self._leg, route)))

    async def infer_many(self, batch: Sequence[Any], *, mode: Mode | None = None, deadline: float | None = None) -> list[Answer]:
        """As `Router.infer_many`."""
        if not len(batch):
            return []
        plan, route, begun = self._begin(batch, mode, deadline, True)
        outcomes = await drive(walk_many(plan, len(batch), begun), partial(self._leg, route))
        return [self._end(plan, outcome, True) for outcome in outcomes]

    async def decide(self, x: Any, *, mode: Mode | None = None, deadline: float | None = None) -> Decision:
        """As `Router.decide`."""
        return await asyncio.to_thread(self._decide, x, mode, deadline)

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
        runner = route.runner(start)
        if runner.run_async is None:
            quick = runner.side == "edge" and 0 < self._facts.edge_s < QUICK_S
            return route.run(start) if quick and route.sequential else route.begin(start, send)

        async def run() -> None:
            send(await route.run_async(start, runner))

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task.cancel  # type: ignore[return-value]  # whether it was in time interests nobody

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
