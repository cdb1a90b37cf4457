"""Keyed digests that are remembered, in a file if there is one: what they are of cannot be told from them."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Final

from edgeroute.stores.locks import ProcessLock
from edgeroute.system import now, renew_after_fork, replace_file

log = logging.getLogger("edgeroute")
MOST: Final = 50_000
"""Digests that are remembered; the oldest go first."""
DAYS: Final = 90
"""How long each is remembered."""
WAIT_S: Final = 1.0
"""How long another process's lock on the file is waited for."""
_DAY_S: Final = 86400.0
_LINE_BYTES: Final = 40
_LINE = re.compile(r"([0-9a-f]{32}) ([0-9]{1,6})")
_KEY = re.compile(r"key ([0-9a-f]{64})\n")


class Digests:
    """Digests of 16 bytes under a key of its own, shared by processes through the file: lines of `DIGEST DAY` after the key's.

    A file that cannot be read makes `blind` say so: nothing is known then of what was remembered. One that cannot be written is
    logged, once: what is added meanwhile is known to this process alone. There is no fsync: a power cut may lose the last ones.

    Args:
        path: of the file; None: in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._key, self._known = os.urandom(32), dict[bytes, int]()
        self._seen: tuple[int, int] | None = None
        """Inode and size of the file as far as it was read."""
        self._unwritten: dict[bytes, int] = {}
        """Those that are remembered here, and not in the file."""
        self._told = False
        self.blind = ""
        self.after_fork()
        renew_after_fork(self)
        self._refresh()

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.RLock()

    def digest(self, text: bytes) -> bytes:
        """The digest, 16 bytes."""
        return blake2b(text, key=self._key, digest_size=16).digest()

    def refreshed(self) -> bool:
        """Reads what other processes have added. Returns whether anything is remembered, or it is not known what is."""
        self._refresh()
        return bool(self._known) or bool(self.blind)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def add(self, digests: Iterable[bytes]) -> None:
        """Remembers these, on disk too before it returns."""
        today = int(now() / _DAY_S)
        with self._lock:
            given = dict.fromkeys(digests, today)
            fresh = [one for one in given if self._known.pop(one, None) != today]
            self._known.update(given)  # as the newest
            while len(self._known) > MOST:
                del self._known[next(iter(self._known))]
            if self.path is None:
                return
            self._unwritten.update(dict.fromkeys(fresh, today))
            while len(self._unwritten) > MOST:
                del self._unwritten[next(iter(self._unwritten))]
            if self.blind or not self._unwritten:
                return
            try:
                self._append("".join(f"\n{one.hex()} {day}\n" for one, day in self._unwritten.items()))
                self._unwritten.clear()
            except OSError as e:
                if not self._told:
                    self._told = True
                    log.error(  # noqa: TRY400 - the message says all
                        "%s cannot be written: which conversations have to stay on this device is known to this process alone, "
                        "until it ends: %s",
                        self.path,
                        e.strerror or e,
                    )

    def _append(self, text: str) -> None:
        assert self.path is not None, "there is a file"
        lock = ProcessLock(self.path.with_suffix(".lock"))
        try:
            if not lock.take(WAIT_S):  # it may be replacing the file
                raise OSError(errno.EAGAIN, "another process holds its lock")
            if not self.path.exists():  # deleted meanwhile: digests under another key would say nothing
                self._write()
                return
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                left = text.encode()
                while left:
                    left = left[os.write(fd, left) :]
                about = os.fstat(fd)
                if self._seen == (about.st_ino, about.st_size - len(text)):  # nobody else has added anything
                    self._seen = about.st_ino, about.st_size
                large = about.st_size > 4 * MOST * _LINE_BYTES
            finally:
                os.close(fd)
            if large:
                self._refresh()  # with what others have added
                self._write()
        finally:
            lock.leave()

    def _write(self) -> None:
        """Writes the file anew."""
        assert self.path is not None, "there is a file"
        self.path.touch(0o600)
        lines = [f"key {self._key.hex()}\n", *(f"{one.hex()} {day}\n" for one, day in self._known.items())]
        replace_file(self.path, "".join(lines))

    def _refresh(self) -> None:
        """Reads what was added to the file since, all of it the first time and after it was replaced."""
        if self.path is None:
            return
        try:
            found = self.path.stat()
            if (found.st_ino, found.st_size) == self._seen and not self.blind:
                return
        except OSError as e:
            if isinstance(e, FileNotFoundError) and self._seen is not None:
                return  # deleted, and what it had is known
            if not isinstance(e, FileNotFoundError):
                self.blind = e.strerror or str(e)
                return
        with self._lock:
            try:
                self._read()
                self.blind = ""
            except (OSError, ValueError) as e:
                if not self.blind:
                    log.error("%s cannot be read, so all conversations stay on this device: %s", self.path, e)  # noqa: TRY400
                self.blind = (e.strerror if isinstance(e, OSError) else None) or str(e)

    def _read(self) -> None:
        assert self.path is not None, "there is a file"
        if not self.path.exists():
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            lock = ProcessLock(self.path.with_suffix(".lock"))
            try:
                lock.take(WAIT_S)
                if not self.path.exists():
                    self._write()
            finally:
                lock.leave()
        with self.path.open("rb") as file:
            about, text = os.fstat(file.fileno()), file.read()
        if (key := _KEY.match(text.decode("ascii", "replace"))) is None:
            raise ValueError("its first line is no key")
        found = bytes.fromhex(key[1])
        if self._unwritten and found != self._key:  # under another key they say nothing, so it stays unknown what was said
            raise ValueError("it has another key than what was remembered meanwhile")
        self._key = found
        oldest = int(now() / _DAY_S) - DAYS
        lines = text.decode("ascii", "replace").split("\n")[1:]
        rows = [row for line in lines if (row := _LINE.fullmatch(line)) is not None and int(row[2]) >= oldest]
        self._known = {**{bytes.fromhex(row[1]): int(row[2]) for row in rows[-MOST:]}, **self._unwritten}
        self._seen = about.st_ino, len(text)
