"""Report of a fleet by SQL in DuckDB: sums by model, policy, site and week, outliers, and a forecast of the month's cost.

The forecast has an interval of 95 %, and is compared with the budget. An outlier is a device whose share is above the usual one
by its interval. The last days, of which many devices have yet to send digests, are left out; missing devices are counted.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from edgeroute.fleet.digest_encoding_and_coarsening import LATENCIES_S
from edgeroute.system.wall_clock import now
from edgeroute.tools.fleet.digest_parquet_store import BUCKETS
from edgeroute.tools.measure.deferral_curve import student_quantile

COUNTS = ("requests", "deferred", "degraded", "failed", "bytes", "usd", *BUCKETS)  # columns that are summed
BY = ("model", "policy", "site")
QUANTILES = (0.5, 0.9, 0.99)
# Shares by which devices are compared: of requests, and of audits for the last.
MEASURES = ("deferred", "degraded", "failed", "differ")
Z = 2.576  # normal quantile of a two-sided interval of 99 %, of each device
LEAST_DAYS, LEAST_COUNT = 5, 100  # days and requests (audits) from which a device is compared with the others
CANDIDATES, WORST = 1_000, 10
MISSING_DAYS = 3  # days without a digest after which a device is named as missing
COMPLETE = 0.9  # share of the usual devices from which a day is complete
# Days from which weekdays are told apart in a forecast, and the number of days on which a forecast is based.
SEASON, PAST = 14, 28


class Sums(NamedTuple):
    """Sums of a part of the fleet.

    Attributes:
        latencies: answered requests by latency bucket.
    """

    name: str
    devices: int
    requests: int
    deferred: int
    degraded: int
    failed: int
    bytes: int
    usd: float
    latencies: tuple[int, ...]
    audited: int = 0
    differ: int = 0

    def share(self, measure: str) -> float | None:
        """Return the share of requests, or for "differ" of audits; None of none."""
        of = self.audited if measure == "differ" else self.requests
        return getattr(self, measure) / of if of else None

    def json(self) -> dict[str, Any]:
        """Return the sums with shares and latency quantiles, as JSON data."""
        shares = {f"{measure}_share": self.share(measure) for measure in MEASURES}
        return {**self._asdict(), **shares, "latency_s": {f"p{q * 100:g}": quantile(self.latencies, q) for q in QUANTILES}}


class Outlier(NamedTuple):
    """Device whose share is higher than is usual in the fleet.

    Attributes:
        low: lower end of the share's interval of 99 %: the lower one of by requests and by days.
        fleet: the whole fleet's share.
        usual: highest share of a usual device: the fleet's, or the devices' median and three standard deviations (robust), if
            higher.
        of: requests, or audits.
    """

    device: str
    site: str
    measure: str
    share: float
    low: float
    fleet: float
    usual: float
    of: int
    days: int


class Forecast(NamedTuple):
    """Money of the month of the newest day.

    Attributes:
        until: newest day with digests.
        expected: US dollars at the month's end; None with less than a week of complete days.
        low, high: interval of 95 % of the month's end, if days to come are as the last ones.
        verdict: within, over, open (the budget is in the interval), spent (over it already), or unknown.
    """

    month: str
    spent: float
    until: date
    expected: float | None
    low: float | None
    high: float | None
    budget: float | None
    verdict: str


class FleetReport(NamedTuple):
    """Everything that a report shows.

    Attributes:
        parts: model, policy, site and week -> their sums, the most requests first; weeks in order.
        days: sums of each day, whose name is its date.
        incomplete: days at the end of which less than the usual number of devices has sent a final digest.
        worse: measure -> devices whose interval is above what is usual.
        compared: devices with enough evidence to be compared.
        spread: devices with enough evidence by their deferral, in 20 bins of 5 %.
        costly: (device, site, US dollars, requests) of the `WORST` devices that cost most; none if nothing costs anything.
        missing: (device, site, newest day) of devices that have sent nothing for days, at most `WORST`.
        refused: damaged files of the store, and why.
        versions: versions of edgeroute, and the devices of the newest complete day that have them.
        age: days since the newest digest's day.
    """

    first: date
    last: date
    total: Sums
    parts: Mapping[str, Sequence[Sums]]
    days: Sequence[Sums]
    incomplete: Sequence[str]
    worst: Sequence[Outlier]
    worse: Mapping[str, int]
    compared: int
    spread: Sequence[int]
    costly: Sequence[tuple[str, str, float, int]]
    missing: Sequence[tuple[str, str, date]]
    missing_count: int
    forecast: Forecast
    refused: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, int]]
    age: int

    def json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return {
            **self._asdict(), "first": str(self.first), "last": str(self.last), "total": self.total.json(),
            "parts": {name: [part.json() for part in parts] for name, parts in self.parts.items()},
            "days": [day.json() for day in self.days], "worst": [device._asdict() for device in self.worst],
            "missing": [(device, site, str(day)) for device, site, day in self.missing],
            "forecast": {**self.forecast._asdict(), "until": str(self.forecast.until)},
        }  # fmt: skip


def quantile(latencies: Sequence[int], q: float) -> tuple[float, float | None] | None:
    """Return the ends of the bucket that has a quantile, seconds; the upper end of the last is None; None of no requests."""
    total = sum(latencies)
    if not total:
        return None
    number = int(np.searchsorted(np.cumsum(latencies), q * total))
    bounds = (0.0, *LATENCIES_S, None)
    return bounds[number], bounds[number + 1]  # type: ignore[return-value]  # the first of the two is a number


def report(store: Any, budget: float | None = None, days: int | None = None) -> FleetReport | None:
    """Return the report of a store; None if the store is empty. Reads each table several times, and makes temporary tables.

    Args:
        store: connection of `open_store`.
        budget: US dollars a month; None: no budget.
        days: only the newest days, so many; None: all.
    """
    (last,) = store.execute("SELECT max(day) FROM digests").fetchone()
    if last is None:
        return None
    since = date.min if days is None else last - timedelta(days=days - 1)
    _sum(store, since)
    total = _sums(store, "''", "by_device")[0]
    parts = {name: _sums(store, name, "by_device") for name in BY}
    # Not the newest name: a day's digest has that of its end, also for the hours before the device took the new policy.
    named = "SELECT policy, mode(signed) FILTER (requests > 0) FROM by_device GROUP BY policy"
    signed = dict(store.execute(named).fetchall())
    parts["policy"] = [part._replace(name=" ".join(filter(None, (signed[part.name], part.name)))) for part in parts["policy"]]
    by_day = sorted(_sums(store, "day::VARCHAR", "by_day"))
    parts["week"] = sorted(_sums(store, "date_trunc('week', day)::DATE::VARCHAR", "by_day"))  # from its Monday on
    worst, worse, compared = _outliers(store, since, total)
    final = "SELECT day, count(*) FILTER (final) FROM digests GROUP BY day ORDER BY day"
    usual: dict[date, int] = dict(store.execute(final).fetchall())
    incomplete = _incomplete(usual)
    newest = max((day for day in usual if day.isoformat() not in incomplete), default=last)
    missing = store.execute(
        """SELECT device, any_value(site), max(day) AS newest, count(*) OVER () FROM digests GROUP BY device
        HAVING max(day) < ? ORDER BY newest DESC, device LIMIT ?""", [newest - timedelta(days=MISSING_DAYS - 1), WORST]
    ).fetchall()  # fmt: skip
    return FleetReport(
        first=max(since, store.execute("SELECT min(day) FROM digests").fetchone()[0]), last=last, total=total,
        parts=parts, days=by_day, incomplete=incomplete, worst=worst, worse=worse, compared=compared,
        spread=_spread(store), costly=_costly(store), missing=[row[:3] for row in missing],
        missing_count=missing[0][3] if missing else 0,
        forecast=forecast(_spending(store, last), incomplete, last, budget),
        refused=store.execute("SELECT file, why FROM refused").fetchall(),
        versions=store.execute(
            "SELECT version, count(*) AS n FROM digests WHERE day = ? GROUP BY version ORDER BY n DESC, version", [newest]
        ).fetchall(), age=(datetime.fromtimestamp(now(), timezone.utc).date() - last).days,
    )  # fmt: skip


def _sum(store: Any, since: date) -> None:
    """Make the tables `by_device` (with model, policy and site) and `by_day` of the sums since a day."""
    counts = ", ".join(f"sum({name}) AS {name}" for name in COUNTS)  # HUGEINT: no digest makes a sum overflow
    audits = "sum(audited) AS audited, sum(differ) AS differ"
    none = ", ".join(f"0 AS {name}" for name in COUNTS)
    for table, key in (("by_device", "device, model, policy, site"), ("by_day", "day")):
        store.execute(
            f"""CREATE OR REPLACE TEMP TABLE {table} AS
            SELECT {key}, mode(signed) AS signed, {counts}, 0::HUGEINT AS audited, 0::HUGEINT AS differ
            FROM requests WHERE day >= $1 GROUP BY {key}
            UNION ALL SELECT {key}, '', {none}, {audits} FROM audits WHERE day >= $1 GROUP BY {key}""", [since]
        )  # fmt: skip


def _sums(store: Any, key: str, table: str) -> list[Sums]:
    """Return the sums of a table by a key, the most requests first; the sums of nothing are one row for a constant key.

    Devices are counted by the table's rows, or for `by_day`, whose key is of days or weeks, by their digests.
    """
    counts = ", ".join(f"sum({name})" for name in COUNTS)
    devices = "count(DISTINCT device)" if table == "by_device" else "0"
    rows = store.execute(
        f"""SELECT {key} AS name, {devices}, {counts}, sum(audited), sum(differ) FROM {table}
        GROUP BY name ORDER BY sum(requests) DESC, name"""
    ).fetchall()
    if not rows and key == "''":
        rows = [("", 0, *([0] * (len(COUNTS) + 2)))]
    if table == "by_day":
        devices_of = dict(store.execute(f"SELECT {key}, count(DISTINCT device) FROM digests GROUP BY ALL").fetchall())
        rows = [(name, devices_of.get(name, 0), *rest) for name, _, *rest in rows]
    return [Sums._make((*row[:8], tuple(row[8:-2]), *row[-2:])) for row in rows]


def _incomplete(devices: Mapping[date, int]) -> list[str]:
    """Return the days at the end with less than `COMPLETE` of the usual number of devices: others have yet to send."""
    days, counts = [*devices], [*devices.values()]
    end = len(days)
    usual = float(np.median(counts[-SEASON:])) if counts else 0.0
    while end > 1 and counts[end - 1] < COMPLETE * usual:
        end -= 1
    return [day.isoformat() for day in days[end:]]


def _outliers(store: Any, since: date, total: Sums) -> tuple[list[Outlier], dict[str, int], int]:
    """Return the worst devices of each measure with a higher share than is usual, how many there are, and how many were compared.

    At most `WORST` a measure, of the `CANDIDATES` with the highest lower ends. A device with `LEAST_COUNT` requests and
    `LEAST_DAYS` days is listed if the lower end of its interval is above `Outlier.usual`. The interval is computed by
    requests, and by the device's days, since requests of a day resemble each other; the wider one counts. Makes a temporary
    table.
    """
    worst: list[Outlier] = []
    worse = {}
    sql = "SELECT count(*) FROM (FROM by_device SELECT device GROUP BY device HAVING sum(requests) >= ?)"
    (compared,) = store.execute(sql, [LEAST_COUNT]).fetchone()
    for measure in MEASURES:
        fleet = total.share(measure)
        if not fleet:
            worse[measure] = 0
            continue
        of, table = ("audited", "audits") if measure == "differ" else ("requests", "requests")
        store.execute(
            f"""CREATE OR REPLACE TEMP TABLE shares AS SELECT device, sum({measure}) / sum({of}) AS p, sum({of})::DOUBLE AS n
            FROM by_device GROUP BY device HAVING n >= ?""",
            [LEAST_COUNT],
        )
        (usual,) = store.execute("SELECT median(p) + 3 * 1.4826 * mad(p) FROM shares").fetchone()
        usual = max(fleet, usual or 0.0)
        rows = store.execute(
            f"""WITH candidates AS (
                SELECT device FROM shares WHERE p > $usual
                ORDER BY (p + $z ** 2 / (2 * n) - $z * sqrt(p * (1 - p) / n + $z ** 2 / (4 * n ** 2))) / (1 + $z ** 2 / n) DESC
                LIMIT $most
            ), days AS (
                SELECT device, site, sum({measure}) AS k, sum({of}) AS n FROM {table} SEMI JOIN candidates USING (device)
                WHERE day >= $since GROUP BY device, site, day
            )
            SELECT device, any_value(site), sum(k)::DOUBLE, sum(n)::DOUBLE, count(*), sum(k * k)::DOUBLE, sum(k * n)::DOUBLE,
                sum(n * n)::DOUBLE FROM days GROUP BY device HAVING count(*) >= $days""",
            {"usual": usual, "z": Z, "most": CANDIDATES, "since": since, "days": LEAST_DAYS},
        ).fetchall()  # fmt: skip
        outliers = [
            Outlier(device, site, measure, k / n, low_end(k, n, days, *squares), fleet, usual, int(n), days)
            for device, site, k, n, days, *squares in rows
        ]
        outliers = sorted((o for o in outliers if o.low > usual), key=lambda o: (-o.low, o.device))
        worse[measure] = len(outliers)
        worst += outliers[:WORST]
    return worst, worse, compared


def low_end(k: float, n: float, days: int, kk: float, kn: float, nn: float) -> float:
    """Return the lower end of a share's interval of 99 %: the lower one of Wilson's by requests, and Student's by days.

    Args:
        k: events.
        n: requests.
        days: days, 2 or more.
        kk: sum over days of the squared events.
        kn: sum over days of events times requests.
        nn: sum over days of the squared requests.
    """
    p = k / n
    wilson = (p + Z**2 / (2 * n) - Z * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))) / (1 + Z**2 / n)
    variance = max(0.0, kk - 2 * p * kn + p * p * nn) * days / (days - 1) / n**2
    return float(min(wilson, p - student_quantile(days - 1, Z) * sqrt(variance)))


def _spread(store: Any) -> list[int]:
    """Return the devices with enough requests by their deferral, in 20 bins."""
    rows = store.execute(
        f"""SELECT least(19, floor(sum(deferred) / sum(requests) * 20))::INTEGER AS bin FROM by_device GROUP BY device
        HAVING sum(requests) >= {LEAST_COUNT}"""
    ).fetchnumpy()["bin"]
    return [int(count) for count in np.bincount(np.asarray(rows, np.int64), minlength=20)]


def _costly(store: Any) -> list[tuple[str, str, float, int]]:
    """Return device, site, US dollars and requests of the devices that cost most."""
    return list(store.execute(
        """SELECT device, any_value(site), sum(usd) AS cost, sum(requests) FROM by_device GROUP BY device HAVING cost > 0
        ORDER BY cost DESC, device LIMIT ?""", [WORST]
    ).fetchall())  # fmt: skip


def _spending(store: Any, last: date) -> dict[date, float]:
    """Return each day's US dollars from the month's first day, and as far back as a forecast looks."""
    since = min(last.replace(day=1), last - timedelta(days=PAST + SEASON))
    rows = store.execute("SELECT day, sum(usd) FROM requests WHERE day >= ? GROUP BY day", [since]).fetchall()
    return dict(rows)


def forecast(usd: Mapping[date, float], incomplete: Sequence[str], last: date, budget: float | None) -> Forecast:
    """Return what a month will have cost, with an interval of 95 %.

    A day to come costs what the complete days of the last four weeks did, from two weeks on those of its weekday. Its deviation
    resembles that of the day before (an autoregression of the first order), so the interval of many days is wider than that of
    independent ones.

    Args:
        usd: day -> US dollars; a day without is free.
        incomplete: days of which digests are missing; they are expected to cost what a day to come does, and not less than now.
        last: newest day.
        budget: US dollars a month.
    """
    start = last.replace(day=1)
    month_days = [start + timedelta(days=i) for i in range(monthrange(last.year, last.month)[1])]
    spent = sum(usd.get(day, 0.0) for day in month_days)
    first = min(usd, default=last)
    past = [last - timedelta(days=i) for i in range(PAST + len(incomplete))]
    past = [day for day in past if day >= first and day.isoformat() not in incomplete][:PAST]
    expected = low = high = None
    if len(past) >= 7:  # noqa: PLR2004 - a week
        costs = np.array([usd.get(day, 0.0) for day in past])[::-1]
        kinds = np.array([day.weekday() if len(past) >= SEASON else 0 for day in past])[::-1]
        means = np.array([costs[kinds == kind].mean() if (kinds == kind).any() else costs.mean() for kind in range(7)])
        left = costs - means[kinds]
        freedom = max(1, costs.size - len({*kinds.tolist()}))
        scale = float((left**2).sum() / freedom)
        rho = float(np.clip((left[1:] * left[:-1]).sum() / max((left**2).sum(), 1e-300) + 1 / costs.size, 0, 0.95))
        ahead = [day for day in month_days if day > last or day.isoformat() in incomplete]
        future = [max(usd.get(day, 0.0), float(means[day.weekday() if len(past) >= SEASON else 0])) for day in ahead]
        r = len(ahead)
        sum_variance = scale * sum(rho ** abs(i - j) for i in range(r) for j in range(r))
        mean_variance = scale * (1 + rho) / (1 - rho) * r**2 / costs.size
        half = student_quantile(freedom) * sqrt(sum_variance + mean_variance)
        expected = spent - sum(usd.get(day, 0.0) for day in ahead) + sum(future)
        low, high = max(spent, expected - half), expected + half
    return Forecast(f"{last:%Y-%m}", spent, last, expected, low, high, budget, _verdict(spent, low, high, budget))


def _verdict(spent: float, low: float | None, high: float | None, budget: float | None) -> str:
    """Return how the spending compares with the budget: spent, over, within, open, or unknown (see `Forecast.verdict`)."""
    if budget is None:
        return "unknown"
    if spent > budget:
        return "spent"
    if low is None or high is None:
        return "unknown"
    return "over" if low > budget else "within" if high <= budget else "open"
