"""Tables for people: as wide as the terminal, and in one that is too narrow a paragraph for each row."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

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


# How programs that serve log: as Python does, or each record as a line of JSON or text.

Form = Literal["text", "json"]
Log = Annotated[
    Form | None,
    typer.Option("--log", help="Log each request too, with its id, on stderr. Without it warnings and errors alone."),
]
Metrics = Annotated[
    bool,
    typer.Option("--metrics", help="Have /metrics, for Prometheus: pip install 'edgeroute[prometheus]'."),
]


def logged(form: Form | None) -> None:
    """Has the process log in this form on stderr; None: as it does."""
    if form is None:
        return
    from edgeroute.record.request_log import JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s %(request)s", defaults={"request": ""})
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("edgeroute").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


# Options shared by several commands, and parsers of values with units.

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Parses `300ms`, `1.5s` or `2m` to seconds, as in policy files."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)", str(text).strip())
    if found is None:
        raise typer.BadParameter(f"a time has a unit, as in 300ms, 1.5s or 2m, not {text!r}")
    return float(found[1]) * UNITS[found[2]]


def share(text: str) -> float:
    """Parses `20%` or `0.2` to 0.2."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%?)", str(text).strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else 2.0
    if value > 1:
        raise typer.BadParameter(f"a share is 0% to 100%, not {text!r}")
    return value


Policy = Annotated[
    Path, typer.Option("--policy", "-p", metavar="FILE", help="The policy: TOML, JSON or YAML.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]
