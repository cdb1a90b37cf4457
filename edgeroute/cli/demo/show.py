"""The report, on the terminal and in files."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeroute.cli.demo import curve
from edgeroute.cli.demo.page import page
from edgeroute.cli.demo.report import HEAD, Report, gained, notes, numbers, rows

EXTRA = "pip install 'edgeroute[demo]'"


def show(report: Report, folder: Path | None, *, as_json: bool) -> None:
    """Prints the report, for programs or for people, and writes its files into `folder`, if there is one."""
    console = Console(stderr=as_json, highlight=False)
    if as_json:
        print(json.dumps(numbers(report)))
    else:
        _print(report, console)
    if folder is not None:
        try:
            picture, text = curve.png(report), page(report)
        except ImportError:
            console.print(f"No picture and no page: matplotlib is not installed ({EXTRA})", markup=False)
            return
        (folder / "curve.png").write_bytes(picture)
        (folder / "report.html").write_text(text, encoding="utf-8")
        console.print(f"Written: {folder / 'curve.png'}, {folder / 'report.html'}", markup=False, soft_wrap=True)


def _print(report: Report, console: Console) -> None:
    table = Table()
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for cells in rows(report):
        table.add_row(*cells, style="bold" if cells[0] == "cascade" else None)
    console.print(table)
    console.print(gained(report), markup=False)
    console.print()
    try:
        drawn = curve.in_terminal(report, width=min(console.width, 100))
    except ImportError:
        console.print(f"No curve: plotext is not installed ({EXTRA})", markup=False)
    else:
        print(drawn)
        console.print("● the threshold in use")
    console.print()
    listed = Table.grid(padding=(0, 1))
    for note in notes(report):
        listed.add_row("-", Text(note))
    console.print(listed)
