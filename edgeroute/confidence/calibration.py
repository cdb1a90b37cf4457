"""From examples to a threshold with a promise, by fixed-sequence testing; the tests themselves are in exact.py.

The threshold walks from the highest score down, one block of equal scores at a time. At each, the hypothesis that the
promise is broken there is tested, and the walk ends at the first that is not rejected: so no test pays for the others.
No step is left out. A walk past the first threshold t* at which the promise breaks would then have had to reject it on
the very examples that t* accepts, of which t* was not chosen by the data; so the risk is that of the one test.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeroute.confidence.certificate import BOUND_TO, INF, Certificate, Kind, NotEnough
from edgeroute.confidence.exact import Floats, Ints, d_limits, lr_limits, most, most_of_each, needed, upper
from edgeroute.errors import PolicyError
from edgeroute.system import now

Bools = NDArray[np.bool_]
FEW = 1.5
"""Harms alone are tested while n * eps is below so many log(1 / delta); 4.5 at 95 %. Wins are too rare then to be of use."""
MANY = 4000
"""The likelihood ratio is used for up to so many examples; for more, the difference loses nothing and is quicker."""
TIED = 0.1
"""A block of equal scores is told about from this share on."""
START = 0.2
"""The error among the accepted is first tested where this share is accepted: fewer prove little, and may end the walk."""


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
    """The lowest threshold that these examples, drawn like the inputs to come and independent, let one promise.

    Exactly one target is given, 0..1, and the promise holds with probability `sure` over draws of the examples:

        max_loss    accuracy of edge and cloud together >= that of the cloud - max_loss. Without `cloud_correct`,
                    `edge_correct` means "the edge says what the cloud says": no labels are needed, and it costs deferrals
        max_error   share of wrong answers among those accepted on the edge <= max_error
        max_defer   share of deferred inputs <= max_defer; needs no labels. With `sure=None` it holds on average over
                    draws, and not with a probability in each: that defers a little more

    Where no threshold keeps the promise, it is inf: every input is deferred. Examples whose score is NaN count as
    deferred.

    Args:
        score: [n], higher for surer. If it was fitted on these examples, take it from `crossfit`.
        edge_correct: [n], bool or 0 and 1.
        cloud_correct: [n], likewise.
        max_loss: see above.
        max_error: see above.
        max_defer: see above.
        sure: see above, between 0 and 1.
        per_class: [n], the class that the edge predicts for each example. Every class then has a threshold and a promise
            of its own, each at risk (1 - sure) / classes, so that all hold at once. A class that has too few examples is
            always deferred, with a warning.
        agree: [n], whether edge and cloud say the same, bool or 0 and 1: an audit in use compares with it. Not needed where
            `edge_correct` means just that.
        name: of the score.
        parameters: of the score: what JSON can hold.
        fingerprints: of the edge model, cloud model, score and payload codec ("edge", "cloud", "score", "codec") that the
            examples come from.

    Raises:
        NotEnough: not even examples without a fault would prove it.
        PolicyError: what is given is not what it should be, or the score is the same for all examples.
    """
    kind, value, delta = _target(max_loss, max_error, max_defer, sure)
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
    _look(scores)
    if few:
        warnings.warn(
            f"always deferred, since {enough} examples are needed of each class: {', '.join(sorted(few))}", stacklevel=2
        )

    steps: dict[str, _Step] = {}
    accepted = np.zeros(n, bool)
    spread = 0.0
    for label, rows in classes.items():
        if label in few:
            steps[label] = _Step(INF, "none")
            continue
        step = steps[label] = _walk(kind, value, risk, scores[rows], *(None if x is None else x[rows] for x in (edge, cloud)))
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
    """Scores [n] of n examples, each by a score that was fitted without that example.

    Calibrated on the examples that it was fitted on, a score flatters itself, and the promise breaks more often than it says.

    Args:
        fit: takes the numbers of the examples to fit on, and gives what takes numbers of examples and gives their scores.
        n: how many examples there are.
        folds: in how many parts they are left out in turn.
        seed: of the division into parts.

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


class _Step(NamedTuple):
    """Where a walk ended."""

    threshold: float
    method: str


def _walk(kind: Kind, value: float, delta: float | None, scores: Floats, edge: Bools | None, cloud: Bools | None) -> _Step:
    """Examples of one class, or all. At least so many of them that the walk can begin."""
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]  # NaN comes last
    s = scores[order]
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True)[: len(s)])  # the last of each block of equal scores
    if kind == "max_defer":
        blocks, method = _by_rank(value, delta, len(scores), s[ends], len(scores) - 1 - ends)
    else:
        assert edge is not None
        assert delta is not None
        wrong = ~edge[order]
        if kind == "max_error":
            blocks, method = (
                accept_selective(np.cumsum(wrong, dtype=np.int64)[ends], ends + 1, len(scores), value, delta),
                "CP-error",
            )
        else:
            right = np.ones(len(order), bool) if cloud is None else cloud[order]
            h, w = (np.cumsum(found, dtype=np.int64)[ends] for found in (wrong & right, ~wrong & ~right))
            method = relative_method(len(scores), value, delta, wins=cloud is not None)
            blocks = accept_relative(method, h, w, len(scores), value, delta)
    return _Step(_between(s, ends, blocks), method)


def relative_method(n: int, eps: float, delta: float, *, wins: bool) -> str:
    """The test for n examples, of which nothing else may be known. wins: where the cloud is wrong is known."""
    if not wins or n * eps < FEW * log(1 / delta):
        return "CP-harm"
    return "LR-BB" if n <= MANY else "D-BB"


def accept_relative(method: str, h: Ints, w: Ints, n: int, eps: float, delta: float) -> int:
    """How many blocks may be accepted, where h harms and w wins [blocks] are counted from the first to each."""
    if method == "CP-harm":
        return _passed(h <= most(n, eps, delta))
    if method == "D-BB":
        limits = d_limits(n, eps, delta, min(n, _rounded(int(h[-1] + w[-1])))) if len(h) else h
        return _passed(h - w <= limits[h + w])
    wins = 16
    while True:  # most walks end long before the wins do, and the table grows as their square
        limits = lr_limits(n, eps, delta, wins)
        blocks = _passed((w <= wins) & (h <= limits[np.minimum(w, wins)]))
        if blocks == len(w) or w[blocks] <= wins:
            return blocks
        wins *= 2


def accept_selective(wrong: Ints, m: Ints, n: int, alpha: float, delta: float) -> int:
    """How many blocks may be accepted, where wrong of m [blocks] are counted from the first to each.

    Where the walk begins is a rank and no fixed score, so it is exact but for the one example that has this rank.
    """
    first = int(np.searchsorted(m, max(needed(alpha, delta), ceil(START * n))))
    passed = _passed(wrong[first:] <= most_of_each(n, alpha, delta)[m[first:]])
    return first + passed if passed else 0


def _by_rank(value: float, delta: float | None, n: int, levels: Floats, below: Ints) -> tuple[int, str]:
    """How many blocks are to be accepted. below [blocks]: how many examples are ranked below all of each and those before.

    P(score < the k-th lowest) is Beta(k, n - k + 1), of which the mean is k / (n + 1); NaN is ranked lowest.
    """
    rank = floor(value * (n + 1)) if delta is None else most(n, value, delta) + 1
    blocks = int(np.count_nonzero(below >= rank)) + 1
    if blocks > len(levels):
        raise PolicyError(f"no threshold defers at most {value:g}: {below[-1] / n:.1%} of the examples have no score")
    return blocks, "rank" if delta is None else "Beta"


def _passed(ok: Bools) -> int:
    """How many come before the first that is False."""
    return len(ok) if ok.all() else int(ok.argmin())


def _rounded(count: int) -> int:
    """Up to a power of two, so that tables are shared."""
    return 1 << count.bit_length()


def _at_most(k: int | np.integer[Any], m: int | np.integer[Any]) -> float | None:
    """The share of which k of m leave 95 % confidence that it is not larger (Clopper and Pearson, 1934)."""
    return upper(int(k), int(m), 0.05) if m else None


def _between(s: Floats, ends: Ints, blocks: int) -> float:
    """The threshold that accepts so many blocks: in the middle of the gap, so that rounding elsewhere moves none across."""
    if not blocks:
        return INF
    lowest = float(s[ends[blocks - 1]])
    if blocks == len(ends):
        return lowest
    below = float(s[ends[blocks - 1] + 1])
    middle = below / 2 + lowest / 2
    return middle if middle > below else lowest


def _target(
    max_loss: float | None, max_error: float | None, max_defer: float | None, sure: float | None
) -> tuple[Kind, float, float | None]:
    targets: dict[Kind, float | None] = {"max_loss": max_loss, "max_error": max_error, "max_defer": max_defer}
    given = [(kind, value) for kind, value in targets.items() if value is not None]
    if len(given) != 1:
        raise PolicyError(f"exactly one of {', '.join(targets)} is to be given, and there are {len(given)}")
    ((kind, value),) = given
    if not 0 < value < 1:
        raise PolicyError(f"{kind} is a share between 0 and 1, not {value!r}")
    if sure is None:
        if kind != "max_defer":
            raise PolicyError(f"sure=None is for max_defer alone: {kind} is promised with a probability")
        return kind, float(value), None
    if not 0 < sure < 1:
        raise PolicyError(f"sure is a probability between 0 and 1, not {sure!r}")
    return kind, float(value), round(1 - sure, 12)


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
    """Class -> its examples."""
    if per_class is None:
        return {"": np.arange(n)}
    if kind == "max_defer":
        raise PolicyError("max_defer has one threshold for all classes")
    if len(per_class) != n:
        raise PolicyError(f"per_class has {len(per_class)} classes, and there are {n} scores")
    labels = np.array([str(label) for label in per_class])
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def _look(scores: Floats) -> None:
    """Refuses a score that says nothing, warns of one that says little."""
    levels, counts = np.unique(scores[~np.isnan(scores)], return_counts=True)
    if len(levels) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise PolicyError("no example has a score" if not len(levels) else f"the score is {levels[0]:g} for every example")
    tied = counts.max() / len(scores)
    if tied > TIED:
        warnings.warn(
            f"{tied:.0%} of the examples share the score {levels[counts.argmax()]:g}, and are accepted or deferred together; "
            "a softmax of 8 bits does that: take the score from logits",
            stacklevel=3,
        )


def _accuracy(accepted: Bools, edge: Bools | None, cloud: Bools | None) -> dict[str, float]:
    found: dict[str, Bools | None] = {"edge": edge, "cloud": cloud}
    if edge is not None:
        found["accepted"] = edge[accepted]
        if cloud is not None:
            found["cascade"] = np.where(accepted, edge, cloud)
    return {name: float(right.mean()) for name, right in found.items() if right is not None and right.size}
