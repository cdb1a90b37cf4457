"""Deferral cost of certified thresholds on recorded logits, and run time of `calibrate`: `python benchmarks/calibration.py [splits]`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from figures import MODELS, Figure, medians, python, size, table, timed
from specialist import CASES
from validity import EPS, WALKS, walk

from edgeroute.confidence import Reader, fit, msp
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate

SIZES = size((500, 1000, 2000, 2500), (500,))
"""Calibration set sizes, of 5,000 images; the last is half."""
Array = np.ndarray[Any, np.dtype[Any]]
Choice = Callable[[Array], float]
"""Example indices -> a threshold."""


WHAT = """\
Each split calibrates on n images and looks at the rest, a sample that is itself noisy: the oracle, chosen by the rest's own
labels, is beyond 1 point on all 5,000 in half of the splits. All 5,000 are nearer to the truth and include the n, which
flatters. In the last column the n are drawn with replacement from the 5,000, so that these are all there is, and the share of
broken promises is exact but for the number of splits: it is what the guarantee is about, at most 5 %."""


class Recorded:
    """The shipped pair on its 5,000 validation images, none of which either model was trained on."""

    def __init__(self) -> None:
        with np.load(MODELS / "validation.npz") as file:
            edge, cloud, labels = file["edge_logits"], file["cloud_logits"], file["labels"]
        self.score = msp(edge)
        self.edge, self.cloud = edge.argmax(1) == labels, cloud.argmax(1) == labels
        self.agree = edge.argmax(1) == cloud.argmax(1)
        self.n = len(labels)

    def measure(self, threshold: float, rows: Array) -> tuple[float, float]:
        """Return the deferral rate, and the accuracy loss against the cloud, of a threshold on these examples."""
        kept = self.score[rows] >= threshold
        return 1 - float(kept.mean()), float((kept * (self.cloud[rows] * 1.0 - self.edge[rows])).mean())

    def walked(self, name: str, rows: Array) -> float:
        """Return the threshold by one of the methods of validity.py."""
        return walk(name, self.score[rows], self.edge[rows], self.cloud[rows])

    def certified(self, rows: Array) -> float:
        """Return the threshold of `calibrate`."""
        return calibrate(self.score[rows], self.edge[rows], self.cloud[rows], max_loss=EPS).threshold

    def unlabelled(self, rows: Array) -> float:
        """Return the threshold of `calibrate` without labels, from agreement with the cloud."""
        return calibrate(self.score[rows], self.agree[rows], max_loss=EPS).threshold

    def ways(self) -> dict[str, Choice]:
        """Return name -> method of choosing a threshold."""
        walks = {name: partial(self.walked, name) for name in WALKS if name in {"plug-in", "z-test", "Hoeffding-Bentkus"}}
        return {**walks, "edgeroute": self.certified, "edgeroute, without labels": self.unlabelled}


def deferral(splits: int) -> str:
    """Return a table of the methods' deferral and loss at `max_loss` 1 %, over random splits of the recorded images."""
    recorded = Recorded()
    everything = np.arange(recorded.n)
    lost = recorded.measure(0.0, everything)[1]
    at_best = recorded.measure(recorded.walked("plug-in", everything), everything)[0]
    lines = [
        f"Edge {recorded.edge.mean():.2%}, cloud {recorded.cloud.mean():.2%}; they differ on {(~recorded.agree).mean():.2%}.",
        f"With no image deferred {lost:.2%} is lost; with {at_best:.2%} of them, by their labels, {EPS:.0%}.",
        "",
        WHAT,
        "",
        "| n | way | deferred, mean | 5 to 95 % of splits | loss on the rest | beyond on the rest | beyond on all | beyond, drawn |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n in SIZES:
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in range(splits):
            rng = np.random.default_rng([seed, n])
            order = rng.permutation(recorded.n)
            mine, rest, drawn = order[:n], order[n:], rng.integers(0, recorded.n, n)
            best = recorded.walked("plug-in", rest)
            found.setdefault("oracle", []).append((*recorded.measure(best, rest), recorded.measure(best, everything)[1], np.nan))
            for name, way in recorded.ways().items():
                t = way(mine)
                losses = (recorded.measure(at, everything)[1] for at in (t, way(drawn)))
                found.setdefault(name, []).append((*recorded.measure(t, rest), *losses))
        for name, rows in found.items():
            deferred, on_rest, on_all, truly = np.array(rows).T
            low, high = np.quantile(deferred, (0.05, 0.95))
            broken = ["-" if np.isnan(x).any() else f"{(x > EPS + 1e-12).mean():.1%}" for x in (on_rest, on_all, truly)]
            lines.append(
                f"| {n:,} | {name} | {deferred.mean():.1%} | {low:.1%} to {high:.1%} | {on_rest.mean():.2%} | {' | '.join(broken)} |"
            )
    return "\n".join(lines)


COLD = """
import sys, time
import numpy as np
n, target, value = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
rng = np.random.default_rng(0)
x, u = rng.random(n), rng.random(n)
edge, cloud = u > 0.1 * x, (u > 0.06 * x) | (u < 0.04 * x)
for _ in range(2):
    begun = time.perf_counter()
    from edgeroute.confidence import calibrate
    calibrate(1 - x, edge, cloud if target == "max_loss" else None, **{target.split()[0]: value})
    print(time.perf_counter() - begun)
"""
TARGETS = {"max_loss": 0.01, "max_loss without labels": 0.01, "max_error": 0.03, "max_defer": 0.3}
LIMITS_S = size({1_000: 0.2, 4_000: 2.0, 10_000: 2.0}, {1_000: 0.2})
"""Calibration set sizes to time; 4,000 is the largest for the likelihood ratio, the slowest test."""


def figures(runs: int = size(5, 1)) -> list[Figure]:
    """Return the times of `calibrate` per target, the first call of a process (with its imports) and the next; and of a score."""
    found = []
    for n, limit in LIMITS_S.items():
        for target, value in list(TARGETS.items())[: 1 if n == 4_000 else None]:
            times = [[float(line) for line in python(COLD, n, target, value).split()] for _ in range(runs)]
            first, again = (median(column) for column in zip(*times, strict=True))
            name = f"first `calibrate` of a process, n = {n:,}, {target}; again"
            found.append(timed(name, first, again, limit, shown="s", digits=3, by="alone"))
    pair = CASES["edge is a specialist"](np.random.default_rng(0), 2_000)
    learned = fit(pair.edge, *(logits.argmax(1) == pair.labels for logits in pair[:2]))
    labels = [str(i) for i in range(pair.edge.shape[1])]
    rows = [row[None].astype(np.float32) for row in pair.edge[: size(200, 5)]]
    subjects: dict[str, Callable[[Any], object]] = {"nothing": lambda _: None}
    for name, score in (("msp", "msp"), ("learned", learned)):
        subjects[name] = Reader(score, labels=labels).read_one
    took = medians(subjects, rows)
    for name, most in (("msp", 6), ("learned", 40)):
        found.append(timed(f"{name} and label of 10 logits", took[name], took["nothing"], most, digits=2, by="alone"))
    return found


if __name__ == "__main__":
    print(table(figures()), flush=True)
    print("", deferral(int(sys.argv[1]) if len(sys.argv) > 1 else size(200, 2)), sep="\n")
