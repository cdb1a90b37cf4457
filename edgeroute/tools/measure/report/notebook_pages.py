"""Pages of a router, its statistics, a decision and a check, as the outputs of a notebook's cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from edgeroute.tools.measure.report import html_blocks as html
from edgeroute.tools.measure.report.numbers_in_words import count_text, duration, percent, size
from edgeroute.tools.measure.report.report_page import Page, cell, in_operation

if TYPE_CHECKING:
    from edgeroute.observe.router_stats import Stats
    from edgeroute.router.base_router import BaseRouter
    from edgeroute.router.decide_and_check import Check, Decision


def router_page(router: BaseRouter[Any]) -> str:
    """Return the page of a router: its targets, and its statistics. Calls no model and no endpoint."""
    snapshot = router.engine.snapshot
    rows = [
        [target.name, target.side, backend.where, "" if target.threshold is None else f"{target.threshold:.4g}", target.label]
        for target, backend in zip(snapshot.targets, snapshot.backends, strict=True)
    ]
    table = html.table(["target", "side", "where", "threshold", "guarantee"], rows, "The targets")
    state = "closed" if router.engine.closed else f"mode {snapshot.policy.mode}"
    return _cell(type(router).__name__, state, html.section("Targets", table), *_statistics(router.stats()))


def stats_page(stats: Stats) -> str:
    """Return the page of statistics."""
    return _cell("Stats", count_text(stats.requests, "request"), *_statistics(stats))


def decision_page(decision: Decision) -> str:
    """Return the page of a decision: its steps."""
    where = ", ".join(decision.sends_to)
    return _cell("Decision", f"may be sent to {where}" if where else "stays on the device", html.listed(decision.steps))


def check_page(check: Check) -> str:
    """Return the page of a check: problems first in a frame, then the other lines."""
    problems = [line[1:].strip() for line in check.lines if line.startswith("!")]
    frames = [f'<p class="verdict broken"><strong>✗</strong> {html.escape(problem)}</p>' for problem in problems]
    rest = html.listed(line for line in check.lines if not line.startswith("!"))
    return _cell("Check", "ready" if check.ok else "not ready", *frames, rest)


def _statistics(stats: Stats) -> list[str]:
    """Return the sections of statistics: counts, targets and trials."""
    tiles = html.tiles([
        ("requests", f"{stats.requests:,}", f"{stats.cached:,} more from the cache"),
        ("deferred", percent(stats.deferral_rate), f"{stats.deferred:,} to the cloud"),
        ("degraded", f"{stats.degraded:,}", f"{stats.unanswered:,} unanswered"),
        ("bodies", size(stats.bytes_sent + stats.bytes_received), f"{size(stats.bytes_sent)} sent"),
        ("cost", f"{stats.usd_today:.4g} USD", "last 24 hours"),
    ])  # fmt: skip
    columns = ["target", "started", "answered", "accepted", "failed", "p50", "p99", "breaker"]
    rows = [
        [leg.name, *(f"{n:,}" for n in leg[2:6]), _time(leg.p50_s), _time(leg.p99_s), leg.breaker] for leg in stats.legs
    ]  # fmt: skip
    alarms = [html.paragraph(f"{audit.target}: {audit.alarm}") for audit in stats.audits if audit.alarm]
    arms = in_operation([arm._asdict() for arm in stats.arms]) if stats.arms else ""
    return [tiles, *alarms, html.section("Calls", html.table(columns, rows, "Calls of each target")), arms]


def _time(seconds: float | None) -> str:
    """Return a time, or a dash."""
    return "-" if seconds is None else duration(seconds)


def _cell(title: str, summary: str, *parts: str) -> str:
    """Return a page as an element for the output of a notebook's cell."""
    return cell(Page(title, summary, "\n".join(filter(None, parts))), f"edgeroute-{uuid4().hex[:12]}")
