"""Records and statistics of shadow runs of edge models beside the cloud's answers; also `Background`, a queue of audits' jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, NamedTuple

from edgeroute.confidence.binomial_tests import share_and_interval
from edgeroute.core.performance_estimates_and_encoding_choice import Latency
from edgeroute.core.plan import Leg
from edgeroute.core.walk import Prediction
from edgeroute.observe.stats_and_status_types import ShadowStats
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeCondition

UNHEARD = "unheard"  # key that marks the lines of shadow runs in the audit log
PER = 1000  # number of requests to which stated savings refer
MB = 1e6


class ShadowRun(NamedTuple):
    """Run of an edge model whose answer no caller got."""

    leg: Leg
    prediction: Prediction | None  # None: the run failed
    accepted: bool  # True if the answer would have been accepted
    took_s: float
    error: str = ""  # class name of the error; empty: the run did not fail


class Tally:
    """Sums over the shadow runs of one edge model, each weighted by the inverse of the probability with which it was drawn."""

    def __init__(self) -> None:
        self.count = self.failed = 0
        self._all, self._kept, self._differ, self._priced = _Weights(), _Weights(), 0.0, 0.0
        self._usd = self._bytes = 0.0
        self._edge, self._cloud = Latency(), Latency()

    def add(self, line: Mapping[str, Any], *, accepted: bool) -> None:
        """Add a run, weighted by the inverse of its `probability`.

        Differences and costs count only for accepted ones; unknown times and costs are left out.

        Args:
            line: of the audit log.
            accepted: True if the edge's answer would have been accepted.
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
        """Return shares accepted and different, with intervals, savings per `PER` requests, and quantiles of the times."""
        share, low, high = self._all.share(self._kept.sum)
        differ, differ_low, differ_high = self._kept.share(self._differ)
        of_each = PER * share / self._priced if self._priced else 0.0
        return ShadowStats(
            name, self.count, self.failed, share, low, high, differ, differ_low, differ_high,
            PER * share, of_each * self._usd, of_each * self._bytes / MB,
            *(latency.quantile(q) for latency in (self._edge, self._cloud) for q in (0.5, 0.99)),
        )  # fmt: skip


class _Weights:
    """Sum and sum of squares of the weights of a sample."""

    def __init__(self) -> None:
        self.sum = self._squares = 0.0

    def add(self, weight: float) -> None:
        """Add a weight."""
        self.sum += weight
        self._squares += weight * weight

    def share(self, part: float) -> tuple[float, float, float]:
        """Return the share of weight `part`, at most 1, with its 95 % interval; (0, 0, 1) for an empty sample.

        By Clopper and Pearson (1934), at Kish's effective sample size.
        """
        if not self.sum:
            return 0.0, 0.0, 1.0
        share = min(1.0, part / self.sum)
        n = max(1, int(self.sum * self.sum / self._squares + 1e-9))
        _, low, high = share_and_interval(share * n, n)
        return share, low, high


def _number(value: Any) -> float | None:
    """Return a non-negative finite number; None for other values."""
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else None


# Background jobs of a router's audits: a few at a time, in order, in threads.

TOGETHER = 2  # maximum number of concurrent jobs; any beyond that wait


class Job(NamedTuple):
    """Job that waits for a thread."""

    run: Callable[[], object]
    room: Callable[[], bool]  # returns True if the job may begin now; until then it and those after it wait


class Background(ForkSafe):
    """Queue of background jobs, which threads of `submit` run in order, a few at a time.

    Args:
        submit: runs a job in a thread, if one is available.

    Attributes:
        waiting: jobs that wait; a forked child does not inherit them.
    """

    _idle = per_process(SafeCondition)  # on a lock that its owner may take again
    _running, _held_up = initially(0), initially(False)
    _looks = initially(0)  # number of calls of `start`
    waiting: deque[Job] = per_process(deque)

    def __init__(self, submit: Callable[[Callable[[], object]], bool]) -> None:
        self._submit = submit

    @property
    def busy(self) -> int:
        """Number of jobs that run or wait."""
        return self._running + len(self.waiting)

    def put(self, job: Job) -> None:
        """Queue a job; `start` starts it."""
        self.waiting.append(job)

    def start(self) -> None:
        """Start waiting jobs in threads, in order, until `TOGETHER` run.

        Stops at the first job that has no room, or finds no thread; it stays first in the queue. Holds no lock while it asks.
        """
        with self._idle:
            self._looks += 1
        while self.waiting:
            with self._idle:
                if not self.waiting or self._running >= TOGETHER:
                    return
                job, looks = self.waiting.popleft(), self._looks
                self._running += 1
            started = False
            try:
                started = job.room() and self._submit(lambda job=job: self._run(job))  # type: ignore[misc]
            finally:
                with self._idle:
                    self._held_up = not started
                    if not started:
                        self._running -= 1
                        self.waiting.appendleft(job)
                        self._idle.notify_all()
            if not started and self._looks == looks:  # else somebody with news has looked while this one was not in the queue
                return

    def _run(self, job: Job) -> None:
        """Run a job, in a thread of `submit`, and log what it raises; then wake those that drain, and start waiting jobs."""
        try:
            job.run()
        except Exception:
            log.exception("an audit failed; no answer is touched by it")
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()
        self.start()

    def drain(self, timeout_s: float) -> None:
        """Block until no job runs and none that waits can begin now, or for `timeout_s`. Starts nothing itself."""
        until = monotonic() + timeout_s
        with self._idle:
            while (self._running or (self.waiting and not self._held_up)) and self._idle.wait(until - monotonic()):
                pass
