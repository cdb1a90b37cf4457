"""Temperature of a Linux device (`Thermal`), and if its processor is throttled (`Throttling`): by kernel files, or `vcgencmd`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgeroute.observe.device.kernel_files_and_cached_commands import Commands, FileReader, Files, Measurement

# Temperature of the hottest thermal zone, or of the hottest sensor where there are no zones.

ZONES = "sys/class/thermal/thermal_zone*"
SENSORS = "sys/class/hwmon/hwmon*/temp*_input"
COLDEST_C, HOTTEST_C = -60.0, 150.0  # range of valid temperatures, degrees Celsius: a zone that is off reads -273.2 or 0x7fffffff


class Thermal(FileReader):
    """Reader of the temperature of the hottest part of the device."""

    def find(self) -> None:
        """Search for thermal zones and sensors, and keep their paths and names for `read`."""
        self._zones = [(f"{zone}/temp", self._files.word(f"{zone}/type")) for zone in self._files.match(ZONES)]
        self._sensors = [
            (path, f"{self._files.word(f'{folder}/name')} {self._files.word(path[: -len('input')] + 'label')}".strip())
            for path in self._files.match(SENSORS)
            for folder in [path.rpartition("/")[0]]
        ]

    def read(self) -> dict[str, Measurement]:
        """Return `temperature_c`; zones that cannot be read are ignored.

        Sensors count only if no zone has a valid temperature.
        """
        hottest = self._hottest(self._zones, "thermal zone") or self._hottest(self._sensors, "sensor")
        why = "none of the thermal zones can be read" if self._zones else f"there is neither a /{ZONES} nor a /{SENSORS}"
        return {"temperature_c": hottest or Measurement(None, why)}

    def _hottest(self, paths: Iterable[tuple[str, str]], kind: str) -> Measurement | None:
        """Return the highest valid temperature of these files, with the sensor's name as the source; None: no file has one."""
        values = [(value / 1000, name) for path, name in paths if (value := self._files.number(path)) is not None]
        degrees, name = max(((c, name) for c, name in values if COLDEST_C <= c <= HOTTEST_C), default=(None, ""))
        return None if degrees is None else Measurement(degrees, f"the hottest {kind}{f', {name}' if name else ''}")


# Throttling: the processor runs slower than it could, because of heat or a weak supply.

# Files with the throttling bits of the Raspberry Pi's firmware.
FIRMWARE = ("sys/devices/platform/soc/soc:firmware/get_throttled", "sys/devices/platform/*soc*/*firmware*/get_throttled")
VCGENCMD_S = 10.0  # minimum time between two runs of `vcgencmd`, seconds
# Bits of the Raspberry Pi's firmware; each is repeated 16 bits higher for "at some time since the boot".
NOW = ((0x1, "under-voltage"), (0x2, "the frequency is capped"), (0x4, "throttled"), (0x8, "the soft limit of temperature"))
# Types of cooling devices that slow a processor: of the thermal framework, of ACPI, and on Jetson.
COOLING = re.compile(r"cpufreq|^Processor$|throttle-alert", re.IGNORECASE)
MOST_CORES = 32  # most cores whose counter of thermal events is read


class Throttling:
    """Reader of whether the processor is throttled, by the first source: the Pi's firmware, Intel's counters, cooling devices."""

    def __init__(self, files: Files, commands: Commands) -> None:
        self._files, self._commands = files, commands
        self._events: float | None = None

    def find(self) -> None:
        """Search for files of firmware, counters, cooling devices and supply alarms, and keep their paths for `read`.

        At most `MOST_CORES` cores.
        """
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

    def read(self, now: float) -> dict[str, Measurement]:
        """Return `throttled`, by the first source that has it: firmware, event counters, cooling devices, supply alarms."""
        throttled = self._by_firmware(now) or self._by_counters() or self._by_cooling() or self._by_voltage()
        if throttled is None:
            throttled = Measurement(None, f"neither firmware, thermal events nor cooling devices report it{self._hint()}")
        return {"throttled": throttled}

    def _by_firmware(self, now: float) -> Measurement | None:
        """Return the state by the bits of the Raspberry Pi's firmware, from a file or else the last output of `vcgencmd`.

        `vcgencmd` is run again in the background if its output is old. True for any of the present bits, under-voltage too. None:
        neither has them.
        """
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
        states = ", ".join(name for bit, name in NOW if bits & bit) or "nothing now"
        since = ", ".join(name for bit, name in NOW if bits & bit << 16)
        return Measurement(bool(bits & 0xF), f"{source}: {states}{f'; since the boot: {since}' if since else ''}")

    def _by_counters(self) -> Measurement | None:
        """Return True as a value if Intel's counters of thermal events have risen since the last reading; None: there are none.

        Stores the counts. Unknown at the first reading.
        """
        counts = [value for path in self._counters if (value := self._files.number(path)) is not None]
        if not counts:
            return None
        before, self._events = self._events, sum(counts)
        if before is None or self._events < before:  # a core was turned off
            return Measurement(None, "thermal events are a difference: known from the second reading on")
        return Measurement(self._events > before, "thermal events of the cores since the last reading (thermal_throttle)")

    def _by_cooling(self) -> Measurement | None:
        """Return True as a value if a cooling device that slows the processor is active; None: there is none."""
        states = [(value, kind) for path, kind in self._cooling if (value := self._files.number(f"{path}/cur_state")) is not None]
        if not states:
            return None
        active = [kind for value, kind in states if value > 0]
        return Measurement(bool(active), f"cooling devices: {', '.join(active[:3]) if active else 'none is active'}")

    def _by_voltage(self) -> Measurement | None:
        """Return True as a value if the Pi's supply sensor reports under-voltage; None: there is none."""
        alarms = [value for path in self._alarms if (value := self._files.number(path)) is not None]
        return Measurement(any(alarms), "under-voltage by the Pi's supply sensor (rpi_volt)") if alarms else None

    def _hint(self) -> str:
        """Return the end of a message: a limited frequency of the processor, or the group that `vcgencmd` needs; may be empty.

        A limited frequency may be a setting as well as heat, so it is only mentioned, and is no reading.
        """
        if self._pi:
            return "; vcgencmd did not answer, or failed: the user has to be in the group video"
        folder = "sys/devices/system/cpu/cpu0/cpufreq"
        most, limit = self._files.number(f"{folder}/cpuinfo_max_freq"), self._files.number(f"{folder}/scaling_max_freq")
        if not most or limit is None or limit >= most:
            return ""
        return f"; cpu0 is limited to {100 * limit / most:.0f} % of its frequency, by a setting or for heat"
