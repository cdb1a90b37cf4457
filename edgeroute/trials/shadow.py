"""Shadow runs: what an edge would have answered, beside the cloud's answers, and what following it would change."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from math import ceil
from time import monotonic
from typing import Any, NamedTuple

from edgeroute.confidence.exact import upper
from edgeroute.core.estimates import Latency
from edgeroute.core.plan import Leg
from edgeroute.core.walk import Prediction
from edgeroute.observe.stats import ShadowStats
from edgeroute.system.forks import ForkSafe, initially, per_process

UNHEARD = "unheard"
"""Key of the lines of the audit log about shadow runs."""
RISK = 0.05
"""Probability that an interval misses the truth."""
LARGEST = 50_000
"""Sample size from which intervals do not become narrower: an exact one of more would take too long."""
PER = 1000
"""Number of requests that savings are stated for."""
MB = 1e6


class ShadowRun(NamedTuple):
    """One run of an edge whose answer nobody was given."""

    leg: Leg
    prediction: Prediction | None
    """None: it failed."""
    accepted: bool
    """Whether it would have been the answer."""
    took_s: float
    error: str = ""
    """The kind of the failure; empty: it did not fail."""


class Tally:
    """Sums over the shadow runs of one edge model. Each is weighted by the inverse of the probability with which it was drawn."""

    def __init__(self) -> None:
        self.count = self.failed = 0
        self._all, self._kept, self._differ, self._priced = _Weights(), _Weights(), 0.0, 0.0
        self._usd = self._bytes = 0.0
        self._edge, self._cloud = Latency(), Latency()

    def add(self, line: Mapping[str, Any], *, accepted: bool) -> None:
        """Adds a run.

        Args:
            line: of the audit log.
            accepted: whether the edge's answer would have been accepted.
        """
        weight = 1 / float(line["probability"])
        self.count += 1
        self.failed += bool(line.get("error"))
        self._all.add(weight)
        for latency, key in ((self._edge, "edge_s"), (self._cloud, "cloud_s")):
            if (seconds := _number(line.get(key))) is not None:
                latency.add(seconds)
        if not accepted:
            return
        self._kept.add(weight)
        self._differ += weight * (not line["agrees"])
        usd, size = _number(line.get("usd")), _number(line.get("bytes"))
        if usd is not None and size is not None:
            self._priced += weight
            self._usd += weight * usd
            self._bytes += weight * size

    def stats(self, name: str) -> ShadowStats:
        """The statistics of this edge model."""
        share, low, high = self._all.share(self._kept.sum)
        differ, differ_low, differ_high = self._kept.share(self._differ)
        of_each = PER * share / self._priced if self._priced else 0.0
        return ShadowStats(
            name, self.count, self.failed, share, low, high, differ, differ_low, differ_high,
            PER * share, of_each * self._usd, of_each * self._bytes / MB,
            *(latency.quantile(q) for latency in (self._edge, self._cloud) for q in (0.5, 0.99)),
        )  # fmt: skip


class _Weights:
    """Weights of a sample."""

    def __init__(self) -> None:
        self.sum = self._squares = 0.0

    def add(self, weight: float) -> None:
        self.sum += weight
        self._squares += weight * weight

    def share(self, part: float) -> tuple[float, float, float]:
        """The share that weighs `part`, with its 95 % interval (Clopper and Pearson, 1934, at Kish's effective sample size)."""
        if not self.sum:
            return 0.0, 0.0, 1.0
        share = min(1.0, part / self.sum)
        n = max(1, min(LARGEST, int(self.sum * self.sum / self._squares + 1e-9)))
        fewer, more = int(share * n + 1e-9), ceil(share * n - 1e-9)
        return share, 1 - upper(n - fewer, n, RISK / 2), upper(more, n, RISK / 2)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else None


# Background jobs of a router's audits: a few at a time, in order, in threads.

TOGETHER = 2
"""Maximum number of concurrent jobs; any beyond that wait."""
log = logging.getLogger("edgeroute")


class Job(NamedTuple):
    """A job that waits."""

    run: Callable[[], object]
    room: Callable[[], bool]
    """Whether it may begin now; until then it waits, and those after it too."""


class Background(ForkSafe):
    """Jobs that wait for their turn, each for one of the threads that `submit` has.

    Args:
        submit: runs a job in a thread, if one is available.
    """

    _idle = per_process(threading.Condition)  # on a lock that its owner may take again
    _running, _held_up = initially(0), initially(False)
    _looks = initially(0)
    """How often somebody has looked for what may be begun."""
    _queue: deque[Job] = per_process(deque)
    """Jobs that wait; those of a parent stay with it."""

    def __init__(self, submit: Callable[[Callable[[], object]], bool]) -> None:
        self._submit = submit

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Number of jobs that are under way, or wait."""
        return self._running + len(self._queue)

    def put(self, job: Job) -> None:
        """Queues a job; `start` starts it."""
        self._queue.append(job)

    def start(self) -> None:
        """Starts as many of the jobs that wait as may be begun now."""
        with self._idle:
            self._looks += 1
        while self._queue:
            with self._idle:
                if not self._queue or self._running >= TOGETHER:
                    return
                one, looks = self._queue.popleft(), self._looks
                self._running += 1
            started = False
            try:
                started = one.room() and self._submit(lambda one=one: self._run(one))  # type: ignore[misc]
            finally:
                with self._idle:
                    self._held_up = not started
                    if not started:
                        self._running -= 1
                        self._queue.appendleft(one)
                        self._idle.notify_all()
            if not started and self._looks == looks:  # else somebody with news has looked while this one was not in the queue
                return

    def _run(self, one: Job) -> None:
        try:
            one.run()
        except Exception:
            log.exception("an audit failed; no answer is touched by it")
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()
        self.start()

    def drain(self, timeout_s: float) -> None:
        """Waits for the jobs that can be begun now."""
        until = monotonic() + timeout_s
        with self._idle:
            while (self._running or (self._queue and not self._held_up)) and self._idle.wait(until - monotonic()):
                pass
