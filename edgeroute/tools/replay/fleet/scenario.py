"""Parts of a fleet simulation: devices with their policy, battery, heat and rules; cloud and outage; breakers, retry budgets."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeroute.core import admission
from edgeroute.core import latency_and_load_estimates as estimates
from edgeroute.core.admission import Concurrency
from edgeroute.core.latency_and_load_estimates import CAP, QUEUE_S
from edgeroute.tools.server.batching import Meter

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

    @property
    def normal_per_s(self) -> float:
        """Normal load of the cloud, requests per second."""
        return self.devices * self.per_minute / 60 * self.defer

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
    """Return the clients to compare, with this spread where they have one; one without a spread only if there are outboxes."""
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
        """Serve or reject attempts, and return the end and the result of each; counts them, and stores the reported loads.

        Probes go to the health route, which does not run the model: they do not queue.

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
        if in_outage.any():
            ends[in_outage] = np.inf if scenario.silent else ends[in_outage]
            verdicts[in_outage] = REFUSED
        if len(up):
            done_at = self._serve(arrivals[up])
            busy = np.isinf(done_at)
            ends[up] = np.where(busy, ends[up], done_at + scenario.latency_s)
            verdicts[up[busy]] = BUSY
            waits[up] = np.where(busy, scenario.queue_s, done_at - arrivals[up] - self._each_s)
            self.served += len(up) - int(busy.sum())
            if (passed_s := float(arrivals[-1]) - self._metered_at) > 0:
                self._meter.level(min(1.0, (len(up) - int(busy.sum())) * self._each_s / passed_s), self._metered_at)
                self._metered_at += passed_s
            cut = (arrivals < scenario.outage_at_s) & (ends > scenario.outage_at_s)
            if cut.any():
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


# Breakers and retry budgets of a whole fleet as arrays, by the formulas of `core/admission.py`.

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
        """Return True for each request that may be sent."""
        if not self._client.breaker:
            return np.ones(len(who), np.bool_)
        return np.asarray(admission.allowed(self.state[who] == CLOSED, self.held[who], at))

    def probes(self, who: Ints, at: Floats) -> Ints:
        """Start the probes that are due among these rejected devices, one a device, and return their positions."""
        due = np.flatnonzero(admission.due(self.due[who], self.held[who], at))
        if len(due):
            due = due[np.unique(who[due], return_index=True)[1]]
            self.state[who[due]] = HALF_OPEN
            self.due[who[due]] = at[due] + admission.PROBE_LOST_S
        return due

    def success(self, who: Ints) -> Some:
        """Record answered requests: close breakers, earn retries; return which breakers were not closed."""
        was_open = np.asarray(self.state[who] != CLOSED)
        self._faults[who], self._next_s[who] = 0, admission.FIRST_S
        self.state[who], self.due[who] = CLOSED, np.inf
        self.left[who] = admission.balance_after_success(self.left[who])
        return was_open

    def fault(self, who: Ints, at: Floats) -> None:
        """Record failed requests; open breakers that reach the limit; requests of open breakers do not count."""
        closed = self.state[who] == CLOSED
        who, at = who[closed], at[closed]
        np.add.at(self._faults, who, 1)
        self._open(who, at, admission.tripped(self._faults[who]))

    def probed(self, who: Ints, at: Floats, ok: Some) -> Some:
        """Record results of probes: close breakers, or open them for longer; return which close."""
        probing = np.asarray(self.state[who] == HALF_OPEN)
        back = probing & ok
        self.state[who[back]], self.due[who[back]] = CLOSED, np.inf
        self._open(who, at, probing & ~ok)
        return back

    def hold(self, who: Ints, at: Floats, wait_s: float) -> None:
        """Hold requests for `wait_s` seconds, as the cloud requested (with the usual maximum)."""
        self.held[who] = admission.held_until(self.held[who], at + wait_s, at)

    def retry(self, who: Ints) -> Some:
        """Take a retry from each budget that has one, and return True where a retry is allowed."""
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
        """Open breakers and schedule their probes after a time that is random and grows with each opening."""
        if which.any():
            who, first = np.unique(who[which], return_index=True)
            self.state[who] = OPEN
            self.due[who] = at[which][first] + admission.open_s(self._next_s[who], self._jitter(len(who)))
            self._next_s[who] = admission.grown_s(self._next_s[who])


# Load-aware behaviour of devices, by the formulas of `core/latency_and_load_estimates.py` and `core/admission.py`.


class Reported:
    """Load of the cloud as each device knows it from its replies."""

    def __init__(self, count: int) -> None:
        self._load = np.zeros(count)
        self._at = np.full(count, -np.inf)

    def add(self, who: Ints, times: Floats, reports: Floats) -> None:
        """Record reports. Of several of one device in a step the last counts."""
        self._load[who] = estimates.average_load(self._load[who], times - self._at[who], reports)
        self._at[who] = np.maximum(self._at[who], times)

    def kept(self, who: Ints, times: Floats) -> Floats:
        """Return the share of their deferrals that these devices answer themselves; 0 without a report."""
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
        """Count calls as ended."""
        for i in who.tolist():
            self._busy[i] -= 1

    def ended(self, who: Ints, at: Floats, took_s: Floats, good: Some) -> None:
        """Adapt the limits to ended attempts."""
        for i, now, took, success in zip(who.tolist(), at.tolist(), took_s.tolist(), good.tolist(), strict=True):
            if success:
                self._limits[i].succeeded(took, self._busy[i])
            else:
                self._limits[i].failed(now)
