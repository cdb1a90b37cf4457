"""What is drawn independently: examples, or groups of them (scenes, users, sessions) that each count by their mean loss.

A loss of any size becomes 0 or 1 by dithering: with U uniform, one for each unit, a loss d > 0 is a harm where U < d, and d < 0 a
win where U < -d. Harms less wins have the mean of the losses, so the exact tests of harms and wins (exact.py) stay exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgeroute.confidence.exact import Floats, Ints

SEED = 0xD17_4E12_5EED
"""Of the uniform numbers: the same in each calibration, and no seed that examples would be drawn with."""


class Units(NamedTuple):
    """Accepted examples, best score first, and the units that they belong to."""

    n: int
    """Number of units, those without an accepted example included."""
    of: Ints
    """[k], the number of each example's unit."""
    before: Floats
    """[k], the mean loss of its unit until the example is accepted, -1..1."""
    after: Floats
    """[k], and once it is."""

    def dithered(self) -> tuple[Ints, Ints]:
        """Cumulative harms and wins, [k] each."""
        u = np.random.default_rng(SEED).random(self.n)[self.of]
        before, after = ((u < np.abs(loss)) * np.sign(loss) for loss in (self.before, self.after))
        harms, wins = (((after == sign) * 1 - (before == sign) * 1).cumsum() for sign in (1, -1))
        return harms, wins


def units(loss: Floats, order: Ints, groups: Ints | None) -> Units:
    """The units of n examples.

    Args:
        loss: [n], what is lost where the example is accepted, -1..1.
        order: indices of the accepted examples, best score first.
        groups: [n], the number of each example's group, from 0 with none missing; None: each is a unit.
    """
    d = loss[order]
    if groups is None:
        return Units(len(loss), order, np.zeros(len(d)), d)
    of, sizes = groups[order], np.bincount(groups)
    d = d / sizes[of]
    together = np.argsort(of, kind="stable")
    total = d[together].cumsum()
    first = np.append(True, of[together][1:] != of[together][:-1])[: len(d)]
    start = (total - d[together])[first][first.cumsum() - 1]
    after = np.empty(len(d))
    after[together] = total - start
    return Units(len(sizes), of, after - d, after)


def one_of_each(groups: Ints) -> Ints:
    """Indices of one example of each group, drawn by chance: these are independent, and each group counts the same."""
    shuffled = np.random.default_rng(SEED).permutation(len(groups))
    _, first = np.unique(groups[shuffled], return_index=True)
    return np.sort(shuffled[first])
