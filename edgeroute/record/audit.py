"""Audits: compares a sample of the edge's answers with the cloud's, in the background, and raises drift alarms."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from edgeroute import system
from edgeroute.confidence.binding import BoundCertificate, digest
from edgeroute.core.codes import Failure
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy import Target
from edgeroute.core.texts import typed
from edgeroute.core.walk import Done, Event, Outcome, Prediction, judged
from edgeroute.errors import StoreError
from edgeroute.observe.stats import AuditStats
from edgeroute.record.drift_monitor import Audit, DriftMonitor, check_audit
from edgeroute.record.sampling import Drawn, Sampler
from edgeroute.system import contained, renew_after_fork

if TYPE_CHECKING:
    from edgeroute.observe.stats import Counts
    from edgeroute.stores.journal import Journal
    from edgeroute.stores.keyvalue import KeyValueStore

__all__ = ["Audit", "AuditStats", "Auditor"]
TOGETHER = 2
"""Maximum number of concurrent audits; any beyond that wait."""
UNTIL_NEXT = "audit-next"
"""Name of the stored number of requests until the next that is counted for the deferral rate."""
UNLABELLED_MOST = 10_000
"""Number of audited answers that wait for a label; the oldest is given up for another."""
NEVER = frozenset({"consent", "redaction", "view"})
"""Why a cloud was not asked: it never will be for this input."""
log = logging.getLogger("edgeroute")
_NONE: Any = object()


class Audited(Protocol):
    """A finished request."""

    @property
    def id(self) -> str: ...
    @property
    def inputs(self) -> Any: ...
    @property
    def plan(self) -> Plan: ...


class Asks(Protocol):
    """Calls the cloud for an audit."""

    def allowed(self) -> bool:
        """Whether a low-priority call may be made now, by the policy, the link, the limits and the state of the endpoints."""

    def room(self, request: Audited, leg: int) -> bool:
        """Whether, besides, that leg's endpoint has capacity for one."""

    def prepare(self, request: Audited, leg: int) -> Callable[[], Event]:
        """Binds the input as it is now; returns a function that calls the cloud and blocks."""


class _Comparison(NamedTuple):
    """An edge's answer that is to be compared with the cloud's."""

    leg: Leg
    prediction: Prediction
    how: str
    """`shadow`: the edge's answer was accepted; `deferred`: it was not."""


class _Unlabelled(NamedTuple):
    """An audited answer of an edge for which a label may be reported."""

    leg: Leg
    edge: Any
    cloud: Any
    counted: bool


class _Waiting(NamedTuple):
    """An audit that waits for its call of the cloud."""

    request: Audited
    cloud: int
    ask: Callable[[], Event]
    drawn: Drawn
    edges: list[_Comparison]


class Auditor:
    """Compares a sample of a router's answers with the cloud's, in the background.

    Args:
        audit: the settings.
        counts: counters; they have the number of answers that were compared with a threshold.
        submit: runs a job in a thread, if one is available.
        asks: calls the cloud for an audit.
        changed: called when thresholds or labels may have changed.
        alarm: called with an edge model's name and the alarm's text.
        journal: receives a line per comparison; None: none is written.
        store: state that outlives the process; None: there is none.

    Attributes:
        sampler: draws requests.
        arrives: draws a request that arrives now; what it returns, unless that is None, `ended` takes once it has ended.

    Raises:
        PolicyError: the settings are invalid.
    """

    def __init__(
        self,
        audit: Audit,
        counts: Counts,
        *,
        submit: Callable[[Callable[[], object]], bool],
        asks: Asks,
        changed: Callable[[], None],
        alarm: Callable[[str, str], object],
        journal: Journal | None,
        store: KeyValueStore | None,
    ) -> None:
        check_audit(audit)
        self.audit, self._submit, self._counts, self._asks = audit, submit, counts, asks
        self._changed, self._alarm, self._journal, self._kept = changed, alarm, journal, store
        self._watches: dict[str, DriftMonitor] = {}
        self._prints: dict[str, str] = {}
        self._unlabelled: dict[str, _Unlabelled] = {}
        self._early: dict[str, Any] = {}
        """Ids of audits that wait or are under way -> the label that was reported meanwhile, or `_NONE`."""
        self._said: set[str] = set()
        due = None if store is None else store.get(UNTIL_NEXT)
        due = due if type(due) is int else None
        self.sampler = Sampler(audit.share, audit.scene, lambda: len(self._queue), self._allowed, due)
        self.arrives: Callable[[], Drawn | None] = self.sampler.arrives
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child, which has no audit in progress: those that wait are its parent's."""
        self._lock, self._running, self._held_up = threading.RLock(), 0, False
        self._idle = threading.Condition(self._lock)
        self._queue: deque[_Waiting] = deque()

    @property
    def busy(self) -> int:
        """Number of audits that are under way, or wait."""
        return self._running + len(self._queue)

    def adopt(
        self,
        targets: Sequence[Target],
        certificates: Sequence[BoundCertificate | None],
        prints: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Monitors the thresholds of these targets; the statistics of an unchanged certificate are retained.

        Args:
            targets: of the policy.
            certificates: of each target, if its threshold comes from one.
            prints: by edge model name: fingerprints of everything that its answers and the cloud's depend on.
        """
        watches = {}
        for target, promise in zip(targets, certificates, strict=True):
            if target.side != "edge" or target.threshold is None:
                continue
            watch, known = DriftMonitor(promise, self.audit), self._watches.get(target.name)
            dumped = known.dump() if known is not None else self._kept.get(f"audit:{target.name}") if self._kept else None
            if isinstance(dumped, dict):
                watch.load(dumped)
            watch.since(*self._counts.judged(target.name))
            watches[target.name] = watch
        with self._lock:
            self._watches, self._prints = watches, {name: digest(used) for name, used in prints.items()}

    def watch(self, name: str) -> DriftMonitor | None:
        """The drift monitor of that edge model."""
        return self._watches.get(name)

    def stats(self) -> tuple[AuditStats, ...]:
        """Statistics so far, for each edge model with a threshold."""
        with self._lock:
            return tuple(watch.stats(name) for name, watch in self._watches.items())

    def ended(self, drawn: Drawn, request: Audited, outcome: Outcome) -> None:
        """Audits or counts a request that was drawn when it arrived."""
        try:
            if drawn.rate:
                self._count(request, outcome)
            if drawn.probability:
                self._take(drawn, request, outcome)
        except Exception as e:
            what = typed(e)
            log.exception("an audit failed: %s; the answer is not touched by it", what)

    def report(self, identity: str, truth: Any) -> bool:
        """Records the right value for an audited answer of an edge. Returns whether it is one."""
        with self._lock:
            if self._early.get(identity) is _NONE:
                self._early[identity] = truth  # taken once the cloud has answered
                return True
            one = self._unlabelled.pop(identity, None)
        if one is None:
            return False
        agrees = self.audit.agrees or same
        edge, cloud = (float(contained(agrees, value, truth)) for value in (one.edge, one.cloud))
        with self._lock:
            watch = self._watches.get(one.leg.name)
            counted = watch is not None and one.counted and one.leg.threshold == watch.threshold
            news = watch is not None and watch.reported(edge=edge, cloud=cloud, counted=counted)
            if news and watch is not None:
                self._report(one.leg.name, watch)
                self._note()
        if news:
            self._changed()
        return True

    def observe(self) -> None:
        """Updates the monitors from the counters."""
        with self._lock:
            for name, watch in self._watches.items():
                watch.counted(*self._counts.judged(name))
            self._note()
        self._start()

    def drain(self, timeout_s: float) -> None:
        """Waits for the audits that can be made now: without it, a program that ends soon would log deferred answers alone."""
        until = monotonic() + timeout_s
        with self._lock:
            while (self._running or (self._queue and not self._held_up)) and self._idle.wait(until - monotonic()):
                pass

    def close(self) -> None:
        """Stores the state for later runs."""
        with self._lock:
            self._note()
            if self._kept is not None:
                self._kept.put(UNTIL_NEXT, self.sampler.remaining())
        if self._journal is not None:
            self._journal.close()

    def _count(self, request: Audited, outcome: Outcome) -> None:
        """Counts, for the deferral rate of each edge that judged it, whether its answer was below the threshold."""
        news = False
        legs = request.plan.legs
        for kind, i, _, _ in outcome.log:
            if kind not in {"accepted", "below"} or not judged(legs[i]):
                continue
            with self._lock:
                watch = self._watches.get(legs[i].name)
                if watch is not None and watch.sampled(legs[i].threshold, below=kind == "below"):
                    self._report(legs[i].name, watch)
                    self._note()
                    news = True
        if news:
            self._changed()

    def _take(self, drawn: Drawn, request: Audited, outcome: Outcome) -> None:
        """Compares each edge's answer with that of the cloud, which has answered the request, or is asked in the background.

        It is not, for either side, where asking it has failed or would fail.
        """
        legs = request.plan.legs
        edges = [_Comparison(legs[i], edge, "deferred") for i, edge in outcome.held.items() if judged(legs[i])]
        if outcome.accepted and outcome.leg is not None and outcome.prediction is not None and judged(legs[outcome.leg]):
            edges.append(_Comparison(legs[outcome.leg], outcome.prediction, "shadow"))
        cloud = next((i for i, leg in enumerate(legs) if leg.permit is not None), None)
        if cloud is None or not edges:
            return
        if outcome.leg == cloud and outcome.accepted and outcome.prediction is not None:
            self._compare(request.id, drawn, edges, outcome.prediction)
        elif not _failed(outcome, cloud):
            # bound now: the caller may go on to write the next frame into the same array
            waiting = _Waiting(request, cloud, self._asks.prepare(request, cloud), drawn, edges)
            if self.audit.labelled and edges[-1].how == "shadow":
                self._early[request.id] = _NONE
            self._queue.append(waiting)
        self._start()

    def _allowed(self) -> bool:
        try:
            return self._asks.allowed()
        except Exception:
            log.exception("an audit failed; no answer is touched by it")
            return False

    def _start(self) -> None:
        """Starts as many of the audits that wait as may be made now."""
        while self._queue:
            with self._lock:
                if not self._queue or self._running >= TOGETHER:
                    return
                one = self._queue.popleft()
                self._running += 1
            started = False
            try:
                started = self._asks.room(one.request, one.cloud) and self._submit(lambda one=one: self._ask(one))  # type: ignore[misc]
            finally:
                with self._lock:
                    self._held_up = not started
                    if not started:
                        self._running -= 1
                        self._queue.appendleft(one)
                        self._idle.notify_all()
            if not started:
                return

    def _ask(self, one: _Waiting) -> None:
        """Calls the cloud, and compares."""
        try:
            event = one.ask()
            if type(event) is Done:
                self._compare(one.request.id, one.drawn, one.edges, event.answer)
            with self._lock:
                truth = self._early.pop(one.request.id, _NONE)
            if truth is not _NONE:
                self.report(one.request.id, truth)
        except Exception:
            log.exception("an audit failed; no answer is touched by it")
        finally:
            with self._lock:
                self._early.pop(one.request.id, None)
                self._running -= 1
                self._idle.notify_all()
        self._start()

    def _compare(self, identity: str, drawn: Drawn, edges: Sequence[_Comparison], cloud: Prediction) -> None:
        news = False
        for leg, edge, how in edges:
            agrees = bool(contained(self.audit.agrees or same, edge.value, cloud.value))
            confidence = edge.confidence
            known = confidence is not None and confidence == confidence  # noqa: PLR0124 - NaN
            # before it is counted: who reads the count finds the line
            self._journalled({
                "at": round(system.now(), 3), "id": identity, "target": leg.name,
                "edge_confidence": float(confidence) if known else None,  # type: ignore[arg-type]
                "agrees": agrees, "audited": how, "probability": drawn.probability,
                "fingerprints": self._prints.get(leg.name, ""),
            })  # fmt: skip
            if how == "deferred":
                continue
            with self._lock:
                watch = self._watches.get(leg.name)
                if watch is None:
                    continue
                if self.audit.labelled:
                    self._unlabelled[identity] = _Unlabelled(leg, edge.value, cloud.value, drawn.counted)
                    if len(self._unlabelled) > UNLABELLED_MOST:
                        del self._unlabelled[next(iter(self._unlabelled))]
                counted = drawn.counted and leg.threshold == watch.threshold  # else another threshold accepted it
                if watch.compared(confidence if known else None, agrees=agrees, counted=counted):
                    self._report(leg.name, watch)
                    self._note()
                    news = True
        if news:
            self._changed()

    def _journalled(self, line: Mapping[str, Any]) -> None:
        if self._journal is None:
            return
        try:
            self._journal.append(line)
        except StoreError as e:
            if (what := str(e)) not in self._said:
                self._said.add(what)
                log.warning("an audit could not be noted: %s", what)

    def _note(self) -> None:
        if self._kept is not None:
            for name, watch in self._watches.items():
                self._kept.put(f"audit:{name}", watch.dump())

    def _report(self, name: str, watch: DriftMonitor) -> None:
        said = "" if watch.alarm is None else watch.alarm.what
        log.warning("%s: %s; %s; calibrate again", name, said, watch.reaction)
        self._alarm(name, said)


def _failed(outcome: Outcome, cloud: int) -> bool:
    """Whether that leg was asked and failed. Not if there was no room for it, or no time, which an audit waits for."""
    for kind, leg, _, detail in outcome.log:
        if kind == "failed" and leg == cloud:
            failure = Failure.of(detail)
            return failure.code in NEVER or not (failure.held or failure.code == "timeout")
    return False


def same(edge: Any, cloud: Any) -> bool:
    """Whether two values are equal; for arrays: all elements."""
    equal = edge == cloud
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)
