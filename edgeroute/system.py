"""What touches the machine: the time of day, threads, and what a forked child must not inherit."""

from __future__ import annotations

import contextlib
import logging  # noqa: F401 - see below
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol
from weakref import WeakSet

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


class _Importing:
    """Held around an import that is made late, in a leg: a fork waits for it.

    A child would wait for ever for a module that a thread of its parent's was importing: Python renews no module's lock.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Waits, though not for an import that hangs."""
        self._lock.acquire(timeout=10.0)

    def in_parent(self) -> None:
        """Goes on."""
        with contextlib.suppress(RuntimeError):  # it was not waited for
            self._lock.release()

    def in_child(self) -> None:
        """Goes on."""
        try:
            self._lock.release()
        except RuntimeError:
            self._lock = threading.RLock()


importing = _Importing()

if hasattr(os, "register_at_fork"):
    # what is registered last comes first before a fork: `logging` takes its lock there, which an import may need
    os.register_at_fork(before=importing.before_fork, after_in_parent=importing.in_parent, after_in_child=importing.in_child)
    os.register_at_fork(after_in_child=_in_child)


Job = Callable[[], None]
MOST = 32
"""Threads at once; further jobs wait for one."""


class Workers:
    """A pool that grows with need, and shrinks by threads that had nothing to do for `idle_s` seconds. A job must not raise."""

    def __init__(self, name: str = "edgeroute", idle_s: float = 60.0) -> None:
        self._name, self._idle_s = name, idle_s
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Starts anew: a child has none of its parent's threads."""
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = 0
        self._threads: set[threading.Thread] = set()

    def submit(self, job: Job) -> None:
        """Runs the job in a thread, soon."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < MOST:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._threads.add(thread)
                thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_s)
            except Empty:
                with self._lock:
                    if not self._idle:
                        continue  # a job was promised to this thread just now
                    self._idle -= 1
                    self._threads.discard(threading.current_thread())
                    return
            if job is None:
                return
            job()
            del job  # not kept alive while idle
            with self._lock:
                self._idle += 1

    def close(self, wait_s: float = 1.0) -> None:
        """Ends the threads; those still in a job end after it. Waits for the others, up to `wait_s` seconds in all."""
        with self._lock:
            threads, self._threads, self._idle = self._threads, set(), 0
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(wait_s / len(threads))
