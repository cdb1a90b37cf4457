"""Counters and statistics, per leg and in total."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from edgeroute.core.estimates import Latency, slack
from edgeroute.core.plan import Leg, Plan, Unsure, reserve_s
from edgeroute.core.policy import INF
from edgeroute.core.rules import Reading
from edgeroute.core.spending import Cost, Limits
from edgeroute.core.walk import Left, Mark, Outcome, judged
from edgeroute.core.words import UNFIT
from edgeroute.system.process import renew_after_fork

__all__ = ["ArmStats", "CloudArmStats", "Counts", "Part", "Stats"]


# Statistics of arms: of an A/B comparison of edge models, and of the cloud.


class Part(NamedTuple):
    """A number with its 95 % interval."""

    share: float
    low: float
    high: float


class ArmStats(NamedTuple):
    """Statistics of one arm of an A/B comparison."""

    arm: str
    """a or b."""
    model: str
    """Its edge model's name."""
    requests: int
    """Requests of the arm that have ended."""
    failed: Part
    """Share of them on which its edge model failed."""
    deferred: Part
    """Share of them for which the cloud was called."""
    mean_s: Part
    """Mean time of a request, seconds."""
    p50_s: float | None
    """Median time of a request, seconds; None: not known. Likewise the next."""
    p99_s: float | None
    compared: int
    """Answers of the edge model that audits compared with the cloud's."""
    differs: Part
    """Share of these that differ."""
    loss: Part
    """Share of all requests that were answered by the edge, and otherwise than by the cloud; by audits."""
    stopped: str
    """Why a guardrail stopped the arm; empty: it did not."""


class CloudArmStats(NamedTuple):
    """Statistics of one arm of the cloud."""

    arm: str
    """The endpoint's name."""
    share: float
    """Of the requests, as it is in the settings; 0..1."""
    calls: int
    """Requests of the arm for which it was asked."""
    failed: Part
    """Share of them that it did not answer; those that were cancelled as nobody waited any more are left out of both."""
    compared: int
    """Its answers to inputs that the edge had answered, too."""
    differs: Part
    """Share of these that differ from the edge's."""
    shadowed: int
    """Answers in shadow that were compared with those of the first endpoint, to the same inputs."""
    shadow_differs: Part
    """Share of these that differ."""
    shadow_failed: int
    """Calls in shadow that it did not answer; those that a limit held back, or whose input it refused, are left out."""
    usd: Part
    """Mean cost of a request, US dollars."""
    mean_s: Part
    """Mean time of an answer, seconds."""
    p50_s: float | None
    """Median time of an answer, seconds; None: not known. Likewise the next."""
    p99_s: float | None
    stopped: str
    """Why a guardrail stopped the arm; empty: it did not."""


RECENT = 128
"""Deferred answers of a leg of which it is kept how far they were below their thresholds."""
TOGETHER = 64
"""Batch size of counting; an answer that was not simply accepted triggers it at once."""

ALONE = 2
"""Number of marks of a request with a single leg, whose answer was accepted."""


class LegStats(NamedTuple):
    """Statistics of one target. Latencies in seconds, None before the first; bytes of bodies, retries included."""

    name: str
    """As in answers and traces."""
    side: str
    """edge or cloud."""
    started: int
    """Runs or calls that began."""
    answered: int
    """Those with an answer, accepted or not."""
    accepted: int
    """Those whose answer was accepted."""
    failed: int
    """Those that failed; edges that cannot take an input (`Unfit`) are not counted."""
    cancelled: int
    """Those that were stopped, or had not answered at the deadline."""
    p50_s: float | None
    """Median time of an answer to a single input, where recent ones count more. Likewise the next two."""
    p90_s: float | None
    p99_s: float | None
    bytes_sent: int
    bytes_received: int
    breaker: str
    """Breaker state: closed, open or half-open; empty for an edge."""
    held: int
    """Calls rejected for a local reason: breaker, limits, consent."""
    call_s: float | None = None
    """Of an endpoint: time of a call but for its bytes, as real calls have it, with the endpoint's work."""
    bytes_per_s: float | None = None
    """Bandwidth to it, as real calls have it; None: an edge, too few calls, or sizes that do not explain what they take."""


class AuditStats(NamedTuple):
    """Audit statistics of one edge model, since its certificate was first used with this `state`."""

    target: str
    """The edge model."""
    audited: int
    """Accepted answers compared with the cloud's."""
    disagreed: int
    """Those that differ."""
    limit: float | None
    """Share that the certificate allows to differ; with labels the loss, or error rate, of accepted answers. None: not stated."""
    evidence: float
    """Evidence against that; 10,000 is an alarm, which takes as many counted audits on average, or more, without a change."""
    alarm: str
    """The alarm's text; empty: none."""
    labelled: int = 0
    """Those for which the right value was reported."""


class ShadowStats(NamedTuple):
    """What following an edge model that runs in shadow would change. Intervals are at 95 %."""

    target: str
    """The edge model."""
    compared: int
    """Number of requests on which it ran beside the cloud: a sample of those that would reach it."""
    failed: int
    """Those on which its run failed."""
    answers: float
    """Share of them, 0..1, that it would answer."""
    answers_low: float
    answers_high: float
    differs: float
    """Share of these answers that differ from the cloud's."""
    differs_low: float
    differs_high: float
    saved_calls: float
    """Of 1,000 requests, those for which the cloud would not be called."""
    saved_usd: float
    """What these cost, by the endpoint's prices."""
    saved_mb: float
    """Their bodies in both directions, millions of bytes."""
    edge_p50_s: float | None
    edge_p99_s: float | None
    cloud_p50_s: float | None
    """Of the same requests; None: not known."""
    cloud_p99_s: float | None


class Stats(NamedTuple):
    """Statistics of the router."""

    requests: int
    """Those that have ended, without those answered by the cache; each row of a batch is one."""
    deferred: int
    """Requests for which the cloud was called."""
    degraded: int
    """Answers that are the best available, not what the policy requires."""
    unanswered: int
    """Requests that ended in an error."""
    deferral_rate: float
    """deferred / requests; 0 before the first."""
    cached: int
    """Answers served from the cache."""
    queued: int
    """Requests stored in the outbox."""
    late: int
    """Cloud replies that arrived after their request's deadline."""
    bytes_sent: int
    """Of the bodies of all endpoints, retries included; likewise received."""
    bytes_received: int
    usd_today: float
    """Cost of calls over the last 24 hours, by the endpoints' prices."""
    legs: tuple[LegStats, ...]
    """Per edge model and endpoint."""
    audits: tuple[AuditStats, ...]
    """Per edge model with a threshold, if there is an `Audit`."""
    shadows: tuple[ShadowStats, ...] = ()
    """Per edge model that has run in shadow."""
    arms: tuple[ArmStats, ...] = ()
    """A and B, if there is an `AB`."""
    cloud_arms: tuple[CloudArmStats, ...] = ()
    """Of the cloud, if it is a `CloudArms`."""
    joules: Mapping[str, float] = {}
    """Target -> energy of a call, as far as known: of an edge fitted from the device's power, of a cloud by its prices."""
    spared: int = 0
    """Answers of the edge that were below its own threshold, and were accepted since the cloud was loaded."""
    break_even: float | None = None
    """The share of deferred requests below which the edge first takes less energy than the cloud alone; None: not known."""


class Seen(NamedTuple):
    """State of a target that the counters lack."""

    name: str
    side: str
    sent: int
    received: int
    breaker: str
    held: int
    call_s: float | None = None
    bytes_per_s: float | None = None


class _Leg:
    __slots__ = (
        "accepted",
        "answered",
        "below",
        "busy_s",
        "cancelled",
        "deficits",
        "failed",
        "judged",
        "latency",
        "runs",
        "since",
        "started",
    )

    def __init__(self) -> None:
        self.started = self.answered = self.accepted = self.failed = self.cancelled = 0
        self.judged = self.below = self.runs = 0
        self.since = self.busy_s = 0.0
        self.latency = Latency()
        self.deficits: deque[float] = deque(maxlen=RECENT)

    def short(self, leg: Leg, confidence: float | None, limit: float | None, *, accepted: bool) -> bool:
        """Notes how far an answer was below its own threshold; returns whether it was accepted all the same."""
        if limit is None or confidence is None:
            return False
        deficit = limit + leg.lowered - confidence
        if not 0 < deficit < INF:
            return False
        self.deficits.append(deficit)
        return accepted

    def took(self, seconds: float) -> None:
        """Adds the time of an answer."""
        self.latency.add(seconds)
        self.runs += 1
        self.busy_s += seconds


class Counts:
    """The thread-safe counters behind `Stats`."""

    def __init__(self) -> None:
        self.requests = self.deferred = self.degraded = self.unanswered = 0
        self.cached = self.queued = self.late = self.spared = 0
        self._added = 0
        """Requests counted since `record` last returned True."""
        self._legs: defaultdict[str, _Leg] = defaultdict(_Leg)
        self._fresh: deque[tuple[tuple[Leg, ...], int | None, bool, Sequence[Mark], bool]] = deque()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.RLock()  # reentrant: a signal handler may call in between

    def record(self, plan: Plan, outcome: Outcome, batch: bool = False) -> bool:
        """Records a finished request; counting is batched. Returns whether a batch has just been counted.

        Latencies of a batch are left out: they are not those of one input.
        """
        fresh, log = self._fresh, outcome.log
        if len(log) > ALONE:  # an error would keep its traceback's frames until it is counted, and with them the caller's objects
            log = tuple(mark._replace(detail=getattr(mark.detail, "code", "")) if mark.kind == "failed" else mark for mark in log)
        left = not outcome.accepted and type(outcome) is Left  # neither degraded nor without an answer
        fresh.append((plan.legs, None if left else outcome.leg, left or outcome.accepted, log, batch))
        if len(fresh) + self._added < TOGETHER and outcome.accepted:
            return False
        with self._lock:
            self._add_up()
            self._added = 0
        return True

    def _add_up(self) -> None:
        known = self._legs
        self._added += len(self._fresh)
        while True:
            try:
                legs, answered_by, accepted, log, batch = self._fresh.popleft()
            except IndexError:  # the log is empty, or a signal handler has counted the rest
                return
            self.requests += 1
            if accepted and len(log) == ALONE and answered_by is not None and legs[answered_by].permit is None:  # most
                leg, (started, ended) = known[legs[answered_by].name], log
                leg.started += 1
                leg.answered += 1
                leg.accepted += 1
                leg.judged += judged(legs[answered_by])
                if (only := legs[answered_by]).lowered:
                    self.spared += leg.short(only, ended.detail, only.threshold, accepted=True)
                if not batch:
                    leg.took(ended.at - started.at)
                continue
            deferred, early, limits = False, set[int](), dict[int, float]()
            for kind, i, at, detail in log:
                leg = known[legs[i].name]
                if kind == "start":
                    leg.started += 1
                    leg.since = at
                    deferred = deferred or legs[i].permit is not None
                elif kind == "failed":
                    leg.failed += (detail if isinstance(detail, str) else getattr(detail, "code", "")) not in UNFIT
                elif kind in {"cancelled", "timeout"}:
                    leg.cancelled += 1
                elif kind == "decided":
                    early.add(i)
                elif kind == "limit":
                    limits[i] = detail
                else:
                    whole = i not in early or kind != "below"  # else it was judged by its beginning, and went on or was stopped
                    counted = i not in early or kind != "kept"  # else at the decision
                    leg.answered += counted
                    leg.accepted += kind == "accepted"
                    if counted and judged(legs[i]):
                        leg.judged += 1
                        leg.below += kind == "below"
                        limit = limits.get(i, legs[i].threshold)
                        self.spared += leg.short(legs[i], detail, limit, accepted=kind == "accepted")
                    if whole and not batch:
                        leg.took(at - leg.since)
            self.deferred += deferred
            self.unanswered += answered_by is None and not accepted
            self.degraded += answered_by is not None and not accepted

    def unsure(self, edges: Iterable[Unsure]) -> None:
        """Counts edges that were below their thresholds before they ran."""
        with self._lock:
            for planned, confidence in edges:
                leg = self._legs[planned.name]
                leg.judged += 1
                leg.below += 1
                leg.short(planned, confidence, planned.threshold, accepted=False)

    def note(self, what: str) -> None:
        """Counts one of `cached`, `queued` and `late`."""
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    def quantile(self, name: str, q: float) -> float | None:
        """Latency quantile of one leg, seconds."""
        with self._lock:
            self._add_up()
            leg = self._legs.get(name)
            return None if leg is None else leg.latency.quantile(q)

    def reserves(self, names: Iterable[str]) -> dict[str, float]:
        """Time to leave each of these edges before a deadline, seconds; inf: unknown."""
        with self._lock:
            self._add_up()
            return {name: reserve_s(leg.latency) for name in names if (leg := self._legs.get(name)) is not None}

    def took_s(self, names: Iterable[str], q: float) -> list[tuple[str, int, float]]:
        """Of each of these legs that has run: its name, the number of its latencies, and a quantile of them, seconds."""
        with self._lock:
            self._add_up()
            known = [(name, self._legs[name].latency) for name in names if name in self._legs]
            return [(name, latency.count, s) for name, latency in known if (s := latency.quantile(q)) is not None]

    def measured(self, name: str, seconds: float) -> None:
        """Counts the latency of a leg that was told to stop and ran to its end all the same."""
        with self._lock:
            self._legs[name].took(seconds)

    def busy(self, names: Iterable[str]) -> dict[str, tuple[int, float]]:
        """Of each of these legs that has run: its answers of single inputs, and the seconds that they took together."""
        with self._lock:
            self._add_up()
            return {name: (leg.runs, leg.busy_s) for name in names if (leg := self._legs.get(name)) is not None}

    def slacks(self, names: Iterable[str], share: float) -> dict[str, float]:
        """How far each of these edges' thresholds are to be lowered, that this share of its deferrals is kept."""
        with self._lock:
            self._add_up()
            return {name: slack(leg.deficits, share) for name in names if (leg := self._legs.get(name)) is not None}

    def latencies(self) -> dict[str, Latency]:
        """A copy of each leg's latency sketch."""
        with self._lock:
            self._add_up()
            return {name: leg.latency.copy() for name, leg in self._legs.items()}

    def remember(self, name: str, latency: Latency) -> None:
        """Restores a leg's latencies from an earlier run."""
        with self._lock:
            self._legs[name].latency = latency

    @property
    def deferral_rate(self) -> float:
        """Share of requests so far for which the cloud was called."""
        return self.deferred / max(1, self.requests)

    def judged(self, name: str) -> tuple[int, int]:
        """(answers of an edge compared with its threshold, those of them below it)."""
        with self._lock:
            self._add_up()
            leg = self._legs.get(name)
            return (0, 0) if leg is None else (leg.judged, leg.below)

    def snapshot(
        self,
        targets: Iterable[Seen],
        usd_today: float,
        audits: tuple[AuditStats, ...] = (),
        shadows: tuple[ShadowStats, ...] = (),
    ) -> Stats:
        """The current statistics."""
        with self._lock:
            self._add_up()
            legs = []
            for name, side, sent, received, breaker, held, *link in targets:
                leg = self._legs.get(name, _Leg())
                p50, p90, p99 = (leg.latency.quantile(q) for q in (0.5, 0.9, 0.99))
                counts = leg.started, leg.answered, leg.accepted, leg.failed, leg.cancelled
                legs.append(LegStats(name, side, *counts, p50, p90, p99, sent, received, breaker, held, *link))
            return Stats(
                self.requests, self.deferred, self.degraded, self.unanswered, self.deferral_rate,
                self.cached, self.queued, self.late,
                sum(leg.bytes_sent for leg in legs), sum(leg.bytes_received for leg in legs), usd_today,
                tuple(legs), audits, shadows, spared=self.spared,
            )  # fmt: skip


# Status: the state of a router now, as metrics and dashboards show it.


class Status(NamedTuple):
    """State of a router. It has no inputs, no answers and no secrets in it."""

    stats: Stats
    """As `Router.stats` returns them."""
    limits: Limits
    """The most that may be spent, each over its own window; inf: no limit."""
    spent: Cost
    """What is spent, over the same windows."""
    outbox: Mapping[str, int] | None = None
    """State of its requests -> how many of them are on disk; None: there is no outbox, or its file cannot be read."""
    reading: Reading | None = None
    """The last reading of the device's sensors; None: they are not read, or have not been."""
    reading_age_s: float = 0.0
    """Time since that reading, seconds; 0 without one."""
    rules: tuple[str, ...] = ()
    """The rules on the device's state that are in force."""
    closed: bool = False
