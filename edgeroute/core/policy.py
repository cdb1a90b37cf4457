"""Routing policy as plain data: modes, targets with their thresholds, the policy, and prices and limits of an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from edgeroute.core.egress import Rules
from edgeroute.core.rules import Rule

Mode = Literal["prefer_edge", "only_edge", "prefer_cloud", "only_cloud"]
PolicyMode = Literal["prefer_edge", "only_edge", "prefer_cloud", "only_cloud", "shadow"]
"""Mode of a policy. shadow: the cloud answers everything, and for a sample the edge's answer is recorded."""
Side = Literal["edge", "cloud"]
Offline = Literal["edge", "queue", "stale", "raise"]
NoConfidence = Literal["defer", "accept"]
CloudOrder = Literal["listed", "fastest"]
Uncalibrated = Literal["tell", "error"]
OnAlarm = Literal["tell", "raise", "defer"]
Hedge = float | str
"""Seconds, a quantile of the edge's own latency such as "p90", or "auto"."""

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
POLICY_MODES: Final[tuple[PolicyMode, ...]] = get_args(PolicyMode)
NEEDS: Final[Mapping[str, tuple[Side, ...]]] = {
    "only_edge": ("edge",), "prefer_cloud": ("cloud",), "only_cloud": ("cloud",), "shadow": ("edge", "cloud"),
    "cheapest_energy": ("edge", "cloud"), "unload": ("edge",),
}  # fmt: skip
"""Mode, or effect of a rule -> sides that it requires."""
HEDGE: Final = "p[1-9][0-9]|auto"
"""Regular expression for a `Hedge` as text."""
INF: Final = float("inf")


class Target(NamedTuple):
    """Model or endpoint. Targets are listed from the least to the most capable."""

    name: str
    side: Side
    threshold: float | None = None
    """Minimum confidence of an accepted answer; None: every answer is accepted."""
    label: str = "uncalibrated"
    """Origin of the threshold, as quoted in the reason."""
    thresholds: Mapping[str, float] = {}
    """Per-class thresholds: an answer's `str()` -> its threshold; empty: one for all."""
    certified: bool = False
    """True if the threshold is a certificate's: it is never lowered."""
    trial: bool = False
    """True for a cloud that gets only the requests of its arm."""
    group: str = ""
    """Name of its group of variants; empty: none. One member of a group is in a plan."""


class Policy(NamedTuple):
    """Routing rules. Durations are in seconds."""

    mode: PolicyMode = "prefer_edge"
    deadline_s: float = INF
    hedge_after: Hedge = INF
    """Hedging delay: start the next target so long after the previous one if that has not answered; 0 is a race."""
    offline: Offline = "edge"
    """Result if the cloud was needed and did not answer. edge: the edge's answer; queue: the same, and the request is sent later;
    stale: an expired cache entry; raise: NoAnswer.
    """
    first_token_s: float = INF
    """In streams: maximum time to the first piece; a target without one counts as failed."""
    no_confidence: NoConfidence = "defer"
    """Treatment of a missing or NaN confidence."""
    order: CloudOrder = "listed"
    """Order of several clouds: as listed, or the one with the lowest latency first."""
    rules: Rules = Rules()
    """Egress rules."""
    device_rules: tuple[Rule, ...] = ()
    """Rules on the device's state; the first one in force that changes the mode counts."""
    sensors_every_s: float | None = None
    """Time between two readings of the device's sensors; None: the sensors' default."""


class Terms(NamedTuple):
    """Price of calling an endpoint, and limits of rate and concurrency."""

    usd_per_call: float = 0.0
    usd_per_mb: float = 0.0
    joules_per_call: float = 0.0
    joules_per_mb: float = 0.0
    """Radio energy on the device: per request, and per million bytes of bodies in both directions."""
    calls_per_s: float = INF
    max_concurrent: int | Literal["auto"] = 64
    """Maximum concurrent calls; auto: a limit that adapts (`Concurrency`), beyond which a call is refused instead of waiting."""
    usd_per_million_input_tokens: float = 0.0
    usd_per_million_output_tokens: float = 0.0
    """Prices of a language model: of the tokens of a request, and of its answer."""
