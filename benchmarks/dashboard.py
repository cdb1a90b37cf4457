"""Lag and cost of the dashboard at 1,000 requests a second: `python benchmarks/dashboard.py`.

This process writes the records of a real router at that rate to a trace that is rotated as usual; `edgeroute dashboard` follows
it in a process of its own, and is asked once a second, as its page does. Then another threshold is tried, and what the instrument
of a router in the same process adds to a request.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from figures import Figure, serving, size, table

from edgeroute import Router
from edgeroute.cloud.function_backend_and_reply_checks import Function
from edgeroute.record.instrument_interface import RequestEnded
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.tools.dashboard.in_process import AnswerFeed

RATE, SECONDS, STEP_S = 1000, size(20, 1), 0.02
REPLAYED = size(5000, 100)
LIMIT_S, LIMIT_CPU, LIMIT_MS, LIMIT_TRIAL_MS, LIMIT_US = 1.0, 25, 100, 250, 5


def records(n: int) -> list[dict[str, Any]]:
    """Return the trace of `n` requests to a router that defers some 20 % of them."""
    found, rng = list[dict[str, Any]](), random.Random(0)
    cloud = Function(lambda _: ("cloud", 0.9), usd_per_call=1e-4)
    with Router(lambda x: ("edge", x), cloud, threshold=0.2, trace=found.append) as router:
        for _ in range(n):
            router.infer(rng.random())
    return found


@contextlib.contextmanager
def dashboard(path: Path) -> Iterator[tuple[psutil.Process, http.client.HTTPConnection, dict[str, str]]]:
    """Run `edgeroute dashboard` on that trace; provide its process, a connection, and the headers that it wants."""
    with serving("dashboard", "--record", path) as (pid, ready):
        address, _, token = ready.removeprefix("http://").partition("/#token=")
        with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            yield psutil.Process(pid), connection, {"Authorization": f"Bearer {token}"}


def asked(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> tuple[float, bytes]:
    """Send a GET, and return the seconds until the whole reply was there, and its text; fails unless its status is 200."""
    begun = time.perf_counter()
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status == 200, text
    return time.perf_counter() - begun, text


def write(journal: Journal, told: list[dict[str, Any]], written: list[int]) -> None:
    """Append records to the journal, `RATE` a second for `SECONDS`, with new ids and times; `written[0]` has the number."""
    begun, n = time.monotonic(), 0
    while n < RATE * SECONDS:
        due = min(RATE * SECONDS, int((time.monotonic() - begun) * RATE))
        for i in range(n, due):
            journal.append({**told[i % len(told)], "id": f"x-{i}", "at": round(time.time(), 3)})
        n = written[0] = max(n, due)
        time.sleep(STEP_S)


def figures() -> list[Figure]:
    """Return how old what the dashboard shows is, its processor time, a reply, a trial of a threshold, and the instrument's cost.

    Writes a trace at 1,000 requests a second for 20 s, and checks that no record was missed.
    """
    told, written, behind, took = records(REPLAYED), [0], list[float](), list[float]()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder) / "trace.jsonl"
        journal = Journal(path)
        journal.append(told[0])
        with dashboard(path) as (process, connection, headers):
            asked(connection, "/live", headers)
            before, begun = sum(process.cpu_times()[:2]), time.monotonic()
            writer = threading.Thread(target=write, args=(journal, told, written))
            writer.start()
            while writer.is_alive():
                time.sleep(1)
                there = written[0]
                seconds, text = asked(connection, "/live", headers)
                seen = json.loads(text)
                took.append(seconds)
                behind.append(max(0, there + 1 - seen["requests"]) / RATE)
            share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - begun) * 100
            writer.join()
            until = time.monotonic() + 30
            while (
                json.loads(asked(connection, "/live", headers)[1])["requests"] < RATE * SECONDS + 1 and time.monotonic() < until
            ):
                time.sleep(0.1)
            seen = json.loads(asked(connection, "/live", headers)[1])
            assert (seen["requests"], seen["lost"]) == (RATE * SECONDS + 1, 0), "a record was missed"
            memory = process.memory_info().rss / 1e6
            edge = json.loads(asked(connection, "/trial", headers)[1])["edges"][0]["name"]
            tries = [asked(connection, f"/trial/at?edge={edge}&threshold=0.{i}5", headers)[0] for i in range(9)]
        journal.close()
    ended, n = AnswerFeed(), size(20_000, 100)
    one = RequestEnded("x", None, None, None)
    begun = time.perf_counter()
    for _ in range(n):
        ended.add(one)
    adds = (time.perf_counter() - begun) / n * 1e6
    late, middle, trial = max(behind), statistics.median(took) * 1e3, statistics.median(tries) * 1e3
    return [
        Figure(f"dashboard at {RATE:,} requests/s: what is shown is older by", f"{late * 1e3:.0f} ms", "", late, "s", LIMIT_S),
        Figure(f"dashboard, its processor time ({memory:.0f} MB)", f"{share:.1f} %", "", share, "%", LIMIT_CPU),
        Figure(f"dashboard, a reply to its page ({len(text) / 1e3:.0f} KB)", f"{middle:.1f} ms", "", middle, "ms", LIMIT_MS),
        Figure(
            f"dashboard, another threshold, {REPLAYED:,} requests replayed", f"{trial:.0f} ms", "", trial, "ms", LIMIT_TRIAL_MS
        ),
        Figure("dashboard in the router's process, a request", f"{adds:.2f} us", "", adds, "us", LIMIT_US),
    ]


if __name__ == "__main__":
    print(table(figures()))
