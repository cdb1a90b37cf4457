"""Calls of a router that go on while others begin: polled for their answers, and closed when these are of no use any more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Any, Protocol

from edgeroute.core.policy import INF
from edgeroute.core.walk import Wait
from edgeroute.record.audit import same
from edgeroute.types import Answer


class Call(Protocol):
    """A call under way. `until`: the instant at which it is polled though nothing rang."""

    until: float

    def poll(self) -> Answer | None:
        """Its next answer, the provisional ones first; None: not yet. Raises what it ended with."""

    def close(self) -> None:
        """Cancels what of it is in progress."""


Begin = Callable[[Any, bool, float | None], Call]
"""Begins a call of this input; on the device alone; with this deadline in seconds."""


class PolledCall:
    """A call whose steps are taken by whoever polls it: there is no thread that waits for it."""

    def __init__(self, steps: Generator[Any, None, None]) -> None:
        self._steps, self.until = steps, INF

    def poll(self) -> Answer | None:
        """As `Call.poll`."""
        shown = next(self._steps, None)
        self.until = shown.until if type(shown) is Wait else INF
        return shown if isinstance(shown, Answer) else None

    def close(self) -> None:
        """As `Call.close`."""
        self._steps.close()


class DirectCall:
    """A call that ends as it is polled."""

    until = INF

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._call = call

    def poll(self) -> Answer | None:
        """As `Call.poll`."""
        return self._call()

    def close(self) -> None:
        """As `Call.close`."""


class TaskCall:
    """A call in a task of its own."""

    until = INF

    def __init__(self, answers: AsyncGenerator[Answer, None], ring: Callable[[], object], tasks: set[asyncio.Task[None]]) -> None:
        self._mail: deque[Answer | BaseException] = deque()
        self._task = asyncio.get_running_loop().create_task(_collect(answers, self._mail, ring))
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)

    def poll(self) -> Answer | None:
        """As `Call.poll`."""
        found = self._mail.popleft() if self._mail else None
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """As `Call.close`."""
        self._task.cancel()


async def _collect(
    answers: AsyncGenerator[Answer, None], mail: deque[Answer | BaseException], ring: Callable[[], object]
) -> None:
    try:
        async with aclosing(answers):
            async for answer in answers:
                mail.append(answer)
                ring()
    except asyncio.CancelledError:
        raise
    except BaseException as e:  # noqa: BLE001 - who polls it gets it
        mail.append(e)
        ring()


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; False if that cannot be told."""
    try:
        return same(one, other)
    except Exception:  # noqa: BLE001 - of a value's own comparison
        return False
