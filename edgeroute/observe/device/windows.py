"""Battery, load and memory of Windows, by functions of its kernel32."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any

from edgeroute.observe.device.files import Measurement

FULL, UNKNOWN, NO_BATTERY = 100, 255, 128


class PowerStatus(ctypes.Structure):
    """Windows structure SYSTEM_POWER_STATUS."""

    _fields_ = (
        ("line", ctypes.c_ubyte), ("flag", ctypes.c_ubyte), ("percent", ctypes.c_ubyte), ("saver", ctypes.c_ubyte),
        ("left_s", ctypes.c_uint32), ("full_s", ctypes.c_uint32),
    )  # fmt: skip


class MemoryStatus(ctypes.Structure):
    """Windows structure MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64), ("available", ctypes.c_uint64),
        ("page_total", ctypes.c_uint64), ("page_available", ctypes.c_uint64), ("virtual_total", ctypes.c_uint64),
        ("virtual_available", ctypes.c_uint64), ("extended", ctypes.c_uint64),
    )  # fmt: skip


class Windows:
    """Reader of battery, load and memory by Windows alone, without another package.

    Args:
        kernel32: its functions; None: the system's.
    """

    def __init__(self, kernel32: Any = None) -> None:
        if kernel32 is None and sys.platform == "win32":
            kernel32 = ctypes.WinDLL("kernel32")
        self._kernel = kernel32
        self._counted: tuple[int, int] | None = None

    def read(self) -> dict[str, Measurement]:
        """Return the fields that Windows has; functions that fail are left out."""
        fields = dict[str, Measurement]()
        for part in (self._power, self._memory, self._load):
            with contextlib.suppress(OSError, AttributeError):  # an old or a cut-down Windows
                fields.update(part())
        return fields

    def _power(self) -> dict[str, Measurement]:
        """Return `battery` (charge, 0..1) and `mains`."""
        status = PowerStatus()
        if not self._kernel.GetSystemPowerStatus(ctypes.byref(status)):
            return {}
        by = "GetSystemPowerStatus"
        none = status.percent > FULL or status.flag == UNKNOWN or status.flag & NO_BATTERY
        return {
            "battery": Measurement(None, "there is no battery") if none else Measurement(status.percent / FULL, by),
            "mains": Measurement(bool(status.line), by) if status.line in {0, 1} else Measurement(None, f"{by} does not know"),
        }

    def _memory(self) -> dict[str, Measurement]:
        """Return `memory_available`, 0..1."""
        status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
        if not self._kernel.GlobalMemoryStatusEx(ctypes.byref(status)) or not status.total:
            return {}
        return {"memory_available": Measurement(status.available / status.total, "GlobalMemoryStatusEx")}

    def _load(self) -> dict[str, Measurement]:
        """Return `cpu`: the load since the last call, 0..1, and store the new counts; unknown at the first call."""
        times = [ctypes.c_uint64() for _ in range(3)]  # FILETIMEs: idle; kernel, with idle in it; user
        if not self._kernel.GetSystemTimes(*(ctypes.byref(time) for time in times)):
            return {}
        idle, kernel, user = (time.value for time in times)
        before, self._counted = self._counted, (idle, kernel + user)
        if before is None or kernel + user <= before[1]:
            return {"cpu": Measurement(None, "it is a difference: known from the second reading on")}
        share = 1 - (idle - before[0]) / (kernel + user - before[1])
        return {"cpu": Measurement(min(1.0, max(0.0, share)), "GetSystemTimes")}
