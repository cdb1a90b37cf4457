"""Carries calls by an httpx client: for SOCKS, auth flows, HTTP/2 or mock transports. httpx is imported at the first call.

What `connections` holds and httpx cannot: it limits each read, and not all of a reply's head, and it cannot be cut from another
thread before the reply begins. What has come is looked at piece by piece: a body that trickles ends with the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from functools import partial
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import quote

from edgeroute.core.policy import INF
from edgeroute.errors import BadReply, CloudError, RuntimeMissing, TimedOut, Unreachable
from edgeroute.http.messages import SUCCESS, Address, Call, Reply
from edgeroute.http.wire import context_for, is_tls
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.imports import import_late
from edgeroute.system.process import await_within, start_task_on
from edgeroute.types import StopToken

_DOING = {"ConnectTimeout": "accept a connection", "WriteTimeout": "take the request", "PoolTimeout": "get a free connection"}
MOST_KEPT = 10
"""After so many in a row that were closed it is a fault of the server: it does not answer."""


class Carrier(ForkSafe):
    """Base of the carriers for threads and asyncio: requests, the rules for replies, the errors."""

    own: Any = initially(None)
    """A client of ours, in place of one that the application gave."""
    _first: dict[str, Any] = per_process(dict)
    _using: set[object] = per_process(set)
    """Calls that are under way with it."""

    def __init__(self, address: Address, client: Any) -> None:
        self.address, self.given = address, client
        self._met = False
        self._kept = 0
        """About how many connections may have been kept: so many may be found closed."""

    def made(self, kind: str) -> Any:
        """A client of ours: by the environment's proxies, without redirects."""
        try:
            web = import_late("httpx")
        except ImportError as e:
            raise RuntimeMissing(f"client = 'httpx' needs httpx: pip install 'edgeroute[httpx]' ({e})") from e
        verify = context_for(self.address) if self.address.https else True
        return getattr(web, kind)(verify=verify, timeout=None, limits=web.Limits(max_connections=None))

    def request(self, client: Any, call: Call, left_s: float, *, limited: bool = True) -> Any:
        """The call as a request of the client. `await_within`: each of its steps is, by the time that is left now.

        Raises:
            TimedOut: no time is left.
        """
        if left_s <= 0:
            raise TimedOut(f"{self.address.origin} was not asked: no time was left")
        headers = [("Accept-Encoding", "identity"), *call.headers, *self.address.headers()]
        url = self.address.origin + (quote(call.path, safe="/%:@!$&'()*+,;=~") or "/")
        timeout = left_s if limited and left_s != INF else None
        return client.build_request(call.method, url, content=call.body or None, headers=headers, timeout=timeout)

    def onward(self, client: Any, response: Any) -> Any:
        """The request that a redirect asks for, if the client follows them, and it stays with the host that was given.

        The input, and the credentials, go to the host that the policy names, and to no other.
        """
        onward = response.next_request if client.follow_redirects else None
        if onward is None or f"{onward.url.scheme}://{onward.url.netloc.decode()}" != self.address.origin.lower():
            return None
        return onward

    def met(self) -> None:
        """Note that a reply has come, on a connection that may be kept."""
        self._met, self._kept = True, min(self._kept + 1, MOST_KEPT)

    def late(self, doing: str = "finish its answer") -> TimedOut:
        """The error for an endpoint that did not do this in time."""
        return TimedOut(f"{self.address.origin} did not {doing} in time")

    def error(self, e: Exception) -> CloudError:
        """Maps what the client raised: httpx's errors, and those of the application's auth flow, hooks and transport."""
        origin, web = self.address.origin, sys.modules["httpx"]
        name = type(e).__name__
        if isinstance(e, web.TimeoutException):
            return self.late(_DOING.get(name, "answer"))
        text = str(e)
        if isinstance(e, web.ProxyError):  # status and the proxy's own words
            error = Unreachable(
                f"{origin}: " + (f"the proxy answered {text[:3]}" if text[:3].isdecimal() else "the proxy failed")
            )
            error.retriable = not text.startswith("4")
            return error
        if isinstance(e, web.ProtocolError):  # its text may quote what came
            gone = text.startswith(("Server disconnected", "peer closed"))
            text = "disconnected without sending complete reply" if gone else "illegal reply"
        error = Unreachable(f"{origin}: {self.address.hide(text or name)[:200]}")
        if isinstance(e, web.ProtocolError | web.ReadError) and self.address.https and not self._met:
            error = Unreachable(f"{origin} ended the first exchange: does it ask for a client certificate (cert=)? {text}")
            error.retriable = False
        elif isinstance(e, web.LocalProtocolError) or is_tls(e) or not isinstance(e, web.NetworkError | web.RemoteProtocolError):
            error.retriable = False
        if self._kept and isinstance(e, web.RemoteProtocolError) and str(e).startswith("Server disconnected"):
            error.stale, self._kept = True, self._kept - 1  # the client does not say whether it was a connection that it had kept
        return error


class Received:
    """Reply whose head has come, and what has come of its body, within its bounds.

    Attributes:
        status: of HTTP.
        headers: names are lower case.
        until: the instant by which the next piece must come.

    Raises:
        BadReply: a content encoding, or a success that says it is longer.
    """

    def __init__(self, carrier: Any, call: Call, response: Any, until: float) -> None:
        carrier.met()
        self._carrier, self._response, self.until = carrier, response, until
        address: Address = carrier.address
        self._origin = address.origin
        self._limit = address.max_reply_bytes if call.max_reply is None else call.max_reply
        self._size = 0
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw
        }
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadReply(f"{self._origin} answered with an encoding, though asked not to: unread")
        length = self.headers.get("content-length", "")
        said = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0  # noqa: PLR2004 - of 64 bits
        self.unread = not self._fits(said)
        """Whether the rest is left unread: of an error that is too long."""

    def add(self, piece: bytes) -> bool:
        """Count a piece. Return whether to pass it on.

        Raises:
            BadReply: a success is too long.
        """
        self._size += len(piece)
        self.unread = not self._fits(self._size)
        return not self.unread

    def _fits(self, size: int) -> bool:
        if size > self._limit and self.status in SUCCESS:
            raise BadReply(f"{self._origin} answered more than {self._limit} bytes, the most that is expected (max_reply)")
        return size <= self._limit


class HttpxConnections(Carrier):
    """As `Connections`, by an `httpx.Client`: the one given, which stays open, or one of its own."""

    _closed = False

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """As `Connections.send`."""
        with self.open(call, until, cancel) as response:
            pieces = list(response)
            return Reply(response.status, response.headers, b"" if response.unread else b"".join(pieces))

    @contextlib.contextmanager
    def open(self, call: Call, until: float, cancel: StopToken | None = None) -> Iterator[HttpxResponse]:
        """As `Connections.open`."""
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self.address.origin} was not asked: its answer is not needed any more")
        response, failed, using, own = None, None, self._using, object()
        using.add(own)
        try:
            client = self.given or self.own
            if client is None:
                client = self.own = self._first.setdefault("client", self.made("Client"))  # atomic: calls at once share one
            request = self.request(client, call, until - monotonic())
            try:
                response = self._answered(client, request)
            except CloudError:
                raise
            except Exception as e:  # noqa: BLE001 - code of the application may run in it
                failed = self.error(e)
            if failed is not None:
                raise failed
            if cancel is not None:
                cancel.on_ask(partial(_cut, response))
            yield HttpxResponse(self, call, response, until, cancel)
        finally:
            if cancel is not None:
                cancel.on_ask(None)
            if response is not None:
                with contextlib.suppress(Exception):
                    response.close()
            using.discard(own)
            if self._closed:
                self._close_unused()

    def _answered(self, client: Any, request: Any) -> Any:
        for _ in range(client.max_redirects + 1):
            response = client.send(request, stream=True, follow_redirects=False)
            request = self.onward(client, response)
            if request is None:
                break
            response.close()
        return response

    def close(self) -> None:
        """Closes a client of its own, once no call is under way with it."""
        self._closed = True
        self._close_unused()

    def _close_unused(self) -> None:
        if not self._using:
            own, self.own, self._first = self.own, None, {}
            if own is not None:
                own.close()


class HttpxResponse(Received):
    """As `Response`."""

    def __init__(self, carrier: Carrier, call: Call, response: Any, until: float, cancel: StopToken | None) -> None:
        super().__init__(carrier, call, response, until)
        self._cancel = cancel

    def __iter__(self) -> Iterator[bytes]:
        """As of `Response`."""
        response = self._response
        pieces = iter([response.content]) if response.is_stream_consumed else response.iter_raw()  # a mock's may be there
        while not self.unread:
            failed = None
            try:
                piece = next(pieces, None)
            except Exception as e:  # noqa: BLE001 - as above
                failed = self._carrier.error(e)
            if self._cancel is not None and self._cancel.asked:
                failed = Unreachable(f"{self._origin}: its answer is not needed any more")
            if failed is not None:
                raise failed
            if piece is None:
                return
            if monotonic() > self.until:
                raise self._carrier.late()
            if self.add(piece):
                yield piece


def _cut(response: Any) -> None:
    """Ends a reply from another thread. A connection of HTTP/2 is shared: there the next piece ends it."""
    stream = response.extensions.get("network_stream")
    sock = None if stream is None or response.http_version == "HTTP/2" else stream.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


# Carries calls by an httpx client on asyncio; see `httpx_carrier`.
#
# Here the time limit is for all of a call, which its task's cancellation ends at once.

T = TypeVar("T")


class AsyncHttpxConnections(Carrier):
    """As `AsyncConnections`, by an `httpx.AsyncClient`: the one given, which stays open, or one of its own for an event loop."""

    def __init__(self, address: Address, client: Any) -> None:
        super().__init__(address, client)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, call: Call, until: float) -> Reply:
        """As `AsyncConnections.send`."""
        async with self.open(call, until) as response:
            pieces = [piece async for piece in response]
            return Reply(response.status, response.headers, b"" if response.unread else b"".join(pieces))

    @contextlib.asynccontextmanager
    async def open(self, call: Call, until: float) -> AsyncIterator[AsyncHttpxResponse]:
        """As `AsyncConnections.open`."""
        client, loop = self.given or self.own, asyncio.get_running_loop()
        if client is None or (self.given is None and self._loop is not loop):  # one of another loop cannot be used here
            client, self._loop = self.made("AsyncClient"), loop
            self.own = client
        request = self.request(client, call, until - monotonic(), limited=False)
        response = await self.carried(until, self._answered(client, request), "answer")
        try:
            yield AsyncHttpxResponse(self, call, response, until)
        finally:
            with contextlib.suppress(Exception):
                await response.aclose()

    async def carried(self, until: float, steps: Coroutine[Any, Any, T], doing: str = "finish its answer") -> T:
        """Awaits what the client does, by that instant.

        Raises:
            CloudError: it fails.
        """
        left_s = until - monotonic()
        if left_s <= 0:
            steps.close()
            raise self.late(doing)
        try:
            return await await_within(left_s, steps)
        except CloudError:
            raise
        except (asyncio.TimeoutError, TimeoutError):
            failed: CloudError = self.late(doing)
        except Exception as e:  # noqa: BLE001 - code of the application may run in it
            failed = self.error(e)
        raise failed

    async def _answered(self, client: Any, request: Any) -> Any:
        for _ in range(client.max_redirects + 1):
            response = await client.send(request, stream=True, follow_redirects=False)
            request = self.onward(client, response)
            if request is None:
                break
            await response.aclose()
        return response

    async def close(self) -> None:
        """Closes a client of its own."""
        own = self.own
        if own is not None and self._loop is asyncio.get_running_loop():  # else `abandon` has its own loop close it
            self.own = None
            await own.aclose()

    def abandon(self) -> None:
        """`close` from outside the loop, or from a thread."""
        own, loop, self.own = self.own, self._loop, None
        if own is not None and loop is not None and loop.is_running():
            start_task_on(loop, own.aclose)


class AsyncHttpxResponse(Received):
    """As `AsyncResponse`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """As of `AsyncResponse`."""
        response = self._response
        if response.is_stream_consumed:  # a mock's may be there
            if self.add(response.content):
                yield response.content
            return
        pieces = response.aiter_raw()
        while not self.unread:
            piece = await self._carrier.carried(self.until, _next(pieces))
            if piece is None:
                return
            if self.add(piece):
                yield piece


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)  # a coroutine, as `anext` gives another awaitable
