"""Battery of Android, whose sysfs apps may not read: by Java's BatteryManager, or by Termux."""

from __future__ import annotations

from typing import Any

from edgeroute.observe.device.commands import Commands
from edgeroute.observe.device.files import Told
from edgeroute.system.process import json_loads

TERMUX_S = 30.0
"""Minimum time between two runs of `termux-battery-status`, which asks another app."""
CAPACITY = 4
"""BatteryManager.BATTERY_PROPERTY_CAPACITY: what remains, in percent."""
FULL = 100


class Android:
    """The battery, in an app of Chaquopy, or in Termux with its API package."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def read(self, now: float) -> dict[str, Told]:
        """Charge and external power."""
        return self._java() or self._termux(now)

    def _java(self) -> dict[str, Told]:
        """By Chaquopy, whose modules an app has without installing them."""
        try:
            from com.chaquo.python import Python  # type: ignore[import-not-found]  # Chaquopy's, as is `java`

            manager: Any = Python.getPlatform().getApplication().getSystemService("batterymanager")
            percent, charging = int(manager.getIntProperty(CAPACITY)), bool(manager.isCharging())
        except Exception:  # noqa: BLE001 - no Chaquopy, or what Java throws
            return {}
        if not 0 <= percent <= FULL:
            return {}
        return {"battery": Told(percent / FULL, "BatteryManager"), "mains": Told(charging, "BatteryManager")}

    def _termux(self, now: float) -> dict[str, Told]:
        output = self._commands.output("termux-battery-status", every_s=TERMUX_S, now=now)
        try:
            found: Any = json_loads((output or "").encode())
            told = {
                "battery": Told(float(found["percentage"]) / FULL, "termux-battery-status"),
                "mains": Told(found["plugged"] != "UNPLUGGED", "termux-battery-status"),
            }
        except (ValueError, TypeError, KeyError):
            why = "termux-battery-status has not answered yet" if output is None else "neither Chaquopy nor Termux:API tells it"
            return {name: Told(None, why) for name in ("battery", "mains")}
        if not 0 <= told["battery"].value <= 1:
            return {}
        return told
