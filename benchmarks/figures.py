"""Shared by all benchmarks: interleaved timing, and the table of figures with limits."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import edgeroute

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(edgeroute.__file__).parent
MODELS = next(f for home in (PACKAGE, PACKAGE.parent) if (f := home / "models" / "fashion").is_dir())  # in a wheel, or beside it


class Figure(NamedTuple):
    """One row of the table: name, our value, the baseline's, the compared quantity and its limit."""

    name: str
    ours: str
    baseline: str
    compared: float
    unit: str
    limit: float


def medians(
    subjects: dict[str, Callable[[Any], object]], inputs: Iterable[Any], *, runs: int = 7, blocks: int = 10
) -> dict[str, float]:
    """Times the subjects interleaved, block by block, so that machine drift affects all alike.

    Returns: name -> median over the runs of each run's median time of one call, seconds.
    """
    inputs, clock = list(inputs), time.perf_counter_ns
    collected: dict[str, list[float]] = {name: [] for name in subjects}
    for subject in subjects.values():
        for x in inputs:
            subject(x)
    for _ in range(runs):
        times: dict[str, list[int]] = {name: [] for name in subjects}
        for _ in range(blocks):
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
    """Output of code run in a fresh interpreter."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def seconds(code: str, *arguments: object, runs: int = 9) -> float:
    """Median wall time of a whole Python process, seconds."""
    times = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        python(code, *arguments)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def table(figures: list[Figure]) -> str:
    """The figures as Markdown, with machine and date."""
    lines = ["| figure | ours | baseline | compared | limit | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for f in figures:
        kept = "kept" if f.compared <= f.limit else "MISSED"
        lines.append(f"| {f.name} | {f.ours} | {f.baseline} | {f.compared:.2f} {f.unit} | {f.limit:g} {f.unit} | {kept} |")
    machine = f"{platform.machine()}, {_cores()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    return "\n".join([*lines, "", f"`make bench` on {machine}."])


def _cores() -> str:
    import os

    return f"{os.cpu_count()} cores"
