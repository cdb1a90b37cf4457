"""How loaded a served model is, as its replies say it: the header `endpoint-load-metrics`, in ORCA's text form."""

from __future__ import annotations

from math import exp

WINDOW_S = 2.0
"""Time over which use is averaged, seconds."""


class Meter:
    """Used share of a model: the time in which runs go, weighted by how full their batches are. The clock is passed in."""

    def __init__(self) -> None:
        self._used, self._level, self._at = 0.0, 0.0, 0.0

    def level(self, level: float, now: float) -> None:
        """From this instant on, runs use that share, 0..1; 0: no run goes."""
        self._used, self._level, self._at = self.used(now), level, now

    def used(self, now: float) -> float:
        """The share at this instant, averaged with weights that fade by `WINDOW_S`."""
        fades = exp(-max(0.0, now - self._at) / WINDOW_S)
        return self._used * fades + self._level * (1 - fades)


def header(used: float, queue_s: float) -> dict[str, str]:
    """The header of a reply."""
    return {"endpoint-load-metrics": f"TEXT application_utilization={used:.3f}, named_metrics.queue_s={queue_s:.3f}"}
