"""Policy and facts in, a plan out. Every routing mode is a plan; nothing after this file knows of modes."""

from __future__ import annotations

from typing import NamedTuple

from edgeroute.core.facts import Facts
from edgeroute.core.policy import INF, Mode, OnExhausted, Policy, Side, Target


class Leg(NamedTuple):
    """One target, as this plan uses it."""

    name: str
    side: Side
    target: int
    """Position in the list of targets; a higher one is more capable, so its answer is the better one to fall back on."""
    threshold: float | None
    """Accept from this confidence on; None: accept any."""
    final: bool
    """There is nothing after it to ask: its answer is accepted whatever its confidence."""
    accept_unsure: bool
    """Whether an answer without a confidence passes the threshold."""
    hedge_after_s: float
    """Start this leg so long after the one before it, even if that is still running; inf: only once that has ended."""
    standby: bool
    """It is there for the fault: its answer is kept until every other leg has ended, or the deadline has come."""
    start_by_s: float
    """A standby starts no later than this after the beginning; inf: only once every other leg has ended."""
    label: str


class Plan(NamedTuple):
    """The legs in the order they are tried, and until when."""

    legs: tuple[Leg, ...]
    deadline_s: float
    on_exhausted: OnExhausted
    mode: Mode
    steps: tuple[str, ...]
    """Why the plan is as it is, a line each."""
    order: tuple[int, ...]
    """The legs' numbers: 0, 1, ..."""
    sequential: bool
    """At most one leg runs at a time, and nothing can interrupt it."""


class Refusal(NamedTuple):
    """No plan is possible: why, and what next."""

    reason: str


def plan(
    policy: Policy,
    targets: tuple[Target, ...],
    facts: Facts,
    *,
    mode: Mode | None = None,
    deadline_s: float | None = None,
) -> Plan | Refusal:
    """The plan for one request. `mode` and `deadline_s` (seconds) override the policy's for this call."""
    mode = mode or policy.mode
    deadline_s = policy.deadline_s if deadline_s is None else deadline_s
    edges = [i for i, t in enumerate(targets) if t.side == "edge"]
    clouds = [i for i, t in enumerate(targets) if t.side == "cloud"]
    steps = [f"mode {mode}" + ("" if deadline_s == INF else f", deadline {deadline_s * 1000:g} ms")]

    if mode == "only_edge":
        order = edges
        steps.append("nothing leaves the device: the mode is only_edge")
    elif mode == "only_cloud":
        order = clouds
    elif mode == "prefer_cloud":
        order = clouds + edges[::-1]
    else:
        order = edges + clouds
    if not order:
        side = "edge" if mode == "only_edge" else "cloud"
        return Refusal(f"mode {mode!r} needs {side}=, and this router has none")

    free = [i for i in order if targets[i].name not in facts.busy]
    if free and len(free) < len(order):
        steps.extend(f"skip {targets[i].name}: an earlier run has not stopped yet" for i in order if i not in free)
        order = free

    legs: list[Leg] = []
    for position, i in enumerate(order):
        target = targets[i]
        standby = mode == "prefer_cloud" and target.side == "edge"
        first_standby = standby and not any(leg.standby for leg in legs)
        leg = Leg(
            name=target.name,
            side=target.side,
            target=i,
            threshold=target.threshold,
            final=position == len(order) - 1 and not standby,
            accept_unsure=policy.no_confidence == "accept",
            hedge_after_s=policy.hedge_after_s if position and not standby else INF,
            standby=standby,
            start_by_s=_start_by_s(policy, facts, deadline_s) if first_standby else INF,
            label=target.label,
        )
        steps.append(_step(leg, legs[-1] if legs else None))
        legs.append(leg)
    sequential = deadline_s == INF and all(leg.hedge_after_s == INF and leg.start_by_s == INF for leg in legs)
    return Plan(tuple(legs), deadline_s, policy.on_exhausted, mode, tuple(steps), tuple(range(len(legs))), sequential)


def _start_by_s(policy: Policy, facts: Facts, deadline_s: float) -> float:
    """The last moment at which the edge, given twice its usual time, is still on time; at once while that is unknown."""
    latest = INF if deadline_s == INF else max(0.0, deadline_s - 2 * facts.edge_s) if facts.edge_s else 0.0
    return min(latest, policy.hedge_after_s)


def _step(leg: Leg, before: Leg | None) -> str:
    if before is None:
        when = "first"
    elif leg.hedge_after_s < INF:
        when = f"{leg.hedge_after_s * 1000:g} ms after {before.name}, or as soon as that does not settle it"
    elif leg.start_by_s < INF:
        when = f"{leg.start_by_s * 1000:g} ms after the start, or as soon as no other target is left"
    else:
        when = f"if {before.name} does not settle it"
    if leg.standby:
        accept = "kept in case the cloud fails"
    elif leg.final or leg.threshold is None:
        accept = "its answer is accepted"
    else:
        accept = f"accepted from confidence {leg.threshold:.2f} on ({leg.label})"
    return f"{leg.name} {when}; {accept}"
