"""The fleet of `edgeroute.tools.replay.fleet`, one event after the other, with the `Admission` that each router has."""

from __future__ import annotations

import random
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf

from edgeroute import Limits
from edgeroute.cloud.endpoint_client import FIRST_S, MOST_S
from edgeroute.cloud.endpoint_guard import PROBE_S
from edgeroute.core.endpoint_breaker_and_limits import Admission, Rate
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.core.spending_limits import Spending
from edgeroute.stores.outbox import delivery_and_callbacks as delivery
from edgeroute.stores.outbox.sqlite_queue import spread_for
from edgeroute.tools.replay.fleet.outage_simulation_and_capacity_search import PARALLEL, POLL_S, Result


class Entry:
    """A request in an outbox."""

    def __init__(self, at, queued_at):
        self.ready_at, self.queued_at, self.attempts, self.flying = at, queued_at, 0, False


TERMS = Terms(max_concurrent=10**9)
"""The simulation has no limit to calls at a time."""


class Device:
    """What one router has."""

    def __init__(self, of):
        self.rules = Admission(TERMS, Spending(Limits()))
        self.rate = Rate(of.drain_per_s, 1)
        self.box, self.paused, self.next_at, self.hurry_at = [], -inf, inf, inf


class Exact:
    """One run. `run()` gives what `simulate` does."""

    def __init__(self, scenario, client):
        self.of, self.client = scenario, client
        self.random = random.Random(scenario.seed + 1)
        self.events, self.order = [], count()
        self.devices = [Device(scenario) for _ in range(scenario.devices)]
        self.result = Result.empty(scenario, client, int(scenario.length_s) + 60)
        self.free_at, self.emptied = 0.0, False

    def at(self, when, what, *args):
        """Later."""
        heappush(self.events, (when, next(self.order), partial(what, *args)))

    def jitter(self):
        """0..1."""
        return self.random.random() if self.client.jitter else 1.0

    def part_s(self, age_s=0):
        """Of what is spread that has waited so long."""
        return spread_for(self.client.spread_s, age_s) * self.jitter()

    def run(self):
        """Until every request has ended."""
        self.at(self.random.expovariate(self.of.normal_per_s), self.arrive)
        for _ in range(round(self.of.together * self.of.devices)):
            self.at(self.of.outage_at_s + self.random.random(), self.ask)
        while self.events and self.events[0][0] < len(self.result.asked):
            now, _, what = heappop(self.events)
            what(now)
        self.result.waiting = sum(len(device.box) for device in self.devices)
        return self.result

    def arrive(self, now):
        """A request, and the next one."""
        if now < self.of.length_s:
            self.ask(now)
            self.at(now + self.random.expovariate(self.of.normal_per_s), self.arrive)

    def ask(self, now):
        """One that its edge is not sure of."""
        device = self.random.choice(self.devices)
        self.result.asked[int(now)] += 1
        if self.enter(device, now):
            self.send(device, None, now, now + self.of.timeout_s, 0, now)
        else:
            self.degraded(device, now, True)

    def enter(self, device, now):
        """Whether the device may send; else a probe goes, if one is due."""
        if not self.client.breaker or device.rules.enter(None, now) is None:
            return True
        if device.rules.take_probe(now):
            self.result.probes += 1
            away = self.of.outage_at_s <= now < self.of.back_at_s
            self.at(now + (PROBE_S if away and self.of.silent else self.of.latency_s), self.probed, device, not away)
        return False

    def probed(self, device, ok, now):
        """The end of a probe."""
        before = device.rules.state
        device.rules.probe_ended(now, self.jitter(), ok=ok)
        if ok and before == "half-open":
            self.wake(device, now)

    def send(self, device, entry, asked, until, tries, now):
        """An attempt: what becomes of it is known at once."""
        of, result = self.of, self.result
        result.attempts[int(now)] += 1
        if of.outage_at_s <= now < of.back_at_s:
            ends, verdict = (inf if of.silent else now + of.latency_s), "refused"
        else:
            if now >= of.back_at_s and not self.emptied:
                self.free_at, self.emptied = of.back_at_s, True
            begun = max(self.free_at, now)
            if begun - now > of.queue_s:
                ends, verdict = now + of.latency_s, "busy"
            else:
                self.free_at = begun + 1 / of.capacity_per_s
                ends, verdict = self.free_at + of.latency_s, "answered"
                if now < of.outage_at_s < ends:
                    ends, verdict = of.outage_at_s, "refused"
        if ends > until:
            ends, verdict = until, "late"
        result.good[int(now)] += verdict == "answered"
        self.at(ends, self.end, device, entry, asked, until, tries, verdict)

    def end(self, device, entry, asked, until, tries, verdict, now):
        """It becomes known to the device."""
        of, client = self.of, self.client
        if verdict == "answered":
            back = device.rules.succeeded(now)
            if entry is None:
                self.result.answered[int(asked)] += 1
            else:
                self.result.delivered += 1
                device.box.remove(entry)
            if back:
                self.wake(device, now)
            self.step(device, now)
            return
        asked_s = of.retry_after_s if verdict == "busy" else 0
        if asked_s:
            device.rules.hold(asked_s, now)
        device.rules.failed(now, self.jitter())
        wait_s = asked_s or min(MOST_S, FIRST_S * 2**tries) * self.jitter()
        if (
            tries < client.retries
            and not (client.whole and (verdict == "late" or now + wait_s >= until))
            and self.may_retry(device)
        ):
            until = until if client.whole else now + wait_s + of.timeout_s
            self.at(now + wait_s, self.again, device, entry, asked, until, tries + 1)
        else:
            self.given_up(device, entry, now, False)

    def may_retry(self, device):
        """Whether the client's rules allow one; a client without one of them does not ask it."""
        rules, client = device.rules, self.client
        if client.breaker and client.budget:
            return rules.retry()
        if client.budget:
            return rules.budget.take()
        return not client.breaker or rules.state == "closed"

    def again(self, device, entry, asked, until, tries, now):
        """The wait before a retry is over."""
        if not self.client.breaker or device.rules.why(now) is None:
            self.send(device, entry, asked, until, tries, now)
        else:
            self.given_up(device, entry, now, True)

    def given_up(self, device, entry, now, held):
        """A call ends without an answer."""
        if entry is None:
            self.degraded(device, now, held)
            return
        entry.flying = False
        if held:
            device.paused = now + POLL_S + self.part_s(now - entry.queued_at)
        else:
            entry.attempts += 1
            spread_s = spread_for(self.client.spread_s, now - entry.queued_at)
            wait_s = delivery.longest(entry.attempts, spread_s) * self.jitter()
            entry.ready_at = now + max(wait_s, self.of.retry_after_s)
        self.step(device, now)

    def degraded(self, device, now, held):
        """The edge's answer stands."""
        self.result.degraded += 1
        if self.of.offline == "queue":
            self.result.queued += 1
            device.box.append(Entry(now if held else now + self.part_s(), now))
            self.step(device, now)

    def wake(self, device, now):
        """The endpoint is back: the outbox need not wait much longer."""
        at = now + self.part_s(max((now - entry.queued_at for entry in device.box), default=0))
        if at < device.hurry_at:
            device.hurry_at = at
            self.at(at, self.hurry, device)

    def hurry(self, device, now):
        """Everything in the outbox is due, unless it was so before."""
        if now == device.hurry_at:
            device.paused, device.hurry_at = -inf, inf
            for entry in device.box:
                entry.ready_at = min(entry.ready_at, now)
            self.step(device, now)

    def look(self, device, now):
        """Unless it was planned anew."""
        if now == device.next_at:
            device.next_at = inf
            self.step(device, now)

    def step(self, device, now):
        """As `Delivery` does: begins what is due, and looks again when something will be."""
        while sum(entry.flying for entry in device.box) < PARALLEL:
            waiting = [entry for entry in device.box if not entry.flying]
            if not waiting:
                return
            due = min(max(entry.ready_at, device.paused) for entry in waiting)
            if due <= now and not device.rate.take(now):
                due = now + 1 / self.of.drain_per_s
            if due > now:
                if due < device.next_at:
                    device.next_at = due
                    self.at(due, self.look, device)
                return
            entry = next(entry for entry in waiting if entry.ready_at <= now)
            if self.enter(device, now):
                entry.flying = True
                self.send(device, entry, now, now + self.of.timeout_s, 0, now)
            else:
                device.paused = now + POLL_S + self.part_s(now - entry.queued_at)
