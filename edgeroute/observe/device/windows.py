"""Battery, load and memory of Windows, by functions of its kernel32."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any

from edgeroute.observe.device.files import Told

FULL, UNKNOWN, NO_BATTERY = 100, 255, 128


class PowerStatus(ctypes.Structure):
    """SYSTEM_POWER_STATUS."""

    _fields_ = (
        ("line", ctypes.c_ubyte), ("flag", ctypes.c_ubyte), ("percent", ctypes.c_ubyte), ("saver", ctypes.c_ubyte),
        ("left_s", ctypes.c_uint32), ("full_s", ctypes.c_uint32),
    )  # fmt: skip


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64), ("available", ctypes.c_uint64),
        ("page_total", ctypes.c_uint64), ("page_available", ctypes.c_uint64), ("virtual_total", ctypes.c_uint64),
        ("virtual_available", ctypes.c_uint64), ("extended", ctypes.c_uint64),
    )  # fmt: skip


class Windows:
    """What Windows tells without another package.

    Args:
        kernel32: its functions; None: the system's.
    """

    def __init__(self, kernel32: Any = None) -> None:
        if kernel32 is None and sys.platform == "win32":
            kernel32 = ctypes.WinDLL("kernel32")
        self._kernel = kernel32
        self._counted: tuple[int, int] | None = None

    def read(self) -> dict[str, Told]:
        """Charge, external power, load and memory."""
        told = dict[str, Told]()
        for part in (self._power, self._memory, self._load):
            with contextlib.suppress(OSError, AttributeError):  # an old or a cut-down Windows
                told.update(part())
        return told

    def _power(self) -> dict[str, Told]:
        status = PowerStatus()
        if not self._kernel.GetSystemPowerStatus(ctypes.byref(status)):
            return {}
        by = "GetSystemPowerStatus"
        none = status.percent > FULL or status.flag == UNKNOWN or status.flag & NO_BATTERY
        return {
            "battery": Told(None, "there is no battery") if none else Told(status.percent / FULL, by),
            "mains": Told(bool(status.line), by) if status.line in {0, 1} else Told(None, f"{by} does not know"),
        }

    def _memory(self) -> dict[str, Told]:
        status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
        if not self._kernel.GlobalMemoryStatusEx(ctypes.byref(status)) or not status.total:
            return {}
        return {"memory_available": Told(status.available / status.total, "GlobalMemoryStatusEx")}

    def _load(self) -> dict[str, Told]:
        times = [ctypes.c_uint64() for _ in range(3)]  # FILETIMEs: idle; kernel, with idle in it; user
        if not self._kernel.GetSystemTimes(*(ctypes.byref(one) for one in times)):
            return {}
        idle, kernel, user = (one.value for one in times)
        before, self._counted = self._counted, (idle, kernel + user)
        if before is None or kernel + user <= before[1]:
            return {"cpu": Told(None, "it is a difference: known from the second reading on")}
        share = 1 - (idle - before[0]) / (kernel + user - before[1])
        return {"cpu": Told(min(1.0, max(0.0, share)), "GetSystemTimes")}
