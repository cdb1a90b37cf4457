"""Sequential tests of a fleet's counts (`PooledDrift`), pooled over devices, and the search for `suspects`.

The unit is a device-period, such as a device's day: its events (answers that differ, harms, deferrals) against the number that is
expected of its audits or requests at the usual rate of their hours. A device-period counts once, however much it reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from edgeroute.confidence.binomial_tests import Floats, Ints
from edgeroute.core.error_codes_and_texts import DumpOf
from edgeroute.tools.measure.deferral_curve import student_quantile

CAP: Final = 4.0  # highest score of a device-period; a liar adds at most this
FULL: Final = 0.5  # number of expected events from which a device-period has the full weight, 1
CELLS: Final = 168  # hours of a week: 24 * weekday + hour, Monday is 0, UTC
WEEK: Final = 7
_RATES: Final = 0.01 * 90 ** (np.arange(8) / 7)  # .01 to .9, as `Drift`; each is quickest for a difference of its own size
_MOST: Final = 230.0  # logarithm of the largest wealth, far below float overflow
_PRIOR: Final = 20.0  # events that a usual rate is shrunk by
_TIMES: Final = np.array([1.5, 2, 4, 8, 16, 32, 0.25, 0.05])  # ratios of a suspect's rate to the others'
_SHAPES: Final = np.geomspace(0.25, 100, 14)  # of the gamma distribution of devices' rates
_SHARES: Final = (0.0, 0.02, 0.05, 0.1, 0.2)  # of devices beyond that distribution
_SAMPLE, _COUNTED = 4_000, 200  # most devices by which it is fitted, and most events of a device
# Normal quantile of the chance, .05 / 365, that a day lies further above the others than by what they have in common.
_RARE: Final = NormalDist().inv_cdf(1 - 0.05 / 365)
_TUNE: Final = 0.04  # of the interval: narrowest relative to its limit after some 50 events


def scores(events: Floats, expected: Floats) -> tuple[Floats, Floats]:
    """Return the scores, 0..`CAP`, and the weights, 0..1, of device-periods, [devices] each.

    The weight grows with the expected events up to `FULL`. The score is weight * events / expected, cut off at `CAP`.
    """
    return np.minimum(CAP, events / np.maximum(expected, FULL)), np.minimum(1.0, expected / FULL)


def liar_bound(share: float) -> float:
    """Return the most by which this share of devices, whatever they report, can move the mean score over devices.

    Each score is between 0 and `CAP`, so replacing share * N of N scores moves their mean by share * `CAP` at most.
    """
    return share * CAP


class PooledDrift:
    """E-detector of a rise of the fleet's mean score over that of its weights, valid at every look.

    Each device-period makes a bet of its own. The product over devices of 1 + rate * (score / level - weight) is at most 1 on
    average if the sum of the mean scores is within level * sum of weights, however the devices differ: devices are independent
    given the past, and a geometric mean is no more than the arithmetic one. In each period a new bet of `stake` is made first.
    The wealth less the stakes so far does not rise on average (Shin et al., 2022), so wealth ever reaches 1 / alpha with
    probability alpha * (sum of the stakes) at most.

    With `liars`, `liar_bound` is subtracted from each score: the bets are then fair whatever that share of the devices reports,
    as long as the others are within the level.

    Args:
        level: highest ratio of scores to weights that is no change; from `highest_usual`.
        alpha: probability of a false alarm while the stakes add up to 1.
        liars: share of the devices that may report anything, 0..1.

    Attributes:
        alarmed: True once the wealth has reached 1 / alpha.
        periods, devices: number of periods, and of devices in the last one.
    """

    def __init__(self, level: float, *, alpha: float = 0.05, liars: float = 0.0) -> None:
        if not (0 < level < np.inf and 0 < alpha < 1 and 0 <= liars < 1):
            raise ValueError(f"level {level}, alpha {alpha} or liars {liars} is out of range")
        self.level, self.alpha, self.liars = level, alpha, liars
        self.alarmed = False
        self.periods = self.devices = 0
        self._wealth = np.full(len(_RATES), -np.inf)
        self._sums = np.zeros((len(_RATES), 5))  # since the change: score, weight, score^2, score * weight, weight^2
        self._rise, self._starts = np.zeros(len(_RATES)), [0] * len(_RATES)

    @property
    def evidence(self) -> float:
        """Wealth, averaged over the rates of betting: 0 or more."""
        return float(np.exp(self._wealth).mean())

    @property
    def since(self) -> int | None:
        """Period at which the change has begun, by the largest rise of a wealth; None: there is no rise."""
        best = int(self._rise.argmax())
        return self._starts[best] if self._rise[best] > 0 else None

    def bet(self, events: Floats, expected: Floats, *, period: int, stake: float = 1 / 365, count: Ints | int = 1) -> bool:
        """Bet on a closed period: update wealth and sums, and return True if the alarm is set now or was before.

        Args:
            events: [devices], number of events of each.
            expected: [devices], number expected by the usual rates; devices with 0 are left out.
            period: number of the period, as a day's ordinal; the caller passes each only once.
            stake: amount of the new bet. All stakes of a year, over all tests of a fleet, add up to 1.
            count: number of devices that have each pair of events and expected.

        Raises:
            ValueError: a count is negative or not finite.
        """
        events, expected = np.asarray(events, float), np.asarray(expected, float)
        if not (np.isfinite(events).all() and np.isfinite(expected).all() and (events >= 0).all() and (expected >= 0).all()):
            raise ValueError("a count of a device is negative or not finite")
        used = expected > 0
        devices = np.broadcast_to(count, events.shape)[used]
        score, weight = scores(events[used], expected[used])
        shift = liar_bound(self.liars)
        over = (score - shift) / self.level - weight
        logs = np.array([np.log1p(rate / (1 + shift / self.level) * over) @ devices for rate in _RATES])
        self._wealth = np.minimum(_MOST, np.logaddexp(self._wealth, np.log(stake)) + logs)
        sums = np.array([score, weight, score * score, score * weight, weight * weight]) @ devices
        for i, rise in enumerate(self._rise):
            if rise <= 0:
                self._sums[i], self._starts[i] = 0.0, period
        self._sums += sums
        self._rise = np.clip(np.maximum(self._rise, 0.0) + logs, 0.0, _MOST)
        self.periods, self.devices = self.periods + 1, int(devices.sum())
        self.alarmed = self.alarmed or self.evidence >= 1 / self.alpha
        return self.alarmed

    def ratio(self) -> tuple[float, float, float]:
        """Return the ratio of scores to weights since the change, and its interval, which holds at every look and any start.

        By the central limit theorem, time-uniform (Waudby-Smith et al., 2024); each start has its part of alpha. A score is
        at most `CAP`, so a large change is understated. The lower end is 0 or more. Without a device: NaN, 0 and infinity.
        """
        score, weight, squares, product, weights = self._sums[int(self._rise.argmax())]
        if not weight:
            return float("nan"), 0.0, float("inf")
        value = score / weight
        spread = max(0.0, squares - 2 * value * product + value**2 * weights) * _TUNE + 1
        half = float(np.sqrt(spread / _TUNE * np.log(spread * (self.periods / self.alpha) ** 2)) / weight)
        return float(value), max(0.0, float(value) - half), float(value) + half

    def dump(self) -> dict[str, Any]:
        """Return the state in JSON types."""
        return {
            "level": self.level, "alpha": self.alpha, "liars": self.liars, "alarmed": self.alarmed, "periods": self.periods,
            "devices": self.devices, "wealth": [max(-1e9, x) for x in self._wealth.tolist()], "sums": self._sums.tolist(),
            "rise": self._rise.tolist(), "starts": self._starts[:],
        }  # fmt: skip

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> PooledDrift:
        """Return the test of a dump.

        Raises:
            ValueError: not a dump.
        """
        with DumpOf("a pooled test"):
            test = cls(dumped["level"], alpha=dumped["alpha"], liars=dumped["liars"])
            test._wealth, test._rise = np.array(dumped["wealth"], float), np.array(dumped["rise"], float)
            test._sums, test._starts = np.array(dumped["sums"], float), [int(start) for start in dumped["starts"]]
            test.alarmed, test.periods, test.devices = bool(dumped["alarmed"]), int(dumped["periods"]), int(dumped["devices"])
            parts = test._wealth, test._rise, test._sums[:, 0], np.array(test._starts)
            if any(part.shape != (len(_RATES),) for part in parts) or not np.isfinite(test._sums).all():
                raise ValueError("a part has another length")
        return test


# The usual rates, and how far above them a mean may be.


def usual_rates(events: Floats, numbers: Floats, *, weekdays: bool = True) -> Floats:
    """Return the usual rate of each hour of the week, [168], more than 0, by sums of a reference, [168] each.

    The mean rate times a factor of the hour of the day, of the weekday and of the cell. Each factor is shrunk to 1 by `_PRIOR`
    events, so that the rates of a small fleet are nearly the same and those of a large one are as observed. weekdays: False for
    a reference of less than two weeks, in which a weekday and a single day are the same: hours of the day alone.
    """
    rate = (events.sum() + 0.5) / (numbers.sum() + 1)
    expected = (numbers * rate).reshape(WEEK, 24)
    table, factor = events.reshape(WEEK, 24), np.ones((WEEK, 24))
    for axes in ((0,), (1,), ()) if weekdays else ((0,),):
        seen, usual = (sums.sum(axes, keepdims=True) if axes else sums for sums in (table, expected * factor))
        factor = factor * (seen + _PRIOR) / (usual + _PRIOR)
    rates: Floats = np.minimum(1.0, rate * factor.reshape(CELLS))
    return rates


def highest_usual(
    score: Floats, weight: Floats, device: Ints, day: Ints, *, tolerance: float = 0.1, weekdays: bool = True
) -> float:
    """Return the highest ratio of scores to weights that is no change, by a reference of device-days, [units] each.

    The mean ratio of the reference plus twice its standard error (devices are drawn, and differ), times 1 + tolerance, plus
    the standard deviation of what is common to the devices of a day, times the quantile `_RARE` of Student's t distribution, as
    that deviation is estimated from a few days. Days weigh by their precision (DerSimonian and Laird, 1986), as the first day
    of a policy is often one of few devices.

    Args:
        score: scores, from `scores`.
        weight: weights.
        device: number of the device, 0 and up.
        day: number of the day, 0 and up.
        tolerance: relative rise that is no change.
        weekdays: as of `usual_rates`.
    """
    total = weight.sum() + 1  # a score of CAP, as if it had been seen once, bounds the ratio of a reference without events
    ratio = (score.sum() + 1) / total
    rest = score - ratio * weight
    count = max(1, int(np.count_nonzero(np.bincount(device))))
    clusters = np.bincount(device, rest) ** 2
    error = float(np.sqrt(max(clusters.sum() * (count > 1), rest @ rest) + CAP)) / total
    by_day, weights = np.bincount(day, rest), np.bincount(day, weight)
    some = weights > 0
    mean = by_day[some] / weights[some]
    free = max(1, len(mean) - (WEEK if weekdays else 1))  # the factors of the weekdays are of the same days
    # By the variance of all days: that of a day without events would seem next to none, and its mean a deviation.
    precision = weights[some] * weight.sum() / max(rest @ rest, 1e-12)
    scale = (precision.sum() - precision @ precision / precision.sum()) / max(1, len(mean) - 1)
    beyond = max(0.0, float(precision @ mean**2 / free - 1 - 2 * np.sqrt(2 / free)))  # 0 unless it is more than chance
    common = beyond / scale if len(mean) > 1 else 0.0
    return float((ratio + 2 * error) * (1 + tolerance) + student_quantile(max(free, WEEK), _RARE) * np.sqrt(common))


# Suspects.


def device_evidence(events: Floats, expected: Floats, past_events: Any = 0.0, past_expected: Any = 0.0) -> Floats:
    """Return e-values, [devices]: how much more likely the events are if a device's rate has changed against the others'.

    Rates of devices differ by a gamma distribution, fitted to all devices but for a share beyond it, and a device's own past
    narrows that; the pooled ratio of the others is that of now. The alternatives are ratios from 1.5 to 32, and 1/4 and 1/20.

    Args:
        events: [devices], number of events of each in the window.
        expected: [devices], number expected by the usual rates.
        past_events: [devices], number before the window.
        past_expected: [devices], number expected before it.
    """
    events, expected = np.asarray(events, float), np.asarray(expected, float)
    before, usual = np.broadcast_to(past_events, events.shape), np.broadcast_to(past_expected, events.shape)
    score, weight = scores(events, expected)
    others = weight.sum() - weight
    pooled = np.divide(score.sum() - score, others, out=np.ones_like(score), where=others > 0)
    expected = np.maximum(pooled, 1e-3) * expected
    shape = _shape(events + before, expected + usual)
    part, part_before = (_COUNTED / np.maximum(_COUNTED, np.maximum(*pair)) for pair in ((events, expected), (before, usual)))
    seen, mean = events * part, expected * part
    a, b = shape + before * part_before, shape + usual * part_before
    logs = [a * np.log((b + mean) / (b + r * mean)) + seen * np.log(r * (b + mean) / (b + r * mean)) for r in _TIMES]
    evidence: Floats = np.exp(np.minimum(_MOST, logs)).mean(0)
    return evidence


def _shape(events: Floats, expected: Floats) -> float:
    """Return the shape of the gamma distribution of devices' rates, of mean 1, most likely by events that are Poisson then.

    Beside it a share of the devices, unknown too, has rates of eight times the mean and a shape of 1/2.
    """
    step = max(1, len(events) // _SAMPLE)
    events, expected = events[::step], np.maximum(expected[::step], 1e-9)
    part = _COUNTED / np.maximum(_COUNTED, np.maximum(events, expected))
    seen, mean = np.rint(events * part).astype(int), expected * part
    steps = np.arange(_COUNTED)

    def chance(shape: float, mean: Floats) -> Floats:
        """Return the probabilities of the events of each device."""
        table = np.concatenate([[0.0], np.cumsum(np.log((shape + steps) / (steps + 1)))])
        logs: Floats = np.exp(table[seen] + shape * np.log(shape / (shape + mean)) + seen * np.log(mean / (shape + mean)))
        return logs

    beyond = chance(0.5, 8 * mean)
    options = [
        (float(np.log((1 - share) * usual + share * beyond + 1e-300).sum()), float(shape))
        for shape in _SHAPES
        for usual in [chance(float(shape), mean)]
        for share in _SHARES
    ]
    return max(options)[1]


def suspects(evidence: Floats, fdr: float = 0.05) -> Ints:
    """Return the indices of devices by e-BH, the largest e-value first: on average at most a share `fdr` is named wrongly.

    For any dependence between the e-values (Wang and Ramdas, 2022).
    """
    order = np.argsort(-evidence, kind="stable")
    passed = np.flatnonzero(evidence[order] * np.arange(1, len(order) + 1) * fdr >= len(order))
    named: Ints = order[: passed[-1] + 1] if len(passed) else order[:0]
    return named
