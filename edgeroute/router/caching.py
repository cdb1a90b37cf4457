"""Answers that were given before: looked up, kept, and shared between equal requests that come at the same time."""

from __future__ import annotations

import contextlib
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeroute import system
from edgeroute.errors import BadInput
from edgeroute.router.request import Route
from edgeroute.stores.cache import Cache, Entry, Flights, Semantic, digest, fingerprint
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.core.plan import Plan
    from edgeroute.router.snapshot import Snapshot

log = logging.getLogger("edgeroute")


class Caching:
    """A cache, as a router uses it."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self._flights = cache, Flights()

    def known(self, route: Route, live: Snapshot, begun: float) -> tuple[Answer | None, bool]:
        """The answer that the cache has, and whether it is past its time and should be renewed.

        Where it has none, the route is given its key, and the flight of all requests that are equal to it.
        """
        plan = route.plan
        if plan.data_class in self.cache.never:
            return None, False
        prefix = live.prefixes.get((plan.mode, plan.data_class)) or _prefix(live, plan)
        key = digest(prefix, route.inputs)
        if key is None:
            return None, False
        entry, age = self.cache.lookup(key)
        if entry is not None and age == "fresh":
            return _answer(entry, "cache", route, begun, ""), False
        route.cache, route.key = self.cache, key
        if entry is not None and age == "revalidate":
            route.flight = self._flights.join(key)
            return _answer(entry, "stale", route, begun, " and past its time, being renewed"), route.flight.leads
        semantic = self.cache.semantic
        if semantic is not None and isinstance(route.inputs, str):
            near = self._near(semantic, prefix, route.inputs)
            if near is not None:
                entry, similarity = near
                note = f", for a text like it (semantic {similarity:.2f} >= {semantic.threshold:g})"
                return _answer(entry, "cache", route, begun, note), False
        route.flight = self._flights.join(key)
        return None, False

    def _near(self, semantic: Semantic, prefix: bytes, text: str) -> tuple[Entry, float] | None:
        try:
            return semantic.find(prefix, text)
        except BadInput as e:  # the embedding's fault, said once; no request is to fail for it
            log.error("%s", e)  # noqa: TRY400
            return None

    def row(self, batch: Route, row: int, begun: float) -> tuple[Answer | None, Route, bool]:
        """The same for one row of a batch, as a route of its own."""
        workers: Any = None  # it is not run
        one = Route(batch.plan, batch.live, batch.inputs[row], workers, batch.until, False, batch.router, f"{batch.number}.{row}")
        answer, renew = self.known(one, batch.live, begun)
        if answer is None and one.flight is not None:
            one.flight.failed()  # a batch neither waits for others nor lets them wait
        return answer, one, renew

    def keep(self, key: bytes, answer: Answer, live: Snapshot, plan: Plan, x: Any) -> None:
        """Stores an answer, if it is one that the policy accepted."""
        if answer.degraded or not answer.final or answer.source not in {"edge", "cloud"}:
            return
        side: Any = answer.source
        entry = Entry(answer.value, answer.confidence, answer.outputs, answer.leg, side, answer.reason, system.now())
        self.cache.put(key, entry)
        prefix = live.prefixes.get((plan.mode, plan.data_class))
        if self.cache.semantic is not None and isinstance(x, str) and prefix is not None:  # None: the policy is another by now
            with contextlib.suppress(BadInput):  # said when it was looked for
                self.cache.semantic.add(prefix, x, entry)

    def stale(self, route: Route, key: bytes | None, begun: float) -> Answer | None:
        """What the cache has from before, past its time, for when there is nothing better."""
        if key is None:
            return None
        entry, _ = self.cache.lookup(key)
        return None if entry is None else _answer(entry, "stale", route, begun, ", the cloud is away")

    def shared(self, leader: Answer, route: Route, begun: float) -> Answer:
        """The answer of an equal request that was under way, as this one's."""
        side: Any = leader.source
        entry = Entry(leader.value, leader.confidence, leader.outputs, leader.leg, side, leader.reason, system.now())
        answer = Answer.recalled(
            entry, "cache", f"shared with {leader.id}: {leader.reason}", (route.router, route.number), monotonic() - begun
        )
        answer.degraded, answer.final = leader.degraded, leader.final
        return answer


def _answer(entry: Entry, source: Any, route: Route, begun: float, note: str) -> Answer:
    age_s = max(0.0, system.now() - entry.at)
    told = f"cache, {age_s:.0f} s old{note}: {entry.reason}"
    return Answer.recalled(entry, source, told, (route.router, route.number), monotonic() - begun)


def _prefix(live: Snapshot, plan: Plan) -> bytes:
    """What an answer depends on beside the input: the targets, their thresholds, the score, the mode and the data class."""
    parts: list[object] = [plan.mode, plan.data_class, plan.stays, live.policy.no_confidence]
    for leg in plan.legs:
        recipe, runner = live.recipes[leg.target], live.runners[leg.target]
        score = recipe[3] if isinstance(recipe[3], str) else fingerprint(recipe[3])
        parts += [leg.name, leg.threshold, runner.fingerprint(fingerprint), score]
    return live.prefixes.setdefault((plan.mode, plan.data_class), repr(parts).encode())  # two threads may be first, and differ
