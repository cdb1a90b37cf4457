"""Web page of the dashboard: its ASGI application `app`, which only reads, `serve` on uvicorn, and the conversion to `/metrics`.

`/metrics` converts the followed trace to the status of its router, for the Prometheus instrument's own names.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.resources import files
from math import isfinite
from typing import Any

from edgeroute.core.device_rules import Reading
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.spending_limits import Cost, Limits
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing
from edgeroute.observe.stats_and_status_types import AuditStats, LegStats, Stats, Status
from edgeroute.record.prometheus import Page, check_installed, of_status, of_tally, shown
from edgeroute.system.json_codec_and_short_repr import json_dumps
from edgeroute.system.thread_pool_and_workers import start_thread
from edgeroute.tools.dashboard.dashboard_data_and_tail import OLD_S, Monitor
from edgeroute.tools.replay.recorded_requests_and_statistics import MOST
from edgeroute.tools.state_colours_and_marks import STATES, css, svg_hatches

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Route

    from edgeroute.tools.server.access_limits_call_options import HANDLERS, Guard, checked_token
    from edgeroute.tools.server.uvicorn_with_client_limits import notify_alive, run
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[dashboard]'") from e

PORT = 8585
START_S = 30.0  # longest wait for a server to listen, seconds
OPEN = ("/",)  # paths that need no token: the page itself has no data, and requests all of it with the token in its address
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
    """Serve the page until SIGTERM, SIGINT or SIGHUP and return that signal's number; 0 in a thread, which receives none. Blocks.

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


def serve_in_thread(name: str, serve: Callable[..., object]) -> tuple[threading.Thread, str]:
    """Call `serve` in a daemon thread, wait until it calls its argument `on_ready`, and return the thread, and the URL passed.

    An exception before that is raised here, and a later one logged.

    Raises:
        PolicyError: it has not listened within 30 s, or ended before it did.
    """
    ready, urls, errors = threading.Event(), list[str](), list[BaseException]()

    def on_ready(url: str) -> None:
        """Pass the URL to the caller's thread."""
        urls.append(url)
        ready.set()

    def run() -> None:
        """Serve until stopped; pass an exception to the caller's thread, or to the log once the page was served."""
        try:
            serve(on_ready=on_ready)
        except BaseException as e:
            errors.append(e)
            if urls:
                raise
        finally:
            ready.set()

    thread = start_thread(name, run)
    if thread is None or not ready.wait(START_S) or not urls:
        raise errors[0] if errors else PolicyError(f"the page did not listen within {START_S:g} s")
    return thread, urls[0]


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

    # functions that are no coroutines are called in a thread
    def between(query: Request) -> Response:
        """Return the requests of a bar, from `begin` up to `end` in the query, Unix times: the latest 200, and the count."""
        return json_reply(json_dumps(monitor.between(_number(query, "begin"), _number(query, "end"))))

    def trial(query: Request) -> Response:
        """Return the thresholds to try; `fresh=1` in the query loads the latest requests for replays again."""
        return json_reply(json_dumps(monitor.trial(fresh=query.query_params.get("fresh") == "1")))

    def try_threshold(query: Request) -> Response:
        """Replay the loaded requests with the `threshold` of the `edge` in the query, and return the result."""
        edge, threshold = query.query_params.get("edge", ""), _number(query, "threshold")
        return json_reply(json_dumps(monitor.try_threshold(edge, threshold)))

    guard = Middleware(Guard, hosts=tuple(hosts), token=token, without_token=OPEN, what="dashboard", links=OPEN)
    all_routes = [
        Route("/", lambda _: page_reply("edgeroute.tools.dashboard", "page.html")),
        Route("/live", lambda _: json_reply(monitor.text())), Route("/requests", between), Route("/trial", trial),
        Route("/trial/at", try_threshold), *routes,
    ]  # fmt: skip
    application = Starlette(routes=all_routes, exception_handlers=HANDLERS, middleware=[guard], lifespan=lifespan)
    application.router.redirect_slashes = False
    return application


def page_reply(package: str, name: str) -> Response:
    """Return an HTML page of a package with a fresh nonce for its scripts; pictures and sounds have to be data URLs.

    The file is read once in a process. `@PALETTE@` in it becomes the rules of the states' colours, `@HATCHES@` their SVG
    patterns, `@STATES@` their marks and meanings as JSON, `@NONCE@` the nonce.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
        "media-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {**HEADERS, "Content-Security-Policy": policy}
    return Response(_html(package, name).replace(NONCE, nonce), headers=headers, media_type="text/html")


@cache
def _html(package: str, name: str) -> str:
    """Read the text of a page's file, with the palette in it, once."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    states = json_dumps({name: [state.mark, state.meaning] for name, state in STATES.items()}).decode()
    return text.replace("@PALETTE@", css()).replace("@HATCHES@", svg_hatches()).replace("@STATES@", states)


def _number(request: Request, name: str) -> float:
    """Return a finite number of a request's query.

    Raises:
        BadInput: it is missing, no number, or not finite.
    """
    try:
        number = float(request.query_params[name])
    except (KeyError, ValueError):
        number = float("nan")
    if not isfinite(number):
        raise BadInput(f"{name} must be a number, as in ?{name}=0.8")
    return number


def json_reply(text: bytes) -> Response:
    """Return a response of JSON, which nobody stores."""
    return Response(text, headers=HEADERS, media_type="application/json")


UNKNOWN = frozenset({"queued", "late", "spared"})  # metrics of a router's state that neither its trace nor its state folder has
SPENT = frozenset({"spent", "limit"})  # metrics that are unknown without a state folder


def metrics_route(monitor: Monitor) -> BaseRoute:
    """Return the route of `/metrics` for a monitor; each scrape renders its counts in a thread.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """
    check_installed()  # raise now, not at the first scrape

    def metrics(request: Request) -> Response:  # no coroutine function, so that Starlette calls it in a thread
        """Render the metrics in the format that the scraper accepts."""
        rendered = shown(page_of(monitor), request.headers.get("accept", ""))
        return Response(rendered.body, headers={"Content-Type": rendered.content_type, "Cache-Control": "no-store"})

    return Route("/metrics", metrics)


def page_of(monitor: Monitor) -> Page:
    """Return the metrics of what a monitor has read, by the names of the `Prometheus` instrument, without what a trace lacks.

    Adds `usd_total` for each cloud, which a trace has by leg (call of a model or server).
    """
    view = monitor.view()
    page = Page(without=UNKNOWN if "spent" in view["state"] else UNKNOWN | SPENT)
    of_tally(page, monitor.tallied(), "")
    of_status(page, status_of(view), "")
    for leg in view["legs"]:
        if leg["side"] == "cloud":
            page.counter("usd", "US dollars of calls, by the endpoint's prices", leg["usd"], router="", leg=leg["name"])
    return page


def status_of(view: Mapping[str, Any]) -> Status:
    """Convert a dashboard's view to the status of its router; what it lacks is 0 or no limit.

    Rules count only if the state names them, or the latest record is at most 60 s old.
    """
    state, device = view["state"], view["device"]
    spent = state.get("spent", {})
    limits = [spent.get(name, {}).get("limit") for name in Limits._fields]
    latest = view["latest_at"]  # the rules of a trace are those of its latest record
    current = "in_force" in state or (latest is not None and view["now"] - latest <= OLD_S)
    return Status(
        stats=_stats(view),
        limits=Limits(*[INF if limit is None else limit for limit in limits]),
        spent=Cost(*[spent.get(name, {}).get("spent", 0.0) for name in Limits._fields]),
        outbox=state.get("outbox"),
        reading=None if device["age_s"] is None else _reading(device["reading"]),
        reading_age_s=device["age_s"] or 0.0,
        rules=tuple(rule["text"] for rule in view["rules"] if rule["in_force"]) if current else (),
    )


def _stats(view: Mapping[str, Any]) -> Stats:
    """Convert a view to the router's statistics; requests that the cache answered count as `cached` alone."""
    state, cached = view["state"], view["answered"]["cache"]
    legs, routed = tuple(_leg(leg, state.get("link", {}).get(leg["name"], {})) for leg in view["legs"]), view["requests"] - cached
    return Stats(
        requests=routed, deferred=view["deferred"], degraded=view["degraded"] + view["later"],
        unanswered=view["answered"]["none"],
        deferral_rate=view["deferred"] / max(1, routed), cached=cached, queued=0, late=0,
        bytes_sent=sum(leg.bytes_sent for leg in legs), bytes_received=sum(leg.bytes_received for leg in legs),
        usd_today=0.0, legs=legs, audits=tuple(map(_audit, state.get("edges", ()))), joules=state.get("joules", {}),
    )  # fmt: skip


def _leg(leg: Mapping[str, Any], link: Mapping[str, float | None]) -> LegStats:
    """Convert a leg of a view to its statistics."""
    return LegStats(
        name=leg["name"], side="edge" if leg["side"] == "edge" else "cloud", started=leg["started"], answered=leg["answers"],
        accepted=leg["accepted"], failed=leg["failed"] + leg["held"], cancelled=leg["cancelled"] + leg["late"],
        p50_s=leg["p50_s"], p90_s=leg["p90_s"], p99_s=leg["p99_s"], bytes_sent=int(leg["sent_bytes"]),
        bytes_received=int(leg["received_bytes"]), breaker=leg["breaker"], held=leg["held"], call_s=link.get("call_s"),
        bytes_per_s=link.get("bytes_per_s"),
    )  # fmt: skip


def _audit(edge: Mapping[str, Any]) -> AuditStats:
    """Convert an edge of a view to its audit statistics; no alarm is ""."""
    alarm = "" if edge["alarm"] is None else str(edge["alarm"].get("what", "alarm"))
    return AuditStats(edge["target"], edge["audited"], edge["disagreed"], edge["limit"], float(edge["evidence"] or 0.0), alarm)


def _reading(traced: Mapping[str, Any]) -> Reading:
    """Convert the traced sensor readings; values but true, false and numbers of a plausible size are left out."""
    numbers: dict[str, Any] = {
        name: value for name, value in traced.items() if isinstance(value, int | float) and -MOST < value < MOST
    }
    return Reading(**{name: numbers[name] for name in Reading._fields if name in numbers})
