"""Over how long what waits is spread, so that the devices which lost a cloud together do not return as one."""

from __future__ import annotations

TIMES = 4.0
"""What has waited long is spread over so many times as long: more devices may have as much to send ..."""
LONGEST_S = 3600.0
"""... but over no more than this."""


def spread_for(spread_s: float, age_s: float) -> float:
    """Seconds of which a wait is a random part.

    Args:
        spread_s: the least; 0: nothing is spread.
        age_s: how long it has waited since it was queued.
    """
    return min(max(LONGEST_S, spread_s), max(spread_s, TIMES * age_s)) if spread_s else 0.0
