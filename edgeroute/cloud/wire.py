"""HTTP wire layer on httpcore, shared by the threaded and asyncio clients: builds requests, checks replies, maps errors.

httpcore is the engine of httpx; used directly it costs about a third less, and inference needs neither cookies, redirects
nor content decoding.
"""

from __future__ import annotations

import base64
import re
import ssl
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import certifi
import httpcore

from edgeroute.cloud.base import SUCCESS, Address, Call, Reply
from edgeroute.core.policy import INF
from edgeroute.errors import BadReply, CloudError, PolicyError, TimedOut, Unreachable

_LENGTH = re.compile("[0-9]{1,18}")
KEEP_S = 300.0
"""Keep-alive of an idle connection; whether the server has closed it is checked before reuse."""


class Wire:
    """Request building, TLS context and error mapping for one address."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.root = httpcore.URL(address.origin)
        self._urls: dict[str, httpcore.URL] = {}
        self._tls: ssl.SSLContext | None = None
        self.met = False
        """Whether the server has ever replied."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of an httpcore connection pool."""
        proxy = self._proxy()
        return {
            "ssl_context": self._context(),
            "keepalive_expiry": KEEP_S,
            "proxy": proxy,
        }

    def _proxy(self) -> httpcore.Proxy | None:
        """The proxy for this address from the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), with its user and password."""
        if urllib.request.proxy_bypass(self.address.host):
            return None
        given = urllib.request.getproxies().get("https" if self.address.https else "http")
        if not given:
            return None
        try:
            parts = urlsplit(given if "://" in given else f"http://{given}")
            url = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target="/")
        except ValueError:  # its message may quote part of a password
            raise PolicyError("the proxy's address in the environment cannot be read") from None
        if parts.username is None and parts.password is None:
            return httpcore.Proxy(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        code = base64.b64encode(f"{user}:{password}".encode())
        self.address.hidden.update({code.decode(), password, parts.password or ""})
        return httpcore.Proxy(url, auth=(user.encode(), password.encode()))

    def _context(self) -> ssl.SSLContext | None:
        if self.address.https and self._tls is None:
            verify, cert = self.address.verify, self.address.cert
            try:
                self._tls = ssl.create_default_context(cafile=None if isinstance(verify, bool) else str(verify))
                if verify is True:
                    self._tls.load_verify_locations(certifi.where())
                elif verify is False:
                    self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
                if cert is not None:
                    self._tls.load_cert_chain(*map(str, cert))
            except (OSError, ssl.SSLError) as e:
                raise PolicyError(f"the certificates for {self.address.origin} cannot be read: {e}") from e
        return self._tls

    def request(self, call: Call, left_s: float) -> httpcore.Request:
        """The call as an httpcore request with `left_s` as its timeouts.

        Raises:
            TimedOut: no time is left.
        """
        if left_s <= 0:
            raise TimedOut(f"{self.address.origin} was not asked: no time was left")
        url = self._urls.get(call.path)
        if url is None:
            target = quote(call.path, safe="/%:@!$&'()*+,;=~")
            url = self._urls[call.path] = httpcore.URL(self.address.origin + target)
        timeout = None if left_s == INF else left_s
        headers = [(b"Host", self.address.netloc), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"edgeroute")]
        if call.body or call.method == "POST":
            headers.append((b"Content-Length", str(len(call.body)).encode()))
        headers += [(name.encode(), value.encode()) for name, value in (*call.headers, *self.address.headers())]
        extensions = {"timeout": {"connect": timeout, "read": timeout, "write": timeout, "pool": timeout}}
        return httpcore.Request(call.method, url, headers=headers, content=call.body, extensions=extensions)

    def heard(self, call: Call, response: httpcore.Response, *, whole: bool) -> Incoming:
        """The reply whose head has come, checked before its body is read. `whole`: the whole request had been sent.

        Raises:
            BadReply: a content encoding, a Content-Length above the limit, or a success before the whole request.
        """
        self.met = True
        if response.status in SUCCESS and not whole:
            raise BadReply(f"{self.address.origin} answered before it had the whole request")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity":
            named = encoding if encoding in _ENCODINGS else "an unknown"
            raise BadReply(f"{self.address.origin} answered with {named} encoding, though asked not to: unread")
        limit = self.address.max_reply_bytes if call.max_reply is None else call.max_reply
        incoming = Incoming(response.status, headers, limit, self.address.origin)
        length = headers.get("content-length", "")
        if _LENGTH.fullmatch(length):
            incoming.check(int(length))
        return incoming

    def error(self, e: Exception, *, stale: bool) -> CloudError:
        """Maps an httpcore error to a CloudError, with its `retriable` and `stale` flags.

        Its cause is the error, unless that quotes what came. To be raised outside of the `except`, where it would be the context.
        """
        error = self._mapped(e, stale=stale)
        if not isinstance(e, httpcore.ProtocolError | httpcore.ProxyError):
            error.__cause__ = e
        return error

    def _mapped(self, e: Exception, *, stale: bool) -> CloudError:
        origin = self.address.origin
        if isinstance(e, httpcore.TimeoutException):
            return TimedOut(f"{origin} did not {_DOING.get(type(e), 'answer')} in time")
        error = Unreachable(f"{origin}: {self.address.hide(_root(e))[:200]}")
        refused = isinstance(e, httpcore.ProxyError) and str(e).startswith("4")  # 407, say, will be the same again
        if refused or _is_tls(e) or isinstance(e, httpcore.LocalProtocolError | httpcore.UnsupportedProtocol):
            error.retriable = False
        elif self.address.https and not self.met and isinstance(e, httpcore.RemoteProtocolError | httpcore.ReadError):
            error = Unreachable(f"{origin} ended the first exchange: does it ask for a client certificate (cert=)? {_root(e)}")
            error.retriable = False
        error.stale = stale
        return error


class Incoming:
    """A reply whose body is being read. Of an error nothing depends on its body: one that is too long is left unread."""

    def __init__(self, status: int, headers: dict[str, str], limit: int, origin: str) -> None:
        self.status, self.headers = status, headers
        self._limit, self._origin = limit, origin
        self._size = 0
        self._parts: list[bytes] = []
        self.unread = False
        """Whether the rest of the body is to be left unread."""

    def check(self, size: int) -> None:
        """Compares a size with the limit.

        Raises:
            BadReply: a success is longer.
        """
        if size > self._limit:
            if self.status in SUCCESS:
                raise BadReply(f"{self._origin} answered more than {self._limit} bytes, the most that is expected (max_reply)")
            self._leave()

    def leave(self, error: BadReply) -> None:
        """Gives the rest of the body up for that reason.

        Raises:
            BadReply: the reply is a success.
        """
        if self.status in SUCCESS:
            raise error
        self._leave()

    def _leave(self) -> None:
        self.unread = True
        self._parts.clear()

    def add(self, part: bytes) -> None:
        """Adds a part of the body.

        Raises:
            BadReply: as `check`.
        """
        self._parts.append(part)
        self.count(len(part))

    def count(self, size: int) -> None:
        """Counts so many bytes of the body.

        Raises:
            BadReply: as `check`.
        """
        self._size += size
        self.check(self._size)

    def reply(self) -> Reply:
        """The reply, once its body has been read or left unread."""
        parts = self._parts
        return Reply(self.status, self.headers, parts[0] if len(parts) == 1 else b"".join(parts))


def overfull(connection: object) -> bool:
    """Whether more than the reply has come already: another request would be given it as its own.

    What comes later makes the socket readable while it is idle, and is noticed before the next request.
    """
    pooled = getattr(connection, "connections", None)  # of a proxy's pool
    inner = pooled[0] if pooled else connection
    state = None
    while inner is not None and state is None:
        state = getattr(inner, "_h11_state", None)  # httpcore tells of its own bytes nowhere else
        inner = getattr(inner, "_connection", None)
    return state is not None and bool(state.trailing_data[0])


ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
_ENCODINGS = {"gzip", "br", "deflate", "zstd"}
_QUOTED = re.compile(r"\s*(:|'|\"|\bb['\"]|\bbytearray\b|\(received|, not ).*", re.DOTALL)
_DOING = {httpcore.ConnectTimeout: "accept a connection", httpcore.WriteTimeout: "take the request"}


def _root(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, httpcore.ProxyError):  # status and the proxy's own words
        return f"the proxy answered {text[:3]}" if text[:3].isdecimal() else "the proxy failed"
    if isinstance(error, httpcore.ProtocolError):  # "illegal header line: bytearray(...)"
        text = _QUOTED.sub("", text)
    return text or type(error).__name__


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
