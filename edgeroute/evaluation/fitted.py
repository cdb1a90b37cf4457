"""Fits a learned score, with cross-fitted scores of the same examples for calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.calibration import crossfit
from edgeroute.confidence.exact import Ints
from edgeroute.confidence.fitting import auto, fit
from edgeroute.confidence.learned import Learned
from edgeroute.errors import PolicyError
from edgeroute.evaluation.examples import Bools, Floats


class Fitted(NamedTuple):
    """Result of `fitted`."""

    learned: Learned | None
    """Fitted to all examples, for deployment; None: msp is used instead."""
    scores: Floats
    """[n], for `calibrate`: out-of-fold scores, or msp."""
    why: str
    """Why this score."""


def fitted(
    outputs: Floats | None,
    msp: Floats,
    edge_correct: Bools,
    cloud_correct: Bools,
    *,
    choose: bool,
    ood: bool,
    groups: Sequence[Any] | None = None,
) -> Fitted:
    """Fits a score to all examples for deployment, and scores the examples by 5-fold cross-fitting for calibration.

    The threshold is thus calibrated on other fits than the deployed one; the error is their difference, where in-sample
    scores would be biased.

    Args:
        outputs: [n, classes], the edge's logits.
        msp: [n], used if nothing is learned.
        edge_correct: [n], bool.
        cloud_correct: [n], bool.
        ood: add out-of-distribution features.
        choose: blend the learned score with msp, as `auto`.
        groups: [n], the scene, user or session of each: each is scored by a fit without any of its group.

    Raises:
        PolicyError: the outputs are not an array of logits.
    """
    if outputs is None or outputs.shape[1] < 2:  # noqa: PLR2004 - nothing to tell apart
        raise PolicyError("a score is learned from two logits or more for each input, as many each time: this model gives others")
    train_on = auto if choose else fit
    made = train_on(outputs, edge_correct, cloud_correct, ood=ood)
    if made.name != "learned":
        return Fitted(None, msp, made.chosen_because)
    fell_back: list[str] = []

    def without(train: Ints) -> Callable[[Ints], Floats]:
        part = train_on(outputs[train], edge_correct[train], cloud_correct[train], ood=ood)
        if part.name != "learned":
            fell_back.append(part.chosen_because)
        return lambda left_out: part.many(outputs[left_out])

    scores = crossfit(without, len(outputs), groups=groups)
    if fell_back:  # too few examples in a fold: its scores would be of another kind than the others'
        return Fitted(None, msp, f"{fell_back[0]}, with a fifth left out")
    return Fitted(made, np.asarray(scores), made.chosen_because)
