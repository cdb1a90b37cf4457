"""A simulated machine: a shaft in two ball bearings, heard by an accelerometer of three axes, with faults that grow.

Every moment can be recorded by itself, and is the same each time: what is random is drawn from the seed, the machine and the
hour. Severities are shares of what the machine breaks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
RATE = 3200
"""Samples a second: the most of an ADXL345."""
WINDOW = 2048
"""Samples of a window: 0.64 s."""
WINDOWS = 4
"""Windows of a recording."""
LSB = 0.0039
"""g of one count of an ADXL345."""
GRAVITY = 256
"""Counts of 1 g, on the axis that looks down."""
OUTER, INNER = 3.585, 5.415
"""Impulses of a defect in the outer and in the inner race for each turn of the shaft, by the bearing's geometry."""
KINDS = ("healthy", "imbalance", "looseness", "outer race", "inner race")
"""What can be wrong with it; the classes of the larger model."""
GROWTH = 2.5
"""A fault grows by this power of the time since it began: hardly at first."""
WEEK_H = 168
_MOST_COUNTS = 4095
_DAY_H = 24


class Fault(NamedTuple):
    """A fault that begins, grows until the machine fails, and is repaired then. Hours since the run began."""

    kind: str
    begins_h: float
    fails_h: float

    def severity(self, at_h: float) -> float:
        """Return the severity at an hour. 0: there is none; 1: the machine fails."""
        part = (at_h - self.begins_h) / (self.fails_h - self.begins_h)
        return part**GROWTH if 0 < part <= 1 else 0.0


class Machine:
    """One machine. Its resonance, gains and phases are its own.

    Args:
        unit: which machine.
        faults: what befalls it.
        seed: of the noise.
    """

    def __init__(self, unit: int = 0, faults: Sequence[Fault] = (), seed: int = 0) -> None:
        self.unit, self.faults, self.seed = unit, tuple(faults), seed
        own = np.random.default_rng([unit, 0x5EED])
        self.shaft_hz = 24.5 * own.uniform(0.98, 1.02)
        self._harmonics = np.array([0.06, 0.025, 0.012, 0.006])[:, None] * own.lognormal(0, 0.25, (4, 3))
        self._phases = own.uniform(0, 2 * np.pi, (4, 3))
        self._vane = 0.03 * own.lognormal(0, 0.25, 3)
        self._hum = 0.015 * own.lognormal(0, 0.25, 3)
        self._path = np.array([0.8, 0.6, 0.4]) * own.lognormal(0, 0.15, 3)  # how well the bearing is heard on each axis
        self._resonance_hz = 1100 * own.uniform(0.93, 1.07)

    def severities(self, at_h: float) -> dict[str, float]:
        """Return what is wrong with it at this hour, by kind."""
        return {fault.kind: fault.severity(at_h) for fault in self.faults if fault.severity(at_h) > 0}

    def load(self, at_h: float) -> float:
        """Return its load, 0..1: two shifts on working days, little at night and at weekends, and some unrest."""
        day, hour = int(at_h // _DAY_H) % 7, at_h % _DAY_H
        base = 0.75 if day < 5 and 6 <= hour < 22 else 0.35  # noqa: PLR2004 - Monday to Friday, 6 to 22
        return base + 0.08 * np.sin(at_h / 1.7) + 0.05 * np.sin(at_h / 0.31)

    def temperature(self, at_h: float) -> float:
        """Of the sensor, degrees Celsius: it follows the day, the load, and a slow warming over the weeks."""
        return 22 + 5 * np.sin((at_h - 9) / _DAY_H * 2 * np.pi) + 12 * self.load(at_h) + 1.5 * at_h / WEEK_H

    def record(self, at_h: float, *, windows: int = WINDOWS, severities: dict[str, float] | None = None) -> Array:
        """Return what the sensor gives, int16 [windows, 2048, 3], counts of 3.9 mg; the same for an hour each time.

        Args:
            at_h: the hour; before 0 is before the run.
            windows: so many, one after the other.
            severities: in place of those that its faults have by then.
        """
        rng = np.random.default_rng([self.seed, self.unit, round(at_h * 3600) & 0xFFFFFFFF])
        wrong = self.severities(at_h) if severities is None else severities
        n, load, warm = windows * WINDOW, self.load(at_h), self.temperature(at_h) - 25
        seconds = np.arange(n) / RATE
        shaft_hz = self.shaft_hz * (1 - 0.02 * load) * (1 + 0.001 * rng.standard_normal())
        turns = shaft_hz * seconds + rng.uniform() + 0.0005 * np.cumsum(rng.standard_normal(n)) / np.sqrt(RATE)
        turn = np.exp(2j * np.pi * turns)

        g = np.zeros((n, 3))
        for order in range(4):
            g += np.real(turn[:, None] ** (order + 1) * np.exp(1j * self._phases[order]) * self._harmonics[order])
        g += load * self._vane * np.real(turn**7)[:, None]
        g += self._hum * np.sin(2 * np.pi * 100 * seconds + rng.uniform(0, 6))[:, None]
        ring = self._ring(n, warm)
        bearing = 0.004 * (0.6 + 0.8 * load) * _filtered(rng.standard_normal(n), ring)  # balls that roll
        g += imbalance(turn, wrong.get("imbalance", 0.0)) + looseness(turn, wrong.get("looseness", 0.0), rng)
        for kind, order in (("outer race", OUTER), ("inner race", INNER)):
            if (severity := wrong.get(kind, 0.0)) > 0:
                bearing += _filtered(_knocks(order, shaft_hz, turns, severity, rng), ring)
        g += bearing[:, None] * self._path
        noise = rng.standard_normal((n, 3)) * (0.012 + 0.006 * load)
        if rng.uniform() < 0.01:  # noqa: PLR2004 - now and then something heavy is put down beside it
            start = rng.integers(0, n - WINDOW)
            noise[start : start + WINDOW // 2] *= rng.uniform(3, 8)
        counts = np.rint((g + noise) * (1 - 0.0008 * warm) / LSB)
        counts[:, 2] += GRAVITY + 0.4 * warm
        return np.clip(counts, -_MOST_COUNTS - 1, _MOST_COUNTS).astype(np.int16).reshape(windows, WINDOW, 3)

    def _ring(self, n: int, warm: float) -> Array:
        """Return the spectrum of the housing's answer to a knock, whose peak is about 1."""
        hz, seconds = self._resonance_hz * (1 - 0.0003 * warm), np.arange(n) / RATE
        return np.fft.rfft(np.exp(-0.06 * 2 * np.pi * hz * seconds) * np.sin(2 * np.pi * hz * seconds))


def imbalance(turn: Array, severity: float) -> Array:
    """Return the vibration of a mass off the axis: a force once a turn, that turns with the shaft."""
    return 0.5 * severity * np.stack([turn.real, turn.imag, 0.15 * turn.real], axis=1)


def looseness(turn: Array, severity: float, rng: np.random.Generator) -> Array:
    """Return the vibration of a foot that is not fixed, which lifts and falls: halves and multiples of the shaft's frequency."""
    if severity <= 0:
        return np.zeros((len(turn), 3))
    half = np.exp(0.5j * np.unwrap(np.angle(turn)))
    up = sum(rng.uniform(0.7, 1.3) * np.real(half ** (2 * k) * np.exp(6j * rng.uniform())) / np.sqrt(k) for k in range(1, 10))
    halves = sum(rng.uniform(0.5, 1.5) * np.real(half**k * np.exp(6j * rng.uniform())) for k in (1, 3, 5))
    return severity * np.outer(0.14 * up + 0.08 * halves, [0.5, 0.3, 1.0])


def _knocks(order: float, shaft_hz: float, turns: Array, severity: float, rng: np.random.Generator) -> Array:
    """Return the impulses of a defect in a race, as the balls pass it; of the inner race stronger where the load is."""
    seconds = len(turns) / RATE
    times = np.cumsum((1 + 0.012 * rng.standard_normal(int(seconds * order * shaft_hz) + 2)) / (order * shaft_hz))
    places = (times[times < seconds] * RATE).astype(int)
    heights = 2.2 * severity * rng.lognormal(0, 0.2, len(places))
    if order == INNER:
        heights *= 0.5 + 0.5 * np.cos(2 * np.pi * turns[places])
    knocks = np.zeros(len(turns))
    np.add.at(knocks, places, heights)
    return knocks


def _filtered(signal: Array, spectrum: Array) -> Array:
    return np.fft.irfft(np.fft.rfft(signal) * spectrum, len(signal))
