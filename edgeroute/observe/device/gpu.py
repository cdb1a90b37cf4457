"""GPU load, where the kernel's driver reports it: Jetson, AMD, and some devfreq drivers."""

from __future__ import annotations

from edgeroute.observe.device.files import Files, Measurement

PER_MILLE = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/*.ga10b/load",
    "sys/devices/platform/*.gv11b/load",
    "sys/devices/*.gv11b/load",
    "sys/devices/*.gp10b/load",
    "sys/devices/platform/*.gpu/load",
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/bus@0/*.ga10b/load",
)
"""Files of Jetson's boards and JetPack's versions with the load, 0..1000."""
PERCENT = ("sys/class/drm/card*/device/gpu_busy_percent",)
"""Files of AMD's driver with the load, 0..100."""
DEVFREQ = "sys/class/devfreq/*gpu*/load"
"""Files of devfreq drivers, such as `12@800000000Hz`: percent and frequency."""
FULL = 100


class Gpu:
    """Reader of the share of the GPU's time that was used."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def find(self) -> None:
        """Search for files with a GPU's load."""
        match = self._files.match
        self._sources = [(path, 1000) for pattern in PER_MILLE for path in match(pattern)]
        self._sources += [(path, FULL) for pattern in PERCENT for path in match(pattern)]
        self._devfreq = match(DEVFREQ)

    def read(self) -> dict[str, Measurement]:
        """Return `gpu`: the load, 0..1, of the first GPU that has one."""
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
