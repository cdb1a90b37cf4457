"""Determines the result of each leg of a replayed request: from its record, the network model, or similar calls."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any, Final, NamedTuple

from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy import INF
from edgeroute.core.spending import Cost, Spending
from edgeroute.core.walk import Done, Event, Failed, Kind, Outcome, Prediction, Start, new
from edgeroute.core.words import Failure, Rejection
from edgeroute.errors import EdgerouteError, Held, TimedOut, Unreachable
from edgeroute.tools.replay.gate import Gate
from edgeroute.tools.replay.records import ANSWERED, Request, Seen, Tally

# Device model: battery and thermal throttling.


class Heat(NamedTuple):
    """One phase of thermal throttling."""

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
"""By name. Typical of devices without a fan under steady load, which often retain half to three quarters of their speed; not
measured on a particular device."""


def heat(course: tuple[Heat, ...], now: float) -> Heat:
    """The phase in force at `now`, seconds after the first request."""
    return course[max(0, bisect_right(course, (now, float("inf"))) - 1)]


class Battery(NamedTuple):
    """The battery at the beginning, and its base load."""

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
        """Charge at `now`, 0..1, after `spent` joules for requests."""
        return max(0.0, (self.joules - spent - self.idle_w * now) / (self.wh * 3600)) if self.wh else 0.0

    def empty_at(self, spent: float, now: float) -> float | None:
        """When it ran empty, seconds after the first request, with `spent` joules for requests; None: not yet."""
        left = self.joules - spent
        if left <= 0:
            return now
        return left / self.idle_w if self.idle_w * now >= left else None


MB: Final = 1e6
SLACK_S: Final = 1e-5
"""Tolerance for rounded times: a leg unfinished at such an instant was unfinished a little later too."""
TIMEOUT = "no reply in {:g} s"
NO_NETWORK = "there is no network"
NOT_RUN = "{} did not run when this was recorded, so its confidence is not known"
NOT_ENDED = "{} had not ended when the recorded request did, so its confidence is not known"
NO_CLASS = "the trace does not say which class {} answered, and the threshold depends on it"
NEVER_ASKED = "the trace has no answer of {}, so how long it takes is not known: give a network"
LONGER = "{} was given up when this was recorded, and no recorded answer took longer"
_NONE: Final = Failure()


class Unknown(Exception):
    """The further course of this request cannot be determined: why."""


class Call:
    """One request sent to an endpoint; it is its own slot there."""

    __slots__ = ("begun", "cost", "gate", "received", "rest", "sent", "shared")

    def __init__(self, gate: Gate, begun: float, sent: float, received: float, cost: Cost, rest: Cost, *, shared: bool) -> None:
        self.gate, self.begun, self.sent, self.received, self.cost, self.rest = gate, begun, sent, received, cost, rest
        self.shared = shared


class Script:
    """Answers the walks of one request after the other.

    Args:
        gates: by the name of the cloud.
        spending: shared spending.
        course: one of `device.THERMAL`.
        random: random numbers.

    Attributes:
        estimated: what was estimated from similar calls, as it was not recorded -> how often.
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
        """Sets the request whose walk begins now."""
        self._request, self._legs, self._open = request, plan.legs, ""
        for call in self._calls.values():  # the course of the previous request could not be determined
            call.gate.rules.leave(call)
        self._calls.clear()

    def __call__(self, start: Start, now: float) -> Event:
        """The event of a leg that is started now.

        Raises:
            Unknown: it cannot be determined.
        """
        i = start.leg
        leg = self._legs[i]
        seen = self._request.legs.get(leg.name)
        return self._edge(i, leg, seen, now) if leg.permit is None else self._cloud(i, leg, seen, now)

    def _edge(self, i: int, leg: Leg, seen: Seen | None, now: float) -> Event:
        if seen is None or seen.away:
            raise Unknown(NOT_RUN.format(leg.name))
        at = now + (seen.took_s * heat(self._course, now).times if self._course else seen.took_s)
        if seen.what in ANSWERED:
            value = self._value(leg, seen) if leg.thresholds else None
            return new(Done, (i, new(Prediction, (value, seen.confidence, None)), at))
        if seen.what == "failed":
            return Failed(i, Told(seen.error, seen.failure), at, fatal=seen.failure.code == "bad_input")
        self._open = NOT_ENDED.format(leg.name)
        return Failed(i, _OPEN, at + SLACK_S)

    def _value(self, leg: Leg, seen: Seen) -> str | None:
        """A value whose per-class threshold is the recorded one; None: the general threshold applies."""
        own = seen.own
        if own is not None and own[1] == leg.label:
            if own[0] == leg.threshold:
                return None
            for value, threshold in leg.thresholds.items():
                if threshold == own[0]:
                    return value
        assert leg.threshold is not None, "a leg with thresholds has one for the rest, too"
        every = (leg.threshold, *leg.thresholds.values())
        sure = seen.confidence
        if sure is not None and not leg.final and not leg.standby and min(every) <= sure and (sure < max(every) or INF in every):
            raise Unknown(NO_CLASS.format(leg.name))
        return None

    def _cloud(self, i: int, leg: Leg, seen: Seen | None, now: float) -> Event:
        gate = self._gates[leg.name]
        if seen is not None and not seen.away:
            seen = None
        if seen is not None and seen.failure.code in {"consent", "redaction", "view"}:
            gate.held += 1
            return Failed(i, Told(seen.error, seen.failure), now)
        known = None if seen is None or seen.held else seen
        sent, received = (
            (gate.past.sent_bytes, gate.past.received_bytes) if known is None else (known.sent_bytes, known.received_bytes)
        )
        rejection = self._enter(i, gate, now, sent, received)
        if rejection is not None:
            gate.held += 1
            return Failed(i, Held(f"{gate.name} was not asked: {rejection.text}", code=rejection.code), now)
        event = self._answer(i, gate, known, now, sent, received)
        if event.at - now > gate.port.patience_s:
            return Failed(i, TimedOut(TIMEOUT.format(gate.port.patience_s)), now + gate.port.patience_s)
        return event

    def _enter(self, i: int, gate: Gate, now: float, sent: float, received: float) -> Rejection | None:
        """Books the call, or returns why it may not be made. The rows of a batch are one call, unless each takes its own."""
        key = self._request.batch, gate.name
        shared = bool(key[0]) and key in self._batches
        own = not shared or gate.port.one_by_one
        cost = gate.rules.cost(sent / MB, int(own))
        call = Call(gate, now, sent, received, cost, gate.rules.cost(received / MB), shared=shared)
        if shared:
            rejection = self._batches[key]
            if rejection is None and own:
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

    def _answer(self, i: int, gate: Gate, known: Seen | None, now: float, sent: float, received: float) -> Event:
        """The event of a call that is sent."""
        if known is None and (sent or received):
            self.estimated["bytes of calls"] += 1
        if gate.link is not None:
            return self._over(i, gate, known, now, sent, received)
        if known is not None and known.what in ANSWERED:
            return Done(i, Prediction(None, known.confidence, None), now + known.took_s)
        if known is not None and known.what == "failed":
            return Failed(i, Told(known.error, known.failure), now + known.took_s)
        away = gate.past.away(now) if known is None else None
        if away is not None:
            self.estimated["failures of calls, as those around them failed"] += 1
            return Failed(i, Told(away.error, away.failure), now + gate.past.failure_s)
        took_s = gate.past.longer(known.took_s + SLACK_S if known is not None else 0.0, self._random.random())
        if took_s is not None:
            self.estimated["latencies of calls, as one that is recorded"] += 1
            return Done(i, Prediction(None, None, None), now + took_s)
        if known is None:
            raise Unknown(NEVER_ASKED.format(gate.name))
        self._open = LONGER.format(gate.name)
        return Failed(i, _OPEN, now + known.took_s + SLACK_S)

    def _over(self, i: int, gate: Gate, known: Seen | None, now: float, sent: float, received: float) -> Event:
        """The event of a call over the simulated network."""
        assert gate.link is not None, "there is one"
        left_s = gate.link.left_s(now)
        if not left_s:
            return Failed(i, Unreachable(NO_NETWORK), now)
        self.estimated["latencies of calls, by the network"] += 1
        took_s = gate.link.exchange_s(sent, received, gate.server_s)
        if took_s > left_s:
            took_s = gate.port.patience_s  # black hole: no reply and no error
            return Failed(i, TimedOut(TIMEOUT.format(took_s)), now + took_s)
        if known is not None and known.failure.of_the_input:
            return Failed(i, Told(known.error, known.failure), now + took_s)
        return Done(i, Prediction(None, None, None), now + took_s)

    def end(self, outcome: Outcome, tally: Tally) -> None:
        """Ends the walk: reports the results to the gates, and books the costs.

        Raises:
            Unknown: it depends on a leg that had not ended in the record.
        """
        if self._open and any(mark.detail is _OPEN for mark in outcome.log):
            for given_up in self._calls.values():
                given_up.gate.dropped(given_up, outcome.ended)
            self._calls.clear()
            raise Unknown(self._open)
        if self._calls:
            for kind, i, at, detail in outcome.log:
                if kind not in {"start", "limit"} and (call := self._calls.get(i)) is not None:
                    self._settle(call, kind, at, detail, tally)
            self._calls.clear()

    def _settle(self, call: Call, kind: Kind, at: float, detail: Any, tally: Tally) -> None:
        usd, joules = call.cost.usd, call.cost.joules
        tally.sent_bytes += call.sent
        if kind in ANSWERED:
            tally.received_bytes += call.received
            usd, joules = usd + call.rest.usd, joules + call.rest.joules
            self._spending.add(call.rest, at)
        tally.usd += usd
        tally.joules += joules
        if call.shared:
            return
        tally.calls += 1
        took_s = at - call.begun
        if kind in ANSWERED:
            call.gate.answered(call, at, took_s)
        elif kind == "failed":
            call.gate.failed(call, at, took_s, Failure.of(detail))
        elif kind == "timeout":
            call.gate.overdue(call, at, took_s)
        else:
            call.gate.dropped(call, at)


class Told(EdgerouteError):
    """A recorded error.

    Args:
        told: its type and message.
        failure: its code and properties.

    Attributes:
        held: the endpoint was not called.
    """

    def __init__(self, told: str, failure: Failure = _NONE) -> None:
        kind, _, text = told.partition(": ")
        super().__init__(text or kind)
        self.code, self.status, self.again = failure
        self.held = failure.held


_OPEN = Told("it had not ended")
