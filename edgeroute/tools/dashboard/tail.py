"""Follows a journal that another process writes: its new lines, through rotations, with bounded memory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections import deque
from io import FileIO
from pathlib import Path

PIECE = 1 << 20
"""Bytes read at a time."""
MOST = 8 << 20
"""Bytes of lines returned at a time."""
LONGEST = 16 << 20
"""Bytes of a line; a longer one is skipped."""
HISTORY = 4 << 20
"""Bytes before the end at which it begins."""
BEHIND = 16 << 20
"""Bytes that it may be behind; then it goes on at the end, and counts what it has left out."""
HEAD = 256
"""Bytes of a file's beginning by which it is known again: its number may be another one's once it is deleted."""
DONE = 256
"""Files that were read of which this is remembered."""
KEEPS_OPEN = sys.platform != "win32"
"""Elsewhere a file that is open cannot be renamed, so its writer could not rotate it."""


class Tail:
    """Reads what is appended to a file of lines, and to those that replace it.

    A line that is not whole yet is returned once it is. What is appended to a full file after a newer one was begun is missed, as
    may happen to a line of a process that had it open when another one rotated it.

    Args:
        path: of the file, as `Journal` has it: full files are `path.1`, the latest, `path.2`, ...
        history: how many bytes of what is there already are read, full files included.

    Attributes:
        left_out: lines that were skipped, because the writer was faster, or they were too long or have no end.
        gaps: how often files were deleted before they were read to their end.
        error: why the file could not be opened the last time; empty: it could, or there is none.
    """

    def __init__(self, path: str | Path, *, history: int = HISTORY) -> None:
        self.path, self._history = Path(path), history
        self.left_out = self.gaps = 0
        self.error = ""
        self._file: FileIO | None = None
        self._which: tuple[int, int] | None = None
        """The file that is read; None: none yet."""
        self._at = 0
        self._part = bytearray()
        """The beginning of a line whose end has not been read."""
        self._skips = False
        """The rest of the line is skipped."""
        self._done = deque[tuple[int, int, bytes]](maxlen=DONE)
        """The files that were read, or skipped, to their ends."""
        self._gone = False
        """The file that was read is deleted, and there is none after it."""

    def read(self) -> list[bytes]:
        """The whole lines that came since, at most `MOST` bytes of them; empty if there is no file, or it cannot be read."""
        lines = list[bytes]()
        read = 0
        with contextlib.ExitStack() as stack:
            files = self._files(stack)
            if not files:
                return lines
            if self._which is None:
                self._begin(files)
            self._catch_up(files)
            while read < MOST:
                now = next((i for i, file in enumerate(files) if _which(file) == self._which), None)
                if now is None:
                    self.gaps += not self._gone
                    self._part.clear()
                    files = [file for file in files if _known(file) not in self._done]
                    self._gone = not files
                    if not files:  # what is left was read before that one
                        return lines
                    now = 0
                    self._turn_to(files[0])
                read += self._read(files[now], MOST - read, lines)
                if read >= MOST or now + 1 == len(files):
                    break
                self._done.append(_known(files[now]))
                self._cut()  # a full file that ends within a line: its writer was killed
                self._turn_to(files[now + 1])
            self._hold(files)
        return lines

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _files(self, stack: contextlib.ExitStack) -> list[FileIO]:
        """The files, the oldest first. Looked for from the newest on: one that is rotated meanwhile is met under its new name."""
        found, seen = list[FileIO](), set[tuple[int, int]]()
        n = missing = 0
        self.error = ""
        while missing < 2:  # noqa: PLR2004 - while files are renamed one number is free
            path = self.path if n == 0 else self.path.with_name(f"{self.path.name}.{n}")
            try:
                file = FileIO(path, opener=_open)
            except OSError as e:
                missing += n > 0
                if n == 0 and not isinstance(e, FileNotFoundError):
                    self.error = f"{path}: {e.strerror or e}"
            else:
                missing = 0
                stack.callback(file.close)
                if (which := _which(file)) not in seen:
                    seen.add(which)
                    found.insert(0, file)
                if which == self._which:
                    break  # older ones have been read
            n += 1
        return found

    def _begin(self, files: list[FileIO]) -> None:
        """Begins `history` bytes before the end, at the beginning of a line."""
        left = self._history
        for file in reversed(files):
            size = os.fstat(file.fileno()).st_size
            self._turn_to(file)
            if size >= left:
                self._at = size - left
                self._skips = self._at > 0  # up to the first line's end
                if self._skips:
                    self._at -= 1  # which may be just before
                break
            left -= size
        self._done += [_known(file) for file in files[: files.index(file)]]

    def _catch_up(self, files: list[FileIO]) -> None:
        """Skips what it is too far behind to show in time."""
        sizes = [os.fstat(file.fileno()).st_size for file in files]
        now = next((i for i, file in enumerate(files) if _which(file) == self._which), None)
        if now is None:
            return
        if sizes[now] < self._at:  # cut short from outside
            self._at = 0
            self._part.clear()
        behind = sum(sizes[now:]) - self._at
        if behind > BEHIND:
            kept, at = self._history, self._at
            self._history = min(kept, BEHIND // 2)
            self._part.clear()
            self._begin(files)
            then = next(i for i, file in enumerate(files) if _which(file) == self._which)
            for i in range(now, then + 1):
                self.left_out += _ends(files[i], at if i == now else 0, self._at if i == then else sizes[i])
            self.left_out += self._skips  # the line within which it goes on
            self._history = kept

    def _turn_to(self, file: FileIO) -> None:
        self._which, self._at, self._skips = _which(file), 0, False

    def _cut(self) -> None:
        self.left_out += bool(self._part)
        self._part.clear()

    def _read(self, file: FileIO, most: int, lines: list[bytes]) -> int:
        """Reads on in a file, adds its whole lines -> number of bytes read."""
        read = 0
        file.seek(self._at)
        while read < most:
            try:
                piece = file.read(min(PIECE, most - read))
            except OSError:
                break
            if not piece:
                break
            read += len(piece)
            self._at += len(piece)
            end = piece.rfind(b"\n")
            if end < 0:
                self._grow(piece)
                continue
            whole, rest = piece[:end], piece[end + 1 :]
            if self._skips:
                whole, self._skips = whole.partition(b"\n")[2], False
            self._part += whole
            lines += [line for line in bytes(self._part).split(b"\n") if line.strip()]
            self._part.clear()
            self._part += rest
        return read

    def _grow(self, piece: bytes) -> None:
        """Adds to a line that has no end yet."""
        if self._skips:
            return
        self._part += piece
        if len(self._part) > LONGEST:
            self.left_out += 1
            self._part.clear()
            self._skips = True

    def _hold(self, files: list[FileIO]) -> None:
        """Keeps a descriptor of the file that is read: else another one could get its number once it is deleted."""
        if not KEEPS_OPEN:
            return
        held = next(file for file in files if _which(file) == self._which)
        if self._file is None or _which(self._file) != self._which:
            self.close()
            self._file = FileIO(os.dup(held.fileno()))


def _open(path: str | Path, flags: int) -> int:
    """Opens a file. What is none, such as a FIFO, would make it wait, and its writer take this for its reader."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "is no file: expected that of a trace")
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # it may have become one meanwhile


def _ends(file: FileIO, begin: int, end: int) -> int:
    """The number of lines' ends between two positions."""
    file.seek(begin)
    found = 0
    while (left := end - begin) > 0 and (piece := file.read(min(PIECE, left))):
        found += piece.count(b"\n")
        begin += len(piece)
    return found


def _known(file: FileIO) -> tuple[int, int, bytes]:
    file.seek(0)
    return *_which(file), file.read(HEAD) or b""


def _which(file: FileIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino
