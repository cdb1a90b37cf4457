"""Alarms of a fleet (`FleetAlarms`): tests of a store's days, each bet on once, with their state in the store; suspect devices.

A day is closed some hours after its end, for a device once the digest of its whole day is here. A device's counts of closed days
that were not bet on yet, those of days that came late among them, are one bet of the device on the last closed day. Counts that
come after their device and day were bet on, or more than `WINDOW` days late, are left out: a bet is never corrected, or the test
would not be valid at every look.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import Floats
from edgeroute.core.sequential_tests import GRID
from edgeroute.errors import StoreError
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.untrusted_files import parse_json, read_text
from edgeroute.system.wall_clock import now
from edgeroute.tools.fleet.digest_parquet_store import open_store, quoted, writing
from edgeroute.tools.fleet.fleet_audit_loss_bounds import AUDITS_POSSIBLE, FleetAudits, day_of
from edgeroute.tools.fleet.pooled_tests_and_suspect_devices import (
    CELLS,
    WEEK,
    PooledDrift,
    device_evidence,
    highest_usual,
    scores,
    suspects,
    usual_rates,
)

WINDOW = 35  # days within which counts may come late
LONGEST = 400  # most days that the first look reads: a digest of a day long past does not make it long
INTERIM = 7  # days after which a device's day is bet on though the digest of its whole day is missing
EARLIEST = 0.05  # share of a stream's devices with which it begins
SEVERAL = 3  # fewest devices of a stream, and of a reference: one that reports what it likes is the smaller part of them
MOST_STREAMS = 100  # most streams, those that most devices report: a state of some 2 MB
MOST_STATE = 1 << 28  # most bytes of a state that is read, as of a version without `MOST_STREAMS`
EVENTS = 20  # fewest events of a reference; with fewer it goes on beyond its days
CLOSED_S = 6 * 3600.0  # time after the end of a day at which the day is closed, seconds
YEAR = 365.0
RECENT_DAYS, PAST_DAYS = (7, 28), 120  # windows in which a device is compared with the others, and with its past
_SAMPLE = 20_000  # most devices, about, of a reference
_LARGEST = 3.0  # times the median, beyond which a device's day no longer weighs more in the usual rates
_VERSION, _ZERO = 2, "DATE '1970-01-01'"


class Metric(NamedTuple):
    """Kind of event that is tested.

    Attributes:
        events: SQL of the number of events of a row.
    """

    table: str
    events: str
    text: str


METRICS = {
    "differ": Metric("audited", "differ", "more answers differ from the cloud's"),
    "loss": Metric("audited", "harms", "more answers are wrong where the cloud's is right"),
    "deferred": Metric("asked", "deferred", "more requests are deferred"),
    "kept": Metric("asked", "n - deferred", "fewer requests are deferred: more are answered by the edge"),
}
_ROWS = "SELECT key, policy, device, day, model FROM asked UNION ALL SELECT key, policy, device, day, model FROM audited"
# A model without a digest, as of a function that cannot be identified, is told apart by its name.
_KEY = "coalesce(nullif(split_part(model, ':', -1), ''), model) AS key, model, policy, device, site, day"
_SPANS = (1, 6, 24)  # hours of a digest's blocks: one without room for each hour has the sums of several
_USUAL = "JOIN rates r ON c.key = r.key AND c.policy = r.policy AND c.cell = r.cell AND c.hours = r.hours"
_OF_BLOCKS = "{} LEFT JOIN spans USING (device, day)"
_CELL = "(24 * (isodow(day) - 1) + hour)::INTEGER AS cell, coalesce(span, 1) AS hours"
_REQUESTS_POSSIBLE = "hour BETWEEN 0 AND 23 AND requests > 0 AND deferred BETWEEN 0 AND requests"
_VIEWS = f"""
    CREATE TEMP TABLE blocks AS SELECT hours, unnest(range(hours)) AS later FROM (SELECT unnest({[*_SPANS]}) AS hours);
    CREATE TEMP VIEW spans AS SELECT device, day, CASE WHEN coarse >= 4 THEN 24 ELSE 6 END AS span FROM digests
        WHERE coarse >= 1;
    CREATE TEMP VIEW audited AS SELECT {_KEY}, {_CELL}, grid AS index, audited AS n, differ, harms, wins, 0 AS deferred
        FROM {_OF_BLOCKS.format("audits")} WHERE contains(model, ':') AND {AUDITS_POSSIBLE};
    CREATE TEMP VIEW asked AS SELECT {_KEY}, {_CELL}, 0 AS index, requests AS n, 0 AS differ, 0 AS harms, 0 AS wins, deferred
        FROM {_OF_BLOCKS.format("requests")} WHERE contains(model, ':') AND {_REQUESTS_POSSIBLE};
    CREATE TEMP TABLE rates
        (metric VARCHAR, key VARCHAR, policy VARCHAR, cell INTEGER, hours INTEGER, first INTEGER, rate DOUBLE);
    CREATE TEMP TABLE fresh (device VARCHAR, day DATE);
    CREATE TEMP TABLE bets (device VARCHAR, mask UBIGINT);
"""


class FleetAlarms:
    """Pooled tests of the models and policies of a store.

    Reading and betting hold a lock of the store, so that two runs never bet on the same day.

    Args:
        store: folder of the store.
        learn: days of the reference, from which the usual rates come.
        tolerance: relative rise that is no alarm.
        liars: share of devices that may lie, for which an alarm says if they could have raised it.
        alpha: probability of a false alarm of the whole fleet in a year.

    Raises:
        StoreError: there is no store, it cannot be written, another run has the lock, or the state is damaged.
    """

    def __init__(self, store: Path, *, learn: int = 14, tolerance: float = 0.1, liars: float = 0.05, alpha: float = 0.05) -> None:
        self._folder = store / "alarm"
        self._learn, self._tolerance, self._liars, self._alpha = max(learn, WEEK), tolerance, liars, alpha
        self._db = open_store(store)
        self._db.execute(_VIEWS)
        self._lock = ProcessLock(self._folder / "lock")
        try:
            taken = self._lock.take()
        except OSError as e:
            raise StoreError(f"{self._folder} cannot be written, where looks are remembered: {e.strerror}") from e
        if not taken:
            raise StoreError(f"{self._lock.path}: another run of fleet alarm reads this store: try again later")
        try:
            self._state = _state(self._folder / "state.json")
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock and the connection."""
        self._lock.leave()
        self._db.close()

    @property
    def _streams(self) -> dict[str, dict[str, Any]]:
        """State of each model and policy, by `KEY POLICY`."""
        streams: dict[str, dict[str, Any]] = self._state["streams"]
        return streams

    def again(self, model: str) -> list[str]:
        """Begin anew with a model, by its name, key or both: the next days are its reference. Return the names; stores the state.

        One name for each of its policies; none if the model is unknown. The tests are forgotten, with their alarms; the threshold
        stays. Certificates of the fleet's audits count those of later days alone.
        """
        streams = [s for s in self._streams.values() if model in {s["model"], *s["model"].rsplit(":", 1)}]
        times = {stream["key"]: self._begun(stream["key"])[0] + 1 for stream in streams}
        for stream in streams:
            stream |= {"first": self._state["closed"] + 1, "begun": times[stream["key"]], "tests": {}}
        self._save()
        return [stream["model"] for stream in streams]

    def _begun(self, key: str) -> tuple[int, int]:
        """Return how often a model has begun anew, and the first day of the last time; 0 without any. Streams that went count."""
        begun = [
            (stream["begun"], stream["first"]) for stream in self._streams.values() if stream["key"] == key and stream["begun"]
        ]
        times, since = zip(*begun, self._state.get("begun", {}).get(key, (0, 0)), strict=True)
        return max(times), max(since)

    def models(self) -> dict[str, str]:
        """Return key -> latest name of each model with audits."""
        return dict(self._db.execute("SELECT key, arg_max(model, day) FROM audited GROUP BY key ORDER BY key").fetchall())

    def audits(self, key: str, policy: str = "") -> FleetAudits:
        """Return the audits of a model since its tests last began anew. Their low rate of drawing is stored at the first look.

        They are in a table of the database, which the next call replaces.

        Args:
            key: digest of the model's fingerprints.
            policy: the policy's identity; empty: all policies.
        """
        times, since = self._begun(key)
        bases = self._state.setdefault("bases", {})
        name = f"{key} {policy} {times}"
        audits = FleetAudits(self._db, key, since=since, base=bases.get(name), begun=times, policy=policy)
        if bases.get(name) != audits.base:
            bases[name] = audits.base
            self._save()
        return audits

    def look(self) -> dict[str, Any]:
        """Bet on the days that were closed since the last look, and return the report in JSON types.

        Stores the state, and which devices' days were bet on. The first look reads up to `LONGEST` days. Without a new closed day
        it only reports. Raises StoreError.
        """
        last = _last_day(self._db)
        closed = self._state["closed"]
        if last is not None and (closed is None or last > closed):
            self._read_bets(closed)
            self._discover(last, closed)
            self._load_rates()
            start = min((s["first"] for s in self._streams.values()), default=last) if closed is None else closed + 1
            for day in range(start, last + 1):
                self._close_day(day)
            self._save(bets=True)
        self._load_rates()
        return self._report()

    # The days of devices that were bet on: a bit for each of the last `WINDOW` days, the lowest for the last closed one.

    def _read_bets(self, closed: int | None) -> None:
        """Read which devices' days were bet on up to the last look into the table `bets`.

        Raises StoreError if their file is missing.
        """
        path = self._folder / f"bets-{closed}.parquet"
        if closed is not None:
            if not path.is_file():
                raise StoreError(f"{path} is missing: restore the folder, or remove {self._folder} to begin anew")
            self._db.execute(f"INSERT INTO bets SELECT device, mask FROM read_parquet({quoted(str(path.absolute()))})")

    def _mark_fresh(self, day: int) -> None:
        """Replace the table `fresh` by the devices' days to bet on, and mark them in `bets`, which has the day before's marks.

        These are days of the last `WINDOW` days up to this one that were not bet on, and are complete or `INTERIM` days old.
        """
        self._db.execute(
            """CREATE OR REPLACE TEMP TABLE fresh AS SELECT DISTINCT device, day FROM digests LEFT JOIN bets USING (device)
            WHERE day > ? AND day <= ? AND (final OR day <= ?)
            AND (mask IS NULL OR day = ? OR (mask >> greatest(0, ? - day - 1)::UBIGINT) & 1 = 0)""",
            [day_of(day - WINDOW), day_of(day), day_of(day - INTERIM), day_of(day), day_of(day)],
        )
        self._db.execute(
            f"""CREATE OR REPLACE TEMP TABLE bets AS SELECT device, bit_or(mask) AS mask FROM (
                SELECT device, ((mask & {2 ** (WINDOW - 1) - 1}) << 1)::UBIGINT AS mask FROM bets
                UNION ALL SELECT device, (1::UBIGINT << (? - day)::UBIGINT) FROM fresh
            ) GROUP BY device HAVING bit_or(mask) > 0""",
            [day_of(day)],
        )

    # Streams: models, by the digest of their fingerprints, so that a new name is the same model; and policies.

    def _discover(self, last: int, closed: int | None) -> None:
        """Add streams (pairs of model and policy) that are new in the store, note a model's new name, and limit their number.

        A stream has `SEVERAL` devices: with three, two honest ones outnumber one that invents policies, and a single device adds
        no stream. It begins with the day by which so many of them, and `EARLIEST` of all, were there: digests of earlier days, of
        a few devices that lie or were tried out, are no reference.

        Of more than `MOST_STREAMS` those go, with their alarms, that the fewest devices have reported lately, whatever their
        tests have found; of equal ones those without an alarm, and the later ones, go first.
        """
        since = day_of(last - LONGEST if closed is None else closed - WINDOW)
        found = self._db.execute(
            f"""SELECT key, policy, greatest(quantile_disc(first, {EARLIEST}), min(first, {SEVERAL})[{SEVERAL}]) - {_ZERO},
            arg_max(model, last), count(*) FROM
            (SELECT key, policy, device, min(day) AS first, max(day) AS last, arg_max(model, day) AS model FROM ({_ROWS})
            WHERE day > ? AND day <= ? GROUP BY ALL) GROUP BY key, policy HAVING count(*) >= {SEVERAL} ORDER BY ALL""",
            [since, day_of(last)],
        ).fetchall()
        devices = Counter[str]()
        for key, policy, first, model, count in found:
            name = f"{key} {policy}"
            stream = self._streams.setdefault(
                name, {"key": key, "policy": policy, "first": first, "begun": 0, "threshold": None, "tests": {}}
            )
            stream["model"], devices[name] = model, count

        def weight(name: str) -> tuple[int, bool]:
            """Return what orders the streams that stay."""
            return devices[name], any(test["daily"]["alarmed"] for test in self._streams[name]["tests"].values())

        gone = sorted(self._streams, key=weight, reverse=True)[MOST_STREAMS:]
        begun = {self._streams[name]["key"] for name in gone if self._streams[name]["begun"]}
        self._state["begun"] = self._state.get("begun", {}) | {key: self._begun(key) for key in sorted(begun)}
        for name in gone:
            del self._streams[name]

    def _load_rates(self) -> None:
        """Replace the database's table of usual rates by those of all tests in the state."""
        self._db.execute("DELETE FROM rates")
        for stream in self._streams.values():
            for name, test in stream["tests"].items():
                self._add_rates(stream, name, test)

    def _add_rates(self, stream: dict[str, Any], name: str, test: dict[str, Any]) -> None:
        """Add the usual rates of one test to their table, with the stream's threshold for tests of audits; replaces none.

        The rate of a block of hours is the mean of its hours', by their usual numbers: most of a day's sum is of its busy hours.
        """
        first = stream["threshold"] if METRICS[name].table == "audited" else 0
        rates, numbers = np.array(test["rates"]), np.array(test.get("numbers", [1.0] * CELLS)) + 1e-9
        for hours in _SPANS:
            sums = (part.reshape(-1, hours).sum(1) for part in (rates * numbers, numbers))
            self._db.execute(
                "INSERT INTO rates SELECT ?, ?, ?, unnest(range(168))::INTEGER, ?, ?, unnest(?::DOUBLE[])",
                [name, stream["key"], stream["policy"], hours, first, np.repeat(np.divide(*sums), hours).tolist()],
            )

    def _close_day(self, day: int) -> None:
        """Bet on a closed day, and on a Sunday on its week; learn the usual rates of streams whose reference ends with the day.

        A new policy's tests may begin with the rates of an earlier one. Changes the state in memory, and the database's tables
        `fresh`, `bets` and `rates`, which are temporary; stores nothing.
        """
        self._mark_fresh(day)
        names = [name for stream in self._streams.values() for name in stream["tests"]]
        days = [row[0] for row in self._db.execute("SELECT DISTINCT day FROM fresh ORDER BY day").fetchall()] or [day_of(day)]
        week = [day_of(day - i) for i in range(WEEK)]
        for name in {*names}:
            for identity, units in self._units(name, "JOIN fresh USING (device, day)", days):
                _bet(self._streams[identity]["tests"][name], "daily", units, day, 1 / (YEAR * len(names)))
            for identity, units in self._units(name, "", week) if day_of(day).weekday() == WEEK - 1 else ():
                test = self._streams[identity]["tests"][name]
                if test["from"] <= day - WEEK + 1:
                    _bet(test, "weekly", units, day, WEEK / YEAR)
        for stream in self._streams.values():
            if day >= stream["first"] and not stream["tests"]:
                self._inherit(stream, day)
            over = day - stream["first"] + 1 - self._learn
            for name in METRICS:
                if name not in stream["tests"] and over >= 0 and over % WEEK == 0:
                    self._learn_rates(stream, name, day)
        self._state["closed"] = day

    def _units(self, name: str, join: str, days: list[date]) -> Iterator[tuple[str, dict[str, Floats]]]:
        """Yield for each stream with such a test its identity and its device-periods: events, expected, wins and n, [devices].

        join: SQL of a further join. days: the days that are read.
        """
        metric = METRICS[name]
        rows = self._db.execute(
            f"""SELECT r.key || ' ' || r.policy AS stream, sum({metric.events})::DOUBLE AS events, sum(n * rate) AS expected,
            sum(wins)::DOUBLE AS wins, sum(n)::DOUBLE AS n FROM {metric.table} c {_USUAL}
            {join} WHERE index >= first AND r.metric = {quoted(name)}
            AND day IN ({", ".join("?" * len(days))}) AND day BETWEEN ? AND ?
            GROUP BY r.key, r.policy, device ORDER BY stream""",
            [*days, min(days), max(days)],
        ).fetchnumpy()
        streams = np.asarray(rows.pop("stream"), object).astype(str)
        for identity in np.unique(streams):
            here = streams == identity
            yield str(identity), {column: np.asarray(values, float)[here] for column, values in rows.items()}

    def _inherit(self, stream: dict[str, Any], day: int) -> None:
        """Begin the tests of a new policy's audits by the rates of the same model under the latest earlier policy with tests.

        Takes over that policy's threshold too, and adds the rates to the database's table; without an audited device, takes the
        threshold alone. The first devices are a sample of the fleet, so levels rise by twice the standard error of the devices'
        mean, relative to it. A no-op without such a policy, and for a model that began anew.
        """
        earlier = [other for other in self._streams.values() if other["key"] == stream["key"] and "differ" in other["tests"]]
        donor = max(
            (other for other in earlier if other["first"] < stream["first"]), key=lambda other: other["first"], default=None
        )
        if donor is None or stream["begun"]:
            return
        select = "SELECT count(DISTINCT device) FROM audited JOIN fresh USING (device, day) WHERE key = ? AND policy = ?"
        count = self._db.execute(select, [stream["key"], stream["policy"]]).fetchone()[0]
        stream["threshold"] = donor["threshold"]
        for name in ("differ", "loss") if count else ():
            if name in donor["tests"]:
                test = donor["tests"][name]
                more = 1 + 2 * test["spread"] / count**0.5
                new = {
                    kind: PooledDrift(test[kind]["level"] * more, alpha=self._alpha, liars=test[kind]["liars"]).dump()
                    for kind in ("daily", "weekly")
                }
                stream["tests"][name] = {**test, **new, "from": day + 1, "seen": [0.0, 0.0]}
                self._add_rates(stream, name, test)

    def _learn_rates(self, stream: dict[str, Any], name: str, day: int) -> None:
        """Begin a daily and a weekly test of a metric, with the days up to this one as reference; write the usual rates.

        For a metric of audits first sets the stream's threshold, if it has none. No test begins with fewer than `EVENTS` events
        or `SEVERAL` devices, or of losses without wins and labels. Only the weekly test allows for liars. Of many devices about
        `_SAMPLE` are read, and in the rates a device's day weighs at most `_LARGEST` times the median one.
        """
        metric, first = METRICS[name], stream["first"]
        values = [stream["key"], stream["policy"], day_of(first), day_of(day)]
        where = "key = ? AND policy = ? AND day BETWEEN ? AND ?"
        some = f"SELECT count(*) FROM (SELECT DISTINCT device FROM {metric.table} WHERE {where} LIMIT {SEVERAL})"
        if self._db.execute(some, values).fetchone()[0] < SEVERAL:
            return
        weekdays = day - first + 1 >= 2 * WEEK
        if metric.table == "audited" and stream["threshold"] is None:
            stream["threshold"] = self._threshold(stream, day)
        least = stream["threshold"] if metric.table == "audited" else 0
        where, values = f"{where} AND index >= ?", [*values, least]
        count = self._db.execute(f"SELECT approx_count_distinct(device) FROM {metric.table} WHERE {where}", values)
        where += f" AND hash(device) % {count.fetchone()[0] // _SAMPLE + 1} = 0"
        rows = self._db.execute(
            f"""WITH days AS (SELECT device, day, sum(n) AS total FROM {metric.table} WHERE {where} GROUP BY ALL),
            shares AS (SELECT device, day, least(1, {_LARGEST} * (SELECT median(total) FROM days) / total) AS share FROM days)
            SELECT least(cell + later, {CELLS - 1}) AS slot, sum(share / hours * ({metric.events})) AS events,
            sum(share / hours * n) AS n, sum(share / hours * wins) AS wins, sum(share / hours * abs(harms - differ)) AS labelled
            FROM {metric.table} JOIN shares USING (device, day) JOIN blocks USING (hours) WHERE {where} GROUP BY slot""",
            values * 2,
        ).fetchnumpy()
        events, numbers = np.zeros(CELLS), np.zeros(CELLS)
        events[rows["slot"]], numbers[rows["slot"]] = rows["events"], rows["n"]
        if events.sum() < EVENTS or (name == "loss" and not rows["wins"].sum() + rows["labelled"].sum()):
            return
        usual = {"rates": usual_rates(events, numbers, weekdays=weekdays).tolist(), "numbers": numbers.round(3).tolist()}
        self._add_rates(stream, name, usual)
        units = self._db.execute(
            f"""SELECT dense_rank() OVER (ORDER BY device) - 1 AS device, day - {_ZERO} - {first} AS d, events, expected FROM (
                SELECT device, day, sum({metric.events})::DOUBLE AS events, sum(n * rate) AS expected FROM
                (SELECT * FROM {metric.table} WHERE {where}) c
                {_USUAL} WHERE r.metric = {quoted(name)} GROUP BY device, day)""",
            values,
        ).fetchnumpy()
        device, number = (np.asarray(units[column], int) for column in ("device", "d"))
        test = {"from": day + 1, **usual, "wins": float(rows["wins"].sum() / rows["n"].sum()), "seen": [0.0, 0.0]}
        for kind, liars, part in (("daily", 0.0, number), ("weekly", self._liars, number // WEEK)):
            _, row = np.unique(device * (part.max() + 1) + part, return_inverse=True)
            score, weight = scores(*(np.bincount(row, units[column]).astype(float) for column in ("events", "expected")))
            of = np.zeros(len(score), int), np.zeros(len(score), int)
            of[0][row], of[1][row] = device, part
            level = highest_usual(score, weight, *of, tolerance=self._tolerance, weekdays=weekdays)
            test[kind] = PooledDrift(level, alpha=self._alpha, liars=liars).dump()
            test[f"{kind} usual"] = ratio = float((score.sum() + 1) / (weight.sum() + 1))
            by_device = np.bincount(of[0], score - ratio * weight) ** 2
            test["spread"] = float(np.sqrt(np.count_nonzero(by_device) * by_device.sum()) / (weight.sum() + 1))
        stream["tests"][name] = test

    def _threshold(self, stream: dict[str, Any], day: int) -> int:
        """Return the index in `GRID` of the highest threshold below which no more audits lie than requests are deferred.

        So the tests of audits are about answers that the edge gives alone. -2: all audits.
        """
        values = [stream["key"], stream["policy"], day_of(stream["first"]), day_of(day)]
        where = "key = ? AND policy = ? AND day BETWEEN ? AND ?"
        asked = self._db.execute(f"SELECT sum(deferred) / sum(n) FROM asked WHERE {where}", values).fetchone()[0]
        rows = self._db.execute(
            f"SELECT index, sum(n) FROM audited WHERE {where} AND index >= -1 GROUP BY index ORDER BY index", values
        ).fetchall()
        total, below, best = sum(n for _, n in rows), 0, -2
        for index, n in rows:
            if below > (asked or 0.0) * total:
                break
            best, below = int(index), below + n
        return best if rows and rows[0][0] != best else -2

    # The report.

    def _report(self) -> dict[str, Any]:
        """Return the state of each model and policy, alarms, and suspects, in JSON types."""
        closed = self._state["closed"]
        streams = []
        for stream in self._streams.values():
            days = 0 if closed is None else closed - stream["first"] + 1
            alarms = [_alarm(name, test) for name, test in stream["tests"].items() if test["daily"]["alarmed"]]
            named, compared = _suspects(self._db, stream, closed) if "differ" in stream["tests"] else ([], 0)
            sites = sorted({row["site"] for row in named})
            more = self._learn + max(0, -((self._learn - days - 1) // WEEK)) * WEEK  # days of the reference
            streams.append({
                "model": stream["model"], "policy": stream["policy"], "days": days, "learning": not stream["tests"],
                "begins": None if stream["tests"] else day_of(stream["first"] + more).isoformat(),
                "tests": sorted(stream["tests"]),
                "threshold": None if (stream["threshold"] or 0) <= 0 else GRID[stream["threshold"]],
                "alarms": alarms, "suspects": named, "compared": compared,
                "sites": {site: sum(row["site"] == site for row in named) for site in sites},
            })  # fmt: skip
        return {
            "closed": None if closed is None else day_of(closed).isoformat(),
            "alarm": any(stream["alarms"] for stream in streams), "streams": streams,
            "left_out": _left_out(self._db, closed, self._streams),
        }  # fmt: skip

    def _save(self, *, bets: bool = False) -> None:
        """Store the state; with `bets` first the days that were bet on, in a file that the state names; delete older such files.

        Raises StoreError if the folder cannot be written.
        """
        path = self._folder / f"bets-{self._state['closed']}.parquet"
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            if bets:
                part = path.with_suffix(".part")
                self._db.execute(f"COPY (SELECT * FROM bets ORDER BY device) TO {quoted(str(part.absolute()))} (FORMAT parquet)")
                part.replace(path)
            replace_file(self._folder / "state.json", json.dumps(self._state))
        for other in self._folder.glob("bets-*.parquet"):
            if other != path:
                other.unlink(missing_ok=True)


def _last_day(db: Any) -> int | None:
    """Return the last day of the store that is closed now; None if there is none."""
    before = int((now() - CLOSED_S) // 86_400)
    row = db.execute("SELECT max(day - DATE '1970-01-01') FROM digests WHERE day < ?", [day_of(before)]).fetchone()
    return None if row[0] is None else int(row[0])


def _bet(test: dict[str, Any], kind: str, units: dict[str, Floats], day: int, stake: float) -> None:
    """Bet on the device-periods of a stream's daily or weekly test (`kind`), which is changed in place.

    A daily bet expects as many more events as earlier days had wins beyond the reference's: harms that come with as many more
    wins are no loss. It then adds its own wins to `seen`.
    """
    extra = 0.0
    if kind == "daily":
        extra = max(0.0, test["seen"][0] / max(1.0, test["seen"][1]) - test["wins"])
        test["seen"] = [test["seen"][0] + float((units["wins"] / units["n"]).sum()), test["seen"][1] + len(units["n"])]
    drift = PooledDrift.load(test[kind])
    drift.bet(units["events"], units["expected"] + extra * units["n"], period=day, stake=stake)
    test[kind] = drift.dump()


def _alarm(name: str, test: dict[str, Any]) -> dict[str, Any]:
    """Return an alarm in JSON types: the daily test's change against what is usual at the same hours, with its interval.

    `broad` tells if the weekly test, which allows for liars, has an alarm as well.
    """
    daily, weekly = PooledDrift.load(test["daily"]), PooledDrift.load(test["weekly"])
    value, low, high = (float(x) / test["daily usual"] for x in daily.ratio())
    since = daily.since
    return {
        "test": name, "text": METRICS[name].text, "since": None if since is None else day_of(since).isoformat(), "times": value,
        "low": low, "high": min(high, 1e9), "devices": daily.devices, "evidence": daily.evidence, "broad": weekly.alarmed,
        "liars": weekly.liars,
    }  # fmt: skip


def _suspects(db: Any, stream: dict[str, Any], closed: int) -> tuple[list[dict[str, Any]], int]:
    """Return the devices whose answers differ much more, or less, often than others' or in their past; the number compared."""
    sums = ", ".join(
        f"coalesce(sum({what}) FILTER (day {sign} DATE '{day_of(closed - days)}'), 0)::DOUBLE AS {column}_{side}_{days}"
        for days in RECENT_DAYS
        for side, sign in (("in", ">"), ("before", "<="))
        for column, what in (("k", "differ"), ("e", "n * rate"))
    )
    rows = db.execute(
        f"""SELECT device, arg_max(site, day) AS site, sum(n) AS n, {sums} FROM audited c {_USUAL}
        WHERE index >= first AND r.metric = 'differ' AND r.key = ? AND r.policy = ?
        AND day > ? AND day <= ? GROUP BY device ORDER BY device""",
        [stream["key"], stream["policy"], day_of(closed - PAST_DAYS), day_of(closed)],
    ).fetchnumpy()
    if not len(rows["device"]):
        return [], 0
    parts = ("k_in", "e_in", "k_before", "e_before")
    evidence = np.mean([device_evidence(*(rows[f"{part}_{days}"] for part in parts)) for days in RECENT_DAYS], 0)
    longest = RECENT_DAYS[-1]
    ratio = rows[f"k_in_{longest}"] / np.maximum(rows[f"e_in_{longest}"], 1e-9)
    named = [
        {"device": str(rows["device"][i]), "site": str(rows["site"][i]), "ratio": float(ratio[i]), "evidence": float(evidence[i])}
        for i in suspects(evidence).tolist()
    ]
    return named, len(evidence)


def _left_out(db: Any, closed: int | None, streams: Collection[str]) -> dict[str, int]:
    """Return the number of rows of the last `WINDOW` days that no test counts, by the reason; damaged files of all days.

    closed: the last closed day; None: all days count, and no policy is left out.
    """
    since = day_of((closed or WINDOW) - WINDOW)
    counts = Counter[str]()
    for table, possible in (("audits", AUDITS_POSSIBLE), ("requests", _REQUESTS_POSSIBLE)):
        which = f"count(*) FILTER (NOT ({possible})), count(*) FILTER (NOT contains(model, ':'))"
        impossible, beyond = db.execute(f"SELECT {which} FROM {table} WHERE day > ?", [since]).fetchone()
        counts.update({"impossible": impossible, "of models beyond the digest": beyond})
    found = db.execute(
        f"""SELECT key || ' ' || policy, sum(rows), count(*) FROM (SELECT key, policy, device, count(*) AS rows FROM ({_ROWS})
        WHERE day > ? AND day <= ? GROUP BY ALL) GROUP BY key, policy""",
        [since, day_of(closed or 0)],
    ).fetchall()
    for name, rows, devices in found:
        if name not in streams and devices < SEVERAL:
            counts[f"of policies that fewer than {SEVERAL} devices report"] += int(rows)
        elif name not in streams and len(streams) >= MOST_STREAMS:  # otherwise they came since the last look
            counts[f"of policies beyond the {MOST_STREAMS} that most devices report"] += int(rows)
    counts["damaged files"] = db.execute("SELECT count(*) FROM refused").fetchone()[0]
    return dict(+counts)


def _state(path: Path) -> dict[str, Any]:
    """Return the state stored in a file, or that of a new store if there is none; version, day and every stream are checked.

    Raises:
        StoreError: it is damaged.
    """
    if not path.is_file():
        return {"version": _VERSION, "closed": None, "streams": {}}
    try:
        state = parse_json(read_text(path, MOST_STATE))
        if state["version"] != _VERSION or type(state["closed"]) not in {int, type(None)}:
            raise ValueError(f"version {state['version']}")  # noqa: TRY301 - one message for all that may be wrong
        day_of(state["closed"] or 0)
        for name, stream in state["streams"].items():
            _check_stream(name, stream)
        if not all(type(value) in _NUMBER for value in state.get("bases", {}).values()):
            raise ValueError("bases")  # noqa: TRY301
        for times, since in state.get("begun", {}).values():
            day_of(times + since)
    except (OSError, AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise StoreError(f"{path} is damaged, or of another version: restore it, or remove {path.parent} to begin anew") from e
    return dict(state)


_NUMBER = {int, float}
_STREAM = {"key": str, "policy": str, "model": str, "first": int, "begun": int, "tests": dict}


def _check_stream(name: str, stream: Mapping[str, Any]) -> None:
    """Raise an error, as ValueError, KeyError or TypeError, if a stored stream or one of its tests lacks something."""
    wrong = [key for key, kind in _STREAM.items() if type(stream[key]) is not kind]
    if wrong or name != f"{stream['key']} {stream['policy']}":
        raise ValueError(f"stream {wrong}")
    day_of(stream["first"])
    if stream["threshold"] is not None:
        GRID[max(0, stream["threshold"])]
    for kind, test in stream["tests"].items():
        METRICS[kind], PooledDrift.load(test["daily"]), PooledDrift.load(test["weekly"])
        numbers = [test[part] for part in ("from", "wins", "spread", "daily usual", "weekly usual")]
        tables = [*numbers, *test["seen"], *test["rates"], *test.get("numbers", ())]
        lengths = len(test["seen"]), len(test["rates"]), len(test.get("numbers", test["rates"]))
        if not all(type(value) in _NUMBER for value in tables) or lengths != (2, CELLS, CELLS) or test["daily usual"] <= 0:
            raise ValueError("test")


class Looked(NamedTuple):
    """Result of the last look of `fleet alarm`.

    Attributes:
        closed: last day that was counted; None: there was no look yet.
        alarmed: policies whose audits have an alarm, as digests name them.
        tested: policies whose audits are tested; others have no alarm yet, whatever their audits are.
    """

    closed: date | None = None
    alarmed: frozenset[str] = frozenset()
    tested: frozenset[str] = frozenset()


def last_look(store: Path) -> Looked:
    """Return what the last look at a store has found. Raises StoreError if the stored state is damaged."""
    state = _state(store / "alarm" / "state.json")
    closed = None if state["closed"] is None else day_of(state["closed"])
    audits = [name for name, metric in METRICS.items() if metric.table == "audited"]
    tests = [(s["policy"], s["tests"][name]) for s in state["streams"].values() for name in audits if name in s["tests"]]
    alarmed = frozenset(policy for policy, test in tests if test["daily"]["alarmed"])
    return Looked(closed, alarmed, frozenset(policy for policy, _ in tests))
