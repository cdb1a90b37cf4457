"""Runs the dashboard's page on uvicorn."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edgeroute.errors import RuntimeMissing

try:
    from edgeroute.tools.dashboard.app import app
    from edgeroute.tools.server.guard import checked
    from edgeroute.tools.server.host import run
    from edgeroute.tools.server.notify import BEATS
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[dashboard]'") from e

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from edgeroute.tools.dashboard.monitor import Monitor
    from edgeroute.tools.server.notify import Notify

PORT = 8585


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
    """Serves the page until SIGTERM or SIGINT -> that signal; 0 in a thread, which hears of none.

    Args:
        monitor: what is shown; closed at the end.
        host: to listen on; the default accepts only this machine. There is no TLS: elsewhere the token can be read on the way.
        port: 0 takes a free one.
        token: what the page needs; None: a new one.
        hosts: names in the header `Host`, beside `localhost` and addresses.
        routes: more of them, behind the same token.
        on_ready: called with the page's address, the token in it, once it is listening.
        stops: called, once it is listening, with a function that ends it from any thread.

    Raises:
        PolicyError: it cannot listen there, or the token is one that a header cannot have.
    """
    secret = secrets.token_urlsafe(24) if token is None else checked(token)
    application = app(monitor, secret, hosts=hosts, routes=routes)

    def ready(url: str) -> None:
        if on_ready is not None:
            on_ready(f"{url}/#token={secret}")

    return run(application, host, port, _alive, ready, stops)


async def _alive(notify: Notify) -> None:
    """The event loop answers."""
    notify.ready("serving the dashboard")
    while notify.watchdog_s is not None:
        notify.alive()
        await asyncio.sleep(notify.watchdog_s / BEATS)
