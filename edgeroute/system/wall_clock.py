"""Wall clock of this process, which no change of the system's clock moves: `now`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Seconds since the boot, time of sleep included, which `monotonic` counts on Windows alone.
_elapsed: Callable[[], float] = time.monotonic
_CLOCK: int | None = getattr(time, "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME", None)
if sys.platform != "win32" and _CLOCK is not None:
    _elapsed = partial(time.clock_gettime, _CLOCK)
_OFFSET = time.time() - _elapsed()


def now() -> float:
    """Return seconds since 1970: the wall clock at the start of the process, plus the time elapsed since, sleep included.

    Setting the clock while the process runs, by hand or by NTP, therefore ends no spending window and no time to live.
    """
    return _elapsed() + _OFFSET


def set_forward_s() -> float:
    """Return by how much the wall clock was set forward since the process began, seconds; 0: it was not."""
    return max(0.0, time.time() - now())


def boot_clock() -> tuple[str, float]:
    """Return (id of this boot of the system, wall time of the boot as it was known when this process began, seconds since 1970).

    Two processes of one boot compare their clocks by it; a clock that is set later changes nothing. Reads a file of the kernel.
    The id is empty where the system has none (all but Linux).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux, or no /proc
        boot = ""
    return boot, _OFFSET
