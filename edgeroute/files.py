"""Files: whether they have changed, and those in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def file_stamp(path: Path) -> tuple[Any, ...] | None:
    """(modification time in ns, size) of a file, or of all files in a folder, to detect changes; None: it cannot be read."""
    try:
        if path.is_dir():
            return tuple((file.as_posix(), file_stamp(file)) for file in files_in(path))
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def files_in(folder: Path) -> Iterator[Path]:
    """All files in a folder, at any depth, in one order. Links are followed, but not to a folder that they are in.

    Raises:
        OSError: a folder in it cannot be read.
    """
    seen = set[tuple[int, int]]()

    def failed(error: OSError) -> None:
        raise error

    for at, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        found = Path(at).stat()
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        yield from (Path(at) / name for name in sorted(files))


def special(path: Path) -> bool:
    """Whether this is a pipe, socket or device, which would be waited for, or read without an end."""
    return path.exists() and not path.is_file() and not path.is_dir()
