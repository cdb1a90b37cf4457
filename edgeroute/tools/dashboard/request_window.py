"""Running sums over a router's latest requests (by time, leg and reason), and rows for display. Memory is bounded."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core.answer_reasons import CODES, Took, finite
from edgeroute.core.error_codes import HELD, UNFIT, Failure, clean
from edgeroute.core.routing_policy import INF
from edgeroute.record.request_counts import Kind, Tally
from edgeroute.router.policy_snapshot import Snapshot
from edgeroute.tools.replay.trace_reader import at_quantile, checked_number, confidence

# Rows for display, from the records of a trace: the route of each request, and its reason in words.

SIDES = ("edge", "cloud", "cache", "none")
"""Sides that answer a request; `none`: no answer."""
ANSWERED = frozenset({"accepted", "below", "kept"})
TEXT = 300
"""Most characters of a displayed text."""
NAME = 80
"""Most characters of a displayed name."""


class Run(NamedTuple):
    """Outcome of one leg of a request."""

    name: str
    side: str
    what: str
    """accepted, below, kept: it answered; failed; held: it was not called; cancelled, timeout."""
    took_s: float
    confidence: float | None
    code: str
    sent_bytes: float
    received_bytes: float
    usd: float


class Row(NamedTuple):
    """Request for display."""

    at: float
    id: str
    side: str
    """One of `SIDES`."""
    by: str
    """Target that answered; empty: none."""
    accepted: bool
    deferred: bool
    """True if a cloud leg started."""
    latency_s: float
    data_class: str
    note: str
    kind: str
    """Reason without numbers, by which requests are counted."""
    runs: tuple[Run, ...]
    record: Mapping[str, Any]

    @property
    def counted(self) -> Kind:
        """Kind under which metrics count the request, as `Prometheus` does in the router's process."""
        record = self.record
        code = record.get("reason_code")
        code = code if isinstance(code, str) and code in CODES else "other"
        if "events" not in record:
            return Kind("stale" if code == "stale" else "cache", clean(record.get("leg", ""), NAME), code, degraded=False)
        return Kind(self.side, self.by, code, degraded=self.degraded)

    @property
    def degraded(self) -> bool:
        """True if a fallback answered. A stream that its caller closed does not count."""
        return not self.accepted and self.side != "none" and self.record.get("reason_code") != "left"

    @property
    def batch(self) -> str:
        """Id of the batch that the request is a row of; empty: none."""
        return self.id.rpartition(".")[0]

    @property
    def odd(self) -> bool:
        """True if the request deserves a look: not answered as the policy requires, or with a failed leg."""
        return not self.accepted or any(run.what in {"failed", "held", "timeout"} for run in self.runs)

    def shown(self) -> dict[str, Any]:
        """Return the row as plain data for a page, with its reason."""
        edge_confidence = next((run.confidence for run in self.runs if run.confidence is not None), None)
        return {
            "at": self.at, "id": self.id, "side": self.side, "by": self.by, "accepted": self.accepted,
            "latency_s": self.latency_s, "confidence": edge_confidence, "data_class": self.data_class, "reason": reason(self),
        }  # fmt: skip


def row(record: Mapping[str, Any]) -> Row:
    """Convert a record of a trace to a row.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no valid record.
    """
    at, latency_s = float(checked_number(record["at"])), float(checked_number(record["latency_s"]))
    identity, note = clean(record["id"], NAME), clean(record.get("note", ""), TEXT)
    if "events" not in record:  # an answer of the cache, or a queued request
        text = clean(record.get("reason", ""), TEXT)
        stale = record.get("answered_by") == "stale"
        return Row(at, identity, "cache", "cache", not stale, False, latency_s, "", text, "a stale answer of the cache" if stale
                   else "answered by the cache", (), record)  # fmt: skip
    sides = {leg["leg"]: leg["side"] for leg in record["plan"]}
    for leg in record["plan"]:
        confidence(leg["threshold"])  # a trial of another threshold reads it
    started, runs, deferred, parts = dict[str, float](), list[Run](), False, list[str]()
    for event in record["events"]:
        what, name = event["what"], event["leg"]
        if what == "start":
            started[name] = event["at_s"]
            deferred = deferred or sides[name] == "cloud"
        elif what not in {"limit", "decided"}:
            code = event.get("code", "")
            if what == "failed" and Failure(code, again=bool(event.get("again"))).held:
                what = "held"
            label = clean(name, NAME)
            took_s = float(checked_number(event["at_s"])) - float(checked_number(started[name]))
            costs = (float(checked_number(event.get(part, 0)) or 0) for part in ("sent_bytes", "received_bytes", "usd"))
            runs.append(Run(label, sides[name], what, took_s, confidence(event.get("confidence")), code, *costs))
            if what != "cancelled":
                parts.append(f"{label} {_KINDS.get(what, what)}{f' ({code})' if code in HELD or code == 'timeout' else ''}")
    by, accepted = record["answered_by"], bool(record["accepted"])
    side = "none" if by is None else "edge" if sides[by] == "edge" else "cloud"
    if side == "none":
        parts.append("no answer")
    elif not accepted:
        parts.append("left by its caller" if record.get("reason_code") == "left" else "degraded")
    return Row(
        at, identity, side, "" if by is None else clean(by, NAME), accepted, deferred, latency_s,
        clean(record.get("data_class") or "", NAME), note, clean("; ".join(parts), TEXT), tuple(runs), record,
    )  # fmt: skip


_KINDS = {
    "accepted": "answers", "below": "is not sure", "kept": "on standby", "held": "not asked", "failed": "fails",
    "timeout": "is late",
}  # fmt: skip


def reason(of: Row) -> str:
    """Return the reason of a request's route in one line, as an answer's `reason` has it."""
    record = of.record
    if "events" not in record:
        return of.note
    legs, limits, parts = {leg["leg"]: leg for leg in record["plan"]}, dict[str, Any](), list[str]()
    started = dict[str, float]()
    for event in record["events"]:
        what, leg = event["what"], legs[event["leg"]]
        name, confidence = leg["leg"], event.get("confidence")
        if what == "start":
            started[name] = event["at_s"]
        elif what == "limit":
            limits[name] = event["threshold"]
        elif what in ANSWERED:
            limit = limits.get(name, leg["threshold"])
            if limit is None or (leg["side"] == "cloud" and confidence is None):
                parts.append(f"{name} {(event['at_s'] - started[name]) * 1000:.0f} ms")
            else:
                sign = "<" if what == "below" else ">="
                left = "without confidence" if confidence is None else f"{_number(confidence)} {sign}"
                parts.append(f"{name} {left} {_number(limit)} ({leg['label']})")
        elif what == "failed":
            parts.append(f"{name}: {event.get('error', 'failed')}")
        elif what == "timeout":
            parts.append(f"{name} not there by the deadline")
    if record["answered_by"] is None:
        parts.append("no answer")
    elif not of.accepted:
        parts.append(f"so the {record['answered_by']} answer stands")
    if record.get("stays"):
        parts.append(str(record["stays"]))
    return clean("; ".join([*parts, *([of.note] if of.note else [])]), TEXT)


def _number(value: Any) -> str:
    """Format a number with four digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


T = TypeVar("T")
RECENT = 2000
"""Latest requests in the sums of reasons and latencies."""
SHOWN = 60
"""Latest requests in the lists."""
BATCHES = 256
"""Latest batches whose calls are remembered, so that none counts twice."""
LEGS = 32
"""Most legs with their own sums."""
WIDTHS = {"seconds": (1, 120), "minutes": (60, 180)}
"""Series -> seconds of a step, and number of steps."""
COUNTED = (*SIDES, "deferred", "odd")


class _Leg:
    """Sums of one leg since the beginning, and its latest latencies."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.started = self.answers = self.accepted = self.failed = self.held = self.late = self.cancelled = 0
        self.sent_bytes = self.received_bytes = self.usd = 0.0
        self.took = deque[float](maxlen=RECENT)
        self.breaker = "" if side == "edge" else "closed"
        self.breaker_at = 0.0

    def quantiles(self) -> dict[str, float | None]:
        """Return quantiles (p50, p90, p99) of the latest latencies; None without any."""
        took = sorted(self.took)
        return {"p50_s": at_quantile(took, 0.5), "p90_s": at_quantile(took, 0.9), "p99_s": at_quantile(took, 0.99)}


class Series:
    """Counts of requests by time step, for the latest steps.

    Args:
        width_s: length of a step, seconds.
        steps: number of steps in memory.
    """

    def __init__(self, width_s: int, steps: int) -> None:
        self.width_s, self.steps = width_s, steps
        self._counts = OrderedDict[int, Counter[str]]()
        self._took = OrderedDict[int, dict[str, list[float]]]()

    def add(self, request: Row) -> None:
        """Count a request in its step; drop the oldest steps. A request before all steps is ignored."""
        step = int(request.at // self.width_s)
        counts = self._counts.get(step)
        if counts is None:
            if self._counts and step <= max(self._counts) - self.steps:
                return  # older than all steps
            counts = self._counts[step] = Counter()
            self._took[step] = {}
            while len(self._counts) > self.steps:
                oldest = min(self._counts)
                del self._counts[oldest], self._took[oldest]
        counts[request.side] += 1
        counts["deferred"] += request.deferred
        counts["odd"] += request.odd
        took = self._took[step]
        for run in request.runs:
            if run.what in ANSWERED:
                latencies = took.setdefault(run.name, [])
                if len(latencies) < RECENT and len(took) <= LEGS:
                    latencies.append(run.took_s)

    def shown(self, now: float) -> dict[str, Any]:
        """Return the steps up to that time, the oldest first, with each leg's median latency, seconds, None without any.

        Steps after that time are dropped: the clock was set back.
        """
        last = int(now // self.width_s)
        for step in [step for step in self._counts if step > last + 1]:  # the clock was set back
            del self._counts[step], self._took[step]
        steps = range(last - self.steps + 1, last + 1)
        no_counts = Counter[str]()
        legs = sorted({name for took in self._took.values() for name in took})[:LEGS]
        return {
            "width_s": self.width_s,
            "end": (last + 1) * self.width_s,
            **{name: [self._counts.get(step, no_counts)[name] for step in steps] for name in COUNTED},
            "p50_s": {
                name: [at_quantile(sorted(self._took.get(step, {}).get(name, ())), 0.5) for step in steps] for name in legs
            },
        }


def _part(record: Mapping[str, Any], name: str, other: T) -> T:
    """Return a part of a record if it has the type of `other`, else `other`."""
    value = record.get(name)
    return value if isinstance(value, type(other)) else other


class Window:
    """Sums over a router's requests. Not synchronised: threads that share it need a lock."""

    def __init__(self) -> None:
        self.requests = self.deferred = self.degraded = 0
        self.answered = Counter[str]()
        self.tally = Tally()
        """Counts for metrics, the same as in the router's own process."""
        self.latest: Row | None = None
        self.recent, self.odd = deque[Row](maxlen=SHOWN), deque[Row](maxlen=SHOWN)
        self.series = {name: Series(*width) for name, width in WIDTHS.items()}
        self._kinds = deque[tuple[str, str]]()
        self._reasons = Counter[tuple[str, str]]()
        self._deferred, self._took = deque[bool](maxlen=RECENT), deque[float](maxlen=RECENT)
        self._legs: dict[str, _Leg] = {}
        self._batches = OrderedDict[tuple[str, str], None]()

    def add(self, request: Row) -> None:
        """Count a request in all sums; the latest 2,000 are in those of reasons and latencies."""
        self.latest = request
        self.requests += 1
        self.deferred += request.deferred
        self.degraded += request.degraded
        self.answered[request.side] += 1
        self._deferred.append(request.deferred)
        self._took.append(request.latency_s)
        key = request.side, request.kind
        self._kinds.append(key)
        self._reasons[key] += 1
        if len(self._kinds) > RECENT:
            old = self._kinds.popleft()
            self._reasons[old] -= 1
            if not self._reasons[old]:
                del self._reasons[old]
        self.recent.append(request)
        if request.odd:
            self.odd.append(request)
        for series in self.series.values():
            series.add(request)
        batch = request.batch
        took = [
            Took(run.name, "edge" if run.side == "edge" else "cloud", run.took_s) for run in request.runs if run.what in ANSWERED
        ]
        self.tally.count(request.counted, request.latency_s, () if batch else tuple(took))
        for run in request.runs:
            self._count_run(run, request.at, batch)

    def _count_run(self, run: Run, time: float, batch: str) -> None:
        """Count a leg's run; costs that the rows of a batch share count once; legs beyond 32 are not counted."""
        leg = self._legs.get(run.name)
        if leg is None:
            if len(self._legs) >= LEGS:
                return
            leg = self._legs[run.name] = _Leg(run.side)
        leg.started += 1
        if run.what in ANSWERED:
            leg.answers += 1
            leg.accepted += run.what == "accepted"
            leg.took.append(run.took_s)
            self._set_breaker(leg, "closed", time)
        elif run.what == "held":
            leg.held += 1
            if run.code == "breaker":
                self._set_breaker(leg, "open", time)
        else:
            leg.failed += run.what == "failed" and run.code not in UNFIT  # an unfit input is not the leg's fault, as in `stats()`
            leg.late += run.what == "timeout"
            leg.cancelled += run.what == "cancelled"
        if batch:  # the rows of a batch share a call, and each row's record has its costs
            if (batch, run.name) in self._batches:
                return
            self._batches[batch, run.name] = None
            if len(self._batches) > BATCHES:
                self._batches.popitem(last=False)
        if run.what == "held":
            self.tally.limit_hit(run.name, run.code)
        leg.sent_bytes += run.sent_bytes
        leg.received_bytes += run.received_bytes
        leg.usd += run.usd

    @staticmethod
    def _set_breaker(leg: _Leg, state: str, time: float) -> None:
        """Record the state of a cloud leg's circuit breaker and its time, if it changed."""
        if leg.side == "cloud" and leg.breaker != state:
            leg.breaker, leg.breaker_at = state, time

    def shown(self, now: float) -> dict[str, Any]:
        """Return all sums as plain data for a page. now: seconds since 1970."""
        took = sorted(self._took)
        legs = [
            {"name": name, **{part: value for part, value in vars(leg).items() if part != "took"}, **leg.quantiles()}
            for name, leg in self._legs.items()
        ]
        return {
            "requests": self.requests, "deferred": self.deferred, "degraded": self.degraded,
            "answered": {side: self.answered[side] for side in SIDES},
            "window": len(self._deferred),
            "deferral_rate": sum(self._deferred) / len(self._deferred) if self._deferred else None,
            "p50_s": at_quantile(took, 0.5), "p99_s": at_quantile(took, 0.99),
            "legs": legs,
            "reasons": [{"side": side, "text": text, "count": n} for (side, text), n in self._reasons.most_common(12)],
            "recent": [request.shown() for request in reversed(self.recent)],
            "odd": [request.shown() for request in reversed(self.odd)],
            "series": {name: series.shown(now) for name, series in self.series.items()},
            "rules": _part(_part({} if self.latest is None else self.latest.record, "facts", {}), "rules", []),
            "reading": _part({} if self.latest is None else self.latest.record, "reading", {}),
            "latest_at": None if self.latest is None else self.latest.at,
        }  # fmt: skip


# Summary of a policy for people: mode, time limits, data classes, rules and targets.


def policy_summary(snapshot: Snapshot) -> dict[str, Any]:
    """Return the mode, limits, data classes, rules and thresholds of the policy in force, in JSON types."""
    policy, egress = snapshot.policy, snapshot.policy.rules
    return {
        "mode": policy.mode, "offline": policy.offline,
        "deadline_s": None if policy.deadline_s == INF else policy.deadline_s,
        "hedge_after": None if policy.hedge_after == INF else policy.hedge_after,
        "never_leave": sorted(egress.never_leave), "may_leave": sorted(egress.may_leave), "unknown_class": egress.unknown_class,
        "default_class": egress.default_class,
        "rules": [f"{rule}: {rule.then}" for rule in policy.device_rules],
        "targets": [
            {"name": t.name, "side": t.side, "threshold": finite(t.threshold), "label": t.label} for t in snapshot.targets
        ],
    }  # fmt: skip


def certificates_of(snapshot: Snapshot) -> dict[str, BoundCertificate]:
    """Return the certificates of the edges that have one, by name."""
    pairs = zip(snapshot.targets, snapshot.certificates, strict=True)
    return {target.name: certificate for target, certificate in pairs if certificate is not None}
