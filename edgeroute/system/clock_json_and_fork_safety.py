"""Process-wide helpers: wall clock, JSON, forks, shared objects, calls of application functions, time limits of tasks, files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from math import inf, isfinite
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, NoReturn, TypeVar, cast
from weakref import WeakSet, WeakValueDictionary

from edgeroute.core.error_codes_and_texts import class_name, error_message
from edgeroute.errors import StoreError
from edgeroute.system.sanitised_logs_and_contained_errors import Failures
from edgeroute.system.untrusted_files import open_file

if TYPE_CHECKING:
    import asyncio
    import hashlib

    from typing_extensions import Self


class ClosedByWith:
    """Base of classes that a `with` statement closes at its end."""

    def close(self) -> None:
        """Close the object; overridden."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ClosedByAsyncWith:
    """Base of classes that an `async with` statement closes at its end."""

    async def close(self) -> None:
        """Close the object; overridden."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# Forks: the attributes that a forked child does not take over, such as locks, threads, connections and calls under way.

_MISSING: Any = object()


class _Field(NamedTuple):
    """Declaration of an attribute that is made with the object, and again in a child."""

    make: Callable[[], Any]
    drop: Callable[[Any], object] | None


class _Lazy:
    """Non-data descriptor of an attribute that is made of the object at its first use, and again in a child."""

    def __init__(self, make: Callable[[Any], Any], drop: Callable[[Any], object] | None) -> None:
        self._make, self.drop = make, drop

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, thing: Any, owner: type | None = None) -> Any:
        if thing is None:
            return self
        return vars(thing).setdefault(self._name, self._make(thing))  # atomic: threads that come at once share the first


class ForkSafe:
    """Base of objects that a forked child goes on with, also of those that the application made.

    A class declares the attributes that belong to one process with `per_process`, `initially` or `per_process_of`. A forked child
    makes them anew; all other attributes are copies of the parent's. So a child never waits for a lock that another thread of the
    parent holds.
    """

    _fields: ClassVar[dict[str, _Field]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Collect the declarations, and remove them from the class: an attribute that shadows one would be slower to read."""
        super().__init_subclass__(**options)
        own = {name: field for name, field in vars(cls).items() if type(field) is _Field}
        for name in own:
            delattr(cls, name)
        cls._fields = {**cls._fields, **own}

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the declared attributes, and register the object, weakly: each forked child calls its `after_fork`."""
        thing = super().__new__(cls)
        for name, field in cls._fields.items():
            setattr(thing, name, field.make())
        _alive.add(thing)
        return thing

    def after_fork(self) -> None:
        """Replace the attributes of the parent process, in a forked child, by new ones.

        Override for what no declaration can express. The old attributes are disposed of by their `drop`; lazy ones are made again
        at their next use.
        """
        for name, field in self._fields.items():
            old = getattr(self, name)
            setattr(self, name, field.make())
            if field.drop is not None:
                field.drop(old)
        for cls in type(self).__mro__:
            for name, lazy in vars(cls).items():
                if type(lazy) is _Lazy and (old := vars(self).pop(name, _MISSING)) is not _MISSING and lazy.drop is not None:
                    lazy.drop(old)


def per_process(make: Callable[[], T], drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute that each process makes for itself.

    Args:
        make: returns its value, in a new object and in a forked child.
        drop: disposes of the parent's value in a child. It must not wait for a thread or send anything.
    """
    return cast("T", _Field(make, drop))


def per_process_of(make: Callable[[Any], T], drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute as `per_process` does; `make` is a method of the object, called at the first use."""
    return cast("T", _Lazy(make, drop))


def initially(value: T, drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute that has this immutable value in a new object, and again in a forked child."""
    return cast("T", _Field(lambda: value, drop))


class SafeCondition(threading.Condition):
    """Condition whose `with` calls the lock's own methods, which are native.

    `threading.Condition` calls them by Python functions. Ctrl-C may raise in these with the lock taken, for ever.
    """

    def __init__(self) -> None:
        self._native = threading.RLock()
        super().__init__(self._native)

    __enter__ = property(lambda self: self._native.__enter__)
    __exit__ = property(lambda self: self._native.__exit__)


_alive: WeakSet[ForkSafe] = WeakSet()  # objects that are called in a forked child


def _in_child() -> None:
    """Call `after_fork` of all living objects, in a forked child; raise the first exception only after all were called.

    An AttributeError, of an object that is half made, is ignored.
    """
    errors: list[Exception] = []
    for thing in list(_alive):
        try:
            thing.after_fork()
        except Exception as e:  # noqa: BLE001, PERF203 - whatever it is, the others are renewed first
            if not isinstance(e, AttributeError):  # else half constructed, by a thread that the child lacks: nobody will use it
                errors.append(e)
    if errors:
        raise errors[0]  # Python prints it, and the child goes on


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


log = logging.getLogger("edgeroute")
# True on Linux, the only system where the kernel reports changes of the network and most of the device's sensors.
LINUX = sys.platform == "linux"
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

orjson: Any = NotImplemented  # the module, imported at the first use; None: it is not installed

# Seconds since the boot, time of sleep included, which `monotonic` counts on Windows alone.
_elapsed: Callable[[], float] = time.monotonic
_CLOCK: int | None = getattr(time, "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME", None)
if sys.platform != "win32" and _CLOCK is not None:
    _elapsed = partial(time.clock_gettime, _CLOCK)
_OFFSET = time.time() - _elapsed()


def now() -> float:
    """Return seconds since 1970: the wall clock at the start of the process, plus the time elapsed since, sleep included.

    Setting the clock while the process runs, by hand or by NTP, therefore ends no spending window and no time to live.
    """
    return _elapsed() + _OFFSET


def set_forward_s() -> float:
    """Return by how much the wall clock was set forward since the process began, seconds; 0: it was not."""
    return max(0.0, time.time() - now())


def boot_clock() -> tuple[str, float]:
    """Return (id of this boot of the system, wall time of the boot as it was known when this process began, seconds since 1970).

    Two processes of one boot compare their clocks by it; a clock that is set later changes nothing. Reads a file of the kernel.
    The id is empty where the system has none (all but Linux).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux, or no /proc
        boot = ""
    return boot, _OFFSET


def _orjson() -> Any:
    """Return the module orjson, which the first call imports; None if it is not installed."""
    global orjson  # noqa: PLW0603 - the module is imported once
    if orjson is NotImplemented:
        from edgeroute.system.late_imports_and_plugins import import_late  # a fork waits for it: no child finds an import's lock

        try:
            orjson = import_late("orjson")
        except ImportError:
            orjson = None
    return orjson


def json_dumps(data: Any, default: Callable[[Any], Any] | None = None, *, arrays: bool = False) -> bytes:
    """Return `data` as compact JSON in UTF-8, with NaN and infinities as null. Uses orjson if it is installed.

    Args:
        data: may contain integers of more than 64 bits and unpaired surrogates.
        default: converts a value of another type to one that is written instead.
        arrays: writes flat numpy arrays as lists if the library can; otherwise they go to `default`.

    Raises:
        TypeError: a value has a type that JSON lacks, and there is no `default` for it.
    """
    if (fast := _orjson()) is not None:
        try:
            return fast.dumps(data, default, fast.OPT_SERIALIZE_NUMPY if arrays else None)  # type: ignore[no-any-return]
        except TypeError:  # Python's encoder may accept it; `suppress` would double the time
            pass
    try:
        return json.dumps(data, default=default, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(to_json_types(data), separators=(",", ":")).encode()


def json_loads(text: bytes | memoryview, *, exact: bool = False) -> Any:
    """Return the value that a JSON text in UTF-8 stands for. Uses orjson if it is installed.

    Args:
        text: NaN and Infinity, which are Python's extensions, are rejected with either library.
        exact: preserves integers of more than 64 bits and unpaired surrogates; may take twice as long.

    Raises:
        ValueError: not JSON.
        RecursionError: nested too deeply.
    """
    if exact or (fast := _orjson()) is None:
        return _DECODER.decode(str(text, "utf-8"))
    return fast.loads(text)


def _no_number(word: str) -> NoReturn:
    """Raise ValueError for NaN and Infinity, which Python's decoder would accept."""
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def to_json_types(value: Any) -> Any:
    """Return a copy of a value in JSON types.

    numpy's values become Python's, NaN and infinities None, a mapping's keys and objects of other types text. Raises
    RecursionError if nested too deeply.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json_types(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_types(part) for part in value]
    listed = value.tolist() if hasattr(value, "tolist") else value  # numpy values, without importing numpy
    return str(value) if listed is value or hasattr(listed, "tolist") else to_json_types(listed)


def list_weakset(things: WeakSet[T]) -> list[T]:
    """Return the objects of a WeakSet as a list. If another thread changes the set meanwhile, tries again until it succeeds."""
    while True:
        try:
            return list(things)
        except RuntimeError:  # noqa: PERF203 - it has changed: again
            continue


class Shared(ForkSafe, Generic[K, T]):
    """Objects by key that live while somebody refers to them, so that users of the same key share one object.

    The registry refers to them weakly. `setdefault` of a plain `WeakValueDictionary` may return a different object to each of two
    threads.
    """

    _lock = per_process(threading.RLock)

    def __init__(self) -> None:
        self._held: WeakValueDictionary[K, T] = WeakValueDictionary()

    def get(self, key: K) -> T | None:
        """Return the object of the key; None: there is none, or nobody refers to it any more."""
        return self._held.get(key)

    def first(self, key: K, candidate: T) -> T:
        """Return the key's object, after storing the candidate if there was none. All threads get the same object."""
        with self._lock:
            return self._held.setdefault(key, candidate)

    def put(self, key: K, thing: T) -> None:
        """Store an object for the key in place of any other. It is referred to weakly."""
        self._held[key] = thing


class AbandonedRuns(ForkSafe):
    """Set of a target's abandoned runs, which were cancelled and are still running. Lock-free: adding and discarding are atomic.

    Args:
        most: number of abandoned runs at which the target counts as busy.

    Attributes:
        rests_until: monotonic instant up to which the target counts as busy, as it has said so itself.
    """

    stopping: set[object] = per_process(set)
    rests_until: float = initially(-inf)

    def __init__(self, most: int) -> None:
        self.max_abandoned = most
        self.failures = Failures()

    @property
    def abandoned(self) -> int:
        """Number of abandoned runs now."""
        return len(self.stopping)

    @property
    def occupied(self) -> bool:
        """True if the target takes no further run now."""
        return len(self.stopping) >= self.max_abandoned or time.monotonic() < self.rests_until


pooled = threading.local()  # thread-local flag: has the attribute `thread` in the threads of a `ThreadPool`, and nowhere else


class NoException(RuntimeError):
    """Stands for an exception of an application's function that no `except Exception` catches, such as SystemExit."""


def call_contained(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of the application and return its result; anything it raises comes out as an `Exception`.

    KeyboardInterrupt (Ctrl-C) passes unchanged, except in a pool's thread, where there is no Ctrl-C.

    Raises:
        NoException: the function raised SystemExit, GeneratorExit or the like, or KeyboardInterrupt in a pool's thread.
        Exception: the function's own.
    """
    try:
        return function(*arguments)
    except Exception:
        raise
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt) and not hasattr(pooled, "thread"):
            raise
        raise NoException(f"{class_name(e)}{f': {text}' if (text := error_message(e)) else ''}") from e


@contextlib.contextmanager
def set_within(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Set a context variable within the block; at its end, also after an exception, it has its former value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


# Instant (monotonic) until which this thread waits for files that others have locked.
_WAIT_UNTIL: ContextVar[float] = ContextVar("edgeroute_wait_until", default=inf)
LEAST_S = 0.25  # minimum time that is waited for each file after that instant, seconds


def limited_waits(most_s: float) -> contextlib.AbstractContextManager[None]:
    """Let this thread wait for locked files up to `most_s` seconds in all within the block, and a moment for each after that."""
    return set_within(_WAIT_UNTIL, time.monotonic() + most_s)


def wait_s(most_s: float) -> float:
    """Return how long this thread may wait for a file that others have locked: `most_s` seconds, or less in `limited_waits`."""
    return min(most_s, max(LEAST_S, _WAIT_UNTIL.get() - time.monotonic()))


def is_free(lock: Any) -> bool:
    """Return True if no other thread holds a lock, or not any more within the time of `limited_waits`; True without that time."""
    if (most_s := wait_s(threading.TIMEOUT_MAX)) == threading.TIMEOUT_MAX:
        return True
    free: bool = lock.acquire(timeout=most_s)
    if free:
        lock.release()
    return free


def is_task_cancelled(error: BaseException) -> bool:
    """Return True if `error` cancels the running asyncio task; False for a CancelledError that an application's function raised.

    Without a running event loop it is the function's. With one, every `CancelledError` counts as the task's before Python 3.11,
    which does not distinguish them.
    """
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(error, asyncio.CancelledError) or not on_event_loop():
        return False
    task = asyncio.current_task()
    return task is None or not hasattr(task, "cancelling") or task.cancelling() > 0


def on_event_loop() -> bool:
    """Return True if this thread runs an event loop, which may not be blocked."""
    asyncio: Any = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None  # noqa: SLF001 - public, for loops


async def await_within(left_s: float, steps: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine for at most `left_s` seconds, and return its result; at the limit it is cancelled.

    Cancelling the caller cancels the coroutine, too, even just as it ends (`asyncio.wait_for` before Python 3.12 may not). 0 or
    less: the coroutine is cancelled at its first wait.

    Raises:
        TimeoutError: the time is over (`asyncio.TimeoutError`, which is another class before Python 3.11).
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


def settle(steps: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits, in this thread, and return its result. Raises AssertionError if it waits."""
    try:
        steps.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


def start_task_on(loop: asyncio.AbstractEventLoop, steps: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Start a coroutine as a task of an event loop, from any thread, without waiting. If the loop is closed, nothing is started.

    The task's exception is dropped.
    """

    def begin() -> None:
        """Create the task, in the loop's thread."""
        task = loop.create_task(steps())
        _begun.add(task)
        task.add_done_callback(forget)

    def forget(task: asyncio.Task[object]) -> None:
        """Forget the task, and retrieve its exception."""
        _begun.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn

    with contextlib.suppress(RuntimeError):  # it has just been closed
        loop.call_soon_threadsafe(begin)


# Tasks that nobody waits for; they are referred to from here, as an event loop refers to them weakly.
_begun: set[asyncio.Task[object]] = set()


def name_beside(path: Path) -> Path:
    """Return a name in a path's folder for what is to replace it: `PATH.`, random digits, `.new`, which no other writer has."""
    return path.with_name(f"{path.name}.{os.urandom(6).hex()}.new")


def replace_file(path: Path, text: str) -> None:
    """Write a text as UTF-8 to a file, replacing the old file atomically; its permissions stay.

    A symbolic link's target is replaced, and the link stays. A device or a pipe is written to directly. Of several writers the
    last one counts. Goes through a new file beside it; not flushed to the disk.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        target = Path(os.path.realpath(path))
        new = name_beside(target)
        try:
            with new.open("x", encoding="utf-8") as file:
                file.write(text)
            if target.exists():
                new.chmod(target.stat().st_mode & 0o777)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e


class _Short(Repr):
    """Formatter that writes a value in few characters: arrays and tensors as dtype and shape, long bytes as their beginning."""

    def repr_instance(self, x: Any, level: int) -> str:
        """Return an array or tensor as dtype and shape, long bytes as their beginning and length, others as `reprlib` does."""
        dtype, shape = getattr(x, "dtype", None), getattr(x, "shape", None)
        if dtype is not None and isinstance(shape, Iterable) and shape:
            return f"{dtype} [{', '.join(map(str, shape))}]"
        if isinstance(x, bytes | bytearray) and len(x) > self.maxstring:
            return f"{bytes(x[: self.maxstring // 2])!r}... ({len(x):,} bytes)"
        return super().repr_instance(x, level)


short = _Short()  # shared formatter: `short.repr(value)` is at most about 60 characters of a text or of a foreign object
short.maxstring = short.maxother = 60


# Files: stamps to detect changes, and listings of folders.


def file_stamp(path: Path) -> tuple[Any, ...] | None:
    """Return a value that differs after a file, or any file in a folder, has changed; None: it cannot be read.

    Of a file: (modification time in ns, size in bytes, time of change in ns), the last of which no program can set. Of a folder:
    (path, stamp) of each file in it, at any depth; the stamp of a file in it that cannot be read is None.
    """
    try:
        if path.is_dir():
            return tuple((file.as_posix(), file_stamp(file)) for file in files_in(path))
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ctime_ns


def files_in(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder, at any depth, in a fixed order.

    Symbolic links to folders are followed, except to a folder that was visited already.

    Raises:
        OSError: the folder, or one in it, cannot be read.
    """
    seen = set[tuple[int, int]]()

    def failed(error: OSError) -> None:
        """Raise the error, which `os.walk` would pass over."""
        raise error

    for root, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(root) / name for name in sorted(files))


def sha256(data: bytes = b"") -> hashlib._Hash:
    """Return a SHA-256 hash object over data. The first call imports hashlib, which takes 3 ms, as OpenSSL comes with it."""
    from edgeroute.system.late_imports_and_plugins import import_late

    digest: hashlib._Hash = import_late("hashlib").sha256(data)
    return digest


def file_sha256(path: Path) -> str:
    """Read a file, block by block, and return the SHA-256 of its content as hexadecimal digits.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    digest = sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
