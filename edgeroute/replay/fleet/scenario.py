"""What is simulated: a fleet, its cloud, an outage, and how the devices behave."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

AGAIN_S: Final = 10.0
"""The cloud is back once it answers `GOOD` of what it is asked in any so many seconds."""
GOOD: Final = 0.99


class Scenario(NamedTuple):
    """A fleet before one cloud, which is away for a while. Durations and instants in seconds."""

    devices: int = 1_000_000
    per_minute: float = 1.0
    """Requests of one device, at random instants."""
    defer: float = 0.1
    """The share of them, 0..1, that the edge is not sure of."""
    length_s: float = 3600.0
    margin: float = 1.5
    """What the cloud can do, as a multiple of what it is asked while all is well."""
    latency_s: float = 0.05
    """Of an answer when nobody waits; a refusal takes as long."""
    queue_s: float = 10.0
    """Requests wait in one queue. One that would wait longer is refused (503). One whose device has given up is worked on
    all the same."""
    outage_at_s: float = 60.0
    outage_s: float = 10.0
    """What waits in the cloud as it begins is lost."""
    silent: bool = False
    """While it is away nothing comes back; else connections are refused at once."""
    retry_after_s: float = 0.0
    """What a 503 asks for; 0: nothing."""
    timeout_s: float = 2.0
    offline: Literal["edge", "queue"] = "edge"
    """What becomes of a request that the cloud did not answer: the edge's answer stands; and it is sent later, too."""
    drain_per_s: float = 10.0
    """How many a device takes from its outbox in a second, at most."""
    together: float = 0.0
    """The share of the devices, 0..1, that ask the cloud once more in the first second of the outage, all at the same time."""
    seed: int = 0

    @property
    def normal_per_s(self) -> float:
        """What the cloud is asked while all is well."""
        return self.devices * self.per_minute / 60 * self.defer

    @property
    def capacity_per_s(self) -> float:
        """What it can do."""
        return self.margin * self.normal_per_s

    @property
    def back_at_s(self) -> float:
        """The end of the outage."""
        return self.outage_at_s + self.outage_s


class Client(NamedTuple):
    """What a device has to spare the cloud."""

    name: str
    retries: int = 2
    """How often a request that failed is sent again, at most."""
    budget: bool = True
    """A retry for ten successes, and ten at hand."""
    jitter: bool = True
    """Waits are random; else each is as long as it can be."""
    breaker: bool = True
    """After three faults in a row it is not asked, but by probes without user data."""
    whole: bool = True
    """The timeout is that of a request with its retries; else each attempt has it anew, and one that timed out is repeated."""
    spread_s: float = 60.0
    """Of its outbox: what waits is sent after a random part of so many seconds, of more after long; 0: as soon as it may be."""


EDGEROUTE: Final = Client("edgeroute")
_PLAIN: Final = Client("plain retries", retries=3, budget=False, jitter=False, breaker=False, whole=False, spread_s=0.0)
NO_SPREAD: Final = EDGEROUTE._replace(name="no spread", spread_s=0.0)
PER_ATTEMPT: Final = EDGEROUTE._replace(name="timeout per attempt", whole=False)
CLIENTS: Final = (
    EDGEROUTE,
    EDGEROUTE._replace(name="no retry budget", budget=False),
    EDGEROUTE._replace(name="no jitter", jitter=False),
    EDGEROUTE._replace(name="no breaker", breaker=False),
    PER_ATTEMPT,
    _PLAIN,
    _PLAIN._replace(name="plain, with budget", budget=True),
    _PLAIN._replace(name="plain, with breaker", breaker=True),
)


def clients(scenario: Scenario, spread_s: float = EDGEROUTE.spread_s) -> tuple[Client, ...]:
    """Those that are compared, with this spread where they have one; without it only where there are outboxes."""
    every = (*CLIENTS[:1], NO_SPREAD, *CLIENTS[1:]) if scenario.offline == "queue" else CLIENTS
    return tuple(client._replace(spread_s=spread_s) if client.spread_s else client for client in every)
