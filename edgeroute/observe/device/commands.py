"""Outputs of system programs, which run in threads of their own: a reading takes the last output and never waits."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from math import inf

from edgeroute.system.forks import ForkSafe, per_process

log = logging.getLogger("edgeroute")
TIMEOUT_S = 2.0
"""Longest run of a program, seconds; then it is killed, and its output is empty."""
Run = Callable[..., str]
"""Function that runs a program with arguments and returns its output."""


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
        """Return the last output of a program without waiting, and start the program in the background if `every_s` has passed.

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
        """Run a program and store its output, empty if it fails."""
        output = ""
        try:
            assert self._run is not None
            output = self._run(*command)
        except (OSError, ValueError) as e:
            log.debug("%s: %s", " ".join(command), e)
        finally:
            self._outputs[command] = output
            self._under_way.pop(command, None)


def run(*command: str) -> str:
    """Run a program of the system with LC_ALL=C, for at most 2 s, and return the beginning of its output.

    Raises:
        OSError: the program does not exist, or it failed.
    """
    import shutil
    import subprocess

    path = shutil.which(command[0])
    if path is None:
        raise FileNotFoundError(f"there is no program {command[0]}")
    try:
        process = subprocess.run(  # noqa: S603 - the programs are constants of this package
            [path, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S, check=True, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.SubprocessError as e:
        raise OSError(str(e)) from e
    return process.stdout[:65536].decode("ascii", "replace")
