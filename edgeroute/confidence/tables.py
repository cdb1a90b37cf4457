"""Features of one's own for a learned score: tables with names, and those of a prompt, before anything is generated.

A table is a mapping from name to numbers [n] or [n, d] (an embedding), or a list with a mapping from name to number, or to a row
of numbers, for each example. One input's features are such a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import log1p
from typing import Any
from zlib import crc32

import numpy as np

from edgeroute.confidence.features import Array
from edgeroute.errors import BadReply, PolicyError

LARGEST = 1e100
"""Of a feature, either sign."""
BUCKETS = 64
"""Buckets of words and pairs of words, by their hashes."""


def is_table(given: Any) -> bool:
    """Whether these are features with names, rather than logits."""
    return isinstance(given, Mapping) or (isinstance(given, Sequence) and len(given) > 0 and isinstance(given[0], Mapping))


def table_of(given: Any, base: str | None) -> tuple[list[str], list[int], Array]:
    """A table as its names, the number of columns of each, and all columns [n, k]; that of the base score first.

    Raises:
        PolicyError: it is no table, its columns differ in length, or there is no column of the base score.
    """
    names = list(given if isinstance(given, Mapping) else given[0])
    if base is not None and base not in names:
        raise PolicyError(f"there is no feature {base!r}: there are {', '.join(map(str, names))}")
    names.sort(key=lambda name: name != base)
    try:
        rows = given if isinstance(given, Mapping) else {name: [one[name] for one in given] for name in names}
        columns = [np.asarray(rows[name], np.float64) for name in names]
    except (KeyError, OverflowError, TypeError, ValueError) as e:
        raise PolicyError(f"features are numbers, the same for each example: {type(e).__name__}: {e}") from e
    n = len(columns[0]) if columns and columns[0].ndim else 0
    if any(column.ndim not in {1, 2} or len(column) != n for column in columns):
        there = ", ".join(f"{name} {list(column.shape)}" for name, column in zip(names, columns, strict=True))
        raise PolicyError(f"each feature is [n] or [n, d], with the same n: there are {there}")
    if base is not None and columns[0].ndim == 2:  # noqa: PLR2004 - rows of numbers
        raise PolicyError(f"the base score {base!r} is one number for each example")
    if not n:
        raise PolicyError("there are no features, or no examples")
    columns = [column.reshape(n, -1) for column in columns]
    table = np.concatenate([np.empty((n, 0)), *columns], 1)
    if (np.isfinite(table) & (np.abs(table) > LARGEST)).any():
        raise PolicyError(f"features are numbers of a size that can be squared, up to {LARGEST:g}: scale them")
    return names, [column.shape[1] for column in columns], table


def row_of(features: Any, names: Sequence[str], widths: Sequence[int]) -> list[float]:
    """One input's features in the order of the fit.

    Raises:
        BadReply: one is missing, or is not as many numbers as in the fit.
    """
    found = list[float]()
    for name, width in zip(names, widths, strict=True):
        try:
            value = features[name]
            numbers = [float(value)] if width == 1 and np.ndim(value) == 0 else [float(v) for v in value]
        except (KeyError, OverflowError, TypeError, ValueError) as e:
            raise BadReply(f"the score needs a feature {name!r} that it was fitted to: {type(e).__name__}") from e
        if len(numbers) != width:
            raise BadReply(f"the feature {name!r} has {len(numbers)} numbers, and the score was fitted to {width}")
        found += numbers
    return found


def prompt_features(text: str, *, buckets: int = BUCKETS) -> dict[str, float]:
    """Features of a prompt, known before anything is generated: a few microseconds for each word, the same in each process.

    Args:
        text: the prompt.
        buckets: into how many counts words, and pairs of neighbouring words, are hashed; 0: none.

    Returns:
        Name -> number: sizes and counts as logarithms of one plus them, and shares of characters.

    Raises:
        PolicyError: it is no text, or `buckets` is no whole number from 0.
    """
    if not isinstance(text, str):
        raise PolicyError(f"a prompt is a text, not a {type(text).__name__}")
    if not isinstance(buckets, int) or buckets < 0:
        raise PolicyError(f"buckets= takes a whole number, 0 or more, not {buckets!r}")
    words = text.lower().split()
    size = max(1, len(text))

    def share(test: Callable[[str], bool]) -> float:
        return sum(map(test, text)) / size

    found = {
        "characters": log1p(len(text)),
        "words": log1p(len(words)),
        "lines": log1p(text.count("\n")),
        "questions": log1p(text.count("?")),
        "word length": sum(map(len, words)) / max(1, len(words)),
        "distinct words": len(set(words)) / max(1, len(words)),
        "longest word": log1p(max(map(len, words), default=0)),
        "digits": share(str.isdigit),
        "capitals": share(str.isupper),
        "letters": share(str.isalpha),
        "foreign": share(lambda c: not c.isascii()),
        "signs": share(lambda c: c in "=+-*/^<>\\$%"),
        "brackets": share(lambda c: c in "()[]{}"),
        "numbers": log1p(sum(word[0].isdigit() for word in words)),
    }
    counts = [0] * buckets
    if buckets:
        for part in (*words, *(f"{a} {b}" for a, b in pairwise(words))):
            counts[crc32(part.encode("utf-8", "surrogatepass")) % buckets] += 1
    return found | {f"bucket {i}": log1p(count) for i, count in enumerate(counts)}
