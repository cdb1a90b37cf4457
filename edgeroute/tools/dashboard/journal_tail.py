"""Tail of a journal that another process writes: reads new lines, through rotations, with bounded memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, cast

from edgeroute.system.foreign_files import open_file
from edgeroute.system.process import json_loads

PIECE = 1 << 20
"""Bytes read at a time."""
MOST = 8 << 20
"""Most bytes of lines returned at a time."""
LONGEST = 16 << 20
"""Most bytes of a line; a longer one is skipped."""
HISTORY = 4 << 20
"""Bytes before the end at which reading begins."""
BEHIND = 16 << 20
"""Most unread bytes; beyond that reading skips towards the end, and counts the skipped lines."""
HEAD = 256
"""Bytes of a file's beginning that identify it: its inode may be reused once it is deleted."""
DONE = 256
"""Most finished files to remember."""
KEEPS_OPEN = sys.platform != "win32"
"""False on Windows: there an open file cannot be renamed, so its writer could not rotate it."""


class Tail:
    """Reader of the lines appended to a file, and to those that replace it.

    An incomplete line is returned once its end is written. Lines appended to a full file after a newer one was started are
    missed, as may happen to a line of a process that had it open when another one rotated it.

    Args:
        path: path of the file of a `Journal`: full files are `path.1`, the latest, `path.2`, ...
        history: bytes of existing lines to read first, full files included.

    Attributes:
        left_out: lines that were skipped, because the writer was faster, or they were too long or have no end.
        gaps: files that were deleted before they were read to their end.
        error: reason why the file could not be opened the last time; empty: it could, or there is none.
    """

    def __init__(self, path: str | Path, *, history: int = HISTORY) -> None:
        self.path, self._history = Path(path), history
        self.left_out = self.gaps = 0
        self.error = ""
        self._file: FileIO | None = None
        self._file_id: tuple[int, int] | None = None
        """Device and inode of the file in reading; None: none yet."""
        self._offset = 0
        self._part = bytearray()
        """Beginning of an incomplete line."""
        self._skips = False
        """True while the rest of the line is skipped."""
        self._done = deque[tuple[int, int, bytes]](maxlen=DONE)
        """Files that were read, or skipped, to their ends."""
        self._gone = False
        """True if the file in reading was deleted, and no other follows it."""

    def read(self) -> list[bytes]:
        """Return the complete lines since the last call, at most `MOST` bytes; [] if the file is missing or cannot be read.

        Too long lines are counted in `left_out`, deleted files in `gaps`.
        """
        lines = list[bytes]()
        read = 0
        with contextlib.ExitStack() as stack:
            files = self._files(stack)
            if not files:
                return lines
            if self._file_id is None:
                self._begin(files)
            self._catch_up(files)
            while read < MOST:
                now = next((i for i, file in enumerate(files) if _file_id(file) == self._file_id), None)
                if now is None:
                    self.gaps += not self._gone
                    self._part.clear()
                    files = [file for file in files if _fingerprint(file) not in self._done]
                    self._gone = not files
                    if not files:  # all remaining files were read before
                        return lines
                    now = 0
                    self._turn_to(files[0])
                read += self._read(files[now], MOST - read, lines)
                if read >= MOST or now + 1 == len(files):
                    break
                self._done.append(_fingerprint(files[now]))
                self._cut()  # a full file that ends in an incomplete line: its writer was killed
                self._turn_to(files[now + 1])
            self._hold(files)
        return lines

    def records(self) -> Iterator[dict[str, Any] | None]:
        """Yield the JSON object of each line since the last call, as `read` returns them; None for a line that is none."""
        for line in self.read():
            try:
                record = json_loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else None

    def close(self) -> None:
        """Close the file; a later `read` opens it again, and goes on."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _files(self, stack: contextlib.ExitStack) -> list[FileIO]:
        """Open and return the files, the oldest first, without those read before; [] if there are none. Sets `error`.

        Looks from the newest on, so that a file that is rotated meanwhile is found under its new name.
        """
        files, seen = list[FileIO](), set[tuple[int, int]]()
        n = missing = 0
        self.error = ""
        while missing < 2:  # noqa: PLR2004 - while files are renamed one number is free
            path = self.path if n == 0 else self.path.with_name(f"{self.path.name}.{n}")
            try:
                file = cast("FileIO", open_file(path).detach())
            except OSError as e:
                missing += n > 0
                if n == 0 and not isinstance(e, FileNotFoundError):
                    self.error = f"{path}: {e.strerror or e}"
            else:
                missing = 0
                stack.callback(file.close)
                if (which := _file_id(file)) not in seen:
                    seen.add(which)
                    files.insert(0, file)
                if which == self._file_id:
                    break  # older ones have been read
            n += 1
        return files

    def _begin(self, files: list[FileIO]) -> None:
        """Set the position `history` bytes before the end, at the beginning of a line."""
        remaining = self._history
        for file in reversed(files):
            size = os.fstat(file.fileno()).st_size
            self._turn_to(file)
            if size >= remaining:
                self._offset = size - remaining
                self._skips = self._offset > 0  # up to the first line's end
                if self._skips:
                    self._offset -= 1  # a line may end just before the position
                break
            remaining -= size
        self._done += [_fingerprint(file) for file in files[: files.index(file)]]

    def _catch_up(self, files: list[FileIO]) -> None:
        """Skip towards the end if too many bytes are unread, and count the skipped lines; restart a file that was truncated."""
        sizes = [os.fstat(file.fileno()).st_size for file in files]
        now = next((i for i, file in enumerate(files) if _file_id(file) == self._file_id), None)
        if now is None:
            return
        if sizes[now] < self._offset:  # truncated by another process
            self._offset = 0
            self._part.clear()
        behind = sum(sizes[now:]) - self._offset
        if behind > BEHIND:
            history, offset = self._history, self._offset
            self._history = min(history, BEHIND // 2)
            self._part.clear()
            self._begin(files)
            then = next(i for i, file in enumerate(files) if _file_id(file) == self._file_id)
            for i in range(now, then + 1):
                self.left_out += _count_lines(files[i], offset if i == now else 0, self._offset if i == then else sizes[i])
            self.left_out += self._skips  # the line in which reading continues
            self._history = history

    def _turn_to(self, file: FileIO) -> None:
        """Continue at the beginning of this file."""
        self._file_id, self._offset, self._skips = _file_id(file), 0, False

    def _cut(self) -> None:
        """Discard an incomplete line, and count it."""
        self.left_out += bool(self._part)
        self._part.clear()

    def _read(self, file: FileIO, most: int, lines: list[bytes]) -> int:
        """Read on in a file, append its complete lines to `lines`, and return the number of bytes read; stop at an error."""
        read = 0
        file.seek(self._offset)
        while read < most:
            try:
                piece = file.read(min(PIECE, most - read))
            except OSError:
                break
            if not piece:
                break
            read += len(piece)
            self._offset += len(piece)
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
        """Append to an incomplete line; discard it if it gets too long."""
        if self._skips:
            return
        self._part += piece
        if len(self._part) > LONGEST:
            self.left_out += 1
            self._part.clear()
            self._skips = True

    def _hold(self, files: list[FileIO]) -> None:
        """Keep a descriptor of the file in reading open (not on Windows): else its inode could be reused once it is deleted."""
        if not KEEPS_OPEN:
            return
        file_now = next(file for file in files if _file_id(file) == self._file_id)
        if self._file is None or _file_id(self._file) != self._file_id:
            self.close()
            self._file = FileIO(os.dup(file_now.fileno()))


def _count_lines(file: FileIO, begin: int, end: int) -> int:
    """Return the number of line ends between two positions."""
    file.seek(begin)
    count = 0
    while (remaining := end - begin) > 0 and (piece := file.read(min(PIECE, remaining))):
        count += piece.count(b"\n")
        begin += len(piece)
    return count


def _fingerprint(file: FileIO) -> tuple[int, int, bytes]:
    """Return a file's device, inode and first bytes."""
    file.seek(0)
    return *_file_id(file), file.read(HEAD) or b""


def _file_id(file: FileIO) -> tuple[int, int]:
    """Return a file's device and inode."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
