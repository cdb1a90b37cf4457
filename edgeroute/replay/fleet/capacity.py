"""Searches for the capacity that a cloud needs."""

from __future__ import annotations

from typing import Final

from edgeroute.replay.fleet.run import simulate
from edgeroute.replay.fleet.scenario import Client, Scenario

SAMPLE: Final = 20_000
"""Maximum number of devices simulated: the result is a multiple of the load, which does not depend on their number."""
WARM_S, AFTER_S = 3.0, 20.0
"""Seconds simulated before the outage, and after the time by which the cloud is to have recovered."""
SPREADS = 1
"""With outboxes, so many times their spread is simulated as well: the peak is within it."""
STEP: Final = 0.1
MOST: Final = 5.0
"""Margins tried: multiples of the normal load."""


def needed(scenario: Scenario, client: Client, within_s: float) -> float | None:
    """The smallest margin, to `STEP`, with which the cloud recovers within `within_s` seconds of the outage; None: above `MOST`.

    Bisection over short runs of a sample of the fleet, assuming that more capacity never slows the recovery.
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
