"""Every figure, each as a ratio or difference measured in one run: `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys

import cloud
import overhead
import startup
from figures import Figure, table


def demo() -> list[Figure]:
    """The main job: how much of the cloud's accuracy the cascade keeps, and how much it defers."""
    command = [sys.executable, "-m", "edgeroute", "demo", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lost = (told["cloud_accuracy"] - told["cascade_accuracy"]) * 100
    return [
        Figure(
            f"demo, accuracy lost, n = {told['n']}",
            f"{told['cascade_accuracy']:.4f}",
            f"{told['cloud_accuracy']:.4f}",
            lost,
            "points",
            1,
        ),
        Figure("demo, deferred", f"{told['deferral_rate'] * 100:.1f} %", "100 %", told["deferral_rate"] * 100, "%", 20),
    ]


if __name__ == "__main__":
    print(table([*overhead.figures(), *startup.figures(), *cloud.figures(), *demo()]))
