"""What is true right now, as far as routing cares. Observed outside, passed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeroute.core.latency import Latency


class Facts(NamedTuple):
    """Facts about the device and its targets."""

    busy: frozenset[str] = frozenset()
    """Names of targets still held by a run that was told to stop and has not."""
    edge_s: float = 0.0
    """The time the edge needs, seconds: the 99 % quantile of its measured latency; 0 while unknown."""
    no_hedge: str = ""
    """Why nothing is asked only to be quicker; empty: it may be."""
    deferral_rate: float = 0.0
    """The share of requests for which the cloud was needed, 0..1."""
    latencies: Mapping[str, Latency] = {}
    """What is known of each target's latency; only where the policy looks at it."""
    battery: float | None = None
    """What the battery has, 0..1; None: it is being charged, there is none, or the policy does not ask."""
    temperature_c: float | None = None
    """Of the hottest part, degrees Celsius; None: not known, or the policy does not ask."""
