"""Features of a prompt, known before anything is generated: sizes, shares of characters, and hashed words with their weights.

Words and pairs of neighbouring words are counted in 65,536 buckets by their CRC-32. A fit weighs them by tf-idf: of a bucket with
count c the value is (1 + ln c) idf, and a prompt's values are divided by their Euclidean norm.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping
from math import isfinite, log1p
from typing import Any
from zlib import crc32

import numpy as np

from edgeroute.errors import BadReply, PolicyError

HASHED = "hashed words"  # name of the feature that maps a bucket to its count
BUCKETS = 65_536
LONGEST = 2048  # most characters of a prompt's begin, and of its end, of which words and characters are counted
_WORD = re.compile(r"\w\w+")
_SIGNS = (
    "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "=+-*/^<>\\$%", "()[]{}", ",", ".!", ":;", "\"'`",
)  # fmt: skip
# [groups, 256]: 1 for the ASCII characters of each group.
_IN_SIGNS = np.array([[chr(code) in signs for code in range(256)] for signs in _SIGNS], np.float64)


def prompt_features(text: str, *, buckets: int = BUCKETS) -> dict[str, Any]:
    """Return features of a prompt: about a microsecond per word, the same in each process and on each platform.

    Args:
        text: the prompt. Of more than 4,096 characters, words and characters are counted in the first and last 2,048.
        buckets: number of buckets of `hashed words`; 0: without them.

    Returns:
        Name -> number: sizes and counts as logarithms of one plus them, and shares of characters. `hashed words` maps a bucket of
        words, and of pairs of neighbouring words, to its count.

    Raises:
        PolicyError: `text` is not a text, or `buckets` is no whole number from 0 to 65,536.
    """
    if not isinstance(text, str):
        raise PolicyError(f"a prompt is a text, not a {type(text).__name__}")
    if not isinstance(buckets, int) or not 0 <= buckets <= BUCKETS:
        raise PolicyError(f"buckets= takes a whole number from 0 to {BUCKETS:,}, not {buckets!r}")
    part = text if len(text) <= 2 * LONGEST else f"{text[:LONGEST]} {text[-LONGEST:]}"
    lower, size = part.lower(), max(1, len(part))
    words = lower.split()
    lengths, count = list(map(len, words)) or [0], max(1, len(words))
    numbers, questions = sum(word[0].isdigit() for word in words), text.count("?")
    signs = _IN_SIGNS @ np.bincount(np.frombuffer(part.encode("utf-8", "surrogatepass"), np.uint8), minlength=256)
    figures, capitals, small, mathematical, brackets, commas, stops, colons, quotes = signs.tolist()
    others = "" if part.isascii() else [c for c in part if c > "\x7f"]
    alike = figures, capitals, capitals + small
    figures, capitals, letters = (
        n + sum(map(of, others)) for n, of in zip(alike, (str.isdigit, str.isupper, str.isalpha), strict=True)
    )
    features: dict[str, Any] = {
        "characters": log1p(len(text)), "words": log1p(len(words)), "lines": log1p(text.count("\n")),
        "questions": log1p(questions), "word length": sum(lengths) / count, "distinct words": len(set(words)) / count,
        "longest word": log1p(max(lengths)), "digits": figures / size, "capitals": capitals / size, "letters": letters / size,
        "foreign": len(others) / size, "signs": mathematical / size, "brackets": brackets / size,
        "other characters": 1 - (figures + letters) / size,
        "numbers": log1p(numbers), "commas": log1p(commas), "sentences": log1p(stops + questions), "colons": log1p(colons),
        "quotes": log1p(quotes), "ends with a question": float(part[-64:].rstrip().endswith("?")),
    }  # fmt: skip
    if buckets:
        parts = " ".join(_WORD.findall(lower)).encode("utf-8", "surrogatepass").split()
        hashes = list(map(crc32, parts))
        pairs = [crc32(word, before ^ 0xFFFF) for before, word in zip(hashes, parts[1:], strict=False)]
        features[HASHED] = dict(Counter([code % buckets for code in hashes + pairs]))
    return features


class WordWeights:
    """Inverse document frequencies of the buckets in the prompts of a fit, and their weights.

    Args:
        data: `idf` and `weights`, float16 in base64, and the `scale` of the weights.

    Raises:
        ValueError, KeyError or TypeError: the data is damaged.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._idf, self._weights = (
            np.frombuffer(b64decode(data[name], validate=True), "<f2").astype(np.float32) for name in ("idf", "weights")
        )
        self._scale = float(data["scale"])
        parts = self._idf, self._weights
        if not isfinite(self._scale) or not all(part.shape == (BUCKETS,) and np.isfinite(part).all() for part in parts):
            raise ValueError(f"words need {BUCKETS:,} finite weights")

    def weigh(self, counts: Any) -> float:
        """Return the weighted sum of a prompt's words; 0 without words.

        counts: bucket -> count, above 0.

        Raises:
            BadReply: the counts are not those of `prompt_features`.
        """
        try:
            buckets = np.fromiter(counts, np.intp, len(counts))
            values = (1 + np.log(np.fromiter(counts.values(), np.float64, len(counts)))) * self._idf[buckets]
        except (AttributeError, IndexError, TypeError, ValueError) as e:
            raise BadReply(f"the feature {HASHED!r} maps buckets to counts: {type(e).__name__}") from e
        norm = float(values @ values) ** 0.5
        return float(values @ self._weights[buckets]) * self._scale / norm if norm else 0.0
