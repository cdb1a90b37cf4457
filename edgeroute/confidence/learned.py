"""A score fitted to who was right: it is high where the edge can be trusted, or where the cloud would do no better.

Two logistic regressions on the features of `features.py`: harm, the cloud is right and the edge is not; win, the reverse.

    score = (1 + P(win) - P(harm)) / 2     0..1; above 1/2 the edge is the better bet, and below it the cloud

The logarithm of the odds of msp has no ridge to speak of, and all else has: a strong ridge leaves the order of msp
(Chow, 1970). For texts the 10 % quantile has its place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import exp, inf, isfinite, nan
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence import features
from edgeroute.confidence.features import TEXT, Array, Foreign, text_features
from edgeroute.confidence.scores import SMALL, msp, quantile
from edgeroute.errors import BadReply, ModelError, ModelMissing, PolicyError

VERSION = 1
RIDGE = (3.0, 30.0, 300.0)
FEW = 50
"""With fewer examples nothing is learned."""
RARE = 10
"""With fewer harms nothing is learned, and with fewer wins their share is taken to be the same everywhere."""
CLEARLY = 1.0
"""`auto` takes what it learned if the areas differ by so many standard errors."""
FREE = 0.01
"""The ridge on what has none: enough to keep it finite where the examples can be told apart without error."""


class Curve(NamedTuple):
    """Accuracy over the share deferred, where the lowest scores go to the cloud first and equal ones together."""

    deferred: Array
    """0..1, ascending; one point for each distinct score, and (0, the edge's accuracy) before them."""
    accuracy: Array
    """0..1, of edge and cloud together."""
    area: float
    """Under the curve: 0 if deferral were random, 1 if it were an oracle's; NaN if edge and cloud are right together."""


def deferral_curve(score: Array, edge_correct: Array, cloud_correct: Array) -> Curve:
    """score: [n], higher stays on the edge longer, NaN leaves first; the other two: [n], 0 or 1.

    Raises:
        PolicyError: the lengths differ, there are no examples, or something other than 0 and 1 is in the last two.
    """
    edge, cloud = _right(edge_correct, "edge_correct"), _right(cloud_correct, "cloud_correct")
    s = np.asarray(score, np.float64)
    if not s.shape == edge.shape == cloud.shape or not s.size:
        raise PolicyError(f"scores and answers do not match: {s.shape}, {edge.shape} and {cloud.shape}; expected [n], n >= 1")
    gain = cloud.astype(np.float64) - edge
    s = np.where(np.isnan(s), -inf, s)
    order = np.argsort(s, kind="stable")
    ends = np.append(np.flatnonzero(s[order][1:] != s[order][:-1]), s.size - 1)
    deferred = np.append(0, ends + 1) / s.size
    accuracy = edge.mean() + np.append(0, np.cumsum(gain[order])[ends]) / s.size
    best = float(_contributions(-gain, gain).sum())
    return Curve(deferred, accuracy, float(_contributions(s, gain).sum()) / best if best else nan)


def _contributions(score: Array, gain: Array) -> Array:
    """What each example adds to the area between the curve and the straight line, times n; equal scores have the mean rank."""
    _, at, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return gain * (0.5 - middle[at] / score.size)  # type: ignore[no-any-return]


class Learned:
    """A score: outputs of one input -> how sure it is to leave them to the edge.

    What `fit`, `fit_text` and `auto` give. It is the learned score, 0..1, or msp (texts: the 10 % quantile) where nothing
    could be learned: `name` and `chosen_because` tell. Logits with NaN have the score NaN.

    Args:
        data: what `save` writes.

    Raises:
        ModelError: it is not that, or of another version.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        if data.get("version") != VERSION:
            raise ModelError(f"the score is of version {data.get('version')}, and this edgeroute knows version {VERSION}")
        try:
            self.name, self.chosen_because = str(data["name"]), str(data["chosen_because"])
            self.classes = int(data["classes"])
            self._read(data)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise ModelError(f"the score is broken: {e!r}") from e
        self.data = dict(data)

    def _read(self, data: Mapping[str, Any]) -> None:
        """Takes the weights apart: for `many` one column of each regression, for one row the one-hot part on its own."""
        self.text, self._learned = self.classes == 0, self.name == "learned"
        if self.name not in {"learned", "quantile" if self.text else "msp"} or self.classes == 1 or self.classes < 0:
            raise ValueError(f"a score {self.name!r} of {self.classes} classes")
        self._foreign = None
        if foreign := data["foreign"]:
            self._foreign = Foreign(np.array(foreign["whiten"], np.float64), np.array(foreign["means"], np.float64))
            whiten, means = self._foreign
            if whiten.shape != (self.classes, self.classes) or means.shape[1:] != (self.classes,) or not len(means):
                raise ValueError(f"means {means.shape} and whiten {whiten.shape} for {self.classes} classes")
        named = list(TEXT) if self.text else features.names(self.classes, self._foreign is not None)
        if not self._learned:
            named = []
        if data["features"] != named:
            raise ValueError("the features are not those of this version")
        self._weights = np.array([data["harm"], data["win"]], np.float64)
        if self._weights.shape != (2, len(named) + self._learned) or not all(np.isfinite(a).all() for a in self._numbers()):
            raise ValueError(f"{self._weights.shape} weights for {len(named)} features, or some are not finite")
        split = len(named) + 1 - self.classes
        harm, win = self._weights.tolist()
        self._harm, self._harm_of = harm[1:split], [harm[0] + w for w in harm[split:]] if self._learned else []
        self._win, self._win_of = win[1:split], [win[0] + w for w in win[split:]] if self._learned else []
        if self.text and self._learned:
            self._harm_of, self._win_of = harm[:1], win[:1]

    def _numbers(self) -> list[Array]:
        return [self._weights, *(self._foreign or ())]

    def __call__(self, outputs: Any) -> float:
        """outputs: logits [C], or the token log-probabilities of a text, alone or as `(text, log-probabilities)`.

        Raises:
            BadReply: there are not as many classes as when it was fitted.
        """
        if self.text:
            return self._of_text(outputs[1] if type(outputs) is tuple else outputs)
        first = next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs
        row = first.tolist() if isinstance(first, np.ndarray) else list(first)
        if len(row) != self.classes:
            raise BadReply(f"{len(row)} outputs, and the score was fitted on {self.classes}: these are not this model's")
        if not self._learned or self.classes > SMALL:
            return float(self.many([row])[0])
        vector, k = features.of_row(row, self._foreign)
        harm = self._harm_of[k] + sum(map(mul, self._harm, vector))
        win = self._win_of[k] + sum(map(mul, self._win, vector))
        return 0.5 + 0.5 * (_sigmoid(win) - _sigmoid(harm))

    def many(self, outputs: Any) -> Array:
        """outputs: logits [n, C], or n texts' token log-probabilities -> [n].

        Raises:
            BadReply: there are not as many classes as when it was fitted.
        """
        if self.text:
            return np.array([self._of_text(one) for one in outputs], np.float64)
        logits = np.asarray(outputs, np.float64)
        if logits.ndim != 2 or logits.shape[1] != self.classes:  # noqa: PLR2004 - [n, C]
            raise BadReply(f"outputs {logits.shape}, and the score was fitted on [n, {self.classes}]")
        with np.errstate(all="ignore"):
            if not self._learned:
                return msp(logits)
            harm, win = _expit(_with_ones(features.of_logits(logits, self._foreign)) @ self._weights.T).T
        return 0.5 + 0.5 * (win - harm)  # type: ignore[no-any-return]

    def _of_text(self, logprobs: Any) -> float:
        if not self._learned:
            return quantile(logprobs)
        vector = text_features(logprobs)
        harm = self._harm_of[0] + sum(map(mul, self._harm, vector))
        win = self._win_of[0] + sum(map(mul, self._win, vector))
        return 0.5 + 0.5 * (_sigmoid(win) - _sigmoid(harm))
