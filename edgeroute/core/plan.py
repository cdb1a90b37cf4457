"""Planning: policy and facts -> plan. Every routing mode is a plan; nothing after this module depends on modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from edgeroute.core import hedge
from edgeroute.core.egress import Denied, Permit, permit
from edgeroute.core.facts import Facts
from edgeroute.core.places import Place, placed, start_by_s
from edgeroute.core.policy import INF, Mode, Offline, Policy, PolicyMode, Side, Target
from edgeroute.core.rules import Applying, Rule, applying
from edgeroute.core.variants import picked

SPENT: Final = "joules_per_hour is spent"


class Leg(NamedTuple):
    """One target as used in this plan."""

    name: str
    permit: Permit | None
    """Permission to leave the device; None: the leg runs on it. No cloud can be called without one."""
    target: int
    """Position in the list of targets; a higher one is more capable, so its answer is the better fallback."""
    threshold: float | None
    """Accept from this confidence on; None: accept any answer; inf: accept none."""
    final: bool
    """The last to call: its answer is accepted whatever its confidence."""
    accept_unsure: bool
    """Whether an answer without a confidence is accepted."""
    hedge_after_s: float
    """Hedging delay: start so many seconds after the previous leg, even if that still runs; inf: only once that has ended."""
    standby: bool
    """Standby for failures: its answer is stored until every other leg has ended, or until the deadline."""
    start_by_s: float
    """Latest start of a standby, or of an edge that is not in memory, seconds from the beginning; inf: only once every other leg
    has ended."""
    label: str
    thresholds: Mapping[str, float]
    """Per-class thresholds: an answer's `str()` -> its threshold."""
    lowered: float = 0.0
    """How far its thresholds are below its own, as the cloud is loaded."""

    @property
    def side(self) -> Side:
        """Where it runs."""
        return "edge" if self.permit is None else "cloud"


class Unsure(NamedTuple):
    """An edge whose confidence, known from the input alone, is below its threshold."""

    leg: Leg
    """As it would have been asked."""
    confidence: float | None


class Plan(NamedTuple):
    """The legs in order of trying, and the deadline."""

    legs: tuple[Leg, ...]
    deadline_s: float
    offline: Offline
    mode: Mode
    steps: tuple[str, ...]
    """Why this plan was made, one line each."""
    order: tuple[int, ...]
    """The legs' numbers: 0, 1, ..."""
    sequential: bool
    """At most one leg runs at a time, and nothing can interrupt it."""
    stays: str
    """Why no leg leaves the device although there is a cloud; empty otherwise."""
    data_class: str | None
    facts: Facts
    skipped: tuple[str, ...] = ()
    """Clouds that are not asked since earlier runs of theirs go on, with no other cloud in their place."""
    unheard: tuple[Leg, ...] = ()
    """Shadow mode: the edges that would be asked first, in order; for a sample of the requests they run once these have ended."""
    rules: tuple[Rule, ...] = ()
    """The rules on the device's state that have shaped this plan."""
    hedge_s: float = INF
    """Hedging delay, seconds after the beginning: a standby, too, is started then, where answers come in pieces."""
    unsure: tuple[Unsure, ...] = ()
    """The edges that are not asked first, as the input's own confidence is below their thresholds."""
    arm: str = ""
    """The cloud on trial that answers in place of the first; empty: none."""


class Refusal(NamedTuple):
    """No plan is possible: why, and what to do."""

    reason: str
    denied: bool = False
    """Because of the data class, not because the policy contradicts itself."""


def plan(
    policy: Policy,
    targets: tuple[Target, ...],
    facts: Facts,
    *,
    mode: Mode | None = None,
    deadline_s: float | None = None,
    data_class: str | None = None,
    why_home: str = "",
    arm: str = "",
) -> Plan | Refusal:
    """Makes the plan for one request. `mode` and `deadline_s` (seconds) override the policy's for this call.

    why_home: why nothing of it may leave, whatever its data class; empty: the egress rules decide.
    arm: the name of the cloud whose arm the request is in; empty: of none that is on trial.
    """
    ruled = _applying(policy, facts, mode)
    deadline_s = policy.deadline_s if deadline_s is None else deadline_s
    edges = [i for i, t in enumerate(targets) if t.side == "edge"]
    clouds = [i for i, t in enumerate(targets) if t.side == "cloud" and (not t.trial or t.name == arm)]
    edges, variants = picked(edges, targets, facts, ruled.then("small_model"), deadline_s)
    firsts = [targets[side[0]].name for side in (edges, clouds) if side]
    own, cheapest = _cheapest(_mode(policy, ruled, mode), ruled, firsts, facts, chosen=mode is not None)
    mode = "only_cloud" if own == "shadow" else own
    data_class = policy.rules.default_class if data_class is None else data_class
    steps = [f"mode {own}" + ("" if deadline_s == INF else f", deadline {deadline_s * 1000:g} ms")]
    if ruled.mode is not None:
        steps.append(f"{ruled.mode}: this mode instead of {policy.mode}")
    steps += [*cheapest, *ruled.not_applied]
    steps += variants if mode != "only_cloud" else []
    if not (edges if mode == "only_edge" else clouds if mode == "only_cloud" else targets):
        side = "edge" if mode == "only_edge" else "cloud"
        return Refusal(f"mode {mode!r} needs {side}=, and this router has none")

    allowed: Permit | None = None
    stays = ""
    if mode == "only_edge":
        stays = "only_edge"
        steps.append("nothing leaves the device: the mode is only_edge")
    elif clouds:
        verdict = Denied(data_class, why_home) if why_home else permit(policy.rules, data_class)
        if isinstance(verdict, Denied):
            stays = verdict.why
            steps.append(f"nothing leaves the device: {stays}")
        else:
            allowed = verdict
            if verdict.data_class is not None:
                steps.append(f"data class {verdict.data_class!r} may leave: {verdict.rule}")

    away = [] if allowed is None else arranged(policy, targets, facts, clouds)
    if arm and away:
        away.sort(key=lambda i: targets[i].name != arm)
        steps.append(f"the request is in the arm of {arm}")
    home = [] if mode == "only_cloud" else edges
    if len(home) > 1 and (small := ruled.then("small_model")) is not None:
        steps.append(f"{small}: of the edges only {targets[home[0]].name}, the smallest")
        home = home[:1]
    first_away = mode == "prefer_cloud" and allowed is not None
    order = [*away, *home[::-1]] if first_away else [*home, *away]
    if not order:
        needs = "and there is no edge" if mode != "only_cloud" else "and mode 'only_cloud' asks nothing else"
        return Refusal(f"no answer is possible: {stays}, {needs}", denied=True)

    places, skipped, more = placed(order, targets, facts, ruled.then("unload"))
    steps += more
    order = [place.target for place in places]
    silent: tuple[Leg, ...] = ()
    if own == "shadow" and ruled.then("unload") is None:
        silent = tuple(unheard(i, targets[i], policy) for i in edges)
        steps.append("of a sample it is recorded what the edge would have answered, afterwards: nothing else changes")

    hedge_s = INF if first_away and isinstance(policy.hedge_after, str) else _hedge_s(policy, targets, facts, order, deadline_s)
    if hedge_s < INF and facts.no_hedge and len(order) > 1 and allowed is not None:
        steps.append(f"no hedge: {facts.no_hedge}")
        hedge_s = INF
    legs: list[Leg] = []
    for position, place in enumerate(places):
        target, usual = targets[place.target], not place.late
        if arm and target.certified:
            target = target._replace(label=f"uncalibrated: its certificate is for another cloud than {arm}")
        standby = place.spare or (first_away and target.side == "edge" and (usual or deadline_s < INF))
        waits = start_by_s(
            place, standby=standby and not any(leg.standby for leg in legs), hedge_s=hedge_s,
            reserve_s=facts.reserves.get(target.name, INF), deadline_s=deadline_s,
        )  # fmt: skip
        leg = Leg(
            name=target.name,
            permit=allowed if target.side == "cloud" else None,
            target=place.target,
            threshold=target.threshold,
            final=position == len(order) - 1 and usual and not standby and not skipped,
            accept_unsure=policy.no_confidence == "accept",
            hedge_after_s=hedge_s if position and usual and not standby else INF,
            standby=standby,
            start_by_s=waits,
            label=target.label,
            thresholds=target.thresholds,
        )
        after = places[position + 1].target if position + 1 < len(places) else None
        if facts.kept and after is not None and targets[after].side == "cloud" and not standby:
            leg, why = _relieving(leg, target, facts, asks=allowed is not None)
            steps += why
        steps.append(_step(leg, legs[-1] if legs else None))
        legs.append(leg)
    sequential = deadline_s == INF and all(leg.hedge_after_s == INF and leg.start_by_s == INF for leg in legs)
    return Plan(
        tuple(legs), deadline_s, policy.offline, mode, tuple(steps), tuple(range(len(legs))), sequential,
        stays, data_class, facts, skipped, silent, ruled.rules, hedge_s, arm=arm,
    )  # fmt: skip


def without_first(made: Plan, confidence: float | None, why: str) -> Plan:
    """The plan with its first edge on standby, after all others: its confidence is known, and below its threshold."""
    first, *rest = made.legs
    waits = start_by_s(
        Place(first.target), standby=True, hedge_s=made.hedge_s, reserve_s=made.facts.reserves.get(first.name, INF),
        deadline_s=made.deadline_s,
    )  # fmt: skip
    standby = first._replace(standby=True, final=False, hedge_after_s=INF, start_by_s=waits)
    others = [leg._replace(start_by_s=INF) for leg in rest if leg.standby]  # less capable ones
    asked = [leg for leg in rest if not leg.standby]
    legs = (asked[0]._replace(hedge_after_s=INF), *asked[1:], standby, *others)
    sequential = made.deadline_s == INF and all(leg.hedge_after_s == INF and leg.start_by_s == INF for leg in legs)
    return made._replace(
        legs=legs, sequential=sequential, steps=(*made.steps, f"{why}, so it is on standby"),
        unsure=(*made.unsure, Unsure(first, confidence)),
    )  # fmt: skip


def stays_home(policy: Policy, facts: Facts) -> str:
    """Why nothing leaves the device by itself now (deliveries, audits, probes, revalidation); empty: it may."""
    ruled = _applying(policy, facts, None)
    if _mode(policy, ruled, None) != "only_edge":
        return ""
    return f"only_edge, {ruled.mode}" if ruled.mode is not None else "only_edge"


def _applying(policy: Policy, facts: Facts, mode: Mode | None) -> Applying:
    """The rules in force that apply to a call with that mode of its own, if any."""
    return applying([rule for rule in policy.all_rules() if rule in facts.rules], mode)


def _mode(policy: Policy, ruled: Applying, mode: Mode | None) -> PolicyMode:
    """The mode of a call: by a rule, its own, or the policy's."""
    return ruled.mode.then if ruled.mode is not None else mode or policy.mode  # type: ignore[return-value]  # it is a mode


def _cheapest(
    own: PolicyMode, ruled: Applying, sides: Sequence[str], facts: Facts, *, chosen: bool
) -> tuple[PolicyMode, list[str]]:
    """The mode that takes less energy, if a rule or a limit asks for it and both sides may be asked; and why.

    The edge first costs its run, and the cloud's call where it is unsure; the cloud first costs the call. Past the limit the
    dearer side is left out: the cloud is refused, or comes first. A mode by a rule, or of the call (chosen), goes before a limit.
    sides: the names of the first edge and the first cloud, as far as there are.
    """
    rule = ruled.then("cheapest_energy")
    spent = facts.energy_spent and not chosen and ruled.mode is None
    if not (rule or spent) or own not in {"prefer_edge", "prefer_cloud"} or len(sides) < 2:  # noqa: PLR2004 - nothing to compare
        return own, []
    why = SPENT if spent else str(rule)
    edge, cloud = (facts.joules.get(name) for name in sides)
    if edge is None or cloud is None:
        unknown = " and ".join(name for name in sides if name not in facts.joules)
        return own, [f"{why}: the order stays as it is, as it is not known what energy a call of {unknown} takes"]
    first = edge if spent else edge + (facts.unsure or 0.0) * cloud
    text = f"{why}: {first:.3g} J a call with {sides[0]} first, {cloud:.3g} J with {sides[1]} first"
    return ("prefer_edge" if first < cloud else "prefer_cloud"), [text]


def arranged(policy: Policy, targets: tuple[Target, ...], facts: Facts, clouds: list[int]) -> list[int]:
    """The clouds in order of trying. One without measured latency comes first, or it would never be measured."""
    if policy.order == "listed" or len(clouds) < 2:  # noqa: PLR2004 - nothing to reorder
        return clouds

    def median_s(i: int) -> float:
        known = facts.latencies.get(targets[i].name)
        return 0.0 if known is None else known.quantile(0.5) or 0.0

    return sorted(clouds, key=median_s)


def _relieving(leg: Leg, target: Target, facts: Facts, *, asks: bool) -> tuple[Leg, list[str]]:
    """The leg of an edge with its thresholds lowered as far as the cloud's load asks for, and why it is so or not.

    asks: whether a cloud may be asked at all.
    """
    if not asks or target.side != "edge" or leg.threshold is None:
        return leg, []
    if target.certified:
        return leg, [f"the cloud is loaded: {leg.name} defers all the same, as its threshold is a certificate's"]
    lower = facts.slack.get(leg.name, 0.0)
    if not lower:
        return leg, []
    why = f"{leg.label}, lowered by {lower:.2g} as the cloud is loaded"
    own = {name: one - lower for name, one in leg.thresholds.items()}
    text = f"the cloud is loaded: {leg.name} keeps the surest {facts.kept:.0%} of what it would defer"
    return leg._replace(threshold=leg.threshold - lower, thresholds=own, label=why, lowered=lower), [text]


def _hedge_s(policy: Policy, targets: tuple[Target, ...], facts: Facts, order: Sequence[int], deadline_s: float) -> float:
    """Resolves the policy's `hedge_after` to a delay in seconds."""
    rule = policy.hedge_after
    if not isinstance(rule, str):
        return rule
    known = [facts.latencies.get(targets[i].name) for i in order]
    edge = next((k for k, i in zip(known, order, strict=True) if targets[i].side == "edge"), None)
    cloud = next((k for k, i in zip(known, order, strict=True) if targets[i].side == "cloud"), None)
    if edge is None or cloud is None:
        return INF
    if rule == "auto":
        either = targets[order[0]].threshold is None
        return hedge.auto(edge, cloud, deadline_s=deadline_s, deferral_rate=facts.deferral_rate, either=either)
    return hedge.quantile(edge, float(rule[1:]) / 100)


def unheard(i: int, target: Target, policy: Policy) -> Leg:
    """An edge as `prefer_edge` has it; one without a threshold yet accepts nothing."""
    known = target.threshold is not None
    return Leg(
        target.name, None, i, target.threshold if known else INF, final=False,
        accept_unsure=known and policy.no_confidence == "accept", hedge_after_s=INF, standby=False, start_by_s=INF,
        label=target.label, thresholds=target.thresholds,
    )  # fmt: skip


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
    elif leg.thresholds:
        accept = f"accepted from the confidence on that its answer asks for ({leg.label})"
    else:
        accept = f"accepted from confidence {leg.threshold:.2f} on ({leg.label})"
    return f"{leg.name} {when}; {accept}"
