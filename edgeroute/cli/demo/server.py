"""The cloud, played by `edgeroute serve` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgeroute.errors import Unreachable

START_S, END_S = 60.0, 10.0
LAST = 5
"""So many lines of what it said are shown when it does not start."""


@contextmanager
def serving(model: Path) -> Iterator[tuple[str, str]]:
    """Serves a model on a free port -> its URL and the model's name. Leaves no process behind, whatever happens inside.

    Raises:
        Unreachable: it did not start; with its last words.
    """
    command = [sys.executable, "-m", "edgeroute", "serve", str(model), "--port", "0", "--json"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True) as process,  # noqa: S603 - this Python
    ):
        try:
            said = json.loads(_first_line(process, log))
            yield said["ready"], said["models"][0]
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _first_line(process: subprocess.Popen[str], log: IO[str]) -> str:
    assert process.stdout is not None, "it is a pipe"
    timer = threading.Timer(START_S, process.kill)  # a read has no time limit of its own
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        code = process.wait()
        log.seek(0)
        words = "".join(f"\n  {text}" for text in log.read().splitlines()[-LAST:])
        raise Unreachable(f"the server did not start, and ended with exit code {code}{words and '; its last lines:'}{words}")
    return line
