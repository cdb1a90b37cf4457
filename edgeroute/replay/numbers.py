"""What is counted, of the recorded run and of the replayed one alike."""

from __future__ import annotations

from array import array
from typing import NamedTuple


class Numbers(NamedTuple):
    """A run in numbers. A request is answered by the edge, by the cloud or by the cache, or is not answered."""

    requests: int
    edge: int
    cloud: int
    cache: int
    unanswered: int
    degraded: int
    """Answered, but not as the policy wanted it."""
    queued: int
    """Of those and of the unanswered: handed to the outbox."""
    deferred: int
    """Requests that needed the cloud, whether it was asked or held."""
    calls: int
    """Requests that the cloud was sent; the rows of a batch share one."""
    held: int
    """Times that it was not asked: breaker, limits, consent."""
    deadline_misses: int
    """Requests at whose deadline a target had not answered yet."""
    edge_runs: int
    sent_bytes: float
    received_bytes: float
    usd: float
    joules: float
    """The device's energy for the calls, by the endpoints' terms; and for the edge's runs, where it is given."""
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None

    @property
    def deferral_rate(self) -> float:
        """The share of requests that were deferred; 0 without any."""
        return self.deferred / self.requests if self.requests else 0.0


class Tally:
    """Adds up to `Numbers`."""

    __slots__ = (
        "cache", "calls", "cloud", "deadline_misses", "deferred", "degraded", "edge", "edge_runs", "held", "joules", "latencies",
        "queued", "received_bytes", "requests", "sent_bytes", "unanswered", "usd",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.edge = self.cloud = self.cache = self.unanswered = self.degraded = self.queued = 0
        self.deferred = self.calls = self.held = self.deadline_misses = self.edge_runs = 0
        self.sent_bytes = self.received_bytes = self.usd = self.joules = 0.0
        self.latencies = array("d")

    def numbers(self, edge_joules: float) -> Numbers:
        """All of it; `edge_joules` is the energy of a run of the edge."""
        ordered = sorted(self.latencies)
        quantiles = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None for q in (0.5, 0.9, 0.99)]
        told = {name: getattr(self, name) for name in self.__slots__ if name != "latencies"}
        told["joules"] += self.edge_runs * edge_joules
        return Numbers(**told, p50_s=quantiles[0], p90_s=quantiles[1], p99_s=quantiles[2])
