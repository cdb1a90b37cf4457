"""Device sensors: battery, heat, load, memory, power and network, from what this system has."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from edgeroute.core.readings import Reading
from edgeroute.errors import PolicyError
from edgeroute.system import renew_after_fork

if TYPE_CHECKING:
    from edgeroute.observe.device.android import Android
    from edgeroute.observe.device.commands import Run
    from edgeroute.observe.device.files import Told
    from edgeroute.observe.device.others import Others

Sensors = Callable[[], Reading]

FIND_S = 60.0
"""Time after which sensors are looked for again: a battery, a dock or a driver may come later."""
LEAST_S, MOST_S = 1.0, 60.0
"""Least and most time between two readings."""
EVERY_S = 10.0
PATIENCE_S = 1.0
"""Longest wait for a reading of another thread; then the last one is returned."""
FRESH_S = 0.5
"""A reading younger than this is returned again: routers that are made together share one."""
KERNELS = frozenset({"linux", "android"})
"""Systems with sysfs and procfs."""


class DeviceSensors:
    """Reads this device's sensors; an instance may be given to a router as `sensors=`. Never raises, waits for nothing.

    Thread-safe. What is a difference (load, energy, thermal events) counts from the reading before.

    Args:
        root: of sysfs and procfs; a container may have its host's elsewhere.
        run: runs a program with arguments and returns its output, in a thread of its own; None: those of the system if root
            is "/", otherwise none.
        every_s: seconds between two readings of a router that has them, 1 to 60.
        fresh_s: seconds for which a reading is returned again.

    Raises:
        PolicyError: `every_s` is out of its range.
    """

    def __init__(
        self, root: str | Path = "/", *, run: Run | None = None, every_s: float = EVERY_S, fresh_s: float = FRESH_S
    ) -> None:
        if not (isinstance(every_s, int | float) and LEAST_S <= every_s <= MOST_S):
            raise PolicyError(f"sensors are read every 1 to 60 seconds, not every_s={every_s!r}")
        self.every_s = every_s
        # late: a router whose policy uses no sensors does without them
        from edgeroute.observe.device import commands
        from edgeroute.observe.device.battery import Battery
        from edgeroute.observe.device.files import Files
        from edgeroute.observe.device.gpu import Gpu
        from edgeroute.observe.device.links import Links
        from edgeroute.observe.device.load import Load
        from edgeroute.observe.device.memory import Memory
        from edgeroute.observe.device.power import Power
        from edgeroute.observe.device.thermal import Thermal
        from edgeroute.observe.device.throttling import Throttling

        own = os.fspath(root) == "/"
        files = Files(root)
        self.commands = commands.Commands(commands.run if own and run is None else run)
        self._fresh_s, self._read_at, self._find_at = fresh_s, -inf, -inf
        self._others: Others | None = None
        self._android: Android | None = None
        if own and sys.platform not in KERNELS:
            from edgeroute.observe.device.others import Others

            self._others = Others(self.commands)
        elif own and (sys.platform == "android" or "ANDROID_ROOT" in os.environ):  # before Python 3.13 it is linux
            from edgeroute.observe.device.android import Android

            self._android = Android(self.commands)
        self._battery, self._gpu, self._load = Battery(files), Gpu(files), Load(files)
        self._links, self._memory, self._power = Links(files, self.commands), Memory(files), Power(files, self.commands)
        self._thermal, self._throttling = Thermal(files), Throttling(files, self.commands)
        self._told: dict[str, Told] = {}
        self._reading = Reading()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.RLock()  # reentrant: a signal handler may call the router

    def __call__(self) -> Reading:
        """One reading, in some tenths of a millisecond; what is not known is None."""
        lock = self._lock
        if not lock.acquire(timeout=PATIENCE_S):  # a driver hangs in another thread's reading
            return self._reading
        try:
            now = monotonic()
            if now >= self._read_at + self._fresh_s:
                self._told = self._sources(now) if self._others is None else self._others.read(now)
                self._reading = Reading(**{name: told.value for name, told in self._told.items()})
                self._read_at = now
            return self._reading
        finally:
            lock.release()

    def told(self) -> Mapping[str, Told]:
        """Of the last reading, for each of its fields: the value, and where it is from or why it is not known."""
        from edgeroute.observe.device.files import Told

        told = self._told
        return {name: told.get(name, Told(None, "this system does not tell it")) for name in Reading._fields}

    def _sources(self, now: float) -> dict[str, Told]:
        if now >= self._find_at:
            self._find_at = now + FIND_S
            for part in (self._battery, self._gpu, self._links, self._memory, self._power, self._thermal, self._throttling):
                part.find()
        told = self._battery.read()
        if self._android is not None and told["battery"].value is None:
            told.update(self._android.read(now))
        told.update(self._power.read(now, told["power_w"]))
        for read in (self._gpu.read, self._load.read, self._memory.read, self._thermal.read):
            told.update(read())
        told.update(self._throttling.read(now))
        told.update(self._links.read(now))
        return told


_system: dict[str, DeviceSensors] = {}


def system_sensors() -> DeviceSensors:
    """The sensors of this device, one object for all routers of the process."""
    found = _system.get("sensors")
    return _system.setdefault("sensors", DeviceSensors()) if found is None else found  # atomic


def period_s(sensors: Sensors, usual_s: float) -> float:
    """Time between two readings of these sensors, seconds: their attribute `every_s`, 1 to 60, if they have one."""
    every_s = getattr(sensors, "every_s", None)
    return min(MOST_S, max(LEAST_S, every_s)) if isinstance(every_s, int | float) else usual_s


def read() -> Reading:
    """Reads the sensors of this device. Takes some tenths of a millisecond; never raises."""
    return system_sensors()()
