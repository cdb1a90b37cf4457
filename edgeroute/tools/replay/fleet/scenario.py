"""Inputs of a fleet simulation: devices with their policy, cloud, outage, and protection mechanisms of the clients."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from edgeroute.core.device_rules import Rule
from edgeroute.core.plan import Facts, Refusal, plan
from edgeroute.core.routing_policy import Policy, Target
from edgeroute.tools.replay.replayed_policy import Setup

# A device of the fleet with its policy: power, heat, and the routes of its requests under the rules in force.


class Shares(NamedTuple):
    """Average use of edge and cloud per request."""

    edge: float
    """Runs of the edge, in units of its usual one."""
    cloud: float
    """Requests to the cloud."""


class Device(NamedTuple):
    """Device of a fleet. The figures are plain guesses of a small board without a fan, not measured."""

    policy: Policy
    targets: tuple[Target, ...]
    battery: float | None = None
    """Charge at the start, 0..1, of the average device; None: it is on mains."""
    battery_wh: float = 10.0
    idle_w: float = 1.0
    """Base load, watts."""
    run_s: float = 0.05
    run_j: float = 0.1
    """Time and energy of a run of the edge, seconds and joules."""
    small: float = 0.5
    """Time and energy of a run of the smallest edge model, relative to that."""
    call_j: float = 0.0
    """Energy of a request to the cloud, joules."""
    ambient_c: float = 25.0
    c_per_w: float = 8.0
    """Degrees above its surroundings for each watt, in the long run."""
    warming_s: float = 300.0
    """Time to 63 % of that, seconds."""

    @classmethod
    def of(cls, setup: Setup, **more: float) -> Device:
        """Return a device with this policy, without thresholds by class; `more` are other values for its fields."""
        call_j = next((port.terms.joules_per_call for port in setup.ports.values()), 0.0)
        targets = tuple(target._replace(thresholds={}) for target in setup.targets)
        return cls(setup.policy, targets, **{"call_j": call_j, **more})

    def shares(self, rules: tuple[Rule, ...], defer: float) -> Shares:
        """Return the shares of edge and cloud by the plan with these rules, if the edge is unsure of the share `defer`.

        Both are 0 if the plan is refused.
        """
        first = {side: next((t.name for t in self.targets if t.side == side), "") for side in ("edge", "cloud")}
        facts = Facts(rules=rules, joules={first["edge"]: self.run_j, first["cloud"]: self.call_j}, unsure=defer)
        route = plan(self.policy, self.targets, facts)
        if isinstance(route, Refusal):
            return Shares(0.0, 0.0)
        may_defer = any(leg.permit is not None for leg in route.legs)
        if route.legs[0].permit is not None:
            return Shares(0.0, 1.0)
        small = any(rule.then == "small_model" for rule in route.rules)
        return Shares(self.small if small else 1.0, defer if may_defer else 0.0)


AGAIN_S: Final = 10.0
"""Window of the definition of a recovery: the cloud answers the share `GOOD` of its requests in any window, seconds."""
GOOD: Final = 0.99


class Scenario(NamedTuple):
    """Fleet before one cloud with an outage. Durations and times in seconds."""

    devices: int = 1_000_000
    per_minute: float = 1.0
    """Requests per device, at random times."""
    defer: float = 0.1
    """Deferred share, 0..1."""
    length_s: float = 3600.0
    margin: float = 1.5
    """Capacity of the cloud, as a multiple of the normal load."""
    latency_s: float = 0.05
    """Time of an answer without queueing; a rejection takes as long."""
    queue_s: float = 10.0
    """Longest wait in the cloud's queue; a request that would wait longer is rejected (503). Requests given up by their device
    are still served."""
    outage_at_s: float = 60.0
    outage_s: float = 10.0
    """At its start, requests queued in the cloud are lost."""
    silent: bool = False
    """True: during the outage there are no replies; False: connections are refused at once."""
    retry_after_s: float = 0.0
    """Retry-After of a 503; 0: none."""
    timeout_s: float = 2.0
    offline: Literal["edge", "queue"] = "edge"
    """Degraded requests: the edge's answer is returned; and, with an outbox, they are also sent later."""
    drain_per_s: float = 10.0
    """Maximum rate of deliveries per device, per second."""
    together: float = 0.0
    """Share of devices, 0..1, that send one more request in the first second of the outage, simultaneously."""
    surest_right: float = 0.8
    least_right: float = 0.2
    """Probability that the edge is right on deferred inputs: on those it is surest of, and least; linear between."""
    cloud_right: float = 0.95
    """Probability that the cloud is right on deferred inputs."""
    seed: int = 0
    device: Device | None = None
    """Policy and power of the devices, whose rules follow battery, heat and load. None: they have no state."""

    @property
    def normal_per_s(self) -> float:
        """Normal load of the cloud, requests per second: while no rule is in force."""
        share = self.defer if self.device is None else self.device.shares((), self.defer).cloud
        return self.devices * self.per_minute / 60 * share

    @property
    def capacity_per_s(self) -> float:
        """Capacity of the cloud, requests per second."""
        return self.margin * self.normal_per_s

    @property
    def back_at_s(self) -> float:
        """End of the outage."""
        return self.outage_at_s + self.outage_s


class Client(NamedTuple):
    """Protection mechanisms of a device."""

    name: str
    retries: int = 2
    """Maximum retries of a failed request."""
    budget: bool = True
    """Retry budget: one retry per ten successes, ten at most."""
    jitter: bool = True
    """Random back-off; otherwise each wait is the maximum."""
    breaker: bool = True
    """Circuit breaker: opens after three consecutive faults, and probes without user data."""
    whole: bool = True
    """The timeout covers a request with its retries; otherwise it applies to each attempt, and timeouts are retried."""
    hints: bool = False
    """Load hints: more requests are answered on the edge while the cloud reports load."""
    adaptive: bool = False
    """Adaptive limit of concurrent calls: a further call gets the edge's answer at once."""
    spread_s: float = 60.0
    """Spread of the outbox, seconds: entries are sent after a random part of it, longer after a long outage; 0: at once."""


EDGEROUTE: Final = Client("edgeroute")
_PLAIN: Final = Client("plain retries", retries=3, budget=False, jitter=False, breaker=False, whole=False, spread_s=0.0)
NO_SPREAD: Final = EDGEROUTE._replace(name="no spread", spread_s=0.0)
PER_ATTEMPT: Final = EDGEROUTE._replace(name="timeout per attempt", whole=False)
CLIENTS: Final = (
    EDGEROUTE,
    EDGEROUTE._replace(name="no retry budget", budget=False),
    EDGEROUTE._replace(name="no jitter", jitter=False),
    EDGEROUTE._replace(name="no breaker", breaker=False),
    PER_ATTEMPT,
    _PLAIN,
    _PLAIN._replace(name="plain, with budget", budget=True),
    _PLAIN._replace(name="plain, with breaker", breaker=True),
)


LOAD_AWARE: Final = (
    EDGEROUTE._replace(name="neither"),
    EDGEROUTE._replace(name="load hints", hints=True),
    EDGEROUTE._replace(name="adaptive concurrency", adaptive=True),
    EDGEROUTE._replace(name="both", hints=True, adaptive=True),
)
"""Clients to compare before a cloud that is too small."""


def clients(scenario: Scenario, spread_s: float = EDGEROUTE.spread_s) -> tuple[Client, ...]:
    """Return the clients to compare, with this spread where they have one; one without a spread only if there are outboxes."""
    all_clients = (*CLIENTS[:1], NO_SPREAD, *CLIENTS[1:]) if scenario.offline == "queue" else CLIENTS
    return tuple(client._replace(spread_s=spread_s) if client.spread_s else client for client in all_clients)
