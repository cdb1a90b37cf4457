"""Lowest threshold that a guarantee allows (`lowest_threshold`), by fixed-sequence tests: by betting, or on critical_counts.py.

Candidate thresholds are tested from the highest score down, one block of tied scores at a time. At each, the null hypothesis "the
guarantee is violated at this threshold" is tested, and the sequence stops at the first one not rejected, so no correction for
multiple testing is needed. No candidate is skipped: to pass the first threshold t* that violates the guarantee, the sequence
would have to reject the null at t* itself, which does not depend on the data; so the total risk is that of one test. All
thresholds that were passed are certified at once, and none above the first that was tested.

For max_error testing begins at a rank, since few examples prove little; and where a noisy top ends it, it begins again at further
ranks, each with a part of the risk that is added to the rest of the parts before (the fallback procedure; Wiens, 2003).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import ceil, floor, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeroute.confidence.binomial_tests import Floats, Ints, critical_count
from edgeroute.confidence.certificate import Kind
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.errors import PolicyError
from edgeroute.tools.measure.critical_counts import d_limits, least_n, lr_limits, most_of_each

# Test by betting that a mean loss is below a limit, whatever the losses' sizes (Waudby-Smith and Ramdas, 2024).
#
# Units are bet on one after the other, in an order drawn beforehand. With x = (1 + loss) / 2 of each, 0..1, and m the limit
# likewise, a gambler's wealth is multiplied by 1 - bet (x - m). Each bet depends on earlier units alone, so where the mean is m
# or more, wealth that began at 1 ever reaches 1 / delta with probability at most delta (Ville's inequality).

MOST = 0.75  # largest share of the wealth that a bet can lose
# Seed of the order of bets: the same in each calibration, and an unlikely seed for drawing examples.
ORDER_SEED = 0x0BE7_71D6_5EED


def accept_betting(after: Floats, of: Ints, ends: Ints, n: int, eps: float, delta: float) -> int:
    """Return the number of leading blocks that pass the betting test of max_loss, in a random order of units, always the same.

    Args:
        after: [k], for each example in order of acceptance, the loss of its unit once it is accepted, -1..1.
        of: [k], the number of its unit, 0..n-1.
        ends: index of the last example of each block.
        n: number of units.
        eps: limit of the mean loss.
        delta: level of the test.
    """
    place = np.random.default_rng(ORDER_SEED).permutation(n)[of]
    wealth = _Wealth(n, (1 + eps) / 2, delta)
    reached, start, x = n, 0, (1 + after) / 2
    for block, end in enumerate((ends + 1).tolist()):
        changed = place[start:end]
        wealth.x[changed] = x[start:end]  # the last loss of a repeated unit counts
        if changed.min() <= reached:  # else the bets that decided the block before are unchanged
            reached = wealth.reaches(reached)
            if reached == n:
                return block
        start = end
    return len(ends)


class _Wealth:
    """Gambler's wealth after each unit.

    Attributes:
        x: [n], in the order of the bets; .5 is no loss.
    """

    def __init__(self, n: int, mean: float, delta: float) -> None:
        self.x = np.full(n, 0.5)
        self._mean, self._delta, self._cap = mean, delta, MOST / (1 - mean)
        self._count = np.arange(1, n + 1)
        self._rate = 2 * log(1 / delta) / n

    def reaches(self, guess: int) -> int:
        """Return the index of the first unit at which the wealth is 1 / delta or more; n: never. guess: likely index."""
        n = len(self.x)
        for m in sorted({min(n, guess + guess // 4 + 64), n}):
            x, count = self.x[:m], self._count[:m]
            mean = (0.5 + x.cumsum()) / (count + 1)
            squares = np.square(x - mean).cumsum()
            variance = (0.25 + np.append(0, squares[:-1])) / count  # of the units before
            bet = np.minimum(np.sqrt(self._rate / variance), self._cap)
            with np.errstate(over="ignore", under="ignore"):
                rich = (1 - bet * (x - self._mean)).cumprod() >= 1 / self._delta
            if rich.any():
                return int(rich.argmax())
        return n


# Independent units: examples, or groups of them (scenes, users, sessions) that each count by their mean loss.
#
# A loss of any size becomes 0 or 1 by dithering: with U uniform, one for each unit, a loss d > 0 is a harm where U < d, and d < 0
# a win where U < -d. Harms less wins have the mean of the losses, so the exact tests (binomial_tests.py) stay exact.

# Seed of the uniform numbers: the same in each calibration, and an unlikely seed for drawing examples.
UNITS_SEED = 0xD17_4E12_5EED


class Units(NamedTuple):
    """Accepted examples, best score first, and the units that they belong to."""

    n: int  # number of units, those without an accepted example included
    of: Ints  # [k], the number of each example's unit
    before: Floats  # [k], the mean loss of its unit until the example is accepted, -1..1
    after: Floats  # [k], the mean loss of its unit once the example is accepted, -1..1

    def dithered(self) -> tuple[Ints, Ints]:
        """Return cumulative harms and wins, [k] each, of losses rounded at random to 0 or 1; the same at each call."""
        u = np.random.default_rng(UNITS_SEED).random(self.n)[self.of]
        before, after = ((u < np.abs(loss)) * np.sign(loss) for loss in (self.before, self.after))
        harms, wins = (((after == sign) * 1 - (before == sign) * 1).cumsum() for sign in (1, -1))
        return harms, wins


def units(loss: Floats, order: Ints, groups: Ints | None) -> Units:
    """Return the independent units of n examples, each with its mean loss before and after each of its examples is accepted.

    Args:
        loss: [n], the loss where the example is accepted, -1..1.
        order: indices of the accepted examples, best score first.
        groups: [n], the number of each example's group, from 0 with none missing; None: each is a unit.
    """
    d = loss[order]
    if groups is None:
        return Units(len(loss), order, np.zeros(len(d)), d)
    of, sizes = groups[order], np.bincount(groups)
    by_unit = np.argsort(of, kind="stable")
    total = d[by_unit].cumsum()  # exact for whole losses, so that no unit's sum depends on the units before it
    first = np.append(True, of[by_unit][1:] != of[by_unit][:-1])[: len(d)]
    start = (total - d[by_unit])[first][first.cumsum() - 1]
    after = np.empty(len(d))
    after[by_unit] = total - start
    return Units(len(sizes), of, (after - d) / sizes[of], after / sizes[of])


def one_of_each(groups: Ints) -> Ints:
    """Return the indices of one random example of each group, the same at each call; they are independent."""
    shuffled = np.random.default_rng(UNITS_SEED).permutation(len(groups))
    _, first = np.unique(groups[shuffled], return_index=True)
    return np.sort(shuffled[first])


Bools = NDArray[np.bool_]
FEW = 1.5  # below n * eps = FEW * log(1 / delta) (4.5 at 95 %) only harms are tested: wins are too rare to help
MANY = 4000  # most examples for the likelihood-ratio test; beyond, the difference test is as powerful and faster
BETTING = 3.3  # from n * eps = BETTING * log(1 / delta) (10 at 95 %) losses of any size are bet on; below, they are dithered
# Acceptance rate at which the test of max_error starts, or restarts -> its part of the risk. Fewer examples prove little.
STARTS = {0.2: 0.8, 0.4: 0.1, 0.6: 0.1}
# Starts in place of `STARTS` from n * alpha = 10 * log(1 / delta) on (30 at 95 %), where restarts cost a clean top little.
EVEN_STARTS = {0.2: 0.4, 0.4: 0.3, 0.6: 0.3}


class Step(NamedTuple):
    """Threshold at which a test sequence stopped, and the test used.

    Attributes:
        highest: first threshold of those tested without a gap: higher ones are not certified. inf: all are.
    """

    threshold: float
    method: str
    highest: float = INF


def lowest_threshold(
    kind: Kind,
    value: float,
    delta: float | None,
    scores: Floats,
    edge: Floats | None,
    cloud: Floats | None,
    *,
    graded: bool = False,
    groups: Ints | None = None,
    read: Callable[[Ints], Floats] | None = None,
) -> Step:
    """Test the thresholds of one class, or of all examples, and return the lowest that passes; inf if none does.

    There must be enough examples for the first test. max_defer raises PolicyError if too many have no score.

    Args:
        kind: kind of the guarantee.
        value: its limit.
        delta: the risk; None: on average, for max_defer.
        scores: [n], NaN: deferred.
        edge: [n], correctness of the edge, 0..1.
        cloud: [n], correctness of the cloud; None: the edge's is agreement with the cloud.
        graded: True if correctness is more than 0 or 1.
        groups: [n], numbers of groups, for max_loss; None: the examples are independent.
        read: for max_loss, returns the losses of examples by their indices. Called where `edge` is 0, until the test stops; None:
            all correctness is known.
    """
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]  # NaN comes last
    s = scores[order]
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True)[: len(s)])  # the last of each block of equal scores
    if kind == "max_defer":
        blocks, method = _by_rank(value, delta, len(scores), s[ends], len(scores) - 1 - ends)
        threshold = between(s, ends, blocks)
        return Step(threshold, method, threshold)
    assert edge is not None
    assert delta is not None
    if kind == "max_error":
        wrong = units(1 - edge, order, None).dithered()[0] if graded else np.cumsum(edge[order] < 1, dtype=np.int64)
        first, blocks = accept_selective(wrong[ends], ends + 1, len(scores), value, delta)
        method = "dithered CP-error" if graded else "CP-error"
        return Step(between(s, ends, blocks), method, between(s, ends, first + 1) if blocks else INF)
    loss = (1 if cloud is None else cloud) - edge
    unread = loss > 0 if read is not None else np.zeros(len(loss), bool)
    while True:  # unread losses are 1, the worst case: the blocks that pass would pass with any labels, and the next is tested
        blocks, method = _blocks_within_max_loss(
            units(loss, order, groups), ends, value, delta, graded or groups is not None, cloud is not None or read is not None
        )
        tested = order[: ends[: blocks + 1].max(initial=-1) + 1]
        needed = tested[unread[tested]]
        if read is None or not len(needed):  # the losses beyond have no part in the result
            return Step(between(s, ends, blocks), method)
        loss[needed], unread[needed] = read(needed), False


def _blocks_within_max_loss(all_units: Units, ends: Ints, eps: float, delta: float, sized: bool, wins: bool) -> tuple[int, str]:
    """Return how many leading blocks pass the test of `max_loss`, and the test's name: betting, or a test of counts.

    Losses of any size (`sized`) are bet on if there are enough units, and otherwise rounded at random (dithered).
    """
    if sized and all_units.n * eps >= BETTING * log(1 / delta):
        return accept_betting(all_units.after, all_units.of, ends, all_units.n, eps, delta), "betting"
    h, w = (counts[ends] for counts in all_units.dithered())
    return _accept_counts(h, w, all_units.n, eps, delta, sized, wins)


def accept_losses(losses: Floats, eps: float, delta: float, *, sized: bool, wins: bool) -> tuple[int, str]:
    """Return the number of leading steps whose mean loss passes the max_loss test, and its name, as for blocks of scores.

    Random orders and roundings are the same at each call.

    Args:
        losses: [steps, units], -1..1.
        eps: largest loss.
        delta: largest chance of an error.
        sized: True: losses may be fractions, which betting tests with enough units; with fewer, they are rounded at random.
        wins: True: losses below 0, the cloud's own errors, are observed.
    """
    n = losses.shape[1]
    if sized and n * eps >= BETTING * log(1 / delta):
        order, wealth, reached = np.random.default_rng(ORDER_SEED).permutation(n), _Wealth(n, (1 + eps) / 2, delta), n
        for step, loss in enumerate(losses):
            wealth.x = (1 + loss[order]) / 2
            if (reached := wealth.reaches(reached)) == n:
                return step, "betting"
        return len(losses), "betting"
    happened = np.random.default_rng(UNITS_SEED).random(n) < np.abs(losses)
    h, w = (np.count_nonzero(happened & (sign * losses > 0), axis=1) for sign in (1, -1))
    return _accept_counts(h, w, n, eps, delta, sized, wins)


def _accept_counts(h: Ints, w: Ints, n: int, eps: float, delta: float, sized: bool, wins: bool) -> tuple[int, str]:
    """Return the number of leading counts of harms and wins that pass the max_loss test, and its name."""
    method = relative_method(n, eps, delta, wins=wins)
    return accept_relative(method, h, w, n, eps, delta), f"dithered {method}" if sized else method


def relative_method(n: int, eps: float, delta: float, *, wins: bool) -> str:
    """Return the test for max_loss, chosen before any outcome is seen. wins: True if cloud errors are observed."""
    if not wins or n * eps < FEW * log(1 / delta):
        return "CP-harm"
    return "LR-BB" if n <= MANY else "D-BB"


def accept_relative(method: str, h: Ints, w: Ints, n: int, eps: float, delta: float) -> int:
    """Return the number of leading blocks that pass the max_loss test `method`. h, w: cumulative harms and wins [blocks]."""
    if method == "CP-harm":
        return passed(h <= critical_count(n, eps, delta))
    if method == "D-BB":  # up to the next higher power of two, so that cached tables are shared
        limits = d_limits(n, eps, delta, min(n, 1 << int((h + w).max()).bit_length())) if len(h) else h
        return passed(h - w <= limits[h + w])
    wins = 16
    while True:  # most sequences stop at few wins, and the table grows with their square
        limits = lr_limits(n, eps, delta, wins)
        blocks = passed((w <= wins) & (h <= limits[np.minimum(w, wins)]))
        if blocks == len(w) or w[blocks] <= wins:
            return blocks
        wins *= 2


def accept_selective(wrong: Ints, m: Ints, n: int, alpha: float, delta: float) -> tuple[int, int]:
    """Return the first tested block, and the number of leading blocks that pass the max_error test; 0: none does.

    wrong, m: cumulative errors and examples [blocks]. The first blocks are chosen by rank, not by a fixed score, so the test is
    exact except for the examples at these ranks.
    """
    parts, spare = dict[int, float](), 0.0
    starts = STARTS if n * alpha < 10 * log(1 / delta) else EVEN_STARTS
    for rate, after in zip(starts, [*list(starts)[1:], 1.0], strict=True):
        spare += starts[rate]
        start = max(least_n(alpha, delta * spare), ceil(rate * n))
        if start < after * n or after == 1:  # else so few would prove nothing at this part of the risk
            block = int(np.searchsorted(m, start))
            parts[block] = parts.get(block, 0.0) + spare
            spare = 0.0
    risk, lowest, alive = 0.0, (0, 0), False
    for start, end in pairwise([*parts, len(m)]):
        risk = parts[start] + (risk if alive else 0.0)
        first = lowest[0] if alive else start
        reach = start + passed(wrong[start:end] <= most_of_each(n, alpha, delta * risk)[m[start:end]])
        alive = reach == end
        if reach > start:
            lowest = first, reach
    return lowest


def _by_rank(value: float, delta: float | None, n: int, levels: Floats, below: Ints) -> tuple[int, str]:
    """Return the number of leading blocks to accept for max_defer, and the test. below: examples ranked below each block.

    P(score < the k-th lowest) is Beta(k, n - k + 1), of which the mean is k / (n + 1); NaN is ranked lowest.

    Raises:
        PolicyError: too many examples have no score.
    """
    rank = floor(value * (n + 1)) if delta is None else critical_count(n, value, delta) + 1
    blocks = int(np.count_nonzero(below >= rank)) + 1
    if blocks > len(levels):
        raise PolicyError(f"no threshold defers at most {value:g}: {100 * (below[-1] / n):.1f} % of the examples have no score")
    return blocks, "rank" if delta is None else "Beta"


def passed(ok: Bools) -> int:
    """Return the number of leading True values; 0 for an empty array."""
    return len(ok) if ok.all() else int(ok.argmin())


def between(s: Floats, ends: Ints, blocks: int) -> float:
    """Return the threshold that accepts so many blocks: mid-gap, so that rounding moves no score across; inf for none."""
    if not blocks:
        return INF
    lowest = float(s[ends[blocks - 1]])
    if blocks == len(ends):
        return lowest
    below = float(s[ends[blocks - 1] + 1])
    middle = below / 2 + lowest / 2
    return middle if middle > below else lowest
