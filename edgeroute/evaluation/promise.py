"""Tests whether a certificate's guarantee held on held-out examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgeroute.confidence.certificate import Certificate
from edgeroute.evaluation.evaluation import Evaluation
from edgeroute.evaluation.examples import Bools
from edgeroute.evaluation.share import RISK, share

ROUNDED = 1e-12


class Verdict(NamedTuple):
    """A guaranteed limit beside its measured value."""

    where: str
    """Predicted class; empty: all inputs."""
    n: int
    """Number of examples measured."""
    measured: float
    low: float
    """low..high: 95 % confidence interval, simultaneous over classes."""
    high: float
    limit: float
    """The guaranteed limit."""

    @property
    def held(self) -> bool:
        """The measured value is within the limit."""
        return self.measured <= self.limit + ROUNDED

    @property
    def broken(self) -> bool:
        """The violation is statistically significant: the whole interval is above the limit."""
        return self.low > self.limit + ROUNDED


def verdicts(evaluation: Evaluation) -> list[Verdict]:
    """Verdicts, worst first, one per class with a guarantee; empty: no guarantee, or not measurable on these examples."""
    certificate = evaluation.certificate
    if certificate is None or certificate.metric:  # graded answers are not among these examples
        return []
    if not certificate.thresholds:
        found = [_verdict(evaluation, certificate, "", np.ones(evaluation.n, bool), RISK)]
    else:
        said = np.array([str(value) for value in evaluation.examples.edge])
        names = np.unique(said).tolist()
        found = [_verdict(evaluation, certificate, name, said == name, RISK / len(names)) for name in names]
    return sorted((one for one in found if one is not None), key=lambda one: (not one.broken, one.held, -one.measured, one.where))


def _verdict(evaluation: Evaluation, certificate: Certificate, where: str, rows: Bools, risk: float) -> Verdict | None:
    accepted = evaluation.accepted
    edge, agree = evaluation.edge_right, evaluation.examples.agree
    if certificate.kind == "max_defer":
        found = share(~accepted[rows], risk)
    elif certificate.kind == "max_error":
        if edge is None or not evaluation.labelled:
            return None
        found = share(~edge[rows & accepted], risk)
    elif certificate.agreement:
        if agree is None:
            return None
        found = share((accepted & ~agree)[rows], risk)
    else:
        cloud = evaluation.cloud_right
        if edge is None or cloud is None or not evaluation.labelled:
            return None
        # the difference of two shares, each with half of the risk: exact, and a little wide
        harm, win = share((accepted & cloud & ~edge)[rows], risk / 2), share((accepted & edge & ~cloud)[rows], risk / 2)
        return Verdict(
            where, harm.of, (harm.found - win.found) / harm.of, harm.low - win.high, harm.high - win.low, certificate.value
        )
    return Verdict(where, found.of, found.value, found.low, found.high, certificate.value) if found.of else None
