"""Coverage and broken guarantees of max_error where the most confident answers are not the best: `python benchmarks/noisy_top.py`.

A world gives the probability of a wrong answer by the rank of its score, from the most confident, so the true error above any
threshold is known. Beside `calibrate`: most of the risk at the first start, all of it at one start, and a start where a fifth of
the examples is the surest that the error is below the limit, tested on the others.
"""

from __future__ import annotations

import sys
from math import sqrt
from typing import Any

import numpy as np
from figures import size

from edgeroute.tools.measure import fixed_sequence
from edgeroute.tools.measure.critical_counts import least_n

Array = np.ndarray[Any, np.dtype[Any]]
DELTA, BINS = 0.05, 20_000
RANK = (np.arange(BINS) + 0.5) / BINS
WORLDS = {
    "clean": 0.5 * RANK**2,
    "overconfident top": np.where(RANK < 0.05, 0.4, 0.02 + 0.3 * np.maximum(RANK - 0.4, 0)),
    "judge": np.where(RANK < 0.1, 0.16, 0.05 + 0.4 * np.maximum(RANK - 0.45, 0)),
    "noisy fifth": np.where(RANK < 0.2, 0.12, 0.04 + 0.3 * np.maximum(RANK - 0.4, 0)),
    "bad second third": np.where((RANK > 0.25) & (RANK < 0.35), 0.4, 0.02),
    "just beyond": np.full(BINS, 0.1005),
    "beyond at each start": np.where(RANK < 0.6, 0.1005, 0.0),
}
ALPHA = 0.1
RISKS = {"as is": None, "at .2 mostly": fixed_sequence.STARTS, "at .4": {0.4: 1.0}, "by a fifth": {}}


def lowest(rank: Array, wrong: Array) -> float:
    """Return the rank of the last accepted example, 0 to 1, by `calibrate`'s test; 0: none. rank: [n], ascending; wrong: [n], bool."""
    n = len(wrong)
    _, blocks = fixed_sequence.accept_selective(wrong.cumsum(), np.arange(1, n + 1), n, ALPHA, DELTA)
    return rank[blocks - 1] if blocks else 0.0


def lowest_by_fifth(rank: Array, wrong: Array, rng: np.random.Generator) -> float:
    """Return as `lowest`, by a start that a random fifth of the examples suggests, tested on the others with all of the risk.

    rank: sorted ranks, from the most confident. wrong: True where the answer is wrong. 0: no rank passes.
    """
    fifth = np.zeros(len(rank), bool)
    fifth[rng.permutation(len(rank))[: len(rank) // 5]] = True
    count = np.arange(1, fifth.sum() + 1)
    others = count / len(count) * (~fifth).sum()
    enough = others - 2 * np.sqrt(others) >= least_n(ALPHA, DELTA)
    evidence = np.where(enough, (ALPHA * count - wrong[fifth].cumsum()) / np.sqrt(count), -np.inf)
    rank, wrong, start = rank[~fifth], wrong[~fifth], rank[fifth][evidence.argmax()]
    block = int(np.searchsorted(rank, start, "right")) - 1
    counts, limits = wrong.cumsum(), fixed_sequence.most_of_each(len(rank), ALPHA, DELTA)
    blocks = fixed_sequence.passed(counts[block:] <= limits[block + 1 :])
    return rank[block + blocks - 1] if blocks else 0.0


def main(draws: int) -> None:
    """Print mean coverage and broken share of each world, size and way; replaces the starts of the tests meanwhile."""
    own = fixed_sequence.STARTS, fixed_sequence.EVEN_STARTS
    worst = 0.0
    print(f"| world | n | {' | '.join(RISKS)} |\n| --- | ---: |{' ---: |' * len(RISKS)}")
    for name, chance in WORLDS.items():
        error = chance.cumsum() / np.arange(1, BINS + 1)
        for n in size((300, 500, 1000, 3000), (500,)):
            rng, cells = np.random.default_rng([n, len(name)]), {risk: [[], []] for risk in RISKS}
            for _ in range(draws):
                rank = np.sort(rng.random(n))
                wrong = rng.random(n) < chance[(rank * BINS).astype(int)]
                for risk, starts in RISKS.items():
                    fixed_sequence.STARTS, fixed_sequence.EVEN_STARTS = own if starts is None else (starts, starts)
                    last = lowest_by_fifth(rank, wrong, rng) if risk == "by a fifth" else lowest(rank, wrong)
                    cells[risk][0].append(last)
                    cells[risk][1].append(last > 0 and error[int(last * BINS)] > ALPHA)
            fixed_sequence.STARTS, fixed_sequence.EVEN_STARTS = own
            worst = max(worst, *(float(np.mean(broken)) for _, broken in cells.values()))
            shown = " | ".join(f"{np.mean(share):.3f} / {np.mean(broken):.1%}" for share, broken in cells.values())
            print(f"| {name} | {n:,} | {shown} |", flush=True)
    print(f"worst {worst:.1%}; allowed {DELTA + 3 * sqrt(DELTA * (1 - DELTA) / draws):.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else size(1000, 20))
