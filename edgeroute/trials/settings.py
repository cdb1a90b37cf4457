"""Settings of comparisons: of two edge models, and of the cloud's endpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import iscoroutinefunction
from math import fsum
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.words import clean
from edgeroute.errors import PolicyError, check_number

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate


# A/B: a stable share of the requests, or of the devices, gets another edge model; the settings.

STORED_AB = "ab"
"""Name of what came of the arms, in the state folder."""
B = "edge-b"
"""What the target of arm B is called, in answers, traces, audits and statistics; that of A is `edge`."""


class AB(NamedTuple):
    """Another edge model, for a share of the requests or devices.

    The share is stable: a hash of what is asked for decides, so that a key, or a device, is always in the same arm.
    """

    model: Any
    """As `Router(edge=...)`: arm B."""
    share: float = 0.1
    """Of the requests, or devices, that get B; 0..1."""
    threshold: float | Certificate | None = None
    """Of B; None: its own certificate if it came with one, else the number that A has."""
    by: Callable[[Any], Any] | None = None
    """The key of an input, as of its camera or user: equal keys are in one arm. None: each request is drawn for itself."""
    device: str | None = None
    """Id of this device: all of its requests are in one arm, and of many devices that share in B."""
    salt: str = ""
    """Other shares are drawn by another one, so that the same devices are not always the first."""
    more_errors: float = 0.01
    """Guardrail: by how much the share of requests on which the edge model fails may be higher than in A."""
    more_deferred: float = 0.1
    """Likewise that of requests that are deferred to the cloud."""
    more_differs: float = 0.02
    """Likewise that of edge answers that differ from the cloud's, where audits compare them."""
    alpha: float = 0.05
    """Probability that a guardrail stops an arm that is not worse, whenever and however often it looks."""


def checked_ab(ab: AB) -> None:
    """Checks the settings.

    Raises:
        PolicyError: one is out of range.
    """
    check_number("ab: share", ab.share, most=1)
    for name in ("more_errors", "more_deferred", "more_differs"):
        check_number(f"ab: {name}", getattr(ab, name), most=1)
    check_number("ab: alpha", ab.alpha, most=1, above=True)
    if iscoroutinefunction(ab.by):
        raise PolicyError("ab: by is a function of the input that returns its key, and this one is async: make it a plain def")
    if ab.by is not None and (ab.device is not None or not callable(ab.by)):
        raise PolicyError(
            "ab: by is a function of the input, which says what stays in one arm, and device is not given beside it"
        )


# Arms of the cloud: several endpoints of which a stable share of the requests, or devices, gets another one; the settings.

STORED_ARMS = "cloud-arms"
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


def checked_arms(arms: CloudArms) -> CloudArms:
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
