"""Answers and inputs of a model under test: compared, spoilt, and in words."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput


def said(error: BaseException) -> str:
    """An exception in a message."""
    text = str(error).strip().splitlines()
    return type(error).__name__ + (f" ({text[0][:200]})" if text else "")


def shown(answer: Prediction) -> str:
    """An answer in a message."""
    sure = "" if answer.confidence is None else f" at {answer.confidence:.4g}"
    return f"{short(answer.value)}{sure}"


def short(x: Any) -> str:
    """A value in a message."""
    if isinstance(x, np.ndarray):
        return f"an array {list(x.shape)} {x.dtype}"
    text = repr(x)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a line's worth


def equal(a: Any, b: Any, rtol: float) -> bool:
    """Whether two values are the same within the tolerance; NaN is itself."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key], rtol) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y, rtol) for x, y in zip(a, b, strict=True))
    if not (numbers(a) and numbers(b)):
        return bool(np.all(a == b))
    one, two = np.asarray(a), np.asarray(b)
    if one.shape != two.shape:
        return False
    return bool(np.allclose(one, two, rtol=rtol, atol=rtol / 100, equal_nan=True))


def numbers(x: Any) -> bool:
    """Whether it is a number, or an array of some."""
    return isinstance(x, int | float | np.number | np.ndarray) and np.asarray(x).dtype.kind in "fiub"


def swallowed(error: BaseException) -> bool:
    """Whether a `BadInput` led to another exception."""
    seen = set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, BadInput):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def bad_of(sample: Any) -> list[Any]:
    """What follows from a sample to be no input: another rank, and text for numbers."""
    if isinstance(sample, Mapping):
        return [{}, *({**sample, name: one} for name, part in sample.items() for one in bad_of(part))]
    if not isinstance(sample, np.ndarray) or sample.dtype.kind not in "fiub":
        return []
    return [np.zeros((2, 3, *sample.shape), sample.dtype), np.full(sample.shape, "text")]


def with_nan(sample: Any) -> Any:
    """The sample with NaN for its first number; None: it has no place for it."""
    if isinstance(sample, Mapping):
        for name, part in sample.items():
            if (spoilt := with_nan(part)) is not None:
                return {**sample, name: spoilt}
        return None
    if isinstance(sample, float):
        return math.nan
    if not isinstance(sample, np.ndarray) or sample.dtype.kind != "f" or not sample.size:
        return None
    sample.flat[0] = math.nan
    return sample


def whole_of(pipe: int) -> str:
    """The text that comes through a pipe, to its end."""
    parts = []
    while part := os.read(pipe, 4096):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")
