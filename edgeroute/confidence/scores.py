"""Confidence scores from raw model outputs, and the agreement of several models: higher means more confident.

Formulas are over the last axis. A missing confidence is NaN with its reason (`Unscored`).

    msp       max p                        maximum softmax probability (Hendrycks and Gimpel, 2017)
    margin    p1 - p2                      difference of the two largest probabilities
    entropy   1 - H(p) / log C             one minus the normalised entropy
    energy    log sum exp z                (Liu et al., 2020); detects out-of-distribution inputs rather than errors; not 0..1
    quantile  exp of the 10 % quantile of the token log-probabilities of a text (Gupta et al., 2024)

where z are logits and p = softmax(z).
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, isfinite, log
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self

Array = np.ndarray[Any, np.dtype[Any]]
Score = Callable[[Any], float]
NAN = float("nan")
SMALL = 64  # maximum classes for which a row is scored in plain Python, several times faster than with numpy calls
SHORT = 1_000  # maximum tokens of a text for which that holds; sorting more takes longer than numpy's selection


def _softmax(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def msp(logits: Array) -> Array:
    """Return the maximum softmax probability. logits: [..., classes] -> [...], 1/classes..1."""
    return _softmax(logits).max(-1)  # type: ignore[no-any-return]


def margin(logits: Array) -> Array:
    """Return the difference of the two largest probabilities. logits: [..., classes] -> [...], 0..1."""
    top = np.sort(_softmax(logits), -1)
    return top[..., -1] - top[..., -2]  # type: ignore[no-any-return]


def entropy(logits: Array) -> Array:
    """Return one minus the normalised entropy. logits: [..., classes] -> [...], 0..1."""
    p = _softmax(logits)
    terms = np.where(p == 0, 0.0, p * np.log(np.where(p == 0, 1.0, p)))
    return 1 + terms.sum(-1) / np.log(p.shape[-1])  # type: ignore[no-any-return]


def energy(logits: Array) -> Array:
    """Return log sum exp of the logits. logits: [..., classes] -> [...], unbounded."""
    z = np.asarray(logits, np.float64)
    top = z.max(-1)
    return top + np.log(np.exp(z - top[..., None]).sum(-1))  # type: ignore[no-any-return]


def quantile(logprobs: Array, q: float = 0.1) -> float:
    """Return the exponential of a quantile of token log-probabilities, 0..1; NaN for no tokens.

    A sum or mean would favour short texts. logprobs: [tokens], natural logarithms.
    """
    values = np.asarray(logprobs, np.float64)
    if values.ndim == 1 and 0 < values.size <= SHORT and isfinite(sum(row := values.tolist())) and max(row) <= 1:
        return quantile_row(row, q)
    with np.errstate(all="ignore"):  # minus infinity is a token without a probability
        return float(np.exp(np.quantile(values, q))) if values.size else NAN


def quantile_row(values: list[float], q: float = 0.1) -> float:
    """Return `quantile` of finite values up to 1, one or more, in plain Python: several times faster for a short text."""
    return exp(quantile_of(sorted(values), q))


def quantile_of(ordered: list[float], q: float) -> float:
    """Return a quantile of sorted values, by linear interpolation as numpy's default.

    NaN and empty lists are the caller's to exclude.
    """
    place = q * (len(ordered) - 1)
    i = int(place)
    share, low, high = place - i, ordered[i], ordered[min(i + 1, len(ordered) - 1)]
    if high == low:  # also where both are infinite
        return low
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share  # noqa: PLR2004 - a half


def agreement(logits: Array, *, votes: bool = False) -> Array:
    """Return how far several edge models agree, 0..1; NaN if any logit is. logits: [models, ..., classes] -> [...].

    Args:
        logits: logits of at least one model.
        votes: True: one minus the entropy of the predicted classes, as a share of its maximum; ties are many, since nothing else
            counts. False: the largest of the models' mean softmax, which falls with disagreement and with doubt.
    """
    z = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        p = _softmax(z)
    if not votes:
        return p.mean(0).max(-1)  # type: ignore[no-any-return]
    share = np.eye(z.shape[-1])[z.argmax(-1)].mean(0)
    most = log(max(2, min(len(z), z.shape[-1])))
    disagreement = -(share * np.log(np.where(share == 0, 1.0, share))).sum(-1) / most
    return np.where(np.isnan(p).any((0, -1)), NAN, 1 - disagreement)


def _msp_row(z: list[float], top: float) -> float:
    """Return `msp` of one row, given its largest value."""
    total = 0.0  # a loop takes two thirds of the time of `sum` over a list
    for v in z:
        total += exp(v - top)
    return 1.0 / total


def _margin_row(z: list[float], top: float) -> float:
    """Return `margin` of one row, given its largest value."""
    second = sorted(z)[-2]
    return (1.0 - exp(second - top)) / sum([exp(v - top) for v in z])


def _entropy_row(z: list[float], top: float) -> float:
    """Return `entropy` of one row, given its largest value."""
    weights = [exp(v - top) for v in z]
    total = sum(weights)
    # H = log total - sum w (z - top) / total
    spread = sum([w * (v - top) for w, v in zip(weights, z, strict=True) if w])
    return 1.0 - (log(total) - spread / total) / log(len(z))


# Name -> function from one row [classes], as a list, and its largest value to the score.
ROWS: dict[str, Callable[[list[float], float], float]] = {
    "msp": _msp_row,
    "margin": _margin_row,
    "entropy": _entropy_row,
    "energy": lambda z, top: top + log(sum([exp(v - top) for v in z])),
}
# Name -> function from logits [..., classes] to scores [...].
ARRAYS: dict[str, Callable[[Array], Array]] = {"msp": msp, "margin": margin, "entropy": entropy, "energy": energy}
SCORES = (*ROWS, "quantile")  # names of the scores


NO_LOGPROBS = "no log-probabilities of its tokens"  # reason of a missing confidence


class Unscored(float):
    """Missing confidence: NaN with the reason, `why`."""

    __slots__ = ("why",)
    why: str

    def __new__(cls, why: str) -> Self:
        """Create a NaN with a reason."""
        self = super().__new__(cls, "nan")
        self.why = why
        return self

    def __reduce__(self) -> tuple[type[Unscored], tuple[str]]:
        return Unscored, (self.why,)
