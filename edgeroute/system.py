"""Operating system: time of day, threads, forks; and JSON with the fastest library installed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Protocol, TypeVar
from weakref import WeakSet

from edgeroute.core.texts import FOREIGN, OWN, printable, told, typed
from edgeroute.failures import Failures

log = logging.getLogger("edgeroute")
LINUX = sys.platform == "linux"
"""Whether the device's sensors and the network's changes can be read: elsewhere they are not."""
T = TypeVar("T")


class _CleanLog(logging.Filter):
    """Sanitises the log of all of edgeroute: arguments become printable text on one line, and tracebacks are indented.

    So no text of a server or a foreign exception can start a line of the log, or send escapes to a terminal.
    """

    _format = logging.Formatter().formatException

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(arg if isinstance(arg, int | float) else _argument(arg) for arg in record.args)
        if record.exc_info and not record.exc_text and record.exc_info[0] is not None:
            record.exc_text = printable(self._format(record.exc_info)).replace("\n", "\n  ")
        return True


def _argument(arg: object) -> str:
    return told(arg, FOREIGN if isinstance(arg, BaseException) else OWN)


log.addFilter(_CleanLog())
try:
    import orjson
except ImportError:  # pragma: no cover - one of the two is installed
    orjson = None  # type: ignore[assignment]

if sys.platform == "darwin":

    def _elapsed() -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC)  # there it counts while the device sleeps, and `monotonic` does not
elif sys.platform != "win32" and hasattr(time, "CLOCK_BOOTTIME"):

    def _elapsed() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # also counts while the device sleeps, unlike monotonic
else:
    _elapsed = time.monotonic  # of Windows it counts then, too

_OFFSET = time.time() - _elapsed()


def now() -> float:
    """Seconds since 1970: the wall clock when the process began, plus the time elapsed since.

    Setting the clock while the process runs, by hand or by NTP, therefore ends no spending window and no time to live.
    """
    return _elapsed() + _OFFSET


def clock() -> tuple[str, float]:
    """(id of this boot of the system, the instant at which it began by the clock of this process): compares clocks of processes.

    The id is empty where the system has none.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux, or no /proc
        boot = ""
    return boot, _OFFSET


def json_dumps(data: Any, default: Callable[[Any], Any] | None = None, *, arrays: bool = False) -> bytes:
    """Encodes compact JSON, with either library: NaN and infinities become null.

    Args:
        data: may contain integers of more than 64 bits and unpaired surrogates.
        default: converts a value of another type to one that is written instead.
        arrays: writes flat numpy arrays as lists if the library can; otherwise they go to `default`.

    Raises:
        TypeError: a value has a type that JSON lacks.
    """
    if orjson is not None:
        try:
            return orjson.dumps(data, default, orjson.OPT_SERIALIZE_NUMPY if arrays else None)
        except TypeError:  # Python's encoder may accept it; `suppress` would double the time
            pass
    try:
        return json.dumps(data, default=default, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(plain(data), separators=(",", ":")).encode()


def json_loads(text: bytes | memoryview, *, exact: bool = False) -> Any:
    """Decodes a JSON text in UTF-8.

    Args:
        text: Python's extensions NaN and Infinity are rejected, with either library.
        exact: preserves integers of more than 64 bits and unpaired surrogates; may take twice as long.

    Raises:
        ValueError: not JSON.
        RecursionError: nested too deeply.
    """
    if orjson is None or exact:
        return _DECODER.decode(str(text, "utf-8"))
    return orjson.loads(text)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number there")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def plain(value: Any) -> Any:
    """Converts a value to JSON types: numpy's to Python's, NaN and infinities to None, anything unknown to text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    listed = value.tolist() if hasattr(value, "tolist") else value  # numpy values, without importing numpy
    return str(value) if type(listed) is type(value) else plain(listed)


class _Forkable(Protocol):
    def after_fork(self) -> None: ...


_known: WeakSet[_Forkable] = WeakSet()


def renew_after_fork(thing: _Forkable) -> None:
    """Registers `thing.after_fork()` to be called in every forked child."""
    _known.add(thing)


def _in_child() -> None:
    for thing in list(_known):
        with contextlib.suppress(AttributeError):  # half constructed, by a thread that the child lacks: nobody will use it
            thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class AbandonedRuns:
    """Counts abandoned runs of a target: told to stop, but still running. Lock-free: adding and discarding are atomic.

    Args:
        most: the number at which the target counts as busy.
    """

    def __init__(self, most: int) -> None:
        self.stopping: set[object] = set()
        self.max_abandoned = most
        self.failures = Failures()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has none of its parent's runs."""
        self.stopping = set()

    @property
    def abandoned(self) -> int:
        """The number of abandoned runs now."""
        return len(self.stopping)


class NoException(RuntimeError):
    """A function of the application raised what no `except Exception` catches, such as SystemExit."""


def contained(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function of the application. What it raises is an `Exception`; but Ctrl-C (KeyboardInterrupt) passes.

    Raises:
        NoException: in place of SystemExit, GeneratorExit and the like; in a pool's thread, where there is no Ctrl-C, also of
            KeyboardInterrupt.
    """
    try:
        return function(*arguments)
    except Exception:
        raise
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt) and not hasattr(_pooled, "thread"):
            raise
        raise NoException(f"{typed(e)}{f': {said}' if (said := told(e)) else ''}") from e


def cancelled(error: BaseException) -> bool:
    """Whether it is the cancellation of the task that runs here, and not what a function of the application raised itself.

    Before Python 3.11, which does not tell, a `CancelledError` always counts as the task's.
    """
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is None or not hasattr(task, "cancelling") or task.cancelling() > 0


def replace_file(path: Path, text: str) -> None:
    """Writes a file as UTF-8, replacing it atomically, a link's target too. What is no file, a device or a pipe, is written to.

    The permissions of a file that was there stay.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = Path(os.path.realpath(path))
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    if path.exists():
        new.chmod(path.stat().st_mode & 0o777)
    new.replace(path)


_pooled = threading.local()
"""Has `thread` in the threads of a `ThreadPool`."""
Job = Callable[[], object]
MOST_WAITING = 10_000
"""Most jobs that wait for a thread of a pool."""


def _nothing() -> None:
    """A job that makes a thread look for those that wait."""


class ThreadPool:
    """Daemon threads up to a limit.

    A job goes to an idle thread, or to a new one. `submit` never queues it behind another, so no job can wait for one that
    waits for it: if no thread is available, it returns False; `submit_later` queues what nobody waits for. No lock is taken, so a
    signal handler may submit, and an exception raised by one costs no thread for good. An executor's threads would be joined at
    exit; these are not.

    Args:
        name: of the threads.
        most: maximum number of threads.
        idle_s: seconds without a job after which a thread ends.
    """

    def __init__(self, name: str, most: int, idle_s: float = 60.0) -> None:
        self._name, self._most, self._idle_s = name, most, idle_s
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Starts empty: a child has none of its parent's threads."""
        self._idle: dict[SimpleQueue[Job | None], None] = {}
        """Mailboxes of idle threads; a dict, since `popitem` and removing one are atomic."""
        self._threads: set[threading.Thread] = set()
        self._waiting: deque[Job] = deque()

    def __len__(self) -> int:
        """The number of threads."""
        return len(self._threads)

    @property
    def idle(self) -> int:
        """The number of idle threads."""
        return len(self._idle)

    def submit(self, job: Job) -> bool:
        """Runs the job in a thread at once. Returns False if it does not run: no thread is idle, and no other can be started."""
        if self._closed:
            return False
        try:
            box, _ = self._idle.popitem()
        except KeyError:
            return self._start(job)
        box.put(job)
        return True

    def submit_later(self, job: Job) -> bool:
        """Runs the job as soon as a thread is free. Returns False if there is no thread at all, or `MOST_WAITING` jobs wait."""
        if self.submit(job):
            return True
        if self._closed or not self._threads or len(self._waiting) >= MOST_WAITING:
            return False
        self._waiting.append(job)
        with contextlib.suppress(KeyError):  # one that became idle meanwhile may have looked too early
            self._idle.popitem()[0].put(_nothing)
        return True

    def _start(self, job: Job) -> bool:
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
        idle, missed = self._idle, 0
        _pooled.thread = True
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
        try:
            return self._waiting.popleft()
        except IndexError:  # another thread was faster
            return _nothing

    def close(self, wait_s: float = 1.0) -> None:
        """Ends the threads, a busy one after its job and those that wait. Waits for idle ones, up to `wait_s` seconds in all."""
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
