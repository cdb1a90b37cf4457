"""Calibrates a deferral threshold with a statistical guarantee, by fixed-sequence testing (fixed_sequence.py)."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil, isnan
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeroute.confidence.certificate import BOUND_TO, Certificate, Kind, NotEnough, least_deferral, spread
from edgeroute.confidence.exact import Floats, Ints, needed, upper
from edgeroute.core.policy import INF
from edgeroute.core.words import clean
from edgeroute.errors import PolicyError
from edgeroute.system.process import now
from edgeroute.tools.measure.curve import Area, grades, measured_area
from edgeroute.tools.measure.fixed_sequence import Step, lowest_threshold, one_of_each
from edgeroute.tools.measure.independence import dependence, sketch

# What `calibrate` is given, checked: the target, scores, how correct each side is, classes and groups.

LONGEST = 60
"""Most characters of a metric's name."""


def checked_target(
    max_loss: float | None, max_error: float | None, max_defer: float | None, sure: float | None
) -> tuple[Kind, float, float | None]:
    """The guarantee asked for: its kind, its limit, and the risk that it does not hold, None: it holds on average.

    Raises:
        PolicyError: there is none, there are several, or a number is no share.
    """
    targets: dict[Kind, float | None] = {"max_loss": max_loss, "max_error": max_error, "max_defer": max_defer}
    given = [(kind, value) for kind, value in targets.items() if value is not None]
    if len(given) != 1:
        raise PolicyError(f"exactly one of {', '.join(targets)} is to be given, and there are {len(given)}")
    ((kind, value),) = given
    if not _is_share(value):
        raise PolicyError(f"{kind} is a share between 0 and 1, not {value!r}")
    if sure is None:
        if kind != "max_defer":
            raise PolicyError(f"sure=None is for max_defer alone: {kind} is promised with a probability")
        return kind, float(value), None
    if not _is_share(sure) or not 0 < (risk := round(1 - float(sure), 12)) < 1:
        raise PolicyError(f"sure is a probability between 0 and 1, not {sure!r}")
    return kind, float(value), risk


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < 1


def checked_metric(metric: str) -> str:
    """The name of a grade, which sentences and terminals show.

    Raises:
        PolicyError: it is no short text on one line.
    """
    if not isinstance(metric, str) or not metric.isprintable() or metric != metric.strip() or len(metric) > LONGEST:
        said = repr(metric) if isinstance(metric, str) else type(metric).__name__
        raise PolicyError(f"metric is a name on one line, such as F1, of up to {LONGEST} characters, not {clean(said, LONGEST)}")
    return metric


def checked_scores(score: ArrayLike) -> Floats:
    """[n] finite numbers or NaN, of which two differ."""
    try:
        given = _filled(score)
        scores = given.astype(np.float64) if given.dtype.kind not in "cmM" else None
    except (OverflowError, TypeError, ValueError) as e:
        raise PolicyError(f"score is an array of numbers: {e}") from e
    if scores is None:
        raise PolicyError(f"score is an array of numbers, not of {given.dtype}")
    if scores.ndim != 1 or not scores.size:
        raise PolicyError(f"score has one number for each example, and this is of shape {scores.shape}")
    if np.isinf(scores).any():
        raise PolicyError(f"{np.isinf(scores).sum()} scores are infinite: no threshold could defer, or accept, such inputs")
    known = scores[~np.isnan(scores)]
    if not known.size or known.min() == known.max():
        raise PolicyError(f"the score is {known[0]:g} for every example" if known.size else "no example has a score")
    return scores


def correct(what: str, values: ArrayLike | None, n: int) -> Floats | None:
    """[n], how correct each answer is, 0..1; None: not given."""
    if values is None:
        return None
    array = _filled(values)
    if array.shape != (n,):
        raise PolicyError(f"{what} is of shape {array.shape}, and there are {n} scores")
    if array.dtype.kind not in "biuf":
        raise PolicyError(f"{what} says for each example how correct it is: bool, or numbers from 0 to 1")
    found = grades(array)
    if np.isnan(found).any():
        raise PolicyError(f"{what} is NaN for {np.isnan(found).sum()} examples: how correct each is has to be known, 0 to 1")
    if not ((found >= 0) & (found <= 1)).all():
        wrong = found[(found < 0) | (found > 1)][0]
        raise PolicyError(f"{what} says for each example how correct it is, from 0 to 1, and one is {wrong:g}: scale it")
    return found


def _filled(values: ArrayLike) -> NDArray[Any]:
    """As an array, in which what is masked, and so unknown, is NaN."""
    return np.ma.filled(values.astype(np.float64), np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)


def is_graded(*values: Floats | None) -> bool:
    """Whether one of these is more than right or wrong."""
    return any(x is not None and bool(((x > 0) & (x < 1)).any()) for x in values)


def classes(per_class: Sequence[object] | NDArray[Any] | None, kind: Kind, n: int) -> dict[str, Ints]:
    """Class -> indices of its examples."""
    if per_class is None:
        return {"": np.arange(n)}
    if kind == "max_defer":
        raise PolicyError("max_defer has one threshold for all classes")
    if len(per_class) != n:
        raise PolicyError(f"per_class has {len(per_class)} classes, and there are {n} scores")
    labels = np.array([str(label) for label in per_class])
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def numbered(groups: Sequence[object] | NDArray[Any] | None, n: int) -> Ints | None:
    """[n], the number of each example's group, in order of their first examples; None: there are no groups."""
    if groups is None:
        return None
    if len(groups) != n:
        raise PolicyError(f"groups has {len(groups)} names, and there are {n} scores")
    names = list(groups.tolist() if isinstance(groups, np.ndarray) else groups)
    if any(name is None or name != name for name in names):  # noqa: PLR0124 - NaN
        raise PolicyError("groups has None or NaN in it: each example belongs to a group")
    known: dict[Any, int] = {}
    try:
        return np.array([known.setdefault(name, len(known)) for name in names], np.int64)
    except TypeError as e:
        raise PolicyError(f"groups has one name for each example, text or a number: {e}") from e


WORTH = 0.02
"""Deferrals that a better score could save from which a useless one is told."""


def calibrate(
    score: ArrayLike,
    edge_correct: ArrayLike | None = None,
    cloud_correct: ArrayLike | None = None,
    *,
    max_loss: float | None = None,
    max_error: float | None = None,
    max_defer: float | None = None,
    sure: float | None = 0.95,
    per_class: Sequence[object] | NDArray[Any] | None = None,
    groups: Sequence[object] | NDArray[Any] | None = None,
    metric: str = "",
    agree: ArrayLike | None = None,
    name: str = "score",
    parameters: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Certificate:
    """The lowest threshold whose guarantee these examples certify. They must be independent and drawn like future inputs.

    Exactly one target is given, 0..1. Its guarantee holds with probability `sure` over draws of the examples:

        max_loss    accuracy of the cascade (edge and cloud together) >= accuracy of the cloud - max_loss. Without
                    `cloud_correct`, `edge_correct` means "edge and cloud agree": no labels needed, more deferrals
        max_error   error rate among the answers accepted on the edge (selective risk) <= max_error
        max_defer   deferral rate <= max_defer; needs no labels. With `sure=None` it holds on average over draws instead of
                    with a probability in each, which defers a little more

    Correctness may be graded, 0..1 (F1, IoU, a judge's score, 1 - word error rate): accuracy is then its mean, and error one
    minus it. How it is tested depends on the number of examples alone (`edgeroute.tools.measure.fixed_sequence`).

    If no threshold can be certified, the threshold is inf: every input is deferred. Examples with a NaN score count as
    deferred. Examples that look dependent, and a score that ranks no better than chance, are told by a warning.

    Args:
        score: [n], higher for more confident. If it was fitted on these examples, take it from `crossfit`.
        edge_correct: [n], bool, or 0..1.
        cloud_correct: [n], bool, or 0..1.
        max_loss: see above.
        max_error: see above.
        max_defer: see above.
        sure: see above, between 0 and 1.
        per_class: [n], the class that the edge predicts for each example. Each class then gets its own threshold and
            guarantee at risk (1 - sure) / classes, so that all hold simultaneously. A class with too few examples is
            always deferred, with a warning.
        groups: [n], what examples that are not independent have in common: their scene, user or session. Groups are then what is
            drawn, and each counts the same: by its mean loss, or for max_error and max_defer by one of its examples, drawn by
            chance. Every number of the certificate weighs the examples so.
        metric: what graded correctness is, as in "F1": for the certificate's text.
        agree: [n], whether edge and cloud agree, bool or 0/1: gives the limit for drift audits. Not needed where
            `edge_correct` already means agreement.
        name: of the score.
        parameters: of the score, JSON-serialisable.
        fingerprints: of the edge model, cloud model, score and payload codec ("edge", "cloud", "score", "codec") that the
            examples come from.

    Raises:
        NotEnough: even n error-free examples (or groups) would not prove it.
        PolicyError: an argument is invalid, or the score is the same for all examples.
    """
    told: list[str] = []
    made = certificate_of(
        score, edge_correct, cloud_correct, max_loss=max_loss, max_error=max_error, max_defer=max_defer, sure=sure,
        per_class=per_class, groups=groups, metric=metric, agree=agree, name=name, parameters=parameters,
        fingerprints=fingerprints, told=told,
    )  # fmt: skip
    for note in told:
        warnings.warn(note, stacklevel=2)
    return made


def certificate_of(
    score: ArrayLike,
    edge_correct: ArrayLike | None,
    cloud_correct: ArrayLike | None,
    *,
    max_loss: float | None,
    max_error: float | None,
    max_defer: float | None,
    sure: float | None,
    per_class: Sequence[object] | NDArray[Any] | None,
    agree: ArrayLike | None,
    name: str,
    parameters: Mapping[str, Any] | None,
    fingerprints: Mapping[str, str] | None,
    told: list[str],
    groups: Sequence[object] | NDArray[Any] | None = None,
    metric: str = "",
) -> Certificate:
    """As `calibrate`, whose warnings are appended to `told`: Python's own are the process's, and this may run in a thread."""
    kind, value, delta = checked_target(max_loss, max_error, max_defer, sure)
    scores = checked_scores(score)
    n = len(scores)
    edge, cloud = correct("edge_correct", edge_correct, n), correct("cloud_correct", cloud_correct, n)
    graded = bool(checked_metric(metric)) or is_graded(edge, cloud)
    same = _agree(agree, n)
    if same is None and kind == "max_loss" and cloud is None and not graded:
        same = edge
    if edge is None and kind != "max_defer":
        raise PolicyError(f"{kind} needs edge_correct")
    if not set(fingerprints or {}) <= set(BOUND_TO):
        raise PolicyError(f"a certificate is bound to {', '.join(BOUND_TO)}, and not to {', '.join(fingerprints or {})}")
    try:
        parameters = json.loads(json.dumps(parameters or {}, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise PolicyError(f"the parameters of a score are what JSON can hold: {e}") from e
    together = numbered(groups, n)
    if together is not None and per_class is not None:
        raise PolicyError("per_class and groups cannot both be given: a group has no one class")
    each = classes(per_class, kind, n)
    if together is not None and kind != "max_loss":
        each = {"": one_of_each(together)}
    in_groups = together if kind == "max_loss" else None
    sizes = {label: len(rows) if in_groups is None else len(np.bincount(in_groups)) for label, rows in each.items()}
    risk = None if delta is None else delta / len(each)
    enough = ceil(1 / value) - 1 if risk is None else needed(value, risk)
    few = {label for label, size in sizes.items() if size < enough}
    if len(few) == len(sizes):
        what = "groups" if together is not None else "examples" if per_class is None else "examples of one predicted class"
        raise _not_enough(kind, value, sure, enough, max(sizes.values()), what)
    if few:
        told.append(f"always deferred, since {enough} examples are needed of each class: {', '.join(sorted(few))}")
    told += dependence(scores, edge, cloud, together)
    steps: dict[str, Step] = {}
    accepted = np.zeros(n, bool)
    for label, rows in each.items():
        if label in few:
            steps[label] = Step(INF, "none")
            continue
        parts = (None if x is None else x[rows] for x in (edge, cloud))
        steps[label] = lowest_threshold(kind, value, risk, scores[rows], *parts, graded=graded, groups=in_groups)
        everywhere = rows if per_class is not None else np.arange(n)
        accepted[everywhere] = scores[everywhere] >= steps[label].threshold
    weights = None if together is None else 1 / np.bincount(together)[together]
    rate = _mean(~accepted, weights)
    none = all(step.threshold == INF for step in steps.values())
    units = n if together is None else int(together.max()) + 1
    wide = 0.0 if none else spread(units, delta or 0.05, classes=len(each), grouped=together is not None)
    area = _area(kind, scores, edge, cloud, together)
    if area is not None and area.by_chance and (text := _by_chance(area, kind, value, edge, cloud, rate)):
        told.append(text)
    return Certificate(
        kind=kind,
        value=value,
        sure=sure,
        method=" and ".join(sorted({step.method for step in steps.values()} - {"none"})),
        agreement=kind == "max_loss" and cloud is None,
        n=n,
        date=time.strftime("%Y-%m-%d", time.gmtime(now())),
        threshold=steps[""].threshold if per_class is None else INF,
        thresholds={} if per_class is None else {label: step.threshold for label, step in steps.items()},
        deferral_rate=rate,
        deferral_interval=(max(0.0, rate - wide), min(1.0, rate + wide)),
        accuracy=_accuracy(accepted, edge, cloud, weights),
        unscored=_mean(np.isnan(scores), weights),
        score=name,
        parameters=parameters or {},
        fingerprints=dict(fingerprints or {}),
        disagreement=None if same is None else _disagreement(accepted, same, together),
        metric=(metric or "correctness") if graded else "",
        groups=None if together is None else units,
        highest=min((step.highest for step in steps.values() if step.highest < INF), default=None),
        area=None if area is None or isnan(area.value) else (round(area.value, 6), round(area.low, 6), round(area.high, 6)),
        examples=sketch(scores),
    )


def crossfit(
    fit: Callable[[Ints], Callable[[Ints], ArrayLike]], n: int, *, folds: int = 5, seed: int = 0, groups: ArrayLike | None = None
) -> Floats:
    """Out-of-fold scores [n] of n examples, by k-fold cross-fitting: each example is scored by a fit without it.

    Scores of examples that were fitted on are biased, and the guarantee would be violated more often than stated.

    Args:
        fit: takes indices of training examples; returns a function from indices to scores.
        n: number of examples.
        folds: number of folds.
        seed: of the random split.
        groups: [n], as for `calibrate`: each is scored by a fit without any of it.

    Raises:
        PolicyError: there are not as many examples as folds, or fewer than two folds.
    """
    together = numbered(None if groups is None else np.asarray(groups), n)
    units = n if together is None else int(together.max(initial=-1)) + 1
    if not 2 <= folds <= units:  # noqa: PLR2004 - one to fit on, one to score
        raise PolicyError(f"{units} {'examples' if together is None else 'groups'} cannot be divided into {folds} folds")
    scores = np.empty(n)
    fold = np.random.default_rng(seed).permutation(units) % folds
    fold = fold if together is None else fold[together]
    for i in range(folds):
        out = np.flatnonzero(fold == i)
        scores[out] = fit(np.flatnonzero(fold != i))(out)
    return scores


def _disagreement(accepted: NDArray[np.bool_], same: Floats, groups: Ints | None) -> float | None:
    """Upper 95 % confidence bound of the share of accepted answers that differ (Clopper and Pearson, 1934); None: of none."""
    rows = np.arange(len(same)) if groups is None else one_of_each(groups)
    kept = np.count_nonzero(accepted[rows])
    return upper(int(np.count_nonzero(accepted[rows] & (same[rows] < 1))), int(kept), 0.05) if kept else None


def _agree(agree: ArrayLike | None, n: int) -> Floats | None:
    same = correct("agree", agree, n)
    if is_graded(same):
        raise PolicyError("agree says for each example whether edge and cloud agree: bool, or 0 and 1")
    return same


def _not_enough(kind: Kind, value: float, sure: float | None, enough: int, have: int, what: str) -> NotEnough:
    odds = "on average" if sure is None else f"with sure={sure:g}"
    return NotEnough(
        f"{kind}={value:g} {odds} needs at least {enough} {what}, and there are {have}: {enough - have} are missing",
        needed=enough,
        missing=enough - have,
    )


def _area(kind: Kind, scores: Floats, edge: Floats | None, cloud: Floats | None, groups: Ints | None) -> Area | None:
    """How well the score ranks for this target; None: there is nothing to tell it by."""
    if edge is None:
        return None
    right = np.ones(len(edge)) if cloud is None or kind == "max_error" else cloud
    return measured_area(scores, edge, right, groups)


def _by_chance(area: Area, kind: Kind, value: float, edge: Floats | None, cloud: Floats | None, rate: float) -> str:
    """What to do about such a score, and what a better one could save; empty: nothing."""
    saved = ""
    if edge is not None and kind != "max_defer":
        best = least_deferral(kind, value, edge, np.ones(len(edge)) if cloud is None else cloud)
        if rate - best < WORTH:
            return ""
        saved = f". The best possible would defer {best:.0%} of these examples, where this one defers {rate:.0%}"
    how = "worse than" if area.high < 0 else "no better than"
    return (
        f"the score seems to rank {how} chance: its area under the deferral curve is {area.value:.2f} ({area.low:.2f} to "
        f"{area.high:.2f}; 0 is random, 1 an oracle). Try another score (margin, entropy, a quantile of log-probabilities), "
        f"a learned one (`auto`, or `fit` on features of the input), more examples, or a better edge{saved}"
    )


def _accuracy(accepted: NDArray[np.bool_], edge: Floats | None, cloud: Floats | None, weights: Floats | None) -> dict[str, float]:
    found = {name: _mean(right, weights) for name, right in (("edge", edge), ("cloud", cloud)) if right is not None}
    if edge is not None:
        if accepted.any():
            found["accepted"] = _mean(edge[accepted], None if weights is None else weights[accepted])
        if cloud is not None:
            found["cascade"] = _mean(np.where(accepted, edge, cloud), weights)
    return found


def _mean(values: NDArray[Any], weights: Floats | None) -> float:
    return float(values.mean() if weights is None else np.average(values, weights=weights))
