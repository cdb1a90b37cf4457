"""Client of an endpoint: carries its talks and speeches, over HTTP or what the endpoint brings."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from itertools import count
from time import monotonic
from typing import Any, TypeAlias

from edgeroute.cloud.base import Call, HttpEndpoint, Reply, Talk, checked
from edgeroute.cloud.carriers import carriers
from edgeroute.cloud.exchange import Sending
from edgeroute.cloud.load_reports import HEADER
from edgeroute.cloud.quiet import OURS
from edgeroute.cloud.retries import Exchange, Retries
from edgeroute.cloud.speaking import Speaking
from edgeroute.cloud.speech import Head, Said, Speech
from edgeroute.core.policy import INF
from edgeroute.core.walk import new
from edgeroute.errors import CloudError, Held, Refused, Unreachable
from edgeroute.system import renew_after_fork
from edgeroute.types import StopToken

Say: TypeAlias = Callable[[], Speech[Any]]
"""Makes a speech anew, for each attempt."""
_LEFT = Unreachable("it was left before its end")
ABSENT = (404, 405, 501)


class HttpClient:
    """Client of one endpoint, for threads and asyncio. `sent` and `received` count the bytes of all bodies, retries included."""

    def __init__(self, endpoint: HttpEndpoint) -> None:
        self.endpoint = endpoint
        self.sent = self.received = 0
        self._channels, self._async = carriers(endpoint)
        self._protocol = "grpc" if hasattr(endpoint, "channels") else "http"
        self._model = str(getattr(endpoint, "model", ""))
        self.keeps_time: bool = getattr(self._channels, "keeps_time", False)
        """Whether a call in threads ends by its instant, whatever the server does."""
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

    def speak(self, say: Say, until: float, exchange: Exchange, cancel: StopToken | None = None) -> Generator[Said, None, Any]:
        """Runs a speech, yields the pieces of its answer, and returns its outputs. Closing it early closes the connection.

        It has until the endpoint's own timeout to begin, with all its retries, then `between_s` for each further piece, and in
        all until the instant `until`. It is not sent again once a piece was shown.

        Raises:
            CloudError: it failed; `partial` is what had arrived.
        """
        by, n = self._until(until), _number(exchange, count())
        try:
            again = self._retries(by, exchange, cancel)
            first, rest = again.call(lambda: _first(self._attempt(say, by, until, exchange, cancel, n)))
            try:
                while type(first) is Said:
                    yield first
                    first = _next(rest)
            finally:
                rest.close()
        except CloudError as e:
            e.args = (self.endpoint.address.hide(str(e)),)
            raise
        return first

    def hear(
        self, say: Say, until: float, exchange: Exchange, cancel: StopToken | None = None, posts: Iterator[int] | None = None
    ) -> Any:
        """As `speak`, to its end, where nobody is shown the pieces: so it may be sent again after some have come."""
        by, n = self._until(until), _number(exchange, posts or count())
        try:
            again = self._retries(by, exchange, cancel)
            return again.call(lambda: _last(self._attempt(say, by, until, exchange, cancel, n)))
        except CloudError as e:
            e.args = (self.endpoint.address.hide(str(e)),)
            raise

    async def speak_async(
        self,
        say: Say,
        until: float,
        exchange: Exchange,
        show: Callable[[Said], object] | None = None,
        posts: Iterator[int] | None = None,
    ) -> Any:
        """As `speak` on an event loop; `show` is called with each piece. None: as `hear`.

        Cancelling the task closes the connection.
        """
        by, n = self._until(until), _number(exchange, posts or count())
        shown = False

        def show_it(piece: Said) -> None:
            nonlocal shown
            if show is not None:
                shown = True
                show(piece)

        async def once() -> Any:
            return await self._attempt_async(say, by, until, exchange, show_it, n)

        try:
            return await self._retries(by, exchange, shown=lambda: shown).call_async(once)
        except CloudError as e:
            e.args = (self.endpoint.address.hide(str(e)),)
            raise

    def _attempt(
        self, say: Say, by: float, until: float, exchange: Exchange, cancel: StopToken | None, n: int
    ) -> Generator[Said, None, Any]:
        """One attempt of a speech: yields its pieces, returns its outputs."""
        speaking = self._speaking(say, by, until)
        call = _with_key(speaking.begin(), exchange, n)
        self._may_send(cancel)
        call = self._leaving(call, until, exchange)
        ended: BaseException | None = _LEFT
        OURS.set(True)
        try:
            with self._channels.open(call, by, cancel) as response:
                body = iter(response)
                exchange.status = response.status
                if HEADER in response.headers:
                    exchange.reported(response.headers)
                step = speaking.opened(Head(response.status, response.headers))
                while step is not None:
                    if type(step) is Said:
                        yield step
                        step = speaking.heard(None)
                        continue
                    response.until = speaking.limit(step)
                    try:
                        part = next(body, None)
                    except CloudError as e:
                        step = speaking.failed(e, step)
                        continue
                    step = speaking.heard(part)
            ended = speaking.error
            if ended is not None:
                raise ended
        except CloudError as e:
            ended = e
            raise
        finally:
            OURS.set(False)
            self._spoken(speaking, exchange, ended, cut=ended is _LEFT or (cancel is not None and cancel.asked))
        return speaking.outputs

    async def _attempt_async(
        self, say: Say, by: float, until: float, exchange: Exchange, show: Callable[[Said], object], n: int
    ) -> Any:
        """As `_attempt`."""
        speaking = self._speaking(say, by, until)
        call = _with_key(speaking.begin(), exchange, n)
        call = self._leaving(call, until, exchange)
        ended: BaseException | None = _LEFT
        OURS.set(True)
        try:
            async with self._async.open(call, by) as response:
                body = response.__aiter__()
                exchange.status = response.status
                if HEADER in response.headers:
                    exchange.reported(response.headers)
                step = speaking.opened(Head(response.status, response.headers))
                while step is not None:
                    if type(step) is Said:
                        show(step)
                        step = speaking.heard(None)
                        continue
                    response.until = speaking.limit(step)
                    try:
                        part = await _next_async(body)
                    except CloudError as e:
                        step = speaking.failed(e, step)
                        continue
                    step = speaking.heard(part)
            ended = speaking.error
            if ended is not None:
                raise ended
        except CloudError as e:
            ended = e
            raise
        finally:
            OURS.set(False)
            self._spoken(speaking, exchange, ended, cut=ended is _LEFT)
        return speaking.outputs

    def _speaking(self, say: Say, by: float, until: float) -> Speaking:
        return Speaking(say(), self.endpoint.where, by, until, getattr(self.endpoint, "between_s", INF))

    def _spoken(self, speaking: Speaking, exchange: Exchange, error: BaseException | None, *, cut: bool) -> None:
        """Counts an attempt that has ended: whole, by an error, or since nobody listens any more."""
        speaking.close()
        with self._lock:
            self.received += speaking.received
        exchange.after_attempt(speaking.received, error, cut=cut and error is not None, tokens=speaking.tokens())

    def _until(self, until: float) -> float:
        return min(until, monotonic() + self.endpoint.address.timeout_s)

    def _may_send(self, cancel: StopToken | None) -> None:
        if cancel is not None and cancel.asked:
            raise Held(f"{self.endpoint.where} was not asked: its answer is not needed any more", code="stopped")

    def _exchange(self, call: Call, until: float, exchange: Exchange, cancel: StopToken | None) -> Reply:
        def once() -> Reply:
            if cancel is not None:
                self._may_send(cancel)
            sent = self._leaving(call, until, exchange)
            try:
                reply = self._channels.send(sent, until, cancel)
            except CloudError as e:
                exchange.after_attempt(0, e, cut=cancel is not None and cancel.asked)
                raise
            return self._taken(call, reply, exchange)

        try:
            return once()
        except CloudError as e:
            if call.probe:
                return Reply(0, {}, str(e).encode())
            return self._retries(until, exchange, cancel).again(once, iter([e]))

    async def _exchange_async(self, call: Call, until: float, exchange: Exchange) -> Reply:
        async def once() -> Reply:
            sent = self._leaving(call, until, exchange)
            try:
                reply = await self._async.send(sent, until)
            except CloudError as e:
                exchange.after_attempt(0, e)
                raise
            return self._taken(call, reply, exchange)

        try:
            return await once()
        except CloudError as e:
            if call.probe:
                return Reply(0, {}, str(e).encode())
            return await self._retries(until, exchange).again_async(once, iter([e]))

    def _retries(
        self,
        until: float,
        exchange: Exchange,
        cancel: StopToken | None = None,
        shown: Callable[[], bool] | None = None,
    ) -> Retries:
        return Retries(self.endpoint.address.retries, until, exchange, cancel, shown)

    def _leaving(self, call: Call, until: float, exchange: Exchange) -> Call:
        """The call as it is sent, once the exchange has allowed it."""
        size = len(call.body)
        if call.tokens is None:
            exchange.before_attempt(size, until)
        else:
            exchange.before_attempt(size, until, call.tokens)
        with self._lock:
            self.sent += size
        if not exchange.followed:
            return call
        more = exchange.headers(Sending(self._protocol, call.method, self.endpoint.address.origin, call.path, self._model))
        return call._replace(headers=(*call.headers, *more.items())) if more else call

    def _taken(self, call: Call, reply: Reply, exchange: Exchange) -> Reply:
        size, exchange.status = len(reply.body), reply.status
        with self._lock:
            self.received += size
        if HEADER in reply.headers:
            exchange.reported(reply.headers)
        try:
            good = checked(reply, self.endpoint.where, call.body, self.endpoint.address)
        except CloudError as e:
            absent = call.probe and reply.status in ABSENT  # what was only looked for is not there, which is no fault
            exchange.after_attempt(size, None if absent else e)
            if call.probe:
                return reply
            raise
        exchange.after_attempt(size)
        return good

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
    method, path, headers, *rest = call
    key = f"{exchange.identity}/{n}" if n else exchange.identity
    return new(Call, (method, path, (*headers, ("Idempotency-Key", key)), *rest))


def _number(exchange: Exchange, posts: Iterator[int]) -> int:
    """The number of the next call of an exchange."""
    n = next(posts)
    if n:
        exchange.next_call()
    return n


def _with_key(call: Call, exchange: Exchange, n: int) -> Call:
    if not exchange.identity:
        return call
    key = f"{exchange.identity}/{n}" if n else exchange.identity
    return call._replace(headers=(*call.headers, ("Idempotency-Key", key)))


def _next(pieces: Generator[Said, None, Any]) -> Any:
    """The next piece; or, at the end, the outputs."""
    try:
        return next(pieces)
    except StopIteration as end:
        return end.value


def _first(pieces: Generator[Said, None, Any]) -> tuple[Any, Generator[Said, None, Any]]:
    return _next(pieces), pieces


def _last(pieces: Generator[Said, None, Any]) -> Any:
    """The outputs alone."""
    while type(last := _next(pieces)) is Said:
        pass
    return last


async def _next_async(body: AsyncIterator[bytes]) -> bytes | None:
    try:
        return await body.__anext__()
    except StopAsyncIteration:
        return None
