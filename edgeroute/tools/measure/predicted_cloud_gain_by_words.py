"""Gain of asking the cloud (its correctness less the edge's), fitted to prompts by ridge regression on hashed words and more.

The other columns are standardised and scaled by `PLAIN`, so that the words' values (tf-idf), of norm 1 in all, are not
outweighed; a base score is hardly penalised. The normal equations are solved by conjugate gradients on the sparse rows (Hestenes
and Stiefel, 1952).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import Floats, Ints
from edgeroute.confidence.prompt_features_and_word_weights import BUCKETS, HASHED
from edgeroute.errors import PolicyError

RIDGE = 20.0  # penalty of all weights but the intercept, and but that of a base score
PLAIN = 0.05  # scale of a standardised column
BASE = 30.0  # scale of a base score
ACCURATE = 1e-7  # relative residual at which the solution is good enough


class Words(NamedTuple):
    """Counts of hashed words of n prompts, as a sparse matrix."""

    row: Ints
    bucket: Ints
    times: Ints  # [entries] each
    n: int

    def part(self, keep: Any) -> Words:
        """Return the counts of some prompts, numbered anew from 0. keep: [n], bool."""
        inside, number = keep[self.row], keep.cumsum() - 1
        return Words(number[self.row[inside]], self.bucket[inside], self.times[inside], int(keep.sum()))


def words_of(prompts: Sequence[Mapping[int, int]]) -> Words:
    """Return the counts of prompts, each a mapping from bucket to count, as a sparse matrix.

    Raises:
        PolicyError: they are something else, or a bucket or count is out of range.
    """
    try:
        sizes = [len(counts) for counts in prompts]
        bucket, count = (
            np.fromiter((number for counts in prompts for number in getattr(counts, part)()), np.int64, sum(sizes))
            for part in ("keys", "values")
        )
    except (AttributeError, OverflowError, TypeError, ValueError) as e:
        raise PolicyError(f"{HASHED!r} are the counts of prompt_features: {type(e).__name__}: {e}") from e
    if len(bucket) and (bucket.min() < 0 or bucket.max() >= BUCKETS or count.min() < 1):
        raise PolicyError(f"{HASHED!r} has buckets below {BUCKETS:,} and counts above 0")
    return Words(np.repeat(np.arange(len(sizes)), sizes), bucket, count, len(sizes))


class GainFit(NamedTuple):
    """Linear prediction of the gain of asking the cloud."""

    plain: Floats  # [1 + columns]: the intercept and the weights of unscaled columns
    idf: Floats
    words: Floats  # [65,536] each

    def better_and_losses(self, words: Words, table: Floats, gain: Floats) -> tuple[Floats, Floats]:
        """Return the negative predicted gains and the squared errors of prompts, [n] each. table: [n, columns]; gain: [n]."""
        values = _tf_idf(words, self.idf)
        sums = np.bincount(words.row, values * self.words[words.bucket], words.n)
        predicted = self.plain[0] + table @ self.plain[1:] + sums
        return -predicted, (gain - predicted) ** 2

    @property
    def data(self) -> dict[str, Any]:
        """Contents of a score's file: intercept and columns' weights as numbers; idf and words' weights as base64 of float16.

        The words' weights are divided by the largest, `scale`, and have a relative precision of 2**-11.
        """
        scale = float(np.abs(self.words).max()) or 1.0
        halves = {"idf": self.idf, "weights": self.words / scale}
        words = {name: b64encode(part.astype("<f2").tobytes()).decode() for name, part in halves.items()}
        return {"gain": self.plain.tolist(), "words": {"scale": scale, **words}}


def fit_gain(words: Words, table: Floats, gain: Floats, ridge: float, *, base: bool) -> GainFit:
    """Fit the gain by ridge regression, in at most 1,000 steps of conjugate gradients, and return it.

    Args:
        words: counts of n prompts.
        table: [n, columns]; the first is the base score, or constant.
        gain: [n], cloud minus edge, -1..1.
        ridge: penalty.
        base: True if the first column is a base score.
    """
    n, columns = table.shape
    idf = np.log((1 + n) / (1 + np.bincount(words.bucket, minlength=BUCKETS))) + 1
    values, mean, scale = _tf_idf(words, idf), table.mean(0), table.std(0)
    scale[scale < 1e-9] = np.inf  # noqa: PLR2004 - a constant, but for rounding
    factors = np.full(columns, PLAIN) / scale
    factors[0] = BASE / scale[0] if base else 0.0
    dense = (table - mean) * factors
    word_mean = np.bincount(words.bucket, values, BUCKETS) / n

    def forward(w: Floats) -> Floats:
        """Return the predictions of weights, apart from the intercept, [n]."""
        sums = np.bincount(words.row, values * w[columns:][words.bucket], n)
        return np.asarray(sums + dense @ w[:columns] - word_mean @ w[columns:], np.float64)

    def backward(u: Floats) -> Floats:
        """Return the transposed product, [columns + 65,536]. u: [n], of mean 0, so that the words need not be centred here."""
        sums = np.bincount(words.bucket, values * u[words.row], BUCKETS)
        return np.concatenate([u @ dense, sums])

    w = np.zeros(columns + BUCKETS)
    residual = backward(gain - gain.mean())
    direction, size = residual.copy(), float(residual @ residual)
    enough = ACCURATE**2 * size
    for _ in range(1000):
        if size <= enough:
            break
        image = backward(forward(direction)) + ridge * direction
        step = size / float(direction @ image)
        w += step * direction
        residual -= step * image
        before, size = size, float(residual @ residual)
        direction = residual + size / before * direction
    plain = w[:columns] * factors
    intercept = gain.mean() - mean @ plain - word_mean @ w[columns:]
    return GainFit(np.append(intercept, plain), idf, w[columns:])


def _tf_idf(words: Words, idf: Floats) -> Floats:
    """Return the values of the counts: (1 + ln count) idf, at norm 1 for each prompt, [entries]."""
    values = (1 + np.log(words.times)) * idf[words.bucket]
    return values / np.sqrt(np.bincount(words.row, values * values, words.n))[words.row]
