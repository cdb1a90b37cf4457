"""Bounded reads of sysfs and procfs below a root: nothing waits, and a value that makes no sense is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

TEXT = 4096
"""Most bytes read of a file: one page, which is all that a file of sysfs can hold."""
ENTRIES = 1024
"""Most entries of a folder that are looked at."""
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


class Told(NamedTuple):
    """A value of a reading and where it is from; or why it is not known, with None as the value."""

    value: Any
    by: str


class Files:
    """Files of the kernel below `root`, by paths relative to it."""

    def __init__(self, root: str | Path) -> None:
        self._root = os.fspath(root)

    def text(self, path: str, most: int = TEXT) -> str:
        """The beginning of a file, stripped. A pipe without a writer is an empty file: opening it does not wait.

        Raises:
            OSError: it cannot be read: there is none, it is a folder, or only root may read it.
        """
        try:
            fd = os.open(os.path.join(self._root, path), _FLAGS)  # noqa: PTH118 - a Path costs as much as the read
        except ValueError as e:  # a zero byte in the root
            raise OSError(str(e)) from e
        try:
            pieces = []
            while most > 0 and (piece := os.read(fd, min(most, TEXT))):
                pieces.append(piece)
                most -= len(piece)
        finally:
            os.close(fd)
        return b"".join(pieces).decode("ascii", "replace").strip("\0 \t\r\n")

    def number(self, path: str) -> float | None:
        """The number that a file consists of; None: it cannot be read, or is no finite number."""
        try:
            value = float(self.text(path))
        except (OSError, ValueError):
            return None
        return value if isfinite(value) else None

    def word(self, path: str) -> str:
        """What a file consists of; empty: it cannot be read."""
        try:
            return self.text(path)
        except OSError:
            return ""

    def why(self, path: str) -> str:
        """Why no value could be read from a file."""
        try:
            self.text(path)
        except PermissionError:
            return f"/{path} may be read by root alone"
        except FileNotFoundError:
            return f"there is no /{path}"
        except OSError as e:
            return f"/{path} cannot be read: {e.strerror or e}"
        return f"/{path} has no value that makes sense"

    def names(self, folder: str) -> list[str]:
        """The sorted names in a folder; empty: there is none."""
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:  # noqa: PTH118 - likewise
                return sorted(entry.name for entry in islice(entries, ENTRIES))
        except (OSError, ValueError):
            return []

    def match(self, pattern: str) -> list[str]:
        """The paths that match a pattern with `*` in any of its parts, sorted."""
        return list(self._match("", pattern.split("/")))

    def _match(self, folder: str, parts: list[str]) -> Iterator[str]:
        if not parts:
            yield folder
            return
        first, *rest = parts
        if "*" not in first:
            path = f"{folder}/{first}" if folder else first
            if rest or os.path.lexists(os.path.join(self._root, path)):  # noqa: PTH118 - likewise
                yield from self._match(path, rest)
            return
        for name in self.names(folder):
            if fnmatchcase(name, first):
                yield from self._match(f"{folder}/{name}" if folder else name, rest)
