"""Calls of clouds and runs of edges for audits and hidden trials of a router, which nobody waits for; and audits put in force."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from edgeroute.core.plan import Leg, by_itself, shadow_leg
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.walk import Failed, Prediction, Start, acceptable
from edgeroute.errors import Held
from edgeroute.router.engine import Engine
from edgeroute.router.leg_execution import LegExecutor, Walked
from edgeroute.router.part_hooks_and_dispatch import Part
from edgeroute.router.policy_snapshot import Snapshot, fingerprints
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.input_copies import copy_input
from edgeroute.trials.audits_and_drift_alarms import FULL, FULL_OF_RUNS, Ask, Auditor, Compared
from edgeroute.trials.shadow_statistics_and_job_queue import ShadowRun

if TYPE_CHECKING:
    from edgeroute.router.trial_arms_and_guardrail import Trials
    from edgeroute.trials.audit_setting_and_drift_monitor import Audit


class AuditCalls:
    """Calls of a router's clouds, and runs of its models, for which nobody waits, where rules, limits and load allow them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def allowed(self) -> bool:
        """Return True if a request may be drawn. In shadow mode it needs no call of its own."""
        return self._engine.snapshot.policy.mode == "shadow" or self._may_call()

    def room(self, request: Any, leg: int) -> bool:
        """Return True if a low-priority call may be made now, and half of the places of that leg's endpoint are free."""
        backend: Any = request.snapshot.backends[request.plan.legs[leg].target]
        return self._may_call() and backend.guard.has_headroom()

    def _may_call(self) -> bool:
        """Return True if a low-priority call may be made now, by the policy, the link, the limits and the endpoints' state."""
        return not self._engine.stays_on_device() and not self._engine.observer.no_hedge(self._engine.snapshot.proper)

    def prepare(self, request: Any, leg: int, edge: Prediction | None) -> Ask:
        """Copy the input, and return a function that calls the cloud and blocks, and one that returns what that has cost.

        The call has no deadline, an id that ends in -audit, and the codec's floor.

        Args:
            request: the request to audit.
            leg: index of the cloud's leg in its plan.
            edge: edge's answer to the input, if known.
        """
        inputs = call_contained(copy_input, request.inputs)
        plan, identity = by_itself(request.plan), f"{request.id}-audit"
        shadow = request._replace(id=identity, inputs=inputs, plan=plan, until=INF, batch="", key=None)
        legs, start = LegExecutor([shadow], self._engine.edge_threads, self._engine.cloud_threads), Start(leg)
        legs.floor = True
        if legs.edge is not None:
            legs.edge.note(None, [edge])
        backend: Any = legs.backend(start)
        if backend.alone_async:
            import asyncio

            async def here(call: Callable[[], Any], **_: Any) -> Any:  # it has its own loop and thread
                return call()

            return lambda: _denied(shadow, leg) or asyncio.run(legs.run_async(start, here)), legs.costs
        return lambda: _denied(shadow, leg) or legs.run(start), legs.costs

    def rehearse(self, request: Any) -> Callable[[], list[ShadowRun]]:
        """Copy the input, and return a function that runs the hidden edges of its plan and the one on trial, and blocks.

        A failed run is logged, and returned as one without an answer. Raises what copying raises.
        """
        copied, trial = request._replace(inputs=call_contained(copy_input, request.inputs)), request.snapshot.hidden
        parts = [self._alone(copied, copied.plan.shadow_legs)] if copied.plan.shadow_legs else []
        if trial is not None:
            parts.append(self._alone(copied._replace(snapshot=trial), (shadow_leg(0, trial.targets[0], trial.policy),)))
        return lambda: [run for legs in parts for run in _rehearse(legs)]

    def served(self, request: Any, answer: Prediction) -> str:
        """Return the identity of the model that gave the first cloud's answer, as `served_identities`; empty: it told none.

        Other clouds count as unknown.
        """
        asked = next(request.snapshot.backends[leg.target] for leg in request.plan.legs if leg.permit is not None)

        def identity(cloud: Any) -> str:
            endpoint = getattr(cloud, "endpoint", None)
            text = getattr(endpoint, "served", "")
            if cloud is asked:
                return getattr(endpoint, "served_in", lambda _: text)(answer.outputs) or "-"
            return re.sub(":[^ ]+", ":?", text) or "-"

        identities = [*map(identity, request.snapshot.proper)]
        return " ".join(identities) if {*identities} != {"-"} else ""

    def _alone(self, request: Any, legs: tuple[Leg, ...]) -> LegExecutor:
        """Return an executor of these legs on that input: no deadline, no batch, nothing shown, an id that ends in -shadow."""
        plan = request.plan._replace(legs=legs, sequential=True, deadline_s=INF)
        shadow = request._replace(id=f"{request.id}-shadow", plan=plan, until=INF, batch="", key=None, shows="")
        return LegExecutor([shadow], self._engine.edge_threads, self._engine.cloud_threads)


def _denied(request: Any, i: int) -> Failed | None:
    """Return the failure of a call of a cloud that the policy in force by now forbids; None: it permits it."""
    leg = request.plan.legs[i]
    why = request.snapshot.backends[leg.target].guard.withdrawn(leg.permit)
    return Failed(i, Held(why), monotonic()) if why else None


def _rehearse(legs: LegExecutor) -> list[ShadowRun]:
    """Run the edges of a plan in order until one's answer would be accepted, and return a record of each run. Blocks.

    A failure is logged, and the next edge runs; after an input that an edge rejects none does.
    """
    runs = list[ShadowRun]()
    for i, leg in enumerate(legs.plan.legs):
        begun = monotonic()
        event: Any = legs.run(Start(i))
        took_s = event.at - begun
        if type(event) is Failed:
            backend: Any = legs.backend(Start(i))
            backend.failures.log(f"{leg.name} ({backend.where}), in shadow", event.error, coded=True)
            runs.append(ShadowRun(leg, None, False, took_s, type(event.error).__name__))
            if event.fatal:  # an error to the caller, if this were followed
                break
            continue
        accepted = acceptable(leg, event.answer)
        runs.append(ShadowRun(leg, event.answer, accepted, took_s))
        if accepted:
            break
    return runs


def effective_audit(audit: Audit | None, snapshot: Snapshot) -> Audit | None:
    """Return the settings in force. Without any: in shadow mode of all requests, with a hidden edge of its share; else None."""
    if audit is None and (snapshot.policy.mode == "shadow" or snapshot.hidden is not None):
        from edgeroute.trials.audit_setting_and_drift_monitor import Audit as Made

        share = next((t.share for t in snapshot.trials if t.side == "edge"), None)
        return Made(share=1.0 if snapshot.policy.mode == "shadow" or share is None else share)
    return audit


def put_trials(engine: Engine, snapshot: Snapshot) -> None:
    """Put the trials of a policy in force: set `engine.trials`, and have it take part in calls.

    Unchanged trials continue their figures.
    """
    engine.trials = _trials(engine, snapshot)
    _use(engine)


def _use(engine: Engine) -> None:
    """Have trials and audits take part in the engine's calls, as far as there are some."""
    audits = [] if engine.auditor is None else [Audits(engine.auditor)]
    engine.use(*([] if engine.trials is None else [engine.trials]), *audits)


def put_audits(engine: Engine, snapshot: Snapshot, audit: Audit | None) -> None:
    """Put the settings of audits in force under a policy: make, update or close the engine's auditor, which takes part in calls.

    Raises PolicyError for invalid settings.

    Args:
        engine: engine of the router; `auditor` and `audited` are set.
        snapshot: the policy.
        audit: settings; None: audits only where something hidden runs.
    """
    before = engine.auditor
    audit = effective_audit(audit, snapshot)
    auditor = None if audit is None else before or _auditor(engine, audit)
    if audit is not None and auditor is not None:
        full = FULL_OF_RUNS if snapshot.policy.mode == "shadow" else FULL
        certificates, other = snapshot.certificates, snapshot.shown
        others: tuple[Any, ...] = ()
        if other is not None:
            certificates, others = certificates + other.certificates[:1], (other.backends,)
        auditor.adopt(snapshot.watched[0], certificates, edge_fingerprints(snapshot), snapshot.backends, audit, full, others)
    engine.auditor, engine.audited = auditor, 0.0 if audit is None else audit.share
    _use(engine)
    if before is not None and auditor is None:
        before.close()


CLOSE_S = 1.0  # maximum time that closing waits for audits under way, seconds


class Audits(Part):
    """Part that passes requests on to the auditor, which draws those that are compared."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor, self.close = auditor, auditor.close  # type: ignore[method-assign]

    def walked(self, walks: Sequence[Walked]) -> None:
        """Draw each request, and give those that are drawn to the auditor, but for those that asked a cloud on trial.

        Costs of a batch are not passed, as they are of all its rows.
        """
        for request, outcome, costs, _, _, legs in walks:
            drawn = self._auditor.arrives()
            if drawn is not None and not request.plan.arm:
                self._auditor.audit_drawn(drawn, request, outcome, {} if request.batch else costs, _unlike(legs))

    def changed(self, snapshot: Snapshot) -> None:  # noqa: ARG002 - it follows the counts alone
        """Update the monitors from the counts, and begin audits that wait."""
        self._auditor.observe()

    def stats(self) -> dict[str, Any]:
        """Return the statistics of audits and of shadow runs."""
        return {"audits": self._auditor.stats(), "shadows": self._auditor.shadows()}

    def closing(self) -> None:
        """Wait up to `CLOSE_S` for the audits that can be made now: else a short program logs few answers."""
        self._auditor.jobs.drain(CLOSE_S)


def _unlike(legs: LegExecutor | None) -> Collection[int]:
    """Return the clouds' legs that were called otherwise than by `calibrate`: without the edge's answer, or above the floor."""
    if legs is None:
        return ()
    exchanges = [*legs.exchanges.items()]  # others may begin
    asked = ((cast("Any", legs.backends[legs.plan.legs[leg].target]), leg, exchange) for leg, exchange in exchanges)
    return {leg for backend, leg, exchange in asked if exchange.edge is False or backend.above_floor(exchange.codec)}


def _trials(engine: Engine, snapshot: Snapshot) -> Trials | None:
    """Return the trials of a policy; None: there are none. They continue the figures of the present ones, or of the state file.

    The present object is returned if the trials are the same.
    """
    known = engine.trials
    if not snapshot.on_trial:
        return None
    from edgeroute.router.trial_arms_and_guardrail import Trials as Made

    store = None if engine.checkpoint is None else engine.checkpoint.store
    dumped = known.dump() if known is not None else None if store is None else store.get(Made.name)
    trials = Made(snapshot, engine.instruments.alarm, AuditCalls(engine), engine.cloud_threads.submit, dumped)
    return known if known is not None and known.of == trials.of else trials


def edge_fingerprints(snapshot: Snapshot) -> dict[str, dict[str, str]]:
    """Return the fingerprints of each edge by name, also of the one on trial: there those of a router with that edge."""
    by_name = {t.name: fingerprints(snapshot, i) for i, t in enumerate(snapshot.targets) if t.side == "edge"}
    return by_name if snapshot.trial is None else {**by_name, snapshot.trial.targets[0].name: fingerprints(snapshot.trial, 0)}


def _report_comparison(engine: Engine, comparison: Compared) -> None:
    """Report a comparison to the parts in force, such as trials."""
    for compared in engine.compared:
        compared(comparison)


def _auditor(engine: Engine, audit: Audit) -> Auditor:
    """Return a new auditor for an engine, with a journal if the engine has a folder for its state."""
    journal = None
    if engine.state is not None:
        from edgeroute.stores.json_lines_and_process_locks import Journal

        journal = Journal(engine.state / "audit.jsonl")
    return Auditor(
        audit, engine.counts,
        submit=engine.cloud_threads.submit, asks=AuditCalls(engine), changed=engine.refresh_thresholds,
        alarm=engine.instruments.alarm, journal=journal, compared=partial(_report_comparison, engine),
        store=None if engine.checkpoint is None else engine.checkpoint.store,
    )  # fmt: skip
