"""Gathers the facts for planning: latencies, busy targets, spending, rules in force. Runs off the path of most calls."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from edgeroute.cloud.spending import SharedSpending
from edgeroute.core.facts import Facts
from edgeroute.core.load import FROM, kept_share
from edgeroute.core.plan import arranged
from edgeroute.core.policy import INF, Policy, Target
from edgeroute.core.readings import SHARES, Reading
from edgeroute.core.rules import State, amount, in_force, step, value_of
from edgeroute.core.spending import Cost
from edgeroute.core.variants import MOST
from edgeroute.core.walk import Outcome
from edgeroute.observe.energy import Energy, steady, unsure
from edgeroute.observe.paces import Paces
from edgeroute.observe.sensors import Sensors, period_s, read
from edgeroute.observe.stats import ALONE, Counts
from edgeroute.system import LINUX, contained, now, renew_after_fork
from edgeroute.types import Backend

OWN = "give the router `sensors=`, a function that returns a Reading"
EASES_S = 1.0
"""Time after which it is looked whether the load of a cloud has eased, seconds."""
READS_S = 10.0
"""Time between two readings of the device's sensors, seconds, where they say no other."""
log = logging.getLogger("edgeroute")


class Observer:
    """Holds the current facts of one router.

    Args:
        counts: has latencies and deferral rates.
        spending: has the amounts spent.
        metered: whether the link is metered (bytes cost money), or a function that returns it.
        sensors: reads the device's sensors; None: the standard Linux ones.
        records: whether readings are recorded, so that they are wanted without a rule as well.

    Attributes:
        energy: what calls take.
        facts: the current ones; replaced by a new object when they change.
        reading: the last one.
        read_at: its instant; None: there is none yet.
        eases_at: instant from which the load of the clouds is to be looked at again; inf: nothing goes by it.
        reads_at: instant from which the sensors are due; inf: they are not used, or are being read.
    """

    def __init__(
        self,
        counts: Counts,
        spending: SharedSpending,
        metered: bool | Callable[[], bool],
        sensors: Sensors | None,
        *,
        records: bool = False,
    ) -> None:
        self._counts, self._spending, self.metered, self._sensors = counts, spending, metered, sensors or read
        self._metered_failed, self._implausible, self._records = False, False, records
        self._policy, self._paces, self.energy = Policy(), Paces(), Energy(counts)
        self._edges: Sequence[str] = ()
        self._state: State = ()
        self.facts, self.reading = Facts(), Reading()
        self.read_at: float | None = None
        self.reads_at = self.eases_at = INF
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child, whose first request has the sensors read."""
        self._lock = threading.RLock()  # reentrant: a signal handler may call in between
        self.reads_at = -INF if self.wanted else INF

    @property
    def wanted(self) -> bool:
        """Whether the sensors are read at all."""
        return self._records or self.limited or bool(self._policy.all_rules())

    @property
    def limited(self) -> bool:
        """Whether a limit counts the energy of edges' runs."""
        return bool(self._edges) and self._spending.limits.joules_per_hour < INF

    def use(self, policy: Policy, targets: Sequence[Target]) -> None:
        """Goes by the rules of another policy; those that it has in common with the last one stay as they are."""
        self._policy, self._edges = policy, [t.name for t in targets if t.side == "edge"]
        self._step()
        self.reads_at = -INF if self.wanted else INF

    def observe(self, policy: Policy, targets: Sequence[Target], backends: Sequence[Backend]) -> bool:
        """Updates the facts, except the sensors. Returns whether they changed."""
        counts = self._counts
        busy = frozenset(b.name for b in backends if b.abandoned >= b.max_abandoned)
        edge_s = max((counts.quantile(t.name, 0.99) or 0.0 for t in targets if t.side == "edge"), default=0.0)
        reserves = counts.reserves(t.name for t in targets if t.side == "edge")
        proper = [(t, b) for t, b in zip(targets, backends, strict=True) if not t.trial]
        no_hedge = self.no_hedge([b for _, b in proper]) if policy.hedge_after != INF else ""
        facts = Facts(busy, edge_s, reserves, no_hedge)
        if isinstance(policy.hedge_after, str) or policy.order != "listed":
            facts = facts._replace(latencies=counts.latencies(), deferral_rate=counts.deferral_rate)
        variants = [t.name for t in targets if t.group]
        if variants:
            facts = facts._replace(took_s=self._paces.known(counts.took_s(variants, MOST), monotonic()))
        frugal = any(rule.then == "cheapest_energy" for rule in policy.all_rules())
        if frugal or self.limited:
            joules = steady(self.facts.joules, self.energy.joules(backends))
            facts = facts._replace(joules=joules, unsure=unsure(counts, self._edges) if frugal else None)
        if self.limited:
            edge_j = self._spending.edge_j = next((facts.joules[name] for name in self._edges if name in facts.joules), 0.0)
            left_j = self._spending.limits.joules_per_hour - self._spending.spent().joules
            facts = facts._replace(energy_spent=left_j < edge_j)
        facts = self._relieved(facts, policy, *zip(*proper, strict=True)) if proper else facts
        loading = frozenset(b.name for b in backends if getattr(b, "loading", False))
        with self._lock:
            facts = facts._replace(rules=in_force(self._state), loading=loading)
            changed, self.facts = facts != self.facts, facts
        return changed

    def _relieved(self, facts: Facts, policy: Policy, targets: tuple[Target, ...], backends: Sequence[Backend]) -> Facts:
        """The facts with what is kept on the edge as the cloud that is asked first is loaded."""
        clouds = arranged(policy, targets, facts, [i for i, t in enumerate(targets) if t.side == "cloud"])
        guards: list[Any] = [getattr(backends[i], "guard", None) for i in clouds if targets[i].name not in facts.busy]
        asked = next((guard for guard in guards if guard is not None and guard.state == "closed"), None)
        now = monotonic()
        share = 0.0 if asked is None else kept_share(asked.rules.load.at(now))
        self.eases_at = now + EASES_S if share else INF
        if not share:
            return facts
        return facts._replace(kept=share, slack=self._counts.slacks(self._edges, share))

    def outdated(self, outcome: Outcome, backends: Sequence[Backend]) -> bool:
        """Whether a backend has become busy, or free again, as far as a request that ended so is a reason to look."""
        busy = self.facts.busy
        if not busy and len(outcome.log) <= ALONE:  # most: no leg was given up
            return False
        return any((backend.abandoned >= backend.max_abandoned) != (backend.name in busy) for backend in backends)

    def read(self) -> bool:
        """Reads the sensors, and steps the rules. Returns whether the facts changed."""
        self.reads_at = INF  # until they have been read, however long that takes
        try:
            reading = Reading(*map(_value, contained(self._sensors)))
        except Exception:
            log.exception("the device's sensors could not be read; what they said before counts")
            return False
        self.reading, self.read_at = self._plausible(reading), monotonic()
        self.book(reading.power_w, self.read_at)
        return self._step()

    def _plausible(self, reading: Reading) -> Reading:
        """The reading without what is no share, such as per cent, by which a rule would never apply."""
        wrong = {name: value for name in SHARES if (value := getattr(reading, name)) is not None and not 0 <= value <= 1}
        if not wrong:
            return reading
        if not self._implausible:
            self._implausible = True
            told = ", ".join(f"{name} is {value:g}" for name, value in wrong.items())
            log.warning("the sensors say that %s: these are shares from 0 to 1, so they count as unknown", told)
        return reading._replace(**dict.fromkeys(wrong))

    def book(self, power_w: float | None, now_s: float) -> None:
        """Books the energy of the edges' runs since it was last booked, with a reading of the power; None: there is none."""
        if used_j := self.energy.note(power_w, self._edges, now_s):
            self._spending.add(Cost(joules=used_j), now())

    def due_again(self) -> None:
        """The sensors are due in a while."""
        period = self._policy.sensors_every_s or period_s(self._sensors, READS_S)
        self.reads_at = monotonic() + period if self.wanted else INF

    def _step(self) -> bool:
        """Steps the rules by the last reading. Returns whether others are in force now."""
        with self._lock:
            now_s = monotonic() if self.read_at is None else self.read_at
            self._state = step(self._policy.all_rules(), self._state, self.reading, now_s)
            rules = in_force(self._state)
            changed = rules != self.facts.rules
            if changed:
                self.facts = self.facts._replace(rules=rules)
        return changed

    def rules(self) -> list[str]:
        """The rules, one line each: what they do, until when, and whether they are in force."""
        lines = []
        for rule, on, _ in self._state:
            until = "" if rule.enter is None else f" until {amount(rule.of, rule.ends)}"
            lines.append(f"rule: {rule}{until}: {rule.then}{' (in force)' if on else ''}")
        return lines

    def budget(self) -> list[str]:
        """What `joules_per_hour` counts, in one line; none without that limit."""
        if not self.limited:
            return []
        limit, spent, extra_w = self._spending.limits.joules_per_hour, self._spending.spent().joules, self.energy.extra_w
        if extra_w is not None:
            what = f"the cloud's calls and the edge's runs, at {extra_w:.3g} W while one goes"
        elif self.reading.power_w is None:
            what = f"the cloud's calls alone: {sys.platform} tells no power here, so what a run of the edge takes is not known"
        else:
            what = "the cloud's calls alone, until what a run of the edge takes is known (rules.md)"
        return [f"joules_per_hour counts {what}; {spent:.4g} of {limit:g} J are spent"]

    def lacking(self, backends: Sequence[Backend]) -> list[str]:
        """What the policy uses and this system does not have, one line each."""
        unknown = dict.fromkeys(rule.of for rule, on, _ in self._state if not on and value_of(rule, self.reading) is None)
        lines = [f"rule of {of}: {sys.platform} gives no reading of it here, so it never applies: {OWN}" for of in unknown]
        if any(backend.side == "cloud" for backend in backends) and not LINUX:
            lines.append(
                f"{sys.platform} does not tell when the network is back: an endpoint that was away is probed by time alone"
            )
        return lines

    def no_hedge(self, backends: Sequence[Backend]) -> str:
        """Why hedges and audits are forbidden now; empty: they are allowed. An endpoint on trial is not among the backends."""
        if self._is_metered():
            return "the link is metered"
        if self._spending.scarce():
            return "half of what may be spent is spent"
        guards: list[Any] = [getattr(b, "guard", None) for b in backends]
        away = [guard.name for guard in guards if guard is not None and guard.state != "closed"]
        if away:
            return f"{', '.join(away)} does not answer"
        now = monotonic()
        full = [guard.name for guard in guards if guard is not None and guard.rules.load.at(now) > FROM]
        return f"{', '.join(full)} is loaded" if full else ""

    def _is_metered(self) -> bool:
        """Whether the link is metered; it counts as metered if the function raises."""
        if not callable(self.metered):
            return self.metered
        try:
            return bool(contained(self.metered))
        except Exception:
            if not self._metered_failed:
                self._metered_failed = True
                log.exception("metered() failed, so the link counts as metered")
            return True


def _value(value: Any) -> Any:
    """A reading's value, of a type that has an order.

    Raises:
        TypeError, ValueError: it is no number.
    """
    return value if value is None or isinstance(value, bool) else float(value)
