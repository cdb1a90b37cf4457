"""Threads beside the calls: `Worker` calls a function again and again until it is closed, `start_thread` calls one once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from weakref import WeakSet

from edgeroute.core.error_codes import error_text
from edgeroute.errors import EdgerouteError
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.process import list_weakset
from edgeroute.system.safe_logging import call_logged

log = logging.getLogger("edgeroute")
_workers: WeakSet[Worker] = WeakSet()


def failing() -> list[str]:
    """Return the names of the workers of this process whose last turn failed, or that have no thread, sorted."""
    return sorted({worker.name for worker in list_weakset(_workers) if worker.error and not worker.closed})


def start_thread(name: str, job: Callable[..., object], *arguments: object) -> threading.Thread | None:
    """Call `job` in a new daemon thread, and return the thread; whatever the job raises is logged.

    None: the system has no more threads, or the interpreter ends.
    """
    thread = threading.Thread(target=call_logged, args=(partial(job, *arguments), "%s failed", name), name=name, daemon=True)
    return thread if _begin(thread) else None


def _begin(thread: threading.Thread) -> bool:
    """Start the thread. Return False if there is none to be had."""
    try:
        thread.start()
    except (RuntimeError, MemoryError):  # no more threads, or the interpreter ends
        return False
    return True


class Worker(ForkSafe):
    """Daemon thread that calls `turn` again and again until `close`.

    Whatever a turn raises, SystemExit and a panic of an extension too, is logged, once per text, and the next turn follows. A
    forked child has no thread until its next `start` or `nudge`.

    Args:
        name: of the thread.
        turn: returns the seconds until the next turn; None ends the thread until the next `start`.
        message: start of the log line of a turn that failed.
        first_s: seconds before the first turn of a thread.
        retry_s: seconds after a turn that failed.

    Attributes:
        error: text of the last turn's exception; empty if the turn ended well.
    """

    _changed = per_process(threading.Condition)  # on a lock that its owner may take again: a signal handler may nudge
    _nudged, _wanted = initially(False), initially(False)
    _thread: threading.Thread | None = initially(None)

    def __init__(
        self, name: str, turn: Callable[[], float | None], message: str, *, first_s: float = 0.0, retry_s: float = 1.0
    ) -> None:
        self.name, self._turn, self._message, self._first_s, self.retry_s = name, turn, message, first_s, retry_s
        self._begun, self.closed, self.error = False, False, ""
        _workers.add(self)

    @property
    def alive(self) -> bool:
        """True if there is a thread."""
        return self._thread is not None

    def start(self) -> bool:
        """Start the thread, unless it runs. Return False without one: after `close`, or if the system has no more threads."""
        with self._changed:
            self._begun = self._wanted = True
            if self._thread is None and not self.closed:
                self._thread = thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                if not _begin(thread):  # set before: its start may be interrupted
                    self._thread = None
                    self._report("there is no thread for it")
            return self._thread is not None and not self.closed

    def nudge(self) -> None:
        """Have the next turn at once; also start the thread if it was started before, as in a forked child."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()
            if self._begun:
                self.start()

    def close(self, wait_s: float | None = None) -> None:
        """End the thread after the present turn, and wait for it up to `wait_s` seconds; None: as long as it takes.

        No wait if called from that thread. No thread starts any more.
        """
        with self._changed:
            self.closed, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait_s)

    def _run(self) -> None:
        """Call `turn` until it returns None, or the worker is closed."""
        pause: float | None = self._first_s
        while True:
            with self._changed:
                if pause is None and not self._wanted and not self._nudged:
                    self._thread = None
                    return
                pause = self._first_s if pause is None else min(pause, threading.TIMEOUT_MAX)
                self._changed.wait_for(lambda: self._nudged or self.closed, pause)
                self._nudged = self._wanted = False
                if self.closed:
                    return
            pause = self.retry_s
            try:
                pause = self._turn()
                self.error = ""
            except BaseException as e:  # noqa: BLE001 - nobody else would report it, and the next turn may go well
                self._report(error_text(e), None if isinstance(e, EdgerouteError | OSError) else e)

    def _report(self, error: str, unexpected: BaseException | None = None) -> None:
        """Log an error, unless it is the last one: a full disk may last."""
        if error != self.error:
            self.error = error
            log.log(logging.ERROR if unexpected else logging.WARNING, "%s: %s", self._message, error, exc_info=unexpected)
