"""Sensors of macOS and Windows: by psutil where it is installed, otherwise what the system tells without it."""

from __future__ import annotations

import re
import sys
from typing import Any

from edgeroute.observe.device.commands import Commands
from edgeroute.observe.device.files import Told
from edgeroute.system.imports import imported

PMSET_S = 10.0
"""Minimum time between two runs of macOS's `pmset`."""
FULL = 100
MISSING = "pip install edgeroute[sensors] (psutil) tells it"


class Others:
    """Battery, load and memory where there is no sysfs."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._windows: Any = None
        if sys.platform == "win32":
            from edgeroute.observe.device.windows import Windows  # imports ctypes

            self._windows = Windows()
        self._psutil: Any = None
        self._tried = self._counting = False

    def read(self, now: float) -> dict[str, Told]:
        """All that is known."""
        told = dict.fromkeys(("battery", "mains", "cpu", "memory_available"), Told(None, MISSING))
        if not self._tried:
            self._tried = True
            try:
                self._psutil = imported("psutil")
            except Exception:  # noqa: BLE001 - there is none, or it does not work here
                self._psutil = None
        if self._psutil is not None:
            told.update(self._by_psutil())
        elif self._windows is not None:
            told.update(self._windows.read())
        elif sys.platform == "darwin":
            told.update(battery_of(self._commands.output("pmset", "-g", "batt", every_s=PMSET_S, now=now)))
        if sys.platform == "darwin":
            told.update(throttled_of(self._commands.output("pmset", "-g", "therm", every_s=PMSET_S, now=now)))
        return told

    def _by_psutil(self) -> dict[str, Told]:
        told, psutil = dict[str, Told](), self._psutil
        try:
            battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
            none = Told(None, "there is no battery")
            told["battery"] = none if battery is None else Told(min(1.0, battery.percent / 100), "psutil")
            told["mains"] = none if battery is None else Told(battery.power_plugged, "psutil")
            share = psutil.cpu_percent(None) / 100
            first, self._counting = not self._counting, True
            told["cpu"] = Told(None, "it is a difference: known from the second reading on") if first else Told(share, "psutil")
            memory = psutil.virtual_memory()
            told["memory_available"] = Told(memory.available / memory.total, "psutil")
        except Exception as e:  # noqa: BLE001 - its errors are the system's, of many kinds
            why = Told(None, f"psutil failed: {type(e).__name__}")
            return {**dict.fromkeys(("battery", "mains", "cpu", "memory_available"), why), **told}
        return told


def battery_of(output: str | None) -> dict[str, Told]:
    """Charge and external power from the output of `pmset -g batt`."""
    found = re.search(r"(\d{1,3})%", output or "")
    source = re.search(r"drawing from '(AC|Battery|UPS) Power'", output or "")
    why = "pmset has not answered yet" if output is None else "pmset tells of no battery"
    charge = Told(min(100, int(found[1])) / 100, "pmset") if found else Told(None, why)
    return {"battery": charge, "mains": Told(source[1] == "AC", "pmset") if source else Told(None, why)}


def throttled_of(output: str | None) -> dict[str, Told]:
    """Whether macOS limits the processor's speed, from the output of `pmset -g therm`; on Apple silicon it does not tell."""
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", output or "")
    if not found:
        return {"throttled": Told(None, "pmset does not tell it on this machine")}
    return {"throttled": Told(int(found[1]) < FULL, f"pmset: speed limit {found[1]} %")}
