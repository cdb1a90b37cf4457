"""Models that are versions of a catalog: the certificate that came with one, and the policy with another one as arm B."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from edgeroute.confidence.binding import BoundCertificate
from edgeroute.core.policy import INF
from edgeroute.edge.load import load
from edgeroute.edge.members import member
from edgeroute.errors import PolicyError
from edgeroute.record.ab import AB, B, checked

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate


def released(model: Any) -> Certificate | None:
    """The certificate that came with a version of a catalog; None: there is none."""
    release = member(model, "release")
    if release is None or release.certificate is None:
        return None
    from edgeroute.confidence.certificate import Certificate

    return Certificate.load(release.certificate)


def only_if_it_holds(promise: BoundCertificate | None) -> BoundCertificate | None:
    """A certificate that came with a model, without its threshold where it is for something else: everything is deferred then."""
    if promise is None or promise._replace(max_age_days=INF).broken() is None:
        return promise
    return promise._replace(certificate=promise.certificate._replace(threshold=INF, thresholds={}))


def of_arm_b(snapshot: Any, ab: AB, cloud: Any, threshold: Any, build: Callable[..., Any]) -> Any:
    """The policy of arm B, made by `build`; None: its model is the one that is in use already, as after it was promoted."""
    checked(ab)
    if sum(b.side == "edge" for b in snapshot.backends) != 1:
        raise PolicyError("ab needs one edge model, which is arm A")
    model = load(ab.model)
    release, own = member(model, "release"), member(cast("Any", snapshot.backends[0]).model, "release")
    if release is not None and own is not None and (release.name, release.version) == (own.name, own.version):
        return None
    limit = ab.threshold if ab.threshold is not None or released(model) is not None else threshold
    made = build(ab.model, cloud, threshold=limit, arm=B)
    if made.clouds != snapshot.clouds:
        raise PolicyError("ab: B has other labels than A, by which the cloud's answers are read: give the cloud its own")
    return made
