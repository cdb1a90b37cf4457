"""The learned score: two logistic regressions applied to a model's outputs, and their JSON file.

Harm is that the cloud is right and the edge is not; win is the reverse. On the features of `features.py`

    score = (1 + P(win) - P(harm)) / 2     0..1; above 1/2 the edge is the better bet, below it the cloud
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from math import isfinite, nan
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.confidence.blend import Blend
from edgeroute.confidence.features import PER_CLASS, Array, Foreign, names, of_logits, of_row, text_features
from edgeroute.confidence.logistic import expit, sigmoid, with_constant
from edgeroute.confidence.scores import ROWS, SMALL, msp, quantile
from edgeroute.confidence.tables import row_of
from edgeroute.errors import BadReply, ModelError, ModelMissing, StoreError
from edgeroute.system import replace_file

VERSION = 1


class Learned:
    """A fitted score: outputs of one input -> how sure to leave it to the edge. What `fit`, `fit_text` and `auto` return.

    `name` is `learned` (0..1) or the fallback score: `msp`, `quantile`, or `base` of a table; `chosen_because` has the reason.
    Outputs with NaN score NaN, and features with inf too. Calibrate its threshold on examples that it was not fitted to.

    Args:
        data: as `save` writes it.

    Attributes:
        of_logits: takes logits: of a model that gives probabilities, their logarithms. Else what the model gives.

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
        """Validates and unpacks the weights: whole for `many`; for one row the one-hot part apart, with the constant in it."""
        if type(self.classes) is not int or self.classes < 0 or self.classes == 1:
            raise ValueError(f"{self.classes!r} classes")
        self._table = None if "columns" not in data else (list(data["columns"]), [int(width) for width in data["widths"]])
        self._base = data.get("base")
        self._text, self._fitted = self.classes == 0 and self._table is None, self.name == "learned"
        self.of_logits = self.classes > 0
        if not self._fitted:
            if self.name != (fallback(self.classes) if self._table is None else "base"):
                raise ValueError(f"there is no score {self.name!r} of {self.classes} classes")
            return
        self._blend = Blend(data["blend"]) if "blend" in data else None
        self._foreign: Foreign | None = None
        if data["foreign"] is not None:
            self._foreign = Foreign(*(np.array(data["foreign"][part], np.float64) for part in Foreign._fields))
            whiten, means = self._foreign
            if whiten.shape != (self.classes, self.classes) or means.shape != (len(means) or 1, self.classes):
                raise ValueError(f"{means.shape} means and {whiten.shape} to whiten, for {self.classes} classes")
        columns: Any = names(self.classes, self._foreign is not None)
        if self._table is not None:
            columns = sum(self._table[1]) + (self._base is None)
        if data["features"] != columns:
            raise ValueError("its features are not those of this version")
        count = columns if isinstance(columns, int) else len(columns)
        self._weights = np.array([data["harm"], data["win"]], np.float64)
        if self._weights.shape != (2, count + 1):
            raise ValueError(f"{self._weights.shape} weights for {count} features and a constant, twice")
        if not all(np.isfinite(part).all() for part in (self._weights, *(self._foreign or ()))):
            raise ValueError("a weight is not finite")
        plain = count + 1 - (self.classes if self.classes <= PER_CLASS else 0)
        (self._harm, self._harm_of), (self._win, self._win_of) = (
            (w[1:plain], [w[0] + v for v in w[plain:]] or w[:1]) for w in self._weights.tolist()
        )

    def __call__(self, outputs: Any) -> float:
        """outputs: logits [classes]; or, alone or in `(value, these)`, a text's token log-probabilities or a mapping of features.

        Raises:
            BadReply: the number of classes differs from that of the fit, or a feature is missing.
        """
        if self._table is not None:
            return self._of_features(outputs[1] if type(outputs) is tuple else outputs)
        if self._text:
            logprobs = outputs[1] if type(outputs) is tuple else outputs
            return self._weigh(text_features(logprobs), 0) if self._fitted else quantile(logprobs)
        row = next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs
        if isinstance(row, np.ndarray):
            row = row.tolist()
        if len(row) != self.classes:
            raise BadReply(f"{len(row)} outputs, and the score was fitted to {self.classes}: these are not this model's")
        if self.classes > SMALL:
            return float(self.many([row])[0])
        return self._weigh(*of_row(row, self._foreign)) if self._fitted else ROWS["msp"](row, max(row))

    def _weigh(self, vector: list[float], predicted: int) -> float:
        harm = self._harm_of[predicted] + sum(map(mul, self._harm, vector))
        win = self._win_of[predicted] + sum(map(mul, self._win, vector))
        better = sigmoid(win) - sigmoid(harm)
        return 0.5 + 0.5 * better if self._blend is None else self._blend.one(vector[0], better)

    def _of_features(self, features: Any) -> float:
        assert self._table is not None
        row = row_of(features, *self._table)
        if not self._fitted:
            return 0.5 if self._base is None else row[0] if isfinite(row[0]) else nan
        if not all(map(isfinite, row)):  # no example of the fit was like it
            return nan
        return self._weigh(row if self._base is not None else [0.0, *row], 0)

    def many(self, outputs: Any) -> Array:
        """outputs: logits [n, classes], n texts' token log-probabilities, or a table as it was fitted to -> [n].

        Raises:
            BadReply: the number of classes differs from that of the fit, or a feature is missing.
        """
        if self._table is not None:
            names_ = self._table[0]
            if isinstance(outputs, Mapping):
                missing = [name for name in names_ if name not in outputs]
                if missing:
                    raise BadReply(f"the score needs a feature {missing[0]!r} that it was fitted to")
                outputs = [dict(zip(names_, row, strict=True)) for row in zip(*(outputs[name] for name in names_), strict=True)]
            return np.array([self._of_features(one) for one in outputs], np.float64)
        if self._text:
            return np.array([self(one) for one in outputs], np.float64)
        logits = np.asarray(outputs, np.float64)
        if logits.shape != (len(logits), self.classes):
            raise BadReply(f"outputs {list(logits.shape)}, and the score was fitted to [n, {self.classes}]")
        with np.errstate(invalid="ignore"):
            if not self._fitted:
                return msp(logits)
            features = of_logits(logits, self._foreign)
            harm, win = expit(with_constant(features) @ self._weights.T).T
            better: Array = win - harm
            return 0.5 + 0.5 * better if self._blend is None else self._blend.many(features[:, 0], better)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what `save` writes, hex."""
        return hashlib.sha256(_json(self.data).encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        """Writes JSON atomically.

        Raises:
            StoreError: the file cannot be written.
        """
        try:
            replace_file(Path(path), _json(self.data))
        except OSError as e:
            raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e

    @classmethod
    def load(cls, path: Path | str) -> Learned:
        """Reads what `save` wrote.

        Raises:
            ModelMissing: there is no such file.
            ModelError: the file cannot be read, is broken, or is of another version.
        """
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError as e:
            raise ModelMissing(f"there is no score at {path}") from e
        except OSError as e:
            raise ModelError(f"{path} cannot be read: {e.strerror or e}") from e
        except (ValueError, RecursionError) as e:
            raise ModelError(f"{path} is broken: {e}") from e
        except ModelError as e:
            raise ModelError(f"{path}: {e}") from e


def fallback(classes: int) -> str:
    """The name of the score that is used where nothing is learned; no classes: of texts."""
    return "msp" if classes else "quantile"


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
