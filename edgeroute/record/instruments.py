"""What instruments (traces, metrics, dashboards) are told: one small protocol, and the list of those that a router has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from edgeroute.types import Answer

log = logging.getLogger("edgeroute")


class RequestEnded(NamedTuple):
    """A request has its answer, or none."""

    id: str
    inputs: Any
    """As the caller gave it; not to be stored without its consent."""
    answer: Answer | None
    error: BaseException | None
    """What the caller is raised; None where there is an answer."""


class AttemptEnded(NamedTuple):
    """One attempt at a call of an endpoint has ended, or a probe."""

    target: str
    request: str
    """The request's id; empty: a probe, which has no user data."""
    sent_bytes: int
    received_bytes: int
    took_s: float
    error: BaseException | None


class Instrument:
    """Base of all instruments: each method is called with one kind of event, and does nothing until it is overridden.

    Calls come from any thread, also from an event loop's: none may block. What one raises is logged, and no answer is touched
    by it.
    """

    def request_ended(self, ended: RequestEnded) -> None:
        """A request has its answer, or none."""

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """An attempt at a call of an endpoint has ended."""

    def breaker_changed(self, target: str, state: str) -> None:
        """A circuit breaker is `open`, `half-open` or `closed` from now on."""

    def alarm(self, target: str, what: str) -> None:
        """A drift alarm: the certificate of that edge model is not trusted any more."""

    def outbox_changed(self, identity: str, what: str) -> None:
        """A request is `queued` in the outbox, or its `late` answer has come."""

    def limit_hit(self, target: str, code: str) -> None:
        """An endpoint was not asked, for a reason on this side; `code` as in `Held.code`."""

    def close(self) -> None:
        """The router is closed."""


class Instruments(Instrument):
    """Hands each event to several instruments."""

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
        """To each."""
        self._each("request_ended", ended)

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """To each."""
        self._each("attempt_ended", ended)

    def breaker_changed(self, target: str, state: str) -> None:
        """To each."""
        self._each("breaker_changed", target, state)

    def alarm(self, target: str, what: str) -> None:
        """To each."""
        self._each("alarm", target, what)

    def outbox_changed(self, identity: str, what: str) -> None:
        """To each."""
        self._each("outbox_changed", identity, what)

    def limit_hit(self, target: str, code: str) -> None:
        """To each."""
        self._each("limit_hit", target, code)

    def close(self) -> None:
        """Each."""
        self._each("close")
