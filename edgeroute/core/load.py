"""Load of an endpoint, as its replies report it, and what of the deferrals is kept on the edge for it. The clock is passed in.

The share of deferrals that is kept grows in proportion to the load, from `FROM` on:

    share = MOST * min(1, max(0, (load - FROM) / SPAN))

so the fleet settles where what is left fits, and a tenth is always sent, which brings the next report. The least unsure are kept:
thresholds are lowered by the quantile `share` of how far recent deferred answers were below their own. Of answers that are all
equally far none is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Final, NamedTuple

from edgeroute.core.elementwise import Numbers, least, most
from edgeroute.core.policy import INF

FROM: Final = 0.8
"""Load from which optional calls are skipped, and deferrals kept."""
SPAN: Final = 0.4
MOST: Final = 0.9
"""Largest share of the deferrals that is kept."""
STEP: Final = 0.05
"""The share is a multiple of this, so that plans are not made again for nothing."""
HALF_S: Final = 30.0
"""Half-life of a report, seconds."""
STALE_S: Final = 300.0
"""Age from which the last report says nothing."""
CAP: Final = 4.0
"""Largest load that is believed."""
QUEUE_S: Final = 1.0
"""A wait of so many seconds in the endpoint's queue counts as much as being fully used."""
ENOUGH: Final = 16
"""Deferred answers before any is kept."""


class Report(NamedTuple):
    """What an endpoint says of its load."""

    utilization: float
    """Used share of its capacity; above 1: it is overloaded."""
    queue_s: float = 0.0
    """How long a request waits there, seconds."""

    @property
    def load(self) -> float:
        """Both as one number, 0 to `CAP`; what cannot be counts as nothing."""
        used, waits = (value if isfinite(value) and value > 0 else 0.0 for value in self)
        return min(CAP, used + waits / QUEUE_S)


def faded(load: Numbers, age_s: Numbers) -> Numbers:
    """What is left of a load after so long without a report: halved each `HALF_S`, and 0 from `STALE_S` on."""
    return load * _left(age_s)


def averaged(load: Numbers, age_s: Numbers, reported: Numbers) -> Numbers:
    """The load after a report, so long after the last one. It counts a quarter at least: a burst is not older than its end."""
    return load + (least(reported, CAP) - load) * most(1 - _left(age_s), 0.25)


def kept(load: Numbers) -> Numbers:
    """Share of the deferrals to be kept on the edge at this load: 0 to `MOST`, and never less at a higher load."""
    return (most(least((load - FROM) / SPAN * MOST, MOST), 0.0) / STEP + 1e-9) // 1 * STEP


def _left(age_s: Numbers) -> Numbers:
    return (age_s < STALE_S) * 0.5 ** (most(age_s, 0.0) / HALF_S)


class Load:
    """An average of reports that weighs them by age, and fades while none come. Not synchronised."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value, self._at = 0.0, -INF

    def add(self, load: float, now: float) -> bool:
        """Adds a report's load at an instant; what is not a number of at least 0 is ignored.

        Returns whether another share of the deferrals is kept by it.
        """
        if not (isfinite(load) and load >= 0):
            return False
        before = kept_share(self.at(now))
        self._value, self._at = averaged(self._value, now - self._at, load), max(now, self._at)
        return kept_share(self.at(now)) != before

    def at(self, now: float) -> float:
        """The load at an instant; 0: none was reported, or long ago."""
        return float(faded(self._value, now - self._at))


def kept_share(load: float) -> float:
    """`kept`, of a number that may be none."""
    return round(float(kept(load)), 2) if load > FROM else 0.0


def slack(deficits: Iterable[float], share: float) -> float:
    """How far thresholds are lowered to keep this share of the deferrals: at most as far as recent ones were below theirs.

    Args:
        deficits: how far recent deferred answers were below their thresholds, each 0 or more; of a lowered threshold, what was
            kept for it counts like what was deferred.
        share: to be kept, 0..1.
    """
    known: Sequence[float] = sorted(value for value in deficits if isfinite(value) and value >= 0)
    if len(known) < ENOUGH or share <= 0:
        return 0.0
    last = min(len(known), int(share * len(known) + 1e-9)) - 1
    while 0 <= last < len(known) - 1 and known[last] == known[last + 1]:  # all that are as far would be kept, which is too many
        last -= 1
    return known[last] if last >= 0 else 0.0
