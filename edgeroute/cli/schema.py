from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json


def schema(
    what: Annotated[Literal["policy", "card"], typer.Argument(help="Of policy files, or of model cards.")] = "policy",
    *,
    as_json: Json = False,
) -> int:
    """Prints the JSON Schema of policy files or of model cards, for an editor or a validator; with --json on one line."""
    if what == "card":
        from edgeroute.edge import card_format as described
    else:
        from edgeroute import settings as described  # type: ignore[no-redef]

    print(json.dumps(described.schema(), indent=None if as_json else 2))
    return OK
