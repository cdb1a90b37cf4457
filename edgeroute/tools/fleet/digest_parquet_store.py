"""Tables of a fleet: rows of digests (`rows_of`), a store of Parquet files by day, its damaged files, and DuckDB (`open_store`).

A store is a folder: `TABLE/day=YYYY-MM-DD/rows.parquet` for each table and day, each replaced as a whole, so that a reader, or a
writer that was killed, never sees half of a file. `digests`, a row for each device, is written last: a day whose writing was
interrupted is written again by the next run.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.errors import StoreError
from edgeroute.fleet.digest_encoding_and_coarsening import Digest
from edgeroute.system.late_imports_and_plugins import import_needed

NEED = "tables of a fleet need duckdb and pyarrow: pip install 'edgeroute[fleet]'"
_TEXT = dict.fromkeys(("device", "site", "model", "policy", "arm", "data_class"), "VARCHAR")
BUCKETS = tuple(f"l{i}" for i in range(8))  # columns of the latency buckets
# Table -> column -> type in DuckDB, without the day. The order is that of writing. `grid` is the index of a digest's row; files
# that have `index` in its place are of earlier versions, whose indices mean other thresholds.
TABLES: dict[str, dict[str, str]] = {
    "requests": {
        **_TEXT, "signed": "VARCHAR", "hour": "INTEGER", "requests": "BIGINT", "deferred": "BIGINT", "degraded": "BIGINT",
        "failed": "BIGINT", "bytes": "BIGINT", "usd": "DOUBLE", **dict.fromkeys(BUCKETS, "BIGINT"),
    },
    "confidences": {**_TEXT, "grid": "INTEGER", "requests": "BIGINT"},
    "audits": {
        **_TEXT, "hour": "INTEGER", "grid": "INTEGER", "audited": "BIGINT", "differ": "BIGINT", "harms": "BIGINT",
        "wins": "BIGINT", "rate": "DOUBLE",
    },
    "digests": {
        "device": "VARCHAR", "site": "VARCHAR", "signed": "VARCHAR", "version": "VARCHAR", "revision": "INTEGER",
        "final": "BOOLEAN", "coarse": "INTEGER",
    },
}  # fmt: skip
DAY = re.compile(r"day=(\d{4}-\d{2}-\d{2})")
MEMORY = "2GB"  # most memory of a connection; what needs more is spilled into the store's folder

Rows = dict[str, list[tuple[Any, ...]]]  # table -> rows of the table's columns


def rows_of(digest: Digest) -> Rows:
    """Return the rows of one digest for each table."""
    heads = [(digest.device, digest.site, *group) for group in digest.groups]
    return {
        "requests": [(*heads[row[0]], digest.signed, *row[1:7], row[7] / 1e6, *row[8:]) for row in digest.requests],
        "confidences": [(*heads[group], *cells) for group, *cells in digest.confidences],
        "audits": [(*heads[group], *cells) for group, *cells in digest.audits],
        "digests": [(digest.device, digest.site, digest.signed, digest.version, digest.revision, digest.final, digest.coarse)],
    }


def write_rows(path: Path, table: str, rows: Sequence[tuple[Any, ...]], more: Mapping[str, str] | None = None) -> None:
    """Write rows of a table as a compressed Parquet file, replacing the file in place; creates its folder.

    more: further columns at the rows' ends, by their types.
    """
    arrow = import_needed("pyarrow", NEED)
    import_needed("pyarrow.parquet", NEED)
    kinds = {
        "VARCHAR": arrow.string(), "INTEGER": arrow.int32(), "BIGINT": arrow.int64(), "DOUBLE": arrow.float64(),
        "BOOLEAN": arrow.bool_(), "DATE": arrow.date32(),
    }  # fmt: skip
    columns = {**TABLES[table], **(more or {})}
    values = zip(*rows, strict=True) if rows else [()] * len(columns)
    arrays = [arrow.array(cells, kinds[kind]) for cells, kind in zip(values, columns.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.parquet.write_table(arrow.table(arrays, names=list(columns)), path, compression="zstd")


def quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


class Partition(NamedTuple):
    """A day's file of a table."""

    day: date
    path: Path


def partitions(store: Path, table: str) -> Iterable[Partition]:
    """Yield the files of a table, by day. Folders of other names, hidden files and links are skipped."""
    folder = store / table
    for each in sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else ():
        if (match := DAY.fullmatch(each.name)) and each.is_dir(follow_symlinks=False):
            try:
                day = date.fromisoformat(match[1])
            except ValueError:
                continue
            names = sorted(e.name for e in os.scandir(each) if e.is_file(follow_symlinks=False))
            yield from (Partition(day, Path(each, name)) for name in names if name.endswith(".parquet") and name[0] != ".")


def unreadable(path: Path, table: str) -> str:
    """Return why a file is no table of this name, or an empty text. Reads the file's end alone."""
    import_needed("pyarrow", NEED)
    parquet = import_needed("pyarrow.parquet", NEED)
    try:
        names = parquet.read_schema(path).names
    except (OSError, ValueError) as e:  # pyarrow's own errors are among them
        return "is cut off or is no Parquet file" if isinstance(e, ValueError) else f"cannot be read: {e.strerror or e}"
    missing = [name for name in TABLES[table] if name not in names]
    return f"has no column {missing[0]}" if missing else ""


def damaged_files(store: Path) -> list[tuple[str, Partition]]:
    """Return the files of a store that cannot be read to their end, each with its table. Reads the whole store."""
    with connect(store) as connection:
        files = [(table, file) for table in TABLES for file in partitions(store, table)]
        return [(table, file) for table, file in files if not _reads(connection, table, file)]


def _reads(connection: Any, table: str, file: Partition) -> bool:
    """Return True if each value of a file can be read."""
    values = f"hash({', '.join(TABLES[table])})"  # the highest value, say, would be read of the file's statistics
    try:
        connection.execute(f"SELECT bit_xor({values}) FROM ({selection(table, [file])})").fetchall()
    except import_needed("duckdb", NEED).Error:
        return False
    return True


@contextmanager
def reading(store: Path) -> Iterator[None]:
    """Translate an error of DuckDB in the `with` block to StoreError, which names up to five damaged files.

    Then reads the whole store.
    """
    duckdb = import_needed("duckdb", NEED)
    try:
        yield
    except duckdb.Error as e:
        names = ", ".join(str(file.path.relative_to(store)) for _, file in damaged_files(store)[:5])
        why = f"damaged: {names}; `edgeroute fleet collect` reads their digests again" if names else str(e).partition("\n")[0]
        raise StoreError(f"{store} cannot be read: {why}") from e


_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Translate errors of DuckDB, pyarrow and the system in the `with` block to StoreError, with their cause alone."""
    duckdb = import_needed("duckdb", NEED)
    try:
        yield
    except StoreError:
        raise
    except (duckdb.Error, OSError) as e:
        text = str(e)
        why = next((why for why in _FULL if why in text), getattr(e, "strerror", None) or text.partition("\n")[0])
        raise StoreError(f"{folder} cannot be written: {why}; what was in it is whole: make room, and run this again") from e


def connect(folder: Path, *more: Path) -> Any:
    """Return a connection to DuckDB, in memory, that reads and writes files of these folders alone, and loads no extension.

    What needs more memory than `MEMORY` is spilled into the first one.

    Raises:
        RuntimeMissing: duckdb is not installed.
    """
    folder = folder.absolute()
    connection = import_needed("duckdb", NEED).connect(":memory:")
    names = {name for path in (folder, *more) for name in (str(path.absolute()), escape(str(path.absolute())))}
    allowed = ", ".join(quoted(name + "/") for name in sorted(names))
    for setting in (
        f"memory_limit = {quoted(MEMORY)}", f"temp_directory = {quoted(str(folder / '.spill'))}",
        f"allowed_directories = [{allowed}]", "enable_external_access = false", "autoinstall_known_extensions = false",
        "autoload_known_extensions = false", "python_enable_replacements = false", "preserve_insertion_order = false",
        "enable_progress_bar = false", "lock_configuration = true",
    ):  # fmt: skip
        connection.execute(f"SET {setting}")
    return connection


def selection(table: str, files: Sequence[Partition]) -> str:
    """Return SQL that selects the day and a table's columns, with their types, from these files; no row without files."""
    columns = TABLES[table].items()
    if not files:
        return f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in [('day', 'DATE'), *columns])} WHERE false"
    paths = ", ".join(quoted(escape(str(file.path.absolute()))) for file in files)
    reader = f"read_parquet([{paths}], hive_partitioning = true, hive_types = {{'day': DATE}})"
    return f"SELECT {', '.join(f'{name}::{kind} AS {name}' for name, kind in [('day', 'DATE'), *columns])} FROM {reader}"


def is_store(path: Path) -> bool:
    """Return True if a folder has a table's folder with a day."""
    return any((path / table).is_dir() and any(DAY.fullmatch(each.name) for each in (path / table).iterdir()) for table in TABLES)


def open_store(path: str | Path) -> Any:
    """Return a connection to DuckDB with a view for each table of a store: requests, confidences, audits and digests.

    Reads the end of each file. Each view has the column `day`, a DATE, and those of `TABLES`. A file that is no such table is in
    no view; the table `refused` (file, why) names each, and those that `collect` has set aside and not read again since.

    Args:
        path: folder of the store.

    Raises:
        RuntimeMissing: duckdb or pyarrow is not installed.
        StoreError: the folder has no table.
    """
    store = Path(path)
    if not is_store(store):
        raise StoreError(f"{store} is no store of a fleet: `edgeroute fleet collect FROM --to {store}` writes one of digests")
    connection, refused = connect(store), list[tuple[str, str]]()
    for table in TABLES:
        whys = {file: unreadable(file.path, table) for file in partitions(store, table)}
        refused += [(str(file.path.relative_to(store)), why) for file, why in whys.items() if why]
        aside = [path.with_suffix("") for path in sorted((store / table).glob("day=*/*.damaged"))]
        lost = "was damaged, and its digests were not there to be read again"
        refused += [(str(path.relative_to(store)), lost) for path in aside if not path.exists()]
        connection.execute(f"CREATE VIEW {table} AS {selection(table, [file for file, why in whys.items() if not why])}")
    connection.execute("CREATE TABLE refused (file VARCHAR, why VARCHAR)")
    if refused:
        connection.executemany("INSERT INTO refused VALUES (?, ?)", refused)
    return connection
