"""Audits: a sample of the edge's answers is compared with the cloud's, in the background, and drift raises alarms.

`Sampler` draws at random. `Auditor` writes each comparison to a journal, counts it in the state file, and calls `alarm`.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from math import log1p
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from edgeroute.confidence.certificate import BoundCertificate, digest
from edgeroute.confidence.output_forms_labels_and_comparison import same
from edgeroute.core.error_codes_and_texts import Failure, class_name
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy_egress_and_options import INF, Target
from edgeroute.core.sequential_tests import GRID, grid_index
from edgeroute.core.walk import Done, Event, Outcome, Prediction, judged
from edgeroute.errors import PolicyError, StoreError
from edgeroute.observe.stats_and_status_types import AuditStats, ShadowStats
from edgeroute.stores.cache import fingerprint
from edgeroute.system import wall_clock
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.input_copies import copy_answer
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.trials.audit_setting_and_drift_monitor import Audit, DriftMonitor, check_audit
from edgeroute.trials.shadow_statistics_and_job_queue import UNHEARD, Background, Job, ShadowRun, Tally

if TYPE_CHECKING:
    from edgeroute.observe.target_counts import Counts
    from edgeroute.stores.json_lines_and_process_locks import Journal
    from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
    from edgeroute.types import Spent

__all__ = ["Audit", "AuditStats", "Auditor"]
Ask: TypeAlias = "tuple[Callable[[], Event], Callable[[], Mapping[int, Spent]]]"  # a call, and what it has cost


# Sampling: which requests are audited, and which a drift alarm counts; drawn when a request arrives, before it has an answer.

FULL, FULL_OF_RUNS = 8, 32  # `Sampler`'s `full`: for audits that call the cloud, and for those that only run an edge model
CALM = 10_000  # number of requests, without any audit waiting at the end, after which they are drawn twice as often again


class AuditDraw(NamedTuple):
    """Draw of a request at its arrival, independent of its answer and of the side that gives it."""

    probability: float  # probability with which the request was drawn for an audit; 0: not drawn
    counted: bool  # True if the alarm counts the audit: it is far enough from the last one that was counted
    rate: bool  # True if the alarm of deferral rates counts the request


class Sampler(ForkSafe):
    """Random draw of requests at their arrival: for audits with equal probability, for the deferral rate at random distances.

    While audits cannot keep up, the share is halved. The probability then depends on earlier requests, and never on the drawn
    one: weighted by its inverse, the audits represent all requests.

    Args:
        share: share of the requests to audit, 0..1.
        scene: minimum distance, in requests, of those that a drift alarm counts, 1 or more.
        waiting: returns the number of waiting audits.
        allowed: returns True if an audit may be made now.
        due: number of requests until the next that is counted for the deferral rate, from an earlier run; None: not known.
        full: number of waiting audits at which further ones are drawn half as often; at twice as many a quarter as often, ...
    """

    _lock = per_process(SafeLock)

    def __init__(
        self, share: float, scene: int, waiting: Callable[[], int], allowed: Callable[[], bool], due: int | None = None,
        full: int = FULL
    ) -> None:  # fmt: skip
        self._full = full
        self._share, self._scene, self._waiting, self._allowed = share, scene, waiting, allowed
        self._halvings = self._changed = self._counts_from = self._seen = 0
        self._audit = self._gap()
        first = random.randint(1, 3 * scene) if due is None else due  # noqa: S311 - a sample, not a secret
        self._rate = min(max(1, first), 3 * scene)
        self._step = self._left = min(self._audit, self._rate)

    def arrives(self) -> AuditDraw | None:
        """Count down to the next draw by a request that arrives now; return the draw once it is due, else None."""
        left = self._left = self._left - 1  # without a lock: of a race that loses one, it is only later by one
        return None if left > 0 else self._draw()

    def remaining(self) -> int:
        """Return the number of requests until the next that is counted for the deferral rate, for the next run."""
        with self._lock:
            return max(1, self._rate - (self._seen + int(self._step - self._left)))

    def _draw(self) -> AuditDraw | None:
        """Draw a request that is due for an audit, a count for the deferral rate, or both, and the distance to the next of each.

        None: it is drawn for neither, or another thread has just drawn. Holds the lock, and then, without it, asks `allowed`: if
        that is False, there is no audit, and the distances stay as drawn.
        """
        with self._lock:
            if self._left > 0:  # another thread's was drawn in its place
                return None
            number = self._seen = self._seen + int(self._step - self._left)
            rate, probability, counted = number >= self._rate, 0.0, False
            if rate:
                self._rate = number + self._scene + int(random.random() * (2 * self._scene + 1))  # noqa: S311
            if number >= self._audit:
                self._audit = number + self._gap()
                probability = self._probability(number)
                counted = probability > 0 and number >= self._counts_from
                if counted:
                    self._counts_from = number + self._scene
            self._step = self._left = min(self._audit, self._rate) - number
        if probability and not self._allowed():
            probability, counted = 0.0, False
        return AuditDraw(probability, counted, rate) if rate or probability else None

    def _gap(self) -> float:
        """Draw the number of requests until the next that may be audited (geometric, so independently); inf for a share of 0."""
        share = self._share
        if share <= 0:
            return INF
        return 1 if share >= 1 else 1 + int(log1p(-random.random()) / log1p(-share))  # noqa: S311

    def _probability(self, number: int) -> float:
        """Draw this request at random: return the probability of its audit, or 0 if it is not drawn.

        While many audits wait, the share is halved; `CALM` requests later, with none waiting, it is doubled again.
        """
        waiting = self._waiting()
        if waiting // self._full > self._halvings:
            self._halvings, self._changed = waiting // self._full, number
        elif waiting == 0 and self._halvings and number - self._changed >= CALM:
            self._halvings, self._changed = self._halvings - 1, number
        factor = 0.5**self._halvings
        return self._share * factor if factor == 1 or random.random() < factor else 0.0  # noqa: S311


# Comparison of an edge's answer with the cloud's, and the interfaces for it.

NEVER = frozenset({"consent", "redaction", "view"})  # codes of calls that were not made and never will be for this input


class Audited(Protocol):
    """A finished request."""

    @property
    def id(self) -> str:
        """Id of the request's answer."""

    @property
    def inputs(self) -> Any:
        """Inputs of the caller."""

    @property
    def plan(self) -> Plan:
        """Plan of the request."""

    @property
    def snapshot(self) -> Any:
        """Policy of the request, with its `backends` and `hidden`."""


class BackgroundCalls(Protocol):
    """Calls of clouds and runs of models that nobody waits for."""

    def allowed(self) -> bool:
        """Return True if a request may be drawn: a low-priority call may be made now, or none is needed."""

    def room(self, request: Audited, leg: int) -> bool:
        """Return True if a low-priority call may be made now, and half of the places of that leg's endpoint are free."""

    def prepare(self, request: Audited, leg: int, edge: Prediction | None) -> Ask:
        """Copy the input, and return functions that call the cloud, blocking, and tell the costs. edge: its answer, if known."""

    def rehearse(self, request: Audited) -> Callable[[], list[ShadowRun]]:
        """Copy the input, and return a function that runs the plan's hidden edges and the one on trial, and blocks."""

    def served(self, request: Audited, answer: Prediction) -> str:
        """Return the identity of the model that gave the first cloud's answer, in words without spaces; empty: it told none."""


class Bound(NamedTuple):
    """Models and endpoints that comparisons are about."""

    backends: Any  # backends of the policy in force, as in each of its snapshots
    prints: Mapping[str, str]  # edge model name -> digest of its fingerprints
    others: Sequence[Any] = ()  # backends of policies with an edge on trial

    def of(self, backends: Any) -> bool:
        """Return True if a request with these backends is compared."""
        return backends is self.backends or any(backends is other for other in self.others)


class Comparison(NamedTuple):
    """An edge's answer that is to be compared with the cloud's."""

    leg: Leg
    prediction: Prediction | None  # None: its run failed
    how: str  # `shadow`: the edge's answer was accepted, or would be; `deferred`: it was not
    more: Mapping[str, Any] = {}  # further fields of the log line, of a shadow run


class Pending(NamedTuple):
    """Audit that waits for a thread."""

    request: Audited
    drawn: AuditDraw
    bound: Bound
    cloud: Prediction | None  # the cloud's answer; None: the cloud is still to be called
    ask: Ask | None
    edges: Sequence[Comparison]  # comparisons that wait for the cloud's answer
    rehearse: Callable[[], list[ShadowRun]] | None
    more: Mapping[str, Any]


NOTHING = Bound(None, {})  # value before the router is made, and once it is closed


def cloud_fields(outcome: Outcome, cloud: int, costs: Mapping[int, Spent]) -> dict[str, Any]:
    """Return the log fields of a shadow run about the cloud: the run's mark, and time and cost of the call, where known."""
    more: dict[str, Any] = {UNHEARD: True}
    if cloud in costs:
        instants = {mark.kind: mark.at for mark in outcome.log if mark.leg == cloud}
        if "accepted" in instants:
            more["cloud_s"] = round(instants["accepted"] - instants["start"], 6)
        spent = costs[cloud]
        more |= {"usd": spent.usd, "bytes": spent.sent_bytes + spent.received_bytes}
    return more


def has_failed(outcome: Outcome, cloud: int) -> bool:
    """Return True if that leg failed, or may never be called; False if it lacked room or time, for which an audit waits."""
    for kind, leg, _, detail in outcome.log:
        if kind == "failed" and leg == cloud:
            failure = Failure.of(detail)
            return failure.code in NEVER or not (failure.held or failure.code == "timeout")
    return False


def agreement(audit: Audit, edge: Any, cloud: Any) -> bool:
    """Return True if an edge's value agrees with the cloud's by `Audit.agrees`, or equality; a grade below 1 is a difference.

    Raises:
        PolicyError: without labels, the result of `agrees` is neither a bool nor 0 or 1.
    """
    result: Any = call_contained(audit.agrees or same, edge, cloud)
    agrees = bool(result == 1)
    if not (agrees or audit.labelled or result == 0):
        what = type(result).__name__
        raise PolicyError(f"audit: agrees returns True or False, 1 or 0 (with labels a grade), and this {what} is none")
    return agrees


# Number of waiting audits at which a drawn request has no shadow run, whatever its answer: its input waits, too.
MOST_WAITING = 64
UNTIL_NEXT = "audit-next"  # name of the stored number of requests until the next that is counted for the deferral rate
UNLABELLED_MOST = 10_000  # number of audited answers that wait for a label; the oldest is given up for another
# Prefix of the stored counts of a model's audits, before the digest of its fingerprints, with the number of thresholds that their
# indices are of; prefix of those with other thresholds; and the age at which unused ones go. A key of counts is the time at which
# they began, the audit's rate and index, 1 for a difference, and the identity of the server's model, if the server told it.
COUNTS, OTHER_COUNTS, COUNTS_S = f"counts:{len(GRID)}:", "counts:", 366 * 86_400.0
# Prefix of the stored fingerprint of the function by which those audits are compared; without one, by equality.
AGREES: Final = "agrees:"
SERVED: Final = "served:"  # prefix of the stored identity of the server's model that gave the last audit's answer
_NONE: Any = object()


class Compared(NamedTuple):
    """Edge's answer that was compared with the cloud's, or with a label: of an answer with a label there are two."""

    target: str  # name of the edge model
    request: str  # id
    plan: Plan | None
    snapshot: Any  # policy of the request; None, as the plan, with a label that is reported
    accepted: bool  # True if the caller got the answer
    rate: float  # probability with which the request was drawn
    grid_index: int  # of the highest threshold of `GRID` that accepts the answer; -1: none
    differs: bool
    label: Literal["", "awaited", "reported"] = ""  # empty: labels are not expected
    harm: bool = False  # by the label, the edge's answer is worse than the cloud's
    win: bool = False  # or better


class _Unlabelled(NamedTuple):
    """Audited answer of an edge for which a label may be reported."""

    leg: Leg
    values: tuple[Any, Any]  # edge's and cloud's
    counted: bool
    compared: Compared


class Auditor(ForkSafe):
    """Audits of one router: compares a sample of its answers with the cloud's in the background, records them, raises alarms.

    Args:
        audit: the settings.
        counts: counters; they have the number of answers that were compared with a threshold.
        submit: runs a job in a thread, if one is available.
        asks: calls the cloud for an audit.
        changed: called when thresholds or labels may have changed.
        alarm: called with an edge model's name and the alarm's text.
        journal: receives a line per comparison; None: none is written.
        store: state that outlives the process; None: there is none.
        compared: called with each `Compared`.

    Attributes:
        sampler: draws requests.
        jobs: audits that run or wait.
        arrives: draws a request that arrives now; a result other than None is passed to `audit_drawn` at the request's end.

    Raises:
        PolicyError: the settings are invalid.
    """

    _lock = per_process(SafeLock)

    def __init__(
        self, audit: Audit, counts: Counts, *, submit: Callable[[Callable[[], object]], bool], asks: BackgroundCalls,
        changed: Callable[[], None], alarm: Callable[[str, str], object], journal: Journal | None, store: KeyValueStore | None,
        compared: Callable[[Compared], object] | None = None
    ) -> None:  # fmt: skip
        self._counts, self._asks = counts, asks
        self._changed, self._alarm, self._journal, self._kept, self._compared = changed, alarm, journal, store, compared
        self._watches: dict[str, DriftMonitor] = {}
        # Edge model name -> fingerprints that its runs depend on, and their sums.
        self._tallies: dict[str, tuple[Any, Tally]] = {}
        self._bound = NOTHING
        self._begun: dict[str, int] = {}  # digest of fingerprints -> Unix time of the last alarm, since which audits are counted
        self._unlabelled: dict[str, _Unlabelled] = {}
        self._early: dict[str, Any] = {}  # id of an audit that waits or runs -> the label that was reported meanwhile, or `_NONE`
        self._said: set[str] = set()
        self._used = False
        self.jobs = Background(submit)
        self._set(audit, FULL)

    def adopt(
        self, targets: Sequence[Target], certificates: Sequence[BoundCertificate | None], prints: Mapping[str, Mapping[str, str]],
        backends: Any, audit: Audit, full: int, others: Sequence[Any]
    ) -> None:  # fmt: skip
        """Monitor the thresholds of these targets' edges from now on; the statistics of an unchanged certificate are retained.

        Alarms and counts of an earlier run are loaded for the same certificate. Stored counts of over a year ago are deleted;
        those that another `agrees` has made begin anew, with a line in the journal.

        Args:
            targets: targets of the policy.
            certificates: certificate of each target, if its threshold comes from one.
            prints: edge model name -> fingerprints of everything that its answers and the cloud's depend on.
            backends: backends of the policy.
            audit: settings.
            full: as for `Sampler`.
            others: backends of further policies, of arms, whose requests are audited, too.

        Raises:
            PolicyError: the settings are invalid.
        """
        if (audit, full) != (self.audit, self._full):
            self._set(audit, full)
        watches, tallies = {}, {}
        bound = Bound(backends, {name: digest(used) for name, used in prints.items()}, others)
        if self._kept is not None:
            self._kept.forget(OTHER_COUNTS, COUNTS_S)
            agrees = "" if self.audit.agrees is None else fingerprint(self.audit.agrees)
            for identity in {*bound.prints.values()}:
                counts = self._kept.get(COUNTS + identity)
                with contextlib.suppress(AttributeError, TypeError, ValueError):  # damaged: the counts begin anew
                    self._begun.setdefault(identity, max(int(key.split()[0]) for key in counts or ["0"]))
                other = not counts and self._kept.get(OTHER_COUNTS + identity)
                if changed := agrees != (self._kept.get(AGREES + identity) or ""):
                    self._kept.put(AGREES + identity, agrees)
                if other or (changed and counts):
                    what = "this version has other thresholds" if other else "another agrees= compares the audits"
                    self._write_lines(self._begin_counts(identity, "", what))
        thresholds = {target.name: (target.threshold, target.thresholds) for target in targets}
        for name, print_digest in bound.prints.items():
            of, had = (print_digest, thresholds.get(name)), self._tallies.get(name)
            tallies[name] = had if had is not None and had[0] == of else (of, Tally())
        for target, of_edge in zip(targets, certificates, strict=True):
            if target.side != "edge" or target.threshold is None:
                continue
            known = self._watches.get(target.name)
            dumped = known.dump() if known is not None else self._kept.get(f"audit:{target.name}") if self._kept else None
            watch = DriftMonitor(of_edge, self.audit, self._counts.judged(target.name))  # after the dump: nothing counts twice
            if isinstance(dumped, dict):
                watch.load(dumped)
            watches[target.name] = watch
        with self._lock:
            self._watches, self._tallies, self._bound = watches, tallies, bound

    def _set(self, audit: Audit, full: int) -> None:
        """Check settings and put them in force, with a new sampler, which continues the stored distance. Raises PolicyError."""
        check_audit(audit)
        self.audit, self._full = audit, full
        due = None if self._kept is None else self._kept.get(UNTIL_NEXT)
        due = due if type(due) is int else None
        allowed = partial(_allowed, self._asks)
        self.sampler = Sampler(audit.share, audit.scene, lambda: len(self.jobs.waiting), allowed, due, full)
        self._remained = self.sampler.remaining()
        self.arrives: Callable[[], AuditDraw | None] = self.sampler.arrives

    def watch(self, name: str) -> DriftMonitor | None:
        """Return the drift monitor of that edge model; None: there is none."""
        return self._watches.get(name)

    def stats(self) -> tuple[AuditStats, ...]:
        """Return the statistics of each edge model with a threshold."""
        with self._lock:
            return tuple(watch.stats(name) for name, watch in self._watches.items())

    def shadows(self) -> tuple[ShadowStats, ...]:
        """Return the statistics of each edge model that has run in shadow."""
        with self._lock:
            return tuple(tally.stats(name) for name, (_, tally) in self._tallies.items() if tally.count)

    def audit_drawn(
        self, drawn: AuditDraw, request: Audited, outcome: Outcome, costs: Mapping[int, Spent], unlike: Collection[int] = ()
    ) -> None:
        """Count a drawn request for the deferral rate, or compare it: at once, or by a queued job that calls the cloud; or both.

        Errors are logged, and not raised.

        Args:
            drawn: result of `arrives`.
            request: the request.
            outcome: outcome of its walk.
            costs: leg -> cost, as far as known.
            unlike: clouds' legs that were called otherwise than certificates assume: their answers are not compared.
        """
        self._used = True
        try:
            if drawn.rate:
                self._count_deferral(request, outcome)
            if drawn.probability:
                self._compare_or_queue(drawn, request, outcome, costs, unlike)
        except Exception as e:
            what = class_name(e)
            log.exception("an audit failed: %s; the answer is not touched by it", what)

    def report(self, identity: str, truth: Any) -> bool:
        """Record the right value of an audited answer of an edge, once.

        Return True if the answer was one; False for any other id. A value that comes before its comparison waits for it. Calls
        `compared`; an alarm is logged, reported and written to the journal. Raises what `agrees` raises, and ValueError for a
        grade outside 0..1; then it is too late to report the answer again.
        """
        with self._lock:
            if self._early.get(identity) is _NONE:
                self._early[identity] = truth  # taken once the cloud has answered
                return True
            waiting = self._unlabelled.pop(identity, None)
        if waiting is None:
            return False
        agrees = self.audit.agrees or same
        edge, cloud = (float(call_contained(agrees, value, truth)) for value in waiting.values)
        alarms = list[Mapping[str, Any]]()
        with self._lock:
            watch = self._watches.get(waiting.leg.name)
            counted = watch is not None and waiting.counted and waiting.leg.threshold == watch.threshold
            if watch is not None and watch.add_label(edge=edge, cloud=cloud, counted=counted):
                alarms.append(self._report(waiting.leg.name, watch))
            if self._compared is not None:
                self._compared(waiting.compared._replace(label="reported", harm=edge < cloud, win=edge > cloud))
        self._apply(alarms)
        return True

    def observe(self) -> None:
        """Update the monitors from the counters, store them, and start jobs that wait.

        Marks the state as used, so that `close` stores it.
        """
        with self._lock:
            for name, watch in self._watches.items():
                watch.add_totals(*self._counts.judged(name))
            self._store_monitors()
        self._used = True
        self.jobs.start()

    def close(self) -> None:
        """Store the state for later runs, unless there were no requests: a router that only measures leaves it as it was.

        Also closes the journal; later comparisons are dropped.
        """
        with self._lock:
            for name, watch in self._watches.items():
                self._used |= watch.add_totals(*self._counts.judged(name))
            remaining = self.sampler.remaining()
            if self._used:
                self._store_monitors()
            self._bound = NOTHING
            if self._kept is not None and (self._used or remaining != self._remained):
                self._kept.put(UNTIL_NEXT, remaining)
        if self._journal is not None:
            self._journal.close()

    def _count_deferral(self, request: Audited, outcome: Outcome) -> None:
        """Count, for each edge that judged the request, whether its answer was below the threshold. Logs and reports alarms."""
        alarms = list[Mapping[str, Any]]()
        legs = request.plan.legs
        marks = [(legs[i], kind == "below") for kind, i, _, _ in outcome.log if kind in {"accepted", "below"} and judged(legs[i])]
        for leg, below in [*((unsure.leg, True) for unsure in request.plan.unsure), *marks]:
            with self._lock:
                watch = self._watches.get(leg.name)
                if watch is not None and watch.add_deferral(leg.threshold, below=below):
                    alarms.append(self._report(leg.name, watch))
        self._apply(alarms)

    def _compare_or_queue(
        self, drawn: AuditDraw, request: Audited, outcome: Outcome, costs: Mapping[int, Spent], unlike: Collection[int]
    ) -> None:
        """Compare each edge's answer with the cloud's at once, if the cloud answered; queue a job for what is still to run.

        Starts jobs that wait. The job calls the cloud if that has not answered, or is among `unlike`, the legs that were called
        otherwise than certificates assume; in any case it runs hidden edges, unless `MOST_WAITING` jobs wait. It has copies.
        Nothing is done without a cloud, under another policy than now, or where calling the cloud has failed or would fail.
        """
        bound, legs, unheard = self._bound, request.plan.legs, request.plan.shadow_legs
        edges = [Comparison(legs[i], edge, "deferred") for i, edge in outcome.held.items() if judged(legs[i])]
        if outcome.accepted and outcome.leg is not None and outcome.prediction is not None and judged(legs[outcome.leg]):
            edges.append(Comparison(legs[outcome.leg], outcome.prediction, "shadow"))
        cloud = next((i for i, leg in enumerate(legs) if leg.permit is not None), None)
        runs = bool(unheard) or request.snapshot.hidden is not None
        if cloud is None or not (edges or runs) or not bound.of(request.snapshot.backends):
            return  # the last: the policy has changed meanwhile, and what the answer was made with is not what is in use now
        answer = outcome.prediction if outcome.leg == cloud and outcome.accepted and cloud not in unlike else None
        known = answer is not None or not has_failed(outcome, cloud)
        rehearses = known and runs and len(self.jobs.waiting) < MOST_WAITING
        if rehearses or self.audit.labelled or (known and answer is None):
            edges, answer = [each._replace(prediction=copy_answer(each.prediction)) for each in edges], copy_answer(answer)
        if answer is not None and edges:
            self._compare(request, drawn, bound, edges, answer)
        if rehearses or (known and answer is None and edges):
            ask = None if answer is not None else self._asks.prepare(request, cloud, edges[-1].prediction if edges else None)
            rehearse = self._asks.rehearse(request) if rehearses else None
            pending = [] if answer is not None else edges
            if self.audit.labelled and pending and pending[-1].how == "shadow":
                self._early[request.id] = _NONE
            audit = Pending(request, drawn, bound, answer, ask, pending, rehearse, cloud_fields(outcome, cloud, costs))
            self.jobs.put(Job(partial(self._run_pending, audit), lambda: answer is not None or self._asks.room(request, cloud)))
        self.jobs.start()

    def _run_pending(self, audit: Pending) -> None:
        """Call the cloud if it has not answered, run the hidden edges, and compare. Runs in a background thread; blocks.

        The call's cost is written to the journal; a label that was reported meanwhile is recorded. Nothing is compared if the
        cloud fails, and hidden edges do not run if the policy was reloaded meanwhile.
        """
        answer, identity = audit.cloud, audit.request.id
        try:
            if audit.ask is not None:
                event = audit.ask[0]()
                if usd := sum(spent.usd for spent in audit.ask[1]().values()):
                    self._write_lines({"at": round(wall_clock.now(), 3), "id": identity, "audit_usd": usd})
                if type(event) is not Done:
                    return
                answer = event.answer
            assert answer is not None, "it was known, or asked for"
            self._compare(audit.request, audit.drawn, audit.bound, audit.edges, answer)
        finally:
            with self._lock:
                truth = self._early.pop(identity, _NONE)
        if truth is not _NONE:
            self.report(identity, truth)
        if audit.rehearse is None or audit.bound is not self._bound:  # then the models may be closed
            return
        runs = audit.rehearse()
        if audit.bound is self._bound:
            edges = []
            for run in runs:
                more = {**audit.more, "edge_s": round(run.took_s, 6), **({"error": run.error} if run.error else {})}
                edges.append(Comparison(run.leg, run.prediction, "shadow" if run.accepted else "deferred", more))
            self._compare(audit.request, audit.drawn, audit.bound, edges, answer)

    def _compare(self, request: Audited, drawn: AuditDraw, bound: Bound, edges: Sequence[Comparison], cloud: Prediction) -> None:
        """Compare edges' answers with the cloud's: write a line each; update counts, statistics and monitors; call `compared`.

        Keeps answers for which a label may be reported, at most `UNLABELLED_MOST`. Alarms are logged and reported. With another
        policy in force only the lines are written. Raises PolicyError for an invalid result of `Audit.agrees`.
        """
        alarms, identity, rate = list[Mapping[str, Any]](), request.id, drawn.probability
        served = self._asks.served(request, cloud)
        for leg, edge, how, more in edges:
            agrees = edge is not None and agreement(self.audit, edge.value, cloud.value)
            confidence = None if edge is None or edge.confidence != edge.confidence else edge.confidence  # NaN
            # before it is counted: who reads the count finds the line
            line = {
                "at": round(wall_clock.now(), 3), "id": identity, "target": leg.name,
                "edge_confidence": None if confidence is None else float(confidence),
                "agrees": agrees, "audited": how, "probability": rate,
                "fingerprints": bound.prints.get(leg.name, ""), **({"served": served} if served else {}), **more,
            }  # fmt: skip
            self._write_lines(line)
            with self._lock:
                if bound is not self._bound:
                    continue
                index = grid_index(confidence)
                prints, print_ = bound.prints, bound.prints.get(leg.name)
                # for certificates of its model; once, if an edge on trial is the same as the one in use
                if self._kept is not None and print_ and leg.name == next(name for name in prints if prints[name] == print_):
                    key = f"{self._begun.get(print_, 0)} {rate!r} {index} {not agrees:d}" + (served and f" of {served}")
                    self._kept.add({COUNTS + print_: {key: 1}})
                    self._kept.put(SERVED + print_, served)
                if more:
                    self._tallies[leg.name][1].add(line, accepted=how == "shadow")
                watch = self._watches.get(leg.name)
                accepted = how != "deferred" and watch is not None and not more
                compared = Compared(leg.name, identity, request.plan, request.snapshot, accepted, rate, index, not agrees)
                if self.audit.labelled and edge is not None and accepted:
                    compared = compared._replace(label="awaited")
                    light = compared._replace(plan=None, snapshot=None)  # which would hold the models of an old policy
                    self._unlabelled[identity] = _Unlabelled(leg, (edge.value, cloud.value), drawn.counted, light)
                    if len(self._unlabelled) > UNLABELLED_MOST:
                        del self._unlabelled[next(iter(self._unlabelled))]
                if self._compared is not None:
                    self._compared(compared)
                if how == "deferred" or watch is None:
                    continue
                counted = drawn.counted and leg.threshold == watch.threshold  # else another threshold accepted it
                if watch.add_comparison(confidence, agrees=agrees, counted=counted):
                    alarms.append(self._report(leg.name, watch))
        self._apply(alarms)

    def _apply(self, alarms: Sequence[Mapping[str, Any]]) -> None:
        """Write the lines of alarms to the journal, and then call `changed`. A no-op without alarms. No lock may be held."""
        if alarms:
            self._write_lines(*alarms)
            self._changed()

    def _write_lines(self, *lines: Mapping[str, Any]) -> None:
        """Append lines to the journal, if there is one; a StoreError is logged, each text once, and not raised."""
        if self._journal is None:
            return
        try:
            for line in lines:
                self._journal.append(line)
        except StoreError as e:
            if (what := str(e)) not in self._said:
                self._said.add(what)
                log.warning("an audit could not be noted: %s", what)

    def _store_monitors(self) -> None:
        """Store the monitors' states for later runs. A no-op without a store."""
        if self._kept is not None:
            for name, watch in self._watches.items():
                self._kept.put(f"audit:{name}", watch.dump())

    def _report(self, name: str, watch: DriftMonitor) -> Mapping[str, Any]:
        """Log a monitor's alarm, call `alarm`, and store the monitors. Return the alarm's line for the journal.

        The counts of the model's audits begin anew; the store has the new beginning with the alarm.
        """
        alarm_text = "" if watch.alarm is None else watch.alarm.what
        line = self._begin_counts(self._bound.prints.get(name), name, alarm_text)
        log.warning("%s: %s; %s; calibrate again", name, alarm_text, watch.reaction)
        self._alarm(name, alarm_text)
        self._store_monitors()
        if self._kept is not None:
            self._kept.hurry()
        return line

    def begin_counts(self, why: str) -> None:
        """Begin the counts of all models' audits anew, for an alarm of another part, with lines in the journal."""
        with self._lock:
            lines = [self._begin_counts(identity, "", why) for identity in {*self._bound.prints.values()}]
        self._write_lines(*lines)

    def _begin_counts(self, identity: str | None, name: str, why: str) -> Mapping[str, Any]:
        """Begin the counts of a model's audits anew, in `_begun` and the store. Return the journal line that ends them."""
        if identity is not None:
            self._begun[identity] = since = max(int(wall_clock.now()), self._begun.get(identity, 0) + 1)
            if self._kept is not None:
                self._kept.add({COUNTS + identity: {str(since): 1}})
        return {"at": round(wall_clock.now(), 3), "target": name, "alarm": why, "fingerprints": identity or ""}


def _allowed(asks: BackgroundCalls) -> bool:
    """Return True if an audit may be made; errors are logged. An error counts as not allowed."""
    try:
        return asks.allowed()
    except Exception:
        log.exception("an audit failed; no answer is touched by it")
        return False
