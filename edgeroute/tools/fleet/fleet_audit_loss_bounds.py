"""Counts of a fleet's audits (`FleetAudits`), bounded by device and day, and the bounds of the loss that they give."""

from __future__ import annotations

from bisect import bisect_left
from datetime import date, timedelta
from math import ceil, floor, log
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import RISK, Floats, share_and_interval
from edgeroute.core.sequential_tests import GRID
from edgeroute.tools.measure.audit_counts_and_evidence import BETS, FIRST, FUNDS, LossCounts

MOST_AUDITS = 32  # number of audits of a device and day from which further ones weigh no more
# SQL that is true for a row of audits that can be.
AUDITS_POSSIBLE = """hour BETWEEN 0 AND 23 AND audited > 0 AND differ BETWEEN 0 AND audited AND harms >= 0 AND wins >= 0
    AND harms + wins <= audited AND rate > 0 AND rate <= 1"""
_EPOCH = date(1970, 1, 1)
_STEP = 0.02  # the share of liars' weight is rounded up to a multiple, so that looks that differ little are comparable
_LOW = 0.1  # share of the devices whose rates of drawing may be lower than the one of the largest weight
_LIMITS = 400  # bounds of the mean over devices are multiples of 1 / this, at most 1
_WORST = 5  # devices shown
_HERE = "contains(model, ':') AND split_part(model, ':', -1) = ? AND day >= ?"
_HERE += f" AND policy = coalesce(nullif(?, ''), policy) AND {AUDITS_POSSIBLE}"


def day_of(number: int) -> date:
    """Return the date of a day since 1970."""
    return _EPOCH + timedelta(days=number)


class FleetCounts(LossCounts):
    """Counts of a fleet's audits. Their lowest rate is fixed, so that there is one family of bets, whatever rates come later."""

    def least(self, risk: float) -> float:
        """Return the logarithm of the evidence that suffices: each beginning has its own part of the risk."""
        return -log(risk * FIRST) - self.alarms * log(1 - FIRST**0.5)


class Device(NamedTuple):
    """Audits of a device whose answers the threshold accepts.

    Attributes:
        low: lower end of the 95 % interval of the share of all its requests that differ, for this device alone.
        high: upper end.
    """

    device: str
    audited: int
    differ: int
    low: float
    high: float


class FleetAudits:
    """Audits of a model in a fleet's store, from a day on.

    A day of a device with more than `MOST_AUDITS` audits has the weight of so many: its part of the evidence is raised to a power
    below 1, so that the evidence remains fair (Jensen's inequality) and a device bounded.

    Args:
        db: connection to the store.
        key: digest of the model's fingerprints, 12 hex digits.
        since: first day, since 1970.
        base: low rate of drawing, at earlier looks; audits of lower rates count as of this, so that a device that reports a rate
            near 0 does not take the weight of all others. None: that which a tenth of the devices is at or below now.
        begun: number of times that the audits have begun anew, after alarms.
        policy: the policy's identity; empty: all policies.

    Attributes:
        base: low rate of drawing.
        devices: number of devices.
    """

    def __init__(self, db: Any, key: str, *, since: int = 0, base: float | None = None, begun: int = 0, policy: str = "") -> None:
        self._db, self._values = db, [key, day_of(since), policy]
        select = f"""SELECT quantile_disc(least, {_LOW}), count(*) FROM
            (SELECT min(rate) AS least FROM audits WHERE {_HERE} AND grid >= -1 GROUP BY device)"""
        row = db.execute(select, self._values).fetchone()
        self.base = float(row[0] or 1.0) if base is None else base
        self.devices = int(row[1])
        self._begun, self._since = begun, since
        db.execute(
            f"""CREATE OR REPLACE TEMP TABLE fleet_audits AS SELECT *, share * ? / rate AS weight FROM (
            SELECT device, day, grid AS index, audited, differ, greatest(rate, ?) AS rate,
            least(1, {MOST_AUDITS} / sum(audited) OVER (PARTITION BY device, day)) AS share
            FROM audits WHERE {_HERE} AND grid >= -1)""",
            [self.base, self.base, *self._values],
        )

    @property
    def unstated(self) -> int:
        """Number of audits without a confidence, which are left out."""
        row = self._db.execute(f"SELECT sum(audited) FROM audits WHERE {_HERE} AND grid < -1", self._values).fetchone()
        return int(row[0] or 0)

    def counts(self) -> FleetCounts:
        """Return the weighted counts of audits by rate and confidence, rounded to the safe side.

        Those that differ are rounded up, the others down.
        """
        counts = FleetCounts()
        counts.alarms, counts.begun = self._begun, self._since
        rows = self._db.execute(
            "SELECT rate, index, sum(share * differ), sum(share * (audited - differ)) FROM fleet_audits GROUP BY rate, index"
        ).fetchall()
        for rate, index, differ, same in rows:
            counts.numbers[rate, index, 1] += ceil(differ - 1e-9)
            counts.numbers[rate, index, 0] += floor(same + 1e-9)
        return counts

    def liars_weight(self, share: float) -> float:
        """Return the largest part of the weight of all audits that this share of the devices can have, rounded up, 0..1.

        Rounded to multiples of `_STEP`; 0 for a share of 0.
        """
        if not share:
            return 0.0
        rows = self._db.execute("SELECT sum(audited * weight) AS weight FROM fleet_audits GROUP BY device").fetchnumpy()
        weight = np.sort(np.asarray(rows["weight"], float))[::-1]
        part = float(weight[: ceil(share * len(weight))].sum() / max(weight.sum(), 1e-12))
        return min(1.0, ceil(part / _STEP - 1e-9) * _STEP)

    def mean_bound(self, index: int, risk: float) -> float:
        """Return an upper bound, at every look, of the loss on a device, averaged over devices' days: each counts the same.

        A day of a device is one bet on the share of its audits that differ and that the threshold accepts.

        Args:
            index: index in `GRID` of the threshold.
            risk: probability that the mean is higher.
        """
        rows = self._db.execute(
            "SELECT sum(differ) FILTER (index >= ?) / sum(audited) AS loss, count(*) AS n FROM fleet_audits GROUP BY device, day",
            [index],
        ).fetchnumpy()
        loss = np.nan_to_num(np.asarray(np.ma.filled(rows["loss"], 0.0), float))
        values, counts = np.unique(loss, return_counts=True)

        def evidence(limit: float) -> float:
            """Return the logarithm of the evidence that the mean is below a limit."""
            mean = (1 + limit) / 2
            logs: Floats = np.array([np.log1p(part / (1 - mean) * (limit - values) / 2) @ counts for part in BETS])
            return float(np.logaddexp.reduce(logs + np.log(FUNDS)))

        step = bisect_left(range(1, _LIMITS), -log(risk), key=lambda i: evidence(i / _LIMITS))
        return (step + 1) / _LIMITS

    def worst(self, index: int) -> list[Device]:
        """Return the five devices that lose most for certain at a threshold, by the lower end of the interval of their loss.

        Only the 10,000 with the most differing answers are compared.
        """
        rows = self._db.execute(
            """SELECT device, sum(audited)::BIGINT, coalesce(sum(differ) FILTER (index >= ?), 0)::BIGINT FROM fleet_audits
            GROUP BY device ORDER BY 3 DESC, 2, 1 LIMIT 10000""",
            [index],
        ).fetchall()
        devices = [Device(device, n, k, *share_and_interval(k, n, RISK)[1:]) for device, n, k in rows]
        return sorted(devices, key=lambda device: -device.low)[:_WORST]


def threshold_index(threshold: float) -> int:
    """Return the index in `GRID` of a threshold of a certificate; one beyond the last for inf."""
    return bisect_left(GRID, threshold)
