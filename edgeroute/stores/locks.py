"""Lock of one process on a file: `flock`, and on Windows, which has none, the one of `filelock`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import monotonic, sleep

AGAIN_S = 0.005
"""Time between two attempts, seconds."""

if sys.platform == "win32":
    from filelock import FileLock, Timeout

    class ProcessLock:
        """One process has it at a time; the system releases it when that process ends, killed or not.

        Args:
            path: lock file; it is made, and its folder too.
        """

        def __init__(self, path: Path) -> None:
            self.path = path
            self._lock = FileLock(path, mode=0o600, thread_local=False)

        @property
        def held(self) -> bool:
            """Whether this process has it."""
            return self._lock.is_locked

        def take(self, wait_s: float = 0.0) -> bool:
            """Takes it, unless another process has it for that many seconds. Returns whether this process has it.

            Raises:
                OSError: the file cannot be opened or locked.
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
            """Releases it, if held."""
            self._lock.release()

else:
    import fcntl

    class ProcessLock:
        """One process has it at a time; the kernel releases it when that process ends, `kill -9` included.

        Args:
            path: lock file; it is made, and its folder too.
        """

        def __init__(self, path: Path) -> None:
            self.path = path
            self._fd: int | None = None

        @property
        def held(self) -> bool:
            """Whether this process has it."""
            return self._fd is not None

        def take(self, wait_s: float = 0.0) -> bool:
            """Takes it, unless another process has it for that many seconds. Returns whether this process has it.

            Raises:
                OSError: the file cannot be opened or locked.
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
            """Closes the descriptor, if held: in a forked child the lock stays with the parent."""
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)

    def locked(fd: int) -> bool:
        """Locks an open file without waiting. Returns whether it could: no other has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
