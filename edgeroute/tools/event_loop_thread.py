"""Event loop, or functions one after the other, in a daemon thread of its own, which Python's exit does not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from edgeroute.system.thread_pool_and_workers import ThreadPool, Worker

P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """Event loop in a daemon thread, started on construction.

    A coroutine's SystemExit or KeyboardInterrupt, which ends an event loop, is logged, and the loop goes on with all else.

    Args:
        name: of the thread.
        message: start of the log line about such a coroutine.

    Attributes:
        loop: the event loop.

    Raises:
        RuntimeError: the system has no more threads.
    """

    def __init__(self, name: str, message: str) -> None:
        self.loop, self._ended = asyncio.new_event_loop(), False
        self._worker = Worker(name, self._run, message, retry_s=0.0)
        if not self._worker.start():
            self.loop.close()
            raise RuntimeError(f"there is no thread for {name}")

    def _run(self) -> None:
        """Run the event loop until it is stopped, then close it. What ends it otherwise is raised, and the worker calls again."""
        if not self._ended:
            self.loop.run_forever()
        self.loop.close()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, from another thread. Return the future of its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self, wait_s: float | None = None) -> None:
        """Stop the loop, and wait up to `wait_s` seconds until it is closed; None: as long as it takes. No task is cancelled."""
        self._ended = True
        with suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._worker.close(wait_s, last=True)  # one more turn: where the loop ends before it has seen that it is to stop


class DaemonThread(Executor):
    """Executor of one daemon thread: Python's exit would join the thread of a `ThreadPoolExecutor`, however long its call takes.

    Args:
        name: of the thread.
        native: the functions may run native code: see `ThreadPool`.
    """

    def __init__(self, name: str, *, native: bool = False) -> None:
        self._threads = ThreadPool(name, 1, native=native)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function after those before it, and return the future of its result; one that was cancelled is not called.

        Raises:
            RuntimeError: it is shut down, or the system has no more threads.
        """
        done = Future[T]()
        if not self._threads.submit_later(partial(_settle, done, partial(fn, *args, **kwargs))):
            raise RuntimeError("there is no thread for it")
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - nothing waits at its end
        """Refuse further functions, and let the thread end after those that were submitted; wait up to a second for it."""
        self._threads.close(1.0 if wait else 0.0)


def _settle(done: Future[T], call: Callable[[], T]) -> None:
    """Set a future to the result of `call`, or to what it raises, unless it was cancelled."""
    if done.set_running_or_notify_cancel():
        try:
            done.set_result(call())
        except BaseException as e:  # noqa: BLE001 - passed to the caller
            done.set_exception(e)
