"""Result of each leg of a replayed request: from its record, the network model, or similar calls; battery and heat models."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any, Final, NamedTuple

from edgeroute.core.error_codes import Failure, Rejection
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.routing_policy import INF
from edgeroute.core.usage_limits import Cost, Spending
from edgeroute.core.walk import Done, Event, Failed, Kind, Outcome, Prediction, Start, new
from edgeroute.errors import EdgerouteError, Held, TimedOut, Unreachable
from edgeroute.tools.replay.network_and_admission import Gate
from edgeroute.tools.replay.trace_reader import ANSWERED, Request, Seen, Tally, edge_confidence

# Device model: battery and thermal throttling.


class Heat(NamedTuple):
    """Phase of thermal throttling."""

    after_s: float
    """Start of the phase, seconds after the first request."""
    times: float
    """Factor by which the edge's run time grows."""
    celsius: float


THERMAL: Final[dict[str, tuple[Heat, ...]]] = {
    "cool": (Heat(0.0, 1.0, 40.0),),
    "warm": (Heat(0.0, 1.0, 45.0), Heat(300.0, 1.2, 65.0)),
    "hot": (Heat(0.0, 1.0, 50.0), Heat(120.0, 1.3, 75.0), Heat(600.0, 1.8, 85.0)),
}
"""Name -> phases. Typical of devices without a fan under steady load, which often retain half to three quarters of their speed;
not measured on a particular device."""


def heat(course: tuple[Heat, ...], now: float) -> Heat:
    """Return the phase in force at `now`, seconds after the first request."""
    return course[max(0, bisect_right(course, (now, float("inf"))) - 1)]


class Battery(NamedTuple):
    """Battery at the beginning, and its base load."""

    level: float
    """Charge at the first request, 0..1."""
    wh: float = 10.0
    """Capacity, watt hours."""
    idle_w: float = 0.0
    """Base load, watts."""

    @property
    def joules(self) -> float:
        """Energy at the first request, joules."""
        return self.level * self.wh * 3600

    def left(self, spent: float, now: float) -> float:
        """Return the charge at `now`, 0..1, after `spent` joules for requests; 0 without a capacity."""
        return max(0.0, (self.joules - spent - self.idle_w * now) / (self.wh * 3600)) if self.wh else 0.0

    def empty_at(self, spent: float, now: float) -> float | None:
        """Return when the battery ran empty, seconds after the first request, with `spent` joules for requests; None: not yet."""
        left = self.joules - spent
        if left <= 0:
            return now
        return left / self.idle_w if self.idle_w * now >= left else None


MB: Final = 1e6
SLACK_S: Final = 1e-5
"""Tolerance for rounded times: a leg unfinished at a time was unfinished a little later, too."""
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
    """Source of the events for the walk of one request after the other.

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
        """Set the request whose walk begins now; end the calls of one whose walk was not determined."""
        self._request, self._legs, self._open = request, plan.legs, ""
        for call in self._calls.values():  # the course of the previous request could not be determined
            call.gate.rules.leave(call)
        self._calls.clear()

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
        """Return a value whose per-class threshold is the recorded one; None: the general threshold applies.

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
        if leg.final or leg.standby or sure is None or sure < min(levels) or (sure >= max(levels) and INF not in levels):
            return None
        raise Unknown(NO_CLASS.format(leg.name))

    def _cloud(self, i: int, leg: Leg, seen: Seen | None, now: float) -> Event:
        """Return Done or Failed for a cloud: withheld as recorded, rejected by its gate, called, or late for its timeout.

        Books a call that is sent, and stores it for `end`.
        """
        gate = self._gates[leg.name]
        if seen is not None and not seen.away:
            seen = None
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
        """Book the call, store it for `end` and return None, or return why it is rejected.

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
        """Return Done or Failed for a call that is sent: as recorded, or estimated (counted), at random from longer latencies.

        If nothing longer is recorded, it fails after the recorded time, which `_open` notes: `end` then raises `Unknown`.

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

        Without a network it fails at once, and one that is lost during the call means a timeout.
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
        """End the walk: report the results to the gates, and book the costs.

        Raises:
            Unknown: it depends on a leg that had not ended in the record.
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
