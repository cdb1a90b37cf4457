"""Confidence scores from raw model outputs: higher means more confident. Formulas are over the last axis.

    msp       max p                        maximum softmax probability (Hendrycks and Gimpel, 2017)
    margin    p1 - p2                      difference of the two largest probabilities
    entropy   1 - H(p) / log C             one minus the normalised entropy
    energy    log sum exp z                (Liu et al., 2020); detects out-of-distribution inputs rather than errors; not 0..1
    quantile  exp of the 10 % quantile of the token log-probabilities of a text (Gupta et al., 2024)

where z are logits and p = softmax(z).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import Any

import numpy as np

from edgeroute.confidence.unscored import Unscored
from edgeroute.core.texts import named
from edgeroute.core.walk import Prediction, new
from edgeroute.errors import BadReply, PolicyError
from edgeroute.system import Failures, contained

Array = np.ndarray[Any, np.dtype[Any]]
Score = Callable[[Any], float]
NAN = float("nan")
SMALL = 64
"""Up to so many classes a row is scored in plain Python, several times faster than with numpy calls."""


def _softmax(logits: Array) -> Array:
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def msp(logits: Array) -> Array:
    """logits: [..., classes] -> [...], 1/classes..1."""
    return _softmax(logits).max(-1)  # type: ignore[no-any-return]


def margin(logits: Array) -> Array:
    """logits: [..., classes] -> [...], 0..1."""
    top = np.sort(_softmax(logits), -1)
    return top[..., -1] - top[..., -2]  # type: ignore[no-any-return]


def entropy(logits: Array) -> Array:
    """logits: [..., classes] -> [...], 0..1."""
    p = _softmax(logits)
    terms = np.where(p == 0, 0.0, p * np.log(np.where(p == 0, 1.0, p)))
    return 1 + terms.sum(-1) / np.log(p.shape[-1])  # type: ignore[no-any-return]


def energy(logits: Array) -> Array:
    """logits: [..., classes] -> [...], unbounded."""
    z = np.asarray(logits, np.float64)
    top = z.max(-1)
    return top + np.log(np.exp(z - top[..., None]).sum(-1))  # type: ignore[no-any-return]


def quantile(logprobs: Array, q: float = 0.1) -> float:
    """logprobs: [tokens], natural logarithms -> 0..1; NaN for no tokens. A sum or mean would favour short texts."""
    values = np.asarray(logprobs, np.float64)
    return float(np.exp(np.quantile(values, q))) if values.size else NAN


def agreement(logits: Array, *, votes: bool = False) -> Array:
    """How far several edge models agree, 0..1; NaN if any logit is. Logits: [models, ..., classes] -> [...].

    Args:
        logits: of at least one model.
        votes: one minus the entropy of the predicted classes, as a share of the most it can be: ties are many, since it
            looks at nothing else. Else the largest of the models' mean softmax, which falls with disagreement and with doubt.
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
    return 1.0 / sum([exp(v - top) for v in z])


def _margin_row(z: list[float], top: float) -> float:
    second = sorted(z)[-2]
    return (1.0 - exp(second - top)) / sum([exp(v - top) for v in z])


def _entropy_row(z: list[float], top: float) -> float:
    weights = [exp(v - top) for v in z]
    total = sum(weights)
    # H = log total - sum w (z - top) / total
    spread = sum([w * (v - top) for w, v in zip(weights, z, strict=True) if w])
    return 1.0 - (log(total) - spread / total) / log(len(z))


def _energy_row(z: list[float], top: float) -> float:
    return top + log(sum([exp(v - top) for v in z]))


ROWS: dict[str, Callable[[list[float], float], float]] = {
    "msp": _msp_row,
    "margin": _margin_row,
    "entropy": _entropy_row,
    "energy": _energy_row,
}
"""One row [classes], as a list, and its largest value -> the score."""
ARRAYS: dict[str, Callable[[Array], Array]] = {"msp": msp, "margin": margin, "entropy": entropy, "energy": energy}
SCORES = (*ROWS, "quantile")


class Reader:
    """Decodes model outputs to predictions: (value, confidence, outputs).

    Args:
        score: a name from `SCORES`, or any `f(outputs of one input) -> float`.
        labels: class index -> value; None: the value is the index.
        kind: what the outputs are: logits or probabilities [n, classes], or one result an input as a callable gives
            them: `(value, confidence)`, `(text, token log-probabilities)`, or a row of either of the first two.

    Raises:
        PolicyError: unknown score or kind, or the score cannot be computed from that kind.
    """

    def __init__(self, score: str | Score = "msp", *, labels: Sequence[str] | None = None, kind: str = "logits") -> None:
        if isinstance(score, str) and score not in SCORES:
            raise PolicyError(f"there is no score {score!r}: expected one of {', '.join(SCORES)}, or a function of the outputs")
        if score == "energy" and kind == "probabilities":
            raise PolicyError("the energy score needs logits, and this model gives probabilities")
        if kind not in {"logits", "probabilities", "answers"}:
            raise PolicyError(f"there is no kind of outputs {kind!r}: expected logits, probabilities or answers")
        self.labels, self.kind, self.score = labels, kind, score
        name = score if isinstance(score, str) and score in ROWS else "msp"
        self._row, self._array = ROWS[name], ARRAYS[name]
        self._custom: Score | None = score if callable(score) else None
        self.failures = Failures()
        self._logits = kind == "probabilities" and getattr(score, "of_logits", False)
        """Whether the score takes logits and the model gives probabilities, whose logarithms serve as logits."""
        self._simple = len(labels) if labels and kind == "logits" and isinstance(score, str) and 1 < len(labels) <= SMALL else 0

    def one(self, outputs: Any) -> Prediction:
        """outputs: for one input, with its batch axis of length 1."""
        if self._simple and type(outputs) is np.ndarray and outputs.shape == (1, self._simple):  # the usual case
            row = outputs[0]
            z = row.tolist()
            top = max(z)
            return new(Prediction, (self.labels[z.index(top)], self._row(z, top), row))  # type: ignore[index]
        return self._read(_row(outputs, 0))

    def many(self, outputs: Any, count: int) -> list[Prediction]:
        """outputs: for `count` inputs along the first axis.

        Raises:
            BadReply: the number of outputs differs.
        """
        if _length(outputs) != count:
            raise BadReply(f"{count} inputs gave {_length(outputs)} outputs")
        return [self._read(_row(outputs, i)) for i in range(count)]

    def answer(self, result: Any) -> Prediction:
        """result: what a callable returned for one input."""
        return self._read(result)

    def _read(self, row: Any) -> Prediction:
        if type(row) is tuple:
            return self._pair(row)
        first = next(iter(row.values())) if isinstance(row, Mapping) else row
        z = first.tolist() if isinstance(first, np.ndarray) else first
        if not isinstance(z, list) or not z or len(z) > SMALL or isinstance(z[0], list):
            return self._large(row, first)
        if self.kind == "probabilities":
            z = [log(p) if p > 0 else -745.0 if p == 0 else NAN for p in z]  # log of the smallest float
        top = max(z)
        if self._custom is not None:
            confidence = self._scored(z if self._logits else row)
        else:
            confidence = self._row(z, top) if len(z) > 1 else NAN
        return Prediction(self._label(z.index(top), len(z)), confidence, row)

    def _large(self, row: Any, first: Any) -> Prediction:
        array = np.asarray(first)
        if not array.size and self.labels is not None:
            raise BadReply(f"0 outputs, but {len(self.labels)} labels: these outputs are not this model's")
        if array.ndim != 1 or array.dtype.kind not in "fiub" or not array.size:
            # not a classifier's outputs: the value is the raw output, and only a custom score applies
            return Prediction(row, self._scored(row) if self._custom is not None else None, row)
        if self._custom is not None and not self._logits:
            confidence = self._scored(row)
        else:
            with np.errstate(all="ignore"):
                z = np.log(array) if self.kind == "probabilities" else array
                confidence = float(self._array(z)) if self._custom is None else self._scored(z)
        return Prediction(self._label(int(array.argmax()), array.size), confidence, row)

    def _pair(self, row: tuple[Any, ...]) -> Prediction:
        if len(row) != 2:  # noqa: PLR2004 - a pair
            raise PolicyError(f"a callable gives (value, confidence) or logits, not a tuple of {len(row)}")
        value, sure = row
        if self._custom is not None:
            return Prediction(value, self._scored(row), row)
        if sure is None or isinstance(sure, int | float | np.number):
            return Prediction(value, None if sure is None else float(sure), row)
        return Prediction(value, quantile(sure), row)

    def _scored(self, outputs: Any) -> float | None:
        """The custom score. Where it fails there is no confidence, but there is an answer all the same."""
        assert self._custom is not None
        try:
            sure = contained(self._custom, outputs)
            return None if sure is None else float(sure)
        except Exception as e:  # noqa: BLE001 - it is logged, and said in the reason
            self.failures.log("the score", e)
            return Unscored(f"the score failed: {named(e)}")

    def _label(self, index: int, classes: int) -> Any:
        labels = self.labels
        if labels is None:
            return index
        if len(labels) != classes:
            raise BadReply(f"{classes} outputs, but {len(labels)} labels: these outputs are not this model's")
        return labels[index]


def _row(outputs: Any, i: int) -> Any:
    if type(outputs) is dict:
        return {name: array[i] for name, array in outputs.items()}
    return outputs[i]


def _length(outputs: Any) -> int:
    return min(len(array) for array in outputs.values()) if type(outputs) is dict else len(outputs)
