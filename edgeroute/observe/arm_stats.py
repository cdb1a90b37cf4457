"""Statistics of arms: of an A/B comparison of edge models, and of the cloud."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A number with its 95 % interval."""

    share: float
    low: float
    high: float


class ArmStats(NamedTuple):
    """Statistics of one arm of an A/B comparison."""

    arm: str
    """a or b."""
    model: str
    """Its edge model's name."""
    requests: int
    """Requests of the arm that have ended."""
    failed: Part
    """Share of them on which its edge model failed."""
    deferred: Part
    """Share of them for which the cloud was called."""
    mean_s: Part
    """Mean time of a request, seconds."""
    p50_s: float | None
    """Median time of a request, seconds; None: not known. Likewise the next."""
    p99_s: float | None
    compared: int
    """Answers of the edge model that audits compared with the cloud's."""
    differs: Part
    """Share of these that differ."""
    loss: Part
    """Share of all requests that were answered by the edge, and otherwise than by the cloud; by audits."""
    stopped: str
    """Why a guardrail stopped the arm; empty: it did not."""


class CloudArmStats(NamedTuple):
    """Statistics of one arm of the cloud."""

    arm: str
    """The endpoint's name."""
    share: float
    """Of the requests, as it is in the settings; 0..1."""
    calls: int
    """Requests of the arm for which it was asked."""
    failed: Part
    """Share of them that it did not answer; those that were cancelled as nobody waited any more are left out of both."""
    compared: int
    """Its answers to inputs that the edge had answered, too."""
    differs: Part
    """Share of these that differ from the edge's."""
    shadowed: int
    """Answers in shadow that were compared with those of the first endpoint, to the same inputs."""
    shadow_differs: Part
    """Share of these that differ."""
    shadow_failed: int
    """Calls in shadow that it did not answer; those that a limit held back, or whose input it refused, are left out."""
    usd: Part
    """Mean cost of a request, US dollars."""
    mean_s: Part
    """Mean time of an answer, seconds."""
    p50_s: float | None
    """Median time of an answer, seconds; None: not known. Likewise the next."""
    p99_s: float | None
    stopped: str
    """Why a guardrail stopped the arm; empty: it did not."""
