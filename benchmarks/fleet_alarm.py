"""Alarms of a fleet, and certificates of its audits, against liars, cycles and devices that differ: `python benchmarks/fleet_alarm.py`.

Devices have 1,440 requests a day on average, of which 0.5 % are audited; 2 % of the audits differ, by a beta distribution over
devices; the rate follows the hour and the weekend. The tests are those of `edgeroute.tools.fleet`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import log

import numpy as np
from figures import size

from edgeroute.core.sequential_tests import Drift
from edgeroute.tools.fleet.fleet_audit_loss_bounds import MOST_AUDITS
from edgeroute.tools.fleet.pooled_tests_and_suspect_devices import (
    PooledDrift,
    device_evidence,
    highest_usual,
    scores,
    suspects,
    usual_rates,
)
from edgeroute.tools.measure.audit_counts_and_evidence import BETS, FIRST, FUNDS

RATE, AUDITS, SHARE, LEARN = 0.02, 7.2, 0.005, 14
HOURS = np.array([3, 9, 15, 21])
"""Hours in which devices have audits: four blocks of a day, so that a year is simulated in seconds."""
SHOCK = 0.03
"""Standard deviation of the logarithm of what all devices have in common on a day."""
Array = np.ndarray
_WEEK = np.arange(168)
CYCLE = (1 + 0.5 * np.sin(_WEEK % 24 / 24 * 2 * np.pi)) * np.where(_WEEK >= 120, 1.3, 1.0)


class World:
    """Fleet with rates and traffic of its devices, a cycle of the week, devices that are replaced, and days that come late."""

    def __init__(self, devices: int, seed: int, *, churn: float = 0.001, late: float = 0.05, hours: Array = HOURS) -> None:
        self.rng, self.devices, self.churn, self.late, self.hours = np.random.default_rng(seed), devices, churn, late, hours
        self.rates = self.rng.beta(2, 2 / RATE - 2, devices)
        self.traffic = self.rng.gamma(2, AUDITS / 2, devices)
        mean = CYCLE.reshape(7, 24)[:, hours].mean()
        self.cycle, self.usual, self.level = CYCLE / mean, np.full(168, RATE), 1.1
        self._learn()

    def day(self, number: int, times: Array | float = 1.0) -> tuple[Array, Array, Array]:
        """Draw a day: numbers of audits and of disagreements of each device and block, and the blocks' hours of the week.

        Some devices are replaced first, which changes `rates`. times: factor of the rates, by device or one.
        """
        cells = number % 7 * 24 + self.hours
        new = self.rng.random(self.devices) < self.churn
        self.rates[new] = self.rng.beta(2, 2 / RATE - 2, int(new.sum()))
        numbers = self.rng.poisson(self.traffic[:, None] / len(self.hours), (self.devices, len(self.hours)))
        shared = self.cycle[cells] * np.exp(SHOCK * self.rng.normal())
        return (
            numbers,
            self.rng.binomial(numbers, np.minimum(1, self.rates[:, None] * shared * np.reshape(times, (-1, 1)))),
            cells,
        )

    def _learn(self) -> None:
        """Draw two weeks, and set the usual rates by hour, and the highest usual levels by day and week, of 20,000 devices at most."""
        some, events, numbers, units = min(20_000, self.devices), np.zeros(168), np.zeros(168), []
        for number in range(LEARN):
            n, k, cells = self.day(number)
            events[cells] += k[:some].sum(0)
            numbers[cells] += n[:some].sum(0)
            units.append((n[:some], k[:some], cells))
        self.usual = usual_rates(events, numbers)
        score, weight = (
            np.concatenate(part) for part in zip(*(scores(k.sum(1), n @ self.usual[cells]) for n, k, cells in units), strict=True)
        )
        of = np.tile(np.arange(some), LEARN), np.repeat(np.arange(LEARN), some)
        self.level = highest_usual(score, weight, *of)
        weeks = [[sum(part) for part in zip(*((k.sum(1), n @ self.usual[c]) for n, k, c in units[i : i + 7]), strict=True)]
                 for i in (0, 7)]  # fmt: skip
        score, weight = (np.concatenate(part) for part in zip(*(scores(*week) for week in weeks), strict=True))
        self.weekly = highest_usual(score, weight, np.tile(np.arange(some), 2), np.repeat(np.arange(2), some))

    def units(self, days: int, times: Array | float = 1.0) -> Iterator[tuple[int, Array, Array]]:
        """Yield for each day after the learning its number, and the events and the expected number of each device.

        Days that come late are added to the device's next one. times: factor of the rates.
        """
        events, expected = np.zeros(self.devices), np.zeros(self.devices)
        for number in range(LEARN, LEARN + days):
            n, k, cells = self.day(number, times)
            events, expected = events + k.sum(1), expected + n @ self.usual[cells]
            here = self.rng.random(self.devices) >= self.late
            yield number, np.where(here, events, 0), np.where(here, expected, 0)
            events, expected = np.where(here, 0, events), np.where(here, 0, expected)


def alone(runs: int) -> tuple[float, float]:
    """Return the median and the 90 % quantile of the days to the alarm of one device by its own monitor, at twice the limit."""
    rng, days = np.random.default_rng(0), []
    for _ in range(runs):
        test = Drift(RATE)
        while not test.alarmed:
            test.add(float(rng.random() < 2 * RATE))
        days.append(test.count / AUDITS)
    return float(np.median(days)), float(np.quantile(days, 0.9))


def delays(devices: int, runs: int) -> tuple[Array, Array]:
    """Return the days, and with digests of each hour the hours, to the alarm, [runs] each, after all rates have doubled.

    The hours have no cycle. No alarm within 400 days is infinity.
    """
    days, hours = [], []
    for seed in range(runs):
        world = World(devices, seed)
        test = PooledDrift(world.level)
        days.append(next((i for i, (t, k, e) in enumerate(world.units(400, 2.0), 1) if test.bet(k, e, period=t)), np.inf))
        test, hour, usual = PooledDrift(world.level), 0, world.usual.reshape(7, 24)[:, world.hours].mean()
        while not test.alarmed and hour < 400 * 24:
            n = world.rng.poisson(world.traffic / 24)
            test.bet(world.rng.binomial(n, np.minimum(1, 2 * world.rates)), n * usual, period=hour, stake=1 / 365 / 24)
            hour += 1
        hours.append(hour if test.alarmed else np.inf)
    return np.array(days), np.array(hours)


def false_alarms(devices: int, years: int) -> int:
    """Return the number of simulated years with an alarm though nothing has changed."""
    alarms = 0
    for seed in range(years):
        world = World(devices, 1000 + seed)
        test = PooledDrift(world.level)
        alarms += any(test.bet(k, e, period=t) for t, k, e in world.units(365))
    return alarms


def liars(kind: str, devices: int, runs: int) -> tuple[int, int, int, int]:
    """Return in how many runs 5 % of liars raise the alarm and the broad one, hide a doubling for 60 days, and are named.

    Named is a run in which 80 % of them are suspects, and few others.
    """
    raised = broad = hidden = named = 0
    for seed in range(runs):
        for times in (1.0, 2.0):
            world = World(devices, 2000 + seed)
            lying = world.rng.random(devices) < 0.05
            plain, wide, week = PooledDrift(world.level), PooledDrift(world.weekly, liars=0.05), np.zeros((2, devices))
            total = np.zeros((2, devices))
            for number, k, expected in world.units(63, times):
                lies = {"all differ": 1e6, "none differs": 0.0, "all from one day on": 1e6 if number > 42 else k}[kind]
                told = np.where(lying & (expected > 0), lies, k)
                plain.bet(told, expected, period=number)
                pair = np.array([told, expected])
                week, total = week + pair, total + pair
                if number % 7 == 6:
                    wide.bet(*week, period=number, stake=7 / 365)
                    week = np.zeros((2, devices))
            if times == 1:
                raised, broad = raised + plain.alarmed, broad + wide.alarmed
                found = suspects(device_evidence(*total))
                named += int(lying[found].sum() >= 0.8 * lying.sum() and (~lying[found]).sum() <= 0.05 * max(1, len(found)))
            else:
                hidden += not plain.alarmed
    return raised, broad, hidden, named


def found(devices: int, times: float, audits: float, runs: int) -> tuple[float, float]:
    """Return the share of 5 % of devices that drift that are suspects after four weeks, and the share of names that are wrong."""
    hits = all_bad = wrong = names = 0
    for seed in range(runs):
        world = World(devices, 3000 + seed, churn=0.0)
        world.traffic *= audits / AUDITS
        bad = world.rng.random(devices) < 0.05
        past = [sum(part) for part in zip(*((k, e) for _, k, e in world.units(28)), strict=True)]
        now = [sum(part) for part in zip(*((k, e) for _, k, e in world.units(28, np.where(bad, times, 1.0))), strict=True)]
        named = suspects(device_evidence(*now, *past))
        hits, all_bad = hits + int(bad[named].sum()), all_bad + int(bad.sum())
        wrong, names = wrong + int((~bad[named]).sum()), names + len(named)
    return hits / all_bad, wrong / max(1, names)


LIMIT, RISK, DAYS = 0.02, 0.05, 40


def certificates(kind: str, fleets: int) -> tuple[float, float, float]:
    """Return how often a threshold that loses more was certified at any of 40 looks, and the bound by device broken, of fleets.

    And the share of fleets with a certificate of the same traffic with half of the loss. 100 devices; each look is a day.
    """
    rng, devices = np.random.default_rng(5), 100
    traffic = np.minimum(rng.gamma(0.7, 40 / 0.7, devices), 200) + 1
    loss, draws, lying = rng.beta(1, 1 / LIMIT - 1, devices), np.full(devices, 0.01), np.zeros(devices, bool)
    if kind == "rates of drawing, 1 to 10, go with the loss":
        draws = np.where(loss > np.median(loss), 0.001, 0.01)
        traffic = traffic * draws / draws.max() + 0.5
    if kind == "5 % of liars, with the most traffic, report none":
        lying[np.argsort(-traffic)[:5]] = True
    capped = np.minimum(traffic, MOST_AUDITS) / draws * draws.min()
    honest = ~lying
    per_request = (capped * loss)[honest].sum() / capped[honest].sum()
    results = []
    for factor in (1.01 * LIMIT / per_request, 0.5 * LIMIT / per_request):
        true = np.minimum(1, loss * factor)
        part = np.sort(capped)[::-1][:5].sum() / capped.sum() if lying.any() else 0.0
        tested = LIMIT * (1 - part)
        logs, by_device, ever, over = np.zeros((len(BETS), fleets)), np.zeros((len(BETS), fleets)), np.zeros(fleets, bool), 0
        mean, bets, funds = (1 + tested) / 2, np.array(BETS), np.log(FUNDS)[:, None]
        truth = float(true[honest].mean())
        half, wide = (1 + truth) / 2, np.zeros(fleets, bool)
        for _ in range(DAYS):
            n = rng.poisson(traffic[:, None], (devices, fleets))
            k = np.where(lying[:, None], 0, rng.binomial(n, true[:, None]))
            share, weight = np.minimum(1, MOST_AUDITS / np.maximum(n, 1)), (draws.min() / draws)[:, None]
            for j, bet in enumerate(bets / (1 - mean)):
                logs[j] += (
                    share * (k * np.log1p(-bet * weight * (1 - mean)) + (n - k) * np.log1p(bet * weight * tested / 2))
                ).sum(0)
            ever |= np.logaddexp.reduce(logs + funds) >= -log(RISK * FIRST)
            for j, bet in enumerate(bets / (1 - half)):
                by_device[j] += np.where(n > 0, np.log1p(bet * (truth - k / np.maximum(n, 1)) / 2), 0)[honest].sum(0)
            wide |= np.logaddexp.reduce(by_device + funds) >= -log(RISK)
        over = wide.mean()
        results.append((float(ever.mean()), float(over)))
    return results[0][0], results[0][1], results[1][0]


def main() -> None:
    """Print the tables."""
    begun = time.process_time()
    print("| fleet | days to the alarm, digests of each day: median, 90 % | digests of each hour: hours | requests |\n", end="")
    print("| --- | --- | --- | ---: |")
    median, most = alone(size(200, 5))
    print(f"| one device, its own monitor | {median:.0f}, {most:.0f} | | {median * AUDITS / SHARE:,.0f} |")
    for devices, runs in ((100, 20), (10_000, 8), (1_000_000, 2)):
        if devices > size(10**7, 1000):
            continue
        days, hours = delays(devices, size(runs, 2))
        middle = float(np.median(hours))
        print(f"| {devices:,} devices | {np.median(days):.0f}, {np.quantile(days, 0.9):.0f} | {middle:.0f}, "
              f"{np.quantile(hours, 0.9):.0f} | {middle * devices * AUDITS / SHARE / 24:,.0f} |", flush=True)  # fmt: skip
    print("\n| devices | simulated years | with a false alarm |\n| ---: | ---: | ---: |")
    for devices, years in ((100, 100), (1_000, 40), (30_000, 2)):
        if devices <= size(10**7, 100):
            print(f"| {devices:,} | {size(years, 2)} | {false_alarms(devices, size(years, 2))} |", flush=True)
    print("\n| 5 % of 1,000 devices lie for nine weeks | alarms | broad alarms | a doubling is hidden | liars are found |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind in ("all differ", "none differs", "all from one day on"):
        runs = size(20, 1)
        counts = liars(kind, size(1000, 100), runs)
        print(f"| {kind} | {' | '.join(f'{count} of {runs}' for count in counts)} |", flush=True)
    print(
        "\n| 5 % of devices drift | audits a device and day | found after four weeks | named wrongly |\n| --- | ---: | ---: | ---: |"
    )
    for devices, times, audits in ((1_000, 4, 7.2), (1_000, 10, 7.2), (10_000, 10, 7.2), (1_000, 4, 72), (1_000, 2, 72)):
        share, wrong = found(size(devices, 100), times, audits, size(3, 1))
        print(f"| {devices:,}, {times} times | {audits:g} | {share:.0%} | {wrong:.1%} |", flush=True)
    print(
        "\n| devices differ in loss and traffic | certificates broken | bounds by device broken | certified at half of the loss |"
    )
    print("| --- | ---: | ---: | ---: |")
    for kind in (
        "independent",
        "rates of drawing, 1 to 10, go with the loss",
        "5 % of liars, with the most traffic, report none",
    ):
        print(f"| {kind} | {' | '.join(f'{x:.3f}' for x in certificates(kind, size(1000, 20)))} |", flush=True)
    print(f"\n{time.process_time() - begun:.0f} s of one core")


if __name__ == "__main__":
    main()
