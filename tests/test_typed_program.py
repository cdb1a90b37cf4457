"""A user's program of 55 lines runs, and strict type checkers find no error in it: mypy in `make check`, pyright in the matrix."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typed_program

import edgeroute

PROGRAM = Path(typed_program.__file__)


def test_the_program_runs(tmp_path, capsys):
    """So that its types are those of values."""
    texts = [f"text {i}" for i in range(4)]
    lines = typed_program.route(texts)
    assert lines[0].startswith("TEXT 0 0.17 from edge")
    assert lines[4].startswith("Text 0 0.90 from cloud")
    assert asyncio.run(typed_program.ask("a scan")).startswith("A SCAN False")
    assert typed_program.save(tmp_path, ["x" * i for i in range(1, 100)])["threshold"] == "certificate.json"


def test_the_program_is_as_long_as_a_users():
    """55 lines, and none of them silences a checker."""
    text = PROGRAM.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 55
    assert "ignore" not in text
    assert "Any" not in text


@pytest.mark.matrix
def test_pyright_strict(tmp_path):
    """With the types of the package that is imported here; a wrong call is found."""
    pytest.importorskip("basedpyright")
    settings = {"typeCheckingMode": "strict", "include": ["program.py"], "extraPaths": [str(Path(edgeroute.__file__).parents[1])]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "-p", str(tmp_path), "--pythonpath", sys.executable]
    for more, status in (("", 0), ("show(1)\n", 1)):
        (tmp_path / "program.py").write_text(PROGRAM.read_text() + more)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
