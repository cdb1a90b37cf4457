"""The demo's cascade on all of its images: what accuracy it loses against the cloud, and how much it defers."""

from __future__ import annotations

import json
import subprocess
import sys

from figures import Figure, size, table


def figures() -> list[Figure]:
    """Run `edgeroute demo` in a process, and return the cascade's accuracy loss against the cloud, and its deferral rate."""
    command = [sys.executable, "-m", "edgeroute", "demo", "--json", *size([], ["--n", "100"])]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    accuracy = [f"{told[f'{side}_accuracy']:.4f}" for side in ("cascade", "cloud")]
    lost, deferred = (told["cloud_accuracy"] - told["cascade_accuracy"]) * 100, told["deferral_rate"] * 100
    return [
        Figure(f"demo, accuracy lost, n = {told['n']}", *accuracy, lost, "points", 1),
        Figure("demo, deferred", f"{deferred:.1f} %", "100 %", deferred, "%", 20),
    ]


if __name__ == "__main__":
    print(table(figures()))
