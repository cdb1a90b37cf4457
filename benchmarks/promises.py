"""What is guaranteed, and what holds: `python benchmarks/promises.py`, with paths of recorded sets; `--help` tells.

For each task, with e and c how correct edge and cloud are: the share deferred under a certificate that costs at most 1 or 2 points
of the cloud's accuracy, beside the least that the same score could defer (oracle), a threshold that fits the examples (plug-in),
and Hoeffding's bound. The recorded set is taken as the population, so that a threshold's true loss is known, and every method gets
the same n examples drawn from it with replacement: a guarantee is broken if the true loss of its threshold exceeds the limit.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from math import inf, log
from pathlib import Path
from typing import NamedTuple

import numpy as np
import specialist
from figures import SMOKE, size
from recorded import Array, Broken, Task, cascades, routellm, routerarena, table
from routing import apgr, cpt

from edgeroute.confidence import calibrate, crossfit, fit, msp

POINTS = (0.01, 0.02)
DELTA = 0.05
PUBLISHED = (
    ("random, MMLU", 0.500, 50.07, 79.93),
    ("BERT, MMLU", 0.572, 41.30, 72.20),
    ("causal LLM (8B), MMLU", 0.600, 35.49, 70.31),
    ("matrix factorisation, MMLU", 0.597, 35.46, 71.40),
    ("SW ranking, MMLU", 0.603, 35.40, 71.55),
    ("causal LLM (8B), GSM8K", 0.622, 33.64, 63.26),
    ("matrix factorisation, MT Bench", 0.802, 13.40, 31.31),
)
"""RouteLLM's best routers, Mixtral 8x7B and GPT-4: APGR, CPT(50 %), CPT(80 %). Tables 1 to 3 of arXiv:2406.18665v4."""


class Population(NamedTuple):
    """A recorded set, and what each threshold does on it."""

    task: Task
    levels: Array
    """Distinct scores, descending."""
    loss: Array
    """[levels], mean loss against the cloud where scores from this level up are accepted."""
    deferral: Array
    """[levels]."""

    @classmethod
    def of(cls, task: Task) -> Population:
        """From a task."""
        known = ~np.isnan(task.score)
        order = np.argsort(-task.score[known], kind="stable")
        s = task.score[known][order]
        ends = np.flatnonzero(np.append(s[1:] != s[:-1], True))
        lost = np.cumsum((task.cloud - task.edge)[known][order])[ends]
        n = len(task.score)
        return cls(task, s[ends], lost / n, 1 - (ends + 1) / n)

    def truth(self, threshold: float) -> tuple[float, float]:
        """Deferral and loss at a threshold."""
        i = int(np.count_nonzero(self.levels >= threshold)) - 1
        return (float(self.deferral[i]), float(self.loss[i])) if i >= 0 else (1.0, 0.0)

    def oracle(self, eps: float) -> float:
        """The least deferral of this score with a loss of at most eps."""
        good = np.flatnonzero(self.loss <= eps + 1e-12)
        return float(self.deferral[good[-1]]) if good.size else 1.0

    def perfect(self, eps: float) -> float:
        """The least deferral of any score with a loss of at most eps."""
        largest = np.sort(self.task.cloud - self.task.edge)[::-1]
        lost = largest.sum() - np.append(0, largest.cumsum())
        return int((lost <= eps * len(largest) + 1e-9).argmax()) / len(largest)


def certified(score: Array, edge: Array, cloud: Array, eps: float, u: Array) -> float:
    """A threshold with a certificate; inf: none. Partial scores are dithered: right if below u, one u for both sides."""
    if not all(np.isin(side, (0, 1)).all() for side in (edge, cloud)):
        edge, cloud = u < edge, u < cloud
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicates and ties are those of the draw
        return calibrate(score, edge, cloud, max_loss=eps, sure=1 - DELTA).threshold


def plug_in(score: Array, edge: Array, cloud: Array, eps: float) -> float:
    """The lowest threshold with a loss of at most eps on these examples."""
    one = Population.of(Task("", "", score, edge, cloud))
    good = np.flatnonzero(one.loss <= eps + 1e-12)
    return float(one.levels[good[-1]]) if good.size else inf


def hoeffding(score: Array, edge: Array, cloud: Array, eps: float) -> float:
    """The last threshold, from the highest down, whose loss is below eps by Hoeffding's bound of the mean (1963, theorem 1)."""
    one = Population.of(Task("", "", score, edge, cloud))
    mean, limit = np.clip((1 + one.loss) / 2, 1e-12, 1 - 1e-12), (1 + eps) / 2
    apart = mean * np.log(mean / limit) + (1 - mean) * np.log((1 - mean) / (1 - limit))
    passes = (mean < limit) & (len(score) * apart >= log(1 / DELTA))
    kept = len(passes) if passes.all() else int(passes.argmin())
    return float(one.levels[kept - 1]) if kept else inf


class Row(NamedTuple):
    """Of one method, over draws."""

    deferral: float
    broken: float


def measure(population: Population, eps: float, draws: int, seed: int = 0) -> dict[str, Row]:
    """Runs each method on the same draws of as many examples as were recorded."""
    task, rng = population.task, np.random.default_rng(seed)
    n = len(task.score)
    found: dict[str, list[tuple[float, float]]] = {"certified": [], "plug-in": [], "Hoeffding": []}
    for _ in range(draws):
        rows = rng.integers(0, n, n)
        examples = task.score[rows], task.edge[rows], task.cloud[rows], eps
        found["certified"].append(population.truth(certified(*examples, rng.random(n))))
        found["plug-in"].append(population.truth(plug_in(*examples)))
        found["Hoeffding"].append(population.truth(hoeffding(*examples)))
    return {
        name: Row(float(np.mean([d for d, _ in each])), float(np.mean([loss > eps + 1e-9 for _, loss in each])))
        for name, each in found.items()
    }


def report(tasks: list[Task], draws: int) -> Iterator[str]:
    """Lines of both tables."""
    yield "| task | n | edge / cloud | points | certified | oracle | plug-in, broken | Hoeffding | perfect score |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for task in tasks:
        one = Population.of(task)
        means = f"{task.edge.mean():.3f} / {task.cloud.mean():.3f}"
        for eps in POINTS:
            ours, fits, bound = measure(one, eps, draws).values()
            yield (
                f"| {task.name}, by {task.by} | {len(task.score):,} | {means} | {eps * 100:g} | {ours.deferral:.3f}, broken {100 * ours.broken:.1f} % "
                f"| {one.oracle(eps):.3f} | {fits.deferral:.3f}, broken **{100 * fits.broken:.0f} %** | {bound.deferral:.3f} | {one.perfect(eps):.3f} |"
            )
    yield ""
    yield "| router | APGR | CPT(50 %) | CPT(80 %) |"
    yield "| --- | ---: | ---: | ---: |"
    for task in tasks:
        parts = task.score, task.edge, task.cloud
        yield f"| ours: {task.name} | {apgr(*parts):.3f} | {100 * cpt(*parts, 0.5):.2f} % | {100 * cpt(*parts, 0.8):.2f} % |"
    for name, area, half, most in PUBLISHED:
        yield f"| RouteLLM: {name} | {area:.3f} | {half:.2f} % | {most:.2f} % |"


def of_images() -> Iterator[Task]:
    """The shipped pair on its validation images, and an edge that was never taught three classes beside the shipped cloud."""
    pair = specialist.validated()
    yield _images("Fashion-MNIST, the shipped pair", "msp", pair, msp(pair.edge))
    if SMOKE:
        return  # the other is taught for a while
    if not specialist.DEBIAN.is_dir():
        print(
            f"left out: an edge taught on 7 classes: no {specialist.DEBIAN} (apt-get install dataset-fashion-mnist)",
            file=sys.stderr,
        )
        return
    pair = specialist.taught((7, 8, 9))
    edge, cloud = (z.argmax(1) == pair.labels for z in (pair.edge, pair.cloud))
    score = crossfit(lambda rows: lambda others: fit(pair.edge[rows], edge[rows], cloud[rows]).many(pair.edge[others]), len(edge))
    yield _images("Fashion-MNIST, an edge taught on 7 of 10 classes", "a learned score, cross-fitted", pair, score)


def _images(name: str, by: str, pair: specialist.Pair, score: Array) -> Task:
    return Task(name, by, score, *((z.argmax(1) == pair.labels).astype(float) for z in (pair.edge, pair.cloud)))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=size(200, 2))
    parser.add_argument("--fashion", type=Path, default=specialist.DEBIAN, help="folder with Fashion-MNIST's idx.gz files")
    parser.add_argument("--no-images", action="store_true", help="only the recorded sets")
    parser.add_argument(
        "--routerarena",
        type=Path,
        nargs="+",
        help="two of its cached_results/MODEL.jsonl, or a table: question, MODEL_score twice",
    )
    parser.add_argument("--routellm", type=Path, nargs="+", help="tables of routellm/evals: prompt, MODEL twice (True, False)")
    parser.add_argument(
        "--cascades", type=Path, nargs="+", help="pickles of rational-llm-cascades, benchmarks/data/*/chain_results"
    )
    parser.add_argument(
        "--models", nargs=2, default=("", ""), metavar=("EDGE", "CLOUD"), help="of --cascades; else the first and last"
    )
    parser.add_argument("--csv", type=Path, nargs="+", default=[], help="tables as `edgeroute replay --from csv` reads them")
    given = parser.parse_args()
    specialist.DEBIAN = given.fashion
    try:
        tasks = [] if given.no_images else [*of_images()]
        tasks += [routerarena(given.routerarena)] if given.routerarena else []
        tasks += [routellm(given.routellm)] if given.routellm else []
        tasks += [cascades(given.cascades, *given.models)] if given.cascades else []
        tasks += [table(path) for path in given.csv]
    except (Broken, OSError) as e:
        sys.exit(f"error: {e}")
    for text in report(tasks, given.draws):
        print(text, flush=True)


if __name__ == "__main__":
    main()
