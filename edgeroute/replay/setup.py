"""What replay needs of a policy: everything that decides, and nothing that runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from edgeroute.core.policy import Policy, Target, Terms
from edgeroute.core.spending import Limits
from edgeroute.errors import ModelMissing
from edgeroute.router.snapshot import Snapshot, build

if TYPE_CHECKING:
    from edgeroute.settings.targets import Edge


KEPT: Final = frozenset({"state", "cache", "outbox", "trace", "audit"})
"""Keys of a policy that are about what a router keeps, or does beside answering."""


class Port(NamedTuple):
    """How an endpoint is asked."""

    terms: Terms = Terms()
    retries: int = 0
    patience_s: float = 10.0
    """For a request with its retries."""
    health: bool = True
    """It can be tried without user data; if not, the next request tries it."""


class Setup(NamedTuple):
    """A policy, ready to be replayed."""

    policy: Policy
    targets: tuple[Target, ...]
    ports: Mapping[str, Port]
    """Of each cloud, by its name."""
    limits: Limits = Limits()
    metered: bool = False
    cached: bool = True
    """There is a cache."""

    @classmethod
    def read(cls, path: str | Path) -> Setup:
        """That of a policy file. Opens no model and no connection; a model that is not on this machine is taken to be there.

        Raises:
            PolicyError: one message with everything that is wrong.
        """
        from edgeroute import settings

        path = Path(path)
        given = settings.load(path)
        bare: dict[str, Any] = dict.fromkeys(KEPT & {*type(given).model_fields})
        told = given.model_copy(update={**bare, "edge": []}).arguments(path.parent)
        for name in KEPT:
            told.pop(name, None)
        limits, metered = told.pop("limits"), told.pop("metered")
        told |= {"edge": [_edge(section, path.parent) for section in given.edge], "uncalibrated": "tell"}
        snapshot = build(**told, guard=_unguarded)
        return cls.of(snapshot, limits or Limits(), metered=metered, cached=given.cache is not None)

    @classmethod
    def of(cls, snapshot: Snapshot, limits: Limits | None = None, *, metered: bool = False, cached: bool = True) -> Setup:
        """That of targets that are ready to run."""
        ports = {}
        for runner in snapshot.clouds:
            address = getattr(getattr(runner, "endpoint", None), "address", None)
            ports[runner.name] = Port(runner.terms, getattr(address, "retries", 0), runner.patience_s, runner.health is not None)
        return cls(snapshot.policy, snapshot.targets, ports, limits or Limits(), metered, cached)


class _Absent:
    """Stands for a model that is not on this machine."""

    labels, kind = None, "logits"

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, inputs: list[Any], cancel: Any = None) -> NoReturn:  # noqa: ARG002 - the protocol's
        raise ModelMissing(f"{self.name} is not on this machine")


def _edge(section: Edge, folder: Path) -> Any:
    """The model, not loaded; or what stands for it."""
    try:
        model = section.make(folder)
    except ModelMissing:  # the card that the policy names
        return _Absent(Path(section.path).stem)
    return model if model.path.exists() else _Absent(model.name)


def _unguarded(runner: Any) -> Any:
    """Nothing stands before a cloud that is never asked."""
