"""Networks by name: how long an exchange takes on each, and whether there is a link at all."""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

RETRANSMIT_S: Final = 0.2
"""How long the kernel waits, at the least, before it sends a lost packet again (Linux: TCP_RTO_MIN)."""


class Network(NamedTuple):
    """A kind of network: orders of magnitude that are typical of it, measured nowhere in particular."""

    rtt_s: float
    """Of a small packet, there and back."""
    jitter_s: float
    """Standard deviation of that."""
    up_bits_per_s: float
    down_bits_per_s: float
    loss: float
    """The share of exchanges in which a packet is lost: it is sent again, a round trip and `RETRANSMIT_S` later."""
    on_s: float = float("inf")
    """There is a link for so long, then none for `off_s`, and so on; 0: there never is."""
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
"""wifi, 4g: what public speed tests commonly report as medians of fixed and mobile lines. 3g: HSPA as deployed, far below the
14.4 and 5.76 Mbit/s that 3GPP gives for its first releases. edge: 2G with EDGE, of whose 236 kbit/s (four slots, 3GPP) a part
arrives. satellite: a geostationary one, whose four ways of 35,786 km alone take 0.48 s of a round trip. flapping: 4g that is
there for 45 s and gone for 15 s."""


class Link:
    """One network's course, with its chances drawn from `random`."""

    def __init__(self, network: Network, random: Random) -> None:
        self._network, self._random = network, random

    def left_s(self, now: float) -> float:
        """For how long there is a link from now on; 0: there is none."""
        on_s, off_s = self._network.on_s, self._network.off_s
        if not on_s or on_s == float("inf"):
            return on_s
        return max(0.0, on_s - now % (on_s + off_s))

    def exchange_s(self, sent_bytes: float, received_bytes: float, server_s: float) -> float:
        """How long a request and its reply take on a connection that is open already."""
        network, random = self._network, self._random
        took_s = max(network.rtt_s / 2, random.gauss(network.rtt_s, network.jitter_s)) + server_s
        took_s += 8 * (sent_bytes / network.up_bits_per_s + received_bytes / network.down_bits_per_s)
        return took_s + network.rtt_s + RETRANSMIT_S if random.random() < network.loss else took_s
