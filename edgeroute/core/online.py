"""A threshold that rises while the edge does worse than it was certified for, learned from answers the cloud was asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import Any, Final

KEPT: Final = 0.9995
"""Of the weight of what is known, at each judged answer: 2,000 of them are remembered."""
EVERY: Final = 20
"""After so many judged answers the estimates are made anew."""
STEP: Final = 0.002
"""How fast the price of a deferral follows the budget, for each request."""


class Online:
    """Which scores are worth a call, by what the edge got wrong lately at each score and at those beside it.

    Scores are put into bins by the quantiles of those of the calibration. For each bin there is an upper bound of the share of
    wrong answers: shares fall as scores rise (isotonic regression), and uncertainty is added. A bin whose bound costs more
    than a call is deferred, and so is all below. What is not known counts as wrong: nobody hears of the wrong answers that
    were accepted, except by an audit, but all that is deferred is judged. So a bin that was not heard of for long is deferred
    until it is known again, and none is deferred for ever. At the beginning the certificate's word is taken: each bin starts
    as if it had given just enough right answers to be accepted, and they are forgotten like the rest.

    With what is remembered, no bound can be lower than about 1/200: where a wrong answer costs more than 200 calls, all is
    deferred that the budget allows.

    Not synchronised: whoever shares it between threads holds a lock.

    Args:
        quantiles: of the calibration's scores, ascending, from the least to the greatest; the two ends are not used.
        budget: the share of requests, 0..1, that may be deferred in the long run, up to `price / STEP` requests more in all.
            Where the floor itself defers more, it does.
        wrong_cost: what a wrong answer costs, more than 0, in the same unit as
        call_cost: what a call costs, more than 0.

    Attributes:
        count: how many answers were judged.
        price: what a deferral costs on top of the call, in calls, so that the budget is kept.

    Raises:
        ValueError: there are no quantiles, they do not ascend, or a number is not in its range.
    """

    __slots__ = ("_answers", "_bounds", "_budget", "_lowest", "_starts", "_weight", "_worth", "_wrong", "count", "price")

    def __init__(self, quantiles: Sequence[float], *, budget: float, wrong_cost: float = 10.0, call_cost: float = 1.0) -> None:
        if not quantiles or not all(a <= b for a, b in zip(quantiles, [*quantiles[1:], inf], strict=True)):
            raise ValueError("no quantiles, or they do not ascend")
        if not (0 <= budget <= 1 and 0 < wrong_cost < inf and 0 < call_cost < inf):
            raise ValueError(f"budget {budget}, wrong_cost {wrong_cost} or call_cost {call_cost} is not in its range")
        self._starts: Final = [-inf, *dict.fromkeys(quantiles[1:-1])]  # scores that tie are one bin
        self._budget: Final = budget
        self._worth: Final = wrong_cost / call_cost
        bins = len(self._starts)
        self._answers = [min(1.5 * self._worth, 1 / (1 - KEPT) / bins)] * bins  # enough to be accepted; no more than can be known
        self._wrong = [0.0] * bins
        self._weight = 1.0
        self.count = 0
        self.price = 0.0
        self._fit()

    def judged(self, confidence: float | None, wrong: bool) -> None:
        """Takes an answer of the edge that was compared with the cloud's: one that was deferred, or accepted and audited.

        One without a confidence (None, NaN) is in no bin and teaches nothing.
        """
        if confidence is None or confidence != confidence:  # noqa: PLR0124 - NaN, without an import
            return
        starts, low, high = self._starts, 0, len(self._starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if confidence >= starts[middle] else (low, middle)
        self._weight /= KEPT  # a newer answer weighs more, which is older ones weighing less
        self._answers[low] += self._weight
        self._wrong[low] += self._weight * wrong
        self.count += 1
        if self.count % EVERY == 0:
            self._fit()

    def routed(self, deferred: int, n: int) -> None:
        """Takes how many of `n` requests were deferred: the price rises while they are more than the budget, else it falls.

        The price stops where it stops all but the floor, so that it comes down as soon as there is budget again.
        """
        self.price = min(self._worth, max(0.0, self.price + STEP * (deferred - self._budget * n)))
        self._choose()

    def threshold(self, floor: float) -> float:
        """The lowest score from which on all is accepted, and never less than the floor; inf: all is deferred.

        Args:
            floor: the certified threshold. To go below it takes another certificate.
        """
        return max(floor, self._lowest)

    def _fit(self) -> None:
        self._answers = [answers / self._weight for answers in self._answers]
        self._wrong = [wrong / self._weight for wrong in self._wrong]
        self._weight = 1.0
        bounds, bound = list[float](), 1.0
        for wrong, answers, bins in falling([w + 0.25 for w in self._wrong], [a + 0.5 for a in self._answers]):
            share, known = wrong / answers, answers - 0.5 * bins
            if known > 1:  # else the bound is no better than 1
                bound = min(bound, share + sqrt(share * (1 - share) / known + 1 / known**2))
            bounds += [bound] * bins  # what holds of a score holds of those above it
        self._bounds = bounds
        self._choose()

    def _choose(self) -> None:
        kept = (start for start, bound in zip(self._starts, self._bounds, strict=True) if bound * self._worth <= 1 + self.price)
        self._lowest = next(kept, inf)

    def dump(self) -> dict[str, object]:
        """What is known, ready for JSON: [weight of the answers, of the wrong ones] of each bin, as of now, and the rest."""
        bins = [[a / self._weight, w / self._weight] for a, w in zip(self._answers, self._wrong, strict=True)]
        return {"starts": self._starts[1:], "count": self.count, "price": self.price, "bins": bins}

    @classmethod
    def load(
        cls,
        dumped: Mapping[str, Any],
        quantiles: Sequence[float],
        *,
        budget: float,
        wrong_cost: float = 10.0,
        call_cost: float = 1.0,
    ) -> Online:
        """The one that was dumped, with estimates made anew; or a new one, if that had other bins. Costs may have changed.

        Raises:
            ValueError: that is no dump, or see the class.
        """
        online = cls(quantiles, budget=budget, wrong_cost=wrong_cost, call_cost=call_cost)
        try:
            starts, count, price = [*dumped["starts"]], dumped["count"], dumped["price"] + 0.0
            bins = [(answers + 0.0, wrong + 0.0) for answers, wrong in dumped["bins"]]
            fits = len(bins) == len(starts) + 1 and all(0 <= wrong <= answers < inf for answers, wrong in bins)
            if not (fits and type(count) is int and count >= 0 and 0 <= price < inf):
                raise ValueError(f"{count} answers, {price}, {bins}")  # noqa: TRY301 - one message for all that may be wrong
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"not a dump of an online threshold: {e!r}") from e
        if starts == online._starts[1:]:
            online._answers, online._wrong = [a for a, _ in bins], [w for _, w in bins]
            online.count, online.price = count, min(price, online._worth)
            online._fit()
        return online


def falling(sums: Sequence[float], weights: Sequence[float]) -> list[tuple[float, float, int]]:
    """Isotonic regression: the means sum / weight that fit best and nowhere rise, by pooling adjacent bins.

    Returns:
        (sum, weight, how many bins) of each pool.
    """
    pools = list[tuple[float, float, int]]()
    for total, weight in zip(sums, weights, strict=True):
        bins = 1
        while pools and pools[-1][0] * weight <= total * pools[-1][1]:  # also if equal: what is known adds up
            before, more, others = pools.pop()
            total, weight, bins = total + before, weight + more, bins + others  # noqa: PLW2901 - it grows
        pools.append((total, weight, bins))
    return pools
