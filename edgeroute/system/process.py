"""Operating system: time of day, forks, what runs and was left; JSON by the fastest library installed; values as short text."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping
from math import inf, isfinite
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar
from weakref import WeakSet, WeakValueDictionary

from edgeroute.core.words import told, typed
from edgeroute.system.logs import Failures

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("edgeroute")
LINUX = sys.platform == "linux"
"""Whether the device's sensors and the network's changes can be read: elsewhere they are not."""
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

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
    wrong: list[Exception] = []
    for thing in list(_known):
        try:
            thing.after_fork()
        except Exception as e:  # noqa: BLE001, PERF203 - whatever it is, the others are renewed first
            if not isinstance(e, AttributeError):  # else half constructed, by a thread that the child lacks: nobody will use it
                wrong.append(e)
    if wrong:
        raise wrong[0]  # Python prints it, and the child goes on


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def alive(things: WeakSet[T]) -> list[T]:
    """Those that are in it now. Python's own iteration fails where another thread adds one meanwhile."""
    while True:
        try:
            return list(things)
        except RuntimeError:  # noqa: PERF203 - it has changed: again
            continue


class Shared(Generic[K, T]):
    """Objects by key, while somebody holds them. Threads that make one at once share the first.

    The `setdefault` of a `WeakValueDictionary` may return each its own.
    """

    def __init__(self) -> None:
        self._held: WeakValueDictionary[K, T] = WeakValueDictionary()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A lock that no thread of the parent holds."""
        self._lock = threading.RLock()

    def get(self, key: K) -> T | None:
        """The object; None: nobody holds one."""
        return self._held.get(key)

    def first(self, key: K, made: T) -> T:
        """The object, which is the given one if nobody holds another."""
        with self._lock:
            return self._held.setdefault(key, made)

    def put(self, key: K, made: T) -> None:
        """Replaces it."""
        self._held[key] = made


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


pooled = threading.local()
"""Has `thread` in the threads of a `ThreadPool`."""


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
        if isinstance(e, KeyboardInterrupt) and not hasattr(pooled, "thread"):
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


async def limited(left_s: float, steps: Coroutine[Any, Any, T]) -> T:
    """Awaits the steps for that long. Cancelling it cancels them, also just as they end (`asyncio.wait_for` before 3.12 may not).

    Raises:
        TimeoutError: they are not over by then (`asyncio.TimeoutError`, which is another before Python 3.11).
    """
    import asyncio  # costs a quarter of the time that `import edgeroute` takes

    if left_s == inf:
        return await steps
    if sys.version_info >= (3, 11):
        async with asyncio.timeout(left_s):
            return await steps
    task = asyncio.ensure_future(steps)
    try:
        await asyncio.wait([task], timeout=left_s)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        if task.cancel():
            await asyncio.wait([task])  # it cleans up before its caller does
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn


def begin_on(loop: asyncio.AbstractEventLoop, steps: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Has a coroutine run as a task of that loop, from any thread; where the loop has ended, none is made."""

    def begin() -> None:
        task = loop.create_task(steps())
        _begun.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[object]) -> None:
        _begun.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn

    with contextlib.suppress(RuntimeError):  # it has just been closed
        loop.call_soon_threadsafe(begin)


_begun: set[asyncio.Task[object]] = set()
"""Tasks that nobody waits for: an event loop refers to them weakly."""


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


class _Short(Repr):
    """Formats a value on few characters: arrays and tensors as dtype and shape."""

    def repr_instance(self, x: Any, level: int) -> str:
        dtype, shape = getattr(x, "dtype", None), getattr(x, "shape", None)
        if dtype is not None and shape:
            return f"{dtype} [{', '.join(map(str, shape))}]"
        if isinstance(x, bytes | bytearray) and len(x) > self.maxstring:
            return f"{bytes(x[: self.maxstring // 2])!r}... ({len(x):,} bytes)"
        return super().repr_instance(x, level)


short = _Short()
"""Formats values for people."""
short.maxstring = short.maxother = 60


# Files: whether they have changed, and those in a folder.


def file_stamp(path: Path) -> tuple[Any, ...] | None:
    """(modification time in ns, size) of a file, or of all files in a folder, to detect changes; None: it cannot be read."""
    try:
        if path.is_dir():
            return tuple((file.as_posix(), file_stamp(file)) for file in files_in(path))
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def files_in(folder: Path) -> Iterator[Path]:
    """All files in a folder, at any depth, in one order. Links are followed, but not to a folder that they are in.

    Raises:
        OSError: a folder in it cannot be read.
    """
    seen = set[tuple[int, int]]()

    def failed(error: OSError) -> None:
        raise error

    for at, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        found = Path(at).stat()
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        yield from (Path(at) / name for name in sorted(files))


def special(path: Path) -> bool:
    """Whether this is a pipe, socket or device, which would be waited for, or read without an end."""
    return path.exists() and not path.is_file() and not path.is_dir()
