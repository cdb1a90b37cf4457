"""Device sensors: battery, heat, load, memory, power and network, from what this system has."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from edgeroute.core.rules import Reading
from edgeroute.errors import PolicyError
from edgeroute.system.process import renew_after_fork
from edgeroute.system.threads import ThreadPool

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
        from edgeroute.observe.device.files import Files
        from edgeroute.observe.device.gpu import Gpu
        from edgeroute.observe.device.links import Links
        from edgeroute.observe.device.load import Load, Memory
        from edgeroute.observe.device.power import Battery, Power
        from edgeroute.observe.device.thermal import Thermal, Throttling

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


# Sampler: has the sensors of all routers of the process read in the background, by age, also while no request comes.

MOST = 8
"""Threads in which sensors are read: functions of the application may hang."""
AGAIN_S = 1.0
"""Time after which a reading is tried again for which there was no thread; and after which a sampler without work ends."""


class Due(Protocol):
    """What of an observer is used."""

    reads_at: float
    """Instant from which the sensors are due; inf: they are not used, or are being read."""


class Router(Protocol):
    """The parts of a router."""

    closed: bool

    @property
    def observer(self) -> Due:
        """Has the instant of the next reading."""

    def read_sensors(self) -> None:
        """Reads the sensors and sets that instant."""


class Sampler:
    """One thread for all routers whose policy uses sensors, and few in which they are read; without such a router there is none.

    It refers to the routers weakly. The device's own sensors are read once for all that are due together.
    """

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Starts empty: in a child, a router's first request has its sensors read, and so starts the thread."""
        self._lock = threading.RLock()  # reentrant: a signal handler may make or close a router
        self._routers: WeakSet[Router] = WeakSet()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._next = inf
        """Instant at which the thread looks again; inf while it does."""
        self._threads = ThreadPool("edgeroute-sensors", MOST)

    def __len__(self) -> int:
        """The number of routers whose sensors it has read."""
        return len(self._routers)

    def read(self, router: Router) -> None:
        """Has the sensors of one router read soon, without waiting. Takes no lock."""
        router.observer.reads_at = inf  # until they have been read
        if not self._threads.submit_later(router.read_sensors):
            router.observer.reads_at = monotonic() + AGAIN_S

    def add(self, router: Router) -> None:
        """From now on its sensors are read when they are due, unless they are not used, or it is closed."""
        with self._lock:
            if router.closed or router.observer.reads_at == inf:
                return
            self._routers.add(router)
            if router.observer.reads_at < self._next:
                self._wake.set()
            if self._thread is None:
                self._wake = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._wake,), name="edgeroute-sampler", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads, or the interpreter ends: requests alone have them read
                    self._thread = None

    def remove(self, router: Router) -> None:
        """Reads nothing for it any more, and ends with the last one."""
        with self._lock:
            self._routers.discard(router)
            if self._routers or (self._thread is None and not len(self._threads)):
                return
            thread, self._thread = self._thread, None
            threads, self._threads = self._threads, ThreadPool("edgeroute-sensors", MOST)
            self._wake.set()
        threads.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(AGAIN_S)

    def _run(self, wake: threading.Event) -> None:
        """The thread: reads what is due, until nothing is used any more."""
        idle = False
        while True:
            due = self._round()
            with self._lock:
                if self._thread is not threading.current_thread():
                    return
                if due == inf and idle and not wake.is_set():
                    self._thread = None  # a reading that is still under way adds its router when it ends
                    return
                idle = due == inf
                self._next = monotonic() + AGAIN_S if idle else due
            wake.wait(max(0.0, self._next - monotonic()))
            wake.clear()

    def _round(self) -> float:
        """Reads what is due now. Returns the instant at which something is due next."""
        with self._lock:
            self._next = inf
            routers = list(self._routers)
        for router in routers:
            if monotonic() >= router.observer.reads_at:
                self.read(router)
        return min((router.observer.reads_at for router in routers), default=inf)


SAMPLER = Sampler()
