"""Temperature: of the hottest thermal zone, or of the hottest sensor where there are no zones."""

from __future__ import annotations

from collections.abc import Iterable

from edgeroute.observe.device.files import Files, Told

ZONES = "sys/class/thermal/thermal_zone*"
SENSORS = "sys/class/hwmon/hwmon*/temp*_input"
COLDEST_C, HOTTEST_C = -60.0, 150.0
"""What is outside is no temperature: a zone that is off says -273.2 or 0x7fffffff."""


class Thermal:
    """Temperature of the hottest part of the device."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def find(self) -> None:
        """Looks for zones and sensors."""
        self._zones = [(f"{zone}/temp", self._files.word(f"{zone}/type")) for zone in self._files.match(ZONES)]
        self._sensors = [
            (path, f"{self._files.word(f'{folder}/name')} {self._files.word(path[: -len('input')] + 'label')}".strip())
            for path in self._files.match(SENSORS)
            for folder in [path.rpartition("/")[0]]
        ]

    def read(self) -> dict[str, Told]:
        """The temperature; a zone that cannot be read does not count."""
        found = self._hottest(self._zones, "thermal zone") or self._hottest(self._sensors, "sensor")
        why = "none of the thermal zones can be read" if self._zones else f"there is neither a /{ZONES} nor a /{SENSORS}"
        return {"temperature_c": found or Told(None, why)}

    def _hottest(self, paths: Iterable[tuple[str, str]], kind: str) -> Told | None:
        values = [(value / 1000, name) for path, name in paths if (value := self._files.number(path)) is not None]
        degrees, name = max(((c, name) for c, name in values if COLDEST_C <= c <= HOTTEST_C), default=(None, ""))
        return None if degrees is None else Told(degrees, f"the hottest {kind}{f', {name}' if name else ''}")
