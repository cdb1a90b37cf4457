"""The time of day for what outlives a process, steady while the process runs."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def _elapsed() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # counts while the device sleeps, which monotonic does not
else:  # pragma: no cover - not on Linux
    _elapsed = time.monotonic

_OFFSET = time.time() - _elapsed()


def now() -> float:
    """Seconds since 1970 by the wall clock as it stood when the process began, and by elapsed time since.

    A clock that is set while the process runs, by hand or by a time server, ends no day, no hour and no time to live.
    """
    return _elapsed() + _OFFSET
