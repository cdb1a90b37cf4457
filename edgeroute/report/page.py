"""Assembles the evaluation page."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from edgeroute.report import sections
from edgeroute.report.evaluation.evaluation import Evaluation
from edgeroute.report.html import beside, escape
from edgeroute.report.style import EVALUATION, STYLE
from edgeroute.report.words import counted, size
from edgeroute.system import replace_file


def page(evaluation: Evaluation) -> str:
    """The complete HTML page; deterministic for the same evaluation.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    names = evaluation.names
    title = f"edgeroute evaluation: {names.policy}" if names.policy else "edgeroute evaluation"
    edge = names.edge if names.edge_bytes is None else f"{names.edge} ({size(names.edge_bytes)})"
    about = {"data": names.data, "edge model": edge, "cloud": names.cloud, "score": names.score, "measured": names.date}
    said = "; ".join([counted(evaluation.n, "input"), *(f"{what} {name}" for what, name in about.items() if name)])
    parts = (
        sections.promise(evaluation),
        sections.numbers(evaluation),
        beside(sections.accuracy_over_deferral(evaluation), sections.latency(evaluation)),
        sections.cost(evaluation),
        beside(sections.reliability(evaluation), sections.scores(evaluation)),
        sections.classes(evaluation),
        sections.notes(evaluation),
    )
    body = "\n".join(filter(None, parts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}{EVALUATION}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="dim">{escape(said)}</p>
{body}
</main>
</body>
</html>
"""


def write(evaluation: Evaluation, path: str | PathLike[str]) -> None:
    """Writes the report, replacing an existing file atomically.

    Raises:
        RuntimeMissing: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    replace_file(Path(path), page(evaluation))
