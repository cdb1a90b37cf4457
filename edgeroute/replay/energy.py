"""What calls take, as a trace has it: of the edges their recorded energy, of clouds their prices."""

from __future__ import annotations

from collections.abc import Mapping

from edgeroute.core.policy import INF
from edgeroute.replay.records import Past, Recording
from edgeroute.replay.setup import Setup


def goes_by_energy(setup: Setup) -> bool:
    """Whether the policy has a rule or a limit that goes by what calls take."""
    frugal = any(rule.then == "cheapest_energy" for rule in setup.policy.all_rules())
    return frugal or setup.limits.joules_per_hour < INF


def joules(trace: Recording, setup: Setup, edge_joules: float | None) -> Mapping[str, float]:
    """Target -> energy of a call, joules, over the whole trace; one of which it is not known is missing.

    Args:
        trace: has the energy of edges' runs, if the router knew it.
        setup: has the clouds' prices.
        edge_joules: of a run of any edge; None: as recorded, on average.
    """
    found: dict[str, float] = {}
    for target in setup.targets:
        name = target.name
        if target.side == "edge" and edge_joules is not None:
            found[name] = edge_joules
        elif target.side == "edge":
            took = [seen.joules for request in trace.requests if (seen := request.legs.get(name)) is not None and seen.joules]
            if took:
                found[name] = sum(took) / len(took)
        elif name in setup.ports:
            terms, past = setup.ports[name].terms, trace.endpoints.get(name) or Past()
            mb = (past.sent_bytes + past.received_bytes) / 1e6
            if terms.joules_per_call or terms.joules_per_mb * mb:
                found[name] = terms.joules_per_call + terms.joules_per_mb * mb
    return found
