"""Handler of the dashboard's `/metrics` for Prometheus, computed from the records that it follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgeroute.core.device_rules import Reading
from edgeroute.core.routing_policy import INF
from edgeroute.core.usage_limits import Cost, Limits
from edgeroute.observe.router_stats import AuditStats, LegStats, Stats, Status
from edgeroute.record.prometheus import check_installed, shown
from edgeroute.tools.dashboard.monitor import OLD_S, Monitor
from edgeroute.tools.replay.trace_reader import MOST

if TYPE_CHECKING:
    from edgeroute.record.prometheus import Page

UNKNOWN = frozenset({"queued", "late", "spared"})
"""Metrics of a router's state that neither its trace nor its state folder has."""
SPENT = frozenset({"spent", "limit"})
"""Metrics that are unknown without a state folder."""


def route(monitor: Monitor) -> BaseRoute:
    """Return the route of `/metrics` for a monitor.

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
    """Return the metrics under the names of the `Prometheus` instrument; plus `usd_total`, which a trace has by leg."""
    from edgeroute.record.prometheus import Page, of_status, of_tally

    view = monitor.view()
    page = Page(without=UNKNOWN if "spent" in view["state"] else UNKNOWN | SPENT)
    of_tally(page, monitor.tallied(), "")
    of_status(page, status_of(view), "")
    for leg in view["legs"]:
        if leg["side"] == "cloud":
            page.counter("usd", "US dollars of calls, by the endpoint's prices", leg["usd"], router="", leg=leg["name"])
    return page


def status_of(view: Mapping[str, Any]) -> Status:
    """Convert a dashboard's view to the status of its router; rules of an old record do not count."""
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
    """Convert a view to the router's statistics."""
    state, cached = view["state"], view["answered"]["cache"]
    legs, routed = tuple(_leg(leg, state.get("link", {}).get(leg["name"], {})) for leg in view["legs"]), view["requests"] - cached
    return Stats(
        requests=routed, deferred=view["deferred"], degraded=view["degraded"], unanswered=view["answered"]["none"],
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
    """Convert the traced sensor readings; anything that is no number of a plausible size is left out."""
    numbers: dict[str, Any] = {
        name: value for name, value in traced.items() if isinstance(value, int | float) and -MOST < value < MOST
    }
    return Reading(**{name: numbers[name] for name in Reading._fields if name in numbers})
