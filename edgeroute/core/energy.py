"""Energy of an edge's runs, fitted from the device's power and the time that was spent in runs."""

from __future__ import annotations

from math import sqrt
from typing import Final

FADING: Final = 0.99
"""Weight of a reading, relative to the next one's: the last hundred or so count."""
ENOUGH: Final = 20
"""Readings below which nothing is said."""
MOST_W: Final = 1e6
"""A reading further from 0 than this, or NaN, is a fault of the sensor: one alone would stay in the sums."""
CERTAIN: Final = 3.0
"""The fitted power is told once it is so many standard errors above 0."""


class PowerFit:
    """Weighted least squares of `power = idle + extra * busy`, in constant memory.

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_p", "_pp", "_pu", "_u", "_uu", "_weight", "readings")

    def __init__(self) -> None:
        self.readings = 0
        self._weight = self._u = self._uu = self._pu = self._pp = 0.0
        self._p = 0.0

    def add(self, power_w: float, busy: float) -> None:
        """Adds a reading of the power, watts, and the seconds of runs for each second since the one before."""
        if not -MOST_W < power_w < MOST_W:
            return
        self.readings += 1
        self._weight = FADING * self._weight + 1.0
        self._u = FADING * self._u + busy
        self._p = FADING * self._p + power_w
        self._uu = FADING * self._uu + busy * busy
        self._pu = FADING * self._pu + power_w * busy
        self._pp = FADING * self._pp + power_w * power_w

    @property
    def extra_w(self) -> float | None:
        """Power that a run takes beside what the device takes anyway, watts; None: not known well enough."""
        n = self._weight
        if self.readings < ENOUGH:
            return None
        uu = self._uu - self._u * self._u / n
        pu = self._pu - self._p * self._u / n
        pp = self._pp - self._p * self._p / n
        if uu <= 1e-9 * max(1.0, self._uu):  # the edge was always as busy: the readings say nothing of its share
            return None
        slope = pu / uu
        error = sqrt(max(0.0, pp - slope * pu) / (n - 2.0) / uu)
        return slope if slope > 0 and slope >= CERTAIN * error else None


def break_even(edge_j: float, cloud_j: float) -> float:
    """The share of deferred requests, 0..1, below which the edge first takes less energy than the cloud alone; 0: never."""
    return max(0.0, 1.0 - edge_j / cloud_j) if cloud_j > 0 else 0.0
