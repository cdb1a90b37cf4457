"""Protocol of a connection to an endpoint, without I/O: proxy, TLS with pinned keys, request, reply, mapping of its errors.

The generators here yield what to send or receive; the owner of the socket, for threads or for asyncio, does so. See `Steps`.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
import urllib.request
from collections.abc import Callable, Generator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

import certifi

from edgeroute.errors import BadReply, CloudError, PolicyError, Unreachable
from edgeroute.http.messages_addresses_and_secrets import SUCCESS, Address, Call
from edgeroute.http.reply_parser import Early, Malformed, Reading
from edgeroute.system.files_and_lock_waits import sha256

# Proxy to an endpoint, from the environment variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY.


class Proxy(NamedTuple):
    """Address and credentials of an HTTP proxy."""

    host: str
    port: int
    https: bool  # True if the connection to the proxy itself uses TLS
    authorization: str  # value of Proxy-Authorization, user and password encoded; empty: none


def proxy_for(address: Address) -> Proxy | None:
    """Return the environment's proxy for an address, with its user and password; None: no proxy.

    Adds the password to `address.hidden`, so that messages mask it. Respects the environment's `no_proxy`.

    Raises:
        PolicyError: the proxy's address cannot be parsed, or is of no HTTP proxy.
    """
    proxies = urllib.request.getproxies()
    url = proxies.get("https" if address.https else "http")
    if not url or _is_exempt(address, proxies.get("no", "")):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its message may quote part of a password
        raise PolicyError("the proxy's address in the environment cannot be read") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise PolicyError("the proxy's address in the environment is not http:// or https://: for SOCKS give an httpx client=")
    https = parts.scheme == "https"
    authorization = ""
    if parts.username is not None or parts.password is not None:
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        code = base64.b64encode(f"{user}:{password}".encode()).decode()
        address.hidden.update({code, password, parts.password or ""})
        authorization = f"Basic {code}"
    return Proxy(host, port or (443 if https else 80), https, authorization)


def _is_exempt(address: Address, names: str) -> bool:
    """Return True if NO_PROXY, or the system, exempts an address: by its host, host and port, or network (10.0.0.0/8)."""
    if urllib.request.proxy_bypass(address.host) or urllib.request.proxy_bypass(f"{address.host}:{address.port}"):
        return True
    for network in filter(lambda name: "/" in name, names.split(",")):
        with contextlib.suppress(ValueError):  # one of them is no network, or the host is a name
            if ip_address(address.host) in ip_network(network.strip(), strict=False):
                return True
    return False


# Layers of a connection without I/O: the socket's own bytes, and TLS above them, which may be above another TLS.

T = TypeVar("T")
Buffers: TypeAlias = list[memoryview]
# Generator of what to send and receive. It yields a number, and is sent up to so many received bytes (empty: the end); or it
# yields buffers, and is sent (number of bytes sent, bytes received meanwhile or None).
Steps: TypeAlias = Generator[int | Buffers, Any, T]
# Called with bytes received while others are being sent; empty: the end. Returns True if no more is to be sent.
Heard: TypeAlias = Callable[[bytes], bool]
PIECE = 1 << 18  # maximum bytes encrypted at a time
RECORD = 1 << 16  # maximum bytes received at a time
MEANWHILE = 1 << 18  # maximum bytes received while a handshake's messages are being sent


class WrongKey(OSError):
    """Error of a server whose certificate holds none of the pinned keys."""


# Layers: byte streams of a connection, as generators of `Steps`.


class Plain:
    """Layer of the socket's own bytes."""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """Send the parts, and pass bytes that come meanwhile to `heard`.

        Return True if all were sent, False if `heard` stopped it.
        """
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
        """Receive and return up to `most` bytes; empty: the end."""
        return (yield most)  # type: ignore[no-any-return]

    def surplus(self) -> bool:
        """Return False: this layer buffers nothing."""
        return False


class Tls:
    """Layer of the client side of TLS above another layer."""

    def __init__(self, inner: Plain | Tls, context: ssl.SSLContext, hostname: str | None) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    def handshake(self, pins: frozenset[bytes] = frozenset()) -> Steps[None]:
        """Do the handshake, which verifies the certificate as the context says; then compare its key with the pins, if any.

        Raises:
            WrongKey: the key is not pinned.
            ssl.SSLError: the handshake failed.
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
        """Receive, decrypt and return up to `most` bytes; empty: the end. A truncated stream ends as a regular one."""
        try:
            return (yield from self._do(self._object.read, most))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def write(self, parts: Sequence[bytes], heard: Heard) -> Steps[bool]:
        """Encrypt and send the parts, in pieces of `PIECE`, and pass what comes meanwhile to `heard`, decrypted.

        Return True if all were sent, False if `heard` stopped it.
        """
        for data in parts:
            for offset in range(0, len(data), PIECE):
                yield from self._do(self._object.write, memoryview(data)[offset : offset + PIECE], flush=False)
                if not (yield from self._inner.write([self._outgoing.read()], lambda came: self._heard(came, heard))):
                    return False
        return True

    def _heard(self, received: bytes, heard: Heard) -> bool:
        """Decrypt bytes that came while others were being sent, and pass them to `heard`. Return its result.

        A broken stream counts as its end.
        """
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
        """Return True if decrypted bytes are left to read, or the stream has ended or broken in those received.

        Reads a byte of them, so the connection must not be used again after True.
        """
        try:
            self._object.read(1)
        except ssl.SSLWantReadError:
            return self._inner.surplus()
        except ssl.SSLError:
            pass
        return True

    def _received(self, data: bytes) -> None:
        """Give received bytes to the TLS object, empty at the end of the stream."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _meanwhile(self, data: bytes) -> bool:
        """Take bytes received during a handshake. Return True at the end of the stream, or if too many came."""
        self._received(data)
        return not data or self._incoming.pending > MEANWHILE

    def _do(self, operation: Callable[..., T], *arguments: Any, flush: bool = True) -> Steps[T]:
        """Run an operation of the TLS object, sending and receiving until it completes, and return its result.

        Raises:
            ssl.SSLError: the operation failed; its alert was sent to the server.
        """
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
        """Send the bytes that the TLS object has ready.

        Raises:
            ConnectionAbortedError: the connection ended meanwhile.
        """
        if self._outgoing.pending and not (yield from self._inner.write([self._outgoing.read()], self._meanwhile)):
            raise ConnectionAbortedError("the connection was lost in its handshake")


# Hash of the public key in a certificate, which a pin names, whoever has signed the certificate.

_SEQUENCE, _VERSION = 0x30, 0xA0
_BEFORE_KEY = 5  # fields between version and key: serial number, signature algorithm, issuer, validity, subject


def pin_of(certificate: bytes) -> bytes:
    """Return the SHA-256 of the public key (SubjectPublicKeyInfo) in a certificate in DER.

    Raises:
        ValueError: the data is no certificate.
    """
    fields = _der_element(_der_element(certificate, 0, _SEQUENCE)[0], 0, _SEQUENCE)[0]
    position = _der_element(fields, 0)[1] if fields[:1] == bytes([_VERSION]) else 0
    for _ in range(_BEFORE_KEY):
        position = _der_element(fields, position)[1]
    return sha256(fields[position : _der_element(fields, position, _SEQUENCE)[1]]).digest()


def _der_element(data: bytes, position: int, tag: int | None = None) -> tuple[bytes, int]:
    """Return the content of the DER element at a position, and the position of the next element.

    Args:
        data: bytes in DER.
        position: index of the element's tag.
        tag: expected tag; None: any.

    Raises:
        ValueError: the element has another tag, or is cut off.
    """
    if len(data) < position + 2 or (tag is not None and data[position] != tag):
        raise ValueError("not a certificate")
    size, begin = data[position + 1], position + 2
    if size & 0x80:
        count = size & 0x7F
        size, begin = int.from_bytes(data[begin : begin + count], "big"), begin + count
    if len(data) < begin + size:
        raise ValueError("not a certificate")
    return data[begin : begin + size], begin + size


def context_for(address: Address) -> ssl.SSLContext:
    """Return a new TLS context for an endpoint, of TLS 1.2 or later, with the client's certificate if there is one. Reads files.

    With `verify` True the system's and certifi's authorities count, with a path those in that file; with False nothing is
    checked.

    Raises:
        PolicyError: the certificates cannot be read.
    """
    try:
        context = _new_context(address.verify)
        if address.cert is not None:
            context.load_cert_chain(*map(str, address.cert))
    except OSError as e:
        raise PolicyError(f"the certificates for {address.origin} cannot be read: {e}") from e
    return context


def _new_context(verify: bool | str | Path = True) -> ssl.SSLContext:
    """Return a new TLS context, of TLS 1.2 or later, that checks certificates as `Address` has it. Reads the authorities' files.

    Raises:
        OSError: they cannot be read.
    """
    context = ssl.create_default_context(cafile=None if isinstance(verify, bool) else str(verify))
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if verify is True:
        context.load_verify_locations(certifi.where())
    elif verify is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def is_tls(error: BaseException | None) -> bool:
    """Return True if the error, or a cause of it, is one of TLS."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    return error is not None


KEEP_S = 300.0  # maximum seconds that an idle connection is kept alive. Before reuse a check shows if the server closed it.
TOGETHER = 1 << 14  # maximum bytes of a body that is joined to its head, to be sent with it


class ProxyRefused(OSError):
    """Error of a proxy that does not connect. `final`: True if a retry would not help."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


class Wire:
    """Requests as bytes, TLS context and error mapping for one address; shared by its connections."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._starts: dict[tuple[str, str, str, bool], bytes] = {}
        self._context: ssl.SSLContext | None = None
        self.met = False  # True if the server has ever replied

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of the endpoint, made at the first call."""
        if self._context is None:
            self._context = context_for(self.address)
        return self._context

    def proxy(self) -> Proxy | None:
        """Return the proxy that the environment names for the address; None: none. Raises as `proxy_for`."""
        return proxy_for(self.address)

    def request(self, call: Call, proxy: Proxy | None) -> list[bytes]:
        """Return the bytes of the call, in one part or two, with the address's headers and secrets.

        The part before the call's own headers is stored for each path. A body of at most `TOGETHER` bytes is joined to its head.

        Args:
            call: the call.
            proxy: proxy that forwards the request, so that it has the whole URL; None: sent to the endpoint, perhaps through a
                tunnel.

        Raises:
            CloudError: a header of the call has a line break; it is unsent.
            PolicyError: a secret is not set, or cannot be sent.
        """
        body, key = call.body, (call.method, call.path, call.query, proxy is not None)
        if (start := self._starts.get(key)) is None:
            target = quote(call.path, safe="/%:@!$&'()*+,;=~") or "/"
            target += f"?{call.query}" if call.query else ""
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
            raise CloudError(f"{self.address.origin} was not asked: a header of the request has a line break in it", unsent=True)
        head = start + text.encode("utf-8", "surrogateescape")
        return [head + body] if len(body) <= TOGETHER else [head, body]

    def reading(self, call: Call) -> Reading:
        """Return a new parser of the call's reply."""
        limit = self.address.max_reply_bytes if call.max_reply is None else call.max_reply
        return Reading(self.address.origin, call.method, limit)

    def error(self, e: Exception, *, opened: bool, stale: bool) -> CloudError:
        """Return the CloudError for an exception on a connection, with its `retriable` and `stale` flags; secrets are masked.

        A bad certificate, a wrong key and a final refusal of the proxy are not retriable, nor is the end of the first exchange
        over TLS.

        Args:
            e: an OSError, or Malformed.
            opened: True if the connection was open, with TLS.
            stale: True if the connection had served a call before, and no bytes of this reply have come.
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
    """Protocol of one connection: opening its layers, then one exchange after another."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._layer: Plain | Tls = Plain()
        self._early = Early()
        if wire.address.https:
            wire.context()  # unreadable files are reported before anything is connected
        self._proxy = wire.proxy()
        # Host and port to connect to: the proxy's, or the endpoint's.
        self.there = (wire.address.host, wire.address.port) if self._proxy is None else self._proxy[:2]
        self.opened = False  # True if requests can be sent
        self.served = False  # True after the first reply: from then on, the server may just have closed the connection

    def open(self) -> Steps[None]:
        """Open the layers on a connected socket: TLS to an https proxy, its tunnel to an https endpoint, TLS to that endpoint.

        For an http endpoint the proxy forwards each request. Sets `opened`.

        Raises:
            ProxyRefused, WrongKey, ssl.SSLError: the proxy or the handshake failed.
        """
        proxy, address, wire = self._proxy, self._wire.address, self._wire
        if proxy is not None:
            if proxy.https:
                yield from self._secure(_new_context(), proxy.host)
            if address.https:
                yield from self._connect_through(proxy)
        if address.https:
            yield from self._secure(wire.context(), address.host, address.pins)
        self.opened = True

    def _secure(self, context: ssl.SSLContext, host: str, pins: frozenset[bytes] = frozenset()) -> Steps[None]:
        """Do a TLS handshake on the present layer, and put TLS above it. Raises as `handshake`."""
        layer = Tls(self._layer, context, host)
        yield from layer.handshake(pins)
        self._layer = layer

    def _connect_through(self, proxy: Proxy) -> Steps[None]:
        """Send CONNECT to the proxy, and read its reply, so that all that follows goes to the endpoint.

        Raise ProxyRefused unless it is a success with nothing behind it; a 4xx is final.
        """
        address = self._wire.address
        target = f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
        authorization = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: edgeroute\r\n{authorization}\r\n".encode("latin-1")
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
        """Send a call, and read the head of its reply into `reading`, perhaps with some of the body.

        Records that the server has replied. A reply that begins early stops the sending; the connection is then not reused. A
        connection lost while sending may still bring a reply.

        Raises:
            Malformed: the bytes are no reply.
            BadReply: raised by `reading`; or a success came before the whole request was sent.
            OSError: of the socket.
        """
        early, layer = self._early, self._layer
        try:
            forwarding = None if self._wire.address.https else self._proxy
            whole = yield from layer.write(self._wire.request(call, forwarding), early.heard)
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
        """Receive once more of the body into `reading`. An error reply that becomes too long is left unread.

        Raises:
            Malformed, BadReply: raised by `reading`.
        """
        layer = self._layer
        try:
            reading.feed((yield reading.most) if type(layer) is Plain else (yield from layer.read(reading.most)))
        except BadReply as e:
            reading.leave(e)

    def clean(self, reading: Reading) -> bool:
        """Return True if the connection may be used again after this reply. Sets `served`."""
        self.served = True
        return reading.ended and reading.reusable and not self._layer.surplus()
