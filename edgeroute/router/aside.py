"""Calls of single models beside a router's own calls, to measure them.

Egress rules, consent, redaction, limits, the ledger, the breaker and instruments of attempts take part. Cache, outbox, audits,
hedges, deadlines, offline rules, counts, alarms and traces do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from edgeroute.confidence.scores import Score
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import Prediction, acceptable
from edgeroute.edge.backend import EdgeBackend
from edgeroute.edge.beforehand import edge_backend
from edgeroute.edge.members import member
from edgeroute.errors import Closed, MayNotLeave, PolicyError
from edgeroute.router.calls import Block, Pause, Steps, walked
from edgeroute.router.legs import LegExecutor, Walked
from edgeroute.router.planning import planned
from edgeroute.router.request import Request
from edgeroute.router.settling import settle
from edgeroute.router.snapshot import before, chosen, fingerprints

if TYPE_CHECKING:
    from edgeroute.cloud.backend import CloudBackend
    from edgeroute.router.engine import Engine
    from edgeroute.router.snapshot import Snapshot

LOOK_S = 1.0
"""Interval at which a waiting call looks whether the router was closed."""


class Aside:
    """One edge model of a router and its clouds, by the policy in force now: a reload changes nothing here.

    Args:
        engine: of the router.
        edge: index of the edge model, from 0.
        score: its confidence is by this score; None: by the one in use.
        of: another policy than that in force, as of the candidate.

    Attributes:
        snapshot: that policy, reduced to plain calls.
        number: position of the edge model among its targets.
        before: the positions of the edge models that decide which inputs reach it.
        runner: the edge model's backend.

    Raises:
        Closed: the router is closed.
        PolicyError: there is no such edge model, or it has a score of its own.
    """

    def __init__(self, engine: Engine, edge: int = 0, score: str | Score | None = None, of: Snapshot | None = None) -> None:
        self._engine = engine
        self._check_open()
        snapshot = of or engine.snapshot
        edges = [i for i, target in enumerate(snapshot.targets) if target.side == "edge"]
        if isinstance(edge, bool) or not isinstance(edge, int) or not 0 <= edge < len(edges):
            raise PolicyError(f"there is no edge model number {edge}: the policy has {len(edges)}, counted from 0")
        self.number = edges[edge]
        self.runner = cast("EdgeBackend", snapshot.backends[self.number])
        self.score: str | Score = snapshot.specs[self.number][3]
        if score is not None and score != self.score:
            if member(self.runner.model, "score") is not None:
                raise PolicyError(
                    f"{self.runner.where} has a score of its own, which goes before the router's: change it there, or leave out "
                    "score="
                )
            self.score = score
            self.runner = edge_backend(self.runner.name, self.runner.model, score)
        backends, specs = list(snapshot.backends), list(snapshot.specs)
        kind, name, given, _, *more = specs[self.number]
        backends[self.number], specs[self.number] = self.runner, (kind, name, given, self.score, *more)
        policy = snapshot.policy._replace(offline="raise", hedge_after=INF, deadline_s=INF, saver=None, device_rules=())
        targets = tuple(target._replace(group="") for target in snapshot.targets)  # each can be run, also if it is not picked
        self._targets, self.before = snapshot.targets, before(snapshot.targets, self.number)
        self.snapshot = snapshot._replace(policy=policy, targets=targets, backends=tuple(backends), specs=tuple(specs), plans={})

    @property
    def clouds(self) -> list[CloudBackend]:
        """The endpoints, but those on trial."""
        return self.snapshot.proper

    def arms(self) -> tuple[dict[str, Any], ...]:
        """What came of the arms of an A/B comparison so far; empty: there are none, or they have no request yet."""
        found = () if self._engine.arms is None else self._engine.arms.stats()
        return tuple(arm._asdict() for arm in found) if any(arm.requests for arm in found) else ()

    def cloud_arms(self) -> tuple[dict[str, Any], ...]:
        """Likewise of the arms of the cloud."""
        found = () if self._engine.trials is None else self._engine.trials.stats()
        return (
            tuple(arm._asdict() for arm in found) if any(arm.calls or arm.shadowed or arm.shadow_failed for arm in found) else ()
        )

    def fingerprints(self) -> dict[str, str]:
        """What a certificate for this edge model and this score is bound to. Reads files."""
        return fingerprints(self.snapshot._replace(targets=self._targets), self.number)

    def ready(self) -> Steps[None]:
        """Loads the edge model.

        Raises:
            ModelError: it cannot be used.
        """
        yield Block(partial(self.runner.ready, INF), INF)

    def run(self, x: Any, number: int | None = None) -> Steps[Walked]:
        """Runs the edge model, or the one before it with that position among the targets."""
        made = planned(self.snapshot, self._engine.observer.facts, "only_edge", None, None)
        leg = next(leg for leg in made.legs if leg.target == (self.number if number is None else number))
        leg = leg._replace(final=True, standby=False, hedge_after_s=INF, start_by_s=INF)
        (found,) = yield from self._walked(made._replace(legs=(leg,), order=(0,), sequential=True), [x])
        yield Pause(0.0)
        return found

    def keeps(self, number: int, one: Walked) -> bool:
        """Whether the edge model with that position keeps the input that it was run on, by the threshold that it was given."""
        (leg,), target, prediction = one.request.plan.legs, chosen(self.snapshot, number), one.outcome.prediction
        own = leg._replace(final=False, threshold=target.threshold, thresholds=target.thresholds)
        return prediction is not None and acceptable(own, prediction)

    def may_leave(self, data_class: str | None) -> Plan:
        """The plan for calls of the clouds.

        Raises:
            MayNotLeave: the egress rules forbid them.
            PolicyError: there is no cloud.
        """
        try:
            return planned(self.snapshot, self._engine.observer.facts, "only_cloud", None, data_class)
        except MayNotLeave as e:
            raise MayNotLeave(f"the cloud is to be asked about every example, and that may not leave the device: {e}") from e

    def ask(
        self, inputs: Sequence[Any], data_class: str | None, edge: Sequence[Prediction | None] | None = None
    ) -> Steps[list[Walked]]:
        """Asks the clouds about these inputs together, once their rate has room for that: half of it is left for other calls.

        edge: the edge's answers to them, for clouds that take these along; None: there are none.
        """
        while (wait_s := max((_spare_in(cloud, len(inputs)) for cloud in self.clouds), default=0.0)) > 0:
            yield Pause(min(wait_s, LOOK_S))
            self._check_open()
        return (yield from self._walked(self.may_leave(data_class), inputs, edge))

    def together(self, most: int) -> int:
        """How many inputs the clouds take in one request, at most."""
        return most if all(_spare_in(cloud, most) < INF for cloud in self.clouds) else 1

    def _walked(self, plan: Plan, inputs: Sequence[Any], edge: Sequence[Prediction | None] | None = None) -> Steps[list[Walked]]:
        self._check_open()
        engine = self._engine
        identity = f"{engine.name}-{next(engine.numbers)}"
        requests = [Request(identity, x, plan, self.snapshot, monotonic(), INF) for x in inputs]
        if len(requests) > 1:
            requests = [one._replace(id=f"{identity}.{row}", batch=identity) for row, one in enumerate(requests)]
        legs = LegExecutor(requests, engine.edge_threads, engine.cloud_threads)
        legs.floor = True
        if legs.edge is not None and edge is not None:
            legs.edge.note(None, edge)
        requests[0] = requests[0]._replace(begun=monotonic())  # what came before is no part of its latency
        walks = yield from walked(requests, legs)
        for one in walks:
            settle(engine, one.request, one.outcome, legs)
        if not all(one.outcome.accepted for one in walks):
            self._check_open()  # which would be why
        return walks

    def _check_open(self) -> None:
        if self._engine.closed:
            raise Closed("this router is closed")


def _spare_in(cloud: CloudBackend, inputs: int) -> float:
    """Seconds until its rate has so many inputs, and half of it for others; 0 also if nothing may be sent; inf: never."""
    guard, calls, now = cloud.guard, cloud.calls(inputs), monotonic()
    with guard.lock:
        return 0.0 if guard.rules.why(now) is not None else guard.rules.rate.spare_in(now, calls)
