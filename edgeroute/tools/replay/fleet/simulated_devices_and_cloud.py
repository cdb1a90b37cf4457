"""Parts of a fleet simulation: scenario and clients; devices with policy, battery, heat and rules; cloud and outage.

Also here: breakers, retry budgets, load hints and limits of concurrent calls, for all devices as arrays.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core import performance_estimates_and_encoding_choice as estimates
from edgeroute.core.device_rules import Reading, Rule, State, in_force, step
from edgeroute.core.endpoint_breaker_and_limits import Concurrency
from edgeroute.core.performance_estimates_and_encoding_choice import CAP, QUEUE_S
from edgeroute.core.plan import Facts, Refusal, plan, stays_on_device
from edgeroute.core.policy_egress_and_options import Policy, Target
from edgeroute.observe.plan_facts_energy_rules import READS_S
from edgeroute.tools.replay.replay_setup_and_result import Setup
from edgeroute.tools.server.batching_and_tensor_models import Meter

# A device of the fleet with its policy: power, heat, and the routes of its requests under the rules in force.


class Shares(NamedTuple):
    """Average use of edge and cloud per request."""

    edge: float  # runs of the edge, in units of its usual one
    cloud: float  # requests to the cloud


class Device(NamedTuple):
    """Device of a fleet. The figures are plain guesses of a small board without a fan, not measured."""

    policy: Policy
    targets: tuple[Target, ...]
    battery: float | None = None  # charge at the start, 0..1, of the average device; None: it is on mains
    battery_wh: float = 10.0
    idle_w: float = 1.0  # base load, watts
    run_s: float = 0.05
    run_j: float = 0.1  # time and energy of a run of the edge, seconds and joules
    small: float = 0.5  # time and energy of a run of the smallest edge model, relative to that
    call_j: float = 0.0  # energy of a request to the cloud, joules
    ambient_c: float = 25.0
    c_per_w: float = 8.0  # degrees above its surroundings for each watt, in the long run
    warming_s: float = 300.0  # time to 63 % of that, seconds

    @classmethod
    def of(cls, setup: Setup, **more: float) -> Device:
        """Return a device with this policy, without thresholds by class; `more` are other values for its fields."""
        call_j = next((port.terms.joules_per_call for port in setup.ports.values()), 0.0)
        targets = tuple(target._replace(thresholds={}) for target in setup.targets)
        return cls(setup.policy, targets, **{"call_j": call_j, **more})

    def shares(self, rules: tuple[Rule, ...], defer: float) -> Shares:
        """Return the shares of edge and cloud per request, by the plan with these rules, if the edge is unsure of `defer`.

        Both are 0 if the plan is refused.
        """
        first = {side: next((t.name for t in self.targets if t.side == side), "") for side in ("edge", "cloud")}
        facts = Facts(rules=rules, joules={first["edge"]: self.run_j, first["cloud"]: self.call_j}, unsure=defer)
        route = plan(self.policy, self.targets, facts)
        if isinstance(route, Refusal):
            return Shares(0.0, 0.0)
        if route.legs[0].permit is not None:
            return Shares(0.0, 1.0)
        may_defer = any(leg.permit is not None for leg in route.legs)
        small = any(rule.then == "small_model" for rule in route.rules)
        return Shares(self.small if small else 1.0, defer if may_defer else 0.0)


# Window of the definition of a recovery: the cloud answers the share `GOOD` of its requests in any window, seconds.
AGAIN_S: Final = 10.0
GOOD: Final = 0.99


class Scenario(NamedTuple):
    """Fleet before one cloud with an outage. Durations and times in seconds."""

    devices: int = 1_000_000
    per_minute: float = 1.0  # requests per device, at random times
    defer: float = 0.1  # deferred share, 0..1
    length_s: float = 3600.0
    margin: float = 1.5  # capacity of the cloud, as a multiple of the normal load
    latency_s: float = 0.05  # time of an answer without queueing; a rejection takes as long
    # Longest wait in the cloud's queue; a request that would wait longer is rejected (503). Requests given up by their device
    # are still served.
    queue_s: float = 10.0
    outage_at_s: float = 60.0
    outage_s: float = 10.0  # at its start, requests queued in the cloud are lost
    silent: bool = False  # True: during the outage there are no replies; False: connections are refused at once
    retry_after_s: float = 0.0  # Retry-After of a 503; 0: none
    timeout_s: float = 2.0
    # Degraded requests: the edge's answer is returned; and, with an outbox, they are also sent later.
    offline: Literal["edge", "queue"] = "edge"
    drain_per_s: float = 10.0  # maximum rate of deliveries per device, per second
    together: float = 0.0  # share of devices, 0..1, that send one more request in the first second of the outage, simultaneously
    surest_right: float = 0.8
    # Probability that the edge is right on deferred inputs: on those it is surest of, and least; linear between.
    least_right: float = 0.2
    cloud_right: float = 0.95  # probability that the cloud is right on deferred inputs
    seed: int = 0
    # Policy and power of the devices, whose rules follow battery, heat and load. None: they have no state.
    device: Device | None = None

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
    retries: int = 2  # maximum retries of a failed request
    budget: bool = True  # retry budget: one retry per ten successes, ten at most
    jitter: bool = True  # random back-off; otherwise each wait is the maximum
    breaker: bool = True  # circuit breaker: opens after three consecutive faults, and probes without user data
    # The timeout covers a request with its retries; otherwise it applies to each attempt, and timeouts are retried.
    whole: bool = True
    hints: bool = False  # load hints: more requests are answered on the edge while the cloud reports load
    adaptive: bool = False  # adaptive limit of concurrent calls: a further call gets the edge's answer at once
    # Spread of the outbox, seconds: entries are sent after a random part of it, longer after a long outage; 0: at once.
    spread_s: float = 60.0


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


# Clients to compare before a cloud that is too small.
LOAD_AWARE: Final = (
    EDGEROUTE._replace(name="neither"),
    EDGEROUTE._replace(name="load hints", hints=True),
    EDGEROUTE._replace(name="adaptive concurrency", adaptive=True),
    EDGEROUTE._replace(name="both", hints=True, adaptive=True),
)


def clients(scenario: Scenario, spread_s: float = EDGEROUTE.spread_s) -> tuple[Client, ...]:
    """Return the clients to compare, with this spread where they have one.

    The one without a spread only if there are outboxes.
    """
    all_clients = (*CLIENTS[:1], NO_SPREAD, *CLIENTS[1:]) if scenario.offline == "queue" else CLIENTS
    return tuple(client._replace(spread_s=spread_s) if client.spread_s else client for client in all_clients)


Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Some: TypeAlias = NDArray[np.bool_]
ANSWERED, REFUSED, BUSY, LATE = 0.0, 1.0, 2.0, 3.0  # result of an attempt. Floats, like the other columns of an attempt.


class Cloud:
    """Queue that serves in order of arrival, 1/capacity seconds each: exact, except which requests of a time step are rejected.

    Attributes:
        wasted: number served after their device had given up.
        served: number served.
        reports: load that each of the last replies reports.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.served = self.wasted = 0
        self._each_s: Final = 1 / scenario.capacity_per_s
        self._scenario: Final = scenario
        self._free_at = 0.0
        self._emptied = False
        self._meter, self._metered_at = Meter(), 0.0
        self.reports: Floats = np.zeros(0)

    def ask(self, arrivals: Floats, until: Floats, probe: Some) -> tuple[Floats, Floats]:
        """Serve or reject attempts, and return the end and the result of each; counts them, and stores the loads of the replies.

        An attempt during the outage is refused, or late if the cloud is silent; one that is in the queue as it begins is refused
        then. Probes go to the health route, which does not run the model: they do not queue.

        Args:
            arrivals: times of arrival, ascending.
            until: times at which the devices give up.
            probe: True for probes.
        """
        scenario = self._scenario
        ends, verdicts = arrivals + scenario.latency_s, np.full(len(arrivals), ANSWERED)
        waits = np.zeros(len(arrivals))
        in_outage = (arrivals >= scenario.outage_at_s) & (arrivals < scenario.back_at_s)
        up = np.flatnonzero(~in_outage & ~probe)
        ends[in_outage] = np.inf if scenario.silent else ends[in_outage]
        verdicts[in_outage] = REFUSED
        if len(up):
            done_at = self._serve(arrivals[up])
            busy = np.isinf(done_at)
            ends[up] = np.where(busy, ends[up], done_at + scenario.latency_s)
            verdicts[up[busy]] = BUSY
            waits[up] = np.where(busy, scenario.queue_s, done_at - arrivals[up] - self._each_s)
            served = len(up) - int(busy.sum())
            self.served += served
            if (passed_s := float(arrivals[-1]) - self._metered_at) > 0:
                self._meter.level(min(1.0, served * self._each_s / passed_s), self._metered_at)
                self._metered_at += passed_s
            cut = (arrivals < scenario.outage_at_s) & (ends > scenario.outage_at_s)
            ends[cut], verdicts[cut] = scenario.outage_at_s, REFUSED
        late = ends > until
        self.wasted += int((verdicts[late] == ANSWERED).sum())
        verdicts[late] = LATE
        self.reports = np.minimum(CAP, self._meter.used(self._metered_at) + np.maximum(0.0, waits) / QUEUE_S)
        return np.minimum(ends, until), verdicts

    def _serve(self, arrivals: Floats) -> Floats:
        """Queue arrivals behind the earlier ones, and return when each is done; inf: rejected, since the queue is full.

        Updates when the cloud is free; its queue is empty after the outage.
        """
        if not self._emptied and arrivals[0] >= self._scenario.back_at_s:
            self._free_at, self._emptied = self._scenario.back_at_s, True
        done_at = self._in_turn(arrivals)
        if (done_at - arrivals).max() - self._each_s > self._scenario.queue_s:
            room = (arrivals[-1] + self._scenario.queue_s - max(self._free_at, arrivals[0])) / self._each_s
            count = int(min(max(room, 0), len(arrivals)))
            accepted = np.arange(count) * len(arrivals) // max(count, 1)  # places become free evenly
            done_at = np.full(len(arrivals), np.inf)
            arrivals = arrivals[accepted]
            done_at[accepted] = self._in_turn(arrivals)
        if len(arrivals):
            self._free_at = float(done_at[np.isfinite(done_at)][-1])
        return done_at

    def _in_turn(self, arrivals: Floats) -> Floats:
        """Return the completion times of a FIFO queue: each begins on arrival or once the previous one is done."""
        turn = np.arange(len(arrivals)) * self._each_s
        begun: Any = np.maximum.accumulate(np.maximum(arrivals, self._free_at) - turn)
        return np.asarray(begun + turn + self._each_s, np.float64)


# Breakers and retry budgets of a whole fleet as arrays, by the formulas of `core/endpoint_breaker_and_limits.py`.

CLOSED, OPEN, HALF_OPEN = 0, 1, 2


class Devices:
    """Breaker and retry budget of each device. Values equal for all are not stored per device: about 40 bytes a device.

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
        """Return True for each request that its device's breaker and holds let pass; for all, without breakers."""
        if not self._client.breaker:
            return np.ones(len(who), np.bool_)
        return np.asarray(admission.allowed(self.state[who] == CLOSED, self.held[who], at))

    def probes(self, who: Ints, at: Floats) -> Ints:
        """Start the probes that are due among these rejected devices, one a device, and return their positions.

        Breakers are half open then.
        """
        due = np.flatnonzero(admission.due(self.due[who], self.held[who], at))
        if len(due):
            due = due[np.unique(who[due], return_index=True)[1]]
            self.state[who[due]] = HALF_OPEN
            self.due[who[due]] = at[due] + admission.PROBE_LOST_S
        return due

    def success(self, who: Ints) -> Some:
        """Record answered requests: close breakers, forget faults, earn parts of a retry.

        Return which breakers were not closed.
        """
        was_open = np.asarray(self.state[who] != CLOSED)
        self._faults[who], self._next_s[who] = 0, admission.FIRST_S
        self.state[who], self.due[who] = CLOSED, np.inf
        self.left[who] = admission.balance_after_success(self.left[who])
        return was_open

    def fault(self, who: Ints, at: Floats) -> None:
        """Record failed requests; open breakers that reach the limit; requests of breakers that are not closed do not count."""
        closed = self.state[who] == CLOSED
        who, at = who[closed], at[closed]
        np.add.at(self._faults, who, 1)
        self._open(who, at, admission.tripped(self._faults[who]))

    def probed(self, who: Ints, at: Floats, ok: Some) -> Some:
        """Record results of probes: close breakers, or open them for longer; return which close.

        Results nobody waits for are ignored.
        """
        probing = np.asarray(self.state[who] == HALF_OPEN)
        back = probing & ok
        self.state[who[back]], self.due[who[back]] = CLOSED, np.inf
        self._open(who, at, probing & ~ok)
        return back

    def hold(self, who: Ints, at: Floats, wait_s: float) -> None:
        """Hold requests for `wait_s` seconds, as the cloud requested (with the usual maximum)."""
        self.held[who] = admission.held_until(self.held[who], at + wait_s, at)

    def retry(self, who: Ints) -> Some:
        """Take a retry from each budget that has one, and return True where a retry is allowed: not with an open breaker."""
        allowed = np.asarray(self.state[who] == CLOSED) if self._client.breaker else np.ones(len(who), np.bool_)
        if self._client.budget:
            allowed &= admission.affords(self.left[who])
            np.subtract.at(self.left, who[allowed], admission.RETRY)
        return allowed

    def wait_s(self, most_s: Floats) -> Floats:
        """Draw back-off times at random: uniform between 0 and the maximum; without jitter the maximum."""
        return most_s * self._jitter(len(most_s))

    def _jitter(self, count: int) -> Floats:
        """Draw factors at random from 0 to 1; 1 without jitter."""
        return self._random.random(count) if self._client.jitter else np.ones(count)

    def _open(self, who: Ints, at: Floats, which: Some) -> None:
        """Open the breakers that `which` picks, and schedule their probes after a random time, which grows with each opening."""
        if which.any():
            who, first = np.unique(who[which], return_index=True)
            self.state[who] = OPEN
            self.due[who] = at[which][first] + admission.open_s(self._next_s[who], self._jitter(len(who)))
            self._next_s[who] = admission.grown_s(self._next_s[who])


# Battery, heat and load of the fleet's devices over time, and the policy rules that they trigger.
#
# Between two readings of a device's sensors, `dt` seconds apart, with `r` requests a second, and shares `edge` and `cloud` of
# them:
#
# > power    = idle_w + r * (edge * run_j + cloud * call_j)
# > battery -= power * dt / (3600 * battery_wh)
# > heat    += (surroundings + c_per_w * power - heat) * (1 - exp(-dt / warming_s))
# > load     = min(1, r * edge * run_s)
#
# At a reading the rules are stepped by `core.device_rules.step`, as on a device; the plan with those in force gives the shares
# from then on. The fleet has `KINDS` kinds of devices, each with its own charge, surroundings and reading times; all of a kind
# are alike. A device whose battery is empty sends nothing, and has no rule in force.

KINDS: Final = 200
CHARGE: Final = 0.1
SURROUNDINGS_C: Final = 5.0  # largest distances of the devices' charges and surroundings from the average
# Simulated readings. Rules on other readings are never in force.
SIMULATED: Final = frozenset({"battery", "heat", "load", "power"})


class InForce(NamedTuple):
    """Effect of one rule, averaged over the devices."""

    rule: Rule
    share: float  # share of the time, 0..1, in which it was in force
    switches: float  # number of times that it began or ended
    most: float  # largest share of the devices for which it was in force at the same time


class DeviceResult(NamedTuple):
    """State of the devices at the end of the run."""

    rules: tuple[InForce, ...]
    battery: float | None  # average charge, 0..1; None: they are on mains
    empty: float  # share of the devices whose battery is empty
    hottest_c: float  # highest temperature of any device


class Course:
    """State of all devices over time: charge, temperature, load, and rules in force.

    Args:
        scenario: a scenario with a device.
        device: that device.

    Attributes:
        per_s: requests to the cloud of each kind, per second.
        home: True for kinds whose rules hold everything on the device now.
        charge, celsius: of each kind, at its last step: 0..1, and degrees.
        around_c: temperature of each kind's surroundings.
        due: time of each kind's next reading, seconds.
    """

    def __init__(self, scenario: Scenario, device: Device) -> None:
        self._scenario, self._device, self._rules = scenario, device, device.policy.device_rules
        kinds = min(KINDS, scenario.devices)
        random = np.random.default_rng([scenario.seed, 1])  # a separate one, so that the fleet's numbers do not depend on it
        around = 2 * random.random((3, kinds)) - 1
        self.count = kinds
        self.sizes: Ints = (scenario.devices - np.arange(kinds) + kinds - 1) // kinds  # number of devices of each kind
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

    def until(self, time: float) -> None:
        """Step the devices up to that time, each at its own readings."""
        while len(due := np.flatnonzero(self.due <= time)):
            self._drain(due, self.due[due])
            self._apply_rules(due)
            self.due[due] += self._every_s
            self.per_s = self._per_s()

    def result(self, time: float) -> DeviceResult:
        """Step the devices up to that time, and return their state and the averaged effect of each rule."""
        self.until(time)
        every = np.arange(self.count)
        self._drain(every, np.full(self.count, time))
        weights, whole = self.sizes / self._scenario.devices, max(time, 1e-9)
        averages = np.round((self._force_s / whole, self._switches, self._most), 9).tolist()
        rules = tuple(InForce(rule, *values) for rule, *values in zip(self._rules, *averages, strict=True))
        battery = None if self._device.battery is None else float(self.charge @ weights)
        return DeviceResult(rules, battery, float((self.charge <= 0) @ weights), self._hottest_c)

    def _per_s(self) -> Floats:
        """Return the requests to the cloud of each kind, per second."""
        return self.sizes * (self._scenario.per_minute / 60) * self._cloud

    def _power_w(self, who: Ints) -> Floats:
        """Return the power of these kinds, watts."""
        device, per_s = self._device, self._scenario.per_minute / 60
        return device.idle_w + per_s * (self._edge[who] * device.run_j + self._cloud[who] * device.call_j)

    def _drain(self, who: Ints, times: Floats) -> None:
        """Advance battery, temperature and statistics of these kinds to these times; an empty battery draws no power."""
        device, passed_s, power_w = self._device, times - self._at[who], self._power_w(who)
        power_w = np.where(self.charge[who] > 0, power_w, 0.0)
        if device.battery is not None:
            used = power_w * passed_s / (3600 * device.battery_wh) if device.battery_wh else 1.0
            self.charge[who] = np.maximum(0.0, self.charge[who] - used)
        warm = self.around_c[who] + device.c_per_w * power_w
        self.celsius[who] += (warm - self.celsius[who]) * -np.expm1(-passed_s / device.warming_s)
        self._hottest_c = max(self._hottest_c, float(self.celsius[who].max()))
        self._force_s += (self._on[:, who] * passed_s) @ (self.sizes[who] / self._scenario.devices)
        self._at[who] = times

    def _apply_rules(self, who: Ints) -> None:
        """Step the rules by the sensors of these kinds, set their shares, and count switches.

        An empty battery sets shares to 0.
        """
        device, load = self._device, np.minimum(1.0, self._scenario.per_minute / 60 * self._edge * self._device.run_s)
        power_w, weights = self._power_w(np.arange(self.count)), self.sizes / self._scenario.devices
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
            active = [standing.in_force for standing in state]
            if active != self._on[:, i].tolist():
                self._switches += (self._on[:, i] != active) * weights[i]
                self._on[:, i] = active
                (self._edge[i], self._cloud[i]), self.home[i] = self._shares(in_force(state))
        self._most = np.maximum(self._most, self._on @ weights)

    def _shares(self, rules: tuple[Rule, ...]) -> tuple[Shares, bool]:
        """Return the shares of requests with these rules in force, and True if everything stays on the device.

        Stored for next time.
        """
        if rules not in self._known:
            stays = bool(stays_on_device(self._device.policy, Facts(rules=rules)))
            self._known[rules] = self._device.shares(rules, self._scenario.defer), stays
        return self._known[rules]


# Load-aware behaviour of devices, by the formulas of `core/performance_estimates_and_encoding_choice.py` and of
# `core/endpoint_breaker_and_limits.py`.


class Reported:
    """Load of the cloud as each device knows it from its replies."""

    def __init__(self, count: int) -> None:
        self._load = np.zeros(count)
        self._at = np.full(count, -np.inf)

    def add(self, who: Ints, times: Floats, reports: Floats) -> None:
        """Average reported loads into what devices know. Of several of one device in a step the last counts."""
        self._load[who] = estimates.average_load(self._load[who], times - self._at[who], reports)
        self._at[who] = np.maximum(self._at[who], times)

    def kept(self, who: Ints, times: Floats) -> Floats:
        """Return the share of their deferrals that these devices answer themselves, by what they know, faded.

        0 without a report.
        """
        return np.asarray(estimates.share_to_keep(estimates.fade_load(self._load[who], times - self._at[who])), np.float64)


class Places:
    """Adaptive limits of concurrent calls, for devices with several calls in progress."""

    def __init__(self, count: int) -> None:
        self._limits = [Concurrency() for _ in range(count)]
        self._busy = [0] * count

    def enter(self, who: Ints) -> Some:
        """Return which of these calls, in order, may start, and count them as in progress."""
        allowed = np.zeros(len(who), np.bool_)
        for n, i in enumerate(who.tolist()):
            if self._busy[i] < self._limits[i].most:
                self._busy[i] += 1
                allowed[n] = True
        return allowed

    def leave(self, who: Ints) -> None:
        """Count calls as ended, which frees their places."""
        for i in who.tolist():
            self._busy[i] -= 1

    def ended(self, who: Ints, at: Floats, took_s: Floats, good: Some) -> None:
        """Adapt the devices' limits of concurrent calls to ended attempts: by their time if good, otherwise as failures."""
        for i, now, took, success in zip(who.tolist(), at.tolist(), took_s.tolist(), good.tolist(), strict=True):
            if success:
                self._limits[i].succeeded(took, self._busy[i])
            else:
                self._limits[i].failed(now)
