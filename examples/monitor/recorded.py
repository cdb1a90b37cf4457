"""Real motors: what the larger model's method, the spectrum of the envelope, finds in recordings of damaged bearings.

The recordings are of pyBearing (see recordings/LICENSE): the sound of four electric motors at 2,500 turns a minute, each with a
damaged bearing NMB 1560KK. They are here as 3 s of int8 at 8 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from diagnosis import envelope_spectrum

MOTORS = Path(__file__).parent / "recordings" / "motors.npy"
RATE = 8000
RINGS_HZ = 2000, 4000
"""Where the housing rings."""
TURNS_HZ = 41.0, 42.5
ORDERS = {"outer race": 2.5779, "inner race": 4.4221, "ball": 3.5322}
"""Knocks of a defect for each turn of the shaft, by this bearing's geometry."""
DRAWN_HZ = 240
NEAR_HZ = 1.0


class Motor(NamedTuple):
    """What is found in one recording."""

    turns_hz: float
    """Turns of the shaft a second."""
    knocks: dict[str, float]
    """By the part that may be damaged: the highest line near its frequency, times the median line."""
    lines: Sequence[float]
    """The envelope's spectrum up to DRAWN_HZ, times the median line."""

    @property
    def named(self) -> str:
        """Damaged part: the one whose line is the highest."""
        return max(self.knocks, key=self.knocks.__getitem__)


def motors() -> list[Motor]:
    """Return what is found in each of the recordings."""
    return [_found(sound.astype(float)) for sound in np.load(MOTORS)]


def show() -> None:
    """Print for each of the four motors its speed, how loudly each part knocks, and the part that is named."""
    print(f"{'motor':8}{'turns/s':>9}" + "".join(f"{name:>12}" for name in ORDERS) + f"{'damaged':>14}")
    for number, motor in enumerate(motors(), 1):
        print(
            f"{number:<8}{motor.turns_hz:>9.1f}"
            + "".join(f"{motor.knocks[name]:>12.0f}" for name in ORDERS)
            + f"{motor.named:>14}"
        )
    print("each: the envelope's highest line at the frequency at which a damage of that part knocks, times the median line")


def _found(sound: np.ndarray[Any, Any]) -> Motor:
    """Return what the spectrum of the envelope of a sound tells: turns a second, knocks of each part, and lines to draw."""
    count = len(sound)
    low, high = (round(hz * count / RATE) for hz in RINGS_HZ)
    seen = envelope_spectrum((sound - sound.mean())[:, None], low, high)
    hz = np.arange(len(seen)) * RATE / count / 4
    seen /= np.median(seen[(hz > 10) & (hz < 2 * DRAWN_HZ)])  # noqa: PLR2004 - what lies below are slow changes of loudness

    def highest(at: float) -> float:
        return float(seen[np.abs(hz - at) < NEAR_HZ].max())

    around = (hz > 2 * TURNS_HZ[0]) & (hz < 2 * TURNS_HZ[1])  # a line at two a turn tells how fast it turns
    turns_hz = float(hz[around][seen[around].argmax()]) / 2
    lines = seen[: round(DRAWN_HZ * 4 * count / RATE)].reshape(DRAWN_HZ, -1).max(1)
    knocks = {name: highest(order * turns_hz) for name, order in ORDERS.items()}
    return Motor(turns_hz, knocks, [round(float(line), 1) for line in lines])
