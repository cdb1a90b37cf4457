"""Canary inputs: a few inputs with their right answers, on which a new version is tried before it is put in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.errors import CatalogError

CLOSE = 1e-3
"""Relative and absolute difference of numbers that count as equal: devices sum in another order."""
NAMED = "input:"
"""Before the name of an input in a file, of a model with several."""


class Canaries(NamedTuple):
    """Inputs with their right answers."""

    inputs: Sequence[Any]
    """Each as a router takes it."""
    answers: Sequence[Any]
    most_wrong: int
    """So many may be answered otherwise."""

    def wrong(self, answer: Callable[[Any], Any]) -> list[str]:
        """What a function of an input answers otherwise, a text each; empty: no more than may be."""
        found = []
        for i, (x, right) in enumerate(zip(self.inputs, self.answers, strict=True)):
            value = answer(x)
            if not same(value, right):
                found.append(f"canary input {i}: {value!s:.60}, and {right!s:.60} is right")
        return found if len(found) > self.most_wrong else []


def same(value: Any, right: Any) -> bool:
    """Whether an answer is the right one: equal as text, or close as numbers."""
    try:
        a, b = np.asarray(value), np.asarray(right)
        if np.issubdtype(b.dtype, np.inexact):
            return (
                np.issubdtype(a.dtype, np.number)
                and a.shape == b.shape
                and bool(np.allclose(a.astype(float), b, rtol=CLOSE, atol=CLOSE, equal_nan=True))
            )
    except (TypeError, ValueError):
        return False
    return bool(a.shape == b.shape and (a.astype(str) == b.astype(str)).all())


def read(path: Path) -> Canaries:
    """Reads them from an .npz file.

    It has `inputs` [n, ...] (or `input:NAME` for each of several), `answers` [n, ...], and `most_wrong` where not all must agree.

    Raises:
        CatalogError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
        named = {key.removeprefix(NAMED): value for key, value in arrays.items() if key.startswith(NAMED)}
        answers = arrays["answers"]
        inputs = _rows(named, len(answers)) if named else list(arrays["inputs"])
        if len(inputs) != len(answers) or not inputs:
            raise ValueError(f"{len(inputs)} inputs and {len(answers)} answers")  # noqa: TRY301 - told below, as the rest
        return Canaries(inputs, list(answers), int(arrays.get("most_wrong", 0)))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as e:
        raise CatalogError(f"{path} has no canary inputs with answers: {e}") from e


def _rows(named: dict[str, Any], n: int) -> list[dict[str, Any]]:
    return [{name: value[i] for name, value in named.items()} for i in range(n)]


def written(path: Path, inputs: Sequence[Any], answer: Callable[[Any], Any]) -> None:
    """Writes inputs with what a function answers: for a publisher, who has looked at the answers.

    Raises:
        CatalogError: the answers are none that a file can have.
    """
    answers = np.array([answer(x) for x in inputs])
    if answers.dtype.hasobject:
        raise CatalogError("the model's answers are no labels or numbers: write the canary file yourself")
    columns: Iterator[tuple[str, Any]] = (
        ((f"{NAMED}{name}", np.stack([x[name] for x in inputs])) for name in inputs[0])
        if isinstance(inputs[0], dict)
        else iter([("inputs", np.stack([np.asarray(x) for x in inputs]))])
    )
    arrays: dict[str, Any] = {**dict(columns), "answers": answers}
    np.savez_compressed(path, **arrays)
