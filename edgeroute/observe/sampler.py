"""Sampler: has the sensors of all routers of the process read in the background, by age, also while no request comes."""

from __future__ import annotations

import threading
from math import inf
from time import monotonic
from typing import Protocol
from weakref import WeakSet

from edgeroute.system import renew_after_fork
from edgeroute.threads import ThreadPool

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
