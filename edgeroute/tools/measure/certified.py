"""Calibrates a certificate from collected examples, optionally fitting a score first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeroute.confidence.certificate import Certificate, Kind, digest
from edgeroute.confidence.exact import Floats, Ints
from edgeroute.confidence.learned import Learned
from edgeroute.errors import BadInput, PolicyError
from edgeroute.stores.journal import read
from edgeroute.tools.measure.calibration import certificate_of, crossfit
from edgeroute.tools.measure.evaluation import RISK, Bools, Evaluation, Examples, share
from edgeroute.tools.measure.fitting import auto, fit
from edgeroute.tools.measure.independence import sketch

# Reads the audit log as unlabelled calibration examples: edge confidence, and agreement with the cloud.


class Audited(NamedTuple):
    """Examples from the audit log."""

    examples: Examples
    """`cloud` is True for each; `edge` is whether the edge agreed."""
    notes: list[str]
    """Messages about skipped lines."""


def audited(path: Path, target: str, fingerprints: Mapping[str, str], *, every: int = 1, since: float | None = None) -> Audited:
    """The audits of one edge model made with the model, cloud and score currently in use.

    Requests are drawn when they arrive, whether edge or cloud will answer, and lines that were drawn with a higher probability
    than others are thinned to the lowest. So what is left represents all traffic, except for what is withheld systematically (by
    a limit, a metered link or a data class).

    Args:
        path: of the log.
        target: the edge model's name in answers.
        fingerprints: currently in use, from `Router.fingerprints`.
        every: use only each `every`-th audit.
        since: use only audits from then on, seconds since 1970.

    Raises:
        BadInput: there is no log, or it has no audits of this model.
        StoreError: the log cannot be read.
    """
    if not any(path.parent.glob(f"{path.name}*")):
        raise BadInput(f"{path}: there is no audit log: no router with this state folder has audited anything, or it was removed")
    wanted, left_out = digest(fingerprints), Counter[str]()
    scores, agree, drawn = list[float](), list[bool](), list[float]()
    log = read(path, since=since)
    for record in log:
        sure, agrees, probability = record.get("edge_confidence"), record.get("agrees"), record.get("probability")
        if not isinstance(agrees, bool) or not isinstance(sure, int | float | None):
            left_out["are not whole"] += 1
        elif record.get("target") != target:
            left_out["are of another edge model"] += 1
        elif record.get("fingerprints") != wanted:
            left_out["are of other files, another endpoint or another score than those in use now"] += 1
        elif not isinstance(probability, int | float) or not 0 < probability <= 1:
            left_out["do not say with which probability they were drawn, so that deferred inputs may be too many among them"] += 1
        else:
            drawn.append(float(probability))
            scores.append(np.nan if sure is None else float(sure))
            agree.append(agrees)
    if log.skipped:
        left_out["are not whole"] += log.skipped
    notes = [f"{count:,} lines of the audit log are left out: they {why}" for why, count in left_out.items()]
    if not scores:
        raise BadInput("; ".join([f"{path}: there is no audit of {target} in it", *notes]))
    kept = _uniform(np.array(drawn))
    if len(kept) < len(drawn):
        why = f"they were drawn more often than others (by {max(drawn):g}, not {min(drawn):g})"
        notes.append(f"{len(drawn) - len(kept):,} lines of the audit log are left out at random: {why}")
    scores, agree = [scores[i] for i in kept], [agree[i] for i in kept]
    agree = agree[::every]
    return Audited(
        Examples(
            score=np.array(scores[::every], float),
            edge=list(agree),
            cloud=[True] * len(agree),
            labels=None,
            outputs=None,
            edge_s=np.full(len(agree), np.nan),
            cloud_s=None,
            sent_bytes=0,
            received_bytes=0,
            usd=0.0,
        ),
        notes,
    )


def _uniform(drawn: Floats) -> list[int]:
    """Indices of the lines to keep so that each request was as likely to be drawn and kept; always the same of one log.

    Args:
        drawn: [n], the probability with which each was drawn.
    """
    kept: list[int] = np.flatnonzero(np.random.default_rng(0).random(len(drawn)) < drawn.min() / drawn).tolist()
    return kept


# Fits a learned score, with cross-fitted scores of the same examples for calibration.


class Fitted(NamedTuple):
    """Result of `fitted`."""

    learned: Learned | None
    """Fitted to all examples, for deployment; None: msp is used instead."""
    scores: Floats
    """[n], for `calibrate`: out-of-fold scores, or msp."""
    why: str
    """Why this score."""


def fitted(
    outputs: Floats | None,
    msp: Floats,
    edge_correct: Bools,
    cloud_correct: Bools,
    *,
    choose: bool,
    ood: bool,
    groups: Sequence[Any] | None = None,
) -> Fitted:
    """Fits a score to all examples for deployment, and scores the examples by 5-fold cross-fitting for calibration.

    The threshold is thus calibrated on other fits than the deployed one; the error is their difference, where in-sample
    scores would be biased.

    Args:
        outputs: [n, classes], the edge's logits.
        msp: [n], used if nothing is learned.
        edge_correct: [n], bool.
        cloud_correct: [n], bool.
        ood: add out-of-distribution features.
        choose: blend the learned score with msp, as `auto`.
        groups: [n], the scene, user or session of each: each is scored by a fit without any of its group.

    Raises:
        PolicyError: the outputs are not an array of logits.
    """
    if outputs is None or outputs.shape[1] < 2:  # noqa: PLR2004 - nothing to tell apart
        raise PolicyError("a score is learned from two logits or more for each input, as many each time: this model gives others")
    train_on = auto if choose else fit
    made = train_on(outputs, edge_correct, cloud_correct, ood=ood)
    if made.name != "learned":
        return Fitted(None, msp, made.chosen_because)
    fell_back: list[str] = []

    def without(train: Ints) -> Callable[[Ints], Floats]:
        part = train_on(outputs[train], edge_correct[train], cloud_correct[train], ood=ood)
        if part.name != "learned":
            fell_back.append(part.chosen_because)
        return lambda left_out: part.many(outputs[left_out])

    scores = crossfit(without, len(outputs), groups=groups)
    if fell_back:  # too few examples in a fold: its scores would be of another kind than the others'
        return Fitted(None, msp, f"{fell_back[0]}, with a fifth left out")
    return Fitted(made, np.asarray(scores), made.chosen_because)


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


# Tests whether a certificate's guarantee held on held-out examples.

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
