"""Device sensors (battery, heat, load, memory, power, network) as one `Reading` (`DeviceSensors`), and threads (`Sampler`).

The threads read the sensors when due, for all routers of the process. A sensor that hangs delays no request.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from edgeroute.core.device_rules import Reading
from edgeroute.errors import PolicyError, check_number
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import ThreadPool, Worker

if TYPE_CHECKING:
    from edgeroute.observe.device.android_macos_windows import Android, Others
    from edgeroute.observe.device.kernel_files_and_cached_commands import Measurement, Run

Sensors = Callable[[], Reading]  # function that reads the sensors

FIND_S = 60.0  # time after which the files of sensors are searched again, seconds: a battery, a dock or a driver may come later
LEAST_S, MOST_S = 1.0, 60.0  # least and most time between two readings, seconds
EVERY_S = 10.0  # usual time between two readings, seconds
PATIENCE_S = 1.0  # longest wait for another thread that reads, seconds; after it the last reading is returned
FRESH_S = 0.5  # age up to which a reading is returned again, seconds: routers that are made together share one
KERNELS = frozenset({"linux", "android"})  # values of `sys.platform` with sysfs and procfs

# True on Linux, the only system where the kernel reports changes of the network and most of the sensors.
LINUX = sys.platform == "linux"


class DeviceSensors(ForkSafe):
    """Sensors of this device; an instance may be given to a router as `sensors=`.

    Calling it returns a `Reading`, and never raises.

    Thread-safe. Values that are differences (load, energy, thermal events) count from the reading before.

    Args:
        root: directory that holds `sys` and `proc`; a container may have its host's elsewhere.
        run: runs a program with arguments and returns its output, in a thread of its own; None: programs of the system if root
            is "/", otherwise none.
        every_s: seconds between two readings of a router that has these sensors, 1 to 60.
        fresh_s: seconds for which a reading is returned again.

    Raises:
        PolicyError: `every_s` is out of its range.
    """

    _lock = per_process(SafeLock)  # reentrant: a signal handler may call the router

    def __init__(
        self, root: str | Path = "/", *, run: Run | None = None, every_s: float = EVERY_S, fresh_s: float = FRESH_S
    ) -> None:
        if not (isinstance(every_s, int | float) and LEAST_S <= every_s <= MOST_S):
            raise PolicyError(f"sensors are read every 1 to 60 seconds, not every_s={every_s!r}")
        check_number("fresh_s", fresh_s)
        self.every_s = every_s
        # late: a router whose policy uses no sensors does without them
        from edgeroute.observe.device.kernel_files_and_cached_commands import Commands, Files, run_program
        from edgeroute.observe.device.linux_load_memory_gpu import Gpu, Load, Memory
        from edgeroute.observe.device.linux_temperature_and_throttling import Thermal, Throttling
        from edgeroute.observe.device.power_draw_and_batteries import Battery, Power
        from edgeroute.observe.network_routes_and_monitor import Links

        this_device = os.fspath(root) == "/"
        files = Files(root)
        self.commands = Commands(run_program if this_device and run is None else run)
        self._fresh_s, self._read_at, self._find_at = fresh_s, -inf, -inf
        self._others: Others | None = None
        self._android: Android | None = None
        if this_device and sys.platform not in KERNELS:
            from edgeroute.observe.device.android_macos_windows import Others

            self._others = Others(self.commands)
        elif this_device and (sys.platform == "android" or "ANDROID_ROOT" in os.environ):  # before Python 3.13 it is linux
            from edgeroute.observe.device.android_macos_windows import Android

            self._android = Android(self.commands)
        self._battery, self._gpu, self._load = Battery(files), Gpu(files), Load(files)
        self._links, self._memory, self._power = Links(files, self.commands), Memory(files), Power(files, self.commands)
        self._thermal, self._throttling = Thermal(files), Throttling(files, self.commands)
        self._details: dict[str, Measurement] = {}
        self._reading = Reading()

    def __call__(self) -> Reading:
        """Read the sensors, in some tenths of a millisecond, or return the last reading if it is fresh.

        Unknown values are None. After `PATIENCE_S` of waiting for another thread's reading, the last one is returned.
        """
        lock = self._lock
        if not lock.acquire(timeout=PATIENCE_S):  # a driver hangs in another thread's reading
            return self._reading
        try:
            now = monotonic()
            if now >= self._read_at + self._fresh_s:
                self._details = self._read_all(now) if self._others is None else self._others.read(now)
                self._reading = Reading(**{name: field.value for name, field in self._details.items()})
                self._read_at = now
            return self._reading
        finally:
            lock.release()

    def details(self) -> Mapping[str, Measurement]:
        """Return for each field of the last reading its value with its source, or None with the reason why it is unknown.

        Reads nothing.
        """
        from edgeroute.observe.device.kernel_files_and_cached_commands import Measurement

        fields = self._details
        return {name: fields.get(name, Measurement(None, "this system does not report it")) for name in Reading._fields}

    def _read_all(self, now: float) -> dict[str, Measurement]:
        """Read all sensors of sysfs and procfs, after searching for their files if that is due; return field -> measurement.

        Without a battery in sysfs, Android's own is asked. Programs run in the background, and their last output counts.
        """
        if now >= self._find_at:
            self._find_at = now + FIND_S
            for part in (self._battery, self._gpu, self._links, self._memory, self._power, self._thermal, self._throttling):
                part.find()
        fields = self._battery.read()
        if self._android is not None and fields["battery"].value is None:
            fields.update(self._android.read(now))
        fields.update(self._power.read(now, fields["power_w"]))
        for read in (self._gpu.read, self._load.read, self._memory.read, self._thermal.read):
            fields.update(read())
        fields.update(self._throttling.read(now))
        fields.update(self._links.read(now))
        return fields


_system: dict[str, DeviceSensors] = {}  # has the process's sensors under "sensors" once they are used


def system_sensors() -> DeviceSensors:
    """Return the sensors of this device, one object for all routers of the process, made at the first call."""
    sensors = _system.get("sensors")
    return _system.setdefault("sensors", DeviceSensors()) if sensors is None else sensors  # atomic


def period_s(sensors: Sensors, usual_s: float) -> float:
    """Return the seconds between two readings of these sensors: their attribute `every_s`, cut to 1..60, or else `usual_s`."""
    every_s = getattr(sensors, "every_s", None)
    return min(MOST_S, max(LEAST_S, every_s)) if isinstance(every_s, int | float) else usual_s


def read() -> Reading:
    """Read the sensors of this device. Takes some tenths of a millisecond; never raises.

    May block for another thread's reading, for a limited time.
    """
    return system_sensors()()


# Sampler: reads the sensors of all routers of the process in the background when they are due, also while no request comes.

MOST = 8  # most threads in which sensors are read: functions of the application may hang
AGAIN_S = 1.0  # seconds until a reading is tried again for which there was no thread; also until a sampler without work ends


class Due(Protocol):
    """Part of an observer that the sampler uses."""

    reads_at: float  # monotonic instant from which the sensors are due; inf: they are not used, or are being read


class Router(Protocol):
    """Part of a router that the sampler uses."""

    closed: bool

    @property
    def observer(self) -> Due:
        """Observer, which has the instant of the next reading."""

    def read_sensors(self) -> None:
        """Read the sensors, and set the instant of the next reading."""


class Sampler(ForkSafe):
    """Thread that starts the readings of all routers whose policy uses sensors, and a few threads that read.

    The thread ends when no router uses sensors. Routers are referred to weakly. The device's sensors are read once for all
    routers that are due together.
    """

    _lock = per_process(SafeLock)  # reentrant: a signal handler may make or close a router
    # Empty in a forked child, where a router's first request starts the reading again.
    _routers: WeakSet[Router] = per_process(WeakSet)
    _threads = per_process(lambda: ThreadPool("edgeroute-sensors", MOST))
    _idle = False

    def __init__(self) -> None:
        self._worker = self._new_worker()

    def _new_worker(self) -> Worker:
        """Return the thread that starts the readings, not started yet."""
        return Worker("edgeroute-sampler", self._round, "the sensors could not be read", retry_s=AGAIN_S)

    def __len__(self) -> int:
        """Return the number of routers whose sensors are read."""
        return len(self._routers)

    def read(self, router: Router) -> None:
        """Start a reading of a router's sensors in another thread, without waiting. Takes no lock.

        Without a free thread, the reading is due again in `AGAIN_S` seconds.
        """
        router.observer.reads_at = inf  # until they have been read
        if not self._threads.submit_later(router.read_sensors):
            router.observer.reads_at = monotonic() + AGAIN_S

    def add(self, router: Router) -> None:
        """Read a router's sensors from now on whenever they are due, in the background; starts the thread, or wakes it.

        Ignores a router that is closed or uses none. Without a free thread nothing starts until the next `add`. Refers to it
        weakly.
        """
        with self._lock:
            if router.closed or router.observer.reads_at == inf:
                return
            self._routers.add(router)
            self._worker.start()
            self._worker.nudge()

    def remove(self, router: Router) -> None:
        """Stop reading a router's sensors. With the last router, end the threads, waiting for at most about a second."""
        with self._lock:
            self._routers.discard(router)
            if self._routers or not (self._worker.alive or len(self._threads)):
                return
            worker, self._worker = self._worker, self._new_worker()
            threads, self._threads = self._threads, ThreadPool("edgeroute-sensors", MOST)
        threads.close()
        worker.close(AGAIN_S)

    def _round(self) -> float | None:
        """Start the readings that are due now. Return the seconds until the next is due; None: no router uses sensors.

        Before None, one more round follows after `AGAIN_S`, as a reading may be under way.
        """
        with self._lock:
            routers = list(self._routers)
        for router in routers:
            if monotonic() >= router.observer.reads_at:
                self.read(router)
        due = min((router.observer.reads_at for router in routers), default=inf)
        was_idle, self._idle = self._idle, due == inf
        if due < inf:
            return max(0.0, due - monotonic())
        return None if was_idle else AGAIN_S


SAMPLER = Sampler()  # the sampler of this process
