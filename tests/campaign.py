"""Differential campaign: random fault schedules through a real fault server; every answer is compared with what it must be.

A schedule is a router, its mode and driver, and six requests, of which up to three are under way at once. Two processes run the
schedules of a group over one state folder, with audits, trials, a cache, an outbox or conversations; each interrupts some of its
requests by SIGINT. The server, a process of its own, draws a fault for each attempt and records all bodies. Each request has an
answer of the edge, so there must be one: its own (the edge's or the cloud's for this very input), by the deadline. Run by hand, on
a machine that does nothing else; with eight workers one of two cores is busy with them for longer than the deadline of 150 ms:

    python tests/campaign.py --schedules 10000 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

from both import wait_for
from fault_schedules import BROKEN, GROUP, IDS, LATER, PRICE, Findings, Schedules, Setting, Signals, Stalls
from fault_server import FaultServer

from edgeroute import Outbox, Router

HUNG_S = 900.0
"""Seconds in which no schedule of a process ends, after which it counts as hung: it writes all stacks, and ends."""


class Ended:
    """Checks of a group whose processes have ended: the server's bodies, the ledger, the money, the outbox, the conversations."""

    def __init__(self, setting: Setting, found: Findings) -> None:
        self.setting, self.found = setting, found

    def _get(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self.setting.url}/{what}/{self.setting.group}", timeout=30) as reply:
            return json.load(reply)

    def check(self) -> None:
        """Check the group, and add to its findings."""
        self._get("calm")
        booked = self._later() if self.setting.stored else 0
        posts = self._get("posts")
        found, private = self.found, {*self.found.private}
        for cloud, key, ids, leaks, _ in posts:
            if leaks or private & {*ids}:
                found.leaked.append(f"{self.setting.form} to {cloud}: {key} {ids}")
        keys = {(cloud, key) for cloud, key, *_ in posts}
        found.counts.update(posts=len(posts), audits=sum(key.endswith("-audit") for _, key in keys), calls=len(keys))
        if self.setting.stored:
            self._check_stored(posts, len(keys), booked)
        else:
            paid = Counter(ids[0] // IDS for ids in {(cloud, key): ids for cloud, key, ids, *_ in posts}.values())
            for number, calls in paid.items():
                booked = found.counts.pop(f"booked-{number}", 0)
                if calls > booked or (self.setting.limited and booked > self.setting.most_calls):
                    found.miscounted.append(f"schedule {number}: {booked} calls are booked, {calls} came")
        found.counts = Counter({name: n for name, n in found.counts.items() if not name.startswith("booked-")})

    def _check_stored(self, posts: Sequence[Any], calls: int, booked: int) -> None:
        """Check the ledger and the money against the server's bodies. An interrupted call may be booked and not sent."""
        found, folder = self.found, Path(self.setting.folder)
        lines = _lines(folder / "egress.jsonl")
        listed, came = Counter(line["request"] for line in lines), Counter(key.partition("/")[0] for _, key, *_ in posts)
        for key, times in came.items():
            if listed[key] < times:
                found.leaked.append(f"{key} came {times} times, and is {listed[key]} times in the ledger")
        interrupted = 2 * found.counts["interrupted"]
        paid = calls if self.setting.retries else len(posts)
        if not paid <= booked <= len(lines) + interrupted:
            found.miscounted.append(
                f"group {self.setting.group}: {paid} calls came, {booked} are booked, {len(lines)} in the ledger"
            )
        sent, size = found.counts["sent"], sum(line["bytes"] for line in lines)
        if not sent <= size or (sent < size and not interrupted):
            found.miscounted.append(f"group {self.setting.group}: {sent} bytes were sent, {size} are in the ledger")
        found.counts.update(compared=sum("agrees" in line for line in _lines(folder / "audit.jsonl")))

    def _later(self) -> int:
        """Have another router deliver what the outbox has, and ask again in the conversations. Return the calls booked."""
        setting, found, n = self.setting, self.found, LATER + 100 * self.setting.group
        arguments = setting.arguments(lambda x: (f"edge-{setting.number_of(x)}", 0.1)) | {"limits": None}
        with Router(**arguments, deadline=10.0) as router:
            if setting.limited and round(router.stats().usd_today / PRICE) > 2 * setting.most_calls:
                found.miscounted.append(f"group {setting.group}: two processes exceed their limits, {router.stats()}")
            if setting.queued:
                self._deliver(router, arguments["outbox"])
            for history in found.secrets if setting.form == "chat" else []:
                n += 1
                found.private.append(n)
                router.infer(setting.input_of(n, private=False, history=history))
            if setting.form == "chat" and router.infer(setting.input_of(n + 1, private=False)).reason_code == "stays":
                found.miscounted.append(f"group {setting.group}: a conversation of its own has to stay")
            stats = router.stats()
        found.counts["sent"] += stats.bytes_sent
        return round(stats.usd_today / PRICE)

    def _deliver(self, router: Router, box: Outbox) -> None:
        found, queued = self.found, {*self.found.queued}

        @router.on_late
        def heard(late: Any, tx: Any) -> None:
            tx.execute("CREATE TABLE IF NOT EXISTS seen (id, value)")
            tx.execute("INSERT INTO seen VALUES (?, ?)", (late.id, late.value))

        box.retry()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not box.size(), 60)  # whatever else runs: the end is waited for, not a time
        with contextlib.closing(sqlite3.connect(box.path)) as file, contextlib.suppress(sqlite3.OperationalError):
            seen = file.execute("SELECT id, value FROM seen").fetchall()
            for identity, times in Counter(identity for identity, _ in seen).items():
                if times > 1:
                    found.twice.append(f"{identity} of the outbox")
            for identity, value in seen:
                n = found.asked.get(identity)
                if n is not None and value != self.setting.cloud_value(n):
                    found.foreign.append(f"late, of {n}: {value}")
            queued -= {identity for identity, _ in seen}
            found.counts.update(delivered=len(seen))
        found.lost += [f"{identity} was queued, and never delivered" for identity in queued]


def _lines(path: Path) -> list[Any]:
    """Return the lines of a journal, all of which must be whole; two processes that write at once may leave an empty one."""
    files = sorted(path.parent.glob(f"{path.name}*"))
    return [json.loads(line) for file in files if file.suffix != ".lock" for line in file.read_bytes().split(b"\n") if line]


class Process:
    """A process that runs schedules: it takes a line of JSON for each group, and returns one."""

    def __init__(self, args: Sequence[str]) -> None:
        self._command = [sys.executable, __file__, "--work", *args]
        self._process: subprocess.Popen[str] | None = None

    def run(self, group: int, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the findings about these schedules. A process that died is one, and is replaced."""
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps([group, [*numbers]]) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self.end()
        return {"died": [f"the process of the schedules {[*numbers]}"]}

    def end(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()


def work(args: argparse.Namespace) -> None:
    """Run the groups that stdin names; one that hangs ends the process."""
    stalls, signals = Stalls(), Signals()
    if args.broken:
        import breaks

        breaks.BREAKS[args.broken][1]()
    wait = functools.partial(faulthandler.dump_traceback_later, HUNG_S, exit=True)
    for line in sys.stdin:
        wait()
        group, numbers = json.loads(line)
        setting = Setting.draw(args.seed, group, args.url, args.root)
        found = Schedules(args.seed, setting, args.deadline, stalls, signals, wait).run(numbers, args.workers)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(vars(found)), flush=True)


def run(seed: int, schedules: range, workers: int, deadline_s: float, broken: str = "", until: str = "") -> Findings:
    """Run schedules, some at once, in two processes, against a fault server in a process of its own.

    Args:
        seed: seed of all random numbers.
        schedules: their numbers, which begin and end with a whole group.
        workers: schedules at once in each process, beside the one that is interrupted.
        deadline_s: deadline of each request.
        broken: name of a way in which the package is broken first; empty: none.
        until: list of findings with the first of which the run ends; empty: it runs to its end.
    """
    total, common = Findings(), ["--seed", str(seed), "--deadline", str(deadline_s)]
    groups = [range(first, min(first + GROUP, schedules.stop)) for first in range(schedules.start, schedules.stop, GROUP)]
    with contextlib.ExitStack() as stack:
        root = tempfile.mkdtemp(prefix="campaign-")
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, __file__, "--serve", *common], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        url = server.stdout.readline().strip()
        processes = [
            Process([*common, "--url", url, "--root", root, "--workers", str(workers), "--broken", broken]) for _ in "12"
        ]
        both, checks = stack.enter_context(ThreadPoolExecutor(2)), stack.enter_context(ThreadPoolExecutor(1))
        ends = []

        def check(setting: Setting, found: Findings) -> None:
            try:
                Ended(setting, found).check()
            except Exception as e:  # noqa: BLE001 - a record that cannot be read, say
                found.miscounted.append(f"group {setting.group}: {type(e).__name__}: {e}")
            shutil.rmtree(setting.folder, ignore_errors=True)

        try:
            for count, numbers in enumerate(groups, 1):
                group, found = numbers.start // GROUP, Findings()
                for given in both.map(
                    lambda p, group, mine: p.run(group, mine), processes, [group] * 2, [numbers[::2], numbers[1::2]]
                ):
                    found.add(given)
                ends.append((checks.submit(check, Setting.draw(seed, group, url, root), found), found))
                if until or count % 12 == 0 or count == len(groups):
                    _gather(total, ends)
                    print(f"{count * GROUP} schedules: {json.dumps(total.report())}", file=sys.stderr, flush=True)
                if getattr(total, until, ()):
                    break
        finally:
            for process in processes:
                process.end()
            said, _ = server.communicate("")
            total.faults = json.loads(said)
    return total


def _gather(total: Findings, ends: list[Any]) -> None:
    """Add the findings of groups whose checks have ended, and empty the list."""
    for checked, found in ends:
        checked.result()
        for what in BROKEN:
            for line in getattr(found, what):
                print(f"{what}: {line}", file=sys.stderr)
        total.add({**vars(found), "asked": {}, "queued": [], "private": [], "secrets": []})
    ends.clear()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first schedule, to run one again")
    parser.add_argument("--workers", type=int, default=2, help="schedules at once, in each of the two processes")
    parser.add_argument("--deadline", type=float, default=0.15, help="of each request, seconds")
    parser.add_argument("--broken", default="", help="break the package first, to see that it is noticed")
    for name, action in {"--serve": "store_true", "--work": "store_true", "--url": "store", "--root": "store"}.items():
        parser.add_argument(name, action=action, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        with FaultServer(args.seed, args.deadline) as server:
            print(server.url, flush=True)
            sys.stdin.read()
            print(json.dumps(server.faults))
        return 0
    if args.work:
        work(args)
        return 0
    first = args.first // GROUP * GROUP
    begun = monotonic()
    found = run(args.seed, range(first, args.first + args.schedules), args.workers, args.deadline, args.broken)
    report = {"schedules": args.schedules, "first": first, "seed": args.seed, "seconds": round(monotonic() - begun)}
    print(json.dumps({**report, **found.report(), "faults": found.faults}, indent=2))
    broken = {name: getattr(found, name) for name in (*BROKEN, "late_by_us")}
    for what, lines in broken.items():
        for line in lines[:10]:
            print(f"{what}: {line}")
    return 1 if any(broken.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
