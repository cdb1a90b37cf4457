"""Test by betting that a mean loss is below a limit, whatever the losses' sizes (Waudby-Smith and Ramdas, 2024).

Units are bet on one after the other, in an order drawn beforehand. With x = (1 + loss) / 2 of each, 0..1, and m the limit
likewise, a gambler's wealth is multiplied by 1 - bet (x - m). Each bet depends on earlier units alone, so where the mean is m or
more, wealth that began at 1 ever reaches 1 / delta with probability at most delta (Ville's inequality).
"""

from __future__ import annotations

from math import log

import numpy as np

from edgeroute.confidence.exact import Floats, Ints

MOST = 0.75
"""Share of the wealth that a bet can lose at most."""
SEED = 0x0BE7_71D6_5EED
"""Of the order of bets: the same in each calibration, and no seed that examples would be drawn with."""


def accept_betting(after: Floats, of: Ints, ends: Ints, n: int, eps: float, delta: float) -> int:
    """Number of leading blocks that pass the test.

    Args:
        after: [k], for each example in order of acceptance, the loss of its unit once it is accepted, -1..1.
        of: [k], the number of its unit, 0..n-1.
        ends: the last example of each block.
        n: number of units.
        eps: the limit of the mean loss.
        delta: level of the test.
    """
    place = np.random.default_rng(SEED).permutation(n)[of]
    wealth = _Wealth(n, (1 + eps) / 2, delta)
    reached, begin, x = n, 0, (1 + after) / 2
    for block, end in enumerate((ends + 1).tolist()):
        changed = place[begin:end]
        wealth.x[changed] = x[begin:end]  # of a unit that comes twice the last counts
        if changed.min() <= reached:  # else what decided the block before is as it was
            reached = wealth.reaches(reached)
            if reached == n:
                return block
        begin = end
    return len(ends)


class _Wealth:
    """The wealth after each unit.

    Attributes:
        x: [n], in the order of the bets; .5 is no loss.
    """

    def __init__(self, n: int, mean: float, delta: float) -> None:
        self.x = np.full(n, 0.5)
        self._mean, self._delta, self._cap = mean, delta, MOST / (1 - mean)
        self._count = np.arange(1, n + 1)
        self._rate = 2 * log(1 / delta) / n

    def reaches(self, guess: int) -> int:
        """After which unit it is 1 / delta or more, from 0; n: never. guess: where it probably is."""
        n = len(self.x)
        for m in sorted({min(n, guess + guess // 4 + 64), n}):
            x, count = self.x[:m], self._count[:m]
            mean = (0.5 + x.cumsum()) / (count + 1)
            squares = np.square(x - mean).cumsum()
            variance = (0.25 + np.append(0, squares[:-1])) / count  # of the units before
            bet = np.minimum(np.sqrt(self._rate / variance), self._cap)
            with np.errstate(over="ignore", under="ignore"):
                rich = (1 - bet * (x - self._mean)).cumprod() >= 1 / self._delta
            if rich.any():
                return int(rich.argmax())
        return n
