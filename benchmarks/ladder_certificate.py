"""One certificate for a ladder of two edge models, by simulation: `python benchmarks/ladder_certificate.py [draws]`.

First how often the guarantee of `calibrate(..., edge="all")` is broken, in six worlds; then how much is deferred beside other ways to
set the thresholds. A world is a finite population from which examples are drawn with replacement, so the true loss is known.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from math import inf, log, sqrt
from typing import Any, NamedTuple

import numpy as np
from figures import size

from edgeroute.tools.measure.critical_counts import least_n
from edgeroute.tools.measure.fixed_sequence import lowest_threshold
from edgeroute.tools.measure.thresholds_of_several_edges import accepting, lowest_thresholds

DELTA, LIMIT = 0.05, 0.02
SIZES = size((500, 1000, 2000, 5000), (500,))
PEOPLE = size(20_000, 2000)
BINS = 200
Array = np.ndarray[Any, np.dtype[Any]]


class World(NamedTuple):
    """A population, with the scores of both edge models and what is lost where an answer is accepted."""

    score: Array
    """[N, 2]."""
    loss: Array
    """[N, 2]: 1 if only the cloud is right, -1 if only the edge is."""
    user: Array | None = None
    """[N], numbers of users, each of whom counts the same; None: each input does."""

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Array, Array, Array | None]:
        """Draw n inputs, or all inputs of n users: scores, losses, and the number of each input's draw (None without users)."""
        if self.user is None:
            rows = rng.integers(0, len(self.score), n)
            return self.score[rows], self.loss[rows], None
        first = np.searchsorted(self.user, np.arange(self.user[-1] + 2))
        drawn = rng.integers(0, self.user[-1] + 1, n)
        counts = first[drawn + 1] - first[drawn]
        group = np.repeat(np.arange(n), counts)
        rows = np.arange(len(group)) - np.repeat(counts.cumsum() - counts, counts) + first[drawn][group]
        return self.score[rows], self.loss[rows], group

    def truth(self, thresholds: tuple[float, ...]) -> tuple[float, float]:
        """Return the true loss and deferral rate of these thresholds; with users each user counts alike."""
        model = accepting(self.score, thresholds)
        lost = np.where(model < 2, self.loss[np.arange(len(model)), np.minimum(model, 1)], 0)
        weights = None if self.user is None else 1 / np.bincount(self.user)[self.user]
        return float(np.average(lost, weights=weights)), float(np.average(model == 2, weights=weights))


def typical(rng: np.random.Generator, n: int, hard: Array) -> World:
    """Return a world of a small and a larger edge model, which err more on hard inputs, before a cloud that errs as well."""
    scores, losses = [], []
    wrong = rng.random(n) < 0.5 / (1 + np.exp(2.5 * (2.6 - hard))) + 0.01
    for skill, base in ((0.9, -1.2), (1.7, -1.6)):
        evidence = skill - hard + rng.normal(size=n) / 2
        scores.append(evidence + rng.normal(size=n) / 2)
        losses.append((rng.random(n) < 1 / (1 + np.exp(2.2 * evidence - base))) * 1.0 - wrong)
    return World(np.stack(scores, 1), np.stack(losses, 1))


def by_rank(rng: np.random.Generator, n: int, harm: Callable[[int, Array], Array], win: Callable[[int, Array], Array]) -> World:
    """Draw a world by both models' chances of harm and win by the rank of their score, from the best; ranks are independent."""
    rank = rng.random((n, 2))
    chance = rng.random((n, 2))
    harms, wins = (np.stack([part(k, rank[:, k]) for k in (0, 1)], 1) for part in (harm, win))
    return World(1 - rank, (chance < harms) * 1.0 - (chance > 1 - wins))


def worlds() -> dict[str, World]:
    """Return the six worlds, by name; always the same."""
    rng = np.random.default_rng(0)
    plain = typical(rng, PEOPLE, rng.normal(size=PEOPLE))
    sizes = rng.integers(1, 6, PEOPLE // 4)
    user = np.repeat(np.arange(len(sizes)), sizes)
    users = typical(rng, len(user), (rng.normal(size=len(sizes)) * np.where(sizes < 3, 1.3, 0.5))[user])
    plateau = [0.3, 0.3]
    return {
        "typical": plain,
        "ties: scores of eight levels": plain._replace(score=np.round(plain.score)),
        "two levels": plain._replace(score=(plain.score > np.median(plain.score, 0)) * 1.0),
        "loss just beyond the limit": by_rank(
            rng, PEOPLE,
            lambda k, rank: np.select([rank < 0.2, rank < plateau[k]], [0.01, 0.1], 0.05),
            lambda k, rank: np.where(rank < plateau[k], 0.0, 0.05),
        ),
        "harm below a rank": by_rank(
            rng, PEOPLE, lambda k, rank: np.where(rank < (0.5, 0.7)[k], 0.0, 0.5), lambda _, rank: np.zeros_like(rank)
        ),
        "unequal users": users._replace(user=user),
    }  # fmt: skip


def one_by_one(limits: Callable[[float], float], risk: float) -> Callable[..., tuple[float, ...]]:
    """Return a function that sets the thresholds one by one, each on the inputs that the models before it defer.

    limits: gives the limit of a model's loss for the bound of the share that reaches it.
    """

    def thresholds(score: Array, loss: Array) -> tuple[float, ...]:
        rows, reach, found = np.arange(len(score)), 1.0, list[float]()
        for k in (0, 1):
            limit = limits(reach)
            edge, cloud = 1 - np.maximum(loss[rows, k], 0), 1 + np.minimum(loss[rows, k], 0)
            enough = len(rows) >= least_n(limit, risk)
            found.append(lowest_threshold("max_loss", limit, risk, score[rows, k], edge, cloud).threshold if enough else inf)
            left = score[rows, k] < found[-1]
            reach = min(1.0, left.mean() + sqrt(log(2 / (DELTA / 10)) / (2 * len(rows))))
            rows = rows[left]
        return tuple(found)

    return thresholds


def ways(eps: float) -> dict[str, Callable[..., tuple[float, ...]]]:
    """Ways to set both thresholds, by name."""
    return {
        "the limit for each": one_by_one(lambda _: eps, DELTA),
        "half for each": one_by_one(lambda _: eps / 2, DELTA / 2),
        "half, and half over the share": one_by_one(lambda reach: eps / 2 / reach, 0.45 * DELTA),
        "together": lambda score, loss: lowest_thresholds(eps, DELTA, score, loss, wins=True).thresholds,
    }


def oracle(world: World, eps: float) -> float:
    """Return the least deferral rate within the limit, over quantiles of the scores of the population."""
    cuts = np.quantile(world.score, np.linspace(0, 1, BINS), axis=0)
    place = np.stack([np.searchsorted(cuts[:, k], world.score[:, k], "right") for k in (0, 1)], 1)
    ones, first, second = (
        np.histogram2d(*place.T, bins=BINS + 1, range=[[0, BINS + 1]] * 2, weights=weights)[0] / len(place)
        for weights in (None, *world.loss.T)
    )
    deferred = np.pad(ones.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    accepted_second = second.cumsum(0)[:, ::-1].cumsum(1)[:, ::-1]
    lost = first.sum(1)[::-1].cumsum()[::-1]
    loss = np.append(lost, 0)[:, None] + np.pad(accepted_second, ((1, 0), (0, 1)))
    return float(deferred[loss <= eps].min())


def main(draws: int) -> None:
    """Print both tables; end with an error if a guarantee is broken too often."""
    begun, rng, bad = time.monotonic(), np.random.default_rng(1), list[str]()
    allowed = DELTA + 3 * sqrt(DELTA * (1 - DELTA) / draws)
    print(f'`max_loss={LIMIT:g}`, `edge="all"`: broken in / deferred, {draws:,} draws; at most {allowed:.3f} may be broken\n')
    print("| world | " + " | ".join(f"n = {n:,}" for n in SIZES) + " |\n| --- |" + " ---: |" * len(SIZES))
    for name, world in worlds().items():
        cells = []
        for n in SIZES:
            truths = []
            for _ in range(draws):
                score, loss, group = world.draw(rng, n)
                found = lowest_thresholds(LIMIT, DELTA, score, loss, wins=True, groups=group)
                truths.append(world.truth(found.thresholds))
            broken, deferred = np.mean([[loss > LIMIT, rate] for loss, rate in truths], 0)
            cells.append(f"{broken:.3f} / {deferred:.3f}")
            if broken > allowed:
                bad.append(f"{name}, {n}: {broken:.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    world, repeated = worlds()["typical"], max(1, draws // 10)
    print(f"\nThe typical world, deferred / broken in, {repeated:,} draws\n")
    print("| limit, examples | " + " | ".join(ways(LIMIT)) + " | oracle |\n| --- |" + " ---: |" * (len(ways(LIMIT)) + 1))
    for eps in (0.01, 0.02):
        for n in SIZES[2:]:
            cells = []
            for way in ways(eps).values():
                truths = [world.truth(way(*world.draw(rng, n)[:2])) for _ in range(repeated)]
                broken, deferred = np.mean([[loss > eps, rate] for loss, rate in truths], 0)
                cells.append(f"{deferred:.3f} / {broken:.2f}")
            print(f"| {eps:.0%}, {n:,} | " + " | ".join(cells) + f" | {oracle(world, eps):.3f} |", flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s")
    if bad:
        sys.exit("broken too often: " + "; ".join(bad))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else size(1000, 2))
