from __future__ import annotations

import re
from typing import Annotated

import typer

from edgeroute.cli.exits import OK
from edgeroute.errors import nearest
from edgeroute.packaged import pages


def docs(
    name: Annotated[
        str | None, typer.Argument(metavar="PAGE", help="One of the pages; default: list them.", show_default=False)
    ] = None,
) -> int:
    """Prints a page of the documentation of this version, as Markdown, or lists the pages."""
    known = {file.stem: file for file in sorted(pages().glob("*.md"))}
    if name is None:
        for title, file in known.items():
            heading = re.search(r"^# (.+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            print(f"{title:14} {heading[1] if heading else ''}")
        print(f"\nin {pages()}")
        return OK
    if name not in known:
        raise typer.BadParameter(f"there is no page {name!r}: {nearest(name, known)}", param_hint="PAGE")
    print(known[name].read_text(encoding="utf-8"), end="")
    return OK
