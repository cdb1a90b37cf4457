"""Power that a device draws, and its battery."""

from __future__ import annotations

import re
from math import isfinite

from edgeroute.observe.device.commands import Commands
from edgeroute.observe.device.files import Files, Told

# Power: the device's where it is measured, or that of its processor. Watts.

WHOLE = ("VDD_IN", "POM_5V_IN", "VIN", "5V_IN")
"""Rails of Jetson's boards through which all of a module's power comes."""
WITHIN = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""A rail of an AGX Orin that is fed by another one, whose power has it already."""
PI5 = re.compile(r"Raspberry Pi (5|500|Compute Module 5)\b")
"""Models with a power controller that measures."""
RAPL = "sys/class/powercap"
PACKAGE = re.compile(r"intel-rapl:\d+|intel-rapl-mmio:\d+")
OLD_S = 600.0
"""Longest time between two readings of a counter: after more, it may have wrapped around more than once."""
PMIC_S = 10.0
"""Minimum time between two runs of `vcgencmd`."""
_PMIC = re.compile(r"^\s*(\w+)_([AV])\s.*?=\s*(-?[\d.]+)([AV])\s*$", re.MULTILINE)


class Power:
    """Power of the device, by the first of these that tells: Jetson's rails, the battery, the Pi 5's rails, RAPL."""

    def __init__(self, files: Files, commands: Commands) -> None:
        self._files, self._commands = files, commands
        self._energy: dict[str, float] = {}
        self._at = 0.0

    def find(self) -> None:
        """Looks for what measures."""
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

    def read(self, now: float, battery: Told) -> dict[str, Told]:
        """The power now, or, of counters, on average since the last reading. battery: what is drawn from it."""
        by_rapl = self._by_rapl(now)  # in any case: the next difference begins here
        found = self._by_rails() or (battery if battery.value is not None else None) or self._by_pmic(now) or by_rapl
        return {"power_w": found or Told(None, f"nothing that this system has measures it; {battery.by}")}

    def _by_rails(self) -> Told | None:
        """By Jetson's INA3221: the rail that all power comes through, or the sum of the rails where there is none."""
        watts = {}
        for path, n, label in self._rails:
            volts, amperes = self._files.number(f"{path}/in{n}_input"), self._files.number(f"{path}/curr{n}_input")
            if volts is not None and amperes is not None and volts >= 0 and amperes >= 0:
                watts[label] = volts * amperes / 1e6
        for label in WHOLE:
            if label in watts:
                return Told(watts[label], f"the rail {label}: the whole module")
        watts = {label: power for label, power in watts.items() if WITHIN.get(label) not in watts}
        return Told(sum(watts.values()), f"the sum of the rails {', '.join(watts)}") if watts else None

    def _by_pmic(self, now: float) -> Told | None:
        """By the Pi 5's power controller: the sum of current times voltage of its rails; its losses and USB are not in it."""
        if not self._pi5:
            return None
        output = self._commands.output("vcgencmd", "pmic_read_adc", every_s=PMIC_S, now=now) or ""
        found: dict[str, dict[str, float]] = {"A": {}, "V": {}}
        for rail, kind, number, unit in _PMIC.findall(output):
            if kind == unit:
                try:
                    found[kind][rail] = float(number)
                except ValueError:
                    continue
        pairs = [found["A"][rail] * found["V"][rail] for rail in found["A"] if rail in found["V"]]
        watts = sum(pairs)
        if not pairs or not isfinite(watts) or watts <= 0:
            return None
        return Told(watts, f"the sum of {len(pairs)} rails (vcgencmd pmic_read_adc), without losses and what USB draws")

    def _by_rapl(self, now: float) -> Told | None:
        """By Intel's and AMD's counters of energy (RAPL): the processor packages, on average since the last reading."""
        if not self._domains:
            return None
        before, at, joules = self._energy, self._at, 0.0
        self._energy = {d: e for d in self._domains if (e := self._files.number(f"{d}/energy_uj")) is not None and e >= 0}
        self._at = now
        if not self._energy:
            return Told(None, self._files.why(f"{self._domains[0]}/energy_uj"))
        if before.keys() != self._energy.keys() or not 0 < now - at <= OLD_S:
            return Told(None, "the processor's energy is a difference: known from the second reading on")
        for domain, energy in self._energy.items():
            used = energy - before[domain]
            if used < 0:  # the counter has wrapped around
                used += self._files.number(f"{domain}/max_energy_range_uj") or 0.0
            if used < 0:
                return Told(None, f"/{domain}/energy_uj went back")
            joules += used / 1e6
        return Told(joules / (now - at), "the processor packages alone (RAPL), on average since the last reading")


# Battery and external power, from /sys/class/power_supply.

SUPPLIES = "sys/class/power_supply"
FED = frozenset({"Charging", "Full", "Not charging"})
"""States of a battery that something else feeds."""
MOST = 1.1
"""Largest charge that is believed: a gauge may be a little over what it takes for full."""


class Battery:
    """The device's own batteries: those of a mouse or of headphones have the scope Device."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def find(self) -> None:
        """Looks for supplies: a laptop's second battery and a dock come and go."""
        self._batteries: list[str] = []
        self._external: list[str] = []
        for name in self._files.names(SUPPLIES):
            path = f"{SUPPLIES}/{name}"
            kind = self._files.word(f"{path}/type")
            if not kind or self._files.word(f"{path}/scope") == "Device":
                continue
            (self._batteries if kind in {"Battery", "UPS"} else self._external).append(path)

    def read(self) -> dict[str, Told]:
        """Charge, external power, and power drawn from the battery."""
        files, states, weighted, drawn = self._files, list[str](), list[tuple[float, float | None]](), list[float]()
        for path in self._batteries:
            if files.number(f"{path}/present") == 0:
                continue
            charge = self._charge(path)
            if charge is not None:
                weighted.append((charge, files.number(f"{path}/energy_full")))
            state = files.word(f"{path}/status")
            states.append(state)
            if state == "Discharging" and (power := self._drawn(path)) is not None:
                drawn.append(power)
        return {
            "battery": _together(weighted, len(states)),
            "mains": self._mains(states),
            "power_w": _power(drawn, states),
        }

    def _charge(self, path: str) -> float | None:
        """State of charge of one battery, 0..1."""
        share = self._files.number(f"{path}/capacity")
        if share is not None:
            charge = share / 100
        else:
            for unit in ("energy", "charge"):
                now, full = self._files.number(f"{path}/{unit}_now"), self._files.number(f"{path}/{unit}_full")
                if now is not None and full:
                    charge = now / full
                    break
            else:
                return None
        return min(charge, 1.0) if 0 <= charge <= MOST else None

    def _drawn(self, path: str) -> float | None:
        """Power that is drawn from one battery, watts. Some drivers have a negative sign while it discharges."""
        power = self._files.number(f"{path}/power_now")
        if power is not None:
            return abs(power) / 1e6
        current, voltage = self._files.number(f"{path}/current_now"), self._files.number(f"{path}/voltage_now")
        return None if current is None or voltage is None else abs(current * voltage) / 1e12

    def _mains(self, states: list[str]) -> Told:
        """A battery that discharges is being used up, whatever is plugged in: a weak charger does not keep it."""
        if "Discharging" in states:
            return Told(value=False, by="the battery's status")
        if FED.intersection(states):
            return Told(value=True, by="the battery's status")
        online = [self._files.number(f"{path}/online") for path in self._external]
        if any(online):
            return Told(value=True, by="a power supply that is online")
        if 0 in online:
            return Told(value=False, by="all power supplies are offline")
        return Told(None, f"there is no power supply in /{SUPPLIES} that tells")


def _together(weighted: list[tuple[float, float | None]], batteries: int) -> Told:
    """The charge of all batteries, each weighted by what it holds when it is full, where all of them tell."""
    if not weighted:
        why = "no battery tells its charge" if batteries else f"there is no battery in /{SUPPLIES}"
        return Told(None, why)
    full = [most for _, most in weighted if most is not None and most > 0]
    weights = full if len(full) == len(weighted) else [1.0] * len(weighted)
    charge = sum(share * weight for (share, _), weight in zip(weighted, weights, strict=True)) / sum(weights)
    return Told(charge, f"{len(weighted)} {'battery' if len(weighted) == 1 else 'batteries'}")


def _power(drawn: list[float], states: list[str]) -> Told:
    if "Discharging" not in states:
        return Told(None, "no battery is being discharged")
    if sum(drawn) <= 0:
        return Told(None, "the battery does not tell what is drawn from it")
    return Told(sum(drawn), "what is drawn from the battery: the whole device")
