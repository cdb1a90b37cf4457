"""Threads for legs that must not hold up the caller. Daemons: an executor's threads would be joined at exit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from edgeroute.fork import renew_after_fork

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
