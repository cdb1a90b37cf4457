"""CPU load, from differences of /proc/stat, and CPU and memory pressure (PSI)."""

from __future__ import annotations

from edgeroute.observe.device.files import Files, Told

STAT = "proc/stat"
TICKS = 5
"""Least time of all cores together between two counts, in ticks of 10 ms: of less, the share would be noise."""


class Load:
    """Share of all cores' time that was used since the last reading."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._counted: tuple[float, float] | None = None
        self._share: float | None = None

    def read(self) -> dict[str, Told]:
        """Load and pressure."""
        return {"cpu": self._load(), "cpu_pressure": pressure(self._files, "cpu")}

    def _load(self) -> Told:
        counted, before = _count(self._files.word(STAT)), self._counted
        if counted is None:
            self._counted = self._share = None
            return Told(None, self._files.why(STAT))
        if before is None or counted[1] < before[1]:  # the counters began again: a container was moved
            self._counted, self._share = counted, None
            return Told(None, "it is a difference: known from the second reading on")
        if counted[1] - before[1] >= TICKS:
            self._counted = counted
            self._share = min(1.0, max(0.0, (counted[0] - before[0]) / (counted[1] - before[1])))
        if self._share is None:
            return Told(None, "it is a difference: the first reading is too recent")
        return Told(self._share, f"/{STAT}: all cores of the machine, since the last reading")


def _count(text: str) -> tuple[float, float] | None:
    """(ticks used, all ticks) of all cores together; time that another virtual machine took (steal) is used."""
    first = text.partition("\n")[0].split()
    try:
        ticks = [int(word) for word in first[1:9]]  # guests' time, which follows, is in the users' already
        idle, waiting = ticks[3:5]
        used, whole = float(sum(ticks) - idle - waiting), float(sum(ticks))
    except (ValueError, OverflowError):
        return None
    return None if first[0] != "cpu" or min(ticks) < 0 else (used, whole)


def pressure(files: Files, of: str) -> Told:
    """Share of the last 10 s in which a task waited for `of`: cpu or memory."""
    path = f"proc/pressure/{of}"
    for line in files.word(path).splitlines():
        if line.startswith("some ") and (found := line.partition("avg10=")[2].split()):
            try:
                share = float(found[0]) / 100
            except ValueError:
                break
            if 0 <= share <= 1:
                return Told(share, f"/{path} (some, avg10)")
    return Told(None, f"{files.why(path)}: the kernel has no PSI, or it is off (psi=1 at its start turns it on)")
