"""Background thread with leader election: it works while its process holds a lock, which one process has at a time."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from edgeroute.stores.locks import ProcessLock
from edgeroute.system import renew_after_fork

log = logging.getLogger("edgeroute")


class Loop:
    """Calls `step()` repeatedly, after as many seconds as the last call returned, or at once when nudged.

    Args:
        name: of the thread.
        place: lock file. The system releases the lock when the process ends, `kill -9` included.
        step: returns seconds until the next call; exceptions are logged.
        poll_s: maximum seconds between calls, to notice other processes' writes and to take over the lock.
        busy: whether the lock must still be held after `close()`.
    """

    def __init__(
        self, name: str, place: Path, step: Callable[[], float], *, poll_s: float, busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._name, self.lock, self._step, self.poll_s, self._busy = name, ProcessLock(place), step, poll_s, busy
        self._begun = self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Closes the inherited descriptor: the lock stays with the parent."""
        self.lock.leave()
        self._changed = threading.Condition()
        self._nudged, self._said = False, ""
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def start(self) -> None:
        """Starts the thread, if not started."""
        self._begun = True
        self.nudge()

    def nudge(self) -> None:
        """Runs the next step at once. In a forked child, starts the thread there."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()
            if self._begun and not self._closed and self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter ends: the next nudge tries again
                    thread.start()
                    self._thread = thread

    def close(self, wait_s: float = 1.0) -> None:
        """Ends the thread after the current step, once not busy; waits up to `wait_s` seconds."""
        with self._changed:
            self._closed, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait_s)

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._nudged or self._closed, pause)
                self._nudged = False
                if self._closed:
                    break
            pause = self.poll_s
            try:
                if self.lock.take():
                    pause = min(pause, self._step())
                self._said = ""
            except Exception as e:
                if (said := str(e)) != self._said:  # log a lasting error, such as a full disk, once
                    self._said = said
                    log.warning("the outbox waits: %s", said, exc_info=not isinstance(e, OSError))
        with self._changed:
            self._changed.wait_for(lambda: not self._busy())
        self.lock.leave()
