"""Comparison of thresholds and prices (`sweep`) without a walk, by DuckDB on traces in Parquet, where counting is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from glob import escape
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple

from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.core.plan import Facts, Plan, plan
from edgeroute.core.policy_egress_and_options import INF, Terms
from edgeroute.core.spending_limits import Limits
from edgeroute.errors import BadInput, PolicyError
from edgeroute.tools.fleet.digest_parquet_store import connect
from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text
from edgeroute.tools.replay.parquet_trace_format import check_parquet, is_parquet
from edgeroute.tools.replay.read_and_pack_traces import traces
from edgeroute.tools.replay.replay_setup_and_result import Setup

GROWTH: Final = 4  # factor by which a replay extends a recorded latency at most
SLACK_US: Final = 10_000  # tolerance for rounded times, microseconds
LINES: Final = """
CREATE TEMP VIEW lines AS
SELECT filename AS file, id, coalesce(data_class, '') AS data_class, epoch_us("at") - latency_us AS begun, latency_us,
    list_filter(events, lambda e: e.leg = getvariable('edge')) AS own,
    list_filter(events, lambda e: e.leg = getvariable('cloud')) AS far,
    list_filter(own, lambda e: e.what IN ('accepted', 'below', 'kept'))[1] AS answer,
FROM read_parquet(getvariable('files'), filename = true)
"""
STATISTICS: Final = """
SELECT file, count(*), count(*) FILTER (begun IS NULL), count(*) FILTER (answer.confidence IS NULL OR len(own) <> 2),
    count(*) FILTER (contains(id, '.')),
    count(*) FILTER (len(far) > 0 AND (len(far) <> 2 OR far[2].what NOT IN ('accepted', 'below', 'kept'))),
    count(*) FILTER (NOT list_contains(getvariable('classes'), data_class)),
    max(coalesce(answer.at_us, latency_us)), max(coalesce(far[2].at_us, latency_us) - coalesce(far[1].at_us, latency_us)),
    min(gap)
FROM (SELECT *, begun - lag(begun, getvariable('most')) OVER (PARTITION BY file ORDER BY begun) AS gap FROM lines)
GROUP BY file
"""
COUNTS: Final = """
SELECT len(list_filter(getvariable('thresholds'), lambda t: t <= answer.confidence)) AS passed, count(*)
FROM lines WHERE list_contains(getvariable('exact'), file) GROUP BY passed
"""


class Point(NamedTuple):
    """Result of one threshold.

    Attributes:
        deferred: requests that call the cloud.
        usd: dollars, for each price of a call.
    """

    threshold: float
    requests: int
    deferred: int
    usd: tuple[float, ...]


class Sweep(NamedTuple):
    """Results of all thresholds, over the devices for which counting is exact.

    Attributes:
        prices: dollars a call.
        inexact: reason why counting is not exact -> number of devices, which are in no sum.
    """

    points: tuple[Point, ...]
    prices: tuple[float, ...]
    devices: int
    inexact: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON data."""
        return {**self._asdict(), "points": [point._asdict() for point in self.points]}

    def __str__(self) -> str:
        lines = [f"exact without a walk for {count_text(self.devices, 'device')}"]
        lines += [f"not exact for {count_text(n, 'device')}, left out: {why}" for why, n in self.inexact.items()]
        lines += ["", "threshold    requests    deferred        " + "  ".join(f"at ${price:g} a call" for price in self.prices)]
        for point in self.points:
            share = point.deferred / point.requests if point.requests else 0.0
            money = "  ".join(
                f"{f'${usd:,.6g}':>{len(f'at ${price:g} a call')}}" for usd, price in zip(point.usd, self.prices, strict=True)
            )
            lines.append(f"{point.threshold:9g}{point.requests:12,}{point.deferred:12,} {share:6.1%} {money}")
        return "\n".join(lines)


def sweep(folder: str | Path, policy: Setup | str | Path, thresholds: Sequence[float], prices: Sequence[float] = ()) -> Sweep:
    """Count what other thresholds of a policy would defer, and what that costs, without a walk of each request.

    Counting is exact where each request is decided by its own record alone: one edge, then one cloud that never failed and is
    never too slow or too busy. Other devices are left out and counted by their reasons: `replay_fleet` walks them. Each file's
    checksum is verified first.

    Args:
        folder: folder with a trace in Parquet for each device.
        policy: a setup from `Setup.read`, or the path of a policy file; its threshold is not used.
        thresholds: thresholds to compare.
        prices: dollars a call; empty: the policy's.

    Raises:
        BadInput: no trace in Parquet, a damaged one, or none for which counting is exact.
        PolicyError: the policy decides by more than a threshold.
        RuntimeMissing: duckdb or pyarrow is not installed.
    """
    setup = policy if isinstance(policy, Setup) else Setup.read(policy)
    terms, classes = _plain_terms(setup), []
    files = traces(Path(folder))
    for path in files.values():
        if not path.exists() or not is_parquet(path):
            raise BadInput(f"{path}: a sweep reads Parquet: `edgeroute trace convert {folder} NEW` writes it")
        check_parquet(path)
    levels = sorted(set(thresholds))
    edge, cloud = (target.name for target in setup.targets)
    port = setup.ports[cloud]
    with connect(Path(folder)) as database:
        given = {
            "files": [escape(str(path.absolute())) for path in files.values()], "edge": edge, "cloud": cloud,
            "thresholds": levels, "most": min(FAULTS, terms.max_concurrent) if isinstance(terms.max_concurrent, int) else FAULTS,
        }  # fmt: skip
        _set(database, given)
        database.execute(LINES)
        (known,) = database.execute("SELECT coalesce(list(DISTINCT data_class), []) FROM lines").fetchone()
        classes = [name for name in known if _is_plain(setup, name or None)]
        _set(database, {"classes": classes})
        patience_s = min(port.patience_s, setup.policy.deadline_s)
        reasons = {row[0]: _inexact(row[1:], patience_s) for row in database.execute(STATISTICS).fetchall()}
        _set(database, {"exact": [file for file, why in reasons.items() if not why]})
        passed = dict(database.execute(COUNTS).fetchall())
    inexact = Counter(why for why in reasons.values() if why)
    if not passed:
        whys = "; ".join(f"{why} ({n:,})" for why, n in inexact.most_common())
        raise BadInput(f"{folder}: counting is exact for no device: {whys}: use replay without --sweep")
    prices = tuple(prices) or (terms.usd_per_call,)
    total, points = sum(passed.values()), []
    for i, threshold in enumerate(levels):
        deferred = total if threshold == inf else sum(n for index, n in passed.items() if index <= i)
        points.append(Point(threshold, total, deferred, tuple(deferred * price for price in prices)))
    return Sweep(tuple(points), prices, sum(not why for why in reasons.values()), dict(inexact.most_common()))


def _set(database: Any, variables: Mapping[str, Any]) -> None:
    """Set SQL variables of a DuckDB connection."""
    for name, value in variables.items():
        kind = "::VARCHAR[]" if value == [] else ""  # DuckDB 1.4 takes an empty list for one of integers
        database.execute(f"SET VARIABLE {name} = ?{kind}", [value])


def _plain_terms(setup: Setup) -> Terms:
    """Return the terms (prices and limits) of the one cloud.

    Raises:
        PolicyError: the policy decides by more than one threshold, has limits or rules, or a price that depends on more than the
            call.
    """
    policy, sides = setup.policy, [target.side for target in setup.targets]
    why = ""
    if sides != ["edge", "cloud"]:
        why = "it has not one edge and one cloud"
    elif policy.mode != "prefer_edge" or policy.hedge_after != INF:
        why = "it asks the cloud first, or beside the edge"
    elif policy.device_rules or setup.limits != Limits():
        why = "it has rules of the device's state, or limits of what is spent"
    elif setup.ports[setup.targets[1].name].terms.calls_per_s != INF:
        why = "its cloud has a limit of calls a second"
    elif not _is_plain(setup, None):
        why = "its edge's threshold differs by class, or requests without a data class may not leave"
    terms = setup.ports[setup.targets[1].name].terms if not why else Terms()
    if terms.usd_per_mb or terms.usd_per_million_input_tokens or terms.usd_per_million_output_tokens:
        why = "its cloud's price depends on more than the call"
    if why:
        raise PolicyError(f"a sweep counts, which is not exact for this policy: {why}: use replay without --sweep")
    return terms


def _is_plain(setup: Setup, data_class: str | None) -> bool:
    """Return True if a request of this class runs on the edge, and then goes to the cloud by one threshold alone."""
    route = plan(setup.policy, setup.targets, Facts(), data_class=data_class)
    if not isinstance(route, Plan) or not len(route.legs) == len(setup.targets) == 2:  # noqa: PLR2004 - an edge and a cloud
        return False
    first, second = route.legs
    plain = not first.thresholds and first.threshold is not None and first.permit is None and second.permit is not None
    return plain and not (first.standby or first.lowered) and second.hedge_after_s == INF and second.start_by_s == INF


def _inexact(row: Sequence[Any], patience_s: float) -> str:
    """Return the first reason why counting is not exact for a device, by its row of `STATISTICS`; empty: it is exact."""
    _, untimed, unsure, batches, failed, barred, edge_us, cloud_us, gap_us = row
    bound_us = GROWTH * (cloud_us or 0) + SLACK_US
    reasons = {
        "records without a time": untimed,
        "requests that the edge did not answer once, with a confidence": unsure,
        "batches, whose rows share a call": batches,
        "calls of the cloud that failed": failed,
        "data classes that may not leave": barred,
        "the cloud was never called, so its time is not known": cloud_us is None,
        "a call may outlast the deadline or the endpoint's timeout": edge_us is None or edge_us + bound_us > patience_s * 1e6,
        "so many requests at a time that a call might have to wait": gap_us is not None and gap_us < (edge_us or 0) + bound_us,
    }
    return next((why for why, is_so in reasons.items() if is_so), "")
