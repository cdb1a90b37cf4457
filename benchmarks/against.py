"""Compares this tree with another checkout of the project, run by run: `python benchmarks/against.py FOLDER [RUNS]`.

Each run measures the accepted `infer`, asyncio, import and the cloud leg with the benchmarks of each tree, one after the other.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CODE = "import json, overhead, startup, cloud; print(json.dumps([f._asdict() for m in (overhead, startup, cloud) for f in m.figures()]))"
ROWS = (
    "accepted `infer`",
    "the same, trace on",
    "the same, asyncio",
    "`import edgeroute`",
    "cloud leg, p50",
    "cloud leg, client CPU",
)


def measured(tree: Path) -> dict[str, tuple[float, str]]:
    """Row -> what it is compared by, and its unit."""
    path = os.pathsep.join(map(str, (tree, tree / "benchmarks")))
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tree, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return {row["name"]: (row["compared"], row["unit"]) for row in json.loads(done.stdout.splitlines()[-1])}


def main(other: Path, runs: int) -> None:
    """The medians of both, and their ratio."""
    found: dict[str, list[tuple[float, float, str]]] = {name: [] for name in ROWS}
    for _ in range(runs):
        theirs, ours = measured(other), measured(HERE)
        for name, values in found.items():
            values.append((ours[name][0], theirs[name][0], ours[name][1]))
    print(f"| figure, median of {runs} | this tree | the other | ratio |", "| --- | ---: | ---: | ---: |", sep="\n")
    for name, values in found.items():
        ours, theirs = (statistics.median(v[i] for v in values) for i in (0, 1))
        print(f"| {name} | {ours:.2f} {values[0][2]} | {theirs:.2f} {values[0][2]} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
