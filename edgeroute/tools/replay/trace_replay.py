"""Replay of a trace (`replay`): each request is planned and walked by the live core, in virtual time, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import isnan
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from edgeroute.core import reason_text_and_trace_record as explain
from edgeroute.core.device_rules import Reading, State, in_force, step
from edgeroute.core.error_codes_and_texts import Failure
from edgeroute.core.plan import Facts, Plan, Refusal, plan
from edgeroute.core.policy_egress_and_options import INF, Mode
from edgeroute.core.spending_limits import Cost, Spending
from edgeroute.core.walk import Elapsed, Event, Outcome, Start, Wait, Walk, walk
from edgeroute.errors import PolicyError, nearest
from edgeroute.observe.plan_facts_energy_rules import READS_S, unsure_share
from edgeroute.observe.target_counts import Counts
from edgeroute.tools import walk_driver_in_virtual_time as virtual
from edgeroute.tools.replay.recorded_requests_and_statistics import ANSWERED, Past, Recording, Request, Tally, read, without_gc
from edgeroute.tools.replay.replay_setup_and_result import (
    Change,
    Energy,
    Gated,
    Port,
    Replay,
    Setup,
    Values,
    goes_by_energy,
    joules,
)
from edgeroute.tools.replay.simulated_calls_and_environment import (
    NETWORKS,
    SERVER_S,
    THERMAL,
    Battery,
    Gate,
    Link,
    Script,
    Unknown,
    heat,
)

# Driver for the walk of a replayed request.

Answer = Callable[[Start, float], Event]  # (effect that starts a leg, now) -> its event, not before `now`


def drive(walk: Walk, answer: Answer, begun: float, until: float, *, sequential: bool) -> Outcome:
    """Run the generator of a request's route up to the deadline `until` in virtual time, and return its outcome.

    `sequential`: legs run one at a time, which needs no sorting; an event after the deadline is dropped. Raises what `answer`
    raises.
    """
    if not sequential:
        return virtual.drive(walk, lambda start, now: (answer(start, now),), begun)[0]
    now, reply = begun, None
    try:
        while True:
            effect = walk.send(reply)
            reply = None
            if type(effect) is Start:
                event = answer(effect, now)
                if event.at <= until:
                    reply, now = event, event.at
            elif type(effect) is Wait:
                reply = Elapsed(until)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


EXAMPLES: Final = 5
PLANS: Final = 1000
STARTED_AND_ACCEPTED: Final = 2
NO_CACHE = "the cache answered, and this policy has none: the edge's answer is not known"
NOTES: Final = (
    "confidences are those of the recorded model and score: another of either cannot be replayed",
    "the trace is whole: in a sample of one, limits and rates see only the sample; a request that raised is in no trace",
    "the cache answers the same requests again, and no others",
    "a stream and a refinement are replayed as plain requests; audits, and thresholds that they would change, are not replayed",
    "a call fails with all its retries at once; a hold that an endpoint asks for (Retry-After) is not in a trace",
    "consent is given and redaction works where the trace does not say otherwise",
    "rules go by the trace's readings, known at its requests alone; by battery and heat as they are simulated",
    "with an empty battery nothing is served",
)


def replay(
    trace: Recording | str | Path,
    policy: Setup | str | Path,
    *,
    network: str | None = None,
    server_s: float | None = None,
    battery: Battery | None = None,
    edge_joules: float | None = None,
    thermal: str | None = None,
    keep_mode: bool = False,
    keep_deadline: bool = False,
    seed: int = 0,
) -> Replay:
    """Evaluate the requests of a trace under another policy (counterfactual). Opens no model and no connection.

    Requests whose route the trace does not determine are counted by their reasons, and are in no total of the replay.

    Args:
        trace: a recording from `read`, or the path of a trace.
        policy: a setup from `Setup.read`, or the path of a policy file.
        network: one of `NETWORKS`; None: calls take their recorded time.
        server_s: with a network, the endpoint's processing time; None: its fastest recorded one, else `SERVER_S`.
        battery: the battery; None: unlimited.
        edge_joules: energy per run of the edge; None: as recorded, where the router knew it.
        thermal: one of `THERMAL`; None: the edge takes its recorded time.
        keep_mode: True keeps each request's recorded mode.
        keep_deadline: True keeps each request's recorded deadline.
        seed: seed of the random numbers; the same seed gives the same result.

    Raises:
        BadInput: not a trace.
        PolicyError: the policy is invalid, or there is no such network or thermal course.
    """
    options = check_options(Options(network, server_s, battery, edge_joules, thermal, keep_mode, keep_deadline))
    trace = trace if isinstance(trace, Recording) else read(trace)
    setup = policy if isinstance(policy, Setup) else Setup.read(policy)
    return replay_requests(trace, setup, options, Random(seed))[0]  # noqa: S311 - simulation, not secrets


class Options(NamedTuple):
    """Options of a replay, as `replay` has them."""

    network: str | None = None
    server_s: float | None = None
    battery: Battery | None = None
    edge_joules: float | None = None
    thermal: str | None = None
    keep_mode: bool = False
    keep_deadline: bool = False


def check_options(options: Options) -> Options:
    """Return the options unchanged; raise PolicyError, with the nearest name, if there is no such network or thermal course."""
    for what, name, valid in (("network", options.network, NETWORKS), ("thermal course", options.thermal, THERMAL)):
        if name is not None and name not in valid:
            raise PolicyError(f"there is no {what} {name!r}: {nearest(name, [*valid])}")
    return options


def replay_requests(trace: Recording, setup: Setup, options: Options, random: Random) -> tuple[Replay, Tally]:
    """Return the result of a replay, and its totals with the latency of each request. Garbage collection is off meanwhile."""
    with without_gc():
        run = _Run(trace, setup, options, random)
        return run.all(options.keep_mode, options.keep_deadline), run.tally


class _Run:
    """State of one replay: plans and walks each request in virtual time, with rules, energy and spending, and counts results."""

    def __init__(self, trace: Recording, setup: Setup, options: Options, random: Random) -> None:
        network, server_s, battery, edge_joules, thermal, *_ = options
        self.trace, self.setup, self.battery, self.edge_joules = trace, setup, battery, edge_joules
        self.notes = [*NOTES]
        if network is not None:
            self.notes.append(f"network {network}: typical figures, an open connection, and only a probe detects its return")
        if thermal is not None:
            self.notes.append(f"thermal course {thermal}: typical figures, counted from the first request")
        self.spending = Spending(setup.limits)
        self.gates = {}
        link = None if network is None else Link(NETWORKS[network], random)
        for target in setup.targets:
            if target.side == "cloud":
                past, port = trace.endpoints.get(target.name) or Past(), setup.ports.get(target.name) or Port()
                needs_s = next(iter(past.latencies), SERVER_S) if server_s is None else server_s
                if link is not None:
                    self.notes.append(f"{target.name} needs {needs_s * 1000:.3g} ms for an answer, beside the network")
                self.gates[target.name] = Gate(target.name, port, past, link, needs_s, random, self.spending)
        self.course = () if thermal is None else THERMAL[thermal]
        self.script = Script(self.gates, self.spending, self.course, random)
        self.counts, self.facts, self.tally = Counts(), Facts(), Tally()
        self.rules, self.reading = setup.policy.device_rules, Reading()
        self.state: State = ()
        self.coming = trace.readings[::-1]
        self.reads_at = INF if battery is None and not self.course else -INF
        self.joules = joules(trace, setup, edge_joules) if goes_by_energy(setup) else {}
        self.edges = [target.name for target in setup.targets if target.side == "edge"]
        self.limited = bool(self.edges) and setup.limits.joules_per_hour < INF
        if self.joules or self.limited:
            self._set_energy()
        # The plans made so far, and whether their legs run one at a time.
        self.plans: dict[tuple[Mode | None, float | None, str | None], tuple[Plan | Refusal, bool]] = {}
        self.changed = self.unserved = self.same = self.seen = self.unseen = 0
        self.examples: list[Change] = []
        self.unknown, self.refused = Counter[str](), Counter[str]()

    def _set_energy(self) -> None:
        """Enter the energy of calls into facts and spending, known from the first request on; add notes about it."""
        self.facts = self.facts._replace(joules=self.joules)
        edge_j = next((self.joules[name] for name in self.edges if name in self.joules), 0.0)
        if self.limited:
            self.spending.edge_j = edge_j
        listed = ", ".join(f"{name} {joules:.3g} J" for name, joules in self.joules.items())
        self.notes.append(f"the energy of a call is known from the first request on, and does not change: {listed or 'nothing'}")
        if self.edges and not edge_j:
            self.notes.append(f"no record has the energy of a run of {self.edges[0]}: it counts as none, or give edge_joules")

    def all(self, keep_mode: bool, keep_deadline: bool) -> Replay:
        """Replay all requests, sorted by start, and return the result; those after the battery is empty are counted as unserved.

        Refused requests count as unanswered; one whose course is `Unknown` is counted by its reason, and in no total. Plans
        change with recorded sensors, spending and latencies. Call once.

        keep_mode, keep_deadline: True: of each request as recorded; False: of the policy.
        """
        tally, battery, empty = self.tally, self.battery, None
        script, plans = self.script, self.plans
        policy = self.setup.policy
        by_latency = keep_mode or policy.mode == "prefer_cloud" or policy.hedge_after != INF or policy.order != "listed"
        observes = by_latency or bool(self.joules)
        for request in self.trace.requests:
            begun = request.begun
            if battery is not None:
                empty = battery.empty_at(self._spent(), begun) if empty is None else empty
                if empty is not None:
                    self.unserved += 1
                    continue
            if self.rules:
                self._sense(begun)
            if request.mode is None:
                self._cached(request)
                continue
            if self.limited:
                left_j = self.setup.limits.joules_per_hour - self.spending.spent(begun).joules
                self._know(self.facts._replace(energy_spent=left_j < self.spending.edge_j))
            key = request.mode if keep_mode else None, request.deadline_s if keep_deadline else None, request.data_class
            route, sequential = plans.get(key) or self._plan(key)
            if isinstance(route, Refusal):
                self.refused[route.reason] += 1
                tally.requests += 1
                tally.unanswered += 1
                continue
            script.begin(request, route)
            try:
                outcome = script.at_first(route, begun) if sequential else None
                if outcome is None:
                    outcome = drive(walk(route, begun), script, begun, begun + route.deadline_s, sequential=sequential)
                    script.end(outcome, tally)
            except Unknown as e:
                self.unknown[str(e)] += 1
                continue
            self._count_request(request, route, outcome)
            if observes:
                self._measure(request, route, outcome)
                if self.counts.record(route, outcome, bool(request.batch)):
                    self._observe(outcome.ended)
        return self._result(empty)

    def _plan(self, key: tuple[Mode | None, float | None, str | None]) -> tuple[Plan | Refusal, bool]:
        """Make the plan for this mode, deadline and data class by the current facts, and tell if its legs run one at a time.

        Up to 1,000 plans are stored, until the facts change.
        """
        mode, deadline_s, data_class = key
        policy, targets = self.setup.policy, self.setup.targets
        route = plan(policy, targets, self.facts, mode=mode, deadline_s=deadline_s, data_class=data_class)
        legs = route.legs if isinstance(route, Plan) else ()
        planned = route, all(leg.hedge_after_s == INF and leg.start_by_s == INF for leg in legs)
        if len(self.plans) < PLANS:
            self.plans[key] = planned
        return planned

    def _cached(self, request: Request) -> None:
        """Count a request that the cache answered, with its recorded latency; as unknown if the policy has no cache."""
        if not self.setup.cached:
            self.unknown[NO_CACHE] += 1
            return
        self.tally.requests += 1
        self.tally.cache += 1
        self.tally.latencies.append(request.latency_s)
        self.same += 1

    def _count_request(self, request: Request, route: Plan, outcome: Outcome) -> None:
        """Count a request whose walk has ended, and compare who answered with the recording; keep the first five that differ."""
        tally, legs, begun = self.tally, route.legs, outcome.begun
        leg, accepted = outcome.leg, outcome.accepted
        tally.requests += 1
        tally.latencies.append(outcome.ended - begun)
        if len(outcome.log) == STARTED_AND_ACCEPTED and leg is not None and accepted and legs[leg].permit is None:
            tally.edge += 1
            self._count_run(request, legs[leg].name, begun)
        else:
            self._count_events(request, route, outcome)
        name = None if leg is None or (not accepted and route.offline == "raise") else legs[leg].name
        if name is not None:
            if name == request.by:
                self.same += 1
            elif (seen := request.legs.get(name)) is not None and seen.what in ANSWERED:
                self.seen += 1
            else:
                self.unseen += 1
        if name != request.by or accepted != request.accepted:
            self.changed += 1
            if len(self.examples) < EXAMPLES:
                why = explain.reason(route, outcome) + ("" if name is not None else "; no answer")
                self.examples.append(Change(request.id, _summary(request), why))

    def _count_run(self, request: Request, name: str, time: float) -> None:
        """Count a run of the edge with its full energy, also if it is stopped, and book that energy in the spending."""
        tally, energy = self.tally, self.edge_joules
        tally.edge_runs += 1
        if energy is None:
            energy = request.legs[name].joules * (heat(self.course, time).times if self.course else 1.0)
        if energy:
            tally.run_joules += energy
            self.spending.add(Cost(joules=energy), time)

    def _count_events(self, request: Request, route: Plan, outcome: Outcome) -> None:
        """Count the events of a walk: runs of edges, holds, deferral, deadline miss, queueing, and who answered, if anybody."""
        tally, legs = self.tally, route.legs
        deferred = late = fatal = False
        for kind, i, time, detail in outcome.log:
            if kind == "start":
                if legs[i].permit is None:
                    self._count_run(request, legs[i].name, time)
                else:
                    deferred = True
            elif kind == "failed":
                failure = Failure.of(detail)
                tally.held += failure.held
                fatal = fatal or failure.code == "bad_input"
            elif kind == "timeout":
                late = True
        tally.deferred += deferred
        tally.deadline_misses += late
        queued = not outcome.accepted and route.offline == "queue" and any(leg.permit is not None for leg in legs)
        tally.queued += queued and not (fatal and outcome.leg is None)
        if outcome.leg is None or (not outcome.accepted and route.offline == "raise"):
            tally.unanswered += 1
            return
        tally.degraded += not outcome.accepted
        if legs[outcome.leg].permit is None:
            tally.edge += 1
        else:
            tally.cloud += 1

    def _observe(self, now: float) -> None:
        """Compute the facts for planning (latencies, energy, hedges) as a live router does.

        If they changed, discard the plans.
        """
        policy, counts, edges, before = self.setup.policy, self.counts, self.edges, self.facts
        edge_s = max((counts.quantile(name, 0.99) or 0.0 for name in edges), default=0.0)
        no_hedge = self._reason_against_hedges(now) if policy.hedge_after != INF else ""
        facts = Facts(edge_s=edge_s, reserves=counts.reserves(edges), no_hedge=no_hedge)
        if isinstance(policy.hedge_after, str) or policy.order != "listed":
            facts = facts._replace(latencies=counts.latencies(), deferral_rate=counts.deferral_rate)
        if self.joules:
            facts = facts._replace(joules=before.joules, unsure=unsure_share(counts, edges), energy_spent=before.energy_spent)
        self._know(facts._replace(rules=before.rules))

    def _sense(self, now: float) -> None:
        """Step the rules by the readings recorded until now, and with battery or heat by simulated ones.

        These come as often as a live router reads its sensors.
        """
        while self.coming and self.coming[-1][0] <= now:
            time, self.reading = self.coming.pop()
            self._step(time)
        if now >= self.reads_at:
            self.reads_at = now + (self.setup.policy.sensors_every_s or READS_S)
            self._step(now)

    def _step(self, time: float) -> None:
        """Step the device rules by the current reading, with simulated battery and heat.

        Discard the plans if the facts change.
        """
        battery, course, reading = self.battery, self.course, self.reading
        if battery is not None:
            reading = reading._replace(battery=battery.left(self._spent(), time), mains=False)
        if course:
            reading = reading._replace(temperature_c=heat(course, time).celsius)
        self.state = step(self.rules, self.state, reading, time)
        self._know(self.facts._replace(rules=in_force(self.state)))

    def _measure(self, request: Request, route: Plan, outcome: Outcome) -> None:
        """Add the recorded times of stopped edges to the latencies, as a live router does: they run to their end all the same."""
        for kind, i, _, _ in outcome.log:
            if kind in {"cancelled", "timeout"} and route.legs[i].permit is None and not request.batch:
                seen = request.legs.get(route.legs[i].name)
                if seen is not None and seen.what in ANSWERED:
                    self.counts.add_latency(route.legs[i].name, seen.took_s)

    def _know(self, facts: Facts) -> None:
        """Set the facts; if they changed, discard the plans."""
        if facts != self.facts:
            self.facts = facts
            self.plans.clear()

    def _spent(self) -> float:
        """Return the joules spent on requests."""
        return self.tally.joules + self.tally.run_joules

    def _reason_against_hedges(self, now: float) -> str:
        """Return why no call is hedged: a metered link, half of the budget spent, an open breaker; empty: hedges are allowed."""
        if self.setup.metered:
            return "the link is metered"
        if self.spending.scarce(now):
            return "half of what may be spent is spent"
        open_names = [name for name, gate in self.gates.items() if gate.rules.state != "closed"]
        return f"{', '.join(open_names)} does not answer" if open_names else ""

    def _result(self, empty: float | None) -> Replay:
        """Return the result of the replay, all events of the gates applied.

        empty: when the battery ran empty; None: by its base load after the last request, or not at all.
        """
        trace, tally = self.trace, self.tally
        last = trace.requests[-1]
        span_s = last.begun + last.latency_s
        replayed = tally.numbers()
        energy = None
        if self.battery is not None:
            until = span_s if empty is None else empty
            empty = self.battery.empty_at(replayed.joules, span_s) if empty is None else empty
            spent = min(self.battery.joules, replayed.joules + self.battery.idle_w * until)
            energy = Energy(spent, self.battery.left(replayed.joules, until), empty)
        return Replay(
            trace.recorded.numbers(self.edge_joules), replayed, dict(self.unknown), dict(self.refused), self.unserved,
            self.changed, tuple(self.examples), Values(self.same, self.seen, self.unseen), dict(self.script.estimated),
            {name: Gated(g.asked, g.held, g.probes, g.opened) for name, g in self.gates.items()},
            energy, span_s, trace.skipped, trace.untimed, tuple(self.notes),
        )  # fmt: skip


def _summary(request: Request) -> str:
    """Summarise a recorded request's legs in one line: result, confidence, and the time of a call."""
    parts = []
    for name, seen in request.legs.items():
        if seen.what == "failed":
            parts.append(f"{name} failed: {seen.error}")
        else:
            edge_confidence = "" if seen.confidence is None or isnan(seen.confidence) else f" {seen.confidence:.2f}"
            parts.append(f"{name}{edge_confidence} {seen.what}" + (f", {seen.took_s * 1000:.0f} ms" if seen.away else ""))
    return "; ".join(parts)
