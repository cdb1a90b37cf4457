"""Speeches of an endpoint, whose answers come in pieces: run by its client, attempt by attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.cloud.base import Call
from edgeroute.cloud.load_reports import HEADER
from edgeroute.cloud.quiet import OURS
from edgeroute.cloud.speaking import Speaking
from edgeroute.cloud.speech import Head, Said, Speech
from edgeroute.core.policy import INF
from edgeroute.errors import CloudError, Unreachable
from edgeroute.types import StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.http import HttpClient
    from edgeroute.cloud.retries import Exchange

Say: TypeAlias = Callable[[], Speech[Any]]
"""Makes a speech anew, for each attempt."""
_LEFT = Unreachable("it was left before its end")


def speak(
    client: HttpClient, say: Say, until: float, exchange: Exchange, cancel: StopToken | None = None
) -> Generator[Said, None, Any]:
    """Runs a speech, yields the pieces of its answer, and returns its outputs. Closing it early closes the connection.

    It has until the endpoint's own timeout to begin, with all its retries, then `between_s` for each further piece, and in
    all until the instant `until`. It is not sent again once a piece was shown.

    Raises:
        CloudError: it failed; `partial` is what had arrived.
    """
    by, n = client.until(until), _number(exchange, count())
    try:
        again = client.retries(by, exchange, cancel)
        first, rest = again.call(lambda: _first(_attempt(client, say, by, until, exchange, cancel, n)))
        try:
            while type(first) is Said:
                yield first
                first = _next(rest)
        finally:
            rest.close()
    except CloudError as e:
        e.args = (client.endpoint.address.hide(str(e)),)
        raise
    return first


def hear(
    client: HttpClient,
    say: Say,
    until: float,
    exchange: Exchange,
    cancel: StopToken | None = None,
    posts: Iterator[int] | None = None,
) -> Any:
    """As `speak`, to its end, where nobody is shown the pieces: so it may be sent again after some have come."""
    by, n = client.until(until), _number(exchange, posts or count())
    try:
        again = client.retries(by, exchange, cancel)
        return again.call(lambda: _last(_attempt(client, say, by, until, exchange, cancel, n)))
    except CloudError as e:
        e.args = (client.endpoint.address.hide(str(e)),)
        raise


async def speak_async(
    client: HttpClient,
    say: Say,
    until: float,
    exchange: Exchange,
    show: Callable[[Said], object] | None = None,
    posts: Iterator[int] | None = None,
) -> Any:
    """As `speak` on an event loop; `show` is called with each piece. None: as `hear`.

    Cancelling the task closes the connection.
    """
    by, n = client.until(until), _number(exchange, posts or count())
    shown = False

    def show_it(piece: Said) -> None:
        nonlocal shown
        if show is not None:
            shown = True
            show(piece)

    async def once() -> Any:
        return await _attempt_async(client, say, by, until, exchange, show_it, n)

    try:
        return await client.retries(by, exchange, shown=lambda: shown).call_async(once)
    except CloudError as e:
        e.args = (client.endpoint.address.hide(str(e)),)
        raise


def _attempt(
    client: HttpClient, say: Say, by: float, until: float, exchange: Exchange, cancel: StopToken | None, n: int
) -> Generator[Said, None, Any]:
    """One attempt of a speech: yields its pieces, returns its outputs."""
    speaking = _speaking(client, say, by, until)
    call = _with_key(speaking.begin(), exchange, n)
    client.may_send(cancel)
    call = client.leaving(call, until, exchange)
    ended: BaseException | None = _LEFT
    OURS.set(True)
    try:
        with client.channels.open(call, by, cancel) as response:
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
        _spoken(client, speaking, exchange, ended, cut=ended is _LEFT or (cancel is not None and cancel.asked))
    return speaking.outputs


async def _attempt_async(
    client: HttpClient, say: Say, by: float, until: float, exchange: Exchange, show: Callable[[Said], object], n: int
) -> Any:
    """As `_attempt`."""
    speaking = _speaking(client, say, by, until)
    call = _with_key(speaking.begin(), exchange, n)
    call = client.leaving(call, until, exchange)
    ended: BaseException | None = _LEFT
    OURS.set(True)
    try:
        async with client.channels_async.open(call, by) as response:
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
        _spoken(client, speaking, exchange, ended, cut=ended is _LEFT)
    return speaking.outputs


def _speaking(client: HttpClient, say: Say, by: float, until: float) -> Speaking:
    return Speaking(say(), client.endpoint.where, by, until, getattr(client.endpoint, "between_s", INF))


def _spoken(client: HttpClient, speaking: Speaking, exchange: Exchange, error: BaseException | None, *, cut: bool) -> None:
    """Counts an attempt that has ended: whole, by an error, or since nobody listens any more."""
    speaking.close()
    client.count_received(speaking.received)
    exchange.after_attempt(speaking.received, error, cut=cut and error is not None, tokens=speaking.tokens())


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
