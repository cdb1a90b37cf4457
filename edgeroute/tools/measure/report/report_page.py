"""Pages of an evaluation, a calibration, trials, and a router, as an HTML file or as the output of a notebook's cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from edgeroute.tools.measure.evaluation import Evaluation
from edgeroute.tools.measure.fleet_trial import Difference, Fleet
from edgeroute.tools.measure.report import html_blocks as html
from edgeroute.tools.measure.report import page_sections as sections
from edgeroute.tools.measure.report.html_blocks import escape, side_by_side
from edgeroute.tools.measure.report.numbers_in_words import arm_cells, arm_rows, count_text, duration, limit, percent, size

if TYPE_CHECKING:
    from edgeroute.observe.router_stats import Stats
    from edgeroute.router.base_router import BaseRouter
    from edgeroute.router.decide_and_check import Check, Decision

# Sections of a trial, for one router in operation, and for many devices.

SAID = {
    ("edge", "failed"): "requests that its edge model failed on",
    ("edge", "deferred"): "requests deferred to the cloud",
    ("edge", "differs"): "answers that differ from the cloud's",
    ("cloud", "failed"): "calls that failed",
    ("cloud", "differs"): "answers that differ from the edge's",
}
"""(Side, measure) -> the measure's description."""
VERDICTS = {"worse": "worse by more than is allowed", "within": "no worse than is allowed", "open": "not known yet"}


def in_operation(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return the section about a router's trials in operation, with stopped arms. arms: as in its statistics."""
    return html.section("Trials in operation", _table(arms), *_stopped(arms), html.paragraph(
        "Of requests, not of these examples. The loss is the share of all requests that the edge answered otherwise than the "
        "cloud would, by audits. Intervals are of 95 %, for independent requests and one look that was fixed beforehand; the "
        "guardrail looks at each."
    ))  # fmt: skip


def fleet_section(fleet: Fleet) -> str:
    """Return the sections of a trial on many devices: its arms, and, if anything is compared, the differences."""
    arms = [arm._asdict() for arm in fleet.arms]
    table = html.section("The arms", _table(arms), *_stopped(arms), html.paragraph(
        "The loss is the share of all requests that the edge answered otherwise than the cloud would, by audits. p99 is that "
        "of the median device. Intervals are of 95 %."))  # fmt: skip
    if not fleet.settings.measures:
        return table
    a, b = (arm.arm for arm in fleet.arms)
    kind = "broken" if fleet.worse else "held" if _is_all_within(fleet) else "open"
    short, long = verdict(fleet)
    headline = f'<p class="verdict {kind}"><strong>{html.escape(short)}</strong> {html.escape(long)}</p>'
    rows = [[row.measure.replace("differs", "differ"), *difference(row)] for row in fleet.differences]
    columns = [f"{b} less {a}", "difference", "interval", "allowed", ""]
    return "\n".join([
        html.section(f"{b} against {a}", headline, html.table(columns, rows, columns[0]), html.paragraph(how(fleet))), table,
    ])  # fmt: skip


def verdict(fleet: Fleet) -> tuple[str, str]:
    """Return a headline and an explanation: if the model on trial is worse, is not, or too little is known."""
    b, side, measures = fleet.arms[1].arm, fleet.settings.side, fleet.settings.measures
    if fleet.worse:
        worse = " and more ".join(SAID[side, name] for name in fleet.worse)
        return f"{b} is worse: stop it.", f"It has more {worse} than is allowed."
    if _is_all_within(fleet):
        return f"{b} is no worse than is allowed.", "So it is for all measures."
    measured = {row.measure for row in fleet.differences}
    missing = [SAID[side, name] for name in measures if name not in measured]
    unsure = [SAID[side, row.measure] for row in fleet.differences if row.verdict == "open"]
    sentences = [f"Too little is known of {', '.join(unsure)}."] if unsure else []
    sentences += [f"There are no figures of both arms for {', '.join(missing)}."] if missing else []
    return f"Whether {b} is worse is not known yet.", " ".join(sentences)


def difference(row: Difference) -> tuple[str, str, str, str]:
    """Return the cells of a difference: value, interval, what is allowed, verdict."""
    value = f"{row.value * 100:+.2f} %"
    return value, f"{row.low * 100:+.2f} to {row.high * 100:+.2f} %", f"+{limit(row.allowed)}", VERDICTS[row.verdict]


def how(fleet: Fleet) -> str:
    """Return a sentence about the basis of the differences' intervals."""
    unit = "devices, as each is in one arm: re-randomisation" if fleet.by_device else "requests, as each was drawn for itself"
    sure = limit(fleet.settings.alpha)
    return (
        f"By {unit}. At one look, a trial that is no worse than is allowed is called worse with probability {sure} at most, over "
        f"all measures; and one that is worse is likewise called no worse."
    )


def _is_all_within(fleet: Fleet) -> bool:
    """Return True if every measure is known (none is missing) to be no worse than is allowed."""
    return len(fleet.differences) == len(fleet.settings.measures) and all(row.verdict == "within" for row in fleet.differences)


def _table(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a column for each arm."""
    rows = [[name, *cells] for name, *cells in zip(arm_rows(arms), *map(arm_cells, arms), strict=True)]
    return html.table(["", *(f"{arm['arm']}: {arm['model']}" for arm in arms)], rows, "The arms")


def _stopped(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a paragraph for each stopped arm."""
    return [html.paragraph(f"{arm['arm']} is stopped: {arm['stopped']}.") for arm in arms if arm["stopped"]]


def basis(count: int, requests: int) -> str:
    """Return the number of devices and requests of a comparison in words."""
    return f"{count_text(count, 'device')}, {count_text(requests, 'request')}"


SCOPE = ".edgeroute-report"
"""Selector of the element that is a page in a notebook."""
STRONG = ".edgeroute-report:not(#_)"
"""Selector of that element with the weight of an id, which no rule of the notebook for tables or lists overrides."""


@cache
def style(name: str) -> str:
    """Return the rules of a file of CSS in this folder, page.css or cell.css, without its comments; reads it once."""
    return re.sub(r"/\*.*?\*/\n?", "", Path(__file__).with_name(name).read_text(encoding="utf-8"))


class Page(NamedTuple):
    """Contents of a page: title, the line under it, and HTML."""

    title: str
    summary: str
    body: str


def evaluation_page(evaluation: Evaluation, *, drawn: bool = True) -> Page:
    """Return the page of an evaluation; deterministic. drawn: True includes figures.

    Raises:
        RuntimeMissing: matplotlib is not installed, and there are figures.
    """
    parts = [sections.promise(evaluation), sections.numbers(evaluation)]
    if drawn:
        parts += [
            side_by_side(sections.accuracy_over_deferral(evaluation), sections.latency(evaluation)),
            sections.cost(evaluation),
            side_by_side(sections.reliability(evaluation), sections.scores(evaluation)),
        ]
    else:
        parts += [sections.cost(evaluation), sections.undrawn()]
    arms = in_operation(evaluation.arms) if evaluation.arms else ""
    return _page("evaluation", evaluation, [*parts, sections.classes(evaluation), arms, sections.notes(evaluation)])


def fleets_page(fleets: Sequence[tuple[Fleet, str]]) -> Page:
    """Return the page of trials on many devices, each with a summary of its devices and requests."""
    a, b = fleets[0][0].settings.models
    summary = "; ".join(dict.fromkeys(basis for _, basis in fleets))
    return Page(f"edgeroute arms: {a} and {b}", summary, "\n".join(fleet_section(fleet) for fleet, _ in fleets))


def calibration_page(evaluation: Evaluation, why: str, notes: Iterable[str], *, drawn: bool = True) -> Page:
    """Return the page of a calibration.

    Args:
        evaluation: the calibration's examples with its threshold.
        why: reason for the choice of the score; empty: it was given.
        notes: notes on the calibration, one line each.
        drawn: True includes figures.

    Raises:
        RuntimeMissing: matplotlib is not installed, and there are figures.
    """
    parts = [sections.calibration(evaluation, why, notes)]
    parts.append(
        side_by_side(sections.accuracy_over_deferral(evaluation), sections.scores(evaluation)) if drawn else sections.undrawn()
    )
    return _page("calibration", evaluation, [*parts, sections.classes(evaluation), sections.notes(evaluation)])


def _page(what: str, evaluation: Evaluation, parts: Iterable[str]) -> Page:
    """Return a page with a title and a summary of the evaluation."""
    names = evaluation.names
    edge = names.edge if names.edge_bytes is None else f"{names.edge} ({size(names.edge_bytes)})"
    about = {"data": names.data, "edge model": edge, "cloud": names.cloud, "score": names.score, "measured": names.date}
    summary = "; ".join([count_text(evaluation.n, "input"), *(f"{what} {name}" for what, name in about.items() if name)])
    title = f"edgeroute {what}: {names.policy}" if names.policy else f"edgeroute {what}"
    return Page(title, summary, "\n".join(filter(None, parts)))


def document(page: Page) -> str:
    """Return the page as one self-contained HTML file."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(page.title)}</title>
<style>{style("page.css")}</style>
</head>
<body>
<main>
<h1>{escape(page.title)}</h1>
<p class="dim">{escape(page.summary)}</p>
{page.body}
</main>
</body>
</html>
"""


def cell(page: Page, name: str) -> str:
    """Return the page as an element for the output of a notebook's cell, in the notebook's colours.

    Its style affects nothing else. name: id of the element, unique in the notebook: ids inside begin with it.
    """
    body = re.sub(r'(\bid="|\burl\(#|href="#)', rf"\1{name}-", page.body)
    rules = (_scoped(style("page.css"), SCOPE) + style("cell.css")).replace(SCOPE, STRONG)
    return (
        f'<div class="edgeroute-report" id="{name}">\n<style>{rules}</style>\n<p class="title">{escape(page.title)}</p>\n'
        f'<p class="dim">{escape(page.summary)}</p>\n{body}\n</div>\n'
    )


def _scoped(rules: str, scope: str) -> str:
    """Restrict CSS rules to elements inside the scope; rules for the page itself are dropped."""

    def selector(match: re.Match[str]) -> str:
        """Prefix each selector with the scope."""
        each = [part.strip() for part in match[1].split(",")]
        return f"\n{', '.join(f'{scope} {part}' for part in each)} {{"

    inner = re.sub(r"(?m)^(@media [^{]*\{ )?(:root|body) \{[^}]*\}( \})?", "", rules)
    return re.sub(r"(?<![^{}\n])\s*([^{}@]+?)\s*\{", selector, inner)


def page(evaluation: Evaluation) -> str:
    """Return the HTML file of an evaluation; see `evaluation_page`."""
    return document(evaluation_page(evaluation))


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
