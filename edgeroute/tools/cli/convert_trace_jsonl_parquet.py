"""Commands on traces: `trace convert` writes JSON lines as Parquet, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeroute.errors import BadInput, PolicyError
from edgeroute.tools.cli.command_runner import FAILED, OK, command
from edgeroute.tools.cli.tables_and_options import Json, print_notes

trace = typer.Typer(name="trace", no_args_is_help=True, help="Convert traces between JSON lines and Parquet.")


@command(trace)
def convert(
    source: Annotated[Path, typer.Argument(metavar="TRACE")],
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    *,
    force: bool = False,
    as_json: Json = False,
) -> int:
    """Write a trace, with its rotated files, as Parquet; or one in Parquet as JSON lines. Nothing of a record is lost.

    Of a folder each trace below it, under the same names below OUT; one that cannot be read is named, and exit code 1.

    Args:
        source: A trace, or a folder of traces.
        out: The new file, or a folder.
        force: Replace existing files.

    Prints for each new file the records, bytes, and incomplete lines that were left out. Creates folders.

    Raises:
        BadInput: of a single trace: it cannot be read, or the new file has the suffix of the other form.
        PolicyError: of a single trace: the new file exists.
    """
    from edgeroute.tools.replay import read_and_pack_traces as conversion
    from edgeroute.tools.replay.parquet_trace_format import is_parquet

    pairs = [(source, out)]
    if source.is_dir():
        names = conversion.traces(source)
        pairs = [
            (path, (out / name).with_suffix(".jsonl" if path.exists() and is_parquet(path) else ".parquet"))
            for name, path in names.items()
        ]
    failed = 0
    for path, new in pairs:
        try:
            _check_new(new, path, force=force)
            new.parent.mkdir(parents=True, exist_ok=True)
            number, skipped = conversion.convert(path, new)
        except (BadInput, PolicyError) as e:
            if not source.is_dir():
                raise
            print_notes([str(e)])
            failed += 1
            continue
        size = new.stat().st_size
        if as_json:
            print(json.dumps({"file": str(new), "records": number, "bytes": size, "incomplete_lines": skipped}))
            continue
        left_out = f", left out {skipped:,} incomplete lines" if skipped else ""
        print(f"{new}: {number:,} records, {size / max(1, number):.1f} bytes each{left_out}")
    return FAILED if failed else OK


def _check_new(path: Path, source: Path, *, force: bool) -> None:
    """Raise PolicyError if a file exists, unless it may be replaced, or BadInput if its suffix is that of the source's form."""
    from edgeroute.tools.replay.parquet_trace_format import is_parquet

    if path.exists() and not force:
        raise PolicyError(f"{path} exists: choose another name, or pass --force")
    wrong, suffix = (".parquet", ".jsonl") if source.exists() and is_parquet(source) else (".jsonl", ".parquet")
    if path.suffix.lower() == wrong and source.exists():
        raise BadInput(f"{path}: {source} is written as {suffix}, not as {wrong}: name it {path.with_suffix(suffix).name}")
