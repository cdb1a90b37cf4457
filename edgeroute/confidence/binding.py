"""A certificate bound to the models, score and codec in use, and the threshold and label that follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from edgeroute.core.policy import INF, Target

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate


class BoundCertificate(NamedTuple):
    """A certificate, and what it is used with."""

    certificate: Certificate
    used: Mapping[str, str]
    """Fingerprints of the edge model, cloud, score and codec in use, by the names of `BOUND_TO`."""
    max_age_days: float
    served: Callable[[], str] | None = None
    """What the cloud's servers say of their models by now; None: as in `used`."""

    def broken(self) -> str | None:
        """Why the certificate is not valid for this setup or at this time, in words; None: it is valid."""
        used = self.used if self.served is None else {**self.used, "served": self.served()}
        return self.certificate.matches(**used, max_age_days=self.max_age_days)


def digest(used: Mapping[str, str]) -> str:
    """One hash over several fingerprints but `served`, which is not known at every start: 32 hex digits of SHA-256."""
    own = {name: one for name, one in used.items() if name != "served"}
    return sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:32]


def effective_target(target: Target, promise: BoundCertificate | None, alarm: str = "", at_least: float = -INF) -> Target:
    """The target with the threshold and label currently in force.

    Args:
        target: with any threshold and label.
        promise: the certificate that the threshold comes from; None: a plain number, left unchanged.
        alarm: why a drift alarm invalidates the certificate; empty: no alarm.
        at_least: lower bound of the threshold, and of every per-class threshold, as far as the certificate goes: it raises none
            above the highest that is certified. inf: everything is deferred.
    """
    if promise is None:
        return target
    certificate, broken = promise.certificate, alarm or promise.broken()
    return target._replace(
        threshold=certificate.raised(at_least),
        thresholds={label: certificate.raised(at_least, label) for label in certificate.thresholds},
        label=certificate.label if broken is None else f"uncalibrated: {broken}",
    )
