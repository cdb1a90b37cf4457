"""A/B: a stable share of the requests, or of the devices, gets another edge model; the settings."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.errors import PolicyError, check_number

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate

STORED = "ab"
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


def checked(ab: AB) -> None:
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
