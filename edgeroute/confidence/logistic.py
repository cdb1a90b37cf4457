"""Logistic regression with a ridge, by iteratively reweighted least squares (IRLS)."""

from __future__ import annotations

from math import exp

import numpy as np

from edgeroute.confidence.features import Array


def irls(x: Array, y: Array, penalty: Array) -> Array:
    """Fits a logistic regression by Newton's method; a step that lowers the objective is halved until it does not.

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
    """The log odds of the share of ones in y: [n], 0 or 1; finite where all are alike."""
    return float(np.log((y.sum() + 0.5) / (y.size - y.sum() + 0.5)))


def with_constant(x: Array) -> Array:
    """x: [n, k] -> [n, 1 + k], with a first column of ones for the intercept."""
    return np.concatenate([np.ones((len(x), 1)), x], 1)


def expit(x: Array) -> Array:
    """The logistic function of each element."""
    return 0.5 + 0.5 * np.tanh(x / 2)


def sigmoid(x: float) -> float:
    """The logistic function of one number, without numpy."""
    return 0.0 if x < -700 else 1 / (1 + exp(-x))  # noqa: PLR2004 - where exp would overflow
