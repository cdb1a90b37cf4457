"""The paper that pictures are drawn on: boxes, arrows and text as SVG, narrow enough for a phone, readable on a dark page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import escape

from edgeroute.tools.state_colours_and_marks import STATES, StateName, svg_hatches

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
INK, SOFT, GRID, PLAIN, PAPER = "#1b1b1f", "#5c6370", "#d5d9df", "#eceef1", "#fcfcfd"
STRIP = 10
"""Width of the strip of a box in the colour and the hatch of a state."""


class Sheet:
    """A drawing that grows by its elements."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height = width, height
        self._shown: set[StateName] = set()
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
            'role="img" font-family="system-ui, sans-serif" font-size="15">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
            f'<path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        ]

    def box(
        self, x: float, y: float, w: float, h: float, fill: str, *lines: str,
        line: str = SOFT, dashed: bool = False, size: int = 15,
    ) -> None:  # fmt: skip
        """A box with lines of text in its middle, the first one bold; `fill`: a colour, or the state that it shows."""
        dash, frame = ' stroke-dasharray="5 4"' if dashed else "", f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6"'
        state = STATES.get(fill)
        if state:
            self._shown.add(state.word)
            pale = "" if lines else ' fill-opacity=".4"'
            self._parts.append(f'<rect {frame} fill="url(#hatch-{state.word})"{pale}/>')
            if lines:
                path = f"M{x + STRIP:g} {y:g}h{w - STRIP - 6:g}q6 0 6 6v{h - 12:g}q0 6-6 6h{STRIP + 6 - w:g}z"
                self._parts.append(f'<path d="{path}" fill="{PAPER}"/>')
                x, w = x + STRIP, w - STRIP
            fill, line = "none", state.light
        self._parts.append(f'<rect {frame} fill="{fill}" stroke="{line}"{dash}/>')
        for i, text in enumerate(lines):
            at = y + h / 2 + 5 + 19 * (i - (len(lines) - 1) / 2)
            told = f"{state.mark} {text}" if state and i == 0 else text
            self.text(x + w / 2, at, told, middle=True, bold=i == 0 and len(lines) > 1, size=size if i == 0 else 13)

    def text(
        self, x: float, y: float, text: str, *, middle: bool = False, end: bool = False, bold: bool = False, size: int = 15,
        ink: str = INK,
    ) -> None:  # fmt: skip
        """A line of text that begins, ends or has its middle there."""
        anchor = ' text-anchor="middle"' if middle else ' text-anchor="end"' if end else ""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{ink}"{anchor}{weight}>{_marked(text)}</text>')

    def upward(self, x: float, y: float, text: str) -> None:
        """A line of small text that goes up from there."""
        at = f'transform="translate({x:g} {y:g}) rotate(-90)"'
        self._parts.append(f'<text {at} font-size="13" fill="{SOFT}">{escape(text)}</text>')

    def arrow(self, *points: tuple[float, float], ink: str = SOFT, dashed: bool = False) -> None:
        """A line through these points, with a tip."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(f"{x:g} {y:g}" for x, y in points)
        self._parts.append(f'<path d="M{path}" fill="none" stroke="{ink}" stroke-width="1.6"{dash} marker-end="url(#tip)"/>')

    def line(self, points: list[tuple[float, float]], ink: str, *, width: float = 2, dashed: bool = False) -> None:
        """A line through these points."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(f'<path d="M{path}" fill="none" stroke="{ink}" stroke-width="{width}"{dash}/>')

    def mark(self, x: float, y: float, name: StateName) -> None:
        """The mark of a state."""
        self.text(x, y + 7, STATES[name].mark, middle=True, size=20)

    def dot(self, x: float, y: float, ink: str) -> None:
        """A point."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{ink}"/>')

    def __str__(self) -> str:
        hatches = [re.sub(r"var\(--\w+, (#\w+)\)", r"\1", svg_hatches(sorted(self._shown)))] if self._shown else []
        return "\n".join([*self._parts[:2], *hatches, *self._parts[2:], "</svg>", ""])


def _marked(text: str) -> str:
    """Text as SVG, with the mark that it begins with in its state's colour."""
    for state in STATES.values():
        if text.startswith(state.mark):
            return f'<tspan fill="{state.light}">{state.mark}</tspan>{escape(text[1:])}'
    return escape(text)
