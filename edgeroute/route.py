"""One request under way: runs the legs that the walk asks for, and turns whatever comes of them into events."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from edgeroute.core.flow import Done, Event, Failed, Start, new
from edgeroute.core.plan import Plan
from edgeroute.drivers import Send, Stop
from edgeroute.errors import BadInput
from edgeroute.runners import Runner
from edgeroute.types import Cancel
from edgeroute.workers import Workers


class Route:
    """What a driver's `begin` or `run` is for one request.

    Args:
        plan: the plan that is walked.
        runners: one for each target.
        inputs: one input, or with `many` a sequence of them.
        workers: threads for legs that must not hold up the caller.
        until: the deadline's instant.
    """

    __slots__ = ("_inputs", "_many", "_plan", "_runners", "_until", "_workers")

    def __init__(self, plan: Plan, runners: tuple[Runner, ...], inputs: Any, workers: Workers, until: float, many: bool) -> None:
        self._plan, self._runners, self._inputs = plan, runners, inputs
        self._workers, self._until, self._many = workers, until, many

    @property
    def sequential(self) -> bool:
        """Whether this is one input, of which one leg runs at a time, and nothing can interrupt it."""
        return self._plan.sequential and not self._many

    def runner(self, start: Start) -> Runner:
        """What runs that leg."""
        return self._runners[self._plan.legs[start.leg].target]

    def run(self, start: Start, cancel: Cancel | None = None) -> Event:
        """Runs a leg to its event, here: the one place where what a leg raises becomes a value."""
        runner = self._runners[self._plan.legs[start.leg].target]
        try:
            if self._many:
                answer: Any = runner.run(self._rows(start), self._until, cancel)
            else:
                answer = runner.run_one(self._inputs, self._until, cancel)
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return _failed(start, runner, e)
        return new(Done, (start.leg, answer, monotonic()))

    async def run_async(self, start: Start, runner: Runner) -> Event:
        """The same on an event loop, for a runner that can."""
        try:
            answer = await runner.run_async(self._rows(start), self._until)  # type: ignore[misc]  # it is not None here
        except Exception as e:  # noqa: BLE001 - a leg's outermost frame
            return _failed(start, runner, e)
        return Done(start.leg, answer if self._many else answer[0], monotonic())

    def begin(self, start: Start, send: Send) -> Stop:
        """The same in a thread of the pool."""
        job = _Job(self.runner(start))
        self._workers.submit(partial(job.run, start, partial(self.run, start, job.cancel), send))
        return job.stop

    def _rows(self, start: Start) -> list[Any]:
        return [self._inputs] if start.rows is None else [self._inputs[row] for row in start.rows]


class _Job:
    """A leg in a thread. Knows whether it still goes on after it was told to stop, so that the planner can too."""

    __slots__ = ("_ended", "_runner", "_stuck", "cancel")
    _lock = threading.Lock()  # for a few instructions, and for all jobs, since they count on shared runners

    def __init__(self, runner: Runner) -> None:
        self._runner, self.cancel = runner, Cancel()
        self._ended = self._stuck = False

    def run(self, start: Start, execute: Callable[[], Event], send: Send) -> None:
        try:
            event = execute()
        except BaseException as e:  # noqa: BLE001 - SystemExit in a callable ends its leg; the caller must not wait for ever
            event = Failed(start.leg, e, monotonic())
        with self._lock:
            self._ended = True
            if self._stuck:
                self._runner.stuck -= 1
        send(event)

    def stop(self) -> None:
        with self._lock:
            if not self._ended:
                self._stuck = True
                self._runner.stuck += 1
        self.cancel()


def _failed(start: Start, runner: Runner, error: Exception) -> Failed:
    """Input that the edge cannot take is the caller's fault, and no other leg is asked; the cloud's view is its own."""
    return Failed(start.leg, error, monotonic(), fatal=runner.side == "edge" and isinstance(error, BadInput))
