"""Network models of a replay, and admission control of one endpoint in virtual time."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, Literal, NamedTuple

from edgeroute.core.admission import Admission
from edgeroute.core.error_codes import Failure, Rejection
from edgeroute.core.routing_policy import INF
from edgeroute.core.usage_limits import Cost, Spending
from edgeroute.tools.replay.replayed_policy import Port
from edgeroute.tools.replay.trace_reader import Past

# Network models: transfer times, losses and availability.

RETRANSMIT_S: Final = 0.2
"""Minimum retransmission timeout, seconds (Linux: TCP_RTO_MIN)."""


class Network(NamedTuple):
    """Kind of network: typical orders of magnitude, not measured on a particular one."""

    rtt_s: float
    """Round-trip time of a small packet."""
    jitter_s: float
    """Its standard deviation."""
    up_bits_per_s: float
    down_bits_per_s: float
    loss: float
    """Share of exchanges with a lost packet: it is retransmitted after a round trip and `RETRANSMIT_S`."""
    on_s: float = float("inf")
    """Duration of each period with a link, followed by `off_s` without; 0: no link ever."""
    off_s: float = 0.0


NETWORKS: Final[dict[str, Network]] = {
    "wifi": Network(0.015, 0.005, 40e6, 90e6, 0.001),
    "4g": Network(0.050, 0.015, 9e6, 40e6, 0.005),
    "3g": Network(0.120, 0.040, 1.1e6, 4e6, 0.01),
    "edge": Network(0.400, 0.150, 0.1e6, 0.2e6, 0.02),
    "satellite": Network(0.600, 0.050, 3e6, 25e6, 0.01),
    "offline": Network(0.0, 0.0, 1.0, 1.0, 0.0, on_s=0.0, off_s=float("inf")),
    "flapping": Network(0.050, 0.015, 9e6, 40e6, 0.005, on_s=45.0, off_s=15.0),
}
"""Name -> network. wifi, 4g: medians of lines, as commonly reported by public speed tests. 3g: HSPA as deployed, far below the
14.4 and 5.76 Mbit/s that 3GPP gives for its first releases. edge: 2G with EDGE, of whose 236 kbit/s (four slots, 3GPP) a part
arrives. satellite: a geostationary one, whose four ways of 35,786 km alone take 0.48 s of a round trip. flapping: 4g with
45 s of link, then 15 s without."""


class Link:
    """Simulated course of one network, random by `random`."""

    def __init__(self, network: Network, random: Random) -> None:
        self._network, self._random = network, random

    def left_s(self, now: float) -> float:
        """Return the seconds of link left at `now`; 0: there is none."""
        on_s, off_s = self._network.on_s, self._network.off_s
        if not on_s or on_s == float("inf"):
            return on_s
        return max(0.0, on_s - now % (on_s + off_s))

    def exchange_s(self, sent_bytes: float, received_bytes: float, server_s: float) -> float:
        """Draw at random the duration of a request and its reply on an open connection, seconds, perhaps with a loss."""
        network, random = self._network, self._random
        took_s = max(network.rtt_s / 2, random.gauss(network.rtt_s, network.jitter_s)) + server_s
        took_s += 8 * (sent_bytes / network.up_bits_per_s + received_bytes / network.down_bits_per_s)
        return took_s + network.rtt_s + RETRANSMIT_S if random.random() < network.loss else took_s


SERVER_S: Final = 0.02
"""Assumed latency of an endpoint without records, seconds."""
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

        A rejected request may start a probe.
        """
        self._catch_up(now)
        rejection = self.rules.enter(slot, now)
        if rejection is not None:
            if self.rules.take_probe(now):
                self._probe(now)
            return rejection
        rejection = self.rules.attempt(cost, now, now)
        if rejection is not None:
            self.rules.leave(slot)
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
        """Apply all scheduled events up to `now`, with random waits of the breaker."""
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
        """Apply a failure, with as many retries as there may have been; one that was no fault counts as success or not at all."""
        rules, verdict = self.rules, failure.verdict()
        if verdict == "answered":
            rules.succeeded(time)
            return
        if verdict == "late" and not rules.too_late(took_s):
            return
        rules.failed(time, self._random.random())
        retries = self.port.retries if failure.retriable else 0
        while retries and rules.retry():
            retries -= 1
            rules.failed(time, self._random.random())

    def _probe(self, now: float) -> None:
        """Count a probe of the endpoint, and schedule its result; without a health check it succeeds at once."""
        self.probes += 1
        if not self.port.health:
            took_s: float | None = 0.0
        elif self.link is not None:
            took_s = self.link.exchange_s(0, 0, self.server_s)
            took_s = took_s if took_s <= self.link.left_s(now) else None
        else:
            took_s = 0.0 if self.past.away(now) is None else None
        self.schedule(now + (took_s or 0.0), "probed", None, took_s is not None)

    @property
    def opened(self) -> int:
        """Number of times the breaker opened, after all events."""
        self._catch_up(INF)
        return self.rules.breaker.opened
