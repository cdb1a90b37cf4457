"""A fleet of 200 devices on this machine, in fourteen virtual days: a policy rolls out, a bad one halts, and a model drifts.

The devices are real routers with the shipped models. Their digests go to an object store and to a broker, and the owner's side is
`edgeroute fleet`, as cron would run it. `python main.py`, or `make example-fleet`, ends with a page.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from datetime import datetime, timezone
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import devices
import numpy as np
import page
import places

from edgeroute import Router, models
from edgeroute.__main__ import main as edgeroute_main
from edgeroute.system import wall_clock

HERE = Path(__file__).parent
DAY_S = devices.DAY_S
SITES, CLEAR = 5, 3
"""Sites, and those of them that are never in fog."""
RINGS, HALT = "10%,50%,100%", "deferred>25%, degraded>5%, alarm"
GOOD, BAD, DRIFT, DAYS = 1, 8, 10, 14
"""Days on which the better policy is published, the bad one, and from which there is fog at some sites; and of all."""
DEVICE = """\
state = "state"

[fleet]
to = "{to}"
site = "plant-{site}"
policy = "shop"
catalog = "../../catalog"
root = "../../catalog/root.json"
refresh = "30d"
"""


def main() -> None:
    """Run the fleet in a temporary folder, write its page, report and numbers to `--out`, and print what it has shown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=200, help="40 or more, so that a ring has some")
    parser.add_argument("--rings", default=RINGS, help="shares of the devices; a ring of fewer than eight decides nothing")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build" / "fleet", help="folder of the page")
    given = parser.parse_args()
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is started here ends, too
    with ExitStack() as stack:
        home = Path(mkdtemp(prefix="fleet-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        result = Fleet(home, given.devices, given.rings, stack).run()
        result["took_s"] = time.monotonic() - begun
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "fleet.json").write_text(json.dumps(result, indent=1))
        (given.out / "index.html").write_text(page.html(result))
        shutil.copy(home / "report.html", given.out / "report.html")
    print(*page.lines(result), f"The page: {given.out / 'index.html'}", sep="\n")


class Fleet:
    """The owner's side, and the processes with the devices."""

    def __init__(self, home: Path, count: int, rings: str, stack: ExitStack) -> None:
        self.home, self.count, self.rings = home, count, rings
        self.begin = (time.time() // DAY_S - DAYS) * DAY_S
        """Beginning of the first virtual day; the last one ends as today begins."""
        self.bucket = places.bucket(stack, home)
        self.broker, self.broker_name = places.broker(stack, home)
        shutil.copytree(models.fashion().edge.parent, home / "models" / "fashion")
        self.answers = pictures(home / "answers.npz")
        self.set_clock(-1)
        self.edgeroute("models", "keygen")
        self.publish("shop.toml", "100%")
        self.collect(self.broker)  # from now on the broker has a subscriber, for which it stores what comes
        self.changed = True
        """True if the catalog has changed since the last morning."""
        self.workers = [self.worker(stack, part) for part in range(2)]

    def worker(self, stack: ExitStack, part: int) -> Any:
        """Write the policies of every second device from `part` on, start a process with them, and return the connection to it.

        `stack` ends the process.
        """
        folders = []
        for number in range(part, self.count, 2):
            folder = self.home / "devices" / f"{number:03}"
            folder.mkdir(parents=True)
            to = self.bucket if number % 4 < 2 else self.broker  # noqa: PLR2004
            (folder / "device.toml").write_text(DEVICE.format(to=to, site=number * SITES // self.count + 1))
            folders.append((number, folder))
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        running = context.Process(target=devices.serve, args=(theirs, folders, self.answers), daemon=True)
        running.start()
        stack.callback(running.join, devices.LONG_S)
        stack.callback(ours.close)  # by which the process ends
        ours.send(self.begin)
        return ours

    def set_clock(self, day: int) -> None:
        """Set the clock of this process, by which the commands below go, to nine hours after the end of a virtual day."""
        wall_clock._OFFSET += self.begin + (day + 1) * DAY_S + 9 * 3600 - wall_clock.now()  # noqa: SLF001 - a simulation of days

    def edgeroute(self, *arguments: str) -> tuple[int, str]:
        """Run a command of edgeroute in this process, in the folder of the fleet, and return its exit code and what it prints.

        Raises:
            SystemExit: its exit code is none of 0, 4 and 5, which say that it found something.
        """
        out, err = io.StringIO(), io.StringIO()
        argv, sys.argv, folder = sys.argv, ["edgeroute", *arguments], Path.cwd()
        os.chdir(self.home)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                edgeroute_main()
            code: Any = 0
        except SystemExit as e:
            code = e.code
        finally:
            sys.argv = argv
            os.chdir(folder)
        if code not in {None, 0, 4, 5}:
            raise SystemExit(f"edgeroute {' '.join(arguments)}: {err.getvalue()}")
        return int(code or 0), out.getvalue()

    def collect(self, source: str) -> int:
        """Collect digests, from a broker for a second, and return their number."""
        limit = ("--for", "1s") if "mqtt" in source else ()
        return int(json.loads(self.edgeroute("fleet", "collect", source, "--to", "store", *limit, "--json")[1])["added"])

    def publish(self, policy: str, rings: str, halt: str = "") -> None:
        """Sign a policy of this folder for the first ring."""
        self.edgeroute("fleet", "publish", str(HERE / policy), "--name", "shop", "--rings", rings, "--halt", halt)

    def run(self) -> dict[str, Any]:
        """Run the fourteen days, print a line for each, write the report, and return what was seen."""
        days = []
        for worker in self.workers:
            worker.recv()
        drifting = [n for n in range(self.count) if n * SITES // self.count >= CLEAR]
        for day in range(DAYS):
            for worker in self.workers:
                worker.send((self.begin + day * DAY_S, self.changed, drifting if day >= DRIFT else []))
            waiting = sum(worker.recv() for worker in self.workers)
            days.append(self.evening(day) | {"waiting": waiting})
            print(page.day_line(days[-1]), flush=True)
        self.edgeroute("fleet", "report", "store", "--html", "report.html")
        return {
            "devices": self.count, "days": days, "good": GOOD, "bad": BAD, "drift": DRIFT, "drifting": len(drifting),
            "fog": [f"plant-{site + 1}" for site in range(CLEAR, SITES)], "broker": self.broker_name,
        }  # fmt: skip

    def evening(self, day: int) -> dict[str, Any]:
        """Do what cron does after a day: collect, look for alarms, promote. Then publish what is planned for the next day.

        Waits, 180 s at most, until all digests are here; returns the numbers of the day.
        """
        self.set_clock(day)
        added = self.collect(self.bucket) + self.collect(self.broker)
        until = time.monotonic() + devices.LONG_S
        while self.arrived(day) < self.count and time.monotonic() < until:  # a broker delivers what it has once it can
            added += self.collect(self.broker)
        alarm = json.loads(self.edgeroute("fleet", "alarm", "store", "--learn", "7", "--json")[1])
        step = json.loads(self.edgeroute("fleet", "promote", "store", "--name", "shop", "--json")[1])
        self.changed = day + 1 in {GOOD, BAD} or step["did"] != "wait"
        if day + 1 in {GOOD, BAD}:
            self.publish("better.toml" if day + 1 == GOOD else "worse.toml", self.rings, HALT)
        return {"day": day, "added": added, "alarm": alarm, "step": step, **self.sums(day)}

    def arrived(self, day: int) -> int:
        """Return the number of devices whose digest of a day has arrived."""
        return sum(numbers[0] for numbers in self.sums(day)["policies"].values())

    def sums(self, day: int) -> dict[str, Any]:
        """Return the sums of a day by the policy in force (devices, requests, deferred), and by site (audited, differing)."""
        from edgeroute.tools.fleet.digest_parquet_store import open_store

        date = datetime.fromtimestamp(self.begin + day * DAY_S, timezone.utc).date()
        with open_store(self.home / "store") as store:
            policies = store.execute(
                "SELECT signed, count(DISTINCT device), sum(requests), sum(deferred) FROM requests WHERE day = ? GROUP BY ALL",
                [date],
            ).fetchall()
            sites = store.execute(
                "SELECT site, sum(audited), sum(differ) FROM audits WHERE day = ? GROUP BY site ORDER BY site", [date]
            ).fetchall()
        return {
            "policies": {signed: [int(x) for x in numbers] for signed, *numbers in policies},
            "sites": {site: [int(x) for x in numbers] for site, *numbers in sites},
        }


def pictures(path: Path) -> Path:
    """Write pictures as they are, and as a lens in fog shows them, with the large model's answers to both; return `path`."""
    usual = models.fashion().images[:500]
    arrays: dict[str, Any] = {"usual": usual, "drifted": (0.4 * usual + 100).astype(np.uint8)}
    with Router(models.fashion().cloud, mode="only_edge") as large:
        answers: dict[str, Any] = {
            f"{name}_answers": [str(answer.value) for answer in large.infer_many(p)] for name, p in arrays.items()
        }
    np.savez(path, **arrays, **answers)
    return path


if __name__ == "__main__":
    main()
