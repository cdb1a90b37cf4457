"""`Alarms`, which go off not at one odd window, but when most of the latest ones say so."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

LOOKED_AT = 16
"""Windows: four recordings."""
RAISED_BY, ENDED_BY = 10, 3
"""So many of them raise the alarm, and so few end it."""
WELL = frozenset({"normal", "attention", "healthy"})
"""Answers that are no fault: `attention` of the small model asks for a second opinion, and for nothing else."""

UNKNOWN = "unknown"


class Alarm(NamedTuple):
    """An alarm that went off."""

    at_h: float
    kind: str
    """The kind of fault that most windows name; "unknown": none does yet."""


class Alarms:
    """Raises and ends alarms. Answers may be replaced by late ones while their window is looked at.

    Attributes:
        raised: all alarms so far, each as it went off.
        now: the alarm that is on, with its name once a window names one; None: there is none.
    """

    def __init__(self) -> None:
        self._windows: OrderedDict[str, str] = OrderedDict()
        self.raised: list[Alarm] = []
        self.now: Alarm | None = None

    def note(self, identity: str, value: str) -> None:
        """Note the answer about a window as the newest, and forget the oldest beyond 16."""
        self._windows[identity] = value
        while len(self._windows) > LOOKED_AT:
            self._windows.popitem(last=False)

    def correct(self, identity: str, value: str) -> None:
        """Note a late answer in place of the provisional one; of a window that is no longer looked at it changes nothing."""
        if identity in self._windows:
            self._windows[identity] = value

    def look(self, at_h: float) -> Alarm | None:
        """Raise the alarm if 10 of the latest windows say so, end it at 3 or fewer, or name it; return one just raised."""
        faults = Counter(value for value in self._windows.values() if value not in WELL)
        kind = next((kind for kind, _ in faults.most_common() if kind != "fault"), UNKNOWN)
        if self.now is None and faults.total() >= RAISED_BY:
            self.now = Alarm(at_h, kind)
            self.raised.append(self.now)
            return self.now
        if self.now is not None and faults.total() <= ENDED_BY:
            self.now = None
        elif self.now is not None and self.now.kind == UNKNOWN:  # without a link nobody names it; a name comes later
            self.now = Alarm(self.now.at_h, kind)
        return None
