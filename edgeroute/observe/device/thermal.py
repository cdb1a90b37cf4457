"""Heat of a device, and whether its processor is throttled."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgeroute.observe.device.commands import Commands
from edgeroute.observe.device.files import Files, Told

# Temperature: of the hottest thermal zone, or of the hottest sensor where there are no zones.

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


# Throttling: whether the processor runs slower than it could, for heat or a weak supply.

FIRMWARE = ("sys/devices/platform/soc/soc:firmware/get_throttled", "sys/devices/platform/*soc*/*firmware*/get_throttled")
VCGENCMD_S = 10.0
"""Minimum time between two runs of `vcgencmd`."""
NOW = ((0x1, "under-voltage"), (0x2, "the frequency is capped"), (0x4, "throttled"), (0x8, "the soft limit of temperature"))
"""Bits of the Raspberry Pi's firmware; each is repeated 16 bits higher for: it has been so since the boot."""
COOLING = re.compile(r"cpufreq|^Processor$|throttle-alert", re.IGNORECASE)
"""Cooling devices that slow a processor: by the thermal framework, by ACPI, and on Jetson."""
MOST_CORES = 32
"""Most cores whose counter of thermal events is read."""


class Throttling:
    """Whether the processor is throttled, by the first that tells: the Pi's firmware, Intel's counters, cooling devices."""

    def __init__(self, files: Files, commands: Commands) -> None:
        self._files, self._commands = files, commands
        self._events: float | None = None

    def find(self) -> None:
        """Looks for what tells it."""
        match = self._files.match
        self._firmware = next((path for pattern in FIRMWARE for path in match(pattern)), "")
        self._pi = "Raspberry Pi" in self._files.word("proc/device-tree/model")
        self._counters = [
            f"{path}/{name}_throttle_count"
            for path in match("sys/devices/system/cpu/cpu*/thermal_throttle")[:MOST_CORES]
            for name in ("core", "package")
        ]
        cooling = match("sys/class/thermal/cooling_device*")
        self._cooling = [(path, kind) for path in cooling if COOLING.search(kind := self._files.word(f"{path}/type"))]
        supplies = [path for path in match("sys/class/hwmon/hwmon*") if self._files.word(f"{path}/name") == "rpi_volt"]
        self._alarms = [f"{path}/in0_lcrit_alarm" for path in supplies]

    def read(self, now: float) -> dict[str, Told]:
        """Whether it is throttled."""
        found = self._by_firmware(now) or self._by_counters() or self._by_cooling() or self._by_voltage()
        return {"throttled": found or Told(None, f"neither firmware, thermal events nor cooling devices tell{self._hint()}")}

    def _by_firmware(self, now: float) -> Told | None:
        source, text = f"/{self._firmware}", self._files.word(self._firmware) if self._firmware else ""
        if not text and self._pi:
            output = self._commands.output("vcgencmd", "get_throttled", every_s=VCGENCMD_S, now=now)
            source, text = "vcgencmd get_throttled", (output or "").partition("throttled=")[2].strip()
        try:
            bits = int(text, 16)
        except ValueError:
            return None
        if bits < 0:
            return None
        said = ", ".join(name for bit, name in NOW if bits & bit) or "nothing now"
        since = ", ".join(name for bit, name in NOW if bits & bit << 16)
        return Told(bool(bits & 0xF), f"{source}: {said}{f'; since the boot: {since}' if since else ''}")

    def _by_counters(self) -> Told | None:
        """By Intel's counters of thermal events, a core's and its package's: whether there were some since the last reading."""
        counts = [value for path in self._counters if (value := self._files.number(path)) is not None]
        if not counts:
            return None
        before, self._events = self._events, sum(counts)
        if before is None or self._events < before:  # a core was turned off
            return Told(None, "thermal events are a difference: known from the second reading on")
        return Told(self._events > before, "thermal events of the cores since the last reading (thermal_throttle)")

    def _by_cooling(self) -> Told | None:
        states = [(value, kind) for path, kind in self._cooling if (value := self._files.number(f"{path}/cur_state")) is not None]
        if not states:
            return None
        active = [kind for value, kind in states if value > 0]
        return Told(bool(active), f"cooling devices: {', '.join(active[:3]) if active else 'none is active'}")

    def _by_voltage(self) -> Told | None:
        alarms = [value for path in self._alarms if (value := self._files.number(path)) is not None]
        return Told(any(alarms), "under-voltage by the Pi's supply sensor (rpi_volt)") if alarms else None

    def _hint(self) -> str:
        """A frequency below the hardware's own may be heat, and may be a setting: so it is told, and is no reading."""
        if self._pi:
            return "; vcgencmd did not answer, or failed: the user has to be in the group video"
        folder = "sys/devices/system/cpu/cpu0/cpufreq"
        most, limit = self._files.number(f"{folder}/cpuinfo_max_freq"), self._files.number(f"{folder}/scaling_max_freq")
        if not most or limit is None or limit >= most:
            return ""
        return f"; cpu0 is limited to {limit / most:.0%} of its frequency, by a setting or for heat"
