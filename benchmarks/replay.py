"""Throughput of trace replay under another policy: 200,000 records, one core."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import Figure, size, table, timed

from edgeroute import Limits, Router
from edgeroute.cloud.function_backend_and_reply_checks import Function
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.stores.json_lines_and_process_locks import read as records_of
from edgeroute.tools.replay import Recording, Setup, read, replay

RECORDED, TIMES, EVERY_S = size(2_000, 200), size(100, 1), 0.05
"""Requests traced from a real router, how often they are repeated, and the seconds between requests."""
BEFORE, AFTER = 0.2, 0.3
"""Deferral rates when recorded and when replayed."""
DEADLINE_S = 2.0
LIMITS = Limits(usd_per_day=1e9, mb_per_day=1e9, joules_per_hour=1e9, calls_per_minute=1e9)


def trace(path: Path) -> Setup:
    """Write a trace of 200,000 records to `path`, and return the setup of the policy to replay it under."""
    rng, told = random.Random(0), list[dict[str, Any]]()
    asked = Function(lambda _: ("cloud", 0.9), usd_per_call=1e-4, joules_per_call=0.1)
    policy: dict[str, Any] = {"deadline": DEADLINE_S, "limits": LIMITS}
    with Router(lambda x: ("edge", x), asked, threshold=BEFORE, trace=told.append, **policy) as router:
        for _ in range(RECORDED):
            router.infer(rng.random())
    journal = Journal(path, max_bytes=1 << 40)
    for i in range(RECORDED * TIMES):
        record = told[i % RECORDED]
        journal.append({**record, "id": f"{record['id']}-{i}", "at": 1.7e9 + i * EVERY_S})
    journal.close()
    with Router(lambda x: ("edge", x), asked, threshold=AFTER, **policy) as router:
        return Setup.of(router.engine.snapshot, LIMITS)


def cpu_s(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run `work` three times; return the least CPU seconds, and the last result."""
    best, found = float("inf"), None
    for _ in range(size(3, 1)):
        begun = time.process_time()
        found = work()
        best = min(best, time.process_time() - begun)
    return best, found


def figures() -> list[Figure]:
    """Return the time of a replayed decision beside that of parsing its JSON record, with reading in the name; checks the results."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder) / "trace.jsonl"
        setup = trace(path)
        n = RECORDED * TIMES
        lines = path.read_bytes().splitlines()
        json_s, _ = cpu_s(lambda: [json.loads(line) is None for line in lines])
        journal_s, _ = cpu_s(lambda: sum(1 for _ in records_of(path, exact=False)))
        read_s, known = cpu_s(lambda: read(path))
        assert isinstance(known, Recording)
        replay_s, found = cpu_s(lambda: replay(known, setup))
    assert found.replayed.requests == n
    assert 0 < found.recorded.deferral_rate < found.replayed.deferral_rate < 1
    whole = f"with reading the trace {n / (read_s + replay_s):,.0f}/s; the journal alone {n / journal_s:,.0f}/s"
    what = f"replay, a decision ({n / replay_s:,.0f}/s; {whole})"
    return [timed(what, replay_s / n, json_s / n, 20, by="alone")]


if __name__ == "__main__":
    print(table(figures()))
