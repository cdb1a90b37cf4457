"""A sentinel's pinned probes: how soon a swapped model is noticed, and false alarms in 300 simulated months.

Ten pinned inputs, sixteen answers to each from which the usual ones are learned, four probes a day, a false alarm in ten years at
most on average. Requests are those of a device with 1,000 a day; the sentinel needs none of them. Audits of 0.5 % of a device's
requests, beside it, need 10,000 to 100,000 requests and more (docs/figures-runs.md).

    python benchmarks/sentinel.py
"""

from __future__ import annotations

import logging
import os
import random
from statistics import median

from edgeroute.tools.hosted_model_sentinel import MONTH, Pinned

SMOKE = bool(os.environ.get("BENCH_SMOKE"))
INPUTS, ROUNDS, PER_DAY, MONTHS, REQUESTS = 10, 16, 4, 120, 1_000
RUNS, CALM, YEAR = (2, 2, 200) if SMOKE else (200, 20, int(PER_DAY * 365))
WORLDS = {
    "a classifier, another on 1 of 10 inputs (exact)": (0.0, 0.1, False),
    "a classifier, another on 2 of 10 inputs (exact)": (0.0, 0.2, False),
    "a classifier, another on 5 of 10 inputs (exact)": (0.0, 0.5, False),
    "text, none differ, then 20 %": (0.0, 0.2, True),
    "text, 2 % differ, then 20 %": (0.02, 0.2, True),
    "text, 10 % differ, then 40 %": (0.1, 0.4, True),
    "text, 10 % differ, then 60 %": (0.1, 0.6, True),
    "text, 30 % differ, then 70 %": (0.3, 0.7, True),
}
"""Name -> (share that differs usually, share once the model is swapped, True if each answer differs by chance)."""


def shares(share: float, *, sampled: bool) -> list[float]:
    """Draw how often the answer to each input differs, `share` on average: by a random spread if sampled, else 1 for some inputs, 0 for others."""
    if sampled:
        spread = [random.betavariate(2 * share, 2 * (1 - share)) if share else 0.0 for _ in range(INPUTS)]
        return [min(1.0, part * share / max(1e-9, sum(spread) / INPUTS)) for part in spread]
    return [float(i < round(share * INPUTS)) for i in range(INPUTS)]


def learned(usual: list[float], *, exact: bool) -> Pinned:
    """Return a sentinel that has asked until it has learned the usual answers."""
    pinned = Pinned(INPUTS, ROUNDS, PER_DAY * MONTH * MONTHS, exact=exact)
    while pinned.test is None:
        ask(pinned, usual, "another")
    return pinned


def ask(pinned: Pinned, differs: list[float], other: str) -> bool:
    """Make one probe, and return True if it raises the alarm."""
    i = pinned.next()
    return pinned.add(i, f"{other} {random.random()}" if random.random() < differs[i] else "usual")


def probes(pinned: Pinned, differs: list[float], most: int) -> int:
    """Make probes until the alarm, and return their number; `most` + 1: there was none."""
    return next((n for n in range(1, most + 1) if ask(pinned, differs, "swapped")), most + 1)


def main() -> None:
    """Print the table of all worlds, by a fixed seed; switches warnings off."""
    random.seed(20261129)
    logging.disable(logging.WARNING)
    months = 10 if SMOKE else 300
    print(f"| model | noticed in a year | probes, median | p90 | requests, median | false alarms in {CALM} x {months} months |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (before, after, sampled) in WORLDS.items():
        found = []
        for _ in range(RUNS):
            usual = shares(before, sampled=sampled)
            pinned = learned(usual, exact=not sampled)
            for _ in range(PER_DAY * 30):
                ask(pinned, usual, "another")
            now = [max(pair) for pair in zip(usual, shares(after, sampled=sampled), strict=True)]
            found.append(probes(pinned, now, YEAR))
        calm = int(PER_DAY * MONTH * months)
        calms = [shares(before, sampled=sampled) for _ in range(CALM)]
        false = sum(probes(learned(usual, exact=not sampled), usual, calm) <= calm for usual in calms)
        found.sort()
        seen = sum(n <= YEAR for n in found) / RUNS
        middle = median(found)
        print(f"| {name} | {seen:.3f} | {middle:.0f} | {found[int(0.9 * RUNS)]} | {middle / PER_DAY * REQUESTS:,.0f} | {false} |")


if __name__ == "__main__":
    main()
