"""Power that a Linux device draws, in watts (`Power`), and its batteries and supplies (`Battery`)."""

from __future__ import annotations

import re
from math import isfinite

from edgeroute.observe.device.kernel_files_and_cached_commands import Commands, FileReader, Files, Measurement

# Power of the whole device where it is measured, otherwise of its processor, in watts.

WHOLE = ("VDD_IN", "POM_5V_IN", "VIN", "5V_IN")  # rails of Jetson's boards through which all power of a module comes
WITHIN = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}  # rail of an AGX Orin -> the rail that feeds it, whose power includes it already
PI5 = re.compile(r"Raspberry Pi (5|500|Compute Module 5)\b")  # Raspberry Pi models whose power controller measures
RAPL = "sys/class/powercap"  # folder of the energy counters of Intel's and AMD's processors
PACKAGE = re.compile(r"intel-rapl:\d+|intel-rapl-mmio:\d+")  # names of counters of a whole processor package
OLD_S = 600.0  # longest time between two readings of a counter, seconds: after more, it may have wrapped around more than once
PMIC_S = 10.0  # minimum time between two runs of `vcgencmd`, seconds
_PMIC = re.compile(r"^\s*(\w+)_([AV])\s.*?=\s*(-?\d+\.?\d*)([AV])\s*$", re.MULTILINE)


class Power:
    """Reader of the device's power, by the first available source: Jetson's rails, the battery, the Pi 5's rails, RAPL."""

    def __init__(self, files: Files, commands: Commands) -> None:
        self._files, self._commands = files, commands
        self._energy: dict[str, float] = {}
        self._at = 0.0

    def find(self) -> None:
        """Search for the files of rails and counters, and for the model of a Raspberry Pi; keeps them for `read`.

        Of RAPL's domains only packages count.
        """
        files = self._files
        self._rails: list[tuple[str, int, str]] = []
        for path in files.match("sys/class/hwmon/hwmon*"):
            if files.word(f"{path}/name") == "ina3221":
                labels = [(n, files.word(f"{path}/in{n}_label")) for n in (1, 2, 3)]
                self._rails += [(path, n, label) for n, label in labels if label and label != "NC"]
        self._pi5 = PI5.search(files.word("proc/device-tree/model")) is not None
        domains = [name for name in files.names(RAPL) if PACKAGE.fullmatch(name)]
        if any(name.startswith("intel-rapl:") for name in domains):
            domains = [name for name in domains if name.startswith("intel-rapl:")]  # the same packages by another interface
        self._domains = [f"{RAPL}/{name}" for name in domains if files.word(f"{RAPL}/{name}/name").startswith("package")]

    def read(self, now: float, battery: Measurement) -> dict[str, Measurement]:
        """Return `power_w` by the first source that has it: Jetson's rails, battery, the Pi 5's rails, or energy counters (RAPL).

        It is the power now, or, for counters, the average since the last reading. The counters are read in any case, as their
        next difference needs them.

        Args:
            now: monotonic.
            battery: power drawn from the battery, or the reason why it is unknown.
        """
        by_rapl = self._by_rapl(now)  # in any case: the next difference begins here
        power = self._by_rails() or (battery if battery.value is not None else None) or self._by_pmic(now) or by_rapl
        return {"power_w": power or Measurement(None, f"nothing that this system has measures it; {battery.source}")}

    def _by_rails(self) -> Measurement | None:
        """Return the power by Jetson's INA3221: of the rail that feeds the whole module, or else the sum of the rails.

        A rail within another counted one is left out. None: there are none.
        """
        watts = {}
        for path, n, label in self._rails:
            volts, amperes = self._files.number(f"{path}/in{n}_input"), self._files.number(f"{path}/curr{n}_input")
            if volts is not None and amperes is not None and volts >= 0 and amperes >= 0:
                watts[label] = volts * amperes / 1e6
        for label in WHOLE:
            if label in watts:
                return Measurement(watts[label], f"the rail {label}: the whole module")
        watts = {label: power for label, power in watts.items() if WITHIN.get(label) not in watts}
        return Measurement(sum(watts.values()), f"the sum of the rails {', '.join(watts)}") if watts else None

    def _by_pmic(self, now: float) -> Measurement | None:
        """Return the power by the Pi 5's power controller: the sum over its rails of current times voltage.

        Losses and USB devices are not included. None: this is no Pi 5, or `vcgencmd` has given no power yet.
        """
        if not self._pi5:
            return None
        output = self._commands.output("vcgencmd", "pmic_read_adc", every_s=PMIC_S, now=now) or ""
        readings: dict[str, dict[str, float]] = {"A": {}, "V": {}}
        for rail, kind, number, unit in _PMIC.findall(output):
            if kind == unit:
                readings[kind][rail] = float(number)
        pairs = [readings["A"][rail] * readings["V"][rail] for rail in readings["A"] if rail in readings["V"]]
        watts = sum(pairs)
        if not pairs or not isfinite(watts) or watts <= 0:
            return None
        return Measurement(watts, f"the sum of {len(pairs)} rails (vcgencmd pmic_read_adc), without losses and what USB draws")

    def _by_rapl(self, now: float) -> Measurement | None:
        """Return the average power of the processor packages since the last reading, by Intel's and AMD's energy counters (RAPL).

        Stores the counters. None: there are none. Unknown at the first reading, after a long pause, or if a counter goes back.
        """
        if not self._domains:
            return None
        before, read_at, joules = self._energy, self._at, 0.0
        self._energy = {d: e for d in self._domains if (e := self._files.number(f"{d}/energy_uj")) is not None and e >= 0}
        self._at = now
        if not self._energy:
            return Measurement(None, self._files.why(f"{self._domains[0]}/energy_uj"))
        if before.keys() != self._energy.keys() or not 0 < now - read_at <= OLD_S:
            return Measurement(None, "the processor's energy is a difference: known from the second reading on")
        for domain, energy in self._energy.items():
            used = energy - before[domain]
            if used < 0:  # the counter has wrapped around
                used += self._files.number(f"{domain}/max_energy_range_uj") or 0.0
            if used < 0:
                return Measurement(None, f"/{domain}/energy_uj went back")
            joules += used / 1e6
        return Measurement(joules / (now - read_at), "the processor packages alone (RAPL), on average since the last reading")


# Battery and external power, from /sys/class/power_supply.

SUPPLIES = "sys/class/power_supply"  # folder of batteries and external supplies
FED = frozenset({"Charging", "Full", "Not charging"})  # states of a battery that an external supply feeds
MOST = 1.1  # largest charge that is accepted: a gauge may show a little more than full


class Battery(FileReader):
    """Reader of the device's own batteries and supplies, without those of a mouse or of headphones (scope Device)."""

    def find(self) -> None:
        """Search for batteries and supplies, and keep their paths: a laptop's second battery and a dock come and go.

        Those of a mouse or headphones (scope Device) are left out.
        """
        self._batteries: list[str] = []
        self._external: list[str] = []
        for name in self._files.names(SUPPLIES):
            path = f"{SUPPLIES}/{name}"
            kind = self._files.word(f"{path}/type")
            if not kind or self._files.word(f"{path}/scope") == "Device":
                continue
            (self._batteries if kind in {"Battery", "UPS"} else self._external).append(path)

    def read(self) -> dict[str, Measurement]:
        """Return `battery` (charge, 0..1), `mains`, and `power_w` drawn from the battery, in watts.

        Batteries that are not present are left out.
        """
        files, states, weighted, drawn = self._files, list[str](), list[tuple[float, float | None]](), list[float]()
        for path in self._batteries:
            if files.number(f"{path}/present") == 0:
                continue
            if (charge := self._charge(path)) is not None:
                weighted.append((charge, files.number(f"{path}/energy_full")))
            state = files.word(f"{path}/status")
            states.append(state)
            if state == "Discharging" and (power := self._drawn(path)) is not None:
                drawn.append(power)
        return {"battery": _total_charge(weighted, len(states)), "mains": self._mains(states), "power_w": _power(drawn, states)}

    def _charge(self, path: str) -> float | None:
        """Return the charge of one battery, 0..1; None: the battery does not report it.

        Cut to 1; far above 1 counts as not reported.
        """
        number = self._files.number
        pairs = ((number(f"{path}/{unit}_now"), number(f"{path}/{unit}_full")) for unit in ("energy", "charge"))
        percent = number(f"{path}/capacity")
        charge = next((now / full for now, full in pairs if now is not None and full), -1.0) if percent is None else percent / 100
        return min(charge, 1.0) if 0 <= charge <= MOST else None

    def _drawn(self, path: str) -> float | None:
        """Return the power drawn from one battery, watts. Some drivers have a negative sign while the battery discharges.

        None: the battery does not report it.
        """
        if (power := self._files.number(f"{path}/power_now")) is not None:
            return abs(power) / 1e6
        current, voltage = self._files.number(f"{path}/current_now"), self._files.number(f"{path}/voltage_now")
        return None if current is None or voltage is None else abs(current * voltage) / 1e12

    def _mains(self, states: list[str]) -> Measurement:
        """Return True as a value if the device is on external power.

        A battery that discharges counts as no external power, even with a charger, which is then too weak. Else a battery that
        charges or is full, then the supplies count; unknown if none reports.
        """
        if "Discharging" in states:
            return Measurement(value=False, source="the battery's status")
        if FED.intersection(states):
            return Measurement(value=True, source="the battery's status")
        online = [self._files.number(f"{path}/online") for path in self._external]
        if any(online):
            return Measurement(value=True, source="a power supply that is online")
        if 0 in online:
            return Measurement(value=False, source="all power supplies are offline")
        return Measurement(None, f"there is no power supply in /{SUPPLIES} that reports its state")


def _total_charge(weighted: list[tuple[float, float | None]], batteries: int) -> Measurement:
    """Return the charge of all batteries, each weighted by its full energy if all of them report that.

    Unknown, with the reason, if none reports a charge.
    """
    if not weighted:
        why = "no battery reports its charge" if batteries else f"there is no battery in /{SUPPLIES}"
        return Measurement(None, why)
    full = [most for _, most in weighted if most is not None and most > 0]
    weights = full if len(full) == len(weighted) else [1.0] * len(weighted)
    charge = sum(share * weight for (share, _), weight in zip(weighted, weights, strict=True)) / sum(weights)
    return Measurement(charge, f"{len(weighted)} {'battery' if len(weighted) == 1 else 'batteries'}")


def _power(drawn: list[float], states: list[str]) -> Measurement:
    """Return the sum of the power drawn from batteries as a value, or the reason why it is unknown.

    Unknown unless a battery is discharging.
    """
    if "Discharging" not in states:
        return Measurement(None, "no battery is being discharged")
    if sum(drawn) <= 0:
        return Measurement(None, "the battery does not report the power drawn from it")
    return Measurement(sum(drawn), "what is drawn from the battery: the whole device")
