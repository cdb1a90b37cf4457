"""ASGI application: the page, and what it asks for. Everything is read only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from math import isfinite

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgeroute.errors import BadInput
from edgeroute.system.process import json_dumps
from edgeroute.tools.dashboard.monitor import Monitor
from edgeroute.tools.server.faults import HANDLERS
from edgeroute.tools.server.guard import Guard

OPEN = ("/",)
"""Needs no token: the page has nothing in it, and asks for everything with the token that is in its address."""
NONCE = "@NONCE@"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def app(monitor: Monitor, token: str, *, hosts: Iterable[str] = (), routes: Iterable[BaseRoute] = ()) -> Starlette:
    """Makes the application; it closes the monitor at its end.

    Args:
        monitor: what is shown; begun here.
        token: what the page sends as `Authorization: Bearer TOKEN`.
        hosts: names in the header `Host`, beside `localhost` and addresses.
        routes: more of them, behind the same token.

    Raises:
        PolicyError: a token that a header cannot have.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        monitor.start()
        try:
            yield
        finally:
            await run_in_threadpool(monitor.close)

    guard = Middleware(Guard, hosts=tuple(hosts), token=token, without_token=OPEN, what="dashboard", links=OPEN)
    pages = _Pages(monitor)
    own = [Route("/", _page), Route("/live", pages.live), Route("/trial", pages.trial), Route("/trial/at", pages.tried)]
    application = Starlette(routes=[*own, *routes], exception_handlers=HANDLERS, middleware=[guard], lifespan=lifespan)
    application.router.redirect_slashes = False
    return application


async def _page(_: Request) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {**HEADERS, "Content-Security-Policy": policy}
    return Response(_text().replace(NONCE, nonce), headers=headers, media_type="text/html")


@cache
def _text() -> str:
    return files("edgeroute.tools.dashboard").joinpath("page.html").read_text(encoding="utf-8")


class _Pages:
    """Handlers of what the page asks for."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def live(self, _: Request) -> Response:
        """Everything that is shown, as it is now."""
        return _json(await run_in_threadpool(self._monitor.text))

    async def trial(self, request: Request) -> Response:
        """Takes the latest requests to be replayed, or shows those taken before."""
        fresh = request.query_params.get("fresh") == "1"
        return _json(json_dumps(await run_in_threadpool(self._monitor.trial, fresh=fresh)))

    async def tried(self, request: Request) -> Response:
        """Replays them with another threshold."""
        try:
            threshold = float(request.query_params["threshold"])
        except (KeyError, ValueError):
            threshold = float("nan")
        if not isfinite(threshold):
            raise BadInput("threshold is a number, as in /trial/at?edge=NAME&threshold=0.8")
        return _json(json_dumps(await run_in_threadpool(self._monitor.tried, request.query_params.get("edge", ""), threshold)))


def _json(text: bytes) -> Response:
    return Response(text, headers=HEADERS, media_type="application/json")
