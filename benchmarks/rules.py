"""Rules on the device's state under random courses of readings: do they switch more often than their bands and holds allow?

python benchmarks/rules.py --courses 100000

Each course is a random walk, noise about the limit, jumps, or unplugging by turns, with readings missing and out of range, of
one rule with a random band and hold. The rule is stepped by `edgeroute.core.device_rules.step`. Counted is, of the same readings, how
often a course crosses the whole band (by a reckoning of its own, of a few lines), and how often a rule without a band would
have switched.
"""

from __future__ import annotations

import argparse
import math
import random
from time import perf_counter

from figures import size

from edgeroute.core.device_rules import OF, Reading, Rule, in_force, problem, step

STEPS = 200
"""Readings of a course."""
MISSING = 0.05
KINDS = ("walk", "noise", "jumps", "plugged by turns")


def rule_of(rng: random.Random) -> Rule:
    """Draw a valid rule `only_edge`: any quantity but throttling, with any limit, band and hold."""
    while True:
        of = rng.choice([name for name in OF if name != "throttled"])
        enter = rng.uniform(0.05, 0.95) * (1 if OF[of].share else 100)
        gap = rng.choice([0.001, 0.02, 0.1]) * (1 if OF[of].share else 100)
        leave = rng.choice([None, enter + gap if OF[of].low else enter - gap])
        rule = Rule(of, "only_edge", enter, leave, rng.choice([0.0, 0.0, 15.0, 60.0]))  # type: ignore[arg-type]
        if not problem(rule):
            return rule


def course(rng: random.Random, rule: Rule, kind: str) -> list[tuple[float, Reading]]:
    """Draw 200 (instant, reading) pairs, mostly 5 to 15 s apart, of the rule's quantity, by that kind of course."""
    field, scale = OF[rule.of].reading, 1 if OF[rule.of].share else 100
    assert rule.enter is not None
    now, value, found = 0.0, rule.enter + rng.gauss(0, 0.05) * scale, []
    for i in range(STEPS):
        now += rng.uniform(5, 15) if rng.random() < 0.97 else rng.uniform(100, 4000)
        if kind == "walk":
            value += rng.gauss(0, 0.02) * scale
        elif kind == "noise":
            value = rule.enter + rng.choice([-1, 1]) * rng.random() * 0.01 * scale
        elif kind == "jumps" and rng.random() < 0.2:
            value = rng.uniform(-0.2, 1.2) * scale
        shown = rng.choice([None, math.nan]) if rng.random() < MISSING else value
        plugged = bool(i % 2) if kind == "plugged by turns" else None
        found.append((now, Reading(mains=plugged)._replace(**{field: shown})))
    return found


def known(rule: Rule, reading: Reading) -> float | None:
    """Return the number that the rule goes by; None: unknown."""
    value: float | None = 1.0 if rule.of == "battery" and reading.mains else getattr(reading, OF[rule.of].reading)
    return None if value is None or math.isnan(value) else value


def side(rule: Rule, reading: Reading) -> int:
    """Return 1 beyond where the rule begins, -1 beyond where it ends, and 0 between them, or if the reading is unknown."""
    value = known(rule, reading)
    if value is None:
        return 0
    sign = -1 if OF[rule.of].low else 1
    return 1 if sign * value > sign * (rule.enter or 0.0) else -1 if sign * value <= sign * rule.ends else 0


def main() -> None:
    """Print a line for each kind of course, and how often a rule switched beyond what is allowed; the exit status is 1 if it ever did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--courses", type=int, default=size(100_000, 40))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, began, wrong, steps = random.Random(options.seed), perf_counter(), 0, 0
    totals = {kind: [0, 0, 0] for kind in KINDS}
    for number in range(options.courses):
        kind = KINDS[number % len(KINDS)]
        rule = rule_of(rng)
        state, on, bare, beyond, crossed, switched, flickers, last = (), False, False, -1, 0, 0, 0, -math.inf
        for now, reading in course(rng, rule, kind):
            steps += 1
            state = step((rule,), state, reading, now)
            at = side(rule, reading)
            if at and at != beyond:
                beyond = at
                crossed += 1
            if known(rule, reading) is not None and bare is not (at > 0):
                bare = at > 0
                flickers += 1
            if bool(in_force(state)) is not on:
                on = not on
                switched += 1
                wrong += (on is not (beyond > 0)) or now - last < rule.hold_s
                last = now
        wrong += switched > crossed
        totals[kind] = [a + b for a, b in zip(totals[kind], (switched, crossed, flickers), strict=True)]
    print(f"{options.courses:,} courses of {STEPS} readings, {perf_counter() - began:.0f} s, {steps:,} steps")
    print("\n| course | switches | allowed | without a band |\n| --- | ---: | ---: | ---: |")
    for kind, (switched, crossed, flickers) in totals.items():
        print(f"| {kind} | {switched:,} | {crossed:,} | {flickers:,} |")
    print(f"\nmore switches than the band and the hold allow: {wrong}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
