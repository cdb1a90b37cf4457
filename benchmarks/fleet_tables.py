"""Tables of a fleet: what `fleet collect` takes for many digests, and `fleet report` for many rows, in seconds of CPU and memory.

    python benchmarks/fleet_tables.py --digests 100000 --devices 150000

Digests are files in a folder, of 200 kinds; rows are those of so many devices in 28 days with an entry an hour, drawn by DuckDB.
It needs the extra `fleet`; a report of 150,000 devices takes 1.1 GB of disk and a few minutes.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import duckdb
import fleets
from figures import size

from edgeroute.fleet.digest_encoding_and_coarsening import encode, path_of
from edgeroute.tools.fleet.digest_collection import Rules, collect
from edgeroute.tools.fleet.digest_parquet_store import TABLES, open_store
from edgeroute.tools.fleet.digest_sources import Folder
from edgeroute.tools.fleet.fleet_sums_and_forecast import report

DAYS = 28
ROWS = """SELECT md5(d::VARCHAR) AS device, 'site-' || (d % 300) AS site,
    CASE WHEN d % 4 = 0 THEN 'large:ba9876543210' ELSE 'small:0123456789ab' END AS model, 'aaaaaaaaaaaa' AS policy, '' AS arm,
    '' AS data_class, '' AS signed, h::INTEGER AS hour, n AS requests, (n * (.4 + .2 * (d % 3)) * random())::BIGINT AS deferred,
    (n * .01 * random())::BIGINT AS degraded, (random() < .05)::BIGINT AS failed, n * 900 AS bytes, n * .00021 AS usd,
    (n * .1)::BIGINT AS l0, (n * .3)::BIGINT AS l1, (n * .2)::BIGINT AS l2, (n * .2)::BIGINT AS l3, (n * .1)::BIGINT AS l4,
    (n * .05)::BIGINT AS l5, 1::BIGINT AS l6, 0::BIGINT AS l7
    FROM (SELECT range // 24 AS d, range % 24 AS h, (20 + random() * 180)::BIGINT AS n FROM range({0} * 24))"""
DIGESTS = """SELECT md5(range::VARCHAR) AS device, 'site-' || (range % 300) AS site, '' AS signed, '0.9.0' AS version,
    1::INTEGER AS revision, true AS final, 0::INTEGER AS coarse FROM range({0})"""


def cpu_s() -> float:
    """Seconds of CPU of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def memory() -> str:
    """Most memory of this process, and of the largest that it started."""
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{own:,.0f} MB, and {child:,.0f} MB in each further process"


def row(what: str, took_s: float, used_s: float) -> None:
    """Print a row of the table."""
    print(f"| {what} | {took_s:.1f} | {used_s:.1f} | {memory()} |")


def digests(folder: Path, count: int) -> None:
    """Write so many digests into a folder, and print the times of two runs of `fleet collect`; the second finds none new."""
    kinds = list(fleets.random_fleet(200, 1))
    for number in range(count):
        digest = kinds[number % 200]._replace(device=fleets.device_id(number))
        path = folder / "in" / path_of(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(digest))
    for what in ("new", "none new"):
        wall, cpu = time.monotonic(), cpu_s()
        result = collect(Folder(folder / "in"), folder / "collected", Rules(date(2026, 11, 29)))
        row(f"collect, {what}: {count:,} digests, {result.added:,} added", time.monotonic() - wall, cpu_s() - cpu)


def rows(folder: Path, devices: int) -> None:
    """Write a store of so many devices in 28 days, and print the size, and the time and memory of a report of it."""
    store = folder / "store"
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '2GB'")
        connection.execute("SET preserve_insertion_order = false")
        for day in range(DAYS):
            for table, sql in (("requests", ROWS), ("digests", DIGESTS)):
                path = store / table / f"day={fleets.FIRST + timedelta(days=day)}" / "rows.parquet"
                path.parent.mkdir(parents=True)
                connection.execute(f"COPY ({sql.format(devices)}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
    total_bytes, count = (
        sum(path.stat().st_size for table in TABLES for path in (store / table).rglob("*.parquet")),
        devices * DAYS * 24,
    )
    wall, cpu = time.monotonic(), cpu_s()
    with open_store(store) as connection:
        total = report(connection, 1e6).total
    row(
        f"report: {count:,} rows of {total.devices:,} devices, {total_bytes / count:.1f} B a row",
        time.monotonic() - wall,
        cpu_s() - cpu,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--digests", type=int, default=size(10_000, 100))
    parser.add_argument("--devices", type=int, default=size(15_000, 50))
    given = parser.parse_args()
    print("| | seconds | of CPU | most memory |", "| --- | ---: | ---: | --- |", sep="\n")
    with tempfile.TemporaryDirectory() as made:
        if given.digests:
            digests(Path(made), given.digests)
        if given.devices:
            rows(Path(made), given.devices)
