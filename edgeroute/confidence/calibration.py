"""Calibrates a deferral threshold with a statistical guarantee, by fixed-sequence testing (fixed_sequence.py)."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil, log, sqrt
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeroute.confidence.certificate import BOUND_TO, INF, Certificate, Kind, NotEnough
from edgeroute.confidence.exact import Floats, Ints, needed, upper
from edgeroute.confidence.fixed_sequence import Bools, Step, lowest_threshold
from edgeroute.errors import PolicyError
from edgeroute.system import now

TIED = 0.1
"""Share of examples with one tied score above which a warning is given."""


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
    agree: ArrayLike | None = None,
    name: str = "score",
    parameters: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Certificate:
    """The lowest threshold whose guarantee these examples certify. They must be i.i.d. and drawn like future inputs.

    Exactly one target is given, 0..1. Its guarantee holds with probability `sure` over draws of the examples:

        max_loss    accuracy of the cascade (edge and cloud together) >= accuracy of the cloud - max_loss. Without
                    `cloud_correct`, `edge_correct` means "edge and cloud agree": no labels needed, more deferrals
        max_error   error rate among the answers accepted on the edge (selective risk) <= max_error
        max_defer   deferral rate <= max_defer; needs no labels. With `sure=None` it holds on average over draws instead of
                    with a probability in each, which defers a little more

    If no threshold can be certified, the threshold is inf: every input is deferred. Examples with a NaN score count as
    deferred.

    Args:
        score: [n], higher for more confident. If it was fitted on these examples, take it from `crossfit`.
        edge_correct: [n], bool or 0/1.
        cloud_correct: [n], bool or 0/1.
        max_loss: see above.
        max_error: see above.
        max_defer: see above.
        sure: see above, between 0 and 1.
        per_class: [n], the class that the edge predicts for each example. Each class then gets its own threshold and
            guarantee at risk (1 - sure) / classes, so that all hold simultaneously. A class with too few examples is
            always deferred, with a warning.
        agree: [n], whether edge and cloud agree, bool or 0/1: gives the limit for drift audits. Not needed where
            `edge_correct` already means agreement.
        name: of the score.
        parameters: of the score, JSON-serialisable.
        fingerprints: of the edge model, cloud model, score and payload codec ("edge", "cloud", "score", "codec") that the
            examples come from.

    Raises:
        NotEnough: even n error-free examples would not prove it.
        PolicyError: an argument is invalid, or the score is the same for all examples.
    """
    told: list[str] = []
    made = certificate_of(
        score, edge_correct, cloud_correct, max_loss=max_loss, max_error=max_error, max_defer=max_defer, sure=sure,
        per_class=per_class, agree=agree, name=name, parameters=parameters, fingerprints=fingerprints, told=told,
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
) -> Certificate:
    """As `calibrate`, whose warnings are appended to `told`: Python's own are the process's, and this may run in a thread."""
    kind, value, delta = checked_target(max_loss, max_error, max_defer, sure)
    scores = _scores(score)
    n = len(scores)
    edge = _zero_one("edge_correct", edge_correct, n)
    cloud = _zero_one("cloud_correct", cloud_correct, n)
    same = _zero_one("agree", agree, n)
    if same is None and kind == "max_loss" and cloud is None:
        same = edge
    if edge is None and kind != "max_defer":
        raise PolicyError(f"{kind} needs edge_correct")
    if not set(fingerprints or {}) <= set(BOUND_TO):
        raise PolicyError(f"a certificate is bound to {', '.join(BOUND_TO)}, and not to {', '.join(fingerprints or {})}")
    try:
        parameters = json.loads(json.dumps(parameters or {}, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise PolicyError(f"the parameters of a score are what JSON can hold: {e}") from e
    classes = _classes(per_class, kind, n)
    risk = None if delta is None else delta / len(classes)
    enough = ceil(1 / value) - 1 if risk is None else needed(value, risk)
    few = {label for label, rows in classes.items() if len(rows) < enough}
    if len(few) == len(classes):
        have = max(len(rows) for rows in classes.values())
        where = "" if per_class is None else " of one predicted class"
        odds = "on average" if sure is None else f"with sure={sure:g}"
        raise NotEnough(
            f"{kind}={value:g} {odds} needs at least {enough} examples{where}, and there are {have}: {enough - have} are missing",
            needed=enough,
            missing=enough - have,
        )
    told += _ties(scores)
    if few:
        told.append(f"always deferred, since {enough} examples are needed of each class: {', '.join(sorted(few))}")

    steps: dict[str, Step] = {}
    accepted = np.zeros(n, bool)
    spread = 0.0
    for label, rows in classes.items():
        if label in few:
            steps[label] = Step(INF, "none")
            continue
        step = steps[label] = lowest_threshold(
            kind, value, risk, scores[rows], *(None if x is None else x[rows] for x in (edge, cloud))
        )
        accepted[rows] = scores[rows] >= step.threshold
        if step.threshold < INF:
            spread += sqrt(len(rows) * log(2 * len(classes) / (0.05 if delta is None else delta)) / 2) / n  # Massart's bound
    rate = float((~accepted).mean())
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
        deferral_interval=(max(0.0, rate - spread), min(1.0, rate + spread)),
        accuracy=_accuracy(accepted, edge, cloud),
        unscored=float(np.isnan(scores).mean()),
        score=name,
        parameters=parameters or {},
        fingerprints=dict(fingerprints or {}),
        disagreement=None if same is None else _at_most(np.count_nonzero(accepted & ~same), np.count_nonzero(accepted)),
    )


def crossfit(fit: Callable[[Ints], Callable[[Ints], ArrayLike]], n: int, *, folds: int = 5, seed: int = 0) -> Floats:
    """Out-of-fold scores [n] of n examples, by k-fold cross-fitting: each example is scored by a fit without it.

    Scores of examples that were fitted on are biased, and the guarantee would be violated more often than stated.

    Args:
        fit: takes indices of training examples; returns a function from indices to scores.
        n: number of examples.
        folds: number of folds.
        seed: of the random split.

    Raises:
        PolicyError: there are not as many examples as folds, or fewer than two folds.
    """
    if not 2 <= folds <= n:  # noqa: PLR2004 - one to fit on, one to score
        raise PolicyError(f"{n} examples cannot be divided into {folds} folds")
    scores = np.empty(n)
    fold = np.random.default_rng(seed).permutation(n) % folds
    for i in range(folds):
        out = np.flatnonzero(fold == i)
        scores[out] = fit(np.flatnonzero(fold != i))(out)
    return scores


def _at_most(k: int | np.integer[Any], m: int | np.integer[Any]) -> float | None:
    """Upper 95 % confidence bound of a proportion, k of m (Clopper and Pearson, 1934)."""
    return upper(int(k), int(m), 0.05) if m else None


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
    if not _is_share(sure):
        raise PolicyError(f"sure is a probability between 0 and 1, not {sure!r}")
    return kind, float(value), round(1 - float(sure), 12)


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < 1


def _scores(score: ArrayLike) -> Floats:
    try:
        scores = np.asarray(score, np.float64)
    except (TypeError, ValueError) as e:
        raise PolicyError(f"score is an array of numbers: {e}") from e
    if scores.ndim != 1 or not scores.size:
        raise PolicyError(f"score has one number for each example, and this is of shape {scores.shape}")
    if np.isinf(scores).any():
        raise PolicyError(f"{np.isinf(scores).sum()} scores are infinite: no threshold could defer, or accept, such inputs")
    return scores


def _zero_one(what: str, values: ArrayLike | None, n: int) -> Bools | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (n,):
        raise PolicyError(f"{what} is of shape {array.shape}, and there are {n} scores")
    if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
        raise PolicyError(f"{what} says for each example whether it is right: bool, or 0 and 1")
    return array.astype(bool)


def _classes(per_class: Sequence[object] | NDArray[Any] | None, kind: Kind, n: int) -> dict[str, Ints]:
    """Class -> indices of its examples."""
    if per_class is None:
        return {"": np.arange(n)}
    if kind == "max_defer":
        raise PolicyError("max_defer has one threshold for all classes")
    if len(per_class) != n:
        raise PolicyError(f"per_class has {len(per_class)} classes, and there are {n} scores")
    labels = np.array([str(label) for label in per_class])
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def _ties(scores: Floats) -> list[str]:
    """Rejects a constant score; a warning of a heavily tied one, if it is."""
    levels, counts = np.unique(scores[~np.isnan(scores)], return_counts=True)
    if len(levels) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise PolicyError("no example has a score" if not len(levels) else f"the score is {levels[0]:g} for every example")
    tied = counts.max() / len(scores)
    if tied <= TIED:
        return []
    said = f"{tied:.0%} of the examples share the score {levels[counts.argmax()]:g}, and are accepted or deferred together"
    return [f"{said}; a softmax of 8 bits does that: take the score from logits"]


def _accuracy(accepted: Bools, edge: Bools | None, cloud: Bools | None) -> dict[str, float]:
    found: dict[str, Bools | None] = {"edge": edge, "cloud": cloud}
    if edge is not None:
        found["accepted"] = edge[accepted]
        if cloud is not None:
            found["cascade"] = np.where(accepted, edge, cloud)
    return {name: float(right.mean()) for name, right in found.items() if right is not None and right.size}
