"""Methods `decide`, the route that an input would take, and `check`, the status of all targets, which loads and pings.

No input is sent. `decide` runs the edge model, unless the plan needs none.
"""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import Any

from edgeroute.confidence.certificate import UNVERSIONED
from edgeroute.core import reason_text_and_trace_record as explain
from edgeroute.core.error_codes_and_texts import UNIDENTIFIED, Lasting, Rejection, error_text, failure_text
from edgeroute.core.plan import Plan, judged_leg
from edgeroute.core.policy_egress_and_options import Rules
from edgeroute.core.walk import Event, Failed, Prediction, Start, acceptable, judged, own_threshold
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.router.constructor_checks import check_seconds
from edgeroute.router.decision_and_check_results import Check, Decision
from edgeroute.router.engine import Engine
from edgeroute.router.leg_execution import PASSING, LegExecutor
from edgeroute.router.policy_snapshot import Snapshot, fingerprints
from edgeroute.system.wall_clock import now
from edgeroute.tools.inspect import impossible_router_settings
from edgeroute.types import Backend


def decide(plan: Plan, legs: LegExecutor, x: Any, audited: float = 0.0) -> Generator[Start, Event | None, Decision]:
    """Yield a `Start` for each edge to run, take its result back, and return the route that the input would take (`Decision`).

    Clouds are not called: the steps say if each would be, by its breaker and limits, which count nothing. Ends with the first
    edge that is accepted, or before an edge behind a cloud that would be called. An edge that fails is a step.

    Args:
        plan: plan of the input.
        legs: executor of the plan's legs.
        x: the input, by which the cost of a call is estimated.
        audited: share of requests compared with the cloud later.

    Raises:
        BadInput: an edge rejects the input.
    """
    steps, sends, below = list(plan.steps), [], set[int]()
    for i in range(len(plan.legs)):
        leg, start = judged_leg(plan, i, below), Start(i)
        if leg.permit is not None:
            cloud: Any = legs.backend(start)
            if why := cloud.guard.why() or ((spent := _spent(cloud, x)) and spent.text):
                steps.append(f"=> {leg.name}: would not be asked now: {why}")
            else:
                sends.append(cloud.where)
                steps.append(f"=> {leg.name}: would send this input to {sends[-1]}")
            continue
        if sends:
            break
        event = yield start
        if type(event) is Failed:
            if event.fatal:
                raise event.error
            steps.append(f"=> {leg.name} failed: {failure_text(event.error)}")
            continue
        prediction: Prediction = event.answer  # type: ignore[union-attr]  # an executed leg is Done or Failed
        limit = own_threshold(leg, prediction) if leg.thresholds else None
        steps.append(f"=> {explain.answer_part(plan, leg, prediction.confidence, 0.0, limit)}")
        if acceptable(leg, prediction):
            if audited and judged(leg):
                steps.append(f"=> one in {1 / audited:,.0f} such inputs is sent to the cloud afterwards, to compare (audit)")
            break
        below.add(i)
    return Decision(plan, tuple(steps), tuple(sends))


def _spent(cloud: Any, x: Any) -> Rejection | None:
    """Return why limits of spending forbid a call of an endpoint for this input; None: they allow it. Books nothing."""
    cost = impossible_router_settings.smallest_cost(cloud, [x])
    rejection: Rejection | None = cloud.guard.spending.reserve(cost, now(), book=False)
    return rejection


def _spent_line(cloud: Any) -> str:
    """Return a line if limits of spending forbid even the cheapest call of an endpoint now; empty if not, or if they always do.

    It is no problem: limits are there to be reached, and other targets answer meanwhile.
    """
    rejection = _spent(cloud, impossible_router_settings.SHORTEST)
    if rejection is None or (isinstance(rejection, Lasting) and not rejection.wait_s):
        return ""
    return f"{cloud.name} is not called now: {rejection.text.replace('this call', 'a call')}"


def check(engine: Engine, timeout: float) -> Check:
    """Load the models and ping the endpoints, blocking for up to `timeout` seconds each; return what `Router.check` reports.

    Lines name what works, what may leave the device, rules, budgets, and, with `!`, problems and settings that can never work.
    With a problem `ok` is False.

    Raises PolicyError for an invalid timeout.
    """
    check_seconds("timeout", timeout)
    result = _targets(engine.snapshot, timeout, engine.audited, engine.stays_on_device(read=True))
    observer, spending, snapshot = engine.observer, engine.spending, engine.snapshot
    lines = [*observer.rule_lines(), *observer.budget_lines(), *observer.lacking_lines(snapshot.backends)]
    lines += filter(None, map(_spent_line, snapshot.clouds))
    lines += impossible_router_settings.settings_to_confirm(snapshot, spending.limits)
    lines += [line for part in engine.fixed for line in part.check_lines()]
    never = impossible_router_settings.problems(snapshot, spending.limits, spending.edge_j, engine.refused, engine.counts.unsure)
    lines += [f"! {line}" for line in never]
    return Check(result.ok and not any(line.startswith("!") for line in lines), (*result.lines, *lines))


def _targets(snapshot: Snapshot, timeout: float, audited: float = 0.0, stays: str = "") -> Check:
    """Load the models and ping the endpoints, blocking for at most `timeout` seconds each. Return their status.

    Lines on what may leave the device, on audits, trials and certificates follow. Never raises for a target: its problem is a
    line that begins with `!`.

    Args:
        snapshot: policy in force.
        timeout: seconds for each endpoint.
        audited: share of requests compared with the cloud later.
        stays: reason why nothing leaves the device by itself now; then no endpoint is pinged. Empty: endpoints are pinged.
    """
    asked = [backend for backend in snapshot.backends if not (stays and backend.side == "cloud")]
    problems = [(backend, _problem(backend, timeout)) for backend in asked]
    lines = [f"! {r.name}: {problem}" if problem else f"{r.name}: {r.describe()}" for r, problem in problems]
    lines += [f"{r.name}: was not asked whether it is ready ({stays})" for r in snapshot.backends if r not in asked]
    if snapshot.trial is not None:
        model: Any = snapshot.trial.backends[0]
        problems.append((model, problem := _problem(model, timeout)))
        kind = "on trial, hidden" if snapshot.hidden else "on trial"
        lines.append(f"! {model.name}: {problem}" if problem else f"{model.name}, {kind}: {model.describe()}")
    lines += snapshot.views.describe(snapshot.targets)
    places = ", ".join(_place(r) for r in snapshot.backends if r.side == "cloud")
    if not places:
        lines.append("nothing can leave this device: there is no cloud")
    elif snapshot.policy.mode == "only_edge":
        lines.append(f"nothing leaves this device unless a call asks for another mode than only_edge; then to {places}")
    else:
        nothing = snapshot.policy.rules.nothing
        lines.append(f"{'by its rules nothing may' if nothing else 'inputs may'} leave this device, to {places}")
        lines.extend(_egress_lines(snapshot.policy.rules))
        if snapshot.policy.mode == "shadow":
            of = "each request" if audited == 1 else f"{100 * audited:g} % of the requests"
            lines.append(f"the cloud answers everything; of {of} it is recorded what the edge would have answered (shadow)")
        elif audited:
            lines.append(f"{100 * audited:g} % of what the edge answers is sent there afterwards, to compare (audit)")
    edges = [t for t in snapshot.targets if t.side == "edge"]
    if not edges:
        lines.append("there is no edge model: without the cloud there is no answer")
    elif places and snapshot.policy.mode in {"prefer_edge", "shadow"}:
        lines.extend(f"the threshold of {t.name}: {_promise(t.label)}" for t in edges if t.threshold is not None)
        lines.extend(
            f"the certificate of {t.name} will not hold, since {UNVERSIONED}: calibrate with that"
            for i, t in enumerate(snapshot.targets)
            if t in edges and t.label == "uncalibrated" and _unversioned(snapshot, i)
        )
        lines.extend(f"its certificate says: {text}" for c in snapshot.certificates if c for text in c.certificate.doubts)
    return Check(all(problem is None for _, problem in problems), tuple(lines))


def _place(cloud: Any) -> str:
    """Return where a cloud is, with a warning if its server is not authenticated, whether or not it is ready."""
    address: Any = getattr(getattr(cloud, "endpoint", None), "address", None)
    unchecked = getattr(address, "https", False) and address.verify is False
    return f"{cloud.where}{' (its certificate UNCHECKED: verify = false)' if unchecked else ''}"


def _unversioned(snapshot: Snapshot, i: int) -> bool:
    """Return True if an edge model without a file cannot be identified. Hashes no file."""
    model: Any = snapshot.backends[i]
    return member(model.model, "path") is None and UNIDENTIFIED in fingerprints(snapshot, i)["edge"]


def _promise(label: str) -> str:
    """Return a threshold's label in words: a certified guarantee, or that it was picked by hand, or why it is uncalibrated."""
    if label == "uncalibrated":
        return "uncalibrated, picked by hand, with no guarantee about errors"
    return label if label.startswith("uncalibrated") else f"certified, {label}"


def _egress_lines(rules: Rules) -> list[str]:
    """Return a line for each data class that never leaves or may leave, and one for all others; [] without rules."""
    if not rules.any:
        return []
    unknown = "may leave" if rules.unknown_class == "allow" else "stays"
    lines = [f"data class {name}: never leaves" for name in sorted(rules.never_leave)]
    lines += [f"data class {name}: may leave" for name in sorted(rules.may_leave)]
    default = "" if rules.default_class is None else f"; a call that names none is {rules.default_class}"
    return [*lines, f"any {'other ' if lines else ''}data class {unknown}{default}"]


def _problem(backend: Backend, timeout: float) -> str | None:
    """Load a model, or ping an endpoint within `timeout` seconds, without user data. Return the problem as a text; None: ready.

    No error is raised but those such as Ctrl-C.
    """
    try:
        backend.ready(monotonic() + timeout)
    except PASSING:
        raise
    except BaseException as e:  # noqa: BLE001 - any failure is the result
        return error_text(e)
    return None
