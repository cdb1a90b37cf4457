"""HTTP by httpx's transports, for threads and for asyncio: one call in, one reply out, within its time and size.

The transports are used without httpx's client around them: no cookies, no redirects, no decoding, a third less time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import Any

import httpx

from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.core.policy import INF
from edgeroute.errors import BadReply, PolicyError, TimedOut, Unreachable
from edgeroute.fork import renew_after_fork
from edgeroute.types import Cancel

KEEP_S = 300.0
"""How long an idle connection is kept; whether the server closed it meanwhile is seen before it is used."""


class Wire:
    """What both kinds share: an address made ready for calls."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._urls: dict[str, httpx.URL] = {}
        self._tls: ssl.SSLContext | None = None
        self.met = False
        """Whether the server has ever replied."""

    def options(self, connections: int | None) -> dict[str, Any]:
        """What a transport is made with."""
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_S)
        return {"verify": self._context(), "trust_env": False, "limits": limits, "proxy": _proxy(self.address)}

    def _context(self) -> ssl.SSLContext | bool:
        if not self.address.https:
            return False
        if self._tls is None:
            verify, cert = self.address.verify, self.address.cert
            try:
                if verify is True:
                    self._tls = httpx.create_ssl_context()
                elif verify is False:
                    self._tls = httpx.create_ssl_context(verify=False)
                else:
                    self._tls = ssl.create_default_context(cafile=str(verify))
                if cert is not None:
                    self._tls.load_cert_chain(*map(str, cert))
            except (OSError, ssl.SSLError) as e:
                raise PolicyError(f"the certificates for {self.address.origin} cannot be read: {e}") from e
        return self._tls

    def request(self, call: Call, left_s: float, extensions: dict[str, Any]) -> httpx.Request:
        """The call as httpx takes it."""
        if left_s <= 0:
            raise TimedOut(f"{self.address.origin} was not asked: no time was left")
        url = self._urls.get(call.path)
        if url is None:
            url = self._urls[call.path] = httpx.URL(self.address.origin + call.path)
        timeout = None if left_s == INF else left_s
        extensions["timeout"] = {"connect": timeout, "read": timeout, "write": timeout, "pool": timeout}
        headers = [*call.headers, *self.address.headers(), ("Accept-Encoding", "identity"), ("User-Agent", "edgeroute")]
        return httpx.Request(call.method, url, headers=headers, content=call.body or None, extensions=extensions)

    def check(self, response: httpx.Response) -> None:
        """Notes that the server replies, and refuses a reply by its headers, before its body is read."""
        self.met = True
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise BadReply(f"{self.address.origin} answered with {encoding} encoding, though asked not to: unread")
        length = response.headers.get("content-length", "")
        if length.isdigit():
            self.check_size(int(length))

    def check_size(self, size: int) -> None:
        """Refuses a reply that is longer than allowed."""
        if size > self.address.max_reply_bytes:
            raise BadReply(f"{self.address.origin} answered more than {self.address.max_reply_bytes} bytes: not read further")

    @contextlib.contextmanager
    def translated(self, *, stale: bool) -> Iterator[None]:
        """Errors of httpx as ours."""
        origin = self.address.origin
        try:
            yield
        except httpx.TimeoutException as e:
            raise TimedOut(f"{origin} did not {_DOING.get(type(e), 'answer')} in time") from e
        except (httpx.TransportError, httpx.InvalidURL) as e:
            error = Unreachable(f"{origin}: {_root(e)}")
            if _is_tls(e) or isinstance(e, httpx.LocalProtocolError | httpx.InvalidURL):
                error.retriable = False
            elif self.address.https and not self.met and isinstance(e, httpx.RemoteProtocolError | httpx.ReadError):
                error = Unreachable(
                    f"{origin} ended the first exchange: does it ask for a client certificate (cert=)? {_root(e)}"
                )
                error.retriable = False
            error.stale = stale
            raise error from e


class Channels:
    """Kept-alive connections to one address, for threads.

    Each has a transport of its own: a call can then be cut off, by shutting its socket down, without touching others.
    """

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._idle: list[_Channel] = []
        self._lock = threading.Lock()
        self._closed = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The connections are the parent's: closing the child's copies sends nothing, and leaves the parent's open."""
        self._lock = threading.Lock()
        idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def send(self, call: Call, until: float, cancel: Cancel | None = None) -> Reply:
        """The reply, if it is there by the instant `until`.

        Raises:
            CloudError: it is not, or not one that can be used.
        """
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self._wire.address.origin} was not asked: its answer is not needed any more")
        channel = self._take()
        good = False
        try:
            reply = channel.send(call, until, cancel)
            good = True
            return reply
        finally:
            if cancel is not None:
                cancel.on_ask(None)
            if good and not (cancel is not None and cancel.asked):
                self._give(channel)
            else:
                channel.close()

    def _take(self) -> _Channel:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Channel(self._wire)

    def _give(self, channel: _Channel) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(channel)
                return
        channel.close()

    def close(self) -> None:
        """Closes what is idle now, and what is in use as soon as it is not."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for channel in idle:
            channel.close()


class _Channel:
    """One connection, made again when the server has closed it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._transport = httpx.HTTPTransport(**wire.options(1))
        self._socket: socket.socket | None = None
        self._kept = False
        self._until = INF
        self._cancel: Cancel | None = None

    def send(self, call: Call, until: float, cancel: Cancel | None) -> Reply:
        wire = self._wire
        self._until, self._cancel = until, cancel
        if cancel is not None:
            cancel.on_ask(self.cut)
        with wire.translated(stale=self._kept):
            response = self._transport.handle_request(wire.request(call, until - monotonic(), {"trace": self._trace}))
            try:
                wire.check(response)
                parts, size = [], 0
                for part in response.stream:  # type: ignore[union-attr]  # of a transport it is a sync stream
                    parts.append(part)
                    size += len(part)
                    wire.check_size(size)
            finally:
                response.close()
        self._kept = True
        return Reply(response.status_code, response.headers, parts[0] if len(parts) == 1 else b"".join(parts))

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            stream = info["return_value"]
            stream.read = partial(self._read, stream.read)
            self._socket = stream.get_extra_info("socket")
            if self._cancel is not None:
                self._cancel.on_ask(self.cut)  # again: if it was asked for while there was no socket, now is the time

    def _read(self, read: Callable[[int, float | None], bytes], max_bytes: int, timeout: float | None = None) -> bytes:
        """Reads with the time that is left: httpx's own limit begins anew with every byte that trickles in."""
        if timeout is not None:
            timeout = self._until - monotonic()
            if timeout <= 0:
                raise TimedOut(f"{self._wire.address.origin} did not finish its answer in time")
        return read(max_bytes, timeout)

    def cut(self) -> None:
        """Ends the call in progress, from another thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # not ssl's own shutdown: from then on it would send in the clear
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket = None
        self._transport.close()


class AsyncChannels:
    """Kept-alive connections to one address, for one event loop at a time."""

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._transport: httpx.AsyncHTTPTransport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept = False

    async def send(self, call: Call, until: float) -> Reply:
        """As `Channels.send`; cancelling the task ends it."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._loop is not loop:
            self._transport, self._loop, self._kept = httpx.AsyncHTTPTransport(**self._wire.options(None)), loop, False
        wire, transport = self._wire, self._transport
        left_s = until - monotonic()
        try:
            with wire.translated(stale=self._kept):
                request = wire.request(call, left_s, {})
                reply = await asyncio.wait_for(self._exchange(transport, request), None if left_s == INF else left_s)
        except (asyncio.TimeoutError, TimeoutError) as e:
            raise e if isinstance(e, TimedOut) else TimedOut(f"{wire.address.origin} did not answer in time") from e
        self._kept = True
        return reply

    async def _exchange(self, transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> Reply:
        response = await transport.handle_async_request(request)
        try:
            self._wire.check(response)
            parts, size = [], 0
            async for part in response.stream:  # type: ignore[union-attr]  # of this transport it is an async stream
                parts.append(part)
                size += len(part)
                self._wire.check_size(size)
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers, parts[0] if len(parts) == 1 else b"".join(parts))

    async def close(self) -> None:
        """Closes every connection."""
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None


_DOING = {httpx.ConnectTimeout: "accept a connection", httpx.ReadTimeout: "answer", httpx.WriteTimeout: "take the request"}


def _proxy(address: Address) -> str | None:
    """The proxy that the environment names for this address (HTTP_PROXY and its kin), if any."""
    if urllib.request.proxy_bypass(address.host):
        return None
    return urllib.request.getproxies().get("https" if address.https else "http")


def _root(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
