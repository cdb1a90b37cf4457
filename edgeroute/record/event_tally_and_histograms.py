"""Counts of requests, targets and attempts, with histograms of durations, for metrics and dashboards: the instrument `Tally`."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple, TypeVar

from edgeroute.core.error_codes_and_texts import Failure
from edgeroute.core.reason_text_and_trace_record import CODES, Took, error_code
from edgeroute.core.spending_limits import Tokens
from edgeroute.core.walk import new
from edgeroute.observe.stats_and_status_types import Status
from edgeroute.record.instrument_interface import AttemptEnded, Instrument, RequestEnded
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.signal_safe_locks import SafeLock

# Upper bounds of the histograms' buckets, seconds.
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOGETHER = 64  # number of events that are counted together, off the path of most calls
WAITING = 1 << 16  # maximum events of a sort that wait to be counted while a scrape reads; of more the oldest are dropped
MOST = 1000  # maximum kinds of requests, and endpoints, that are distinguished; a further one is counted under the target `other`
OTHER = "other"
K = TypeVar("K")


class Histogram:
    """Counts of durations by bucket."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """Return (upper bound, number of durations up to it) for each bucket; the last bound is +Inf."""
        return [*zip((*map(repr, BOUNDS_S), "+Inf"), accumulate(self.counts), strict=True)]


class Kind(NamedTuple):
    """Kind of request, under which it is counted."""

    source: str  # source of the answer; `none`: there was an error instead
    leg: str
    reason: str  # one of `edgeroute.core.reason_text_and_trace_record.CODES`
    degraded: bool


class Tallied(NamedTuple):
    """Counts so far."""

    requests: dict[Kind, int]
    sources: dict[str, Histogram]  # source -> latencies of its answers
    legs: dict[tuple[str, str], Histogram]  # (target, side) -> durations of its answers, without those of batches
    attempts: dict[tuple[str, str], int]  # (endpoint, result: ok or an error's code) -> number of attempts
    endpoints: dict[str, Histogram]  # endpoint -> durations of its attempts
    tokens: dict[tuple[str, str], int]  # (endpoint, input or output) -> tokens that it counted
    held: dict[tuple[str, str], int]  # (endpoint, code of a limit) -> number of calls that were not made
    events: dict[str, int]  # event of the outbox -> its number; `alarm`: alarms of drift


class Tally(ForkSafe, Instrument):
    """Instrument that counts a router's events, in bounded memory. Takes some microseconds of a call, which waits for no lock.

    Events are queued, and a call that finds `TOGETHER` of a sort counts all. Inputs, values and texts are not read.
    """

    _lock = per_process(SafeLock)  # reentrant: a signal handler may call in between

    def __init__(self) -> None:
        self._new = deque[tuple[Kind, float, tuple[Took, ...]]](maxlen=WAITING)
        self._tried = deque[tuple[str, str, float, Tokens | None]](maxlen=WAITING)
        self._limits = deque[tuple[str, str]](maxlen=WAITING)
        self._happened = deque[str](maxlen=WAITING)
        self._names = set[str]()
        self._requests: Counter[Kind] = Counter()
        self._sources: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._legs: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._endpoints: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._held: Counter[tuple[str, str]] = Counter()
        self._events: Counter[str] = Counter()
        # Returns the router's status; None: there is none now.
        self.status: Callable[[], Status | None] = _unknown

    def opened(self, status: Callable[[], Status | None]) -> None:
        """Store the function that returns the router's status."""
        self.status = status

    def request_ended(self, ended: RequestEnded) -> None:
        """Queue the request for counting; with `TOGETHER` in the queue all are counted, unless another thread is at it.

        Requests without an answer count by their error's code, without a duration; targets' times of a batch are left out.
        """
        answer = ended.answer
        if answer is None:
            self.count(Kind("none", "", error_code(ended.error), False), 0.0, ())
        else:
            kind = new(Kind, (answer.source, answer.leg, answer.reason_code, answer.degraded))
            self.count(kind, answer.latency_s, () if ended.batch else answer.took)

    def count(self, kind: Kind, latency_s: float, legs: tuple[Took, ...]) -> None:
        """Queue a recorded request; now and then count all queued. `legs`: times of targets that answered, none of a batch."""
        self._queue(self._new, (kind, latency_s, legs))

    def _count_queued(self) -> None:
        """Count the queued events, unless another thread counts or reads: then they wait."""
        if self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()

    def _add_up(self) -> None:
        """Count the queued requests, attempts, limits and events, and empty the queues. The caller holds the lock."""
        self._add_requests()
        for target, code, took_s, tokens in drain(self._tried):
            name = self._endpoint(target)
            self._attempts[name, code] += 1
            self._endpoints[name].add(took_s)
            if tokens is not None:
                self._tokens[name, "input"] += tokens.prompt
                self._tokens[name, "output"] += tokens.answer
        for target, code in drain(self._limits):
            self._held[self._endpoint(target), code] += 1
        for what in drain(self._happened):
            self._events[what] += 1

    def _add_requests(self) -> None:
        """Count the queued requests, with the durations of answers and targets. The caller holds the lock.

        Unknown reasons of a new kind count as `error`, too many targets as `other`.
        """
        requests = self._requests
        for recorded, latency_s, legs in drain(self._new):
            kind = recorded
            if kind not in requests:
                kind = Kind(kind.source, self._leg(kind.leg), kind.reason if kind.reason in CODES else "error", kind.degraded)
            requests[kind] += 1
            if kind.source != "none":
                self._sources[kind.source].add(latency_s)
            for leg, side, seconds in legs:
                self._legs[(leg, side) if (leg, side) in self._legs else (self._leg(leg), side)].add(seconds)

    def _leg(self, name: str) -> str:
        """Return the target's name, or `other` if there are too many: a policy may be reloaded with others again and again."""
        return name if len(self._requests) < MOST and len(self._legs) < MOST else OTHER

    def _endpoint(self, name: str) -> str:
        """Return the endpoint's name, which is remembered, or `OTHER` for a new one once `MOST` are. The caller has the lock."""
        if name not in self._names and len(self._names) >= MOST:
            return OTHER
        self._names.add(name)
        return name

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """Queue the attempt, or probe, for counting: its result, duration, and tokens, if the endpoint has counted them.

        The result is ok, cancelled, or the error's code; a code that is not known is `error`. With `TOGETHER` attempts queued,
        this thread counts all that is queued, unless another is at it.
        """
        error = ended.error
        code = "cancelled" if ended.cancelled else "ok" if error is None else Failure.of(error).code
        known = code in {"ok", "cancelled"} or code in CODES
        self._queue(self._tried, (ended.target, code if known else "error", ended.took_s, ended.tokens))

    def limit_hit(self, target: str, code: str) -> None:
        """Queue the call that was not made for counting. Unknown codes count as `other`. See `_queue`."""
        self._queue(self._limits, (target, code if code in CODES else "other"))

    def outbox_changed(self, identity: str, what: str) -> None:  # noqa: ARG002 - each is counted alike
        """Queue the event for counting. See `_queue`."""
        self._queue(self._happened, what)

    def alarm(self, target: str, what: str) -> None:  # noqa: ARG002 - likewise
        """Queue the alarm for counting, among the outbox's events. See `_queue`."""
        self._queue(self._happened, "alarm")

    def _queue(self, fresh: deque[K], event: K) -> None:
        """Queue an event for counting. With `TOGETHER` of a sort, this thread counts all that is queued, unless another does."""
        fresh.append(event)
        if len(fresh) >= TOGETHER:
            self._count_queued()

    def read(self) -> Tallied:
        """Return the counts so far, as copies. Takes the lock, waiting for it, and counts the queued events first."""
        with self._lock:
            self._add_up()
            return Tallied(
                dict(self._requests), _copies(self._sources), _copies(self._legs), dict(self._attempts), _copies(self._endpoints),
                dict(self._tokens), dict(self._held), dict(self._events),
            )  # fmt: skip


def _unknown() -> None:
    """Return no status: no router was made with this instrument."""


def drain(fresh: deque[K]) -> Iterator[K]:
    """Yield the events of a queue, removing them."""
    while True:
        try:
            event = fresh.popleft()
        except IndexError:  # or a signal handler has counted the rest
            return
        yield event


def _copies(histograms: dict[K, Histogram]) -> dict[K, Histogram]:
    """Return copies of histograms."""
    copies = {}
    for key, histogram in histograms.items():
        duplicate = copies[key] = Histogram()
        duplicate.counts, duplicate.sum_s = [*histogram.counts], histogram.sum_s
    return copies
