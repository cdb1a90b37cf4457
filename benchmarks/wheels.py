"""Which systems have a wheel of everything that edgeroute requires: asks the package index, and installs nothing.

    python benchmarks/wheels.py [--python 3.11]

Needs the network, and `uv`, which evaluates a requirement's markers for another system than this one (pip does so for its own).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
EXTRAS = ("", "onnx", "litert", "yaml", "cli", "serve", "demo", "all")


def resolves(extra: str, system: str, python: str) -> str:
    """Empty if all requirements have a wheel; else the index's last words."""
    command = [
        shutil.which("uv") or "uv", "pip", "compile", "--quiet", "--only-binary", ":all:", "--python-platform", system,
        "--python-version", python, "--no-header", *(["--extra", extra] if extra else []), str(ROOT / "pyproject.toml"),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    return "" if done.returncode == 0 else " ".join(done.stderr.split())


def main() -> int:
    """Prints the table, and under it what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default="3.11")
    python = parser.parse_args().python
    print(f"| Python {python} | {' | '.join(extra or 'edgeroute alone' for extra in EXTRAS)} |")
    print(f"| --- |{' --- |' * len(EXTRAS)}")
    missing = []
    for name, system in SYSTEMS.items():
        why = [resolves(extra, system, python) for extra in EXTRAS]
        print(f"| {name} | {' | '.join('no' if text else 'yes' for text in why)} |", flush=True)
        missing += [f"{name}, {extra or 'alone'}: {text[:600]}" for extra, text in zip(EXTRAS, why, strict=True) if text]
    for text in missing:
        print(text, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
