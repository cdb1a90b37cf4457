"""Measures all figures, each beside its baseline: `make bench`. Then three slower tables."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import calibration
import callers
import chat_faults
import cloud
import dashboard
import faults
import fleet
import gateway
import guard
import llama
import many
import metrics
import openai_path
import overhead
import payloads
import replay
import sensors
import startup
import stores
from figures import Figure, table


def demo() -> list[Figure]:
    """Figures of the demo: accuracy loss of the cascade against the cloud, and deferral rate."""
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
    first = [*overhead.figures(), *guard.figures(), *startup.figures(), *cloud.figures(), *callers.figures(), *sensors.figures()]
    first += [
        *metrics.figures(),
        *llama.figures(),
        *openai_path.figures(),
        *gateway.figures(),
        *payloads.figures(),
        *many.figures(),
    ]
    later = [*calibration.figures(), *replay.figures(), *fleet.figures(), *dashboard.figures()]
    print(table([*first, *stores.figures(), *faults.figures(), *demo(), *later]), flush=True)
    print("", stores.crashes(), sep="\n", flush=True)
    print("", faults.comparison(), sep="\n", flush=True)
    asyncio.run(chat_faults.main(chat_faults.CALLS, list(chat_faults.FAULTS)))
