"""Engine: makes requests with their plans, records their ends, and holds the policy in force. Each router owns one.

Readings of the sensors for the rules, the steps of a batch, the decision of a single edge, and a router's status are here too.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import edgeroute.router.policy_snapshot as policies
from edgeroute.cloud.egress_consent_and_redaction import WITHIN, Egress
from edgeroute.core.error_codes_and_texts import Failure
from edgeroute.core.plan import Plan, by_itself, stays_on_device
from edgeroute.core.policy_egress_and_options import INF, Mode, Permit, Rules, permit
from edgeroute.core.walk import Done, Event, Left, Outcome, new
from edgeroute.edge.edge_backend import EdgeBackend
from edgeroute.errors import Closed, Held
from edgeroute.observe.breaker_probes_and_network import EndpointHealth
from edgeroute.observe.device_sensors_and_sampler import SAMPLER
from edgeroute.observe.plan_facts_energy_rules import EASES_S, Observer
from edgeroute.observe.target_counts import ALONE, Counts
from edgeroute.router.cache_key_prefixes import LONGEST
from edgeroute.router.drivers import blocking
from edgeroute.router.fallbacks_and_late_replies import Fallback, LateReplies
from edgeroute.router.leg_execution import LegExecutor, Walked
from edgeroute.router.part_hooks_and_dispatch import Followed, Part, Parts
from edgeroute.router.private_conversations_and_digest_store import MUTE, PrivateConversations
from edgeroute.router.request import AGAIN, STREAMS, Request, Shows, checked_importance, is_read_once, read_once_error
from edgeroute.router.request_checks_and_planning import checked_plan, drop_unsure_edges, first_piece_s, stored_plan
from edgeroute.router.steps_and_composed_stages import Block, Result, Steps, compose, walk_stage
from edgeroute.system.files_and_lock_waits import limited_waits
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.late_imports_and_plugins import import_tool
from edgeroute.system.sanitised_logs_and_contained_errors import call_quietly
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import ThreadPool
from edgeroute.types import Answer

if TYPE_CHECKING:
    from pathlib import Path

    from edgeroute.cloud.shared_spending_and_record import SharedSpending
    from edgeroute.observe.stats_and_status_types import Stats, Status
    from edgeroute.record.checkpoint import Checkpoint
    from edgeroute.record.instrument_interface import Instruments
    from edgeroute.router.cache_and_singleflight import Caching
    from edgeroute.router.decision_and_check_results import Decision
    from edgeroute.router.offline_queue import OfflineQueue
    from edgeroute.router.trial_arms_and_guardrail import Trials
    from edgeroute.stores.json_lines_and_process_locks import Journal
    from edgeroute.trials.audits_and_drift_alarms import Auditor


# Readings of the device's sensors for a router; a rule may have edge models freed, and loaded again later.


def read_sensors_once(engine: Engine) -> None:
    """Read a router's sensors, blocking. When other rules are in force, delete stored plans.

    Frees edge models, or loads freed ones, by the rules. Updates the facts if energy is limited. Schedules the next reading, also
    after an error.
    """
    observer = engine.observer
    observer.reads_at = INF
    try:
        if observer.read():
            policies.clear_plans(engine.snapshot)
        if observer.limited and observer.energy.extra_w is not None:
            engine.observe()
        _free_or_load(engine)
    finally:
        observer.schedule_read()


def _free_or_load(engine: Engine) -> None:
    """Free the edge models if a rule in force demands it; else load freed ones again, in a thread, or here if none is free.

    Errors of freeing and loading are logged. Updates the facts, so that calls go to the next target while models load.
    """
    snapshot, rules = engine.snapshot, engine.observer.facts.rules
    edges = [cast("EdgeBackend", b) for b in policies.backends_by_spec(snapshot).values() if b.side == "edge"]
    if any(rule.then == "unload" for rule in snapshot.policy.device_rules if rule in rules):
        for backend in edges:
            call_quietly(backend.unload, "freeing an edge model")
    elif freed := [backend for backend in edges if backend.unloaded and not backend.loading]:
        for backend in freed:
            backend.loading = True
        engine.observe()
        if not engine.local_threads.submit(partial(_load, engine, freed)):
            _load(engine, freed)


def _load(engine: Engine, freed: list[EdgeBackend]) -> None:
    """Load models that were freed; meanwhile calls go to the next target. Errors are logged. Updates the facts at the end."""
    for backend in freed:
        call_quietly(backend.load, "loading an edge model again")
    engine.observe()


# Logging of failures after a walk; thresholds in force.


def settle(engine: Engine, request: Request, outcome: Outcome, legs: LegExecutor) -> None:
    """Have the costs of a request's calls stored soon, and log the failures of its legs (requests to one target each).

    If a server tells another model's identity than before, thresholds are updated. Called once the walk has ended, so that no leg
    is late for it.
    """
    if legs.exchanges:
        engine.spending.keep()
        if engine.refresh_at < INF and policies.served_identities(engine.snapshot) != engine.served:
            engine.refresh_thresholds()
    for kind, leg, _, detail in outcome.log:
        if kind == "failed":
            backend = request.snapshot.backends[request.plan.legs[leg].target]
            if Failure.of(detail).code == "view":
                backend.failures.log(f"the view for {backend.name}", detail if detail.__cause__ is None else detail.__cause__)
            else:
                backend.failures.log(f"{backend.name} ({backend.where})", detail)


def effective_snapshot(snapshot: policies.Snapshot, auditor: Auditor | None, doubt: Mapping[str, Any]) -> policies.Snapshot:
    """Return the policy with thresholds and labels as they are now, after alarms and certificates' expiry.

    Targets after one whose threshold was raised are labelled uncalibrated. The same object if nothing changed; otherwise a copy
    without stored plans. doubt: fields of each target that has a certificate.
    """
    if auditor is None and not any(snapshot.certificates):
        return snapshot
    from edgeroute.confidence.certificate import effective_target, ladder_targets

    targets, moved, by = [], "", ""
    for i, (target, certificate) in enumerate(zip(snapshot.targets, snapshot.certificates, strict=True)):
        monitor = None if auditor is None else auditor.watch(target.name)
        effective = effective_target(target, certificate) if monitor is None else monitor.target(target)
        effective = effective if certificate is None else effective._replace(**doubt)
        beside = bool(by) and target.group == by  # a variant of the edge that was moved: inputs reach it as before
        unchanged = not moved or certificate is None or beside
        targets.append(effective if unchanged else effective._replace(label=f"uncalibrated: {moved}"))
        given = policies.calibrated_target(snapshot, i)
        if (effective.threshold, effective.thresholds) != (given.threshold, given.thresholds):
            by = target.group
            moved = f"{target.name}, whose threshold was raised, defers more to it than when it was calibrated"
    labelled = tuple(ladder_targets(targets, snapshot.certificates))
    return snapshot if labelled == snapshot.targets else snapshot._replace(targets=labelled, plans={})


# Maximum threads: for legs on the device; for calls of a cloud, which may hang; for disks, sensors and late replies.
EDGE_MOST, CLOUD_MOST, LOCAL_MOST = 256, 256, 64
AGES_S = 60.0  # minimum seconds between checks of certificates' age
CLOSED = "this router is closed"
LOCKED_S = 3.0  # maximum seconds that closing waits for files that others have locked, and a moment for each
NO_RULES = Rules()  # egress rules by which everything may leave
PLAIN = (None, None, None, "")  # key of the plan for calls that override nothing
MOST_PLANS = 1000  # limit of the plan cache: callers may pass a different remaining deadline, or a new data class, every time


class Engine(ForkSafe):
    """Parts of one router; makes requests with their plans, walks, records and settles them, and closes all. Made by `assemble`.

    Attributes:
        snapshot: policy in force, with its targets.
        counts, observer, spending, health: observing parts.
        caching, queue, late, auditor, checkpoint, ledger: optional parts; None if not configured.
        state: state folder; None: nothing outlives the process.
        private: recogniser of conversations that stay on the device.
        edge_threads, cloud_threads, local_threads: thread pools for legs on the device, for calls of a cloud, and for the rest.
        arguments: arguments of the policy in force.
        parts: parts that take part in calls.
        choosers, walked, ended, changed, compared: methods of the parts for these events.
        steps: composed stages, for calls in which an optional part takes part.
        name, numbers: prefix and counter of the ids of requests.
        refreshing: lock held while the snapshot is exchanged.
        replacing: lock held while another policy is made, which may take long.
    """

    snapshot: policies.Snapshot
    observer: Observer
    spending: SharedSpending
    instruments: Instruments
    breaker_changed: Callable[[str, str], None]
    late: LateReplies
    fallback: Fallback
    arguments: policies.PolicyArguments
    name = per_process(lambda: os.urandom(10).hex())  # unique in a fleet, also in a child: endpoints take ids for keys
    refreshing, replacing = per_process(SafeLock), per_process(SafeLock)

    def __init__(self, state: Path | None) -> None:
        self.state = state
        self.edge_threads = ThreadPool("edgeroute-edge", EDGE_MOST, native=True)
        self.cloud_threads = ThreadPool("edgeroute-cloud", CLOUD_MOST)
        self.local_threads = ThreadPool("edgeroute-local", LOCAL_MOST)
        self.counts, self.health = Counts(), EndpointHealth(self)
        self.private = PrivateConversations(None if state is None else state / "conversations.db", self.local_threads.submit)
        self.caching: Caching | None = None
        self.queue: OfflineQueue | None = None
        self.auditor: Auditor | None = None
        self.checkpoint: Checkpoint | None = None
        self.ledger: Journal | None = None
        self.trials: Trials | None = None
        self.closed = False
        self.plain = True  # fast path: no cache, late replies or views are configured, so `infer` walks and records directly
        self.fixed: tuple[Part, ...] = ()  # parts that a reload does not change, the outermost first
        self.audited = 0.0  # share of requests audited, 0..1
        self.numbers = count(1)
        self.refresh_at = INF  # instant of the next check for expired certificates
        self.served = ""  # identities of the servers' models at the last check
        self.doubt: Mapping[str, Any] = {}  # label, and threshold, of targets whose certificates a sentinel has suspended
        self.refused = ""  # error of the last reload; empty: the policy file is in force
        self.signed: Callable[[], str] = str  # returns the state of the signed policy, in words; empty: none is followed

    def request(
        self, x: Any, mode: Mode | None, deadline: float | None, data_class: str | None,
        importance: float = 0.0, shows: Shows = "", first_token: float | None = None, like: str = "",
        together: bool = False, renews: bool = False
    ) -> Request:  # fmt: skip
        """Make one request, beginning now, with its id and plan; updates the facts if that is due, as once a busy target is free.

        Calls the application's function of data classes, if there is one; chooses the arm of a trial, notes a private
        conversation, and starts a due reading of the sensors in a thread.

        Args:
            x: the input.
            mode: mode of the call; None: the policy's.
            deadline: seconds; None: the policy's.
            data_class: name of the data class; None: the policy's.
            importance: order of delivery from the outbox.
            shows: what the caller gets before the final answer.
            first_token: limit of the time to the first token, seconds; None: the policy's.
            like: id of a request whose arm it shares; empty: none.
            together: True if the plan is for several inputs.
            renews: True for a revalidation: its mode is that of an earlier plan, not the caller's.

        Raises:
            Closed, PolicyError, MayNotLeave: there is no plan for the request.
            BadInput: the input can be read only once.
        """
        if self.closed:
            raise Closed(CLOSED)
        kind = type(x)
        if kind not in AGAIN and is_read_once(x):
            raise read_once_error(x)
        if importance.__class__ is not float or importance != importance:  # noqa: PLR0124 - NaN
            importance = checked_importance(importance)
        begun, observer = monotonic(), self.observer
        snapshot, identity, arm = self.snapshot, f"{self.name}-{next(self.numbers)}", ""
        for choose in self.choosers:
            snapshot, arm = choose(snapshot, like or identity, x)
        if begun >= observer.eases_at or (observer.facts.busy and observer.outdated(snapshot.backends)):
            observer.eases_at = begun + EASES_S
            self.observe()
        if data_class is not None and data_class.__class__ is not str and isinstance(data_class, str):  # may equal other names
            data_class = str.__str__(data_class)
        if snapshot.egress.data_class is not None and not together:
            data_class = class_of(self, snapshot.egress, x, data_class)
        if kind is np.ndarray:
            talks = x.dtype.kind in "OUTV"
        elif kind is str:
            talks = mode is not None or data_class is not None or snapshot.policy.rules != NO_RULES
        else:
            talks = kind not in MUTE
        if WITHIN.get() is snapshot.egress:
            home = "it was called within a function of the egress rules"
        else:
            home = self.private.why(x, identity, snapshot.policy, None if renews else mode, data_class, deadline) if talks else ""
        if home:
            plan: Plan | None = checked_plan(snapshot, observer.facts, mode, deadline, data_class, home)
        elif deadline is None and mode is None and data_class is None and not arm:
            plan = snapshot.plans.get(PLAIN)
        else:
            plan = stored_plan(snapshot, mode, deadline, data_class, arm)
        if plan is None:
            plan = self._plan(snapshot, mode, deadline, data_class, arm)
        if snapshot.before and not together:
            plan = drop_unsure_edges(snapshot, plan, x)
        if begun >= observer.reads_at:
            SAMPLER.read(self)
        first_s = INF if not shows or shows not in STREAMS else first_piece_s(snapshot.policy.first_token_s, first_token)
        return new(Request, (identity, x, plan, snapshot, begun, begun + plan.deadline_s, importance, "", shows, first_s, None))

    def rows(self, batch: Sequence[Any], mode: Mode | None, deadline: float | None, data_class: str | None) -> list[Request]:
        """Make one request per row of a batch, all with one plan and one arm; see `request` for effects and errors.

        One row that must stay on the device makes all of them stay.
        """
        first = self.request(batch[0], mode, deadline, data_class, together=True)  # whose arm is that of all
        rows = [first._replace(id=f"{first.id}.{row}", inputs=x, batch=first.id) for row, x in enumerate(batch)]
        policy, facts = first.snapshot.policy, self.observer.facts
        self.private.awaited.pop(first.id, None)
        why = {row.id: self.private.why(row.inputs, row.id, policy, mode, data_class, deadline) for row in rows}
        if home := next(filter(None, why.values()), ""):  # one that stays keeps all: they are asked about together
            plan = checked_plan(first.snapshot, facts, mode, deadline, data_class, home)
            rows = [row._replace(plan=plan) for row in rows]
        return rows

    def revalidation_request(self, request: Request) -> Request:
        """Make a request equal to one served stale, for its revalidation: with its cache key, no deadline, and never queued.

        Raises:
            Held: it would leave the device, and nothing leaves by itself now.
        """
        why = self.stays_on_device() or ("the cloud is loaded" if self.observer.facts.kept else "")
        if why and any(leg.permit is not None for leg in request.plan.legs):
            raise Held(f"nothing leaves by itself: {why}")
        plan, like = request.plan, request.batch or request.id
        renewal = self.request(request.inputs, plan.mode, None, plan.data_class, like=like, renews=True)
        return renewal._replace(plan=by_itself(renewal.plan)._replace(offline="raise"), key=request.key)

    def _plan(
        self, snapshot: policies.Snapshot, mode: Mode | None, deadline: float | None, data_class: str | None, arm: str
    ) -> Plan:
        """Make a plan, and store it until the facts change. Not stored for a long data class; a full store is cleared first."""
        facts = self.observer.facts
        plan = checked_plan(snapshot, facts, mode, deadline, data_class, "", arm)
        if data_class is None or len(data_class) <= LONGEST:
            if len(snapshot.plans) >= MOST_PLANS:
                snapshot.plans.clear()
            snapshot.plans[mode, deadline, data_class, arm] = plan
            if facts is not self.observer.facts:  # they have changed meanwhile
                policies.clear_plans(snapshot)
        return plan

    def legs(self, requests: Sequence[Request], first: Event | None = None) -> LegExecutor:
        """Return a new executor of these requests' legs. first: event of a first leg that has run already."""
        late = self.late.take if self.late.wanted else None
        cache = None if self.caching is None else self.caching.cache
        executor = LegExecutor(requests, self.edge_threads, self.cloud_threads, cache, late, self.counts.add_latency)
        if executor.edge is not None and type(first) is Done:
            executor.edge.note(None, [first.answer])
        return executor

    def walk(self, requests: Sequence[Request]) -> Steps[list[Result]]:
        """Yield the steps that walk the requests, record them, tell the parts, and return the results: the innermost stage.

        Where no answer was accepted, the result is by the offline rule: a fallback, or the error to raise. Saves private
        conversations.
        """
        walks = yield from walk_stage(requests, self.legs(requests), self.leave)
        stays = any(request.id in self.private.awaited for request in requests)
        for walk_result in walks:
            self.record(walk_result.request, walk_result.outcome, walk_result.legs)
        for method in self.walked:
            method(walks)
        results = yield from self.fallback.answers(walks)
        if stays and (step := self.private.saving(requests[0])) is not None:
            yield step
        return results

    def record(self, request: Request, outcome: Outcome, legs: LegExecutor | None) -> None:
        """Count a request, log its failures, have its costs stored soon, and update the facts if they changed.

        Also stores the digests of a private call's answer, and of the texts of one that has left.
        """
        if self.private.awaited or type(request.inputs) not in MUTE:
            self.private.walk_ended(request, outcome)
        plan, observer = request.plan, self.observer
        if plan.unsure:
            self.counts.count_unsure(plan.unsure)
        counted = self.counts.record(plan, outcome, bool(request.batch))
        if counted or ((observer.facts.busy or len(outcome.log) > ALONE) and observer.outdated(request.snapshot.backends)):
            self.observe()
        if legs is not None:
            settle(self, request, outcome, legs)

    def leave(self, request: Request, outcome: Left, legs: LegExecutor) -> None:
        """Count, settle and report to the parts a request whose caller left early.

        Its end is no answer, so audits and comparisons ignore it.
        """
        self.private.walk_ended(request, outcome)
        if self.counts.record(request.plan, outcome):
            self.observe()
        settle(self, request, outcome, legs)
        for ended in self.ended:
            ended(request, Answer(request.plan, outcome, request.id, legs.costs()))

    def finish(self, request: Request, outcome: Outcome, legs: LegExecutor | None = None) -> Result:
        """Record a request on the fast path, tell the parts, and return its answer, or one by the offline rule.

        An exception to raise is returned, not raised.
        """
        self.record(request, outcome, legs)
        costs = {} if legs is None else legs.costs()
        if self.walked:
            walks = (Walked(request, outcome, costs, legs=legs),)
            for method in self.walked:
                method(walks)
        if outcome.accepted:
            return Answer(request.plan, outcome, request.id, costs)
        walk_result = Walked(request, outcome, costs, legs=legs)
        try:
            next(self.fallback.answers([walk_result]))
        except StopIteration as end:
            return end.value[0]  # type: ignore[no-any-return]
        raise AssertionError("without an outbox and a cache no offline rule waits")

    def observe(self) -> None:
        """Update the facts (latencies, load, breakers, limits) that plans depend on, and tell the parts.

        Stored plans are deleted if the facts changed. Thresholds are updated if a certificate may have expired, or a server has
        another model.
        """
        snapshot = self.snapshot
        if self.observer.observe(snapshot.policy, *snapshot.watched):
            policies.clear_plans(snapshot)
        for changed in self.changed:
            changed(snapshot)
        if monotonic() >= self.refresh_at or (self.refresh_at < INF and policies.served_identities(snapshot) != self.served):
            self.refresh_thresholds()

    def stays_on_device(self, *, read: bool = False) -> str:
        """Return the reason why nothing leaves the device by itself now; empty: deliveries, audits, probes and revalidation may.

        Args:
            read: read the sensors first, blocking, if that is due: an idle device has no requests that would do it.
        """
        policy, observer = self.snapshot.policy, self.observer
        if read and policy.device_rules and monotonic() >= observer.reads_at:
            self.read_sensors()
        return stays_on_device(policy, observer.facts)

    def read_sensors(self) -> None:
        """Read the device's sensors, apply the rules in force, and have them read from now on. Blocks for them."""
        read_sensors_once(self)
        SAMPLER.add(self)

    def refresh_thresholds(self) -> None:
        """Update thresholds and labels in the snapshot and its trial's, after an alarm, an expiry or another served model.

        Replaces the snapshot if they differ, under the lock `refreshing`. Sets the instant of the next refresh.
        """
        with self.refreshing:
            self.served = policies.served_identities(self.snapshot)
            snapshot = effective_snapshot(self.snapshot, self.auditor, self.doubt)
            if snapshot.trial is not None:
                snapshot = snapshot._replace(trial=effective_snapshot(snapshot.trial, self.auditor, self.doubt))
            if snapshot.targets != self.snapshot.targets or snapshot.trial is not self.snapshot.trial:
                self.snapshot = snapshot
            self.refresh_at = monotonic() + AGES_S if any(snapshot.certificates) else INF

    def resume(self) -> None:
        """Wake the outbox, if there is one: a cloud is back. At once if this device was offline, else after a random wait."""
        if self.queue is not None:
            self.queue.delivery.wake(now=self.health.outage_was_local())

    def note(self, what: str, identity: str) -> None:
        """Count and report an event (`queued`, `late`, ...) of a request in the outbox. Other events are only reported."""
        if what in {"queued", "late"}:
            self.counts.note(what)
        self.instruments.outbox_changed(identity, what)

    def on_late(self, function: Callable[..., object]) -> None:
        """Register a function for late answers. Later calls take the slower path."""
        self.late.on_late(function)
        self.plain = False

    def stats(self) -> Stats:
        """Return counts, deferral rate, latency quantiles, bytes, cost and energy so far, with the figures of the parts."""
        seen: list[tuple[Any, ...]] = []
        for b in self.snapshot.watched[1]:
            guard = getattr(b, "guard", None)
            link_figures = (guard.state, guard.held, guard.rules.link.call_s, guard.rules.link.bytes_per_s) if guard else ("", 0)
            seen.append((b.name, b.side, *b.traffic, *link_figures))
        figures = self.counts.snapshot(seen, self.spending.spent().usd)
        return figures._replace(**self.parts.figures(), **self.observer.energy.stats_fields(self.snapshot.backends))

    def use(self, *parts: Part) -> None:
        """Have these parts, which may change at a reload, take part in calls from now on, beside the fixed ones.

        Composes the stages anew, says which states the checkpoint stores, and ends the fast path for good if a part needs the
        stages.
        """
        self.parts = all_parts = Parts((*self.fixed, *parts))
        self.choosers, self.walked, self.ended, self.changed, self.compared = map(
            all_parts.methods, ("choose", "walked", "ended", "changed", "compared")
        )
        around = all_parts.methods("around")
        self.steps = compose([Followed(all_parts).around, *around], self.walk)
        self.plain = self.plain and not (around or all_parts.methods("began") or self.late.wanted or self.snapshot.views.given)
        if self.checkpoint is not None:
            self.checkpoint.dumps = {
                **all_parts.states(),
                "energy": lambda: self.observer.energy.joules(self.snapshot.backends) or None,
            }

    def close(self) -> None:
        """End calls, threads and connections, close the models and parts, and store the state. Never raises.

        Errors are logged. Blocks for threads up to a second each, and `LOCKED_S` for files that other processes have locked.
        """
        self.closed = True
        self.late.close()
        steps: list[Callable[[], object]] = [*self.parts.methods("closing"), partial(SAMPLER.remove, self), self.health.close]
        steps += [backend.guard.turns.close for backend in self.snapshot.clouds]
        steps += [] if self.queue is None else [self.queue.close]
        steps += [pool.close for pool in (self.edge_threads, self.cloud_threads, self.local_threads)]
        steps += [backend.close for backend in policies.backends_by_spec(self.snapshot).values()]
        steps += [lambda: self.observer.book(None, monotonic()), *reversed(self.parts.methods("close"))]
        with limited_waits(LOCKED_S):
            for close in steps:
                call_quietly(close, "closing a router")


def class_of(engine: Engine, egress: Egress, x: Any, named: str | None) -> str | None:
    """Return the data class of an input, by a function of the application if there is one; see `Egress.class_of`."""
    return egress.class_of(x, named, () if engine.caching is None else engine.caching.cache.never)


def batch_steps(
    engine: Engine, batch: Sequence[Any], mode: Mode | None, deadline: float | None, data_class: str | None
) -> Steps[list[Result]]:
    """Walk several inputs, and return their results in order; raises BadInput for an input that can be read only once.

    If a function gives their data classes, it is called in a thread, and the inputs of each class go together, first those that
    stay.
    """
    for x in batch:
        if is_read_once(x):
            raise read_once_error(x)
    egress = engine.snapshot.egress
    if egress.data_class is None or not isinstance(data_class, str | None):
        return (yield from engine.steps(engine.rows(batch, mode, deadline, data_class)))
    classify = partial(copy_context().run, lambda: [cast("str", class_of(engine, egress, x, data_class)) for x in batch])
    classes: list[str] = yield Block(classify, INF)
    order = sorted(set(classes), key=lambda name: (isinstance(permit(egress.rules, name), Permit), name))
    places = [[i for i, name in enumerate(classes) if name == wanted] for wanted in order]
    groups = [engine.rows([batch[i] for i in rows], mode, deadline, name) for rows, name in zip(places, order, strict=True)]
    results = dict[int, Result]()
    for rows, requests in zip(places, groups, strict=True):
        results |= zip(rows, (yield from engine.steps(requests)), strict=True)
    return [results[i] for i in range(len(batch))]


def decide_alone(engine: Engine, x: Any, mode: Mode | None, deadline: float | None, data_class: str | None) -> Decision:
    """Return the route that an input would take, running edges here if need be, without sending anything.

    Blocks; raises as `request`.
    """
    request = engine.request(x, mode, deadline, data_class)
    legs = engine.legs([request])
    decide = import_tool("inspect.decide_and_check").decide
    return blocking.drive_inline(decide(request.plan, legs, x, engine.audited), legs.run)  # type: ignore[no-any-return]


# Status of a router: statistics, limits, outbox, device.


def status(engine: Engine) -> Status:
    """Return the status of a router. Reads the outbox's file, if there is one; waits for no lock and no network.

    `outbox` is empty if that file cannot be read, and None once the router is closed.
    """
    from edgeroute.observe.stats_and_status_types import Status

    observer = engine.observer
    read_at = observer.read_at
    return Status(
        stats=engine.stats(),
        limits=engine.spending.limits,
        spent=engine.spending.spent(),
        # A closed file would be opened again.
        outbox=None if engine.queue is None or engine.closed else engine.queue.outbox.known_counts(),
        reading=None if read_at is None else observer.reading,
        reading_age_s=0.0 if read_at is None else monotonic() - read_at,
        rules=tuple(dict.fromkeys(f"{rule}: {rule.then}" for rule in observer.facts.rules)),
        closed=engine.closed,
        signed=engine.signed(),
    )


def status_of(engine: Engine) -> Callable[[], Status | None]:
    """Return a function that returns a router's status; None once it is closed or gone. It does not keep the router alive."""
    weak = weakref.ref(engine)

    def now() -> Status | None:
        there = weak()
        return None if there is None or there.closed else status(there)

    return now
