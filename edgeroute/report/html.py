"""Pieces of HTML. What is given is text, and is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def escape(text: str) -> str:
    """Text for the page; a number and its percent sign stay on one line."""
    return html.escape(text).replace(" %", "&nbsp;%")


def section(title: str, *parts: str) -> str:
    """parts: of HTML, the empty ones left out."""
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *filter(None, parts), "</section>"])


def beside(*sections: str) -> str:
    """Side by side where the screen is wide enough; the empty ones left out."""
    return "\n".join(['<div class="row">', *filter(None, sections), "</div>"]) if any(sections) else ""


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def figure(svg: str, label: str, caption: str) -> str:
    """svg: an element. label: what it shows, for those who do not see it."""
    image = f'<div role="img" aria-label="{escape(label)}">{svg}</div>'
    return f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """It scrolls where it is wider than the screen; the first cell of each row names it. label: what it shows."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    whole = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{_body(rows)}\n</tbody>\n</table>"
    return f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0">\n{whole}\n</div>'


def facts(rows: Iterable[Sequence[str]]) -> str:
    """Names and what there is to say of each."""
    return f'<table class="facts">\n<tbody>\n{_body(rows)}\n</tbody>\n</table>'


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """What, how much, and a remark, each."""
    each = "\n".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(much)}</dd><dd>{escape(remark)}</dd></div>" for what, much, remark in shown
    )
    return f'<dl class="tiles">\n{each}\n</dl>'


def _body(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
