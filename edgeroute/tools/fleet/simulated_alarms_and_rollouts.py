"""Simulation of a fleet over days: counts of digests, and the tests and decisions of `edgeroute fleet` on them.

Devices differ in use and in disagreement, go offline, drift and lie. Counts are drawn per device and day, and no request is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import ceil
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeroute.catalog.signed_policy_follower import position
from edgeroute.core.sequential_tests import GRID, Drift
from edgeroute.fleet.digest_encoding_and_coarsening import CONFIDENCES, Digest, encode, rounded
from edgeroute.tools.fleet.policy_rollout_by_rings import Sums, decide, parse_halt
from edgeroute.tools.fleet.pooled_tests_and_suspect_devices import (
    CELLS,
    PooledDrift,
    device_evidence,
    highest_usual,
    scores,
    suspects,
    usual_rates,
)
from edgeroute.tools.measure.audit_counts_and_evidence import NONE, LossCounts

Floats: TypeAlias = NDArray[Any]
Counts: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]

AUDITED: Final = 0.005  # share of the accepted answers that a device audits
# Disagreement of the average device, and the sum of the parameters of the devices' beta distribution.
DIFFER, LIKENESS = 0.03, 60.0
USE: Final = 2.0  # shape of the gamma distribution of requests per device
# Factors on the disagreement: if all devices drift, for the times to an alarm; and if a share of them does, in the days.
DRIFT, SUDDEN = 2.0, 8.0
WEEK: Final = (1.0, 1.0, 1.0, 1.0, 1.0, 0.6, 0.6)  # requests by weekday, as a multiple of a working day's
# Requests by hour, as a multiple of the day's mean.
BUSY: Final = tuple(1 - 0.8 * np.cos((hour - 2) * np.pi / 12) for hour in range(24))
GOES, RETURNS = 0.01, 1 / 3  # daily probabilities that a device goes offline, and that it is back
HONEST, ACCUSES, HIDES = 0, 1, 2  # reports of a device: the counts; that each audit differs; that none differs
REFERENCE: Final = 28  # first days, from which the usual rates are known
# Event -> the share of the days after the reference at which it begins.
EVENTS: Final = {"outage": 0.05, "good": 0.1, "liars": 0.25, "bad": 0.4, "drift": 0.6}
HALT: Final = "degraded>2%, cost>+20%, alarm"
SAMPLE: Final = 2_000  # most devices by whose reference the highest usual ratio is found
TOLERANCE: Final = 1.1  # ratio to the usual disagreement from which on a device's own test may raise its alarm


class Fleet(NamedTuple):
    """Fleet to simulate.

    Attributes:
        drift: share of the devices whose disagreement rises, by `SUDDEN`.
        liars: share of the devices that report false counts, one half that all differs and the other that nothing does.
    """

    devices: int = 1_000_000
    days: int = 365
    per_minute: float = 1.0
    defer: float = 0.1
    rings: tuple[float, ...] = (0.01, 0.1, 1.0)
    bad_policy: bool = True
    drift: float = 0.05
    liars: float = 0.05
    outage_s: float = 6 * 3600.0
    seed: int = 0

    @property
    def begins(self) -> dict[str, int]:
        """Event -> the day on which it begins."""
        return {name: REFERENCE + ceil(share * (self.days - REFERENCE)) for name, share in EVENTS.items()}


class Devices:
    """Devices of a fleet, and the counts of their digests by day. Deterministic by seed: each part of them has its generator.

    Attributes:
        a_day: expected requests per device and working day, float32 [devices].
        rate: probability that an accepted answer differs, float32 [devices].
        drifts: True for the devices that will drift, bool [devices].
        reports: HONEST, ACCUSES or HIDES, int8 [devices].
    """

    def __init__(self, fleet: Fleet, parts: int = 2) -> None:
        rng = np.random.default_rng(fleet.seed)
        n = fleet.devices
        self.fleet = fleet
        self.a_day: Floats = (1440 * fleet.per_minute / USE * rng.standard_gamma(USE, n, np.float32)).astype(np.float32)
        self.rate: Floats = rng.beta(DIFFER * LIKENESS, (1 - DIFFER) * LIKENESS, n).astype(np.float32)
        self.drifts: Bools = rng.random(n, np.float32) < fleet.drift
        lies = rng.random(n, np.float32) < fleet.liars
        self.reports = np.where(lies, rng.integers(ACCUSES, HIDES + 1, n, np.int8), HONEST).astype(np.int8)
        self._offline: Bools = rng.random(n, np.float32) < GOES / (GOES + RETURNS)
        bounds = np.linspace(0, n, min(parts, n) + 1).astype(int)
        self._parts = [slice(low, high) for low, high in pairwise(bounds)]
        self._rngs = [np.random.Generator(np.random.SFC64([fleet.seed, i])) for i in range(len(self._parts))]

    def days(self) -> Iterator[tuple[int, Counts, Counts, Bools]]:
        """Yield day after day, drawn one ahead in threads: day, audits and those that differ, int32 [devices], and who reports.

        Once only: the devices' state goes on.
        """
        with ThreadPoolExecutor(len(self._parts)) as threads:
            ahead = [threads.submit(self._draw, i, 0) for i in range(len(self._parts))]
            for day in range(self.fleet.days):
                drawn = [part.result() for part in ahead]
                if day + 1 < self.fleet.days:
                    ahead = [threads.submit(self._draw, i, day + 1) for i in range(len(self._parts))]
                audited, differ, online = (np.concatenate(columns) for columns in zip(*drawn, strict=True))
                yield day, audited, differ, online

    def _draw(self, part: int, day: int) -> tuple[Counts, Counts, Bools]:
        """Draw the counts of one part of the devices on that day, by events of the fleet; changes who is offline.

        An outage lowers the counts of its day. From their days on, some devices' disagreement rises, and liars report false
        counts.
        """
        rng, devices, fleet = self._rngs[part], self._parts[part], self.fleet
        offline = self._offline[devices]
        change = rng.random(len(offline), np.float32)
        offline = self._offline[devices] = np.where(offline, change >= RETURNS, change < GOES)
        share = WEEK[day % 7] * (1 - fleet.defer) * AUDITED
        if day == fleet.begins["outage"]:
            share *= max(0.0, 1 - fleet.outage_s / 86_400)
        rate = self.rate[devices]
        if day >= fleet.begins["drift"]:
            rate = np.where(self.drifts[devices], np.minimum(SUDDEN * rate, 1), rate)
        expected = share * self.a_day[devices] * ~offline
        differ = rng.poisson(expected * rate).astype(np.int32)
        audited = differ + rng.poisson(expected * (1 - rate)).astype(np.int32)
        reports = self.reports[devices]
        if day >= fleet.begins["liars"]:
            differ = np.where(reports == ACCUSES, audited, np.where(reports == HIDES, 0, differ))
        return audited, differ, ~offline


# Policies in rings.

DEFERRED: Final = {"good": 0.9, "bad": 3.0}  # requests that a device defers under a new policy, as a multiple of those before
# Share of the deferred requests whose answer is degraded; before: that of the good one.
DEGRADED: Final = {"good": 0.005, "bad": 0.2}
USD: Final = 0.001  # price of a deferred request


class Rollout:
    """Rollout of a new policy in rings, on the counts of the devices' days. Draws a place in the rings for each device.

    Attributes:
        name: "good" or "bad".
        steps: (day, share of the devices that may take the policy after it, decision, its text), in order.
        exposed: True for the devices that the policy was in force on, bool [devices].
    """

    def __init__(self, name: str, world: Devices) -> None:
        self.name, self.world, self.fleet = name, world, world.fleet
        self.place: Floats = np.array([position(f"{i:032x}", name) for i in range(self.fleet.devices)], np.float32)
        self.ring = 0
        self._columns: list[tuple[Any, ...]] = []  # of the days since the ring began: requests, degraded, cost
        self.steps: list[tuple[int, float, str, str]] = []
        self.exposed: Bools = np.zeros(self.fleet.devices, np.bool_)
        self.done = False

    def look(self, day: int, online: Bools) -> None:
        """Draw the requests of a day, and decide. Changes the ring, the steps, the exposed devices, and `done`."""
        share = self.fleet.rings[self.ring]
        new = (self.place < share) & online
        self.exposed |= new
        rng = np.random.default_rng([self.fleet.seed, day])
        requests = rng.poisson(self.world.a_day * WEEK[day % 7] * online)
        deferred = rng.binomial(requests, np.where(new, DEFERRED[self.name], 1.0) * self.fleet.defer)
        degraded = rng.binomial(deferred, np.where(new, DEGRADED[self.name], DEGRADED["good"]))
        self._columns.append((requests, degraded, USD * deferred))
        requests, degraded, cost = (np.stack(columns, 1).astype(float) for columns in zip(*self._columns, strict=True))
        decision = decide(parse_halt(HALT), Sums(self.place < share, requests, {"degraded": degraded, "cost": cost}))
        if decision.did == "go_on":
            self.ring, self._columns = self.ring + 1, []
        self.done = decision.did in {"halt", "roll_back"} or self.fleet.rings[self.ring] == 1
        self.steps.append((day, 0.0 if decision.did == "roll_back" else self.fleet.rings[self.ring], decision.did, decision.text))


# Days of the whole fleet.


class Named(NamedTuple):
    """Suspects of a window of days who were not named before.

    Attributes:
        day: last day of the window.
        drift: devices that drift, of those named.
        wrong: honest devices without drift, of those named.
    """

    day: int
    drift: int
    liars: int
    wrong: int


class Days(NamedTuple):
    """Result of the days of a fleet.

    Attributes:
        level: highest ratio to the usual disagreement that is no change.
        alarms: share of liars that the test allows for -> day of its alarm; None: there was none.
        drift: devices that drift.
    """

    level: float
    alarms: dict[float, int | None]
    rollouts: dict[str, Rollout]
    suspects: list[Named]
    drift: int
    liars: int


def _bet(test: PooledDrift, audited: Counts, differ: Counts, rate: float, period: int, stake: float = 1 / 365) -> bool:
    """Bet on the counts of a period, which changes the test; return True after an alarm.

    Devices that report the same are one bet with their number.
    """
    step = int(differ.max()) + 1
    pairs = np.bincount(audited * step + differ)
    there = np.flatnonzero(pairs)
    events, expected = np.asarray(there % step, float), np.asarray(there // step * rate, float)
    return test.bet(events, expected, period=period, stake=stake, count=pairs[there])


def _reference(sample: list[tuple[Counts, Counts]], rates: Floats) -> float:
    """Return the highest usual ratio by the first days' audits and differences of some devices."""
    units = [scores(differ, audited * rates[24 * (day % 7)]) for day, (audited, differ) in enumerate(sample)]
    period, device = np.divmod(np.arange(len(sample) * len(sample[0][0])), len(sample[0][0]))
    return highest_usual(np.concatenate([s for s, _ in units]), np.concatenate([w for _, w in units]), device, period)


def simulate(fleet: Fleet, progress: Callable[[int], object] = lambda _day: None) -> Days:
    """Simulate the days of a fleet: its alarms, rollouts of a good policy and perhaps a bad one, suspects every `REFERENCE` days.

    `progress` is called after each day but the first `REFERENCE`, which give the usual rates. Deterministic by the fleet's seed.
    """
    world, begins = Devices(fleet), fleet.begins
    sums, numbers = np.zeros(CELLS), np.zeros(CELLS)
    sample: list[tuple[Counts, Counts]] = []
    tests: dict[float, PooledDrift] = {}
    level, rates = np.inf, np.ones(CELLS)
    window, past = np.zeros((2, fleet.devices), np.float32), np.zeros((2, fleet.devices), np.float32)
    names = [name for name in ("good", "bad") if name == "good" or fleet.bad_policy]
    rollouts: dict[str, Rollout] = {}
    named: list[Named] = []
    alarms: dict[float, int | None] = dict.fromkeys((0.0, fleet.liars))
    ever = np.zeros(fleet.devices, np.bool_)
    for day, audited, differ, online in world.days():
        cell = 24 * (day % 7)
        if day < REFERENCE:
            sums[cell] += differ.sum()
            numbers[cell] += audited.sum()
            sample.append((audited[:SAMPLE], differ[:SAMPLE]))
            continue
        if not tests:
            rates = usual_rates(sums, numbers)
            level = _reference(sample, rates)
            tests = {liars: PooledDrift(level, liars=liars) for liars in alarms}
        for name in names:
            if day >= begins[name] and name not in rollouts:
                rollouts[name] = Rollout(name, world)
            if name in rollouts and not rollouts[name].done:
                rollouts[name].look(day, online)
        for liars, test in tests.items():
            if alarms[liars] is None and _bet(test, audited, differ, rates[cell], day):
                alarms[liars] = day
        window += differ, (audited * rates[cell]).astype(np.float32)
        if (fleet.days - 1 - day) % REFERENCE == 0:
            who = suspects(device_evidence(*window, *past))
            who = who[~ever[who]]
            ever[who] = True
            drift = world.drifts[who] & (day >= begins["drift"])
            lies = (world.reports[who] != HONEST) & (day >= begins["liars"])
            named.append(Named(day, int(drift.sum()), int((lies & ~drift).sum()), int((~lies & ~drift).sum())))
            past += window
            window[:] = 0
        progress(day)
    return Days(level, alarms, rollouts, named, int(world.drifts.sum()), int((world.reports != HONEST).sum()))


# The alarm: its time after a change, against one device's own test, and false alarms in years without a change.


def _draw_reference(rng: np.random.Generator, expected: Floats, rate: Floats, periods: int) -> tuple[float, float]:
    """Draw the audits of `periods` periods without a fault; return their rate of differences and their highest usual ratio.

    Of the devices, at most `SAMPLE` are drawn; `rng` advances.
    """
    expected, rate = expected[:SAMPLE], rate[:SAMPLE]
    differ = rng.poisson(np.broadcast_to(expected * rate, (periods, len(rate)))).astype(float)
    audited = differ + rng.poisson(np.broadcast_to(expected * (1 - rate), differ.shape))
    usual = float((differ.sum() + 0.5) / (audited.sum() + 1))
    score, weight = scores(differ.ravel(), np.asarray(audited.ravel() * usual, float))
    period, device = np.divmod(np.arange(differ.size), len(rate))
    return usual, highest_usual(score, weight, device, period)


def times_to_alarm(fleet: Fleet, devices: int, runs: int, *, hours: int = 24, most: int = 400, liars: float = 0.0) -> list[float]:
    """Simulate `runs` fleets, and return the hours from a doubled disagreement of all devices to each one's alarm.

    Infinite if later than `most` periods of `hours`. Of `fleet` the use, the share deferred and the seed count: its own drift and
    liars are left out, and no device is offline. `liars` is the share for which the test allows; 0: it trusts all devices.
    """
    times = []
    for run in range(runs):
        rng = np.random.Generator(np.random.SFC64([fleet.seed, devices, hours, run]))
        world = Devices(fleet._replace(devices=devices, drift=1.0, liars=0.0, seed=fleet.seed + run))
        expected = world.a_day * (1 - fleet.defer) * AUDITED * hours / 24
        usual, level = _draw_reference(rng, expected, world.rate, max(REFERENCE, 168 // hours))
        test = PooledDrift(level, liars=liars)
        rate = np.minimum(1, DRIFT * world.rate)
        for period in range(1, most + 1):
            differ = rng.poisson(expected * rate)
            audited = differ + rng.poisson(expected * (1 - rate))
            if _bet(test, audited, differ, usual, period, hours / 24 / 365):
                times.append(float(period * hours))
                break
        else:
            times.append(np.inf)
    return times


def times_alone(fleet: Fleet, runs: int) -> list[float]:
    """Simulate single devices; return the hours from a doubled disagreement to the alarm of each one's own test of its audits.

    Never ends for a device that has no alarm. All devices differ alike, by `DIFFER`. Of `fleet` the use, the share deferred and
    the seed count.
    """
    rng = np.random.default_rng([fleet.seed, 1])
    times = []
    for _ in range(runs):
        test, count = Drift(TOLERANCE * DIFFER), 0
        while not test.alarmed:
            for x in rng.random(512) < DRIFT * DIFFER:
                test.add(float(x))
                count += 1
                if test.alarmed:
                    break
        times.append(count / (60 * fleet.per_minute * (1 - fleet.defer) * AUDITED))
    return times


def false_alarms(fleet: Fleet, fleets: int = 200, devices: int = 100) -> dict[float, int]:
    """Simulate the days of so many small fleets in which no device drifts, and return how many have an alarm, by test.

    The fleet's outage and liars are simulated. The keys are the shares of liars for which a test allows: 0, one that trusts all
    devices, as that of `fleet alarm` by which an alarm is raised, and the fleet's own share. The first `REFERENCE` days give the
    usual rates.
    """
    world = Devices(fleet._replace(devices=fleets * devices, drift=0.0))
    tests: dict[float, list[PooledDrift]] = {}
    rates, sums, numbers = np.ones((fleets, CELLS)), np.zeros((fleets, CELLS)), np.zeros((fleets, CELLS))
    sample: list[tuple[Counts, Counts]] = []
    for day, *counts, _ in world.days():
        cell = 24 * (day % 7)
        audited, differ = (column.reshape(fleets, devices) for column in counts)
        if day < REFERENCE:
            sums[:, cell] += differ.sum(1)
            numbers[:, cell] += audited.sum(1)
            sample.append((audited, differ))
            continue
        if not tests:
            rates = np.array([usual_rates(*pair) for pair in zip(sums, numbers, strict=True)])
            levels = [_reference([(a[i], x[i]) for a, x in sample], rates[i]) for i in range(fleets)]
            tests = {liars: [PooledDrift(level, liars=liars) for level in levels] for liars in {0.0, fleet.liars}}
        for each in tests.values():
            for i, test in enumerate(each):
                if not test.alarmed:
                    _bet(test, audited[i], differ[i], rates[i, cell], day)
    return {liars: sum(test.alarmed for test in each) for liars, each in tests.items()}


# Certificates of a fleet's audits.

# Limit of the share of requests that the edge alone answers unlike the cloud, and the risk of a certificate.
MAX_LOSS, RISK = 0.01, 0.05
# Levels of confidence, of a twentieth of the requests each; disagreement falls with the third power of the rank from above.
LEVELS: Final = 20


def broken_certificates(fleet: Fleet, fleets: int = 1_000, devices: int = 100) -> tuple[int, int]:
    """Simulate audits of so many fleets; return how many of the certificates they give are broken, and how many there are.

    Each fleet's audits are looked at after 7, 14 and 28 days. A certificate is broken if its last threshold is one at which the
    loss over the fleet's requests is higher than its limit.
    """
    rng = np.random.default_rng([fleet.seed, 2])
    indices = range(0, 4 * LEVELS, 4)
    worse = (1 - (np.arange(LEVELS) + 0.5) / LEVELS) ** 3
    worse /= worse.mean()
    broken = certified = 0
    for i in range(fleets):
        world = Devices(fleet._replace(devices=devices, seed=fleet.seed + i))
        mean = float(world.a_day @ world.rate / world.a_day.sum())
        loss = np.cumsum((mean * worse / LEVELS)[::-1])[::-1]
        counts, reached = LossCounts(), NONE
        for days in (7, 7, 14):
            audits = days * float(world.a_day.sum()) * (1 - GOES / (GOES + RETURNS)) * AUDITED / LEVELS
            for differ, rates in ((1, mean * worse), (0, 1 - mean * worse)):
                numbers = rng.poisson(audits * rates).tolist()
                counts.numbers.update({(AUDITED, index, differ): n for index, n in zip(indices, numbers, strict=True) if n})
            reached = counts.lowest(MAX_LOSS, RISK, reached)
        level = -(-reached // 4)
        certified += level < LEVELS
        broken += bool(level < LEVELS and loss[level] > MAX_LOSS)
    return broken, certified


# Bytes of a digest.


def digest_bytes(fleet: Fleet, devices: int = 200) -> NDArray[np.int64]:
    """Return the bytes of the digests of some devices of one model, [devices], each of a working day."""
    rng = np.random.default_rng(fleet.seed)
    world = Devices(fleet._replace(devices=devices))
    sizes = []
    for i in range(devices):
        hours = rng.poisson(world.a_day[i] / 24 * np.array(BUSY))
        rows, audits = [], Counter[tuple[int, int]]()
        for hour, requests in enumerate(hours.tolist()):
            deferred = int(rng.binomial(requests, fleet.defer))
            latencies = rng.multinomial(requests - deferred, (0.9, 0.1, 0, 0, 0, 0, 0, 0))
            latencies += rng.multinomial(deferred, (0, 0, 0.2, 0.5, 0.25, 0.05, 0, 0))
            sent = int(rng.normal(12_000, 500) * deferred)
            rows += [(0, hour, requests, deferred, 0, 0, sent, 1000 * deferred, *latencies.tolist())] if requests else []
            audits.update((hour, rounded(int(rng.integers(len(GRID))))) for _ in range(rng.poisson(requests * AUDITED)))
        shares = rng.multinomial(hours.sum(), rng.dirichlet(np.ones(len(CONFIDENCES))))
        groups = (("fashion:0123456789ab", "ba9876543210", "", ""),)
        confidences = tuple((0, j, count) for j, count in enumerate(shares.tolist()) if count)
        audit_rows = tuple((0, *key, count, int(rng.random() < DIFFER), 0, 0, AUDITED) for key, count in audits.items())
        digest = Digest(
            f"{i:032x}", "2026-11-28", 1, True, "site-1", "1.0.0", "shop-7", groups, tuple(rows), confidences, audit_rows
        )  # fmt: skip
        sizes.append(len(encode(digest)))
    return np.array(sizes)


# (devices, runs) of the times to an alarm, up to the size of the fleet.
RUNS: Final = ((100, 40), (1_000, 20), (10_000, 20), (100_000, 5), (1_000_000, 3))


def summary(fleet: Fleet, progress: Callable[[int], object] = lambda _day: None) -> dict[str, Any]:
    """Simulate the days of a fleet, times to an alarm, years without a change, certificates and digests; return JSON data."""
    days = simulate(fleet, progress)
    times: list[dict[str, Any]] = [{"devices": 1, **_quantiles(times_alone(fleet, 100))}]
    for devices, runs in RUNS:
        if devices <= fleet.devices:
            times.append(
                {
                    "devices": devices,
                    **_quantiles(times_to_alarm(fleet, devices, runs, hours=1)),
                    "by_days": _quantiles(times_to_alarm(fleet, devices, runs)),
                    "by_weeks": _quantiles(times_to_alarm(fleet, devices, runs, hours=168, most=60, liars=fleet.liars)),
                }
            )
    sizes, fleets = digest_bytes(fleet), min(200, max(10, fleet.devices // 100))
    false = false_alarms(fleet, fleets)
    broken, certificates = broken_certificates(fleet, 5 * fleets)
    return {
        "begins": fleet.begins,
        "level": days.level,
        "alarms": [{"liars": liars, "day": day} for liars, day in days.alarms.items()],
        "times": times,
        "rollouts": {
            name: {
                "exposed": float(rollout.exposed.mean()),
                "steps": [dict(zip(("day", "share", "did", "text"), step, strict=True)) for step in rollout.steps],
            }
            for name, rollout in days.rollouts.items()
        },
        "suspects": [named._asdict() for named in days.suspects],
        "drift": days.drift,
        "liars": days.liars,
        "false_alarms": {"fleets": fleets, "alarms": false[fleet.liars], "trusting": false[0.0]},
        "certificates": {"broken": broken, "of": certificates},
        "bytes": {"mean": float(sizes.mean()), "p99": float(np.quantile(sizes, 0.99)), "most": int(sizes.max())},
    }


def _quantiles(hours: list[float]) -> dict[str, float | None]:
    """Return quantiles of times, as JSON data; None: later than was simulated."""
    values = np.quantile(hours, (0.05, 0.5, 0.95), method="higher")
    return {name: float(value) if np.isfinite(value) else None for name, value in zip(("p5", "p50", "p95"), values, strict=True)}
