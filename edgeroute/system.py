"""What touches the machine: time of day, files, threads, what a forked child must not inherit; JSON by what is installed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

log = logging.getLogger("edgeroute")
try:
    import orjson
except ImportError:  # pragma: no cover - one of the two is there
    orjson = None  # type: ignore[assignment]

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


def file_stamp(path: Path) -> tuple[int, int] | None:
    """The file's time of change and its size, which differ once it was written anew; None: there is none to be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def json_dumps(data: Any, default: Callable[[Any], Any] | None = None, *, arrays: bool = False) -> bytes:
    """Compact JSON, with either library: NaN and infinities, for which it has no words, become null.

    Args:
        data: integers of more than 64 bits and halves of surrogate pairs may be in it.
        default: what it makes of a value of another type is written instead.
        arrays: flat numpy arrays are written as they are, as lists, where the library can, and else go to `default`.

    Raises:
        TypeError: a value is of no type that JSON has.
    """
    if orjson is not None:
        try:
            return orjson.dumps(data, default, orjson.OPT_SERIALIZE_NUMPY if arrays else None)
        except TypeError:  # what it does not take, Python's own may; `suppress` would double the time
            pass
    try:
        return json.dumps(data, default=default, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(plain(data), separators=(",", ":")).encode()


def json_loads(text: bytes | memoryview, *, exact: bool = False) -> Any:
    """What a JSON text in UTF-8 says.

    Args:
        text: of Python's own words, NaN and Infinity, none is taken for a number, with either library.
        exact: integers of more than 64 bits stay integers, halves of surrogate pairs what they are; it may take twice as long.

    Raises:
        ValueError: that is no JSON.
        RecursionError: it is too deep.
    """
    if orjson is None or exact:
        return _DECODER.decode(str(text, "utf-8"))
    return orjson.loads(text)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number there")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def plain(value: Any) -> Any:
    """The value in JSON's own types: numpy's become Python's, NaN and infinities None, and what has no counterpart text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    listed = value.tolist() if hasattr(value, "tolist") else value  # numpy's, without importing it
    return str(value) if type(listed) is type(value) else plain(listed)


class _Forkable(Protocol):
    def after_fork(self) -> None: ...


_known: WeakSet[_Forkable] = WeakSet()


def renew_after_fork(thing: _Forkable) -> None:
    """Has `thing.after_fork()` called in every child that this process forks."""
    _known.add(thing)


def _in_child() -> None:
    for thing in list(_known):
        with contextlib.suppress(AttributeError):  # half made, by a thread that is not here: nobody will use it
            thing.after_fork()


class _NoFork:
    """Held around what a leg imports late, or makes in a native library: a fork waits for it.

    A child would wait for ever for a module that a thread of its parent's was importing, or for a native lock that it held:
    nobody renews those.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Waits, though not for what hangs."""
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


no_fork = _NoFork()

if hasattr(os, "register_at_fork"):
    # what is registered last comes first before a fork: `logging` takes its lock there, which an import may need
    os.register_at_fork(before=no_fork.before_fork, after_in_parent=no_fork.in_parent, after_in_child=no_fork.in_child)
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
