"""What touches the machine: time of day, files, threads, what a forked child must not inherit; JSON by what is installed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

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
        thing.after_fork()


if hasattr(os, "register_at_fork"):
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
