"""Trial over many devices: sums of each arm, with intervals, and tests if the model on trial is worse by more than allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, inf
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import RISK, Floats, share_and_interval
from edgeroute.errors import BadInput
from edgeroute.observe.stats_and_status_types import ArmStats, Interval
from edgeroute.tools.measure.threshold_evaluation import Bools

DRAWS = 4_999  # random assignments of devices to arms for the re-randomisation test
RESAMPLES = 2_000
MOST = 1e15  # most requests, seconds or dollars of a device: the sums of all stay numbers
# (Side, True if shown) -> the measures to compare. The devices themselves compare a hidden cloud's answers with those in use.
MEASURES = {("edge", True): ("failed", "deferred", "differs"), ("cloud", True): ("failed", "differs")}
SHARES = ("failed", "deferred", "differs")
# Measure -> the setting with the largest difference that is allowed.
MARGINS = {"failed": "more_errors", "deferred": "more_deferred", "differs": "more_differs"}


class Settings(NamedTuple):
    """Settings of a trial; comparable devices have equal ones."""

    side: str
    shown: bool
    models: tuple[str, str]
    share: float
    salt: str
    more_errors: float
    more_deferred: float
    more_differs: float
    alpha: float

    @property
    def measures(self) -> tuple[str, ...]:
        """Measures to compare."""
        return MEASURES.get((self.side, self.shown), ())


class Device(NamedTuple):
    """Stored results of one device's trial."""

    origin: str  # file or folder that it was read from
    name: str | None  # id of the device if each device is in one arm; None: each request is assigned separately
    settings: Settings
    arms: Sequence[Mapping[str, Any]]  # arms in use and on trial, as in `edgeroute status --json`


class Difference(NamedTuple):
    """Arm on trial minus arm in use, for one measure.

    The low ends of all measures hold together with probability 1 - alpha at least, and so do the high ends.
    """

    measure: str
    value: float
    low: float
    high: float
    allowed: float

    @property
    def verdict(self) -> str:
        """Result: "worse" by more than is allowed, "within" the allowed difference, or "open", not known yet."""
        return "worse" if self.low > self.allowed else "within" if self.high <= self.allowed else "open"


class FleetTrial(NamedTuple):
    """Result of a trial over many devices."""

    settings: Settings
    by_device: bool
    arms: tuple[ArmStats, ArmStats]
    differences: tuple[Difference, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """Measures in which the arm on trial is worse by more than is allowed."""
        return tuple(difference.measure for difference in self.differences if difference.verdict == "worse")

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        differences = [{**difference._asdict(), "verdict": difference.verdict} for difference in self.differences]
        arms = [arm._asdict() for arm in self.arms]
        return {"settings": self.settings._asdict(), "by_device": self.by_device, "arms": arms, "differences": differences,
                "worse": list(self.worse)}  # fmt: skip


def settings_of(stored: Any) -> Settings | None:
    """Read the settings that a router stored with a trial.

    None if a number is missing, invalid or not from 0 to 1, or `alpha` is 0.
    """
    try:
        a, b = stored["models"]
        numbers = [float(stored[name]) for name in ("share", "more_errors", "more_deferred", "more_differs", "alpha")]
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    if not all(0 <= number <= 1 for number in numbers) or not numbers[-1]:
        return None
    side, shown, salt = str(stored.get("side")), stored.get("shown") is not False, str(stored.get("salt", ""))
    return Settings(side, shown, (str(a), str(b)), numbers[0], salt, *numbers[1:])


def compare(devices: Iterable[Device]) -> FleetTrial:
    """Compare the arms of a trial over many devices.

    Where each device is in one arm, devices are the unit. The intervals of an arm are by resampling its devices (bootstrap),
    those of a difference by re-randomisation: which devices got B, the arm on trial, was random, and each other assignment
    shows what would have resulted if B were worse by some margin on each device. No interval is narrower than for independent
    requests (Clopper-Pearson). Where each request was assigned separately, requests are the unit.

    All draws are the same at each call.

    Raises:
        BadInput: the devices belong to different trials, a device occurs twice, or there is none.
    """
    device_list = list(devices)
    _check(device_list)
    settings, by_device = device_list[0].settings, device_list[0].name is not None
    tables = [_table(device_list, number) for number in (0, 1)]
    arms = tuple(_arm(device_list, i, table) for i, table in enumerate(tables))
    in_b = tables[1]["requests"] > 0
    both = bool((in_b & (tables[0]["requests"] > 0)).any())
    alpha = settings.alpha / max(1, len(settings.measures))
    differences = [
        _difference(name, tables, in_b if by_device and not both else None, getattr(settings, MARGINS[name]), alpha)
        for name in settings.measures
    ]
    return FleetTrial(
        settings, by_device, (arms[0], arms[1]), tuple(difference for difference in differences if difference is not None)
    )


def _check(devices: Sequence[Device]) -> None:
    """Raise `BadInput` unless there are devices, all of one trial, and each once."""
    if not devices:
        raise BadInput("there is no device with a trial")
    first, seen = devices[0], dict[str, str]()
    for device in devices:
        if device.settings != first.settings or (device.name is None) != (first.name is None):
            differing = [key for key, value in device.settings._asdict().items() if value != getattr(first.settings, key)]
            what = ", ".join(differing) or "device"
            raise BadInput(f"{device.origin} belongs to another comparison than {first.origin}: {what} differs")
        if device.name is not None and device.name in seen:
            raise BadInput(f"device {device.name!r} occurs twice: {seen[device.name]} and {device.origin}")
        seen |= {} if device.name is None else {device.name: device.origin}


def _table(devices: Sequence[Device], number: int) -> dict[str, Floats]:
    """Return counts and sums of one arm, [devices] each, of stored counts, shares and means; a missing value is 0.

    Raises:
        BadInput: a value is no number, a share is not 0..1, or a mean or time is below 0 or, with the requests, above `MOST`; a
            count below 0 is taken as 0.
    """
    rows = []
    for device in devices:
        stored, arm = device.arms[number], device.arms[number].get("arm")
        try:
            requests, compared = (max(0, int(stored.get(key) or 0)) for key in ("requests", "compared"))
            shares = [float((stored.get(key) or [0.0])[0]) for key in (*SHARES, "mean_s", "usd")]
            p99 = float(stored.get("p99_s") or 0.0)
        except (TypeError, ValueError, IndexError, KeyError, OverflowError) as e:
            raise BadInput(f"{device.origin}: arm {arm} cannot be read: {e!r}") from e
        failed, deferred, differs, mean, usd = shares
        if max(requests, compared) > MOST:
            raise BadInput(f"{device.origin}: arm {arm} has more requests than any device: {MOST:.0e} are possible")
        amounts = mean * max(1, requests), usd * max(1, requests), p99
        if not all(0 <= share <= 1 for share in shares[:3]) or not all(0 <= amount <= MOST for amount in amounts):
            raise BadInput(f"{device.origin}: arm {arm} has a share that is not 0..1, or no time or cost that is possible")
        rows.append((requests, compared, round(failed * requests), round(deferred * requests), round(differs * compared),
                     mean * requests, usd * requests))  # fmt: skip
    columns = np.array(rows, float).T
    return dict(zip(("requests", "compared", "failed", "deferred", "differs", "seconds", "usd"), columns, strict=True))


def _base(measure: str) -> str:
    """Return the count that a measure is a share of."""
    return "compared" if measure == "differs" else "requests"


def _arm(devices: Sequence[Device], number: int, table: Mapping[str, Floats]) -> ArmStats:
    """Return the results of one arm over all devices, with the wider of exact and resampled intervals.

    P99 is the median device's.
    """
    here, edge = table["requests"] > 0, devices[0].settings.side == "edge"
    drawn = _resampled({name: column[here] for name, column in table.items()})
    total = {name: float(column.sum()) for name, column in table.items()}
    stored = [device.arms[number] for device in devices]
    stopped = [str(entry["stopped"]) for entry in stored if entry.get("stopped")]
    times = sorted(float(entry["p99_s"]) for entry in stored if isinstance(entry.get("p99_s"), int | float))
    parts = {}
    for name in SHARES:
        of = _base(name)
        parts[name] = _hull(share_and_interval(int(total[name]), int(total[of])), _ratio(drawn[name], drawn[of]))
    accepted = share_and_interval(int(total["requests"] - total["deferred"]), int(total["requests"]), RISK / 2)
    wrong = share_and_interval(int(total["differs"]), int(total["compared"]), RISK / 2)
    answered = _ratio(drawn["requests"] - drawn["deferred"], drawn["requests"])
    exact = accepted[0] * wrong[0], accepted[1] * wrong[1], accepted[2] * wrong[2]
    loss = _hull(exact, answered * _ratio(drawn["differs"], drawn["compared"]))
    mean_s, usd = (
        _hull((mean := total[name] / max(1.0, total["requests"]), mean, mean), _ratio(drawn[name], drawn["requests"]))
        for name in ("seconds", "usd")
    )
    settings = devices[0].settings
    share, shown = (settings.share, settings.shown) if number else (1 - settings.share, True)
    return ArmStats(
        str(stored[0].get("arm")), settings.side, settings.models[number], share, shown,
        int(total["requests"]), parts["failed"], parts["deferred"] if edge else None, int(total["compared"]), parts["differs"],
        loss if edge else None, None if edge else usd, mean_s, None, times[(len(times) - 1) // 2] if times else None,
        f"on {len(stopped):,} of {len(devices):,} devices: {stopped[0]}" if stopped else "", int(here.sum()),
    )  # fmt: skip


def _resampled(table: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return sums of an arm over devices drawn with replacement, [RESAMPLES], the same at each call.

    Of a single device, or none, the plain sum.
    """
    count = len(table["requests"])
    if count < 2:  # noqa: PLR2004 - a single device tells nothing about others
        return {name: np.full(1, column.sum()) for name, column in table.items()}
    rng, columns = np.random.default_rng(0), np.stack(list(table.values()))
    sums = [columns[:, rng.integers(0, count, count)].sum(1) for _ in range(RESAMPLES)]
    return dict(zip(table, np.array(sums).T, strict=True))


def _ratio(part: Floats, of: Floats) -> Floats:
    """Divide, with 0 for a division by 0."""
    return np.divide(part, of, out=np.zeros_like(part), where=of > 0)


def _hull(exact: tuple[float, float, float], drawn: Floats) -> Interval:
    """Return the value with the wider of two intervals at each end: the exact one, and that of the draws."""
    value, low, high = exact
    ends = np.quantile(drawn, [RISK / 2, 1 - RISK / 2])
    return Interval(value, float(min(low, ends[0])), float(max(high, ends[1])))


def _difference(
    name: str, tables: Sequence[Mapping[str, Floats]], in_b: Bools | None, allowed: float, alpha: float
) -> Difference | None:
    """Return the difference of trial and use, with its interval; None if an arm has no counts.

    in_b: True for devices on trial; None: requests were assigned.
    """
    of = _base(name)
    (a, of_a), (b, of_b) = ((int(t[name].sum()), int(t[of].sum())) for t in tables)
    if not (of_a and of_b):
        return None
    share_a, low_a, high_a = share_and_interval(a, of_a, alpha)
    share_b, low_b, high_b = share_and_interval(b, of_b, alpha)
    value, low, high = share_b - share_a, low_b - high_a, high_b - low_a
    if in_b is not None:
        least, most = _randomised(tables[0][name] + tables[1][name], tables[0][of] + tables[1][of], in_b, alpha)
        low, high = min(low, least), max(high, most)
    return Difference(name, value, max(-1.0, low), min(1.0, high), allowed)


def _randomised(counts: Floats, of: Floats, in_b: Bools, alpha: float) -> tuple[float, float]:
    """Return the ends of the difference's interval by re-randomisation (Fisher, 1935), each at level alpha.

    counts, of: [devices]. If B adds d to each device's share, then counts - d * of on B's devices is what A would have given,
    and any other assignment of devices is as likely as the one in use. So d is too small where the difference of hardly any
    other assignment is as large.
    The draws are the same at each call; an end may be infinite.
    """
    took_part = of > 0
    counts, of, in_b = counts[took_part], of[took_part], in_b[took_part]
    rng, here = np.random.default_rng(0), int(in_b.sum())
    columns = np.stack([counts, of, of * in_b])
    total, lows, highs = columns.sum(1), [-inf], [inf]

    def split(picked: Any) -> tuple[float, float]:
        """Return the difference of an assignment, and its slope in d."""
        b = columns[:, picked].sum(1)
        a = total - b
        if not (a[1] and b[1]):
            return 0.0, 1.0
        return b[0] / b[1] - a[0] / a[1], b[2] / b[1] - a[2] / a[1]

    value, _ = split(np.flatnonzero(in_b))
    for _ in range(DRAWS):
        drawn, part = split(rng.permutation(len(counts))[:here])
        same = part > 1 - 1e-12
        lows.append(-inf if same else (value - drawn) / (1 - part))
        highs.append(inf if same else (value - drawn) / (1 - part))
    skip = ceil(alpha * len(lows)) - 1
    return float(np.sort(lows)[skip]), float(np.sort(highs)[-1 - skip])
