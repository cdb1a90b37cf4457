"""Calibrates a certificate from collected examples, optionally fitting a score first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from edgeroute.confidence.calibration import certificate_of
from edgeroute.confidence.certificate import Certificate, Kind
from edgeroute.confidence.independence import sketch
from edgeroute.errors import PolicyError
from edgeroute.evaluation.examples import Bools, Examples
from edgeroute.evaluation.fitted import Fitted, fitted

Fit = Literal["auto", "learned"]


class Certified(NamedTuple):
    """Result of `certified`."""

    certificate: Certificate
    fitted: Fitted | None
    """None: no score was requested to be fitted."""
    notes: list[str]
    """Warnings of the calibration."""


def certified(
    made: Examples,
    kind: Kind,
    value: float,
    sure: float | None,
    *,
    per_class: bool,
    fit: Fit | None,
    ood: bool,
    score: str,
    fingerprints: Mapping[str, str],
) -> Certified:
    """The certificate of these examples; see `edgeroute.confidence.calibrate`.

    Args:
        made: the examples, scored by the policy's score, or by msp if one is to be fitted.
        kind: the guarantee.
        value: its limit, 0..1.
        sure: its confidence level; None: on average.
        per_class: a threshold per predicted class.
        fit: fit a score: "learned", or "auto": blended with msp. None: do not fit.
        ood: add out-of-distribution features to a fitted score.
        score: the score's name, unless one is fitted.
        fingerprints: from `Router.fingerprints`.

    Raises:
        NotEnough: there are too few examples.
        PolicyError: the examples lack what the guarantee needs, or `calibrate` rejects them.
    """
    edge, cloud = _right(made, kind)
    found = None if fit is None else _fitted(made, kind, edge, cloud, fit, ood)
    learned = None if found is None else found.learned
    bound = dict(fingerprints) if learned is None else {**fingerprints, "score": learned.fingerprint}
    told: list[str] = []
    certificate = certificate_of(
        made.score if found is None else found.scores,
        edge,
        cloud,
        max_loss=value if kind == "max_loss" else None,
        max_error=value if kind == "max_error" else None,
        max_defer=value if kind == "max_defer" else None,
        sure=sure,
        per_class=made.edge if per_class else None,
        groups=made.groups,
        agree=made.agree,
        name=score if learned is None else "learned",
        parameters={} if found is None else {"chosen_because": found.why},
        fingerprints=bound,
        told=told,
    )
    if made.outputs is not None:  # a fitted score has other values on these examples once it is fitted to all of them
        certificate = certificate._replace(examples=sketch(made.outputs))
    return Certified(certificate, found, told)


def _right(made: Examples, kind: Kind) -> tuple[Bools | None, Bools | None]:
    """Correctness of edge and cloud, as arguments of `calibrate`."""
    if kind == "max_error" and made.labels is None:
        raise PolicyError("max_error needs labels, what is right for each input: y, or in an .npz file an array `labels`")
    if kind == "max_loss" and made.cloud is None:
        raise PolicyError("max_loss is measured against the cloud: record cloud_logits too, or give the inputs themselves")
    if made.labels is None:
        return (made.agree, None) if kind == "max_loss" else (None, None)
    return made.edge_correct, made.cloud_correct


def _fitted(made: Examples, kind: Kind, edge: Bools | None, cloud: Bools | None, fit: Fit, ood: bool) -> Fitted:
    if edge is None:
        edge = made.agree
    if edge is None:
        raise PolicyError("a score is fitted to what is right: that takes labels or the cloud's answers, and there are neither")
    if cloud is None or kind == "max_error":  # there, only the edge's own errors count
        cloud = np.ones(len(edge), bool)
    return fitted(made.outputs, made.score, edge, cloud, choose=fit == "auto", ood=ood, groups=made.groups)
