"""Append-only JSON Lines file for all processes (`Journal`), its reader (`Reading`, `read`), and a lock file (`ProcessLock`).

The egress ledger, traces and the audit log are such journals. A full file is rotated by size; there is no fsync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO

from edgeroute.errors import StoreError
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads, to_json_types
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.untrusted_files import open_file

# A lock that one process has at a time: `flock`, or `filelock` on Windows, which has no `flock`.

AGAIN_S = 0.005  # seconds between two attempts to take a lock

if sys.platform == "win32":
    from filelock import FileLock, Timeout

    class ProcessLock:
        """Lock that one process has at a time; the system releases it when that process ends, killed or not.

        Args:
            path: path of the lock file; it is created, with its folder.
        """

        def __init__(self, path: Path) -> None:
            self.path = path
            self._lock = FileLock(path, mode=0o600, thread_local=False)

        @property
        def held(self) -> bool:
            """Return True while this process has the lock."""
            return self._lock.is_locked

        def take(self, wait_s: float = 0.0) -> bool:
            """Take the lock, trying every 5 ms for up to `wait_s` seconds. Return False if another process still has it.

            Creates the file and its folder. Returns True at once if this process has the lock already; one `leave` releases it.

            Raises:
                OSError: the lock file cannot be opened or locked.
            """
            if self._lock.is_locked:
                return True
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=wait_s, poll_interval=AGAIN_S)
            except Timeout:
                return False
            return True

        def leave(self) -> None:
            """Release the lock, if held."""
            self._lock.release()

else:
    import fcntl

    class ProcessLock(ForkSafe):
        """Lock that one process has at a time; the kernel releases it when that process ends, `kill -9` included.

        Args:
            path: path of the lock file; it is created, with its folder.
        """

        _fd: int | None = initially(None, lambda fd: None if fd is None else os.close(fd))

        def __init__(self, path: Path) -> None:
            self.path = path

        @property
        def held(self) -> bool:
            """Return True while this process has the lock."""
            return self._fd is not None

        def take(self, wait_s: float = 0.0) -> bool:
            """Take the lock, trying every 5 ms for up to `wait_s` seconds. Return False if another process still has it.

            Creates the file and its folder. Returns True at once if this object has the lock already; one `leave` releases it.

            Raises:
                OSError: the lock file cannot be opened or locked.
            """
            if self._fd is not None:
                return True
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                until = monotonic() + wait_s
                while not locked(fd):
                    if monotonic() >= until:
                        return False
                    sleep(AGAIN_S)
                self._fd, fd = fd, -1
            finally:
                if fd >= 0:
                    os.close(fd)
            return True

        def leave(self) -> None:
            """Release the lock by closing its descriptor, if held: in a forked child the lock stays with the parent."""
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)

    def locked(fd: int) -> bool:
        """Lock an open file for this descriptor alone, without waiting. Return False if another descriptor has the lock."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _locked_file(path: Path) -> int | None:
        """Open and lock the file at a path; return its descriptor, or None if it is not there (any more), or locked elsewhere."""
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR)  # a new one: a forked child would share the lock of a journal's own
            try:
                if locked(fd) and _file_identity(path.stat()) == _file_identity(os.fstat(fd)):
                    held, fd = fd, -1
                    return held
            finally:
                if fd >= 0:
                    os.close(fd)
        return None


WAIT_S = 5.0  # maximum time that an append waits for another process's, seconds; only on Windows, where appends take turns
_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)  # Windows would write CR LF


class Journal(ForkSafe):
    """Append-only file of JSON records; a full file is rotated to `path.1`, that one to `path.2`, and so on.

    The file is opened at the first record. An appended line survives the end of the process. There is no fsync: a power cut may
    lose the last lines.

    On Windows, where O_APPEND is not atomic and an open file cannot be renamed, processes take turns: each holds a lock while it
    opens the file, appends and closes it.

    Args:
        path: path of the file; its folder is created. Mode 0600: readable by its owner only.
        max_bytes: maximum size of a file, unless a single line is longer. While one process rotates, others may still append to
            the full file.
        keep: number of rotated files retained, 1 or more; older ones are deleted.
        rotated: called with `path` after this process has rotated the files, while other threads wait to append.
    """

    _lock = per_process(SafeLock)

    def __init__(
        self, path: str | Path, *, max_bytes: int = 4 << 20, keep: int = 4, rotated: Callable[[Path], object] | None = None
    ) -> None:
        self.path, self._on_rotated = Path(path), rotated
        self._text = str(path)  # `path` as a str for the stat at each append: a Path would take a quarter of the append's time
        self._max_bytes, self._keep = max_bytes, keep
        self._fd: int | None = None
        self._file = (0, 0)
        self._turn = ProcessLock(self.path.with_name(self.path.name + ".lock")) if sys.platform == "win32" else None

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record as a line, with one write, so that lines of processes never interleave; rotate full files first.

        NaN and infinities become null, and other values that JSON lacks plain ones. Blocks for other threads, and on Windows for
        other processes up to `WAIT_S`. Creates file and folder. After an error the file is closed.

        Raises:
            StoreError: the disk is full, read-only or broken; the line was not written completely. The next call tries again.
        """
        line = _dumps(record) + b"\n"
        with self._lock:
            try:
                if self._turn is None:
                    self._append(line)
                else:
                    self._append_in_turn(line, self._turn)
            except OSError as e:
                self._drop()
                raise StoreError(f"{self.path}: {e.strerror or e}") from e

    def close(self) -> None:
        """Close the file; the next record opens it again."""
        with self._lock:
            self._drop()

    def _append(self, line: bytes) -> None:
        """Write one line to the file that has room for it, which is opened, created or rotated as needed.

        A line break comes before it if the last line of the file has none. Raises OSError if only a part was written.
        """
        fd, size = self._current(len(line))
        if size and _byte_at(fd, size - 1) != b"\n":
            # the last line was truncated: start a new one; or it is just being written: then this adds an empty line
            line = b"\n" + line
        if os.write(fd, line) < len(line):
            raise OSError(errno.ENOSPC, "no room for a whole line")

    def _append_in_turn(self, line: bytes, turn: ProcessLock) -> None:
        """Write one line under the lock of all processes, and close the file (Windows).

        Raises OSError if the lock is not free within `WAIT_S`.
        """
        if not turn.take(WAIT_S):
            raise OSError(errno.EBUSY, f"another process has held its lock for {WAIT_S:g} s")
        try:
            self._append(line)
            self._drop()
        finally:
            turn.leave()

    def _current(self, more: int) -> tuple[int, int]:
        """Return the descriptor and size of the file that has room for `more` bytes; reopen or rotate it if needed.

        It is reopened if another process has deleted or rotated it.
        """
        try:
            stat = os.stat(self._text)  # noqa: PTH116 - see there
        except FileNotFoundError:
            stat = None
        if self._fd is None or stat is None or _file_identity(stat) != self._file:
            stat = self._open()
        if stat.st_size and stat.st_size + more > self._max_bytes:
            self._rotate()
            stat = self._open()
        assert self._fd is not None
        return self._fd, stat.st_size

    def _open(self) -> os.stat_result:
        """Open the file, creating it and its folder (for the user alone), close the one open before, and return its stat."""
        self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, _FLAGS | os.O_CREAT, 0o600)
        self._drop()
        self._fd, stat = fd, os.fstat(fd)
        self._file = _file_identity(stat)
        return stat

    def _rotate(self) -> None:
        """Rename the files one number up, unless another process is doing so or has just done so; never waits.

        A file that is gone is ignored. On Windows a file that somebody reads keeps its name, and grows beyond its size.
        """
        if sys.platform == "win32":  # this process has its turn; but somebody who reads the file prevents its renaming
            self._drop()
            with contextlib.suppress(PermissionError, FileNotFoundError):
                self._rename_files()
        else:
            with contextlib.suppress(FileNotFoundError), rotation_held(self.path) as held:
                if held and _file_identity(self.path.stat()) == self._file:
                    self._rename_files()

    def _rename_files(self) -> None:
        """Rename each file to the next number, over the oldest one, and call the callback `rotated`.

        Raises FileNotFoundError without a present file.
        """
        for n in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                _rotated_path(self.path, n).replace(_rotated_path(self.path, n + 1))
        self.path.replace(_rotated_path(self.path, 1))
        if self._on_rotated is not None:
            self._on_rotated(self.path)

    def _drop(self) -> None:
        """Close the descriptor, if open; errors of the disk are suppressed."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def rotation_held(path: Path, wait_s: float = 0.0) -> Iterator[bool]:
    """Keep all others, threads and processes, from rotating a journal within the block; on Windows also from appending to it.

    Yields False, and keeps nobody, if another holds the rotation, or there is no file, for `wait_s` seconds.
    """
    if sys.platform == "win32":
        turn = ProcessLock(path.with_name(path.name + ".lock"))
        try:
            yield turn.take(wait_s)
        finally:
            turn.leave()
    else:
        until = monotonic() + wait_s
        while (fd := _locked_file(path)) is None and monotonic() < until:
            sleep(AGAIN_S)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                os.close(fd)


LONGEST = 1 << 24  # most bytes of a line that is read into memory


class Reading:
    """Iterable over a journal's records, oldest file first, while other processes may append or rotate. No record is read twice.

    Attributes:
        skipped: number of incomplete lines so far, truncated by a power cut or a full disk.
    """

    def __init__(self, path: str | Path, since: float | None, parse: Callable[[bytes], Any]) -> None:
        self._path, self._since, self._parse = Path(path), since, parse
        self.skipped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records from the start, without those before `since`.

        Lines that are no JSON objects, or longer than `LONGEST`, are skipped, and counted in `skipped`.

        Raises:
            StoreError: a file cannot be opened. If there is no file, there are no records.
        """
        self.skipped = 0
        with contextlib.ExitStack() as stack:
            for file in self._open(stack):
                for line in iter(partial(file.readline, LONGEST), b""):
                    rest = line if len(line) == LONGEST else b""
                    while rest and not rest.endswith(b"\n"):
                        rest = file.readline(LONGEST)
                    record = _record(line, self._parse)
                    if record is None:
                        self.skipped += not line.isspace()
                    elif self._since is None or not isinstance(at := record.get("at"), int | float) or at >= self._since:
                        yield record

    def _open(self, stack: contextlib.ExitStack) -> list[BinaryIO]:
        """Open all files of the journal, and return them oldest first; `stack` closes them.

        Rotated files are found by their names in the folder. Missing ones are left out, and each file comes once. Raises
        StoreError if one cannot be opened.
        """
        files, seen = list[BinaryIO](), set[tuple[int, int]]()
        try:
            there = [p.name for p in self._path.parent.iterdir()] if self._path.parent.is_dir() else []
            ends = [name[len(self._path.name) + 1 :] for name in there if name.startswith(f"{self._path.name}.")]
            numbers = {int(end) for end in ends if end.isdecimal()}
            numbers |= {1, *(n + 1 for n in numbers)}
            # newest first: a file that is rotated meanwhile is met again under its new name, so none is missed
            for path in [self._path, *(_rotated_path(self._path, n) for n in sorted(numbers))]:
                with contextlib.suppress(FileNotFoundError):
                    file = stack.enter_context(open_file(path))
                    if (which := _file_identity(os.fstat(file.fileno()))) not in seen:
                        seen.add(which)
                        files.insert(0, file)
        except OSError as e:
            raise StoreError(f"{self._path}: {e.strerror or e}") from e
        return files


def read(path: str | Path, *, since: float | None = None, exact: bool = True) -> Reading:
    """Return a lazy iterable over a journal's records, oldest first, rotated files included.

    Each iteration opens the files anew, and then raises StoreError if one cannot be opened.

    Args:
        path: path given to `Journal`.
        since: Unix time, seconds; records with an earlier `at` are skipped.
        exact: if True, integers beyond 64 bits stay integers; False may be twice as fast.
    """
    return Reading(path, since, partial(json_loads, exact=exact))


def _byte_at(fd: int, offset: int) -> bytes:
    """Return the byte of an open file at an offset; on Windows this moves the file's position."""
    if sys.platform != "win32":
        return os.pread(fd, 1, offset)
    os.lseek(fd, offset, os.SEEK_SET)  # nobody else uses this descriptor
    return os.read(fd, 1)


def _file_identity(stat: os.stat_result) -> tuple[int, int]:
    """Return device and inode of a file."""
    return stat.st_dev, stat.st_ino


def _rotated_path(path: Path, n: int) -> Path:
    """Return the path of the n-th rotated file."""
    return path.with_name(f"{path.name}.{n}")


def _record(line: bytes, parse: Callable[[bytes], Any]) -> dict[str, Any] | None:
    """Parse a line; return None if it is damaged, or no JSON object."""
    try:
        record = parse(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _dumps(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON; values and keys that JSON does not have become plain ones."""
    try:
        return json_dumps(record, to_json_types)
    except TypeError:  # a key that is no text
        return json_dumps(to_json_types(record))
