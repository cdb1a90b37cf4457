"""What the owner of the device decided, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from edgeroute.core.egress import Rules

Mode = Literal["prefer_edge", "only_edge", "prefer_cloud", "only_cloud"]
Side = Literal["edge", "cloud"]
Offline = Literal["edge", "queue", "stale", "raise"]
NoConfidence = Literal["defer", "accept"]
CloudOrder = Literal["listed", "fastest"]
Uncalibrated = Literal["tell", "error"]
OnAlarm = Literal["tell", "raise", "defer"]
Hedge = float | str
"""Seconds, a quantile of the edge's own latency such as "p90", or "auto"."""

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
NEEDS: Final[Mapping[str, Side]] = {"only_edge": "edge", "prefer_cloud": "cloud", "only_cloud": "cloud"}
"""Mode -> the side without which it is refused."""
HEDGE: Final = "p[1-9][0-9]|auto"
"""Regular expression of a `Hedge` that is text."""
INF: Final = float("inf")


class Target(NamedTuple):
    """One place that can answer. Targets are listed from the least to the most capable."""

    name: str
    side: Side
    threshold: float | None = None
    """Confidence from which this target's answer is accepted; None: its answer is always accepted."""
    label: str = "uncalibrated"
    """Where the threshold comes from, in the words that the reason quotes."""
    thresholds: Mapping[str, float] = {}
    """Answers that have a threshold of their own, as `str` writes them -> that; empty: one for all."""


class Saver(NamedTuple):
    """Another mode for when the device runs short of energy, or hot. Which mode that is depends on what costs more there."""

    mode: Mode = "only_edge"
    battery_below: float = 0.0
    """The share of a full battery, 0..1, below which it holds while the device is not charged."""
    hotter_than_c: float = INF
    """Degrees Celsius above which it holds."""


class Policy(NamedTuple):
    """How to route among targets. Durations in seconds."""

    mode: Mode = "prefer_edge"
    deadline_s: float = INF
    hedge_after: Hedge = INF
    """Start the next target this long after the one before, if that has not answered yet; 0 is a race."""
    offline: Offline = "edge"
    """When the cloud was needed and did not answer: the edge's answer stands; it does, and the request is sent later; an
    answer that the cache still has from before; or NoAnswer."""
    first_token_s: float = INF
    """In streams: a target that has not begun to answer so long after it was asked counts as failed."""
    no_confidence: NoConfidence = "defer"
    """What a missing or NaN confidence means."""
    order: CloudOrder = "listed"
    """Which of several clouds is asked first: as they are listed, or the one that has been fastest."""
    rules: Rules = Rules()
    """What may leave."""
    saver: Saver | None = None


class Terms(NamedTuple):
    """What asking an endpoint costs, and how much it may be asked at a time."""

    usd_per_call: float = 0.0
    usd_per_mb: float = 0.0
    joules_per_call: float = 0.0
    joules_per_mb: float = 0.0
    """The device's energy for the radio: for a request, and for a million bytes of bodies, both ways."""
    calls_per_s: float = INF
    max_concurrent: int = 64
