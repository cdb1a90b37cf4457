"""Drift alarms and audits: `python benchmarks/alarms.py [runs]`.

1. How many requests pass before a false alarm, while the world stays as it was at the calibration, for inputs that come alone, in
   scenes, and in bursts of one input repeated, through a router.
2. How many requests, and audits, pass from a change of the world to its alarm, by a router's sampler and monitor, after two calm
   days.
3. Of which side the audited requests are under a cloud that is too slow for them, through a router.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from math import inf
from pathlib import Path

import numpy as np
from figures import size

from edgeroute import Audit, Router
from edgeroute.confidence import Certificate, calibrate
from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.system import wall_clock
from edgeroute.trials.audit_setting_and_drift_monitor import DriftMonitor
from edgeroute.trials.audits_and_drift_alarms import Sampler

MOST = size(200_000, 200)
"""Requests after which a run without an alarm is cut off."""
DAILY = 10_000
"""Requests a day."""
CALM = size(2 * DAILY, 200)
"""Requests before the world changes."""
Array = np.ndarray


def harm(x: Array) -> Array:
    """Return the probability, by an input's score, that the edge says something else than the cloud: 1.6 % of all, few of the sure."""
    return 0.4 * np.clip(0.3 - x, 0, None) + 0.01


def world(
    rng: np.random.Generator, scene: int, worse: float = 1.0, unsure: float = 0.0, spread: float = 0.3
) -> Iterator[tuple[float, bool]]:
    """Yield requests for ever, (score, True if the cloud says something else), in scenes of `scene` each, whose inputs are alike.

    Args:
        rng: random numbers.
        scene: number of successive requests whose inputs are alike.
        worse: factor of the probability that the answers differ.
        unsure: share of scenes that get low scores, which are deferred, in place of what they were.
        spread: range by which the scores of a scene differ; 0: they are equal, and all or none of their answers differ.
    """
    while True:
        centres = rng.random(4096)
        scores = np.repeat(centres, scene)
        if spread and scene > 1:
            scores = (scores + rng.uniform(0, spread, len(scores))) % 1  # still uniform
        low = np.repeat(rng.random(4096) < unsure, scene)
        scores = np.where(low, scores * 0.08, scores)
        luck = rng.random(len(scores)) if spread else np.repeat(rng.random(4096), scene)
        yield from zip(scores.tolist(), (luck < worse * harm(scores)).tolist(), strict=True)


def certificate() -> Certificate:
    """Return the certificate of `max_loss` 2 % by 4,000 independent inputs of the world as it is; always the same."""
    rng = np.random.default_rng(0)
    stream = world(rng, 1)
    scores, differ = map(np.array, zip(*(next(stream) for _ in range(4000)), strict=True))
    return calibrate(scores, ~differ, max_loss=0.02)


def edge(x: tuple[float, bool]) -> tuple[str, float]:
    """The edge: as sure as it is told."""
    return "a", x[0]


def cloud(x: tuple[float, bool]) -> str:
    """The cloud: it says what the edge says, or not."""
    return "b" if x[1] else "a"


def until_alarm(made: Certificate, audit: Audit, stream: Iterator[tuple[float, bool]], most: int) -> tuple[int, int, str]:
    """Send a router at most `most` requests until an alarm; return their number, the audited accepted ones, the alarm's text.

    Waits for each audit, so that a run is the same each time. No alarm is "".
    """
    with Router(edge, cloud, threshold=made, audit=audit) as router:
        monitor = router.engine.auditor.watch("edge")
        for n in range(1, most + 1):  # noqa: B007 - the number is returned
            router.infer(next(stream))
            if monitor.alarm is not None:
                break
            while router.engine.auditor.jobs.busy:  # one at a time, so that each run is the same
                time.sleep(0)
        alarm = monitor.alarm
        return n, monitor.audited, "" if alarm is None else alarm.what


def false_alarms(made: Certificate, runs: int) -> None:
    """Print the mean number of requests before a false alarm, over `runs` runs, and the alarms, by size of scene."""
    print(
        f"\n| requests before a false alarm | mean of {runs} runs that are cut off at {MOST:,} | alarms |\n| --- | ---: | ---: |"
    )
    for what, spread in (("scenes", 0.3), ("bursts of one input", 0.0)):
        for scene in size((1, 2, 3, 5, 10, 30), (1, 30)):
            found = []
            for run in range(runs):
                random.seed(run)
                rng = np.random.default_rng(1000 * scene + run)
                found.append(until_alarm(made, Audit(share=0.05), world(rng, scene, spread=spread), MOST))
            mean, alarms = np.mean([n for n, _, _ in found]), sum(bool(text) for *_, text in found)
            print(f"| {what} of {scene} | >= {mean:,.0f} | {alarms} |", flush=True)


def delay(made: Certificate, audit: Audit, seed: int, **change: float) -> tuple[int, int]:
    """Return (requests, audited accepted answers) from a change of the world to an alarm, by sampler and monitor alone.

    There are no calls, and `DAILY` requests a day of virtual time, for which `wall_clock.now` is replaced for good.
    """
    sampler = Sampler(audit.share, audit.scene, lambda: 0, lambda: True)
    monitor, rng, before = DriftMonitor(BoundCertificate(made, {}, inf), audit), np.random.default_rng(seed), 0
    stream = world(rng, 1)
    for n in count(1):
        if n == CALM:
            stream, before = world(rng, 1, **change), monitor.audited
        drawn, (score, differs) = sampler.arrives(), next(stream)
        if drawn is None:
            continue
        wall_clock.now = lambda: n * 86_400 / DAILY  # noqa: B023 - it is called before the next one
        below = score < made.threshold
        alarm = drawn.rate and monitor.add_deferral(made.threshold, below=below)
        if drawn.probability and not below:
            alarm = monitor.add_comparison(score, agrees=not differs, counted=drawn.counted) or alarm
        if alarm and n >= CALM:
            return n - CALM, monitor.audited - before
    raise AssertionError("unreachable")


def delays(made: Certificate, runs: int) -> None:
    """Print how many requests and audits pass from a change to its alarm: means over `runs` runs, by share, scene and change."""
    print(f"\nMeans of {runs} runs of independent inputs, of which {1 - made.deferral_rate:.0%} are accepted.\n")
    print(
        "| from a change to its alarm | share | scene | requests | standard error | audits |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )

    def mean(audit: Audit, **change: float) -> str:
        random.seed(1)
        found = np.array([delay(made, audit, run, **change) for run in range(runs)])
        (requests, audits), (error, _) = found.mean(0), found.std(0) / runs**0.5
        return f"{audit.share:.1%} | {audit.scene} | {requests:,.0f} | {error:,.0f} | {audits:,.0f}"

    for share in size((0.005, 0.05), (0.05,)):
        for scene in size((30, 1), (1,)):
            for worse in size((2, 4, 8), (8,)):
                told = mean(Audit(share=share, scene=scene), worse=worse)
                print(f"| differs {worse} times as often | {told} |", flush=True)
    for scene in size((30, 1), (1,)):
        for unsure in size((0.05, 0.1, 0.2, 0.4), (0.4,)):
            print(f"| {unsure:.0%} more inputs are unsure | {mean(Audit(share=0, scene=scene), unsure=unsure)} |", flush=True)


def fairness(callers: int, scene: int, share: float, n: int = size(12_000, 400), seed: int = 1) -> str:
    """Return a row of the table: the share of the deferred among the audited, and among all, by a router with a cloud of 20 ms.

    Runs `callers` threads, with a state folder that is deleted.
    """
    rng = np.random.default_rng(seed)
    sure = np.where(np.repeat(rng.random(-(-n // scene)) < 0.1, scene)[:n], 0.1, 0.9)

    def slow(_: float) -> str:
        time.sleep(0.02)
        return "a"

    with tempfile.TemporaryDirectory() as state:
        with Router(lambda x: ("a", x), slow, threshold=0.5, state=state, audit=Audit(share=share)) as router:

            def call(own: Array) -> None:
                for x in own.tolist():
                    router.infer(x)

            calls = [threading.Thread(target=call, args=(sure[i::callers],)) for i in range(callers)]
            for one in calls:
                one.start()
            for one in calls:
                one.join()
            while router.engine.auditor.jobs.busy:
                time.sleep(0.01)
        lines = list(read(Path(state) / "audit.jsonl"))
    true = (sure < 0.5).mean()
    deferred = np.array([line["edge_confidence"] < 0.5 for line in lines])
    weight = np.array([1 / line.get("probability", 1.0) for line in lines])
    found = (weight * deferred).sum() / weight.sum()
    error = np.sqrt((weight**2 * (deferred - found) ** 2).sum()) / weight.sum()
    return (
        f"| {callers} | {scene} | {share:.1%} | {len(lines):,} | {deferred.mean():.3f} | {found:.3f} | {error:.3f} | {true:.3f} | "
        f"{(found - true) / error:+.1f} |"
    )


def main(runs: int) -> None:
    """Print all tables; switches logging off."""
    logging.disable(logging.CRITICAL)
    print("Share of the deferred among the audited; the cloud takes 20 ms.\n")
    print("| callers | scene | share | audits | deferred | weighted | standard error | of all requests | z |")
    print(f"|{' ---: |' * 9}", flush=True)
    for callers in size((1, 8), (8,)):
        for scene in size((1, 40), (1,)):
            for share in size((0.05, 0.3), (0.3,)):
                print(fairness(callers, scene, share), flush=True)
    made = certificate()
    found = {"threshold": made.threshold, "deferred": made.deferral_interval, "disagreement": made.disagreement}
    print(f"\n{json.dumps(found)}")
    false_alarms(made, runs)
    delays(made, size(20, 1) * runs)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else size(10, 1))
