"""Accuracy over deferral: in the terminal, and as a picture."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from edgeroute.cli.demo.report import Report
from edgeroute.cli.demo.threshold import sweep

POINTS = 400
"""More would only make the files larger."""
INK = "#010203"
"""Stands for the page's own colour of text in the SVG."""
CURVE, CHOSEN = "#2f7ed8", "#e8590c"


def points(report: Report) -> tuple[list[float], list[float]]:
    """Deferral and accuracy of every threshold on the test images, in percent, thinned out."""
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
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    x, y = points(report)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [y[0], y[-1]], "--", color=ink, alpha=0.5, linewidth=1, label="deferring at random")
    axes.plot(x, y, color=CURVE, linewidth=2, label="deferring what the edge is least sure of")
    at = report.cascade.deferral * 100, report.cascade.accuracy * 100
    axes.plot(*at, "o", color=CHOSEN, markersize=9, label=f"the threshold in use: {at[0]:.1f}% deferred, {at[1]:.2f}% accurate")
    axes.set_xlabel("images sent to the cloud, %", color=ink)
    axes.set_ylabel("accuracy, %", color=ink)
    axes.set_xlim(-1, 101)
    axes.grid(color=ink, alpha=0.12)
    axes.tick_params(colors=ink)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(ink)
    axes.legend(loc="lower right", frameon=False, labelcolor=ink)
    return figure


def png(report: Report) -> bytes:
    """Black on white."""
    out = io.BytesIO()
    drawing(report, ink="#1b1b1f").savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(report: Report) -> str:
    """An element for an HTML page, in whatever colour the page's text has."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgeroute", "font.family": "sans-serif"}):
        drawing(report).savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    element = out.getvalue()[out.getvalue().index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
