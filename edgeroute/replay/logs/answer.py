"""One recorded answer of a model, and what its parts are read from; nothing of a log's text is ever in an error."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from hashlib import blake2b
from math import nan
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from edgeroute.confidence.curve import ROUNDING
from edgeroute.confidence.scores import quantile

Match = Literal["text", "exact"]
REDACTED: Final = "redacted-by-litellm"
"""What LiteLLM logs in place of messages and answers that it was told not to log."""
LEAST: Final = -1e9
"""Log-probability of a token below which it counts as this: e to it is 0 already, and no number overflows."""
MOST_MODEL: Final = 200
"""Characters of a model's name."""


class Skip(Exception):
    """A record that cannot be used, and why."""


class Answer(NamedTuple):
    """What is kept of a recorded answer. The texts themselves are not."""

    key: bytes
    """Digest of what identifies the request."""
    model: str
    answer: bytes
    """Digest of the answer, equal where two answers count as the same."""
    confidence: float
    """10 % quantile of the token probabilities, 0..1; NaN: not recorded."""
    score: float | None
    """How correct it is, 0..1; None: not recorded."""
    usd: float | None
    tokens: tuple[float, float] | None
    """Of prompt and completion."""


class Ask(NamedTuple):
    """How a log is read."""

    id: str = ""
    """Dotted path of what identifies a request; empty: the format's own, or its messages."""
    score: str = ""
    """Dotted path of how correct the answer is; empty: none."""
    match: Match = "text"


Reader = Callable[[Mapping[str, Any], Ask], Answer]


def digest(value: object) -> bytes:
    """16 bytes that are equal for equal JSON values, whatever the order of their keys."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()


def at(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of keys; None: there is none."""
    found: Any = record
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def identified(record: Mapping[str, Any], ask: Ask, *ids: str, asked: object = None) -> bytes:
    """Digest of what identifies the request: the value at `--id`, else the first of these paths, else what was asked.

    Raises:
        Skip: there is nothing.
    """
    for path in (ask.id,) if ask.id else ids:
        found = at(record, path)
        if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
            return digest(["id", str(found)])
    if ask.id:
        raise Skip("no text or number at --id")
    if not asked:
        raise Skip("no ID and no messages that tell which request it answers (--id)")
    if REDACTED in json.dumps(asked):
        raise Skip("its messages were redacted, so that requests look alike (--id)")
    return digest(["asked", asked])


def number(value: Any, *, most: float = 1e15) -> float | None:
    """A number from 0 to `most`; None where there is none.

    Raises:
        Skip: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Skip("something else where a number is expected")
    if not 0 <= value <= most:
        raise Skip(f"a number that is not from 0 to {most:g}")
    return float(value)


def scored(record: Mapping[str, Any], ask: Ask) -> float | None:
    """How correct the answer is, 0..1, or a bool.

    Raises:
        Skip: it was asked for, and is not there or something else.
    """
    if not ask.score:
        return None
    found = at(record, ask.score)
    if found is None:
        raise Skip("no number at --score")
    return float(found) if isinstance(found, bool) else number(rounded(found), most=1.0)


def rounded(grade: Any) -> Any:
    """A number that arithmetic made a little less than 0 or more than 1 put right; anything else as it is."""
    near = type(grade) is float and (-ROUNDING <= grade < 0 or 1 < grade <= 1 + ROUNDING)
    return float(round(grade)) if near else grade


def sure(logprobs: Any) -> float:
    """The confidence in a text, from the log-probabilities of its tokens; NaN without any.

    Raises:
        Skip: they are none.
    """
    if not isinstance(logprobs, list) or not logprobs:
        return nan
    if not all(type(value) in {int, float} and value <= 0 for value in logprobs):
        raise Skip("log-probabilities of tokens that are no numbers, or above 0")
    return min(1.0, quantile(np.array([max(value, LEAST) for value in logprobs], np.float64)))


def same(text: str, calls: list[list[object]], ask: Ask) -> bytes:
    """Digest of an answer: its text, and the tools that it calls.

    `text`: alike but for case, spaces, width of characters, and punctuation and quotes around it; `exact`: to the letter.
    """
    if ask.match == "text":
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .!?,;:'\"`*()")
    return digest([text, calls])


def named(model: Any) -> str:
    """The name of a model.

    Raises:
        Skip: there is none.
    """
    if not isinstance(model, str) or not model:
        raise Skip("no model is named")
    return model[:MOST_MODEL]
