"""Facts for a router's plans (`Observer`): latencies, busy targets, spending, device rules in force; `Energy`, `Paces`.

Updated by the calls themselves and by readings of sensors; there is no thread here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeroute.core.device_rules import SHARES, Reading, State, amount, in_force, step, value_of
from edgeroute.core.performance_estimates_and_encoding_choice import FROM, PowerFit, break_even, rounded_share_to_keep
from edgeroute.core.plan import ENOUGH_RUNS, MOST, Facts, order_clouds
from edgeroute.core.policy_egress_and_options import INF, Policy, Target
from edgeroute.core.spending_limits import Cost
from edgeroute.observe.device_sensors_and_sampler import LINUX, Sensors, period_s, read
from edgeroute.observe.target_counts import Counts
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.wall_clock import now

if TYPE_CHECKING:
    from edgeroute.cloud.shared_spending_and_record import SharedSpending
    from edgeroute.types import Backend

# Energy of a call of each target: edges' fitted from the device's power, clouds' from their prices.

LONGEST_S = 120.0  # longest time between two readings of the power from which energy is computed, seconds


class Energy:
    """Estimate of the energy that one call of each target takes, fitted to readings of the device's power.

    Args:
        counts: has the time that edges were busy.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts, self._fit = counts, PowerFit()
        self._last: tuple[float, float] | None = None

    @property
    def extra_w(self) -> float | None:
        """Power that a run of an edge takes beyond the idle power of the device, watts; None: not known."""
        return self._fit.extra_w

    def note(self, power_w: float | None, edges: Iterable[str], now_s: float) -> float:
        """Add a reading of the device's power to the fit, and return the energy of the edges' runs since the last reading.

        0 at the first reading. After a long pause the reading is not added.

        Args:
            power_w: power of the device, watts; None: unknown.
            edges: names of the edge models.
            now_s: monotonic instant of the reading.

        Returns:
            Joules; 0 while the power of a run is not known.
        """
        busy_s = sum(seconds for _, seconds in self._counts.busy(edges).values())
        last, self._last = self._last, (now_s, busy_s)
        if last is None:
            return 0.0
        ran_s = max(0.0, busy_s - last[1])
        if power_w is not None and 0 < now_s - last[0] <= LONGEST_S:
            self._fit.add(power_w, ran_s / (now_s - last[0]))
        return ran_s * (self.extra_w or 0.0)

    def joules(self, backends: Sequence[Backend]) -> Mapping[str, float]:
        """Return target name -> mean energy of one call, joules; targets whose energy is not known are missing.

        An edge's is its mean time by the fitted power, a cloud's that of its settings, per call and per byte of its mean traffic.
        """
        busy, extra_w = self._counts.busy(b.name for b in backends), self.extra_w
        joules: dict[str, float] = {}
        for backend in backends:
            calls, seconds = busy.get(backend.name, (0, 0.0))
            if backend.side == "edge":
                if extra_w is not None and calls:
                    joules[backend.name] = extra_w * seconds / calls
                continue
            terms: Any = backend.terms  # type: ignore[attr-defined]  # a cloud has prices
            if terms.joules_per_call or (terms.joules_per_mb and calls):
                joules[backend.name] = terms.joules_per_call + terms.joules_per_mb * sum(backend.traffic) / 1e6 / max(1, calls)
        return joules

    def stats_fields(self, backends: Sequence[Backend]) -> dict[str, Any]:
        """Return the fields of `Stats` about energy: `joules`, and `break_even` of the first edge and the first cloud.

        That is None unless the energy of both is known.
        """
        joules = self.joules(backends)
        edge, cloud = (next((joules.get(b.name) for b in backends if b.side == side), None) for side in ("edge", "cloud"))
        return {"joules": joules, "break_even": None if edge is None or cloud is None else break_even(edge, cloud)}


def unsure_share(counts: Counts, edges: Sequence[str]) -> float | None:
    """Return the share of the first edge's answers below its threshold, rounded to a twentieth; None: too few answers."""
    judged, below = counts.judged(edges[0]) if edges else (0, 0)
    return round(20 * below / judged) / 20 if judged >= ENOUGH_RUNS else None


def steady(old: Mapping[str, float], new: Mapping[str, float]) -> Mapping[str, float]:
    """Return `old` itself if no value of `new` differs from it by more than a tenth, else `new`.

    Plans are made anew whenever the facts change, so small changes are held back.
    """
    near = old.keys() == new.keys() and all(abs(new[name] - value) <= 0.1 * value for name, value in old.items())
    return old if near else new


# Times that the variants of an edge model take, as far as they are recent.

AGAIN_S = 60.0  # pause after which a variant's earlier times no longer count, seconds, so that the variant is tried again


class Paces:
    """Filter for the latencies of an edge model's variants: passes those of enough runs since the variant's last long pause."""

    def __init__(self) -> None:
        # Variant -> runs in all, runs before its last long pause, and the monotonic instant of its last run.
        self._seen: dict[str, tuple[int, int, float]] = {}

    def known(self, took_s: Iterable[tuple[str, int, float]], now_s: float) -> Mapping[str, float]:
        """Return variant -> its time, seconds, for variants with enough runs since their last long pause.

        Remembers the numbers of runs.

        Args:
            took_s: name, number of runs in all, and the time that most of them take, seconds.
            now_s: monotonic.
        """
        known = {}
        for name, count, seconds in took_s:
            runs, before, at_s = self._seen.get(name, (count, 0, now_s))
            if now_s - at_s > AGAIN_S:
                before = runs
            self._seen[name] = (count, before, now_s if count != runs else at_s)
            if count - before >= ENOUGH_RUNS:
                known[name] = seconds
        return known


ADVICE = "give the router `sensors=`, a function that returns a Reading"  # advice where this system lacks a sensor
EASES_S = 1.0  # time between two checks whether the load of a cloud has eased, seconds
READS_S = 10.0  # time between two readings of the device's sensors, seconds, unless the policy or the sensors set another


class Observer(ForkSafe):
    """Current facts of one router, its device rules, and the reading that they go by; lines about them for people.

    Args:
        counts: has latencies and deferral rates.
        spending: has the amounts spent.
        metered: True if the link is metered (bytes cost money), or a function that returns it.
        sensors: reads the device's sensors; None: those of this system.
        records: readings are recorded, so the sensors are read even if no rule uses them.

    Attributes:
        energy: energy of a call of each target.
        facts: the current facts; replaced by a new object when they change.
        reading: the last reading.
        read_at: monotonic instant of the last reading; None: there is none yet.
        eases_at: monotonic instant from which the load of the clouds is checked again; inf: nothing depends on it.
        reads_at: monotonic instant from which the sensors are due; inf: they are not used, or are being read.
    """

    _lock = per_process(SafeLock)  # reentrant: a signal handler may call in between

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
        self.eases_at = INF
        self.reads_at = -INF if self.wanted else INF

    def after_fork(self) -> None:
        """Make the sensors due at the child's first request."""
        super().after_fork()
        self.reads_at = -INF if self.wanted else INF

    @property
    def wanted(self) -> bool:
        """True if the sensors are to be read: for rules, an energy limit or records."""
        return self._records or self.limited or bool(self._policy.device_rules)

    @property
    def limited(self) -> bool:
        """True if a limit counts the energy of edges' runs."""
        return bool(self._edges) and self._spending.limits.joules_per_hour < INF

    def use(self, policy: Policy, targets: Sequence[Target]) -> None:
        """Switch to another policy's rules and edges, step the rules by the last reading, and make the sensors due if used.

        Rules that both policies have keep their state.
        """
        self._policy, self._edges = policy, [t.name for t in targets if t.side == "edge"]
        self._step()
        self.reads_at = -INF if self.wanted else INF

    def observe(self, policy: Policy, targets: Sequence[Target], backends: Sequence[Backend]) -> bool:
        """Recompute the facts, and replace `facts` if they changed; the sensors are not read. Return True if they changed.

        The facts depend on the policy: latencies, energy and variants' times are left out where it needs none. Also sets the
        spending account's energy of one edge run where joules are limited, and `eases_at`.
        """
        counts = self._counts
        busy = frozenset(b.name for b in backends if b.occupied)
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
        frugal = any(rule.then == "cheapest_energy" for rule in policy.device_rules)
        if frugal or self.limited:
            joules = steady(self.facts.joules, self.energy.joules(backends))
            facts = facts._replace(joules=joules, unsure=unsure_share(counts, self._edges) if frugal else None)
        if self.limited:
            edge_j = self._spending.edge_j = next((facts.joules[name] for name in self._edges if name in facts.joules), 0.0)
            left_j = self._spending.limits.joules_per_hour - self._spending.spent().joules
            facts = facts._replace(energy_spent=left_j < edge_j)
        facts = self._with_kept_share(facts, policy, *zip(*proper, strict=True)) if proper else facts
        loading = frozenset(b.name for b in backends if getattr(b, "loading", False))
        with self._lock:
            facts = facts._replace(rules=in_force(self._state), loading=loading)
            changed, self.facts = facts != self.facts, facts
        return changed

    def _with_kept_share(self, facts: Facts, policy: Policy, targets: tuple[Target, ...], backends: Sequence[Backend]) -> Facts:
        """Return the facts with `kept` and `slack` set if the first available cloud reports load, else unchanged.

        They state which share of the deferrals the edge answers itself, and by how much its thresholds are lowered for it. Sets
        `eases_at`, the instant of the next check.
        """
        clouds = order_clouds(policy, targets, facts, [i for i, t in enumerate(targets) if t.side == "cloud"])
        guards: list[Any] = [getattr(backends[i], "guard", None) for i in clouds if targets[i].name not in facts.busy]
        asked = next((guard for guard in guards if guard is not None and guard.state == "closed"), None)
        now = monotonic()
        share = 0.0 if asked is None else rounded_share_to_keep(asked.rules.load.at(now))
        self.eases_at = now + EASES_S if share else INF
        return facts._replace(kept=share, slack=self._counts.slacks(self._edges, share)) if share else facts

    def outdated(self, backends: Sequence[Backend]) -> bool:
        """Return True if one of these backends has become busy or free again, so that `observe` is due."""
        return any(backend.occupied != (backend.name in self.facts.busy) for backend in backends)

    def read(self) -> bool:
        """Read the sensors, book the edges' energy, and step the device rules. Return True if the rules in force changed.

        Shares outside of 0..1 become unknown. If the sensors raise, that is logged, and the last reading stays. `reads_at`
        becomes inf until `schedule_read`.
        """
        self.reads_at = INF  # until they have been read, however long that takes
        try:
            reading = Reading(*map(_value, call_contained(self._sensors)))
        except Exception:
            log.exception("the device's sensors could not be read; their last reading counts")
            return False
        self.reading, self.read_at = self._plausible(reading), monotonic()
        self.book(reading.power_w, self.read_at)
        return self._step()

    def _plausible(self, reading: Reading) -> Reading:
        """Return the reading in three digits, with shares outside of 0..1, such as percentages, as unknown.

        No sensor knows more digits, and each would cost bytes in a trace. Logs a warning the first time.
        """
        reading = Reading(*map(_rounded, reading))
        wrong = {name: value for name in SHARES if (value := getattr(reading, name)) is not None and not 0 <= value <= 1}
        if wrong and not self._implausible:
            self._implausible = True
            text = ", ".join(f"{name} is {value:g}" for name, value in wrong.items())
            log.warning("the sensors say that %s: these are shares from 0 to 1, so they count as unknown", text)
        return reading._replace(**dict.fromkeys(wrong))

    def book(self, power_w: float | None, now_s: float) -> None:
        """Add the energy of the edges' runs since the last booking to the spending; nothing while it is not known.

        Also adds the device's power to the fit.

        Args:
            power_w: power of the device now, watts; None: unknown.
            now_s: monotonic.
        """
        if used_j := self.energy.note(power_w, self._edges, now_s):
            self._spending.add(Cost(joules=used_j), now())

    def schedule_read(self) -> None:
        """Set the instant of the next reading of the sensors. inf if no rule or part needs them."""
        period = self._policy.sensors_every_s or period_s(self._sensors, READS_S)
        self.reads_at = monotonic() + period if self.wanted else INF

    def _step(self) -> bool:
        """Step the device rules by the last reading, and update the rules in `facts`.

        Return True if other rules are in force now. A no-op without rules.
        """
        if not self._policy.device_rules and not self._state:
            return False
        with self._lock:
            now_s = monotonic() if self.read_at is None else self.read_at
            self._state = step(self._policy.device_rules, self._state, self.reading, now_s)
            rules = in_force(self._state)
            changed = rules != self.facts.rules
            if changed:
                self.facts = self.facts._replace(rules=rules)
        return changed

    def rule_lines(self) -> list[str]:
        """Return the device rules, one line each, for people: condition, end, effect, and a note if in force."""
        lines = []
        for rule, on, _ in self._state:
            until = "" if rule.enter is None else f" until {amount(rule.of, rule.ends)}"
            lines.append(f"rule: {rule}{until}: {rule.then}{' (in force)' if on else ''}")
        return lines

    def budget_lines(self) -> list[str]:
        """Return a line that says which energy `joules_per_hour` counts and how much is spent; no line without that limit."""
        if not self.limited:
            return []
        limit, spent, extra_w = self._spending.limits.joules_per_hour, self._spending.spent().joules, self.energy.extra_w
        if extra_w is not None:
            what = f"the cloud's calls and the edge's runs, at {extra_w:.3g} W while one goes"
        elif self.reading.power_w is None:
            what = f"the cloud's calls alone: {sys.platform} reports no power here, so the energy of an edge's run is unknown"
        else:
            what = "the cloud's calls alone, until the energy of an edge's run is known (rules.md)"
        return [f"joules_per_hour counts {what}; {spent:.4g} of {limit:g} J are spent"]

    def lacking_lines(self, backends: Sequence[Backend]) -> list[str]:
        """Return one line for each sensor that a rule needs and this system lacks.

        Another line follows on a system that does not report when the network is back.
        """
        unknown = dict.fromkeys(rule.of for rule, on, _ in self._state if not on and value_of(rule, self.reading) is None)
        lines = [f"rule of {of}: {sys.platform} gives no reading of it here, so it never applies: {ADVICE}" for of in unknown]
        if any(backend.side == "cloud" for backend in backends) and not LINUX:
            lines.append(f"{sys.platform} does not report when the network is back: unreachable endpoints are probed by time")
        return lines

    def no_hedge(self, backends: Sequence[Backend]) -> str:
        """Return the reason why hedges and audits are forbidden now; empty: they are allowed.

        Metered link (calls `metered`), half of a limit spent, an open breaker, or a loaded endpoint.

        Args:
            backends: those of the route, without an endpoint on trial.
        """
        if self.is_metered():
            return "the link is metered"
        if self._spending.scarce():
            return "half of what may be spent is spent"
        guards: list[Any] = [getattr(b, "guard", None) for b in backends]
        if away := [guard.name for guard in guards if guard is not None and guard.state != "closed"]:
            return f"{', '.join(away)} does not answer"
        now = monotonic()
        full = [guard.name for guard in guards if guard is not None and guard.rules.load.at(now) > FROM]
        return f"{', '.join(full)} is loaded" if full else ""

    def is_metered(self) -> bool:
        """Return True if the link is metered, by the given value or function.

        If the function raises, the link counts as metered, and the first exception is logged.
        """
        if not callable(self.metered):
            return self.metered
        try:
            return bool(call_contained(self.metered))
        except Exception:
            if not self._metered_failed:
                self._metered_failed = True
                log.exception("metered() failed, so the link counts as metered")
            return True


def _rounded(value: Any) -> Any:
    """Return a float in three digits, of which at most three are decimals; anything else as it is."""
    return round(float(f"{value:.3g}"), 3) if isinstance(value, float) else value


def _value(value: Any) -> Any:
    """Return a sensor's value as None, a bool or a float.

    Raises:
        TypeError, ValueError: not a number.
    """
    return value if value is None or isinstance(value, bool) else float(value)
