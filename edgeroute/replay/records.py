"""Reads a trace: what each record knows of its request, and all of them together of each endpoint."""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from edgeroute.core.codes import Failure
from edgeroute.core.explain import VERSION
from edgeroute.core.policy import INF, Mode
from edgeroute.core.walk import new
from edgeroute.errors import BadInput
from edgeroute.replay.numbers import Tally
from edgeroute.replay.texts import understood
from edgeroute.stores import journal

ANSWERED: Final = frozenset({"accepted", "below", "kept"})
ROUNDED_S: Final = 2e-3
"""A record's `at` is rounded. One that seems to begin this little before the end of the one before began after it."""
STEP_S: Final = 1e-6
BEGUN: Final = attrgetter("begun")
_WELL: Final = Failure()
VERSIONS: Final = (1, VERSION)
"""Those that can be read. The first has no codes."""


class Seen(NamedTuple):
    """What became of one leg."""

    what: str
    """accepted, below or kept: it answered; failed; cancelled, timeout: it was given up after `took_s`."""
    took_s: float
    confidence: float | None
    error: str
    """Its kind and message, for people; empty unless it failed."""
    away: bool
    """It is a cloud's."""
    sent_bytes: float = 0.0
    received_bytes: float = 0.0
    usd: float = 0.0
    joules: float = 0.0
    own: tuple[float, str] | None = None
    """The threshold that this very answer had, where not all had the same, and the words for where that came from."""
    failure: Failure = Failure()
    """The error, as rules look at it."""

    @property
    def held(self) -> bool:
        """It was not asked."""
        return self.failure.held


class Request(NamedTuple):
    """One record."""

    id: str
    begun: float
    """Seconds from the first one."""
    latency_s: float
    mode: Mode | None
    deadline_s: float
    data_class: str | None
    by: str | None
    """The target that answered; None: the cache did."""
    accepted: bool
    batch: str
    """What the rows of its batch have in common; empty: it came alone."""
    legs: Mapping[str, Seen]
    """Name -> what became of it."""


class Past:
    """What a trace knows of one endpoint.

    Attributes:
        latencies: of its answers, seconds, in order of size.
        sent_bytes: of a usual request; 0 while unknown.
        received_bytes: of a usual reply; 0 while unknown.
        back: the instants at which it answered again, as far as the record shows it.
    """

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.sent_bytes = self.received_bytes = 0.0
        self.back: list[float] = []
        self._failures: list[float] = []
        self._sizes: tuple[list[float], list[float]] = [], []
        self._news: list[tuple[float, Seen | None]] = []
        """When a call ended, and the failure if it was one of the endpoint's."""
        self._times: list[float] = []

    def add(self, seen: Seen, at: float) -> None:
        """Takes up what became of one call that ended at that instant."""
        if seen.what in ANSWERED:
            self.latencies.append(seen.took_s)
            self._sizes[0].append(seen.sent_bytes)
            self._sizes[1].append(seen.received_bytes)
            self._news.append((at, None))
        elif seen.what == "failed" and (not seen.held or seen.failure.code in {"breaker", "retry_after"}):
            self._news.append((at, None if seen.failure.of_the_input else seen))
            if not seen.held:
                self._failures.append(seen.took_s)

    def settle(self) -> None:
        """To be called once all are there."""
        self.latencies.sort()
        self.sent_bytes, self.received_bytes = (median(sizes) if sizes else 0.0 for sizes in self._sizes)
        self._news.sort(key=lambda one: (one[0], one[1] is not None))
        self._times = [at for at, _ in self._news]
        self.back = [at + STEP_S / 10 for (at, failed), (_, after) in zip(self._news, self._news[1:]) if failed and not after]  # noqa: B905 - one shorter, on purpose

    def away(self, at: float) -> Seen | None:
        """The last call before that instant, if that and the next one failed; None: the endpoint was there."""
        i = bisect_right(self._times, at)
        if not i or self._news[i - 1][1] is None:
            return None
        return self._news[i - 1][1] if i == len(self._news) or self._news[i][1] else None

    @property
    def failure_s(self) -> float:
        """How long a failure usually takes."""
        return median(self._failures) if self._failures else 0.0

    def longer(self, than_s: float, share: float) -> float | None:
        """A recorded latency of more than that: the one at `share` (0..1) of them; None: there is none."""
        first = bisect_left(self.latencies, than_s) if than_s else 0
        return self.latencies[first + int(share * (len(self.latencies) - first))] if first < len(self.latencies) else None


class Recording(NamedTuple):
    """A trace that was read."""

    requests: list[Request]
    """In the order in which they began."""
    endpoints: Mapping[str, Past]
    recorded: Tally
    skipped: int
    """Lines that were no whole record."""
    untimed: int
    """Records without a time, which were left out."""


def read(path: str | Path) -> Recording:
    """Reads a trace, with the files it has filled.

    Raises:
        BadInput: it is no trace, or of another version, or there is nothing in it.
        StoreError: it cannot be opened.
    """
    path = Path(path)
    if not any(path.parent.glob(f"{path.name}*")):
        raise BadInput(f"{path}: there is no such file")
    reading = journal.read(path, exact=False)
    with uncollected():
        trace = collect(reading, str(path), lambda: reading.skipped)
    return trace._replace(skipped=reading.skipped)


@contextmanager
def uncollected() -> Iterator[None]:
    """Looks for no garbage: among hundreds of thousands of requests, none of which is any, that takes as long as the work."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def collect(records: Iterable[Mapping[str, Any]], name: str = "the trace", skipped: Any = int) -> Recording:
    """The same of records that are at hand, as a router gives them to a function that is its `trace`.

    Args:
        records: oldest end first.
        name: what messages call them.
        skipped: how many lines were no record, so far.
    """
    reader = _Reader()
    untimed = number = 0
    for record in records:
        number += 1
        if record.get("version") not in VERSIONS:
            has = f"version {record['version']!r}" if "version" in record else "none: it is no trace"
            some = " or ".join(map(str, VERSIONS))
            raise BadInput(f"{name}: line {number + skipped()}: expected a record of version {some}, found {has}")
        if "at" not in record:
            untimed += 1
            continue
        try:
            reader.take(record)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            why = f"expected a trace's record, found one that is not whole ({e!r})"
            raise BadInput(f"{name}: line {number + skipped()}: {why}") from e
    if not reader.found:
        why = (
            f"{skipped()} lines that are no record" if skipped() else f"{untimed} records without `at`" if untimed else "nothing"
        )
        raise BadInput(f"{name}: expected records of a trace, found {why}")
    return reader.trace()._replace(untimed=untimed)


class _Reader:
    """Takes up records one after the other, in the order in which they ended."""

    def __init__(self) -> None:
        self.found: list[Request] = []
        self._tally = Tally()
        self._rows: dict[tuple[str, str], int] = {}
        """A batch and a cloud -> how many of its rows that was asked for."""
        self._first: float | None = None
        self._latest = -INF

    def take(self, record: Mapping[str, Any]) -> None:
        """One record."""
        tally = self._tally
        identity, latency_s, by = record["id"], record["latency_s"], record["answered_by"]
        begun = record["at"] - latency_s
        if self._first is None:
            self._first = begun
        begun -= self._first
        batch = identity.rpartition(".")[0] if "." in identity else ""
        latest = self._latest
        if latest - ROUNDED_S <= begun < latest + STEP_S and not batch:
            begun = latest + STEP_S
        if begun + latency_s > latest:
            self._latest = begun + latency_s
        tally.requests += 1
        tally.latencies.append(latency_s)
        if "events" not in record:
            tally.cache += 1
            self.found.append(Request(identity, begun, latency_s, None, INF, None, None, True, "", {}))
            return
        labels = {leg["leg"]: (leg["side"] == "cloud", leg["label"]) for leg in record["plan"]}
        legs: dict[str, Seen] = {}
        started: dict[str, float] = {}
        own = None
        deferred = late = False
        for event in record["events"]:
            what, name = event["what"], event["leg"]
            away, label = labels[name]
            if what == "start":
                started[name] = event["at_s"]
                if away:
                    deferred = True
                else:
                    tally.edge_runs += 1
                continue
            if what == "limit":
                own = float(event["threshold"]), label
                continue
            took_s, error = event["at_s"] - started[name], event.get("error", "")
            failure = _WELL if not error else _failure(event) if record["version"] > 1 else understood(error)
            if away:
                legs[name] = seen = Seen(
                    what, took_s, event.get("confidence"), error, True, event.get("sent_bytes", 0),
                    event.get("received_bytes", 0), event.get("usd", 0.0), event.get("joules", 0.0), own, failure,
                )  # fmt: skip
                self._cost(seen, (batch, name))
            else:
                legs[name] = new(Seen, (what, took_s, event.get("confidence"), error, False, 0, 0, 0.0, 0.0, own, failure))
            late, own = late or what == "timeout", None
        accepted, deadline_s = record["accepted"], record["deadline_s"]
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
        tally.queued += record.get("note") == "queued"
        told = (
            identity, begun, latency_s, record["mode"], INF if deadline_s is None else deadline_s, record["data_class"], by,
            accepted, batch, legs,
        )  # fmt: skip
        self.found.append(new(Request, told))

    def _cost(self, seen: Seen, key: tuple[str, str]) -> None:
        """Adds up what a call came to; of a batch once, though the record of each row has it."""
        if seen.held:
            self._tally.held += 1
            return
        if key[0]:
            self._rows[key] = self._rows.get(key, 0) + 1
            if self._rows[key] > 1:
                return
        self._tally.calls += 1
        self._tally.sent_bytes += seen.sent_bytes
        self._tally.received_bytes += seen.received_bytes
        self._tally.usd += seen.usd
        self._tally.joules += seen.joules

    def trace(self) -> Recording:
        """All of it."""
        requests = self.found
        if self._rows:
            requests = [_shared(request, self._rows) if request.batch else request for request in requests]
        requests.sort(key=BEGUN)
        if origin := requests[0].begun:  # the first to end was not the first to begin
            requests = [request._replace(begun=request.begun - origin) for request in requests]
        endpoints: dict[str, Past] = {}
        for request in requests:
            for leg, seen in request.legs.items():
                if seen.away:
                    endpoints.setdefault(leg, Past()).add(seen, request.begun + request.latency_s)
        for past in endpoints.values():
            past.settle()
        return Recording(requests, endpoints, self._tally, 0, 0)


def _failure(event: Mapping[str, Any]) -> Failure:
    return Failure(event.get("code", ""), event.get("status"), event.get("again", False))


def _shared(request: Request, rows: Mapping[tuple[str, str], int]) -> Request:
    """A row of a batch, with its part of what the whole one sent and cost: the record of each row has all of it."""
    legs = {}
    for name, seen in request.legs.items():
        n = rows.get((request.batch, name), 1)
        legs[name] = seen._replace(
            sent_bytes=seen.sent_bytes / n, received_bytes=seen.received_bytes / n, usd=seen.usd / n, joules=seen.joules / n
        )
    return request._replace(legs=legs)
