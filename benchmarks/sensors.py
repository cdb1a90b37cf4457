"""Cost of reading the device's sensors: each source, a whole reading, and a router that reads them once a second."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from figures import Figure, size

from edgeroute import DeviceSensors, Options, Router, Rule
from edgeroute.observe.device.kernel_files_and_cached_commands import Commands, Files, Measurement
from edgeroute.observe.device.linux_load_memory_gpu import Gpu, Load, Memory
from edgeroute.observe.device.linux_temperature_and_throttling import Thermal, Throttling
from edgeroute.observe.device.power_draw_and_batteries import Battery, Power
from edgeroute.observe.network_routes_and_monitor import Links

TREES = Path(__file__).resolve().parent.parent / "tests" / "device_trees"
SECONDS = size(20.0, 0.2)
"""For which a router reads its sensors."""


def cpu_us(function: Callable[[], object], times: int = size(300, 2)) -> float:
    """Call once, and return the median of nine means of the processor time of a call, microseconds: waiting does not count."""
    function()
    means = []
    for _ in range(9):
        begun = time.process_time()
        for _ in range(times):
            function()
        means.append((time.process_time() - begun) / times)
    return statistics.median(means) * 1e6


def sources(root: str | Path) -> dict[str, float]:
    """Return the processor time of each source of a reading, and of looking for all of them, microseconds, in that file tree."""
    files, commands = Files(root), Commands(None)
    none = Measurement(None, "")
    battery, gpu, links, memory = Battery(files), Gpu(files), Links(files, commands), Memory(files)
    power, thermal, throttling = Power(files, commands), Thermal(files), Throttling(files, commands)
    parts = (battery, gpu, links, memory, power, thermal, throttling)

    def find() -> None:
        for part in parts:
            part.find()

    find()
    return {
        "battery, mains": cpu_us(battery.read),
        "temperature": cpu_us(thermal.read),
        "load, CPU pressure": cpu_us(Load(files).read),
        "memory, its pressure": cpu_us(memory.read),
        "throttling": cpu_us(lambda: throttling.read(0.0)),
        "GPU": cpu_us(gpu.read),
        "power": cpu_us(lambda: power.read(time.monotonic(), none)),
        "network": cpu_us(lambda: links.read(0.0)),
        "looking for them, once a minute": cpu_us(find, size(50, 1)),
    }


def share(every_s: float = 1.0, seconds: float = SECONDS) -> float:
    """Return the share of a core of a router without requests that reads this machine's sensors; takes so many seconds."""
    sensors = DeviceSensors(every_s=every_s)
    with Router(lambda _: ("edge", 0.9), None, options=Options(sensors=sensors, rules=[Rule("battery", "only_edge", 0.2)])):
        time.sleep(every_s)
        begun, cpu = time.monotonic(), time.process_time()
        time.sleep(seconds)
        return (time.process_time() - cpu) / (time.monotonic() - begun)


def figures() -> list[Figure]:
    """Figure: the share of a core."""
    whole, taken = cpu_us(DeviceSensors(fresh_s=0.0)), share() * 100
    what = f"sensors read once a second (a reading: {whole:.0f} us), share of a core"
    return [Figure(what, f"{taken:.3f} %", "-", taken, "%", 1)]


def main() -> None:
    """Print the table of this machine and of recorded ones, whose files are written to a folder, and the share of a core."""
    trees = sorted(TREES.glob("*.json"))
    print(
        f"| processor time, us | this machine | {' | '.join(tree.stem for tree in trees)} |\n| --- |{' ---: |' * (1 + len(trees))}"
    )
    with tempfile.TemporaryDirectory() as folder:
        roots: list[str | Path] = ["/"]
        for tree in trees:
            root = Path(folder) / tree.stem
            for name, text in json.loads(tree.read_text(encoding="utf-8")).items():
                if name != "commands":
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_text(text)
            roots.append(root)
        columns = [{**sources(root), "a whole reading": cpu_us(DeviceSensors(root, fresh_s=0.0))} for root in roots]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.1f}' for column in columns)} |")
    print()
    for every_s in size((1.0, 10.0), (1.0,)):
        print(f"a router that reads every {every_s:g} s, share of a core: {share(every_s) * 100:.3f} %")


if __name__ == "__main__":
    sys.exit(main())
