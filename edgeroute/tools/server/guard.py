"""Guard of the gateway: who may ask, for what, and how many at a time."""

from __future__ import annotations

import asyncio
import hmac
import os
import re
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeroute.core.egress import Rules
from edgeroute.core.policy import MODES, Mode
from edgeroute.core.words import clean
from edgeroute.errors import BadInput, PolicyError, nearest
from edgeroute.tools.server.bodies import Bodies
from edgeroute.tools.server.faults import Busy, Fault

# What every call of the gateway goes through: its body, a free place, and the end of a client that has left.

T = TypeVar("T")
LARGE = 1 << 16
"""Bytes from which a body is parsed in a thread: the event loop goes on meanwhile."""


class Calls:
    """The calls in progress.

    Args:
        bodies: their bodies.
        most: calls that may be in progress at a time; a further one gets 429.
    """

    def __init__(self, bodies: Bodies, most: int) -> None:
        self.bodies, self.most = bodies, most
        self.running = 0
        self._parser = ThreadPoolExecutor(1, "edgeroute-gateway-json")  # one: parsed JSON takes several times its size

    def close(self) -> None:
        """Ends the thread."""
        self._parser.shutdown(wait=False)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places.

        Raises:
            Busy: there is none.
        """
        if self.running >= self.most:
            raise Busy(self.most)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def parse(self, body: bytes, read: Callable[[bytes], T]) -> T:
        """What `read` makes of a body; in the thread, if that may take long."""
        return read(body) if len(body) < LARGE else await self.aside(partial(read, body))

    async def aside(self, work: Callable[[], T]) -> T:
        """What `work` returns, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._parser, work)


def plain_body(headers: Mapping[bytes, bytes]) -> None:
    """Refuses a compressed body.

    Raises:
        HTTPException: 415.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HTTPException(415, "the body is compressed, which this gateway does not read: send it as it is")


LEFT: Any = object()
"""In place of a result: the client has left."""


async def unless_left(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client leaves; then `LEFT`, once it has ended."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else LEFT
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# Options of one request, from its headers `x-edgeroute-...`. What is not known is refused: a typo must not let data leave.

PREFIX = b"x-edgeroute-"
NAMES = ("mode", "deadline", "first-token", "data-class")
LONGEST = 200
"""Characters of a value."""
MOST_S = 86400.0
"""Seconds of a deadline."""
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|s|m)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class Options(NamedTuple):
    """What a request asks of the router; None: as the policy says."""

    mode: Mode | None = None
    deadline: float | None = None
    first_token: float | None = None
    data_class: str | None = None


NONE = Options()


def options(headers: Iterable[tuple[bytes, bytes]], rules: Rules) -> Options:
    """Reads them.

    Args:
        headers: of the request, names in lower case.
        rules: the policy's, which name the data classes.

    Raises:
        BadInput: there is no such option, it is there twice, or its value is none.
    """
    given: dict[str, str] = {}
    for raw, value in headers:
        if b"edgeroute" not in raw:
            continue
        name, text = raw[len(PREFIX) :].decode("latin-1"), value.decode("latin-1").strip()
        if not raw.startswith(PREFIX) or name not in NAMES:
            raise BadInput(f"there is no header {clean(raw.decode('latin-1'), 60)}: {nearest(name, NAMES)}")
        if name in given:
            raise BadInput(f"the header x-edgeroute-{name} is there twice: send it once")
        if not 0 < len(text) <= LONGEST or not text.isprintable():
            raise BadInput(f"the header x-edgeroute-{name} takes 1 to {LONGEST} printable characters")
        given[name] = text
    return _read(given, rules) if given else NONE


def _read(given: dict[str, str], rules: Rules) -> Options:
    mode: Any = given.get("mode")
    if mode not in (None, *MODES):
        raise BadInput(f"x-edgeroute-mode is {clean(mode, 40)!r}: {nearest(mode, MODES)}")
    data_class = given.get("data-class")
    classes = {*rules.never_leave, *rules.may_leave, *([rules.default_class] if rules.default_class else [])}
    if data_class is not None and data_class not in classes and rules.unknown_class == "deny":
        hint = nearest(data_class, sorted(classes)) if classes else "it has none, see [egress]"
        raise BadInput(f"x-edgeroute-data-class is {clean(data_class, 40)!r}, which the policy does not name: {hint}")
    return Options(
        mode, _seconds("deadline", given), _seconds("first-token", given), data_class
    )  # fmt: skip


def _seconds(name: str, given: dict[str, str]) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    found = _TIME.fullmatch(text)
    seconds = 0.0 if found is None else float(found[1]) * _UNITS[found[2]]
    if not 0 < seconds <= MOST_S:
        raise BadInput(f"x-edgeroute-{name} is a time with a unit, as in 300ms, 1.5s or 2m, not {clean(text, 40)!r}")
    return seconds


# Who asks, by a request's headers: a page of another site, or a program; and by which name of the server.


def of_a_page(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a web page sent it: it has `Origin`, or a browser marks it as another site's."""
    return b"origin" in headers or headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}


def is_opened(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser opens it as a page of its own, after a click on a link: the page with the link cannot read it."""
    kind = headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")
    return b"origin" not in headers and kind == (b"navigate", b"document")


def is_named(host: str, names: Collection[str]) -> bool:
    """Whether the header `Host` has an address or one of these names, with or without a port.

    Another one may be a page's own name that resolves to this machine (DNS rebinding).
    """
    if host.startswith("["):
        name, closed, rest = host[1:].partition("]")
        return bool(closed) and _is_address(name, 6) and (not rest or (rest[0] == ":" and _is_port(rest[1:])))
    name, colon, port = host.partition(":")
    if colon and not _is_port(port):
        return False
    return name.lower().rstrip(".") in names or _is_address(name, 4)


def is_loopback(address: str) -> bool:
    """Whether it is an address that this machine alone can reach."""
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_address(name: str, version: int) -> bool:
    try:
        return ip_address(name).version == version
    except ValueError:
        return False


# Who may ask: requests of web pages, of other hosts' names, and without the token are refused before anything is read.

OPEN = ("/v2/health/live", "/v2/health/ready")
"""Paths that need no token: they say nothing but that the gateway lives."""
SIMPLE = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")
"""Media types that a web page may send to any address without being allowed to."""


class Guard:
    """ASGI middleware.

    * `Host` is an address, `localhost`, or a name that was allowed: else a page whose own name resolves to this machine (DNS
      rebinding) would be at home here.
    * A request with `Origin`, or that a browser marks as another site's, comes from a web page, and is refused: nothing here is
      meant for pages, and there are no CORS headers.
    * With a token, `Authorization: Bearer TOKEN` is needed; compared in constant time.

    Args:
        app: what it guards.
        hosts: further names in `Host`.
        token: None: none is needed.
        without_token: paths that need none.
        what: what is guarded, in messages: the command of that name has the option --allow-host.
        links: paths that a page of another site may link to, as a notebook does: opened in a window of their own, never read.

    Raises:
        PolicyError: the token is none, or one that a header cannot have.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str] = (),
        token: str | None = None,
        without_token: Iterable[str] = OPEN,
        what: str = "gateway",
        links: Iterable[str] = (),
    ) -> None:
        self.app, self._open, self._what, self._links = app, frozenset(without_token), what, frozenset(links)
        self._hosts = {"localhost", *(name.lower().rstrip(".") for name in hosts)}
        self._token = None if token is None else checked(token).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may be asked."""
        if scope["type"] == "http" and (fault := self._fault(scope)) is not None:
            await fault.reply(scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _fault(self, scope: Scope) -> Fault | None:
        headers: dict[bytes, bytes] = {}
        what = self._what
        for name, value in scope["headers"]:
            if name in headers and name in {b"host", b"authorization", b"content-length"}:
                return Fault(
                    400, f"the header {clean(name.decode('latin-1'), 40)} is there twice: send it once", "bad_request", CLOSE
                )
            headers[name] = value
        if {b"content-length", b"transfer-encoding"} <= headers.keys():
            return Fault(400, "Content-Length and Transfer-Encoding contradict each other: send one", "bad_request", CLOSE)
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_named(host, self._hosts):
            return Fault(
                421,
                f"the Host {clean(host, 80)!r} is no name of this {what}: edgeroute {what} --allow-host NAME allows one",
                "unknown_host", CLOSE,
            )  # fmt: skip
        if of_a_page(headers) and not (scope["path"] in self._links and is_opened(headers)):
            return Fault(403, f"this {what} takes no requests from web pages: send them from a program", "web_page", CLOSE)
        if scope["method"] == "POST" and headers.get(b"content-type", b"").split(b";")[0].strip().lower() in SIMPLE:
            return Fault(415, "send the body as application/json", "unsupported_media_type", CLOSE)
        if self._token is None or scope["path"] in self._open:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
            message = "the token is missing or wrong: send Authorization: Bearer TOKEN, as OPENAI_API_KEY does"
            return Fault(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer", **CLOSE})
        return None


CLOSE = {"Connection": "close"}


def checked(token: str) -> str:
    """The token, without the line break that a file of it ends with.

    Raises:
        PolicyError: it is empty, or has characters that a header cannot have.
    """
    found = token.strip()
    if not found or not (found.isascii() and found.isprintable()) or " " in found:
        raise PolicyError("the token is empty, or has spaces or other characters that a header cannot have")
    return found


def token_of(name: str) -> str:
    """The token in that environment variable.

    Raises:
        PolicyError: there is none.
    """
    try:
        return checked(os.environ.get(name, ""))
    except PolicyError:
        raise PolicyError(
            f"the environment variable {name!r} has no token in it: set it, to at least 16 random characters"
        ) from None
