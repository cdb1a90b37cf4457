"""Counters of a router's requests and targets (`Counts`), thread-safe: latencies, outcomes and deferrals."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.core.error_codes_and_texts import UNFIT, Failure
from edgeroute.core.performance_estimates_and_encoding_choice import Latency, slack
from edgeroute.core.plan import Leg, Plan, Unsure, reserve_s
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.walk import Left, Malformed, Mark, Outcome, judged
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.signal_safe_locks import SafeLock

if TYPE_CHECKING:
    from edgeroute.observe.stats_and_status_types import Stats

RECENT = 128  # number of a target's latest deferred answers whose distance from their threshold is stored
TOGETHER = 64  # requests that are counted together; an answer that was not simply accepted triggers counting at once

T = TypeVar("T")
ALONE = 2  # number of marks in the log of a request whose only leg's answer was accepted


class _Leg:
    """Counters of one target."""

    def __init__(self) -> None:
        self.started = self.answered = self.accepted = self.failed = self.cancelled = 0
        self.judged = self.below = self.unsure = self.runs = 0
        self.since = self.busy_s = 0.0
        self.latency = Latency()
        self.deficits: deque[float] = deque(maxlen=RECENT)

    def note_deficit(self, leg: Leg, confidence: float | None, limit: float | None, *, accepted: bool) -> bool:
        """Store how far an answer was below its own threshold. Return True if the answer was below and accepted all the same.

        Nothing is stored without threshold or confidence, or for an answer that was not below.

        Args:
            leg: the leg, whose threshold may have been lowered.
            confidence: of the answer; None: it has none.
            limit: the threshold that counted, lowered; None: none.
            accepted: whether the answer was accepted.
        """
        if limit is None or confidence is None:
            return False
        deficit = limit + leg.lowered - confidence
        if not 0 < deficit < INF:
            return False
        self.deficits.append(deficit)
        return accepted

    def add_time(self, seconds: float) -> None:
        """Add the time of an answer, seconds, to the latencies and the busy time."""
        self.latency.add(seconds)
        self.runs += 1
        self.busy_s += seconds


class Counts(ForkSafe):
    """Thread-safe counters of a router's requests and targets: outcomes, latencies, deferrals; `snapshot` makes `Stats`."""

    _lock = per_process(SafeLock)  # reentrant: a signal handler may call in between

    def __init__(self) -> None:
        self.requests = self.deferred = self.degraded = self.unanswered = 0
        self.cached = self.queued = self.late = self.spared = 0
        self._added = 0  # requests counted since `record` last returned True
        self._legs: defaultdict[str, _Leg] = defaultdict(_Leg)
        # Outcomes that are not counted yet: legs, answering leg, accepted, log, row of a batch.
        self._fresh: deque[tuple[tuple[Leg, ...], int | None, bool, Sequence[Mark], bool]] = deque()

    def record(self, plan: Plan, outcome: Outcome, batch: bool = False) -> bool:
        """Store the outcome of a request, to be counted later with others. Return True if the stored ones were counted just now.

        They are counted once there are `TOGETHER`, and at once after an answer that was not accepted. Takes a lock only then. Of
        failures only the code is stored. A caller that left counts as accepted, answered by none.

        Args:
            plan: the request's plan.
            outcome: how the request ended.
            batch: True for a row of a batch, whose latency is left out: it is not that of one input.
        """
        fresh = self._fresh
        answered_by, _, accepted, log, _, _, _ = outcome  # quicker than by name
        if len(log) > ALONE:  # an error would keep its traceback's frames until it is counted, and with them the caller's objects
            log = tuple(mark._replace(detail=Failure.of(mark.detail).code) if mark.kind == "failed" else mark for mark in log)
        left = not accepted and type(outcome) is Left  # neither degraded nor without an answer
        fresh.append((plan.legs, None if left else answered_by, left or accepted, log, batch))
        if accepted and len(fresh) + self._added < TOGETHER:
            return False
        with self._lock:
            self._add_up()
            self._added = 0
        return True

    def _add_up(self) -> None:
        """Count the stored outcomes into the totals and each target's counters, and drop them. The caller holds the lock.

        Inputs that a target cannot take are no failures; rows of a batch add no latency.
        """
        known, last, edge, is_judged = self._legs, None, _Leg(), False
        self._added += len(self._fresh)
        while True:
            try:
                legs, answered_by, accepted, log, batch = self._fresh.popleft()
            except IndexError:  # the log is empty, or a signal handler has counted the rest
                return
            self.requests += 1
            if accepted and len(log) == ALONE and answered_by is not None and legs[answered_by].permit is None:  # most
                if (only := legs[answered_by]) is not last:
                    last, edge, is_judged = only, known[only.name], judged(only)
                started, ended = log
                edge.started += 1
                edge.answered += 1
                edge.accepted += 1
                edge.judged += is_judged
                if only.lowered:
                    self.spared += edge.note_deficit(only, ended.detail, only.threshold, accepted=True)
                if not batch:
                    edge.add_time(ended.at - started.at)
                continue
            deferred = self._add_log(legs, log, batch)  # in which a signal handler may count others
            self.deferred += deferred
            self.unanswered += answered_by is None and not accepted
            self.degraded += answered_by is not None and not accepted

    def _add_log(self, legs: Sequence[Leg], log: Sequence[Mark], batch: bool) -> bool:
        """Count the events of one request into its targets' counters; return True if the cloud was asked."""
        deferred, early, limits = False, set[int](), dict[int, float]()
        for kind, i, at_s, detail in log:
            leg = self._legs[legs[i].name]
            if kind == "start":
                leg.started += 1
                leg.since = at_s
                deferred = deferred or legs[i].permit is not None
            elif kind == "failed":
                leg.failed += (detail if isinstance(detail, str) else Failure.of(detail).code) not in UNFIT
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
                    leg.unsure += detail is None or (detail != detail and type(detail) is not Malformed)  # noqa: PLR0124 - NaN
                    limit = limits.get(i, legs[i].threshold)
                    self.spared += leg.note_deficit(legs[i], detail, limit, accepted=kind == "accepted")
                if whole and not batch:
                    leg.add_time(at_s - leg.since)
        return deferred

    def count_unsure(self, edges: Iterable[Unsure]) -> None:
        """Count edges that were skipped because their confidence, known before the run, was below their thresholds.

        They count as judged, below the threshold, and their distance to it is stored.
        """
        with self._lock:
            for planned, confidence in edges:
                leg = self._legs[planned.name]
                leg.judged += 1
                leg.below += 1
                leg.note_deficit(planned, confidence, planned.threshold, accepted=False)

    def note(self, what: str) -> None:
        """Add one to the counter of this name: `cached`, `queued` or `late`."""
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    def _figures(self, names: Iterable[str], figure: Callable[[_Leg], T]) -> dict[str, T]:
        """Count the stored outcomes, and return target -> what `figure` makes of its counters; unused targets are missing."""
        with self._lock:
            self._add_up()
            return {name: figure(leg) for name in names if (leg := self._legs.get(name)) is not None}

    def quantile(self, name: str, q: float) -> float | None:
        """Return a latency quantile of one target, seconds, after counting the stored outcomes.

        None: the target has not answered.
        """
        return self._figures([name], lambda leg: leg.latency.quantile(q)).get(name)

    def reserves(self, names: Iterable[str]) -> dict[str, float]:
        """Return edge -> time to reserve for its run before a deadline, seconds; inf: too few runs. Unused edges are missing."""
        return self._figures(names, lambda leg: reserve_s(leg.latency))

    def took_s(self, names: Iterable[str], q: float) -> list[tuple[str, int, float]]:
        """Return (name, number of latencies, their quantile `q` in seconds) of each of these targets that has answered."""
        known = self._figures(names, lambda leg: (leg.latency.count, leg.latency.quantile(q)))
        return [(name, count, s) for name, (count, s) in known.items() if s is not None]

    def add_latency(self, name: str, seconds: float) -> None:
        """Add the latency of a run that was cancelled and went on to its end."""
        with self._lock:
            self._legs[name].add_time(seconds)

    def busy(self, names: Iterable[str]) -> dict[str, tuple[int, float]]:
        """Return target -> (answers to single inputs, seconds that these took together); unused targets are missing.

        Counts the stored outcomes first.
        """
        return self._figures(names, lambda leg: (leg.runs, leg.busy_s))

    def slacks(self, names: Iterable[str], share: float) -> dict[str, float]:
        """Return edge -> how far its thresholds have to be lowered so that this share of its latest deferrals is accepted.

        Counts the stored outcomes first. Unused edges are missing.
        """
        return self._figures(names, lambda leg: slack(leg.deficits, share))

    def latencies(self) -> dict[str, Latency]:
        """Return target -> a copy of its latency sketch."""
        with self._lock:
            self._add_up()
            return {name: leg.latency.copy() for name, leg in self._legs.items()}

    def restore_latency(self, name: str, latency: Latency) -> None:
        """Replace a target's latency sketch by one of an earlier process."""
        with self._lock:
            self._legs[name].latency = latency

    @property
    def deferral_rate(self) -> float:
        """Share of requests so far for which the cloud was called."""
        return self.deferred / max(1, self.requests)

    def judged(self, name: str) -> tuple[int, int]:
        """Return (answers of an edge that were compared with its threshold, answers below the threshold)."""
        return self._figures([name], lambda leg: (leg.judged, leg.below)).get(name, (0, 0))

    def unsure(self, name: str) -> int:
        """Return the number of an edge's answers if all of them lacked a confidence; 0: one had it, or there are none."""
        return self._figures([name], lambda leg: leg.unsure if leg.unsure == leg.judged else 0).get(name, 0)

    def snapshot(self, targets: Iterable[tuple[Any, ...]], usd_today: float) -> Stats:
        """Return the current statistics, without those of audits, trials and parts; counts the stored outcomes first.

        Targets without a request have zeros.

        Args:
            targets: name, side, bytes sent and received, breaker's state, held requests and, of a cloud, the link's seconds per
                call and bytes per second, as in `LegStats`: what the backends know and the counters lack.
            usd_today: cost of the last 24 hours, US dollars.
        """
        from edgeroute.observe.stats_and_status_types import LegStats, Stats  # imported if a program asks for statistics

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
                tuple(legs), (), spared=self.spared,
            )  # fmt: skip
