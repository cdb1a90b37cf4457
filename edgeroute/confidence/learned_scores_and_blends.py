"""Learned score: two logistic regressions applied to a model's outputs, or a ridge regression of prompts; and their JSON file.

Harm is that the cloud is right and the edge is not; win is the reverse. On the features of `learned_score_features.py`

    score = (1 + P(win) - P(harm)) / 2     0..1; above 1/2 the edge is the better bet, below it the cloud

Of `prompt_features` with hashed words one ridge regression fits P(harm) - P(win), the gain of asking the cloud. Also here: the
blend of two scores by their ranks, and features that the caller gives (named tables).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import exp, isfinite, nan
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

import edgeroute.confidence.learned_score_features as signals
from edgeroute.confidence.prompt_features_and_word_weights import HASHED, WordWeights
from edgeroute.confidence.scores import ROWS, SMALL, msp, quantile
from edgeroute.errors import BadReply, ModelError, ModelMissing
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.untrusted_files import named_errors, read_json

# Blend of two scores: each becomes its rank among the examples of the fit, and the ranks are averaged with weights.

# Part of a rank that separates values where the examples had none between: beyond the lowest and the highest, above all.
BEYOND = 1e-3


class Ranks:
    """Map from a score to its rank among the examples, 0..1, by quantiles; strictly increasing."""

    def __init__(self, knots: list[float]) -> None:
        self._knots = [float(v) for v in knots]
        if len(knots) < 2 or not np.isfinite(self._knots).all() or sorted(self._knots) != self._knots:  # noqa: PLR2004 - two ends
            raise ValueError("quantiles that are not ascending")
        self._last = len(knots) - 1
        self._middle, self._scale = self._knots[self._last // 2], max(self._knots[-1] - self._knots[0], 1e-9)

    def rank_of(self, value: float) -> float:
        """Return the rank of a value, interpolated between the quantiles.

        A value outside them still ranks a little by its distance.
        """
        knots, i = self._knots, bisect_right(self._knots, value) - 1
        if i < 0 or i >= self._last:
            rank = 0.0 if i < 0 else 1.0
        else:
            rank = (i + (value - knots[i]) / (knots[i + 1] - knots[i])) / self._last
        off = (value - self._middle) / self._scale
        return rank * (1 - BEYOND) + BEYOND * (0.5 + 0.5 * off / (1 + abs(off)))


class Blend:
    """Weighted average of the ranks of two scores.

    Args:
        data: `weight` of the fit, 0..1, and the quantiles of `base` and `fit`.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._weight = float(data["weight"])
        if not 0 <= self._weight <= 1:
            raise ValueError(f"a weight of {self._weight}")
        self._base, self._fit = Ranks(data["base"]), Ranks(data["fit"])

    def score_one(self, base: float, fit: float) -> float:
        """Return the blended score of one input, 0..1; NaN if either score is NaN."""
        if base != base or fit != fit:  # noqa: PLR0124 - NaN
            return float("nan")
        return self._base.rank_of(base) * (1 - self._weight) + self._fit.rank_of(fit) * self._weight

    def score_many(self, base: signals.Array, fit: signals.Array) -> signals.Array:
        """Return the blended scores of inputs, [n] -> [n]."""
        return np.array([self.score_one(*pair) for pair in zip(base.tolist(), fit.tolist(), strict=True)], np.float64)


def with_constant(x: signals.Array) -> signals.Array:
    """Return x: [n, k] with a first column of ones for the intercept, [n, 1 + k]."""
    return np.concatenate([np.ones((len(x), 1)), x], 1)


def expit(x: signals.Array) -> signals.Array:
    """Return the logistic function of each element."""
    return 0.5 + 0.5 * np.tanh(x / 2)


def sigmoid(x: float) -> float:
    """Return the logistic function of one number, without numpy."""
    return 0.0 if x < -700 else 1 / (1 + exp(-x))  # noqa: PLR2004 - where exp would overflow


# Features that the caller gives a learned score: named tables.
#
# A table is a mapping from name to numbers [n] or [n, d] (an embedding), or a list with a mapping from name to number, or to a
# row of numbers, for each example. The features of one input are such a mapping.


def row_of(features: Any, names: Sequence[str], widths: Sequence[int]) -> list[float]:
    """Return one input's features as numbers, in the order of the fit.

    Raises:
        BadReply: a feature is missing, or has another number of columns than in the fit.
    """
    row = list[float]()
    for name, width in zip(names, widths, strict=True):
        try:
            value = features[name]
            numbers = [float(value)] if width == 1 and np.ndim(value) == 0 else [float(v) for v in value]
        except (KeyError, OverflowError, TypeError, ValueError) as e:
            raise BadReply(f"the score needs a feature {name!r} that it was fitted to: {type(e).__name__}") from e
        if len(numbers) != width:
            raise BadReply(f"the feature {name!r} has {len(numbers)} numbers, and the score was fitted to {width}")
        row += numbers
    return row


VERSION = 1


class Learned:
    """Fitted score: a function of one input's outputs, higher where the edge should answer.

    `fit`, `fit_text` and `auto` return it. `name` is `learned` (0..1) or the fallback score: `msp`, `quantile`, or `base` of a
    table; `chosen_because` has the reason. Outputs with NaN score NaN, and features with inf too. Calibrate its threshold on
    examples that it was not fitted to.

    Args:
        data: contents of a file that `save` wrote.

    Attributes:
        of_logits: True if the score takes logits: for a model that gives probabilities, their logarithms. False: it takes the
            model's outputs as they are.

    Raises:
        ModelError: the data is broken, or of another version.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        try:
            if data["version"] != VERSION:
                raise ModelError(f"the score is of version {data['version']}, and this edgeroute knows version {VERSION}")
            self.name, self.chosen_because = str(data["name"]), str(data["chosen_because"])
            self.classes: int = data["classes"]
            self._read(data)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            raise ModelError(f"the score is broken: {type(e).__name__}: {e}") from e
        self.data = dict(data)

    def _read(self, data: Mapping[str, Any]) -> None:
        """Validate the weights and store them: whole for `many`; for one row, the one-hot part apart, with the constant added.

        Raises ValueError, KeyError or TypeError for weights that are damaged or of another version.
        """
        if type(self.classes) is not int or self.classes < 0 or self.classes == 1:
            raise ValueError(f"{self.classes!r} classes")
        self._table = None if "columns" not in data else (data["columns"], data["widths"])
        if self._table is not None and (
            [type(part) for part in self._table] != [list, list]
            or not all(type(name) is str and type(width) is int and width > 0 for name, width in zip(*self._table, strict=True))
            or (data.get("base") is not None and not self._table[0])
        ):
            raise ValueError("its columns are no names with a width each")
        self._base, self._words = data.get("base"), WordWeights(data["words"]) if "words" in data else None
        self._text, self._fitted = self.classes == 0 and self._table is None, self.name == "learned"
        self.of_logits = self.classes > 0
        if not self._fitted:
            if self.name != (fallback(self.classes) if self._table is None else "base"):
                raise ValueError(f"there is no score {self.name!r} of {self.classes} classes")
            return
        self._blend = Blend(data["blend"]) if "blend" in data else None
        self._foreign: signals.Foreign | None = None
        if data["foreign"] is not None:
            self._foreign = signals.Foreign(*(np.array(data["foreign"][part], np.float64) for part in signals.Foreign._fields))
            whiten, means = self._foreign
            if whiten.shape != (self.classes, self.classes) or means.shape != (len(means) or 1, self.classes):
                raise ValueError(f"{means.shape} means and {whiten.shape} to whiten, for {self.classes} classes")
        columns: Any = signals.feature_names(self.classes, self._foreign is not None)
        if self._table is not None:
            columns = sum(self._table[1]) + (self._base is None)
        if data["features"] != columns:
            raise ValueError("its features are not those of this version")
        count = columns if isinstance(columns, int) else len(columns)
        outcomes = ["harm", "win"] if self._words is None else ["gain"]
        self._weights = np.array([data[outcome] for outcome in outcomes], np.float64)
        if self._weights.shape != (len(outcomes), count + 1):
            raise ValueError(f"{self._weights.shape} weights for {count} features and a constant, for {' and '.join(outcomes)}")
        if not all(np.isfinite(part).all() for part in (self._weights, *(self._foreign or ()))):
            raise ValueError("a weight is not finite")
        self._gain: list[float] = self._weights[0].tolist()
        if self._words is not None:
            return
        plain = count + 1 - (self.classes if self.classes <= signals.PER_CLASS else 0)
        (self._harm, self._harm_of), (self._win, self._win_of) = (
            (w[1:plain], [w[0] + v for v in w[plain:]] or w[:1]) for w in self._weights.tolist()
        )

    def __call__(self, outputs: Any) -> float:
        """Return the score of one input.

        outputs: logits [classes]; or, alone or in `(value, these)`, a text's token log-probabilities or a mapping of features.
        NaN for features that are not finite. A fit that found nothing better gives the plain score.

        Raises:
            BadReply: the number of classes differs from that of the fit, or a feature is missing.
        """
        if self._table is not None:
            return self._of_features(outputs[1] if type(outputs) is tuple else outputs)
        if self._text:
            logprobs = outputs[1] if type(outputs) is tuple else outputs
            return self._weigh(signals.text_features(logprobs), 0) if self._fitted else quantile(logprobs)
        row = next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs
        if isinstance(row, np.ndarray):
            row = row.tolist()
        if len(row) != self.classes:
            raise BadReply(f"{len(row)} outputs, and the score was fitted to {self.classes}: these are not this model's")
        if self.classes > SMALL:
            return float(self.many([row])[0])
        return self._weigh(*signals.of_row(row, self._foreign)) if self._fitted else ROWS["msp"](row, max(row))

    def _weigh(self, vector: list[float], predicted: int) -> float:
        """Return the score by the regressions' P(win) - P(harm); a blend counts the base score, `vector[0]`, too."""
        harm = self._harm_of[predicted] + sum(map(mul, self._harm, vector))
        win = self._win_of[predicted] + sum(map(mul, self._win, vector))
        return self._score_of(vector[0], sigmoid(win) - sigmoid(harm))

    def _score_of(self, base: float, better: float) -> float:
        """Return the score for a base score and P(win) - P(harm)."""
        return min(max(0.5 + 0.5 * better, 0.0), 1.0) if self._blend is None else self._blend.score_one(base, better)

    def _of_features(self, features: Any) -> float:
        """Return the score of one input's named features.

        NaN if a feature is not finite; without a fit the base score, or 0.5.
        """
        assert self._table is not None
        row = row_of(features, *self._table)
        if not self._fitted:
            return 0.5 if self._base is None else row[0] if isfinite(row[0]) else nan
        if not all(map(isfinite, row)):  # no example of the fit was like it
            return nan
        if self._base is None:
            row.insert(0, 0.0)
        if self._words is None:
            return self._weigh(row, 0)
        gain = self._gain[0] + sum(map(mul, self._gain[1:], row)) + self._words.weigh(features.get(HASHED))
        return self._score_of(row[0], -gain)

    def many(self, outputs: Any) -> signals.Array:
        """Return the scores of inputs, [n]: the learned one, or if nothing was learned that of `name`, such as `msp`.

        outputs: logits [n, classes], n texts' token log-probabilities, or a table like the one of the fit.

        Raises:
            BadReply: the number of classes differs from that of the fit, or a feature is missing.
        """
        if self._table is not None:
            names_ = self._table[0] + ([HASHED] if self._fitted and self._words is not None else [])
            if isinstance(outputs, Mapping):
                missing = [name for name in names_ if name not in outputs]
                if missing:
                    raise BadReply(f"the score needs a feature {missing[0]!r} that it was fitted to")
                outputs = [dict(zip(names_, row, strict=True)) for row in zip(*(outputs[name] for name in names_), strict=True)]
            return np.array([self._of_features(example) for example in outputs], np.float64)
        if self._text:
            return np.array([self(example) for example in outputs], np.float64)
        logits = np.asarray(outputs, np.float64)
        if logits.shape != (len(logits), self.classes):
            raise BadReply(f"outputs {list(logits.shape)}, and the score was fitted to [n, {self.classes}]")
        with np.errstate(invalid="ignore"):
            if not self._fitted:
                return msp(logits)
            features = signals.logit_features(logits, self._foreign)
            harm, win = expit(with_constant(features) @ self._weights.T).T
            better: signals.Array = win - harm
            return 0.5 + 0.5 * better if self._blend is None else self._blend.score_many(features[:, 0], better)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file that `save` writes, hex."""
        return hashlib.sha256(_json(self.data).encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the score as JSON, replacing an existing file atomically.

        Raises:
            StoreError: the file cannot be written.
        """
        replace_file(Path(path), _json(self.data))

    @classmethod
    def load(cls, path: Path | str) -> Learned:
        """Read a file that `save` wrote.

        Raises:
            ModelMissing: there is no such file.
            ModelError: the file cannot be read, is broken, or is of another version.
        """
        with named_errors(path, ModelMissing(f"there is no score at {path}"), ModelError):
            data = read_json(path)
        try:
            return cls(data)
        except ModelError as e:
            raise ModelError(f"{path}: {e}") from e


def fallback(classes: int) -> str:
    """Return the name of the score that is used if nothing is learned: for classes, or for texts (0 classes)."""
    return "msp" if classes else "quantile"


def _json(data: Mapping[str, Any]) -> str:
    """Return data as compact JSON with sorted keys."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
