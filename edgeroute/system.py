"""What touches the machine: the time of day, threads, and what a forked child must not inherit."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol
from weakref import WeakSet

log = logging.getLogger("edgeroute")

if hasattr(time, "CLOCK_BOOTTIME"):

    def _elapsed() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # counts while the device sleeps, which monotonic does not
else:  # pragma: no cover - not on Linux
    _elapsed = time.monotonic

_OFFSET = time.time() - _elapsed()


def now() -> float:
    """Seconds since 1970 by the wall clock as it stood when the process began, and by elapsed time since.

    A clock that is set while the process runs, by hand or by a time server, ends no day, no hour and no time to live.
    """
    return _elapsed() + _OFFSET


class _Forkable(Protocol):
    def after_fork(self) -> None: ...


_known: WeakSet[_Forkable] = WeakSet()


def renew_after_fork(thing: _Forkable) -> None:
    """Has `thing.after_fork()` called in every child that this process forks."""
    _known.add(thing)


def _in_child() -> None:
    for thing in list(_known):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class AbandonedRuns:
    """Counts the runs of a target that go on after they were told to stop. Lock-free: adding and discarding are single steps.

    Args:
        most: how many of them make the target busy.
    """

    def __init__(self, most: int) -> None:
        self.stopping: set[object] = set()
        self.max_abandoned = most
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has none of its parent's runs."""
        self.stopping = set()

    @property
    def abandoned(self) -> int:
        """How many there are now."""
        return len(self.stopping)


Job = Callable[[], object]


class ThreadPool:
    """Daemon threads, up to a limit, for what must not hold up the caller.

    A job goes to a thread that is idle, or to a new one. It is never queued behind another, so no job can wait for one that
    waits for it: where no thread is to be had, `submit` says so. No lock is taken, so a signal handler may submit, and an
    exception out of one costs no thread for good. An executor's threads would be joined at exit; these are not.

    Args:
        name: of the threads.
        most: threads at once.
        idle_s: seconds without a job after which a thread ends.
    """

    def __init__(self, name: str, most: int, idle_s: float = 60.0) -> None:
        self._name, self._most, self._idle_s = name, most, idle_s
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Starts anew: a child has none of its parent's threads."""
        self._idle: dict[SimpleQueue[Job | None], None] = {}
        """The mailboxes of idle threads; a dict, since taking the last and removing one are single steps."""
        self._threads: set[threading.Thread] = set()

    def __len__(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    @property
    def idle(self) -> int:
        """How many of them have nothing to do."""
        return len(self._idle)

    def submit(self, job: Job) -> bool:
        """Runs the job in a thread, at once. -> False: it does not run, since no thread is free and no other can be had."""
        if self._closed:
            return False
        try:
            box, _ = self._idle.popitem()
        except KeyError:
            return self._start(job)
        box.put(job)
        return True

    def _start(self, job: Job) -> bool:
        threads = self._threads
        if len(threads) >= self._most:
            for thread in [t for t in threads.copy() if not t.is_alive()]:  # one whose start was interrupted
                threads.discard(thread)
            if len(threads) >= self._most:
                return False
        box: SimpleQueue[Job | None] = SimpleQueue()
        box.put(job)
        thread = threading.Thread(target=self._work, args=(box,), name=self._name, daemon=True)
        threads.add(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # the system has no more threads, or the interpreter ends
            threads.discard(thread)
            return False
        return True

    def _work(self, box: SimpleQueue[Job | None]) -> None:
        idle, missed = self._idle, 0
        try:
            while True:
                try:
                    job = box.get(timeout=self._idle_s)
                except Empty:
                    missed += 1
                    if idle.pop(box, self) is self and missed == 1:
                        continue  # a job was promised to this thread just now
                    return
                if job is None:
                    return
                missed = 0
                try:
                    job()
                except BaseException:
                    log.exception("a job of %s failed", self._name)
                del job  # not kept alive while idle
                idle[box] = None
                if self._closed and idle.pop(box, self) is not self:
                    return
        finally:
            self._threads.discard(threading.current_thread())

    def close(self, wait_s: float = 1.0) -> None:
        """Ends the threads; those still in a job end after it. Waits for the others, up to `wait_s` seconds in all."""
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
