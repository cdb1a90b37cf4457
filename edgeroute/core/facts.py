"""Facts: the current state that planning depends on. Observed elsewhere, passed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeroute.core.latency import Latency
from edgeroute.core.rules import Rule


class Facts(NamedTuple):
    """State of the device and its targets."""

    busy: frozenset[str] = frozenset()
    """Names of targets occupied by abandoned runs (told to stop, still running)."""
    edge_s: float = 0.0
    """Time the edge needs, seconds: 99 % quantile of its measured latency; 0 while unknown."""
    reserves: Mapping[str, float] = {}
    """Time to leave each edge before a deadline, seconds, by name (`standby.reserve_s`); inf or missing: unknown."""
    no_hedge: str = ""
    """Why hedges are forbidden; empty: they are allowed."""
    deferral_rate: float = 0.0
    """Share of requests for which the cloud was needed, 0..1."""
    latencies: Mapping[str, Latency] = {}
    """Latencies measured so far, by target; only if the policy uses them."""
    rules: tuple[Rule, ...] = ()
    """Rules on the device's state that are in force. The readings are no facts: a plan holds until a rule begins or ends."""
    loading: frozenset[str] = frozenset()
    """Names of edges that are being loaded again."""
    kept: float = 0.0
    """Share of the deferrals, 0..1, that is kept on the edge since the cloud is loaded (`core.load`)."""
    slack: Mapping[str, float] = {}
    """How far the thresholds of each edge are lowered for that, by name; not those of a certificate."""
    took_s: Mapping[str, float] = {}
    """Time in which nine in ten runs of a variant end, seconds, by name; missing: unknown, or it is no variant."""
    joules: Mapping[str, float] = {}
    """Energy of a call, joules, by target, as far as known; only if a rule or a limit goes by it."""
    unsure: float | None = None
    """Share of the first edge's answers, 0..1, that are below its threshold; None: unknown, or no rule goes by it."""
    energy_spent: bool = False
    """`joules_per_hour` has no room for another run of the edge, whose energy is known."""
