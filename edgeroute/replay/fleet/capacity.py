"""The capacity that a cloud needs, found by trying."""

from __future__ import annotations

from typing import Final

from edgeroute.replay.fleet.run import simulate
from edgeroute.replay.fleet.scenario import Client, Scenario

SAMPLE: Final = 20_000
"""Devices, at most: what is sought is a multiple of the load, which does not depend on how many there are."""
WARM_S, AFTER_S = 3.0, 20.0
"""What is simulated before the outage, and after the time in which the cloud is to be back."""
SPREADS = 1
"""With outboxes, so many times their spread is simulated as well: the most comes within it."""
STEP: Final = 0.1
MOST: Final = 5.0
"""Margins that are tried: multiples of the usual load."""


def needed(scenario: Scenario, client: Client, within_s: float) -> float | None:
    """The smallest margin with which the cloud is back so many seconds after the outage, to `STEP`; None: not even `MOST`.

    It is found by halving, in short runs of a sample of the fleet: as though more capacity never made it slower.
    """
    until_s = WARM_S + scenario.outage_s + within_s + AFTER_S
    if scenario.offline == "queue":
        until_s += SPREADS * client.spread_s
    short = scenario._replace(devices=min(scenario.devices, SAMPLE), outage_at_s=WARM_S, length_s=until_s)

    def enough(steps: int) -> bool:
        back_s = simulate(short._replace(margin=1 + steps * STEP), client).cloud_back_s
        return back_s is not None and back_s <= within_s

    low, high = 0, round((MOST - 1) / STEP)
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return round(1 + high * STEP, 1)
