"""Who may ask: requests of web pages, of other hosts' names, and without the token are refused before anything is read."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from edgeroute.core.texts import clean
from edgeroute.errors import PolicyError
from edgeroute.gateway.faults import Fault
from edgeroute.serve.asked import is_named, is_opened, of_a_page

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
