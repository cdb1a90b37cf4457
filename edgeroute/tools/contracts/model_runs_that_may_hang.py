"""Runs of a model under test, in threads or as tasks of an event loop; a run that hangs is an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLong
from contextlib import suppress
from typing import Any

from edgeroute.core.walk import Prediction
from edgeroute.edge.edge_backend import EdgeBackend
from edgeroute.tools.event_loop_thread import LoopThread
from edgeroute.types import EdgeModel, StopToken

Ask = Callable[[], object]  # function that asks a run to stop


class Hangs(BaseException):
    """Raised for a run that does not end in time; no Exception, so that it ends the checks, wherever one waits for a run."""


class Token(StopToken):
    """Stop token that records that a model listens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = threading.Event()

    def on_ask(self, hook: Callable[[], object] | None) -> None:
        """Set the function that a stop request calls, and record that in `taken`. Runs it at once if the request came before."""
        super().on_ask(hook)
        self.taken.set()


class Running:
    """Runs of one model, on the paths that a router uses.

    Args:
        model: the model.
        timeout_s: seconds after which a run counts as hanging.

    Attributes:
        awaited: True if runs are tasks.

    Raises:
        PolicyError: the model's members contradict the protocol.
    """

    def __init__(self, model: EdgeModel, timeout_s: float) -> None:
        self.backend, self.timeout_s = EdgeBackend(model.name, model, "msp"), timeout_s
        self.awaited = self.backend.alone_async
        self._loop = LoopThread("edge-contract", f"{model.name} failed") if self.awaited else None

    def ask(self, inputs: list[Any], cancel: StopToken | None = None, *, many: bool = True) -> list[Prediction]:
        """Run a batch, or its only input by `run_one` if not `many`; wait, and return the predictions.

        Raises:
            Hangs: the run did not end in time; or any error of the model.
        """
        answers: list[Prediction] = self.wait(self.begin(inputs, cancel, many=many)[0], "a run")
        return answers

    def begin(self, inputs: list[Any], cancel: StopToken | None, *, many: bool) -> tuple[Future[list[Prediction]], Ask]:
        """Start a run, in a thread or as a task; return its future and a function that stops it: `cancel`, or the task's own.

        many: True: by `run`; False: by `run_one`.
        """
        if self._loop is not None:
            task = self.task(self.backend_async(inputs, many=many))
            return task, task.cancel
        return self.thread(lambda: self.here(inputs, cancel, many=many)), cancel or (lambda: None)

    def here(self, inputs: list[Any], cancel: StopToken | None, *, many: bool) -> list[Prediction]:
        """Run in this thread, and return the predictions."""
        return self.backend.run(inputs, cancel) if many else [self.backend.run_one(inputs[0], cancel)]

    async def backend_async(self, inputs: list[Any], *, many: bool) -> list[Prediction]:
        """Run in this task, and return the predictions."""
        assert self.backend.run_async is not None, "it is asked of a model that is awaited"
        return await self.backend.run_async(inputs, many)

    def run_stream(self, x: Any) -> tuple[list[Any], Prediction]:
        """Run a stream to its end, in a thread or as a task; blocks. Return its pieces, and the whole prediction."""
        pieces: list[Any] = []
        if self._loop is not None:
            return pieces, self.wait(self.task(self.backend.stream_async(x, pieces.append)), "a stream")

        def pull() -> Prediction:
            stream = self.backend.stream(x, None)
            try:
                while True:
                    pieces.append(next(stream))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

        return pieces, self.wait(self.thread(pull), "a stream")

    def thread(self, call: Callable[[], Any], name: str = "edge-contract-run") -> Future[Any]:
        """Call a function in a new daemon thread. Return the future of its result or exception."""
        done: Future[Any] = Future()

        def work() -> None:
            try:
                done.set_result(call())
            except BaseException as e:  # noqa: BLE001 - raised where it is waited for
                done.set_exception(e)

        threading.Thread(target=work, name=name, daemon=True).start()
        return done

    def task(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start a coroutine on the loop. Return the future of its result."""
        assert self._loop is not None, "as above"
        return self._loop.begin(work)

    def wait(self, done: Future[Any], what: str) -> Any:
        """Wait for the result of a future, up to `timeout_s`, and return it; an error of the run is raised.

        what: name of the run for the message.

        Raises:
            Hangs: the result did not come in time. The run goes on.
        """
        try:
            return done.result(self.timeout_s)
        except TooLong as e:  # also what the model raises itself
            if done.done():
                raise
            raise Hangs(f"{what} does not end within {self.timeout_s:g} s") from e

    def end(self) -> None:
        """Close the model, errors of which are ignored, and stop the loop; blocks for that up to `timeout_s`."""
        with suppress(Exception):  # what it raises was said by a check
            self.backend.close()
        if self._loop is not None:
            self._loop.close(self.timeout_s)
