"""Certificates from examples, with a fitted score, from audit logs or from counts at any look; tests of a guarantee and of edges.

`certify` fits and calibrates; `certify_counts` certifies counts of audits however often they are looked at; `compare_edges` tests
an edge on trial against the edge in use; `Verdict` compares a guarantee with what was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from hashlib import sha256
from itertools import compress
from math import log
from pathlib import Path
from time import gmtime, strftime
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import RISK, Floats, Ints, upper_bound
from edgeroute.confidence.certificate import Certificate, Kind, NotEnough, digest
from edgeroute.confidence.learned_scores_and_blends import Learned
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.sequential_tests import GRID
from edgeroute.errors import BadInput, PolicyError
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.system.wall_clock import now
from edgeroute.tools.measure.audit_counts_and_evidence import COUNTED_SINCE, LOOKS, NONE, LossCounts, log_evidence
from edgeroute.tools.measure.independence_and_overlap import sketch
from edgeroute.tools.measure.labels_on_demand import LabelsOnDemand
from edgeroute.tools.measure.score_fitting import fit
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate, crossfit, spread
from edgeroute.tools.measure.threshold_evaluation import Bools, Evaluation, Examples, chance_doubts, share

# The audit log as unlabelled calibration examples: edge confidence, and agreement with the cloud.


class Audited(NamedTuple):
    """Examples from the audit log."""

    examples: Examples  # `cloud` is True for each; `edge` is True where the edge agreed
    notes: list[str]  # messages about skipped lines
    ids: list[str]  # id of each request
    deferred: list[bool]  # True where the answer was deferred, by the threshold in force then
    alarms: int = 0  # number of alarms in the log; examples are from after the last
    begun: float = 0.0  # Unix time of the last alarm; 0: there was none
    served: str = ""  # identity of the server's model that all are of; empty: not known


def audited_examples(
    path: Path,
    target: str,
    fingerprints: Mapping[str, str],
    *,
    every: int = 1,
    since: float | None = None,
    one_model: bool = True,
) -> Audited:
    """Read the audits of one edge model, made with the models, cloud and score in use, as examples; notes tell of others.

    Requests are drawn when they arrive, whether edge or cloud will answer, and lines that were drawn with a higher probability
    than others are thinned at random to the lowest. So the rest represents all traffic, except for requests that are withheld
    systematically (by a limit, a metered link or a data class). Audits from before the last alarm are left out, and with
    `one_model` those of other models of the server than the one that answered last; each of these counts as an alarm.

    Args:
        path: path of the log.
        target: name of the edge model in answers.
        fingerprints: fingerprints in use, from `Router.fingerprints`.
        every: use only each `every`-th audit.
        since: use only audits from then on, seconds since 1970.
        one_model: False: all audits, whichever model the server has named.

    Raises:
        BadInput: there is no log, or it has no audits of this model.
        StoreError: the log cannot be read.
    """
    if not any(path.parent.glob(f"{path.name}*")):
        raise BadInput(f"{path}: there is no audit log: routers with this state folder have audited nothing, or it was removed")
    wanted, left_out = digest(fingerprints), Counter[str]()
    audits, probabilities = list[tuple[float, bool, str, bool]](), list[float]()
    models, begun = list[str](), 0.0
    log, alarms = read(path, since=since), 0
    for record in log:
        if isinstance(record.get("alarm"), str) and record.get("fingerprints") == wanted:
            left_out["are from before the last alarm"] += len(audits)
            alarms += max(1, len({*models}))  # a further model is a beginning, too
            audits, probabilities, models = [], [], []
            with suppress(TypeError, ValueError):
                begun = float(record["at"])
            continue
        if "audit_usd" in record:  # the cost of a call
            continue
        confidence, agrees, probability = record.get("edge_confidence"), record.get("agrees"), record.get("probability")
        if not isinstance(agrees, bool) or not isinstance(confidence, int | float | None):
            left_out["are not whole"] += 1
        elif record.get("target") != target:
            left_out["are of another edge model"] += 1
        elif record.get("fingerprints") != wanted:
            left_out["are of other files, another endpoint or another score than those in use now"] += 1
        elif not isinstance(probability, int | float) or not 0 < probability <= 1:
            left_out["do not say with which probability they were drawn, so that deferred inputs may be too many among them"] += 1
        else:
            probabilities.append(float(probability))
            models.append(str(record.get("served", "")) if one_model else "")
            score, identity = np.nan if confidence is None else float(confidence), str(record.get("id", len(audits)))
            audits.append((score, agrees, identity, record.get("audited") == "deferred"))
    if log.skipped:
        left_out["are not whole"] += log.skipped
    notes = [f"lines of the audit log left out, {count:,}: they {why}" for why, count in left_out.items() if count]
    if not audits:
        raise BadInput("; ".join([f"{path}: there is no audit of {target} in it", *notes]))
    kept, alarms = [model == models[-1] for model in models], alarms + len({*models}) - 1
    if not all(kept):
        count = len(kept) - sum(kept)
        notes.append(f"lines of the audit log left out, {count:,}: they are of other models of the server than the last")
        audits, probabilities = [*compress(audits, kept)], [*compress(probabilities, kept)]
    sample = _uniform(np.array(probabilities), [identity for _, _, identity, _ in audits])
    if len(sample) < len(probabilities):
        why = f"they were drawn more often than others (by {max(probabilities):g}, not {min(probabilities):g})"
        notes.append(f"{len(probabilities) - len(sample):,} lines of the audit log are left out at random: {why}")
    scores, agree, ids, deferred = map(list, zip(*(audits[i] for i in sample[::every]), strict=True))
    examples = Examples(np.array(scores, float), agree, [True] * len(agree), labels=None)
    return Audited(examples, notes, ids, deferred, alarms, begun, models[-1])


def agreements(path: Path) -> dict[str, dict[str, bool]]:
    """Read from an audit log, by id, which edges agreed with the cloud: of a sample that represents all traffic.

    It is drawn as for `audited_examples`, from the audits since the last alarm, of whatever models.

    Raises:
        BadInput: the log has no audits.
        StoreError: it cannot be read.
    """
    audits, rates = dict[str, dict[str, bool]](), dict[str, float]()
    for record in read(path):
        name, agrees, rate = record.get("id"), record.get("agrees"), record.get("probability")
        if isinstance(record.get("alarm"), str):
            audits, rates = {}, {}
        elif isinstance(name, str) and isinstance(agrees, bool) and isinstance(rate, int | float) and 0 < rate <= 1:
            audits.setdefault(name, {})[str(record.get("target"))], rates[name] = agrees, float(rate)
    if not audits:
        raise BadInput(f"{path}: there are no audits in it, or no log")
    names = [*audits]
    return {names[i]: audits[names[i]] for i in _uniform(np.array([*rates.values()]), names)}


def _uniform(drawn: Floats, ids: Sequence[str]) -> list[int]:
    """Draw the indices of a sample in which each request is equally likely, by hashes: the same requests for each edge model.

    Args:
        drawn: [n], the probability with which each was drawn.
        ids: [n], by whose hashes the sample is drawn.
    """
    hashes = [int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64 for text in ids]
    indices: list[int] = np.flatnonzero(np.array(hashes) < drawn.min() / drawn).tolist()
    return indices


# Certificates by counts of audits, which may be looked at again and again (`edgeroute.core.sequential_tests`).


def counts_of(audits: Audited) -> LossCounts:
    """Return the counts of audits, as of one rate of drawing: harms where edge and cloud disagree, no wins; and their alarms."""
    counts, score = LossCounts(), audits.examples.score
    counts.alarms, counts.begun, counts.served = audits.alarms, int(audits.begun), audits.served
    index = np.where(np.isnan(score), -1, np.searchsorted(GRID, score, "right") - 1)
    for i, agrees in zip(index.tolist(), audits.examples.edge, strict=True):
        counts.numbers[1.0, i, int(not agrees)] += 1
    return counts


def certify_counts(
    counts: LossCounts, value: float, sure: float, score: str, fingerprints: Mapping[str, str], reached: int = NONE
) -> tuple[Certificate, int]:
    """Return the certificate that counts of audits give, and its index in `GRID`: the lowest certified at this look, or before.

    Its deferral rate weighs each audit by the inverse of the probability with which it was drawn. It is about the server's model
    of these counts, and about each of `others` whose own counts certify the threshold, too.

    Args:
        counts: the counts.
        value: limit of the share of answers that differ from the cloud's, 0..1.
        sure: its confidence level, over all looks.
        score: name of the score.
        fingerprints: fingerprints from `Router.fingerprints`.
        reached: index of the lowest threshold certified at earlier looks.

    Raises:
        NotEnough: even as many audits without a difference would not prove it.
    """
    risk, n = round(1 - sure, 12), counts.n
    if n < (needed := counts.needed(value, risk)):
        why = f"max_loss={value:g} with sure={sure:g} at every look needs at least {needed:,} audits, and there are {n:,}"
        raise NotEnough(f"{why}: {needed - n:,} are missing", needed=needed, missing=needed - n)
    certified = counts.lowest(value, risk, reached)
    bound = dict(fingerprints)
    if counts.served:
        known = counts.others.items() if certified < NONE else ()
        also = [served for served, of_model in known if served and of_model.lowest(value, risk) <= certified]
        bound["served"] = reduce(_any_of, also, counts.served)
    lowest = min((i for _, i, _ in counts.numbers if i >= certified), default=NONE)  # a higher one that accepts the same
    (kept, harms, _), (_, differ, _), wide = counts.accepted(lowest), counts.accepted(-1), spread(n, risk)
    weights = np.array([[number / rate, number / rate * (i < lowest)] for (rate, i, _), number in counts.numbers.items()])
    rate = float(weights[:, 1].sum() / weights[:, 0].sum())
    alike = f"all {n:,} audits have the same confidence: if they are of one input, so is the guarantee"
    alike = alike if counts.accepted(0)[0] else f"none of the {n:,} audits has a confidence: the edge's answers are all deferred"
    certificate = Certificate(
        kind="max_loss",
        value=value,
        sure=sure,
        method=LOOKS,
        agreement=True,
        n=n,
        date=strftime("%Y-%m-%d", gmtime(now())),
        threshold=GRID[lowest] if lowest < NONE else INF,
        thresholds={},
        deferral_rate=rate,
        deferral_interval=(max(0.0, rate - wide), min(1.0, rate + wide)),
        accuracy={"edge": 1 - differ / n} | ({"accepted": 1 - harms / kept} if kept else {}),
        unscored=1 - counts.accepted(0)[0] / n,
        score=score,
        parameters={COUNTED_SINCE: counts.begun} if counts.begun else {},
        fingerprints=bound,
        disagreement=upper_bound(harms, kept, RISK) if kept else None,
        doubts=(alike,) if len({i for _, i, _ in counts.numbers}) == 1 else (),
    ).sealed()
    return certificate, certified


def _any_of(served: str, other: str) -> str:
    """Return the identity of a server with either model, in the form of a certificate: the names of both in each word."""
    words = [(one.partition(":"), two.partition(":")[2]) for one, two in zip(served.split(" "), other.split(" "), strict=False)]
    names = (",".join(sorted({*known.split(","), *more.split(",")} - {""})) for (_, _, known), more in words)
    return " ".join(f"{kind}{colon}{joined}" for ((kind, colon, _), _), joined in zip(words, names, strict=True))


class Comparison(NamedTuple):
    """Result of `compare_edges`."""

    better: bool  # True if the trial is better beyond chance
    n: int  # number of requests that both have audits of
    trial: float  # share of them that the trial defers, or loses; NaN: there are none
    edge: float  # share of them that the edge in use defers, or loses


def compare_edges(
    trial: Audited, edge: Audited, certified: float, threshold: float | None, value: float, risk: float, *, by_loss: bool = False
) -> Comparison:
    """Test that an edge on trial defers (or loses) fewer of the same requests than the edge in use, at any number of looks.

    The bets of `log_evidence` are on the requests of which one of the two is deferred (or lost). Their evidence falls as the
    trial's threshold rises (for losses as it falls), so a threshold that depends on the audits is as good as a fixed one.

    An edge in use that loses more than the guarantee, beyond chance, is taken at the threshold that its audits certify; as that
    may be any of `GRID`, each has its part of half of the risk. Without common requests the trial is not better.

    Args:
        trial: audits of the edge on trial.
        edge: audits of the edge in use.
        certified: threshold of the trial's certificate.
        threshold: threshold of the edge in use; None: the log says what it deferred.
        value: guaranteed limit of the share of answers that differ from the cloud's.
        risk: probability that a trial that is no better is called better.
        by_loss: True compares losses, False deferrals.
    """
    rows = {identity: row for row, identity in enumerate(edge.ids)}
    pairs = np.array([(i, rows[identity]) for i, identity in enumerate(trial.ids) if identity in rows], int).reshape(-1, 2)
    (trial_score, trial_agrees), (edge_score, edge_agrees) = (
        (audits.examples.score[indices], np.array(audits.examples.edge, float)[indices])
        for audits, indices in zip((trial, edge), pairs.T, strict=True)
    )
    accepted = ~np.array(edge.deferred, bool)[pairs[:, 1]] if threshold is None else edge_score >= threshold
    parts, lost = 2, int(np.count_nonzero(accepted & (edge_agrees < 1)))
    if log_evidence(-value, (1.0, len(pairs), 0, lost)) >= -log(risk):
        lowest, parts = counts_of(edge).lowest(value, risk), 2 * NONE
        accepted = edge_score >= (GRID[lowest] if lowest < NONE else INF)
    sides = ((trial_score >= certified, trial_agrees), (accepted, edge_agrees))
    bad, edge_bad = (kept & (agrees < 1) if by_loss else ~kept for kept, agrees in sides)
    worse, better = int(np.count_nonzero(bad & ~edge_bad)), int(np.count_nonzero(edge_bad & ~bad))
    proven = log_evidence(0.0, (1.0, worse + better, worse, better)) >= -log(risk / parts)
    shares = (float(side.mean()) if len(side) else float("nan") for side in (bad, edge_bad))
    return Comparison(proven, len(pairs), *shares)


# A learned score, and cross-fitted scores of the same examples for calibration.


class Fitted(NamedTuple):
    """Result of `fit_score`."""

    learned: Learned | None  # score fitted to all examples, for deployment; None: msp is used instead
    scores: Floats  # [n], for `calibrate`: out-of-fold scores, or msp
    why: str  # reason for the choice of the score


def fit_score(examples: Examples, kind: Kind, edge: Bools | None, cloud: Bools | None, *, choose: bool, ood: bool) -> Fitted:
    """Fit a score to all examples for deployment, and score the examples by 5-fold cross-fitting for calibration.

    The threshold is thus calibrated on other fits than the deployed one; the error is their difference, where in-sample scores
    would be biased.

    Falls back to msp (the highest class probability), with the reason, if there is too little to learn from, in all examples or
    in a fold.

    Args:
        examples: the examples, scored by msp, with the edge's logits; those of a group are in the same fold.
        kind: kind of the guarantee.
        edge: [n], correctness; None: the agreement with the cloud.
        cloud: [n], correctness; None: always right.
        choose: True blends the learned score with msp, as `auto`.
        ood: True adds out-of-distribution features.

    Raises:
        PolicyError: there are neither labels nor the cloud's answers, or no logits.
    """
    edge_correct = examples.agree if edge is None else edge
    if edge_correct is None:
        raise PolicyError("fitting a score needs labels or the cloud's answers, and there are neither")
    # for max_error only the edge's own errors count
    cloud_correct = np.ones(len(edge_correct), bool) if cloud is None or kind == "max_error" else cloud
    outputs, msp = examples.outputs, examples.score
    if outputs is None or outputs.shape[1] < 2:  # noqa: PLR2004 - nothing to tell apart
        raise PolicyError(
            "a score is learned from two or more logits or probabilities for each input, always as many; these are others"
        )
    learned = fit(outputs, edge_correct, cloud_correct, ood=ood, blend=choose)
    if learned.name != "learned":
        return Fitted(None, msp, learned.chosen_because)
    fell_back: list[str] = []

    def without(train: Ints) -> Callable[[Ints], Floats]:
        """Fit on these examples and return a function that scores others."""
        part = fit(outputs[train], edge_correct[train], cloud_correct[train], ood=ood, blend=choose)
        if part.name != "learned":
            fell_back.append(part.chosen_because)
        return lambda left_out: part.many(outputs[left_out])

    scores = crossfit(without, len(outputs), groups=examples.groups)
    if fell_back:  # too few examples in a fold: its scores would be of another kind than the others'
        return Fitted(None, msp, f"{fell_back[0]}, with a fifth left out")
    return Fitted(learned, np.asarray(scores), learned.chosen_because)


Fit = Literal["auto", "learned"]


class Certification(NamedTuple):
    """Result of `certify`."""

    certificate: Certificate
    score_fit: Fitted | None  # the fitted score; None: no fit was requested
    notes: list[str]  # warnings of the calibration


def certify(
    examples: Examples,
    kind: Kind,
    value: float,
    sure: float | None,
    *,
    per_class: bool,
    fit: Fit | None,
    ood: bool,
    score: str,
    fingerprints: Mapping[str, str],
    labels: LabelsOnDemand | None = None,
) -> Certification:
    """Calibrate on these examples, with a fitted score if requested; return certificate, fit and warnings.

    The certificate gets doubts about the cloud, and a sketch of the examples; see `edgeroute.confidence.calibrate`.

    Args:
        examples: the examples, scored by the policy's score, or by msp if a score is to be fitted.
        kind: kind of the guarantee.
        value: its limit, 0 to 1.
        sure: its confidence level; None: on average.
        per_class: True finds a threshold per predicted class.
        fit: "learned", or "auto", blended with msp, fits a score. None: no fit.
        ood: True adds out-of-distribution features to a fitted score.
        score: name of the score, unless one is fitted.
        fingerprints: fingerprints from `Router.fingerprints`.
        labels: for max_loss, reader of the labels that its test needs; the examples have none.

    Raises:
        NotEnough: there are too few examples.
        PolicyError: the examples lack data for the guarantee, or `calibrate` rejects them.
    """
    edge, cloud = correctness(examples, kind)
    score_fit = None if fit is None else fit_score(examples, kind, edge, cloud, choose=fit == "auto", ood=ood)
    learned = None if score_fit is None else score_fit.learned
    bound_to = dict(fingerprints) if learned is None else {**fingerprints, "score": learned.fingerprint}
    notes: list[str] = []
    limit: dict[str, Any] = {kind: value}
    certificate = calibrate(
        examples.score if score_fit is None else score_fit.scores, edge, cloud, **limit, sure=sure,
        per_class=examples.edge if per_class else None, groups=examples.groups, agree=examples.agree,
        name=score if learned is None else "learned",
        parameters={} if score_fit is None else {"chosen_because": score_fit.why},
        fingerprints=bound_to, notes=notes, doubts=chance_doubts(examples) if kind == "max_loss" else (),
        read=None if labels is None else labels.losses,
    )  # fmt: skip
    if labels is not None:
        certificate = certificate._replace(doubts=(*certificate.doubts, *labels.doubts()))
        notes += [*labels.doubts(), *labels.notes()]
    if examples.outputs is not None:  # a fitted score has other values on these examples once it is fitted to all of them
        certificate = certificate._replace(examples=sketch(examples.outputs))
    return Certification(certificate, score_fit, notes)


def correctness(examples: Examples, kind: Kind) -> tuple[Bools | None, Bools | None]:
    """Return the correctness of edge and cloud, as arguments of `calibrate`; None where unknown.

    Raises:
        PolicyError: labels or cloud answers are missing for this kind.
    """
    if kind == "max_error" and examples.labels is None:
        raise PolicyError("max_error needs labels, the right answer of each input: y, or in an .npz file an array `labels`")
    if kind == "max_loss" and examples.cloud is None:
        raise PolicyError("max_loss is measured against the cloud: record cloud_logits too, or pass the inputs themselves")
    if examples.labels is None:
        return (examples.agree, None) if kind == "max_loss" else (None, None)
    return examples.edge_correct, examples.cloud_correct


# Test of a certificate's guarantee on held-out examples.

ROUNDED = 1e-12


class Verdict(NamedTuple):
    """Guaranteed limit and its measured value."""

    where: str  # predicted class; empty: all inputs
    n: int  # number of examples in the measurement
    measured: float
    low: float  # low..high: 95 % confidence interval, simultaneous over classes
    high: float
    limit: float  # the guaranteed limit

    @property
    def held(self) -> bool:
        """True if the measured value is within the limit."""
        return self.measured <= self.limit + ROUNDED

    @property
    def broken(self) -> bool:
        """True if the violation is statistically significant: the whole interval is above the limit."""
        return self.low > self.limit + ROUNDED

    @property
    def doubtful(self) -> bool:
        """True if the whole interval is below 0: the cloud that the loss is against is worse than the edge."""
        return self.high < 0


def verdicts(evaluation: Evaluation) -> list[Verdict]:
    """Compare the guarantee with the examples: a verdict per predicted class, or one if the guarantee has one threshold.

    Worst first. Empty if there is no guarantee, or these examples cannot measure it.
    """
    certificate = evaluation.certificate
    if certificate is None or certificate.metric:  # graded answers are not among these examples
        return []
    if not certificate.thresholds:
        results = [_verdict(evaluation, certificate, "", np.ones(evaluation.n, bool), RISK)]
    else:
        predicted = np.array([str(value) for value in evaluation.examples.edge])
        names = np.unique(predicted).tolist()
        results = [_verdict(evaluation, certificate, name, predicted == name, RISK / len(names)) for name in names]
    return sorted(
        (verdict for verdict in results if verdict is not None),
        key=lambda verdict: (not verdict.broken, verdict.held, -verdict.measured, verdict.where),
    )


def _verdict(evaluation: Evaluation, certificate: Certificate, where: str, rows: Bools, risk: float) -> Verdict | None:
    """Return the verdict on some rows, by the kind of the guarantee; None if they cannot measure it, or no row counts."""
    accepted = evaluation.accepted
    edge, agree = evaluation.edge_right, evaluation.examples.agree
    if certificate.kind == "max_defer":
        measured = share(~accepted[rows], risk)
    elif certificate.kind == "max_error":
        if edge is None or not evaluation.labelled:
            return None
        measured = share(~edge[rows & accepted], risk)
    elif certificate.agreement:
        if agree is None:
            return None
        measured = share((accepted & ~agree)[rows], risk)
    else:
        cloud = evaluation.cloud_right
        if edge is None or cloud is None or not evaluation.labelled:
            return None
        # the difference of two shares, each with half of the risk: exact, and a little wide
        harm, win = share((accepted & cloud & ~edge)[rows], risk / 2), share((accepted & edge & ~cloud)[rows], risk / 2)
        return Verdict(
            where, harm.of, (harm.found - win.found) / harm.of, harm.low - win.high, harm.high - win.low, certificate.value
        )
    return Verdict(where, measured.of, measured.value, measured.low, measured.high, certificate.value) if measured.of else None
