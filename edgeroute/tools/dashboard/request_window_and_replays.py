"""`Window`, sums over a router's latest requests; `Row` of a request for display; `ThresholdReplays`; all in bounded memory."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np

from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core.device_rules import Rule
from edgeroute.core.endpoint_breaker_and_limits import FAULTS, USUAL
from edgeroute.core.error_codes_and_texts import HELD, UNFIT, clean
from edgeroute.core.plan import Facts, Leg, Plan
from edgeroute.core.policy_egress_and_options import INF, Policy, Rules, Target, Terms
from edgeroute.core.reason_text_and_trace_record import CODES, Took, answer_part, finite
from edgeroute.core.walk import Malformed
from edgeroute.errors import BadInput
from edgeroute.record.event_tally_and_histograms import Kind, Tally
from edgeroute.router.offline_queue import BEING_STORED, WAITING
from edgeroute.router.policy_snapshot import Snapshot
from edgeroute.tools.measure.threshold_evaluation import share
from edgeroute.tools.replay import Numbers, Recording, Setup, collect, replay
from edgeroute.tools.replay.recorded_requests_and_statistics import at_quantile, checked_number, confidence, failure_of
from edgeroute.tools.replay.replay_setup_and_result import Port
from edgeroute.tools.state_colours_and_marks import STATES, StateName, answer_state

# Rows for display, from the records of a trace: the route of each request, and its reason in words.

SIDES = ("edge", "cloud", "cache", "none")  # sides that answer a request; `none`: no answer
ANSWERED = frozenset({"accepted", "below", "kept"})
TEXT = 300  # most characters of a displayed text
NAME = 80  # most characters of a displayed name
# Exceptions of a record that is no valid record of a trace.
WRONG = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


class Run(NamedTuple):
    """Outcome of one leg of a request."""

    name: str
    side: str
    what: str  # accepted, below, kept: it answered; failed; held: it was not called; cancelled, timeout
    took_s: float
    confidence: float | None
    code: str
    fault: bool  # it counts against its target, as for a breaker
    sent_bytes: float
    received_bytes: float
    usd: float


class Row(NamedTuple):
    """Request for display."""

    at: float
    id: str
    side: str  # one of `SIDES`
    by: str  # target that answered; empty: none
    accepted: bool
    deferred: bool  # True if a cloud leg started
    latency_s: float
    data_class: str
    note: str
    kind: str  # reason without numbers, by which requests are counted
    runs: tuple[Run, ...]
    record: Mapping[str, Any]

    @property
    def counted(self) -> Kind:
        """Kind under which metrics count it, as `Prometheus` in the router's process; an unknown reason's code is "other"."""
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
    def state(self) -> StateName | None:
        """State of the answer in the palette, "waiting" while the cloud's answer is still to come; None: no answer."""
        if self.side == "none":
            return None
        degraded = self.degraded and self.side != "cache"  # a stale answer is one of the cache
        final = self.note not in {WAITING, BEING_STORED}
        return answer_state(self.side, str(self.record.get("reason_code")), degraded=degraded, final=final)

    @property
    def batch(self) -> str:
        """Id of the batch that the request is a row of; empty: none."""
        return self.id.rpartition(".")[0]

    @property
    def odd(self) -> bool:
        """True if the request deserves a look: not answered as the policy requires, or with a failed leg."""
        return not self.accepted or any(run.what in {"failed", "held", "timeout"} for run in self.runs)

    def shown(self) -> dict[str, Any]:
        """Return the row as plain data for a page, with its reason, or its `kind` if the record lacks parts of a reason."""
        try:
            text = reason(self)
        except WRONG:  # parts that only a reason needs
            text = self.kind
        return {
            "at": self.at, "id": self.id, "state": self.state, "by": self.by, "odd": self.odd,
            "latency_s": self.latency_s, "data_class": self.data_class, "reason": text,
        }  # fmt: skip


def row_of(record: Mapping[str, Any]) -> Row:
    """Convert a record of a trace to a row, with a run for each outcome of a leg; without events it is an answer of the cache.

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
        elif what == "limit":
            confidence(event["threshold"])
        elif what != "decided":
            code = event.get("code", "")
            if what == "failed" and failure_of(event).held:
                what = "held"
            label = clean(name, NAME)
            took_s = float(checked_number(event["at_s"])) - float(checked_number(started[name]))
            costs = (float(checked_number(event.get(part, 0)) or 0) for part in ("sent_bytes", "received_bytes", "usd"))
            fault = what == "timeout" or (what == "failed" and failure_of(event).verdict() in {"fault", "late"})
            runs.append(Run(label, sides[name], what, took_s, confidence(event.get("confidence")), code, fault, *costs))
            if what != "cancelled":
                parts.append(f"{label} {_KINDS.get(what, what)}{f' ({code})' if code in HELD or code == 'timeout' else ''}")
    by, accepted = record["answered_by"], bool(record["accepted"])
    side = "none" if by is None else "edge" if sides[by] == "edge" else "cloud"
    if side == "none":
        parts.append("no answer")
    elif not accepted:
        fallback = "waiting" if note in {WAITING, BEING_STORED} else "degraded"
        parts.append("left by its caller" if record.get("reason_code") == "left" else fallback)
    elif record.get("reason_code") == "stays":
        parts.append(str(record.get("stays", "")))
    return Row(
        at, identity, side, "" if by is None else clean(by, NAME), accepted, deferred, latency_s,
        clean(record.get("data_class") or "", NAME), note, clean("; ".join(parts), TEXT), tuple(runs), record,
    )  # fmt: skip


_KINDS = {
    "accepted": "answers", "below": "is not sure", "kept": "on standby", "held": "not asked", "failed": "fails",
    "timeout": "is late",
}  # fmt: skip


def reason(of: Row) -> str:
    """Return the reason of a request's route in one line, built from its record's events, as an answer's `reason` has it.

    What no record has is left out: texts that were cut off, edges that were judged by their input, clouds that were not asked.
    """
    record = of.record
    if "events" not in record:
        return of.note
    legs, limits, parts = {leg["leg"]: leg for leg in record["plan"]}, dict[str, Any](), list[str]()
    started, decided, by = dict[str, float](), set[str](), record["answered_by"]
    for event in record["events"]:
        what, name = event["what"], event["leg"]
        if what == "start":
            started[name] = event["at_s"]
        elif what == "limit":
            limits[name] = event["threshold"]
        elif what == "decided":
            decided.add(name)
        elif what in ANSWERED and (what != "kept" or name not in decided):
            last = legs[name] is record["plan"][-1] and what == "accepted"
            parts.append(_answer_part(record, legs[name], event, limits.get(name), event["at_s"] - started[name], last=last))
        elif what == "failed":
            text = str(event.get("error", "failed"))
            kind, _, message = text.partition(": ")
            unfit = event.get("code") in UNFIT or (legs[name]["side"] == "cloud" and event.get("code") == "bad_input")
            failure = f"{name} does not take this input" if unfit else f"{name} failed"
            parts.append(message if message and failure_of(event).held else f"{failure}: {message or kind}")
        elif what == "timeout":
            parts.append(f"{name} not there by the deadline of {float(record['deadline_s'] or INF) * 1000:g} ms")
    if by is None:
        parts.append("no answer")
    elif record.get("reason_code") == "left":
        parts.append(f"left by its caller after {of.latency_s * 1000:.0f} ms")
    elif not of.accepted and record["offline"] != "raise":
        ends = [event["what"] for event in record["events"] if event["leg"] == by]
        parts.append(f"so {'what came of the ' if ends[-1] in {'failed', 'timeout'} else 'the '}{by} answer stands")
    facts: dict[str, Any] = _part(record, "facts", {})
    parts += [rule_text(rule) for rule in _part(facts, "rules", [None]) if isinstance(rule, dict) and rule.get("applied")]
    return clean("; ".join([*parts, *([of.note] if of.note else [])]), TEXT)


def _answer_part(
    record: Mapping[str, Any], leg: Mapping[str, Any], event: Mapping[str, Any], limit: Any, took_s: float, *, last: bool
) -> str:
    """Return the part of a reason about a leg's answer, in the router's own words. last: the answer was accepted as the last."""
    name, threshold, sure = str(leg["leg"]), confidence(leg["threshold"]), confidence(event.get("confidence"))
    if leg["side"] == "cloud" and (threshold is None or last):
        return f"{name} {took_s * 1000:.0f} ms"
    if "check" in event:
        sure = Malformed(event["check"], str(event["check"]))
    plan = Plan((), INF, "edge", "prefer_edge", (), True, str(record.get("stays", "")), None, Facts())
    accepts, standby = event["what"] == "accepted", event["what"] == "kept"
    planned = Leg(name, None, 0, threshold, last, accepts, INF, standby, INF, str(leg["label"]), {})
    return answer_part(plan, planned, sure, took_s, confidence(limit))


def rule_text(traced: Any) -> str:
    """Return a traced rule in words; one that cannot be read as it is, shortened."""
    try:
        rule = Rule(traced["of"], traced["then"], traced["enter"])
        return clean(f"{rule}: {rule.then}", TEXT)
    except (KeyError, TypeError, ValueError):
        return clean(traced, TEXT)


T = TypeVar("T")
RECENT = 2000  # latest requests in the sums of reasons and latencies
SHOWN = 60  # latest requests in the lists
BATCHES = 256  # latest batches whose calls are remembered, so that none counts twice
LEGS = 32  # most legs with their own sums
WIDTHS = {"seconds": (1, 120), "minutes": (60, 180)}  # series -> seconds of a step, and number of steps
COUNTED = (*STATES, "none", "requests", "deferred")


class _Leg:
    """Sums of one leg since the beginning, and its latest latencies."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.started = self.answers = self.accepted = self.failed = self.held = self.late = self.cancelled = 0
        self.sent_bytes = self.received_bytes = self.usd = 0.0
        self.took = deque[float](maxlen=RECENT)
        self.breaker = "" if side == "edge" else "closed"
        self.breaker_at = 0.0
        # Failures since the last answer: number of calls, times of the first and of the latest, and requests not served by it.
        self.faults = self.unserved = 0
        self.away_at = self.failed_at = 0.0
        self.was_away: tuple[float, float] | None = None  # beginning and end of the last time that it was away

    @property
    def away(self) -> bool:
        """True if it does not answer, by its latest calls."""
        return self.breaker == "open" or self.faults >= FAULTS

    def set_breaker(self, state: str, time: float) -> None:
        """Record the state of a cloud's circuit breaker, and its time if it changed; nothing for an edge."""
        if self.side == "cloud" and self.breaker != state:
            self.breaker, self.breaker_at = state, time

    def is_fault(self, run: Run) -> bool:
        """Return True if a run counts against a cloud as for its breaker; a late one only if it took at least the usual time."""
        late = run.what == "timeout" or run.code == "timeout"
        return self.side == "cloud" and run.fault and not (late and run.took_s < (at_quantile(sorted(self.took), USUAL) or 0))

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
        self._steps: dict[int, tuple[Counter[str], dict[str, list[float]]]] = {}  # step -> its counts, and latencies by leg

    def add(self, request: Row) -> None:
        """Count a request in its step, with the latencies of its answers; drop the oldest steps.

        One before all steps is ignored.
        """
        step = int(request.at // self.width_s)
        if step not in self._steps:
            if self._steps and step <= max(self._steps) - self.steps:
                return  # older than all steps
            self._steps[step] = Counter(), {}
            while len(self._steps) > self.steps:
                del self._steps[min(self._steps)]
        counts, took = self._steps[step]
        counts[request.state or "none"] += 1
        counts["requests"] += 1
        counts["deferred"] += request.deferred
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
        for step in [step for step in self._steps if step > last + 1]:  # the clock was set back
            del self._steps[step]
        steps = [self._steps.get(step, (Counter[str](), {})) for step in range(last - self.steps + 1, last + 1)]
        legs = sorted({name for _, took in self._steps.values() for name in took})[:LEGS]
        return {
            "width_s": self.width_s,
            "end": (last + 1) * self.width_s,
            **{name: [counts[name] for counts, _ in steps] for name in COUNTED},
            "p50_s": {name: [at_quantile(sorted(took.get(name, ())), 0.5) for _, took in steps] for name in legs},
        }


def _part(record: Mapping[str, Any], name: str, other: T) -> T:
    """Return a part of a record if it has the type of `other`, else `other`."""
    value = record.get(name)
    return value if isinstance(value, type(other)) else other


class Window:
    """Sums over a router's latest requests: targets, reasons, times. Not synchronised: threads that share it need a lock."""

    def __init__(self) -> None:
        self.requests = self.deferred = self.degraded = self.later = 0  # `later`: those whose answer of the cloud comes later
        self.answered = Counter[str]()
        self.tally = Tally()  # counts for metrics, the same as in the router's own process
        self.latest: Row | None = None
        self.recent, self.odd = deque[Row](maxlen=SHOWN), deque[Row](maxlen=SHOWN)
        self.series = {name: Series(*width) for name, width in WIDTHS.items()}
        self._kinds = deque[tuple[str, str]](maxlen=RECENT)
        self._deferred, self._took = deque[bool](maxlen=RECENT), deque[float](maxlen=RECENT)
        self._legs: dict[str, _Leg] = {}
        self._batches = deque[tuple[str, str]](maxlen=BATCHES)

    def add(self, request: Row) -> None:
        """Count a request in all sums, lists and metrics; those of reasons and latencies have the latest 2,000 requests."""
        self.latest = request
        self.requests += 1
        self.deferred += request.deferred
        later = request.state == "waiting"
        self.later += later
        self.degraded += request.degraded and not later
        self.answered[request.side] += 1
        self._deferred.append(request.deferred)
        self._took.append(request.latency_s)
        self._kinds.append((request.state or "none", request.kind))
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
            self._count_run(run, request, batch)

    def _count_run(self, run: Run, request: Row, batch: str) -> None:
        """Count a leg's run, its breaker, faults and costs, those that a batch's rows share once; nothing of legs beyond 32."""
        time = request.at
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
            leg.was_away = (leg.away_at, time) if leg.away else leg.was_away
            leg.set_breaker("closed", time)
            leg.faults = leg.unserved = 0
        elif run.what == "held":
            leg.held += 1
            if run.code == "breaker":
                leg.set_breaker("open", time)
        else:
            leg.failed += run.what == "failed" and run.code not in UNFIT  # an unfit input is not the leg's fault, as in `stats()`
            leg.late += run.what == "timeout"
            leg.cancelled += run.what == "cancelled"
        fault = leg.is_fault(run)
        if fault or (run.what == "held" and run.code == "breaker"):
            leg.away_at, leg.failed_at = leg.away_at if leg.unserved else time, time
            leg.unserved += 1
        if batch:  # the rows of a batch share a call, and each row's record has its costs
            if (batch, run.name) in self._batches:
                return
            self._batches.append((batch, run.name))
        leg.faults += fault
        if run.what == "held":
            self.tally.limit_hit(run.name, run.code)
        leg.sent_bytes += run.sent_bytes
        leg.received_bytes += run.received_bytes
        leg.usd += run.usd

    def shown(self, now: float) -> dict[str, Any]:
        """Return all sums as plain data for a page. now: seconds since 1970."""
        took = sorted(self._took)
        legs = [
            {
                "name": name, **{part: value for part, value in vars(leg).items() if part != "took"}, **leg.quantiles(),
                "away": leg.away,
            }
            for name, leg in self._legs.items()
        ]  # fmt: skip
        return {
            "requests": self.requests, "deferred": self.deferred, "degraded": self.degraded, "later": self.later,
            "answered": {side: self.answered[side] for side in SIDES},
            "window": len(self._deferred),
            "deferral_rate": sum(self._deferred) / len(self._deferred) if self._deferred else None,
            "p50_s": at_quantile(took, 0.5), "p99_s": at_quantile(took, 0.99),
            "legs": legs,
            "reasons": [{"state": state, "text": text, "count": n} for (state, text), n in Counter(self._kinds).most_common(12)],
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


STEPS = 100  # positions of a slider, beside the threshold in force
ENOUGH_AUDITS = 30  # audits below which no share of them is shown
DRAWN = 20  # points of a curve, of those positions
NO_GUARANTEE = "No certificate: nothing is guaranteed at any threshold."


class AuditedAnswer(NamedTuple):
    """Audited answer of an edge: its confidence, True if it agrees with the cloud's, and its weight."""

    confidence: float
    agrees: bool
    weight: float


class ThresholdReplays:
    """Recorded requests for replays with other thresholds. Not synchronised; `at` takes some 10 us a request.

    Args:
        records: records of a trace, the oldest first.
        setup: policy for the replays; None: derived from the records.
        certificates: certificates of the edges whose threshold comes from one, by name; None: unknown, there is no policy.
        audits: lines of an audit log.

    Raises:
        BadInput: there are no records, or they are no trace.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        setup: Setup | None = None,
        certificates: Mapping[str, BoundCertificate] | None = None,
        audits: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.recording: Recording = collect(records, "the latest requests")
        self.guessed = setup is None
        self.setup = setup_of(records) if setup is None else setup
        self._certificates = certificates
        self._audited = _audited(audits)
        self._labels = {leg["leg"]: leg["label"] for record in records for leg in record.get("plan", ())}  # the latest ones
        self.edges = [target for target in self.setup.targets if target.side == "edge" and target.threshold is not None]

    def shown(self) -> dict[str, Any]:
        """Return each edge's slider, the threshold in force and the points of a curve; replays all requests for each point."""
        return {
            "requests": len(self.recording.requests),
            "span_s": self.recording.requests[-1].begun,
            "recorded": _numbers(self.recording.recorded.numbers()),
            "guessed": self.guessed,
            "edges": [self._edge(target) for target in self.edges],
        }

    def _edge(self, target: Target) -> dict[str, Any]:
        """Return an edge's slider and curve; replays the requests for each point."""
        steps = self._steps(target)
        drawn = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, DRAWN)})
        certificate = (self._certificates or {}).get(target.name)
        return {
            "name": target.name,
            "threshold": finite(target.threshold),
            "label": target.label,
            "per_class": bool(target.thresholds),
            "steps": steps,
            "certified": None if certificate is None else finite(certificate.certificate.threshold),
            "points": [self.at(target.name, threshold) for threshold in drawn],
        }

    def _steps(self, target: Target) -> list[float]:
        """Return sorted quantiles of the recorded confidences, one step above all (defers everything), and the one in force."""
        confidences = [request.legs[target.name].confidence for request in self.recording.requests if target.name in request.legs]
        known = [value for value in confidences if value is not None and abs(value) < INF]
        steps = set[float]()
        if known:
            steps.update(np.quantile(known, np.linspace(0, 1, STEPS + 1), method="inverted_cdf").tolist())
            steps.add(float(np.nextafter(max(steps), INF)))  # defers everything
        if target.threshold is not None and abs(target.threshold) < INF:
            steps.add(float(target.threshold))
        return sorted(steps)

    def at(self, edge: str, threshold: float) -> dict[str, Any]:
        """Replay the requests with that threshold of that edge and none by class; return totals, agreement and promise.

        Raises:
            BadInput: there is no such edge with a threshold, or the threshold is NaN.
        """
        if edge not in {target.name for target in self.edges} or threshold != threshold:  # noqa: PLR0124 - NaN
            raise BadInput(f"there is no edge {edge!r} with a threshold, or {threshold} is no number")
        targets = tuple(
            target._replace(threshold=threshold, thresholds={}) if target.name == edge else target
            for target in self.setup.targets
        )
        result = replay(self.recording, self.setup._replace(targets=targets))
        return {
            "threshold": finite(threshold),
            **_numbers(result.replayed),
            "changed": result.changed,
            "unknown": sum(result.unknown.values()),
            "unseen": result.values.unknown,
            "agreement": self._agreement(edge, threshold),
            "promise": self._promise(edge, threshold),
        }

    def _agreement(self, edge: str, threshold: float) -> dict[str, Any] | None:
        """Return the share of answers that would equal the cloud's, estimated by weighted audits; None without audits.

        Fewer than 30 audits say nothing: their share is None. Its interval is None if the weights differ, too.
        """
        answers = self._audited.get(edge)
        if not answers:
            return None
        if len(answers) < ENOUGH_AUDITS:
            return {"share": None, "audited": len(answers), "low": None, "high": None}
        agrees = np.array([answer.agrees or answer.confidence < threshold for answer in answers])
        weights = np.array([answer.weight for answer in answers])
        alike = bool((weights == weights[0]).all())
        interval = share(agrees) if alike else None  # with unequal weights this interval is not exact
        return {
            "share": float(weights[agrees].sum() / weights.sum()), "audited": len(answers),
            "low": None if interval is None else interval.low, "high": None if interval is None else interval.high,
        }  # fmt: skip

    def _promise(self, edge: str, threshold: float) -> dict[str, Any]:
        """Return in `held` True if the certificate covers that threshold here, None if that is unknown, and why in `text`."""
        if self._certificates is None:
            label = next(target.label for target in self.edges if target.name == edge)
            return {"held": None, "text": f"{label}, by the trace; without the policy the certificate is unknown."}
        bound = self._certificates.get(edge)
        if bound is None:
            return {"held": False, "text": NO_GUARANTEE}
        certificate = bound.certificate
        if broken := bound.broken():
            return {"held": False, "text": f"The certificate does not hold here: {broken}."}
        if (label := self._labels.get(edge, "")).startswith("uncalibrated: drift alarm"):
            return {"held": False, "text": f"The certificate no longer holds: {label}."}
        thresholds = (certificate.threshold, *certificate.thresholds.values())
        highest = INF if certificate.highest is None else certificate.highest
        if certificate.ladder:  # what is certified of all edge models together is so at these thresholds alone
            highest = certificate.threshold
        if certificate.kind == "max_defer":
            covered, where = threshold <= min(thresholds), f"above the certified {min(thresholds):.6g}"
        elif threshold < max(thresholds):
            covered, where = False, f"below the certified {max(thresholds):.6g}"
        else:
            covered, where = threshold <= highest, f"above {highest:.6g}, the highest that is certified"
        if covered:
            return {"held": True, "text": certificate.guarantee}
        return {"held": False, "text": f"Nothing is guaranteed at this threshold, which is {where}: calibrate for another one."}


def _numbers(totals: Numbers) -> dict[str, Any]:
    """Return the totals of a replay as plain data."""
    return {**totals._asdict(), "deferral_rate": totals.deferral_rate}


def _audited(audits: Iterable[Mapping[str, Any]]) -> dict[str, list[AuditedAnswer]]:
    """Return edge -> its audited answers, weighted 1 / probability, of its latest model and cloud, without invalid lines."""
    by_edge = dict[str, tuple[Any, list[AuditedAnswer]]]()
    for line in audits:
        try:
            name, prints, how = line["target"], line["fingerprints"], line["audited"]
            edge_confidence = confidence(line["edge_confidence"])
            probability, agrees = float(line["probability"]), bool(line["agrees"])
        except (KeyError, TypeError, ValueError):
            continue
        if how not in {"shadow", "deferred"} or not 0 < probability <= 1 or "error" in line:
            continue
        if name not in by_edge or by_edge[name][0] != prints:
            by_edge[name] = prints, []
        by_edge[name][1].append(AuditedAnswer(-INF if edge_confidence is None else edge_confidence, agrees, 1 / probability))
    return {name: answers for name, (_, answers) in by_edge.items()}


def setup_of(records: Sequence[Mapping[str, Any]]) -> Setup:
    """Derive a policy from a trace alone: targets, thresholds of the longest of the last 100 plans, prices of typical calls.

    A data class that no request with a cloud in its plan had may not leave; any other may.

    Raises:
        BadInput: no request was routed.
    """
    routed = [record for record in records if "events" in record]
    if not routed:
        raise BadInput("no request has been routed yet: what the cache answered has no plan")
    last = max(routed[-100:], key=lambda record: len(record["plan"]))
    targets = tuple(
        Target(leg["leg"], leg["side"], None if leg["threshold"] is None else float(leg["threshold"]), leg["label"])
        for leg in last["plan"]
    )
    costs: dict[str, list[tuple[float, float]]] = {}
    for record in routed:
        for event in record["events"]:
            if event["what"] in ANSWERED and "usd" in event:
                costs.setdefault(event["leg"], []).append((event["usd"], event.get("joules", 0.0)))
    ports = {target.name: Port(_typical(costs.get(target.name, ()))) for target in targets if target.side == "cloud"}
    local_classes = {record["data_class"] for record in routed if not any(leg["side"] == "cloud" for leg in record["plan"])}
    local_classes -= {None, *(record["data_class"] for record in routed if any(leg["side"] == "cloud" for leg in record["plan"]))}
    rules = Rules(never_leave=frozenset(local_classes), unknown_class="allow")
    deadline_s = INF if last["deadline_s"] is None else last["deadline_s"]
    policy = Policy(mode=last["mode"], deadline_s=deadline_s, offline=last["offline"], rules=rules)
    return Setup(policy, targets, ports)


def _typical(costs: Sequence[tuple[float, float]]) -> Terms:
    """Return prices by which a call costs the median of these dollars and joules; 0 without any."""
    usd, joules = (median(values) for values in zip(*costs, strict=True)) if costs else (0.0, 0.0)
    return Terms(usd_per_call=usd, joules_per_call=joules)
