"""A thread that works while its process has the place, which the system gives to one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from edgeroute.system import renew_after_fork

log = logging.getLogger("edgeroute")


class Loop:
    """Calls `step()` again and again, each time after as many seconds as the last one said, or at once when nudged.

    Args:
        name: of the thread.
        place: a file; whoever has it locked has the place. `kill -9` gives it up like any other end of the process.
        step: what it raises is logged.
        poll_s: seconds after which it looks in any case: for what other processes did, and for the place.
        busy: whether the place must not be given up yet, though this was closed.
    """

    def __init__(
        self, name: str, place: Path, step: Callable[[], float], *, poll_s: float, busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._name, self._place, self._step, self._poll_s, self._busy = name, place, step, poll_s, busy
        self._begun = self._closed = False
        self._fd: int | None = None
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The place is the parent's: its descriptor is closed here, and locked as long as the parent has it."""
        self._leave()
        self._changed = threading.Condition()
        self._nudged, self._said = False, ""
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def start(self) -> None:
        """Begins, if it has not."""
        self._begun = True
        self.nudge()

    def nudge(self) -> None:
        """Has it look now. In a child of the process that began it, this begins it there."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()
            if self._begun and not self._closed and self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter ends: the next nudge tries again
                    thread.start()
                    self._thread = thread

    def close(self, wait_s: float = 1.0) -> None:
        """Ends it, after the step under way and once it is not busy; waits for that, up to `wait_s` seconds."""
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
            pause = self._poll_s
            try:
                if self._take():
                    pause = min(pause, self._step())
                self._said = ""
            except Exception as e:
                if (said := str(e)) != self._said:  # a disk that stays full is news once
                    self._said = said
                    log.warning("the outbox waits: %s", said, exc_info=not isinstance(e, OSError))
        with self._changed:
            self._changed.wait_for(lambda: not self._busy())
        self._leave()

    def _take(self) -> bool:
        if self._fd is not None:
            return True
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._leave()
            return False
        return True

    def _leave(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
