"""Coverage of the guarantees by simulation, and their deferral cost: `python benchmarks/validity.py [draws]`.

A scenario gives the probabilities of harm (only the cloud is right), win (only the edge is right) and both wrong by score
rank, so the true risk of any threshold is known. A guarantee is violated if the true risk exceeds the target.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from math import ceil, e, log, sqrt
from typing import Any, NamedTuple

import numpy as np
from figures import MODELS, size

from edgeroute.confidence import msp
from edgeroute.confidence.binomial_tests import critical_count
from edgeroute.tools.measure.fixed_sequence import accept_relative, between, passed
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate

EPS, ALPHA, BUDGET, DELTA = 0.01, 0.03, 0.3, 0.05
SIZES = size((500, 1000, 2000, 10000), (500,))
LR_BB = {"A": (0.71, 0.66, 0.62, 0.59), "C": (0.41, 0.30, 0.23, 0.16)}
"""Expected deferral rates per size, tolerance .02."""
Array = np.ndarray[Any, np.dtype[Any]]


class Scenario(NamedTuple):
    """A scenario: equal-probability bins of inputs, from the most confident."""

    name: str
    harm: Array
    win: Array
    both: Array
    """[bins], probabilities."""
    score: Array | None = None
    """[bins], non-increasing; None: no ties."""

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Array, Array, Array]:
        """Draw n examples: score, edge_correct, cloud_correct."""
        place = rng.random(n) * len(self.harm)
        i = place.astype(int)
        u = rng.random(n)
        harm, win, both = (
            (low <= u) & (u < high)
            for low, high in (
                (0, self.harm[i]),
                (self.harm[i], self.harm[i] + self.win[i]),
                (self.harm[i] + self.win[i], (self.harm + self.win + self.both)[i]),
            )
        )
        score = 1 - place / len(self.harm) if self.score is None else self.score[i]
        return score, ~(harm | both), ~(win | both)

    def truth(self, threshold: float) -> tuple[float, float, float]:
        """Return the true loss, error among accepted answers and deferral rate at a threshold."""
        bins = len(self.harm)
        accepted = min(max(1 - threshold, 0.0), 1.0) if self.score is None else float((self.score >= threshold).mean())

        def upto(chances: Array) -> float:
            return float(np.interp(accepted * bins, np.arange(bins + 1), np.append(0, np.cumsum(chances)))) / bins

        wrong = upto(self.harm) + upto(self.both)
        return upto(self.harm) - upto(self.win), wrong / accepted if accepted else 0.0, 1 - accepted


def scenarios() -> dict[str, Scenario]:
    """Return the scenarios by name; A and C have an oracle deferral of .56 and .11 at eps = 1 %."""
    x = (np.arange(2000) + 0.5) / 2000

    def power(oracle: float, p: float, r: float, won: float) -> tuple[Array, Array]:
        """Cumulative harms grow as a^p and wins as a^r up to rank a; at the oracle's rank they are eps + won, and won."""
        return (EPS + won) * p * x ** (p - 1) / oracle**p, won * r * x ** (r - 1) / oracle**r

    both = 0.01 + 0.04 * x
    a = power(0.44, 3, 2, 0.003)
    edge, cloud, labels = (np.load(MODELS / "validation.npz")[k] for k in ("edge_logits", "cloud_logits", "labels"))
    order = np.argsort(-msp(edge), kind="stable")
    right = (edge.argmax(1) == labels)[order], (cloud.argmax(1) == labels)[order]
    return {
        "A": Scenario("typical", *a, both),
        "C": Scenario("strong edge", *power(0.89, 3, 1, 0.004), both),
        "P": Scenario(
            "plateau: the loss stays just beyond eps",
            np.select([x < 0.2, x < 0.3], [0.005, 0.10], 0.05),
            np.select([x < 0.3], [0.0], 0.05),
            both,
        ),
        "S": Scenario(
            "specialist: the loss comes back below eps",
            np.select([x < 0.2, x < 0.5], [0.0, 0.08], 0.01),
            np.select([x < 0.5, x < 0.9], [0.004, 0.06], 0.01),
            both,
        ),
        "T": Scenario(
            "tied: A, a third at the top level of 8 bits", *a, both, np.where(x < 1 / 3, 1, np.ceil((1 - x) * 255) / 255)
        ),
        "R": Scenario(
            "the shipped pair, drawn with replacement from 5,000 images",
            (right[1] & ~right[0]).astype(float),
            (right[0] & ~right[1]).astype(float),
            (~right[0] & ~right[1]).astype(float),
            msp(edge)[order],
        ),
    }


def plug_in(h: Array, w: Array, n: int) -> int:
    """Return how far the plug-in goes: to the lowest threshold with an empirical loss of at most eps."""
    kept = np.flatnonzero(h - w <= EPS * n)
    return int(kept[-1]) + 1 if len(kept) else 0


def z_test(h: Array, w: Array, n: int) -> int:
    """Return how far the z-test goes, by a normal approximation."""
    d = (h - w) / n
    return passed(d + 1.6449 * np.sqrt(((h + w) / n - d * d) / n) <= EPS)


def hoeffding_bentkus(h: Array, w: Array, n: int) -> int:
    """Return how many steps of a walk pass Hoeffding-Bentkus on the loss per input, rescaled from -1..1 to 0..1."""
    mean, target = (1 + (h - w) / n) / 2, (1 + EPS) / 2
    kl = mean * np.log(mean / target) + (1 - mean) * np.log((1 - mean) / (1 - target))
    bentkus = np.ceil(n * mean) <= critical_count(n, target, DELTA / e)
    return passed((mean < target) & ((n * kl >= log(1 / DELTA)) | bentkus))


def _exact(method: str) -> Callable[[Array, Array, int], int]:
    return lambda h, w, n: accept_relative(method, h, w, n, EPS, DELTA)


WALKS = {
    "plug-in": plug_in,
    "z-test": z_test,
    "Hoeffding-Bentkus": hoeffding_bentkus,
    "CP-harm": _exact("CP-harm"),
    "D-BB": _exact("D-BB"),
    "LR-BB": _exact("LR-BB"),
}
TARGETS: dict[str, dict[str, Any]] = {
    "max_loss": {"max_loss": EPS},
    "max_error": {"max_error": ALPHA},
    "max_defer": {"max_defer": BUDGET},
    "max_defer, on average": {"max_defer": BUDGET, "sure": None},
}
OURS = ("CP-harm", "D-BB", "LR-BB", *TARGETS)


def walk(name: str, score: Array, edge: Array, cloud: Array) -> float:
    """Return the threshold by one of `WALKS`."""
    order = np.argsort(-score, kind="stable")
    s = score[order]
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    h, w = (np.cumsum(found[order], dtype=np.int64)[ends] for found in (cloud & ~edge, edge & ~cloud))
    return between(s, ends, WALKS[name](h, w, len(s)))


class Result(NamedTuple):
    """Results over draws."""

    deferral: float
    """Mean true deferral rate."""
    broken: float
    """Share of draws that violate the guarantee; for an average, 1 or 0."""


def run(scenario: Scenario, n: int, draws: int, seed: int = 0) -> dict[str, Result]:
    """Run each method on the same draws, and return by method the mean deferral and the share of broken promises."""
    rng = np.random.default_rng([seed, n])
    truths: dict[str, list[tuple[float, float, float]]] = {name: [] for name in (*WALKS, *TARGETS)}
    for _ in range(draws):
        examples = scenario.draw(rng, n)
        for name in WALKS:
            truths[name].append(scenario.truth(walk(name, *examples)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ties are intended in one scenario
            for name, target in TARGETS.items():
                truths[name].append(scenario.truth(calibrate(*examples, **target).threshold))
    results = {}
    for name, found in truths.items():
        loss, error, deferral = np.array(found).T
        if name == "max_defer, on average":
            broken = float(deferral.mean() > BUDGET + 3 * deferral.std() / sqrt(draws))
        elif name == "max_defer":
            broken = float((deferral > BUDGET).mean())
        else:
            broken = float((error > ALPHA if name == "max_error" else loss > EPS + 1e-12).mean())
        results[name] = Result(float(deferral.mean()), broken)
    return results


def allowed(draws: int) -> float:
    """Return the allowed share of violations: delta plus three standard errors."""
    return DELTA + 3 * sqrt(DELTA * (1 - DELTA) / draws)


def _validity(draws: int) -> None:
    """Print the tables of all scenarios, the worst share of broken promises of each method, and the deferral that is aimed at."""
    print(f"\nMean deferral rate / broken promises in {draws:,} draws; allowed: {allowed(draws):.1%} (5 % + 3 standard errors).")
    print(f"max_loss is {EPS:.0%}, max_error {ALPHA:.0%}, max_defer {BUDGET:.0%}; `max_loss` takes its test by n.\n")
    sizes = " | ".join(f"n = {n:,}" for n in SIZES)
    worst = dict.fromkeys((*WALKS, *TARGETS), 0.0)
    tight = []
    for seed, (key, scenario) in enumerate(scenarios().items()):
        results = [run(scenario, n, draws, seed) for n in SIZES]
        print(f"| {key}: {scenario.name} | {sizes} |\n| --- |" + " ---: |" * len(SIZES))
        for name in worst:
            worst[name] = max(worst[name], *(r[name].broken for r in results))
            cells = [f"{r[name].deferral:.3f} / {r[name].broken:.1%}" for r in results]
            print(f"| {name} | {' | '.join(cells)} |")
        print(flush=True)
        for n, result, aim in zip(SIZES, results, LR_BB.get(key, ()), strict=False):
            tight.append((key, n, result["LR-BB"].deferral, aim))
    print("| | worst share of broken promises | |\n| --- | ---: | --- |")
    for name, share in worst.items():
        print(
            f"| {name} | {share:.1%} | {'kept' if share <= allowed(draws) else 'BROKEN'}{'' if name in OURS else ', for comparison'} |"
        )
    print("\n| LR-BB, deferral | ours | aimed at | |\n| --- | ---: | ---: | --- |")
    for key, n, ours, aim in tight:
        print(f"| {key}, n = {n:,} | {ours:.3f} | {aim:.2f} | {'kept' if abs(ours - aim) <= 0.02 else 'MISSED'} |")


def _splits(count: int = size(200, 2)) -> None:
    """Calibrate on one half of the recorded images, evaluate on the other, over random splits, and print the table."""
    data = np.load(MODELS / "validation.npz")
    score = msp(data["edge_logits"])
    edge, cloud = (data[k].argmax(1) == data["labels"] for k in ("edge_logits", "cloud_logits"))
    agree = data["edge_logits"].argmax(1) == data["cloud_logits"].argmax(1)
    found: dict[str, list[tuple[float, float]]] = {}
    for i in range(count):
        mine, other = np.array_split(np.random.default_rng(i).permutation(len(score)), 2)
        thresholds = {
            "oracle (chosen on the other half)": walk("plug-in", score[other], edge[other], cloud[other]),
            **{name: walk(name, score[mine], edge[mine], cloud[mine]) for name in ("plug-in", "Hoeffding-Bentkus", "CP-harm")},
            "CP-harm without labels": calibrate(score[mine], agree[mine], max_loss=EPS).threshold,
            "max_loss": calibrate(score[mine], edge[mine], cloud[mine], max_loss=EPS).threshold,
        }
        for name, threshold in thresholds.items():
            accepted = score[other] >= threshold
            loss = (accepted & cloud[other] & ~edge[other]).mean() - (accepted & edge[other] & ~cloud[other]).mean()
            found.setdefault(name, []).append((1 - accepted.mean(), loss))
    print(f"\nThe shipped pair's recorded logits, cloud - 1 point: {count} random splits, n = {len(mine):,} to calibrate.")
    print("(Loss on the other half is itself a sample; table R knows the truth.)\n")
    print(
        "| | deferral, mean | 5 to 95 % of splits | loss on the other half, mean | beyond 1 point |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, values in found.items():
        deferral, losses = np.array(values).T
        low, high = np.quantile(deferral, (0.05, 0.95))
        print(f"| {name} | {deferral.mean():.3f} | {low:.3f} to {high:.3f} | {losses.mean():.2%} | {(losses > EPS).mean():.1%} |")


if __name__ == "__main__":
    begun = time.perf_counter()
    _splits()
    _validity(int(sys.argv[1]) if len(sys.argv) > 1 else size(1000, 2))
    print(f"\n{ceil(time.perf_counter() - begun)} s")
