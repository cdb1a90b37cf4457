"""Setup of a replay: the parts of a policy that decide routes, without anything that runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from edgeroute.core.routing_policy import Policy, Target, Terms
from edgeroute.core.usage_limits import Limits
from edgeroute.edge.model_attributes import member
from edgeroute.errors import ModelMissing
from edgeroute.router.policy_snapshot import PolicyArguments, Snapshot, build

if TYPE_CHECKING:
    from edgeroute.policy.target_sections import Edge


KEPT: Final = frozenset({"state", "cache", "outbox", "trace", "audit", "telemetry"})
"""Policy keys about storage and background work, which a replay ignores."""


class Port(NamedTuple):
    """Call settings of an endpoint: prices, retries, timeout, health check."""

    terms: Terms = Terms()
    retries: int = 0
    patience_s: float = 10.0
    """Timeout of a request with its retries, seconds."""
    health: bool = True
    """True if it has a health check; otherwise the next request is the probe."""
    one_by_one: bool = False
    """True if each row of a batch takes a separate call."""


class Setup(NamedTuple):
    """Policy prepared for a replay."""

    policy: Policy
    """Policy of the replay."""
    targets: tuple[Target, ...]
    """Edges and clouds, in order."""
    ports: Mapping[str, Port]
    """Cloud's name -> its call settings."""
    limits: Limits = Limits()
    """Spending limits; by default there are none."""
    metered: bool = False
    """True if the link is metered: then nothing is hedged."""
    cached: bool = True
    """True if there is a cache."""

    @classmethod
    def read(cls, path: str | Path) -> Setup:
        """Read a policy file. Opens no model and no connection; a missing model is assumed to exist.

        Raises:
            PolicyError: one message with all problems.
        """
        from edgeroute import policy
        from edgeroute.policy.target_sections import group_variants

        path = Path(path)
        sections = policy.load(path)
        bare: dict[str, Any] = dict.fromkeys(KEPT & {*type(sections).model_fields})
        arguments = sections.model_copy(update={**bare, "edge": []}).arguments(path.parent)
        for name in KEPT:
            arguments.pop(name, None)
        limits, metered = arguments.pop("limits"), arguments.pop("metered")
        edges = [_edge(section, path.parent) for section in sections.edge]
        arguments |= {"edge": group_variants(edges, sections.edge), "uncalibrated": "tell"}
        snapshot = build(PolicyArguments(**arguments), _no_guard)
        return cls.of(snapshot, limits or Limits(), metered=metered, cached=sections.cache is not None)

    @classmethod
    def of(cls, snapshot: Snapshot, limits: Limits | None = None, *, metered: bool = False, cached: bool = True) -> Setup:
        """Return the setup of a router's snapshot, by reading its endpoints' settings."""
        ports = {}
        for runner in snapshot.clouds:
            address = getattr(getattr(runner, "endpoint", None), "address", None)
            ports[runner.name] = Port(
                runner.terms, getattr(address, "retries", 0), runner.patience_s, runner.health is not None, runner.calls(2) > 1
            )
        return cls(snapshot.policy, snapshot.targets, ports, limits or Limits(), metered, cached)


class _Absent:
    """Placeholder for a model that is not on this machine."""

    labels, kind = None, "logits"

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, inputs: list[Any], cancel: Any = None) -> NoReturn:  # noqa: ARG002 - required by the protocol
        """Raise `ModelMissing`."""
        raise ModelMissing(f"{self.name} is not on this machine")


def _edge(section: Edge, folder: Path) -> Any:
    """Return the edge model, not loaded; or a placeholder if its file is missing."""
    try:
        model = section.make(folder)
    except ModelMissing:  # also the card that the policy names
        return _Absent(Path(section.path).stem)
    path = member(model, "path")
    return model if path is None or Path(path).exists() else _Absent(model.name)


def _no_guard(runner: Any) -> Any:
    """Return no guard: a replay never calls a cloud."""
