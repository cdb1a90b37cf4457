"""Instruments: the interface for traces, metrics and dashboards, and a list that forwards events to several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from edgeroute.core.readings import Reading
from edgeroute.types import Answer

log = logging.getLogger("edgeroute")


class RequestEnded(NamedTuple):
    """A request has ended."""

    id: str
    inputs: Any
    """As passed by the caller; not to be stored without its consent."""
    answer: Answer | None
    error: BaseException | None
    """The exception raised to the caller; None if there is an answer."""
    reading: Reading | None = None
    """The last reading of the device's sensors; None: they are not read, or have not been."""
    reading_age_s: float = 0.0
    """How long before the request began it was made, seconds; less than 0: since then."""
    edge_w: float | None = None
    """Power that a run of an edge takes beside what the device takes anyway, watts; None: not known."""


class AttemptEnded(NamedTuple):
    """An attempt to call an endpoint, or a probe, has ended."""

    target: str
    request: str
    """The request's id; empty: a probe, which has no user data."""
    sent_bytes: int
    received_bytes: int
    took_s: float
    error: BaseException | None


class Instrument:
    """Base of all instruments: one method per kind of event; each is a no-op unless overridden.

    Called from any thread, including an event loop's: methods must not block. An exception from one is logged, and affects no
    answer.
    """

    def request_ended(self, ended: RequestEnded) -> None:
        """A request ended with an answer or an error."""

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """An attempt to call an endpoint has ended."""

    def breaker_changed(self, target: str, state: str) -> None:
        """A circuit breaker changed to `open`, `half-open` or `closed`."""

    def alarm(self, target: str, what: str) -> None:
        """A drift alarm: the certificate of that edge model is no longer trusted."""

    def outbox_changed(self, identity: str, what: str) -> None:
        """What happened to a request: it is `queued` on disk, or its `late` answer has arrived.

        `not queued`: its answer said that it is being queued, and that failed. `damaged`: its row in the outbox cannot be read.
        """

    def limit_hit(self, target: str, code: str) -> None:
        """An endpoint was not called, for a local reason; `code` as in `Held.code`."""

    def close(self) -> None:
        """The router was closed."""


class Instruments(Instrument):
    """Forwards each event to several instruments."""

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self._all = tuple(instruments)

    def __bool__(self) -> bool:
        return bool(self._all)

    def _each(self, name: str, *event: Any) -> None:
        for instrument in self._all:
            try:
                method: Callable[..., object] = getattr(instrument, name)  # one of its own kind may not have it
                method(*event)
            except KeyboardInterrupt:  # noqa: PERF203 - each on its own
                raise
            except BaseException as e:
                log.error("an instrument failed at %s; no answer is touched by it", name, exc_info=e)  # noqa: TRY400

    def request_ended(self, ended: RequestEnded) -> None:
        """Forwards it."""
        self._each("request_ended", ended)

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """Forwards it."""
        self._each("attempt_ended", ended)

    def breaker_changed(self, target: str, state: str) -> None:
        """Forwards it."""
        self._each("breaker_changed", target, state)

    def alarm(self, target: str, what: str) -> None:
        """Forwards it."""
        self._each("alarm", target, what)

    def outbox_changed(self, identity: str, what: str) -> None:
        """Forwards it."""
        self._each("outbox_changed", identity, what)

    def limit_hit(self, target: str, code: str) -> None:
        """Forwards it."""
        self._each("limit_hit", target, code)

    def close(self) -> None:
        """Closes each."""
        self._each("close")
