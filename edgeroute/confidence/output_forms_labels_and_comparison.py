"""Forms and labels of models' outputs: recognition of the form, decoding of labels and CTC paths, class names, comparison.

`same` compares two answers, labels without case, white space, marks around them and a final full stop. A row or number of a
wrong form gets a reason in place of a confidence (`Unscored`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, KeysView, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from math import exp, isfinite, log
from re import compile as pattern
from typing import Any, Final

import numpy as np

from edgeroute.confidence.scores import NAN, SHORT, Array, Unscored, quantile, quantile_row
from edgeroute.errors import BadReply, PolicyError

TINY: Final = -745.0  # logarithm of the smallest float
SLACK: Final = 1e-6  # tolerance of a confidence outside 0..1, for rounding
SUM_SLACK: Final = 1e-3  # tolerance of the sum of probabilities
SURE_SLACK: Final = 1e-4  # tolerance of the sum by which outputs are read as probabilities though nobody says so
# What is wrong with quantised numbers, and what to write.
UNSCALED: Final = (
    "quantised numbers of an unknown scale: let its graph end in DequantizeLinear, or write CallableModel(lambda x: "
    "(model.run([x]) - 128.0) * 0.1, kind=...), with its own zero point and scale"
)
LONG: Final = 32  # minimum numbers of an embedding that has no name
_POINTS: Final = frozenset({"masks", "keypoints"})  # outputs beside which `scores` are those of parts
_EMBEDDING: Final = pattern("embed|pooler|pooled|hidden|latent|(?<![a-z])(features?|vectors?)(?![a-z])")


def confidence(value: Any, *, bounded: bool) -> tuple[float | None, str]:
    """Return a confidence that a model or function gave, as a number or None, and in words what is wrong with it, or "".

    A number out of range only by rounding is clipped; NaN stays NaN. Log-probabilities become their quantile.

    Args:
        value: a number of any type; None; or the log-probabilities of a text's tokens, all 0 or less.
        bounded: True if a confidence has to be from 0 to 1.
    """
    if value is None:
        return None, ""
    number = number_of(value)
    if number is None:
        floats = type(value) is list and 0 < len(value) <= SHORT and all(type(number) is float for number in value)
        if floats and isfinite(sum(value)) and max(value) <= SLACK:
            return quantile_row(value), ""
        logprobs = None if isinstance(value, str | bytes | Mapping | set) else as_array(value)
        if logprobs is not None and logprobs.ndim == 1 and logprobs.dtype.kind in "fiu" and not (logprobs > SLACK).any():
            return quantile(logprobs), ""
        wanted = "give one number from 0 to 1, None, or the log-probabilities of a text's tokens, which are 0 or less"
        return None, f"{form_of(value)} as its confidence: {wanted}"
    if not bounded or number != number:  # noqa: PLR0124 - NaN: there is none
        return number, ""
    if not -SLACK <= number <= 1 + SLACK:
        return None, f"the confidence {number:g}: a confidence is from 0 to 1{percent(number)}"
    return min(max(number, 0.0), 1.0), ""


def probabilities_warning(name: str) -> str:
    """Return the warning for a model whose probabilities are read as logits, with the setting to write."""
    return (
        f"{name} gives probabilities (numbers from 0 that sum to 1), and they are read as logits: the confidences are "
        'wrong. Write kind = "probabilities" in [edge] or [cloud] of the policy, "kind": "probabilities" in the output of '
        'its card, or kind="probabilities" in Python'
    )


def looks_like_probabilities(z: list[Any]) -> bool:
    """Return True if numbers are from 0 to 1 and sum to 1, which logits practically never do; False if all are 0 or 1."""
    return sum_to_one(z) and any(0 < v < 1 for v in z)


def sum_to_one(z: list[Any]) -> bool:
    """Return True if two or more numbers are from 0 to 1 and sum to 1."""
    return len(z) > 1 and min(z) >= 0 and abs(sum(z) - 1) < SUM_SLACK


def out_of_range(kind: str | None, low: float, high: float, numbers: Any) -> Unscored | None:
    """Return an `Unscored` with the reason if numbers cannot be of this kind; None if they can.

    Args:
        kind: kind of the outputs.
        low: least of the numbers.
        high: greatest of the numbers.
        numbers: the numbers; integers may be quantised probabilities, of any scale.
    """
    whole = as_array(numbers).dtype.kind != "f"
    if kind in {"probabilities", "multilabel"} and (low < 0 or (high > 1 + SUM_SLACK and not whole)):
        if whole:
            return Unscored(UNSCALED)
        return Unscored(f"outputs of {low:g} to {high:g}, and kind is {kind}, which are from 0 to 1")
    if kind == "logprobs" and high > SUM_SLACK:
        return Unscored(f"outputs of up to {high:g}, and kind is logprobs, which are 0 or less")
    return None


def is_embedding(name: str) -> bool:
    """Return True for an output that is an embedding by its name, such as `pooler_output` or `last_hidden_state`."""
    return _EMBEDDING.search(name.lower()) is not None


def has_length_1(z: list[Any]) -> bool:
    """Return True for many numbers of either sign whose Euclidean norm is 1: an embedding, as logits practically never are."""
    return len(z) >= LONG and min(z) < 0 and abs(sum(v * v for v in z) - 1) < SURE_SLACK


def greedy_path(z: Array, blank: int) -> tuple[list[int], Array]:
    """Return the classes on the best path, without blanks and repetitions, and the logarithms of their probabilities.

    Those of all steps, if there are blanks alone. Probabilities may be rounded to 8 bits, by which small ones vanish.
    z: logits, probabilities or their logarithms, [steps, classes].
    """
    best, top, sums = z.argmax(1), z.max(1), z.sum(1)
    if z.min() >= 0 and z.max() <= 1 + SUM_SLACK and 0.5 < sums.max() <= 1 + max(SUM_SLACK, z.shape[1] / 512):  # noqa: PLR2004
        logprobs = np.log(np.maximum(top, np.finfo(float).tiny) / np.maximum(sums, 1))
    else:
        logprobs = -np.log(np.exp(z - top[:, None]).sum(1))
    read = (best != blank) & np.concatenate([[True], best[1:] != best[:-1]])
    return best[read].tolist(), logprobs[read] if read.any() else logprobs


def along_one_axis(array: Array, kind: str | None = None) -> Array:
    """Return one row, or one picture's classes [n, 1, 1], with one axis; by a given kind, also of other axes of size 1."""
    known = kind is not None or array.shape[1:] == (1, 1) or (array.ndim == 2 and len(array) == 1)  # noqa: PLR2004 - rows
    return array.reshape(-1) if known and array.ndim > 1 and array.size == max(array.shape) else array


def are_probabilities(outputs: Any) -> bool:
    """Return True if outputs of one input, or the first of several by name, look like probabilities of its classes."""
    array = as_array(next(iter(outputs.values()), None) if isinstance(outputs, Mapping) else outputs)
    return array.ndim == 2 and array.dtype.kind == "f" and len(array) == 1 and looks_like_probabilities(array[0].tolist())  # noqa: PLR2004


def read_labels(p: Array, names: Labels) -> tuple[list[Any] | None, float]:
    """Return the labels whose probability is above .5, and the confidence of the least certain label.

    The confidence is the minimum of max(p, 1 - p); an `Unscored` for numbers that are no probabilities. p: [labels].
    """
    if not np.isfinite(p).all():
        return None, Unscored("its outputs hold NaN or infinity")
    names.at(0, p.size)
    value = [names.at(i, p.size) for i in np.flatnonzero(p > 0.5).tolist()]  # noqa: PLR2004 - rather than not
    return value, out_of_range("multilabel", p.min(), p.max(), p) or float(np.maximum(p, 1 - p).min())


def read_sequence(value: Any, names: Labels, blank: int, wrong: Callable[[str], Exception]) -> tuple[Any, float]:
    """Return the labels on the best path of steps of speech or written text, joined if they are texts, and the confidence.

    The confidence is the 10 % quantile of their probabilities. Numbers that are not finite give (None, `Unscored`). Raises
    `wrong` for other outputs than floats [steps, classes], and BadReply for another number of labels.

    Args:
        value: outputs of one input.
        names: of the classes, perhaps without the blank.
        blank: class of the blank; -1: the last.
        wrong: makes the exception.
    """
    z = as_array(value)
    z = z[0] if z.ndim == 3 and len(z) == 1 else z  # noqa: PLR2004 - with a batch axis
    if z.ndim == 2 and z.dtype.kind in "iu":  # noqa: PLR2004 - steps and classes
        raise wrong(f"gives {UNSCALED}")
    if z.ndim != 2 or z.dtype.kind != "f" or not z.size:  # noqa: PLR2004 - steps and classes
        raise wrong(f"is to give [steps, classes] (kind = ctc), and gives {form_of(value)}")
    if not np.isfinite(z).all():
        return None, Unscored("its outputs hold NaN or infinity")
    classes, labels = z.shape[1], names.labels
    path, logprobs = greedy_path(z.astype(float), blank % classes)
    if labels is not None and len(labels) == classes - 1:
        labels = (*labels[: blank % classes], "", *labels[blank % classes :])
    elif labels is not None:
        names.at(0, classes)
    read: list[Any] = path if labels is None else [labels[i] for i in path]
    joined = labels is not None and all(isinstance(label, str) for label in labels)
    return "".join(read) if joined else read, quantile(logprobs)


def binary(x: float, kind: str | None) -> list[float]:
    """Return logits of two classes for the only output of a binary classifier, which is about the second class.

    NaN stays NaN; impossible probabilities give NaN. kind: "logits" or "logprobs"; any other is a probability.
    """
    if kind == "logits":
        return [0.0, x]
    p = exp(min(x, 0.0)) if kind == "logprobs" else x
    return [log(v) if v > 0 else TINY if v == 0 else NAN for v in (1 - p, p)]


def label_and_probabilities(row: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    """Return the first output that is one label, and the first with a number for each class; None if either is missing.

    Each class may have an output of its own, an array of one number, as scikit-learn's `zipmap="columns"` gives them.
    """
    parts = [(value, as_array(value)) for value in map(_without_batch, row.values())]
    label = next((value for value, a in parts if a.size == 1 and a.dtype.kind in "biuUS"), None)
    p = next((value for value, a in parts if is_by_class(value) or (a.ndim == 1 and a.size > 0 and a.dtype.kind == "f")), None)
    if p is None and len(parts) > 2 and all(hasattr(value, "dtype") for value in row.values()):  # noqa: PLR2004 - two classes
        columns = [a.item() for _, a in parts if a.size == 1 and a.dtype.kind == "f"]
        p = np.array(columns) if len(columns) == len(parts) - 1 and sum_to_one(columns) else None
    return None if label is None or p is None else (label, p)


def tokens_and_logprobs(row: Mapping[Any, Any]) -> tuple[Any, Array] | None:
    """Return the first 1-D array of integers or texts, the tokens, and the first 1-D array of floats, their log-probabilities.

    None if either is missing, or their lengths differ.
    """
    arrays = [as_array(v) for v in row.values()]
    tokens = next((a for a in arrays if a.ndim == 1 and a.dtype.kind in "iuUS"), None)
    logprobs = next((a for a in arrays if a.ndim == 1 and a.dtype.kind == "f"), None)
    return None if tokens is None or logprobs is None or len(tokens) != len(logprobs) else (tokens, logprobs)


def _without_batch(value: Any) -> Any:
    """Return probabilities without a batch axis of 1, as `predict_proba` gives it: of an array, or a list of one mapping."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        return value[0]
    array = as_array(value)
    return array[0] if array.ndim == 2 and len(array) == 1 and array.dtype.kind == "f" else value  # noqa: PLR2004 - rows


class ByClass(dict[Any, float]):
    """Mapping from class to probability, as an estimator has them: all may be 0."""


def is_by_class(value: Any) -> bool:
    """Return True for a mapping from class to a float."""
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, float | np.floating) for v in value.values())


def best_label(result: Any, *, several: bool = False) -> Any:
    """Return (label, score) of a result in a form of Hugging Face's pipelines; any other result unchanged.

    The form is `{"label": ..., "score": ...}`, with `value`, `answer` or `token_str` and further keys for the label, `confidence`
    for the score, or a list of these, perhaps in a list, whose best one counts; or `{"labels": [...], "scores": [...]}` without
    boxes. With `value` or `confidence` only where the scores are None, NaN or from 0 to 1: others are an application's own.

    several: True: the labels are those of a score above .5, and the score is that of the least certain label.
    """
    rows = result if isinstance(result, list) else [result]
    rows = rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows
    with suppress(TypeError, ValueError):  # scores that have no order, or no lists of one length: no pipeline's
        if (
            len(rows) == 1
            and isinstance(rows[0], dict)
            and {"labels", "scores"} <= rows[0].keys() <= {"sequence", "labels", "scores"}
        ):
            named = zip(rows[0]["labels"], rows[0]["scores"], strict=True)
            rows = [{"label": label, "score": score} for label, score in named]
        sure = "score" if rows and isinstance(rows[0], dict) and "score" in rows[0] else "confidence"
        for name, keys in (("label", ()), ("value", ()), ("answer", {"start", "end"}), ("token_str", {"token", "sequence"})):
            if rows and all(isinstance(row, dict) and {name, sure} <= row.keys() <= {name, sure, *keys} for row in rows):
                if (name == "value" or sure == "confidence") and not all(map(_is_share, (row[sure] for row in rows))):
                    break
                if several:
                    return [row[name] for row in rows if row[sure] > 0.5], min(max(row[sure], 1 - row[sure]) for row in rows)  # noqa: PLR2004
                best = max(rows, key=lambda row: row[sure])
                return best[name], best[sure]
    return result


def _is_share(sure: Any) -> bool:
    """Return True for None, NaN and a number from 0 to 1; TypeError or ValueError for what is no number."""
    return sure is None or not (isinstance(sure, bool) or sure < 0 or sure > 1)


def least_score(value: Any) -> float | None:
    """Return the least score of a value's parts, a list of mappings with a `score` each, or masks or keypoints with `scores`.

    None for other values, for boxes, and for scores that are not all numbers from 0 to 1: texts and booleans are none.
    """
    parts = value if isinstance(value, list) else [value] if isinstance(value, Mapping) and not _POINTS.isdisjoint(value) else []
    parts = parts[0] if len(parts) == 1 and isinstance(parts[0], list) else parts
    if not all(isinstance(part, Mapping) for part in parts) or any("box" in str(key) for part in parts for key in part):
        return None
    with suppress(KeyError, TypeError, ValueError):  # no scores, no parts, or no numbers
        lists = [part["score" if _POINTS.isdisjoint(part) or "score" in part else "scores"] for part in parts]
        scores = np.concatenate([np.ravel(np.asarray(score, float)) for score in lists])
        are_numbers = not any(np.asarray(score).dtype.kind in "USb" for score in lists)
        return float(scores.min()) if are_numbers and ((scores >= 0) & (scores <= 1)).all() else None
    return None


def several(row: Any) -> bool:
    """Return True for several outputs."""
    return isinstance(row, Mapping | tuple | list)


def as_array(value: Any) -> Array:
    """Return the value as an array, as a single object if it has no form of one; objects that are str become text.

    A tensor of torch may be part of a gradient, on another device, or of a type that numpy lacks.
    """
    if hasattr(type(value), "is_floating_point"):
        value = (value.float() if value.is_floating_point() and value.element_size() < 4 else value).detach().cpu()  # noqa: PLR2004
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # ragged, or something that refuses
        array = np.empty((), object)
        array[()] = value
    if array.dtype.kind == "O" and array.size and all(isinstance(v, str) for v in array.flat):
        return array.astype(str)
    return array


def number_of(value: Any) -> float | None:
    """Return a value that is one number, or becomes one by `float`, as a float; None for texts, arrays with axes, and others."""
    if isinstance(value, str | bytes | bytearray) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def plain(value: Any) -> Any:
    """Return numpy's scalar or array of one element as Python's scalar, another array as a list, anything else unchanged."""
    if isinstance(value, np.ndarray):
        return value.reshape(-1)[0].item() if value.size == 1 else value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def percent(number: float) -> str:
    """Return a hint for a number that is meant in per cent; empty if it is not. Only for 1 to 100."""
    return f" ({number:g} % is {number / 100:g})" if 1 < number <= 100 else ""  # noqa: PLR2004 - a hundred per cent


def form_of(value: Any) -> str:
    """Return a value's type in words, with the length of a mapping, tuple or list, or the shape of an array; no content."""
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__
    return f"an array {list(shape)}"


def label_names(labels: Iterable[Any] | None) -> tuple[Any, ...] | None:
    """Return labels in any ordered container as a tuple of plain values; None for None and for an empty container.

    Numpy's values become Python's.

    Raises:
        PolicyError: the container has no order, as a set, or no items, or its items are lists themselves.
    """
    if labels is None:
        return None
    names: list[Any] | None = None
    if not isinstance(labels, str | bytes | Mapping) and (isinstance(labels, KeysView) or not isinstance(labels, AbstractSet)):
        with suppress(TypeError):  # it has no items
            names = [plain(label) for label in labels]
    if names is None or any(isinstance(name, list | dict | set) for name in names):
        raise PolicyError(f"labels= takes a list with a name for each class, in order, not {form_of(labels)}")
    return tuple(names) or None


# Answers that mean the same label: equal, or equal in form, as "5" and 5, "Cat. " and "cat", and bytes and their text.

# What chat models write around a label: the same quotes or stars on both sides, or a full stop; and a fraction of 0. A mark on
# one side alone may be the label's own. Longer texts are no labels, and removing marks one by one would take long.
_MARKED: Final = pattern(r"""(["'`])\s*(.*\S)\s*\1|(\*+)(?!\*)\s*(.*[^\s*])\s*\3|(.*[^.\s])\s*\.|(-?\d+)\.0+""")
_LONGEST: Final = 1000


def label_form(value: Any) -> str | None:
    """Return the text of a label without case, outer or repeated white space, a final full stop and a fraction of 0.

    Also without quotes and stars, if they are on both sides. None: the value is neither text nor a finite number.
    """
    value = plain(value)
    if isinstance(value, bytes | bytearray):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not isfinite(value)):
        return None
    text = " ".join(str(value).split()).casefold()
    while len(text) <= _LONGEST and (marked := _MARKED.fullmatch(text)):
        text = marked[marked.lastindex or 0]
    return text


def labels_by_form(labels: Iterable[Any]) -> dict[str | None, Any]:
    """Return form -> label. A form that several different labels have is left out."""
    by_form: dict[str | None, list[Any]] = {}
    for label in labels:
        by_form.setdefault(label_form(label), []).append(label)
    return {form: of[0] for form, of in by_form.items() if form is not None and all(label == of[0] for label in of)}


def equal(one: Any, other: Any) -> bool:
    """Return True if two values are equal; for arrays: all elements, and the shapes. Raises what their comparison raises.

    The parts of mappings, lists and tuples, as the masks of boxes, are compared in the same way; a list, as a JSON API gives it,
    equals an array of its numbers.
    """
    kind = next((kind for kind in (Mapping, (list, tuple)) if isinstance(one, kind) and isinstance(other, kind)), None)
    if kind is not None and one is not other:
        same_length = one.keys() == other.keys() if kind is Mapping else len(one) == len(other)
        return same_length and all(equal(one[i], other[i]) for i in (one if kind is Mapping else range(len(one))))
    if isinstance(one, list | tuple) != isinstance(other, list | tuple):
        one, other = as_array(one), as_array(other)
    if getattr(one, "shape", ()) != getattr(other, "shape", ()):
        return False
    result = one == other
    return bool(as_array(result).all()) if hasattr(result, "all") else bool(result)


def same(one: Any, other: Any) -> bool:
    """Return True if two answers are equal, or the same label in another form. Raises what their comparison raises."""
    if equal(one, other):
        return True
    form = label_form(one)
    return form is not None and form == label_form(other)


class Labels:
    """Names of classes, in order.

    Args:
        labels: see `label_names`.
        name: name of the model, in messages.
    """

    def __init__(self, labels: Iterable[Any] | None, name: str) -> None:
        self.labels, self._name = label_names(labels), name
        self._by_form = labels_by_form(self.labels or ())
        self._have_indices = all(self._by_form.get(str(i), label) == label for i, label in enumerate(self.labels or ()))

    def at(self, index: int, classes: int) -> Any:
        """Return the label of class number `index` of so many; without labels the number.

        Raises:
            BadReply: the number of labels differs from `classes`.
        """
        labels = self.labels
        if labels is None:
            return index
        if len(labels) != classes:
            raise BadReply(f"{classes} outputs, but {len(labels)} labels: give one for each class in order, if this is the model")
        return labels[index]

    def same(self, value: Any) -> Any:
        """Return the only label of the same form, as "9" is 9 and "Cat" is "cat"; the value itself if there is none.

        Another final mark than a full stop does not count either, as the labels are known.
        """
        if self.labels is None or not isinstance(value, str | int | float | bytes) or value in self.labels:
            return value
        form = label_form(value) or ""
        return self._by_form.get(form, self._by_form.get(label_form(form.rstrip("!,;: ")), value))

    def named(self, value: Any) -> Any:
        """Return the label that a model means by a value: an equal one, one of the same form, or the one with this number.

        Any value if there are no labels. A number means none by its place if another one's place is the name of another label.

        Raises:
            BadReply: the value is none of them.
        """
        labels = self.labels
        if labels is None or (label := self.same(value)) in labels:
            return value if labels is None else label
        if self._have_indices and isinstance(value, int) and 0 <= value < len(labels):
            return labels[value]
        raise BadReply(f"{self._name} gives a label that is not among its {len(labels)} labels")

    def meant(self, value: Any) -> Any:
        """Return the label that an answer's value means, which may be an array of one label, as `predict` gives it.

        A value that is neither text nor integer is returned unchanged. Raises BadReply for text or an integer that is no label.
        """
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "biuSU":
            value = value.reshape(-1)[0].item()
        return self.named(value) if isinstance(value, str | int | bytes) else value
