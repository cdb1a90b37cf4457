"""Whether examples look independent: ties, repeated examples, neighbours that are alike; and whether they were seen before.

All of it is said as a warning, or as a share: what looks alike may be sorted or coarse, and what is dependent may look otherwise.
"""

from __future__ import annotations

from hashlib import blake2b
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from edgeroute.confidence.exact import Floats, Ints

TIED = 0.1
"""Share of examples with one tied score from which it is told."""
REPEATED = 0.02
"""Share of examples that look like copies of others from which it is told."""
COARSE = 0.05
"""Scores that use so large a part of the levels that their smallest step allows are on a grid, and tie by chance."""
ALIKE = 0.1
"""Lag-1 correlation of scores from which it is told, if it is also beyond 5 standard errors."""
SKETCH = 64
"""Hashes in a sketch."""
_HASH = 8
"""Hexadecimal digits of a hash."""


def dependence(scores: Floats, edge: Floats | None, cloud: Floats | None, groups: Ints | None) -> list[str]:
    """What to warn of.

    Args:
        scores: [n], in the order in which the examples came.
        edge: [n], how correct it is; None: unknown.
        cloud: [n], likewise.
        groups: [n], numbers of groups, which are looked at in place of examples.
    """
    found = []
    known = scores[~np.isnan(scores)]
    levels, counts = np.unique(known, return_counts=True)
    tied = counts.max() / len(scores)
    if tied > TIED:
        found.append(
            f"{tied:.0%} of the examples share the score {levels[counts.argmax()]:g}, and are accepted or deferred together; "
            "a softmax of 8 bits does that: take the score from logits"
        )
    if groups is None:
        copies = int(len(known) - len(levels))
        if copies > REPEATED * len(scores) and not _grid(levels) and _same_outcomes(scores, edge, cloud):
            effective = len(known) ** 2 / int(np.square(counts).sum())
            found.append(
                f"{copies:,} of the {len(scores):,} examples repeat the score of another exactly: if they are repeated inputs, "
                f"they {_count_as(effective)}. Take each once, or give groups="
            )
            return found
    else:
        known = np.bincount(groups, np.nan_to_num(scores)) / np.bincount(groups)
    between = correlations(known)
    if between is not None and between[0] > max(ALIKE, 5 / sqrt(len(known))):
        what = "examples" if groups is None else "groups"
        found.append(
            f"neighbouring {what} have similar scores (a lag-1 correlation of {between[0]:.2f}): if they are frames of a film or "
            f"parts of a session, these {len(known):,} {_count_as(len(known) / (1 + 2 * between.sum()))}. Give groups= (scene, "
            "user, session), or take fewer (--every N). If they are only sorted, shuffle them"
        )
    return found


def _count_as(effective: float) -> str:
    return f"count as about {effective:,.0f} independent ones, and the promise is broken more often than it says"


def correlations(values: Floats) -> Floats | None:
    """Autocorrelations of ranks from lag 1 on, until they are within 2 standard errors of 0. None: sorted, or few."""
    n = len(values)
    steps = np.diff(values)
    if n < 30 or (steps >= 0).all() or (steps <= 0).all():  # noqa: PLR2004 - a correlation of fewer says nothing
        return None
    ranks = np.unique(values, return_inverse=True)[1].astype(float)
    ranks -= ranks.mean()
    size = 1 << (2 * n).bit_length()
    power = np.abs(np.fft.rfft(ranks, size)) ** 2
    found: Floats = np.fft.irfft(power, size)[1 : n // 2] / (ranks @ ranks)
    small = found < 2 / sqrt(n)
    return found[: max(1, int(small.argmax()))] if small.any() else found


def _grid(levels: Floats) -> bool:
    """Whether these distinct scores, ascending, are so many of the steps between them that they are rounded or counted."""
    steps = np.diff(levels)
    return bool(steps.min() * len(steps) > COARSE * (levels[-1] - levels[0]))


def _same_outcomes(scores: Floats, edge: Floats | None, cloud: Floats | None) -> bool:
    """Whether examples with equal scores also had equal outcomes, which others would not."""
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
    """A sketch of examples, by which `overlap` knows them again; nothing of them can be read from it.

    Args:
        rows: [n] or [n, columns], numbers: scores or outputs.

    Returns:
        The smallest 64 of the hashes of the distinct rows, hexadecimal.
    """
    return "".join(sorted(_hashes(rows))[:SKETCH])


def overlap(sketched: str, rows: ArrayLike) -> float:
    """About which share of these examples was among those of a sketch, 0..1. rows: as for `sketch`, of the same kind."""
    kept = {sketched[i : i + _HASH] for i in range(0, len(sketched), _HASH)}
    if not kept:
        return 0.0
    last = max(kept) if len(kept) == SKETCH else "g"
    near = {one for one in _hashes(rows) if one <= last}
    return len(near & kept) / len(near) if near else 0.0


def _hashes(rows: ArrayLike) -> set[str]:
    """Of each distinct row, to 6 digits, so that the order of a sum does not matter."""
    table = np.asarray(rows, np.float64)
    if not table.size:
        return set()
    table = table.reshape(len(table), -1)
    return {blake2b(",".join([f"{v:.6g}" for v in row]).encode(), digest_size=_HASH // 2).hexdigest() for row in table.tolist()}
