"""Reads of the kernel's files in sysfs and procfs that are bounded in size and never wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

TEXT = 4096
"""Most bytes read of a file: one page, the most that a file of sysfs can hold."""
ENTRIES = 1024
"""Most entries of a folder that are read."""
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
"""Flags that keep `open` from waiting for a pipe's writer."""


class Measurement(NamedTuple):
    """One field of a reading: its value and source; or None and the reason why it is unknown."""

    value: Any
    source: str


class Files:
    """Reader of files of the kernel below the directory `root`; paths are relative to it."""

    def __init__(self, root: str | Path) -> None:
        self._root = os.fspath(root)

    def text(self, path: str, most: int = TEXT) -> str:
        """Return the first `most` bytes of a file as text, stripped. A pipe without a writer counts as an empty file.

        Raises:
            OSError: the file cannot be read: it does not exist, is a folder, or only root may read it.
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
        """Return the number in a file; None: it cannot be read, or its text is no finite number."""
        try:
            value = float(self.text(path))
        except (OSError, ValueError):
            return None
        return value if isfinite(value) else None

    def word(self, path: str) -> str:
        """Return the text of a file; empty: it cannot be read."""
        try:
            return self.text(path)
        except OSError:
            return ""

    def why(self, path: str) -> str:
        """Return the reason why a file has no valid value, for people. Reads the file again."""
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
        """Return the sorted names in a folder; empty: it cannot be read."""
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:  # noqa: PTH118 - likewise
                return sorted(entry.name for entry in islice(entries, ENTRIES))
        except (OSError, ValueError):
            return []

    def match(self, pattern: str) -> list[str]:
        """Return the sorted paths that match a pattern, in which `*` may stand in any part."""
        return list(self._match("", pattern.split("/")))

    def _match(self, folder: str, parts: list[str]) -> Iterator[str]:
        """Yield the paths below `folder` that match the remaining parts of a pattern."""
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
