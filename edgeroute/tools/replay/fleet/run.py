"""Simulates a fleet of devices against one cloud: the effects of an outage on both.

Vectorised, not sampled: every device has its own breaker, retry budget and outbox, as elements of arrays. Time advances in
steps of `STEP_S`; the events of a step are one array operation, each with its exact instant: only the order of events within
a step is approximate. Accepted edge answers are not simulated: they do not reach the cloud. Nor is a recovery of the network
(the outage is the cloud's), nor a probe's wait in a crowd: the health route does not queue.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from edgeroute.cloud.guard import PROBE_S
from edgeroute.cloud.retries import FIRST_S, MOST_S
from edgeroute.stores.outbox import delivery, store
from edgeroute.tools.replay.fleet.cloud import ANSWERED, BUSY, LATE, Cloud, Floats, Ints, Some
from edgeroute.tools.replay.fleet.devices import Course, DeviceResult, Devices, Places, Reported
from edgeroute.tools.replay.fleet.scenario import AGAIN_S, EDGEROUTE, GOOD, Client, Scenario

# Result of a fleet simulation.

TOOK_S: Final = 0.01
TOOK_MOST_S: Final = 60.0


@dataclass
class Result:
    """Counts of a run. Arrays have one element per second."""

    scenario: Scenario
    client: Client
    attempts: Ints
    """Attempts that reached the cloud's address, rejected ones too, by their start; probes are counted separately."""
    good: Ints
    """Those answered in time."""
    asked: Ints
    """Requests deferred by the edge."""
    answered: Ints
    """Those answered by the cloud in time, by when they were made."""
    degraded: int = 0
    """Those answered by the edge instead."""
    kept: int = 0
    """Those that the edge answered by itself as the cloud was loaded: they were not to be sent, and are not degraded."""
    refused: int = 0
    """Attempts that the cloud refused as its queue was full."""
    late: int = 0
    """Attempts that were given up."""
    right: float = 0.0
    """Expected number of right answers to them."""
    took: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Requests by the time until their answer, in steps of `TOOK_S`, without the edge's own time."""
    queued: int = 0
    """Degraded requests stored in an outbox: `delivered` later, or still `waiting`."""
    delivered: int = 0
    waiting: int = 0
    probes: int = 0
    served: int = 0
    """Requests served by the cloud ..."""
    wasted: int = 0
    """... and those served after the device had given up."""
    device: DeviceResult | None = None
    """What the rules did, if the devices have a state."""

    @classmethod
    def empty(cls, scenario: Scenario, client: Client, seconds: int) -> Result:
        """The counts before the run."""
        attempts, good, asked, answered = np.zeros((4, seconds), np.int64)
        return cls(scenario, client, attempts, good, asked, answered, took=np.zeros(int(TOOK_MOST_S / TOOK_S), np.int64))

    @property
    def lost(self) -> int:
        """Requests without an answer: none, as the edge's answer is returned."""
        return int(self.asked.sum() - self.answered.sum()) - self.degraded - self.kept

    @property
    def accuracy(self) -> float:
        """Expected share of right answers to what the edge would defer."""
        return self.right / max(1, int(self.asked.sum()))

    def took_s(self, q: float) -> float:
        """Quantile of the time until a request has its answer, seconds."""
        sums = np.cumsum(self.took)
        return float(np.searchsorted(sums, q * sums[-1])) * TOOK_S if sums[-1] else 0.0

    @property
    def cloud_back_s(self) -> float | None:
        """Seconds from the end of the outage until the cloud answered its requests, to the end of the run; None: it did not."""
        return self._back_s(self.good, self.attempts)

    @property
    def fleet_back_s(self) -> float | None:
        """Likewise until devices received its answers: a breaker may stay open after the cloud has recovered."""
        return self._back_s(self.answered, self.asked)

    @property
    def peak(self) -> float:
        """The busiest second after the outage, as a multiple of the normal load."""
        return float(self.attempts[self._back :].max()) / self.scenario.normal_per_s

    @property
    def wasted_share(self) -> float:
        """Wasted share of the cloud's work, 0..1."""
        return self.wasted / max(self.served, 1)

    @property
    def _back(self) -> int:
        return int(np.ceil(self.scenario.back_at_s))

    def _back_s(self, good: Ints, of: Ints) -> float | None:
        whole = slice(self._back, int(self.scenario.length_s))
        well, asked = _windows(good[whole]), _windows(of[whole])
        bad = np.flatnonzero(well < GOOD * asked)
        back = int(bad[-1]) + 1 if len(bad) else 0
        return float(back) if back < len(asked) else None


def _windows(counts: Ints) -> Floats:
    """Sums over windows of `AGAIN_S`, by their start."""
    sums = np.concatenate(([0.0], np.cumsum(counts)))
    width = int(AGAIN_S)
    return sums[width:] - sums[:-width] if len(sums) > width else np.zeros(0)


STEP_S: Final = 0.1
POLL_S: Final = 5.0
"""Delay of an outbox before it retries a held request, in addition to part of its spread, seconds."""
PARALLEL: Final = 2
"""Concurrent requests of one outbox."""
REQUEST, DELIVERY, PROBE = 0.0, 1.0, 2.0
WHO, AT, UNTIL, ASKED, TRIES, KIND, VERDICT, FAILED, RANK, REPORT, BEGAN = range(11)
"""Columns of an attempt: its device, its start or end, when it is given up, when the request was made (for a delivery:
queued), previous attempts of this call, its purpose, its result, previous failed deliveries, how sure the edge is of the input
among those that it defers (0..1), the load that its reply reports, and its start."""
FULL_S: Final = 0.25
"""Delay before an outbox at its concurrency limit is examined again, seconds."""


def simulate(scenario: Scenario, client: Client = EDGEROUTE) -> Result:
    """Runs the fleet for `length_s` seconds, and until the last request has an answer."""
    return Fleet(scenario, client).run()


class Later:
    """Event queue: rows by the step in which they are due."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, list[Floats]] = defaultdict(list)
        self._step = 0

    def put(self, rows: Floats, at: Floats) -> None:
        """Schedules rows at these instants; in the next step at the earliest."""
        if not len(rows):
            return
        steps = np.maximum((at / STEP_S).astype(np.int64), self._step + 1)
        order = np.argsort(steps, kind="stable")
        steps, rows = steps[order], rows[order]
        cuts = [0, *(np.flatnonzero(np.diff(steps)) + 1), len(steps)]
        for begin, end in pairwise(cuts):
            self._rows[int(steps[begin])].append(rows[begin:end])

    def take(self, step: int) -> Floats | None:
        """Removes and returns the rows of this step."""
        self._step = step
        found = self._rows.pop(step, None)
        return None if found is None else found[0] if len(found) == 1 else np.concatenate(found)


class Fleet:
    """The state of one run."""

    def __init__(self, scenario: Scenario, client: Client) -> None:
        self._of, self._client = scenario, client
        self._random = np.random.default_rng(scenario.seed)
        self._devices = Devices(scenario.devices, client, self._random)
        self._cloud = Cloud(scenario)
        self._ranks = np.random.default_rng([scenario.seed, 2])  # of its own: the fleet's numbers do not depend on it
        self._reported = Reported(scenario.devices) if client.hints else None
        self._places = Places(scenario.devices) if client.adaptive else None
        self._course = None if scenario.device is None else Course(scenario, scenario.device)
        self._begins, self._ends, self._stored, self._hurries = Later(), Later(), Later(), Later()
        self._hurry_at = np.full(scenario.devices, np.inf)
        """By device: when its outbox is to be flushed, as its endpoint is back."""
        self._boxed = np.zeros(scenario.devices, np.int32)
        self._since = np.full(scenario.devices, np.inf)
        """By device: when the first entry was queued since the outbox was empty; that entry may be gone already."""
        self._flying = np.zeros(scenario.devices, np.int8)
        self._failed = np.zeros(scenario.devices, np.int8)
        """By device: failed attempts of the last delivery that failed."""
        self._paused = np.full(scenario.devices, -np.inf)
        self._next_at = np.full(scenario.devices, -np.inf)
        """By device: earliest next delivery, by the rate limit."""
        self._woken = np.zeros(scenario.devices, np.int32)
        """By device: number of flushes of its outbox; deliveries scheduled before the last flush are void."""
        attempts_s = scenario.timeout_s + max(MOST_S, scenario.retry_after_s)
        seconds = int(scenario.length_s + attempts_s * (client.retries + 1)) + 2
        self._tally = Result.empty(scenario, client, seconds)
        self._begun: list[Floats] = []

    def run(self) -> Result:
        """Runs all steps."""
        for step in range(int(len(self._tally.asked) / STEP_S)):
            self._begun.clear()
            ended = self._ends.take(step)
            if ended is not None:
                self._end(ended)
            hurries = self._hurries.take(step)
            if hurries is not None:
                self._hurry(hurries)
            stored = self._stored.take(step)
            if stored is not None:
                self._deliver(stored, (step + 1) * STEP_S)
            again = self._begins.take(step)
            if again is not None:
                self._again(again)
            at = step * STEP_S
            if at < self._of.length_s:
                self._ask(at)
            if self._begun:
                self._begin(np.concatenate(self._begun))
        tally = self._tally
        tally.waiting = int(self._boxed.sum() + self._flying.sum())
        tally.served, tally.wasted = self._cloud.served, self._cloud.wasted
        if self._course is not None:
            tally.device = self._course.result(self._of.length_s)
        return tally

    def _ask(self, at: float) -> None:
        """Generates new deferred requests."""
        of = self._of
        crowd = of.together * of.devices if of.outage_at_s <= at < of.outage_at_s + 1 else 0.0
        who = self._anyone((of.normal_per_s + crowd) * STEP_S) if self._course is None else self._by_state(at, crowd)
        if not len(who):
            return
        when = at + STEP_S * self._random.random(len(who))
        self._tally.asked += _seconds(when, self._tally)
        ranks = self._ranks.random(len(who))
        if self._reported is not None:
            kept = ranks >= 1 - self._reported.kept(who, when)
            self._tally.kept += int(kept.sum())
            self._at_home(ranks[kept])
            who, when, ranks = who[~kept], when[~kept], ranks[~kept]
        may = self._allowed(who, when)
        if self._places is not None:
            may[may] = self._places.enter(who[may])
        self._new(who[may], when[may], REQUEST, rank=ranks[may])
        self._at_home(ranks[~may])
        self._degraded(who[~may], when[~may], failed=False)

    def _at_home(self, ranks: Floats, took_s: Floats | float = 0.0) -> None:
        """Counts requests that the edge answered after all."""
        sure, unsure = self._of.surest_right, self._of.least_right
        self._tally.right += float((unsure + (sure - unsure) * ranks).sum())
        self._tally.took += _bins(np.broadcast_to(took_s, len(ranks)), self._tally)

    def _anyone(self, mean: float) -> Ints:
        """The devices that ask in a step, `mean` on average."""
        count = int(self._random.poisson(mean))
        return self._random.integers(0, self._of.devices, count) if count else np.zeros(0, np.int64)

    def _by_state(self, at: float, crowd: float) -> Ints:
        """Likewise, as often as the rules in force let each kind of device ask."""
        course = self._course
        assert course is not None, "the devices have a state"
        course.until(at)
        more = crowd * course.sizes / self._of.devices * (course.per_s > 0)
        kinds = np.repeat(np.arange(course.count), self._random.poisson((course.per_s + more) * STEP_S))
        return kinds + course.count * (self._random.random(len(kinds)) * course.sizes[kinds]).astype(np.int64)

    def _allowed(self, who: Ints, at: Floats) -> Some:
        """Which devices may send; some of the others send a probe."""
        may = self._devices.allows(who, at)
        if not may.all():
            held, when = who[~may], at[~may]
            probing = self._devices.probes(held, when)
            self._new(held[probing], when[probing], PROBE)
        return may

    def _new(
        self, who: Ints, at: Floats, kind: float, asked: Floats | None = None, failed: Floats | float = 0.0,
        rank: Floats | float = 0.0,
    ) -> None:  # fmt: skip
        """Schedules first attempts."""
        if len(who):
            rows = np.zeros((len(who), 11))
            rows[:, WHO], rows[:, AT], rows[:, KIND], rows[:, FAILED] = who, at, kind, failed
            rows[:, RANK] = rank
            rows[:, ASKED] = at if asked is None else asked
            rows[:, UNTIL] = at + (PROBE_S if kind == PROBE else self._of.timeout_s)
            self._begun.append(rows)

    def _begin(self, rows: Floats) -> None:
        """Passes attempts to the cloud, all of one step."""
        rows = rows[np.argsort(rows[:, AT], kind="stable")]
        at, tally = rows[:, AT], self._tally
        probe = rows[:, KIND] == PROBE
        ends, verdicts = self._cloud.ask(at, rows[:, UNTIL], probe)
        tally.attempts += _seconds(at[~probe], tally)
        tally.good += _seconds(at[~probe & (verdicts == ANSWERED)], tally)
        tally.probes += int(probe.sum())
        rows[:, BEGAN], rows[:, REPORT] = at, self._cloud.reports
        rows[:, AT], rows[:, VERDICT] = ends, verdicts
        self._ends.put(rows, ends)

    def _again(self, rows: Floats) -> None:
        """Retries after their back-off; the breaker may have opened meanwhile."""
        who, at = rows[:, WHO].astype(np.int64), rows[:, AT]
        may = self._devices.allows(who, at)
        self._begun.append(rows[may])
        self._given_up(rows[~may], held=True)

    def _end(self, rows: Floats) -> None:
        """Handles ended attempts at their devices."""
        rows = rows[np.argsort(rows[:, AT], kind="stable")]
        who, at, kind, verdict = rows[:, WHO].astype(np.int64), rows[:, AT], rows[:, KIND], rows[:, VERDICT]
        good, probe = verdict == ANSWERED, kind == PROBE
        devices, of = self._devices, self._of
        self._learn(who, rows)
        if of.retry_after_s and (busy := verdict == BUSY).any():
            devices.hold(who[busy], at[busy], of.retry_after_s)
        if probe.any():
            tried, when = who[probe], at[probe]
            back = devices.probed(tried, when, good[probe])
            self._wake(tried[back], when[back])
        well = good & ~probe
        if well.any():
            self._succeed(who[well], rows[well])
        bad = ~good & ~probe
        if not bad.any():
            return
        who, at, rows = who[bad], at[bad], rows[bad]
        devices.fault(who, at)
        tries = rows[:, TRIES]
        wait_s = devices.wait_s(np.minimum(MOST_S, FIRST_S * 2**tries))
        if of.retry_after_s:
            wait_s[rows[:, VERDICT] == BUSY] = of.retry_after_s
        may = tries < self._client.retries
        if self._client.whole:
            may &= at + wait_s < rows[:, UNTIL]  # never so after a timeout, which was that of the whole call
        may[may] = devices.retry(who[may])
        again = rows[may]
        again[:, TRIES] += 1
        again[:, AT] += wait_s[may]
        if not self._client.whole:
            again[:, UNTIL] = again[:, AT] + of.timeout_s
        self._begins.put(again, again[:, AT])
        self._given_up(rows[~may], held=False)

    def _learn(self, who: Ints, rows: Floats) -> None:
        """Devices learn from ended attempts how loaded the cloud is."""
        verdict, tally = rows[:, VERDICT], self._tally
        real = rows[:, KIND] != PROBE
        tally.refused += int((real & (verdict == BUSY)).sum())
        tally.late += int((real & (verdict == LATE)).sum())
        if self._reported is not None and (said := real & ((verdict == ANSWERED) | (verdict == BUSY))).any():
            self._reported.add(who[said], rows[said, AT], rows[said, REPORT])
        if self._places is not None and real.any():
            took_s = rows[real, AT] - rows[real, BEGAN]
            self._places.ended(who[real], rows[real, AT], took_s, verdict[real] == ANSWERED)

    def _succeed(self, who: Ints, rows: Floats) -> None:
        """Records answered attempts."""
        at = rows[:, AT]
        opened = self._devices.success(who)
        self._wake(who[opened], at[opened])
        live = rows[:, KIND] == REQUEST
        self._tally.answered += _seconds(rows[live, ASKED], self._tally)
        self._tally.right += self._of.cloud_right * int(live.sum())
        self._tally.took += _bins(at[live] - rows[live, ASKED], self._tally)
        if self._places is not None:
            self._places.leave(who[live])
        if not live.all():
            sent = who[~live]
            self._tally.delivered += len(sent)
            np.subtract.at(self._flying, sent, 1)
            self._failed[sent] = 0
            self._since[sent[self._boxed[sent] + self._flying[sent] == 0]] = np.inf

    def _given_up(self, rows: Floats, *, held: bool) -> None:
        """Handles calls that end without an answer."""
        if not len(rows):
            return
        who, at = rows[:, WHO].astype(np.int64), rows[:, AT]
        live = rows[:, KIND] == REQUEST
        self._at_home(rows[live, RANK], at[live] - rows[live, ASKED])
        if self._places is not None:
            self._places.leave(who[live])
        self._degraded(who[live], at[live], failed=not held)
        who, at, queued_at, failed = who[~live], at[~live], rows[~live, ASKED], rows[~live, FAILED]
        if not len(who):
            return
        np.subtract.at(self._flying, who, 1)
        if held:
            self._paused[who] = at + POLL_S + self._part_s(at - queued_at)
            self._store(who, at, queued_at, failed)
        else:
            wait_s = self._devices.wait_s(longest_s(failed, self._client.spread_s, at - queued_at))
            self._failed[who] = np.minimum(failed + 1, 30)
            self._store(who, at + np.maximum(wait_s, self._of.retry_after_s), queued_at, np.minimum(failed + 1, 30))

    def _part_s(self, age_s: Floats) -> Floats:
        """Random parts of the outboxes' spread, by their age."""
        return self._devices.wait_s(spreads_s(self._client.spread_s, age_s))

    def _degraded(self, who: Ints, at: Floats, *, failed: bool) -> None:
        """Counts degraded answers, and queues the requests; a failed delivery backs off first."""
        self._tally.degraded += len(who)
        if self._of.offline == "queue" and len(who):
            self._tally.queued += len(who)
            none = np.zeros(len(who))
            self._store(who, at + self._part_s(none) if failed else at, at, none)

    def _wake(self, who: Ints, at: Floats) -> None:
        """Schedules a flush of the outboxes whose breakers have closed, after at most a part of the spread."""
        if self._of.offline == "queue" and len(who):
            at = at + self._part_s(np.maximum(at - self._since[who], 0.0))
            np.minimum.at(self._hurry_at, who, at)
            self._hurries.put(np.column_stack((who, at)), at)

    def _hurry(self, rows: Floats) -> None:
        """Flushes outboxes: all that waits in them is due."""
        who, at = rows[:, 0].astype(np.int64), rows[:, 1]
        planned = at == self._hurry_at[who]
        who, first = np.unique(who[planned], return_index=True)
        at = at[planned][first]
        self._hurry_at[who] = np.inf
        some = self._boxed[who] > 0
        who, at = who[some], at[some]
        if len(who):
            counts = self._boxed[who]
            self._woken[who] += 1
            self._paused[who], self._boxed[who] = -np.inf, 0
            who, at = np.repeat(who, counts), np.repeat(at, counts)
            self._store(who, at, self._since[who], self._failed[who].astype(np.float64))

    def _store(self, who: Ints, due: Floats, queued_at: Floats, failed: Floats) -> None:
        """Queues requests in the outboxes."""
        np.add.at(self._boxed, who, 1)
        np.minimum.at(self._since, who, queued_at)
        self._stored.put(np.column_stack((who, due, failed, self._woken[who], queued_at)), due)

    def _deliver(self, rows: Floats, end: float) -> None:
        """Sends deliveries that are due, within the limits of breaker, rate and concurrency."""
        who = rows[:, 0].astype(np.int64)
        planned = rows[:, 3] == self._woken[who]
        order = np.lexsort((rows[planned, 1], who[planned]))
        rows, who = rows[planned][order], who[planned][order]
        if not len(who):
            return
        np.subtract.at(self._boxed, who, 1)
        at, failed, queued_at = rows[:, 1], rows[:, 2], rows[:, 4]
        if self._course is not None and (home := self._course.home[who % self._course.count]).any():
            self._paused[who[home]] = at[home] + POLL_S  # a rule holds what would leave by itself
        _, first, which = np.unique(who, return_index=True, return_inverse=True)
        asking = first[at[first] >= self._paused[who[first]]]
        may = self._allowed(who[asking], at[asking])
        refused = asking[~may]
        self._paused[who[refused]] = at[refused] + POLL_S + self._part_s(np.maximum(at - queued_at, 0.0)[refused])
        rank = np.arange(len(who)) - first[which]
        until = self._paused[who]
        due = np.where(until > at, until, np.maximum(at, self._next_at[who]) + rank / self._of.drain_per_s)
        full = (rank >= PARALLEL - self._flying[who]) & (until <= at)
        due[full] = np.maximum(due[full], at[full] + FULL_S)
        now = (due < end) & (until <= at) & ~full
        self._store(who[~now], due[~now], queued_at[~now], failed[~now])
        who, at, queued_at, failed = who[now], due[now], queued_at[now], failed[now]
        self._next_at[who] = at + 1 / self._of.drain_per_s  # several of one device: the last assignment wins, which is the latest
        np.add.at(self._flying, who, 1)
        self._new(who, at, DELIVERY, queued_at, failed)


def spreads_s(spread_s: float, age_s: Floats) -> Floats:
    """`spread.spread_for`, vectorised."""
    if not spread_s:
        return np.zeros(len(age_s))
    return np.minimum(max(store.LONGEST_S, spread_s), np.maximum(spread_s, store.TIMES * age_s))


def longest_s(failed: Floats, spread_s: float, age_s: Floats) -> Floats:
    """`delivery.longest`, vectorised: the maximum back-off of outboxes after `failed` failed deliveries."""
    growth = 2.0**failed
    return np.maximum(np.minimum(delivery.MOST_S, growth), spreads_s(spread_s, age_s))


def _bins(took_s: Floats, tally: Result) -> Ints:
    """Number of times per step of `TOOK_S`."""
    last = len(tally.took)
    return np.bincount(np.minimum((took_s / TOOK_S).astype(np.int64), last - 1), minlength=last)


def _seconds(at: Floats, tally: Result) -> Ints:
    """Number of instants per second."""
    last = len(tally.asked)
    return np.bincount(np.minimum(at.astype(np.int64), last - 1), minlength=last)


# Searches for the capacity that a cloud needs.

SAMPLE: Final = 20_000
"""Maximum number of devices simulated: the result is a multiple of the load, which does not depend on their number."""
WARM_S, AFTER_S = 3.0, 20.0
"""Seconds simulated before the outage, and after the time by which the cloud is to have recovered."""
SPREADS = 1
"""With outboxes, so many times their spread is simulated as well: the peak is within it."""
STEP: Final = 0.1
MOST: Final = 5.0
"""Margins tried: multiples of the normal load."""


def needed(scenario: Scenario, client: Client, within_s: float) -> float | None:
    """The smallest margin, to `STEP`, with which the cloud recovers within `within_s` seconds of the outage; None: above `MOST`.

    Bisection over short runs of a sample of the fleet, assuming that more capacity never slows the recovery.
    """
    until_s = WARM_S + scenario.outage_s + within_s + AFTER_S
    if scenario.offline == "queue":
        until_s += SPREADS * client.spread_s
    short = scenario._replace(devices=min(scenario.devices, SAMPLE), outage_at_s=WARM_S, length_s=until_s)

    def enough(steps: int) -> bool:
        back_s = simulate(short._replace(margin=1 + steps * STEP), client).cloud_back_s
        return back_s is not None and back_s <= within_s

    low, high = 0, round((MOST - 1) / STEP)
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return round(1 + high * STEP, 1)
