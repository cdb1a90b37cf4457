"""Latency of cache hits and durable outbox puts, and the outbox crash tests at scale."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, pairwise
from pathlib import Path

import numpy as np
from figures import ROOT, Figure, medians, seconds, size, table, timed

from edgeroute import Cache, Outbox, Router
from edgeroute.core.walk import Prediction
from edgeroute.errors import Held
from edgeroute.stores.cache import digest
from edgeroute.stores.outbox import Delivery, Waiting

DISK = "/var/tmp"
"""A folder on disk: /tmp may be in memory, and durability needs a disk."""
INPUTS, IN_MEMORY_BYTES = size(200, 40), size(50_000, 5_000)
"""Memory limit below the size of the inputs used in rotation, so that each hit comes from disk."""
BODY = os.urandom(3072)
LOGITS = np.arange(10, dtype=np.float32)
WAITING = size((0, 10_000, 100_000), (0, 100))
RATE = 100.0
"""Deliveries a second that are asked for."""
CRASHES = {
    "test_kill_9_at_any_moment[within]": ["r"],
    "test_kill_9_at_any_moment[within ordered]": ["r"],
    "test_two_processes_one_outbox": ["a", "b"],
}
"""Tests that record effects -> prefix of their request ids."""


def figures() -> list[Figure]:
    """Return the figures of hits and hash against SHA-256 of the same bytes (disk: and a bare SELECT); of puts against a bare INSERT."""
    with tempfile.TemporaryDirectory(dir=DISK) as folder:
        return [*_hits(Path(folder)), _hash(), _puts(Path(folder)), *_crowded(Path(folder))]


def _edge(_: object) -> np.ndarray:
    return LOGITS


def _hits(folder: Path) -> Iterator[Figure]:
    """Yield the figures of a cache hit in memory and on the disk, each beside a plain look-up; fails if one was no hit."""
    inputs = list(np.random.default_rng(0).integers(0, 256, (INPUTS, 32, 32, 3), dtype=np.uint8))
    memory, disk = Cache(), Cache(max_bytes=IN_MEMORY_BYTES, disk=folder / "cache.db")
    known = {hashlib.sha256(x).digest(): LOGITS for x in inputs}
    with Router(_edge, cache=memory) as quick, Router(_edge, cache=disk) as durable:
        for x in inputs:
            quick.infer(x)
            durable.infer(x)
        disk.close()  # flushes pending writes before timing
        with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as plain:
            keys = dict(zip(known, plain.execute("SELECT key FROM answers").fetchall(), strict=True))

            def select(x: np.ndarray) -> object:
                key = keys[hashlib.sha256(x).digest()]
                return plain.execute("SELECT entry FROM answers WHERE key = ?", key).fetchone()

            found = medians(
                {
                    "lookup": lambda x: known[hashlib.sha256(x).digest()],
                    "memory": quick.infer,
                    "select": select,
                    "disk": durable.infer,
                },
                inputs,
            )
        assert memory.stats().misses == INPUTS
        assert (disk.stats().hits, disk.stats().misses) == (0, INPUTS), "all came from the disk"
    yield timed("cache hit, 3 KB, memory", found["memory"], found["lookup"], 15, by="alone")
    yield timed("cache hit, 3 KB, disk", found["disk"], found["select"], 150, by="alone")


def _hash() -> Figure:
    """Return the figure of hashing an input of 1 MB."""
    x = np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8)
    found = medians({"ours": lambda x: digest(b"", x), "bare": lambda x: hashlib.sha256(x).digest()}, [x] * size(20, 1))
    what = f"a 1 MB input hashed ({1e-3 / found['ours']:.2f} GB/s)"
    return timed(what, found["ours"], found["bare"], 1, shown="ms", digits=3, by="alone")


def _puts(folder: Path, *, runs: int = size(7, 1), puts: int = size(300, 3)) -> Figure:
    """Return the figure of a durable put, beside a plain SQLite insert in turns.

    By mean seconds, not medians: occasional slow fsyncs are part of the throughput.
    """
    names = count()
    with (
        closing(Outbox(folder / "outbox.db")) as outbox,
        closing(sqlite3.connect(folder / "plain.db", isolation_level=None)) as plain,
    ):
        plain.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (n INTEGER PRIMARY KEY, body BLOB)")

        def ours() -> None:
            assert outbox.put(Waiting(f"r{next(names)}", "cloud", "call", BODY, "POST", "/")).stored

        def bare() -> None:
            plain.execute("INSERT INTO t VALUES (NULL, ?)", (BODY,))

        ours()
        means: dict[Callable[[], None], list[float]] = {ours: [], bare: []}
        for _ in range(runs):
            for put, taken in means.items():
                begun = time.perf_counter()
                for _ in range(puts):
                    put()
                taken.append((time.perf_counter() - begun) / puts)
    ours_s, bare_s = (statistics.median(taken) for taken in means.values())
    return timed(f"durable put, 3 KB ({1 / ours_s:.0f} a second)", ours_s, bare_s, 2, shown="ms", digits=3, by="alone")


def _crowded(folder: Path) -> Iterator[Figure]:
    """Yield figures beside so many that wait, of which half are held and half are not due; the baseline is the first, beside none."""
    none = None
    for waiting in WAITING:
        puts, deliveries, kb, listed = _beside(folder, waiting)
        none = none or (puts, deliveries, kb, listed)
        names = (
            f"durable puts a second, {waiting:,} waiting", f"deliveries a second of {RATE:,} asked for, {waiting:,} waiting",
            f"memory grown, {waiting:,} waiting", f"edgeroute outbox list, {waiting:,} waiting",
        )  # fmt: skip
        yield Figure(names[0], f"{puts:.0f}", f"{none[0]:.0f}", none[0] / puts, "times slower", 2)
        yield Figure(names[1], f"{deliveries:.0f}", f"{none[1]:.0f}", RATE / deliveries, "times slower", 1.25)
        yield Figure(names[2], f"{kb:,} KB", f"{none[2]:,} KB", float(kb), "KB", 10_000)
        yield Figure(names[3], f"{listed:.2f} s", f"{none[3]:.2f} s", listed, "s", 1)


def _beside(
    folder: Path, waiting: int, *, puts: int = size(1000, 10), deliveries: int = size(200, 20)
) -> tuple[float, float, int, float]:
    """Fill an outbox with so many, and return what puts, deliveries, memory and a list take beside them.

    (puts a second while delivery looks for something, deliveries a second, KB of memory more, seconds to list).
    """
    home = folder / f"crowd-{waiting}"
    with closing(Outbox(home / "outbox.db", max_bytes=1 << 40, rate_per_s=RATE, parallel=8)) as outbox:
        with outbox._database.transaction():
            for n in range(waiting):
                held, soon_s = ("held", 0.0) if n % 2 else (None, 1e6)
                entry = Waiting(f"w{n}", "cloud", "call", b"x" * 200, "POST", "/", data_class=held, error="away")
                outbox.put(entry._replace(ready_at=time.time() + soon_s))
        before = _resident_kb()
        done, ended = count(), threading.Event()

        def send(entry: Waiting) -> Prediction:
            if entry.data_class == "held":
                raise Held("no consent")
            if entry.id.startswith("d") and next(done) == deliveries - 1:
                ended.set()
            return Prediction("dog", 0.9, None)

        delivery = Delivery(outbox, send)
        delivery.hurry_at, delivery._hurry = math.inf, {}  # nothing that waits is made due
        delivery.start()
        begun = time.perf_counter()
        for n in range(puts):
            outbox.put(Waiting(f"p{n}", "cloud", "call", BODY, "POST", "/", data_class="new", ready_at=time.time() + 1e6))
        put_s = time.perf_counter() - begun
        for n in range(deliveries):
            outbox.put(Waiting(f"d{n}", "cloud", "call", b"x", "POST", "/", data_class="new", ready_at=time.time() + 1e6))
        begun = time.perf_counter()
        with outbox._database.transaction() as c:
            c.execute("UPDATE outbox_entries SET ready_at = 0 WHERE id GLOB 'd*'")
        delivery.loop.nudge()
        ended.wait()
        delivered_s = time.perf_counter() - begun
        grown = _resident_kb() - before
        delivery.close()
    listed_s = seconds(
        "import sys; sys.argv = ['edgeroute', 'outbox', 'list', '--state', sys.argv[1]]; from edgeroute.__main__ import main; main()",
        home, runs=3,
    )  # fmt: skip
    return puts / put_s, deliveries / delivered_s, grown, listed_s


def _resident_kb() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def crashes(*, requests: int = size(10_000, 20), kills: int = size(20, 1)) -> str:
    """Run the outbox crash tests at scale, and return a table of lost, duplicated, wrong and reordered effects from their files.

    What a failed test printed goes to stderr.
    """
    columns = ["outbox, killed", "requests", "kills", "lost", "twice", "wrong answer", "out of order", "the test"]
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * 6} --- |"]
    environment = {**os.environ, "EDGEROUTE_OUTBOX_REQUESTS": str(requests), "EDGEROUTE_OUTBOX_KILLS": str(kills)}
    for test, names in [*CRASHES.items()][: size(None, 1)]:
        with tempfile.TemporaryDirectory(dir=DISK) as folder:
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-m",
                "slow",
                "-p",
                "no:cacheprovider",
                f"--basetemp={folder}/run",
                f"tests/test_outbox_crash.py::{test}",
            ]
            ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            passed = ended.returncode == 0
            if not passed:
                print(ended.stdout, ended.stderr, file=sys.stderr)
            found = next(Path(folder).glob("run/*/o.db"), None)
            effects = [] if found is None else _effects(found)
        ids = [name for name, _ in effects]
        wanted = {f"{name}{n:06}" for name in names for n in range(requests // len(names))}
        counted = [len(wanted.difference(ids)), len(ids) - len(set(ids)), sum(name != value for name, value in effects)]
        cells = [test, requests, kills, *counted, _misplaced(ids) if "ordered" in test else "-", "passed" if passed else "FAILED"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _effects(path: Path) -> list[tuple[str, str]]:
    """Ids and answers of the effects; the server answers each request with its id."""
    with closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.OperationalError):  # no effect: no table
        return connection.execute("SELECT id, value FROM effects ORDER BY n").fetchall()
    return []


def _misplaced(ids: list[str]) -> int:
    """Return how many effects are out of order per target; requests alternate between two targets."""
    lanes = [[name for name in ids if int(name[1:]) % 2 == odd] for odd in (0, 1)]
    return sum(after < before for lane in lanes for before, after in pairwise(lane))


if __name__ == "__main__":
    print(table(figures()), killed := crashes(), sep="\n\n")
    sys.exit("FAILED" in killed)
