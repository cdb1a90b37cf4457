"""Checks if examples look independent (ties, repeats, similar neighbours), and sketches that recognise examples seen before.

All findings are warnings or shares: examples that look dependent may be sorted or coarse, and dependent ones may look otherwise.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from math import comb, exp, log, log1p, sqrt

import numpy as np
from numpy.typing import ArrayLike

from edgeroute.confidence.binomial_tests import Floats, Ints

TIED = 0.1  # share of examples with the same score from which a warning is given
REPEATED = 0.02  # share of examples that look like copies of others from which a warning is given
COARSE = 0.05  # scores that use at least this share of the levels between their extremes are on a grid, and tie by chance
ALIKE = 0.1  # lag-1 correlation of scores from which a warning is given, if it is also beyond 5 standard errors
SKETCH = 64  # hashes in a sketch
SIGMAS = 4  # standard errors by which matches must exceed what repeats explain
UNLIKELY = 0.01  # or the probability below which as many pairs are no chance
_HASH = 8  # hexadecimal digits of a hash


def dependence(scores: Floats, edge: Floats | None, cloud: Floats | None, groups: Ints | None) -> list[str]:
    """Return warnings about tied scores, repeated examples (the same score and correctness), and neighbours with like scores.

    After a warning of repeats, neighbours are not checked. Empty without a finding.

    Args:
        scores: [n], in the order in which the examples came.
        edge: [n], correctness of the edge; None: unknown.
        cloud: [n], correctness of the cloud; None: unknown.
        groups: [n], numbers of groups, which are checked in place of examples.
    """
    warnings = []
    finite = scores[~np.isnan(scores)]
    levels, counts = np.unique(finite, return_counts=True)
    tied = counts.max() / len(scores)
    if tied > TIED:
        warnings.append(
            f"{tied * 100:.0f} % of the examples share the score {levels[counts.argmax()]:g}, and are accepted or deferred "
            "together; a softmax of 8 bits does that: take the score from logits"
        )
    if groups is None:
        copies = int(len(finite) - len(levels))
        if copies > REPEATED * len(scores) and not _grid(levels) and _same_outcomes(scores, edge, cloud):
            effective = len(finite) ** 2 / int(np.square(counts).sum())
            warnings.append(
                f"{copies:,} of the {len(scores):,} examples repeat the score of another exactly: if they are repeated inputs, "
                f"they {_count_as(effective)}. Take each once, or give groups="
            )
            return warnings
    else:
        finite = np.bincount(groups, np.nan_to_num(scores)) / np.bincount(groups)
    between = correlations(finite)
    if between is not None and between[0] > max(ALIKE, 5 / sqrt(len(finite))):
        what = "examples" if groups is None else "groups"
        warnings.append(
            f"neighbouring {what} have similar scores (a lag-1 correlation of {between[0]:.2f}): if they are frames of a film or "
            f"parts of a session, these {len(finite):,} {_count_as(len(finite) / (1 + 2 * between.sum()))}. Give groups= (scene, "
            "user, session), or take fewer (--every N). If they are only sorted, shuffle them"
        )
    return warnings


def _count_as(effective: float) -> str:
    """Return the end of a warning: how many independent examples these count as."""
    return f"count as about {effective:,.0f} independent ones, and the guarantee is broken more often than stated"


def correlations(values: Floats) -> Floats | None:
    """Return autocorrelations of ranks from lag 1 on, until one is below +2 standard errors; at least one.

    None if the values are sorted, or fewer than 30.
    """
    n = len(values)
    steps = np.diff(values)
    if n < 30 or (steps >= 0).all() or (steps <= 0).all():  # noqa: PLR2004 - a correlation of fewer says nothing
        return None
    ranks = np.unique(values, return_inverse=True)[1].astype(float)
    ranks -= ranks.mean()
    size = 1 << (2 * n).bit_length()
    power = np.abs(np.fft.rfft(ranks, size)) ** 2
    result: Floats = np.fft.irfft(power, size)[1 : n // 2] / (ranks @ ranks)
    small = result < 2 / sqrt(n)
    return result[: max(1, int(small.argmax()))] if small.any() else result


def _grid(levels: Floats) -> bool:
    """Return True if these distinct scores, ascending, look rounded or counted: no step is much smaller than an even one."""
    steps = np.diff(levels)
    return bool(steps.min() * len(steps) > COARSE * (levels[-1] - levels[0]))


def _same_outcomes(scores: Floats, edge: Floats | None, cloud: Floats | None) -> bool:
    """Return True if examples with equal scores nearly always had equal outcomes, as copies do; by each side that is known."""
    order = np.argsort(scores, kind="stable")
    tied = np.flatnonzero(np.diff(scores[order]) == 0)
    for side in (edge, cloud):
        if side is not None:
            differ = np.count_nonzero(side[order][tied] != side[order][tied + 1])
            levels = np.unique(side, return_counts=True)[1] / len(side)
            if differ > len(tied) * (1 - np.square(levels).sum()) / 4:
                return False
    return True


def sketch(rows: ArrayLike) -> str:
    """Return a sketch of examples, by which `overlap` recognises them; no example can be read from it.

    The sketch is the smallest 64 of the hashes of the distinct rows, hexadecimal.

    Args:
        rows: [n] or [n, columns], numbers: scores or outputs.
    """
    return "".join(sorted({*_hashes(rows)})[:SKETCH])


def overlap(sketched: str, rows: ArrayLike) -> float:
    """Estimate the share of these examples that were among those of a sketch, 0..1; 0 for an empty one.

    rows: as for `sketch`, of the same kind, which is not checked: those of another kind give about 0.
    """
    hashes, last = _read_sketch(sketched)
    near = {h for h in _hashes(rows) if h <= last}
    return len(near & hashes) / len(near) if near and hashes else 0.0


def overlap_beyond_chance(sketched: str, rows: ArrayLike, n: int) -> float:
    """Estimate the share of these examples that were among the `n` of a sketch, 0..1; 0 where chance may explain the matches.

    Different inputs may have equal rows, as of a small tree. How many of these examples have the row of another of them says how
    often: a match in as many other examples of the same source is as likely. Either of two tests has to exclude that: more
    examples match than this explains, or too many rows that are here once do for those that are here twice.
    """
    hashes, last = _read_sketch(sketched)
    counts = Counter(_hashes(rows))
    near = {h: count for h, count in counts.items() if h <= last}
    once = sum(h in hashes for h, count in near.items() if count == 1)
    if not once:
        return 0.0
    size, ratio = sum(near.values()), n / sum(counts.values())
    repeated = sum(count for count in near.values() if count > 1) / size
    chance = 1 - (1 - repeated) ** max(1.0, ratio)  # a bound by Jensen's inequality, if the sketch is of more
    weight = chance / repeated if repeated else 1.0
    beyond = [count * ((h in hashes) - (count > 1) * weight) for h, count in near.items()]
    twice = sum(count == 2 for count in counts.values())  # noqa: PLR2004 - a pair
    kept = int(last, 16) / 16**_HASH  # share of all possible rows that the sketch holds, if they were there
    if sum(beyond) < SIGMAS * sqrt(sum(value**2 for value in beyond)) and _pairs(once, twice, 2 * kept * ratio) > UNLIKELY:
        return 0.0
    matched = sum(count for h, count in near.items() if h in hashes) / size
    return float(max(0.0, (matched - chance) / (1 - chance))) if chance < 1 else 0.0


def _pairs(once: int, twice: int, odds: float) -> float:
    """Return the probability that so many or more of these rows are one here and one in the sketch, and not both here.

    odds: of that for two equal rows of the same source, by the sizes of the samples; for three or more it is less likely.
    """
    n, rate = once + twice, odds / (1 + odds)
    return 1 - sum(exp(log(comb(n, k)) + k * log(rate) + (n - k) * log1p(-rate)) for k in range(once))


def _read_sketch(sketched: str) -> tuple[set[str], str]:
    """Return the hashes of a sketch, and the last hash up to which it holds those of all its rows."""
    hashes = {sketched[i : i + _HASH] for i in range(0, len(sketched), _HASH)}
    return hashes, max(hashes) if len(hashes) == SKETCH else "f" * _HASH


def _hashes(rows: ArrayLike) -> list[str]:
    """Return the hash of each row, rounded to 6 digits, so that the order of a sum does not matter."""
    table = np.asarray(rows, np.float64)
    if not table.size:
        return []
    table = table.reshape(len(table), -1)
    return [blake2b(",".join([f"{v:.6g}" for v in row]).encode(), digest_size=_HASH // 2).hexdigest() for row in table.tolist()]
