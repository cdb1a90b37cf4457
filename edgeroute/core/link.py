"""Link: an endpoint's time of a call and the bandwidth to it, fitted to real calls."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any

from edgeroute.core.ladder import seconds

LEAST = 8
"""Calls before a bandwidth is told."""
SHARE = 0.02
"""Weight of the newest call once there are 50: the estimate follows a link that changes."""
LEAST_SLOPE = 1e-15
"""Seconds a byte: what is faster is no link."""
SURE = 4.0
"""Least ratio of the fitted slope to its standard error: below it, bytes do not explain what calls take."""


class Link:
    """Seconds of a call as a line over the bytes of its bodies: least squares with exponential decay.

    Threads that add need a lock; reading needs none.
    """

    __slots__ = ("_bb", "_bs", "_bytes", "_seconds", "_ss", "count")

    def __init__(self) -> None:
        self.count = 0
        self._bytes = self._seconds = 0.0
        """Decaying means."""
        self._bb = self._bs = self._ss = 0.0
        """Decaying variances and covariance."""

    def add(self, size: int, seconds: float) -> None:
        """Adds a call that succeeded: bytes of its bodies in both directions, and how long it took."""
        self.count += 1
        share = max(1 / self.count, SHARE)
        off, late = size - self._bytes, seconds - self._seconds
        self._bytes += share * off
        self._seconds += share * late
        rest = 1 - share
        self._bb = rest * (self._bb + share * off * off)
        self._bs = rest * (self._bs + share * off * late)
        self._ss = rest * (self._ss + share * late * late)

    @property
    def bytes_per_s(self) -> float | None:
        """Bandwidth of bodies, both directions together; None: too few calls, or their sizes do not explain their times."""
        bb, bs, ss = self._bb, self._bs, self._ss  # once: another thread may add a call
        if self.count < LEAST or bb <= 0 or bs <= bb * LEAST_SLOPE:
            return None
        slope, count = bs / bb, min(self.count, 1 / SHARE)
        left = max(0.0, ss - bs * slope)  # what the line does not explain
        if slope * bs * (count - 2) < SURE * SURE * left:
            return None
        return 1 / slope

    @property
    def call_s(self) -> float | None:
        """Time of a call but for its bytes, with the endpoint's work; without a bandwidth the mean; None: there was no call."""
        if not self.count:
            return None
        speed = self.bytes_per_s
        return self._seconds if speed is None else max(0.0, self._seconds - self._bytes / speed)

    def predicted_s(self, size: float) -> float:
        """Seconds of a call with so many bytes; inf before the first one.

        Until a bandwidth is known, as if a call's time were all of it its bytes': that is too long rather than too short.
        """
        speed, call_s = self.bytes_per_s, self.call_s
        if call_s is None:
            return inf
        if speed is not None:
            return seconds(size, call_s, speed)
        return self._seconds * max(1.0, size / self._bytes) if self._bytes > 0 else inf

    def dump(self) -> list[float]:
        """JSON-serialisable state."""
        return [self.count, self._bytes, self._seconds, self._bb, self._bs, self._ss]

    @classmethod
    def load(cls, dumped: Any) -> Link:
        """Restores a dumped one.

        Raises:
            ValueError: not a dump.
        """
        link = cls()
        try:
            values = [float(value) for value in dumped]
            count, link._bytes, link._seconds, link._bb, link._bs, link._ss = values
        except (TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"not a dump of a link: {e!r}") from e
        if isinstance(dumped, str | Mapping) or not all(map(isfinite, values)) or min(values[:4]) < 0 or link._ss < 0:
            raise ValueError(f"not a dump of a link: {dumped!r}")
        link.count = int(count)
        return link
