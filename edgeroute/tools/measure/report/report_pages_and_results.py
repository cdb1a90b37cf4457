"""Pages of an evaluation, a calibration, trials and a router, as HTML files or in notebooks; results of both commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isnan
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from edgeroute.confidence.certificate import Certificate
from edgeroute.confidence.learned_scores_and_blends import Learned
from edgeroute.confidence.scores import Score
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.reason_text_and_trace_record import finite
from edgeroute.errors import RuntimeMissing
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.tools.measure.certification_and_verdicts import verdicts
from edgeroute.tools.measure.fleet_trial_comparison import Difference, FleetTrial
from edgeroute.tools.measure.report import html_blocks as html
from edgeroute.tools.measure.report import numbers_verdicts_and_table_rows as words
from edgeroute.tools.measure.report import page_sections as sections
from edgeroute.tools.measure.report.html_blocks import escape, side_by_side
from edgeroute.tools.measure.threshold_evaluation import EXTENDED, QUANTILES, Evaluation, Share
from edgeroute.tools.state_colours_and_marks import css, marked

if TYPE_CHECKING:
    from edgeroute.observe.stats_and_status_types import Stats
    from edgeroute.router.base_router import BaseRouter
    from edgeroute.router.decision_and_check_results import Check, Decision

# Sections of a trial, for one router in operation, and for many devices.

# (Side, measure) -> the measure's description.
SAID = {
    ("edge", "failed"): "requests that its edge model failed on",
    ("edge", "deferred"): "requests deferred to the cloud",
    ("edge", "differs"): "answers that differ from the cloud's",
    ("cloud", "failed"): "calls that failed",
    ("cloud", "differs"): "answers that differ from the edge's",
}
VERDICTS = {"worse": "worse by more than is allowed", "within": "no worse than is allowed", "open": "not known yet"}


def in_operation(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return the section about a router's trials in operation, with stopped arms. arms: as in its statistics."""
    return html.section("Trials in operation", _table(arms), *_stopped(arms), html.paragraph(
        "Of requests, not of these examples. The loss is the share of all requests that the edge answered otherwise than the "
        "cloud would, by audits. Intervals are of 95 %, for independent requests and one look that was fixed beforehand; the "
        "guardrail looks at each."
    ))  # fmt: skip


def fleet_section(fleet: FleetTrial) -> str:
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


def verdict(fleet: FleetTrial) -> tuple[str, str]:
    """Return a headline and an explanation of a trial on many devices: the model on trial is worse, is not, or is not known."""
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
    return value, f"{row.low * 100:+.2f} to {row.high * 100:+.2f} %", f"+{words.limit(row.allowed)}", VERDICTS[row.verdict]


def how(fleet: FleetTrial) -> str:
    """Return a sentence about the basis of the differences' intervals."""
    unit = "devices, as each is in one arm: re-randomisation" if fleet.by_device else "requests, as each was drawn for itself"
    sure = words.limit(fleet.settings.alpha)
    return (
        f"By {unit}. At one look, a trial that is no worse than is allowed is called worse with probability {sure} at most, over "
        f"all measures; and one that is worse is likewise called no worse."
    )


def _is_all_within(fleet: FleetTrial) -> bool:
    """Return True if every measure is known (none is missing) to be no worse than is allowed."""
    return len(fleet.differences) == len(fleet.settings.measures) and all(row.verdict == "within" for row in fleet.differences)


def _table(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a column for each arm."""
    rows = [[name, *cells] for name, *cells in zip(words.arm_rows(arms), *map(words.arm_cells, arms), strict=True)]
    return html.table(["", *(f"{arm['arm']}: {arm['model']}" for arm in arms)], rows, "The arms")


def _stopped(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a paragraph for each stopped arm."""
    return [html.paragraph(f"{arm['arm']} is stopped: {arm['stopped']}.") for arm in arms if arm["stopped"]]


def basis(count: int, requests: int) -> str:
    """Return the number of devices and requests of a comparison in words."""
    return f"{words.count_text(count, 'device')}, {words.count_text(requests, 'request')}"


SCOPE = ".edgeroute-report"  # selector of the element that is a page in a notebook
# Selector of that element with the weight of an id, which no rule of the notebook for tables or lists overrides.
STRONG = ".edgeroute-report:not(#_)"
# Selector of that element where the notebook is dark: JupyterLab, Visual Studio Code, Colab.
DARK = ", ".join(f"{SCOPE}:is({page} *)" for page in ('[data-jp-theme-light="false"]', ".vscode-dark", "html[theme=dark]"))


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
    return _page("evaluation", evaluation, [*parts, sections.classes(evaluation), arms, sections.definitions(evaluation)])


def fleets_page(fleets: Sequence[tuple[FleetTrial, str]]) -> Page:
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
    return _page("calibration", evaluation, [*parts, sections.classes(evaluation), sections.definitions(evaluation)])


def _page(what: str, evaluation: Evaluation, parts: Iterable[str]) -> Page:
    """Return a page with a title and a summary of the evaluation."""
    names = evaluation.names
    edge = names.edge if names.edge_bytes is None else f"{names.edge} ({words.size(names.edge_bytes)})"
    about = {"data": names.data, "edge model": edge, "cloud": names.cloud, "score": names.score, "measured": names.date}
    summary = "; ".join([words.count_text(evaluation.n, "input"), *(f"{what} {name}" for what, name in about.items() if name)])
    title = f"edgeroute {what}: {names.policy}" if names.policy else f"edgeroute {what}"
    return Page(title, summary, "\n".join(filter(None, parts)))


def document(page: Page) -> str:
    """Return the page as the text of one self-contained HTML file, without scripts; its policy forbids to load anything."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(page.title)}</title>
<style>{css()}{style("page.css")}</style>
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
    rules = (css(SCOPE, DARK) + _scoped(style("page.css"), SCOPE) + style("cell.css")).replace(SCOPE, STRONG)
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
    """Return the page of a router for a notebook: its targets, and its statistics. Calls no model and no endpoint."""
    snapshot = router.engine.snapshot
    rows = [
        [leg.name, marked(leg.side), backend.where, "" if leg.threshold is None else f"{leg.threshold:.4g}", leg.label]
        for leg, backend in zip(snapshot.targets, snapshot.backends, strict=True)
    ]
    table = html.table(["target", "side", "where", "threshold", "guarantee"], rows, "The targets")
    state = "closed" if router.engine.closed else f"mode {snapshot.policy.mode}"
    return _cell(type(router).__name__, state, html.section("Targets", table), *_statistics(router.stats()))


def stats_page(stats: Stats) -> str:
    """Return the page of statistics for a notebook, as HTML."""
    return _cell("Stats", words.count_text(stats.requests, "request"), *_statistics(stats))


def decision_page(decision: Decision) -> str:
    """Return the page of a decision for a notebook, as HTML: where it may be sent, and its steps."""
    where = ", ".join(decision.sends_to)
    return _cell("Decision", f"may be sent to {where}" if where else "stays on the device", html.listed(decision.steps))


def check_page(check: Check) -> str:
    """Return the page of a check for a notebook, as HTML: problems first in a frame, then the other lines."""
    problems = [line[1:].strip() for line in check.lines if line.startswith("!")]
    frames = [f'<p class="verdict broken"><strong>✗</strong> {html.escape(problem)}</p>' for problem in problems]
    rest = html.listed(line for line in check.lines if not line.startswith("!"))
    return _cell("Check", "ready" if check.ok else "not ready", *frames, rest)


def _statistics(stats: Stats) -> list[str]:
    """Return the sections of statistics: counts, targets and trials."""
    tiles = html.tiles([
        ("requests", f"{stats.requests:,}", f"{marked('cache')}: {stats.cached:,} more"),
        ("deferred", words.percent(stats.deferral_rate), f"{stats.deferred:,} to the cloud"),
        (marked("degraded"), f"{stats.degraded:,}", f"{stats.unanswered:,} unanswered"),
        ("bodies", words.size(stats.bytes_sent + stats.bytes_received), f"{words.size(stats.bytes_sent)} sent"),
        ("cost", f"{stats.usd_today:.4g} USD", "last 24 hours"),
    ])  # fmt: skip
    columns = ["target", "started", "answered", "accepted", "failed", "p50", "p99", "breaker"]
    rows = [
        [
            marked("edge" if leg.side == "edge" else "cloud", leg.name), *(f"{n:,}" for n in leg[2:6]),
            words.duration(leg.p50_s), words.duration(leg.p99_s), leg.breaker,
        ] for leg in stats.legs
    ]  # fmt: skip
    alarms = [html.paragraph(f"{audit.target}: {audit.alarm}") for audit in stats.audits if audit.alarm]
    arms = in_operation([arm._asdict() for arm in stats.arms]) if stats.arms else ""
    return [tiles, *alarms, html.section("Calls", html.table(columns, rows, "Calls of each target")), arms]


def _cell(title: str, summary: str, *parts: str) -> str:
    """Return a page of these parts as an element for the output of a notebook's cell, with a random id."""
    return cell(Page(title, summary, "\n".join(filter(None, parts))), f"edgeroute-{uuid4().hex[:12]}")


# Numbers of an evaluation as JSON data.


def latencies(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Return leg -> quantile (p50, p90, p99) -> seconds, as far as measured."""
    return {
        leg: {f"p{q * 100:g}": time for q, time in zip(QUANTILES, times, strict=True)}
        for leg, times in evaluation.latency().items()
    }


def numbers(evaluation: Evaluation, notes: Sequence[str]) -> dict[str, Any]:
    """Return all numbers as JSON data. Shares 0..1, with their 95 % intervals; times in seconds; None: unknown."""
    examples, certificate = evaluation.examples, evaluation.certificate
    return {
        "n": evaluation.n,
        "labelled": evaluation.labelled,
        "threshold": None if evaluation.ladder else finite(evaluation.threshold),
        "ladder": [finite(threshold) for threshold in evaluation.ladder],
        "thresholds": {label: finite(t) for label, t in evaluation.thresholds.items()},
        "accuracy": {side: _share(part) for side, part in evaluation.accuracy().items()},
        "deferral": _share(evaluation.deferral),
        "latency_s": latencies(evaluation),
        "sent_bytes": examples.sent_bytes,
        "received_bytes": examples.received_bytes,
        "usd": examples.usd,
        "promise": None if certificate is None else certificate.label,
        "uncalibrated": evaluation.uncalibrated,
        "seen_before": evaluation.seen_before,
        "area": None if (area := evaluation.area()) is None or isnan(area.value) else area._asdict(),
        "held": [{**v._asdict(), "held": v.held, "broken": v.broken, "doubtful": v.doubtful} for v in verdicts(evaluation)],
        "arms": [dict(arm) for arm in evaluation.arms],
        "notes": list(notes),
    }


def _share(part: Share) -> dict[str, Any]:
    """Return a share as JSON data; its value is None if it is of nothing."""
    return {**part._asdict(), "value": part.value if part.of else None}


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Result of `router.evaluate(X, y)`: the effect of the router's threshold on examples. A notebook shows it as a page.

    Without labels, right means: as the cloud says.

    Attributes:
        evaluation: the examples with the threshold, the source of everything here.
        notes: notes on the measurement, one line each.
    """

    evaluation: Evaluation
    notes: Sequence[str] = ()

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.evaluation.n

    @property
    def accuracy(self) -> Mapping[str, Share]:
        """Share of right answers of edge, cloud, cascade (both together) and accepted edge answers, as far as known."""
        return self.evaluation.accuracy()

    @property
    def deferral(self) -> Share:
        """Share of the inputs that are deferred to the cloud."""
        return self.evaluation.deferral

    @property
    def latency_s(self) -> Mapping[str, Mapping[str, float]]:
        """Edge, cloud and cascade -> p50, p90 and p99 -> seconds, as far as measured."""
        return latencies(self.evaluation)

    @property
    def held(self) -> bool | None:
        """True if the certificate's guarantee held on these examples; None: there is none, or they cannot measure it."""
        if self.evaluation.uncalibrated:
            return None
        results = verdicts(self.evaluation)
        return all(result.held for result in results) if results else None

    @property
    def verdict(self) -> str:
        """Text: whether the guarantee held, and if these are the calibration's own examples, which prove nothing."""
        texts = *words.verdict(self.evaluation, verdicts(self.evaluation)), words.seen_before(self.evaluation)
        return " ".join(filter(None, texts))

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON data, as `edgeroute evaluate --json` prints them."""
        return numbers(self.evaluation, self.notes)

    def html(self) -> str:
        """Return the page: one HTML file, without scripts and external resources.

        Raises:
            RuntimeMissing: matplotlib is not installed.
        """
        return document(evaluation_page(self.evaluation))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the page to a file, replacing it.

        Raises:
            RuntimeMissing: matplotlib is not installed.
            StoreError: the file cannot be written.
        """
        replace_file(Path(path), self.html())

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return _cell_of(lambda drawn: evaluation_page(self.evaluation, drawn=drawn))

    def __repr__(self) -> str:
        accuracy = self.accuracy
        side = next((side for side in ("cascade", "accepted", "edge") if side in accuracy), None)
        right = "right" if self.evaluation.labelled else "as the cloud says"
        parts = [] if side is None else [f"{side} {words.percent(accuracy[side].value)} {right}"]
        parts.append(f"{words.percent(self.deferral.value)} deferred")
        if self.held is not None:
            doubtful = any(result.doubtful for result in verdicts(self.evaluation))
            held = "the guarantee held, as the cloud is worse than the edge" if doubtful else "the guarantee held"
            parts.append(held if self.held else "the guarantee did not hold")
        if self.evaluation.uncalibrated:
            parts.append(f"uncalibrated: {self.evaluation.uncalibrated}")
        return f"<EvaluationResult of {words.count_text(self.n, 'input')}: {', '.join(parts)}>"


# End of a note on an edge model, without its name.
UNHASHED = "'s file is compared by time and size when it is loaded, and with sha256= (card, [edge]) by its content"


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """Result of `router.calibrate(X, y, max_loss=0.01)`: a threshold with a guarantee. A notebook shows it as a page.

    Use it as `Router(..., threshold=result)`, with its score.

    Attributes:
        certificate: the threshold, its guarantee, and what it is bound to.
        score: score of the threshold: a name, or the function; a `Learned` if it was fitted.
        why: reason why a score was fitted, or not; empty: no fit was requested.
        evaluation: the calibration's examples, with their scores and that threshold.
        notes: notes on examples and certificate, one line each.
        uncounted: reason why a router will call the certificate uncalibrated; empty: the certificate counts.
        labels_read: number of labels that the test has read, with `label=`; None: without.
        labels: index of an input -> its label, with `label=`: known ones and those that the function returned. Pass it as `y` to
            calibrate again without asking for them, with more inputs after these, too.
    """

    certificate: Certificate
    score: str | Score
    why: str
    evaluation: Evaluation
    notes: Sequence[str] = ()
    uncounted: str = ""
    labels_read: int | None = None
    labels: Mapping[int, Any] | None = None

    @property
    def fitted(self) -> Learned | None:
        """Fitted score; None: no score was fitted."""
        return self.score if self.why and isinstance(self.score, Learned) else None

    def as_dict(self) -> dict[str, Any]:
        """Return certificate, score's name, the reason for it, notes, and the number of labels read, if any, as JSON data."""
        data = {"certificate": self.certificate.as_dict(), "score": self._score, "why": self.why, "notes": list(self.notes)}
        return data | ({} if self.labels_read is None else {"labels_read": self.labels_read})

    def html(self) -> str:
        """Return the page: one HTML file, without scripts and external resources.

        Raises:
            RuntimeMissing: matplotlib is not installed.
        """
        return document(calibration_page(self.evaluation, self.why, self.notes))

    def save(self, path: str | PathLike[str]) -> dict[str, str]:
        """Write the certificate as JSON, and a fitted score beside it, as `NAME.score.json`, replacing both.

        Returns the entries for a policy file in that folder: `{"threshold": ..., "score": ...}`.

        Raises:
            StoreError: a file cannot be written.
        """
        file = Path(path)
        lines = {"threshold": file.name}
        self.certificate.save(file)
        if self.fitted is not None:
            beside = file.with_suffix(".score.json")
            self.fitted.save(beside)
            lines["score"] = beside.name
        elif isinstance(self.score, str):
            lines["score"] = self.score
        return lines

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return _cell_of(lambda drawn: calibration_page(self.evaluation, self.why, self.notes, drawn=drawn))

    @property
    def _score(self) -> str:
        """Name of the score."""
        return self.score if isinstance(self.score, str) else getattr(self.score, "name", "function")

    def __repr__(self) -> str:
        certificate = self.certificate
        ladder = words.ladder_thresholds(certificate)
        least = f"threshold{'s' * bool(ladder)} {words.levels(certificate.threshold, {}, ladder)}"
        if certificate.thresholds:
            least = f"thresholds of {words.counted_classes(len(certificate.thresholds))}"
        examples = words.count_text(certificate.n, "example")
        text = f"{certificate.label}: {least} of {self._score}, {words.percent(certificate.deferral_rate)} of {examples} deferred"
        if certificate.threshold == INF and all(threshold == INF for threshold in certificate.thresholds.values()):
            text = f"{certificate.label}: no threshold of {self._score} keeps it with {examples}, so all are deferred"
        if self.labels_read is not None:
            text += f", {words.count_text(self.labels_read, 'label')} read"
        doubts = [f"a router will call it uncalibrated: {self.uncounted}"] if self.uncounted else []
        doubts += [note for note in self.notes if note.endswith((UNHASHED, EXTENDED))]
        return f"<CalibrationResult {'; '.join([text, *doubts, *certificate.doubts])}>"


def _cell_of(make_page: Callable[[bool], Page]) -> str:
    """Return a page for a notebook under a random id, without figures if matplotlib is missing, so that it never raises."""
    try:
        page = make_page(True)
    except RuntimeMissing:
        page = make_page(False)
    return cell(page, f"edgeroute-{uuid4().hex[:12]}")
