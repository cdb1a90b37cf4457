"""Retries of a call to an endpoint, with back-off: the only retry layer."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any, Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from edgeroute.cloud.request_exchange import Exchange
from edgeroute.errors import CloudError
from edgeroute.http.messages import Call, Reply
from edgeroute.types import StopToken

T = TypeVar("T")
FIRST_S, MOST_S = 0.1, 2.0
"""Maximum back-off before the first retry, and before any, seconds."""


class CallSender(Protocol):
    """Sending of a call and waiting, as coroutines.

    Those of `InThread` never wait, so that one code serves threads and asyncio.
    """

    cancel: StopToken | None
    """Token of a stop request; None: the task is cancelled instead."""

    async def send(self, call: Call, until: float) -> Reply:
        """Send the call and return the reply, as `Channels.send`."""

    def open(self, call: Call, until: float) -> AbstractAsyncContextManager[Any]:
        """Send the call, and yield its reply once the head has come, as `Connections.open`."""

    async def sleep(self, seconds: float) -> None:
        """Wait before a retry; a stop request ends the wait."""


class Retries:
    """Retrying of a failed attempt, as far as limits, deadline and breaker allow.

    Args:
        most: maximum retries.
        until: monotonic instant by which the last retry must begin.
        exchange: exchange whose breaker and retry budget allow retries.
        way: waits before each retry; after a stop request there is none.
        shown: returns True if a part of the answer was shown; then there is no retry.
    """

    def __init__(
        self, most: int, until: float, exchange: Exchange, way: CallSender, shown: Callable[[], bool] | None = None
    ) -> None:
        self._most, self._until, self._exchange, self._way, self._shown = most, until, exchange, way, shown

    async def call(self, once: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the first attempt that succeeds; raise the last error.

        Waits between attempts. Other errors than CloudError are not retried.
        """
        try:
            return await once()
        except CloudError as e:
            return await self.retry(once, iter([e]))

    async def retry(self, once: Callable[[], Awaitable[T]], failures: Iterator[CloudError]) -> T:
        """Return the result of a retry, after the first attempt has failed; tenacity is given that failure as its first attempt.

        Args:
            once: makes an attempt.
            failures: the first error alone, as an iterator: no frame that the error's traceback refers to may refer to the error.
        """

        async def attempt() -> T:
            for failure in failures:
                raise failure
            return await once()

        retrying = AsyncRetrying(sleep=self._way.sleep, retry=_RETRIABLE, wait=wait_s, stop=self._stop, reraise=True)
        return await retrying(attempt)

    def _stop(self, state: RetryCallState) -> bool:
        """Return True if there is no further retry. Takes one from the retry budget otherwise.

        At most `most` retries, none past the deadline, after a stop request, or once a piece was shown.
        """
        return (
            state.attempt_number > self._most
            or monotonic() + state.upcoming_sleep >= self._until
            or (self._way.cancel is not None and self._way.cancel.asked)
            or (self._shown is not None and self._shown())
            or not self._exchange.may_retry(stale=_is_stale(state))
        )


_RETRIABLE = retry_if_exception(lambda e: isinstance(e, CloudError) and e.retriable)


def wait_s(state: RetryCallState) -> float:
    """Return the seconds before the next attempt: Retry-After, else full jitter (Brooker, 2015), drawn at random; 0 if stale."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, CloudError):
        if error.retry_after_s is not None:
            return error.retry_after_s
        if _is_stale(state):
            return 0.0
    return random.uniform(0, min(MOST_S, FIRST_S * 2 ** (state.attempt_number - 1)))  # noqa: S311 - jitter, not a secret


def _is_stale(state: RetryCallState) -> bool:
    """Return True if the first attempt found a keep-alive connection closed."""
    error = state.outcome.exception() if state.outcome is not None else None
    return state.attempt_number == 1 and isinstance(error, CloudError) and error.stale
