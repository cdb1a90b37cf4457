"""What several tests share: the shipped models, and a real server for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgeroute


@pytest.fixture(scope="session")
def fashion() -> Path:
    """The folder with the shipped pair: in the package where that is a wheel, else beside it."""
    package = Path(edgeroute.__file__).parent
    return next(f for home in (package, package.parent) if (f := home / "models" / "fashion").is_dir())


@pytest.fixture(scope="session")
def fashion_server(fashion):
    """`edgeroute serve` with the shipped cloud model, in a process of its own. -> its URL."""
    command = [sys.executable, "-m", "edgeroute", "serve", str(fashion / "cloud.onnx"), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield json.loads(process.stdout.readline())["ready"]
        process.terminate()
        process.wait(30)
