"""What all figures share: their colours, their frame, and how they become part of a page."""

from __future__ import annotations

import io
import re
from typing import Any

from edgeroute.errors import RuntimeMissing

INK = "#010203"
"""Stands for the page's own colour of text in an SVG."""
EDGE, CLOUD = "#2f7ed8", "#e8590c"
"""To be told apart on white and on black, and whatever colours one sees; lines differ in their dashes as well."""
SIZE = (4.2, 3.2)
"""Inches. On a phone 340 pixels wide that is a text of 10 pixels and more."""


def frame(size: tuple[float, float] = SIZE, rows: int = 1, *, ink: str = INK) -> tuple[Any, Any]:
    """A figure without a background, and its axes, of which left and bottom are drawn; with more rows, an array of them.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise RuntimeMissing("the figures need matplotlib: pip install 'edgeroute[demo]'") from e

    figure = Figure(figsize=size, layout="constrained")
    found = figure.subplots(rows, sharex=True)
    for axes in [found] if rows == 1 else found:
        axes.grid(color=ink, alpha=0.12)
        axes.tick_params(colors=ink)
        axes.xaxis.label.set_color(ink)
        axes.yaxis.label.set_color(ink)
        axes.patch.set_alpha(0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in {"left", "bottom"})
            spine.set_color(ink)
    return figure, found


def element(figure: Any, name: str) -> str:
    """The SVG for an HTML page, in whatever colour the page's text has; `name` tells its ids from other figures'."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgeroute", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->| xmlns(:xlink)?=\"[^\"]*\"", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'((?:url\(|href=")#)', rf"\1{name}-", text)
    return text.replace(INK, "currentColor")
