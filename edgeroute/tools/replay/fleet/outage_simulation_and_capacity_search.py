"""Event loop of a simulated fleet with its outboxes, its results by the second, and a search for the cloud's needed capacity.

The devices, the cloud, the outage and the clients' protection are in simulated_devices_and_cloud.py.

Vectorised, not sampled: every device has its own breaker, retry budget and outbox, as elements of arrays. Time advances in steps
of `STEP_S`; the events of a step are one array operation, each with its exact time: only the order of events within a step is
approximate. Accepted edge answers are not simulated: they do not reach the cloud. Nor is a recovery of the network (the outage is
the cloud's), nor a probe's wait in a crowd: the health route does not queue.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from edgeroute.cloud.endpoint_client import FIRST_S, MOST_S
from edgeroute.cloud.endpoint_guard import PROBE_S
from edgeroute.stores.outbox import delivery_and_callbacks as delivery
from edgeroute.stores.outbox import sqlite_queue as store
from edgeroute.tools.replay.fleet import simulated_devices_and_cloud as parts
from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import Client, Floats, Ints, Scenario, Some

# Result of a fleet simulation.

TOOK_S: Final = 0.01
TOOK_MOST_S: Final = 60.0


@dataclass
class Result:
    """Counts of a run. Arrays have one element per second.

    Attributes:
        attempts: attempts that reached the cloud's address, rejected ones too, by their start; probes are counted separately.
        good: attempts answered in time.
        asked: requests deferred by the edge.
        answered: requests answered by the cloud in time, by their start.
        degraded: requests answered by the edge instead.
        kept: requests that the edge answered itself because the cloud was loaded; they are not degraded.
        refused: attempts that the cloud refused because its queue was full.
        late: attempts that devices gave up.
        right: expected number of right answers.
        took: requests by the time until their answer, in steps of `TOOK_S`, without the edge's own time.
        queued: degraded requests stored in an outbox.
        delivered, waiting: those of them that were delivered later, and that still wait.
        served: requests served by the cloud.
        wasted: those of them that were served after the device had given up.
        device: effect of the rules, if the devices have a state.
    """

    scenario: Scenario
    client: Client
    attempts: Ints
    good: Ints
    asked: Ints
    answered: Ints
    degraded: int = 0
    kept: int = 0
    refused: int = 0
    late: int = 0
    right: float = 0.0
    took: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    queued: int = 0
    delivered: int = 0
    waiting: int = 0
    probes: int = 0
    served: int = 0
    wasted: int = 0
    device: parts.DeviceResult | None = None

    @classmethod
    def empty(cls, scenario: Scenario, client: Client, seconds: int) -> Result:
        """Return a result with all counts at 0, for so many seconds."""
        attempts, good, asked, answered = np.zeros((4, seconds), np.int64)
        return cls(scenario, client, attempts, good, asked, answered, took=np.zeros(int(TOOK_MOST_S / TOOK_S), np.int64))

    @property
    def lost(self) -> int:
        """Requests without an answer: none, as the edge's answer is returned."""
        return int(self.asked.sum() - self.answered.sum()) - self.degraded - self.kept

    @property
    def accuracy(self) -> float:
        """Expected share of right answers to the deferred requests."""
        return self.right / max(1, int(self.asked.sum()))

    def took_s(self, q: float) -> float:
        """Return the quantile `q`, 0..1, of the time until a request has its answer, seconds; 0 without any."""
        sums = np.cumsum(self.took)
        return float(np.searchsorted(sums, q * sums[-1])) * TOOK_S if sums[-1] else 0.0

    @property
    def cloud_back_s(self) -> float | None:
        """Seconds from the end of the outage until the cloud answered its requests again; None: it did not."""
        return self._back_s(self.good, self.attempts)

    @property
    def fleet_back_s(self) -> float | None:
        """Seconds from the end of the outage until 99 % of deferred requests are answered in time, and stay so; None: never.

        A breaker may stay open after the cloud has recovered.
        """
        return self._back_s(self.answered, self.asked)

    @property
    def peak(self) -> float:
        """Load of the busiest second after the outage, as a multiple of the normal load."""
        return float(self.attempts[self._back :].max()) / self.scenario.normal_per_s

    @property
    def wasted_share(self) -> float:
        """Wasted share of the cloud's work, 0..1."""
        return self.wasted / max(self.served, 1)

    @property
    def _back(self) -> int:
        """End of the outage, in whole seconds."""
        return int(np.ceil(self.scenario.back_at_s))

    def _back_s(self, good: Ints, of: Ints) -> float | None:
        """Return the seconds from the end of the outage until `good` stays at the share `GOOD` of `of` in windows.

        None: never.
        """
        period = slice(self._back, int(self.scenario.length_s))
        good_sums, all_sums = _windows(good[period]), _windows(of[period])
        bad = np.flatnonzero(good_sums < parts.GOOD * all_sums)
        back = int(bad[-1]) + 1 if len(bad) else 0
        return float(back) if back < len(all_sums) else None


def _windows(counts: Ints) -> Floats:
    """Return sums of counts over windows of `AGAIN_S` seconds, by their first second; empty if there are fewer."""
    sums = np.concatenate(([0.0], np.cumsum(counts)))
    width = int(parts.AGAIN_S)
    return sums[width:] - sums[:-width] if len(sums) > width else np.zeros(0)


STEP_S: Final = 0.1
POLL_S: Final = 5.0  # delay of an outbox before it retries a held request, in addition to part of its spread, seconds
PARALLEL: Final = 2  # concurrent requests of one outbox
REQUEST, DELIVERY, PROBE = 0.0, 1.0, 2.0
# Columns of an attempt: its device, its start or end, its time limit, the start of the request (for a delivery: of queueing),
# previous attempts of this call, its purpose, its result, previous failed deliveries, rank of the edge's confidence among the
# inputs that it defers (0..1), the load that its reply reports, and its start.
WHO, AT, UNTIL, ASKED, TRIES, KIND, VERDICT, FAILED, RANK, REPORT, BEGAN = range(11)
FULL_S: Final = 0.25  # delay before an outbox at its concurrency limit is checked again, seconds


def simulate(scenario: Scenario, client: Client = parts.EDGEROUTE) -> Result:
    """Run the fleet for `length_s` seconds, and until the last request has an answer; return the counts. The seed decides all."""
    return SimulatedFleet(scenario, client).run()


class EventQueue:
    """Queue of event rows by the step in which they are due."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, list[Floats]] = defaultdict(list)
        self._step = 0

    def put(self, rows: Floats, times: Floats) -> None:
        """Schedule rows at these times, in the step after the current one at the earliest; nothing without rows."""
        if not len(rows):
            return
        steps = np.maximum((times / STEP_S).astype(np.int64), self._step + 1)
        order = np.argsort(steps, kind="stable")
        steps, rows = steps[order], rows[order]
        cuts = [0, *(np.flatnonzero(np.diff(steps)) + 1), len(steps)]
        for start, end in pairwise(cuts):
            self._rows[int(steps[start])].append(rows[start:end])

    def take(self, step: int) -> Floats | None:
        """Make this the current step, and remove and return its rows; None if there are none."""
        self._step = step
        parts = self._rows.pop(step, None)
        return None if parts is None else parts[0] if len(parts) == 1 else np.concatenate(parts)


class SimulatedFleet:
    """State of one simulated fleet, its clients and outboxes, and the event loop that runs it."""

    def __init__(self, scenario: Scenario, client: Client) -> None:
        self._scenario, self._client = scenario, client
        self._random = np.random.default_rng(scenario.seed)
        self._devices = parts.Devices(scenario.devices, client, self._random)
        self._cloud = parts.Cloud(scenario)
        self._ranks = np.random.default_rng([scenario.seed, 2])  # separate, so that the fleet's numbers do not depend on it
        self._reported = parts.Reported(scenario.devices) if client.hints else None
        self._places = parts.Places(scenario.devices) if client.adaptive else None
        self._course = None if scenario.device is None else parts.Course(scenario, scenario.device)
        self._begins, self._ends, self._stored, self._hurries = EventQueue(), EventQueue(), EventQueue(), EventQueue()
        # By device: time of the next flush of its outbox, after its endpoint has recovered.
        self._hurry_at = np.full(scenario.devices, np.inf)
        self._boxed = np.zeros(scenario.devices, np.int32)
        # By device: time of the first entry since its outbox was empty; that entry may be delivered already.
        self._since = np.full(scenario.devices, np.inf)
        self._flying = np.zeros(scenario.devices, np.int8)
        self._failed = np.zeros(scenario.devices, np.int8)  # by device: failed attempts of the last delivery that failed
        self._paused = np.full(scenario.devices, -np.inf)
        self._next_at = np.full(scenario.devices, -np.inf)  # by device: earliest next delivery, by the rate limit
        # By device: number of flushes of its outbox; deliveries scheduled before the last flush are ignored.
        self._woken = np.zeros(scenario.devices, np.int32)
        attempts_s = scenario.timeout_s + max(MOST_S, scenario.retry_after_s)
        seconds = int(scenario.length_s + attempts_s * (client.retries + 1)) + 2
        self._tally = Result.empty(scenario, client, seconds)
        self._starting: list[Floats] = []
        self._step_end = 0.0

    def run(self) -> Result:
        """Run all steps and return the counts; call once.

        In each step attempts end first, then outboxes are flushed and deliver, retries begin, new requests come, and all are
        sent.
        """
        queues = (
            (self._ends, self._end),
            (self._hurries, self._flush),
            (self._stored, self._deliver),
            (self._begins, self._retry),
        )
        for step in range(int(len(self._tally.asked) / STEP_S)):
            self._step_end = (step + 1) * STEP_S
            self._starting.clear()
            for queue, handle in queues:
                if (rows := queue.take(step)) is not None:
                    handle(rows)
            time = step * STEP_S
            if time < self._scenario.length_s:
                self._ask(time)
            if self._starting:
                self._send(np.concatenate(self._starting))
        tally = self._tally
        tally.waiting = int(self._boxed.sum() + self._flying.sum())
        tally.served, tally.wasted = self._cloud.served, self._cloud.wasted
        if self._course is not None:
            tally.device = self._course.result(self._scenario.length_s)
        return tally

    def _ask(self, time: float) -> None:
        """Draw the deferred requests of a step at random, and schedule those that may be sent; the edge answers the others.

        The edge keeps some by the cloud's load hints; those of an open breaker or a full device are degraded, and may be queued.
        """
        scenario = self._scenario
        crowd = scenario.together * scenario.devices if scenario.outage_at_s <= time < scenario.outage_at_s + 1 else 0.0
        if self._course is None:
            count = int(self._random.poisson((scenario.normal_per_s + crowd) * STEP_S))
            who = self._random.integers(0, scenario.devices, count)  # one may come twice
        else:
            who = self._devices_by_state(time, crowd)
        if not len(who):
            return
        times = time + STEP_S * self._random.random(len(who))
        self._tally.asked += _seconds(times, self._tally)
        ranks = self._ranks.random(len(who))
        if self._reported is not None:
            on_edge = ranks >= 1 - self._reported.kept(who, times)
            self._tally.kept += int(on_edge.sum())
            self._answer_on_edge(ranks[on_edge])
            who, times, ranks = who[~on_edge], times[~on_edge], ranks[~on_edge]
        allowed = self._allowed(who, times)
        if self._places is not None:
            allowed[allowed] = self._places.enter(who[allowed])
        self._schedule(who[allowed], times[allowed], REQUEST, rank=ranks[allowed])
        self._answer_on_edge(ranks[~allowed])
        self._count_degraded(who[~allowed], times[~allowed], failed=False)

    def _answer_on_edge(self, ranks: Floats, took_s: Floats | float = 0.0) -> None:
        """Count requests that the edge answered after all: the expected right answers by their rank, and their times."""
        highest, lowest = self._scenario.surest_right, self._scenario.least_right
        self._tally.right += float((lowest + (highest - lowest) * ranks).sum())
        self._tally.took += _bins(np.broadcast_to(took_s, len(ranks)), self._tally)

    def _devices_by_state(self, time: float, crowd: float) -> Ints:
        """Step battery, heat and rules to this time, and draw the senders, as often as the rules let them: a device a request."""
        course = self._course
        assert course is not None, "the devices have a state"
        course.until(time)
        extra = crowd * course.sizes / self._scenario.devices * (course.per_s > 0)
        kinds = np.repeat(np.arange(course.count), self._random.poisson((course.per_s + extra) * STEP_S))
        return kinds + course.count * (self._random.random(len(kinds)) * course.sizes[kinds]).astype(np.int64)

    def _allowed(self, who: Ints, times: Floats) -> Some:
        """Return which of the devices' breakers let them send; some of the others start a probe in this step."""
        allowed = self._devices.allows(who, times)
        if not allowed.all():
            rejected, rejected_at = who[~allowed], times[~allowed]
            probing = self._devices.probes(rejected, rejected_at)
            self._schedule(rejected[probing], rejected_at[probing], PROBE)
        return allowed

    def _schedule(
        self, who: Ints, times: Floats, kind: float, requested_at: Floats | None = None, failed: Floats | float = 0.0,
        rank: Floats | float = 0.0,
    ) -> None:  # fmt: skip
        """Append attempts to the current step, with the time limit of their kind; requested at their times unless given."""
        if len(who):
            rows = np.zeros((len(who), 11))
            rows[:, WHO], rows[:, AT], rows[:, KIND], rows[:, FAILED] = who, times, kind, failed
            rows[:, RANK] = rank
            rows[:, ASKED] = times if requested_at is None else requested_at
            rows[:, UNTIL] = times + (PROBE_S if kind == PROBE else self._scenario.timeout_s)
            self._starting.append(rows)

    def _send(self, rows: Floats) -> None:
        """Pass the attempts of a step to the cloud in order of time, count them, and schedule their ends with the results."""
        rows = rows[np.argsort(rows[:, AT], kind="stable")]
        times, tally = rows[:, AT], self._tally
        probe = rows[:, KIND] == PROBE
        ends, verdicts = self._cloud.ask(times, rows[:, UNTIL], probe)
        tally.attempts += _seconds(times[~probe], tally)
        tally.good += _seconds(times[~probe & (verdicts == parts.ANSWERED)], tally)
        tally.probes += int(probe.sum())
        rows[:, BEGAN], rows[:, REPORT] = times, self._cloud.reports
        rows[:, AT], rows[:, VERDICT] = ends, verdicts
        self._ends.put(rows, ends)

    def _retry(self, rows: Floats) -> None:
        """Send retries after their back-off; those whose breaker has opened meanwhile end as failed calls."""
        who, times = rows[:, WHO].astype(np.int64), rows[:, AT]
        allowed = self._devices.allows(who, times)
        self._starting.append(rows[allowed])
        self._end_without_cloud(rows[~allowed], held=True)

    def _end(self, rows: Floats) -> None:
        """Handle ended attempts at their devices, in order of time: learn loads, hold for a Retry-After, close or open breakers.

        Answered ones succeed; of the failed ones some are scheduled to retry, by budget and back-off, and the others fail as
        calls.
        """
        rows = rows[np.argsort(rows[:, AT], kind="stable")]
        who, times, kind, verdict = rows[:, WHO].astype(np.int64), rows[:, AT], rows[:, KIND], rows[:, VERDICT]
        good, probe = verdict == parts.ANSWERED, kind == PROBE
        devices, scenario = self._devices, self._scenario
        self._learn(who, rows)
        if scenario.retry_after_s and (busy := verdict == parts.BUSY).any():
            devices.hold(who[busy], times[busy], scenario.retry_after_s)
        tried, when = who[probe], times[probe]
        back = devices.probed(tried, when, good[probe])
        self._wake(tried[back], when[back])
        succeeded = good & ~probe
        self._succeed(who[succeeded], rows[succeeded])
        failed = ~good & ~probe
        if not failed.any():
            return
        who, times, rows = who[failed], times[failed], rows[failed]
        devices.fault(who, times)
        tries = rows[:, TRIES]
        wait_s = devices.wait_s(np.minimum(MOST_S, FIRST_S * 2**tries))
        if scenario.retry_after_s:
            wait_s[rows[:, VERDICT] == parts.BUSY] = scenario.retry_after_s
        allowed = tries < self._client.retries
        if self._client.whole:
            allowed &= times + wait_s < rows[:, UNTIL]  # always False after a timeout of the whole call
        allowed[allowed] = devices.retry(who[allowed])
        retries = rows[allowed]
        retries[:, TRIES] += 1
        retries[:, AT] += wait_s[allowed]
        if not self._client.whole:
            retries[:, UNTIL] = retries[:, AT] + scenario.timeout_s
        self._begins.put(retries, retries[:, AT])
        self._end_without_cloud(rows[~allowed], held=False)

    def _learn(self, who: Ints, rows: Floats) -> None:
        """Count refused and late attempts, and update what devices know of the cloud's load, and their limits of calls."""
        verdict, tally = rows[:, VERDICT], self._tally
        real = rows[:, KIND] != PROBE
        tally.refused += int((real & (verdict == parts.BUSY)).sum())
        tally.late += int((real & (verdict == parts.LATE)).sum())
        if self._reported is not None:
            with_report = real & ((verdict == parts.ANSWERED) | (verdict == parts.BUSY))
            self._reported.add(who[with_report], rows[with_report, AT], rows[with_report, REPORT])
        if self._places is not None:
            took_s = rows[real, AT] - rows[real, BEGAN]
            self._places.ended(who[real], rows[real, AT], took_s, verdict[real] == parts.ANSWERED)

    def _succeed(self, who: Ints, rows: Floats) -> None:
        """Count answered attempts, close breakers, wake outboxes whose breaker was open, and free places.

        A delivery leaves its outbox.
        """
        times = rows[:, AT]
        opened = self._devices.success(who)
        self._wake(who[opened], times[opened])
        requests = rows[:, KIND] == REQUEST
        self._tally.answered += _seconds(rows[requests, ASKED], self._tally)
        self._tally.right += self._scenario.cloud_right * int(requests.sum())
        self._tally.took += _bins(times[requests] - rows[requests, ASKED], self._tally)
        if self._places is not None:
            self._places.leave(who[requests])
        sent = who[~requests]
        self._tally.delivered += len(sent)
        np.subtract.at(self._flying, sent, 1)
        self._failed[sent] = 0
        self._since[sent[self._boxed[sent] + self._flying[sent] == 0]] = np.inf

    def _end_without_cloud(self, rows: Floats, *, held: bool) -> None:
        """Answer requests whose calls failed on the edge, degraded, and put failed deliveries of outboxes back into their queues.

        held: True for calls that a breaker stopped, which pause the outbox; other failures back off, longer each time.
        """
        if not len(rows):
            return
        who, times = rows[:, WHO].astype(np.int64), rows[:, AT]
        requests = rows[:, KIND] == REQUEST
        self._answer_on_edge(rows[requests, RANK], times[requests] - rows[requests, ASKED])
        if self._places is not None:
            self._places.leave(who[requests])
        self._count_degraded(who[requests], times[requests], failed=not held)
        who, times, queued_at, failed = who[~requests], times[~requests], rows[~requests, ASKED], rows[~requests, FAILED]
        np.subtract.at(self._flying, who, 1)
        if held:
            self._paused[who] = times + POLL_S + self._part_s(times - queued_at)
        else:
            wait_s = self._devices.wait_s(longest_s(failed, self._client.spread_s, times - queued_at))
            times = times + np.maximum(wait_s, self._scenario.retry_after_s)
            failed = np.minimum(failed + 1, 30)
            self._failed[who] = failed
        self._store(who, times, queued_at, failed)

    def _part_s(self, age_s: Floats) -> Floats:
        """Draw at random a part of each outbox's spread, by its age, seconds."""
        return self._devices.wait_s(spreads_s(self._client.spread_s, age_s))

    def _count_degraded(self, who: Ints, times: Floats, *, failed: bool) -> None:
        """Count degraded answers, and queue their requests if there are outboxes.

        failed: True for requests that were sent: they are due after a random part of the spread; others at once.
        """
        self._tally.degraded += len(who)
        if self._scenario.offline == "queue" and len(who):
            self._tally.queued += len(who)
            ages = np.zeros(len(who))
            self._store(who, times + self._part_s(ages) if failed else times, times, ages)

    def _wake(self, who: Ints, times: Floats) -> None:
        """Schedule a flush of the outboxes whose breakers have closed, after a random part of the spread.

        Nothing without outboxes.
        """
        if self._scenario.offline == "queue" and len(who):
            times = times + self._part_s(np.maximum(times - self._since[who], 0.0))
            np.minimum.at(self._hurry_at, who, times)
            self._hurries.put(np.column_stack((who, times)), times)

    def _flush(self, rows: Floats) -> None:
        """Flush outboxes: all their entries are due now, and deliveries scheduled before are void.

        A replaced flush is ignored.
        """
        who, times = rows[:, 0].astype(np.int64), rows[:, 1]
        planned = times == self._hurry_at[who]
        who, first = np.unique(who[planned], return_index=True)
        times = times[planned][first]
        self._hurry_at[who] = np.inf
        not_empty = self._boxed[who] > 0
        who, times = who[not_empty], times[not_empty]
        counts = self._boxed[who]
        self._woken[who] += 1
        self._paused[who], self._boxed[who] = -np.inf, 0
        who, times = np.repeat(who, counts), np.repeat(times, counts)
        self._store(who, times, self._since[who], self._failed[who].astype(np.float64))

    def _store(self, who: Ints, due: Floats, queued_at: Floats, failed: Floats) -> None:
        """Queue requests in the outboxes of their devices, each due at its time; counts them there."""
        np.add.at(self._boxed, who, 1)
        np.minimum.at(self._since, who, queued_at)
        self._stored.put(np.column_stack((who, due, failed, self._woken[who], queued_at)), due)

    def _deliver(self, rows: Floats) -> None:
        """Send deliveries that are due, within the limits of breaker, rate and concurrency; schedule the others again.

        An open breaker pauses its outbox, and so does a device rule that holds what would leave by itself. Deliveries from before
        the last flush are ignored.
        """
        who = rows[:, 0].astype(np.int64)
        planned = rows[:, 3] == self._woken[who]
        order = np.lexsort((rows[planned, 1], who[planned]))
        rows, who = rows[planned][order], who[planned][order]
        np.subtract.at(self._boxed, who, 1)
        times, failed, queued_at = rows[:, 1], rows[:, 2], rows[:, 4]
        if self._course is not None:
            held_by_rule = self._course.home[who % self._course.count]
            self._paused[who[held_by_rule]] = times[held_by_rule] + POLL_S  # a rule holds what would leave by itself
        _, first, which = np.unique(who, return_index=True, return_inverse=True)
        first_ready = first[times[first] >= self._paused[who[first]]]
        allowed = self._allowed(who[first_ready], times[first_ready])
        refused = first_ready[~allowed]
        self._paused[who[refused]] = times[refused] + POLL_S + self._part_s(np.maximum(times - queued_at, 0.0)[refused])
        rank = np.arange(len(who)) - first[which]
        until = self._paused[who]
        due = np.where(until > times, until, np.maximum(times, self._next_at[who]) + rank / self._scenario.drain_per_s)
        full = (rank >= PARALLEL - self._flying[who]) & (until <= times)
        due[full] = np.maximum(due[full], times[full] + FULL_S)
        now = (due < self._step_end) & (until <= times) & ~full
        self._store(who[~now], due[~now], queued_at[~now], failed[~now])
        who, times, queued_at, failed = who[now], due[now], queued_at[now], failed[now]
        self._next_at[who] = times + 1 / self._scenario.drain_per_s  # of several of one device the latest is assigned last
        np.add.at(self._flying, who, 1)
        self._schedule(who, times, DELIVERY, queued_at, failed)


def spreads_s(spread_s: float, age_s: Floats) -> Floats:
    """Return the spread of each outbox by its age, seconds, as `sqlite_queue.spread_for`, vectorised; 0 without a spread."""
    if not spread_s:
        return np.zeros(len(age_s))
    return np.minimum(max(store.LONGEST_S, spread_s), np.maximum(spread_s, store.TIMES * age_s))


def longest_s(failed: Floats, spread_s: float, age_s: Floats) -> Floats:
    """Return the maximum back-off of outboxes after `failed` failed deliveries; `delivery.longest`, vectorised."""
    growth = 2.0**failed
    return np.maximum(np.minimum(delivery.MOST_S, growth), spreads_s(spread_s, age_s))


def _bins(took_s: Floats, tally: Result) -> Ints:
    """Return the number of times per step of `TOOK_S`; the last step has all longer ones."""
    last = len(tally.took)
    return np.bincount(np.minimum((took_s / TOOK_S).astype(np.int64), last - 1), minlength=last)


def _seconds(times: Floats, tally: Result) -> Ints:
    """Return the number of times per second; the last second has all later ones."""
    last = len(tally.asked)
    return np.bincount(np.minimum(times.astype(np.int64), last - 1), minlength=last)


# Search for the capacity that a cloud needs.

SAMPLE: Final = 20_000  # most devices in the search: the result is a multiple of the load, which does not depend on their number
WARM_S, AFTER_S = 3.0, 20.0  # seconds simulated before the outage, and after the required recovery of the cloud
SPREADS = 1  # with outboxes, multiple of their spread that is simulated in addition: the peak is within it
STEP: Final = 0.1
MOST: Final = 5.0  # step and maximum of the margins to try, multiples of the normal load


def needed(scenario: Scenario, client: Client, within_s: float) -> float | None:
    """Return the smallest margin with which the cloud recovers within `within_s` seconds of the outage; None: above `MOST`.

    Bisection over short runs of a sample of the fleet, to a precision of `STEP`, assuming that more capacity never slows the
    recovery.
    """
    until_s = WARM_S + scenario.outage_s + within_s + AFTER_S
    if scenario.offline == "queue":
        until_s += SPREADS * client.spread_s
    short = scenario._replace(devices=min(scenario.devices, SAMPLE), outage_at_s=WARM_S, length_s=until_s)

    def enough(steps: int) -> bool:
        """Simulate with this margin, and return True if the cloud recovers in time."""
        back_s = simulate(short._replace(margin=1 + steps * STEP), client).cloud_back_s
        return back_s is not None and back_s <= within_s

    most = round((MOST - 1) / STEP)
    steps = bisect_left(range(most + 1), True, lo=1, key=enough)
    return round(1 + steps * STEP, 1) if steps <= most else None
