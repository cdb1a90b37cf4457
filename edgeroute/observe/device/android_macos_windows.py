"""Sensors of Android (`Android`), and of macOS and Windows (`Others`), where apps cannot read sysfs or there is none."""

from __future__ import annotations

import re
import sys
from typing import Any

from edgeroute.observe.device.kernel_files_and_cached_commands import SECOND, Commands, Measurement
from edgeroute.system.json_codec_and_short_repr import json_loads
from edgeroute.system.late_imports_and_plugins import import_late

PMSET_S = 10.0  # minimum time between two runs of macOS's `pmset`, seconds
FULL = 100
MISSING = "pip install psutil, which reads it"  # reason why a field is unknown, with the advice


class Others:
    """Reader of battery, load and memory on systems without sysfs."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._psutil: Any = None
        self._tried = self._counting = False

    def read(self, now: float) -> dict[str, Measurement]:
        """Return the fields that this system has.

        Imports psutil at the first call, and starts `pmset` in the background on macOS.
        """
        fields = dict.fromkeys(("battery", "mains", "cpu", "memory_available"), Measurement(None, MISSING))
        if not self._tried:
            self._tried = True
            try:
                self._psutil = import_late("psutil")
            except Exception:  # noqa: BLE001 - there is none, or it does not work here
                self._psutil = None
        if self._psutil is not None:
            fields.update(self._by_psutil())
        if sys.platform == "darwin":
            fields.update(parse_pmset_throttling(self._commands.output("pmset", "-g", "therm", every_s=PMSET_S, now=now)))
        return fields

    def _by_psutil(self) -> dict[str, Measurement]:
        """Return battery, mains, cpu and memory by psutil. cpu is unknown the first time: the call only starts the measurement.

        After an error, which is not raised, the fields from there on have it as the reason.
        """
        fields, psutil = dict[str, Measurement](), self._psutil
        try:
            battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
            none = Measurement(None, "there is no battery")
            fields["battery"] = none if battery is None else Measurement(min(1.0, battery.percent / 100), "psutil")
            fields["mains"] = none if battery is None else Measurement(battery.power_plugged, "psutil")
            share = psutil.cpu_percent(None) / 100
            first, self._counting = not self._counting, True
            fields["cpu"] = Measurement(None, SECOND) if first else Measurement(share, "psutil")
            memory = psutil.virtual_memory()
            fields["memory_available"] = Measurement(memory.available / memory.total, "psutil")
        except Exception as e:  # noqa: BLE001 - its errors are the system's, of many kinds
            why = Measurement(None, f"psutil failed: {type(e).__name__}")
            return {**dict.fromkeys(("battery", "mains", "cpu", "memory_available"), why), **fields}
        return fields


def parse_pmset_throttling(output: str | None) -> dict[str, Measurement]:
    """Return `throttled` from the output of `pmset -g therm`: True if macOS limits the processor's speed.

    Apple silicon has no limit there.
    """
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", output or "")
    if not limit:
        return {"throttled": Measurement(None, "pmset does not report it on this machine")}
    return {"throttled": Measurement(int(limit[1]) < FULL, f"pmset: speed limit {limit[1]} %")}


TERMUX_S = 30.0  # minimum time between two runs of `termux-battery-status`, which queries another app, seconds
CAPACITY = 4  # BatteryManager.BATTERY_PROPERTY_CAPACITY: remaining charge, in percent


class Android:
    """Reader of the battery, in an app of Chaquopy, or in Termux with its API package."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def read(self, now: float) -> dict[str, Measurement]:
        """Return `battery` (charge, 0..1) and `mains`. By Java, or else by Termux."""
        return self._java() or self._termux(now)

    def _java(self) -> dict[str, Measurement]:
        """Read the battery by Java through Chaquopy, which is part of its apps; empty: there is no Chaquopy, or Java failed."""
        try:
            from com.chaquo.python import Python  # type: ignore[import-not-found]  # Chaquopy's, as is `java`

            manager: Any = Python.getPlatform().getApplication().getSystemService("batterymanager")
            percent, charging = int(manager.getIntProperty(CAPACITY)), bool(manager.isCharging())
        except Exception:  # noqa: BLE001 - no Chaquopy, or what Java throws
            return {}
        if not 0 <= percent <= FULL:
            return {}
        return {"battery": Measurement(percent / FULL, "BatteryManager"), "mains": Measurement(charging, "BatteryManager")}

    def _termux(self, now: float) -> dict[str, Measurement]:
        """Read the battery from the last output of `termux-battery-status`, which runs again in the background if that is old.

        Unknown before the first output; {} for an impossible charge.
        """
        output = self._commands.output("termux-battery-status", every_s=TERMUX_S, now=now)
        try:
            status: Any = json_loads((output or "").encode())
            fields = {
                "battery": Measurement(float(status["percentage"]) / FULL, "termux-battery-status"),
                "mains": Measurement(status["plugged"] != "UNPLUGGED", "termux-battery-status"),
            }
        except (ValueError, TypeError, KeyError):
            why = "termux-battery-status has not answered yet" if output is None else "neither Chaquopy nor Termux:API reports it"
            return {name: Measurement(None, why) for name in ("battery", "mains")}
        return fields if 0 <= fields["battery"].value <= 1 else {}
