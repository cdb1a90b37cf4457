"""Compares this tree with another checkout of the project, run by run: `python benchmarks/against.py [FOLDER [RUNS]]`.

Each run measures the accepted `infer`, asyncio, import and the cloud leg with the benchmarks of each tree, one after the other. Without
a folder the tree is compared with itself, which shows how much the machine alone makes of a difference.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from figures import ROOT, size

MEASURED = size("overhead, startup, cloud", "guard, overhead")
CODE = f"import json, {MEASURED}; print(json.dumps([f._asdict() for m in ({MEASURED}) for f in m.figures()]))"


def measured(tree: Path) -> dict[str, tuple[float, str]]:
    """Return row -> what it is compared by, and its unit, of the benchmarks of the tree at that path."""
    path = os.pathsep.join(map(str, (tree, tree / "benchmarks")))
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {row["name"]: (row["compared"], row["unit"]) for row in json.loads(done.stdout.splitlines()[-1])}


def main(other: Path, runs: int) -> None:
    """Measure both trees in turns, `runs` times, and print the median of each row that both have, with their ratio."""
    pairs = [(measured(ROOT), measured(other)) for _ in range(runs)]
    print(f"| figure, median of {runs} | this tree | the other | ratio |", "| --- | ---: | ---: | ---: |", sep="\n")
    for name, (_, unit) in pairs[0][0].items():
        if name in pairs[0][1]:
            ours, theirs = (statistics.median(pair[i][name][0] for pair in pairs) for i in (0, 1))
            print(f"| {name} | {ours:.2f} {unit} | {theirs:.2f} {unit} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT, int(sys.argv[2]) if len(sys.argv) > 2 else size(3, 1))
