"""Device sensors: battery level and temperature, from Linux sysfs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeroute.core.readings import Reading

SYSTEM = Path("/sys/class")


Sensors = Callable[[], Reading]


def read() -> Reading:
    """Reads the first battery and all thermal zones from sysfs. Takes a few hundred microseconds; never raises."""
    charge, mains = _battery(SYSTEM / "power_supply")
    return Reading(charge, max(_temperatures(SYSTEM / "thermal"), default=None), mains)


def _battery(supplies: Path) -> tuple[float | None, bool | None]:
    """State of charge, 0..1, and whether the device is on external power."""
    with contextlib.suppress(OSError, ValueError):
        for supply in sorted(supplies.iterdir()):
            with contextlib.suppress(OSError, ValueError):
                # a mouse has a battery too, with scope Device
                if _text(supply / "type") == "Battery" and (supply / "capacity").exists() and not _of_a_peripheral(supply):
                    charging = _text(supply / "status") in {"Charging", "Full", "Not charging"}
                    return int(_text(supply / "capacity")) / 100, charging
    return None, None


def _of_a_peripheral(supply: Path) -> bool:
    scope = supply / "scope"
    return scope.exists() and _text(scope) == "Device"


def _temperatures(zones: Path) -> Iterator[float]:
    with contextlib.suppress(OSError):
        for zone in zones.glob("thermal_zone*"):
            with contextlib.suppress(OSError, ValueError):  # a disabled zone cannot be read
                yield int(_text(zone / "temp")) / 1000


def _text(file: Path) -> str:
    return file.read_text(encoding="ascii").strip()
