"""Fixed-sequence testing of candidate thresholds (risk control); the exact tests themselves are in exact.py.

Candidate thresholds are tested from the highest score down, one block of tied scores at a time. At each, the null hypothesis
"the guarantee is violated at this threshold" is tested, and the sequence stops at the first one not rejected, so no
correction for multiple testing is needed. No candidate is skipped: to pass the first threshold t* that violates the
guarantee, the sequence would have to reject the null at t* itself, which does not depend on the data; so the total risk is
that of one test.
"""

from __future__ import annotations

from math import ceil, floor, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeroute.confidence.certificate import INF, Kind
from edgeroute.confidence.exact import Floats, Ints, d_limits, lr_limits, most, most_of_each, needed
from edgeroute.errors import PolicyError

Bools = NDArray[np.bool_]
FEW = 1.5
"""Below n * eps = FEW * log(1 / delta) (4.5 at 95 %) only harms are tested: wins are too rare to help."""
MANY = 4000
"""Most examples for the likelihood-ratio test; beyond, the difference test is as powerful and faster."""
START = 0.2
"""Selective error is first tested at this acceptance rate: fewer examples prove little and may end the sequence early."""


class Step(NamedTuple):
    """The threshold at which a test sequence stopped, and the test used."""

    threshold: float
    method: str


def lowest_threshold(
    kind: Kind, value: float, delta: float | None, scores: Floats, edge: Bools | None, cloud: Bools | None
) -> Step:
    """Tests the thresholds of one class, or of all examples; there are enough of them for the first test."""
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]  # NaN comes last
    s = scores[order]
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True)[: len(s)])  # the last of each block of equal scores
    if kind == "max_defer":
        blocks, method = _by_rank(value, delta, len(scores), s[ends], len(scores) - 1 - ends)
    else:
        assert edge is not None
        assert delta is not None
        wrong = ~edge[order]
        if kind == "max_error":
            blocks, method = (
                accept_selective(np.cumsum(wrong, dtype=np.int64)[ends], ends + 1, len(scores), value, delta),
                "CP-error",
            )
        else:
            right = np.ones(len(order), bool) if cloud is None else cloud[order]
            h, w = (np.cumsum(found, dtype=np.int64)[ends] for found in (wrong & right, ~wrong & ~right))
            method = relative_method(len(scores), value, delta, wins=cloud is not None)
            blocks = accept_relative(method, h, w, len(scores), value, delta)
    return Step(between(s, ends, blocks), method)


def relative_method(n: int, eps: float, delta: float, *, wins: bool) -> str:
    """The test for max_loss, chosen before any outcome is seen. wins: whether cloud errors are observed."""
    if not wins or n * eps < FEW * log(1 / delta):
        return "CP-harm"
    return "LR-BB" if n <= MANY else "D-BB"


def accept_relative(method: str, h: Ints, w: Ints, n: int, eps: float, delta: float) -> int:
    """Number of leading blocks that pass the max_loss test. h, w: cumulative harms and wins [blocks]."""
    if method == "CP-harm":
        return passed(h <= most(n, eps, delta))
    if method == "D-BB":
        limits = d_limits(n, eps, delta, min(n, _rounded(int(h[-1] + w[-1])))) if len(h) else h
        return passed(h - w <= limits[h + w])
    wins = 16
    while True:  # most sequences stop at few wins, and the table grows with their square
        limits = lr_limits(n, eps, delta, wins)
        blocks = passed((w <= wins) & (h <= limits[np.minimum(w, wins)]))
        if blocks == len(w) or w[blocks] <= wins:
            return blocks
        wins *= 2


def accept_selective(wrong: Ints, m: Ints, n: int, alpha: float, delta: float) -> int:
    """Number of leading blocks that pass the max_error test. wrong, m: cumulative errors and examples [blocks].

    The first tested block is chosen by rank, not by a fixed score, so the test is exact except for the example at that rank.
    """
    first = int(np.searchsorted(m, max(needed(alpha, delta), ceil(START * n))))
    blocks = passed(wrong[first:] <= most_of_each(n, alpha, delta)[m[first:]])
    return first + blocks if blocks else 0


def _by_rank(value: float, delta: float | None, n: int, levels: Floats, below: Ints) -> tuple[int, str]:
    """Number of leading blocks to accept for max_defer. below: examples ranked below each block [blocks].

    P(score < the k-th lowest) is Beta(k, n - k + 1), of which the mean is k / (n + 1); NaN is ranked lowest.
    """
    rank = floor(value * (n + 1)) if delta is None else most(n, value, delta) + 1
    blocks = int(np.count_nonzero(below >= rank)) + 1
    if blocks > len(levels):
        raise PolicyError(f"no threshold defers at most {value:g}: {below[-1] / n:.1%} of the examples have no score")
    return blocks, "rank" if delta is None else "Beta"


def passed(ok: Bools) -> int:
    """Number of leading True values."""
    return len(ok) if ok.all() else int(ok.argmin())


def _rounded(count: int) -> int:
    """Rounds up to a power of two, so that cached tables are shared."""
    return 1 << count.bit_length()


def between(s: Floats, ends: Ints, blocks: int) -> float:
    """The threshold that accepts so many blocks: mid-gap, so that rounding elsewhere moves no score across."""
    if not blocks:
        return INF
    lowest = float(s[ends[blocks - 1]])
    if blocks == len(ends):
        return lowest
    below = float(s[ends[blocks - 1] + 1])
    middle = below / 2 + lowest / 2
    return middle if middle > below else lowest
