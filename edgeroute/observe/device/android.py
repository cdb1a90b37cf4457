"""Battery of Android by Java's BatteryManager or by Termux, as apps may not read its sysfs."""

from __future__ import annotations

from typing import Any

from edgeroute.observe.device.commands import Commands
from edgeroute.observe.device.files import Measurement
from edgeroute.system.process import json_loads

TERMUX_S = 30.0
"""Minimum time between two runs of `termux-battery-status`, which queries another app, seconds."""
CAPACITY = 4
"""BatteryManager.BATTERY_PROPERTY_CAPACITY: remaining charge, in percent."""
FULL = 100


class Android:
    """Reader of the battery, in an app of Chaquopy, or in Termux with its API package."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def read(self, now: float) -> dict[str, Measurement]:
        """Return `battery` (charge, 0..1) and `mains`."""
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
        """Read the battery from the last output of `termux-battery-status`, which runs again in the background if that is old."""
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
        if not 0 <= fields["battery"].value <= 1:
            return {}
        return fields
