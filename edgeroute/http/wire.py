"""What a connection to an endpoint sends and reads, without I/O: proxy, TLS, request and reply; and its errors.

The owner of the socket, for threads or for asyncio, sends and receives on its behalf; see `edgeroute.http.wire.Steps`.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
import urllib.request
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

import certifi

from edgeroute.errors import BadReply, CloudError, PolicyError, TimedOut, Unreachable
from edgeroute.http.messages import SUCCESS, Address, Call
from edgeroute.http.reading import Early, Malformed, Reading
from edgeroute.http.terms import pin_of

# The proxy between this process and an endpoint, as the environment names it: HTTP_PROXY, HTTPS_PROXY, NO_PROXY.


class Proxy(NamedTuple):
    """An HTTP proxy."""

    host: str
    port: int
    https: bool
    """Whether it is spoken to over TLS."""
    authorization: str
    """Value of Proxy-Authorization; empty: none."""


def proxy_for(address: Address) -> Proxy | None:
    """The proxy for an address, with its user and password; None: there is none.

    Raises:
        PolicyError: it cannot be read, or is no HTTP proxy.
    """
    if urllib.request.proxy_bypass(address.host):
        return None
    given = urllib.request.getproxies().get("https" if address.https else "http")
    if not given:
        return None
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its message may quote part of a password
        raise PolicyError("the proxy's address in the environment cannot be read") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise PolicyError(
            "the proxy's address in the environment is not an http:// or https:// one: for SOCKS give an httpx client (client=)"
        )
    https = parts.scheme == "https"
    authorization = ""
    if parts.username is not None or parts.password is not None:
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        code = base64.b64encode(f"{user}:{password}".encode()).decode()
        address.hidden.update({code, password, parts.password or ""})
        authorization = f"Basic {code}"
    return Proxy(host, port or (443 if https else 80), https, authorization)


# Layers of a connection without I/O: the socket's own bytes, and TLS above them, which may be above another TLS.
#
# A layer's steps are a generator: it yields a number, and is sent up to so many received bytes (empty: the end); or it yields
# buffers, and is sent how many of their bytes were sent, and what was received meanwhile, or None.

T = TypeVar("T")
Buffers: TypeAlias = list[memoryview]
Steps: TypeAlias = Generator[int | Buffers, Any, T]
Heard: TypeAlias = Callable[[bytes], bool]
"""Is given what was received while something was being sent; empty: the end. Returns whether to send no further."""
PIECE = 1 << 18
"""Bytes encrypted at a time."""
RECORD = 1 << 16
"""Bytes received at a time."""
MEANWHILE = 1 << 18
"""Bytes received while a handshake's messages are being sent, at most."""


class WrongKey(OSError):
    """The server's certificate holds another key than those that are pinned."""


class Layer(Protocol):
    """What a connection sends and receives by."""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """Sends the parts. Returns whether it sent all of them, and was not stopped by `heard`."""

    def read(self, most: int) -> Steps[bytes]:
        """Up to so many bytes; empty: the end. Whether that is premature is for HTTP to decide."""

    def surplus(self) -> bool:
        """Whether there is more to read, or the connection has ended, of what was received already."""


class Plain:
    """The socket's own bytes."""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """As of `Layer`."""
        rest = [memoryview(part) for part in parts if part]
        while rest:
            sent, came = yield rest
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = rest[0][sent:]
            if came is not None and rest and heard(came):
                return False
        return True

    def read(self, most: int) -> Steps[bytes]:
        """As of `Layer`."""
        return (yield most)  # type: ignore[no-any-return]

    def surplus(self) -> bool:
        """As of `Layer`: the socket tells."""
        return False


class Tls:
    """The client side of TLS above another layer."""

    def __init__(self, inner: Layer, context: ssl.SSLContext, hostname: str | None) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    def handshake(self, pins: frozenset[bytes] = frozenset()) -> Steps[None]:
        """Performs the handshake: verifies the certificate, and compares its key with the pins, if there are any.

        Raises:
            WrongKey: it is none of them.
        """
        yield from self._do(self._object.do_handshake)
        if pins:
            certificate = self._object.getpeercert(binary_form=True) or b""
            try:
                pinned = pin_of(certificate) in pins
            except ValueError:
                pinned = False
            if not pinned:
                raise WrongKey("its certificate holds another public key than those that are pinned (pin=)")

    def read(self, most: int) -> Steps[bytes]:
        """As of `Layer`."""
        try:
            return (yield from self._do(self._object.read, most))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """As of `Layer`."""
        for data in parts:
            for at in range(0, len(data), PIECE):
                yield from self._do(self._object.write, memoryview(data)[at : at + PIECE], flush=False)
                if not (yield from self._inner.write([self._outgoing.read()], lambda came: self._heard(came, heard))):
                    return False
        return True

    def _heard(self, received: bytes, heard: Heard) -> bool:
        """Decrypts what came while something was being sent, and passes on what the other side said."""
        self._received(received)
        data = b""
        try:
            while part := self._object.read(RECORD):
                data += part
        except ssl.SSLWantReadError:
            return bool(data) and heard(data)  # a session ticket is none of it
        except ssl.SSLError:
            pass
        return (bool(data) and heard(data)) or heard(b"")

    def surplus(self) -> bool:
        """As of `Layer`."""
        try:
            self._object.read(1)
        except ssl.SSLWantReadError:
            return self._inner.surplus()
        except ssl.SSLError:
            pass
        return True

    def _received(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _meanwhile(self, data: bytes) -> bool:
        self._received(data)
        return not data or self._incoming.pending > MEANWHILE

    def _do(self, operation: Callable[..., T], *arguments: Any, flush: bool = True) -> Steps[T]:
        while True:
            try:
                result = operation(*arguments)
            except ssl.SSLWantReadError:  # noqa: PERF203 - ssl's way to request input
                yield from self._flush()
                self._received((yield from self._inner.read(RECORD)))
            except ssl.SSLError as e:
                failed = e
                break
            else:
                if flush:
                    yield from self._flush()
                return result
        with contextlib.suppress(OSError):  # the other side may be gone
            yield from self._flush()  # the alert that states the reason
        raise failed

    def _flush(self) -> Steps[None]:
        if self._outgoing.pending and not (yield from self._inner.write([self._outgoing.read()], self._meanwhile)):
            raise ConnectionAbortedError("the connection was lost in its handshake")


def context_for(address: Address) -> ssl.SSLContext:
    """The settings of TLS to an endpoint: 1.2 or later, its authorities, the client's certificate.

    Raises:
        PolicyError: the certificates cannot be read.
    """
    verify, cert = address.verify, address.cert
    try:
        made = ssl.create_default_context(cafile=None if isinstance(verify, bool) else str(verify))
        made.minimum_version = max(made.minimum_version, ssl.TLSVersion.TLSv1_2)
        if verify is True:
            made.load_verify_locations(certifi.where())
        elif verify is False:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if cert is not None:
            made.load_cert_chain(*map(str, cert))
    except (OSError, ssl.SSLError) as e:
        raise PolicyError(f"the certificates for {address.origin} cannot be read: {e}") from e
    return made


def context_for_proxy() -> ssl.SSLContext:
    """The settings of TLS to a proxy: the system's authorities and certifi's."""
    made = ssl.create_default_context()
    made.minimum_version = max(made.minimum_version, ssl.TLSVersion.TLSv1_2)
    made.load_verify_locations(certifi.where())
    return made


def is_tls(error: BaseException | None) -> bool:
    """Whether TLS failed: the error, or its cause."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    return error is not None


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
