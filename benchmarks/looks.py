"""A certificate that is valid at every look: `python benchmarks/looks.py [draws]`.

Six worlds, in each 1,000 streams of labelled audits that are looked at 25 times, from 300 to 10,000 audits: how often a threshold
that loses more than the limit was certified by then, and how much is deferred; beside one look by the exact test of `calibrate`,
and that test at ten looks. The counts and the bets are those of `edgeroute.tools.measure.audit_counts_and_evidence`, for all streams at once.
Then how many audits may differ where there are no wins, by these bets and by the best that any test valid at every look can do.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import log

import numpy as np
from figures import size

from edgeroute.confidence.binomial_tests import critical_count
from edgeroute.core.sequential_tests import GRID
from edgeroute.tools.measure.audit_counts_and_evidence import BETS, FIRST, FUNDS, NONE, LossCounts
from edgeroute.tools.measure.fixed_sequence import lowest_threshold

LIMIT, RISK, MOST = 0.02, 0.05, 10_000
SIZES = (1000, 2000, 5000, MOST)
LOOKS = sorted({int(n) for n in np.geomspace(300, MOST, 22)} | {*SIZES})
TEN = [300, 500, 750, 1000, 1500, 2000, 3000, 5000, 7500, MOST]
FINE = 200_000
Array = np.ndarray
World = Callable[[Array], tuple[Array, Array, Array]]
"""From uniform numbers: scores, and probabilities of a harm and of a win."""


def smooth(u: Array) -> tuple[Array, Array, Array]:
    """Harms and wins are rarer, the surer the edge."""
    return u, 0.4 * (1 - u) ** 2 + 0.002, 0.1 * (1 - u) ** 2 + 0.001


def ties(u: Array) -> tuple[Array, Array, Array]:
    """Eight scores alone."""
    return smooth(np.ceil(u * 8) / 8 - 1 / 16)


def two_levels(u: Array) -> tuple[Array, Array, Array]:
    """Nine of ten inputs have one score; accepted, they lose a little more than the limit."""
    high = u > 0.1
    return np.where(high, 0.8, 0.2), np.where(high, LIMIT * 1.01 / 0.9, 0.0), np.zeros_like(u)


def just_beyond(u: Array) -> tuple[Array, Array, Array]:
    """Nothing is lost above, and what is accepted by the threshold below loses a hundredth more than the limit."""
    return u, np.where(u < 0.5, 0.0, LIMIT * 1.01 / 0.4) * (u < 0.9), np.zeros_like(u)


def harm_below(u: Array) -> tuple[Array, Array, Array]:
    """All harm is in the lower third, where a third is wrong."""
    return u, np.where(u < 1 / 3, 1 / 3, 0.0), np.zeros_like(u)


_USERS = np.random.default_rng(1)
_TRAFFIC = np.cumsum(np.sort(_USERS.pareto(1.2, 200) + 0.01))
_RATES = _USERS.beta(1, 8, 200)


def users(u: Array) -> tuple[Array, Array, Array]:
    """Requests of 200 users of unequal traffic (Pareto), each with another share of harms; scores know little of it."""
    v = (u * 7919.0) % 1  # as good as another uniform number
    rate = _RATES[np.searchsorted(_TRAFFIC, v * _TRAFFIC[-1]).clip(0, 199)]
    return (0.7 * u + 0.3 * (1 - rate)), rate * (1 - 0.8 * u), 0.02 * (1 - u)


WORLDS: dict[str, World] = {
    "smooth": smooth, "ties": ties, "two levels": two_levels, "just beyond the limit": just_beyond,
    "harm below": harm_below, "unequal users": users,
}  # fmt: skip


def truth(world: World) -> tuple[Array, Array]:
    """Return the true loss and deferral rate of each threshold of the grid, [NONE + 1]; the last accepts nothing."""
    score, harm, win = world((np.arange(FINE) + 0.5) / FINE)
    cell = np.searchsorted(GRID, score, "right") - 1
    loss = np.bincount(cell + 1, harm - win, NONE + 1)[1:][::-1].cumsum()[::-1] / FINE
    kept = np.bincount(cell + 1, minlength=NONE + 1)[1:][::-1].cumsum()[::-1] / FINE
    return np.append(loss, 0.0), np.append(1 - kept, 1.0)


def evidence(harms: Array, wins: Array, n: int, limit: float = LIMIT) -> Array:
    """Return the logarithm of the evidence that the loss is below the limit, as `log_evidence`, of arrays of counts."""
    mean, part = (1 + limit) / 2, np.array(BETS)
    harm, win, none = np.log1p(-part), np.log1p(part / (1 - mean) * mean), np.log1p(part / (1 - mean) * limit / 2)
    logs = harms[..., None] * harm + wins[..., None] * win + (n - harms - wins)[..., None] * none
    top = logs.max(-1)
    return top + np.log(np.exp(logs - top[..., None]) @ np.array(FUNDS))


def stream(world: World, draws: int, seed: int) -> tuple[Array, Array]:
    """Draw streams of audits: scores and losses (1, 0, -1), [draws, MOST]."""
    rng = np.random.default_rng(seed)
    score, harm, win = world(rng.random((draws, MOST)))
    luck = rng.random(score.shape)
    return score, (luck < harm) * 1 - ((luck >= harm) & (luck < harm + win)) * 1


def looks(score: Array, loss: Array, at: Sequence[int] = LOOKS, limit: float = LIMIT) -> dict[int, Array]:
    """Return the lowest threshold certified so far, as a place in the grid, [draws], by the number of audits at the look."""
    draws = len(score)
    cell = (np.searchsorted(GRID, score.ravel(), "right") - 1).reshape(score.shape)
    used = np.unique(cell)  # between these, evidence is that of the next higher one
    column = np.searchsorted(used, cell)
    sums = np.zeros((2, draws, len(used)))
    reached, least, before, found = np.full(draws, len(used)), -log(RISK * FIRST), 0, {}
    rows = np.arange(draws)[:, None] * len(used)
    for n in at:
        places, part = (rows + column[:, before:n]).ravel(), loss[:, before:n].ravel()
        for k, sign in enumerate((1, -1)):
            sums[k] += np.bincount(places[part == sign], minlength=draws * len(used)).reshape(draws, -1)
        harms, wins = (side[:, ::-1].cumsum(1)[:, ::-1] for side in sums)
        passes = (evidence(harms, wins, n, limit) >= least) | (np.arange(len(used)) >= reached[:, None])
        leading = passes[:, ::-1].cumprod(1).sum(1)
        reached = np.minimum(reached, len(used) - leading)
        found[n] = np.append(used, NONE)[reached]
        before = n
    return found


def exact(score: Array, loss: Array, n: int) -> float:
    """Threshold of one look by the exact test at this number of audits."""
    edge, cloud = (loss[:n] <= 0).astype(float), (loss[:n] >= 0).astype(float)
    return lowest_threshold("max_loss", LIMIT, RISK, score[:n], edge, cloud).threshold


def check(score: Array, loss: Array, found: dict[int, Array]) -> None:
    """Compare the first stream's result at the fifth look with that of `LossCounts`; raises AssertionError if they differ."""
    counts, reached = LossCounts(), NONE
    for n in range(LOOKS[4]):
        counts.count(float(score[0, n]), int(loss[0, n]))
        if n + 1 in LOOKS:
            reached = counts.lowest(LIMIT, RISK, reached)
    lowest = min((i for _, i, _ in counts.numbers if i >= reached), default=NONE)
    assert truth_of(lowest, score[0]) == truth_of(int(found[LOOKS[4]][0]), score[0])


def truth_of(index: int, score: Array) -> int:
    """Number of scores that a threshold accepts."""
    return int((score[: LOOKS[4]] >= (GRID[index] if index < NONE else np.inf)).sum())


def most(n: int, bets: Array, funds: Array, risk: float) -> int:
    """Return the largest number of harms of n audits that bets certify; -1: not even none."""
    harms, part = np.arange(int(n * LIMIT))[:, None], np.array(bets)
    logs = harms * np.log1p(-part) + (n - harms) * np.log1p(part * LIMIT / (1 - LIMIT)) + np.log(funds)
    return int(np.sum(np.logaddexp.reduce(logs, 1) >= -log(risk))) - 1


def boundary(first: int, last: int, given: Array | None = None) -> tuple[Array, float]:
    """Return the largest numbers of harms that a test certifies, [last + 1], and the exact probability that it is ever broken.

    Args:
        first: number of audits at its first look; it looks at each further audit.
        last: number of audits at its last look.
        given: the numbers of harms; None: as many as the risk allows that is spent evenly over the logarithm of the audits.
    """
    chance, harms, broken, bound = np.zeros(int(2 * LIMIT * last) + 50), np.full(last + 1, -1), 0.0, -1
    chance[0] = 1  # of each number of harms so far, and that none was certified, where the loss is the limit
    for n in range(1, last + 1):
        chance = chance * (1 - LIMIT) + np.append(0, chance[:-1]) * LIMIT
        if n < first:
            continue
        if given is not None:
            bound = int(given[n])
        while given is None and broken + chance[: bound + 2].sum() <= RISK * log(n / first) / log(last / first):
            bound += 1
        broken += float(chance[: bound + 1].sum())
        chance[: bound + 1], harms[n] = 0, bound
    return harms, broken


def costs(n: int, draws: int) -> Callable[[int], Array]:
    """Return a function from a number of harms that is certified to what it defers more than one look, [6], of n audits.

    Wins count as harms, as in audits without labels.
    """
    tables, rng = [], np.random.default_rng(5)
    for world in WORLDS.values():
        score, harm, win = world((np.arange(FINE) + 0.5) / FINE)
        cell = NONE - np.searchsorted(GRID, score, "right")
        mean, kept = np.bincount(cell, harm + win) / FINE, np.bincount(cell) / FINE
        tables.append((rng.poisson(n * mean, (draws, len(mean))).cumsum(1), np.append(1, 1 - kept.cumsum())))

    def deferred(bound: int) -> Array:
        """Return the mean deferral of each world."""
        return np.array([rate[(harms <= bound).sum(1)].mean() for harms, rate in tables])

    one = deferred(critical_count(n, LIMIT, RISK))
    return lambda bound: deferred(bound) - one


def limits(draws: int) -> None:
    """Print how many audits may differ, what these bets cost, and how often a test is broken that costs 5 points at most."""
    print("\n| audits | one look | any look, exact | these bets | best bet for as many alone | they cost, mean, most |")
    print("| ---: | ---: | ---: | ---: | ---: | --- |", flush=True)
    harms, last = boundary(200, 50_000)[0], 50_000
    for n in (500, 2000, MOST, last):
        ours, alone = (
            most(n, BETS, FUNDS, RISK * FIRST),
            max(most(n, [bet], [1.0], RISK) for bet in np.geomspace(0.02, 0.99, 100)),
        )
        cost = costs(n, draws)(ours)
        print(
            f"| {n:,} | {critical_count(n, LIMIT, RISK)} | {harms[n]} | {ours} | {alone} | {cost.mean():.3f}, {cost.max():.3f} |",
            flush=True,
        )
    at, gaps = np.geomspace(500, last, 14).astype(int), []
    for n in at.tolist():
        cost = costs(n, draws)
        least = bisect_left(range(critical_count(n, LIMIT, RISK)), -0.05, key=lambda bound, cost=cost: -cost(bound).max())
        gaps.append((n * LIMIT - 0.5 - least) / n**0.5)
    n = np.arange(1, last + 1)
    given = np.append(-1, np.floor(n * LIMIT - 0.5 - np.interp(np.log(n), np.log(at), gaps) * n**0.5 + 1e-9))
    ever = ", ".join(f"{first:,} on: {boundary(first, last, given)[1]:.3f}" for first in (500, 1000, 2000, 5000))
    print(f"\nA test that costs 5 points at most in each world is ever broken, looking from {ever}")


def main(draws: int) -> None:
    """Print the tables, and the time that it took."""
    begun = time.monotonic()
    print(f"Limit {LIMIT:.0%}, risk {RISK:.0%}, {draws:,} streams, {len(LOOKS)} looks from {LOOKS[0]} to {LOOKS[-1]:,}.\n")
    print(f"| world | ever broken by {', '.join(f'{n:,}' for n in SIZES)} | deferred at 2,000, 10,000 | one look | ", end="")
    print("its ten looks: ever broken |\n| --- | --- | --- | --- | ---: |", flush=True)
    few = max(1, draws // 5)
    for number, (name, world) in enumerate(WORLDS.items()):
        loss_of, rate_of = truth(world)
        broken, deferred = np.zeros((draws, len(LOOKS)), bool), np.zeros((draws, len(LOOKS)))
        for start in range(0, draws, 100):
            part = slice(start, min(draws, start + 100))
            score, loss = stream(world, part.stop - part.start, 1000 * number + start)
            found = looks(score, loss)
            if not start:
                check(score, loss, found)
                ones = [[exact(score[i], loss[i], n) for n in TEN] for i in range(min(few, len(score)))]
            for k, n in enumerate(LOOKS):
                broken[part, k] = loss_of[found[n]] > LIMIT + 1e-9
                deferred[part, k] = rate_of[found[n]]
        ever = [broken[:, : LOOKS.index(n) + 1].any(1).mean() for n in SIZES]
        fine, harm, win = world((np.arange(FINE) + 0.5) / FINE)
        true = [[(((harm - win) * (fine >= t)).mean(), (fine < t).mean()) for t in row] for row in ones]
        single = np.array([[row[TEN.index(n)][1] for n in (2000, MOST)] for row in true]).mean(0)
        again = np.mean([any(loss > LIMIT + 1e-9 for loss, _ in row) for row in true])
        at = [deferred[:, LOOKS.index(n)].mean() for n in (2000, MOST)]
        print(
            f"| {name} | {', '.join(f'{x:.3f}' for x in ever)} | {at[0]:.3f}, {at[1]:.3f} | {single[0]:.3f}, {single[1]:.3f} | "
            f"{again:.3f} |",
            flush=True,
        )
    limits(draws)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else size(1000, 20))
