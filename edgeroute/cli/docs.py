from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json
from edgeroute.errors import nearest
from edgeroute.packaged import pages


def docs(
    name: Annotated[
        str | None, typer.Argument(metavar="PAGE", help="One of the pages; default: list them.", show_default=False)
    ] = None,
    *,
    as_json: Json = False,
) -> int:
    """Prints a page of the documentation of this version, as Markdown, or lists the pages."""
    known = {file.stem: file for file in sorted(pages().glob("*.md"))}
    if as_json and name in {None, *known}:
        texts = {title: file.read_text(encoding="utf-8") for title, file in known.items() if name in {None, title}}
        found = {"pages": [*texts], "folder": str(pages())} if name is None else {"page": name, "text": texts[name]}
        print(json.dumps(found))
        return OK
    if name is None:
        width = max(map(len, known), default=0)
        for title, file in known.items():
            heading = re.search(r"^# (.+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            print(f"{title:{width}}  {heading[1] if heading else ''}")
        print(f"\nin {pages()}")
        return OK
    if name not in known:
        raise typer.BadParameter(f"there is no page {name!r}: {nearest(name, known)}", param_hint="PAGE")
    print(known[name].read_text(encoding="utf-8"), end="")
    return OK
