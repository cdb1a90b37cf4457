"""Calls of a router that go on while others begin: polled for their answers, and closed when these are of no use any more."""

from __future__ import annotations

from collections.abc import Callable, Generator
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


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; False if that cannot be told."""
    try:
        return same(one, other)
    except Exception:  # noqa: BLE001 - of a value's own comparison
        return False
