"""Files of traces, as JSON lines or Parquet: reader (`TraceRecords`), finder in folders, packing with deletion, conversion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any, Final

from edgeroute.errors import BadInput, StoreError
from edgeroute.stores import json_lines_and_process_locks as journal
from edgeroute.system.json_codec_and_short_repr import json_dumps
from edgeroute.tools.replay.parquet_trace_format import is_parquet, read_parquet, replacing, write_parquet

OTHERS: Final = frozenset({"egress.jsonl", "audit.jsonl"})  # journals of a state folder that are no traces
_ROTATED: Final = re.compile(r"(?P<trace>.+\.jsonl)(\.\d+(\.parquet|\.packing)?)?|(?P<whole>.+\.parquet)")
TRIES: Final = 10  # attempts to list files that no other process renames meanwhile


class TraceRecords:
    """Iterable over the records of a trace, oldest first: a file of Parquet, or one of JSON lines with its full files.

    Args:
        path: path of the file.
        exact: False is faster, and enough for a replay: integers beyond 64 bits become floats, inputs and some facts are null.

    Attributes:
        skipped: number of lines so far that are no JSON objects.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        self._path, self._journal, self._exact = path, journal.read(path, exact=exact), exact

    @property
    def skipped(self) -> int:
        """Return the number of lines so far that are no JSON objects."""
        return self._journal.skipped

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield the records.

        Raises:
            BadInput: a file of Parquet is damaged, or no trace.
            StoreError: a file cannot be opened.
            RuntimeMissing: a file of Parquet needs pyarrow.
        """
        try:
            whole = self._path.exists() and is_parquet(self._path)
        except OSError as e:
            raise StoreError(f"{self._path}: {e.strerror or e}") from e
        if whole:
            yield from read_parquet(self._path, whole=self._exact)
            return
        for _ in range(TRIES):
            before = _packs(self._path)
            lines = iter(self._journal)
            first = next(lines, None)  # opens all files of JSON, which may become Parquet before and after
            if _packs(self._path) == before:
                break
        for _, path in sorted(before.items()):
            packed = path.with_suffix(".parquet")
            yield from read_parquet(packed, whole=self._exact) if packed.exists() else journal.read(path)
        if first is not None:
            yield first
            yield from lines


def traces(folder: Path) -> dict[str, Path]:
    """Return name -> path, sorted, of all traces below a folder: each `.parquet`, and each `.jsonl` with its rotated files.

    Hidden files, and a state folder's other journals (egress, audit), are none. A path may not exist if only rotated files do.

    Raises:
        BadInput: the folder has none.
    """
    paths = set[Path]()
    for path in folder.rglob("*"):
        match = _ROTATED.fullmatch(path.name)
        if match and path.is_file() and (match["trace"] or match["whole"]) not in OTHERS and not path.name.startswith("."):
            paths.add(path.with_name(match["trace"] or match["whole"]))
    if not paths:
        raise BadInput(f"{folder}: expected traces, *.jsonl or *.parquet, found none in this folder")
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _packs(path: Path) -> dict[int, Path]:
    """Return number -> path of a trace's files of Parquet, `NAME.N.parquet`, and of those that become one, `NAME.N.packing`."""
    ends = re.compile(rf"{re.escape(path.name)}\.(\d+)\.(packing|parquet)")
    matches = [(file, match) for file in path.parent.glob("*.pa*") if (match := ends.fullmatch(file.name))]
    return {int(match[1]): file for file, match in sorted(matches)}  # where both are there, a kill came between: the Parquet


HOLD_S = 1.0  # maximum time that `pack` waits for another process's rotation, seconds


def pack(path: Path, keep: int) -> None:
    """Make Parquet of a trace's full files, and delete the oldest so that `keep` stay; nothing while another process does that.

    The file that was rotated last stays JSON, as a process may be in the middle of a line of it. Each other file is renamed, so
    that no rotation touches it, while nobody rotates; a process that is killed leaves a file that readers know and the next
    call goes on with.

    Raises:
        StoreError: a file cannot be written.
        RuntimeMissing: pyarrow is not installed.
    """
    turn = journal.ProcessLock(path.with_name(f"{path.name}.pack.lock"))
    if not turn.take():
        return
    try:
        for left in path.parent.glob(f"{escape(path.name)}.{'[0-9]' * 8}.parquet.*.new"):  # by a process that was killed
            left.unlink(missing_ok=True)
        with journal.rotation_held(path, HOLD_S) as held:
            rotated = [file for file in path.parent.glob(f"{escape(path.name)}.*") if file.suffix[1:].isdecimal()]
            full = sorted(((int(file.suffix[1:]), file) for file in rotated), reverse=True) if held or not path.exists() else []
            for number, (n, file) in enumerate(full, max(_packs(path), default=0) + 1):
                if n > 1:
                    file.rename(path.with_name(f"{path.name}.{number:08}.packing"))
        for file in path.parent.glob(f"{escape(path.name)}.*.packing"):
            packed = file.with_suffix(".parquet")
            if not packed.exists():
                write_parquet(packed, journal.read(file))
            file.unlink()
        for _, file in sorted(_packs(path).items())[: -max(1, keep - 1)]:
            file.unlink()
    except OSError as e:
        raise StoreError(f"{path}: its full files cannot become Parquet: {e.strerror or e}") from e
    finally:
        turn.leave()


def convert(path: Path, out: Path) -> tuple[int, int]:
    """Write a trace as Parquet, or as JSON lines if it is Parquet, to `out`, which is replaced at the end.

    Return the numbers of records and of invalid lines, which are left out.

    Raises:
        BadInput: no trace, damaged, or empty.
        StoreError: a file cannot be read or written.
        RuntimeMissing: pyarrow is not installed.
    """
    records = TraceRecords(path, exact=True)
    reading = iter(records)
    first = next(reading, None)
    if first is None:
        raise BadInput(f"{path}: expected records of a trace, found {records.skipped or 'nothing'}")
    lines = chain((first,), reading)
    if path.exists() and is_parquet(path):
        return _write_json(out, lines), 0
    return write_parquet(out, lines), records.skipped


def _write_json(out: Path, records: Iterator[Mapping[str, Any]]) -> int:
    """Write records as JSON lines to a file, replaced at the end (see `replacing`), and return their number."""
    number = 0
    with replacing(out) as new, new.open("wb") as file:
        for number, record in enumerate(records, 1):  # noqa: B007 - counted
            file.write(json_dumps(record) + b"\n")
    return number
