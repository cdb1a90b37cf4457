"""Building blocks of HTML pages: sections, tables, lists, figures and tiles; text arguments are escaped here, and HTML is not."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from edgeroute.tools.state_colours_and_marks import STATES

NARROW = 4  # most columns of a table that fits on a phone
MARKS = {state.mark: state.word for state in STATES.values()}


def escape(text: str) -> str:
    """Escape text for HTML, with a non-breaking space before percent signs."""
    return html.escape(text).replace(" %", "&nbsp;%")


def coloured(text: str) -> str:
    """Escape text for HTML, with the marks of states in their colours."""
    return re.sub(
        f"[{''.join(MARKS)}]", lambda found: f'<span style="color: var(--{MARKS[found[0]]})">{found[0]}</span>', escape(text)
    )


def section(title: str, *parts: str) -> str:
    """Return a section with a heading. parts: HTML; empty ones are skipped."""
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *filter(None, parts), "</section>"])


def side_by_side(*sections: str) -> str:
    """Return sections side by side on wide screens; empty ones are skipped; empty without any."""
    return "\n".join(['<div class="row">', *filter(None, sections), "</div>"]) if any(sections) else ""


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def listed(texts: Iterable[str]) -> str:
    """Return a list of plain texts."""
    items = "\n".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>\n{items}\n</ul>"


def figure(svg: str, label: str, caption: str) -> str:
    """Return a figure. svg: an element. label: alternative text for screen readers."""
    image = f'<div role="img" aria-label="{escape(label)}">{svg}</div>'
    return f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """Return a horizontally scrolling table; the first cell of each row is its header. label: for screen readers.

    One of more than four columns has a hint for phones. Marks of states are coloured.
    """
    top = "".join(f'<th scope="col">{coloured(name)}</th>' for name in head)
    whole = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{_body(rows)}\n</tbody>\n</table>"
    hint = '<p class="hint">Where the table is wider than this screen, it scrolls sideways.</p>\n' if len(head) > NARROW else ""
    return f'{hint}<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0">\n{whole}\n</div>'


def facts(rows: Iterable[Sequence[str]]) -> str:
    """Return a two-column table of names and values."""
    return f'<table class="facts">\n<tbody>\n{_body(rows)}\n</tbody>\n</table>'


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """Return tiles of (name, value, remark)."""
    each = "\n".join(
        f"<div><dt>{coloured(what)}</dt><dd>{escape(much)}</dd><dd>{coloured(remark)}</dd></div>" for what, much, remark in shown
    )
    return f'<dl class="tiles">\n{each}\n</dl>'


def _body(rows: Iterable[Sequence[str]]) -> str:
    """Return the rows of a table."""
    return "\n".join(
        f'<tr><th scope="row">{coloured(name)}</th>{"".join(f"<td>{coloured(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
