"""Tables and notes in the terminal, options that commands share, parsers of values with units, and logging of servers.

A table is as wide as the terminal; in a narrow one each row becomes a paragraph.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.system.untrusted_files import read_text
from edgeroute.tools.state_colours_and_marks import STATES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDE = 1 << 16  # width if stdout is no terminal: a row is a line, however long
LEAST = 8  # least width of a folded column, characters


def console() -> Console:
    """Return a console for stdout, without colours that depend on the content, which is printed as it is: `:a:` is no emoji."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, emoji=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], left: Sequence[str] = ()) -> None:
    """Print rows under the names of their columns; as paragraphs if the terminal is too narrow.

    Cells are made texts: None is "-". A state's mark is coloured, and left out where stdout is not UTF.

    Args:
        columns: names of the columns.
        rows: rows with a cell for each column.
        left: columns of text, aligned to the left; the others have numbers.
    """
    from rich.table import Table
    from rich.text import Text

    out, cells = console(), [[_cell_text(cell) for cell in row] for row in rows]
    if not out.encoding.startswith("utf"):
        cells = [[_MARKS.sub("", cell) for cell in row] for row in cells]
    widths = [max(len(name), min(LEAST, max((len(row[i]) for row in cells), default=0))) for i, name in enumerate(columns)]
    if sum(widths) + 3 * len(widths) + 1 > out.width:
        for row in cells:
            for name, cell in zip(columns, row, strict=True):
                out.print(Text(f"{name}: {cell}" if name else cell))
            out.print()
        return
    grid = Table()
    for name in columns:
        grid.add_column(Text(name), overflow="fold", justify="left" if name in left else "right")
    for row in cells:
        grid.add_row(*(_coloured(cell) for cell in row))
    out.print(grid)


def pairs(rows: Sequence[tuple[str, object]]) -> None:
    """Print a table of two columns without a head."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(show_header=False)
    for name, cell in rows:
        grid.add_row(Text(name), Text(_cell_text(cell)))
    console().print(grid)


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr, one line each, so that stdout has the result alone."""
    for note in notes:
        print(printable(note), file=sys.stderr)


def _cell_text(cell: object) -> str:
    """Return a cell as text: None as "-", ints with commas, others by `str`; control characters, as of a server, are replaced."""
    if cell is None:
        return "-"
    text = f"{cell:,}" if isinstance(cell, int) else str(cell)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


_MARKS = re.compile(f"^[{''.join(state.mark for state in STATES.values())}] ")


def _coloured(cell: str) -> Text:
    """Return a cell as text; if it begins with the mark of a state, that mark, and nothing else, has the state's colour."""
    from rich.text import Text

    text = Text(cell)
    for state in STATES.values():
        if cell.startswith(state.mark):
            text.stylize(state.light, 0, 1)
    return text


def local_time(time: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Format a time, seconds since 1970, in local time; a time that no calendar has, in seconds."""
    try:
        return datetime.fromtimestamp(time, timezone.utc).astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):
        return f"{time:g} s"


# Logging of servers: as Python does, or each record as a line of JSON or text.

Form = Literal["text", "json"]
Log = Annotated[
    Form | None, typer.Option("--log", help="Log each request, with its id, on stderr. Without it only warnings and errors.")
]
Metrics = Annotated[bool, typer.Option("--metrics", help="Serve /metrics for Prometheus: pip install 'edgeroute[prometheus]'.")]


def set_up_logging(form: Form | None) -> None:
    """Make the process log requests in this form on stderr, in place of earlier handlers; None changes nothing.

    Edgeroute logs from INFO on, all else from WARNING on; Python's warnings are logged too.
    """
    if form is None:
        return
    from edgeroute.record.structured_logging import JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s %(request)s", defaults={"request": ""})
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("edgeroute").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


# Options shared by several commands, and parsers of values with units.

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Parse `300ms`, `1.5s` or `2m` (ms, s, m, h, d) to seconds, as in policy files.

    Raises:
        typer.BadParameter: it is none, as a number without a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)", str(text).strip())
    if match is None:
        raise typer.BadParameter(f"a time needs a unit, as in 300ms, 1.5s or 2m, not {text!r}")
    return float(match[1]) * UNITS[match[2]]


def share(text: str) -> float:
    """Parse `20%` or `0.2` to 0.2; raise `typer.BadParameter` for less than 0, more than 1, and all else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%?)", str(text).strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 2.0
    if value > 1:
        hint = f": {match[1]} percent is {match[1]}%" if match and not match[2] else ""
        raise typer.BadParameter(f"a share must be 0% to 100%, not {text!r}{hint}")
    return value


def rings_of(text: str) -> tuple[float, ...]:
    """Parse `1%,10%,100%` to shares 0..1; raise `typer.BadParameter` unless they rise from above 0 to 100%."""
    shares = text if isinstance(text, tuple) else tuple(share(part) for part in str(text).split(","))
    if not all(low < high for low, high in pairwise((0.0, *shares))) or shares[-1] != 1:
        raise typer.BadParameter(f"rings must rise to 100%, as in 1%,10%,100%, not {text!r}")
    return shares


CERTIFICATE, SCORE, REPORT = '"guarantee"', '"features"', "<!doctype html>"  # texts that each file of that kind has


def check_output(path: Path, kind: str, option: str) -> None:
    """Raise `typer.BadParameter` if a file to write has no folder, or exists and lacks the text of its kind: a policy, a model.

    A device or a pipe is taken.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}, or {path} is one", param_hint=option)
    known = False
    with suppress(OSError, ValueError):
        known = kind in read_text(path)
    if path.is_file() and not known:
        raise typer.BadParameter(f"{path} exists, and is another kind of file: choose another name", param_hint=option)


Count = Annotated[int, typer.Option(min=1)]
Whole = Annotated[int, typer.Option(min=0)]
Amount = Annotated[float, typer.Option(min=0)]
File = Annotated[Path, typer.Option(metavar="FILE")]
Name = Annotated[str, typer.Option(metavar="NAME")]
Share = Annotated[float, typer.Option(parser=share, metavar="SHARE")]
Seconds = Annotated[float, typer.Option(parser=seconds, metavar="TIME")]


def of_share(text: str | None = None, **more: Any) -> Any:
    """Return an option that takes a share. text: its help; None: it is in the docstring. more: of `typer.Option`."""
    return typer.Option(parser=share, metavar="SHARE", help=text, **more)


Policy = Annotated[Path, typer.Option("--policy", "-p", metavar="FILE", help="The policy: TOML, JSON or YAML.")]
OptionalPolicy = Annotated[Path | None, typer.Option("--policy", "-p", metavar="FILE", help="The policy: TOML, JSON or YAML.")]
OptionalState = Annotated[Path | None, typer.Option("--state", metavar="DIR", help="The state folder, instead of the policy's.")]
TokenEnv = Annotated[str | None, typer.Option(metavar="NAME", help="Environment variable with the token that clients must send.")]
AllowHost = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Further host name by which clients reach this machine; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]
