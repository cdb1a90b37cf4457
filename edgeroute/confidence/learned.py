"""A score fitted to who was right: high where the edge can be trusted, and where the cloud would do no better.

Two logistic regressions on the features of `features.py`: harm, the cloud is right and the edge is not; win, the reverse.

    score = (1 + P(win) - P(harm)) / 2     0..1; above 1/2 the edge is the better bet, below it the cloud

The first feature, the log odds of msp, has no ridge to speak of and all others have, so the less there is to learn, the
nearer the order comes to that of msp (Chow, 1970). For texts the 10 % quantile has its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import exp, inf, log, nan
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence import features
from edgeroute.confidence.features import PER_CLASS, TEXT, Array, Foreign, text_features
from edgeroute.confidence.scores import ROWS, SMALL, msp, quantile
from edgeroute.errors import BadReply, ModelError, ModelMissing, PolicyError, StoreError

VERSION = 1
RIDGE = (3.0, 30.0, 300.0)
FEW = 50
"""With fewer examples nothing is learned."""
RARE = 20
"""With fewer harms, or wins, their share is taken to be the same everywhere; with fewer of both nothing is learned."""
CLEARLY = 1.645
"""So many standard errors `auto` wants what it learned to be better, by the area and by the likelihood: one-sided tests at 5 %.

With one standard error it took in 3 to 10 % of draws what was worse, by .05 and more of area where harms and wins are few.
"""
FREE = 0.01
"""The ridge of what has none to speak of: it keeps finite what separable examples would let grow for ever."""
NO_SLOPES = 1e9
"""The ridge at which only the first feature is left."""


class Curve(NamedTuple):
    """Accuracy over the share deferred; the lowest scores go to the cloud first, equal ones together."""

    deferred: Array
    """0..1, ascending: 0, then a point for each distinct score."""
    accuracy: Array
    """0..1, of edge and cloud together."""
    area: float
    """Over a random choice's curve, as a share of an oracle's: 0 random, 1 oracle; NaN where there is nothing to choose."""


def deferral_curve(score: Array, edge_correct: Array, cloud_correct: Array) -> Curve:
    """score: [n], higher stays on the edge longer and NaN leaves first; the others: [n], 0 or 1.

    Raises:
        PolicyError: there are no examples, the lengths differ, or one of the last two holds something other than 0 and 1.
    """
    s = np.asarray(score, np.float64)
    edge, gain = _answers(edge_correct, cloud_correct, s.shape[0] if s.ndim == 1 else -1)
    s = np.where(np.isnan(s), -inf, s)
    order = np.argsort(s, kind="stable")
    ends = np.append(np.flatnonzero(s[order][1:] != s[order][:-1]), s.size - 1)
    accuracy = edge.mean() + np.append(0, np.cumsum(gain[order])[ends]) / s.size
    return Curve(np.append(0, ends + 1) / s.size, accuracy, _share(_parts(s, gain), gain))


def _parts(score: Array, gain: Array) -> Array:
    """What each example adds to n times the area over the random line; equal scores have the rank in their middle."""
    _, at, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return gain * (0.5 - middle[at] / score.size)


def _share(parts: Array, gain: Array) -> float:
    """The area as a share of an oracle's, which defers gains first and losses last."""
    oracle = float(_parts(-gain, gain).sum())
    return float(parts.sum()) / oracle if oracle > 0 else nan


def agreement(logits: Array, *, votes: bool = False) -> Array:
    """How far several edge models agree, 0..1; NaN if any logit is. Logits: [models, ..., classes] -> [...].

    Args:
        logits: of at least one model.
        votes: one minus the entropy of the predicted classes, as a share of the most it can be: ties are many, since it
            looks at nothing else. Else the largest of the models' mean softmax, which falls with disagreement and with doubt.
    """
    z = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if not votes:
        return p.mean(0).max(-1)  # type: ignore[no-any-return]
    share = np.eye(z.shape[-1])[z.argmax(-1)].mean(0)
    most = log(max(2, min(len(z), z.shape[-1])))
    disagreement = -(share * np.log(np.where(share == 0, 1.0, share))).sum(-1) / most
    return np.where(np.isnan(p).any((0, -1)), nan, 1 - disagreement)


class Learned:
    """A score: outputs of one input -> how sure to leave it to the edge. What `fit`, `fit_text` and `auto` give.

    Its `name` is `learned`, 0..1, or that of the score it fell back to, `msp` or `quantile`; `chosen_because` has the reason.
    Outputs with NaN have the score NaN. The threshold is `calibrate`'s to find, on examples that this was not fitted to.

    Args:
        data: as `save` writes it.

    Raises:
        ModelError: it is broken, or of another version.
    """

    of_logits = True
    """A model that gives probabilities is read as if it gave their logarithms."""

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
        """Takes the weights apart: whole for `many`; for one row the one-hot part on its own, with the constant in it."""
        if type(self.classes) is not int or self.classes < 0 or self.classes == 1:
            raise ValueError(f"{self.classes!r} classes")
        self._text, self._fitted = self.classes == 0, self.name == "learned"
        if not self._fitted:
            if self.name != _fallback(self.classes):
                raise ValueError(f"there is no score {self.name!r} of {self.classes} classes")
            return
        self._foreign: Foreign | None = None
        if data["foreign"] is not None:
            self._foreign = Foreign(*(np.array(data["foreign"][part], np.float64) for part in Foreign._fields))
            whiten, means = self._foreign
            if whiten.shape != (self.classes, self.classes) or means.shape != (len(means) or 1, self.classes):
                raise ValueError(f"{means.shape} means and {whiten.shape} to whiten, for {self.classes} classes")
        names = _names(self.classes, self._foreign)
        if data["features"] != names:
            raise ValueError("its features are not those of this version")
        self._weights = np.array([data["harm"], data["win"]], np.float64)
        if self._weights.shape != (2, len(names) + 1):
            raise ValueError(f"{self._weights.shape} weights for {len(names)} features and a constant, twice")
        if not all(np.isfinite(part).all() for part in (self._weights, *(self._foreign or ()))):
            raise ValueError("a weight is not finite")
        plain = len(names) + 1 - (self.classes if self.classes <= PER_CLASS else 0)
        (self._harm, self._harm_of), (self._win, self._win_of) = (
            (w[1:plain], [w[0] + v for v in w[plain:]] or w[:1]) for w in self._weights.tolist()
        )

    def __call__(self, outputs: Any) -> float:
        """outputs: logits [classes], or a text's token log-probabilities, alone or as `(text, log-probabilities)`.

        Raises:
            BadReply: there are not as many classes as when it was fitted.
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
        return self._weigh(*features.of_row(row, self._foreign)) if self._fitted else ROWS["msp"](row, max(row))

    def _weigh(self, vector: list[float], predicted: int) -> float:
        harm = self._harm_of[predicted] + sum(map(mul, self._harm, vector))
        win = self._win_of[predicted] + sum(map(mul, self._win, vector))
        return 0.5 + 0.5 * (_sigmoid(win) - _sigmoid(harm))

    def many(self, outputs: Any) -> Array:
        """outputs: logits [n, classes], or n texts' token log-probabilities -> [n].

        Raises:
            BadReply: there are not as many classes as when it was fitted.
        """
        if self._text:
            return np.array([self(one) for one in outputs], np.float64)
        logits = np.asarray(outputs, np.float64)
        if logits.shape != (len(logits), self.classes):
            raise BadReply(f"outputs {list(logits.shape)}, and the score was fitted to [n, {self.classes}]")
        with np.errstate(invalid="ignore"):
            if not self._fitted:
                return msp(logits)
            harm, win = _expit(_with_constant(features.of_logits(logits, self._foreign)) @ self._weights.T).T
        return 0.5 + 0.5 * (win - harm)  # type: ignore[no-any-return]

    @cached_property
    def fingerprint(self) -> str:
        """Of all that `save` writes: sha256, hex."""
        return hashlib.sha256(_json(self.data).encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        """Writes JSON, whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(_json(self.data), encoding="utf-8")
            part.replace(path)
        except OSError as e:
            raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e

    @classmethod
    def load(cls, path: Path | str) -> Learned:
        """What `save` wrote.

        Raises:
            ModelMissing: there is no such file.
            ModelError: it cannot be read, is broken, or is of another version.
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


def fit(
    logits: Array,
    edge_correct: Array,
    cloud_correct: Array,
    *,
    ridge: Sequence[float] = RIDGE,
    folds: int = 5,
    seed: int = 0,
    ood: bool = False,
) -> Learned:
    """Fits the score to examples; where there is nothing to learn from, it is msp, and says why.

    Args:
        logits: of the edge model, [n, classes]; rows with NaN or inf are left out.
        edge_correct: [n], 0 or 1.
        cloud_correct: [n], 0 or 1.
        ridge: of these the one is taken under which examples that were left out are likeliest.
        folds: so many times a share of the examples is left out.
        seed: of the division into folds; the same seed gives the same score.
        ood: also look at energy and distance, which tell foreign inputs. It takes longer, and a constant that is
            added to all logits then matters.

    Raises:
        PolicyError: an argument is not of that form.
    """
    return _fit(_examples(logits, edge_correct, cloud_correct, ood), ridge, folds, seed, choose=False)


def auto(
    logits: Array,
    edge_correct: Array,
    cloud_correct: Array,
    *,
    ridge: Sequence[float] = RIDGE,
    folds: int = 5,
    seed: int = 0,
    ood: bool = False,
) -> Learned:
    """As `fit`, but msp unless what was learned is clearly better on the examples left out.

    Clearly: by a test at 5 % each, the area under the deferral curve is larger, and harms and wins are likelier than under
    msp alone. Few examples differ between edge and cloud, so either by itself is easily mistaken.
    """
    return _fit(_examples(logits, edge_correct, cloud_correct, ood), ridge, folds, seed, choose=True)


def fit_text(
    token_logprobs: Sequence[Sequence[float]],
    edge_correct: Array,
    cloud_correct: Array,
    *,
    ridge: Sequence[float] = RIDGE,
    folds: int = 5,
    seed: int = 0,
) -> Learned:
    """As `fit`, from texts' token log-probabilities; what it falls back to is their 10 % quantile."""
    table = np.array([text_features(one) for one in token_logprobs], np.float64).reshape(-1, len(TEXT))
    edge, gain = _answers(edge_correct, cloud_correct, len(table))
    return _fit(_usable(_Examples(0, None, table, edge, gain), table), ridge, folds, seed, choose=False)


class _Examples(NamedTuple):
    classes: int
    """0: of texts."""
    logits: Array | None
    """None: the features are `table`, whichever examples are trained on."""
    table: Array
    """The features, [n, k]."""
    edge: Array
    gain: Array
    """1 harm, -1 win, 0 neither."""
    left_out: int = 0

    def fold(self, train: Array) -> tuple[Array, Foreign | None]:
        """The features of all, as `train` has it that logits lie."""
        if self.logits is None:
            return self.table, None
        foreign = Foreign.fit(self.logits[train], self.edge[train])
        return features.of_logits(self.logits, foreign), foreign


def _examples(logits: Array, edge_correct: Array, cloud_correct: Array, ood: bool) -> _Examples:
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or z.shape[1] < 2:  # noqa: PLR2004 - two axes, two classes
        raise PolicyError(f"logits {list(z.shape)}: expected [n, classes], and at least two classes")
    edge, gain = _answers(edge_correct, cloud_correct, len(z))
    table = features.of_logits(z)
    return _usable(_Examples(z.shape[1], z if ood else None, table, edge, gain), table)


def _usable(given: _Examples, table: Array) -> _Examples:
    keep = np.isfinite(table).all(1)
    logits = None if given.logits is None else given.logits[keep]
    return _Examples(given.classes, logits, table[keep], given.edge[keep], given.gain[keep], int((~keep).sum()))


def _answers(edge_correct: Array, cloud_correct: Array, n: int) -> tuple[Array, Array]:
    """Whether the edge is right, [n], and what deferring gains: 1 harm, -1 win, else 0."""
    edge, cloud = np.asarray(edge_correct), np.asarray(cloud_correct)
    if n < 1 or edge.shape != (n,) or cloud.shape != (n,):
        raise PolicyError(
            f"{n} outputs or scores, answers {list(edge.shape)} and {list(cloud.shape)}: expected [n] of each, n >= 1"
        )
    if not all(np.isin(answers, (0, 1)).all() for answers in (edge, cloud)):
        raise PolicyError("whether an answer is correct is 0 or 1, or a bool, and there is something else")
    return edge.astype(bool), cloud.astype(np.float64) - edge.astype(np.float64)


def _fit(given: _Examples, ridge: Sequence[float], folds: int, seed: int, *, choose: bool) -> Learned:
    if not 2 <= folds <= FEW or not ridge or not all(0 < r < inf for r in ridge):  # noqa: PLR2004 - one to leave out, one to keep
        raise PolicyError(f"folds {folds}, ridge {tuple(ridge)}: expected 2 to {FEW} folds, and positive numbers")
    name, without = _fallback(given.classes), f", without {given.left_out} that hold NaN or inf" if given.left_out else ""
    n, harms, wins = len(given.gain), int((given.gain > 0).sum()), int((given.gain < 0).sum())

    def fall_back(why: str) -> Learned:
        reason = f"{name}, since {why} ({n} examples{without})"
        return Learned({"version": VERSION, "name": name, "chosen_because": reason, "classes": given.classes})

    if n < FEW:
        return fall_back(f"there are fewer than {FEW} examples")
    if not harms:
        return fall_back("the cloud is never right where the edge is wrong")
    if max(harms, wins) < RARE:
        return fall_back(f"edge and cloud hardly differ: {harms} harms and {wins} wins, and {RARE} of either are needed")
    if not np.ptp(given.table, 0).any():
        return fall_back("all outputs are alike")

    areas, losses = _crossvalidate(given, ridge, folds, seed)
    best = int(losses[1:].sum(1).argmin()) + 1
    area, plain = (_share(areas[i], given.gain) for i in (best, 0))
    figures = f"area {area:.3f} against {plain:.3f} for {name}, {folds}-fold cross-validated"
    if choose and not (_clearly(areas[best] - areas[0]) and _clearly(losses[0] - losses[best])):
        return fall_back(f"what can be learned is not clearly better: {figures}")
    table, foreign = given.fold(np.ones(n, bool))
    harm, win = _train(table, given, np.ones(n, bool), ridge[best - 1]).tolist()
    told = f"{figures}; ridge {ridge[best - 1]:g} ({n} examples{without}: {harms} harms, {wins} wins)"
    return Learned(
        {
            "version": VERSION,
            "name": "learned",
            "chosen_because": f"learned, {told}",
            "classes": given.classes,
            "features": _names(given.classes, foreign),
            "harm": harm,
            "win": win,
            "foreign": None if foreign is None else {part: a.tolist() for part, a in foreign._asdict().items()},
        }
    )


def _crossvalidate(given: _Examples, ridge: Sequence[float], folds: int, seed: int) -> tuple[Array, Array]:
    """Each example while it was left out: its part of the area, its negative log-likelihood; [1 + ridges, n], msp first."""
    n = len(given.gain)
    fold = np.empty(n, np.int64)
    fold[np.lexsort((np.random.default_rng(seed).permutation(n), given.gain))] = np.arange(n) % folds  # alike in harms and wins
    areas, losses = np.zeros((2, 1 + len(ridge), n))
    for left_out in (fold == i for i in range(folds)):
        table, _ = given.fold(~left_out)
        inputs, gain = _with_constant(table[left_out]), given.gain[left_out]
        for i, strength in enumerate((NO_SLOPES, *ridge)):
            logits = inputs @ _train(table, given, ~left_out, strength).T
            harm, win = _expit(logits).T
            areas[i, left_out] = _parts(win - harm if i else table[left_out, 0], gain)
            losses[i, left_out] = (np.logaddexp(0, logits) - logits * np.stack([gain > 0, gain < 0], 1)).sum(1)
    return areas, losses


def _clearly(gains: Array) -> bool:
    return bool(gains.sum() > CLEARLY * gains.std() * np.sqrt(gains.size))


def _train(table: Array, given: _Examples, train: Array, ridge: float) -> Array:
    """The weights of harm and of win, [2, 1 + features], for features as they are."""
    x = table[train]
    mean, scale = x.mean(0), x.std(0)
    scale[(scale < 1e-9) | (np.abs(x - mean).max(0) <= 0)] = 1  # noqa: PLR2004 - a constant, but for rounding
    if 0 < given.classes <= PER_CLASS:
        scale[-2 * given.classes :] = 1  # they share a scale already, and a rare class must not be blown up
    inputs = _with_constant((x - mean) / scale)
    penalty = np.full(inputs.shape[1], ridge)
    penalty[:2] = FREE
    weights = np.zeros((2, inputs.shape[1]))
    for row, sign in zip(weights, (1, -1), strict=True):
        happened = given.gain == sign
        y = happened[train].astype(np.float64)
        if happened.sum() < RARE:
            row[0] = _log_odds(y)
        else:
            row[:] = irls(inputs, y, penalty)
    weights[:, 1:] /= scale
    weights[:, 0] -= weights[:, 1:] @ mean
    return weights


def irls(x: Array, y: Array, penalty: Array) -> Array:
    """Logistic regression by Newton's steps, each halved until it is one uphill.

    Args:
        x: [n, k], its first column ones.
        y: [n], 0 or 1.
        penalty: [k], above 0: half of it times the square of its weight is taken off the log-likelihood.

    Returns: the weights, [k].
    """

    def height(w: Array) -> float:
        logits = x @ w
        return float(y @ logits - np.logaddexp(0, logits).sum() - penalty @ (w * w) / 2)

    w = np.zeros(x.shape[1])
    w[0] = _log_odds(y)
    reached = height(w)
    for _ in range(100):
        p = _expit(x @ w)
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + np.diag(penalty), x.T @ (y - p) - penalty * w)
        while (higher := height(w + step)) < reached and np.abs(step).max() > 1e-9:  # noqa: PLR2004 - no step at all
            step /= 2
        if higher < reached:
            break
        w, gained, reached = w + step, higher - reached, higher
        if gained < 1e-9 * (1 + abs(reached)):
            break
    return w


def _log_odds(y: Array) -> float:
    return float(np.log((y.sum() + 0.5) / (y.size - y.sum() + 0.5)))


def _with_constant(x: Array) -> Array:
    return np.concatenate([np.ones((len(x), 1)), x], 1)


def _expit(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(x / 2)


def _sigmoid(x: float) -> float:
    return 0.0 if x < -700 else 1 / (1 + exp(-x))  # noqa: PLR2004 - where exp would overflow


def _fallback(classes: int) -> str:
    return "msp" if classes else "quantile"


def _names(classes: int, foreign: Foreign | None) -> list[str]:
    return features.names(classes, foreign is not None) if classes else list(TEXT)


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
