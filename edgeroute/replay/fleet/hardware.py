"""A device of the fleet with its policy: what it takes, how warm it gets, and where its requests go under the rules in force."""

from __future__ import annotations

from typing import NamedTuple

from edgeroute.core.facts import Facts
from edgeroute.core.plan import Refusal, plan
from edgeroute.core.policy import Policy, Target
from edgeroute.core.rules import Rule
from edgeroute.replay.setup import Setup


class Shares(NamedTuple):
    """What becomes of a request, each per request."""

    edge: float
    """Runs of the edge, in units of its usual one."""
    cloud: float
    """Requests to the cloud."""


class Device(NamedTuple):
    """A device: the figures are plain guesses of a small board without a fan, not measured on one."""

    policy: Policy
    targets: tuple[Target, ...]
    battery: float | None = None
    """Charge at the start, 0..1, of the average device; None: it is on mains."""
    battery_wh: float = 10.0
    idle_w: float = 1.0
    """What it takes whatever it does, watts."""
    run_s: float = 0.05
    run_j: float = 0.1
    """Time and energy of a run of the edge, seconds and joules."""
    small: float = 0.5
    """Time and energy of a run of the smallest edge model, relative to that."""
    call_j: float = 0.0
    """Energy of a request to the cloud, joules."""
    ambient_c: float = 25.0
    c_per_w: float = 8.0
    """Degrees above its surroundings for each watt that it takes, in the long run."""
    warming_s: float = 300.0
    """Time in which it gets to 63 % of that, seconds."""

    @classmethod
    def of(cls, setup: Setup, **more: float) -> Device:
        """A device with this policy; `more` are other fields than their defaults."""
        call_j = next((port.terms.joules_per_call for port in setup.ports.values()), 0.0)
        targets = tuple(target._replace(thresholds={}) for target in setup.targets)
        return cls(setup.policy, targets, **{"call_j": call_j, **more})

    def shares(self, rules: tuple[Rule, ...], defer: float) -> Shares:
        """Where requests go by the plan with these rules in force, if the edge is unsure of the share `defer`."""
        first = {side: next((t.name for t in self.targets if t.side == side), "") for side in ("edge", "cloud")}
        facts = Facts(rules=rules, joules={first["edge"]: self.run_j, first["cloud"]: self.call_j}, unsure=defer)
        made = plan(self.policy, self.targets, facts)
        if isinstance(made, Refusal):
            return Shares(0.0, 0.0)
        away = any(leg.permit is not None for leg in made.legs)
        if made.legs[0].permit is not None:
            return Shares(0.0, 1.0)
        small = any(rule.then == "small_model" for rule in made.rules)
        return Shares(self.small if small else 1.0, defer if away else 0.0)
