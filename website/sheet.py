"""The paper that pictures are drawn on: boxes, arrows and text as SVG, narrow enough for a phone, readable on a dark page."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
INK, SOFT, PAPER = "#1b1b1f", "#5c6370", "#fcfcfd"
DEVICE, AWAY, ANSWER, PLAIN = "#dbe9fb", "#fde6d3", "#dcf2e1", "#eceef1"
EDGE, CLOUD, GOOD = "#1f5fb0", "#c04f06", "#1e7a37"


class Sheet:
    """A drawing that grows by its elements."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
            'role="img" font-family="system-ui, sans-serif" font-size="15">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
            f'<path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        ]

    def box(self, x: float, y: float, w: float, h: float, fill: str, *lines: str, line: str = SOFT, dashed: bool = False) -> None:
        """A box with lines of text in its middle, the first one bold."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" stroke="{line}"{dash}/>')
        for i, text in enumerate(lines):
            at = y + h / 2 + 5 + 19 * (i - (len(lines) - 1) / 2)
            self.text(x + w / 2, at, text, middle=True, bold=i == 0 and len(lines) > 1, size=15 if i == 0 else 13)

    def text(
        self, x: float, y: float, text: str, *, middle: bool = False, end: bool = False, bold: bool = False, size: int = 15,
        ink: str = INK,
    ) -> None:  # fmt: skip
        """A line of text that begins, ends or has its middle there."""
        anchor = ' text-anchor="middle"' if middle else ' text-anchor="end"' if end else ""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{ink}"{anchor}{weight}>{escape(text)}</text>')

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

    def dot(self, x: float, y: float, ink: str) -> None:
        """A point."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{ink}"/>')

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])
