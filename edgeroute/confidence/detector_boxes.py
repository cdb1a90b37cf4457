"""Reading of a detector's outputs: boxes, scores and classes, and one confidence for the whole picture.

A box counts as found if its score is at least `FOUND`. Each box is a decision, found or not, that is as certain as its score,
or as one minus it. The confidence of the whole is that of the least certain decision, so .5 to 1.

Where nothing is found, `none_found` rules:

    defer     the confidence is 0: an empty picture is worth a second look
    accept    the confidence is 1
    score     one minus the best score that was not enough, as above; 1 if there is none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
FOUND: Final = 0.5
"""Minimum score of a box that counts."""
RULES: Final = ("defer", "accept", "score")
"""Values of `none_found`."""
_SIDES = 4
_COLUMNS = 6
"""Columns of a detector that gives one array: x1, y1, x2, y2, score, class."""


def are_boxes(outputs: Mapping[Any, Any]) -> bool:
    """Return True for a detector's outputs for one picture: by name, boxes with four sides each beside scores."""
    names = _names(outputs)
    shape: tuple[int, ...] = () if names is None else getattr(outputs[names[0]], "shape", ())
    return len(shape) == 2 and shape[1] == _SIDES  # noqa: PLR2004 - boxes and sides


def have_boxes(outputs: Mapping[Any, Any]) -> bool:
    """Return True as `are_boxes` does, also for a batch axis of 1, or boxes squeezed to the four sides of one box."""
    names = _names(outputs)
    shape: tuple[int, ...] = () if names is None else getattr(outputs[names[0]], "shape", ())
    return shape == (_SIDES,) or are_boxes(outputs) or (len(shape) == 3 and shape[0] == 1 and shape[2] == _SIDES)  # noqa: PLR2004


def boxes_without_batch(kind: str | None, outputs: Any) -> bool:
    """Return True for outputs by name that are boxes of one picture without a batch axis, if the kind allows boxes."""
    return kind in {None, "boxes"} and type(outputs) is not np.ndarray and isinstance(outputs, Mapping) and are_boxes(outputs)


def read_boxes(
    row: Any, labels: Sequence[Any] | None, none_found: str, wrong: Callable[[str], Exception]
) -> tuple[list[dict[str, Any]], float]:
    """Return the boxes found, best first, and the confidence of the whole picture.

    Boxes with a score below `FOUND` are left out. If none is left, `none_found` sets the confidence: by the scores, 0 to defer,
    or 1. The picture's confidence otherwise is that of its least certain box.

    Args:
        row: outputs for one picture: a mapping with an output of boxes [n, 4], one of scores [n] and one of classes [n], found by
            their names (`box`; `score` or `conf`; `class` or `label`), and perhaps their number (`num`); or one array [n, 6] with
            x1, y1, x2, y2, score and class in each row.
        labels: class -> name; None: the class.
        none_found: one of `RULES`.
        wrong: makes the exception to raise for outputs of another form.

    Returns:
        For each box its `label`, `score` and `box` (four numbers, as the model gives them); and the confidence, 0..1.
    """
    parts = None
    with suppress(TypeError, ValueError, IndexError, OverflowError):  # none is chained: its text may quote the output
        parts = _arrays(row, wrong)
    if parts is None or any(part.dtype.kind not in "fiub" for part in parts):
        raise wrong("gives no arrays of numbers for boxes, scores and classes")
    boxes, scores, classes = parts
    if len(scores) and not ((scores >= 0) & (scores <= 1)).all():
        raise wrong("gives scores of boxes that are not from 0 to 1: boxes need the model's own scores after the sigmoid")
    detections = [
        {"label": _label_of(c, labels, wrong), "score": float(s), "box": [float(v) for v in box]}
        for box, s, c in zip(boxes, scores, classes, strict=True)
        if s >= FOUND
    ]
    detections.sort(key=lambda detection: -detection["score"])
    if detections or none_found == "score":
        return detections, float(np.maximum(scores, 1 - scores).min()) if len(scores) else 1.0
    return [], 0.0 if none_found == "defer" else 1.0


def _arrays(row: Any, wrong: Callable[[str], Exception]) -> tuple[Array, Array, Array]:
    """Return boxes [n, 4], scores [n] and classes [n] of a detector's outputs. Raise `wrong` for other outputs.

    A batch axis of 1 is dropped, and a number output cuts all three; without classes all are 0.
    """
    if isinstance(row, Mapping):
        names = _names(row)
        if names is None and len(row) == 1:
            return _arrays(next(iter(row.values())), wrong)
        if names is None:
            raise wrong(f"has outputs {', '.join(map(str, row))}: boxes need one named box, one score, and one class or label")
        boxes, scores = np.asarray(row[names[0]]), np.asarray(row[names[1]]).reshape(-1)
        classes = np.zeros(len(scores)) if names[2] is None else np.asarray(row[names[2]]).reshape(-1)
        boxes = boxes[0] if boxes.ndim == 3 and len(boxes) == 1 else boxes  # noqa: PLR2004 - with its batch axis
        boxes = boxes[None] if boxes.shape == (_SIDES,) and len(scores) == 1 else boxes
        number = next((row[name] for name in row if "num" in str(name).lower()), None)
        if number is not None and np.size(number) == 1:
            n = int(np.asarray(number).reshape(-1)[0])
            boxes, scores, classes = boxes[:n], scores[:n], classes[:n]
    else:
        array = np.asarray(row)
        array = array[0] if array.ndim == 3 and len(array) == 1 else array  # noqa: PLR2004 - with its batch axis
        if array.ndim != 2 or array.shape[1] != _COLUMNS:  # noqa: PLR2004 - boxes and columns
            raise wrong(
                f"gives an output {list(array.shape)}: boxes are [n, {_COLUMNS}] (x1, y1, x2, y2, score, class), after "
                "non-maximum suppression"
            )
        boxes, scores, classes = array[:, :_SIDES], array[:, _SIDES], array[:, _SIDES + 1]
    if boxes.size == 0:
        boxes = boxes.reshape(0, _SIDES)
    if boxes.ndim != 2 or boxes.shape[1] != _SIDES or not len(boxes) == len(scores) == len(classes):  # noqa: PLR2004
        raise wrong(f"gives {list(boxes.shape)} boxes, {len(scores)} scores and {len(classes)} classes, which do not fit")
    return boxes, scores, classes


def _names(outputs: Mapping[Any, Any]) -> tuple[Any, Any, Any] | None:
    """Return the names of the outputs for boxes, scores and classes (None: no classes); None if boxes or scores are missing."""

    def named(*parts: str) -> Any:
        return next((name for name in outputs if any(part in str(name).lower() for part in parts)), None)

    boxes, scores = named("box"), named("score", "conf")
    return None if boxes is None or scores is None or boxes == scores else (boxes, scores, named("class", "label"))


def _label_of(given: Any, labels: Sequence[Any] | None, wrong: Callable[[str], Exception]) -> Any:
    """Return the label of a box's class. Raise `wrong` if there is none.

    A whole float counts as an integer; a class that is itself one of the labels is returned.
    """
    plain = given.item() if hasattr(given, "item") else given
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if labels is None or plain in labels:
        return plain
    if not isinstance(plain, int) or not 0 <= plain < len(labels):
        raise wrong(f"gives a box of a class that is not among its {len(labels)} labels")
    return labels[plain]
