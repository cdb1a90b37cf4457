"""Times that the variants of an edge model take, as far as they count now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeroute.core.standby import ENOUGH

AGAIN_S = 60.0
"""A variant that has not run for so long is tried again: what it took then says little."""


class Paces:
    """Which variants' latencies are known well enough to pick by them: those of enough runs since the last long pause."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int, float]] = {}
        """Name -> runs in all, runs before the last long pause, and the instant of the last one."""

    def known(self, took_s: Iterable[tuple[str, int, float]], now_s: float) -> Mapping[str, float]:
        """Of each variant its time, if it counts now.

        Args:
            took_s: name, number of runs in all, and the time that most of them take, seconds.
            now_s: monotonic.
        """
        found = {}
        for name, count, seconds in took_s:
            runs, before, at_s = self._seen.get(name, (count, 0, now_s))
            if now_s - at_s > AGAIN_S:
                before = runs
            self._seen[name] = (count, before, now_s if count != runs else at_s)
            if count - before >= ENOUGH:
                found[name] = seconds
        return found
