"""Event loop in a daemon thread of its own, for coroutines of others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from edgeroute.system.thread_pool_and_workers import Worker

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
