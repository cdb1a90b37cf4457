"""Devices of the fleet: each a real router with its own state folder, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute import Function, Router
from edgeroute.fleet import daily_digest_spool_and_upload as daily_digests
from edgeroute.fleet.device_request_counts import Fleet

DAY_S, LONG_S, INF = 86_400.0, 180.0, float("inf")
ATTEMPTS = 5
THREADS = 4
"""Threads of a process in which devices take turns; each device has its own beside, for its audits, counts and uploads."""
Array = np.ndarray[Any, np.dtype[Any]]


class Clock:
    """Virtual wall clock of this process's devices."""

    now = 0.0

    def __call__(self) -> float:
        """Return seconds since 1970."""
        return self.now


class Device:
    """One device: its policy file, its router, and the pictures that it sees."""

    def __init__(self, folder: Path, number: int, cloud: Callable[[Array], str]) -> None:
        large = Function(cloud, version="fashion-large-1")  # so that digests identify the models
        self.router: Router[Any] = Router.from_policy(folder / "device.toml", cloud=large, watch=True)
        self.number = number
        file: Any = self.router._file  # noqa: SLF001 - a simulation of days
        self.follower = file._follower  # noqa: SLF001
        self.follower._due_at = INF  # noqa: SLF001 - by `look` alone: in days that take seconds, none would be due

    def look(self) -> None:
        """Look at the catalog now."""
        self.follower.refresh()

    def hour(self, pictures: Array, seed: int) -> None:
        """Answer the picture of an hour."""
        self.router.infer(pictures[np.random.default_rng([self.number, seed]).integers(len(pictures))])

    def tell(self) -> bool:
        """Write the digest of the day, and upload it; return False if it still waits after some attempts."""
        part = next(part for part in self.router.engine.parts.all if isinstance(part, Fleet))
        return any(part.tell() for _ in range(ATTEMPTS))


def serve(orders: Connection, folders: Sequence[tuple[int, Path]], answers: Path) -> None:
    """Make the devices in these folders, and run them by orders, each a day of 24 hours on a virtual clock, until the orders end.

    It runs in a process of its own, and sets the clock of its digests. At the end it closes the routers.

    Args:
        orders: takes (begin of the day, True if the catalog has changed, numbers of devices in fog); gives the number of devices
            whose digest waits.
        folders: number and folder of each device.
        answers: npz file with `usual` and `drifted` pictures [n, 28, 28, 1] and the large model's answers to each, [n].
    """
    with np.load(answers) as file:
        pictures = {name: file[name] for name in ("usual", "drifted")}
        known = {p.tobytes(): str(a) for name in pictures for p, a in zip(pictures[name], file[f"{name}_answers"], strict=True)}
    clock = daily_digests.clock = Clock()
    clock.now = orders.recv()
    devices = [Device(folder, number, lambda x: known[np.asarray(x).tobytes()]) for number, folder in folders]
    orders.send(None)
    with ThreadPoolExecutor(THREADS) as threads:
        while True:
            try:
                begin, looks, drifting = orders.recv()
            except EOFError:
                break
            if looks:
                list(threads.map(Device.look, devices))
            for hour in range(24):
                clock.now = begin + 3600.0 * hour + 60
                day = [pictures["drifted" if d.number in drifting else "usual"] for d in devices]
                list(threads.map(Device.hour, devices, day, [int(clock.now)] * len(devices)))
            clock.now = begin + DAY_S + 3600.0
            waiting = sum(not told for told in threads.map(Device.tell, devices))
            orders.send(waiting)
    for device in devices:
        device.router.close()
