"""Readings of the device's sensors: battery, temperature, load, memory, power, network."""

from __future__ import annotations

from typing import NamedTuple


class Reading(NamedTuple):
    """One reading; None: unknown. Shares are 0..1."""

    battery: float | None = None
    """State of charge."""
    temperature_c: float | None = None
    """Of the hottest thermal zone, degrees Celsius."""
    mains: bool | None = None
    """Whether the device is on external power. While it is, the battery need not be spared."""
    cpu: float | None = None
    """Share of all cores' time that was used since the last reading."""
    cpu_pressure: float | None = None
    """Share of the last 10 s in which a task waited for a core (PSI, some)."""
    memory_available: float | None = None
    """Share of memory that can be had without swapping."""
    memory_pressure: float | None = None
    """Share of the last 10 s in which a task waited for memory (PSI, some)."""
    throttled: bool | None = None
    """Whether the processor runs slower than it could, for heat or a weak supply."""
    gpu: float | None = None
    """Share of the GPU's time that was used."""
    power_w: float | None = None
    """Power that the device, or what of it is measured, draws, watts."""
    network: bool | None = None
    """Whether there is a route to anywhere."""
    metered: bool | None = None
    """Whether the link is metered: bytes cost money."""


SHARES = ("battery", "cpu", "cpu_pressure", "memory_available", "memory_pressure", "gpu")
"""Names of those that are shares."""
