"""Memory that can be had: of the machine, or of this process's control group where that is less."""

from __future__ import annotations

from collections.abc import Iterator

from edgeroute.observe.device.files import Files, Told
from edgeroute.observe.device.load import pressure

MEMINFO = "proc/meminfo"
CGROUP = "sys/fs/cgroup"


class Memory:
    """Share of memory that can be had without swapping."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._group = ""

    def find(self) -> None:
        """Looks for the control group of this process: /proc/self/cgroup has a line `0::/path` for version 2."""
        lines = self._files.word("proc/self/cgroup").splitlines()
        group = next((line[3:].strip("/") for line in lines if line.startswith("0::/")), "")
        self._group = f"{CGROUP}/{group}" if group and ".." not in group.split("/") else CGROUP

    def read(self) -> dict[str, Told]:
        """Memory that is available, and pressure."""
        return {"memory_available": self._available(), "memory_pressure": pressure(self._files, "memory")}

    def _available(self) -> Told:
        values = _table(self._files.word(MEMINFO), ":")
        total, available = values.get("MemTotal", 0.0), values.get("MemAvailable")
        if available is None and "MemFree" in values:  # before Linux 3.14
            available = values["MemFree"] + values.get("Buffers", 0.0) + values.get("Cached", 0.0)
        told = Told(None, self._files.why(MEMINFO))
        if total > 0 and available is not None and 0 <= available <= total:
            told = Told(available / total, f"/{MEMINFO}")
        for share, path in self._limits():
            if told.value is None or share < told.value:
                told = Told(share, f"the control group's limit, /{path}")
        return told

    def _limits(self) -> Iterator[tuple[float, str]]:
        """Share that is left of each limit that applies. Cached files count as available: the kernel drops them first."""
        group = self._group
        while group.startswith(CGROUP):
            limit = self._files.number(f"{group}/memory.max")
            current = None if limit is None else self._files.number(f"{group}/memory.current")
            if limit and current is not None and limit > 0:
                cached = _table(self._files.word(f"{group}/memory.stat"), " ").get("inactive_file", 0.0)
                used = max(0.0, current - max(0.0, cached))
                yield max(0.0, 1 - used / limit), f"{group}/memory.max"
            group = group.rpartition("/")[0]


def _table(text: str, between: str) -> dict[str, float]:
    """Lines of a name and a number, without its unit."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(between)
        number = rest.split()
        if number and number[0].isascii() and number[0].isdigit():
            values[name] = float(number[0])
    return values
