"""Setup of a replay (`Setup`: the parts of a policy that decide routes), its result as numbers and text, and energy of calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from edgeroute.core.policy_egress_and_options import INF, Policy, Target, Terms
from edgeroute.core.spending_limits import Limits
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.errors import ModelMissing
from edgeroute.router.policy_snapshot import PolicyArguments, Snapshot, build
from edgeroute.tools.replay.recorded_requests_and_statistics import Numbers, Past, Recording

if TYPE_CHECKING:
    from edgeroute.policy.model_and_endpoint_sections import Edge

# Policy keys about storage and background work, which a replay ignores.
KEPT: Final = frozenset({"state", "cache", "outbox", "trace", "audit", "telemetry", "fleet"})


class Port(NamedTuple):
    """Call settings of an endpoint: prices, retries, timeout, health check."""

    terms: Terms = Terms()
    retries: int = 0
    patience_s: float = 10.0  # timeout of a request with its retries, seconds
    health: bool = True  # True if it has a health check; otherwise the next request is the probe
    one_by_one: bool = False  # True if each row of a batch takes a separate call


class Setup(NamedTuple):
    """Policy prepared for a replay.

    Attributes:
        targets: edges and clouds, in order.
        ports: cloud's name -> its call settings.
        limits: spending limits; by default there are none.
        metered: True if the link is metered: then nothing is hedged.
        cached: True if there is a cache.
    """

    policy: Policy
    targets: tuple[Target, ...]
    ports: Mapping[str, Port]
    limits: Limits = Limits()
    metered: bool = False
    cached: bool = True

    @classmethod
    def read(cls, path: str | Path, threshold: float | None = None) -> Setup:
        """Read a policy file. Opens no model and no connection; a missing model is assumed to exist.

        Sections about storage and background work are ignored, and an uncalibrated threshold is accepted.

        threshold: of each edge model, in place of the policy's, whose certificate is not read then; None: the policy's.

        Raises:
            PolicyError: one message with all problems.
        """
        from edgeroute import policy
        from edgeroute.policy.model_and_endpoint_sections import group_variants

        path = Path(path)
        sections = policy.load(path)
        bare: dict[str, Any] = dict.fromkeys(KEPT & {*type(sections).model_fields})
        bare |= {} if threshold is None else {"threshold": threshold}
        arguments = sections.model_copy(update={**bare, "edge": [], "parts": {}}).arguments(path.parent)
        for name in KEPT:
            arguments.pop(name, None)
        limits, metered = arguments.pop("limits"), arguments.pop("metered")
        edges = [_edge(section, path.parent) for section in sections.edge]
        arguments |= {"edge": group_variants(edges, sections.edge), "uncalibrated": "tell"}
        snapshot = build(PolicyArguments(**arguments), _no_guard)
        return cls.of(snapshot, limits or Limits(), metered=metered, cached=sections.cache is not None)

    @classmethod
    def of(cls, snapshot: Snapshot, limits: Limits | None = None, *, metered: bool = False, cached: bool = True) -> Setup:
        """Return the setup of a router's snapshot, by reading its endpoints' settings; defaults where one has none."""
        ports = {}
        for runner in snapshot.clouds:
            address = getattr(getattr(runner, "endpoint", None), "address", None)
            ports[runner.name] = Port(
                runner.terms, getattr(address, "retries", 0), runner.patience_s, runner.health is not None, runner.calls(2) > 1
            )
        return cls(snapshot.policy, snapshot.targets, ports, limits or Limits(), metered, cached)


class _Absent:
    """Placeholder for a model that is not on this machine."""

    labels, kind = None, "logits"

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, inputs: list[Any], cancel: Any = None) -> NoReturn:  # noqa: ARG002 - required by the protocol
        """Raise ModelMissing, always."""
        raise ModelMissing(f"{self.name} is not on this machine")


def _edge(section: Edge, folder: Path) -> Any:
    """Return the edge model, not loaded; or a placeholder if its file, or the card of its description, is missing."""
    try:
        model = section.make(folder)
    except ModelMissing:  # also the card that the policy names
        return _Absent(Path(section.path).stem)
    path = member(model, "path")
    return model if path is None or Path(path).exists() else _Absent(model.name)


def _no_guard(runner: Any) -> Any:
    """Return None, as no guard: a replay never calls a cloud."""


class Change(NamedTuple):
    """Request whose route changes.

    Attributes:
        recorded: results of its targets in the recording.
        replayed: reason of its answer in the replay.
    """

    id: str
    recorded: str
    replayed: str


class Gated(NamedTuple):
    """Statistics of one endpoint's admission control.

    Attributes:
        asked: requests that were admitted and sent.
        held: requests that were rejected for a local reason: breaker, limits, consent.
        probes: number of health checks, without user data.
        opened: number of times the breaker opened.
    """

    asked: int
    held: int
    probes: int
    opened: int


class Energy(NamedTuple):
    """Battery at the end."""

    spent_joules: float
    left: float  # charge, 0..1
    empty_after_s: float | None  # seconds after the first request; None: not empty


class Values(NamedTuple):
    """Comparison of the targets that answer. A trace has no values, only who answered."""

    same: int  # requests with the same target as in the recording
    seen: int  # requests with another target, which had answered in the recording, too, without being accepted
    unknown: int  # requests with another target, which was not called in the recording, or did not answer


class Replay(NamedTuple):
    """Trace as recorded and as replayed. Makes no statement on accuracy: a trace has no labels.

    Attributes:
        recorded: totals of the recording.
        replayed: totals under the policy of the replay.
        unknown: reason why requests could not be replayed -> their number; they are in `recorded` only.
        refused: reason why the policy has no plan for requests -> their number.
        unserved: requests after the battery was empty.
        changed: requests answered by another target, or with another status.
        examples: first changed requests.
        values: targets that answer, compared with the recording.
        estimated: quantity that was not recorded and so estimated, from similar calls or the network -> how often.
        gates: endpoint's name -> its admission control.
        energy: battery at the end; None: no battery was given.
        span_s: seconds from the first request to the last.
        skipped: incomplete or invalid lines of the trace.
        untimed: records without a time, which were skipped.
        notes: assumptions of the replay.
    """

    recorded: Numbers
    replayed: Numbers
    unknown: Mapping[str, int]
    refused: Mapping[str, int]
    unserved: int
    changed: int
    examples: tuple[Change, ...]
    values: Values
    estimated: Mapping[str, int]
    gates: Mapping[str, Gated]
    energy: Energy | None
    span_s: float
    skipped: int
    untimed: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON data, with the deferral rates added to both totals."""
        data = {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in self._asdict().items()}
        data["recorded"]["deferral_rate"] = self.recorded.deferral_rate
        data["replayed"]["deferral_rate"] = self.replayed.deferral_rate
        data["examples"] = [change._asdict() for change in self.examples]
        data["gates"] = {name: gated._asdict() for name, gated in self.gates.items()}
        return data

    def __str__(self) -> str:
        return "\n".join([*_table(self.recorded, self.replayed), "", *self._lines()])

    def _lines(self) -> list[str]:
        """Return the text below the table: changed routes, unknowns, endpoints, battery, estimates and assumptions."""
        of, values = self.replayed.requests, self.values
        lines = [f"{self.changed:,} of {of:,} requests would have gone another way"]
        for change in self.examples:
            lines += [f"  {change.id}", f"    recorded: {change.recorded}", f"    replayed: {change.replayed}"]
        lines.append(
            f"answers: {values.same:,} by the same target, {values.seen:,} by one that had answered then too, "
            f"{values.unknown:,} by one that was not asked then or did not answer: its answer is not known"
        )
        lines += [f"cannot be known, {n:,} requests: {why}" for why, n in self.unknown.items()]
        lines += [f"no plan, {n:,} requests: {why}" for why, n in self.refused.items()]
        for name, g in self.gates.items():
            lines.append(f"{name}: asked {g.asked:,} times, held {g.held:,}, breaker opened {g.opened:,}, probes {g.probes:,}")
        if self.energy is not None:
            spent, left, after = self.energy
            end = f"{left * 100:.1f} % left" if after is None else f"EMPTY after {after:,.0f} s: not served, {self.unserved:,}"
            lines.append(f"battery: {spent:,.1f} J spent over {self.span_s:,.0f} s, {end}")
        lines += [f"estimated, {n:,} times: {what}" for what, n in self.estimated.items()]
        if self.skipped:
            lines.append(f"left out: {self.skipped:,} incomplete records, as after a power cut")
        if self.untimed:
            lines.append(f"left out: {self.untimed:,} records without a time (at)")
        return [*lines, "taken for granted:", *(f"  {note}" for note in self.notes)]


def _table(recorded: Numbers, replayed: Numbers) -> list[str]:
    """Return the lines of the table of totals, recorded beside replayed; "-" for an unknown latency."""
    both = recorded, replayed
    rows: list[tuple[str, ...]] = [("", "recorded", "replayed")]
    rows += [(label, *(f"{getattr(n, name):,.0f}" for n in both)) for label, name in _COUNTS]
    rows.append(("deferred", *(f"{n.deferral_rate * 100:.1f} %" for n in both)))
    for q in ("p50", "p90", "p99"):
        seconds = [getattr(n, f"{q}_s") for n in both]
        rows.append((f"latency {q}, ms", *("-" if s is None else f"{s * 1000:,.2f}" for s in seconds)))
    rows += [("dollars", *(f"{n.usd:,.6g}" for n in both)), ("joules", *(f"{n.joules:,.6g}" for n in both))]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]


_COUNTS = (
    ("requests", "requests"),
    ("answered by the edge", "edge"),
    ("answered by the cloud", "cloud"),
    ("answered by the cache", "cache"),
    ("not answered", "unanswered"),
    ("degraded", "degraded"),
    ("queued", "queued"),
    ("calls of the cloud", "calls"),
    ("not asked (breaker, limits)", "held"),
    ("deadline misses", "deadline_misses"),
    ("bytes sent", "sent_bytes"),
    ("bytes received", "received_bytes"),
)


# Energy of calls: of edges as recorded, of clouds by their prices.


def goes_by_energy(setup: Setup) -> bool:
    """Return True if the policy has a rule to take the cheapest energy, or a limit on joules."""
    frugal = any(rule.then == "cheapest_energy" for rule in setup.policy.device_rules)
    return frugal or setup.limits.joules_per_hour < INF


def joules(trace: Recording, setup: Setup, edge_joules: float | None) -> Mapping[str, float]:
    """Return target -> energy of a call, joules, averaged over the whole trace; targets of unknown or no energy are missing.

    Args:
        trace: trace with the energy of edges' runs, if the router knew it.
        setup: policy with the clouds' prices.
        edge_joules: energy of a run of any edge; None: as recorded, on average.
    """
    energy: dict[str, float] = {}
    for target in setup.targets:
        name = target.name
        if target.side == "edge" and edge_joules is not None:
            energy[name] = edge_joules
        elif target.side == "edge":
            recorded = [seen.joules for request in trace.requests if (seen := request.legs.get(name)) is not None and seen.joules]
            if recorded:
                energy[name] = sum(recorded) / len(recorded)
        elif name in setup.ports:
            terms, past = setup.ports[name].terms, trace.endpoints.get(name) or Past()
            mb = (past.sent_bytes + past.received_bytes) / 1e6
            if terms.joules_per_call or terms.joules_per_mb * mb:
                energy[name] = terms.joules_per_call + terms.joules_per_mb * mb
    return energy
