"""Computes the hedging delay: when to call the cloud while the edge is still running."""

from __future__ import annotations

from typing import Final

from edgeroute.core.latency import Latency
from edgeroute.core.policy import INF

ENOUGH: Final = 50
"""Minimum number of latencies of each side."""


def auto(
    edge: Latency, cloud: Latency, *, deadline_s: float, deferral_rate: float, miss: float = 0.01, either: bool = False
) -> float:
    """The latest start of the cloud, seconds after the edge's, that keeps the deadline with probability 1 - `miss`.

    inf: do not hedge, as the deadline is kept anyway, or there is none, or there are too few latencies.

    Args:
        edge: latencies of the edge.
        cloud: latencies of the cloud.
        deadline_s: from the start; inf: none.
        deferral_rate: share of inputs that need the cloud, 0..1.
        miss: share of inputs that may miss the deadline, more than 0.
        either: any edge answer will do, whatever its confidence, so the cloud is needed only if the edge is late.
    """
    if deadline_s == INF or edge.count < ENOUGH or cloud.count < ENOUGH:
        return INF
    needed = edge.share_above(deadline_s) if either else deferral_rate
    assert needed is not None  # there are enough latencies
    if needed <= miss:
        return INF
    cloud_s = cloud.quantile(1 - miss / needed)
    assert cloud_s is not None
    return max(0.0, deadline_s - cloud_s)


def quantile(edge: Latency, q: float) -> float:
    """Latency quantile `q` (0..1) of the edge, seconds; inf: too few latencies."""
    usual_s = edge.quantile(q) if edge.count >= ENOUGH else None
    return INF if usual_s is None else usual_s
