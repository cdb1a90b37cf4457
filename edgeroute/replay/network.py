"""Network models by name: transfer times, losses and availability."""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

RETRANSMIT_S: Final = 0.2
"""Minimum retransmission timeout, seconds (Linux: TCP_RTO_MIN)."""


class Network(NamedTuple):
    """A kind of network: typical orders of magnitude, not measured on a particular one."""

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
"""wifi, 4g: medians of fixed and mobile lines, as commonly reported by public speed tests. 3g: HSPA as deployed, far below the
14.4 and 5.76 Mbit/s that 3GPP gives for its first releases. edge: 2G with EDGE, of whose 236 kbit/s (four slots, 3GPP) a part
arrives. satellite: a geostationary one, whose four ways of 35,786 km alone take 0.48 s of a round trip. flapping: 4g with
45 s of link, then 15 s without."""


class Link:
    """The course of one network, random by `random`."""

    def __init__(self, network: Network, random: Random) -> None:
        self._network, self._random = network, random

    def left_s(self, now: float) -> float:
        """Seconds of link left at `now`; 0: there is none."""
        on_s, off_s = self._network.on_s, self._network.off_s
        if not on_s or on_s == float("inf"):
            return on_s
        return max(0.0, on_s - now % (on_s + off_s))

    def exchange_s(self, sent_bytes: float, received_bytes: float, server_s: float) -> float:
        """Duration of a request and its reply on an open connection, seconds."""
        network, random = self._network, self._random
        took_s = max(network.rtt_s / 2, random.gauss(network.rtt_s, network.jitter_s)) + server_s
        took_s += 8 * (sent_bytes / network.up_bits_per_s + received_bytes / network.down_bits_per_s)
        return took_s + network.rtt_s + RETRANSMIT_S if random.random() < network.loss else took_s
