"""Energy of a call of each target: of edges fitted from the device's power, of clouds by their prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeroute.core.energy import PowerFit, break_even
from edgeroute.core.standby import ENOUGH
from edgeroute.observe.stats import Counts
from edgeroute.types import Backend

LONGEST_S = 120.0
"""Readings that are further apart are not used: the power of an instant says little of so long a time."""


class Energy:
    """What calls take, as far as known.

    Args:
        counts: has the time that edges were busy.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts, self._fit = counts, PowerFit()
        self._last: tuple[float, float] | None = None

    @property
    def extra_w(self) -> float | None:
        """Power that a run of an edge takes beside what the device takes anyway, watts; None: not known."""
        return self._fit.extra_w

    def note(self, power_w: float | None, edges: Iterable[str], now_s: float) -> float:
        """Takes a reading of the device's power into account, at a monotonic instant; None: it is unknown.

        Returns the joules that the edges' runs have taken since the last reading; 0 while not known.
        """
        busy_s = sum(seconds for _, seconds in self._counts.busy(edges).values())
        last, self._last = self._last, (now_s, busy_s)
        if last is None:
            return 0.0
        ran_s = max(0.0, busy_s - last[1])
        if power_w is not None and 0 < now_s - last[0] <= LONGEST_S:
            self._fit.add(power_w, ran_s / (now_s - last[0]))
        return ran_s * (self.extra_w or 0.0)

    def joules(self, backends: Sequence[Backend]) -> Mapping[str, float]:
        """Target -> energy of a call, joules; one of which it is not known is missing."""
        busy, extra_w = self._counts.busy(b.name for b in backends), self.extra_w
        found: dict[str, float] = {}
        for backend in backends:
            calls, seconds = busy.get(backend.name, (0, 0.0))
            if backend.side == "edge":
                if extra_w is not None and calls:
                    found[backend.name] = extra_w * seconds / calls
                continue
            terms: Any = backend.terms  # type: ignore[attr-defined]  # a cloud has prices
            if terms.joules_per_call or (terms.joules_per_mb and calls):
                found[backend.name] = terms.joules_per_call + terms.joules_per_mb * sum(backend.traffic) / 1e6 / max(1, calls)
        return found

    def told(self, backends: Sequence[Backend]) -> dict[str, Any]:
        """The fields of `Stats` about energy: what calls take, and the break-even of the first edge and cloud."""
        joules = self.joules(backends)
        first = [next((joules.get(b.name) for b in backends if b.side == side), None) for side in ("edge", "cloud")]
        edge, cloud = first
        return {"joules": joules, "break_even": None if edge is None or cloud is None else break_even(edge, cloud)}


def unsure(counts: Counts, edges: Sequence[str]) -> float | None:
    """Share of the first edge's answers that are below its threshold, in steps of a twentieth; None: not known."""
    judged, below = counts.judged(edges[0]) if edges else (0, 0)
    return round(20 * below / judged) / 20 if judged >= ENOUGH else None


def steady(old: Mapping[str, float], new: Mapping[str, float], share: float = 0.1) -> Mapping[str, float]:
    """The new values, or the old ones if none has changed by more than this share: plans are made from them."""
    near = old.keys() == new.keys() and all(abs(new[name] - value) <= share * value for name, value in old.items())
    return old if near else new
