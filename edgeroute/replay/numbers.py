"""Numbers of a record, checked; and counters shared by the recorded and the replayed run."""

from __future__ import annotations

from array import array
from numbers import Real
from typing import Any, Final, NamedTuple

from edgeroute.core.policy import INF

MOST: Final = 1e300
"""No number of a record is as large."""
_PLAIN: Final = frozenset({int, float, type(None)})
_INFINITE: Final = {"inf": INF, "-inf": -INF}
"""Infinite confidences as a trace has them."""


class Numbers(NamedTuple):
    """Totals of a run. A request is answered by the edge, the cloud or the cache, or not at all."""

    requests: int
    edge: int
    cloud: int
    cache: int
    unanswered: int
    degraded: int
    """Answered, but not as the policy requires."""
    queued: int
    """Of those and of the unanswered: stored in the outbox."""
    deferred: int
    """Requests that needed the cloud, whether it was called or held."""
    calls: int
    """Requests sent to the cloud; the rows of a batch share one."""
    held: int
    """Rejected for a local reason: breaker, limits, consent."""
    deadline_misses: int
    """Requests with a target that had not answered at the deadline."""
    edge_runs: int
    """Runs of edges that began."""
    sent_bytes: float
    """Bodies of calls; likewise received."""
    received_bytes: float
    usd: float
    """Cost of the calls, US dollars."""
    joules: float
    """Energy of the device: for calls, by the endpoints' terms; and for runs of the edge, as far as it is known."""
    p50_s: float | None
    """Median time of a request, seconds; None: there is none. Likewise the next two."""
    p90_s: float | None
    p99_s: float | None

    @property
    def deferral_rate(self) -> float:
        """Share of requests that were deferred; 0 without any."""
        return self.deferred / self.requests if self.requests else 0.0


class Tally:
    """Accumulates `Numbers`."""

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
        """The totals; `edge_joules` is the energy per run of the edge, None: `run_joules` is that of all."""
        ordered = sorted(self.latencies)
        quantiles = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None for q in (0.5, 0.9, 0.99)]
        told = {name: getattr(self, name) for name in self.__slots__ if name not in {"latencies", "run_joules"}}
        told["joules"] += self.run_joules if edge_joules is None else self.edge_runs * edge_joules
        return Numbers(**told, p50_s=quantiles[0], p90_s=quantiles[1], p99_s=quantiles[2])


def checked(number: Any) -> Any:
    """The same, which is a finite number or None.

    Raises:
        TypeError: it is neither.
        ValueError: it is none that can be reckoned with.
    """
    if number.__class__ not in _PLAIN and not isinstance(number, Real):  # the first alone is quick; numpy has numbers too
        raise TypeError(f"expected a number, found {type(number).__name__}")
    if number is not None and not -MOST < number < MOST:
        raise ValueError("expected a number, found one that cannot be reckoned with")
    return number


def confidence(given: Any) -> Any:
    """A recorded confidence as a number, which may be infinite, or None.

    Raises:
        TypeError, ValueError: it is none.
    """
    return _INFINITE[given] if isinstance(given, str) and given in _INFINITE else checked(given)
