"""When to ask the cloud though the edge is still at it."""

from __future__ import annotations

from typing import Final

from edgeroute.core.latency import Latency
from edgeroute.core.policy import INF

ENOUGH: Final = 50
"""So many latencies of each side must be known."""


def auto(
    edge: Latency, cloud: Latency, *, deadline_s: float, deferral_rate: float, miss: float = 0.01, either: bool = False
) -> float:
    """The latest time after the start, in seconds, at which asking the cloud keeps the deadline as often as is wanted.

    inf: do not hedge, since it is kept anyway, or there is none, or too little is known.

    Args:
        edge: latencies of the edge.
        cloud: latencies of the cloud.
        deadline_s: from the start; inf: there is none.
        deferral_rate: the share of inputs that the cloud is needed for, 0..1.
        miss: the share of inputs that may miss the deadline, more than 0.
        either: the edge's answer will do whatever its confidence, so the cloud is needed only where the edge is late.
    """
    if deadline_s == INF or edge.count < ENOUGH or cloud.count < ENOUGH:
        return INF
    needed = edge.share_above(deadline_s) if either else deferral_rate
    assert needed is not None  # enough is known
    if needed <= miss:
        return INF
    cloud_s = cloud.quantile(1 - miss / needed)
    assert cloud_s is not None
    return max(0.0, deadline_s - cloud_s)


def quantile(edge: Latency, q: float) -> float:
    """The time in seconds that the edge keeps to in the share `q` (0..1) of cases; inf: too little is known."""
    usual_s = edge.quantile(q) if edge.count >= ENOUGH else None
    return INF if usual_s is None else usual_s
