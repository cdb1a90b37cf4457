"""Parts shared by all benchmarks: the size of a run, timing in turns, processes, and tables of figures with limits.

With BENCH_SMOKE=1 a benchmark runs at its smallest size: that it runs is seen in seconds, and its figures say nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import edgeroute

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(edgeroute.__file__).parent
MODELS = next(f for home in (PACKAGE, PACKAGE.parent) if (f := home / "models" / "fashion").is_dir())  # in a wheel, or beside it
sys.path.append(str(ROOT / "tests"))  # several benchmarks use what the tests are helped by
SMOKE = os.environ.get("BENCH_SMOKE") == "1"
SCALE = {"us": 1e6, "ms": 1e3, "s": 1.0}
T = TypeVar("T")


def size(whole: T, smallest: T) -> T:
    """Return the first, or the second where only that a benchmark runs is of interest (BENCH_SMOKE=1)."""
    return smallest if SMOKE else whole


def needs(there: object, what: str) -> None:
    """End the program where something other than a package of Python is missing, and name it."""
    if not there:
        sys.exit(f"needs {what}")


class Figure(NamedTuple):
    """One row of the table: name, our value, the baseline's, the compared quantity and its limit."""

    name: str
    ours: str
    baseline: str
    compared: float
    unit: str
    limit: float

    @property
    def kept(self) -> bool:
        """True within the limit."""
        return self.compared <= self.limit


def timed(
    name: str,
    ours_s: float,
    base_s: float,
    limit: float,
    *,
    shown: str = "us",
    digits: int = 1,
    by: Literal["more", "ratio", "alone"] = "more",
) -> Figure:
    """Return the row of two times in seconds: compared is by how much ours is longer, their ratio, or ours alone."""
    ours, base = ours_s * SCALE[shown], base_s * SCALE[shown]
    compared, unit = {"more": (ours - base, shown), "ratio": (ours / base if base else inf, "x"), "alone": (ours, shown)}[by]
    return Figure(name, f"{ours:.{digits}f} {shown}", f"{base:.{digits}f} {shown}", compared, unit, limit)


def medians(
    subjects: dict[str, Callable[[Any], object]], inputs: Iterable[Any], *, runs: int = 7, blocks: int = 10
) -> dict[str, float]:
    """Time the subjects in turns, block by block, so that drift of the machine affects all alike, after one call of each.

    Returns name -> median over the runs of each run's median time of one call, seconds.
    """
    inputs, clock = list(inputs), time.perf_counter_ns
    collected: dict[str, list[float]] = {name: [] for name in subjects}
    for subject in subjects.values():
        for x in inputs:
            subject(x)
    for _ in range(size(runs, 1)):
        times: dict[str, list[int]] = {name: [] for name in subjects}
        for _ in range(size(blocks, 1)):
            for name, subject in subjects.items():
                taken = times[name]
                for x in inputs:
                    begun = clock()
                    subject(x)
                    taken.append(clock() - begun)
        for name, taken in times.items():
            collected[name].append(statistics.median(taken))
    return {name: statistics.median(values) / 1e9 for name, values in collected.items()}


def python(code: str, *arguments: object) -> str:
    """Return the output of code run in a fresh interpreter."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def seconds(code: str, *arguments: object, runs: int = 9) -> float:
    """Return the median wall time of a Python process that runs this code, seconds; the first of `runs` + 1 does not count."""
    times = []
    for _ in range(size(runs, 0) + 1):
        begun = time.perf_counter()
        python(code, *arguments)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[size(1, 0) :])


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[tuple[int, str]]:
    """Run `edgeroute` with these arguments as a server on a free port; provide its process's id, and its address.

    Ends it after.
    """
    command = [sys.executable, "-m", "edgeroute", *map(str, arguments), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "it is a pipe"
            yield process.pid, json.loads(process.stdout.readline())["ready"]
        finally:
            process.terminate()
            process.wait(10)


def machine() -> str:
    """Return what is measured on, when, and of which commit ("unknown" outside of a clone)."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=, changed", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"  # not in a clone
    about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{about}, {time.strftime('%Y-%m-%d')}, commit {commit}"


def rows(figures: Iterable[Figure]) -> list[str]:
    """Return each figure as a row of a table in Markdown."""
    return [
        f"| {f.name} | {f.ours} | {f.baseline or '-'} | {f.compared:.2f} {f.unit} | {f.limit:g} {f.unit} | {'kept' if f.kept else 'MISSED'} |"
        for f in figures
    ]


HEAD = ["| figure | edgeroute | baseline | compared | limit | |", "| --- | ---: | ---: | ---: | ---: | --- |"]


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as a table in Markdown, with machine, date and commit."""
    return "\n".join([*HEAD, *rows(figures), "", f"{machine()}."])
