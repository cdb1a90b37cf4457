"""Random fleets, the same for the same seed: as digests of format 1, as files of digests, or as a store of Parquet files."""

from __future__ import annotations

import hashlib
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from edgeroute.fleet.digest_encoding_and_coarsening import Digest, encode, path_of

MODELS = ("small:0123456789ab", "large:ba9876543210")
FIRST = date(2026, 11, 2)  # a Monday


def random_fleet(devices, days, *, seed=0, first=FIRST, sites=3, change=None):
    """Yield the digests of a fleet : for each day and device, some hours of one or two models, with audits.

    Args:
        devices: number of devices; device i is `device_id(i)`.
        days: number of days from `first` on.
        seed: of the numbers.
        first: the first day.
        sites: number of sites.
        change: called with (device's number, day's number, the shares), the shares (deferral, differ, degraded) in a dict to be
            changed in place, as for devices that drift.
    """
    rng = np.random.default_rng(seed)
    for day in range(days):
        for device in range(devices):
            shares = {"deferral": 0.2 + 0.1 * (device % 3), "differ": 0.02, "degraded": 0.004}
            if change is not None:
                change(device, day, shares)
            yield random_digest(rng, device, first + timedelta(days=day), shares, site=f"site-{device % sites}")


def device_id(number):
    """The 32 hex digits of a device."""
    return hashlib.sha256(b"device %d" % number).hexdigest()[:32]


def random_digest(rng, device, day, shares, *, site="", revision=1, final=True):
    """A digest of one device's day: by the numbers drawn, 4 to 8 hours of one or two models."""
    groups = [(MODELS[0], "aaaaaaaaaaaa", "", "")]
    if device % 4 == 0:
        groups.append((MODELS[1], "bbbbbbbbbbbb", "", "private"))
    requests, confidences, audits = [], [], []
    for group in range(len(groups)):
        for hour in sorted(rng.choice(24, rng.integers(4, 9), replace=False).tolist()):
            n = int(rng.integers(20, 200))
            deferred, degraded = (int(rng.binomial(n, shares[name])) for name in ("deferral", "degraded"))
            buckets = rng.multinomial(n, [0.1, 0.3, 0.2, 0.15, 0.1, 0.1, 0.04, 0.01]).tolist()
            requests.append(
                [group, hour, n, deferred, degraded, int(rng.binomial(n, 0.001)), deferred * 900, deferred * 210, *buckets]
            )
            audited = int(rng.binomial(n - deferred, 0.05))
            differ = int(rng.binomial(audited, shares["differ"]))
            if audited:
                audits.append((group, hour, 12, audited, differ, differ, 0, 0.05))
        confidences += [(group, index, int(rng.integers(1, 90))) for index in (-1, 3, 7)]
    return Digest(
        device_id(device), day.isoformat(), revision, final, site, "0.9.0", "", tuple(groups), tuple(requests), tuple(confidences), tuple(audits),
    )  # fmt: skip


def put(folder, digests, key=b""):
    """Write digests below a folder as devices do; return the paths."""
    paths = []
    for digest in digests:
        path = Path(folder, path_of(digest))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(digest, key))
        paths.append(path)
    return paths


def write_store(folder, digests):
    """Write digests as a store of Parquet files, without `collect`: of each (device, day) there must be one."""
    from edgeroute.tools.fleet.digest_parquet_store import TABLES, rows_of, write_rows

    by_day = {}
    for digest in digests:
        tables = by_day.setdefault(digest.day, {name: [] for name in TABLES})
        for name, rows in rows_of(digest).items():
            tables[name] += rows
    for day, tables in by_day.items():
        for name, rows in tables.items():
            write_rows(Path(folder, name, f"day={day}", "rows.parquet"), name, rows)
    return Path(folder)
