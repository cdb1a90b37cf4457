"""Features of a learned score, from logits or token log-probabilities.

With z the logits minus their maximum, p = softmax(z), u = z minus its mean, and C classes:

    logit msp      log msp / (1 - msp)             exact where msp itself rounds to 1
    closeness      log(1 + exp(-margin))           margin: between the two largest logits
    entropy        H(p) / log C
    log p2         of the second most likely class
    height         max u
    norm           Euclidean norm of u
    predicted, p   one-hot, and p itself; up to 128 classes, since more are not learned from a few thousand examples

All are invariant to a constant added to the logits. Two optional ones detect out-of-distribution inputs; energy is not invariant:

    energy         log sum exp of the logits
    distance       Mahalanobis distance of u to the nearest class mean of correctly answered examples (after Lee et al., 2018)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import dist, exp, log, log1p, nan, sqrt
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.scores import quantile_of

Array = np.ndarray[Any, np.dtype[Any]]
FLOOR = -80.0  # lower bound of z and of log-probabilities, -inf included
PER_CLASS = 128  # maximum number of classes that get features of their own
# Names of the features of logits, apart from those for each class.
LOGITS = ("logit msp", "closeness", "entropy", "log p2", "height", "norm")
FOREIGN = ("energy", "distance")  # names of the out-of-distribution features
# Names of the features of a text.
TEXT = ("log quantile 0.1", "log quantile 0.25", "log quantile 0.5", "mean", "min", "first", "log length")


class Foreign(NamedTuple):
    """Whitened class means of correctly answered logits, for the Mahalanobis distance."""

    whiten: Array  # [C, C]: whitens the within-class covariance of u
    means: Array  # [classes that had examples, C], whitened

    def distance(self, u: Array) -> Array:
        """Return the distances to the nearest mean, [n], standard deviations. u: [n, C]."""
        whitened = u @ self.whiten
        return np.sqrt(np.stack([np.square(whitened - mean).sum(1) for mean in self.means]).min(0))  # type: ignore[no-any-return]

    def distance_of(self, u: list[float]) -> float:
        """Return the distance of one row u, [C], to the nearest mean."""
        gap = self.means - np.array(u) @ self.whiten
        return sqrt(np.einsum("ij,ij->i", gap, gap).min())


def feature_names(classes: int, foreign: bool) -> list[str]:
    """Return the column names of `logit_features`; without classes, those of `text_features`."""
    if not classes:
        return list(TEXT)
    each = range(classes if classes <= PER_CLASS else 0)
    return [*LOGITS, *(FOREIGN if foreign else ()), *[f"p {k}" for k in each], *[f"predicted {k}" for k in each]]


def centre(logits: Array) -> tuple[Array, Array]:
    """Return z and u of the logits, see above."""
    x = np.asarray(logits, np.float64)
    z = np.maximum(x - x.max(1, keepdims=True), FLOOR)
    return z, z - z.mean(1, keepdims=True)


def logit_features(logits: Array, foreign: Foreign | None = None) -> Array:
    """Return a row of features, [n, features], for each row of logits [n, C]; NaN for a row with NaN or infinity.

    Up to `PER_CLASS` classes have a probability and a mark of the highest each. `foreign` adds two columns: the energy, and a
    distance from known inputs.
    """
    with np.errstate(invalid="ignore"):
        z, u = centre(logits)
        rows, classes = np.arange(len(z)), z.shape[1]
        k = z.argmax(1)
        weights = np.exp(z)
        others = weights.copy()
        others[rows, k] = 0
        rest = others.sum(1)
        log_total = np.log1p(rest)
        p = weights / (1 + rest)[:, None]
        second = np.partition(z, -2, 1)[:, -2]
        entropy = (log_total - (p * z).sum(1)) / log(classes)
        columns = [-np.log(rest), np.log1p(np.exp(second)), entropy, second - log_total, u.max(1), np.sqrt((u * u).sum(1))]
        if foreign is not None:
            columns += [np.max(logits, 1) + log_total, foreign.distance(u)]
    if classes > PER_CLASS:
        return np.stack(columns, 1)
    return np.concatenate([np.stack(columns, 1), p, np.eye(classes)[k]], 1)


def of_row(x: list[float], foreign: Foreign | None = None) -> tuple[list[float], int]:
    """Return the features of one row [C] without the one-hot ones, and the predicted class. In plain Python, for C <= 128."""
    top = max(x)
    k = x.index(top)
    z = [FLOOR if v - top < FLOOR else v - top for v in x]  # noqa: FURB136 - max() would be a call for each class
    classes = len(z)
    mean = sum(z) / classes
    norm = dist(z, [mean] * classes)
    weights = list(map(exp, z))
    weights[k] = 0.0
    rest = sum(weights)
    weights[k] = 1.0
    total, log_total = 1.0 + rest, log1p(rest)
    entropy = (log_total - sum(map(mul, weights, z)) / total) / log(classes)
    z[k] = FLOOR
    second = max(z)
    features = [-log(rest), log1p(exp(second)), entropy, second - log_total, -mean, norm]
    if foreign is not None:
        z[k] = 0.0
        features += [top + log_total, foreign.distance_of([v - mean for v in z])]
    features += [w / total for w in weights]
    return features, k


def text_features(token_logprobs: Sequence[float]) -> list[float]:
    """Return the `TEXT` features of token log-probabilities, in order; all NaN if there are no tokens or any is NaN."""
    given = token_logprobs.tolist() if isinstance(token_logprobs, np.ndarray) else list(token_logprobs)
    if not given or any(v != v for v in given):  # noqa: PLR0124 - NaN, without a call for each token
        return [nan] * len(TEXT)
    values = sorted([FLOOR if v < FLOOR else v for v in given])  # noqa: FURB136 - max() would be a call for each token
    count = len(values)
    quantiles = [quantile_of(values, q) for q in (0.1, 0.25, 0.5)]
    return [*quantiles, sum(values) / count, values[0], max(given[0], FLOOR), log(count)]
