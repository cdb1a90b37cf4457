"""Audits: compares a sample of the edge's answers with the cloud's, in the background, and raises drift alarms."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from math import log1p
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute import system
from edgeroute.confidence.binding import BoundCertificate, digest
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy import INF, Target
from edgeroute.core.texts import typed
from edgeroute.core.walk import Done, Event, Outcome, Prediction, judged
from edgeroute.errors import PolicyError, StoreError
from edgeroute.observe.stats import AuditStats
from edgeroute.record.drift_monitor import Audit, DriftMonitor
from edgeroute.system import contained, renew_after_fork

if TYPE_CHECKING:
    from edgeroute.observe.stats import Counts
    from edgeroute.stores.journal import Journal
    from edgeroute.stores.keyvalue import KeyValueStore

__all__ = ["Audit", "AuditStats", "Auditor"]
TOGETHER = 2
"""Maximum number of concurrent audits; any beyond that are skipped."""
log = logging.getLogger("edgeroute")


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

    def room(self, request: Audited, leg: int) -> bool:
        """Whether that leg's endpoint has capacity for a low-priority call now."""

    def prepare(self, request: Audited, leg: int) -> Callable[[], Event]:
        """Binds the input as it is now; returns a function that calls the cloud and blocks."""


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
        _check(audit)
        self.audit, self._submit, self._counts, self._asks = audit, submit, counts, asks
        self._changed, self._alarm, self._journal, self._kept = changed, alarm, journal, store
        self._watches: dict[str, DriftMonitor] = {}
        self._prints: dict[str, str] = {}
        self._wait = self._gap()
        self._said: set[str] = set()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child, which has no audit in progress."""
        self._lock, self.busy = threading.RLock(), 0

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

    def passed(self, request: Audited, outcome: Outcome) -> None:
        """Samples a finished request; each is drawn with the same probability."""
        self._wait -= 1
        if self._wait > 0:
            return
        self._wait = self._gap()
        try:
            self._take(request, outcome)
        except Exception as e:
            what = typed(e)
            log.exception("an audit failed: %s; the answer is not touched by it", what)

    def observe(self) -> None:
        """Updates the monitors from the counters."""
        news = False
        with self._lock:
            for name, watch in self._watches.items():
                if watch.counted(*self._counts.judged(name)):
                    self._report(name, watch)
                    news = True
            self._note()
        if news:
            self._changed()

    def close(self) -> None:
        """Stores the state for later runs."""
        with self._lock:
            self._note()
        if self._journal is not None:
            self._journal.close()

    def _gap(self) -> float:
        """Number of requests until the next sample (geometric): each request is drawn independently."""
        share = self.audit.share
        if share <= 0:
            return INF
        return 1 if share >= 1 else 1 + int(log1p(-random.random()) / log1p(-share))  # noqa: S311 - a sample, not a secret

    def _take(self, request: Audited, outcome: Outcome) -> None:
        legs = request.plan.legs
        leg = None if outcome.leg is None else legs[outcome.leg]
        if leg is None or outcome.prediction is None or not outcome.accepted:
            return
        cloud = next((i for i, leg in enumerate(legs) if leg.permit is not None), None)
        # without capacity for audits, deferred answers are skipped too, or their share of the sample would grow
        if cloud is None or self.busy >= TOGETHER or not self._asks.room(request, cloud):
            return
        if leg.permit is not None:
            for i, edge in outcome.held.items():
                if judged(legs[i]):
                    self._compare(request.id, legs[i], edge, outcome.prediction, "deferred")
        elif judged(leg):
            self._shadow(request, cloud, leg, outcome.prediction)

    def _shadow(self, request: Audited, cloud: int, leg: Leg, edge: Prediction) -> None:
        """Calls the cloud in the background, and compares."""
        ask = self._asks.prepare(request, cloud)  # bound now: the caller may go on to write the next frame into the same array

        def shadow() -> None:
            try:
                event = ask()
                if type(event) is Done:
                    self._compare(request.id, leg, edge, event.answer, "shadow")
            except Exception:
                log.exception("an audit failed; no answer is touched by it")
            finally:
                with self._lock:
                    self.busy -= 1

        with self._lock:
            self.busy += 1
        if not self._submit(shadow):
            with self._lock:
                self.busy -= 1

    def _compare(self, identity: str, leg: Leg, edge: Prediction, cloud: Prediction, how: str) -> None:
        agrees = bool(contained(self.audit.agrees or same, edge.value, cloud.value))
        confidence = edge.confidence
        known = confidence is not None and confidence == confidence  # noqa: PLR0124 - NaN
        name = leg.name
        if self._journal is not None:  # before it is counted: who reads the count finds the line
            record = {
                "at": round(system.now(), 3), "id": identity, "target": name,
                "edge_confidence": float(confidence) if known else None,  # type: ignore[arg-type]
                "agrees": agrees, "audited": how, "fingerprints": self._prints.get(name, ""),
            }  # fmt: skip
            try:
                self._journal.append(record)
            except StoreError as e:
                if (what := str(e)) not in self._said:
                    self._said.add(what)
                    log.warning("an audit could not be noted: %s", what)
        with self._lock:
            watch = self._watches.get(name)
            alarm = watch is not None and watch.compared(confidence if known else None, agrees=agrees, accepted=how == "shadow")
            if alarm and watch is not None:
                self._report(name, watch)
                self._note()
        if alarm:
            self._changed()

    def _note(self) -> None:
        if self._kept is not None:
            for name, watch in self._watches.items():
                self._kept.put(f"audit:{name}", watch.dump())

    def _report(self, name: str, watch: DriftMonitor) -> None:
        if self.audit.on_alarm == "tell":
            what = "nothing else was changed (on_alarm is tell)"
        else:
            what = f"{'all' if watch.at_least == INF else 'half of what was accepted'} is deferred from now on"
        said = "" if watch.alarm is None else watch.alarm.what
        log.warning("%s: %s; %s; calibrate again", name, said, what)
        self._alarm(name, said)


def same(edge: Any, cloud: Any) -> bool:
    """Whether two values are equal; for arrays: all elements."""
    equal = edge == cloud
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)


def _check(audit: Audit) -> None:
    if not 0 <= audit.share <= 1:
        raise PolicyError(f"audit: share is 0 to 1, not {audit.share!r}")
    if audit.on_alarm not in {"tell", "raise", "defer"}:
        raise PolicyError(f"audit: on_alarm is 'tell', 'raise' or 'defer', not {audit.on_alarm!r}")
