"""Counts of audits (`LossCounts`), and what they certify at any look: the lowest of fixed thresholds that keeps a limit of loss.

A device adds 1 to a number of its state file for each audit (`Auditor`), which compares an answer with the cloud's; numbers of
processes and devices are added up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from math import exp, log, log1p
from typing import Any

from edgeroute.core.sequential_tests import GRID, grid_index

# Method of a certificate by counts; and key of its parameters, whose value is the Unix time since which audits are counted.
LOOKS, COUNTED_SINCE = "bets at every look", "counted_since"
NONE = len(GRID)  # index of the lowest certified threshold, where there is none
# Share of the risk for the first counts of one rate. Each new beginning, and each further rate, has 1 - FIRST ** .5 of it.
FIRST = 0.75

BETS = tuple(0.02 * 47.5 ** (j / 19) for j in range(20))  # shares of the wealth that a harm takes, for each bet: .02 to .95
# Wealth with which each bet begins, 1 in all. Large bets, which win while examples are few, have more, but the largest.
FUNDS = tuple(bet * (1 - bet) ** 0.5 / sum(x * (1 - x) ** 0.5 for x in BETS) for bet in BETS)


def log_evidence(limit: float, *counts: tuple[float, int, int, int]) -> float:
    """Return the logarithm of the evidence that harms less wins are fewer than `limit` of n: the wealth of 20 constant bets.

    Bets are on (1 + harm - win) / 2. While the mean loss is `limit` or more, the evidence is ever 1 / risk with probability
    `risk` at most (Ville's inequality; Waudby-Smith and Ramdas, 2024), so it may be looked at after each example.

    Args:
        limit: limit of the mean loss, -1..1.
        counts: weight of each bet, more than 0, up to 1, and numbers of examples, harms and wins; for each rate of drawing.
    """
    mean, logs = (1 + limit) / 2, list[float]()
    for bet in (part / (1 - mean) for part in BETS):
        logs.append(
            sum(
                harms * log1p(-bet * w * (1 - mean))
                + wins * log1p(bet * w * mean)
                + (n - harms - wins) * log1p(bet * w * limit / 2)
                for w, n, harms, wins in counts
            )
        )
    top = max(logs)
    return top + log(sum(funds * exp(x - top) for funds, x in zip(FUNDS, logs, strict=True)))


class LossCounts:
    """Numbers of examples by rate, confidence and loss.

    Thresholds are tested from the highest down, so the first that fails ends the test, and the risk is that of one. Examples of a
    higher rate have smaller bets, by the ratio of the lowest rate to theirs: so each request counts the same.

    Attributes:
        numbers: (rate, index, loss) -> number of examples. rate: probability with which they were drawn; index: of the highest
            threshold in `GRID` that accepts them, -1 for none; loss: 1 for a harm (the cloud alone is right), -1 for a win, or 0.
        alarms: number of times that the counts have begun anew, each further model of the server included.
        begun: Unix time at which they began; 0: at the first audit.
        served: identity of the server's model whose answers were compared; empty: not known.
        others: counts of the same beginning of its other models, by their identities.
    """

    def __init__(self) -> None:
        self.numbers: Counter[tuple[float, int, int]] = Counter()
        self.alarms = self.begun = 0
        self.served, self.others = "", dict[str, LossCounts]()

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.numbers.total()

    def count(self, confidence: float | None, loss: int, rate: float = 1.0) -> None:
        """Count an example in memory. confidence: None or NaN: no threshold accepts it."""
        self.numbers[rate, grid_index(confidence), loss] += 1

    def add(self, other: LossCounts) -> None:
        """Add the counts of another process or device, of the same beginning, to these in place."""
        self.numbers.update(other.numbers)
        self.alarms = max(self.alarms, other.alarms)
        self.begun = max(self.begun, other.begun)

    def dump(self) -> dict[str, int]:
        """Return the counts as a state file has them, in JSON types."""
        return {f"{self.begun} {rate!r} {index} {loss}": number for (rate, index, loss), number in self.numbers.items()}

    def includes(self, earlier: LossCounts) -> bool:
        """Return True if these are earlier counts with further audits: of the same beginning and rates, and none is missing."""
        rates, earlier_rates = ({rate for rate, _, _ in counts.numbers} for counts in (self, earlier))
        grown = all(self.numbers[key] >= number for key, number in earlier.numbers.items())
        return grown and (self.begun, rates) == (earlier.begun, earlier_rates)

    def accepted(self, index: int) -> tuple[int, int, int]:
        """Return the numbers of examples, harms and wins that the threshold at this index of `GRID` accepts; -1: all."""
        by_loss = Counter[int]()
        for (_, i, loss), number in self.numbers.items():
            by_loss[loss] += number * (i >= index)
        return by_loss.total(), by_loss[1], by_loss[-1]

    def least(self, risk: float) -> float:
        """Return the logarithm of the evidence that suffices: each pair of beginnings and rates has its own part of the risk.

        The parts are products of two geometric series, so that all of them together are the risk.
        """
        rates = {rate for rate, _, _ in self.numbers}
        return -log(risk * FIRST) - (self.alarms + max(0, len(rates) - 1)) * log(1 - FIRST**0.5)

    def needed(self, limit: float, risk: float) -> int:
        """Return the number of examples, all drawn at one rate, that certify the highest threshold if there is no harm."""
        least, enough = self.least(risk), 1
        while log_evidence(limit, (1.0, enough, 0, 0)) < least:
            enough *= 2
        return bisect_left(range(enough), least, key=lambda n: log_evidence(limit, (1.0, n, 0, 0)))

    def lowest(self, limit: float, risk: float, reached: int = NONE) -> int:
        """Return the index in `GRID` of the lowest certified threshold, at this look or before; `NONE` if there is none.

        From the highest down, thresholds below `reached` are tested up to the first that fails.

        Args:
            limit: limit of the share of all examples lost, 0..1, exclusive.
            risk: probability that a threshold beyond the limit is ever certified, 0..1, exclusive.
            reached: result of earlier looks at the same counts.
        """
        least, totals = self.least(risk), Counter[float]()
        by_index: dict[int, list[tuple[float, int, int]]] = {}
        for (rate, i, loss), number in self.numbers.items():
            totals[rate] += number
            by_index.setdefault(i, []).append((rate, loss, number))
        first, losses = min(totals, default=1.0), Counter[tuple[float, int]]()
        passes: bool | None = None
        for index in range(NONE - 1, -1, -1):
            for rate, loss, number in by_index.get(index, ()):
                losses[rate, loss] += number
            if index < reached:
                if passes is None or index in by_index:
                    rows = [(first / rate, n, losses[rate, 1], losses[rate, -1]) for rate, n in totals.items()]
                    passes = log_evidence(limit, *rows) >= least
                if not passes:
                    return index + 1
        return 0

    @classmethod
    def load(cls, stored: Any, served: str = "") -> LossCounts:
        """Return the counts of a state file since they last began, of one model of the server: those of `by_served`."""
        return cls.by_served(stored, served)[served]

    @classmethod
    def by_served(cls, stored: Any, served: str = "") -> dict[str, LossCounts]:
        """Return the counts of a state file since they last began, by the server's model; "": the server did not tell it.

        Each time at which they began anew counts as an alarm, and so does each further model since such a time: all have parts of
        one risk. A key of a time alone is a beginning without audits so far. `served` is among the keys in any case.

        Raises:
            ValueError: they are no counts.
        """
        counts, models = {served: cls()}, dict[int, set[str]]()
        try:
            rows = [(*key.split(" ", 5), number) for key, number in stored.items()]
            last = max((int(row[0]) for row in rows), default=0)
            for row in rows:
                since, *of, number = row
                seen = models.setdefault(int(since), set())
                if not of and int(since) > 0 and type(number) is int:
                    continue
                text, i, loss, *named = of
                mark, name = named or ("of", "")
                rate, index = float(text), int(i)
                whole = type(number) is int and 0 <= number < 2**53
                if not (whole and mark == "of" and loss in {"-1", "0", "1"} and 0 < rate <= 1 and -1 <= index < NONE):
                    raise ValueError(f"{since} {text} {i} {loss}: {number}")  # noqa: TRY301 - one message for all that may be wrong
                seen.add(name)
                if int(since) == last:
                    counts.setdefault(name, cls()).numbers[rate, index, int(loss)] += number
        except (AttributeError, TypeError, ValueError) as e:
            raise ValueError(f"these are no counts of audits: {e}") from e
        alarms = sum((since > 0) + max(0, len(names) - 1) for since, names in models.items())
        for name, of_model in counts.items():
            of_model.alarms, of_model.begun, of_model.served = alarms, last, name
        return counts
