"""Time and size of a score of the prompt alone, and its ranking of recorded prompts: `python benchmarks/prompts.py [FILE.csv]`.

The time is shown beside that of counting the same text's words, `Counter(text.lower().split())`. FILE.csv has the columns prompt,
edge and cloud: each answer's correctness, 0 to 1. Shown of it: APGR, the area under the recovered share of the gap between edge
and cloud over the share of calls (.5 is chance), and CPT50, the share of calls that recovers half of the gap (Ong et al., 2024).
"""

from __future__ import annotations

import csv
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from figures import size

from edgeroute import InputScore
from edgeroute.confidence import fit, prompt_features

Array = np.ndarray[Any, np.dtype[Any]]
WORDS = [
    "what",
    "is",
    "the",
    "name",
    "of",
    "a",
    "river",
    "in",
    "this",
    "country",
    "and",
    "how",
    "many",
    "people",
    "live",
    "near",
    "its",
    "end",
    "today",
]


def examples(n: int, length: int) -> tuple[list[str], Array, Array]:
    """Return drawn prompts of so many words, and the correctness of both answers; a prompt about people is hard for the edge."""
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(WORDS, length)) + f" {i}?" for i in range(n)]
    hard = np.array(["people live" in prompt for prompt in prompts])
    return prompts, rng.random(n) < np.where(hard, 0.3, 0.9), rng.random(n) < 0.95


def microseconds(call: Callable[[], Any]) -> float:
    """Return the least mean time of ten calls in repeated runs, microseconds."""
    times = []
    for _ in range(size(200, 3)):
        start = time.perf_counter()
        for _ in range(10):
            call()
        times.append((time.perf_counter() - start) / 10)
    return min(times) * 1e6


def count_words(text: str) -> Counter[str]:
    """Return the words of a text with their numbers."""
    return Counter(text.lower().split())


def ranking(score: Array, edge: Array, cloud: Array) -> tuple[float, float]:
    """Return APGR and CPT50; the lowest scores are asked of the cloud first."""
    order = np.argsort(score, kind="stable")
    share = np.concatenate([[0], (cloud - edge)[order].cumsum() / (cloud - edge).sum()])
    return float((share[1:] + share[:-1]).mean() / 2), float((share >= 0.5).argmax() / len(order))


def recorded(path: Path) -> None:
    """Print the mean ranking over random halves of a file: fitted to one, measured on the other."""
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    prompts = [row["prompt"] for row in rows]
    edge, cloud = (np.clip([float(row[side]) for row in rows], 0, 1) for side in ("edge", "cloud"))
    print(f"\n{len(rows):,} prompts, right: edge {edge.mean():.3f}, cloud {cloud.mean():.3f}\n")
    print("| features | APGR | CPT50 |\n| --- | ---: | ---: |")
    for name, buckets in (("sizes and characters", 0), ("and hashed words", 65_536)):
        table, figures = [prompt_features(prompt, buckets=buckets) for prompt in prompts], []
        for seed in range(size(20, 2)):
            order = np.random.default_rng(seed).permutation(len(rows))
            train, test = np.array_split(order, 2)
            score = fit([table[i] for i in train], edge[train], cloud[train])
            figures.append(ranking(score.many([table[i] for i in test]), edge[test], cloud[test]))
        print("| {} | {:.3f} | {:.3f} |".format(name, *np.mean(figures, 0)), flush=True)


def main() -> None:
    """Print times by length, the score's size, and the ranking of a file."""
    print("| words | score of the prompt, us | times counting its words | file, KB | fit to 1,500, s |\n| ---: |" + " ---: |" * 4)
    for length in (20, 100, 400):
        prompts, edge, cloud = examples(size(1500, 200), length)
        table = [prompt_features(prompt) for prompt in prompts]
        start = time.perf_counter()
        learned = fit(table, edge, cloud)
        took = time.perf_counter() - start
        score = InputScore(learned, features=prompt_features)
        ours = microseconds(partial(score.of_input, prompts[0]))
        counting = microseconds(partial(count_words, prompts[0]))
        with TemporaryDirectory() as folder:
            learned.save(Path(folder) / "score.json")
            kilobytes = (Path(folder) / "score.json").stat().st_size / 1000
        print(f"| {length} | {ours:.0f} | {ours / counting:.1f} | {kilobytes:.0f} | {took:.1f} |", flush=True)
    for path in sys.argv[1:]:
        recorded(Path(path))


if __name__ == "__main__":
    main()
