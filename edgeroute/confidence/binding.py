"""What the threshold of a target promises as it is used here, and why that may not hold, or not any more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from edgeroute.core.policy import INF, Target

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate


class BoundCertificate(NamedTuple):
    """A certificate in use."""

    certificate: Certificate
    used: Mapping[str, str]
    """Fingerprints of what it is used with."""
    max_age_days: float

    def broken(self) -> str | None:
        """In words, why it promises nothing here and now; None: it holds."""
        return self.certificate.matches(**self.used, max_age_days=self.max_age_days)


def digest(used: Mapping[str, str]) -> str:
    """Those fingerprints as one."""
    return sha256(json.dumps(dict(used), sort_keys=True).encode()).hexdigest()[:32]


def effective_target(target: Target, promise: BoundCertificate | None, alarm: str = "", at_least: float = -INF) -> Target:
    """The target with the threshold and the label that hold now.

    Args:
        target: with any threshold and label.
        promise: what its threshold comes from; None: a plain number, which is left as it is.
        alarm: why the certificate is not trusted any more; empty: it is.
        at_least: the threshold, of every class, is this or higher.
    """
    if promise is None:
        return target
    certificate, broken = promise.certificate, alarm or promise.broken()
    return target._replace(
        threshold=max(certificate.threshold, at_least),
        thresholds={label: max(own, at_least) for label, own in certificate.thresholds.items()},
        label=certificate.label if broken is None else f"uncalibrated: {broken}",
    )
