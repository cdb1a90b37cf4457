"""Battery and external power, from /sys/class/power_supply."""

from __future__ import annotations

from edgeroute.observe.device.files import Files, Told

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
