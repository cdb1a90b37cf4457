"""Collection of a fleet's digests into a store (`collect`): bad ones are refused by name, and none counts twice."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from errno import EFBIG, EINVAL, EISDIR
from glob import escape
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.catalog.model_folder_and_downloads import flush_folder
from edgeroute.errors import StoreError
from edgeroute.fleet.digest_encoding_and_coarsening import OTHER, Digest, path_of
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system import files_and_lock_waits, wall_clock
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.untrusted_files import MOST_TEXT, read_text
from edgeroute.tools.fleet.digest_parquet_store import (
    NEED,
    TABLES,
    Partition,
    Rows,
    connect,
    damaged_files,
    partitions,
    quoted,
    rows_of,
    selection,
    unreadable,
    write_rows,
    writing,
)
from edgeroute.tools.fleet.digest_sources import Source
from edgeroute.tools.fleet.untrusted_digest_decoder import BadDigest, decode

NAME = re.compile(r"(\d{4}-\d{2}-\d{2})/([0-9a-f]{32})\.(\d{1,9})\.digest", re.ASCII)
PART = 4_000  # digests that a process reads at once
MERGE = 250_000  # digests after which the tables are written, so that less is lost if the run is killed
FEW = 2_000  # digests up to which no further process is started
OLDEST = timedelta(days=400)
NEW = ".rows.new"  # file that is about to replace a day's
MOST_NAMED = 10_000  # most lines of refused.jsonl, the newest
MOST_NAMED_BYTES = MOST_TEXT // 2  # most bytes of these lines: half of what is read
NAME_SHOWN = 200  # most characters of a refused name
# Further columns of the parts: a number that no other digest of the run has, and the day.
ITEM = {"item": "BIGINT", "day": "DATE"}
# Code of a refusal -> the refusal in words.
REASONS = {
    "forged": "without the key's signature",
    "future": "of a day that has not begun",
    "stale": f"of a day more than {OLDEST.days} days ago",
    "unknown_model": "of a model that --models does not name",
    "truncated": "cut off",
    "too_large": "larger than a digest can be",
    "malformed": "no digest",
    "version": "of another format",
    "foreign": "not named as a digest",
    "misnamed": "its name is another digest's",
    "unread": "could not be read",
}


class Rules(NamedTuple):
    """Conditions that a digest must fulfil.

    Attributes:
        key: key of the signatures; empty: none is asked for.
        models: known models, as `name` or `name:digest`; empty: all are.
    """

    today: date
    key: bytes = b""
    models: frozenset[str] = frozenset()


class Refusal(NamedTuple):
    """A digest that is in no sum.

    Attributes:
        why: code, see `REASONS`.
    """

    name: str
    why: str


class Collected(NamedTuple):
    """Result of a run.

    Attributes:
        added: digests that are in the store now, and were not before.
        days: days whose tables were written.
        refused: code -> digests.
        repeated: digests that were in the store already, or are older than a revision there.
    """

    added: int
    days: tuple[date, ...]
    refused: Counter[str]
    repeated: int = 0

    def plus(self, other: Collected) -> Collected:
        """Return the result of both runs."""
        days, refused = {*self.days, *other.days}, self.refused + other.refused
        return Collected(self.added + other.added, tuple(sorted(days)), refused, self.repeated + other.repeated)


class _RefusedError(Exception):
    """Raised for a bad digest, with the code."""


def check(name: str, data: bytes | str, rules: Rules) -> Digest:
    """Return the digest of an object, once it is authentic, rightly named, recent and of a known model.

    Raises _RefusedError with the code of the refusal; data that are a text are such a code already.
    """
    if isinstance(data, str):
        raise _RefusedError(data)
    try:
        digest = decode(data, rules.key, today=rules.today.isoformat())
    except BadDigest as e:
        raise _RefusedError(e.fault.replace(" ", "_")) from None
    if f"digests/{name}" != path_of(digest):
        raise _RefusedError("misnamed")
    if date.fromisoformat(digest.day) < rules.today - OLDEST:
        raise _RefusedError("stale")
    models = {group[0] for group in digest.groups} - {OTHER[0]}
    if rules.models and not all({model, model.rpartition(":")[0]} & rules.models for model in models):
        raise _RefusedError("unknown_model")
    return digest


def convert(source: Source, names: Sequence[str], folder: Path, part: int, rules: Rules) -> list[Refusal]:
    """Read digests, write the rows of the good ones as Parquet files numbered `part` in a folder, and return the refusals.

    Runs in another process, too. Raises what the source's `read` raises.
    """
    tables: Rows = {table: [] for table in TABLES}
    refused, kept = [], 0
    for number, (name, data) in enumerate(zip(names, source.read(names), strict=True)):
        try:
            digest = check(name, data, rules)
        except _RefusedError as e:
            refused.append(Refusal(name, str(e)))
            continue
        more = (part * PART + number, date.fromisoformat(digest.day))
        for table, rows in rows_of(digest).items():
            tables[table] += [(*row, *more) for row in rows]
        kept += 1
    if kept:
        for table, rows in tables.items():
            write_rows(folder / f"{table}-{part}.parquet", table, rows, ITEM)
    return refused


def collect(source: Source, store: Path, rules: Rules | None = None, processes: int | None = None) -> Collected:
    """Add a source's digests that the store lacks to its tables, replacing older revisions; refuse bad ones by name in a file.

    Takes the store's lock. Of each device and day the highest revision counts. Many are read in further processes. A run that is
    killed leaves the store readable; the next one goes on.

    Args:
        source: where the digests are.
        store: folder of the store; it is created.
        rules: what a digest must fulfil; None: the day must not be in the future.
        processes: most processes; None: as many as there are processors.

    Raises:
        StoreError: another run uses the store, the source cannot be listed, or the store cannot be written.
        RuntimeMissing: duckdb or pyarrow is not installed.
    """
    rules = rules or Rules(datetime.fromtimestamp(wall_clock.now(), timezone.utc).date())
    with _turn(store) as parts:
        run = _Run(source, store, parts, rules, processes or os.cpu_count() or 1)
        try:
            run.all()
        finally:
            report_refusals(store, run.named)
        return Collected(run.added, tuple(sorted(run.days)), run.refused, run.repeated)


@contextmanager
def _turn(store: Path) -> Iterator[Path]:
    """Take the store's lock without waiting, and yield an empty folder for parts, which is deleted at the end.

    Creates the store's folder. Raises StoreError if another run has the lock, and for errors of the disk and DuckDB in the block.
    """
    lock, parts = ProcessLock(store / ".collect.lock"), store / ".parts"
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
        if not lock.take():
            raise StoreError(f"{store}: another collect is running: try again later")
        try:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir()
            yield parts
        finally:
            shutil.rmtree(parts, ignore_errors=True)
            lock.leave()


class _Run:
    """A run of `collect`: reads digests, in processes if there are many, merges them into tables, and counts refusals."""

    def __init__(self, source: Source, store: Path, parts: Path, rules: Rules, processes: int) -> None:
        self.source, self.store, self.parts, self.rules, self.processes = source, store, parts, rules, processes
        self.refused: Counter[str] = Counter()
        self.named: list[Refusal] = []
        self.added, self.days = 0, set[date]()
        self._part = self._unmerged = self.repeated = 0
        ends = [(table, file) for table in TABLES for file in partitions(store, table) if unreadable(file.path, table)]
        set_aside(store, ends)

    def all(self) -> None:
        """Read all digests, and write the tables; if the source fails, of those that were read, before the error is raised.

        After an error of DuckDB, or where nothing is new, read the whole store; set damaged files aside and begin again.
        """
        error = None
        try:
            self._read()
        except import_needed("duckdb", NEED).Error as e:
            error = e
        finally:
            self._merge_if(1)
        if (error or not self.added) and set_aside(self.store, damaged_files(self.store)):
            self.refused, self.named, self.repeated = Counter(), [], 0
            self.all()
        elif error:
            raise error

    def _read(self) -> None:
        """Read all digests as parts, in further processes if there are many; merge them each `MERGE` digests."""
        batches = self._batches()
        first = next(batches, [])
        rest = chain([first] if first else (), batches)
        if len(first) <= FEW or self.processes == 1:
            for names in rest:
                self._refuse(convert(self.source, names, self.parts, self._next(len(names)), self.rules))
                self._merge_if(MERGE)
            return
        with ProcessPoolExecutor(self.processes, get_context("spawn")) as pool:
            running = set[Future[list[Refusal]]]()
            try:
                for names in rest:
                    running.add(pool.submit(convert, self.source, names, self.parts, self._next(len(names)), self.rules))
                    while len(running) > 2 * self.processes or (running and self._unmerged >= MERGE):
                        running = self._wait(running)
                    self._merge_if(MERGE)
                while running:
                    running = self._wait(running)
            finally:
                pool.shutdown(cancel_futures=True)

    def _wait(self, running: set[Future[list[Refusal]]]) -> set[Future[list[Refusal]]]:
        """Wait for a process, count its refusals, and return those that run on."""
        done, rest = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            self._refuse(future.result())
        return rest

    def _next(self, count: int) -> int:
        """Count a part, and return its number."""
        self._part, self._unmerged = self._part + 1, self._unmerged + count
        return self._part

    def _refuse(self, refusals: Collection[Refusal]) -> None:
        """Count refusals, and keep the names of the newest for refused.jsonl."""
        self.refused.update(why for _, why in refusals)
        self.named = [*self.named, *refusals][-MOST_NAMED:] if refusals else self.named

    def _batches(self) -> Iterator[list[str]]:
        """Yield the names of digests that the store lacks, up to `PART` at a time; count those that it has.

        Names that are no digest's are refused.
        """
        names = self.source.names()
        while some := list(islice(names, 10 * PART)):
            digests = [(match, name) for name in some if (match := NAME.fullmatch(name))]
            self._refuse([Refusal(name, "foreign") for name in some if not NAME.fullmatch(name)])
            new = unknown(self.store, [(name, match[1], match[2], int(match[3])) for match, name in digests])
            self.repeated += len(digests) - len(new)
            yield from (new[i : i + PART] for i in range(0, len(new), PART))

    def _merge_if(self, least: int) -> None:
        """Merge the parts into the tables, and delete them, if they have at least so many digests."""
        if self._unmerged >= least:
            added, repeated, days = merge_parts(self.store, self.parts)
            self.added, self.days, self._unmerged = self.added + added, self.days | days, 0
            self.repeated += repeated
            shutil.rmtree(self.parts)
            self.parts.mkdir()


def unknown(store: Path, names: Sequence[tuple[str, str, str, int]]) -> list[str]:
    """Return the names of digests whose device and day are not in the store with the same or a later revision.

    names: (name, day, device, revision) of each.
    """
    days = {day for _, day, _, _ in names}
    files = [file for file in partitions(store, "digests") if file.day.isoformat() in days]
    if not files:
        return [name for name, *_ in names]
    columns = dict(zip(("name", "day", "device", "revision"), map(list, zip(*names, strict=True)), strict=True))
    given = import_needed("pyarrow", NEED).table(columns)
    with connect(store) as connection:
        connection.register("given", given)
        sql = f"""SELECT given.name FROM given LEFT JOIN ({selection("digests", files)}) AS there
            ON there.device = given.device AND there.day::VARCHAR = given.day AND there.revision >= given.revision
            WHERE there.device IS NULL"""
        return [name for (name,) in connection.execute(sql).fetchall()]


def merge_parts(store: Path, parts: Path) -> tuple[int, int, set[date]]:
    """Merge the parts' rows into the store's tables, day by day. Return the digests added, those repeated, and the days.

    If a file of the store is damaged, all damaged ones are renamed, and StoreError names them; other errors of DuckDB pass.
    """
    if not any(parts.iterdir()):
        return 0, 0, set()
    duckdb = import_needed("duckdb", NEED)
    added = repeated = 0
    with connect(store) as connection:
        try:
            for table in TABLES:
                read = f"read_parquet({_literal(parts / f'{table}-*.parquet')})"
                connection.execute(f"CREATE TEMP VIEW new_{table} AS SELECT * FROM {read}")
            days = dict(connection.execute("SELECT day, count(*) FROM new_digests GROUP BY day ORDER BY day").fetchall())
            for day, count in days.items():
                here = merge_day(connection, store, day)
                added, repeated = added + here, repeated + count - here
        except duckdb.Error as e:
            if names := ", ".join(str(path.relative_to(store)) for path in set_aside(store, damaged_files(store))):
                raise StoreError(f"{store} had damaged files, which are set aside: {names}; run it again") from e
            raise
    return added, repeated, set(days)


def merge_day(connection: Any, store: Path, day: date) -> int:
    """Replace the day's file of each table by one with the new digests of higher revisions, and return their number.

    A device's rows are replaced as a whole. No file is replaced before all are written and flushed, and `digests` last.
    """
    old = {table: [Partition(day, p) for p in [_path(store, table, day)] if p.exists()] for table in TABLES}
    connection.execute(f"""CREATE OR REPLACE TEMP TABLE newest AS
        SELECT device, arg_min(item, (-revision, item)) AS item, max(revision) AS revision
        FROM new_digests WHERE day = DATE '{day}' GROUP BY device""")
    connection.execute(f"""DELETE FROM newest USING ({selection("digests", old["digests"])}) AS there
        WHERE there.device = newest.device AND there.revision >= newest.revision""")
    (count,) = connection.execute("SELECT count(*) FROM newest").fetchone()
    paths = [_path(store, table, day) for table in TABLES] if count else []
    try:
        for path, (table, columns) in zip(paths, TABLES.items(), strict=False):
            names, today = ", ".join(columns), f"SELECT * FROM new_{table} WHERE day = DATE '{day}'"
            path.parent.mkdir(parents=True, exist_ok=True)
            connection.execute(f"""COPY (
                SELECT {names} FROM ({selection(table, old[table])}) AS there ANTI JOIN newest USING (device)
                UNION ALL SELECT {names} FROM ({today}) AS new SEMI JOIN newest USING (item)
                ) TO {_literal(path.with_name(NEW))} (FORMAT parquet, COMPRESSION zstd)""")
            with path.with_name(NEW).open("rb+") as file:
                os.fsync(file.fileno())
        for path in paths:
            path.with_name(NEW).replace(path)
            flush_folder(path.parent)
    finally:
        for path in paths:
            path.with_name(NEW).unlink(missing_ok=True)
    return int(count)


def _literal(path: Path) -> str:
    """Return a path as a literal of SQL, for DuckDB; an asterisk in the last part stands for any name."""
    folder = path.absolute().parent
    return quoted(f"{escape(str(folder)) if '*' in path.name else folder}/{path.name}")


def _path(store: Path, table: str, day: date) -> Path:
    """Return the path of a day's file of a table."""
    return store / table / f"day={day}" / "rows.parquet"


def set_aside(store: Path, damaged: Sequence[tuple[str, Partition]]) -> list[Path]:
    """Rename damaged files of a store to NAME.damaged, and return their paths.

    The day's `digests` is renamed with another table's file, so that the next run reads the day's digests again.
    """
    paths = {file.path for _, file in damaged}
    for path in paths | {_path(store, "digests", file.day) for _, file in damaged}:
        if path.exists():
            path.replace(path.with_name(path.name + ".damaged"))
    return sorted(paths)


def report_refusals(store: Path, refusals: Sequence[Refusal]) -> None:
    """Add refusals to the store's refused.jsonl: each (name, reason) once, the newest last.

    At most `MOST_NAMED` lines, and `MOST_NAMED_BYTES`. Replaces the file; one that is too large, or no text, is renamed to
    refused.jsonl.damaged first. A no-op without refusals. Raises StoreError if the file cannot be read or written.
    """
    if not refusals:
        return
    path, now = store / "refused.jsonl", datetime.fromtimestamp(wall_clock.now(), timezone.utc).isoformat(timespec="seconds")
    with writing(store):
        lines = {line.partition(', "at": ')[0]: line for line in _named(path)}
        for name, why in refusals:
            start = json.dumps({"name": name[:NAME_SHOWN], "why": why})[:-1]
            lines.pop(start, None)
            lines[start] = f'{start}, "at": "{now}"}}'
        newest, size = list[str](), 0
        for line in islice(reversed(lines.values()), MOST_NAMED):
            size += len(line.encode()) + 1
            if size > MOST_NAMED_BYTES:
                break
            newest.append(line + "\n")
        files_and_lock_waits.replace_file(path, "".join(reversed(newest)))


def _named(path: Path) -> list[str]:
    """Return the lines of refused.jsonl; none, after renaming the file, if it is too large or no text in UTF-8.

    Raises OSError if it cannot be read otherwise.
    """
    try:
        return read_text(path).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as e:
        if isinstance(e, OSError) and e.errno not in {EFBIG, EINVAL, EISDIR}:  # too large, or no regular file
            raise
        path.replace(path.with_name(path.name + ".damaged"))
        return []
