"""Retries of a call: the only retry layer."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception

from edgeroute.cloud.exchange import Sending
from edgeroute.core.spending import Tokens
from edgeroute.errors import CloudError
from edgeroute.types import StopToken

T = TypeVar("T")
FIRST_S, MOST_S = 0.1, 2.0
"""Upper limits of the back-off, seconds: before the first retry, and before any."""


class Exchange(Protocol):
    """Interface that is called around each attempt; see `edgeroute.cloud.exchange.Exchange`."""

    identity: str
    """Idempotency key: the same for every attempt of one request."""
    status: int | None
    """Set to the HTTP status of an attempt's reply, before `after_attempt`."""

    def before_attempt(self, size: int, until: float, tokens: Tokens | None = None) -> None:
        """Before `size` bytes are sent, with so many tokens expected. Raises if that is forbidden."""

    @property
    def followed(self) -> bool:
        """Whether anybody is told of the beginnings of attempts: without, `headers` need not be called."""

    def headers(self, sending: Sending) -> Mapping[str, str]:
        """Further headers for the attempt that `before_attempt` allowed."""

    def after_attempt(
        self, size: int, error: BaseException | None = None, *, cut: bool = False, tokens: Tokens | None = None
    ) -> None:
        """After `size` bytes were received, or an error."""

    def reported(self, headers: Mapping[str, str]) -> None:
        """After a reply with a report of the endpoint's load in its headers."""

    def next_call(self) -> None:
        """Before the first attempt of another call than the first."""

    def may_retry(self, *, stale: bool = False) -> bool:
        """Whether another attempt is allowed. stale: it found its keep-alive connection closed, which is no sign of trouble."""


class Retries:
    """Repeats an attempt that failed, as far as it may be repeated.

    Args:
        most: how many repetitions.
        until: the instant by which the last one must begin.
        exchange: whose rules allow it.
        cancel: once asked, there is none.
        shown: says whether something of the answer was shown: then there is none.
    """

    def __init__(
        self,
        most: int,
        until: float,
        exchange: Exchange,
        cancel: StopToken | None = None,
        shown: Callable[[], bool] | None = None,
    ) -> None:
        self._most, self._until, self._exchange, self._cancel, self._shown = most, until, exchange, cancel, shown

    def call(self, once: Callable[[], T]) -> T:
        """The result of an attempt, or of one of its repetitions."""
        try:
            return once()
        except CloudError as e:
            return self.again(once, iter([e]))

    def again(self, once: Callable[[], T], failures: Iterator[CloudError]) -> T:
        """The result of a repetition, after the first attempt has failed: tenacity is entered with that as its first.

        failures: its error alone, as an iterator, since no frame that the error's traceback holds may hold it.
        """

        def attempt() -> T:
            for failure in failures:
                raise failure
            return once()

        pause: Any = sleep if self._cancel is None else self._cancel.wait
        return Retrying(sleep=pause, **self._rules())(attempt)

    async def call_async(self, once: Callable[[], Awaitable[T]]) -> T:
        """As `call`."""
        try:
            return await once()
        except CloudError as e:
            return await self.again_async(once, iter([e]))

    async def again_async(self, once: Callable[[], Awaitable[T]], failures: Iterator[CloudError]) -> T:
        """As `again`."""

        async def attempt() -> T:
            for failure in failures:
                raise failure
            return await once()

        return await AsyncRetrying(**self._rules())(attempt)

    def _rules(self) -> dict[str, Any]:
        return {"retry": _RETRIABLE, "wait": wait_s, "stop": self._stop, "reraise": True}

    def _stop(self, state: RetryCallState) -> bool:
        return (
            state.attempt_number > self._most
            or monotonic() + state.upcoming_sleep >= self._until
            or (self._cancel is not None and self._cancel.asked)
            or (self._shown is not None and self._shown())
            or not self._exchange.may_retry(stale=_is_stale(state))
        )


_RETRIABLE = retry_if_exception(lambda e: isinstance(e, CloudError) and e.retriable)


def wait_s(state: RetryCallState) -> float:
    """Seconds before the next attempt: Retry-After, else full jitter (Brooker, 2015); 0 if a keep-alive connection was closed."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, CloudError):
        if error.retry_after_s is not None:
            return error.retry_after_s
        if _is_stale(state):
            return 0.0
    return random.uniform(0, min(MOST_S, FIRST_S * 2 ** (state.attempt_number - 1)))  # noqa: S311 - jitter, not a secret


def _is_stale(state: RetryCallState) -> bool:
    """Whether the first attempt found a keep-alive connection closed."""
    error = state.outcome.exception() if state.outcome is not None else None
    return state.attempt_number == 1 and isinstance(error, CloudError) and error.stale
