"""Calls of application functions with contained exceptions, time limits of asyncio tasks, and `with` bases."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from math import inf
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.core.error_codes_and_texts import Coded, class_name, error_message

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self


T = TypeVar("T")


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


pooled = threading.local()  # thread-local flag: has the attribute `thread` in the threads of a `ThreadPool`, and nowhere else


class NoException(RuntimeError):
    """Stands for an exception of an application's function that no `except Exception` catches, such as SystemExit."""


def call_contained(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of the application and return its result; anything it raises comes out as an `Exception`.

    KeyboardInterrupt (Ctrl-C) passes unchanged, except in a pool's thread, where there is no Ctrl-C. An error of edgeroute's
    classes that code outside edgeroute raised is marked as `foreign`.

    Raises:
        NoException: the function raised SystemExit, GeneratorExit or the like, or KeyboardInterrupt in a pool's thread.
        Exception: the function's own.
    """
    try:
        return function(*arguments)
    except Exception as e:
        if isinstance(e, Coded):
            raised_in = [frame for frame, _ in walk_tb(e.__traceback__)][-1].f_globals.get("__name__")
            e.foreign = not str(raised_in).startswith("edgeroute.")
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
