"""Replay of many devices' traces in Parquet: lines a second of CPU on one process, two, Ray Data, and bytes a line; and their report.

python benchmarks/fleet_replay.py --devices 24 --lines 25000 --engines 1,2,ray,report
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import replay as one_trace
from figures import size

from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.tools.fleet.digest_parquet_store import open_store
from edgeroute.tools.fleet.fleet_sums_and_forecast import report
from edgeroute.tools.fleet.traces_as_digest_tables import write_tables
from edgeroute.tools.replay.parquet_trace_format import write_parquet
from edgeroute.tools.replay.sharded_replay import replay_fleet

POLICY = """
threshold = 0.3
deadline = "2s"
[edge]
path = "edge.onnx"
[cloud]
url = "http://127.0.0.1:9/v2/models/cloud"
usd_per_call = 0.0001
joules_per_call = 0.1
[limits]
usd_per_day = 1e9
mb_per_day = 1e9
"""
EVERY_S = 30.0
"""Mean time between two requests of a device, seconds."""


def lines(base: list[dict[str, Any]], device: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` records of a device, copies from `base`, at random times, with random confidences and latencies."""
    rng, at = random.Random(device), 1.7e9
    for i in range(count):
        record = json.loads(json.dumps(rng.choice(base)))
        at += rng.expovariate(1 / EVERY_S)
        ends = 0.0
        for event in record["events"]:
            ends += 0.0 if event["what"] == "start" else rng.lognormvariate(-5, 0.5)
            event["at_s"] = round(ends, 6)
            if event["leg"] == "edge" and "confidence" in event:
                event["confidence"] = rng.random()
        yield {**record, "id": f"d{device}-{i}", "at": round(at, 3), "latency_s": record["events"][-1]["at_s"]}


def run(folder: Path, engine: str) -> None:
    """Replay the traces by so many processes or by Ray, or report them."""
    if engine == "report":
        write_tables(folder / "fleet", folder / "store")
        with open_store(folder / "store") as store:
            report(store)
        return
    processes = 0 if engine == "ray" else int(engine)
    replay_fleet(folder / "fleet", folder / "policy.toml", engine="ray" if engine == "ray" else "local", processes=processes)


def main() -> None:
    """Write the traces, replay them on each engine, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=size(24, 2))
    parser.add_argument("--lines", type=int, default=size(25_000, 100))
    parser.add_argument("--copies", type=int, default=1, help="files of each device's trace")
    parser.add_argument("--engines", default="1,2", help="numbers of processes, ray, and report")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        (folder / "policy.toml").write_text(POLICY)
        one_trace.TIMES = 1
        one_trace.trace(folder / "base")
        base = [{key: value for key, value in record.items() if key != "reading"} for record in read(folder / "base")]
        for device in range(given.devices):
            path = folder / "fleet" / f"{device:03}" / "trace.parquet"
            path.parent.mkdir(parents=True)
            write_parquet(path, lines(base, device, given.lines))
            for copy in range(1, given.copies):
                shutil.copy(path, path.with_name(f"{copy}.parquet"))
        total = given.devices * given.lines * given.copies
        print(f"{sum(path.stat().st_size for path in folder.rglob('*.parquet')) / total:.1f} bytes a line")
        print("\n| engine | lines a second of CPU, not of Ray's | in all | load |", "| --- | ---: | ---: | ---: |", sep="\n")
        for engine in given.engines.split(","):
            before, begun = os.times(), time.perf_counter()
            run(folder, engine)
            cpu_s = sum(os.times()[:4]) - sum(before[:4])
            took_s = time.perf_counter() - begun
            print(f"| {engine} | {total / cpu_s:,.0f} | {total / took_s:,.0f} | {os.getloadavg()[0]:.0f} |")


if __name__ == "__main__":
    main()
