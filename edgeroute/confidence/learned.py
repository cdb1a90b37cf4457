"""The learned score: two logistic regressions applied to a model's outputs, and their JSON file.

Harm is that the cloud is right and the edge is not; win is the reverse. On the features of `features.py`

    score = (1 + P(win) - P(harm)) / 2     0..1; above 1/2 the edge is the better bet, below it the cloud
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.confidence.features import PER_CLASS, Array, Foreign, names, of_logits, of_row, text_features
from edgeroute.confidence.logistic import expit, sigmoid, with_constant
from edgeroute.confidence.scores import ROWS, SMALL, msp, quantile
from edgeroute.errors import BadReply, ModelError, ModelMissing, StoreError
from edgeroute.system import replace_file

VERSION = 1


class Learned:
    """A fitted score: outputs of one input -> how sure to leave it to the edge. What `fit`, `fit_text` and `auto` return.

    `name` is `learned` (0..1) or the fallback score, `msp` or `quantile`; `chosen_because` has the reason. Outputs with NaN
    score NaN. Calibrate its threshold on examples that it was not fitted to.

    Args:
        data: as `save` writes it.

    Raises:
        ModelError: the data is broken, or of another version.
    """

    of_logits = True
    """Takes logits: of a model that gives probabilities, their logarithms."""

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
        self._text, self._fitted = self.classes == 0, self.name == "learned"
        if not self._fitted:
            if self.name != fallback(self.classes):
                raise ValueError(f"there is no score {self.name!r} of {self.classes} classes")
            return
        self._foreign: Foreign | None = None
        if data["foreign"] is not None:
            self._foreign = Foreign(*(np.array(data["foreign"][part], np.float64) for part in Foreign._fields))
            whiten, means = self._foreign
            if whiten.shape != (self.classes, self.classes) or means.shape != (len(means) or 1, self.classes):
                raise ValueError(f"{means.shape} means and {whiten.shape} to whiten, for {self.classes} classes")
        columns = names(self.classes, self._foreign is not None)
        if data["features"] != columns:
            raise ValueError("its features are not those of this version")
        self._weights = np.array([data["harm"], data["win"]], np.float64)
        if self._weights.shape != (2, len(columns) + 1):
            raise ValueError(f"{self._weights.shape} weights for {len(columns)} features and a constant, twice")
        if not all(np.isfinite(part).all() for part in (self._weights, *(self._foreign or ()))):
            raise ValueError("a weight is not finite")
        plain = len(columns) + 1 - (self.classes if self.classes <= PER_CLASS else 0)
        (self._harm, self._harm_of), (self._win, self._win_of) = (
            (w[1:plain], [w[0] + v for v in w[plain:]] or w[:1]) for w in self._weights.tolist()
        )

    def __call__(self, outputs: Any) -> float:
        """outputs: logits [classes], or a text's token log-probabilities, alone or as `(text, log-probabilities)`.

        Raises:
            BadReply: the number of classes differs from that of the fit.
        """
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
        return 0.5 + 0.5 * (sigmoid(win) - sigmoid(harm))

    def many(self, outputs: Any) -> Array:
        """outputs: logits [n, classes], or n texts' token log-probabilities -> [n].

        Raises:
            BadReply: the number of classes differs from that of the fit.
        """
        if self._text:
            return np.array([self(one) for one in outputs], np.float64)
        logits = np.asarray(outputs, np.float64)
        if logits.shape != (len(logits), self.classes):
            raise BadReply(f"outputs {list(logits.shape)}, and the score was fitted to [n, {self.classes}]")
        with np.errstate(invalid="ignore"):
            if not self._fitted:
                return msp(logits)
            harm, win = expit(with_constant(of_logits(logits, self._foreign)) @ self._weights.T).T
        return 0.5 + 0.5 * (win - harm)  # type: ignore[no-any-return]

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
