"""Reader of lines and CSV tables from files that may be huge or damaged; skipped records are counted with their place."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, NamedTuple

from edgeroute.errors import BadInput
from edgeroute.system.foreign_files import open_file
from edgeroute.tools.replay.logs.recorded_answers import Options, Skip, answer_digest, number, round_grade

MOST: Final = 1 << 24
"""Most bytes of a line; longer ones are skipped without being held in memory."""


class Line(NamedTuple):
    """Line of a file, with its place."""

    place: str
    """FILE:NUMBER."""
    text: bytes | None
    """None: it is longer than `MOST`."""


class Left(NamedTuple):
    """Records that were skipped for one reason."""

    why: str
    requests: int
    first: str
    """FILE:LINE of the first of them; empty: unknown."""

    def __str__(self) -> str:
        return f"left out, {self.requests:,}: {self.why}" + (f" (first: {self.first})" if self.first else "")


class LeftOut:
    """Counter of skipped records, by reason."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, why: str, first: str = "", count: int = 1) -> None:
        """Count records, if there are any; the first place of each reason is stored."""
        if not count:
            return
        before, place = self._counts.get(why, (0, first))
        self._counts[why] = before + count, place

    def __str__(self) -> str:
        """Return the end of an error's message; empty if there are none."""
        return "".join(f"; left out, {r.requests:,}: {r.why}" + (f" ({r.first})" if r.first else "") for r in self.all())

    def all(self) -> tuple[Left, ...]:
        """Return the reasons, the most frequent first."""
        return tuple(sorted((Left(why, *count) for why, count in self._counts.items()), key=lambda reason: -reason.requests))


def lines(paths: Iterable[Path]) -> Iterator[Line]:
    """Yield the lines of all files that are not empty; `-` is stdin. A line of more than 16 MiB has None for its text.

    Raises:
        BadInput: a file cannot be read.
    """
    for path in paths:
        with _opened(path) as file:
            number = 0
            while part := file.readline(MOST + 1):
                number += 1
                complete = part.endswith(b"\n") or len(part) <= MOST
                while not part.endswith(b"\n") and len(part) > MOST:
                    part = file.readline(MOST + 1)
                if complete and not part.strip():
                    continue
                yield Line(f"{path}:{number}", part if complete else None)


@contextmanager
def regular_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Provide files that can be read twice: stdin is copied to one for its owner alone, deleted after the `with` block."""
    with ExitStack() as stack:
        files = []
        for path in paths:
            if str(path) == "-":
                copy = Path(stack.enter_context(TemporaryDirectory())) / "stdin.jsonl"
                with copy.open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
                files.append(copy)
            else:
                files.append(path)
        yield files


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or stdin for `-`, which stays open; raise errors as `BadInput`."""
    try:
        if str(path) == "-":
            yield sys.stdin.buffer
            return
        with open_file(path) as file:
            yield file
    except FileNotFoundError as e:
        raise BadInput(f"{path}: there is no such file") from e
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror or e}") from e


# Tables (CSV): a row for each request, with a confidence, and the answers of both models or their correctness.

SCORES, ANSWERS, USD = ("edge_score", "cloud_score"), ("edge_answer", "cloud_answer"), ("edge_usd", "cloud_usd")
COLUMNS: Final = "confidence, edge_score and cloud_score (0..1) or edge_answer and cloud_answer; if known id, edge_usd, cloud_usd"
LONGEST: Final = 1 << 17
"""Most characters of a field."""
DAMAGED: Final = "no row of a table: a field that is too long, or damaged"
_TRUTHS: Final = {"true": 1.0, "false": 0.0}


class Row(NamedTuple):
    """Request that both models answered."""

    id: str
    confidence: float
    """Confidence of the edge; NaN: there is none."""
    edge: float
    """Correctness of the edge, 0..1; where answers are compared, 1: equal to the cloud's."""
    cloud: float
    usd: tuple[float | None, float | None]
    """Costs of edge and cloud."""


def rows(paths: Iterable[Path], options: Options, skipped: LeftOut) -> tuple[list[Row], bool]:
    """Read the rows of all tables; return them, and True if answers are compared because there are no scores.

    A row that cannot be used is added to `skipped`.

    Raises:
        BadInput: a file cannot be read, or lacks a column.
    """
    table_rows, kinds = list[Row](), set[bool]()
    for path in paths:
        text = _Text(path, skipped)
        table = csv.DictReader(text)
        header = _header(table, path)
        kinds.add(not header.issuperset(SCORES))
        if len(kinds) > 1:
            raise BadInput(f"{path}: some tables have scores and others answers: use one kind")
        while True:
            try:
                row = next(table, None)
                if row is None:
                    break
                table_rows.append(_row(row, options, scores=not any(kinds)))
            except csv.Error:
                skipped.add(DAMAGED, f"{path}:{text.number}")
            except Skip as e:
                skipped.add(str(e), f"{path}:{text.number}")
    return table_rows, any(kinds)


class _Text:
    """Lines of a file as text, for `csv`; too long lines are skipped and counted."""

    def __init__(self, path: Path, left: LeftOut) -> None:
        self.number = 0
        self._lines, self._left = lines([path]), left

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            place, text = next(self._lines)
            self.number = int(place.rpartition(":")[2])
            if text is not None:
                return text.decode("utf-8-sig", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
            self._left.add("a line of more than 16 MiB", place)


def _header(table: csv.DictReader[str], path: Path) -> set[str]:
    """Return the columns of a table; raise `BadInput` if one is missing or there twice."""
    try:
        header = {*(table.fieldnames or ())}
    except csv.Error as e:
        raise BadInput(f"{path}:1: no header of a table: {COLUMNS}") from e
    if "confidence" not in header or not (header.issuperset(SCORES) or header.issuperset(ANSWERS)):
        raise BadInput(f"{path}:1: the first line names the columns: {COLUMNS}")
    twice = sorted(name for name in {"id", "confidence", *SCORES, *ANSWERS, *USD} if list(table.fieldnames or ()).count(name) > 1)
    if twice:
        raise BadInput(f"{path}:1: the first line names {twice[0]} twice")
    return header


def _row(row: Mapping[str | None, str | None], options: Options, *, scores: bool) -> Row:
    """Parse a row, an empty confidence as NaN; raise `Skip` if it cannot be used."""
    if any(len(text or "") > LONGEST for text in row.values()):
        raise Skip(DAMAGED)  # csv's own limit may have been changed by the program
    text = {name: (row.get(name) or "").strip() for name in ("id", "confidence", *SCORES, *USD)}
    confidence = float("nan") if text["confidence"] in {"", "nan", "NaN"} else _number("confidence", text["confidence"])
    if scores:
        edge, cloud = (_score(name, text[name]) for name in SCORES)
    else:
        edge_answer, cloud_answer = (row.get(name) for name in ANSWERS)
        if edge_answer is None or cloud_answer is None:
            raise Skip("a row that ends before its answers")
        edge, cloud = float(answer_digest(edge_answer, [], options) == answer_digest(cloud_answer, [], options)), 1.0
    usd = [number(_number(name, text[name])) if text[name] else None for name in USD]
    return Row(text["id"], confidence, edge, cloud, (usd[0], usd[1]))


def _score(name: str, text: str) -> float:
    """Parse a score, from 0 to 1, or true or false; raise `Skip` for all else."""
    score: float = _TRUTHS[text.lower()] if text.lower() in _TRUTHS else round_grade(_number(name, text))
    if not 0 <= score <= 1:
        raise Skip(f"{name} is not from 0 to 1")
    return score


def _number(name: str, text: str) -> float:
    """Parse a finite number; raise `Skip` for all else."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise Skip(f"{name} is no number")
    return value
