"""Reads lines of files that may be huge or damaged: each is limited in length, and what is left out is counted with its place."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite, nan
from pathlib import Path
from typing import IO, Final, NamedTuple

from edgeroute.errors import BadInput
from edgeroute.tools.replay.logs.bodies import Ask, Skip, number, rounded, same

MOST: Final = 1 << 24
"""Bytes of a line; longer ones are passed over without being held in memory."""


class Line(NamedTuple):
    """A line, and where it is."""

    place: str
    """FILE:NUMBER."""
    text: bytes | None
    """None: it is longer than `MOST`."""


class Left(NamedTuple):
    """Records that were left out for one reason."""

    why: str
    requests: int
    first: str
    """FILE:LINE of the first of them; empty: it has none."""


class LeftOut:
    """Counts what is left out, by reason."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, why: str, first: str = "", count: int = 1) -> None:
        """Counts records; the first place of each reason is kept."""
        before, place = self._counts.get(why, (0, first))
        self._counts[why] = before + count, place

    def __str__(self) -> str:
        """As the end of an error's message; empty if there are none."""
        return "".join(
            f"; left out, {one.requests:,}: {one.why}" + (f" ({one.first})" if one.first else "") for one in self.all()
        )

    def all(self) -> tuple[Left, ...]:
        """The reasons, the most frequent first."""
        return tuple(sorted((Left(why, *found) for why, found in self._counts.items()), key=lambda one: -one.requests))


def lines(paths: Iterable[Path]) -> Iterator[Line]:
    """The lines of all files that are not empty; `-` is stdin.

    Raises:
        BadInput: a file cannot be read.
    """
    for path in paths:
        with _opened(path) as file:
            number = 0
            while part := file.readline(MOST + 1):
                number += 1
                whole = part.endswith(b"\n") or len(part) <= MOST
                while not part.endswith(b"\n") and len(part) > MOST:
                    part = file.readline(MOST + 1)
                if whole and not part.strip():
                    continue
                yield Line(f"{path}:{number}", part if whole else None)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        if str(path) == "-":
            yield sys.stdin.buffer
            return
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as e:
        raise BadInput(f"{path}: there is no such file") from e
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror or e}") from e


# Reads a table (CSV): a row for each request, with a confidence and what both models answered, or how correct each is.

SCORES, ANSWERS, USD = ("edge_score", "cloud_score"), ("edge_answer", "cloud_answer"), ("edge_usd", "cloud_usd")
COLUMNS: Final = "confidence, edge_score and cloud_score (0..1) or edge_answer and cloud_answer; if known id, edge_usd, cloud_usd"
LONGEST: Final = 1 << 17
"""Maximum length of a field, characters."""
DAMAGED: Final = "no row of a table: a field that is too long, or damaged"
_TRUTHS: Final = {"true": 1.0, "false": 0.0}


class Row(NamedTuple):
    """A request that both models answered."""

    id: str
    confidence: float
    """NaN: there is none."""
    edge: float
    """How correct the edge is, 0..1; where answers are compared, 1: as the cloud."""
    cloud: float
    usd: tuple[float | None, float | None]
    """Costs of edge and cloud."""


def rows(paths: Iterable[Path], ask: Ask, left: LeftOut) -> tuple[list[Row], bool]:
    """The rows of all tables, and whether their answers are compared: there are no scores.

    Raises:
        BadInput: a file cannot be read, or lacks a column.
    """
    found, compared = list[Row](), set[bool]()
    for path in paths:
        text = _Text(path, left)
        table = csv.DictReader(text)
        header = _header(table, path)
        compared.add(not header.issuperset(SCORES))
        if len(compared) > 1:
            raise BadInput(f"{path}: these tables have scores in one and answers in another")
        while True:
            try:
                row = next(table, None)
                if row is None:
                    break
                found.append(_row(row, ask, scores=not any(compared)))
            except csv.Error:
                left.add(DAMAGED, f"{path}:{text.number}")
            except Skip as e:
                left.add(str(e), f"{path}:{text.number}")
    return found, any(compared)


class _Text:
    """The lines of a file as text, as `csv` takes them."""

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


def _row(row: Mapping[str | None, str | None], ask: Ask, *, scores: bool) -> Row:
    if any(len(text or "") > LONGEST for text in row.values()):
        raise Skip(DAMAGED)  # as by the limit of `csv`, which a program may have changed for all that it reads
    text = {name: (row.get(name) or "").strip() for name in ("id", "confidence", *SCORES, *USD)}
    confidence = float("nan") if text["confidence"] in {"", "nan", "NaN"} else _number("confidence", text["confidence"])
    if scores:
        edge, cloud = (_score(name, text[name]) for name in SCORES)
    else:
        mine, other = (row.get(name) for name in ANSWERS)
        if mine is None or other is None:
            raise Skip("a row that ends before its answers")
        edge, cloud = float(same(mine, [], ask) == same(other, [], ask)), 1.0
    usd = [number(_number(name, text[name])) if text[name] else None for name in USD]
    return Row(text["id"], confidence, edge, cloud, (usd[0], usd[1]))


def _score(name: str, text: str) -> float:
    found: float = _TRUTHS[text.lower()] if text.lower() in _TRUTHS else rounded(_number(name, text))
    if not 0 <= found <= 1:
        raise Skip(f"{name} is not from 0 to 1")
    return found


def _number(name: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = nan
    if not isfinite(found):
        raise Skip(f"{name} is no number")
    return found
