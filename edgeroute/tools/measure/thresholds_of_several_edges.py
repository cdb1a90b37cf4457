"""Thresholds of several edge models that are asked one after the other, with one guarantee: a path of them, tested in order.

A third of the examples chooses a path of thresholds, from those that accept almost nothing on: of all that are estimated to lose
no more than a rising limit, each time those that defer the fewest to the cloud. The other examples test the path, in that order,
up to the first thresholds that fail. As the path does not depend on the examples of the test, its risk is that of a single test
(see fixed_sequence.py).

A logistic regression on the ranks of its own and all earlier scores estimates the loss of an answer. Counts of so few examples
are too coarse: by them a path begins with thresholds that lose too much. A wrong estimate costs deferrals, and no risk.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import Floats, Ints
from edgeroute.confidence.learned_scores_and_blends import expit, with_constant
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.tools.measure.fixed_sequence import accept_losses, between
from edgeroute.tools.measure.score_fitting import FREE, irls

PART = 3  # one of so many examples chooses the path
MOST = 5000  # most examples that choose the path
# Seed of the choice of these examples: the same in each calibration, and an unlikely seed for drawing examples.
ORDER_SEED = 0xCA5C_ADE5_EED
LIMITS = np.geomspace(0.02, 4, 60)  # estimated losses at the steps of the path, as shares of the limit
# Most combinations of thresholds, but for those of the last edge model, of which a path is chosen; a hundred for each model.
TRIED = 2000
FEW = 3  # least harms (or wins) for a fit of when they happen
RIDGE = 1.0  # ridge of the ranks of earlier scores in a fit


class Path(NamedTuple):
    """Thresholds at which the test of a path stopped."""

    thresholds: tuple[float, ...]  # threshold of each edge model; inf: all its answers are deferred
    method: str  # test used, as of `Step`
    rows: Ints  # indices of the examples of the test
    steps: int  # number of steps of the path


def test_size(units: int) -> int:
    """Return the number of examples, or groups, of the test."""
    return units - min(units // PART, MOST)


def accepting(scores: Floats, thresholds: Sequence[float] | Sequence[Sequence[float]]) -> Ints:
    """Return the index of the edge model that accepts its answer first, [n]; the number of models where none does.

    Args:
        scores: [n, models], NaN: deferred.
        thresholds: of each model, [models]; or [steps, models], for a result [steps, n].
    """
    accepted = scores >= np.array(thresholds)[..., None, :]
    first: Ints = np.where(accepted.any(-1), accepted.argmax(-1), scores.shape[1])
    return first


def lowest_thresholds(
    value: float, delta: float, scores: Floats, loss: Floats, *, wins: bool, groups: Ints | None = None
) -> Path:
    """Choose a path of thresholds on a third of the examples, and return the last whose loss the others certify: at most `value`.

    The threshold is inf for each model if the first step fails. Draws are the same at each call. There must be enough examples
    for the first test.

    Args:
        value: limit of the mean loss.
        delta: the risk.
        scores: [n, models], NaN: deferred.
        loss: [n, models], the loss where that model's answer is accepted, -1..1.
        wins: True if a loss may be negative.
        groups: [n], numbers of groups, each of which counts the same, by its mean loss; None: the examples are independent.
    """
    n, models = scores.shape
    group_of = np.arange(n) if groups is None else groups
    units = int(group_of.max()) + 1
    shuffled = np.random.default_rng(ORDER_SEED).permutation(units)
    place = np.empty(units, np.int64)
    place[shuffled] = np.arange(units)
    chosen = units - test_size(units)
    weight = 1 / np.bincount(group_of)[group_of]
    chooses = place[group_of] < chosen
    cost = _estimated(scores[chooses], loss[chooses])
    path = _path(scores[chooses], cost * weight[chooses, None], weight[chooses], LIMITS * value * chosen)
    rows = np.flatnonzero(~chooses)
    model = accepting(scores[rows], path)
    lost = np.where(model < models, loss[rows, np.minimum(model, models - 1)] * weight[rows], 0)
    unit = np.arange(len(path))[:, None] * (units - chosen) + place[group_of[rows]] - chosen
    losses: Floats = np.bincount(unit.ravel(), lost.ravel(), len(path) * (units - chosen)).reshape(len(path), -1)  # type: ignore[assignment]  # with weights
    steps, method = accept_losses(losses, value, delta, sized=groups is not None, wins=wins)
    return Path(path[steps - 1] if steps else (INF,) * models, method, rows, len(path))


def _estimated(scores: Floats, loss: Floats) -> Floats:
    """Return the estimated loss of each accepted answer, above 0, [n, models].

    Half of a harm is added in all, most of it at low scores, so that nothing counts as free. Wins make up for at most three
    quarters of the harms, as a path that begins with wins would begin where much is lost as well.
    """
    n, models = scores.shape
    known = np.where(np.isnan(scores), -INF, scores)
    odds = np.empty((n, models))
    for column, values in zip(odds.T, known.T, strict=True):
        ordered = np.sort(values)
        rank = (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right") + 1) / 2 / (n + 1)
        column[:] = np.log(rank / (1 - rank))
    cost = np.empty((n, models))
    for i in range(models):
        features = with_constant(odds[:, [i, *range(i)]])
        penalty = np.full(i + 2, RIDGE)
        penalty[:2] = FREE
        usual = np.exp(-odds[:, i])
        usual /= 2 * usual.sum()
        harm, win = (np.maximum(sign * loss[:, i], 0) for sign in (1, -1))
        lost = expit(features @ irls(features, harm, penalty)) if harm.sum() >= FEW else (2 * harm.sum() + 1) * usual
        won = expit(features @ irls(features, win, penalty)) if win.sum() >= FEW else 0.0
        cost[:, i] = np.maximum(lost - won, lost / 4) + usual
    return cost


def _path(scores: Floats, cost: Floats, weight: Floats, limits: Floats) -> list[tuple[float, ...]]:
    """Return for rising limits of the total cost the thresholds that accept the most, without repeats.

    Args:
        scores: [n, models].
        cost: [n, models], of each accepted answer, above 0.
        weight: [n], how much each accepted answer counts.
        limits: [steps], ascending.
    """
    models = scores.shape[1]
    order = np.argsort(-scores[:, -1], kind="stable")[: np.count_nonzero(~np.isnan(scores[:, -1]))]  # NaN comes last
    last = scores[order, -1]
    ends = np.flatnonzero(np.append(last[1:] != last[:-1], True)[: len(last)])
    *earlier, before_last = (_candidates(column, min(100, int(TRIED ** (1 / (models - 1))))) for column in scores.T[:-1])
    most, best = np.full(len(limits), -1.0), [((INF,) * (models - 1), 0)] * len(limits)
    for thresholds in product(*earlier):
        model = accepting(scores[:, : models - 2], thresholds) if thresholds else np.zeros(len(scores), np.int64)
        left = model == models - 2
        kept = np.flatnonzero(~left)
        spent, count = cost[kept, model[kept]].sum(), weight[kept].sum()
        taken = left & (scores[:, -2] >= before_last[:, None])  # [candidates, n]
        rest = left & ~taken
        totals = []
        for first, values, own in ((spent, cost[:, -2], cost[:, -1]), (count, weight, weight)):
            base = first + taken @ values
            totals.append(np.column_stack([base, base[:, None] + np.cumsum(rest[:, order] * own[order], 1)[:, ends]]))
        for threshold, costs, counts in zip(before_last, *totals, strict=True):
            blocks = np.searchsorted(costs, limits, "right") - 1
            accepted = np.where(blocks < 0, -1.0, counts[blocks])
            for step in np.flatnonzero(accepted > most):
                best[step] = (*thresholds, float(threshold)), int(blocks[step])
            most = np.maximum(most, accepted)
    return [(*thresholds, between(last, ends, blocks)) for thresholds, blocks in dict.fromkeys(best)]


def _candidates(scores: Floats, most: int) -> Floats:
    """Return thresholds at quantiles of the distinct scores, each midway to the next lower one, and inf."""
    levels = np.unique(scores[~np.isnan(scores)])
    places = np.unique(np.linspace(0, len(levels) - 1, min(most, len(levels))).astype(np.int64))
    middle = levels / 2 + np.append(levels[:1], levels[:-1]) / 2
    return np.append(np.where(middle > np.append(-INF, levels[:-1]), middle, levels)[places], INF)
