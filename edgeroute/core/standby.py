"""Computes how much time a standby edge is left before the deadline."""

from __future__ import annotations

from typing import Final

from edgeroute.core.latency import Latency
from edgeroute.core.policy import INF

ENOUGH: Final = 50
"""Number of runs below which the standby starts at once."""
MANY: Final = 1_000
"""Number of runs of which the longest says enough: among so many, what 1 % of all runs take is missing once in 20,000 times."""
RECENT: Final = 5_000
"""The longest run counts for so many newer ones."""
TIMES_LONGEST: Final = 2
TIMES_MEDIAN: Final = 20
"""Until there are MANY: ten times the median, and twice that for the machine."""
LEAST_S: Final = 0.025
"""For starting a thread on a busy machine, whatever the model takes, seconds."""


def reserve_s(edge: Latency) -> float:
    """Time that hardly any run of this edge exceeds, seconds; inf: too few runs are known."""
    if edge.count < ENOUGH:
        return INF
    longest, median = edge.longest(RECENT), edge.quantile(0.5)
    assert longest is not None  # there are enough runs
    assert median is not None
    return max(LEAST_S, TIMES_LONGEST * longest, TIMES_MEDIAN * median if edge.count < MANY else 0.0)
