"""Wheels of everything that edgeroute requires, by device: asks the package index, and installs nothing.

    python benchmarks/wheels.py [--python 3.11]      the systems by one version of Python, and the devices by their own

Needs the network, and `uv`, which evaluates a requirement's markers for another system than this one (pip does so for its own).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

from figures import ROOT, needs, size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SYSTEMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "Linux x86-64, musl": "x86_64-unknown-linux-musl",
    "Linux aarch64, musl": "aarch64-unknown-linux-musl",
    "macOS arm64": "aarch64-apple-darwin",
    "macOS x86-64": "x86_64-apple-darwin",
    "Windows x86-64": "x86_64-pc-windows-msvc",
    "Windows arm64": "aarch64-pc-windows-msvc",
}


class Device(NamedTuple):
    """A device as docs/devices.md has it."""

    name: str
    platform: str
    """As uv calls it; for Linux with the version of its C library."""
    python: str
    """Its system's own."""
    lacks: frozenset[str] = frozenset()
    """Extras of which something has no wheel there."""


TFLITE = frozenset({"tflite"})
"""tflite-runtime has wheels for Linux, up to Python 3.11."""
COREML = frozenset({"coreml"})
"""coremltools has them for macOS and Linux on x86-64, up to Python 3.13."""
DEVICES = (
    Device("Raspberry Pi OS 13, 64-bit", "aarch64-manylinux_2_40", "3.13", TFLITE | COREML),
    Device("Raspberry Pi OS 12, 64-bit", "aarch64-manylinux_2_36", "3.11", COREML),
    Device("Jetson, JetPack 6", "aarch64-manylinux_2_35", "3.10", COREML),
    Device("Coral on a PC with Debian 12", "x86_64-manylinux_2_36", "3.11"),
    Device("Mac, Apple silicon", "aarch64-apple-darwin", "3.12", TFLITE),
    Device("Mac, Intel", "x86_64-apple-darwin", "3.12", TFLITE | {"litert"}),
    Device("PC with Windows", "x86_64-pc-windows-msvc", "3.12", TFLITE | COREML),
)
ALONE = frozenset({"tflite"})
"""Extras that others exclude: numpy below 2."""


def extras() -> list[str]:
    """Return all extras, in the order of pyproject.toml."""
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def resolves(names: list[str], platform: str, python: str) -> str:
    """Return "" if all requirements of these extras together have a wheel; else the index's last words."""
    command = [
        *UV, "pip", "compile", "--quiet", "--only-binary", ":all:", "--python-platform", platform, "--python-version", python,
        "--no-header", *(f"--extra={name}" for name in names), str(ROOT / "pyproject.toml"),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    return "" if done.returncode == 0 else " ".join(done.stderr.split())


UV = [found] if (found := shutil.which("uv")) else [sys.executable, "-m", "uv"]


def table(rows: list[tuple[str, str, str]], first: str) -> list[str]:
    """Print for each (name, platform, Python) which extras have wheels of all they need; return what is missing, and why."""
    names = ["", *extras()][: size(None, 1)]
    print(f"| {first} | {' | '.join(name or 'edgeroute alone' for name in names)} |")
    print(f"| --- |{' --- |' * len(names)}")
    missing = []
    for name, platform, python in rows:
        why = [resolves([extra] if extra else [], platform, python) for extra in names]
        print(f"| {name} | {' | '.join('no' if text else 'yes' for text in why)} |", flush=True)
        missing += [f"{name}, {extra or 'alone'}: {text[:600]}" for extra, text in zip(names, why, strict=True) if text]
    return missing


def main() -> int:
    """Print the tables of systems and devices, and to stderr what is missing; return 0. Asks the package index."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default="3.11")
    python = parser.parse_args().python
    needs(shutil.which("uv") or find_spec("uv"), "uv")
    missing = table([(name, platform, python) for name, platform in [*SYSTEMS.items()][: size(None, 1)]], f"Python {python}")
    print()
    devices = [(f"{one.name} (Python {one.python})", one.platform, one.python) for one in DEVICES[: size(None, 1)]]
    missing += table(devices, "device")
    for text in missing:
        print(text, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
