"""Tables for people: as wide as the terminal, and in one that is too narrow a paragraph for each row."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1 << 16
"""The width where stdout is no terminal: a row is a line, however long."""
LEAST = 8
"""A column may be folded to so many characters."""


def console() -> Console:
    """Stdout, without colours that depend on the content."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], left: Sequence[str] = ()) -> None:
    """Prints rows under the names of their columns.

    Args:
        columns: their names.
        rows: with a cell for each of them.
        left: columns of text, aligned to the left; the others have numbers.
    """
    from rich.table import Table
    from rich.text import Text

    out, cells = console(), [[_shown(cell) for cell in row] for row in rows]
    widths = [max(len(name), min(LEAST, max((len(row[i]) for row in cells), default=0))) for i, name in enumerate(columns)]
    if sum(widths) + 3 * len(widths) + 1 > out.width:
        for row in cells:
            for name, cell in zip(columns, row, strict=True):
                out.print(Text(f"{name}: {cell}" if name else cell))
            out.print()
        return
    made = Table()
    for name in columns:
        made.add_column(name, overflow="fold", justify="left" if name in left else "right")
    for row in cells:
        made.add_row(*map(Text, row))
    out.print(made)


def pairs(rows: Sequence[tuple[str, object]]) -> None:
    """Prints a table of two columns without a head."""
    from rich.table import Table
    from rich.text import Text

    made = Table(show_header=False)
    for name, cell in rows:
        made.add_row(name, Text(_shown(cell)))
    console().print(made)


def _shown(cell: object) -> str:
    """Formats a cell. Replaces control characters, since it may contain a server's text."""
    if cell is None:
        return "-"
    text = f"{cell:,}" if isinstance(cell, int) else str(cell)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
