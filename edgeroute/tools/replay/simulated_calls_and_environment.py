"""Result of each leg of a replayed request (`Script`): by its record, the network's model, or similar calls.

A leg is one target's part of a request: a run of an edge, or a call of a cloud. Also here: networks (`Link`), the admission
control of an endpoint (`Gate`), battery and heat.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Mapping
from heapq import heappop, heappush
from math import isnan
from random import Random
from typing import Any, Final, Literal, NamedTuple

from edgeroute.core.endpoint_breaker_and_limits import Admission
from edgeroute.core.error_codes_and_texts import Failure, Rejection
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.spending_limits import Cost, Spending
from edgeroute.core.walk import Done, Event, Failed, Kind, Outcome, Prediction, Start, first_leg_outcome, new
from edgeroute.errors import EdgerouteError, Held, TimedOut, Unreachable
from edgeroute.tools.replay.recorded_requests_and_statistics import ANSWERED, Past, Request, Seen, Tally, edge_confidence
from edgeroute.tools.replay.replay_setup_and_result import Port

# Network models: transfer times, losses and availability.

RETRANSMIT_S: Final = 0.2  # minimum retransmission timeout, seconds (Linux: TCP_RTO_MIN)


class Network(NamedTuple):
    """Kind of network: typical orders of magnitude, not measured on a particular one."""

    rtt_s: float  # round-trip time of a small packet
    jitter_s: float  # its standard deviation
    up_bits_per_s: float
    down_bits_per_s: float
    loss: float  # share of exchanges with a lost packet: it is retransmitted after a round trip and `RETRANSMIT_S`
    on_s: float = float("inf")  # duration of each period with a link, followed by `off_s` without; 0: no link ever
    off_s: float = 0.0


# Name -> network. wifi, 4g: medians of lines, as commonly reported by public speed tests. 3g: HSPA as deployed, far below the
# 14.4 and 5.76 Mbit/s that 3GPP gives for its first releases. edge: 2G with EDGE, of whose 236 kbit/s (four slots, 3GPP) a part
# arrives. satellite: a geostationary one, whose four ways of 35,786 km alone take 0.48 s of a round trip. flapping: 4g with
# 45 s of link, then 15 s without.
NETWORKS: Final[dict[str, Network]] = {
    "wifi": Network(0.015, 0.005, 40e6, 90e6, 0.001),
    "4g": Network(0.050, 0.015, 9e6, 40e6, 0.005),
    "3g": Network(0.120, 0.040, 1.1e6, 4e6, 0.01),
    "edge": Network(0.400, 0.150, 0.1e6, 0.2e6, 0.02),
    "satellite": Network(0.600, 0.050, 3e6, 25e6, 0.01),
    "offline": Network(0.0, 0.0, 1.0, 1.0, 0.0, on_s=0.0, off_s=float("inf")),
    "flapping": Network(0.050, 0.015, 9e6, 40e6, 0.005, on_s=45.0, off_s=15.0),
}


class Link:
    """Simulated course of one network, random by `random`."""

    def __init__(self, network: Network, random: Random) -> None:
        self._network, self._random = network, random

    def left_s(self, now: float) -> float:
        """Return the seconds of link left at `now`, perhaps infinite; 0: there is none."""
        on_s, off_s = self._network.on_s, self._network.off_s
        if not on_s or on_s == float("inf"):
            return on_s
        return max(0.0, on_s - now % (on_s + off_s))

    def exchange_s(self, sent_bytes: float, received_bytes: float, server_s: float) -> float:
        """Draw at random the duration of a request and its reply on an open connection, seconds, perhaps with a lost packet."""
        network, random = self._network, self._random
        took_s = max(network.rtt_s / 2, random.gauss(network.rtt_s, network.jitter_s)) + server_s
        took_s += 8 * (sent_bytes / network.up_bits_per_s + received_bytes / network.down_bits_per_s)
        return took_s + network.rtt_s + RETRANSMIT_S if random.random() < network.loss else took_s


SERVER_S: Final = 0.02  # assumed latency of an endpoint without records, seconds
News = Literal["answered", "failed", "overdue", "dropped", "probed", "back"]


class Gate:
    """Admission control of one endpoint: the live `Admission`, in virtual time.

    A call's result is reported at its start, and takes effect at its own time, so that no request depends on later events.

    Attributes:
        asked: number of requests sent.
        held: number of requests rejected.
        probes: number of probes.
        rules: the `Admission`.
    """

    def __init__(
        self, name: str, port: Port, past: Past, link: Link | None, server_s: float, random: Random, spending: Spending
    ) -> None:
        self.name, self.port, self.past, self.link, self.server_s = name, port, past, link, server_s
        self.asked = self.held = self.probes = 0
        self.rules, self._random = Admission(port.terms, spending), random
        self._events: list[tuple[float, int, News, Hashable, Any]] = []
        self._count = 0
        for time in () if link else past.back:
            self.schedule(time, "back")

    def enter(self, slot: Hashable, cost: Cost, now: float) -> Rejection | None:
        """Admit a request, which occupies the slot until its end, book its cost and return None; or return why it is rejected.

        Events scheduled up to `now` take effect first. A rejected request may start a probe.
        """
        self._catch_up(now)
        rejection = self.rules.enter(slot, now)
        if rejection is not None:
            if self.rules.take_probe(now):
                self._probe(now)
        elif (rejection := self.rules.attempt(cost, now, now)) is not None:
            self.rules.leave(slot)
            self.rules.rate.give_back(cost.calls)
        return rejection

    def schedule(self, time: float, what: News, slot: Hashable = None, detail: Any = None) -> None:
        """Schedule an event, such as the end of a call; it takes effect once a request comes at its time or later.

        Args:
            time: its time.
            what: kind of the event.
            slot: slot of the call that ends.
            detail: seconds that an answered or overdue call took; of a failed one also its failure.
        """
        self._count += 1
        heappush(self._events, (time, self._count, what, slot, detail))

    def _catch_up(self, now: float) -> None:
        """Apply all scheduled events up to `now`, in their order, and free their slots; the breaker's waits are random."""
        events, rules = self._events, self.rules
        while events and events[0][0] <= now:
            time, _, what, slot, detail = heappop(events)
            rules.leave(slot)
            if what == "back":
                if rules.state == "open" and rules.link_up(time):
                    self._probe(time)
            elif what == "probed":
                rules.probe_ended(time, self._random.random(), ok=detail)
            elif what == "answered":
                rules.succeeded(time, detail)
            elif what == "failed":
                self._fail(time, *detail)
            elif what == "overdue" and rules.too_late(detail):
                rules.failed(time, self._random.random())

    def _fail(self, time: float, took_s: float, failure: Failure) -> None:
        """Apply a failure, and as many failed retries as there may have been; each may open the breaker for a random time.

        A failure that shows that the endpoint answers counts as success; one because of the input, or that is late, but not by
        much, not at all.
        """
        rules, verdict = self.rules, failure.verdict()
        if verdict == "answered":
            rules.succeeded(time)
            return
        if failure.of_the_input or (verdict == "late" and not rules.too_late(took_s)):
            return
        rules.failed(time, self._random.random(), failure.status)
        retries = self.port.retries if failure.retriable else 0
        while retries and rules.retry():
            retries -= 1
            rules.failed(time, self._random.random())

    def _probe(self, now: float) -> None:
        """Count a probe of the endpoint, and schedule its result: by the simulated network, if any, else by the record.

        Failures come at once. Without a health check it succeeds at once.
        """
        self.probes += 1
        took_s, good = 0.0, True
        if self.port.health and self.link is not None:
            took_s = self.link.exchange_s(0, 0, self.server_s)
            good = took_s <= self.link.left_s(now)
        elif self.port.health:
            good = self.past.away(now) is None
        self.schedule(now + took_s if good else now, "probed", None, good)

    @property
    def opened(self) -> int:
        """Apply all scheduled events, future ones too, and return how often the breaker opened: for the end of a replay."""
        self._catch_up(INF)
        return self.rules.breaker.opened


# Device model: battery and thermal throttling.


class Heat(NamedTuple):
    """Phase of thermal throttling."""

    after_s: float  # start of the phase, seconds after the first request
    times: float  # factor by which the edge's run time grows
    celsius: float


# Name -> phases. Typical of devices without a fan under steady load, which often retain half to three quarters of their speed;
# not measured on a particular device.
THERMAL: Final[dict[str, tuple[Heat, ...]]] = {
    "cool": (Heat(0.0, 1.0, 40.0),),
    "warm": (Heat(0.0, 1.0, 45.0), Heat(300.0, 1.2, 65.0)),
    "hot": (Heat(0.0, 1.0, 50.0), Heat(120.0, 1.3, 75.0), Heat(600.0, 1.8, 85.0)),
}


def heat(course: tuple[Heat, ...], now: float) -> Heat:
    """Return the phase in force at `now`, seconds after the first request; before the first phase, that one."""
    return course[max(0, bisect_right(course, (now, float("inf"))) - 1)]


class Battery(NamedTuple):
    """Battery at the beginning, and its base load.

    Attributes:
        level: charge at the first request, 0..1.
        wh: capacity, watt hours.
        idle_w: base load, watts.
    """

    level: float
    wh: float = 10.0
    idle_w: float = 0.0

    @property
    def joules(self) -> float:
        """Energy at the first request, joules."""
        return self.level * self.wh * 3600

    def left(self, spent: float, now: float) -> float:
        """Return the charge at `now`, 0..1, after `spent` joules for requests and the base load; 0 without a capacity."""
        return max(0.0, (self.joules - spent - self.idle_w * now) / (self.wh * 3600)) if self.wh else 0.0

    def empty_at(self, spent: float, now: float) -> float | None:
        """Return when the battery ran empty, seconds after the first request, with `spent` joules for requests; None: not yet.

        That is `now` if the requests alone emptied it, else when the base load did.
        """
        left = self.joules - spent
        if left <= 0:
            return now
        return left / self.idle_w if self.idle_w * now >= left else None


MB: Final = 1e6
SLACK_S: Final = 1e-5  # tolerance for rounded times: a leg unfinished at a time was unfinished a little later, too
TIMEOUT = "no reply in {:g} s"
NO_NETWORK = "there is no network"
NOT_RUN = "{} did not run when this was recorded, so its confidence is not known"
NOT_ENDED = "{} had not ended when the recorded request did, so its confidence is not known"
NO_CLASS = "the trace does not say which class {} answered, and the threshold depends on it"
NEVER_ASKED = "the trace has no answer of {}, so how long it takes is not known: give a network"
LONGER = "{} was given up when this was recorded, and no recorded answer took longer"
_NONE: Final = Failure()


class Unknown(Exception):
    """Raised when the further course of a request cannot be determined; the message is the reason."""


class Call:
    """Request sent to an endpoint; it is its own slot there."""

    __slots__ = ("begun", "cost", "gate", "received", "rest", "sent", "shared")

    def __init__(self, gate: Gate, begun: float, sent: float, received: float, cost: Cost, rest: Cost, *, shared: bool) -> None:
        self.gate, self.begun, self.sent, self.received, self.cost, self.rest = gate, begun, sent, received, cost, rest
        self.shared = shared


class Script:
    """Source of the events for one replayed request's walk after the other: by its record, or by a network's model.

    Args:
        gates: cloud's name -> its gate.
        spending: shared spending.
        course: phases of heat; empty: none.
        random: random numbers.

    Attributes:
        estimated: quantity that was estimated from similar calls -> how often.
    """

    def __init__(self, gates: Mapping[str, Gate], spending: Spending, course: tuple[Heat, ...], random: Random) -> None:
        self.estimated: Counter[str] = Counter()
        self._gates, self._spending, self._course, self._random = gates, spending, course, random
        self._calls: dict[int, Call] = {}
        self._batches: dict[tuple[str, str], Rejection | None] = {}
        self._open = ""
        self._legs: tuple[Leg, ...] = ()
        self._request: Request

    def begin(self, request: Request, plan: Plan) -> None:
        """Set the request whose walk begins now; free the slots of the calls of one whose walk was not determined."""
        self._request, self._legs, self._open = request, plan.legs, ""
        for call in self._calls.values():  # the course of the previous request could not be determined
            call.gate.rules.leave(call)
        self._calls.clear()

    def at_first(self, plan: Plan, begun: float) -> Outcome | None:
        """Return the outcome of a plan that needs no walk: its first leg is an edge that has answered, and is accepted in time.

        None: the plan has to be walked, as one with thresholds by class, too.
        """
        leg = plan.legs[0]
        seen = self._request.legs.get(leg.name)
        if leg.permit is not None or leg.thresholds or seen is None or seen.away or seen.what not in ANSWERED:
            return None
        end = begun + (seen.took_s * heat(self._course, begun).times if self._course else seen.took_s)
        if end > begun + plan.deadline_s:
            return None
        return first_leg_outcome(plan, begun, new(Prediction, (None, seen.confidence, None)), end)

    def __call__(self, start: Start, now: float) -> Event:
        """Return the event of a leg that starts now.

        Raises:
            Unknown: it cannot be determined.
        """
        i = start.leg
        leg = self._legs[i]
        seen = self._request.legs.get(leg.name)
        return self._edge(i, leg, seen, now) if leg.permit is None else self._cloud(i, leg, seen, now)

    def _edge(self, i: int, leg: Leg, seen: Seen | None, now: float) -> Event:
        """Return Done or Failed (fatal for a bad input) by the edge's record, slowed by heat; raise `Unknown` without one.

        A leg that had not ended in the record fails a little later, which `_open` notes: `end` then raises `Unknown`.
        """
        if seen is None or seen.away:
            raise Unknown(NOT_RUN.format(leg.name))
        end = now + (seen.took_s * heat(self._course, now).times if self._course else seen.took_s)
        if seen.what in ANSWERED:
            value = self._value(leg, seen) if leg.thresholds else None
            return new(Done, (i, new(Prediction, (value, seen.confidence, None)), end))
        if seen.what == "failed":
            return Failed(i, RecordedError(seen.error, seen.failure), end, fatal=seen.failure.code == "bad_input")
        self._open = NOT_ENDED.format(leg.name)
        return Failed(i, _OPEN, end + SLACK_S)

    def _value(self, leg: Leg, seen: Seen) -> str | None:
        """Return a value whose per-class threshold is the recorded one; None: the general one applies, or all route alike.

        Raises:
            Unknown: the record does not tell which class's threshold applies.
        """
        recorded = seen.own
        if recorded is not None and recorded[1] == leg.label:
            if recorded[0] == leg.threshold:
                return None
            for value, threshold in leg.thresholds.items():
                if threshold == recorded[0]:
                    return value
        assert leg.threshold is not None, "a leg with thresholds has one for the rest, too"
        levels, sure = (leg.threshold, *leg.thresholds.values()), seen.confidence
        if leg.final or leg.standby or sure is None or isnan(sure):
            return None
        if sure < min(levels) or (sure >= max(levels) and INF not in levels):
            return None
        raise Unknown(NO_CLASS.format(leg.name))

    def _cloud(self, i: int, leg: Leg, seen: Seen | None, now: float) -> Event:
        """Return Done or Failed for a cloud: withheld as recorded, rejected by its gate, called, or late for its timeout.

        Books a call that is sent and stores it for `end`, or counts it as held. May draw random numbers. Raises `Unknown` as
        `_answer`.
        """
        gate = self._gates[leg.name]
        seen = None if seen is None or not seen.away else seen
        if seen is not None and seen.failure.code in {"consent", "redaction", "view"}:
            gate.held += 1
            return Failed(i, RecordedError(seen.error, seen.failure), now)
        call_seen = None if seen is None or seen.held else seen
        sizes = gate.past if call_seen is None else call_seen
        sent, received = sizes.sent_bytes, sizes.received_bytes
        rejection = self._enter(i, gate, now, sent, received)
        if rejection is not None:
            gate.held += 1
            return Failed(i, Held(f"{gate.name} was not asked: {rejection.text}", code=rejection.code), now)
        event = self._answer(i, gate, call_seen, now, sent, received)
        if event.at - now > gate.port.patience_s:
            return Failed(i, TimedOut(TIMEOUT.format(gate.port.patience_s)), now + gate.port.patience_s)
        return event

    def _enter(self, i: int, gate: Gate, now: float, sent: float, received: float) -> Rejection | None:
        """Ask the gate to admit a call; book its cost, store it for `end` and return None, or return why it is rejected.

        The rows of a batch are one call, and share its rejection, unless each takes its own.
        """
        key = self._request.batch, gate.name
        shared = bool(key[0]) and key in self._batches
        is_own_call = not shared or gate.port.one_by_one
        cost = gate.rules.cost(sent / MB, int(is_own_call))
        call = Call(gate, now, sent, received, cost, gate.rules.cost(received / MB), shared=shared)
        if shared:
            rejection = self._batches[key]
            if rejection is None and is_own_call:
                rejection = gate.rules.take(now, 1) or self._spending.reserve(cost, now)
            elif rejection is None:
                self._spending.add(cost, now)
        else:
            rejection = gate.enter(call, cost, now)
            if key[0]:
                self._batches[key] = rejection
        if rejection is None:
            gate.asked += not shared
            self._calls[i] = call
        return rejection

    def _answer(self, i: int, gate: Gate, seen: Seen | None, now: float, sent: float, received: float) -> Event:
        """Return Done or Failed for a call that is sent, with its bytes: over the simulated network, if any, or as recorded.

        A call without a record fails if those around it did. Otherwise its latency is drawn from longer ones, and counted as
        estimated; if nothing longer is recorded, it fails after the recorded time, which `_open` notes: `end` raises `Unknown`.

        Raises:
            Unknown: the endpoint has no recorded answer.
        """
        if seen is None and (sent or received):
            self.estimated["bytes of calls"] += 1
        if gate.link is not None:
            return self._over_network(i, gate, seen, now, sent, received)
        if seen is not None and seen.what in ANSWERED:
            return Done(i, Prediction(None, seen.confidence, None), now + seen.took_s)
        if seen is not None and seen.what == "failed":
            return Failed(i, RecordedError(seen.error, seen.failure), now + seen.took_s)
        outage = gate.past.away(now) if seen is None else None
        if outage is not None:
            self.estimated["failures of calls, as those around them failed"] += 1
            return Failed(i, RecordedError(outage.error, outage.failure), now + gate.past.failure_s)
        than_s = seen.took_s + SLACK_S if seen is not None else 0.0
        took_s = gate.past.longer(than_s, self._random.random(), edge_confidence(self._request.legs))
        if took_s is not None:
            self.estimated["latencies of calls, as of recorded ones of such a confidence"] += 1
            return Done(i, Prediction(None, None, None), now + took_s)
        if seen is None:
            raise Unknown(NEVER_ASKED.format(gate.name))
        self._open = LONGER.format(gate.name)
        return Failed(i, _OPEN, now + seen.took_s + SLACK_S)

    def _over_network(self, i: int, gate: Gate, seen: Seen | None, now: float, sent: float, received: float) -> Event:
        """Return Done or Failed for a call over the simulated network, its time drawn at random and counted as estimated.

        Without a network it fails at once, uncounted; one whose link ends during the call times out. A recorded failure that is
        the input's fault fails again.
        """
        assert gate.link is not None, "there is one"
        left_s = gate.link.left_s(now)
        if not left_s:
            return Failed(i, Unreachable(NO_NETWORK), now)
        self.estimated["latencies of calls, by the network"] += 1
        took_s = gate.link.exchange_s(sent, received, gate.server_s)
        if took_s > left_s:
            took_s = gate.port.patience_s  # black hole: no reply and no error
            return Failed(i, TimedOut(TIMEOUT.format(took_s)), now + took_s)
        if seen is not None and seen.failure.of_the_input:
            return Failed(i, RecordedError(seen.error, seen.failure), now + took_s)
        return Done(i, Prediction(None, None, None), now + took_s)

    def end(self, outcome: Outcome, tally: Tally) -> None:
        """End the walk: schedule its calls' results at their gates, book their costs in `tally` and spending, and forget them.

        Raises:
            Unknown: the outcome depends on a leg that had not ended in the record; its calls then only free their slots.
        """
        if self._open and any(mark.detail is _OPEN for mark in outcome.log):
            for unfinished in self._calls.values():
                unfinished.gate.schedule(outcome.ended, "dropped", unfinished)
            self._calls.clear()
            raise Unknown(self._open)
        if self._calls:
            for kind, i, time, detail in outcome.log:
                if kind not in {"start", "limit"} and (call := self._calls.get(i)) is not None:
                    self._settle(call, kind, time, detail, tally)
            self._calls.clear()

    def _settle(self, call: Call, kind: Kind, time: float, detail: Any, tally: Tally) -> None:
        """Schedule the result of a call at its gate, and book its costs in the tally; those of an answer in the spending too.

        A call shared by the rows of a batch adds bytes and costs alone.
        """
        usd, joules = call.cost.usd, call.cost.joules
        tally.sent_bytes += call.sent
        if kind in ANSWERED:
            tally.received_bytes += call.received
            usd, joules = usd + call.rest.usd, joules + call.rest.joules
            self._spending.add(call.rest, time)
        tally.usd += usd
        tally.joules += joules
        if call.shared:
            return
        tally.calls += 1
        took_s = time - call.begun
        if kind in ANSWERED:
            call.gate.schedule(time, "answered", call, took_s)
        elif kind == "failed":
            call.gate.schedule(time, "failed", call, (took_s, Failure.of(detail)))
        elif kind == "timeout":
            call.gate.schedule(time, "overdue", call, took_s)
        else:
            call.gate.schedule(time, "dropped", call)


class RecordedError(EdgerouteError):
    """Error of a recorded call.

    Args:
        text: its type and message.
        failure: its code and properties.

    Attributes:
        held: True if the endpoint was not called.
    """

    def __init__(self, text: str, failure: Failure = _NONE) -> None:
        kind, _, message = text.partition(": ")
        super().__init__(message or kind)
        self.code, self.status, self.again = failure
        self.held = failure.held


_OPEN = RecordedError("it had not ended")
