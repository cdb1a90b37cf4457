"""Assembles the pages of an evaluation and of a calibration, and the same for the output of a notebook's cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edgeroute.tools.measure.evaluation import Evaluation
from edgeroute.tools.measure.fleet import Difference, Fleet
from edgeroute.tools.measure.report import html, sections
from edgeroute.tools.measure.report.html import beside, escape
from edgeroute.tools.measure.report.words import arm_cells, arm_rows, counted, limit, size

# Sections of trials: of one router in operation, and of many devices.

SAID = {
    ("edge", "failed"): "requests that its edge model failed on",
    ("edge", "deferred"): "requests deferred to the cloud",
    ("edge", "differs"): "answers that differ from the cloud's",
    ("cloud", "failed"): "calls that failed",
    ("cloud", "differs"): "answers that differ from the edge's",
}
"""Side and measure -> in words."""
VERDICTS = {"worse": "worse by more than is allowed", "within": "no worse than is allowed", "open": "not known yet"}


def in_operation(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return the section of a router's trials. arms: as in its statistics."""
    return html.section("Trials in operation", _table(arms), *_stopped(arms), html.paragraph(
        "Of requests, not of these examples. The loss is the share of all requests that the edge answered otherwise than the "
        "cloud would, by audits. Intervals are of 95 %, for independent requests and one look that was fixed beforehand; the "
        "guardrail looks at each."
    ))  # fmt: skip


def fleet_section(found: Fleet) -> str:
    """Return the sections of a trial on many devices."""
    arms = [arm._asdict() for arm in found.arms]
    table = html.section("The arms", _table(arms), *_stopped(arms), html.paragraph(
        "The loss is the share of all requests that the edge answered otherwise than the cloud would, by audits. p99 is that "
        "of the median device. Intervals are of 95 %."))  # fmt: skip
    if not found.settings.measures:
        return table
    a, b = (arm.arm for arm in found.arms)
    kind = "broken" if found.worse else "held" if _all_within(found) else "open"
    short, long = verdict(found)
    said = f'<p class="verdict {kind}"><strong>{html.escape(short)}</strong> {html.escape(long)}</p>'
    compared = [[one.measure.replace("differs", "differ"), *difference(one)] for one in found.differences]
    columns = [f"{b} less {a}", "difference", "interval", "allowed", ""]
    return "\n".join([
        html.section(f"{b} against {a}", said, html.table(columns, compared, columns[0]), html.paragraph(how(found))), table,
    ])  # fmt: skip


def verdict(found: Fleet) -> tuple[str, str]:
    """Return whether what is on trial is worse, in words: (headline, explanation)."""
    b, side, measures = found.arms[1].arm, found.settings.side, found.settings.measures
    if found.worse:
        worse = " and more ".join(SAID[side, name] for name in found.worse)
        return f"{b} is worse: stop it.", f"It has more {worse} than is allowed."
    if _all_within(found):
        return f"{b} is no worse than is allowed.", "So it is for all measures."
    known = {one.measure for one in found.differences}
    missing = [SAID[side, name] for name in measures if name not in known]
    unsure = [SAID[side, one.measure] for one in found.differences if one.verdict == "open"]
    said = [f"Too little is known of {', '.join(unsure)}."] if unsure else []
    said += [f"There are no figures of both arms for {', '.join(missing)}."] if missing else []
    return f"Whether {b} is worse is not known yet.", " ".join(said)


def difference(one: Difference) -> tuple[str, str, str, str]:
    """Its cells: value, interval, what is allowed, verdict."""
    value = f"{one.value * 100:+.2f} %"
    return value, f"{one.low * 100:+.2f} to {one.high * 100:+.2f} %", f"+{limit(one.allowed)}", VERDICTS[one.verdict]


def how(found: Fleet) -> str:
    """What the intervals of the differences rest on."""
    unit = "devices, as each is in one arm: re-randomisation" if found.by_device else "requests, as each was drawn for itself"
    sure = limit(found.settings.alpha)
    return (
        f"By {unit}. At one look, a trial that is no worse than is allowed is called worse with probability {sure} at most, over "
        f"all measures; and one that is worse is likewise called no worse."
    )


def _all_within(found: Fleet) -> bool:
    return len(found.differences) == len(found.settings.measures) and all(one.verdict == "within" for one in found.differences)


def _table(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a column for each arm."""
    rows = [[name, *cells] for name, *cells in zip(arm_rows(arms), *map(arm_cells, arms), strict=True)]
    return html.table(["", *(f"{arm['arm']}: {arm['model']}" for arm in arms)], rows, "The arms")


def _stopped(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    return [html.paragraph(f"{arm['arm']} is stopped: {arm['stopped']}.") for arm in arms if arm["stopped"]]


def made_of(count: int, requests: int) -> str:
    """Of how many devices and requests a comparison is."""
    return f"{counted(count, 'device')}, {counted(requests, 'request')}"


# CSS of the pages: system font, light and dark mode; on a phone only tables exceed the screen width, and they scroll.

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b1b1f; --faint: #d9d9e0; --dim: #5a5a66; }
@media (prefers-color-scheme: dark) { :root { --back: #16171a; --ink: #e6e6ea; --faint: #3a3b42; --dim: #a5a6b0; } }
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; }
figure { margin: 1.5rem 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.hint { display: none; }
.wide { overflow-x: auto; background:
  linear-gradient(90deg, var(--back) 1.5rem, transparent) local,
  linear-gradient(270deg, var(--back) 1.5rem, transparent) right local,
  linear-gradient(90deg, var(--faint), transparent .8rem), linear-gradient(270deg, var(--faint), transparent .8rem) right;
  background-repeat: no-repeat; }
@media (max-width: 40rem) { .hint { display: block; color: var(--dim); font-size: .9rem; margin: .5rem 0 0; } }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child { text-align: left; }
th { font-weight: 400; }
li { font-size: .9rem; }
"""
"""Base style."""
EVALUATION = """
body { max-width: 66rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p, ul, dl { max-width: 46rem; margin: .5rem 0; }
.dim, figcaption, dt { color: var(--dim); font-size: .9rem; }
.verdict { border-left: .3rem solid var(--ink); padding: .2rem .8rem; margin: 1rem 0; }
.held { --tone: #1f6f3a; } .broken { --tone: #b3261e; } .open { --tone: #7a5200; }
@media (prefers-color-scheme: dark) { .held { --tone: #7fd699; } .broken { --tone: #ff9b92; } .open { --tone: #f0c060; } }
.verdict { border-color: var(--tone, var(--ink)); } .verdict strong, .sign { color: var(--tone, var(--ink)); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; max-width: none;
  margin: 1rem 0; }
.tiles div { border: 1px solid var(--faint); border-radius: .4rem; padding: .5rem .8rem; }
.tiles dd { margin: 0; }
.tiles dd:first-of-type { font-size: 1.4rem; line-height: 1.3; }
.tiles dd + dd { color: var(--dim); font-size: .9rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 2.5rem; }
figure { margin: 1rem 0; max-width: 34rem; }
table { width: auto; min-width: min(100%, 30rem); font-variant-numeric: tabular-nums; margin: .5rem 0; }
thead th { color: var(--dim); font-size: .9rem; }
.facts { min-width: 0; }
.facts td { text-align: left; white-space: normal; }
"""
"""Evaluation page, appended to `STYLE`."""
CELL_CLASS = "edgeroute-report"
"""Of the element in a notebook."""
CELL = f"""
.{CELL_CLASS} {{ --back: transparent; --ink: currentcolor; --dim: currentcolor; --faint: rgba(128, 128, 128, .4);
  max-width: 66rem; overflow-wrap: anywhere; font-family: system-ui, sans-serif; line-height: 1.5; }}
.{CELL_CLASS} .title {{ font-size: 1.3rem; font-weight: 600; }}
.{CELL_CLASS} .dim, .{CELL_CLASS} figcaption, .{CELL_CLASS} dt, .{CELL_CLASS} .tiles dd + dd {{ opacity: .75; }}
.{CELL_CLASS} .wide {{ background: none; }}
.{CELL_CLASS} .held {{ --tone: #2e8b57; }} .{CELL_CLASS} .broken {{ --tone: #d9483b; }} .{CELL_CLASS} .open {{ --tone: #b07d1c; }}
.{CELL_CLASS} .verdict strong {{ color: inherit; }}
"""
"""In a notebook, whose colours are not the system's: the text's own, and tones that are seen on light and on dark."""


class Page(NamedTuple):
    """What a page shows: HTML, but for the title and the line under it."""

    title: str
    said: str
    body: str


def evaluated(evaluation: Evaluation, *, drawn: bool = True) -> Page:
    """An evaluation; deterministic for the same one. drawn: with figures.

    Raises:
        RuntimeMissing: matplotlib is not installed, and there are figures.
    """
    parts = [sections.promise(evaluation), sections.numbers(evaluation)]
    if drawn:
        parts += [
            beside(sections.accuracy_over_deferral(evaluation), sections.latency(evaluation)),
            sections.cost(evaluation),
            beside(sections.reliability(evaluation), sections.scores(evaluation)),
        ]
    else:
        parts += [sections.cost(evaluation), sections.undrawn()]
    arms = in_operation(evaluation.arms) if evaluation.arms else ""
    return _page("evaluation", evaluation, [*parts, sections.classes(evaluation), arms, sections.notes(evaluation)])


def of_fleets(found: Sequence[tuple[Fleet, str]]) -> Page:
    """Return the page of trials on many devices, each with what it was made of."""
    a, b = found[0][0].settings.models
    said = "; ".join(dict.fromkeys(said for _, said in found))
    return Page(f"edgeroute arms: {a} and {b}", said, "\n".join(fleet_section(fleet) for fleet, _ in found))


def calibrated(evaluation: Evaluation, why: str, notes: Iterable[str], *, drawn: bool = True) -> Page:
    """A calibration, from what its certificate's threshold does on the examples that it was found on.

    Args:
        evaluation: of those examples.
        why: why the score is the one that it is; empty: it was given.
        notes: on the calibration, one line each.
        drawn: with figures.

    Raises:
        RuntimeMissing: matplotlib is not installed, and there are figures.
    """
    parts = [sections.calibration(evaluation, why, notes)]
    parts.append(
        beside(sections.accuracy_over_deferral(evaluation), sections.scores(evaluation)) if drawn else sections.undrawn()
    )
    return _page("calibration", evaluation, [*parts, sections.classes(evaluation), sections.notes(evaluation)])


def _page(what: str, evaluation: Evaluation, parts: Iterable[str]) -> Page:
    names = evaluation.names
    edge = names.edge if names.edge_bytes is None else f"{names.edge} ({size(names.edge_bytes)})"
    about = {"data": names.data, "edge model": edge, "cloud": names.cloud, "score": names.score, "measured": names.date}
    said = "; ".join([counted(evaluation.n, "input"), *(f"{what} {name}" for what, name in about.items() if name)])
    title = f"edgeroute {what}: {names.policy}" if names.policy else f"edgeroute {what}"
    return Page(title, said, "\n".join(filter(None, parts)))


def document(shown: Page) -> str:
    """It as one self-contained HTML file."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(shown.title)}</title>
<style>{STYLE}{EVALUATION}</style>
</head>
<body>
<main>
<h1>{escape(shown.title)}</h1>
<p class="dim">{escape(shown.said)}</p>
{shown.body}
</main>
</body>
</html>
"""


def cell(shown: Page, name: str) -> str:
    """It as an element for the output of a notebook's cell, in the notebook's own colours, whose style concerns nothing else.

    name: of the element, unique in the notebook: ids inside begin with it.
    """
    body = re.sub(r'(\bid="|\burl\(#|href="#)', rf"\1{name}-", shown.body)
    style = _scoped(STYLE + EVALUATION, f".{CELL_CLASS}") + CELL
    return (
        f'<div class="{CELL_CLASS}" id="{name}">\n<style>{style}</style>\n<p class="title">{escape(shown.title)}</p>\n'
        f'<p class="dim">{escape(shown.said)}</p>\n{body}\n</div>\n'
    )


def _scoped(style: str, scope: str) -> str:
    """The rules for what is inside that element alone; those for a page itself are left out."""

    def selector(match: re.Match[str]) -> str:
        each = [one.strip() for one in match[1].split(",")]
        return f"\n{', '.join(f'{scope} {one}' for one in each)} {{"

    own = re.sub(r"(?m)^(@media [^{]*\{ )?(:root|body) \{[^}]*\}( \})?", "", style)
    return re.sub(r"(?<![^{}\n])\s*([^{}@]+?)\s*\{", selector, own)


def page(evaluation: Evaluation) -> str:
    """The page of an evaluation; see `evaluated`."""
    return document(evaluated(evaluation))
