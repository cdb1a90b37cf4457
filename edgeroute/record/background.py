"""Background jobs of a router's audits: a few at a time, in order, in threads."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from edgeroute.system import renew_after_fork

TOGETHER = 2
"""Maximum number of concurrent jobs; any beyond that wait."""
log = logging.getLogger("edgeroute")


class Job(NamedTuple):
    """A job that waits."""

    run: Callable[[], object]
    room: Callable[[], bool]
    """Whether it may begin now; until then it waits, and those after it too."""


class Background:
    """Jobs that wait for their turn, each for one of the threads that `submit` has.

    Args:
        submit: runs a job in a thread, if one is available.
    """

    def __init__(self, submit: Callable[[Callable[[], object]], bool]) -> None:
        self._submit = submit
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child, which has no job in progress: those that wait are its parent's."""
        self._lock, self._running, self._held_up = threading.RLock(), 0, False
        self._idle = threading.Condition(self._lock)
        self._looks = 0
        """How often somebody has looked for what may be begun."""
        self._queue: deque[Job] = deque()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Number of jobs that are under way, or wait."""
        return self._running + len(self._queue)

    def put(self, job: Job) -> None:
        """Queues a job; `start` starts it."""
        self._queue.append(job)

    def start(self) -> None:
        """Starts as many of the jobs that wait as may be begun now."""
        with self._lock:
            self._looks += 1
        while self._queue:
            with self._lock:
                if not self._queue or self._running >= TOGETHER:
                    return
                one, looks = self._queue.popleft(), self._looks
                self._running += 1
            started = False
            try:
                started = one.room() and self._submit(lambda one=one: self._run(one))  # type: ignore[misc]
            finally:
                with self._lock:
                    self._held_up = not started
                    if not started:
                        self._running -= 1
                        self._queue.appendleft(one)
                        self._idle.notify_all()
            if not started and self._looks == looks:  # else somebody with news has looked while this one was not in the queue
                return

    def _run(self, one: Job) -> None:
        try:
            one.run()
        except Exception:
            log.exception("an audit failed; no answer is touched by it")
        finally:
            with self._lock:
                self._running -= 1
                self._idle.notify_all()
        self.start()

    def drain(self, timeout_s: float) -> None:
        """Waits for the jobs that can be begun now."""
        until = monotonic() + timeout_s
        with self._lock:
            while (self._running or (self._queue and not self._held_up)) and self._idle.wait(until - monotonic()):
                pass
