"""Kernel files (`Files`) and outputs of system commands (`Commands`), from which sensors take readings. Bounded; never waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import log

TEXT = 4096  # most bytes read of a file: one page, the most that a file of sysfs can hold
ENTRIES = 1024  # most entries of a folder that are read
# Flags that keep `open` from waiting for a pipe's writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


SECOND = "it is a difference: known from the second reading on"  # reason why a difference is unknown at the first reading


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
        """Return the sorted names in a folder; empty: it cannot be read. At most `ENTRIES` of them."""
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


class FileReader:
    """Base of a reader of sensors that has files of the kernel alone."""

    def __init__(self, files: Files) -> None:
        self._files = files


TIMEOUT_S = 2.0  # longest run of a program, seconds; then it is killed, and its output is empty
Run = Callable[..., str]  # function that runs a program with arguments and returns its output


class Commands(ForkSafe):
    """Cache of the last output of each program, refreshed in the background.

    Args:
        run: runs a program with arguments and returns its output; raises OSError or ValueError if it fails. None: programs are
            never run.
    """

    _under_way: dict[tuple[str, ...], threading.Thread] = per_process(dict)

    def __init__(self, run: Run | None) -> None:
        self._run = run
        self._outputs: dict[tuple[str, ...], str] = {}
        self._due: dict[tuple[str, ...], float] = {}

    def output(self, *command: str, every_s: float, now: float) -> str | None:
        """Return a program's last output without waiting; start it in a background thread if its last start is `every_s` ago.

        Empty, too, if no programs may be run. One run of a program at a time.

        Args:
            command: name of the program and its arguments.
            every_s: minimum time between two runs, seconds.
            now: monotonic.

        Returns:
            The output; empty: the program failed; None: it has not ended for the first time.
        """
        if self._run is None:
            return ""
        last = self._outputs.get(command)
        if now >= self._due.get(command, -inf) and command not in self._under_way:
            self._due[command] = now + every_s
            thread = threading.Thread(target=self._refresh, args=(command,), name=f"edgeroute-{command[0]}", daemon=True)
            self._under_way[command] = thread
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends
                self._under_way.pop(command, None)
        return last

    def wait(self, timeout: float) -> None:
        """Wait for the programs that are running, each for at most `timeout` seconds."""
        for thread in list(self._under_way.values()):
            thread.join(timeout)

    def _refresh(self, command: tuple[str, ...]) -> None:
        """Run a program and store its output, empty if it fails.

        Never raises for a failing program, which is logged at debug level.
        """
        output = ""
        try:
            assert self._run is not None
            output = self._run(*command)
        except (OSError, ValueError) as e:
            log.debug("%s: %s", " ".join(command), e)
        finally:
            self._outputs[command] = output
            self._under_way.pop(command, None)


def run_program(*command: str) -> str:
    """Run a program of the system with LC_ALL=C, for at most 2 s, and return the beginning of its output. Blocks.

    Raises:
        OSError: the program does not exist, failed, or was killed for its time.
    """
    import shutil
    import subprocess

    if (path := shutil.which(command[0])) is None:
        raise FileNotFoundError(f"there is no program {command[0]}")
    try:
        process = subprocess.run(  # noqa: S603 - the programs are constants of this package
            [path, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S, check=True, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.SubprocessError as e:
        raise OSError(str(e)) from e
    return process.stdout[:65536].decode("ascii", "replace")
