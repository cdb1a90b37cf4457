"""Arms of the cloud: several endpoints of which a stable share of the requests, or devices, gets another one; the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import iscoroutinefunction
from math import fsum
from typing import Any, NamedTuple

from edgeroute.core.texts import clean
from edgeroute.errors import PolicyError, check_number

STORED = "cloud-arms"
"""Name of what came of the arms, in the state folder."""


class CloudArms(NamedTuple):
    """Endpoints of which one answers a request: `Router(cloud=CloudArms({"large": a, "next": b}, split={"next": 0.1}))`.

    The shares are stable: a hash of what is asked for decides, so that a key, or a device, is always in the same arm, and who is
    in the first of `split` stays in it while that grows. The first endpoint has the rest, and answers where another fails.
    """

    clouds: Mapping[str, Any]
    """Name -> endpoint, as for `Router(cloud=...)`; the first is what the others are compared with."""
    split: Mapping[str, float] = {}
    """Name -> share of the requests, or devices, that it answers; 0..1, together at most 1."""
    shadow: Mapping[str, float] = {}
    """Name -> share of the first one's answers for which it is asked too, afterwards, and compared; nobody sees its answer."""
    by: Callable[[Any], Any] | None = None
    """The key of an input, as of its camera or user: equal keys are in one arm. None: each request is drawn for itself."""
    device: str | None = None
    """Id of this device: all of its requests are in one arm."""
    salt: str = ""
    """Other shares are drawn by another one, so that the same devices are not always the first."""
    more_errors: float = 0.02
    """Guardrail: by how much the share of an arm's calls that fail may be higher than that of the first."""
    more_differs: float = 0.1
    """Likewise that of answers that differ from the edge's own; and how many may differ from the first one's, in shadow."""
    alpha: float = 0.05
    """Probability that a guardrail stops an arm that is not worse, for each arm, whenever and however often it looks."""


def checked(arms: CloudArms) -> CloudArms:
    """The settings, checked, with shares that were given as pairs as a mapping.

    Raises:
        PolicyError: one is out of range, or of an endpoint that is not there.
    """
    if not isinstance(arms.clouds, Mapping) or len(arms.clouds) < 2:  # noqa: PLR2004 - a comparison
        raise PolicyError("cloud_arms: there are two endpoints at least, by their names")
    first, *others = arms.clouds
    arms = arms._replace(split=_shares("split", arms.split), shadow=_shares("shadow", arms.shadow))
    for kind, shares in (("split", arms.split), ("shadow", arms.shadow)):
        for name, share in shares.items():
            if name == first:
                raise PolicyError(f"cloud_arms: {kind} has {name!r}, the first endpoint, which has what the others leave")
            if name not in others:
                raise PolicyError(f"cloud_arms: {kind} has {name!r}, and the endpoints are {', '.join(arms.clouds)}")
            check_number(f"cloud_arms: {kind}.{name}", share, most=1)
    if fsum(arms.split.values()) > 1 + 1e-9:
        raise PolicyError("cloud_arms: the shares are more than 1 together")
    if idle := [name for name in others if name not in arms.split and name not in arms.shadow]:
        raise PolicyError(f"cloud_arms: {idle[0]!r} has no share: give it one in split or shadow, 0 for none yet")
    for name in ("more_errors", "more_differs"):
        check_number(f"cloud_arms: {name}", getattr(arms, name), most=1)
    check_number("cloud_arms: alpha", arms.alpha, most=1, above=True)
    if iscoroutinefunction(arms.by):
        raise PolicyError("cloud_arms: by is a function of the input that returns its key, and this one is async")
    if arms.by is not None and (arms.device is not None or not callable(arms.by)):
        raise PolicyError("cloud_arms: by is a function of the input, and device is not given beside it")
    return arms


def _shares(kind: str, given: Any) -> dict[Any, Any]:
    """The shares by name, of a mapping or of pairs."""
    if isinstance(given, Iterator):
        raise PolicyError(f"cloud_arms: {kind} is read again with each policy: give a mapping or a list, not an iterator")
    try:
        return dict(given)
    except (TypeError, ValueError) as e:
        raise PolicyError(f"cloud_arms: {kind} has a share for each name, as in {{'next': 0.1}}, not {clean(given, 60)}") from e
