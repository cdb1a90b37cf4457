"""Retry spreading: how long queued requests are randomised over, so that devices that lost a cloud do not return at once."""

from __future__ import annotations

TIMES = 4.0
"""Requests are spread over this multiple of their age: after a longer outage more devices have a backlog ..."""
LONGEST_S = 3600.0
"""... but over at most this (or `spread_s`, if that is longer)."""


def spread_for(spread_s: float, age_s: float) -> float:
    """Upper end of the uniformly random wait, seconds.

    Args:
        spread_s: its minimum; 0: no spreading.
        age_s: seconds since the request was queued.
    """
    return min(max(LONGEST_S, spread_s), max(spread_s, TIMES * age_s)) if spread_s else 0.0
