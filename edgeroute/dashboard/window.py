"""Sums over a router's latest requests: by second and by minute, by leg, by reason. Bounded in memory whatever comes."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from typing import Any, TypeVar

from edgeroute.core.codes import UNFIT
from edgeroute.core.why import Took
from edgeroute.dashboard.rows import ANSWERED, SIDES, Row, Run
from edgeroute.record.tally import Tally

T = TypeVar("T")
RECENT = 2000
"""Requests that reasons and latencies are of: the latest."""
SHOWN = 60
"""Requests that are listed."""
BATCHES = 256
"""Batches of which it is remembered which calls have been counted."""
LEGS = 32
"""Legs that are told apart."""
WIDTHS = {"seconds": (1, 120), "minutes": (60, 180)}
"""Series -> seconds of a step, and number of steps."""
COUNTED = (*SIDES, "deferred", "odd")


class _Leg:
    """Of one leg: counts since the beginning, and its latest latencies."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.started = self.answers = self.accepted = self.failed = self.held = self.late = self.cancelled = 0
        self.sent_bytes = self.received_bytes = self.usd = 0.0
        self.took = deque[float](maxlen=RECENT)
        self.breaker = "" if side == "edge" else "closed"
        self.breaker_at = 0.0

    def quantiles(self) -> dict[str, float | None]:
        took = sorted(self.took)
        return {f"{name}_s": took[min(len(took) - 1, int(q * len(took)))] if took else None for name, q in _QUANTILES.items()}


_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Series:
    """Counts by steps of time, of the latest steps.

    Args:
        width_s: of a step, seconds.
        steps: how many are kept.
    """

    def __init__(self, width_s: int, steps: int) -> None:
        self.width_s, self.steps = width_s, steps
        self._counts = OrderedDict[int, Counter[str]]()
        self._took = OrderedDict[int, dict[str, list[float]]]()

    def add(self, one: Row) -> None:
        """Counts a request."""
        step = int(one.at // self.width_s)
        counts = self._counts.get(step)
        if counts is None:
            if self._counts and step <= max(self._counts) - self.steps:
                return  # from before
            counts = self._counts[step] = Counter()
            self._took[step] = {}
            while len(self._counts) > self.steps:
                oldest = min(self._counts)
                del self._counts[oldest], self._took[oldest]
        counts[one.side] += 1
        counts["deferred"] += one.deferred
        counts["odd"] += one.odd
        took = self._took[step]
        for run in one.runs:
            if run.what in ANSWERED:
                mine = took.setdefault(run.name, [])
                if len(mine) < RECENT and len(took) <= LEGS:
                    mine.append(run.took_s)

    def shown(self, now: float) -> dict[str, Any]:
        """The steps up to that instant, the oldest first; of each leg its median latency, seconds, None where it has none."""
        last = int(now // self.width_s)
        for step in [step for step in self._counts if step > last + 1]:  # the clock was set back
            del self._counts[step], self._took[step]
        steps = range(last - self.steps + 1, last + 1)
        none = Counter[str]()
        legs = sorted({name for took in self._took.values() for name in took})[:LEGS]
        return {
            "width_s": self.width_s,
            "end": (last + 1) * self.width_s,
            **{name: [self._counts.get(step, none)[name] for step in steps] for name in COUNTED},
            "p50_s": {name: [_median(self._took.get(step, {}).get(name)) for step in steps] for name in legs},
        }


def _part(record: Mapping[str, Any], name: str, other: T) -> T:
    """A part of a record; `other` if that has none of its type."""
    found = record.get(name)
    return found if isinstance(found, type(other)) else other


def _median(values: list[float] | None) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


class Window:
    """The sums. Not synchronised: threads that share it need a lock."""

    def __init__(self) -> None:
        self.requests = self.deferred = self.degraded = 0
        self.answered = Counter[str]()
        self.tally = Tally()
        """The same counts as metrics have in the router's own process."""
        self.latest: Row | None = None
        self.recent, self.odd = deque[Row](maxlen=SHOWN), deque[Row](maxlen=SHOWN)
        self.series = {name: Series(*width) for name, width in WIDTHS.items()}
        self._kinds, self._sides = deque[tuple[str, str]](), Counter[str]()
        self._reasons = Counter[tuple[str, str]]()
        self._deferred, self._took = deque[bool](maxlen=RECENT), deque[float](maxlen=RECENT)
        self._legs: dict[str, _Leg] = {}
        self._batches = OrderedDict[tuple[str, str], None]()

    def add(self, one: Row) -> None:
        """Counts a request."""
        self.latest = one
        self.requests += 1
        self.deferred += one.deferred
        self.degraded += one.degraded
        self.answered[one.side] += 1
        self._deferred.append(one.deferred)
        self._took.append(one.latency_s)
        key = one.side, one.kind
        self._kinds.append(key)
        self._reasons[key] += 1
        if len(self._kinds) > RECENT:
            old = self._kinds.popleft()
            self._reasons[old] -= 1
            if not self._reasons[old]:
                del self._reasons[old]
        self.recent.append(one)
        if one.odd:
            self.odd.append(one)
        for series in self.series.values():
            series.add(one)
        batch = one.batch
        took = [Took(run.name, "edge" if run.side == "edge" else "cloud", run.took_s) for run in one.runs if run.what in ANSWERED]
        self.tally.count(one.counted, one.latency_s, () if batch else tuple(took))
        for run in one.runs:
            self._ran(run, one.at, batch)

    def _ran(self, run: Run, at: float, batch: str) -> None:
        leg = self._legs.get(run.name)
        if leg is None:
            if len(self._legs) >= LEGS:
                return
            leg = self._legs[run.name] = _Leg(run.side)
        leg.started += 1
        if run.what in ANSWERED:
            leg.answers += 1
            leg.accepted += run.what == "accepted"
            leg.took.append(run.took_s)
            self._breaker(leg, "closed", at)
        elif run.what == "held":
            leg.held += 1
            if run.code == "breaker":
                self._breaker(leg, "open", at)
        else:
            leg.failed += run.what == "failed" and run.code not in UNFIT  # which is no fault of it, as in `stats()`
            leg.late += run.what == "timeout"
            leg.cancelled += run.what == "cancelled"
        if batch:  # the rows of a batch share a call, whose costs the record of each has
            if (batch, run.name) in self._batches:
                return
            self._batches[batch, run.name] = None
            if len(self._batches) > BATCHES:
                self._batches.popitem(last=False)
        if run.what == "held":
            self.tally.limit_hit(run.name, run.code)
        leg.sent_bytes += run.sent_bytes
        leg.received_bytes += run.received_bytes
        leg.usd += run.usd

    @staticmethod
    def _breaker(leg: _Leg, state: str, at: float) -> None:
        if leg.side == "cloud" and leg.breaker != state:
            leg.breaker, leg.breaker_at = state, at

    def shown(self, now: float) -> dict[str, Any]:
        """Everything, as a page has it. now: seconds since 1970."""
        took = sorted(self._took)
        legs = [
            {
                "name": name, "side": leg.side, "started": leg.started, "answers": leg.answers, "accepted": leg.accepted,
                "failed": leg.failed, "held": leg.held, "late": leg.late, "cancelled": leg.cancelled,
                "sent_bytes": leg.sent_bytes, "received_bytes": leg.received_bytes,
                "usd": leg.usd, "breaker": leg.breaker, "breaker_at": leg.breaker_at, **leg.quantiles(),
            }
            for name, leg in self._legs.items()
        ]  # fmt: skip
        return {
            "requests": self.requests, "deferred": self.deferred, "degraded": self.degraded,
            "answered": {side: self.answered[side] for side in SIDES},
            "window": len(self._deferred),
            "deferral_rate": sum(self._deferred) / len(self._deferred) if self._deferred else None,
            "p50_s": took[len(took) // 2] if took else None,
            "p99_s": took[min(len(took) - 1, int(0.99 * len(took)))] if took else None,
            "legs": legs,
            "reasons": [{"side": side, "text": text, "count": n} for (side, text), n in self._reasons.most_common(12)],
            "recent": [one.shown() for one in reversed(self.recent)],
            "odd": [one.shown() for one in reversed(self.odd)],
            "series": {name: series.shown(now) for name, series in self.series.items()},
            "rules": _part(_part({} if self.latest is None else self.latest.record, "facts", {}), "rules", []),
            "reading": _part({} if self.latest is None else self.latest.record, "reading", {}),
            "latest_at": None if self.latest is None else self.latest.at,
        }  # fmt: skip
