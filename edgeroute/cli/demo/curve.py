"""Accuracy over deferral: in the terminal, and as a picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from edgeroute.cli.demo.report import Report
from edgeroute.cli.demo.threshold import sweep
from edgeroute.report.drawing import CLOUD, EDGE, INK, element, frame

POINTS = 400
"""More would only make the files larger."""


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
    """Black on white."""
    out = io.BytesIO()
    drawing(report, ink="#1b1b1f").savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(report: Report) -> str:
    """An element for an HTML page, in whatever colour the page's text has."""
    return element(drawing(report), "curve")
