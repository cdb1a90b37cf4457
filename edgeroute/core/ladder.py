"""Quality ladder: which of several encodings of an input is sent, by the time that each is predicted to take."""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 0.8
"""Share of the time that is left which a call is predicted to take at most: predictions are of the mean call."""


FEWEST, MOST = 8, 128
"""Calls in time after which a better encoding is tried again: at first, and after it was late again and again."""


def pick(took_s: Sequence[float], left_s: float, best: int = 0) -> int:
    """The first encoding, best first, whose call is predicted to end in time; the last one, if none is.

    Args:
        took_s: seconds that a call with each takes by prediction; NaN: it is not to be had. Not empty.
        left_s: seconds until the deadline; -inf: the last one.
        best: no better one is tried.
    """
    return next((i for i, one_s in enumerate(took_s) if i >= best and one_s <= SHARE * left_s), len(took_s) - 1)


def seconds(size: float, call_s: float, bytes_per_s: float) -> float:
    """Predicted time of a call with so many bytes: `call_s` without any."""
    return call_s + size / bytes_per_s


class Ceiling:
    """The best encoding that is tried, after calls came late against the prediction, as where a link has just become slow.

    Threads may share it: what is lost by a race is one call's worth.

    Attributes:
        best: its number.
    """

    __slots__ = ("_in_time", "_need", "best")

    def __init__(self) -> None:
        self.best = self._in_time = 0
        self._need = FEWEST

    def ended(self, i: int, *, late: bool) -> None:
        """A call with encoding number `i` was late, or in time."""
        if late:
            if i >= self.best:
                self.best, self._need = i + 1, min(2 * self._need, MOST)
            self._in_time = 0
            return
        self._in_time += 1
        if self.best and self._in_time >= self._need:
            self.best, self._in_time = self.best - 1, 0
        elif not self.best and self._in_time >= FEWEST:
            self._need = FEWEST
