"""GPU load, where the kernel's driver has it: Jetson, AMD, and devfreq drivers that tell it."""

from __future__ import annotations

from edgeroute.observe.device.files import Files, Told

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
"""Of Jetson's boards and JetPack's versions, 0..1000."""
PERCENT = ("sys/class/drm/card*/device/gpu_busy_percent",)
DEVFREQ = "sys/class/devfreq/*gpu*/load"
"""`12@800000000Hz`, in percent."""
FULL = 100


class Gpu:
    """Share of the GPU's time that was used."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def find(self) -> None:
        """Looks for a GPU."""
        match = self._files.match
        self._sources = [(path, 1000) for pattern in PER_MILLE for path in match(pattern)]
        self._sources += [(path, FULL) for pattern in PERCENT for path in match(pattern)]
        self._devfreq = match(DEVFREQ)

    def read(self) -> dict[str, Told]:
        """Load of the first GPU that tells it."""
        for path, whole in self._sources:
            value = self._files.number(path)
            if value is not None and 0 <= value <= whole:
                return {"gpu": Told(value / whole, f"/{path}")}
        for path in self._devfreq:
            percent, at, _ = self._files.word(path).partition("@")
            if at and percent.isascii() and percent.isdigit() and int(percent) <= FULL:
                return {"gpu": Told(int(percent) / FULL, f"/{path}")}
        found = [path for path, _ in self._sources] + self._devfreq
        return {"gpu": Told(None, self._files.why(found[0]) if found else "there is no GPU whose load the kernel tells")}
