"""What is true right now, as far as routing cares. Observed outside, passed in."""

from __future__ import annotations

from typing import NamedTuple


class Facts(NamedTuple):
    """Facts about the device and its targets."""

    busy: frozenset[str] = frozenset()
    """Names of targets still held by a run that was told to stop and has not."""
    edge_s: float = 0.0
    """The time the edge needs, seconds: the 99 % quantile of its measured latency; 0 while unknown."""
