"""Devices of a fleet as arrays: their breakers and retry budgets; battery, heat and load over time."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from edgeroute.core import admission, estimates
from edgeroute.core.admission import Concurrency
from edgeroute.core.plan import Facts, stays_home
from edgeroute.core.rules import Reading, Rule, State, in_force, step
from edgeroute.observe.observer import READS_S
from edgeroute.tools.replay.fleet.cloud import Floats, Ints, Some
from edgeroute.tools.replay.fleet.scenario import Client, Device, Scenario, Shares

# Breakers and retry budgets of a whole fleet as arrays, by the formulas of `core/admission.py`.

CLOSED, OPEN, HALF_OPEN = 0, 1, 2


class Devices:
    """One breaker and one budget per device. Values equal for all are not stored per device: about 40 bytes a device.

    A device that occurs several times in one call has as many faults, but one success, and opens once.
    """

    def __init__(self, count: int, client: Client, random: np.random.Generator) -> None:
        self._client: Final = client
        self._random: Final = random
        self.state = np.zeros(count, np.int8)
        self.left = np.full(count, admission.CAP, np.int16)
        self.due = np.full(count, np.inf)
        self.held = np.full(count, -np.inf)
        self._faults = np.zeros(count, np.int16)
        self._next_s = np.full(count, admission.FIRST_S)

    def allows(self, who: Ints, at: Floats) -> Some:
        """Whether a request may be sent."""
        if not self._client.breaker:
            return np.ones(len(who), np.bool_)
        return np.asarray(admission.allowed(self.state[who] == CLOSED, self.held[who], at))

    def probes(self, who: Ints, at: Floats) -> Ints:
        """Starts the probes that are due among these rejected devices; returns their positions."""
        due = np.flatnonzero(admission.due(self.due[who], self.held[who], at))
        if len(due):
            due = due[np.unique(who[due], return_index=True)[1]]
            self.state[who[due]] = HALF_OPEN
            self.due[who[due]] = at[due] + admission.PROBE_LOST_S
        return due

    def success(self, who: Ints) -> Some:
        """Records answered requests; returns which breakers were not closed."""
        was = np.asarray(self.state[who] != CLOSED)
        self._faults[who], self._next_s[who] = 0, admission.FIRST_S
        self.state[who], self.due[who] = CLOSED, np.inf
        self.left[who] = admission.earned(self.left[who])
        return was

    def fault(self, who: Ints, at: Floats) -> None:
        """Records failed requests."""
        shut = self.state[who] == CLOSED
        who, at = who[shut], at[shut]
        np.add.at(self._faults, who, 1)
        self._open(who, at, admission.tripped(self._faults[who]))

    def probed(self, who: Ints, at: Floats, ok: Some) -> Some:
        """Records results of probes; returns which breakers close."""
        under_way = np.asarray(self.state[who] == HALF_OPEN)
        back = under_way & ok
        self.state[who[back]], self.due[who[back]] = CLOSED, np.inf
        self._open(who, at, under_way & ~ok)
        return back

    def hold(self, who: Ints, at: Floats, wait_s: float) -> None:
        """Holds requests for `wait_s` seconds, as the cloud requested."""
        self.held[who] = admission.held_until(self.held[who], at + wait_s, at)

    def retry(self, who: Ints) -> Some:
        """Takes a retry from each budget; False where there is none."""
        may = np.asarray(self.state[who] == CLOSED) if self._client.breaker else np.ones(len(who), np.bool_)
        if self._client.budget:
            may &= admission.affords(self.left[who])
            np.subtract.at(self.left, who[may], admission.RETRY)
        return may

    def wait_s(self, most_s: Floats) -> Floats:
        """Back-off with full jitter: uniform between 0 and the maximum; without jitter the maximum."""
        return most_s * self._jitter(len(most_s))

    def _jitter(self, count: int) -> Floats:
        return self._random.random(count) if self._client.jitter else np.ones(count)

    def _open(self, who: Ints, at: Floats, which: Some) -> None:
        if which.any():
            who, first = np.unique(who[which], return_index=True)
            self.state[who] = OPEN
            self.due[who] = at[which][first] + admission.open_s(self._next_s[who], self._jitter(len(who)))
            self._next_s[who] = admission.grown_s(self._next_s[who])


# Battery, heat and load of the fleet's devices over time, and the rules of their policy that these bring into force.
#
# Between two readings of a device's sensors, `dt` seconds apart, with `r` requests a second, and shares `edge` and `cloud` of
# them:
#
# > power    = idle_w + r * (edge * run_j + cloud * call_j)
# > battery -= power * dt / (3600 * battery_wh)
# > heat    += (surroundings + c_per_w * power - heat) * (1 - exp(-dt / warming_s))
# > load     = min(1, r * edge * run_s)
#
# At a reading the rules are stepped by `core.rules.step`, as on a device; the plan with those in force says the shares from then
# on. The fleet has `KINDS` kinds of devices, each with a charge, surroundings and instants of reading of its own; all of a kind
# are alike. A device whose battery is empty asks nothing, and has no rule in force.

KINDS: Final = 200
CHARGE: Final = 0.1
SURROUNDINGS_C: Final = 5.0
"""How far the devices' charges and surroundings are from the average one's, at most."""
SIMULATED: Final = frozenset({"battery", "heat", "load", "power"})
"""What rules may be of. There is no reading of the rest, so rules of that are never in force."""


class InForce(NamedTuple):
    """What one rule did, on average over the devices."""

    rule: Rule
    share: float
    """Share of the time, 0..1, in which it was in force."""
    switches: float
    """How often it began or ended."""
    most: float
    """Largest share of the devices for which it was in force at an instant."""


class DeviceResult(NamedTuple):
    """What became of the devices by the end of the run."""

    rules: tuple[InForce, ...]
    battery: float | None
    """Charge, 0..1, on average; None: they are on mains."""
    empty: float
    """Share of the devices whose battery is empty."""
    hottest_c: float
    """The highest temperature that one of them had."""


class Course:
    """The state of all devices.

    Args:
        scenario: with a device.
        device: that one.

    Attributes:
        per_s: requests to the cloud of each kind, per second.
        home: the kinds from which nothing leaves by itself now.
        charge, celsius: of each kind, as of the last time that went by: 0..1, and degrees.
        around_c: temperature of each kind's surroundings.
        due: when each kind reads its sensors next, seconds.
    """

    def __init__(self, scenario: Scenario, device: Device) -> None:
        self._of, self._device, self._rules = scenario, device, device.policy.device_rules
        kinds = min(KINDS, scenario.devices)
        random = np.random.default_rng([scenario.seed, 1])  # of its own: the fleet's numbers do not depend on it
        around = 2 * random.random((3, kinds)) - 1
        self.count = kinds
        self.sizes: Ints = (scenario.devices - np.arange(kinds) + kinds - 1) // kinds
        """Devices of each kind: those whose number has it as its remainder."""
        self.charge: Floats = np.clip((1.0 if device.battery is None else device.battery) + CHARGE * around[0], 0, 1)
        self.around_c: Floats = device.ambient_c + SURROUNDINGS_C * around[1]
        self.celsius: Floats = self.around_c + device.c_per_w * device.idle_w
        self._every_s = device.policy.sensors_every_s or READS_S
        self._at: Floats = np.zeros(kinds)
        self.due: Floats = self._every_s * (around[2] + 1) / 2
        self._states: list[State] = [()] * kinds
        self._on: Some = np.zeros((len(self._rules), kinds), np.bool_)
        self._force_s, self._switches, self._most = np.zeros((3, len(self._rules)))
        self._hottest_c = float(self.celsius.max())
        self._known: dict[tuple[Rule, ...], tuple[Shares, bool]] = {}
        usual, away = self._shares(())
        self._edge: Floats = np.full(kinds, usual.edge)
        self._cloud: Floats = np.full(kinds, usual.cloud)
        self.home: Some = np.full(kinds, away)
        self.per_s = self._per_s()

    def until(self, at: float) -> None:
        """Steps the devices up to that instant, each at its own readings."""
        while len(due := np.flatnonzero(self.due <= at)):
            self._drain(due, self.due[due])
            self._read(due)
            self.due[due] += self._every_s
            self.per_s = self._per_s()

    def result(self, at: float) -> DeviceResult:
        """What became of them by that instant."""
        self.until(at)
        every = np.arange(self.count)
        self._drain(every, np.full(self.count, at))
        weights, whole = self.sizes / self._of.devices, max(at, 1e-9)
        found = np.round((self._force_s / whole, self._switches, self._most), 9).tolist()
        rules = tuple(InForce(rule, *one) for rule, *one in zip(self._rules, *found, strict=True))
        battery = None if self._device.battery is None else float(self.charge @ weights)
        return DeviceResult(rules, battery, float((self.charge <= 0) @ weights), self._hottest_c)

    def _per_s(self) -> Floats:
        return self.sizes * (self._of.per_minute / 60) * self._cloud

    def _power_w(self, who: Ints) -> Floats:
        device, per_s = self._device, self._of.per_minute / 60
        return device.idle_w + per_s * (self._edge[who] * device.run_j + self._cloud[who] * device.call_j)

    def _drain(self, who: Ints, at: Floats) -> None:
        """Lets the time up to these instants go by for these kinds."""
        device, passed_s, power_w = self._device, at - self._at[who], self._power_w(who)
        power_w = np.where(self.charge[who] > 0, power_w, 0.0)
        if device.battery is not None:
            used = power_w * passed_s / (3600 * device.battery_wh) if device.battery_wh else 1.0
            self.charge[who] = np.maximum(0.0, self.charge[who] - used)
        warm = self.around_c[who] + device.c_per_w * power_w
        self.celsius[who] += (warm - self.celsius[who]) * -np.expm1(-passed_s / device.warming_s)
        self._hottest_c = max(self._hottest_c, float(self.celsius[who].max()))
        self._force_s += (self._on[:, who] * passed_s) @ (self.sizes[who] / self._of.devices)
        self._at[who] = at

    def _read(self, who: Ints) -> None:
        """Has these kinds read their sensors, and step their rules."""
        device, load = self._device, np.minimum(1.0, self._of.per_minute / 60 * self._edge * self._device.run_s)
        power_w, weights = self._power_w(np.arange(self.count)), self.sizes / self._of.devices
        mains = device.battery is None
        for i in who.tolist():
            if self.charge[i] <= 0:
                self._edge[i] = self._cloud[i] = 0.0
                self._states[i], self._on[:, i] = (), False
                continue
            reading = Reading(
                battery=None if mains else float(self.charge[i]), temperature_c=float(self.celsius[i]), mains=mains,
                cpu=float(load[i]), power_w=float(power_w[i]),
            )  # fmt: skip
            self._states[i] = state = step(self._rules, self._states[i], reading, float(self._at[i]))
            on = [standing.in_force for standing in state]
            if on != self._on[:, i].tolist():
                self._switches += (self._on[:, i] != on) * weights[i]
                self._on[:, i] = on
                (self._edge[i], self._cloud[i]), self.home[i] = self._shares(in_force(state))
        self._most = np.maximum(self._most, self._on @ weights)

    def _shares(self, rules: tuple[Rule, ...]) -> tuple[Shares, bool]:
        """Where requests go with these rules in force, and whether nothing leaves by itself."""
        if rules not in self._known:
            home = bool(stays_home(self._device.policy, Facts(rules=rules)))
            self._known[rules] = self._device.shares(rules, self._of.defer), home
        return self._known[rules]


# What devices do with the load that their cloud reports, by the formulas of `core/estimates.py`; and `core/admission.py`.


class Reported:
    """The load as each device has it from the replies that it had."""

    def __init__(self, count: int) -> None:
        self._load = np.zeros(count)
        self._at = np.full(count, -np.inf)

    def add(self, who: Ints, at: Floats, reports: Floats) -> None:
        """Adds reports. Of several of one device in a step the last counts."""
        self._load[who] = estimates.averaged(self._load[who], at - self._at[who], reports)
        self._at[who] = np.maximum(self._at[who], at)

    def kept(self, who: Ints, at: Floats) -> Floats:
        """The share of their deferrals that these devices keep."""
        return np.asarray(estimates.kept(estimates.faded(self._load[who], at - self._at[who])), np.float64)


class Places:
    """The limits of concurrent calls that find themselves, of devices that ask often enough to have several calls under way."""

    def __init__(self, count: int) -> None:
        self._limits = [Concurrency() for _ in range(count)]
        self._busy = [0] * count

    def enter(self, who: Ints) -> Some:
        """Which of these calls, in order, may be made: they are under way from now on."""
        may = np.zeros(len(who), np.bool_)
        for n, i in enumerate(who.tolist()):
            if self._busy[i] < self._limits[i].most:
                self._busy[i] += 1
                may[n] = True
        return may

    def leave(self, who: Ints) -> None:
        """Calls have ended."""
        for i in who.tolist():
            self._busy[i] -= 1

    def ended(self, who: Ints, at: Floats, took_s: Floats, good: Some) -> None:
        """Attempts have ended."""
        for i, now, took, well in zip(who.tolist(), at.tolist(), took_s.tolist(), good.tolist(), strict=True):
            if well:
                self._limits[i].succeeded(took, self._busy[i])
            else:
                self._limits[i].failed(now)
