"""Client of an endpoint: sends the calls of talks and of streamed replies, retries them, and counts their bytes.

The transports are HTTP connections for threads and for asyncio, or the endpoint's own channels.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import count
from time import monotonic, sleep
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from edgeroute.cloud.attempt_accounting_and_turns import Exchange, Sending
from edgeroute.cloud.endpoint import HttpEndpoint, Talk, check_status, with_key
from edgeroute.cloud.load_reports import HEADER
from edgeroute.errors import CloudError, Held, PolicyError, Refused
from edgeroute.http.aio_connections import AsyncConnections
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import OURS, Address, Call, Reply
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.types import StopToken

# Transport of an endpoint's calls: edgeroute's connections, an httpx client, or channels of the endpoint.


class Channels(Protocol):
    """Transport of calls in threads: `Connections`, or the endpoint's own (`channels`).

    A transport of answers in pieces also has `open`, as `Connections` has.
    """

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Send the call and return the reply by the instant `until`; blocks. A stop request ends it. Raise CloudError."""

    def close(self) -> None:
        """Close the connections."""


class AsyncChannels(Protocol):
    """Transport of calls on an event loop: `AsyncConnections`, or the endpoint's own."""

    async def send(self, call: Call, until: float) -> Reply:
        """Send the call and return the reply by the instant `until`; cancelling the task ends it. Raise CloudError."""

    async def close(self) -> None:
        """Close the connections, on their loop."""

    def abandon(self) -> None:
        """Close the connections, from outside the loop or from a thread."""


def new_transports(endpoint: HttpEndpoint) -> tuple[Any, Any]:
    """Return new transports of an endpoint's calls, for threads and for asyncio; nothing is connected yet.

    They are the endpoint's own `channels()`, if it has them; else those of httpx, if `client=` says so; else edgeroute's own
    connections. If `client=` gave one for threads or one for asyncio alone, the other transport raises PolicyError at each call.
    """
    own_channels: Callable[[], tuple[Channels, AsyncChannels]] | None = getattr(endpoint, "channels", None)
    if own_channels is not None:
        return own_channels()
    address = endpoint.address
    if address.client is None:
        return Connections(address), AsyncConnections(address)
    (client, async_client), by_httpx = address.client, import_late("edgeroute.http.httpx_connections")
    threads, tasks = by_httpx.HttpxConnections(address, client), by_httpx.AsyncHttpxConnections(address, async_client)
    if client is None and async_client is not None:
        threads = _NotGiven(address, "httpx.AsyncClient", "Router", "httpx.Client")
    if client is not None and async_client is None:
        tasks = _NotGiven(address, "httpx.Client", "AsyncRouter", "httpx.AsyncClient")
    return threads, tasks


class _NotGiven:
    """Transport in place of a client that the application did not give; each call raises."""

    def __init__(self, address: Address, given: str, router: str, needed: str) -> None:
        self._message = (
            f"{address.origin} is reached by the {given} that was given (client=), and {router} needs an {needed}:"
            " give it, or both as client=(httpx.Client(...), httpx.AsyncClient(...))"
        )

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> NoReturn:  # noqa: ARG002 - nothing is sent
        """Raise PolicyError with the client that is needed.

        Raises:
            PolicyError: always.
        """
        raise PolicyError(self._message)

    open = send

    def close(self) -> _NotGiven:
        """Do nothing; may be awaited."""
        return self

    abandon = close

    def __await__(self) -> Iterator[None]:
        return iter(())


class InThread:
    """Calls in this thread; a stop request ends them. Its coroutines never wait, so that one code serves threads and asyncio."""

    __slots__ = ("_channels", "cancel")

    def __init__(self, channels: Any, cancel: StopToken | None) -> None:
        self._channels, self.cancel = channels, cancel

    async def send(self, call: Call, until: float) -> Reply:
        """Send the call and return the reply, blocking."""
        return self._channels.send(call, until, self.cancel)  # type: ignore[no-any-return]

    def open(self, call: Call, until: float) -> AbstractAsyncContextManager[Any]:
        """Send the call, blocking, and yield its reply once the head has come."""
        return self._channels.open(call, until, self.cancel)  # type: ignore[no-any-return]

    async def sleep(self, seconds: float) -> None:
        """Block before a retry; a stop request ends the wait. Returns at once after it."""
        (sleep if self.cancel is None else self.cancel.wait)(seconds)


class OnLoop:
    """Calls on an event loop; cancelling the task ends them."""

    cancel: StopToken | None = None

    def __init__(self, channels: Any) -> None:
        self.send, self.sleep = channels.send, asyncio.sleep
        self.open: Any = getattr(channels, "open", None)


CallSender: TypeAlias = InThread | OnLoop  # sending of a call and waiting, as coroutines

# Retries of a call, with back-off: the only retry layer.

T = TypeVar("T")
FIRST_S, MOST_S = 0.1, 2.0  # maximum back-off before the first retry, and before any, seconds
_RETRIABLE = retry_if_exception(lambda e: isinstance(e, CloudError) and e.retriable)


def wait_s(state: RetryCallState) -> float:
    """Return the seconds to wait before the next attempt: what the server's Retry-After said, if it said anything.

    0 if a kept-alive connection had been closed before the first attempt. Else a random time from 0 to a bound, which doubles
    with each attempt from `FIRST_S` to `MOST_S` (full jitter, Brooker, 2015).
    """
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, CloudError) and error.retry_after_s is not None:
        return error.retry_after_s
    bound_s = 0.0 if _is_stale(state) else min(MOST_S, FIRST_S * 2 ** (state.attempt_number - 1))
    return random.uniform(0, bound_s)  # noqa: S311 - jitter, not a secret


def _is_stale(state: RetryCallState) -> bool:
    """Return True if the attempt was the first one, and failed as the server had closed its kept-alive connection."""
    error = state.outcome.exception() if state.outcome is not None else None
    return state.attempt_number == 1 and isinstance(error, CloudError) and error.stale


ABSENT = (404, 405, 501)  # HTTP statuses of a path that does not exist, which is no fault in a probe


class HttpClient(ForkSafe):
    """Client of one endpoint, for threads and asyncio. `sent` and `received` count the bytes of all bodies, retries included."""

    _lock = per_process(SafeLock)  # reentrant: a signal handler may call the router

    def __init__(self, endpoint: HttpEndpoint) -> None:
        self.endpoint = endpoint
        self.sent = self.received = 0
        self.channels, self.channels_async = new_transports(endpoint)
        self.on_loop = OnLoop(self.channels_async)
        self._protocol = "grpc" if hasattr(endpoint, "channels") else "http"
        self._model = str(getattr(endpoint, "model", ""))
        # True if a call in threads ends by its instant, whatever the server does.
        self.keeps_time: bool = getattr(self.channels, "keeps_time", False)

    def run(
        self, talk: Talk, until: float, exchange: Exchange, cancel: StopToken | None = None, posts: Iterator[int] | None = None
    ) -> Any:
        """Run a talk (a generator of calls, which is sent the replies), blocking, and return its outputs.

        It ends by the instant `until` or the endpoint's timeout, whichever is sooner. Calls are retried.

        Args:
            talk: the talk; it is closed at the end.
            until: monotonic instant.
            exchange: exchange that accounts for the calls.
            cancel: its stop request ends the call.
            posts: numbers of the calls, if the talk is one of several in an exchange.

        Raises:
            CloudError: the call failed.
        """
        return settle(self.ask(self.in_thread(cancel), talk, until, exchange, posts))

    async def ask(self, way: CallSender, talk: Talk, until: float, exchange: Exchange, posts: Iterator[int] | None = None) -> Any:
        """Send the calls of a talk one after another, with retries, send it the replies, and return its outputs; see `run`.

        Each POST gets an idempotency key. Refused is thrown into the talk, and then raised, unless the talk returns outputs or
        raises another error. Secrets are masked in a CloudError's message. The talk is closed at the end; until then records of
        httpx in this context are kept out of the log (`OURS`). Cancelling the task cancels the call.
        """
        until, reply, posts = self.until(until), None, posts or count()
        OURS.set(True)
        try:
            while True:
                call = _with_key(talk.send(reply), exchange, posts)  # type: ignore[arg-type]  # the first send starts it
                try:
                    reply = await self._exchange(call, until, exchange, way)
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

    def in_thread(self, cancel: StopToken | None) -> InThread:
        """Return the sender for this thread."""
        return InThread(self.channels, cancel)

    def until(self, until: float) -> float:
        """Return the instant by which a call ends: `until` or the endpoint's own timeout, whichever is sooner."""
        return min(until, monotonic() + self.endpoint.address.timeout_s)

    def may_send(self, cancel: StopToken | None) -> None:
        """Raise Held if the answer is not needed any more."""
        if cancel is not None and cancel.asked:
            raise Held(f"{self.endpoint.where} was not asked: its answer is not needed any more", code="stopped")

    async def _exchange(self, call: Call, until: float, exchange: Exchange, way: CallSender) -> Reply:
        """Send a call, with retries, and return its reply.

        Each attempt is booked in the exchange before it, and settled after it. A call that is a probe is sent once, and its
        failure becomes a reply of status 0, whose body is the error's text.

        Raises:
            Held: a limit forbids an attempt, or a stop was requested before it.
            CloudError: the last attempt failed.
        """

        async def once() -> Reply:
            if (cancel := way.cancel) is not None:
                self.may_send(cancel)
            sent = await exchange.call_off_loop(lambda: self.account_attempt(call, until, exchange))
            try:
                reply = await way.send(sent, until)
            except CloudError as e:
                exchange.after_attempt(0, e, cut=cancel is not None and cancel.asked)
                self.take_back(call, e)
                raise
            return self._book_reply(call, reply, exchange)

        try:
            return await once()
        except CloudError as e:
            if call.probe:
                return Reply(0, {}, str(e).encode())
            return await self.retry(once, iter([e]), until, exchange, way)

    async def retry(
        self,
        once: Callable[[], Awaitable[T]],
        failures: Iterator[CloudError],
        until: float,
        exchange: Exchange,
        way: CallSender,
        shown: Callable[[], bool] = bool,
    ) -> T:
        """Make further attempts after the first has failed, waiting before each; return the first result or raise the last error.

        Only a CloudError that is retriable is retried. There are at most as many retries as the address says, none past the
        deadline, after a stop request, or once a part of the answer was shown; the exchange's breaker and retry budget allow
        each. tenacity is given the failure as its first attempt, so that a success does not pay for it.

        Args:
            once: makes an attempt.
            failures: the first error alone, as an iterator: no frame that the error's traceback refers to may refer to the error.
            until: monotonic instant by which the last retry must begin.
            exchange: exchange that accounts for the attempts.
            way: waits before each retry.
            shown: returns True if a part of the answer was shown.
        """

        async def attempt() -> T:
            for failure in failures:
                raise failure
            return await once()

        def stop(state: RetryCallState) -> bool:
            """Return True if there is no further retry. Takes one from the retry budget otherwise."""
            return (
                state.attempt_number > self.endpoint.address.retries
                or monotonic() + state.upcoming_sleep >= until
                or (way.cancel is not None and way.cancel.asked)
                or shown()
                or not exchange.may_retry(stale=_is_stale(state))
            )

        return await AsyncRetrying(sleep=way.sleep, retry=_RETRIABLE, wait=wait_s, stop=stop, reraise=True)(attempt)

    def account_attempt(self, call: Call, until: float, exchange: Exchange) -> Call:
        """Book an attempt in the exchange, and return the call to send: the same, or with headers that instruments add.

        Adds the body's size to `sent`. Blocks for the disk as `Exchange.before_attempt`, which raises Held if a limit forbids it.
        """
        size = len(call.body)
        exchange.before_attempt(size, until, call.tokens)
        with self._lock:
            self.sent += size
        more = exchange.headers(Sending(self._protocol, call.method, self.endpoint.address.origin, call.path, self._model))
        return call._replace(headers=(*call.headers, *more.items())) if more else call

    def take_back(self, call: Call, error: BaseException | None) -> None:
        """Subtract a call's bytes from those that were sent if there was no connection."""
        if getattr(error, "unsent", False):
            with self._lock:
                self.sent -= len(call.body)

    def count_received(self, size: int) -> None:
        """Count bytes of a reply's body."""
        with self._lock:
            self.received += size

    def _book_reply(self, call: Call, reply: Reply, exchange: Exchange) -> Reply:
        """Settle an attempt by its reply: count its bytes, and record the reported load and success or failure in the exchange.

        Return the reply if its status is 2xx, or any reply to a probe, to which a status of `ABSENT` is no failure.

        Raises:
            Refused: the status is another one.
        """
        size, exchange.status = len(reply.body), reply.status
        self.count_received(size)
        if HEADER in reply.headers:
            exchange.record_load(reply.headers)
        try:
            good = check_status(reply, self.endpoint.where, call.body, self.endpoint.address)
        except CloudError as e:
            absent = call.probe and reply.status in ABSENT  # what was only looked for is not there, which is no fault
            exchange.after_attempt(size, None if absent else e)
            if call.probe:
                return reply
            raise
        exchange.after_attempt(size)
        return good

    def close(self) -> None:
        """Close the connections. Those of an event loop are closed without waiting."""
        self.channels.close()
        self.channels_async.abandon()

    async def aclose(self) -> None:
        """Close the connections of the running event loop and wait for that, then `close` all others."""
        await self.channels_async.close()
        self.close()


def _with_key(call: Call, exchange: Exchange, posts: Iterator[int]) -> Call:
    """Return the call with a header `Idempotency-Key`, by which a server can detect a repetition; takes its number from `posts`.

    From the second call on it declares the next call to the exchange. Probes, other methods than POST, and calls of an exchange
    without identity are returned unchanged, and take no number.
    """
    if call.method != "POST" or call.probe or not exchange.identity:  # without an identity it carries no user data
        return call
    n = next(posts)
    if n:
        exchange.next_call()
    return with_key(call, exchange.identity, n)
