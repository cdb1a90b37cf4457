"""Load (`Load`) and memory (`Memory`) of a Linux device, with the kernel's pressure figures (PSI), and its GPU's load (`Gpu`)."""

from __future__ import annotations

from collections.abc import Iterator

from edgeroute.observe.device.kernel_files_and_cached_commands import SECOND, FileReader, Files, Measurement

# CPU load, from differences of /proc/stat, and CPU and memory pressure (PSI).

STAT = "proc/stat"
TICKS = 5  # least time of all cores together between two counts, in ticks of 10 ms; below it, the share would be noise


class Load(FileReader):
    """Reader of the share of all cores' time that was used since the last reading."""

    _counted: tuple[float, float] | None = None
    _share: float | None = None

    def read(self) -> dict[str, Measurement]:
        """Return `cpu`, the load since the last reading, and `cpu_pressure`, both 0..1."""
        return {"cpu": self._load(), "cpu_pressure": pressure(self._files, "cpu")}

    def _load(self) -> Measurement:
        """Return the load since the last counts, and store the new counts; unknown at the first reading.

        Within `TICKS` of the last counts, the last share again.
        """
        counted, before = _count(self._files.word(STAT)), self._counted
        if counted is None:
            self._counted = self._share = None
            return Measurement(None, self._files.why(STAT))
        if before is None or counted[1] < before[1]:  # the counters began again: a container was moved
            self._counted, self._share = counted, None
            return Measurement(None, SECOND)
        if counted[1] - before[1] >= TICKS:
            self._counted = counted
            self._share = min(1.0, max(0.0, (counted[0] - before[0]) / (counted[1] - before[1])))
        if self._share is None:
            return Measurement(None, "it is a difference: the first reading is too recent")
        return Measurement(self._share, f"/{STAT}: all cores of the machine, since the last reading")


def _count(text: str) -> tuple[float, float] | None:
    """Return (ticks used, all ticks) of all cores together from the text of /proc/stat; None: it is invalid.

    Time that another virtual machine took (steal) counts as used.
    """
    first = text.partition("\n")[0].split()
    try:
        ticks = [int(word) for word in first[1:9]]  # guests' time, which follows, is in the users' already
        idle, waiting = ticks[3:5]
        used, whole = float(sum(ticks) - idle - waiting), float(sum(ticks))
    except (ValueError, OverflowError):
        return None
    return None if first[0] != "cpu" or min(ticks) < 0 else (used, whole)


def pressure(files: Files, of: str) -> Measurement:
    """Return the share of the last 10 s in which a task waited for a resource.

    Unknown if the kernel has no PSI.

    Args:
        files: the kernel's files.
        of: the resource, cpu or memory.
    """
    path = f"proc/pressure/{of}"
    for line in files.word(path).splitlines():
        if line.startswith("some ") and (words := line.partition("avg10=")[2].split()):
            try:
                share = float(words[0]) / 100
            except ValueError:
                break
            if 0 <= share <= 1:
                return Measurement(share, f"/{path} (some, avg10)")
    return Measurement(None, f"{files.why(path)}: the kernel has no PSI, or it is off (psi=1 at its start turns it on)")


# Available memory: of the machine, or of this process's control group where that is less.

MEMINFO = "proc/meminfo"
CGROUP = "sys/fs/cgroup"


class Memory(FileReader):
    """Reader of the share of memory that is available without swapping."""

    _group = ""

    def find(self) -> None:
        """Look up the control group of this process in /proc/self/cgroup, a line `0::/path` for version 2, and keep its folder.

        The root group if it has none.
        """
        lines = self._files.word("proc/self/cgroup").splitlines()
        group = next((line[3:].strip("/") for line in lines if line.startswith("0::/")), "")
        self._group = f"{CGROUP}/{group}" if group and ".." not in group.split("/") else CGROUP

    def read(self) -> dict[str, Measurement]:
        """Return `memory_available` and `memory_pressure`, both 0..1."""
        return {"memory_available": self._available(), "memory_pressure": pressure(self._files, "memory")}

    def _available(self) -> Measurement:
        """Return the available share of the machine's memory, or of a control group's limit if that is less.

        Without MemAvailable, free, buffers and cache together.
        """
        values = _table(self._files.word(MEMINFO), ":")
        total, available = values.get("MemTotal", 0.0), values.get("MemAvailable")
        if available is None and "MemFree" in values:  # before Linux 3.14
            available = values["MemFree"] + values.get("Buffers", 0.0) + values.get("Cached", 0.0)
        lowest = Measurement(None, self._files.why(MEMINFO))
        if total > 0 and available is not None and 0 <= available <= total:
            lowest = Measurement(available / total, f"/{MEMINFO}")
        for share, path in self._limits():
            if lowest.value is None or share < lowest.value:
                lowest = Measurement(share, f"the control group's limit, /{path}")
        return lowest

    def _limits(self) -> Iterator[tuple[float, str]]:
        """Yield (share that is free, path) of each memory limit of this process's control group and those above it.

        Cached files count as free, as the kernel drops them first.
        """
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
    """Return name -> number of lines such as `MemTotal:  1024 kB`, without the unit.

    Other lines are left out.

    Args:
        text: the lines.
        between: the separator after the name.
    """
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(between)
        number = rest.split()
        if number and number[0].isascii() and number[0].isdigit():
            values[name] = float(number[0])
    return values


# Files of Jetson's boards and JetPack's versions with the load, 0..1000.
PER_MILLE = (
    "sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load", "sys/devices/platform/*.ga10b/load",
    "sys/devices/platform/*.gv11b/load", "sys/devices/*.gv11b/load", "sys/devices/*.gp10b/load",
    "sys/devices/platform/*.gpu/load", "sys/devices/platform/bus@0/*.gpu/load", "sys/devices/platform/bus@0/*.ga10b/load",
)  # fmt: skip
PERCENT = ("sys/class/drm/card*/device/gpu_busy_percent",)  # files of AMD's driver with the load, 0..100
DEVFREQ = "sys/class/devfreq/*gpu*/load"  # files of devfreq drivers, such as `12@800000000Hz`: percent and frequency
FULL = 100


class Gpu(FileReader):
    """Reader of the share of the GPU's time that was used."""

    def find(self) -> None:
        """Search for the files with a GPU's load, of Jetson, AMD and devfreq drivers, and keep their paths for `read`."""
        match = self._files.match
        self._sources = [(path, 1000) for pattern in PER_MILLE for path in match(pattern)]
        self._sources += [(path, FULL) for pattern in PERCENT for path in match(pattern)]
        self._devfreq = match(DEVFREQ)

    def read(self) -> dict[str, Measurement]:
        """Return `gpu`: the load, 0..1, of the first GPU that has one. Unknown, with the reason, if none has."""
        for path, whole in self._sources:
            value = self._files.number(path)
            if value is not None and 0 <= value <= whole:
                return {"gpu": Measurement(value / whole, f"/{path}")}
        for path in self._devfreq:
            percent, separator, _ = self._files.word(path).partition("@")
            if separator and percent.isascii() and percent.isdigit() and int(percent) <= FULL:
                return {"gpu": Measurement(int(percent) / FULL, f"/{path}")}
        paths = [path for path, _ in self._sources] + self._devfreq
        return {"gpu": Measurement(None, self._files.why(paths[0]) if paths else "there is no GPU whose load the kernel reports")}
