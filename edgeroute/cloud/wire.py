"""What a connection to an endpoint sends and reads, without I/O: proxy, TLS, request and reply; and its errors.

The owner of the socket, for threads or for asyncio, sends and receives on its behalf; see `edgeroute.cloud.tls.Steps`.
"""

from __future__ import annotations

import ssl
from urllib.parse import quote

from edgeroute.cloud.base import SUCCESS, Address, Call
from edgeroute.cloud.proxies import Proxy, proxy_for
from edgeroute.cloud.tls import Layer, Plain, Steps, Tls, WrongKey, context_for, context_for_proxy, is_tls
from edgeroute.errors import BadReply, CloudError, TimedOut, Unreachable
from edgeroute.http1.parsers import Malformed
from edgeroute.http1.reading import Early, Reading

KEEP_S = 300.0
"""Keep-alive of an idle connection; whether the server has closed it is checked before reuse."""
TOGETHER = 1 << 14
"""Bytes of a body that are copied to its head, to be sent as one."""


class ProxyRefused(OSError):
    """The proxy does not connect. `final`: nor will it if asked again."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


class Wire:
    """Request building, TLS settings and error mapping for one address."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._starts: dict[tuple[str, str, bool], bytes] = {}
        self._context: ssl.SSLContext | None = None
        self.met = False
        """Whether the server has ever replied."""

    def context(self) -> ssl.SSLContext:
        """The settings of TLS to the endpoint."""
        if self._context is None:
            self._context = context_for(self.address)
        return self._context

    def request(self, call: Call, proxy: Proxy | None) -> list[bytes]:
        """The bytes of the call, in one part or two. A `proxy` forwards it, and does not connect through.

        Raises:
            CloudError: a header of a protocol of one's own has a line break in it.
        """
        body, key = call.body, (call.method, call.path, proxy is not None)
        start = self._starts.get(key)
        if start is None:
            target = quote(call.path, safe="/%:@!$&'()*+,;=~") or "/"
            before = self.address.origin if proxy is not None else ""
            start = self._starts[key] = (
                f"{call.method} {before}{target} HTTP/1.1\r\nHost: {self.address.netloc.decode()}\r\n"
                "Accept-Encoding: identity\r\nUser-Agent: edgeroute\r\n"
            ).encode("ascii")
        lines = [f"{name}: {value}\r\n" for name, value in (*call.headers, *self.address.headers())]
        if body or call.method == "POST":
            lines.append(f"Content-Length: {len(body)}\r\n")
        if proxy is not None and proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}\r\n")
        lines.append("\r\n")
        text = "".join(lines)
        if text.count("\n") != len(lines) or text.count("\r") != len(lines):
            raise CloudError(f"{self.address.origin} was not asked: a header of the request has a line break in it")
        head = start + text.encode("utf-8", "surrogateescape")
        return [head + body] if len(body) <= TOGETHER else [head, body]

    def reading(self, call: Call) -> Reading:
        """What reads the reply to a call."""
        limit = self.address.max_reply_bytes if call.max_reply is None else call.max_reply
        return Reading(self.address.origin, call.method, limit)

    def not_asked(self) -> TimedOut:
        """The error where no time was left to begin with."""
        return TimedOut(f"{self.address.origin} was not asked: no time was left")

    def error(self, e: Exception, *, opened: bool, stale: bool) -> CloudError:
        """Maps what went wrong on a connection to a CloudError, with its `retriable` and `stale` flags.

        Args:
            e: an OSError, or Malformed.
            opened: it was open, with TLS.
            stale: it had served before, and nothing has come.
        """
        origin = self.address.origin
        error = Unreachable(f"{origin}: {self.address.hide(str(e) or type(e).__name__)[:200]}")
        if isinstance(e, WrongKey) or (isinstance(e, ProxyRefused) and e.final) or is_tls(e):
            error.retriable = False
        elif self.address.https and not self.met and opened:
            error = Unreachable(f"{origin} ended the first exchange: does it ask for a client certificate (cert=)? {e}")
            error.retriable = False
        error.stale = stale
        return error


class Line:
    """One connection: its layers, and one exchange after another."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._layer: Layer = Plain()
        self._early = Early()
        self._forwarding: Proxy | None = None
        self.there: tuple[str, int] = (wire.address.host, wire.address.port)
        """What to connect to."""
        if wire.address.https:
            wire.context()  # files that cannot be read are said before anything is connected
        self._proxy = proxy_for(wire.address)
        if self._proxy is not None:
            self.there = self._proxy[:2]
        self.opened = False
        """Whether requests can be sent."""
        self.served = False
        """Whether it has served a call: then the server may just have closed it."""

    def open(self) -> Steps[None]:
        """After the socket is connected: through the proxy, if any, and TLS."""
        proxy, address, wire = self._proxy, self._wire.address, self._wire
        if proxy is not None:
            if proxy.https:
                yield from self._secure(context_for_proxy(), proxy.host)
            if address.https:
                yield from self._connect_through(proxy)
            else:
                self._forwarding = proxy
        if address.https:
            yield from self._secure(wire.context(), address.host, address.pins)
        self.opened = True

    def _secure(self, context: ssl.SSLContext, host: str, pins: frozenset[bytes] = frozenset()) -> Steps[None]:
        layer = Tls(self._layer, context, host)
        yield from layer.handshake(pins)
        self._layer = layer

    def _connect_through(self, proxy: Proxy) -> Steps[None]:
        address = self._wire.address
        there = f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
        said = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
        request = f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\nUser-Agent: edgeroute\r\n{said}\r\n".encode("latin-1")
        reading, early = Reading(address.origin, "CONNECT", 0), Early()
        yield from self._layer.write([request], early.heard)
        try:
            if early.data:
                reading.feed(early.data)
            while not reading.status:
                reading.feed((yield from self._layer.read(reading.most)))
        except (Malformed, BadReply):
            raise ProxyRefused("the proxy failed", final=False) from None
        if reading.status not in SUCCESS:
            raise ProxyRefused(f"the proxy answered {reading.status}", final=400 <= reading.status < 500)  # noqa: PLR2004
        if reading.surplus:
            raise ProxyRefused("the proxy sent more than its answer", final=False)

    def ask(self, call: Call, reading: Reading) -> Steps[None]:
        """Sends a call, and reads the head of its reply, perhaps with some of the body.

        Raises:
            Malformed: what comes is no reply.
            BadReply: as `Reading`; or a success before the whole request was sent.
        """
        early, layer = self._early, self._layer
        try:
            whole = yield from layer.write(self._wire.request(call, self._forwarding), early.heard)
        except TimeoutError:
            raise
        except OSError:  # a server that refuses and closes: what it said can often be read
            whole = False
        if early.data:
            self._early = Early()
            reading.feed(early.data)
        while not reading.status:
            reading.feed((yield reading.most) if type(layer) is Plain else (yield from layer.read(reading.most)))
        self._wire.met = True
        if not whole:
            reading.reusable = False
            if reading.status in SUCCESS:
                raise BadReply(f"{self._wire.address.origin} answered before it had the whole request")

    def more(self, reading: Reading) -> Steps[None]:
        """Reads on in the body.

        Raises:
            Malformed, BadReply: as `Reading`.
        """
        layer = self._layer
        try:
            reading.feed((yield reading.most) if type(layer) is Plain else (yield from layer.read(reading.most)))
        except BadReply as e:
            reading.leave(e)

    def clean(self, reading: Reading) -> bool:
        """Whether the next call may use it, after this reply."""
        self.served = True
        return reading.ended and reading.reusable and not self._layer.surplus()
