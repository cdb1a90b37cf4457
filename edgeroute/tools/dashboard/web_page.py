"""Web page of the dashboard: its ASGI application, which only reads, and the server that runs it on uvicorn."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.resources import files
from math import isfinite
from typing import TYPE_CHECKING

from edgeroute.errors import BadInput, RuntimeMissing
from edgeroute.system.process import json_dumps

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Route

    from edgeroute.tools.server.access import Guard, checked_token
    from edgeroute.tools.server.error_replies import HANDLERS
    from edgeroute.tools.server.uvicorn_host import notify_alive, run
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[dashboard]'") from e

if TYPE_CHECKING:
    from edgeroute.tools.dashboard.monitor import Monitor

PORT = 8585
OPEN = ("/",)
"""Paths that need no token: the page itself has no data, and requests all of it with the token in its address."""
NONCE = "@NONCE@"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def serve(
    monitor: Monitor,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    hosts: Iterable[str] = (),
    routes: Iterable[BaseRoute] = (),
    on_ready: Callable[[str], object] | None = None,
    stops: Callable[[Callable[[], object]], object] | None = None,
) -> int:
    """Serve the page until SIGTERM or SIGINT and return that signal's number; 0 in a thread, which receives none. Blocks.

    Args:
        monitor: monitor to show; started here, and closed at the end.
        host: address to listen on; the default accepts only this machine. There is no TLS: elsewhere the token can be read on the
            way.
        port: port to listen on; 0 selects a free one.
        token: token that the page needs; None: a random one.
        hosts: names accepted in the header `Host`, beside `localhost` and addresses.
        routes: further routes behind the same token.
        on_ready: called with the page's address, which includes the token, once the server listens.
        stops: called before the start with a function that ends the server from any thread.

    Raises:
        PolicyError: the address cannot be listened on, or the token is one that a header cannot have.
    """
    secret = secrets.token_urlsafe(24) if token is None else checked_token(token)
    application = app(monitor, secret, hosts=hosts, routes=routes)

    def ready(url: str) -> None:
        """Report the page's address with the token."""
        if on_ready is not None:
            on_ready(f"{url}/#token={secret}")

    return run(application, host, port, partial(notify_alive, "serving the dashboard"), ready, stops)


def app(monitor: Monitor, token: str, *, hosts: Iterable[str] = (), routes: Iterable[BaseRoute] = ()) -> Starlette:
    """Build the ASGI application. It starts the monitor at its start, and closes it at its end.

    Args:
        monitor: monitor to show.
        token: token that the page sends as `Authorization: Bearer TOKEN`.
        hosts: names accepted in the header `Host`, beside `localhost` and addresses.
        routes: further routes behind the same token.

    Raises:
        PolicyError: a token that a header cannot have.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        """Start the monitor, and close it at the end of the application."""
        monitor.start()
        try:
            yield
        finally:
            await run_in_threadpool(monitor.close)

    guard = Middleware(Guard, hosts=tuple(hosts), token=token, without_token=OPEN, what="dashboard", links=OPEN)
    pages = _Pages(monitor)
    all_routes = [
        Route("/", _page), Route("/live", pages.live), Route("/trial", pages.trial), Route("/trial/at", pages.try_threshold),
        *routes,
    ]  # fmt: skip
    application = Starlette(routes=all_routes, exception_handlers=HANDLERS, middleware=[guard], lifespan=lifespan)
    application.router.redirect_slashes = False
    return application


async def _page(_: Request) -> Response:
    """Return the HTML page with a fresh nonce for its scripts."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {**HEADERS, "Content-Security-Policy": policy}
    return Response(_html().replace(NONCE, nonce), headers=headers, media_type="text/html")


@cache
def _html() -> str:
    """Read the text of the page's file, once."""
    return files("edgeroute.tools.dashboard").joinpath("page.html").read_text(encoding="utf-8")


class _Pages:
    """GET handlers of the page's data."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def live(self, _: Request) -> Response:
        """Return everything that the page shows now."""
        return _json(await run_in_threadpool(self._monitor.text))

    async def trial(self, request: Request) -> Response:
        """Return the thresholds to try, computed in a thread; `fresh=1` loads the latest requests for replays again."""
        fresh = request.query_params.get("fresh") == "1"
        return _json(json_dumps(await run_in_threadpool(self._monitor.trial, fresh=fresh)))

    async def try_threshold(self, request: Request) -> Response:
        """Replay the loaded requests with another threshold, in a thread, and return the result.

        Raises:
            BadInput: the threshold is no number, or nothing is loaded.
        """
        try:
            threshold = float(request.query_params["threshold"])
        except (KeyError, ValueError):
            threshold = float("nan")
        if not isfinite(threshold):
            raise BadInput("threshold must be a number, as in /trial/at?edge=NAME&threshold=0.8")
        edge = request.query_params.get("edge", "")
        return _json(json_dumps(await run_in_threadpool(self._monitor.try_threshold, edge, threshold)))


def _json(text: bytes) -> Response:
    """Return a response of JSON."""
    return Response(text, headers=HEADERS, media_type="application/json")
