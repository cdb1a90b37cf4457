"""What the owner of the device decided, as plain data."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Mode = Literal["prefer_edge", "only_edge", "prefer_cloud", "only_cloud"]
Side = Literal["edge", "cloud"]
OnExhausted = Literal["answer", "raise"]
NoConfidence = Literal["defer", "accept"]

MODES: Final[tuple[Mode, ...]] = ("prefer_edge", "only_edge", "prefer_cloud", "only_cloud")
INF: Final = float("inf")


class Target(NamedTuple):
    """One place that can answer. Targets are listed from the least to the most capable."""

    name: str
    side: Side
    threshold: float | None = None
    """Confidence from which this target's answer is accepted; None: its answer is always accepted."""
    label: str = "uncalibrated"
    """Where the threshold comes from, in the words that the reason quotes."""


class Policy(NamedTuple):
    """How to route among targets. Durations in seconds."""

    mode: Mode = "prefer_edge"
    deadline_s: float = INF
    hedge_after_s: float = INF
    """Start the next target this long after the one before, if that has not answered yet; 0 is a race."""
    on_exhausted: OnExhausted = "answer"
    """When no answer was accepted: return the best one there is, marked degraded, or raise NoAnswer."""
    no_confidence: NoConfidence = "defer"
    """What a missing or NaN confidence means."""
