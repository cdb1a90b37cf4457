"""Share of promises of thresholds that are kept, and their cost: `python benchmarks/promises.py`, with paths of recorded sets.

For each set, with e and c how correct edge and cloud are: thresholds that are to cost at most 1 or 2 points of the cloud's accuracy,
by `calibrate`, by usual rules and by those of other packages (`promise_methods.py`). The recorded set is taken as the population, so
that a threshold's true loss is known, and every rule gets the same n examples drawn from it with replacement: a promise is broken if
the true loss of its threshold exceeds the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import promise_methods
import specialist
from figures import SMOKE, size
from promise_methods import RULES, Draw
from recorded import Array, Broken, Task, cascades, clinc, outcomes, routellm, routerarena
from routing import apgr, cpt

from edgeroute import errors
from edgeroute.confidence import crossfit, fit, msp

POINTS = (0.01, 0.02)
PACKAGES = 1
"""Draws of each set and limit on which the packages themselves are run: some take ten seconds for one."""
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
    share: Array
    """[n], for each request the share of requests with a higher score; 1 where it has none."""

    @classmethod
    def of(cls, task: Task) -> Population:
        """Make a population of a recorded set: the loss and deferral of each of its scores as a threshold, and each score's rank."""
        known = ~np.isnan(task.score)
        order = np.argsort(-task.score[known], kind="stable")
        s = task.score[known][order]
        ends = np.flatnonzero(np.append(s[1:] != s[:-1], True))
        lost = np.cumsum((task.cloud - task.edge)[known][order])[ends]
        n = len(task.score)
        above = np.append(0, ends + 1) / n
        share = np.ones(n)
        share[known] = above[np.searchsorted(-s[ends], -task.score[known])]
        return cls(task, s[ends], lost / n, 1 - (ends + 1) / n, share)

    def truth(self, threshold: float) -> tuple[float, float]:
        """Return deferral and loss at a threshold."""
        i = int(np.count_nonzero(self.levels >= threshold)) - 1
        return (float(self.deferral[i]), float(self.loss[i])) if i >= 0 else (1.0, 0.0)

    def oracle(self, eps: float) -> float:
        """Return the least deferral of this score with a loss of at most eps."""
        good = np.flatnonzero(self.loss <= eps + 1e-12)
        return float(self.deferral[good[-1]]) if good.size else 1.0

    def perfect(self, eps: float) -> float:
        """Return the least deferral of any score with a loss of at most eps."""
        largest = np.sort(self.task.cloud - self.task.edge)[::-1]
        lost = largest.sum() - np.append(0, largest.cumsum())
        return int((lost <= eps * len(largest) + 1e-9).argmax()) / len(largest)


class Row(NamedTuple):
    """Of one rule, over draws."""

    deferral: float
    """Mean, of the recorded requests."""
    broken: float
    """Share of the draws with a threshold beyond the limit, at any look."""
    labels: float
    """Mean number of examples whose right answer had to be known."""
    seconds: float
    """Mean time of a choice."""


def drawn(population: Population, eps: float, rng: np.random.Generator) -> Draw:
    """Draw as many examples as were recorded, with replacement.

    A partly correct answer is right if its score is above a random number. That number is the same for both sides.
    """
    task = population.task
    n = len(task.score)
    rows, u = rng.integers(0, n, n), rng.random(n)
    edge, cloud = ((u < side[rows]).astype(float) for side in (task.edge, task.cloud))
    agree = None if task.agree is None else task.agree[rows]
    return Draw(task.score[rows], edge, cloud, agree, eps, population.share[rows])


def measure(population: Population, eps: float, draws: int, seed: int = 0) -> dict[str, Row]:
    """Apply each rule to the same draws, and return by rule the means of deferral, broken promises, labels and seconds.

    A rule that needs to know where the answers agree is left out of sets without that; slow ones take only some of the draws.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for number in range(draws):
        draw = drawn(population, eps, rng)
        for rule in RULES:
            if (rule.agree and draw.agree is None) or number % rule.every:
                continue
            chosen, seconds = promise_methods.timed(rule, draw)
            deferral, loss = population.truth(chosen.threshold)
            most = max([loss, *(population.truth(threshold)[1] for threshold in {*chosen.before})])
            found.setdefault(rule.name, []).append((deferral, most > eps + 1e-9, chosen.labels, seconds))
    return {name: Row(*np.mean(each, 0).tolist()) for name, each in found.items()}


def report(tasks: list[Task], draws: int) -> Iterator[str]:
    """Yield the lines of the tables: one for each set, and at the end that of the routers' metrics."""
    for task in tasks:
        one = Population.of(task)
        rows = {eps: measure(one, eps, draws) for eps in POINTS}
        yield f"**{task.name}**, by {task.by}; n = {len(task.score):,}, edge {task.edge.mean():.3f}, cloud {task.cloud.mean():.3f}"
        yield ""
        yield f"| rule | promised with | {' | '.join(f'{eps:.0%}: broken | deferred | labels' for eps in POINTS)} | ms |"
        yield f"| --- | --- |{' ---: |' * (3 * len(POINTS) + 1)}"
        for rule in RULES:
            if rule.name not in rows[POINTS[0]]:
                yield f"| {rule.name} | {rule.promises} |{' - |' * (3 * len(POINTS) + 1)}"
                continue
            of = [each[rule.name] for each in rows.values()]
            cells = " | ".join(f"{100 * row.broken:.1f} % | {row.deferral:.3f} | {row.labels:,.0f}" for row in of)
            yield f"| {rule.name} | {rule.promises} | {cells} | {1000 * np.mean([row.seconds for row in of]):.1f} |"
        for name, least in (("oracle, the same score", one.oracle), ("oracle, a perfect score", one.perfect)):
            yield f"| {name} | | {' | '.join(f'- | {least(eps):.3f} | -' for eps in POINTS)} | - |"
        yield ""
    yield "| router | APGR | CPT(50 %) | CPT(80 %) |"
    yield "| --- | ---: | ---: | ---: |"
    for task in tasks:
        parts = task.score, task.edge, task.cloud
        yield f"| ours: {task.name} | {apgr(*parts):.3f} | {100 * cpt(*parts, 0.5):.2f} % | {100 * cpt(*parts, 0.8):.2f} % |"
    for name, area, half, most in PUBLISHED:
        yield f"| RouteLLM: {name} | {area:.3f} | {half:.2f} % | {most:.2f} % |"


def with_packages(python: Path, tasks: list[Task]) -> Iterator[str]:
    """Yield the lines of a table of the packages themselves on a few of the same draws, beside the rules that are written down here.

    Runs `promise_peers.py` with that Python, and reports if it fails.
    """
    draws: list[Draw] = []
    for task in tasks:
        one = Population.of(task)
        for eps in POINTS:
            rng = np.random.default_rng(0)
            draws += [drawn(one, eps, rng) for _ in range(size(PACKAGES, 1))]
    arrays = {"eps": np.array([draw.eps for draw in draws])}
    for i, draw in enumerate(draws):
        differ = np.zeros(0, bool) if draw.agree is None else ~draw.agree.astype(bool)
        arrays |= {f"rank{i}": 1 - draw.share, f"harm{i}": draw.loss == 1, f"differ{i}": differ}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draws.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type] - its keyword of another type is not given
        program = Path(__file__).with_name("promise_peers.py")
        try:
            done = subprocess.run([python, program, path], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as e:
            yield f"The packages were not run: {getattr(e, 'stderr', '') or e}".strip().splitlines()[-1]
            return
    yield "| package | draws | accepts as many as its rule | largest difference | seconds, most |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for rule in RULES:
        mine = [line for line in lines if line["row"] == rule.name]
        for line in mine:
            if "failed" in line:
                yield f"| {rule.name} | not run: {line['failed']} | | | |"
        ran = [line for line in mine if "failed" not in line]
        if ran:
            counts = [int((draws[line["draw"]].score >= rule.choose(draws[line["draw"]]).threshold).sum()) for line in ran]
            apart = [abs(line["accepts"] - count) for line, count in zip(ran, counts, strict=True)]
            most = max(line["seconds"] for line in ran)
            yield f"| {rule.name} ({ran[0]['version']}) | {len(ran)} | {apart.count(0)} | {max(apart)} | {most:.2f} |"


def of_images() -> Iterator[Task]:
    """Yield the shipped pair on its validation images, and an edge that was never taught three classes beside the shipped cloud.

    The second is taught here, unless the size is the smallest, or its data are missing, which is printed to stderr.
    """
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
    edge, cloud = pair.edge.argmax(1), pair.cloud.argmax(1)
    return Task(name, by, score, (edge == pair.labels) * 1.0, (cloud == pair.labels) * 1.0, edge == cloud)


def main() -> None:
    """Read the recorded sets that are named, and print the tables; ends with an error for a file of another shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=size(300, 2))
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
    parser.add_argument("--clinc", type=Path, help="CLINC150, a .csv or .csv.gz with the columns split, text, intent")
    parser.add_argument(
        "--outcomes", "--csv", type=Path, nargs="+", default=[],
        help="recorded outcomes, .csv or .jsonl: confidence, edge_score and cloud_score (0..1), perhaps agree",
    )  # fmt: skip
    parser.add_argument("--packages", type=Path, metavar="PYTHON", help="Python of an environment with the packages of others")
    given = parser.parse_args()
    specialist.DEBIAN = given.fashion
    try:
        tasks = [] if given.no_images else [*of_images()]
        tasks += [routerarena(given.routerarena)] if given.routerarena else []
        tasks += [routellm(given.routellm)] if given.routellm else []
        tasks += [cascades(given.cascades, *given.models)] if given.cascades else []
        tasks += [clinc(given.clinc)] if given.clinc else []
        tasks += [outcomes(path) for path in given.outcomes]
    except (errors.BadInput, Broken, OSError) as e:
        sys.exit(f"error: {e}")
    for text in report(tasks, given.draws):
        print(text, flush=True)
    for text in with_packages(given.packages, tasks) if given.packages else ():
        print(text, flush=True)


if __name__ == "__main__":
    main()
