"""Assembles the pages of an evaluation and of a calibration, and the same for the output of a notebook's cell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from edgeroute.evaluation.evaluation import Evaluation
from edgeroute.evaluation.fleet import Fleet
from edgeroute.report import ab, sections
from edgeroute.report.html import beside, escape
from edgeroute.report.style import CELL, CELL_CLASS, EVALUATION, STYLE
from edgeroute.report.words import counted, size


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
    arms = ab.in_operation(evaluation.arms) if evaluation.arms else ""
    clouds = ab.of_clouds(evaluation.cloud_arms) if evaluation.cloud_arms else ""
    return _page("evaluation", evaluation, [*parts, sections.classes(evaluation), arms, clouds, sections.notes(evaluation)])


def of_fleet(fleet: Fleet, said: str) -> Page:
    """The A/B comparison of many devices. said: what it was made of."""
    a, b = fleet.settings.models
    return Page(f"edgeroute arms: {a} and {b}", said, ab.fleet(fleet))


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
