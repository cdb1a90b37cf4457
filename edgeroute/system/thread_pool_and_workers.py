"""Pool of daemon threads in which no job waits behind another; workers, which run one job again and again; single threads."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from weakref import WeakSet

from edgeroute.core.error_codes_and_texts import error_text
from edgeroute.errors import EdgerouteError
from edgeroute.system.contained_calls_and_tasks import pooled
from edgeroute.system.fork_safety import ForkSafe, initially, list_weakset, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import call_logged, log
from edgeroute.system.signal_safe_locks import SafeCondition

Job = Callable[[], object]  # function without arguments; its result is ignored
MOST_WAITING = 10_000  # most jobs of a pool that may wait for a thread
# How long Python's exit waits for jobs that may be in native code, seconds.
#
# A thread that comes back from native code after that aborts the process (up to Python 3.13).
EXIT_S = 5.0
_native: WeakSet[ThreadPool] = WeakSet()  # pools whose jobs run native code
_ending = sys.is_finalizing  # True once Python's exit has ended all daemon threads


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

    Attributes:
        idle: mailboxes of idle threads; a dict, since `popitem` and removing one are atomic.
        waiting: jobs that wait for a thread.
    """

    idle: dict[SimpleQueue[Job | None], None] = per_process(dict)
    _threads: set[threading.Thread] = per_process(set)
    waiting: deque[Job] = per_process(deque)

    def __init__(self, name: str, most: int, idle_s: float = 60.0, *, native: bool = False) -> None:
        self._name, self._most, self._idle_s = name, most, idle_s
        if native:
            _native.add(self)
        self._closed = False

    def __len__(self) -> int:
        """Return the number of threads."""
        return len(self._threads)

    def submit(self, job: Job) -> bool:
        """Run the job in a thread at once, and return True; return False, without running it, if no thread is free.

        That is so after `close`, or if no thread is idle and no other can be started. Does not wait. Exceptions of the job are
        logged.
        """
        if self._closed or _ending():  # whose idle threads have ended
            return False
        try:
            box, _ = self.idle.popitem()
        except KeyError:
            return self._start(job)
        box.put(job)
        return True

    def submit_later(self, job: Job) -> bool:
        """Run the job as soon as a thread is free, and return True; does not wait for that.

        Return False, and drop it, if the pool is closed, has no thread at all, or `MOST_WAITING` jobs wait.
        """
        if self.submit(job):
            return True
        if self._closed or not self._threads or len(self.waiting) >= MOST_WAITING:
            return False
        self.waiting.append(job)
        with contextlib.suppress(KeyError):  # one that became idle meanwhile may have looked too early
            self.idle.popitem()[0].put(_nothing)
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
        threads.add(thread)  # before its start, which may be interrupted
        if _begin(thread):
            return True
        threads.discard(thread)
        return False

    def _work(self, box: SimpleQueue[Job | None]) -> None:
        """Run the mailbox's jobs, then waiting ones, in a loop; this is a thread of the pool. Without a job the mailbox is idle.

        Ends if the pool closes, or `idle_s` seconds pass without a job. Exceptions of jobs are logged.
        """
        idle, missed = self.idle, 0
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
                    if not self.waiting:
                        return
                    job = self._next()
                missed = 0
                try:
                    job()
                except BaseException:
                    log.exception("a job of %s failed", self._name)
                del job  # not kept alive while idle
                idle[box] = None
                if self.waiting and idle.pop(box, self) is not self:  # else a job was assigned to this thread just now
                    box.put(self._next())
                elif self._closed and idle.pop(box, self) is not self:
                    return
        finally:
            self._threads.discard(threading.current_thread())

    def _next(self) -> Job:
        """Take the next waiting job from the queue; a job without effect if another thread has taken it."""
        try:
            return self.waiting.popleft()
        except IndexError:  # another thread was faster
            return _nothing

    def close(self, wait_s: float = 1.0) -> None:
        """End the threads: idle ones at once, a busy one after its job and the waiting ones. Later jobs are refused.

        Waits for the threads; does not raise if some have not ended.

        Args:
            wait_s: longest wait for the threads to end, seconds in all.
        """
        self._closed = True
        threads = list(self._threads)
        with contextlib.suppress(KeyError):
            while True:
                self.idle.popitem()[0].put(None)
        until = time.monotonic() + wait_s
        for thread in threads:
            with contextlib.suppress(RuntimeError):  # not started yet, or this one
                thread.join(max(0.0, until - time.monotonic()))


def await_native() -> None:
    """Close the pools with native jobs at Python's exit, and wait for their threads up to `EXIT_S` seconds in all.

    Ctrl-C ends the wait.
    """
    until = time.monotonic() + EXIT_S
    with contextlib.suppress(KeyboardInterrupt):  # whoever does not want to wait
        for pool in list_weakset(_native):
            pool.close(max(0.0, until - time.monotonic()))


if sys.version_info < (3, 14):  # from then on such a thread stands still
    atexit.register(await_native)


# Threads beside the calls: `Worker` calls a function again and again until it is closed, `start_thread` calls one once.

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
    if _ending():  # Python before 3.12 would wait for it
        return False
    try:
        thread.start()
    except (RuntimeError, MemoryError):  # no more threads, or the interpreter ends
        return False
    return True


class Worker(ForkSafe):
    """Daemon thread that calls `turn` again and again until `close`.

    Whatever a turn raises, SystemExit and a panic of an extension too, is logged, once per text, and the next turn follows. A
    forked child has no thread until its next `start` or `nudge`. While the interpreter ends nothing is done: the thread has
    ended, perhaps with the lock.

    Args:
        name: of the thread.
        turn: returns the seconds until the next turn; None ends the thread until the next `start`.
        message: start of the log line of a turn that failed.
        first_s: seconds before the first turn of a thread.
        retry_s: seconds after a turn that failed.

    Attributes:
        error: text of the last turn's exception; empty if the turn ended well.
    """

    _changed = per_process(SafeCondition)  # on a lock that its owner may take again: a signal handler may nudge
    _nudged, _wanted, _last = initially(False), initially(False), initially(False)
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
        """Start the thread, unless it runs; one that is ending goes on. Return True if there is a thread.

        False after `close`, or if the system has no more threads, which is logged.
        """
        if _ending():
            return False
        with self._changed:
            self._begun = self._wanted = True
            if self._thread is None and not self.closed:
                self._thread = thread = threading.Thread(target=self._run_turns, name=self.name, daemon=True)
                if not _begin(thread):  # set before: its start may be interrupted
                    self._thread = None
                    self._report("there is no thread for it")
            return self._thread is not None and not self.closed

    def nudge(self) -> None:
        """Have the next turn at once; also start the thread if it was started before, as in a forked child."""
        if _ending():
            return
        with self._changed:
            self._nudged = True
            self._changed.notify_all()
            if self._begun:
                self.start()

    def close(self, wait_s: float | None = None, *, last: bool = False) -> None:
        """End the thread after the present turn, and wait for it up to `wait_s` seconds; None: as long as it takes.

        No wait if called from that thread. No thread starts any more. last: True: after one more turn.
        """
        if _ending():
            return
        with self._changed:
            self.closed, self._last, thread = True, last, self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait_s)

    def _run_turns(self) -> None:
        """Call `turn` repeatedly in this thread, until `close`, or until it returns None and nobody calls `start` or `nudge`.

        Waits `first_s` before the first turn, then as long as the last turn returned, or `retry_s` after one that raised,
        which is logged. A nudge ends the wait.
        """
        pause: float | None = self._first_s
        while True:
            with self._changed:
                if pause is None and not self._wanted and not self._nudged:
                    self._thread = None
                    return
                pause = self._first_s if pause is None else min(float(pause), threading.TIMEOUT_MAX)  # not of numpy
                self._changed.wait_for(lambda: self._nudged or self.closed, pause)
                self._nudged = self._wanted = False
                if self.closed and not self._last:
                    return
                self._last = False
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
