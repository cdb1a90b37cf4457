"""Files: atomic replacement, stamps of changes, digests, and limits of the time that is waited for locked ones."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.errors import StoreError
from edgeroute.system.contained_calls_and_tasks import set_within
from edgeroute.system.untrusted_files import open_file

if TYPE_CHECKING:
    import hashlib


# Instant (monotonic) until which this thread waits for files that others have locked.
_WAIT_UNTIL: ContextVar[float] = ContextVar("edgeroute_wait_until", default=inf)
LEAST_S = 0.25  # minimum time that is waited for each file after that instant, seconds


def limited_waits(most_s: float) -> contextlib.AbstractContextManager[None]:
    """Let this thread wait for locked files up to `most_s` seconds in all within the block, and a moment for each after that.

    A block within another one waits no longer than that one.
    """
    return set_within(_WAIT_UNTIL, min(_WAIT_UNTIL.get(), time.monotonic() + most_s))


def wait_s(most_s: float) -> float:
    """Return how long to wait for a locked file, in seconds: `most_s`, or in `limited_waits` less, but at least `LEAST_S`."""
    return min(most_s, max(LEAST_S, _WAIT_UNTIL.get() - time.monotonic()))


@contextlib.contextmanager
def held_in_time(lock: Any) -> Iterator[bool]:
    """Hold a lock within the block, which gets True; or False, without the lock, if it is not free within `limited_waits`."""
    if (most_s := wait_s(threading.TIMEOUT_MAX)) == threading.TIMEOUT_MAX:
        with lock:  # native: Ctrl-C leaves none taken
            yield True
        return
    is_held = lock.acquire(timeout=most_s)
    try:
        yield is_held
    finally:
        if is_held:
            lock.release()


def name_beside(path: Path) -> Path:
    """Return a name in a path's folder for what is to replace it: `PATH.`, random digits, `.new`, which no other writer has."""
    return path.with_name(f"{path.name}.{os.urandom(6).hex()}.new")


def replace_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or a text as UTF-8, to a file, replacing the old file atomically; its permissions stay.

    A symbolic link's target is replaced, and the link stays. A device or a pipe is written to directly. Of several writers the
    last one counts. Goes through a new file beside it; not flushed to the disk.

    Raises:
        StoreError: the file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        new = name_beside(target)
        try:
            with new.open("xb") as file:
                if target.exists():  # before there is anything to read in it
                    new.chmod(target.stat().st_mode & 0o777)
                file.write(data)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e


# Files: stamps to detect changes, and listings of folders.


def file_stamp(path: Path) -> tuple[Any, ...] | None:
    """Return a value that differs after a file, or any file in a folder, has changed; None: it cannot be read.

    Of a file: (modification time in ns, size in bytes, time of change in ns), the last of which no program can set. Of a folder:
    (path, stamp) of each file in it, at any depth; the stamp of a file in it that cannot be read is None.
    """
    try:
        if path.is_dir():
            return tuple((file.as_posix(), file_stamp(file)) for file in files_in(path))
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ctime_ns


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the file now at this path; None if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def files_in(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder, at any depth, in a fixed order.

    Symbolic links to folders are followed, except to a folder that was visited already.

    Raises:
        OSError: the folder, or one in it, cannot be read.
    """
    seen = set[tuple[int, int]]()

    def failed(error: OSError) -> None:
        """Raise the error, which `os.walk` would pass over."""
        raise error

    for root, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(root) / name for name in sorted(files))


def sha256(data: bytes = b"") -> hashlib._Hash:
    """Return a SHA-256 hash object over data. The first call imports hashlib, which takes 3 ms, as OpenSSL comes with it."""
    from edgeroute.system.late_imports_and_plugins import import_late

    digest: hashlib._Hash = import_late("hashlib").sha256(data)
    return digest


def file_sha256(path: Path) -> str:
    """Read a file, block by block, and return the SHA-256 of its content as hexadecimal digits.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    digest = sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
