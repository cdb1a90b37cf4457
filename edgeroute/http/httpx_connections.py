"""Connections by a client of httpx2 or httpx, for threads and asyncio: for SOCKS, auth flows, HTTP/2 or mock transports.

The library is imported at the first call; a client of the application may be of either. Unlike `connections`, it limits the time
of each read but not of a reply's whole head, and cannot be interrupted from another thread before the reply begins. The time of
the body is checked after each piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from inspect import isawaitable
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import quote

from edgeroute.core.error_codes_and_texts import class_name, error_message
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.errors import BadReply, CloudError, TimedOut, Unreachable
from edgeroute.http.connections import system_error
from edgeroute.http.messages_addresses_and_secrets import SUCCESS, Address, Call, Reply
from edgeroute.http.sans_io_tls_connection import context_for, is_tls
from edgeroute.system.contained_calls_and_tasks import await_within, settle, start_task_on
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.late_imports_and_plugins import import_httpx
from edgeroute.system.sanitised_logs_and_contained_errors import Failures
from edgeroute.types import StopToken

# httpx's timeout -> step that the endpoint did not do in time.
_DOING = {"ConnectTimeout": "accept a connection", "WriteTimeout": "take the request", "PoolTimeout": "get a free connection"}
# Parts of Python's and httpx's own texts for a client that cannot be used; nothing else of such an error's text is quoted.
_UNUSABLE = ("the client has been closed", "Event loop is closed", "to a different loop", "to a different event loop")
_ANEW = ', as this AsyncClient serves one event loop: give each its own, or client="httpx"'
MOST_KEPT = 10  # maximum of `Carrier._kept`: after so many closed connections in a row, the server itself is at fault
T = TypeVar("T")


class Carrier(ForkSafe):
    """Base of the connections by an httpx client: builds requests, follows redirects, maps errors."""

    own: Any = initially(None)  # httpx client made by edgeroute; None: none yet, or the application gave one
    _first: dict[str, Any] = per_process(dict)  # client under the key "client", so that concurrent first calls share it
    _using: set[object] = per_process(set)  # tokens of the calls under way

    def __init__(self, address: Address, client: Any) -> None:
        self.address, self.given, self._failures = address, client, Failures()
        self._met = False
        self._kept = 0  # estimate of the connections that the client keeps alive: so many may prove closed by the server

    def new_client(self, kind: str) -> Any:
        """Return a new httpx client: with the environment's proxies, this address's TLS settings, no redirects and no timeout.

        Args:
            kind: `Client` or `AsyncClient`.

        Raises:
            RuntimeMissing: neither httpx2 nor httpx is installed.
            PolicyError: the certificates cannot be read.
        """
        web = import_httpx("client = 'httpx' needs httpx2 or httpx: pip install 'edgeroute[httpx]'")
        verify = context_for(self.address) if self.address.https else True
        return getattr(web, kind)(verify=verify, timeout=None, limits=web.Limits(max_connections=None))

    def request(self, client: Any, call: Call, left_s: float, *, limited: bool = True) -> Any:
        """Return the call as a request of the client, not sent, with the address's headers and secrets.

        Args:
            client: the httpx client.
            call: the call; its `query` is not sent.
            left_s: seconds left.
            limited: True: each step of the client has `left_s` as its timeout; False: no timeout.

        Raises:
            TimedOut: no time is left.
            PolicyError: a secret is not set, or cannot be sent.
        """
        if left_s <= 0:
            raise TimedOut(f"{self.address.origin} was not asked: no time was left", unsent=True)
        headers = [("Accept-Encoding", "identity"), *call.headers, *self.address.headers()]
        url = self.address.origin + (quote(call.path, safe="/%:@!$&'()*+,;=~") or "/")
        timeout = left_s if limited and left_s != INF else None
        return client.build_request(call.method, url, content=call.body or None, headers=headers, timeout=timeout)

    def redirect_request(self, client: Any, response: Any) -> Any:
        """Return the request of a redirect, if the client follows redirects and the host stays the same; else None.

        The input and the credentials go only to the host that the policy names. None too for another scheme or port.
        """
        following = response.next_request if client.follow_redirects else None
        at = "" if following is None else f"{following.url.scheme}://{following.url.netloc.decode()}"
        return following if at == self.address.origin.lower() else None

    async def send_following(self, client: Any, request: Any) -> Any:
        """Send a request, follow redirects within the host as far as the client does, and return the last response, body unread.

        After too many redirects, or for one to another host, that is the redirect's. The others are closed. A response that a
        hook rejects for its status, by `raise_for_status`, is returned as well: what a status means is decided here. With a
        client for threads it blocks, and never waits.

        Raises:
            Exception: the client's; HTTPStatusError only of another request, as of an auth flow for a token, or of a success.
        """
        for _ in range(client.max_redirects + 1):
            try:
                response: Any = await _result(client.send(request, stream=True, follow_redirects=False))
            except Exception as e:
                response = getattr(e, "response", None) if "HTTPStatusError" in _kinds(e) else None
                if getattr(response, "request", None) is not request or response.status_code in SUCCESS:
                    raise
            if (request := self.redirect_request(client, response)) is None:
                break
            await _result(response.aclose() if hasattr(client, "aclose") else response.close())
        return response

    async def await_step(self, until: float, steps: Coroutine[Any, Any, T], doing: str = "finish its answer") -> T:
        """Await a step of the client until an instant, and return its result.

        Without time left the step is closed unawaited.

        Raises:
            CloudError: the step failed, or was late ("did not `doing` in time").
        """
        left_s = until - monotonic()
        if left_s <= 0:
            steps.close()
            raise self.late(doing)
        try:
            return await await_within(left_s, steps)
        except (asyncio.TimeoutError, TimeoutError):
            failed: CloudError = self.late(doing)
        except Exception as e:  # noqa: BLE001 - code of the application may run in it
            failed = self.error(e)
        raise failed

    def note_reply(self) -> None:
        """Record that a reply came, on a connection that the client may keep alive."""
        self._met, self._kept = True, min(self._kept + 1, MOST_KEPT)

    def late(self, doing: str = "finish its answer") -> TimedOut:
        """Return the error for an endpoint that did not do something in time."""
        return TimedOut(f"{self.address.origin} did not {doing} in time")

    def error(self, e: Exception) -> CloudError:
        """Return the CloudError for an exception of the client: of httpx, or of the application's auth flow, hooks and transport.

        It has its flags: `retriable`, `stale` for a kept connection that the server had closed, and `unsent` if there was no
        connection; not if the client follows redirects. Secrets are masked. Counts a closed connection off `_kept`. A
        CloudError is returned as it is.
        """
        error = e if isinstance(e, CloudError) else self._error(e)
        unconnected = not _kinds(e).isdisjoint({"ConnectError", "ConnectTimeout", "PoolTimeout"})
        error.unsent |= unconnected and not getattr(self.given, "follow_redirects", False)
        return error

    def _error(self, e: Exception) -> CloudError:
        """Return the CloudError for an exception, with all flags but `unsent`: TimedOut for a timeout, else Unreachable.

        Errors of TLS, of the request, of a proxy's 4xx, of the first exchange over TLS, and those that are not the network's are
        not retriable. Of a text only what the system wrote, and the phrases of `_UNUSABLE`, are quoted; else the type stands for
        it. What the application's code raised is logged. Counts a closed connection off `_kept`.
        """
        origin, text, kinds = self.address.origin, error_message(e), _kinds(e)
        if "TimeoutException" in kinds:
            return self.late(_DOING.get(class_name(e), "answer"))
        known = _system_error(e) if "NetworkError" in kinds else None
        # a text may quote the input, or what came
        unusable = next((part + _ANEW * ("loop" in part) for part in _UNUSABLE if part in text), class_name(e))
        why = unusable if known is None else str(known)
        if "ProxyError" in kinds:  # status and the proxy's own words
            why = "the proxy " + (f"answered {text[:3]}" if text[:3].isdecimal() else "failed")
        elif "ProtocolError" in kinds:
            gone = text.startswith(("Server disconnected", "peer closed"))
            why = "disconnected without sending complete reply" if gone else "illegal reply"
        elif "TransportError" not in kinds:
            self._failures.log("the httpx client (its hooks, auth flow, transport)", e)
        error = Unreachable(f"{origin}: {self.address.hide(why)[:200]}")
        if kinds & {"ProtocolError", "ReadError"} and self.address.https and not self._met:
            error = Unreachable(f"{origin} ended the first exchange: does it ask for a client certificate (cert=)? {why}")
            error.retriable = False
        elif "LocalProtocolError" in kinds or is_tls(known) or not kinds & {"NetworkError", "RemoteProtocolError"}:
            error.retriable = "ProxyError" in kinds and not text.startswith("4")
        if self._kept and "RemoteProtocolError" in kinds and text.startswith("Server disconnected"):
            error.stale, self._kept = True, self._kept - 1  # the client does not say whether it was a connection that it had kept
        return error


def _kinds(e: Exception) -> set[str]:
    """Return the names of an exception's classes that are the client's."""
    return {kind.__name__ for kind in type(e).__mro__ if kind.__module__.partition(".")[0] in {"httpx2", "httpx"}}


def _system_error(e: Any) -> Any:
    """Return the system's error that is behind one of httpx: the first of its causes that has a number; None if none has.

    Of a group of causes, as of several addresses, the first counts. A cause is also what `from None` hides, as httpcore does. The
    text is the system's for the number, not what other code may have written.
    """
    while e is not None and not (isinstance(e, OSError) and isinstance(e.errno, int)):
        group = getattr(e, "exceptions", None)
        cause = e.__cause__ or (e.__context__ if e.__suppress_context__ else None)
        e = group[0] if isinstance(group, tuple) and group else cause
    return e if e is None or type(e).__module__ in {"ssl", "socket"} else system_error(e.errno)


async def _result(value: Any) -> Any:
    """Return what a client for threads returned, or await that of one for asyncio."""
    return await value if isawaitable(value) else value


class HttpxResponse:
    """Reply whose head has come, and whose body is read piece by piece, within its limit.

    Args:
        carrier: connections that received it.
        call: the call; its `max_reply` limits the body.
        response: httpx's response.
        until: instant of the monotonic clock by which the next piece must come.
        next_piece: returns the next piece by an instant; None: the end.

    Attributes:
        status: HTTP status.
        headers: values by lower-case name.

    Raises:
        BadReply: the reply has a content encoding, or is a success whose Content-Length exceeds the limit.
    """

    def __init__(
        self, carrier: Carrier, call: Call, response: Any, until: float, next_piece: Callable[[float], Awaitable[bytes | None]]
    ) -> None:
        carrier.note_reply()
        address = carrier.address
        self._next_piece, self._until, self._origin = next_piece, until, address.origin
        self._limit = address.max_reply_bytes if call.max_reply is None else call.max_reply
        self._size = 0
        self.status: int = response.status_code
        raw: list[tuple[bytes, bytes]] = response.headers.raw
        self.headers: Mapping[str, str] = {str(name, "latin-1").lower(): str(value, "latin-1") for name, value in raw}
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadReply(f"{self._origin} answered with an encoding, though asked not to: unread")
        length = self.headers.get("content-length", "")
        declared = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0  # noqa: PLR2004 - of 64 bits
        self._unread = not self._fits(declared)  # True if the rest of the body is not read: of an error reply that is too long

    async def read(self, until: float | None = None) -> bytes | None:
        """Return the next piece of the body; None at its end. Of an error reply that is too long, the rest is not read.

        Args:
            until: instant by which the piece must come, and later ones; None: that of before.

        Raises:
            CloudError: the piece is late, the connection breaks, the call is cancelled, or a success is too long.
        """
        self._until = self._until if until is None else until
        if self._unread or (piece := await self._next_piece(self._until)) is None:
            return None
        self._size += len(piece)
        self._unread = not self._fits(self._size)
        return None if self._unread else piece

    async def whole(self) -> Reply:
        """Read the rest of the body, and return the reply; an error reply that is too long has no body."""
        pieces = list[bytes]()
        while (piece := await self.read()) is not None:
            pieces.append(piece)
        return Reply(self.status, self.headers, b"" if self._unread else b"".join(pieces))

    def _fits(self, size: int) -> bool:
        """Return True if a size is within the limit; raise BadReply if it is not and the reply is a success."""
        if size > self._limit and self.status in SUCCESS:
            raise BadReply(f"{self._origin} answered more than {self._limit} bytes: raise max_reply, or ask for less")
        return size <= self._limit


async def _whole(opened: AbstractAsyncContextManager[HttpxResponse]) -> Reply:
    """Return the whole reply of a response that is yet to be opened."""
    async with opened as response:
        return await response.whole()


def _pieces(response: Any, unread: Callable[[], Any]) -> Any:
    """Return an iterator of the body's pieces: one if the body is there, as a mock's, or one that a hook read; else `unread()`.

    An error reply that is closed unread, as after a hook that rejects it, has none.
    """
    with contextlib.suppress(RuntimeError):  # it is not there
        return iter([response.content])
    return iter(()) if response.is_closed and response.status_code not in SUCCESS else unread()


async def _next(pieces: Any) -> bytes | None:
    """Return the next piece of a plain or an asynchronous iterator, None at the end."""
    return await anext(pieces, None) if hasattr(pieces, "__anext__") else next(pieces, None)


class HttpxConnections(Carrier):
    """Connections for threads, with the methods of `Connections`, by an `httpx.Client`.

    The application's client stays open; one made by edgeroute is closed by `close`.
    """

    _closed = False

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Send the call and return the reply by the instant `until`; blocks. See `Connections.send`."""
        return settle(_whole(self.open(call, until, cancel)))

    @contextlib.asynccontextmanager
    async def open(self, call: Call, until: float, cancel: StopToken | None = None) -> AsyncIterator[HttpxResponse]:
        """Send the call, and yield the reply once its head has come; blocks. See `Connections.open`.

        At the end the response is closed, also if its body was not read. Without a client of the application one is made at the
        first call; if `close` found it in use, it is closed after the last call. A stop request later than the head cuts the
        response; it does not end the wait for the head.

        Raises:
            CloudError: there is no reply, no valid one, or a stop was requested before; also while the body is read.
        """
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self.address.origin} was not asked: its answer is not needed any more", unsent=True)
        response: Any = None
        using, token = self._using, object()
        using.add(token)
        try:
            client = self.given or self.own
            if client is None:
                client = self.own = self._first.setdefault("client", self.new_client("Client"))  # atomic: calls at once share one
            request = self.request(client, call, until - monotonic())
            response = await self.await_step(INF, self.send_following(client, request), "answer")
            if cancel is not None:
                cancel.on_ask(partial(_cut, response))
            pieces = _pieces(response, response.iter_raw)
            yield HttpxResponse(self, call, response, until, partial(self._next_piece, pieces, cancel))
        finally:
            if cancel is not None:
                cancel.on_ask(None)
            if response is not None:
                with contextlib.suppress(Exception):
                    response.close()
            using.discard(token)
            if self._closed:
                self._close_unused()

    async def _next_piece(self, pieces: Iterator[bytes], cancel: StopToken | None, until: float) -> bytes | None:
        """Return the next piece of a body, blocking; None: the end. The instant `until` is checked once it has come.

        Raises:
            CloudError: it came too late, the connection broke, or a stop was requested.
        """
        piece = failed = None
        try:
            piece = next(pieces, None)
        except Exception as e:  # noqa: BLE001 - as above
            failed = self.error(e)
        if cancel is not None and cancel.asked:
            failed = Unreachable(f"{self.address.origin}: its answer is not needed any more")
        if failed is None and piece is not None and monotonic() > until:
            failed = self.late()
        if failed is not None:
            raise failed
        return piece

    def close(self) -> None:
        """Close the client made by edgeroute, once no call is under way."""
        self._closed = True
        self._close_unused()

    def _close_unused(self) -> None:
        """Close and forget the client made by edgeroute, if no call is under way; the application's stays open."""
        if not self._using:
            client, self.own, self._first = self.own, None, {}
            if client is not None:
                client.close()


def _cut(response: Any) -> None:
    """Shut down a response's socket, from another thread. An HTTP/2 connection is shared: there the next piece ends it.

    Errors are ignored.
    """
    stream = response.extensions.get("network_stream")
    sock = None if stream is None or response.http_version == "HTTP/2" else stream.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


# Connections by an httpx client for asyncio.
#
# Here the time limit holds for the whole call, and cancelling the task ends the call at once.


class AsyncHttpxConnections(Carrier):
    """Connections for asyncio, with the methods of `AsyncConnections`, by an `httpx.AsyncClient`.

    The application's client stays open; edgeroute makes one for each event loop.
    """

    _loop: asyncio.AbstractEventLoop | None = initially(None)

    async def send(self, call: Call, until: float) -> Reply:
        """Send the call and return the reply by the instant `until`. See `AsyncConnections.send`."""
        return await _whole(self.open(call, until))

    @contextlib.asynccontextmanager
    async def open(self, call: Call, until: float) -> AsyncIterator[HttpxResponse]:
        """Send the call, and yield the reply once its head has come. See `AsyncConnections.open`.

        At the end the response is closed, errors suppressed. Without a client of the application one is made for each event loop;
        that of another loop is replaced, and not closed.

        Raises:
            CloudError: there is no reply by the instant `until`, or no valid one; also while the body is read.
        """
        client, loop = self.given or self.own, asyncio.get_running_loop()
        if client is None or (self.given is None and self._loop is not loop):  # one of another loop cannot be used here
            client, self._loop = self.new_client("AsyncClient"), loop
            self.own = client
        request = self.request(client, call, until - monotonic(), limited=False)
        response = await self.await_step(until, self.send_following(client, request), "answer")
        try:
            pieces = _pieces(response, response.aiter_raw)
            yield HttpxResponse(self, call, response, until, lambda by: self.await_step(by, _next(pieces)))
        finally:
            with contextlib.suppress(Exception):
                await response.aclose()

    async def close(self) -> None:
        """Close the client made by edgeroute, and wait for that, if it belongs to the running loop; else `abandon` closes it."""
        client = self.own
        if client is not None and self._loop is asyncio.get_running_loop():  # else `abandon` has its own loop close it
            self.own = None
            await client.aclose()

    def abandon(self) -> None:
        """Close the client made by edgeroute on its own loop, without waiting; from outside the loop, or from a thread.

        A no-op if that loop does not run.
        """
        client, loop, self.own = self.own, self._loop, None
        if client is not None and loop is not None and loop.is_running():
            start_task_on(loop, client.aclose)
