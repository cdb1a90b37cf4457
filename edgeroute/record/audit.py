"""Asks the cloud about a small share of what the edge answered, in the background, and acts when a promise fails."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Mapping
from functools import partial
from math import log1p
from typing import TYPE_CHECKING, Any, cast

from edgeroute import system
from edgeroute.cloud.backend import CloudBackend
from edgeroute.confidence.binding import digest
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import Done, Outcome, Prediction, Start, judged
from edgeroute.errors import PolicyError, StoreError
from edgeroute.record.drift_monitor import Audit, AuditStats, DriftMonitor
from edgeroute.router.request import Route
from edgeroute.system import renew_after_fork

if TYPE_CHECKING:
    from edgeroute.observe.stats import Counts
    from edgeroute.router.snapshot import Snapshot
    from edgeroute.stores.journal import Journal
    from edgeroute.stores.keyvalue import KeyValueStore
    from edgeroute.system import Workers

__all__ = ["Audit", "AuditStats", "Auditor"]
TOGETHER = 2
"""Audits under way at a time; what falls due meanwhile is left out."""
log = logging.getLogger("edgeroute")


class Auditor:
    """A router's audits.

    Args:
        audit: the rules.
        workers: threads.
        counts: know how many answers were held against a threshold.
        held_back: says why nothing is to be asked that is not needed; empty: it may.
        changed: called when thresholds or labels are to be looked at again.
        journal: gets a line for each comparison; None: nobody does.
        kept: what outlives the process; None: nothing does.

    Raises:
        PolicyError: the rules cannot be meant.
    """

    def __init__(
        self,
        audit: Audit,
        workers: Workers,
        counts: Counts,
        *,
        held_back: Callable[[Snapshot], str],
        changed: Callable[[], None],
        journal: Journal | None,
        kept: KeyValueStore | None,
    ) -> None:
        _check(audit)
        self.audit, self._workers, self._counts = audit, workers, counts
        self._held_back, self._changed, self._journal, self._kept = held_back, changed, journal, kept
        self._watches: dict[str, DriftMonitor] = {}
        self._prints: dict[str, str] = {}
        self._wait = self._gap()
        self._said: set[str] = set()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A lock of its own for the child, in which no audit is under way."""
        self._lock, self._busy = threading.Lock(), 0

    def adopt(self, live: Snapshot, prints: Mapping[str, Mapping[str, str]]) -> None:
        """Watches the thresholds of this policy; what is known of a certificate that stays is kept.

        Args:
            live: the policy.
            prints: of each edge model, by name, what its answers and the cloud's depend on.
        """
        watches = {}
        for target, promise in zip(live.targets, live.promises, strict=True):
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
        """What is known of that edge model."""
        return self._watches.get(name)

    def stats(self) -> tuple[AuditStats, ...]:
        """So far, of each edge model with a threshold."""
        with self._lock:
            return tuple(watch.stats(name) for name, watch in self._watches.items())

    def passed(self, made: Plan, outcome: Outcome, route: Route, row: int | None) -> None:
        """A request has ended; the sample falls on each with the same chance."""
        self._wait -= 1
        if self._wait > 0:
            return
        self._wait = self._gap()
        try:
            self._take(made, outcome, route, row)
        except Exception as e:
            log.exception("an audit failed: %s; the answer is not touched by it", type(e).__name__)

    def observe(self) -> None:
        """Some requests have been added up."""
        news = False
        with self._lock:
            for name, watch in self._watches.items():
                if watch.counted(*self._counts.judged(name)):
                    self._tell(name, watch)
                    news = True
            self._note()
        if news:
            self._changed()

    def close(self) -> None:
        """Notes what a later run should know."""
        with self._lock:
            self._note()
        if self._journal is not None:
            self._journal.close()

    def _gap(self) -> float:
        """How many requests until the next one: each is as likely to be it as any other."""
        share = self.audit.share
        if share <= 0:
            return INF
        return 1 if share >= 1 else 1 + int(log1p(-random.random()) / log1p(-share))  # noqa: S311 - a sample, not a secret

    def _take(self, made: Plan, outcome: Outcome, route: Route, row: int | None) -> None:
        leg = None if outcome.leg is None else made.legs[outcome.leg]
        if leg is None or outcome.prediction is None or not outcome.accepted:
            return
        found = next((i for i, leg in enumerate(made.legs) if leg.permit is not None), None)
        if found is None or not self._room(route.live, cast("CloudBackend", route.live.runners[made.legs[found].target])):
            return
        answers = {i: p for i, p in outcome.held.items() if judged(made.legs[i])}
        identity = route.identity if row is None else f"{route.identity}.{row}"
        if leg.permit is not None:
            for i, edge in answers.items():
                self._compare(route, made.legs[i], edge, outcome.prediction, identity, "deferred")
        elif judged(leg):
            self._ask(made, found, leg, outcome.prediction, route, row, identity)

    def _room(self, live: Snapshot, runner: CloudBackend) -> bool:
        """Whether there is room for an audit. If not, what was deferred is left out, too: it is to be no larger a share."""
        return self._busy < TOGETHER and not self._held_back(live) and runner.guard.has_headroom()

    def _ask(self, made: Plan, found: int, edge_leg: Leg, edge: Prediction, route: Route, row: int | None, identity: str) -> None:
        """Asks the cloud in the background."""
        runner = cast("CloudBackend", route.live.runners[made.legs[found].target])
        with self._lock:
            self._busy += 1
        # the caller may go on to write the next frame into the same array
        x = copied(route.inputs if row is None else route.inputs[row])
        shadow = Route(made, route.live, x, self._workers, INF, False, identity, "audit")
        self._workers.submit(partial(self._shadow, shadow, found, runner, edge_leg, edge, identity))

    def _shadow(self, shadow: Route, i: int, runner: CloudBackend, edge_leg: Leg, edge: Prediction, identity: str) -> None:
        try:
            start, permit = Start(i), shadow.plan.legs[i].permit
            assert permit is not None, "it was looked for"
            event = asyncio.run(shadow.run_async(start, permit, runner)) if runner.alone_async else shadow.run(start)
            if type(event) is Done:
                self._compare(shadow, edge_leg, edge, event.answer, identity, "shadow")
        except Exception:
            log.exception("an audit failed; no answer is touched by it")
        finally:
            with self._lock:
                self._busy -= 1

    def _compare(self, route: Route, leg: Leg, edge: Prediction, cloud: Prediction, identity: str, how: str) -> None:
        agrees = bool((self.audit.agrees or same)(edge.value, cloud.value))
        confidence = edge.confidence
        known = confidence is not None and confidence == confidence  # noqa: PLR0124 - NaN
        name = route.live.targets[leg.target].name
        with self._lock:
            watch = self._watches.get(name)
            alarm = watch is not None and watch.compared(confidence if known else None, agrees=agrees, accepted=how == "shadow")
            if alarm and watch is not None:
                self._tell(name, watch)
                self._note()
        if self._journal is not None:
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
        if alarm:
            self._changed()

    def _note(self) -> None:
        if self._kept is not None:
            for name, watch in self._watches.items():
                self._kept.put(f"audit:{name}", watch.dump())

    def _tell(self, name: str, watch: DriftMonitor) -> None:
        if self.audit.on_alarm == "tell":
            what = "nothing else was changed (on_alarm is tell)"
        else:
            what = f"{'all' if watch.at_least == INF else 'half of what was accepted'} is deferred from now on"
        log.warning("%s: %s; %s; calibrate again", name, "" if watch.alarm is None else watch.alarm.what, what)


def same(edge: Any, cloud: Any) -> bool:
    """Whether two values are equal; arrays: all of them."""
    equal = edge == cloud
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)


def copied(x: Any) -> Any:
    """The input, so that the caller may overwrite its own."""
    if isinstance(x, Mapping):
        return {name: copied(part) for name, part in x.items()}
    if isinstance(x, bytearray | list):
        return x[:]
    return x.copy() if hasattr(x, "dtype") and hasattr(x, "copy") else x


def _check(audit: Audit) -> None:
    if not 0 <= audit.share <= 1:
        raise PolicyError(f"audit: share is 0 to 1, not {audit.share!r}")
    if audit.on_alarm not in {"tell", "raise", "defer"}:
        raise PolicyError(f"audit: on_alarm is 'tell', 'raise' or 'defer', not {audit.on_alarm!r}")
