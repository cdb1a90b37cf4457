"""Tables of a fleet from traces in place of digests (`write_tables`), counted by DuckDB, so that one report reads both.

A trace is a device. A record counts as its device's digest would count the request, by the names of site, policy and models that
it has from `[fleet]`; without these by its targets' names. One of a sample counts as often as makes up for those not drawn.
Traces have no failed requests, and no audits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from glob import escape
from pathlib import Path
from typing import Any, Final

from edgeroute.errors import BadInput
from edgeroute.fleet.digest_encoding_and_coarsening import LATENCIES_S, name_of
from edgeroute.system.json_codec_and_short_repr import json_loads
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.wall_clock import now
from edgeroute.tools.fleet.digest_parquet_store import BUCKETS, NEED, TABLES, connect, quoted, writing
from edgeroute.tools.replay.parquet_trace_format import check_parquet, is_parquet, write_parquet
from edgeroute.tools.replay.read_and_pack_traces import TraceRecords, traces

# Columns of the table of templates: what all records with the same template have in common. `target` to `moved` only if the
# events are in the template, too.
_SHAPES: Final = {
    **dict.fromkeys(("shape", "site", "policy", "signed", "arm", "first_leg", "cached_leg", "answered", "reason"), "VARCHAR"),
    **dict.fromkeys(("edges", "targets", "models"), "VARCHAR[]"), "first_is_edge": "BOOLEAN", "own": "BOOLEAN",
    **dict.fromkeys(("at_ms", "us"), "BIGINT"), "held_leg": "VARCHAR", **dict.fromkeys(("cost", "moved", "sample"), "DOUBLE"),
}  # fmt: skip
_LEAST: Final = 1e-6  # share of the answers traced that is believed
_WIDE: Final = 2.0**53  # limit of times in milliseconds and microseconds, far beyond any; columns hold them
_HELD: Final = ("below", "kept")  # events of an answer that was not accepted
_MOVED: Final = ("sent_bytes", "received_bytes")
_ENDS: Final = ("accepted", *_HELD, "failed", "cancelled", "timeout")  # events that tell what a call has cost
_COSTS: Final = f"list_filter(events, lambda e: e.what IN ({', '.join(map(quoted, _ENDS))}))"
_IS_HELD: Final = f"lambda e: e.what IN ({', '.join(map(quoted, _HELD))}) AND list_contains(edges, e.leg)"
_BYTES: Final = "lambda e: coalesce(e.sent_bytes, 0)::DOUBLE + coalesce(e.received_bytes, 0)"  # a whole number may overflow
_SLOWER: Final = [f"(us > {end_s * 1e6:.0f})::INTEGER" for end_s in LATENCIES_S]
_DAY: Final = "DATE '1970-01-01' + (ms // 86400000)::INTEGER"
# Sums by file, hour and group, and by batch, whose rows have the same costs each. The day is that of the request's end, as
# digests have it.
_SUMS: Final = f"""
CREATE TEMP TABLE sums AS
WITH lines AS (
    SELECT filename AS file, coalesce(regexp_extract(id, '(.*)\\.', 1), '') AS batch, coalesce(epoch_ms("at"), at_ms) AS ms,
        coalesce(latency_us, us) AS us, coalesce(accepted, own, false) AS accepted,
        coalesce(answered_by, answered, '') AS answered,
        coalesce(reason_code, reason, '') AS reason, left(coalesce(data_class, ''), 64) AS data_class, s.shape AS known,
        coalesce(list_filter(events, {_IS_HELD})[-1].leg, held_leg) AS held,
        coalesce(cost, list_sum(list_transform({_COSTS}, lambda e: coalesce(e.usd, 0))), 0)::DOUBLE AS usd,
        coalesce(moved, list_sum(list_transform({_COSTS}, {_BYTES})), 0)::DOUBLE AS bytes,
        site, policy, signed, arm, edges, targets, models, first_leg, first_is_edge, cached_leg, sample
    FROM read_parquet(getvariable('files'), filename = true) l LEFT JOIN shapes s USING (shape)
), judged AS (
    SELECT *, accepted AND list_contains(edges, answered) AS kept, cached_leg IS NOT NULL AS cached,
        CASE WHEN cached THEN cached_leg WHEN kept THEN answered ELSE coalesce(held, first_leg) END AS target,
        coalesce(known IS NOT NULL AND {_DAY} BETWEEN DATE '2020-01-01' AND getvariable('today') AND us >= 0
            AND usd >= 0 AND usd < 1e15 AND bytes >= 0 AND bytes < 1e15, false) AS valid
    FROM lines
)
SELECT file, batch, valid, sample, {_DAY} AS day, (ms // 3600000 % 24)::INTEGER AS hour, site, policy, signed, arm, data_class,
    coalesce(models[list_position(targets, target)], left(target, 51) || ':') AS model, count(*) AS requests,
    count(*) FILTER (CASE WHEN cached THEN answered = 'cloud' WHEN kept THEN false WHEN held IS NOT NULL THEN true
        ELSE first_is_edge OR reason = 'input' END) AS deferred,
    count(*) FILTER (NOT cached AND NOT accepted AND reason <> 'left') AS degraded, sum(usd) AS usd, sum(bytes) AS bytes,
    count(*) FILTER (usd > 0 OR bytes > 0) AS paid,
    {", ".join(f"count(*) FILTER ({' + '.join(_SLOWER)} = {i}) AS {name}" for i, name in enumerate(BUCKETS))}
FROM judged GROUP BY ALL
"""
_COUNTS: Final = ("requests", "deferred", "degraded", *BUCKETS)
# From 0 to below 1, by the row: fractions rounded so add up to nearly their sum, where each of 1.4 would be 1.
_DRAW: Final = "min(hash(day, device, site, model, policy, arm, data_class, signed, hour) % 1000) / 1000"
_REQUESTS: Final = f"""
WITH shared AS (
    SELECT *, CASE WHEN batch = '' THEN 1 ELSE greatest(1, sum(paid) OVER (PARTITION BY file, batch)) END AS rows
    FROM sums WHERE valid
)
SELECT day, device, site, model, policy, arm, data_class, signed, hour,
    {", ".join(f"floor(round(sum({name} / sample), 6) + {_DRAW})::BIGINT AS {name}" for name in _COUNTS)},
    0 AS failed, round(least(sum(bytes / rows / sample), 9e18))::BIGINT AS bytes, sum(usd / rows / sample) AS usd
FROM shared JOIN devices USING (file) GROUP BY ALL
"""
_DIGESTS: Final = """
SELECT day, device, arg_max(site, hour) AS site, arg_max(signed, hour) AS signed, '' AS version, 1 AS revision, true AS final,
    0 AS coarse
FROM sums JOIN devices USING (file) WHERE valid GROUP BY ALL
"""


def write_tables(folder: Path, store: Path) -> list[tuple[str, str]]:
    """Write the tables of the traces below a folder into a new store, and return each trace, or a part of one, that is left out.

    JSON lines become Parquet in the store's folder first. Each file's checksum is verified. Returns (file, why).

    Raises:
        BadInput: there is no trace, or nothing in them can be counted.
        RuntimeMissing: duckdb or pyarrow is not installed.
        StoreError: a file cannot be read or written.
    """
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
        devices, refused = _as_parquet(folder, store)
    with connect(store, folder) as connection, writing(store):
        arrow = import_needed("pyarrow", NEED)
        connection.register("given", arrow.table({"file": [*devices], "device": [*devices.values()]}))
        connection.execute("CREATE TEMP TABLE devices AS SELECT * FROM given")
        connection.execute("SET VARIABLE today = ?", [datetime.fromtimestamp(now(), timezone.utc).date()])
        try:
            _sum(connection, [*devices])
        except import_needed("duckdb", NEED).Error:
            damaged = {file for file in devices if not _reads(connection, file)}
            if not damaged:
                raise
            refused += [(devices[file], "is damaged: it cannot be read to its end") for file in sorted(damaged)]
            if len(damaged) == len(devices):
                raise _nothing(folder, refused) from None
            _sum(connection, [file for file in devices if file not in damaged])
        bad = connection.execute("SELECT device, sum(requests) FROM sums JOIN devices USING (file) WHERE NOT valid GROUP BY ALL")
        refused += [
            (device, f"has {n:,} records that no router writes, as of an impossible time") for device, n in bad.fetchall()
        ]
        for table, sql in (("requests", _REQUESTS), ("digests", _DIGESTS)):
            order = ", ".join(("day", *TABLES[table]))
            to = quoted(str((store / table).absolute()))
            connection.execute(f"COPY (SELECT {order} FROM ({sql})) TO {to} (FORMAT parquet, PARTITION_BY (day))")
        if not connection.execute("SELECT count(*) FROM sums WHERE valid").fetchone()[0]:
            raise _nothing(folder, refused)
    return refused


def _nothing(folder: Path, refused: Iterable[tuple[str, str]]) -> BadInput:
    """Return the error that nothing of a folder can be counted, with what is wrong."""
    return BadInput(f"{folder}: no record of its traces can be counted: {'; '.join(map(' '.join, refused))[:300]}")


def _sum(connection: Any, files: Sequence[str]) -> None:
    """Write the tables `shapes` and `sums` of some traces. Raises DuckDB's error if a file is damaged."""
    connection.execute("SET VARIABLE files = ?", [[escape(file) for file in files]])
    columns = ", ".join(f"{name} {kind}" for name, kind in _SHAPES.items())
    connection.execute(f"CREATE OR REPLACE TEMP TABLE shapes ({columns})")
    found = connection.execute("SELECT DISTINCT shape FROM read_parquet(getvariable('files'))").fetchall()
    if rows := [row for (shape,) in found if (row := _row(shape)) is not None]:
        connection.executemany(f"INSERT INTO shapes VALUES ({', '.join('?' * len(_SHAPES))})", rows)
    connection.execute(_SUMS)


def _reads(connection: Any, file: str) -> bool:
    """Return True if each value of a trace that is counted can be read."""
    columns = 'id, epoch_ms("at"), latency_us, accepted, answered_by, reason_code, data_class, events, shape'
    try:
        connection.execute(f"SELECT bit_xor(hash({columns})) FROM read_parquet(?)", [escape(file)]).fetchall()
    except import_needed("duckdb", NEED).Error:
        return False
    return True


def _as_parquet(folder: Path, store: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return file of Parquet -> name of the device, of each trace below a folder; and (file, why) of what cannot be read.

    Traces of JSON lines are written into the store's folder. Raises BadInput if no trace can be read.
    """
    devices, refused = dict[str, str](), list[tuple[str, str]]()
    for number, (name, path) in enumerate(traces(folder).items()):
        file = path
        try:
            if path.exists() and is_parquet(path):
                check_parquet(path)
            else:
                file, records = store / f".{number}.parquet", TraceRecords(path)
                write_parquet(file, records)
                refused += [(name, f"has {records.skipped:,} lines that are no records")] if records.skipped else []
        except BadInput as e:
            refused.append((name, str(e).removeprefix(f"{path}: ")))
            continue
        devices[str(file.absolute())] = name
    if not devices:
        raise BadInput(f"{folder}: no trace can be read: {'; '.join(map(' '.join, refused))[:300]}")
    return devices, refused


def _row(shape: str) -> tuple[Any, ...] | None:
    """Return the row of `_SHAPES` for a template; None if records that have it are none of a router."""
    try:
        record = json_loads(shape.encode(), exact=True)
        legs = [(str(leg["leg"]), leg["side"]) for leg in record.get("plan") or ()]
        names = record.get("fleet") or {}
        texts = [_text(names.get(key)) for key in ("site", "policy", "signed")]
        models = {str(target): _text(name) for target, name in dict(names.get("models") or {}).items()}
        edges = [name for name, side in legs if side == "edge"]
        first, cached = (*legs, ("", ""))[0], None if "events" in record else str(record["leg"])
        own = (None, None, None) if record.get("events") is None else _of_events(record["events"], edges)
        times = [None if (time := record.get(key)) is None else int(time * n) for key, n in (("at", 1e3), ("latency_s", 1e6))]
        if any(time is not None and abs(time) > _WIDE for time in times):
            return None
        said = [_text(record.get(key)) or None for key in ("answered_by", "reason_code")]
        accepted, sample = record.get("accepted"), float(record.get("sample", 1.0))
        return None if not _LEAST <= sample <= 1 else (
            shape, *texts, _text(record.get("arm")), first[0], cached, *said, edges, [*models], [*models.values()],
            first[1] == "edge", accepted if isinstance(accepted, bool) else None, *times, *own, sample,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _text(value: Any) -> str:
    """Return a text as digests have names; empty for another type."""
    return name_of(value) if isinstance(value, str) else ""


def _of_events(events: Any, edges: list[str]) -> tuple[str | None, float, float]:
    """Return the last edge whose answer was not accepted, and the dollars and bytes of a template's own events."""
    held = [str(event["leg"]) for event in events if event["what"] in _HELD and event["leg"] in edges]
    ended = [event for event in events if event["what"] in _ENDS]
    usd, moved = (sum(float(event.get(key) or 0) for event in ended for key in keys) for keys in (("usd",), _MOVED))
    return held[-1] if held else None, usd, moved
