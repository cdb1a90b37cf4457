"""Coverage and cost of thresholds for graded answers and for groups, by simulation: `python benchmarks/validity_graded.py [draws]`.

Examples are drawn with replacement from large populations, so the true loss of a threshold is known. A guarantee is violated if it
exceeds the limit. The first three populations, and the scenes, are those that the figures in docs/threshold.md are about; the others
are made to be hard: a loss that stays just beyond the limit, few levels of score, and two levels of score.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from figures import size

from edgeroute.confidence import calibrate
from edgeroute.tools.measure.fixed_sequence import accept_betting, accept_relative, between, relative_method, units

EPS, DELTA = 0.01, 0.05
SIZES = size((500, 1000, 2000, 4000), (500,))
SCENES = size((300, 1000, 2000), (300,))
FRAMES = 10
Array = np.ndarray[Any, np.dtype[Any]]


class World(NamedTuple):
    """A population: scores, and how correct edge and cloud are, [size] each."""

    score: Array
    edge: Array
    cloud: Array

    def truth(self) -> Callable[[float], tuple[float, float]]:
        """Return a function: threshold -> its true loss and deferral rate."""
        order = np.argsort(-self.score, kind="stable")
        falling, lost = -self.score[order], np.append(0, (self.cloud - self.edge)[order].cumsum()) / len(order)

        def of(threshold: float) -> tuple[float, float]:
            kept = int(np.searchsorted(falling, -threshold, "right"))
            return float(lost[kept]), 1 - kept / len(falling)

        return of

    def oracle(self) -> float:
        """Return the least deferral rate of a threshold within the limit."""
        order = np.argsort(-self.score, kind="stable")
        lost = (self.cloud - self.edge)[order].cumsum() / len(order)
        ends = np.append(np.diff(self.score[order]) != 0, True)
        within = np.flatnonzero((lost <= EPS) & ends)
        return 1 - (within[-1] + 1) / len(order)


def worlds(of: int = size(400_000, 20_000), seed: int = 1) -> dict[str, World]:
    """Draw the populations of graded answers, by name."""
    rng = np.random.default_rng(seed)
    u = rng.random(of)
    cloud = rng.beta(6, 1.2, of)
    gap = np.where(rng.random(of) < 0.5 * (1 - u) ** 2, rng.random(of), 0)
    large = World(u, np.clip(cloud - gap + np.where(rng.random(of) < 0.03, 0.3 * rng.random(of), 0), 0, 1), cloud)
    cloud = rng.beta(8, 1.5, of)
    small = World(u, np.clip(cloud - 0.24 * (1 - u) ** 1.5 * rng.random(of) + rng.normal(0, 0.05, of), 0, 1), cloud)
    cloud = np.round(np.clip(rng.normal(8.5, 1.2, of), 1, 10)) / 10
    judge = World(u, np.round(np.clip(10 * cloud - rng.poisson(2.2 * (1 - u) ** 1.5), 1, 10)) / 10, cloud)
    beyond = World(u, 0.9 - np.where(u > 0.5, 0.0215 * 2 * rng.random(of), 0.001 * rng.random(of)), np.full(of, 0.9))
    tied = World(np.ceil(u * 20) / 20, large.edge, large.cloud)
    two = World(np.where(u > 0.4, 1.0, 0.0), 1.0 - (rng.random(of) < 0.0175) * rng.random(of) ** 0.1, np.ones(of))
    return {
        "F1, large gaps": large, "F1, small gaps": small, "judge, 1 to 10": judge, "just beyond the limit": beyond,
        "20 levels of score": tied, "2 levels of score": two,
    }  # fmt: skip


def scenes(count: int, rng: np.random.Generator) -> World:
    """Draw so many scenes of frames that look alike and share their luck, [count * FRAMES]."""
    shape = (count, FRAMES)
    alike = rng.random(shape) < 0.7
    score = np.where(alike, np.clip(rng.random((count, 1)) + 0.03 * rng.normal(size=shape), 0, 1), rng.random(shape))
    luck = np.where(rng.random(shape) < 0.7, rng.random((count, 1)), rng.random(shape))
    return World(score.ravel(), (luck >= 0.25 * (1 - score) ** 3).ravel() * 1.0, (luck <= 0.99).ravel() * 1.0)


def threshold(method: str, given: World, groups: Array | None = None) -> float:
    """Return the threshold by "betting", or else by dithering. groups: number of each example's group; None: each is alone."""
    order = np.argsort(-given.score, kind="stable")
    s = given.score[order]
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    found = units(given.cloud - given.edge, order, groups)
    if method == "betting":
        return between(s, ends, accept_betting(found.after, found.of, ends, found.n, EPS, DELTA))
    h, w = (counts[ends] for counts in found.dithered())
    return between(s, ends, accept_relative(relative_method(found.n, EPS, DELTA, wins=True), h, w, found.n, EPS, DELTA))


def allowed(draws: int) -> float:
    """Return the allowed share of violations: delta plus three standard errors."""
    return DELTA + 3 * sqrt(DELTA * (1 - DELTA) / draws)


METHODS = ("betting", "dither")
"""`calibrate` dithers below n = 1,000 here, and bets from there on."""


def graded(draws: int) -> float:
    """Print the table of graded answers; return the largest share of broken promises."""
    print(
        f"| graded answers | oracle | method | {' | '.join(f'n = {n:,}' for n in SIZES)} |\n| --- | ---: | --- |{' ---: |' * len(SIZES)}"
    )
    worst = 0.0
    for seed, (name, world) in enumerate(worlds().items()):
        truth = world.truth()
        cells: dict[str, list[str]] = {method: [] for method in METHODS}
        for n in SIZES:
            rng = np.random.default_rng([seed, n])
            found: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
            for _ in range(draws):
                rows = rng.integers(0, len(world.score), n)
                drawn = World(*(part[rows] for part in world))
                for method in METHODS:
                    found[method].append(truth(threshold(method, drawn)))
            for method, truths in found.items():
                lost, deferred = np.array(truths).T
                broken = float((lost > EPS + 1e-9).mean())
                worst = max(worst, broken)
                cells[method].append(f"{deferred.mean():.3f} / {broken:.1%}")
        for method in METHODS:
            print(f"| {name} | {world.oracle():.3f} | {method} | {' | '.join(cells[method])} |", flush=True)
    return worst


def grouped(draws: int) -> float:
    """Print the table of scenes; return the largest share of broken promises among ours."""
    print(f"\n| scenes of {FRAMES} frames | oracle | examples are | deferred / broken |\n| ---: | ---: | --- | ---: |")
    world = scenes(size(150_000, 5_000), np.random.default_rng(0))
    truth, worst = world.truth(), 0.0
    for count in SCENES:
        groups = np.repeat(np.arange(count), FRAMES)
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(draws):
            drawn = scenes(count, np.random.default_rng([50, seed]))
            single = World(*(part[::FRAMES] for part in drawn))
            for name, at in {
                "frames, as if independent": calibrated(drawn),
                "one frame of each": calibrated(single),
                "groups, betting": threshold("betting", drawn, groups),
                "groups, dither": threshold("dither", drawn, groups),
            }.items():
                found.setdefault(name, []).append(truth(at))
        for name, truths in found.items():
            lost, deferred = np.array(truths).T
            broken = float((lost > EPS + 1e-9).mean())
            worst = max(worst, broken if name.startswith("groups") else 0.0)
            print(f"| {count:,} | {world.oracle():.3f} | {name} | {deferred.mean():.3f} / {broken:.1%} |", flush=True)
    return worst


def calibrated(drawn: World) -> float:
    """Return the threshold by `calibrate` of right and wrong answers, as if the inputs were independent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(*drawn, max_loss=EPS).threshold


def times() -> None:
    """Print how long a calibration takes, by number of examples, beside the limit of 2 s."""
    world = worlds()["F1, small gaps"]
    for n in (1_000, 4_000, 10_000):
        drawn = World(*(part[:n] for part in world))
        taken = []
        for _ in range(5):
            begun = time.perf_counter()
            calibrate(*drawn, max_loss=EPS, metric="F1")
            taken.append(time.perf_counter() - begun)
        print(
            f"n = {n:,}, graded: {sorted(taken)[2]:.3f} s, limit 2 s: {'kept' if sorted(taken)[2] <= 2 else 'MISSED'}", flush=True
        )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else size(1000, 2)
    print(f"Mean true deferral rate / broken promises in {count:,} draws, max_loss {EPS}; allowed: {allowed(count):.1%}.\n")
    times()
    print()
    worst = max(graded(count), grouped(count))
    print(
        f"\nThe largest share of broken promises: {worst:.1%}, allowed {allowed(count):.1%}: {'kept' if worst <= allowed(count) else 'BROKEN'}."
    )
