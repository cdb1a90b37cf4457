"""Planning of a request: policy, targets and facts -> plan of legs; order of trying, hedging delay, standbys, choice of variants.

Every routing mode is a plan; nothing after this module depends on modes. In order: `Facts`; the hedging delay; the order of
trying; the standby's reserve of time; the choice among variants; `Plan` and `plan`, which uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from edgeroute.core.device_rules import Applying, Rule, applying
from edgeroute.core.performance_estimates_and_encoding_choice import Latency
from edgeroute.core.policy_egress_and_options import INF, Denied, Mode, Offline, Permit, Policy, PolicyMode, Side, Target, permit

# Facts: the current state that planning depends on, observed elsewhere and passed in.


class Facts(NamedTuple):
    """State of the device and its targets."""

    busy: frozenset[str] = frozenset()  # names of targets occupied by abandoned runs (asked to stop, still running)
    edge_s: float = 0.0  # 99 % quantile of the edge's measured latency, seconds; 0 while unknown
    # Name of an edge -> time it needs before a deadline, seconds (`reserve_s`); inf or missing: unknown.
    reserves: Mapping[str, float] = {}
    no_hedge: str = ""  # reason why hedges are forbidden; empty: they are allowed
    deferral_rate: float = 0.0  # share of requests for which the cloud was needed, 0..1
    latencies: Mapping[str, Latency] = {}  # target -> latencies measured so far; only if the policy uses them
    # Rules on the device's state that are in force. Readings are no facts: a plan is valid until a rule begins or ends.
    rules: tuple[Rule, ...] = ()
    loading: frozenset[str] = frozenset()  # names of edges that are being loaded again
    # Share of the deferrals, 0..1, that is kept on the edge since the cloud is loaded (`share_to_keep`).
    kept: float = 0.0
    # Name of an edge -> by how much its thresholds are lowered for that; not those of a certificate.
    slack: Mapping[str, float] = {}
    # Name of a variant -> time in which nine in ten of its runs end, seconds; missing: unknown, or no variant.
    took_s: Mapping[str, float] = {}
    joules: Mapping[str, float] = {}  # target -> energy of a call, joules, as far as known; only if a rule or a limit needs it
    # Share of the first edge's answers, 0..1, that are below its threshold; None: unknown, or no rule needs it.
    unsure: float | None = None
    energy_spent: bool = False  # True if `joules_per_hour` has no room for another run of the edge, whose energy is known


# Hedging delay: when to call the cloud while the edge is still running.

ENOUGH_LATENCIES: Final = 50  # minimum number of latencies of each side


def auto_hedge_s(
    edge: Latency, cloud: Latency, *, deadline_s: float, deferral_rate: float, miss: float = 0.01, either: bool = False
) -> float:
    """Return the latest start of the cloud, seconds after the edge's, that meets the deadline with probability 1 - `miss`.

    inf: do not hedge, since the deadline is met anyway, or there is none, or there are too few latencies.

    Args:
        edge: latencies of the edge.
        cloud: latencies of the cloud.
        deadline_s: deadline, seconds from the start; inf: none.
        deferral_rate: share of inputs that need the cloud, 0..1.
        miss: share of inputs that may miss the deadline, more than 0.
        either: True if any edge answer will do, whatever its confidence, so that the cloud is needed only if the edge is late.
    """
    if deadline_s == INF or edge.count < ENOUGH_LATENCIES or cloud.count < ENOUGH_LATENCIES:
        return INF
    needed = edge.share_above(deadline_s) if either else deferral_rate
    assert needed is not None  # there are enough latencies
    if needed <= miss:
        return INF
    cloud_s = cloud.quantile(1 - miss / needed)
    assert cloud_s is not None
    return max(0.0, deadline_s - cloud_s)


def quantile_hedge_s(edge: Latency, q: float) -> float:
    """Return the latency quantile `q` (0..1) of the edge, seconds; inf: too few latencies."""
    usual_s = edge.quantile(q) if edge.count >= ENOUGH_LATENCIES else None
    return INF if usual_s is None else usual_s


# Order of trying: places of targets that are not in memory, or that earlier runs keep busy.


class Place(NamedTuple):
    """Target in the order of trying."""

    target: int  # position in the list of targets
    late: bool = False  # True for an edge that is not in memory: it comes behind every cloud, and only if they all have failed
    spare: bool = False  # True for an edge that earlier runs keep busy: better than no answer
    wakes: bool = False  # True for the late edge that is loaded while a cloud may still answer, as no other edge would


class Places(NamedTuple):
    """All places in order, with the reasons."""

    order: tuple[Place, ...]
    skipped: tuple[str, ...]  # clouds that are not asked since earlier runs of theirs go on, with no other cloud in their place
    steps: tuple[str, ...]  # reasons, one line each


def place_targets(order: Sequence[int], targets: Sequence[Target], facts: Facts, unload: Rule | None) -> Places:
    """Return the order with targets that are not in memory behind all others, and busy ones left out; busy edges come last.

    Edges that are not in memory keep their place if there is no cloud; if all targets are busy, none is left out. Busy clouds are
    named in `skipped` if no other cloud is left.

    Args:
        order: positions of the targets, in the order of the mode.
        targets: all targets.
        facts: facts with the busy targets, and those that are being loaded.
        unload: the rule by which the edges are freed; None: there is none.
    """
    late = _not_in_memory(order, targets, facts, unload)
    if late and not any(targets[i].side == "cloud" for i in order):
        steps = [f"{why}, and asked all the same, as there is no cloud to ask" for why in late.values()]
        late = {}
    else:
        steps = [f"{why}, so it is asked last" for why in late.values()]
    order = [*(i for i in order if i not in late), *late]
    edges = [i for i in order if targets[i].side == "edge"]
    wakes = next(iter(late), None) if all(i in late for i in edges) else None
    free = [i for i in order if targets[i].name not in facts.busy] or [*order]
    skipped: tuple[str, ...] = ()
    if len(free) < len(order):
        steps += [f"skip {targets[i].name}: an earlier run has not stopped yet" for i in order if i not in free]
        if not any(targets[i].side == "cloud" for i in free):
            skipped = tuple(targets[i].name for i in order if targets[i].side == "cloud")
    spare = [i for i in edges if i not in free]
    return Places(
        tuple(Place(i, i in late, i in spare and i not in late, i == wakes) for i in [*free, *spare]), skipped, tuple(steps)
    )


def _not_in_memory(order: Sequence[int], targets: Sequence[Target], facts: Facts, unload: Rule | None) -> dict[int, str]:
    """Return the edges that are not in memory, each with the reason: all if there is a rule `unload`, else those being loaded."""
    edges = [i for i in order if targets[i].side == "edge"]
    if unload is not None:
        return {i: f"{unload}: {targets[i].name} is unloaded" for i in edges}
    return {i: f"{targets[i].name} is being loaded" for i in edges if targets[i].name in facts.loading}


def start_by_s(place: Place, *, standby: bool, hedge_s: float, reserve_s: float, deadline_s: float) -> float:
    """Return the latest start of an edge that waits behind clouds, seconds; inf: only once they have ended.

    A standby starts at `hedge_s`, or `reserve_s` before the deadline if that is earlier, and at once while that is unknown. Of
    edges that are not in memory only the one that `wakes` starts, with a deadline alone: it gets half of it, or its time if that
    is more.

    Args:
        place: place of the edge.
        standby: True if it is the first standby of its plan.
        hedge_s: delay of hedges, seconds.
        reserve_s: its time before a deadline, seconds; inf: unknown.
        deadline_s: deadline of the call, seconds.
    """
    if place.late:
        known_s = reserve_s if reserve_s < INF else 0.0
        return max(0.0, deadline_s - max(deadline_s / 2, known_s)) if place.wakes and deadline_s < INF else INF
    return min(INF if deadline_s == INF else max(0.0, deadline_s - reserve_s), hedge_s) if standby else INF


# Reserve: time that a standby edge gets before the deadline.

ENOUGH_RUNS: Final = 50  # number of runs below which the standby starts at once
# Number of runs whose longest suffices: among so many, a run of the longest 1 % is missing once in 20,000 times.
MANY: Final = 1_000
RECENT: Final = 5_000  # number of newer runs for which the longest run counts
TIMES_LONGEST: Final = 2
TIMES_MEDIAN: Final = 20  # multiple of the median until there are MANY runs: ten times, and twice that for the machine
LEAST_S: Final = 0.025  # minimum reserve, seconds: for starting a thread on a busy machine, whatever the model takes


def reserve_s(edge: Latency) -> float:
    """Return the time that hardly any run of this edge exceeds, seconds; inf: too few runs are known.

    Twice the longest recent run; until there are `MANY` runs also at least 20 times the median; never below 25 ms.
    """
    if edge.count < ENOUGH_RUNS:
        return INF
    longest, median = edge.longest(RECENT), edge.quantile(0.5)
    assert longest is not None  # there are enough runs
    assert median is not None
    return max(LEAST_S, TIMES_LONGEST * longest, TIMES_MEDIAN * median if edge.count < MANY else 0.0)


# Choice of one member of each group of variants: edge models for the same task, of which one runs.

MOST: Final = 0.9  # share of a variant's runs that has to end within a deadline


def pick_variants(
    edges: Sequence[int], targets: Sequence[Target], facts: Facts, small: Rule | None, deadline_s: float
) -> tuple[list[int], list[str]]:
    """Return the edges with one member of each group, and the reasons, one line each.

    The first member that meets the deadline; the last, the smallest, while a rule asks for that. A member that earlier runs keep
    busy, or that is being loaded, is passed over if there is another. Edges of no group are all returned; a member whose time is
    unknown counts as in time.

    Args:
        edges: positions among the targets; a group's members are next to each other, the smallest last.
        targets: all targets.
        facts: facts with the times of the members, `took_s`.
        small: the rule that asks for the smallest; None: there is none.
        deadline_s: seconds for the call.
    """
    chosen, steps = list[int](), list[str]()
    for i in edges:
        group = targets[i].group
        members = [j for j in edges if targets[j].group == group]
        if not group:
            chosen.append(i)
        elif i == members[0]:
            member, why = _pick(members, targets, facts, small, deadline_s)
            chosen.append(member)
            steps.append(f"of the variants of {group}: {targets[member].name}, {why}")
    return chosen, steps


def _pick(members: list[int], targets: Sequence[Target], facts: Facts, small: Rule | None, deadline_s: float) -> tuple[int, str]:
    """Return one member of a group, and the reason: the smallest if a rule asks for it, else the first that meets the deadline.

    If none meets it, the fastest. Busy or loading members count only if no other is there.
    """

    def name(i: int) -> str:
        return targets[i].name

    free = [i for i in members if name(i) not in facts.busy and name(i) not in facts.loading] or members
    if small is not None:
        return free[-1], f"the smallest ({small})"
    if deadline_s < INF:
        in_time = [i for i in free if facts.took_s.get(name(i), 0.0) <= deadline_s]
        if not in_time:
            return min(free, key=lambda i: facts.took_s[name(i)]), "the fastest: none meets the deadline"
        if in_time[0] != free[0]:
            took_ms = facts.took_s[name(free[0])] * 1000
            return in_time[0], f"as one in ten runs of {name(free[0])} takes {took_ms:.3g} ms or more, longer than the deadline"
        free = in_time
    return free[0], "the first" if free[0] == members[0] else f"as {name(members[0])} is not free"


SPENT: Final = "joules_per_hour is spent"
# Label of a threshold where a rule, or a busy or unloaded edge, changes which edges are asked.
PARTIAL: Final = "uncalibrated: its certificate is about all edge models together, and not all are asked"
# Label of a certificate's threshold for an input that reaches its edge in another way than in the calibration.
EARLIER: Final = "uncalibrated: its certificate counts on the edge models before it, and not all of them judged this input"


class Leg(NamedTuple):
    """Target as used in this plan."""

    name: str
    permit: Permit | None  # permission to leave the device; None: the leg runs on it. No cloud can be called without one.
    target: int  # position in the list of targets; a higher one is more capable, so its answer is the better fallback
    threshold: float | None  # accept from this confidence on; None: accept any answer; inf: accept none
    final: bool  # True for the last leg to call: its answer is accepted whatever its confidence
    accept_unsure: bool  # True if an answer without a confidence is accepted
    # Hedging delay: start so many seconds after the previous leg, even if that still runs; inf: only once that has ended.
    hedge_after_s: float
    standby: bool  # True for a standby for failures: its answer is stored until every other leg has ended, or until the deadline
    # Latest start of a standby, or of an edge not in memory, seconds from the beginning; inf: only after every other leg.
    start_by_s: float
    label: str
    thresholds: Mapping[str, float]  # per-class thresholds: an answer's `str()` -> its threshold
    lowered: float = 0.0  # by how much its thresholds are below the target's, as the cloud is loaded
    certified: bool = False  # True if its threshold is a certificate's
    # Function that says why the loaded models are not the certified ones, as the target has it; None: no certificate.
    moved: Callable[[], str] | None = None

    @property
    def side(self) -> Side:
        """Side on which it runs."""
        return "edge" if self.permit is None else "cloud"


class Unsure(NamedTuple):
    """Edge whose confidence, known from the input alone, is below its threshold."""

    leg: Leg  # leg as it would have been asked
    confidence: float | None


class Plan(NamedTuple):
    """Legs in order of trying, with the deadline."""

    legs: tuple[Leg, ...]
    deadline_s: float
    offline: Offline
    mode: Mode
    steps: tuple[str, ...]  # reasons for this plan, one line each
    sequential: bool  # True if at most one leg runs at a time, and nothing can interrupt it
    stays: str  # reason why no leg leaves the device although there is a cloud; empty otherwise
    data_class: str | None
    facts: Facts
    # Clouds that are not asked since earlier runs of theirs go on, with no other cloud in their place.
    skipped: tuple[str, ...] = ()
    # Shadow mode: edges that would be asked first, in order; for a sample of the requests they run after these have ended.
    shadow_legs: tuple[Leg, ...] = ()
    rules: tuple[Rule, ...] = ()  # rules on the device's state that have shaped this plan
    hedge_s: float = INF  # hedging delay, seconds after the beginning; in streams a standby, too, is started then
    unsure: tuple[Unsure, ...] = ()  # edges that are not asked first, as the input's own confidence is below their thresholds
    arm: str = ""  # cloud on trial that answers in place of the first; empty: none


class Refusal(NamedTuple):
    """No plan is possible: the reason, and what to do."""

    reason: str
    denied: bool = False  # True if the data class is the reason, not a contradiction in the policy


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
    """Return the plan for one request, its legs (targets to ask) in order, or why there is none.

    `mode` and `deadline_s` (seconds) override the policy's. `why_home`: reason why nothing of the request may leave, whatever its
    data class; empty: the egress rules decide. `arm`: name of the cloud on trial whose arm the request is in; empty: none.

    Each leg gets its threshold, hedging delay and permit; with the cloud first, and for busy edges, edges stand by. An edge's
    group gives one member; rules in force may change mode, edges and hedges; `steps` has each decision in words. Mode `shadow` is
    planned as `only_cloud`, with the edges in `Plan.silent`; clouds on trial are left out, but for `arm`. Breakers and budgets
    are not read. A refusal: the mode needs a side that is not there, or nothing may leave and no edge may be asked (`denied`).
    """
    ruled = _applying(policy, facts, mode)
    deadline_s = policy.deadline_s if deadline_s is None else deadline_s
    edges = every = [i for i, t in enumerate(targets) if t.side == "edge"]
    clouds = [i for i, t in enumerate(targets) if t.side == "cloud" and (not t.trial or t.name == arm)]
    edges, variants = pick_variants(edges, targets, facts, ruled.then("small_model"), deadline_s)
    firsts = [targets[side[0]].name for side in (edges, clouds) if side]
    asked_mode, cheapest = _mode_by_energy(_mode(policy, ruled, mode), ruled, firsts, facts, chosen=mode is not None)
    own, mode = mode, "only_cloud" if asked_mode == "shadow" else asked_mode
    data_class = policy.rules.default_class if data_class is None else data_class
    steps = [f"mode {asked_mode}" + ("" if deadline_s == INF else f", deadline {deadline_s * 1000:g} ms")]
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
        verdict = Denied(data_class, why_home) if why_home else permit(policy.rules, data_class, own)
        if isinstance(verdict, Denied):
            stays = verdict.why
            steps.append(f"nothing leaves the device: {stays}")
        else:
            allowed = verdict
            if verdict.data_class is not None:
                steps.append(f"data class {verdict.data_class!r} may leave: {verdict.rule}")

    away = [] if allowed is None else order_clouds(policy, targets, facts, clouds)
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

    places, skipped, more = place_targets(order, targets, facts, ruled.then("unload"))
    steps += more
    order = [place.target for place in places]
    silent: tuple[Leg, ...] = ()
    if asked_mode == "shadow" and ruled.then("unload") is None:
        silent = tuple(shadow_leg(i, targets[i], policy) for i in edges)
        steps.append("of a sample it is recorded what the edge would have answered, afterwards: nothing else changes")

    hedge_s = INF if first_away and isinstance(policy.hedge_after, str) else _hedge_s(policy, targets, facts, order, deadline_s)
    if hedge_s < INF and facts.no_hedge and len(order) > 1 and allowed is not None:
        steps.append(f"no hedge: {facts.no_hedge}")
        hedge_s = INF
    legs: list[Leg] = []
    asked = [place.target for place in places if targets[place.target].side == "edge" and not (place.late or place.spare)]
    before: list[int] = []
    for position, place in enumerate(places):
        target, usual = targets[place.target], not place.late
        if target.certified:
            if target.together and asked != every:
                target = without_guarantee(target, PARTIAL)
            elif before != [i for i in edges if i < place.target]:
                target = without_guarantee(target, EARLIER)
            if arm:
                target = target._replace(label=f"uncalibrated: its certificate is for another cloud than {arm}")
        before += [place.target] if target.side == "edge" else []
        standby = place.spare or (first_away and target.side == "edge" and (usual or deadline_s < INF))
        waits = start_by_s(
            place, standby=standby and not any(leg.standby for leg in legs), hedge_s=hedge_s,
            reserve_s=facts.reserves.get(target.name, INF), deadline_s=deadline_s,
        )  # fmt: skip
        leg = _leg_alone(place.target, target, policy, allowed)._replace(
            final=position == len(order) - 1 and usual and not standby and not skipped,
            hedge_after_s=hedge_s if position and usual and not standby else INF,
            standby=standby,
            start_by_s=waits,
        )
        after = places[position + 1].target if position + 1 < len(places) else None
        if facts.kept and after is not None and targets[after].side == "cloud" and not standby:
            leg, why = _with_lowered_thresholds(leg, target, facts, asks=allowed is not None)
            steps += why
        steps.append(_leg_in_words(leg, legs[-1] if legs else None))
        legs.append(leg)
    sequential = deadline_s == INF and all(leg.hedge_after_s == INF and leg.start_by_s == INF for leg in legs)
    return Plan(
        tuple(legs), deadline_s, policy.offline, mode, tuple(steps), sequential,
        stays, data_class, facts, skipped, silent, ruled.rules, hedge_s, arm=arm,
    )  # fmt: skip


Labelled = TypeVar("Labelled", Leg, Target)


def without_guarantee(promising: Labelled, label: str) -> Labelled:
    """Return a leg or target with another label, unless its own says already that nothing is guaranteed."""
    return promising if promising.label.startswith("uncalibrated") else promising._replace(label=label)


def judged_leg(plan: Plan, i: int, below: Container[int]) -> Leg:
    """Return leg `i`, labelled `uncalibrated: ...` if the certificate of its threshold does not hold for this request.

    It holds only if the loaded files are those that it is bound to (`moved` says), and each edge before it answered below its
    threshold: none failed, was late or cancelled. `below`: legs whose answers were below their thresholds.
    """
    leg = plan.legs[i]
    if leg.moved is not None and (why := leg.moved()):
        return without_guarantee(leg, f"uncalibrated: {why}")
    if not leg.certified or all(j in below or plan.legs[j].permit is not None for j in range(i)):
        return leg
    return without_guarantee(leg, EARLIER)


def without_first(plan_before: Plan, confidence: float | None, why: str) -> Plan:
    """Return the plan with its first edge on standby, after all others: its confidence is known, and below its threshold.

    `why` becomes a step of the plan, and the edge an entry of `unsure`. Other standbys then start only once all others have
    ended.
    """
    first, *rest = plan_before.legs
    waits = start_by_s(
        Place(first.target), standby=True, hedge_s=plan_before.hedge_s, reserve_s=plan_before.facts.reserves.get(first.name, INF),
        deadline_s=plan_before.deadline_s,
    )  # fmt: skip
    standby = first._replace(standby=True, final=False, hedge_after_s=INF, start_by_s=waits)
    others = [leg._replace(start_by_s=INF) for leg in rest if leg.standby]  # less capable ones
    asked = [leg for leg in rest if not leg.standby]
    legs = (asked[0]._replace(hedge_after_s=INF), *asked[1:], standby, *others)
    sequential = plan_before.deadline_s == INF and all(leg.hedge_after_s == INF and leg.start_by_s == INF for leg in legs)
    return plan_before._replace(
        legs=legs, sequential=sequential, steps=(*plan_before.steps, f"{why}, so it is on standby"),
        unsure=(*plan_before.unsure, Unsure(first, confidence)),
    )  # fmt: skip


def by_itself(current: Plan) -> Plan:
    """Return the plan of a call for which nobody waits: without a mode of its own, its permits hold as `stays_on_device` says."""
    legs = (leg if leg.permit is None else leg._replace(permit=leg.permit.without_mode()) for leg in current.legs)
    return current._replace(legs=tuple(legs))


def stays_on_device(policy: Policy, facts: Facts, mode: Mode | None = None) -> str:
    """Return why nothing leaves the device by itself now (deliveries, audits, probes, revalidation); empty: it may.

    The reason is the mode only_edge, of the policy or of a rule in force. `mode`: mode of a call, if that is the question.
    """
    ruled = _applying(policy, facts, mode)
    if _mode(policy, ruled, mode) != "only_edge":
        return ""
    return f"only_edge, {ruled.mode}" if ruled.mode is not None else "only_edge"


def withdrawn(policy: Policy, facts: Facts, allowed: Permit) -> str:
    """Return why a new call like that of the permit may not leave by now; empty: it may. A policy has its own `Rules` object."""
    if why := stays_on_device(policy, facts, allowed.mode):
        return f"nothing leaves the device by now: the mode is {why}"
    if policy.rules is allowed.rules:
        return ""
    verdict = permit(policy.rules, allowed.data_class)
    return verdict.why if isinstance(verdict, Denied) else ""


def _applying(policy: Policy, facts: Facts, mode: Mode | None) -> Applying:
    """Return the rules in force that apply to a call with that mode of its own, if any."""
    return applying([rule for rule in policy.device_rules if rule in facts.rules], mode)


def _mode(policy: Policy, ruled: Applying, mode: Mode | None) -> PolicyMode:
    """Return the mode of a call: by a rule, its own, or the policy's."""
    return ruled.mode.then if ruled.mode is not None else mode or policy.mode  # type: ignore[return-value]  # it is a mode


def _mode_by_energy(
    asked_mode: PolicyMode, ruled: Applying, sides: Sequence[str], facts: Facts, *, chosen: bool
) -> tuple[PolicyMode, list[str]]:
    """Return the mode that takes less energy, if a rule or a limit asks for it and both sides may be asked; and the reasons.

    The edge first costs its run, and the cloud's call where it is unsure; the cloud first costs the call. If a cost is unknown,
    the mode stays, with that as the reason. Past the limit the dearer side is left out: the cloud is refused, or comes first. A
    mode by a rule, or of the call (`chosen`), overrides a limit. `sides`: the names of the first edge and the first cloud, as far
    as there are.
    """
    rule = ruled.then("cheapest_energy")
    spent = facts.energy_spent and not chosen and ruled.mode is None
    if not (rule or spent) or asked_mode not in {"prefer_edge", "prefer_cloud"} or len(sides) < 2:  # noqa: PLR2004 - nothing to compare
        return asked_mode, []
    why = SPENT if spent else str(rule)
    edge, cloud = (facts.joules.get(name) for name in sides)
    if edge is None or cloud is None:
        unknown = " and ".join(name for name in sides if name not in facts.joules)
        return asked_mode, [f"{why}: the order stays as it is, as it is not known what energy a call of {unknown} takes"]
    first = edge if spent else edge + (facts.unsure or 0.0) * cloud
    text = f"{why}: {first:.3g} J a call with {sides[0]} first, {cloud:.3g} J with {sides[1]} first"
    return ("prefer_edge" if first < cloud else "prefer_cloud"), [text]


def order_clouds(policy: Policy, targets: tuple[Target, ...], facts: Facts, clouds: list[int]) -> list[int]:
    """Return the clouds in the policy's `order`: as listed, or by median latency, the fastest first.

    One without measured latency comes first, or it would never be measured.
    """
    if policy.order == "listed":
        return clouds

    def median_s(i: int) -> float:
        known = facts.latencies.get(targets[i].name)
        return 0.0 if known is None else known.quantile(0.5) or 0.0

    return sorted(clouds, key=median_s)


def _with_lowered_thresholds(leg: Leg, target: Target, facts: Facts, *, asks: bool) -> tuple[Leg, list[str]]:
    """Return an edge's leg with its thresholds lowered as far as the cloud's load demands, and the reasons.

    `asks`: True if a cloud may be asked at all. Unchanged if the threshold is a certificate's, which is reported, or if no slack
    is known.
    """
    if not asks or target.side != "edge" or leg.threshold is None:
        return leg, []
    if target.certified:
        return leg, [f"the cloud is loaded: {leg.name} defers all the same, as its threshold is a certificate's"]
    lower = facts.slack.get(leg.name, 0.0)
    if not lower:
        return leg, []
    why = f"{leg.label}, lowered by {lower:.2g} as the cloud is loaded"
    thresholds = {name: threshold - lower for name, threshold in leg.thresholds.items()}
    text = f"the cloud is loaded: {leg.name} keeps the surest {facts.kept * 100:.0f} % of what it would defer"
    return leg._replace(threshold=leg.threshold - lower, thresholds=thresholds, label=why, lowered=lower), [text]


def _hedge_s(policy: Policy, targets: tuple[Target, ...], facts: Facts, order: Sequence[int], deadline_s: float) -> float:
    """Return the policy's `hedge_after` in seconds: as given, or from the latencies of the first edge and the first cloud.

    "p90" is that quantile of the edge's, "auto" the latest start that meets the deadline (`auto_hedge_s`); inf if they are not
    known.
    """
    rule = policy.hedge_after
    if not isinstance(rule, str):
        return rule
    firsts = (next((targets[i].name for i in order if targets[i].side == side), "") for side in ("edge", "cloud"))
    edge, cloud = map(facts.latencies.get, firsts)
    if edge is None or cloud is None:
        return INF
    if rule == "auto":
        either = targets[order[0]].threshold is None
        return auto_hedge_s(edge, cloud, deadline_s=deadline_s, deferral_rate=facts.deferral_rate, either=either)
    return quantile_hedge_s(edge, float(rule[1:]) / 100)


def shadow_leg(i: int, target: Target, policy: Policy) -> Leg:
    """Return the leg of an edge for shadow mode, as in `prefer_edge`; one without a threshold accepts nothing."""
    leg = _leg_alone(i, target, policy, None)
    return leg if leg.threshold is not None else leg._replace(threshold=INF, accept_unsure=False)


def _leg_alone(i: int, target: Target, policy: Policy, allowed: Permit | None) -> Leg:
    """Return the leg of target number `i` as if it were the first of several: no standby, and not the last to be called."""
    return Leg(
        target.name, allowed if target.side == "cloud" else None, i, target.threshold, final=False,
        accept_unsure=policy.no_confidence == "accept", hedge_after_s=INF, standby=False, start_by_s=INF,
        label=target.label, thresholds=target.thresholds, certified=target.certified, moved=target.moved,
    )  # fmt: skip


def two_digits(x: float) -> str:
    """Return a confidence or threshold with two digits, or, if it is less than 1 and would be shown as 1, with six."""
    text = f"{x:.2f}"
    return f"{min(x, 0.999999):.6g}" if text == "1.00" and x < 1 else text


def _leg_in_words(leg: Leg, before: Leg | None) -> str:
    """Return when a leg starts and which answer of it is accepted, in words."""
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
        accept = f"accepted from confidence {two_digits(leg.threshold)} on ({leg.label})"
    return f"{leg.name} {when}; {accept}"
