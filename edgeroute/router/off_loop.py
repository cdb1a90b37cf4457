"""Work of an event loop that may block: in threads of a router's pools."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.errors import Held
from edgeroute.threads import ThreadPool

if TYPE_CHECKING:
    from edgeroute.cloud.backend import CloudBackend

T = TypeVar("T")


async def in_cloud_thread(threads: ThreadPool, backend: CloudBackend, call: Callable[[], T]) -> T:
    """The result of consent, redaction or loading a client, which may block like a cloud call.

    Raises:
        Held: no thread is free.
    """
    done = submitted(threads.submit, call)
    if done is None:
        backend.guard.count_rejected("threads")
        raise Held(f"{backend.name} was not asked: no thread is free", code="threads")
    return await done


async def in_edge_thread(threads: ThreadPool, call: Callable[[], T]) -> T:
    """The result of an edge's view of an input; computed here if no thread is free."""
    done = submitted(threads.submit, call)
    return call() if done is None else await done


def submitted(submit: Callable[[Callable[[], object]], bool], call: Callable[[], T]) -> asyncio.Future[T] | None:
    """A future of `call` in a thread; None: there is no thread for it.

    Not asyncio's own executor, which is shared: hanging name look-ups may fill it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def job() -> None:
        try:
            result, error = call(), None
        except BaseException as e:  # noqa: BLE001 - passed to the caller
            result, error = None, e
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_set, done, result, error)

    return done if submit(job) else None


def _set(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return  # the waiting task was cancelled
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
