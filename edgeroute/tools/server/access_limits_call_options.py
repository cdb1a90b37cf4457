"""Limits of bodies and calls of the gateway, the dashboard and `serve`; access by host, origin and token; headers; error replies.

`Bodies` and `Calls` hold the limits, `Guard` refuses strangers and web pages, `http_fault` turns an exception into a `Fault`, and
`parse_options` reads the headers `x-edgeroute-*` of a request as `Options` of its call.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeroute.cloud.attempt_accounting_and_turns import LEAST_LATE_S
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.core.policy_egress_and_options import MODES, Mode, Rules
from edgeroute.errors import (
    BadInput,
    Busy,
    Closed,
    CloudError,
    DeadlineExceeded,
    EdgerouteError,
    MayNotLeave,
    NoAnswer,
    PolicyError,
    nearest,
)
from edgeroute.router.message_forms_and_digests import scope_digest
from edgeroute.router.private_conversations_and_digest_store import SCOPE
from edgeroute.system.contained_calls_and_tasks import set_within
from edgeroute.tools.event_loop_thread import DaemonThread
from edgeroute.tools.server.asgi_lifespan_and_errors import is_brought_about, is_of_input, is_too_long, retry_after_s
from edgeroute.tools.server.batching_and_tensor_models import Full
from edgeroute.tools.server.oip_requests_media_routes import reply

# Bytes from which a body is large: parsed in a thread, and without a part of the total that is kept for smaller ones.
LARGE = 1 << 16
LARGE_SHARE = 0.9  # most memory of all bodies while a large one comes, as a share of the total
CLOSE = {"Connection": "close"}
TWO_LENGTHS = "bad request: Content-Length and Transfer-Encoding contradict each other: send one"
_BUSY = "the requests in progress are too large together: try again later"


class Bodies:
    """Limits on request bodies, and the count of the bytes in memory.

    Args:
        most: bytes of one body.
        total: bytes of all bodies together, including those whose requests wait for the model.
        timeout_s: time from a request's head to the end of its body.
    """

    def __init__(self, most: int, total: int, timeout_s: float) -> None:
        self.most, self.total, self.timeout_s = most, total, timeout_s
        self.held = 0  # bytes in memory now


class Body(AbstractContextManager["Body"]):
    """Body of one request, read within limits and a time; at the end of its `with` block it no longer counts in the total.

    Args:
        bodies: the limits, and the total.
        headers: headers of the request, of which Content-Length is read.

    Attributes:
        size: bytes in memory, with what `grow` counts.
    """

    def __init__(self, bodies: Bodies, headers: Mapping[bytes, bytes]) -> None:
        self._bodies, self._announced, self.size = bodies, headers.get(b"content-length", b""), 0

    def __exit__(self, *_: object) -> None:
        self._bodies.held -= self.size

    async def read(self, receive: Receive) -> bytes | None:
        """Read the whole body from the request's ASGI channel; return None if the client disconnected.

        Each part counts at once, here and in the total.

        Raises:
            HTTPException: 413 if it is too large, or announced as such; 503 if all bodies together are, of which 10 % is kept for
                small ones; 408 if it does not end in time.
        """
        self._check(int(self._announced) if self._announced.isdigit() else 0)
        until, parts, more = asyncio.get_running_loop().time() + self._bodies.timeout_s, list[bytes](), True
        while more:
            try:
                message = await _by(until, receive())
            except asyncio.TimeoutError:  # another one in Python 3.10
                raise HTTPException(408, f"the body did not come within {self._bodies.timeout_s:g} s", CLOSE) from None
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            self.size += len(parts[-1])
            self._bodies.held += len(parts[-1])
            self._check(self.size)
            self._check_total(self.size, self._bodies.held)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def grow(self, size: int, what: str = "its files") -> None:
        """Count in addition the bytes of what belongs to the request and is not in its body, such as decoded files (`what`).

        Raises:
            HTTPException: 413 if they can never fit the total, 503 if they do not fit beside the other requests, as in `read`.
        """
        if self.size + size > self._bodies.total:
            raise HTTPException(413, f"{what} make {size} bytes, which is too large: send less at a time")
        self._check_total(self.size + size, self._bodies.held + size)
        self.size += size
        self._bodies.held += size

    def _check_total(self, size: int, held: int) -> None:
        """Raise 503 if the bytes of all requests, of which one has `size`, exceed the total, or the share of large ones."""
        if held > self._bodies.total * (LARGE_SHARE if LARGE < size < held else 1):
            raise HTTPException(503, _BUSY, {"Retry-After": "1"})

    def _check(self, size: int) -> None:
        """Raise 413 if a size exceeds the limit of one body."""
        if size > self._bodies.most:
            raise HTTPException(413, f"the body has more than {self._bodies.most} bytes: send fewer rows at a time")


async def _by(until: float, work: Awaitable[T]) -> T:
    """Await `work`; raise TimeoutError at the loop's time `until`."""
    if sys.version_info < (3, 11):
        return await asyncio.wait_for(work, max(0.0, until - asyncio.get_running_loop().time()))
    async with asyncio.timeout_at(until):  # without a task, which would be two more turns of the loop
        return await work


class OneLength:
    """ASGI middleware that answers 400 to a request with both Content-Length and Transfer-Encoding.

    Proxies disagree where such a request ends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400 to a request with both headers; pass any other to the application."""
        app: ASGIApp = self.app
        if scope["type"] == "http" and {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            app = reply({"error": TWO_LENGTHS}, 400, CLOSE)
        await app(scope, receive, send)


class OfRequest(bytes):
    """Value of `SCOPE` that a request has set, and not the program around the application."""


class OwnContext:
    """ASGI middleware by which no request has the conversation or the least lateness of another one.

    A server may begin a request within the task of an earlier one of its connection, whose context variables it then has. A
    conversation that the program set around the application stays.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application; what is set within it ends with it."""
        given = SCOPE.get()
        # Reset also as it begins: the next one may begin before the end of this one.
        with set_within(SCOPE, b"" if isinstance(given, OfRequest) else given), set_within(LEAST_LATE_S, 0.0):
            await self.app(scope, receive, send)


AGAIN = {"Retry-After": "1"}
FINAL = {"x-should-retry": "false"}  # which OpenAI's and Anthropic's clients read
NO_THREADS = "thread_unsupported_request"  # of Anthropic
# Status ("failed dependency") of what an equal request would bring about again, as an answer without a text: clients take it as
# final, and would pay another attempt. Many repeat a request after any status from 500 on.
IN_VAIN = 424
# Status -> OpenAI's type of error; others below 500 are `invalid_request_error`, and `IN_VAIN` and the rest `server_error`.
KINDS: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class NoThreads(BadInput):
    """Request that its conversation be kept for later messages, which Anthropic's clients then repeat with all of it."""


class Fault(NamedTuple):
    """Error reply: status, message, machine-readable code and headers."""

    status: int
    message: str
    code: str
    headers: Mapping[str, str] = {}

    @property
    def _of_client(self) -> bool:
        """True if the status says that the client is at fault: one of 400 to 499, but for `IN_VAIN`."""
        return self.status < 500 and self.status != IN_VAIN  # noqa: PLR2004 - HTTP's

    def openai(self) -> dict[str, Any]:
        """Return the body in OpenAI's form."""
        kind = KINDS.get(self.status, "invalid_request_error" if self._of_client else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """Return the body in the form of Anthropic's Messages API; 503 is `overloaded_error`, and `NoThreads` has details."""
        other = "invalid_request_error" if self._of_client else "api_error"
        kind = "overloaded_error" if self.status == 503 else KINDS.get(self.status, other)  # noqa: PLR2004 - try again later
        details = {"details": {"error_code": self.code}} if self.code == NO_THREADS else {}  # by which a client decides
        return {"type": "error", "error": {"type": kind, "message": self.message, "code": self.code, **details}}

    def reply(self, path: str) -> Response:
        """Return the reply in the form of the path's protocol: Open Inference under /v2, Anthropic's messages, else OpenAI's."""
        other = self.anthropic if path.startswith("/v1/messages") else self.openai
        return reply({"error": self.message} if path.startswith("/v2") else other(), self.status, self.headers)


def http_fault(error: BaseException) -> Fault:
    """Return the HTTP status, message, code and headers that answer an exception; an unexpected one is a 500 without details.

    400: a bad input, or what the policy does not allow. 403: data that may not leave. 503: no answer, an endpoint's error, a busy
    model, a full queue or a closed router. 424: a server gave no answer because of what the request asks, as few tokens. 500:
    edgeroute's other errors. An HTTPException keeps its status and headers. If each leg (one call of a model or server) refused
    this input, a missing answer is a 400.
    """
    if isinstance(error, HTTPException):
        return Fault(error.status_code, clean(error.detail), CODES.get(error.status_code, "bad_request"), error.headers or {})
    if isinstance(error, MayNotLeave):
        return Fault(403, clean(error), "may_not_leave")
    if isinstance(error, NoThreads):
        return Fault(400, clean(error), NO_THREADS)
    if is_of_input(error):  # the former are the words by which clients know that they have to send less
        long = ("prompt is too long", "context_length_exceeded") if is_too_long(error) else ("bad request", "bad_input")
        return Fault(400, f"{long[0]}: {clean(error)}", long[1])
    if isinstance(error, PolicyError):
        return Fault(400, f"the policy does not allow this request: {clean(error)}", "policy")
    if is_brought_about(error):
        return Fault(IN_VAIN, clean(error), "no_answer", FINAL)
    if isinstance(error, NoAnswer | CloudError):
        return Fault(503, clean(error), "no_answer", {"Retry-After": str(retry_after_s(error))})
    if isinstance(error, Busy):
        return Fault(503, clean(error), "busy", {"Retry-After": str(retry_after_s(error))})
    if isinstance(error, Full):
        return Fault(503, clean(error), "busy", {**AGAIN, **error.headers})
    if isinstance(error, Closed):
        return Fault(503, "the gateway is shutting down: try again later", "closed", AGAIN)
    if isinstance(error, EdgerouteError):
        return Fault(500, clean(error), "model", FINAL)
    return Fault(500, f"a fault of the server, not of the request: {type(error).__name__}; its log has the rest", "internal")


CODES: Mapping[int, str] = {
    401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "too_large",
    415: "unsupported_media_type", 421: "unknown_host", 429: "busy", 503: "busy",
}  # fmt: skip


# Path that a gateway has only if it is opened -> how.
_OPENED = {"/v1/embeddings": "[gateway] embeddings in the policy names its model", "/metrics": "the option --metrics opens it"}


def error_handlers(elsewhere: str, opened: Mapping[str, str], form: str = "") -> dict[Any, Any]:
    """Return handlers of exceptions for Starlette, by class, with clear messages for wrong methods and unknown paths.

    Args:
        elsewhere: text for an unknown path: what there is at others.
        opened: text for paths that there are only if they are opened.
        form: path in whose form all replies are; empty: each in that of its own.
    """

    async def http(request: Request, error: HTTPException) -> Response:
        """Reply to Starlette's HTTP errors."""
        path, fault = request.url.path, http_fault(error)
        if error.status_code == 405:  # noqa: PLR2004 - HTTP's own number
            allowed = (error.headers or {}).get("Allow", "others")
            fault = fault._replace(message=f"{clean(path, 100)} does not take {request.method}, only {allowed}")
        elif error.detail == "Not Found":  # Starlette's text
            fault = fault._replace(message=f"there is nothing at {clean(path, 100)}: {opened.get(path, elsewhere)}")
        return fault.reply(form or path)

    async def other(request: Request, error: Exception) -> Response:
        """Reply to any other exception. Where the request's own deadline has passed, say that it is not to be sent again."""
        fault = http_fault(error)
        if isinstance(error, DeadlineExceeded) and "x-edgeroute-deadline" in request.headers:
            fault = fault._replace(headers=FINAL)
        return fault.reply(form or request.url.path)

    return {HTTPException: http, EdgerouteError: other, Exception: other}


HANDLERS = error_handlers("chats are at /v1/chat/completions, tensors at /v2/models/NAME", _OPENED)  # of the gateway


# Calls in progress: their number, their bodies, and cancellation when the client disconnects.

T = TypeVar("T")


PEER_SHARE = 0.75  # most calls and most connections of one address of another machine, as a share of all


def peer_of(client: Any) -> str:
    """Return the peer that has a share: an address, or the network /64 in IPv6; empty for this machine's programs."""
    return "" if client is None else _peer(str(client[0]))


@lru_cache(1024)
def _peer(text: str) -> str:
    """Return the peer of an address as text: "" for this machine's, the network /64 for IPv6, else the address.

    An IPv4 address within IPv6 is that address. Another text, as of a proxy's header, is its own peer.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if address.version == 6:  # noqa: PLR2004 - IPv6, of which one machine has a whole /64
        if address.ipv4_mapped is None:
            return "" if address.is_loopback else address.exploded[:19]
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


class Calls:
    """Calls in progress.

    Args:
        bodies: limits of their bodies.
        most: calls at a time; a further one gets 429.
    """

    def __init__(self, bodies: Bodies, most: int) -> None:
        self.bodies, self.most = bodies, most
        self.running = 0
        self._peers = Counter[str]()
        self._parser = DaemonThread("edgeroute-gateway-json")  # one: parsed JSON takes several times its size

    def close(self) -> None:
        """Shut down the parser thread without waiting."""
        self._parser.shutdown(wait=False)

    @contextmanager
    def place(self, scope: Scope) -> Iterator[None]:
        """Hold one of the places for a request during the `with` block; does not wait for one.

        Raises:
            HTTPException: 429, if all places are taken, or 75 % of them by this peer, which is another machine.
        """
        peer = peer_of(scope.get("client"))
        share = max(1, int(self.most * PEER_SHARE)) if peer else self.most
        if self.running >= self.most or self._peers[peer] >= share:
            most = min(self.running, share)
            raise HTTPException(429, f"{most} requests are in progress, and no more are taken at a time: try again later", AGAIN)
        self.running += 1
        self._peers[peer] += 1
        try:
            yield
        finally:
            self.running -= 1
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    async def parse(self, body: bytes, read: Callable[[bytes], T]) -> T:
        """Return `read` of a body, called here if it has less than 64 KiB, else in the only parser thread, in turn."""
        return read(body) if len(body) < LARGE else await asyncio.get_running_loop().run_in_executor(self._parser, read, body)


def plain_body(headers: Mapping[bytes, bytes]) -> None:
    """Raise 415 if the body is compressed."""
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HTTPException(415, "the body is compressed, which this gateway does not read: send it as it is")


# Options of one request, from its headers `x-edgeroute-...`. Unknown names are refused: a typo must not let data leave.

PREFIX = b"x-edgeroute-"
NAMES = ("mode", "deadline", "first-token", "data-class", "conversation")
LONGEST = 200  # most characters of a value
CLIENT_LATE_S = 1.0  # least time after which the lateness of a cloud counts for its breaker, if a client chose the time, seconds
MOST_S = 86400.0  # longest deadline, seconds
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|s|m)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class Options(NamedTuple):
    """Options of one request; None: as the policy says."""

    mode: Mode | None = None
    deadline: float | None = None
    first_token: float | None = None
    data_class: str | None = None


NONE = Options()


def parse_options(headers: Iterable[tuple[bytes, bytes]], rules: Rules) -> Options:
    """Parse a request's options from its headers `x-edgeroute-*`; `NONE` without any.

    Also sets two context variables until the end of the request (`OwnContext`): its conversation, within which private calls are
    bound, and, if the client chose a time, that a cloud's lateness counts for its breaker only from 1 s on.

    Args:
        headers: headers of the request, with names in lower case.
        rules: egress rules of the policy, which name the data classes.

    Raises:
        BadInput: an option is unknown, repeated, or has an invalid value.
    """
    texts: dict[str, str] = {}
    for raw, value in headers:
        if b"edgeroute" not in raw and not raw.endswith(b"data-class"):  # misspelt otherwise, it would let private data leave
            continue
        name, text = raw[len(PREFIX) :].decode("latin-1"), value.decode("latin-1").strip()
        if not raw.startswith(PREFIX) or name not in NAMES:
            header = clean(raw.decode("latin-1"), 60)
            raise BadInput(f"there is no header {header}: {nearest(header, [f'{PREFIX.decode()}{name}' for name in NAMES])}")
        if name in texts:
            raise BadInput(f"the header x-edgeroute-{name} is there twice: send it once")
        if not 0 < len(text) <= LONGEST or not text.isprintable():
            raise BadInput(f"the header x-edgeroute-{name} takes 1 to {LONGEST} printable characters")
        texts[name] = text
    return _parsed_options(texts, rules) if texts else NONE


def _parsed_options(texts: dict[str, str], rules: Rules) -> Options:
    """Return the options with their types, and set the task's conversation and least lateness, as `parse_options` does.

    Raises:
        BadInput: a value is invalid, or a data class is one that the policy does not name, and its `unknown_class` is "deny".
    """
    mode: Any = texts.get("mode")
    if mode not in (None, *MODES):
        raise BadInput(f"x-edgeroute-mode is {clean(mode, 40)!r}: {nearest(mode, MODES)}")
    data_class = texts.get("data-class")
    classes = {*rules.never_leave, *rules.may_leave, *([rules.default_class] if rules.default_class else [])}
    if data_class is not None and data_class not in classes and rules.unknown_class == "deny":
        hint = nearest(data_class, sorted(classes)) if classes else "it has no classes, see [egress]"
        raise BadInput(f"x-edgeroute-data-class is {clean(data_class, 40)!r}, which the policy does not name: {hint}")
    if key := texts.get("conversation"):
        SCOPE.set(OfRequest(scope_digest(key)))
    deadline, first_token = _seconds("deadline", texts), _seconds("first-token", texts)
    if deadline or first_token:
        LEAST_LATE_S.set(CLIENT_LATE_S)
    return Options(mode, deadline, first_token, data_class)


def _seconds(name: str, texts: dict[str, str]) -> float | None:
    """Parse an option that is a time with a unit, ms, s or m, as seconds; None if it is missing.

    Raises:
        BadInput: it has no unit, is 0, or more than a day.
    """
    if (text := texts.get(name)) is None:
        return None
    match = _TIME.fullmatch(text)
    seconds = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= MOST_S:
        raise BadInput(f"x-edgeroute-{name} is a time with a unit, as in 300ms, 1.5s or 2m, not {clean(text, 40)!r}")
    return seconds


# Origin of a request, by its headers: a web page or a program, and the name of the server that it used.


def of_a_page(headers: Mapping[bytes, bytes]) -> bool:
    """Return True if a web page sent the request: it has `Origin`, or a browser marks it as another site's."""
    return b"origin" in headers or headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}


def of_own_page(headers: Mapping[bytes, bytes]) -> bool:
    """Return True if a page of this server sent the request: `Origin` is the `Host`, which `is_named` has accepted before."""
    host, site = headers.get(b"host", b""), headers.get(b"sec-fetch-site", b"same-origin")
    return headers.get(b"origin") in {b"http://" + host, b"https://" + host} and site == b"same-origin"


def is_opened(headers: Mapping[bytes, bytes]) -> bool:
    """Return True if a browser opens it as a page in a window of its own, after a click on a link.

    The page with the link cannot read it.
    """
    kind = headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")
    return b"origin" not in headers and kind == (b"navigate", b"document")


def is_named(host: str, names: Collection[str]) -> bool:
    """Return True if the header `Host` is an IP address or one of these names, in small letters, with or without a port.

    Another name may be a page's own that resolves to this machine (DNS rebinding).
    """
    if host.startswith("["):
        name, closed, rest = host[1:].partition("]")
        return bool(closed) and _is_address(name, 6) and (not rest or (rest[0] == ":" and _is_port(rest[1:])))
    name, colon, port = host.partition(":")
    if colon and not _is_port(port):
        return False
    return name.lower().rstrip(".") in names or _is_address(name, 4)


def _is_port(text: str) -> bool:
    """Return True if a text is a decimal number."""
    return text.isascii() and text.isdigit()


def _is_address(name: str, version: int) -> bool:
    """Return True if a text is an IP address of that version."""
    try:
        return ip_address(name).version == version
    except ValueError:
        return False


# Access: requests of web pages, for other hosts' names, and without the token are refused before a body is read.

STRANGER = "edgeroute.stranger"  # key of a request's scope: True if it showed no token, where one is needed
OPEN = ("/v2/health/live", "/v2/health/ready")  # paths that need no token: they tell only that the gateway is alive
# Media types that a web page may send to any address without permission (CORS).
SIMPLE = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")


_HOST = re.compile(r"[a-z0-9_.-]+")


class Guard:
    """ASGI middleware that refuses requests by host, origin and token.

    * `Host` must be an address, `localhost`, or a name that was allowed: else a page whose own name resolves to this machine (DNS
      rebinding) would have access.
    * A request with `Origin`, or that a browser marks as another site's, comes from a web page, and is refused: nothing here is
      meant for pages, and there are no CORS headers. With `own_pages`, those of the server itself are accepted.
    * With a token, `Authorization: Bearer TOKEN` or `x-api-key: TOKEN` is needed; compared in constant time.

    Args:
        app: the application behind it.
        hosts: further names accepted in `Host`.
        token: the token; None: no token is needed.
        without_token: paths that need no token.
        what: name of the guarded command in messages; that command has the option --allow-host.
        links: paths that a page of another site may link to, as a notebook does: opened in a window of their own, never read.
        own_pages: True accepts requests whose `Origin` is this server's.

    Raises:
        PolicyError: the token is empty, or one that a header cannot have; or a host is no name.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str] = (),
        token: str | None = None,
        without_token: Iterable[str] = OPEN,
        what: str = "gateway",
        links: Iterable[str] = (),
        *,
        own_pages: bool = False,
    ) -> None:
        self.app, self._open, self._what, self._links = app, frozenset(without_token), what, frozenset(links)
        self._own_pages = own_pages
        self._hosts = {"localhost", *(name.lower().rstrip(".") for name in hosts)}
        if odd := [name for name in self._hosts if not _HOST.fullmatch(name)]:
            raise PolicyError(f"{clean(odd[0], 80)!r} is no host name: give it without scheme and port; addresses need none")
        self._token = None if token is None else checked_token(token).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request to the application; answer any other with its fault, before its body is read."""
        if scope["type"] == "http" and (fault := self._fault(scope)) is not None:
            await fault.reply(scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, _closing(send) if STRANGER in scope else send)

    def _fault(self, scope: Scope) -> Fault | None:
        """Return the first reason to refuse a request, which then closes the connection; None if the request is allowed.

        In this order: doubled or contradicting headers (400), another host's name (421), a web page (403), the content type of a
        form (415), no token or a wrong one (401). A client without the token is marked in `scope` as a stranger; it may still use
        the open paths.
        """
        headers: dict[bytes, bytes] = {}
        what = self._what
        for name, value in scope["headers"]:
            if name in headers and name in {b"host", b"authorization", b"x-api-key", b"content-length"}:
                return Fault(400, f"send the header {clean(name.decode('latin-1'), 40)} once", "bad_request", CLOSE)
            headers[name] = value
        if {b"content-length", b"transfer-encoding"} <= headers.keys():
            return Fault(400, "Content-Length and Transfer-Encoding contradict each other: send one", "bad_request", CLOSE)
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_named(host, self._hosts):
            return Fault(421, f"this {what} has no Host {clean(host, 80)!r}: add --allow-host NAME", "unknown_host", CLOSE)
        own = self._own_pages and of_own_page(headers)
        if of_a_page(headers) and not own and not (scope["path"] in self._links and is_opened(headers)):
            return Fault(403, f"this {what} takes no requests from web pages: send them from a program", "web_page", CLOSE)
        if scope["method"] == "POST" and headers.get(b"content-type", b"").split(b";")[0].strip().lower() in SIMPLE:
            return Fault(415, "send the body as application/json", "unsupported_media_type", CLOSE)
        if self._token is None:
            return None
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        shown = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not hmac.compare_digest(shown, self._token):
            scope[STRANGER] = True
            if scope["path"] in self._open:
                return None
            message = "the token is missing or wrong: send Authorization: Bearer TOKEN, or x-api-key, as clients' API keys do"
            return Fault(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer", **CLOSE})
        return None


def _closing(send: Send) -> Send:
    """Return `send` for a reply after which the connection is closed: a stranger may not hold it with requests in a row."""

    async def send_closing(message: Message) -> None:
        """Send a message, with the header that closes the connection."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_closing


def checked_token(token: str) -> str:
    """Return the token stripped of white space, such as the line break at the end of its file.

    Raises:
        PolicyError: it is empty, or has spaces or other characters that a header cannot have.
    """
    stripped = token.strip()
    if not stripped or not (stripped.isascii() and stripped.isprintable()) or " " in stripped:
        raise PolicyError("the token is empty, or has spaces or other characters that a header cannot have")
    return stripped


def token_of(name: str) -> str:
    """Return the token in that environment variable.

    Raises:
        PolicyError: the variable is unset, empty or invalid.
    """
    try:
        return checked_token(os.environ.get(name, ""))
    except PolicyError:
        raise PolicyError(f"the environment variable {name!r} has no token: set it, to at least 16 random characters") from None
