"""Calibration of a deferral threshold with a statistical guarantee (`calibrate`), and cross-fitted scores for it (`crossfit`).

Checks of their arguments, and intervals of the deferral rate, are here too; the tests are in fixed_sequence.py.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import ceil, e, isnan, log, sqrt
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeroute.confidence.binomial_tests import Floats, Ints, upper_bound
from edgeroute.confidence.certificate import BOUND_TO, Certificate, Kind, NotEnough
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.errors import PolicyError
from edgeroute.system.wall_clock import now
from edgeroute.tools.measure.critical_counts import least_n
from edgeroute.tools.measure.deferral_curve import Area, grades, measured_area
from edgeroute.tools.measure.fixed_sequence import Step, lowest_threshold, one_of_each
from edgeroute.tools.measure.independence_and_overlap import dependence, sketch
from edgeroute.tools.measure.threshold_evaluation import reference_doubts

# Validation of the arguments of `calibrate`: target, scores, correctness, classes and groups.

LONGEST = 60  # most characters of a metric's name


def checked_target(
    max_loss: float | None, max_error: float | None, max_defer: float | None, sure: float | None
) -> tuple[Kind, float, float | None]:
    """Validate the guarantee and return its kind, its limit, and the risk that it does not hold: 1 - `sure`.

    The risk is None for a guarantee on average.

    Raises:
        PolicyError: there is not exactly one target, or a number is no share.
    """
    targets: dict[Kind, float | None] = {"max_loss": max_loss, "max_error": max_error, "max_defer": max_defer}
    targets_given = [(kind, value) for kind, value in targets.items() if value is not None]
    if len(targets_given) != 1:
        raise PolicyError(f"pass exactly one of {', '.join(targets)}: {len(targets_given) or 'none'} given")
    ((kind, value),) = targets_given
    if not _is_share(value):
        raise PolicyError(f"{kind} must be a share between 0 and 1, not {value!r}{_percent(value)}")
    if sure is None:
        if kind != "max_defer":
            raise PolicyError(f"sure=None works only with max_defer: {kind} is guaranteed with a probability")
        return kind, float(value), None
    if not _is_share(sure) or not 0 < (risk := round(1 - float(sure), 12)) < 1:
        raise PolicyError(f"sure must be a probability between 0 and 1, not {sure!r}{_percent(sure)}")
    return kind, float(value), risk


def _percent(value: object) -> str:
    """Return a hint, after a colon, on the share that a percentage is, as for 5 and "5%"; empty for other values."""
    text = str(value)
    with suppress(ValueError):
        number = float(text.rstrip("% "))
        if 1 < number < 100 or (text.endswith("%") and 0 < number < 100):  # noqa: PLR2004 - a hundred per cent
            return f": {number:g} % is {number / 100:g}"
    return ""


def _is_share(value: object) -> bool:
    """Return True if a value is a number between 0 and 1, both excluded."""
    return isinstance(value, Real) and not isinstance(value, bool) and not value <= 0 and value < 1


def checked_metric(metric: str) -> str:
    """Return the name of a grade unchanged, which is shown in sentences and terminals.

    Raises:
        PolicyError: it is no text, has more than `LONGEST` or unprintable characters, or spaces around it.
    """
    if not isinstance(metric, str) or not metric.isprintable() or metric != metric.strip() or len(metric) > LONGEST:
        shown = repr(metric) if isinstance(metric, str) else type(metric).__name__
        raise PolicyError(f"metric must be a name on one line, at most {LONGEST} characters, not {clean(shown, LONGEST)}")
    return metric


def checked_scores(score: ArrayLike) -> Floats:
    """Return a copy of the scores, [n] finite numbers or NaN (also where masked), of which at least two differ.

    Raises:
        PolicyError: they are something else.
    """
    try:
        array = _as_array(score)
        scores = array.astype(np.float64) if array.dtype.kind not in "cmM" else None
    except (OverflowError, TypeError, ValueError) as e:
        raise PolicyError(f"score must be an array of numbers: {e}") from e
    if scores is None:
        raise PolicyError(f"score must be an array of numbers, not of {array.dtype}")
    if scores.ndim != 1 or not scores.size:
        raise PolicyError(f"score must have the shape [n], a number for each example, not {list(scores.shape)}")
    if np.isinf(scores).any():
        raise PolicyError(f"{np.isinf(scores).sum()} scores are infinite: no threshold could defer, or accept, such inputs")
    finite = scores[~np.isnan(scores)]
    if not finite.size or finite.min() == finite.max():
        raise PolicyError(f"the score is {finite[0]:g} for every example" if finite.size else "no example has a score")
    return scores


def checked_grades(what: str, values: ArrayLike | None, n: int) -> Floats | None:
    """Return the correctness of each answer, [n], 0 to 1, as a copy; None for None.

    Raises:
        PolicyError: it has another shape or type, NaN, or a number beyond 0 to 1 by more than rounding.
    """
    if values is None:
        return None
    array = _as_array(values)
    if array.shape != (n,):
        raise PolicyError(f"{what} has the shape {list(array.shape)}, and there are {n} scores")
    if array.dtype.kind not in "biuf":
        raise PolicyError(f"{what} must hold the correctness of each example: bool, or numbers from 0 to 1")
    result = grades(array)
    if np.isnan(result).any():
        raise PolicyError(f"{what} is NaN for {np.isnan(result).sum()} examples: leave them out, or give a number from 0 to 1")
    if not ((result >= 0) & (result <= 1)).all():
        wrong = result[(result < 0) | (result > 1)][0]
        raise PolicyError(f"{what} must hold numbers from 0 to 1, and one is {wrong:g}: scale it")
    return result


def _as_array(values: ArrayLike) -> NDArray[Any]:
    """Return values as an array, with NaN where they are masked."""
    return np.ma.filled(values.astype(np.float64), np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)


def is_graded(*values: Floats | None) -> bool:
    """Return True if any of these is more than right or wrong; None counts as not."""
    return any(x is not None and bool(((x > 0) & (x < 1)).any()) for x in values)


def rows_by_class(per_class: Sequence[object] | NDArray[Any] | None, kind: Kind, n: int) -> dict[str, Ints]:
    """Return class -> indices of its examples; with None, all under "".

    Raises:
        PolicyError: it is for max_defer, or of another length.
    """
    if per_class is None:
        return {"": np.arange(n)}
    if kind == "max_defer":
        raise PolicyError("max_defer has one threshold for all classes")
    if len(per_class) != n:
        raise PolicyError(f"per_class has {len(per_class)} classes, and there are {n} scores")
    labels = np.array([str(label) for label in per_class])
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def group_numbers(groups: Sequence[object] | NDArray[Any] | None, n: int) -> Ints | None:
    """Return the number of each example's group, [n], in order of their first examples; None without groups.

    Raises:
        PolicyError: a group is None, NaN or unhashable, or there are not n.
    """
    if groups is None:
        return None
    if len(groups) != n:
        raise PolicyError(f"groups has {len(groups)} names, and there are {n} scores")
    names = list(groups.tolist() if isinstance(groups, np.ndarray) else groups)
    if any(name is None or name != name for name in names):  # noqa: PLR0124 - NaN
        raise PolicyError("groups has None or NaN in it: give each example a group")
    numbers: dict[Any, int] = {}
    try:
        return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    except TypeError as e:
        raise PolicyError(f"groups must have a text or number for each example: {e}") from e


WORTH = 0.02  # least share of deferrals that a better score could save for a warning about a useless score


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
    doubts: Sequence[str] = (),
    notes: list[str] | None = None,
    read: Callable[[Ints], Floats] | None = None,
) -> Certificate:
    """Find the lowest threshold whose guarantee these examples certify. They must be independent and drawn like future inputs.

    Exactly one target is given, 0..1. Its guarantee holds with probability `sure` over draws of the examples:

        max_loss    accuracy of the cascade (edge and cloud together) >= accuracy of the cloud - max_loss. Without
                    `cloud_correct`, `edge_correct` means "edge and cloud agree": no labels needed, more deferrals
        max_error   error rate among the answers accepted on the edge (selective risk) <= max_error
        max_defer   deferral rate <= max_defer; needs no labels. With `sure=None` it holds on average over draws instead of
                    with a probability in each, which defers a little more

    Correctness may be graded, 0..1 (F1, IoU, a judge's score, 1 - word error rate): accuracy is then its mean, and error one
    minus it. How it is tested depends on the number of examples alone (`edgeroute.tools.measure.fixed_sequence`).

    If no threshold can be certified, the threshold is inf: every input is deferred. Examples with a NaN score count as
    deferred. Warns of examples that look dependent, and of a score that ranks no better than chance.

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
        groups: [n], the scene, user or session that dependent examples share. Then groups are the independent units, and each
            counts the same: by its mean loss, or for max_error and max_defer by a single example, drawn at random. Every number
            of the certificate weighs the examples so.
        metric: name of graded correctness, such as "F1", for the certificate's text.
        agree: [n], bool or 0/1, True where edge and cloud agree: gives the limit for drift audits. Not needed where
            `edge_correct` already means agreement.
        name: name of the score.
        parameters: parameters of the score, JSON-serialisable.
        fingerprints: fingerprints of the edge model, cloud model, score and payload codec ("edge", "cloud", "score", "codec")
            that the examples come from.
        doubts: warnings about the cloud as the reference, which the certificate shows too.
        notes: list to which all warnings are appended; None: they are Python's, which belong to the process, not to a thread.
        read: for max_loss, with the agreement of edge and cloud as `edge_correct`: returns what is lost where edge answers are
            accepted (1: only the cloud is right, -1: only the edge, 0), by the examples' indices. Called for examples where edge
            and cloud differ, from the highest score down, until the test stops: the threshold is that of all labels.

    Raises:
        NotEnough: even n error-free examples (or groups) would not prove it.
        PolicyError: an argument is invalid, or the score is the same for all examples.
    """
    messages = [] if notes is None else notes
    kind, value, delta = checked_target(max_loss, max_error, max_defer, sure)
    scores = checked_scores(score)
    n = len(scores)
    edge, cloud = checked_grades("edge_correct", edge_correct, n), checked_grades("cloud_correct", cloud_correct, n)
    graded = bool(checked_metric(metric)) or is_graded(edge, cloud)
    same = _agree(agree, n)
    if same is None and kind == "max_loss" and cloud is None and not graded:
        same = edge
    if edge is None and kind != "max_defer":
        raise PolicyError(f"{kind} needs edge_correct")
    if not set(fingerprints or {}) <= set(BOUND_TO):
        raise PolicyError(f"a certificate can be bound to {', '.join(BOUND_TO)}, not to {', '.join(fingerprints or {})}")
    try:
        parameters = json.loads(json.dumps(parameters or {}, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise PolicyError(f"the parameters of a score must be JSON: {e}") from e
    group_ids = group_numbers(groups, n)
    if group_ids is not None and per_class is not None:
        raise PolicyError("per_class and groups exclude each other: a group may have several classes")
    each = rows_by_class(per_class, kind, n)
    if group_ids is not None and kind != "max_loss":
        each = {"": one_of_each(group_ids)}
    in_groups = group_ids if kind == "max_loss" else None
    sizes = {label: len(rows) if in_groups is None else len(np.bincount(in_groups)) for label, rows in each.items()}
    risk = None if delta is None else delta / len(each)
    what = "groups" if group_ids is not None else "examples" if per_class is None else "examples of one predicted class"
    enough = check_sizes(kind, value, sure, [*sizes.values()], what)
    too_few = {label for label, size in sizes.items() if size < enough}
    if too_few:
        messages.append(f"always deferred, since {enough} examples are needed of each class: {', '.join(sorted(too_few))}")
    messages += dependence(scores, edge, cloud, group_ids)
    steps: dict[str, Step] = {}
    accepted = np.zeros(n, bool)
    for label, rows in each.items():
        if label in too_few:
            steps[label] = Step(INF, "none")
            continue
        parts = (None if x is None else x[rows] for x in (edge, cloud))
        of_rows = None if read is None else partial(_read_rows, read, rows)
        steps[label] = lowest_threshold(kind, value, risk, scores[rows], *parts, graded=graded, groups=in_groups, read=of_rows)
        everywhere = rows if per_class is not None else np.arange(n)
        accepted[everywhere] = scores[everywhere] >= steps[label].threshold
    weights = None if group_ids is None else 1 / np.bincount(group_ids)[group_ids]
    rate = weighted_mean(~accepted, weights)
    none = all(step.threshold == INF for step in steps.values())
    units = n if group_ids is None else int(group_ids.max()) + 1
    wide = 0.0 if none else spread(units, delta or 0.05, classes=len(each), grouped=group_ids is not None)
    area = _area(kind, scores, edge, cloud, group_ids) if read is None else None
    if edge is not None and cloud is not None and kind == "max_loss":
        doubts = [*reference_doubts(edge, cloud, group_ids), *doubts]
    messages += doubts
    if area is not None and area.by_chance and (text := _by_chance(area, kind, value, edge, cloud, rate)):
        messages.append(text)
    if notes is None:
        for message in messages:
            warnings.warn(message, stacklevel=2)
    return Certificate(
        kind=kind,
        value=value,
        sure=sure,
        method=" and ".join(sorted({step.method for step in steps.values()} - {"none"})),
        agreement=kind == "max_loss" and cloud is None and read is None,
        n=n,
        date=time.strftime("%Y-%m-%d", time.gmtime(now())),
        threshold=steps[""].threshold if per_class is None else INF,
        thresholds={} if per_class is None else {label: step.threshold for label, step in steps.items()},
        deferral_rate=rate,
        deferral_interval=(max(0.0, rate - wide), min(1.0, rate + wide)),
        accuracy=accuracies(accepted, edge, cloud, weights) if read is None else {},
        unscored=weighted_mean(np.isnan(scores), weights),
        score=name,
        parameters=parameters or {},
        fingerprints=dict(fingerprints or {}),
        disagreement=None if same is None else disagreement_bound(accepted, same, group_ids),
        metric=(metric or "correctness") if graded else "",
        groups=None if group_ids is None else units,
        highest=min((step.highest for step in steps.values() if step.highest < INF), default=None),
        area=None if area is None or isnan(area.value) else (round(area.value, 6), round(area.low, 6), round(area.high, 6)),
        examples=sketch(scores),
        doubts=tuple(doubts),
    ).sealed()


def crossfit(
    fit: Callable[[Ints], Callable[[Ints], ArrayLike]], n: int, *, folds: int = 5, seed: int = 0, groups: ArrayLike | None = None
) -> Floats:
    """Fit on k - 1 folds, score the fold left out, and return the out-of-fold scores [n] of n examples.

    Calls `fit` once for each fold. Scores of training examples are biased, and the guarantee would be violated more often than
    stated.

    Args:
        fit: takes indices of training examples; returns a function from indices to scores.
        n: number of examples.
        folds: number of folds.
        seed: seed of the random split.
        groups: [n], as for `calibrate`: the examples of a group are in the same fold.

    Raises:
        PolicyError: there are not as many examples as folds, or fewer than two folds.
    """
    group_ids = group_numbers(None if groups is None else np.asarray(groups), n)
    units = n if group_ids is None else int(group_ids.max(initial=-1)) + 1
    if not 2 <= folds <= units:  # noqa: PLR2004 - one to fit on, one to score
        raise PolicyError(f"{units} {'examples' if group_ids is None else 'groups'} cannot be divided into {folds} folds")
    scores = np.empty(n)
    fold = np.random.default_rng(seed).permutation(units) % folds
    fold = fold if group_ids is None else fold[group_ids]
    for i in range(folds):
        out = np.flatnonzero(fold == i)
        scores[out] = fit(np.flatnonzero(fold != i))(out)
    return scores


def _read_rows(read: Callable[[Ints], Floats], rows: Ints, of: Ints) -> Floats:
    """Return the losses of some of these rows."""
    return read(rows[of])


def disagreement_bound(accepted: NDArray[np.bool_], same: Floats, groups: Ints | None) -> float | None:
    """Return the upper 95 % bound of the share of accepted answers that differ (Clopper and Pearson, 1934).

    None if no answer is accepted.
    """
    rows = np.arange(len(same)) if groups is None else one_of_each(groups)
    count = np.count_nonzero(accepted[rows])
    return upper_bound(int(np.count_nonzero(accepted[rows] & (same[rows] < 1))), int(count), 0.05) if count else None


def _agree(agree: ArrayLike | None, n: int) -> Floats | None:
    """Return the validated agreement of edge and cloud, [n], 0 or 1; None for None; raise `PolicyError` if it is graded."""
    same = checked_grades("agree", agree, n)
    if is_graded(same):
        raise PolicyError("agree must hold the agreement of edge and cloud for each example: bool, or 0 and 1")
    return same


def check_sizes(kind: Kind, value: float, sure: float | None, sizes: Sequence[int], what: str) -> int:
    """Return how many examples of each class this guarantee needs at least, of as many classes as there are sizes.

    Raises:
        NotEnough: no class has as many; its message calls the examples `what`.
    """
    enough = ceil(1 / value) - 1 if sure is None else least_n(value, round(1 - float(sure), 12) / len(sizes))
    if max(sizes) < enough:
        raise not_enough(kind, value, sure, enough, max(sizes), what)
    return enough


def not_enough(kind: Kind, value: float, sure: float | None, enough: int, have: int, what: str) -> NotEnough:
    """Return the error for too few examples, without raising it."""
    odds = "on average" if sure is None else f"with sure={sure:g}"
    return NotEnough(
        f"{kind}={value:g} {odds} needs at least {enough} {what}, and there are {have}: {enough - have} are missing",
        needed=enough,
        missing=enough - have,
    )


def _area(kind: Kind, scores: Floats, edge: Floats | None, cloud: Floats | None, groups: Ints | None) -> Area | None:
    """Return the area under the score's deferral curve for this target; None without correctness."""
    if edge is None:
        return None
    right = np.ones(len(edge)) if cloud is None or kind == "max_error" else cloud
    return measured_area(scores, edge, right, groups)


def _by_chance(area: Area, kind: Kind, value: float, edge: Floats | None, cloud: Floats | None, rate: float) -> str:
    """Return a warning about a score that ranks by chance, with the savings of a better one; empty if they are small."""
    saved = ""
    if edge is not None and kind != "max_defer":
        best = least_deferral(kind, value, edge, np.ones(len(edge)) if cloud is None else cloud)
        if rate - best < WORTH:
            return ""
        saved = f". The best possible would defer {best * 100:.0f} % of these examples, where this one defers {rate * 100:.0f} %"
    how = "worse than" if area.high < 0 else "no better than"
    return (
        f"the score seems to rank {how} chance: its area under the deferral curve is {area.value:.2f} ({area.low:.2f} to "
        f"{area.high:.2f}; 0 is random, 1 an oracle). Try another score (margin, entropy, a quantile of log-probabilities), "
        f"a learned one (`auto`, or `fit` on features of the input), more examples, or a better edge{saved}"
    )


def accuracies(
    accepted: NDArray[np.bool_], edge: Floats | None, cloud: Floats | None, weights: Floats | None
) -> dict[str, float]:
    """Return the mean correctness of edge, cloud, accepted answers and cascade by name, without what is unknown or empty."""
    means = {name: weighted_mean(right, weights) for name, right in (("edge", edge), ("cloud", cloud)) if right is not None}
    if edge is not None:
        if accepted.any():
            means["accepted"] = weighted_mean(edge[accepted], None if weights is None else weights[accepted])
        if cloud is not None:
            means["cascade"] = weighted_mean(np.where(accepted, edge, cloud), weights)
    return means


def weighted_mean(values: NDArray[Any], weights: Floats | None) -> float:
    """Return the mean, weighted if there are weights."""
    return float(values.mean() if weights is None else np.average(values, weights=weights))


# The deferral rate of a threshold: its confidence interval, and the rate of the best possible score.

# Bound of the mean of the largest deviation of an empirical distribution from the true one, times the root of n.
_SUPREMUM = 0.8885


def spread(n: int, delta: float, *, classes: int = 1, grouped: bool = False) -> float:
    """Return by how much the deferral rate of n units may differ from that of all inputs, at any threshold, with risk delta.

    Uniform over thresholds, since the threshold is chosen on the same units. For one threshold it is Massart's bound (1990). For
    means of groups its tail is at most e times as large, since the mean of a group is that of one example of it drawn by chance,
    over draws (Jensen's inequality; Pinelis, 1999). With a threshold for each class the shares of the classes are estimated too:
    McDiarmid's bound about the mean of the largest deviation.
    """
    if classes == 1:
        return sqrt(log((2 * e if grouped else 2) / delta) / (2 * n))
    return (_SUPREMUM * sqrt(classes) + sqrt(classes - 1) / 2) / sqrt(n) + sqrt(log(1 / delta) / (2 * n))


def least_deferral(kind: Kind, value: float, edge: Floats, cloud: Floats) -> float:
    """Return the share of examples that an oracle defers to stay within the limit: first those where deferring gains most.

    edge, cloud: [n], correctness of each answer, 0..1.
    """
    if kind == "max_error":
        wrong = np.sort(1 - edge)[::-1]
        rest = wrong.sum() - np.append(0, wrong.cumsum())
        return int((rest <= value * (len(edge) - np.arange(len(edge) + 1)) + 1e-9).argmax()) / len(edge)
    gain = np.sort(cloud - edge)[::-1]
    lost = gain.sum() - np.append(0, gain.cumsum())
    return int((lost <= value * len(edge) + 1e-9).argmax()) / len(edge)
