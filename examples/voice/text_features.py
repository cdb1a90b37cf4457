"""A sentence as hashes of its pieces, in plain Python: what the intent models take.

Its words, pairs of words, and pieces of 3 to 5 characters each go to one of a model's buckets by their CRC-32; the model has a
vector for each, and adds them up. So there is no vocabulary to ship, and a misspelt word still shares most of its pieces.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MOST = 256
"""Pieces of a text: of a longer one the rest is left out, and a shorter one is padded, so that texts can be batched."""
PIECES = (3, 4, 5)
VERSION = "1"
"""Changes with the features: models and certificates belong to one."""
_WORD = re.compile(r"[a-z0-9']+")


def pieces(text: str) -> list[str]:
    """Return words, pairs of words, and pieces of each word with its ends marked, without repeats, in order; 256 at most."""
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    found = [*words, *(f"{a} {b}" for a, b in pairwise(words))]
    for word in words:
        marked = f"<{word}>"
        found += [marked[i : i + size] for size in PIECES for i in range(len(marked) - size + 1)]
    return list(dict.fromkeys(found))[:MOST]


def piece_ids(text: str) -> Array:
    """Return int64 [256], the CRC-32 of each piece of a text, and zeros.

    A model's bucket of a piece is its CRC-32 modulo the number of buckets; those in bucket 0, as the padding, do not count.
    """
    ids = np.zeros(MOST, np.int64)
    found = [crc32(piece.encode()) for piece in pieces(text)]
    ids[: len(found)] = found
    return ids
