"""Guesses what a model's outputs are, and what its card would say: from names, forms, and what came when it ran. Pure."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from edgeroute.confidence.boxes import are_boxes
from edgeroute.confidence.forms import (
    SUM_SLACK,
    as_array,
    is_by_class,
    label_and_probabilities,
    sum_to_one,
    tokens_and_logprobs,
)
from edgeroute.edge.tensors import Array, shape_text
from edgeroute.tools.inspect.guess_inputs import Finding, InputGuess, Pair, Sure, quoted, text, words
from edgeroute.types import TensorSpec

Row = Mapping[str, Any]
"""Outputs for one input, without a batch axis, by name."""
_PROBABLE = frozenset(["prob", "probs", "probability", "probabilities", "softmax", "proba"])
_LOGITS = frozenset(["logit", "logits"])
_SCORES = frozenset(["score", "scores", "class", "classes", "classification", "cls"])
_EMBEDDINGS = frozenset(
    ["embedding", "embeddings", "embed", "feature", "features", "hidden", "pooler", "pooled", "vector", "latent"]
)
_COLUMNS = 6
_SIDES = 4
_MATRIX = 2
KIND, NAME, LABELS = "output.kind", "output.name", "labels"
_VALUE = 'A value has no confidence: every input is deferred, unless the policy says no_confidence = "accept"'


def outputs(specs: Sequence[TensorSpec], rows: Sequence[Row]) -> list[Finding]:
    """What the outputs are.

    Args:
        specs: of the outputs, without those that are fed back.
        rows: what the model gave for some inputs; empty: it did not run.
    """
    seen = [row for row in rows if row]
    if not specs:
        return [Finding(KIND, "nothing", "open", "every output is fed back, so that none is left to read")]
    if not seen:
        return _by_names(specs)
    if len(specs) > 1:
        for together in (_boxes, _labelled, _tokens):
            if (found := together(seen)) is not None:
                return found
    name, chosen = _chosen(specs)
    return [*chosen, *_one(name, [row[name] for row in seen if name in row])]


def _counted(rows: Sequence[Any]) -> str:
    return f"in {'the one row' if len(rows) == 1 else f'all {len(rows)} rows'} that it gave"


def _kind(kind: str | None, sure: Sure, grounds: str, write: str = "") -> Finding:
    return Finding(KIND, kind or "?", sure, grounds, write)


def _line(kind: str, name: str | None = None) -> str:
    return '"output": {' + (f'"name": {text(name)}, ' if name else "") + f'"kind": "{kind}"}}'


def _boxes(rows: Sequence[Row]) -> list[Finding] | None:
    if not all(are_boxes(_without_batch(row)) for row in rows):
        return None
    named = "their names have box and score in them, and the boxes have four sides"
    return [_kind("boxes", "likely", f"{named}, {_counted(rows)}"), _class_names(None)]


def _without_batch(row: Row) -> Row:
    return {name: value[0] if np.ndim(value) == 3 and len(value) == 1 else value for name, value in row.items()}  # noqa: PLR2004


def _labelled(rows: Sequence[Row]) -> list[Finding] | None:
    parts = [label_and_probabilities(row) for row in rows]
    if not all(parts):
        return None
    names = [_name_of(rows[0], part) for part in parts[0] or ()]
    if all(_probable(part[1]) for part in parts if part):
        why = f"{names[0]} is one label, and {names[1]} are numbers from 0 that sum to 1, {_counted(rows)}"
        return [_kind("label+probabilities", "likely", why)]
    why = (
        f"{names[0]} is one label, and the rows of {names[1]} are no probabilities: they may be scores before the softmax. "
        "As it is, the label is read, and there is no confidence"
    )
    found = next(name for name, value in rows[0].items() if parts[0] and value is parts[0][1])
    return [_kind(None, "open", why, f"{_line('logits', found)}  (if they are)")]


def _name_of(row: Row, part: Any) -> str:
    return quoted(next((name for name, value in row.items() if value is part), "an output"))


def _probable(part: Any) -> bool:
    numbers = list(part.values()) if isinstance(part, Mapping) else as_array(part).reshape(-1).tolist()
    return sum_to_one([float(v) for v in numbers])


def _tokens(rows: Sequence[Row]) -> list[Finding] | None:
    parts = [tokens_and_logprobs(row) for row in rows]
    if not all(parts) or not all((part[1] <= 0).all() and len(part[0]) > 1 for part in parts if part):
        return None
    why = f"tokens beside as many numbers that are 0 or less, {_counted(rows)}: their log-probabilities"
    return [_kind("logprobs", "likely", why)]


def _chosen(specs: Sequence[TensorSpec]) -> tuple[str, list[Finding]]:
    """The output that is read."""
    if len(specs) == 1:
        return specs[0].name, []
    there = ", ".join(quoted(spec.name) for spec in specs)
    for known in (_PROBABLE, _LOGITS, _SCORES):
        by_name = [spec.name for spec in specs if not known.isdisjoint(words(spec.name))]
        if len(by_name) == 1:
            why = f"of {there} it is the one whose name speaks of {'probabilities' if known is _PROBABLE else 'scores'}"
            return by_name[0], [Finding(NAME, by_name[0], "likely", why)]
    why = f"there are {there}, and nothing tells which of them is the answer: as it is, the first is read"
    return specs[0].name, [Finding(NAME, "?", "open", why, f'"output": {{"name": {text(specs[0].name)}}}  (or another)')]


def _one(name: str, values: Sequence[Any]) -> list[Finding]:
    """What one output is, by its values."""
    if values and all(is_by_class(value) for value in values):
        good = all(_probable(value) for value in values)
        kind = _kind(
            "probabilities", "likely", f"a number for each class, by name, from 0 and with the sum 1, {_counted(values)}"
        )
        return [kind] if good else [_kind(None, "open", "a number for each class, which are no probabilities", _line("logits"))]
    arrays = [as_array(value) for value in values]
    if not arrays or len({(array.ndim, array.dtype.kind) for array in arrays}) > 1:
        return [_kind(None, "open", "its rows differ in form", _line("value"))]
    first = arrays[0]
    if first.dtype.kind in "iubUSO":
        return _labels(first, arrays)
    if first.size == 1:
        return _number(name, arrays)
    if first.ndim == 1:
        return _classes(name, arrays)
    return _wide(name, arrays)


def _labels(first: Array, arrays: Sequence[Array]) -> list[Finding]:
    what = "texts" if first.dtype.kind in "USO" else "integers"
    if first.size == 1:
        why = f"one of {what} {_counted(arrays)}: it is a label, and has no confidence by itself"
        return [Finding("output", "a label", "certain", why)]
    if what == "texts":
        return [_kind(None, "open", f"{first.size} texts in each row: the value is all of them", _line("value"))]
    why = f"{first.size} integers in each row: tokens, or one quantised score for each class. As it is, they are the value"
    return [_kind(None, "open", why, f"{_line('logits')}  (if they are scores)")]


def _number(name: str, arrays: Sequence[Array]) -> list[Finding]:
    found = [float(array.reshape(-1)[0]) for array in arrays]
    seen = f"{min(found):.4g} to {max(found):.4g}"
    if not _LOGITS.isdisjoint(words(name)):
        why = f"one number in each row, {seen}, and its name is {quoted(name)}: a binary classifier's before the sigmoid?"
        return [_kind("value?", "open", why, f'{_line("logits")}, "labels": ["no", "yes"]')]
    if all(0 <= value <= 1 for value in found):
        why = f"one number in each row, {seen}: a binary classifier's after the sigmoid, or a regression's. As it is, a value"
        return [_kind("value?", "open", why, f'{_line("probabilities")}, "labels": ["no", "yes"]')]
    return [_kind("value", "likely", f"one number in each row, {seen}, so no probability: a regression. {_VALUE}")]


def _classes(name: str, arrays: Sequence[Array]) -> list[Finding]:
    n, said = len(arrays[0]), frozenset(words(name))
    if all(_probable(array) for array in arrays):
        why = f"numbers from 0 that sum to 1, {_counted(arrays)}: after a softmax"
        return [_kind("probabilities", "likely", why), _class_names(n)]
    with np.errstate(all="ignore"):
        logs = all((array <= SUM_SLACK).all() and abs(float(np.exp(array).sum()) - 1) < SUM_SLACK for array in arrays)
    if logs:
        why = f"numbers of 0 or less whose exponentials sum to 1, {_counted(arrays)}: after a log-softmax"
        return [_kind("logprobs", "likely", why), _class_names(n)]
    why = f"{n} numbers in each row, which do not sum to 1"
    if said & _EMBEDDINGS:
        return [_kind("value", "likely", f"{why}, and its name is {quoted(name)}: an embedding. {_VALUE}")]
    if all(((array >= 0) & (array <= 1)).all() for array in arrays):
        many = "each from 0 to 1: perhaps of several labels that may all apply, which have a sigmoid each"
        return [_kind("logits?", "open", f"{why}, {many}. As it is, they are read as logits", _line("value"))]
    if said & (_LOGITS | _SCORES):
        return [_kind("logits", "likely", f"{why}, and its name is {quoted(name)}"), _class_names(n)]
    way = "as it is, they are read as logits, one for each class; an embedding or a regression would be read wrongly"
    return [_kind("logits?", "open", f"{why}: {way}", f'{_line("logits")}  (or "value")'), _class_names(n)]


def _wide(name: str, arrays: Sequence[Array]) -> list[Finding]:
    shape = arrays[0].shape
    form = f"{quoted(name)} is {shape_text(shape)} for one input"
    if len(shape) == _MATRIX and shape[1] == _COLUMNS and all(_are_columns(array) for array in arrays):
        why = f"{form}: x1, y1, x2, y2, a score from 0 to 1 and a whole class in each row, after non-maximum suppression"
        return [_kind("boxes", "likely", why), _class_names(None)]
    raw = len(shape) == _MATRIX and max(shape) >= 100 and min(shape) > _SIDES  # noqa: PLR2004 - as many places of boxes
    more = "boxes before non-maximum suppression? Export the model with it. " if raw else ""
    why = f"{form}: {more}No kind reads this; the value is the array, and a confidence takes a score of your own"
    return [_kind("value?", "open", why, _line("value"))]


def _are_columns(array: Array) -> bool:
    score, label = array[:, _SIDES], array[:, _SIDES + 1]
    return bool(((score >= 0) & (score <= 1)).all() and (label == np.floor(label)).all() and (label >= 0).all() and array.any())


def _class_names(count: int | None) -> Finding:
    line = '"labels": ["...", ...]  (' + ("names" if count is None else f"{count} names") + ", in the order of the classes)"
    return Finding(LABELS, "?", "open", "without them an answer is a class's number", line)


def _by_names(specs: Sequence[TensorSpec]) -> list[Finding]:
    """What they are as far as names, dtypes and shapes tell: it did not run."""
    names = {spec.name: frozenset(words(spec.name)) for spec in specs}
    forms = {spec.name: np.zeros((0, _SIDES if spec.shape[-1:] == (_SIDES,) else 1)) for spec in specs}
    if len(specs) > 1 and are_boxes(forms):
        return [_kind("boxes", "likely", "their names have box and score in them, and the boxes have four sides")]
    labels = [s.name for s in specs if s.dtype[:3] in {"int", "uin", "obj"} and all(size == 1 for size in s.shape[1:])]
    probable = [spec.name for spec in specs if names[spec.name] & _PROBABLE]
    if len(specs) > 1 and labels and len(probable) == 1:
        why = f"by their names and dtypes: {quoted(labels[0])} is a label, and {quoted(probable[0])} says probabilities"
        return [_kind("label+probabilities", "likely", why)]
    name, chosen = _chosen(specs)
    for known, kind in ((_PROBABLE, "probabilities"), (_LOGITS, "logits")):
        if names[name] & known:
            return [*chosen, _kind(kind, "likely", f"by its name, {quoted(name)}; it was not run")]
    return [*chosen, _kind(None, "open", "it was not run, and its name does not tell", f"{_line('logits')}  (or another kind)")]


def named_classes(metadata: Mapping[str, str], count: int | None) -> tuple[str, list[str]] | None:
    """Names of classes in a file's metadata, with their key: a list, or number -> name, as JSON or as Python writes it."""
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for key in ("names", "labels", "classes", "class_names"):
        given = metadata.get(key, "")
        if not 1 < len(given) < 1 << 16:
            continue
        for read in readers:
            with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                said = read(given)
                if isinstance(said, dict) and sorted(map(int, said)) == list(range(len(said))):
                    said = [name for _, name in sorted((int(i), name) for i, name in said.items())]
                if isinstance(said, list) and said and all(isinstance(one, str) for one in said) and count in (None, len(said)):
                    return key, said
    return None


def batch_of(one: Mapping[str, Any], several: Mapping[str, Any], count: int) -> int | str | None:
    """The axis of the outputs that counts the inputs, from a run with one and a run with several; None: they differ in it.

    "none": there is none.
    """
    axes = set[int]()
    for name, value in several.items():
        a, b = _sizes(one[name]), _sizes(value)
        changed = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if (x, y) == (1, count)]
        if len(a) != len(b) or len(changed) > 1:
            return None
        axes.update(changed or [-1])
    return ("none" if (axis := axes.pop()) == -1 else axis) if len(axes) == 1 else None


def _sizes(value: Any) -> tuple[int, ...]:
    return (len(value),) if isinstance(value, list) else tuple(np.shape(value))


def card(
    inputs: Sequence[InputGuess], states: Sequence[Pair], found: Sequence[Finding], batch: int | str | None = None
) -> dict[str, Any]:
    """A card with what is certain or likely."""
    made: dict[str, Any] = {}
    told = [one.written for one in inputs if one.role != "state"]
    if told:
        made.update({"input": told[0]} if len(told) == 1 and len(inputs) == 1 else {"inputs": told})
    if kept := [{"input": one.input, "output": one.output} for one in states if one.sure != "open"]:
        made["state"] = kept
    output: dict[str, Any] = {}
    for one in found:
        if one.sure != "open" and one.about in {NAME, KIND} and one.says != "?":
            output[one.about.removeprefix("output.")] = one.says
    if batch not in (None, 0):
        output["batch"] = batch
    return {**made, "output": output} if output else made
