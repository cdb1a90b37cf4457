"""Report of the demo: text, numbers, a curve and an HTML page, on the terminal and in files."""

from __future__ import annotations

import io
import json
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeroute.cli.demo.data import Images
from edgeroute.cli.demo.measure import BATCH, Choice, Run, sweep
from edgeroute.cli.tables import table
from edgeroute.report.drawing import CLOUD, EDGE, INK, element, frame
from edgeroute.report.style import STYLE
from edgeroute.report.words import size

SLACK = 0.005
"""Accuracy, 0..1, that the cascade may lose against the cloud on the validation images."""
HEAD = ("", "accuracy", "p50 latency", "asked the cloud", "sent")
LAST = "tbody tr:last-child > * { font-weight: 600; }"
POINTS = 400
"""Maximum number of points of the curve, to limit file sizes."""
EXTRA = "pip install 'edgeroute[demo]'"


class Report(NamedTuple):
    """All measurements of a run."""

    test: Images
    edge: Run
    cloud: Run
    cascade: Run
    choice: Choice
    validated: int
    """Number of images the threshold was chosen on."""
    most: float
    """Maximum deferral rate, 0..1, on those."""
    singly: int
    """Number of images sent to the cloud alone singly."""
    rtt: float
    """Seconds added to each round trip."""

    @property
    def n(self) -> int:
        """Number of test images."""
        return len(self.test.images)


def numbers(report: Report) -> dict[str, float]:
    """Numbers for programs: shares 0..1; times in milliseconds; bytes of the cascade's requests."""
    edge, cloud, cascade = report.edge, report.cloud, report.cascade
    return {
        "n": report.n,
        "edge_accuracy": edge.accuracy,
        "cloud_accuracy": cloud.accuracy,
        "cascade_accuracy": cascade.accuracy,
        "deferral_rate": cascade.deferral,
        "edge_p50_ms": round(edge.p50_ms, 4),
        "cloud_p50_ms": round(cloud.p50_ms, 4),
        "cascade_p50_ms": round(cascade.p50_ms, 4),
        "bytes_sent": cascade.bytes_sent,
        "threshold": report.choice.threshold,
    }


def rows(report: Report) -> list[tuple[str, ...]]:
    """Table rows, under `HEAD`."""
    ways = {"edge alone": report.edge, "cloud alone": report.cloud, "cascade": report.cascade}
    return [
        (way, f"{run.accuracy:.2%}", f"{run.p50_ms:.2f} ms", f"{run.deferral:.1%}", size(run.bytes_sent))
        for way, run in ways.items()
    ]


def gained(report: Report) -> str:
    """One sentence on the gain, valid whatever the numbers are."""
    edge, cloud, cascade = report.edge, report.cloud, report.cascade
    return (
        f"{1 - cascade.deferral:.1%} of the images never left the device: {size(cascade.bytes_sent)} sent instead of "
        f"{size(cloud.bytes_sent)}, a median of {cascade.p50_ms:.2f} ms instead of {cloud.p50_ms:.2f} ms, and an accuracy of "
        f"{cascade.accuracy:.2%}, where the cloud alone has {cloud.accuracy:.2%} and the edge alone {edge.accuracy:.2%}."
    )


def notes(report: Report) -> list[str]:
    """Caveats about the numbers, one line each."""
    choice = report.choice
    if choice.reached:
        why = f"the smallest deferral that came within {SLACK * 100:g} point of the cloud's accuracy there"
    else:
        why = f"none came within {SLACK * 100:g} point of the cloud's accuracy there, so the most accurate one"
    chosen = (
        f"threshold {choice.threshold:.4f}, chosen on {report.validated:,} validation images, not on these: {why}, deferring "
        f"{report.most:.0%} at most ({choice.deferral:.1%} deferred, {choice.accuracy:.2%} accurate there); "
        "uncalibrated, with no promise about errors"
    )
    lines = [f"{report.n:,} images: {report.test.which}", chosen]
    if report.singly < report.n:
        lines.append(
            f"cloud alone: latency and bytes are those of {report.singly:,} single requests (bytes scaled to all); the other "
            f"{report.n - report.singly:,} went in batches of {BATCH}, for the accuracy"
        )
    added = f"{report.rtt * 1000:g} ms added to each round trip" if report.rtt else "no network between (--rtt 80ms adds one)"
    lines.append(f"the cloud is a process on this machine, {added}; times depend on what else runs here")
    if report.cascade.degraded:
        lines.append(f"{report.cascade.degraded:,} answers of the cascade are degraded: the cloud was asked, and failed")
    return lines


def points(report: Report) -> tuple[list[float], list[float]]:
    """Deferral rate and accuracy of every threshold on the test images, in percent, thinned out."""
    found = sweep(report.edge.confidence, report.edge.right, report.cloud.right)
    keep = np.unique(np.linspace(0, len(found.deferral) - 1, POINTS).astype(int))
    return (found.deferral[keep] * 100).tolist(), (found.accuracy[keep] * 100).tolist()


def in_terminal(report: Report, *, width: int) -> str:
    """The curve in characters, `width` wide, in the terminal's own colours: a theme would paint its background.

    Raises:
        ImportError: plotext is not installed.
    """
    import plotext

    x, y = points(report)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, 18)
    figure.title("accuracy in % over images sent to the cloud in %")
    figure.ruler("x").lim(0, 100)
    figure.ruler("x").ticks(list(range(0, 101, 20)))
    line = figure.signal(x, y, marker="braille")
    line.lines(active=True)
    figure.draw(line)
    at = report.cascade.deferral * 100, report.cascade.accuracy * 100
    figure.draw(figure.signal([at[0]], [at[1]], marker="●"))
    return str(plotext.uncolorize(figure.build().string())).rstrip("\n")


def drawing(report: Report, *, ink: str = INK) -> Any:
    """The curve as a matplotlib figure without a background; `ink` is the colour of text and axes.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    x, y = points(report)
    figure, axes = frame((7.5, 4.5), ink=ink)
    axes.plot([0, 100], [y[0], y[-1]], "--", color=ink, alpha=0.5, linewidth=1, label="deferring at random")
    axes.plot(x, y, color=EDGE, linewidth=2, label="deferring what the edge is least sure of")
    at = report.cascade.deferral * 100, report.cascade.accuracy * 100
    axes.plot(*at, "o", color=CLOUD, markersize=9, label=f"the threshold in use: {at[0]:.1f}% deferred, {at[1]:.2f}% accurate")
    axes.set_xlabel("images sent to the cloud, %")
    axes.set_ylabel("accuracy, %")
    axes.set_xlim(-1, 101)
    axes.legend(loc="lower right", frameon=False, labelcolor=ink)
    return figure


def png(report: Report) -> bytes:
    """The curve, black on white."""
    out = io.BytesIO()
    drawing(report, ink="#1b1b1f").savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(report: Report) -> str:
    """The curve as an element of an HTML page, in the colour of the page's text."""
    return element(drawing(report), "curve")


def page(report: Report) -> str:
    """The HTML page.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
    body = "\n".join(
        f'<tr><th scope="row">{way}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for way, *cells in rows(report)
    )
    listed = "\n".join(f"<li>{escape(note)}</li>" for note in notes(report))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgeroute demo</title>
<style>{STYLE}{LAST}</style>
<h1>edgeroute demo: {report.n:,} images on the edge, in the cloud, and routed</h1>
<p>{escape(gained(report))}</p>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<figure role="img" aria-label="Accuracy over the share of images sent to the cloud">{svg(report)}</figure>
<ul>
{listed}
</ul>
</html>
"""


def show(report: Report, folder: Path | None, *, as_json: bool) -> None:
    """Prints the report, as JSON or as text, and writes its files into `folder`, if there is one."""
    console = Console(stderr=as_json, highlight=False)
    if as_json:
        print(json.dumps(numbers(report)))
    else:
        _print(report, console)
    if folder is not None:
        try:
            picture, text = png(report), page(report)
        except ImportError:
            console.print(f"No picture and no page: matplotlib is not installed ({EXTRA})", markup=False)
            return
        (folder / "curve.png").write_bytes(picture)
        (folder / "report.html").write_text(text, encoding="utf-8")
        console.print(f"Written: {folder / 'curve.png'}, {folder / 'report.html'}", markup=False, soft_wrap=True)


def _print(report: Report, console: Console) -> None:
    table(HEAD, rows(report), ("",))
    console.print(gained(report), markup=False)
    console.print()
    try:
        drawn = in_terminal(report, width=min(console.width, 100)) if console.encoding.startswith("utf") else ""
    except ImportError:
        console.print(f"No curve: plotext is not installed ({EXTRA})", markup=False)
    else:
        print(f"{drawn}\n● the threshold in use" if drawn else "No curve: it has characters that this output's encoding lacks")
    console.print()
    listed = Table.grid(padding=(0, 1))
    for note in notes(report):
        listed.add_row("-", Text(note))
    console.print(listed)
