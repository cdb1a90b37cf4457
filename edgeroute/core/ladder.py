"""Quality ladder: which of several encodings of an input is sent, by the time that each is predicted to take."""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 0.8
"""Share of the time that is left which a call is predicted to take at most: predictions are of the mean call."""


def pick(took_s: Sequence[float], left_s: float) -> int:
    """The first encoding, best first, whose call is predicted to end in time; the last one, if none is.

    Args:
        took_s: seconds that a call with each takes by prediction; NaN: it is not to be had. Not empty.
        left_s: seconds until the deadline; -inf: the last one.
    """
    return next((i for i, seconds in enumerate(took_s) if seconds <= SHARE * left_s), len(took_s) - 1)


def seconds(size: float, call_s: float, bytes_per_s: float) -> float:
    """Predicted time of a call with so many bytes: `call_s` without any."""
    return call_s + size / bytes_per_s
