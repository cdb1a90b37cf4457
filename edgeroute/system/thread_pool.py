"""Pool of daemon threads in which a job never waits behind another one."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from weakref import WeakSet

from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.system.process import list_weakset, pooled

log = logging.getLogger("edgeroute")
Job = Callable[[], object]
"""Function without arguments; its result is ignored."""
MOST_WAITING = 10_000
"""Most jobs of a pool that may wait for a thread."""
EXIT_S = 5.0
"""How long Python's exit waits for jobs that may be in native code, seconds.

A thread that comes back from native code after that aborts the process (up to Python 3.13).
"""
_native: WeakSet[ThreadPool] = WeakSet()
"""Pools whose jobs run native code."""


def _nothing() -> None:
    """Do nothing: as a job, this makes an idle thread look at the queue."""


class ThreadPool(ForkSafe):
    """Pool of daemon threads, up to a limit, which are started as needed and end when idle.

    A job goes to an idle thread, or to a new one. `submit` never queues a job behind another, so no job can wait for a job that
    waits for it: if no thread is available, it returns False. `submit_later` queues jobs that nobody waits for. No lock is taken,
    so a signal handler may submit, and an exception raised by a signal handler does not lose a thread. Unlike an executor's,
    these threads are not joined at exit.

    Args:
        name: of the threads.
        most: maximum number of threads.
        idle_s: seconds without a job after which a thread ends.
        native: the jobs run native code, such as models: Python's exit waits for them, up to `EXIT_S`.
    """

    _idle: dict[SimpleQueue[Job | None], None] = per_process(dict)
    """Mailboxes of idle threads; a dict, since `popitem` and removing one are atomic."""
    _threads: set[threading.Thread] = per_process(set)
    _waiting: deque[Job] = per_process(deque)

    def __init__(self, name: str, most: int, idle_s: float = 60.0, *, native: bool = False) -> None:
        self._name, self._most, self._idle_s = name, most, idle_s
        if native:
            _native.add(self)
        self._closed = False

    def __len__(self) -> int:
        """Return the number of threads."""
        return len(self._threads)

    @property
    def idle(self) -> int:
        """Number of idle threads."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a thread."""
        return len(self._waiting)

    def submit(self, job: Job) -> bool:
        """Run the job in a thread at once; return False, and do not run it, if no thread is idle and no other can be started.

        Exceptions of the job are logged.
        """
        if self._closed:
            return False
        try:
            box, _ = self._idle.popitem()
        except KeyError:
            return self._start(job)
        box.put(job)
        return True

    def submit_later(self, job: Job) -> bool:
        """Run the job as soon as a thread is free, or return False and drop it.

        It is dropped if the pool is closed, has no thread at all, or `MOST_WAITING` jobs wait.
        """
        if self.submit(job):
            return True
        if self._closed or not self._threads or len(self._waiting) >= MOST_WAITING:
            return False
        self._waiting.append(job)
        with contextlib.suppress(KeyError):  # one that became idle meanwhile may have looked too early
            self._idle.popitem()[0].put(_nothing)
        return True

    def _start(self, job: Job) -> bool:
        """Start a thread with this first job; return False if the limit is reached or the system has no more threads."""
        threads = self._threads
        if len(threads) >= self._most:
            for thread in [t for t in threads.copy() if not t.is_alive()]:  # a thread whose start was interrupted
                threads.discard(thread)
            if len(threads) >= self._most:
                return False
        box: SimpleQueue[Job | None] = SimpleQueue()
        box.put(job)
        thread = threading.Thread(target=self._work, args=(box,), name=self._name, daemon=True)
        threads.add(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # the system has no more threads, or the interpreter is shutting down
            threads.discard(thread)
            return False
        return True

    def _work(self, box: SimpleQueue[Job | None]) -> None:
        """Run the mailbox's jobs, then waiting ones, in a loop, until the pool closes or `idle_s` seconds pass without a job.

        Exceptions of jobs are logged.
        """
        idle, missed = self._idle, 0
        pooled.thread = True
        try:
            while True:
                try:
                    job = box.get(timeout=self._idle_s)
                except Empty:
                    missed += 1
                    if idle.pop(box, self) is self and missed == 1:
                        continue  # a job was assigned to this thread just now
                    return
                if job is None:
                    if not self._waiting:
                        return
                    job = self._next()
                missed = 0
                try:
                    job()
                except BaseException:
                    log.exception("a job of %s failed", self._name)
                del job  # not kept alive while idle
                idle[box] = None
                if self._waiting and idle.pop(box, self) is not self:  # else a job was assigned to this thread just now
                    box.put(self._next())
                elif self._closed and idle.pop(box, self) is not self:
                    return
        finally:
            self._threads.discard(threading.current_thread())

    def _next(self) -> Job:
        """Take the next waiting job from the queue; a job without effect if another thread has taken it."""
        try:
            return self._waiting.popleft()
        except IndexError:  # another thread was faster
            return _nothing

    def close(self, wait_s: float = 1.0) -> None:
        """End the threads: idle ones at once, a busy one after its job and the waiting ones. Later jobs are refused.

        Args:
            wait_s: longest wait for the threads to end, seconds in all.
        """
        self._closed = True
        threads = list(self._threads)
        with contextlib.suppress(KeyError):
            while True:
                self._idle.popitem()[0].put(None)
        until = time.monotonic() + wait_s
        for thread in threads:
            if thread is not threading.current_thread():
                with contextlib.suppress(RuntimeError):  # not started yet
                    thread.join(max(0.0, until - time.monotonic()))


def _await_native() -> None:
    """Close the pools with native jobs at Python's exit, and wait for their threads up to `EXIT_S` seconds in all.

    Ctrl-C ends the wait.
    """
    until = time.monotonic() + EXIT_S
    with contextlib.suppress(KeyboardInterrupt):  # whoever does not want to wait
        for pool in list_weakset(_native):
            pool.close(max(0.0, until - time.monotonic()))


if sys.version_info < (3, 14):  # from then on such a thread stands still
    atexit.register(_await_native)
