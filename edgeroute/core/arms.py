"""Sequential test of two arms: whether the rate of something bad is higher in B than in A, valid whenever one looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_RATES: Final = tuple(0.05 * 18 ** (j / 7) for j in range(8))  # .05 to .9 of the largest bet
_MOST: Final = 1e100
"""Cap of the wealth, far below float overflow."""


class ArmTest:
    """Test by betting that B's mean exceeds A's by no more than a margin (Waudby-Smith and Ramdas, 2024), on values 0..1.

    Values that came since the last bet are averaged in each arm, a and b; once both have some, y = (1 + b - a) / 2 is bet on.
    If the mean of b is at most that of a plus the margin, that of y is at most m = (1 + margin) / 2. So wealth that began at 1
    does not grow on average, and ever reaches 1 / alpha with probability alpha at most (Ville's inequality): one may look after
    each value, and stop when one likes. The arm of a request must not depend on its value, as where a hash draws it.

    Not synchronised: threads that share it need a lock.

    Args:
        margin: by how much B may be worse, 0..1, exclusive of 1.
        alpha: probability of a false alarm, over all time; more than 0, less than 1.

    Raises:
        ValueError: one of them is out of range.
    """

    __slots__ = ("_a", "_b", "_limit", "_mean", "_wealth", "alarmed", "pairs")

    def __init__(self, margin: float, alpha: float) -> None:
        if not (0 <= margin < 1 and 0 < alpha < 1):
            raise ValueError(f"margin {margin} is not in 0..1, or alpha {alpha} not between 0 and 1")
        self._mean: Final = (1 + margin) / 2
        self._limit: Final = 1 / alpha
        self._wealth = [1.0] * len(_RATES)
        self._a, self._b = [0.0, 0.0], [0.0, 0.0]  # count and sum since the last bet
        self.pairs = 0
        """Number of bets."""
        self.alarmed = False
        """Whether the wealth has ever reached 1 / alpha."""

    @property
    def p(self) -> float:
        """Anytime-valid p-value: one over the wealth, 1 at most."""
        wealth = sum(self._wealth) / len(_RATES)
        return 1.0 if wealth <= 1 else 1 / wealth

    def dump(self) -> dict[str, object]:
        """JSON-serialisable state."""
        return {"wealth": self._wealth[:], "pairs": self.pairs, "alarmed": self.alarmed}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Goes on from a dump.

        Raises:
            ValueError: it is none.
        """
        try:
            wealth, pairs, alarmed = [had + 0.0 for had in dumped["wealth"]], dumped["pairs"], dumped["alarmed"]
            fits = len(wealth) == len(_RATES) and all(0 <= had <= _MOST for had in wealth)
        except (KeyError, TypeError) as e:
            raise ValueError(f"not a dump of a test of arms: {e!r}") from e
        if not (fits and type(pairs) is int and type(alarmed) is bool):
            raise ValueError(f"not a dump of a test of arms: {wealth}, {pairs}, {alarmed}")
        self._wealth, self.pairs, self.alarmed = wealth, pairs, alarmed

    def add(self, x: float, *, b: bool) -> None:
        """Adds a value, 0..1, of arm B or of A."""
        arm = self._b if b else self._a
        arm[0] += 1
        arm[1] += x
        if not (self._a[0] and self._b[0]):
            return
        over = (1 + self._b[1] / self._b[0] - self._a[1] / self._a[0]) / 2 / self._mean - 1
        self._a, self._b = [0.0, 0.0], [0.0, 0.0]
        self._wealth = [min(_MOST, had * (1 + rate * over)) for had, rate in zip(self._wealth, _RATES, strict=True)]
        self.pairs += 1
        self.alarmed = self.alarmed or sum(self._wealth) / len(_RATES) >= self._limit
