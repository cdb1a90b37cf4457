"""Reader of traces (`read`, `collect`): recorded requests, totals (`Numbers`, `Tally`), statistics of endpoints (`Past`).

A leg is one target's part of a request: a run of an edge, or a call of a cloud.
"""

from __future__ import annotations

import gc
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from itertools import pairwise
from math import exp, isfinite, log
from numbers import Real
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import StatisticsError, linear_regression, median
from typing import Any, Final, NamedTuple, get_args

from edgeroute.core.device_rules import Reading
from edgeroute.core.error_codes_and_texts import Failure
from edgeroute.core.policy_egress_and_options import INF, MODES, Mode
from edgeroute.core.reason_text_and_trace_record import VERSION
from edgeroute.core.walk import Kind, Malformed, new
from edgeroute.errors import BadInput
from edgeroute.router.offline_queue import BEING_STORED, WAITING
from edgeroute.tools.replay.read_and_pack_traces import TraceRecords

# Validated numbers of a record, and counters shared by the recorded and the replayed run.

MOST: Final = 1e300  # bound on the size of any number in a record
_PLAIN: Final = frozenset({int, float, type(None)})
_INFINITE: Final = {"inf": INF, "-inf": -INF}  # infinite confidences as a trace writes them


class Numbers(NamedTuple):
    """Totals of a run. A request is answered by the edge, the cloud or the cache, or not at all.

    Attributes:
        degraded: requests answered, but not as the policy requires.
        queued: degraded and unanswered requests stored in the outbox.
        deferred: requests that needed the cloud, whether it was called or held.
        calls: requests sent to the cloud; the rows of a batch share one.
        held: requests rejected for a local reason: breaker, limits, consent.
        deadline_misses: requests with a target that had not answered at the deadline.
        edge_runs: runs of edges that started.
        sent_bytes: bytes of the calls' bodies.
        usd: cost of the calls, US dollars.
        joules: energy of the device: for calls, by the endpoints' terms; and for runs of the edge, as far as known.
        p50_s, p90_s, p99_s: quantiles of the time of a request, seconds; None: there is none.
    """

    requests: int
    edge: int
    cloud: int
    cache: int
    unanswered: int
    degraded: int
    queued: int
    deferred: int
    calls: int
    held: int
    deadline_misses: int
    edge_runs: int
    sent_bytes: float
    received_bytes: float
    usd: float
    joules: float
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None

    @property
    def deferral_rate(self) -> float:
        """Share of requests that were deferred; 0 without any."""
        return self.deferred / self.requests if self.requests else 0.0


class Tally:
    """Accumulator of `Numbers`."""

    __slots__ = (
        "cache", "calls", "cloud", "deadline_misses", "deferred", "degraded", "edge", "edge_runs", "held", "joules", "latencies",
        "queued", "received_bytes", "requests", "run_joules", "sent_bytes", "unanswered", "usd",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.edge = self.cloud = self.cache = self.unanswered = self.degraded = self.queued = 0
        self.deferred = self.calls = self.held = self.deadline_misses = self.edge_runs = 0
        self.sent_bytes = self.received_bytes = self.usd = self.joules = self.run_joules = 0.0
        self.latencies = array("d")

    def numbers(self, edge_joules: float | None = None) -> Numbers:
        """Return the totals and quantiles so far; `edge_joules` is the energy per run of an edge, None: as recorded."""
        ordered = sorted(self.latencies)
        totals = {name: getattr(self, name) for name in self.__slots__ if name not in {"latencies", "run_joules"}}
        totals["joules"] += self.run_joules if edge_joules is None else self.edge_runs * edge_joules
        p50_s, p90_s, p99_s = (at_quantile(ordered, q) for q in (0.5, 0.9, 0.99))
        return Numbers(**totals, p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


def at_quantile(ordered: Sequence[float], q: float) -> float | None:
    """Return the value at a quantile, 0..1, of sorted values: one of them, the upper of two; None without any."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def checked_number(number: Any) -> Any:
    """Return a finite number or None unchanged.

    Raises:
        TypeError: it is neither.
        ValueError: it is infinite, NaN or too large.
    """
    if number.__class__ not in _PLAIN and not isinstance(number, Real):  # the first test is quick; numpy has numbers, too
        raise TypeError(f"expected a number, found {type(number).__name__}")
    if number is not None and not -MOST < number < MOST:
        raise ValueError("expected a finite number")
    return number


def confidence(value: Any) -> Any:
    """Return a recorded confidence: a finite number or None as it is, the texts "inf" and "-inf" as infinities.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN or infinite as a number.
    """
    return _INFINITE[value] if isinstance(value, str) and value in _INFINITE else checked_number(value)


ANSWERED: Final = frozenset({"accepted", "below", "kept"})
# Tolerance for a record's rounded `at`: a record that seems to begin within it before the previous one's end began after it.
ROUNDED_S: Final = 2e-3
STEP_S: Final = 1e-6
BEGUN: Final = attrgetter("begun")
_WELL: Final = Failure()
KINDS: Final = frozenset(get_args(Kind))  # kinds of events
# Keys of an event whose values are finite numbers.
COSTS: Final = "sent_bytes", "received_bytes", "usd", "joules"
NUMBERS: Final = frozenset({"at_s", *COSTS})
BARE: Final = 3  # number of keys of an event that has a time, a leg and a kind alone
_WRONG: Final = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


class Seen(NamedTuple):
    """Recorded result of one leg."""

    what: str  # accepted, below or kept: it answered; failed; cancelled, timeout: it was stopped after `took_s`
    took_s: float
    confidence: float | None
    error: str  # error type and message, for people; empty unless it failed
    away: bool  # True for a cloud
    sent_bytes: float = 0.0
    received_bytes: float = 0.0
    usd: float = 0.0
    joules: float = 0.0  # energy; 0 for an edge's run of unknown energy
    own: tuple[float, str] | None = None  # threshold of this answer if it is not the same for all, and its label
    failure: Failure = Failure()  # the error's code and properties, for rules

    @property
    def held(self) -> bool:
        """True if the endpoint was not called."""
        return self.failure.held


class Request(NamedTuple):
    """Recorded request."""

    id: str
    begun: float  # seconds after the first request
    latency_s: float
    mode: Mode | None
    deadline_s: float
    data_class: str | None
    by: str | None  # target that answered; None: the cache, or none
    accepted: bool
    batch: str  # id shared by the rows of its batch; empty: not in a batch
    legs: Mapping[str, Seen]  # target name -> recorded result


NEAR: Final = 50  # number of recorded calls, nearest in confidence, of which one has the latency of a call that is not recorded
# Logarithm of the greatest factor by which a latency is extended to a confidence beyond the recorded ones.
FARTHEST: Final = log(4)


def edge_confidence(legs: Mapping[str, Seen]) -> float | None:
    """Return the confidence of the first edge that has a finite one; None: there is none."""
    confidences = (leg.confidence for leg in legs.values() if not leg.away and leg.confidence is not None)
    return next(filter(isfinite, confidences), None)


class Past:
    """Statistics of one endpoint over a trace.

    Attributes:
        latencies: latencies of its answers, seconds, sorted.
        sent_bytes: size of a typical request; 0 while unknown.
        received_bytes: size of a typical reply; 0 while unknown.
        back: times of its recoveries, as far as the records show them.
    """

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.sent_bytes = self.received_bytes = 0.0
        self.back: list[float] = []
        self._failures: list[float] = []
        self._sizes: tuple[list[float], list[float]] = [], []
        self._results: list[tuple[float, Seen | None]] = []  # end of each call, and its failure if it was the endpoint's fault
        self._given: list[tuple[float, float]] = []  # (confidence of the edge, latency) of each answer, sorted
        self._slope = 0.0

    def add(self, seen: Seen, time: float, sure: float | None = None) -> None:
        """Add the result of a call that ended at that time: latency and bytes of an answer, or a failure, for finding outages.

        A failure because of the input is no sign of an outage; of holds (calls not made), those by the breaker or Retry-After
        count. Calls that were stopped are ignored. `settle` has to follow.

        sure: confidence of the edge.
        """
        if seen.what in ANSWERED:
            self.latencies.append(seen.took_s)
            if sure is not None and seen.took_s > 0:
                self._given.append((sure, seen.took_s))
            self._sizes[0].append(seen.sent_bytes)
            self._sizes[1].append(seen.received_bytes)
            self._results.append((time, None))
        elif seen.what == "failed" and (not seen.held or seen.failure.code in {"breaker", "retry_after"}):
            self._results.append((time, None if seen.failure.of_the_input else seen))
            if not seen.held:
                self._failures.append(seen.took_s)

    def settle(self) -> None:
        """Sort the results, and compute typical sizes, recoveries, and latency by confidence; call once all are added."""
        self.latencies.sort()
        self._given.sort()
        with suppress(StatisticsError):  # too few, or all of one confidence
            self._slope = linear_regression([sure for sure, _ in self._given], [log(took_s) for _, took_s in self._given]).slope
        self.sent_bytes, self.received_bytes = (median(sizes) if sizes else 0.0 for sizes in self._sizes)
        self._results.sort(key=lambda result: (result[0], result[1] is not None))
        self.back = [time + STEP_S / 10 for (time, fails), (_, next_fails) in pairwise(self._results) if fails and not next_fails]

    def away(self, time: float) -> Seen | None:
        """Return the failed call that shows an outage at that time: the last one before, if the next failed too or there is none.

        None: the endpoint was up, or there is no call before.
        """
        i = bisect_right(self._results, time, key=itemgetter(0))
        if not i or self._results[i - 1][1] is None:
            return None
        return self._results[i - 1][1] if i == len(self._results) or self._results[i][1] else None

    @property
    def failure_s(self) -> float:
        """Typical time to a failure of a call that was made, seconds; 0 without any."""
        return median(self._failures) if self._failures else 0.0

    def longer(self, than_s: float, share: float, sure: float | None) -> float | None:
        """Return the latency at the quantile `share` (0..1) of those recorded above `than_s`; None if there is none.

        With the edge's confidence `sure`: that of one of the `NEAR` calls nearest in confidence, extended to it by a regression,
        by a factor of four at most.
        """
        if sure is not None:
            first = bisect_left(self._given, (sure,)) - NEAR // 2
            first = max(0, min(first, len(self._given) - NEAR))
            near = self._given[first : first + NEAR]
            if than_s > 0:  # else all are
                near = [pair for pair in near if pair[1] > than_s]
            if near:
                known, took_s = near[int(share * len(near))]
                return max(than_s, took_s * exp(max(-FARTHEST, min(FARTHEST, self._slope * (sure - known)))))
        first = bisect_left(self.latencies, than_s) if than_s else 0
        return self.latencies[first + int(share * (len(self.latencies) - first))] if first < len(self.latencies) else None


class Recording(NamedTuple):
    """Trace in memory, with its totals.

    Attributes:
        requests: sorted by start.
        endpoints: endpoint's name -> its recorded calls.
        recorded: totals of the recorded run.
        skipped: incomplete or invalid lines.
        untimed: records without a time, which were skipped.
        readings: readings of the device's sensors, with their times, sorted.
    """

    requests: list[Request]
    endpoints: Mapping[str, Past]
    recorded: Tally
    skipped: int
    untimed: int
    readings: list[tuple[float, Reading]]


def read(path: str | Path) -> Recording:
    """Read a trace, including its rotated files, into memory; lines that are no record are counted.

    Garbage collection is off meanwhile.

    Raises:
        BadInput: not a trace, an unsupported version, or empty.
        StoreError: it cannot be opened.
        RuntimeMissing: it is in Parquet, and pyarrow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path}: is a folder: expected the file of a trace")
    if not any(path.parent.glob(f"{escape(path.name)}*")):
        raise BadInput(f"{path}: there is no such file")
    reading = TraceRecords(path)
    with without_gc():
        return collect(reading, str(path), lambda: reading.skipped)


@contextmanager
def without_gc() -> Iterator[None]:
    """Disable garbage collection in the `with` block, if it is on: with many thousands of live requests it takes long."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def collect(records: Iterable[Mapping[str, Any]], name: str = "the trace", skipped: Any = int) -> Recording:
    """Convert records in memory, as a router passes them to a `trace` function, to a recording.

    A record without a time is only counted; any other invalid one raises, with its line.

    Args:
        records: records sorted by end, oldest first.
        name: name of the trace in messages.
        skipped: returns the number of invalid lines so far; that of the end is the recording's.

    Raises:
        BadInput: not a trace, an unsupported version, or empty.
    """
    reader = _Reader()
    untimed = 0
    for number, record in enumerate(records, 1):
        if record.get("version") != VERSION:
            has = f"version {record['version']!r}" if "version" in record else "none: it is no trace"
            raise BadInput(f"{name}: line {number + skipped()}: expected a record of version {VERSION}, found {has}")
        if "at" not in record:
            untimed += 1
            continue
        try:
            reader.take(record)
        except _WRONG as e:
            why = f"expected a trace's record, found an incomplete one ({type(e).__name__}: {e})"
            raise BadInput(f"{name}: line {number + skipped()}: {why}") from e
    if not reader.requests:
        why = (
            f"{skipped()} lines that are no record" if skipped() else f"{untimed} records without `at`" if untimed else "nothing"
        )
        raise BadInput(f"{name}: expected records of a trace, found {why}")
    try:
        return reader.trace()._replace(skipped=skipped(), untimed=untimed)
    except _WRONG as e:  # numbers that are texts, and the like
        raise BadInput(f"{name}: expected a trace's records, found some that do not fit together ({e!r})") from e


class _Reader:
    """Accumulator of records, sorted by end."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._tally = Tally()
        self._rows: dict[tuple[str, str], int] = {}  # (batch, target) -> number of its rows that called it
        self._first: float | None = None
        self._readings: list[tuple[float, Reading]] = []
        self._sensed: Mapping[str, Any] | None = None  # values of the latest reading as its record has them
        self._latest = -INF

    def take(self, record: Mapping[str, Any]) -> None:
        """Add one record: its request with the legs, totals, costs and sensor reading. Times count from the first record's start.

        A record without events was answered by the cache. One that begins right at the latest end is moved after it, as times are
        rounded. An invalid record raises one of `_WRONG`, with part of it added.
        """
        tally = self._tally
        identity, latency_s, by = record["id"], record["latency_s"], record["answered_by"]
        begun = checked_number(record["at"]) - checked_number(latency_s)
        if self._first is None:
            self._first = begun
        begun -= self._first
        batch = identity.rpartition(".")[0] if "." in identity else ""
        latest = self._latest
        if latest - ROUNDED_S <= begun < latest + STEP_S and not batch:
            begun = latest + STEP_S
        self._sense(record, begun)
        if begun + latency_s > latest:
            self._latest = begun + latency_s
        tally.requests += 1
        tally.latencies.append(latency_s)
        if "events" not in record:
            tally.cache += 1
            self.requests.append(Request(identity, begun, latency_s, None, INF, None, None, True, "", {}))
            return
        labels = {leg["leg"]: (leg["side"] == "cloud", leg["label"]) for leg in record["plan"]}
        legs: dict[str, Seen] = {}
        started: dict[str, float] = {}
        decided = set[str]()
        own_threshold = None
        deferred = late = False
        for event in record["events"]:
            if len(event) == BARE or (len(event) == BARE + 1 and "confidence" in event):  # most
                checked_number(event["at_s"])
            else:
                for key in NUMBERS & event.keys():
                    checked_number(event[key])
            what, name = event["what"], event["leg"]
            if what.__class__ is not str or what not in KINDS:
                raise ValueError(f"there is no event {what!r:.40}")
            away, label = labels[name]
            if what == "start":
                started[name] = event["at_s"]
                if away:
                    deferred = True
                else:
                    tally.edge_runs += 1
                continue
            if what == "limit":
                own_threshold = float(event["threshold"]), label
                continue
            if what == "decided":
                decided.add(name)
                continue
            if what == "cancelled" and name in decided and name in legs:  # its confidence is known, and was below its threshold
                if not away:
                    run_joules = max(0.0, event.get("joules") or 0.0)
                    tally.run_joules += run_joules - legs[name].joules
                    legs[name] = legs[name]._replace(joules=run_joules)
                continue
            took_s, error = event["at_s"] - started[name], event.get("error", "")
            failed_check = event.get("check")
            leg_confidence = event.get("confidence")
            if failed_check:
                leg_confidence = Malformed(str(failed_check), "recorded")
            elif leg_confidence.__class__ is not float or not -MOST < leg_confidence < MOST:
                leg_confidence = confidence(leg_confidence)
            failure = failure_of(event) if error else _WELL
            if away:
                costs = [event.get(key, 0) for key in COSTS]
                if None in costs:
                    raise TypeError(f"expected a number as {COSTS[costs.index(None)]}, found None")
                legs[name] = seen = new(Seen, (what, took_s, leg_confidence, error, True, *costs, own_threshold, failure))
                self._cost(seen, (batch, name))
            else:
                joules = max(0.0, event.get("joules") or 0.0)
                before = legs[name].joules if name in legs else 0.0  # up to the decision within the answer
                legs[name] = new(Seen, (what, took_s, leg_confidence, error, False, 0, 0, 0.0, joules, own_threshold, failure))
                if joules and self._is_counted(batch, name):
                    tally.run_joules += joules - before
            late, own_threshold = late or what == "timeout", None
        accepted = record["accepted"] or record.get("reason_code") == "left"  # the part shown by then was as the policy wants
        deadline_s, data_class = record["deadline_s"], record["data_class"]
        if record["mode"] not in MODES or not (data_class is None or isinstance(data_class, str)):
            raise ValueError("invalid mode or data class")
        checked_number(deadline_s)
        if by is None:
            tally.unanswered += 1
        else:
            if labels[by][0]:
                tally.cloud += 1
            else:
                tally.edge += 1
            tally.degraded += not accepted
        tally.deferred += deferred
        tally.deadline_misses += late
        tally.queued += record.get("note") in {WAITING, BEING_STORED}
        fields = (
            identity, begun, latency_s, record["mode"], INF if deadline_s is None else deadline_s, data_class, by,
            accepted, batch, legs,
        )  # fmt: skip
        self.requests.append(new(Request, fields))

    def _sense(self, record: Mapping[str, Any], begun: float) -> None:
        """Append the record's sensor reading at `begun` minus its age; a changed one not before the end of the latest record.

        An equal one is appended if it is newer. A record without a reading is ignored.
        """
        sensors = record.get("reading")
        if not sensors:
            return
        values = dict(sensors)
        age_s = checked_number(values.pop("age_s", 0.0))
        if values == self._sensed:  # most
            reading = self._readings[-1][1]
        else:
            known = {name: checked_number(values[name]) for name in Reading._fields if values.get(name) is not None}
            if not known:
                return
            reading, self._sensed = Reading(**known), values
        time, last = begun - age_s, self._readings[-1] if self._readings else (-INF, None)
        if reading != last[1]:
            time = max(time, self._latest)
            self._readings.append((time if age_s < 0 else min(time, begun), reading))
        elif time > last[0] + ROUNDED_S:
            self._readings.append((time, reading))

    def _cost(self, seen: Seen, key: tuple[str, str]) -> None:
        """Add a call's bytes and costs to the totals, or count a hold, a call not made.

        A batch's call once, for its first row.
        """
        if seen.held:
            self._tally.held += 1
            return
        if not self._is_counted(*key):
            return
        self._tally.calls += 1
        self._tally.sent_bytes += seen.sent_bytes
        self._tally.received_bytes += seen.received_bytes
        self._tally.usd += seen.usd
        self._tally.joules += seen.joules

    def _is_counted(self, batch: str, name: str) -> bool:
        """Count a row of a leg's batch, and return True if its costs count: for the first row only, as rows share them."""
        if not batch:
            return True
        self._rows[batch, name] = self._rows.get((batch, name), 0) + 1
        return self._rows[batch, name] == 1

    def trace(self) -> Recording:
        """Return the finished recording: sorted by start, times from the first request on, batches' costs shared by rows."""
        requests = self.requests
        if self._rows:
            requests = [_with_shared_costs(request, self._rows) if request.batch else request for request in requests]
        requests.sort(key=BEGUN)
        if origin := requests[0].begun:  # another request than the first to end began first
            requests = [request._replace(begun=request.begun - origin) for request in requests]
        readings = sorted(((time - origin, reading) for time, reading in self._readings), key=itemgetter(0))
        endpoints: dict[str, Past] = {}
        for request in requests:
            for leg, seen in request.legs.items():
                if seen.away:
                    sure = edge_confidence(request.legs)
                    endpoints.setdefault(leg, Past()).add(seen, request.begun + request.latency_s, sure)
        for past in endpoints.values():
            past.settle()
        return Recording(requests, endpoints, self._tally, 0, 0, readings)


def failure_of(event: Mapping[str, Any]) -> Failure:
    """Return the code, the status and the advice to retry of a recorded failure."""
    return Failure(event.get("code", ""), event.get("status"), bool(event.get("again")))


def _with_shared_costs(request: Request, rows: Mapping[tuple[str, str], int]) -> Request:
    """Return a copy of a batch's request with its share of each call's bytes and costs: each row's record has the total."""
    legs = {}
    for name, seen in request.legs.items():
        n = rows.get((request.batch, name), 1)
        legs[name] = seen._replace(
            sent_bytes=seen.sent_bytes / n, received_bytes=seen.received_bytes / n, usd=seen.usd / n, joules=seen.joules / n
        )
    return request._replace(legs=legs)
