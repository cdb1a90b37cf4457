"""Client of an endpoint: carries its talk, over HTTP or what the endpoint brings, with the only retry layer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic, sleep
from typing import Any, Protocol

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception

from edgeroute.cloud.aio_connections import AsyncConnections
from edgeroute.cloud.base import Call, HttpEndpoint, Reply, Talk, checked
from edgeroute.cloud.connections import Connections
from edgeroute.cloud.quiet import OURS
from edgeroute.errors import CloudError, Held, Refused
from edgeroute.system import renew_after_fork
from edgeroute.types import StopToken

FIRST_S, MOST_S = 0.1, 2.0
"""Upper limits of the back-off, seconds: before the first retry, and before any."""


class Exchange(Protocol):
    """Interface that is called around each attempt; see `edgeroute.cloud.exchange.Exchange`."""

    identity: str
    """Idempotency key: the same for every attempt of one request."""

    def before_attempt(self, size: int, until: float) -> None:
        """Before `size` bytes are sent. Raises if that is forbidden."""

    def after_attempt(self, size: int, error: BaseException | None = None, *, cut: bool = False) -> None:
        """After `size` bytes were received, or an error."""

    def next_call(self) -> None:
        """Before the first attempt of another call than the first."""

    def may_retry(self) -> bool:
        """Whether another attempt is allowed."""


class Channels(Protocol):
    """What carries calls in threads: `Connections`, or what an endpoint brings (`channels`)."""

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Sends the call and returns the reply, by the instant `until`; a stop ends it. Raises CloudError."""

    def close(self) -> None:
        """Closes it."""


class AsyncChannels(Protocol):
    """What carries calls on an event loop: `AsyncConnections`, or what an endpoint brings."""

    async def send(self, call: Call, until: float) -> Reply:
        """As of `Channels`; cancelling the task ends it."""

    async def close(self) -> None:
        """Closes it, on its loop."""

    def abandon(self) -> None:
        """`close` from outside the loop, or from a thread."""


class HttpClient:
    """Client of one endpoint, for threads and asyncio. `sent` and `received` count the bytes of all bodies, retries included."""

    def __init__(self, endpoint: HttpEndpoint) -> None:
        self.endpoint = endpoint
        self.sent = self.received = 0
        own = getattr(endpoint, "channels", None)
        self._channels: Channels
        self._async: AsyncChannels
        if own is None:
            self._channels, self._async = Connections(endpoint.address), AsyncConnections(endpoint.address)
        else:
            self._channels, self._async = own()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.RLock()  # reentrant: a signal handler may call the router

    def run(
        self, talk: Talk, until: float, exchange: Exchange, cancel: StopToken | None = None, posts: Iterator[int] | None = None
    ) -> Any:
        """Runs a talk and returns its outputs, by the instant `until` or within the endpoint's own timeout, whichever is sooner.

        posts: the numbers of its calls, where it is one of several talks of one exchange.

        Raises:
            CloudError: the call failed.
        """
        until, reply, posts = self._until(until), None, posts or count()
        OURS.set(True)
        try:
            while True:
                call = _keyed(talk.send(reply), exchange, posts)  # type: ignore[arg-type]  # the first send starts it
                try:
                    reply = self._exchange(call, until, exchange, cancel)
                except Refused as e:
                    talk.throw(e)  # it may have met another model
                    raise
        except StopIteration as end:
            return end.value
        except CloudError as e:
            e.args = (self.endpoint.address.hide(str(e)),)
            raise
        finally:
            talk.close()
            OURS.set(False)

    async def run_async(self, talk: Talk, until: float, exchange: Exchange, posts: Iterator[int] | None = None) -> Any:
        """As `run`; cancelling the task cancels the call."""
        until, reply, posts = self._until(until), None, posts or count()
        OURS.set(True)
        try:
            while True:
                call = _keyed(talk.send(reply), exchange, posts)  # type: ignore[arg-type]  # likewise
                try:
                    reply = await self._exchange_async(call, until, exchange)
                except Refused as e:
                    talk.throw(e)  # likewise
                    raise
        except StopIteration as end:
            return end.value
        except CloudError as e:
            e.args = (self.endpoint.address.hide(str(e)),)
            raise
        finally:
            talk.close()
            OURS.set(False)

    def _until(self, until: float) -> float:
        return min(until, monotonic() + self.endpoint.address.timeout_s)

    def _exchange(self, call: Call, until: float, exchange: Exchange, cancel: StopToken | None) -> Reply:
        def once() -> Reply:
            if cancel is not None and cancel.asked:
                raise Held(f"{self.endpoint.where} was not asked: its answer is not needed any more", code="stopped")
            self._leaving(call, until, exchange)
            try:
                reply = self._channels.send(call, until, cancel)
            except CloudError as e:
                exchange.after_attempt(0, e, cut=cancel is not None and cancel.asked)
                raise
            return self._taken(call, reply, exchange)

        if call.probe:
            try:
                return once()
            except CloudError as e:
                return Reply(0, {}, str(e).encode())
        try:
            return once()
        except CloudError as e:
            pause: Any = sleep if cancel is None else cancel.wait
            return Retrying(sleep=pause, **self._rules(until, exchange, cancel))(_after(e, once))

    async def _exchange_async(self, call: Call, until: float, exchange: Exchange) -> Reply:
        async def once() -> Reply:
            self._leaving(call, until, exchange)
            try:
                reply = await self._async.send(call, until)
            except CloudError as e:
                exchange.after_attempt(0, e)
                raise
            return self._taken(call, reply, exchange)

        if call.probe:
            try:
                return await once()
            except CloudError as e:
                return Reply(0, {}, str(e).encode())
        try:
            return await once()
        except CloudError as e:
            failures = iter([e])

            async def again() -> Reply:
                for failure in failures:
                    raise failure
                return await once()

            return await AsyncRetrying(**self._rules(until, exchange, None))(again)

    def _leaving(self, call: Call, until: float, exchange: Exchange) -> None:
        size = len(call.body)
        exchange.before_attempt(size, until)
        with self._lock:
            self.sent += size

    def _taken(self, call: Call, reply: Reply, exchange: Exchange) -> Reply:
        size = len(reply.body)
        with self._lock:
            self.received += size
        try:
            good = checked(reply, self.endpoint.where, call.body, self.endpoint.address)
        except CloudError as e:
            exchange.after_attempt(size, e)
            if call.probe:
                return reply
            raise
        exchange.after_attempt(size)
        return good

    def _rules(self, until: float, exchange: Exchange, cancel: StopToken | None) -> dict[str, Any]:
        most = self.endpoint.address.retries

        def stop(state: RetryCallState) -> bool:
            return (
                state.attempt_number > most
                or monotonic() + state.upcoming_sleep >= until
                or (cancel is not None and cancel.asked)
                or not exchange.may_retry()
            )

        return {"retry": _RETRIABLE, "wait": _wait, "stop": stop, "reraise": True}

    def close(self) -> None:
        """Closes the connections."""
        self._channels.close()
        self._async.abandon()

    async def aclose(self) -> None:
        """Closes the connections on the event loop, and waits for it."""
        await self._async.close()
        self.close()


def _keyed(call: Call, exchange: Exchange, posts: Iterator[int]) -> Call:
    """The call with its idempotency key, by which a server can detect a repetition."""
    if call.method != "POST" or call.probe or not exchange.identity:  # without an identity it carries no user data
        return call
    n = next(posts)
    if n:
        exchange.next_call()
    key = f"{exchange.identity}/{n}" if n else exchange.identity
    return call._replace(headers=(*call.headers, ("Idempotency-Key", key)))


def _after(first: CloudError, once: Callable[[], Reply]) -> Callable[[], Reply]:
    """Wraps a call for tenacity with its failure as the first attempt, so that a success does not pay for retries."""
    failures = iter([first])

    def again() -> Reply:
        for failure in failures:
            raise failure
        return once()

    return again


_RETRIABLE = retry_if_exception(lambda e: isinstance(e, CloudError) and e.retriable)


def _wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: Retry-After, else full jitter (Brooker, 2015); 0 if a keep-alive connection was closed."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, CloudError):
        if error.retry_after_s is not None:
            return error.retry_after_s
        if error.stale and state.attempt_number == 1:
            return 0.0
    return random.uniform(0, min(MOST_S, FIRST_S * 2 ** (state.attempt_number - 1)))  # noqa: S311 - jitter, not a secret
