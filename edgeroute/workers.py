"""Threads for legs that must not hold up the caller. Daemons: an executor's threads would be joined at exit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from edgeroute.fork import renew_after_fork

Job = Callable[[], None]
MOST = 32
"""Threads at once; further jobs wait for one."""


class Workers:
    """A pool that grows with need. A job must not raise."""

    def __init__(self, name: str = "edgeroute") -> None:
        self._name = name
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
        while (job := self._jobs.get()) is not None:
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
