"""Every program in benchmarks/ runs, at its smallest size; and docs/figures.md is what benchmarks/run.py writes of the last run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(BENCHMARKS.glob("*.py"))}
PROGRAMS = [name for name, text in TEXTS.items() if '__name__ == "__main__"' in text]
INDEX = ("wheels.py",)
"""Programs that ask the package index, which may take minutes: only where TEST_INDEX says so."""


def missing(told):
    """What a program that failed lacks here: a package that is not installed, or what it says that it needs; empty: nothing."""
    if needed := re.search(r"^needs .+", told, re.MULTILINE):
        return needed[0]
    names = {name.partition(".")[0] for name in re.findall(r"No module named '([\w.]+)'", told)}
    absent = sorted(name for name in names if f"{name}.py" not in TEXTS and importlib.util.find_spec(name) is None)
    return f"needs {', '.join(absent)}" if absent else ""


@pytest.mark.matrix
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_benchmark_runs(name, tmp_path):
    """As a process, from any folder; it prints a table."""
    if name in INDEX and not os.environ.get("TEST_INDEX"):
        pytest.skip("the package index is asked with TEST_INDEX=1")
    environment = {**os.environ, "BENCH_SMOKE": "1"}
    command = [sys.executable, BENCHMARKS / name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and (lacks := missing(done.stderr)):
        pytest.skip(lacks)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\|.+\|\n\|[ :|-]+\|\n\|.+\|$", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.matrix
def test_masks_of_a_file_of_texts(tmp_path):
    """As PUPA has them: of three units one is a name, which no pattern finds."""
    pytest.importorskip("phonenumbers")
    file = tmp_path / "texts.csv"
    file.write_text(
        "user_query,pii_units\n"
        '"I am Ann Bell, write to Ann@example.com or (201) 555-0123",ann bell||ann@example.com||(201) 555-0123\n'
        "nothing of anybody,\n"
    )
    command = [sys.executable, BENCHMARKS / "masks.py", "--texts", file]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "| any | 3 | 33.33% | - | - |" in done.stdout, done.stderr
    assert re.search(r"\| 2 \| 0 \| 100\.00% \|", done.stdout), done.stdout


def test_what_is_no_program_is_part_of_one():
    """A module that cannot be run is imported by another."""
    used = set(re.findall(r"^\s*(?:from|import) (\w+)", "\n".join(TEXTS.values()), re.MULTILINE))
    assert [name for name in TEXTS if name not in PROGRAMS and name.removesuffix(".py") not in used] == []


def test_what_a_program_lacks_is_no_fault_of_its_own():
    """Only a package that is not installed is a reason to skip, and what the program names."""
    assert missing("ModuleNotFoundError: No module named 'edgeroute.nothing'") == ""
    assert missing("ModuleNotFoundError: No module named 'figures'") == ""
    assert missing("ModuleNotFoundError: No module named 'no_such_package.part'") == "needs no_such_package"
    assert missing("edgeroute.errors.RuntimeMissing: more (No module named 'no_such_package')") == "needs no_such_package"
    assert missing("\nneeds a Triton: make server-triton\n") == "needs a Triton: make server-triton"
    assert missing("AssertionError: it needs more") == ""


@pytest.fixture
def bench(monkeypatch):
    """benchmarks/run.py."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run

    return run


def test_the_page_of_figures_is_written_of_the_last_run(bench):
    """Nothing on it is edited: `python benchmarks/run.py --page` writes it of benchmarks/figures.json."""
    told = json.loads(bench.LAST.read_text(encoding="utf-8"))
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(told)
    assert [*told["groups"]] == [*bench.GROUPS]
    assert all(told["groups"].values()), "of each group there are figures"
    assert re.search(r"cores, Python 3\.\d+\.\d+, \d{4}-\d\d-\d\d, commit \w+", told["machine"])


def test_each_benchmark_with_limits_is_in_the_table(bench):
    """None is left out, and none named that is not there."""
    named = sorted(f"{name}.py" for names in bench.GROUPS.values() for name in names)
    assert named == [name for name, text in TEXTS.items() if "\ndef figures(" in text]


def test_a_missed_limit_is_a_row_that_says_so(bench):
    """It is told again under the table; a limit that is reached is kept."""
    told = {
        "machine": "a machine",
        "load": 0.5,
        "minutes": 1.5,
        "groups": {"A group": [["one", "2 us", "", 2.0, "us", 2], ["two", "3 us", "1 us", 2.0, "us", 1]]},
    }
    assert bench.table(told).splitlines()[2:] == [
        "| **A group** | | | | | |",
        "| one | 2 us | - | 2.00 us | 2 us | kept |",
        "| two | 3 us | 1 us | 2.00 us | 1 us | MISSED |",
        "",
        "All in one run of 1.5 minutes, begun at a load of 0.5: a machine.",
    ]  # fmt: skip
    assert bench.missed(told) == "* **two**: 2.00 us; the limit is 1."
    told["groups"]["A group"].pop()
    assert bench.missed(told) == "No limit is missed in this run."
    assert bench.table(told) in bench.page(told)
    assert "<!--" not in bench.page(told)
