"""Fuzzing of everything that is read from outside, for a minute. `make fuzz` does it for an hour."""

import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from draws import SHARE

INPUTS = {"outbox": 60, "cache": 60, "state": 60, "http": 400}
"""Those with a router or a server for each input are slow."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_whatever_comes_is_taken_or_refused(name):
    """No crash, no exception that is not documented, no more than 100 MB or two seconds for any input."""
    inputs = str(round(INPUTS.get(name, 1000) * SHARE))
    command = [sys.executable, fuzz.__file__, "--target", name, "--seed", "1", "--inputs", inputs, "--seconds", "600"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith(f"{name}: {inputs} inputs, 0 findings")


class Broken(fuzz.Target):
    """What no reader may do."""

    seeds = (b"loop", b"much", b"raise", b"fine")

    def __init__(self, _folder):
        pass

    def mutate(self, rng):
        """As they are."""
        return rng.choice(self.seeds)

    def take(self, data):
        """Loops, takes memory, raises what it does not document."""
        if data == b"loop":
            while True:
                pass
        if data == b"much":
            bytearray(2 * fuzz.MEMORY)
        if data == b"raise":
            raise KeyError("x")


BREAKS = """
import sys
from pathlib import Path
import fuzz
from test_fuzz import Broken
fuzz.TARGETS["broken"], fuzz.CPU_S = Broken, 0.1
sys.exit(fuzz.fuzz("broken", 1, 0, 30, 600, Path(sys.argv[1])))
"""


def test_the_fuzzer_finds_loops_memory_and_exceptions(tmp_path):
    """Each once; in a process of its own, since in this one there may be memory that is free again."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", BREAKS, str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 3, ran.stdout + ran.stderr
    assert all(what in ran.stdout for what in ("TooLong at", "MemoryError at", "KeyError at"))
