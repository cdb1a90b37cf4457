"""After a walk: arms and audits compare it, its costs are stored, failures logged; and which thresholds are in force."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute.confidence.binding import effective_target
from edgeroute.core.walk import Outcome
from edgeroute.router.legs import LegExecutor, Walked
from edgeroute.router.request import Request
from edgeroute.router.snapshot import Snapshot, chosen

if TYPE_CHECKING:
    from edgeroute.cloud.spending import SharedSpending
    from edgeroute.record.audit import Auditor
    from edgeroute.record.checkpoint import Checkpoint
    from edgeroute.record.sampling import Drawn
    from edgeroute.router.ab import Arms
    from edgeroute.router.cloud_arms import Trials


class Parts(Protocol):
    """What of a router's parts is used."""

    checkpoint: Checkpoint | None
    spending: SharedSpending
    snapshot: Snapshot
    arms: Arms | None
    trials: Trials | None
    auditor: Auditor | None


def settle(parts: Parts, request: Request, outcome: Outcome, legs: LegExecutor) -> None:
    """Checkpoints what a request's calls have cost, and logs what failed."""
    if legs.exchanges and parts.checkpoint is not None:
        parts.spending.keep()
    log_failures(request, outcome)


def compare(parts: Parts, request: Request, outcome: Outcome, legs: LegExecutor | None, drawn: Drawn | None) -> None:
    """Counts what came of a request for the arms of the edge and of the cloud, and for the audits, if it was drawn for one."""
    if parts.arms is not None and parts.snapshot.other is not None:  # else B was promoted
        parts.arms.ended(request.plan, outcome, monotonic() - request.begun)
    audited = drawn is not None and parts.auditor is not None and not request.plan.arm
    if parts.trials is None and not audited:
        return
    costs = {} if legs is None or request.batch else legs.costs()
    if parts.trials is not None and not request.batch:
        parts.trials.ended((request, outcome, costs))
    if drawn is not None and parts.auditor is not None and audited:
        parts.auditor.ended(drawn, request, outcome, costs, unlike(legs))


def compare_batch(parts: Parts, walks: Sequence[Walked]) -> None:
    """Counts what came of a batch for the arms of the cloud, once all of its rows are recorded: they are one call."""
    if parts.trials is not None and walks and walks[0].request.batch:
        parts.trials.ended(*((one.request, one.outcome, {}) for one in walks))


def log_failures(request: Request, outcome: Outcome) -> None:
    """Logs what the application's functions raised; once the walk has ended, so that no leg is late for it."""
    for kind, leg, _, detail in outcome.log:
        if kind == "failed":
            backend = request.snapshot.backends[request.plan.legs[leg].target]
            if getattr(detail, "code", "") == "view":
                backend.failures.log(f"the view for {backend.name}", detail.__cause__ or detail)
            else:
                backend.failures.log(f"{backend.name} ({backend.where})", detail)


def unlike(legs: LegExecutor | None) -> Collection[int]:
    """The clouds that were asked otherwise than `calibrate` asks them: without the edge's answer, or above a ladder's floor."""
    found = set[int]()
    if legs is None:
        return found
    for leg, exchange in [*legs.exchanges.items()]:  # legs that were stopped may still begin
        backend: Any = legs.backends[legs.plan.legs[leg].target]
        if exchange.edge is False or backend.above_floor(exchange.codec):
            found.add(leg)
    return found


def standing(snapshot: Snapshot, auditor: Auditor | None) -> Snapshot:
    """The policy with thresholds and labels as they are now, after alarms and certificates' expiry."""
    targets, moved, by = [], "", ""
    for i, (target, certificate) in enumerate(zip(snapshot.targets, snapshot.certificates, strict=True)):
        monitor = None if auditor is None else auditor.watch(target.name)
        made = effective_target(target, certificate) if monitor is None else monitor.target(target)
        beside = bool(by) and target.group == by  # a variant of the edge that was moved: inputs reach it as before
        kept = not moved or certificate is None or beside
        targets.append(made if kept else made._replace(label=f"uncalibrated: {moved}"))
        given = chosen(snapshot, i)
        if (made.threshold, made.thresholds) != (given.threshold, given.thresholds):
            by = target.group
            moved = f"{target.name}, whose threshold was raised, defers more to it than when it was calibrated"
    return snapshot if tuple(targets) == snapshot.targets else snapshot._replace(targets=tuple(targets), plans={})
