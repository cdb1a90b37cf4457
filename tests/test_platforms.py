"""Windows and macOS: what they lack is taken away from Python, in a process of its own, and everything is used once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import simulated

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
NEUTRAL = ("core/test_plan.py", "test_arguments.py", "test_trace.py", "test_cache_keys.py")
"""Tests that need nothing of Linux: files in use, threads, tasks and processes are ours there as well."""


def run(args, **variables):
    """A program that is a Python of its own, and finds the tests' modules -> its output. It has to end well."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_everything_works_there(system):
    """Every module is imported, each feature and each command is used."""
    said = run([HERE / "simulated.py", system])
    assert [line for line in said.splitlines() if line.startswith("ok ")] == [f"ok {f.__name__}" for f in simulated.FEATURES]


def test_tests_pass_there(tmp_path):
    """Those that are about no system pass on a simulated Windows."""
    tests = [HERE / name for name in NEUTRAL]
    options = ["-q", "-p", "simulated", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", tmp_path / "base"]
    said = run(["-m", "pytest", *options, *tests], SIMULATED="win32", SIMULATED_ROOT=str(tmp_path))
    assert " passed" in said
    assert "failed" not in said


HOLDER = """
import sys
from pathlib import Path
from edgeroute.stores.json_lines_and_process_locks import ProcessLock

lock = ProcessLock(Path(sys.argv[1]))
print(lock.take(), flush=True)
sys.stdin.read()
"""


def test_a_lock_of_a_killed_process_is_free(tmp_path):
    """One process has it; another gets it once that one is killed, and not before."""
    from edgeroute.stores.json_lines_and_process_locks import ProcessLock

    lock = ProcessLock(tmp_path / "sub" / "it.deliver")
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock.path], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        assert not lock.take()
        assert not lock.take(0.02)
        assert not lock.held
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert lock.take()
    assert lock.held
    lock.leave()
    assert not lock.held
    assert lock.path.stat().st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be_had_is_not_held(tmp_path, monkeypatch):
    """A file system without locks: the error is told each time, and nobody is taken for the leader."""
    import fcntl

    from edgeroute.stores import json_lines_and_process_locks as journal

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = journal.ProcessLock(tmp_path / "it.deliver")
    for _ in range(2):
        with pytest.raises(OSError, match="No locks"):
            lock.take()
        assert not lock.held
