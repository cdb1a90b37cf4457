"""Device sensors: battery level and temperature, from Linux sysfs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SYSTEM = Path("/sys/class")


class Reading(NamedTuple):
    """One reading; None: unknown."""

    battery: float | None = None
    """State of charge, 0..1; None also while on external power, when it need not be spared."""
    temperature_c: float | None = None
    """Of the hottest thermal zone, degrees Celsius."""


Sensors = Callable[[], Reading]


def read() -> Reading:
    """Reads the first battery and all thermal zones from sysfs. Takes a few hundred microseconds; never raises."""
    return Reading(_battery(SYSTEM / "power_supply"), max(_temperatures(SYSTEM / "thermal"), default=None))


def _battery(supplies: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        for supply in sorted(supplies.iterdir()):
            with contextlib.suppress(OSError, ValueError):
                # a mouse has a battery too, with scope Device
                if _text(supply / "type") == "Battery" and (supply / "capacity").exists() and not _of_a_peripheral(supply):
                    charging = _text(supply / "status") in {"Charging", "Full", "Not charging"}
                    return None if charging else int(_text(supply / "capacity")) / 100
    return None


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
