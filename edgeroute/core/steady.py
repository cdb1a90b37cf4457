"""Hysteresis of a label that is shown: it changes for one that wins clearly, or that stays."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

LONGER = 2
"""How many times as long as another label has to stay the one shown may be missing."""


class Steady(NamedTuple):
    """The label that is shown, and the one that may follow it."""

    label: Hashable = None
    confidence: float | None = None
    """Of the label that is shown, where it was last seen; None: unknown."""
    rival: Hashable = None
    seen: int = 0
    """How many times in a row the rival was seen; 0: there is none."""
    absent: int = 0
    """How many times in a row the label that is shown was not seen."""
    begun: bool = False
    """Whether a label is shown."""


def steadied(
    state: Steady, label: Hashable, confidence: float | None, *, hold: int, margin: float | None = None, sure: bool = False
) -> Steady:
    """What is shown after a further label.

    Args:
        state: what is shown so far.
        label: the new one.
        confidence: of it; None or NaN: unknown.
        hold: so many times in a row another label is seen before it is shown; 1: at once. Where labels differ each time, as texts
            may, the newest is shown once the one shown was not seen for twice as many.
        margin: one whose confidence exceeds that of the label shown by so much is shown at once; None: none is.
        sure: it is shown at once in any case.
    """
    if sure or hold <= 1 or not state.begun or label == state.label:
        return Steady(label, confidence, begun=True)
    known = margin is not None and confidence is not None and state.confidence is not None
    if known and confidence >= state.confidence + margin:  # type: ignore[operator]  # all three are numbers
        return Steady(label, confidence, begun=True)
    seen = state.seen + 1 if state.seen and label == state.rival else 1
    absent = state.absent + 1
    if seen >= hold or absent >= LONGER * hold:
        return Steady(label, confidence, begun=True)
    return state._replace(rival=label, seen=seen, absent=absent)
