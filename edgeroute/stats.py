"""Counts what happened, per leg and in all."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

from edgeroute.core.flow import Mark, Outcome
from edgeroute.core.latency import Latency
from edgeroute.core.plan import Leg, Plan
from edgeroute.fork import renew_after_fork

TOGETHER = 64
"""So many requests are added up at a time, and any that was not simply accepted at once."""


class LegStats(NamedTuple):
    """One target, so far. Latencies in seconds, None before the first; bytes of bodies, retries included."""

    name: str
    side: str
    started: int
    answered: int
    accepted: int
    failed: int
    cancelled: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    bytes_sent: int
    bytes_received: int


class Stats(NamedTuple):
    """The router, so far."""

    requests: int
    deferred: int
    """Requests for which the cloud was asked."""
    degraded: int
    unanswered: int
    deferral_rate: float
    """deferred / requests; 0 before the first."""
    bytes_sent: int
    bytes_received: int
    legs: tuple[LegStats, ...]


class _Leg:
    __slots__ = ("accepted", "answered", "cancelled", "failed", "latency", "since", "started")

    def __init__(self) -> None:
        self.started = self.answered = self.accepted = self.failed = self.cancelled = 0
        self.since = 0.0
        self.latency = Latency()


class Counts:
    """The counters behind `Stats`, shared between threads."""

    def __init__(self) -> None:
        self.requests = self.deferred = self.degraded = self.unanswered = 0
        self._legs: defaultdict[str, _Leg] = defaultdict(_Leg)
        self._fresh: deque[tuple[tuple[Leg, ...], int | None, bool, Sequence[Mark], bool]] = deque()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A lock of its own for the child."""
        self._lock = threading.Lock()

    def record(self, plan: Plan, outcome: Outcome, batch: bool = False) -> bool:
        """Notes one request's end; adding up comes later, many at a time. -> whether it has just come.

        A batch's latencies are left out: they say nothing about one input.
        """
        leg, _, accepted, log, _, _ = outcome
        fresh = self._fresh
        fresh.append((plan.legs, leg, accepted, log, batch))
        if len(fresh) < TOGETHER and accepted:
            return False
        with self._lock:
            self._add_up()
        return True

    def _add_up(self) -> None:
        known = self._legs
        while self._fresh:
            legs, answered_by, accepted, log, batch = self._fresh.popleft()
            self.requests += 1
            deferred = False
            for what, i, at, _ in log:
                leg = known[legs[i].name]
                if what == "start":
                    leg.started += 1
                    leg.since = at
                    deferred = deferred or legs[i].side == "cloud"
                elif what == "failed":
                    leg.failed += 1
                elif what in {"cancelled", "timeout"}:
                    leg.cancelled += 1
                else:
                    leg.answered += 1
                    leg.accepted += what == "accepted"
                    if not batch:
                        leg.latency.add(at - leg.since)
            self.deferred += deferred
            self.unanswered += answered_by is None
            self.degraded += answered_by is not None and not accepted

    def quantile(self, name: str, q: float) -> float | None:
        """A quantile of one leg's latencies, seconds."""
        with self._lock:
            self._add_up()
            leg = self._legs.get(name)
            return None if leg is None else leg.latency.quantile(q)

    def snapshot(self, traffic: dict[str, tuple[str, int, int]]) -> Stats:
        """Everything now. traffic: leg name -> side, bytes sent and received."""
        with self._lock:
            self._add_up()
            legs = []
            for name, (side, sent, received) in traffic.items():
                leg = self._legs.get(name, _Leg())
                p50, p90, p99 = (leg.latency.quantile(q) for q in (0.5, 0.9, 0.99))
                counts = leg.started, leg.answered, leg.accepted, leg.failed, leg.cancelled
                legs.append(LegStats(name, side, *counts, p50, p90, p99, sent, received))
            return Stats(
                self.requests, self.deferred, self.degraded, self.unanswered, self.deferred / max(1, self.requests),
                sum(leg.bytes_sent for leg in legs), sum(leg.bytes_received for leg in legs), tuple(legs),
            )  # fmt: skip
