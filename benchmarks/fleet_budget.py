"""A fleet's daily budget over 300 simulated days: overspending, and what the devices could use of it.

    python benchmarks/fleet_budget.py

A device's demand differs by its size, weekday, growth and chance; it bursts for days, and so does the fleet. Devices are offline for
days, come, go and rotate their ids; some ignore limits; the catalog is away twice, and so is the store of digests, once for half of the
devices. The owner sees digests alone: late ones not at all.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
from figures import size as of_size

from edgeroute.catalog.signed_policy_follower import WINDOW
from edgeroute.tools.fleet.budget_shares_and_signing import RESERVE, VALID_DAYS, in_use, limit_for, next_margin, shares

DAYS, DEVICES = 300, of_size(20_000, 100)
OFFLINE, RETURNS = 0.02, 0.3
"""Chance to go offline on a day, and to come back: 6 % are offline."""
LEAVES, ROTATES, STALE, LATE = 0.005, 1 / 30, 0.03, 0.02
"""Chance that a device is replaced by a new one; that its id is rotated; that it misses a day's budget; that its digest is late."""
IGNORES = 0.02
"""Share of the devices without limits."""


class Result(NamedTuple):
    """Result of a simulation."""

    over: float
    """Sum of what was spent beyond the budget of each day, by the sum of the budgets."""
    worst: float
    """Largest spending of a day, by its budget."""
    total: float
    """All spending by all budgets."""
    used: float
    """What was spent by what demand and budget would have allowed."""
    days_over: int
    """Days with more than 105 % of the budget."""


def simulate(seed: int, tightness: float, *, ignores: float = IGNORES, adapts: bool = True) -> Result:
    """Simulate a fleet for 300 days, and return how much it overspends its budget and how much of it the devices could use.

    tightness: budget by the mean demand. ignores: share of devices without limits. adapts: False leaves the margin at 0.
    """
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 1.2, DEVICES)
    lawless = rng.random(DEVICES) < ignores
    offline = rng.random(DEVICES) < OFFLINE / (OFFLINE + RETURNS)
    burst = np.ones(DEVICES)
    own = np.full((WINDOW, DEVICES), np.nan)  # a device's own record of its use; NaN: not in use
    seen = np.full((WINDOW, DEVICES), np.nan)  # as the owner's digests have it, by the id of now
    budget = tightness * size.sum() * 1.1
    rule, made, margin, arrivals = shares(np.ones(0), budget, arrivals=DEVICES), 0, 0.0, 1.0
    limit, limited_on = np.full(DEVICES, rule.new), np.zeros(DEVICES, int)
    spent_days, wanted_days = np.zeros(DAYS), np.zeros(DAYS)
    away = set(range(100, 104)) | set(range(200, 209))
    unseen = dict.fromkeys(range(150, 154), DEVICES // 2) | dict.fromkeys(range(250, 254), DEVICES)  # day -> devices
    for day in range(DAYS):
        offline = np.where(offline, rng.random(DEVICES) > RETURNS, rng.random(DEVICES) < OFFLINE)
        fresh = rng.random(DEVICES) < LEAVES
        size[fresh] = rng.lognormal(0, 1.2, fresh.sum())
        offline[fresh], own[:, fresh], seen[:, fresh] = False, np.nan, np.nan
        seen[:, rng.random(DEVICES) < ROTATES] = np.nan
        burst = np.where(burst > 1, np.where(rng.random(DEVICES) < 0.5, 1, burst), np.where(rng.random(DEVICES) < 0.01, 8, 1))
        season = (1.2 if day % 7 < 5 else 0.6) * (1 + 0.3 * day / DAYS) * (3 if day % 60 in {30, 31} else 1)
        demand = size * season * burst * rng.gamma(4, 0.25, DEVICES) * ~offline
        known = ~np.isnan(seen)
        here = known.any(0)
        here[here] = in_use(_active(seen)[here], known.sum(1).max())
        if day not in away and here.any():
            use = np.nanmean(seen[:, here], 0)
            rule, made = shares(use, budget, margin=margin, arrivals=arrivals), day
        reached = ~offline & (rng.random(DEVICES) >= STALE) & (day not in away) | fresh & (day not in away)
        limited_on[fresh], limit[fresh] = made, rule.new
        recent = ~np.isnan(own).all(0)
        mean = np.divide(np.nansum(own, 0), (~np.isnan(own)).sum(0), out=np.full(DEVICES, np.nan), where=recent)
        limit = np.where(reached, limit_for(rule, mean), limit)
        limited_on = np.where(reached, made, limited_on)
        in_force = np.where(day - limited_on > VALID_DAYS, RESERVE * limit, limit)
        spent = np.where(lawless, demand, np.minimum(demand, in_force))
        spent_days[day], wanted_days[day] = spent.sum(), demand.sum()
        own, seen = np.roll(own, -1, 0), np.roll(seen, -1, 0)
        own[-1] = np.where(offline, np.nan, spent)
        seen[-1] = np.where(offline | (rng.random(DEVICES) < LATE), np.nan, spent)
        seen[-1, : unseen.get(day, 0)] = np.nan
        if adapts:
            margin = next_margin(margin, float(np.nansum(seen[-1])), budget)
        arrivals = max(1.0, 2 * float((np.isnan(seen[0]) & _active(seen)).sum()) / WINDOW)
    allowed = np.minimum(wanted_days, budget)
    return Result(
        float(np.maximum(spent_days - budget, 0).sum() / (DAYS * budget)), float(spent_days.max() / budget),
        float(spent_days.sum() / (DAYS * budget)), float(np.minimum(spent_days, allowed).sum() / allowed.sum()),
        int((spent_days > 1.05 * budget).sum()),
    )  # fmt: skip


def _active(seen: np.ndarray) -> np.ndarray:
    """Return the devices that sent a digest of one of the last two days."""
    return ~np.isnan(seen[-2:]).all(0)


def main() -> None:
    """Print a line for each budget and each share of devices without limits."""
    began = perf_counter()
    print("| budget by mean demand | without limits | over | worst day | spent | of what was possible | days above 105 % |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for tightness in (0.5, 0.8, 1.0, 1.5):
        for ignores in (0.0, IGNORES, 0.05):
            r = simulate(1, tightness, ignores=ignores)
            cells = (
                f"{tightness:.1f} | {ignores:.0%} | {r.over:.2%} | {r.worst:.1%} | {r.total:.1%} | {r.used:.1%} | {r.days_over}"
            )
            print(f"| {cells} |")
    fixed = simulate(1, 0.8, adapts=False)
    print(
        f"0.8, 2 % without limits, no margin: {fixed.over:.2%} over, worst {fixed.worst:.1%}, {fixed.days_over} days above 105 %"
    )
    print(f"{DAYS} days of {DEVICES:,} devices each, {perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
