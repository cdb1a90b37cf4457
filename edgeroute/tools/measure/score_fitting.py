"""Fitting of a learned score by ridge logistic regression with cross-validation; `auto` blends it by the number of its examples.

It predicts harm (the cloud alone is right) and win (the edge alone is). Of prompts with hashed words (`prompt_features`) the gain
is fitted in place of harm and win: predicted_cloud_gain_by_words.py.

The first feature, the log odds of msp (the highest class probability), is almost unpenalised and all others are penalised, so the
less there is to learn, the closer the ranking is to that of msp (Chow, 1970). For texts the first feature is the 10 % quantile;
of a table it is the base score, if there is one.

`auto` blends two ranks, that by msp (or the base score) and that by the fit, with a weight of events / (events + 60) for the fit:
events are the examples on which edge and cloud differ, and all that can be learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from edgeroute.confidence.learned_score_features import (
    PER_CLASS,
    TEXT,
    Array,
    Foreign,
    centre,
    feature_names,
    logit_features,
    text_features,
)
from edgeroute.confidence.learned_scores_and_blends import VERSION, Learned, expit, fallback, with_constant
from edgeroute.confidence.output_forms_labels_and_comparison import (
    as_array,
    is_by_class,
    label_and_probabilities,
    several,
    sum_to_one,
)
from edgeroute.confidence.prompt_features_and_word_weights import HASHED
from edgeroute.errors import PolicyError
from edgeroute.tools.measure import predicted_cloud_gain_by_words as prompt_gain
from edgeroute.tools.measure.deferral_curve import area_parts, area_share, outcomes

RIDGE = (3.0, 30.0, 300.0)
FEW = 50  # least examples to learn from
RARE = 20  # least harms (or wins) to fit features to; with fewer their rate is a constant, with fewer of both nothing is learned
TRUST = 60  # events (harms and wins) from which `auto` trusts the fit as much as msp
KNOTS = 65  # quantiles of a score in its file, for ranks
FREE = 0.01  # ridge of the intercept and the first feature: keeps the weights finite on separable examples


def probabilities_by_class(outputs: Sequence[Any]) -> Array | None:
    """Return the probabilities [n, classes] of rows that map classes to them, or have a label beside; None: of another form."""
    rows = list[Any]()
    for row in outputs:
        parts = row if isinstance(row, Mapping) else dict(enumerate(row)) if several(row) else {}
        p = parts if is_by_class(parts) else (label_and_probabilities(parts) or ({}, {}))[1]
        rows.append(np.array([*p.values()] if isinstance(p, Mapping) else as_array(p), float))
        if rows[-1].shape != rows[0].shape or rows[0].ndim != 1 or not sum_to_one(rows[-1].tolist()):
            return None
    return np.array(rows) if rows else None


def fit(
    features: Any,
    edge_correct: ArrayLike,
    cloud_correct: ArrayLike,
    *,
    base: str | None = None,
    ridge: Sequence[float] = RIDGE,
    folds: int = 5,
    seed: int = 0,
    ood: bool = False,
    blend: bool = False,
) -> Learned:
    """Fit a learned score; fall back to msp, or the base score, where there is too little to learn from, with the reason in it.

    Args:
        features: logits of the edge model, [n, classes]; or any features (`edgeroute.confidence.learned_scores_and_blends`): a
            mapping from name to [n] or [n, d], or a list of mappings. Rows with NaN or inf are excluded.
        edge_correct: [n], 0 to 1.
        cloud_correct: [n], 0 to 1.
        base: column of a table that is a confidence already; None: there is none.
        ridge: candidates; the one with the best held-out likelihood is used. For prompts with hashed words the default is 20.
        folds: number of cross-validation folds.
        seed: seed of the random split; the same seed gives the same score.
        ood: True adds energy and distance of the logits, which detect out-of-distribution inputs. Slower, and no longer invariant
            to a constant added to all logits.
        blend: True blends the fit with msp or the base score, as `auto` does.

    Raises:
        PolicyError: an argument is invalid.
    """
    return _fit(_examples_from(features, edge_correct, cloud_correct, base, ood), ridge, folds, seed, blend=blend)


def auto(features: Any, edge_correct: ArrayLike, cloud_correct: ArrayLike, **options: Any) -> Learned:
    """Fit as `fit`, with its options but `blend`: the fewer harms and wins, the closer the score is to msp or the base score.

    Raises PolicyError as `fit`.
    """
    return fit(features, edge_correct, cloud_correct, blend=True, **options)


def fit_text(
    token_logprobs: Sequence[Sequence[float]],
    edge_correct: ArrayLike,
    cloud_correct: ArrayLike,
    *,
    ridge: Sequence[float] = RIDGE,
    folds: int = 5,
    seed: int = 0,
) -> Learned:
    """Fit as `fit`, from the token log-probabilities of texts; fall back to their 10 % quantile.

    Raises PolicyError as `fit`.
    """
    table = np.array([text_features(logprobs) for logprobs in token_logprobs], np.float64).reshape(-1, len(TEXT))
    edge, gain = outcomes(edge_correct, cloud_correct, len(table))
    return _fit(_usable(_Examples(0, None, table, edge, gain), table), ridge, folds, seed, blend=False)


class _Examples(NamedTuple):
    """Features and outcomes of the examples."""

    classes: int  # number of classes; 0: texts or a table
    # Logits for out-of-distribution features, which depend on the training fold; None: the features are `table`.
    logits: Array | None
    table: Array  # features, [n, k]
    edge: Array
    gain: Array  # 1 harm, -1 win, 0 neither
    left_out: int = 0
    # Names of a table's features, and how many columns each has; None: no table.
    columns: tuple[list[str], list[int]] | None = None
    base: str | None = None
    words: prompt_gain.Words | None = None  # hashed words of prompts: the gain is fitted

    @property
    def name(self) -> str:
        """Name of the score without a fit."""
        return fallback(self.classes) if self.columns is None else "base"

    @property
    def described(self) -> dict[str, Any]:
        """Description of the features, for the score's file."""
        description: dict[str, Any] = {"version": VERSION, "classes": self.classes}
        if self.columns is not None:
            description |= {"columns": self.columns[0], "widths": self.columns[1], "base": self.base}
        return description

    def fold(self, train: Array) -> tuple[Array, Foreign | None]:
        """Return all examples' features; with logits, also those for unusual inputs, and the statistics of the training examples.

        Without logits the statistics are None. train: [n], bool.
        """
        if self.logits is None:
            return self.table, None
        foreign = fit_foreign(self.logits[train], self.edge[train] >= 0.5)  # noqa: PLR2004 - more right than wrong
        return logit_features(self.logits, foreign), foreign


def _examples_from(features: Any, edge_correct: ArrayLike, cloud_correct: ArrayLike, base: str | None, ood: bool) -> _Examples:
    """Validate features, logits or a table, and outcomes, and return the usable examples, without NaN and infinity.

    `base` is for a table alone, `ood` for logits alone. A table's column of hashed words is split off, as `words`. Without `base`
    a table begins with a column of zeros.

    Raises:
        PolicyError: they are invalid, or `base` or `ood` does not fit them.
    """
    if not is_table(features):
        if base is not None:
            raise PolicyError("base= names a column of a table, and these are logits: leave it out")
        return _logit_examples(features, edge_correct, cloud_correct, ood)
    if ood:
        raise PolicyError("ood= works with logits, and this is a table of features: leave it out")
    words = None
    if HASHED in (features if isinstance(features, Mapping) else features[0]):
        features, words = _separate_words(features)
    names, widths, table = table_of(features, base)
    if words is not None and words.n != len(table):
        raise PolicyError(f"{HASHED!r} has {words.n} prompts, and the other features {len(table)}")
    edge, gain = outcomes(edge_correct, cloud_correct, len(table))
    if base is None:  # no score before the fit: a constant in its place
        table = np.concatenate([np.zeros((len(table), 1)), table], 1)
    return _usable(_Examples(0, None, table, edge, gain, columns=(names, widths), base=base, words=words), table)


def _separate_words(features: Any) -> tuple[Any, prompt_gain.Words]:
    """Return the features without the column of hashed words, and those words; raise PolicyError if an example has none."""
    if isinstance(features, Mapping):
        return {name: values for name, values in features.items() if name != HASHED}, prompt_gain.words_of(features[HASHED])
    words = prompt_gain.words_of([example.get(HASHED) for example in features])
    return [{name: value for name, value in example.items() if name != HASHED} for example in features], words


def _logit_examples(logits: ArrayLike, edge_correct: ArrayLike, cloud_correct: ArrayLike, ood: bool) -> _Examples:
    """Validate logits and outcomes, and return the usable examples; raise `PolicyError` if they are invalid."""
    try:
        z = np.asarray(logits, np.float64)
    except (OverflowError, TypeError, ValueError) as e:
        raise PolicyError(f"logits must be an array of numbers, [n, classes]: {e}") from e
    if z.ndim != 2 or z.shape[1] < 2:  # noqa: PLR2004 - two axes, two classes
        raise PolicyError(f"logits {list(z.shape)}: expected [n, classes], and at least two classes")
    edge, gain = outcomes(edge_correct, cloud_correct, len(z))
    table = logit_features(z)
    return _usable(_Examples(z.shape[1], z if ood else None, table, edge, gain), table)


def _usable(examples: _Examples, table: Array) -> _Examples:
    """Return the examples without those whose row of `table` has NaN or infinity, and the number of these as `left_out`."""
    keep = np.isfinite(table).all(1)
    logits = None if examples.logits is None else examples.logits[keep]
    return examples._replace(
        logits=logits, table=table[keep], edge=examples.edge[keep], gain=examples.gain[keep], left_out=int((~keep).sum()),
        words=None if examples.words is None else examples.words.part(keep),
    )  # fmt: skip


def _fit(examples: _Examples, ridge: Sequence[float], folds: int, seed: int, *, blend: bool) -> Learned:
    """Fit harm and win, or of hashed words the gain, with a ridge chosen by cross-validation; or fall back with a reason.

    Falls back with few examples, no harm, few harms and wins, or if all features are alike and there are no words. With `blend`
    the score is a weighted mean of the rank by the fit and that by the score without a fit; the fit's weight is n / (n + `TRUST`)
    for n harms and wins. For hashed words `RIDGE`, the default, is replaced by their own.

    Raises:
        PolicyError: `ridge`, `folds` or `seed` is invalid.
    """
    if examples.words is not None and ridge is RIDGE:
        ridge = (prompt_gain.RIDGE,)
    if not 2 <= folds <= FEW or not ridge or not all(0 < r < inf for r in ridge):  # noqa: PLR2004 - one to leave out, one to keep
        raise PolicyError(f"folds {folds}, ridge {tuple(ridge)}: expected 2 to {FEW} folds, and positive numbers")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise PolicyError(f"seed= must be a whole number, 0 or more, not {seed!r}")
    name, without = examples.name, f", without {examples.left_out} that hold NaN or inf" if examples.left_out else ""
    n, harms, wins = len(examples.gain), float(np.maximum(examples.gain, 0).sum()), float(np.maximum(-examples.gain, 0).sum())

    def fall_back(why: str) -> Learned:
        """Return the score without a fit, with the reason."""
        reason = f"{name}, since {why} ({n} examples{without})"
        return Learned({**examples.described, "name": name, "chosen_because": reason})

    if n < FEW:
        return fall_back(f"there are fewer than {FEW} examples")
    if not harms:
        return fall_back("the cloud is never right where the edge is wrong")
    if max(harms, wins) < RARE:
        return fall_back(f"edge and cloud hardly differ: {harms:g} harms and {wins:g} wins, and {RARE} of either are needed")
    if not np.ptp(examples.table, 0).any() and examples.words is None:
        return fall_back("all outputs are alike")

    areas, losses = _crossvalidate(examples, ridge, folds, seed)
    best = int(losses[1:].sum(1).argmin()) + 1
    area, plain = (area_share(areas[i], examples.gain) for i in (best, 0))
    table, foreign = examples.fold(np.ones(n, bool))
    fitted = _train(table, examples, np.ones(n, bool), ridge[best - 1])
    summary, blending = "learned", None
    if blend:
        trust = (harms + wins) / (harms + wins + TRUST)
        summary = f"learned, {trust * 100:.0f} % of it and {100 * (1 - trust):.0f} % of {name}"
        better, _ = fitted.better_and_losses(examples.words, table, examples.gain)
        blending = {"weight": trust, "base": _knots(table[:, 0]), "fit": _knots(better)}
    areas_text = f"area {area:.3f} of the fit against {plain:.3f} for {name}"
    comparison = f"{areas_text}, {folds}-fold cross-validated; ridge {ridge[best - 1]:g}"
    return Learned(
        {
            **examples.described,
            "name": "learned",
            "chosen_because": f"{summary}, {comparison} ({n} examples{without}: {harms:.4g} harms, {wins:.4g} wins)",
            "features": feature_names(examples.classes, foreign is not None) if examples.columns is None else table.shape[1],
            **fitted.data,
            "foreign": None if foreign is None else {part: a.tolist() for part, a in foreign._asdict().items()},
            **({} if blending is None else {"blend": blending}),
        }
    )


def _knots(values: Array) -> list[float]:
    """Return 65 quantiles of a score, from 0 to 1, for ranks."""
    return np.quantile(values, np.linspace(0, 1, KNOTS)).tolist()  # type: ignore[no-any-return]


def _crossvalidate(examples: _Examples, ridge: Sequence[float], folds: int, seed: int) -> tuple[Array, Array]:
    """Return held-out area parts and losses of each example, [1 + ridges, n] each; first the score without a fit, of loss 0.

    A loss is a negative log-likelihood, or of hashed words a squared error. The folds are drawn at random by the seed, alike in
    harms and wins.
    """
    n = len(examples.gain)
    fold = np.empty(n, np.int64)
    fold[np.lexsort((np.random.default_rng(seed).permutation(n), examples.gain))] = np.arange(n) % folds
    areas, losses = np.zeros((2, 1 + len(ridge), n))
    for left_out in (fold == i for i in range(folds)):
        table, _ = examples.fold(~left_out)
        gain, words = examples.gain[left_out], None if examples.words is None else examples.words.part(left_out)
        areas[0, left_out] = area_parts(table[left_out, 0], gain)
        for i, strength in enumerate(ridge, 1):
            fitted = _train(table, examples, ~left_out, strength)
            better, losses[i, left_out] = fitted.better_and_losses(words, table[left_out], gain)
            areas[i, left_out] = area_parts(better, gain)
    return areas, losses


class _HarmAndWin(NamedTuple):
    """Two logistic regressions of unscaled features."""

    weights: Array  # [2, 1 + features]

    def better_and_losses(self, words: None, table: Array, gain: Array) -> tuple[Array, Array]:  # noqa: ARG002 - there are none
        """Return P(win) - P(harm) and the negative log-likelihoods of examples, [n] each."""
        logits = with_constant(table) @ self.weights.T
        losses = np.logaddexp(0, logits) - logits * np.maximum(np.stack([gain, -gain], 1), 0)
        return expit(logits) @ [-1, 1], losses.sum(1)

    @property
    def data(self) -> dict[str, Any]:
        """Contents of a score's file."""
        return {"harm": self.weights[0].tolist(), "win": self.weights[1].tolist()}


def _train(table: Array, examples: _Examples, train: Array, ridge: float) -> Any:
    """Fit harm and win, or of hashed words the gain, to these examples; return the fit, with `better_and_losses` and `data`.

    Of harm and win, one that is rare in all examples gets a constant rate. Intercept and first column are hardly penalised,
    whatever the ridge.

    train: [n], bool.
    """
    if examples.words is not None:
        words = examples.words.part(train)
        return prompt_gain.fit_gain(words, table[train], examples.gain[train], ridge, base=examples.base is not None)
    x = table[train]
    mean, scale = x.mean(0), x.std(0)
    scale[(scale < 1e-9) | (np.abs(x - mean).max(0) <= 0)] = 1  # noqa: PLR2004 - a constant, but for rounding
    if 0 < examples.classes <= PER_CLASS:
        scale[-2 * examples.classes :] = 1  # they share a scale already, and a rare class must not be blown up
    inputs = with_constant((x - mean) / scale)
    weights = np.zeros((2, inputs.shape[1]))
    inputs, directions = narrow(inputs)
    penalty = np.full(inputs.shape[1], ridge)
    penalty[:2] = FREE
    for row, sign in zip(weights, (1, -1), strict=True):
        happened = np.maximum(sign * examples.gain, 0)
        y = happened[train]
        if happened.sum() < RARE:
            row[0] = log_odds(y)
        else:
            row[:] = irls(inputs, y, penalty) @ directions
    weights[:, 1:] /= scale
    weights[:, 0] -= weights[:, 1:] @ mean
    return _HarmAndWin(weights)


def narrow(inputs: Array) -> tuple[Array, Array]:
    """Factor inputs with more columns than rows: [n, k] -> [n, m] and [m, k], whose product they are.

    Equally penalised weights lie in the span of the rows, so nothing is lost (the representer theorem; Schoelkopf et al., 2001).
    The first two columns, which are penalised otherwise, stay.
    """
    n, k = inputs.shape
    if k <= n + 2:
        return inputs, np.eye(k)
    u, s, vt = np.linalg.svd(inputs[:, 2:], full_matrices=False)
    directions = np.zeros((2 + len(s), k))
    directions[[0, 1], [0, 1]] = 1
    directions[2:, 2:] = vt
    return np.concatenate([inputs[:, :2], u * s], 1), directions


SHRINKAGE = 0.1  # shrinkage of the covariance towards a scaled identity, so that it can be inverted


def fit_foreign(logits: Array, right: Array) -> Foreign:
    """Estimate means and covariance from logits of correctly answered examples; predictions serve as class labels.

    Args:
        logits: [n, C], finite or -inf.
        right: [n], bool: rows to use; all, if none is right.
    """
    z, u = centre(logits)
    predicted, keep = z.argmax(1), right if right.any() else np.ones(len(z), bool)
    u, predicted = u[keep], predicted[keep]
    seen, class_index = np.unique(predicted, return_inverse=True)
    means = np.stack([u[predicted == k].mean(0) for k in seen])
    spread = u - means[class_index]
    covariance = spread.T @ spread / len(u)
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * size * np.eye(len(covariance)))
    whiten = vectors / np.sqrt(values)
    return Foreign(whiten, means @ whiten)


def irls(x: Array, y: Array, penalty: Array) -> Array:
    """Fit a logistic regression by Newton's method, and return the weights, [k].

    A step that lowers the objective is halved until it does not. At most 100 steps; ends once a step gains next to nothing.

    Args:
        x: [n, k], its first column ones.
        y: [n], 0 or 1.
        penalty: [k], above 0: half of it times the square of its weight is taken off the log-likelihood.
    """

    def height(w: Array) -> float:
        logits = x @ w
        return float(y @ logits - np.logaddexp(0, logits).sum() - penalty @ (w * w) / 2)

    w = np.zeros(x.shape[1])
    w[0] = log_odds(y)
    reached = height(w)
    for _ in range(100):
        p = expit(x @ w)
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + np.diag(penalty), x.T @ (y - p) - penalty * w)
        while (higher := height(w + step)) < reached and np.abs(step).max() > 1e-9:  # noqa: PLR2004 - no step at all
            step /= 2
        if higher < reached:
            break
        w, gained, reached = w + step, higher - reached, higher
        if gained < 1e-9 * (1 + abs(reached)):
            break
    return w


def log_odds(y: Array) -> float:
    """Return the log odds of the share of ones in y: [n], 0 or 1; finite where all are alike."""
    return float(np.log((y.sum() + 0.5) / (y.size - y.sum() + 0.5)))


LARGEST = 1e100  # largest absolute value of a feature


def is_table(inputs: Any) -> bool:
    """Return True for features with names: a mapping, or a list of mappings; False for logits."""
    return isinstance(inputs, Mapping) or (isinstance(inputs, Sequence) and len(inputs) > 0 and isinstance(inputs[0], Mapping))


def table_of(inputs: Any, base: str | None) -> tuple[list[str], list[int], Array]:
    """Return a table's names, the number of columns of each, and all columns [n, k]; the base score comes first in each.

    Raises:
        PolicyError: it is no table of numbers, columns differ in length, a number is too large, or the base score is no single
            column.
    """
    names = list(inputs if isinstance(inputs, Mapping) else inputs[0])
    if base is not None and base not in names:
        raise PolicyError(f"there is no feature {base!r}: there are {', '.join(map(str, names))}")
    names.sort(key=lambda name: name != base)
    try:
        rows = inputs if isinstance(inputs, Mapping) else {name: [example[name] for example in inputs] for name in names}
        columns = [np.asarray(rows[name], np.float64) for name in names]
    except (KeyError, OverflowError, TypeError, ValueError) as e:
        raise PolicyError(f"features are numbers, the same for each example: {type(e).__name__}: {e}") from e
    n = len(columns[0]) if columns and columns[0].ndim else 0
    if any(column.ndim not in {1, 2} or len(column) != n for column in columns):
        there = ", ".join(f"{name} {list(column.shape)}" for name, column in zip(names, columns, strict=True))
        raise PolicyError(f"each feature is [n] or [n, d], with the same n: there are {there}")
    if base is not None and columns[0].ndim == 2:  # noqa: PLR2004 - rows of numbers
        raise PolicyError(f"the base score {base!r} is one number for each example")
    if not n:
        raise PolicyError("there are no features, or no examples")
    columns = [column.reshape(n, -1) for column in columns]
    table = np.concatenate([np.empty((n, 0)), *columns], 1)
    if (np.isfinite(table) & (np.abs(table) > LARGEST)).any():
        raise PolicyError(f"features are numbers of a size that can be squared, up to {LARGEST:g}: scale them")
    return names, [column.shape[1] for column in columns], table
