"""Decisions about rings of a policy: how often a ring goes on, waits, halts or rolls back, looked at every six hours for a week.

    python benchmarks/fleet_rings.py

Devices differ in size (a factor of 20 between the tenths), cost and degraded answers, and their digests of the week before are known.
"""

from __future__ import annotations

from collections import Counter
from time import perf_counter

import numpy as np
from figures import size as of_size

from edgeroute.tools.fleet.policy_rollout_by_rings import Sums, decide, parse_halt

RUNS, BLOCKS, LEAST = of_size(200, 3), 28, 4
HALT = parse_halt("degraded>2%, cost>+20%")
CASES = {
    "as before": {},
    "degraded +1 %, so 1.5 %": {"degraded": 0.01},
    "degraded at the limit, 2 %": {"degraded": 0.015},
    "degraded 4 %": {"degraded": 0.035},
    "cost +20 %, the limit": {"cost": 1.2},
    "cost +50 %": {"cost": 1.5},
    "an outage of a day, all 30 %": {"outage": 0.3},
    "half of the ring has no cloud": {"broken": 0.5},
}
"""Name -> what differs in the ring, or in all."""


def week(
    rng: np.random.Generator,
    devices: int,
    share: float,
    *,
    degraded: float = 0,
    cost: float = 1,
    outage: float = 0,
    broken: float = 0,
) -> Sums:
    """Draw a fleet's week in blocks of six hours; return its sums by device, in and out of the ring (those with the new policy).

    degraded, cost, outage, broken: what the new policy does to the ring, an outage to all on the first day, or to a share of
    devices.
    """
    ring = rng.random(devices) < share
    size, price = rng.lognormal(3.5, 1.2, devices), rng.lognormal(-7, 0.5, devices)
    hours = 1 + 0.5 * np.sin(np.arange(BLOCKS) * np.pi / 2)
    requests = rng.poisson(size[:, None] * hours).astype(float)
    rate = rng.beta(0.5, 99.5, devices) + ring * (degraded + 0.9 * (rng.random(devices) < broken))
    rates = np.clip(rate[:, None] + outage * (np.arange(BLOCKS) < 4), 0, 1)  # the first day
    counts = rng.binomial(requests.astype(int), rates).astype(float)
    costs = requests * price[:, None] * np.where(ring, cost, 1)[:, None] * rng.gamma(10, 0.1, requests.shape)
    past = rng.poisson(size * BLOCKS).astype(float)
    before = {"requests": past, "cost": past * price * rng.gamma(280, 1 / 280, devices)}
    return Sums(ring, requests, {"degraded": counts, "cost": costs}, before)


def rollout(sums: Sums) -> tuple[str, int, bool]:
    """Return the first decision that ends a ring, or `wait`, the block of it, and True if the ring was halted before."""
    halted = False
    for block in range(LEAST, BLOCKS + 1):
        part = sums._replace(requests=sums.requests[:, :block], amounts={k: v[:, :block] for k, v in sums.amounts.items()})
        did = decide(HALT, part, least_blocks=LEAST).did
        if did in {"go_on", "roll_back"}:
            return did, block, halted
        halted |= did == "halt"
    return "wait", BLOCKS, halted


def main() -> None:
    """Print a table for a small and a large ring."""
    began = perf_counter()
    for devices, share in ((1000, 0.02), (1000, 0.2)):
        rng = np.random.default_rng(26)
        print(
            f"| ring of {share * devices:.0f} of {devices:,} | went on | rolled back | waited a week | halted meanwhile | days |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, change in CASES.items():
            ends = [rollout(week(rng, devices, share, **change)) for _ in range(RUNS)]
            counts = Counter(did for did, _, _ in ends)
            shown = " | ".join(f"{counts[did] / RUNS:.1%}" for did in ("go_on", "roll_back", "wait"))
            print(
                f"| {name} | {shown} | {sum(h for *_, h in ends) / RUNS:.1%} | {np.median([b for _, b, _ in ends]) / 4:.2g} |",
                flush=True,
            )
    print(f"{RUNS} rollouts each, a look every six hours; {perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
