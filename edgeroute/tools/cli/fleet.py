"""Commands `edgeroute fleet`: the digests of many devices as tables, and their report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeroute.tools.cli.command_runner import command
from edgeroute.tools.cli.tables_and_options import Json, print_notes

fleet = typer.Typer(
    name="fleet",
    no_args_is_help=True,
    help="Read what the devices of a fleet send by [fleet] in their policies: pip install 'edgeroute[fleet]'.",
)


@command(fleet)
def collect(
    source: Annotated[str, typer.Argument(metavar="FROM")],
    *,
    to: Annotated[Path, typer.Option(metavar="DIR")],
    key: str | None = None,
    models: list[str] | None = None,
    as_json: Json = False,
) -> None:
    """Add the devices' digests to a store of tables. Each digest counts once, however often this is run; bad ones are refused.

    The store names refused digests in refused.jsonl.

    Args:
        source: Where the devices send to: a folder or s3://BUCKET/PREFIX.
        to: Folder of the store; it is created.
        key: Environment variable, or file, with the key of [fleet] key: digests without its signature are refused.
        models: A known model, NAME or NAME:DIGEST; may be repeated. Digests of others are refused. Default: all are known.
    """
    from datetime import datetime, timezone

    from edgeroute.system import process
    from edgeroute.tools.fleet.digest_collection import REASONS, Rules, collect
    from edgeroute.tools.fleet.digest_sources import source_of

    today = datetime.fromtimestamp(process.now(), timezone.utc).date()
    result = collect(source_of(source), to, Rules(today, _key(key), frozenset(models or ())))
    days = [day.isoformat() for day in result.days]
    if as_json:
        print(json.dumps({"added": result.added, "days": days, "refused": result.refused}))
        return
    print(f"{result.added:,} digests added{f', of {days[0]} to {days[-1]}' if days else ''}")
    print_notes(f"{count:,} refused: {REASONS[why]}" for why, count in result.refused.items() if count)


def _key(name: str | None) -> bytes:
    """Return the key in an environment variable or a file; empty without a name. Raises BadInput if there is neither."""
    import os

    from edgeroute.errors import BadInput
    from edgeroute.system.foreign_files import read_text

    if name is None:
        return b""
    try:
        text = (os.environ.get(name) or read_text(name)).strip()
    except (OSError, ValueError):
        text = ""
    if not text:
        raise BadInput(f"--key {name}: neither an environment variable nor a file with a key")
    return text.encode()
