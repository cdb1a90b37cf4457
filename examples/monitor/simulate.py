"""Weeks of a simulated machine in a minute or a few: faults that grow, a link that flaps, and what three set-ups make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from machine import KINDS, Fault, Machine
from monitor import POLICY, Monitor, diagnoses, odds, well

from edgeroute import Limits, Outbox, Router
from edgeroute.testing import Relay

HERE = Path(__file__).parent
EVERY_H = 0.5
"""Hours between recordings."""
LATEST_S = 60.0
"""Real seconds after which the queue should be empty when the link is back."""
HEALTHY = 4 / 7
"""Share of the time before each fault in which the machine is well."""
MB_PER_DAY = 5.0
EDGEROUTE = """
import os, runpy, signal, threading
threading.Thread(target=lambda: (os.read(0, 1), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
runpy.run_module("edgeroute", run_name="__main__", alter_sys=True)
"""
"""Program of a child process: the command line, ended as by SIGTERM once standard input ends, as it does with its parent."""


class Found(NamedTuple):
    """What one set-up made of one fault."""

    alarm_h: float | None
    """When the alarm went off; None: not before the machine failed."""
    named: str


class Arm(NamedTuple):
    """What one set-up made of all of it."""

    found: Sequence[Found]
    false_alarms: int
    answered: int
    """Windows that got an answer, sooner or later."""
    bytes_sent: int


class Report(NamedTuple):
    """What happened."""

    days: float
    faults: Sequence[Fault]
    outages: Sequence[tuple[float, float]]
    windows: int
    deferred: int
    queued: int
    """Windows whose answer came later."""
    longest: int
    """The most that waited at a time."""
    delivered: int
    """Late answers in the application's table."""
    repeated: int
    """Of them, those that are there once more: each should be there once."""
    lost: int
    """Windows that were queued, and of which no answer came."""
    arms: dict[str, Arm]
    trace: Sequence[tuple[float, float]]
    """Hour, and the small model's log-odds that something is wrong: the median of a recording's windows."""
    alarms: Sequence[tuple[float, str]]

    @property
    def well_days(self) -> float:
        """Days in which the machine was well, and an alarm would have been a false one."""
        return self.days - sum(fault.fails_h - fault.begins_h for fault in self.faults) / 24


def schedule(days: float, seed: int) -> tuple[list[Fault], list[tuple[float, float]]]:
    """Draw one fault of each kind, one after the other; and outages of the link, about one a day, of up to seven hours."""
    rng, part = np.random.default_rng([seed, 0xFA17]), 24 * days / (len(KINDS) - 1)
    kinds = rng.permutation(KINDS[1:])
    faults = [Fault(str(kind), (n + HEALTHY) * part, (n + 1) * part) for n, kind in enumerate(kinds)]
    outages, at = [], 0.0
    while (at := at + rng.uniform(10, 34)) < 24 * days:
        outages.append((at, min(at := at + rng.uniform(0.5, 7), 24 * days - 2 * EVERY_H)))
    return faults, [(start, end) for start, end in outages if end > start]


@contextmanager
def served() -> Iterator[str]:
    """Run the larger model behind `edgeroute serve` in a process, and provide its URL; ends it after.

    Raises:
        SystemExit: it did not start.
    """
    command = [sys.executable, "-c", EDGEROUTE, "serve", "diagnosis:model", "--port", "0", "--json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=HERE, **pipes) as server:  # noqa: S603 - this interpreter
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise SystemExit("edgeroute serve did not start: pip install -r requirements.txt")
            yield f"{json.loads(line)['ready']}/v2/models/diagnosis"
        finally:
            server.terminate()


class Link:
    """The link to the larger model, which goes down and up.

    Args:
        relay: the way to it.
        held: no other program gets the relay's port while the link is down.
    """

    def __init__(self, relay: Relay, *, held: bool = False) -> None:
        self.relay, self.up, self._held = relay, True, held

    def set(self, *, up: bool) -> bool:
        """Cut the link or mend it; return True if it came up just now."""
        if up == self.up:
            return False
        self.up = up
        self.relay.shut, self.relay.refuse = not up and self._held, not up and not self._held
        self.relay.reset_after = None if up else 0  # connections that there are end, too: with the reply, once it is asked for
        return up


def opened(state: Path, days: float, *, rate_per_s: float = 1000, **changes: Any) -> Router[str]:
    """Return a router by the policy, but for what depends on real time: days pass in seconds here."""
    outbox = Outbox(state / "outbox.db", spread_s=0, rate_per_s=rate_per_s)
    limits = Limits(mb_per_day=MB_PER_DAY * days)  # the whole run is within one real day
    return Router.from_policy(POLICY, score=well, state=state, outbox=outbox, limits=limits, **changes)


def run(days: float = 28, seed: int = 0, *, compare: bool = True, progress: bool = False) -> Report:
    """Simulate the days with edgeroute, with the edge alone and with the cloud alone, on the same machine; return the report.

    Args:
        days: of simulated time.
        seed: of the faults, the outages and the noise.
        compare: also with the cloud alone.
        progress: on stderr.
    """
    faults, outages = schedule(days, seed)
    machine = Machine(faults=faults, seed=seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        url = urlsplit(stack.enter_context(served()))
        relay = stack.enter_context(Relay("127.0.0.1", url.port or 80))
        stack.enter_context(variable("EDGEROUTE_CLOUD__URL", f"http://127.0.0.1:{relay.port}{url.path}"))
        link = Link(relay)
        setups: dict[str, dict[str, Any]] = {"edgeroute": {}, "edge alone": {"mode": "only_edge", "offline": "edge"}}
        if compare:
            setups["cloud alone"] = {"mode": "only_cloud", "offline": "edge"}
        monitors = {
            name: Monitor(stack.enter_context(opened(folder / name, days, **changes))) for name, changes in setups.items()
        }
        ours, answered = monitors["edgeroute"], dict.fromkeys(monitors, 0)
        trace, longest, ids = [], 0, set[str]()
        for n in range(round(24 * days / EVERY_H)):
            at = n * EVERY_H
            if link.set(up=not any(start <= at < end for start, end in outages)):
                back(list(monitors.values()))
            windows = machine.record(at)
            for name, monitor in monitors.items():
                seen = monitor.see(at, windows)
                answered[name] += len(seen.answers)
                if name == "edgeroute":
                    ids |= {answer.id for answer in seen.answers if not answer.final}
                elif name == "edge alone":
                    trace.append((at, float(np.median([odds(answer.outputs) for answer in seen.answers]))))
            longest = max(longest, len(ours.waiting))
            if progress and n % 48 == 0:
                print(f"\rday {at / 24:3.0f} of {days:g}", end="", file=sys.stderr, flush=True)
        link.set(up=True)
        back(list(monitors.values()))
        if progress:
            print(file=sys.stderr)
        stats = ours.router.stats()
        arms = {
            name: Arm(*judged(monitor, faults), answered[name], monitor.router.stats().bytes_sent)
            for name, monitor in monitors.items()
        }
        state = folder / "edgeroute"
        for monitor in monitors.values():
            monitor.router.close()
        handed = [identity for identity, _ in diagnoses(state)]
        return Report(
            days=days,
            faults=faults,
            outages=outages,
            windows=stats.requests,
            deferred=stats.deferred,
            queued=len(ids),
            longest=longest,
            delivered=len(handed),
            repeated=len(handed) - len(set(handed)),
            lost=len(ids - set(handed)),
            arms=arms,
            trace=trace,
            alarms=[(alarm.at_h, alarm.kind) for alarm in ours.alarms.raised],
        )


def back(monitors: Iterable[Monitor]) -> None:
    """Tell the routers that the link is up again, and wait until they have noticed and delivered, 60 s at most.

    These are real seconds: no simulated time passes.
    """
    for monitor in monitors:
        monitor.router.link_up()
    end = monotonic() + LATEST_S
    for monitor in monitors:
        while monitor.router.stats().legs[-1].breaker in {"open", "half-open"} and monotonic() < end:
            sleep(0.01)
        monitor.settled(max(0.0, end - monotonic()))


def judged(monitor: Monitor, faults: Sequence[Fault]) -> tuple[list[Found], int]:
    """Return what was found of each fault, with the first alarm in it; and the number of alarms while the machine was well."""
    raised = monitor.alarms.raised
    found = []
    for fault in faults:
        first = next((alarm for alarm in raised if fault.begins_h < alarm.at_h <= fault.fails_h), None)
        found.append(Found(None, "") if first is None else Found(first.at_h, first.kind))
    false = sum(not any(fault.begins_h < alarm.at_h <= fault.fails_h for fault in faults) for alarm in raised)
    return found, false


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable during the block, which goes before the policy's key."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
