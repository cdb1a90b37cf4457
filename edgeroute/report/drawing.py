"""Shared matplotlib style of the figures, and their conversion to inline SVG."""

from __future__ import annotations

import io
import re
from typing import Any

from edgeroute.errors import RuntimeMissing

INK = "#010203"
"""Placeholder for the page's text colour in an SVG."""
EDGE, CLOUD = "#2f7ed8", "#e8590c"
"""Distinguishable on white and black, and colour-blind safe; lines also differ in dashes."""
SIZE = (4.2, 3.2)
"""Inches; on a phone 340 pixels wide the text is at least 10 pixels."""


def frame(size: tuple[float, float] = SIZE, rows: int = 1, *, ink: str = INK) -> tuple[Any, Any]:
    """A transparent figure and its axes, with left and bottom spines only; with several rows, an array of axes.

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
    """The figure as inline SVG in the page's text colour; `name` prefixes its ids to keep them unique."""
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
