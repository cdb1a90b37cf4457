"""Readers of lines and of rows of CSV, with a maximum length: a file of few bytes on the disk may have one line of gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Final

from edgeroute.errors import BadInput

LONGEST: Final = 1 << 26  # most bytes of a line of JSON; a full HD picture as numbers has 25 million
LONGEST_ROW: Final = 1 << 24  # most characters of a row of CSV


def lines_of(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield the lines of an open file with their ends, as `bytes.splitlines` has them, one of at most `LONGEST` bytes at a time.

    path: name of the file, for the message.

    Raises:
        BadInput: a line is longer.
    """
    number = 0
    for part in iter(partial(file.readline, LONGEST + 1), b""):
        if len(part) > LONGEST:
            raise BadInput(f"{path}:{number + 1}: expected a line of at most {LONGEST:,} bytes, found a longer one")
        for line in part.splitlines(keepends=True):
            number += 1
            yield line


class RowLines:
    """Iterator over the lines of an open text, for `csv`; at most `LONGEST_ROW` characters are read for one row.

    Args:
        text: the text, at its start.
        path: name of the file, for the message.

    Attributes:
        size: number of characters that were read since it was set to 0, as whoever takes a row does.
    """

    def __init__(self, text: IO[str], path: Path) -> None:
        self._text, self._path, self._number = text, path, 0
        self.size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Return the next line. Raises BadInput where a row is too long."""
        line = self._text.readline(LONGEST_ROW + 1)
        self._number += 1
        self.size += len(line)
        if self.size > LONGEST_ROW:
            where = f"{self._path}:{self._number}"
            raise BadInput(f"{where}: expected a row of at most {LONGEST_ROW:,} characters, found a longer one")
        if not line:
            raise StopIteration
        return line
