"""A score fitted to examples, and scores of the same examples that may be calibrated with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edgeroute.confidence.calibration import crossfit
from edgeroute.confidence.exact import Ints
from edgeroute.confidence.learned import Learned, auto, fit
from edgeroute.errors import PolicyError
from edgeroute.report.evaluation.examples import Bools, Floats


class Fitted(NamedTuple):
    """What came of it."""

    learned: Learned | None
    """Fitted to all examples, for use; None: msp is the better score, or the only one."""
    scores: Floats
    """[n], for `calibrate`: each example's by a score that was fitted without it, or its msp."""
    why: str
    """Why this score."""


def fitted(outputs: Floats | None, msp: Floats, edge_correct: Bools, cloud_correct: Bools, *, choose: bool, ood: bool) -> Fitted:
    """Fits one for use to all examples, and five to all but a fifth each: these score the fifth that they have not seen.

    So the threshold is chosen by other fits than the one in use. That costs no more than their difference, where scores of the
    examples that a fit has seen would flatter it.

    Args:
        outputs: [n, classes], the edge's.
        msp: [n], the score where nothing is learned.
        edge_correct: [n].
        cloud_correct: [n].
        ood: look at how foreign an input is, too.
        choose: take what was learned only where it is clearly better, as `auto` does.

    Raises:
        PolicyError: the outputs are not an array of logits.
    """
    if outputs is None or outputs.shape[1] < 2:  # noqa: PLR2004 - nothing to tell apart
        raise PolicyError("a score is learned from two logits or more for each input, as many each time: this model gives others")
    made = (auto if choose else fit)(outputs, edge_correct, cloud_correct, ood=ood)
    if made.name != "learned":
        return Fitted(None, msp, made.chosen_because)
    fell_back: list[str] = []

    def without(train: Ints) -> Callable[[Ints], Floats]:
        part = fit(outputs[train], edge_correct[train], cloud_correct[train], ood=ood)
        if part.name != "learned":
            fell_back.append(part.chosen_because)
        return lambda left_out: part.many(outputs[left_out])

    scores = crossfit(without, len(outputs))
    if fell_back:  # a fifth fewer are too few: its scores would be of another kind than the others'
        return Fitted(None, msp, f"{fell_back[0]}, with a fifth left out")
    return Fitted(made, np.asarray(scores), made.chosen_because)
