"""Reads lines of files that may be huge or damaged: each is limited in length, and what is left out is counted with its place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, NamedTuple

from edgeroute.errors import BadInput

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
