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
FOUND: Final = 0.5  # minimum score of a box that counts
OVERLAP: Final = 0.5  # intersection over union above which the worse of two boxes of a class is removed
MOST: Final = 300  # maximum number of boxes after suppression
RAW: Final = 100  # minimum number of boxes in an array before suppression
RULES: Final = ("defer", "accept", "score")  # values of `none_found`
NEGATIVE: Final = 0.1  # share of right and lower sides below 0 from which many boxes are offsets
_SIDES = 4
_TEXT = ', with text or what else is no number (then give a list of {"label", "score", "box"})'
_COLUMNS = 6  # columns of a detector that gives one array: x1, y1, x2, y2, score, class


def are_boxes(outputs: Mapping[Any, Any]) -> bool:
    """Return True for a detector's outputs for one picture: by name, boxes with four sides each beside scores."""
    shape = _shape_of_boxes(outputs)
    return len(shape) == 2 and shape[1] == _SIDES  # noqa: PLR2004 - boxes and sides


def have_boxes(outputs: Mapping[Any, Any]) -> bool:
    """Return True as `are_boxes` does, also for a batch axis of 1, or boxes squeezed to the four sides of one box."""
    shape = _shape_of_boxes(outputs)
    return shape == (_SIDES,) or are_boxes(outputs) or (len(shape) == 3 and shape[0] == 1 and shape[2] == _SIDES)  # noqa: PLR2004


def _shape_of_boxes(outputs: Mapping[Any, Any]) -> tuple[int, ...]:
    """Return the shape of the output of boxes; () if there is none, or no output of scores."""
    names = _names(outputs)
    with suppress(TypeError, ValueError):  # lists of different lengths
        return () if names is None else tuple(np.shape(outputs[names[0]]))
    return ()


def named_boxes(shapes: Mapping[Any, Sequence[int]]) -> bool:
    """Return True as `are_boxes` does, of the outputs' shapes alone, with a batch axis or without."""
    names = _names(shapes)
    return names is not None and len(shapes[names[0]]) in {2, 3} and shapes[names[0]][-1] == _SIDES


def are_detections(row: Any) -> bool:
    """Return True for a list of boxes with their scores, as `read_boxes` returns it; False for an empty list."""
    return isinstance(row, list) and bool(row) and all(isinstance(box, Mapping) and {"score", "box"} <= box.keys() for box in row)


def are_rows_of_boxes(array: Array, labels: Sequence[Any] | None) -> bool:
    """Return True for an array with a detector's boxes, by its numbers: as its last step gives them, or before suppression.

    Finite floats whose columns fit, with sides in order, scores from 0 to 1 and whole classes. False where no number exceeds 1
    unless it has six columns. A batch axis of 1 is ignored.
    """
    array = array[0] if array.ndim == 3 and len(array) == 1 else array  # noqa: PLR2004 - a batch of boxes with columns
    if array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():  # noqa: PLR2004 - boxes and columns
        return False
    parts = _columns(array, labels, suppressed=False)
    if parts is None or (labels is None and len(array) > array.shape[1] != _COLUMNS):  # perhaps with an objectness
        return False
    if array.shape[1] != _COLUMNS and array.max() <= 1:  # no pixels: masks and states look the same
        return False
    boxes, scores, classes, _ = parts
    sides = bool((boxes[:, 2:] >= boxes[:, :2]).all())
    return sides and bool(((scores >= 0) & (scores <= 1)).all() and (classes >= 0).all() and (classes == np.floor(classes)).all())


def boxes_without_batch(kind: str | None, outputs: Any) -> bool:
    """Return True for boxes of one picture by name or as a list, without a batch axis, if the kind allows boxes.

    True too for a list with one mapping of boxes; False for an array.
    """
    if kind not in {None, "boxes"} or type(outputs) is np.ndarray:
        return False
    if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], Mapping) and are_boxes(outputs[0]):
        return True
    return are_boxes(outputs) if isinstance(outputs, Mapping) else are_detections(outputs)


def read_boxes(
    row: Any, labels: Sequence[Any] | None, none_found: str, wrong: Callable[[str], Exception]
) -> tuple[list[dict[str, Any]], float]:
    """Return the boxes found, best first, after suppression of overlaps where the model does none, and the picture's confidence.

    Boxes with a score below `FOUND` are left out. The confidence is that of the least certain decision over all boxes, those left
    out too: each is as certain as its score, or as one minus it. If all are left out, `none_found` sets it: by the scores, 0 to
    defer, or 1.

    Args:
        row: outputs for one picture: a mapping with an output of boxes [n, 4], one of scores [n] and one of classes [n], found by
            their names (`box`; `score` or `conf`; `class` or `label`), and perhaps their number (`num`), keypoints and masks; one
            array [n, 6] with x1, y1, x2, y2, score and class in each row; a YOLO's array before suppression, [4 + classes, n] or
            [n, 5 + classes] (with objectness); or a list of boxes as it is returned, each `box` perhaps by names of its sides.
        labels: class -> name; None: the class.
        none_found: one of `RULES`.
        wrong: makes the exception to raise for outputs of another form.

    Returns:
        For each box its `label`, `score` and `box` (four numbers, as the model gives them; x1, y1, x2, y2 of one before
        suppression), with `keypoints` and `mask` where there are any; and the confidence, 0..1.
    """
    parts = None
    with suppress(TypeError, ValueError, IndexError, OverflowError):  # none is chained: its text may quote the output
        parts = _arrays(row, labels, wrong)
    if parts is None or any(part.dtype.kind not in "fiub" for part in parts[:2]) or parts[2].dtype.kind not in "fiubUO":
        raise wrong("gives no arrays of numbers for boxes, scores and classes")
    boxes, scores, classes, more = parts
    if len(scores) and not ((scores >= 0) & (scores <= 1)).all():
        raise wrong("gives scores of boxes that are not from 0 to 1: boxes need the model's own scores after the sigmoid")
    detections = [
        {
            "label": _label_of(classes[i], labels, wrong), "score": float(scores[i]), "box": [float(v) for v in boxes[i]],
            **{key: values[i] for key, values in more.items()},
        }
        for i in np.flatnonzero(scores >= FOUND).tolist()
    ]  # fmt: skip
    detections.sort(key=lambda detection: -detection["score"])
    if detections or none_found == "score":
        return detections, float(np.maximum(scores, 1 - scores).min()) if len(scores) else 1.0
    return [], 0.0 if none_found == "defer" else 1.0


Parts = tuple[Array, Array, Array, dict[str, Any]]  # boxes [n, 4], scores [n], classes [n], and name -> further values [n, ...]


def _arrays(row: Any, labels: Sequence[Any] | None, wrong: Callable[[str], Exception]) -> Parts:
    """Return the parts of a detector's outputs, in any form that `read_boxes` takes. Raise `wrong` for other outputs.

    A batch axis of 1 is dropped, a single named output is read as an array, and a number output cuts boxes, scores and classes;
    without classes all are 0. Boxes still to be decoded by anchors raise `wrong` too, which says what to do.
    """
    if isinstance(row, list) and len(row) == 1 and isinstance(row[0], Mapping) and not are_detections(row):
        row = row[0]  # of a batch of one picture, as torchvision gives it
    if isinstance(row, Mapping):
        names = _names(row)
        if names is None and len(row) == 1:
            return _arrays(next(iter(row.values())), labels, wrong)
        if names is None:
            listed = f"has outputs {', '.join(map(str, row))}: boxes need one named box, one score, and one class or label"
            raise wrong(before_anchors(row) or listed)
        parts = _of_named_outputs(row, *names)
    elif are_detections(row) or (isinstance(row, list) and not row):
        sides = [box["box"] for box in row]
        boxes = np.array([[*side.values()] if isinstance(side, Mapping) else side for side in sides]).reshape(-1, _SIDES)
        scores = np.array([box["score"] for box in row], float)
        parts = boxes, scores, np.array([box.get("label", 0) for box in row], object), {}
    else:
        array = np.asarray(row)
        array = array[0] if array.ndim == 3 and len(array) == 1 else array  # noqa: PLR2004 - with its batch axis
        columns = _columns(array, labels) if array.ndim == 2 and array.dtype.kind in "fiub" else None  # noqa: PLR2004
        if columns is None:
            raise wrong(
                f"gives an output {list(array.shape)}{_TEXT * (array.dtype.kind in 'USO')}: boxes are [n, 6] (x1, y1, x2, y2, "
                f"score, class), or before non-maximum suppression [4 + classes, n] or [n, 5 + classes], of at least {RAW} boxes"
                + (f" and with {len(labels)} labels" if labels else "")
            )
        parts = columns
    boxes, scores, classes, more = parts
    boxes = boxes if boxes.size else boxes.reshape(0, _SIDES)
    if boxes.ndim == 2 and boxes.shape[1] == _SIDES and _before_anchors(boxes, scores):  # noqa: PLR2004 - [n, 4]
        raise wrong(before_anchors(row) or _to_decode(len(boxes), len(scores) // len(boxes), "scores"))
    if boxes.ndim != 2 or boxes.shape[1] != _SIDES or not len(boxes) == len(scores) == len(classes):  # noqa: PLR2004
        raise wrong(f"gives {list(boxes.shape)} boxes, {len(scores)} scores and {len(classes)} classes, which do not fit")
    return boxes, scores, classes, more


def _of_named_outputs(row: Mapping[str, Any], box: Any, score: Any, label: Any) -> Parts:
    """Return the parts of named outputs, of which these hold boxes, scores and classes; without the latter, all classes are 0."""
    more: dict[str, Any] = {}
    boxes, scores = np.asarray(row[box]), np.asarray(row[score]).reshape(-1)
    classes = np.zeros(len(scores)) if label is None else np.asarray(row[label]).reshape(-1)
    boxes = boxes[0] if boxes.ndim == 3 and len(boxes) == 1 else boxes  # noqa: PLR2004 - with its batch axis
    boxes = boxes[None] if boxes.shape == (_SIDES,) and len(scores) == 1 else boxes
    for name, key in (("keypoints", "keypoints"), ("masks", "mask")):
        if name in row and len(row[name]) == len(boxes):
            more[key] = np.asarray(row[name])
    number = next((row[name] for name in row if "num" in str(name).lower()), None)
    if number is not None and np.size(number) == 1:
        n = int(np.asarray(number).reshape(-1)[0])
        boxes, scores, classes = boxes[:n], scores[:n], classes[:n]
    return boxes, scores, classes, more


def before_anchors(row: Any) -> str:
    """Return what is wrong with boxes that anchors have still to decode, by the shapes of all outputs, and what to write.

    Empty unless there are many rows of four sides beside rows of scores, or of sides and points beside one score each.
    """
    shapes = {name: np.shape(value) for name, value in row.items()} if isinstance(row, Mapping) else {}
    tables = [(name, *shape[-2:]) for name, shape in shapes.items() if len(shape) > 1 and set(shape[:-2]) <= {1}]
    for name, n, sides in tables:
        for other, rows, scores in tables:
            if other != name and rows == n >= RAW and (sides == _SIDES or (scores == 1 and sides > _SIDES)):
                return _to_decode(n, scores, other)
    return ""


def _to_decode(boxes: int, scores: int, name: Any) -> str:
    """Return the message about boxes before their anchors, with so many scores each in the output of this name."""
    return (
        f"gives {boxes} boxes before anchors and non-maximum suppression, with {scores} scores each: export the model with that "
        f'last step, or write kind="value", score=lambda out: out["{name}"].max(), after a sigmoid if it has none'
    )


def _before_anchors(boxes: Array, scores: Array) -> bool:
    """Return True for boxes with a score for each class, or with many sides below 0, as offsets from anchors have them."""
    several = len(scores) > len(boxes) > 0 == len(scores) % max(1, len(boxes))
    return several or (len(boxes) >= RAW and bool((boxes[:, 2:] < 0).mean() > NEGATIVE))


def _columns(array: Array, labels: Sequence[Any] | None, *, suppressed: bool = True) -> Parts | None:
    """Return the parts of one array: [n, 6], or a YOLO's, which is suppressed unless `suppressed` is False; None for another.

    The longer axis counts the boxes before suppression: if that is the first axis, they have an objectness, by which the scores
    of the classes are multiplied. Columns behind those of the labels are keypoints, three numbers each; others are left out.
    """
    whole = array[:, _COLUMNS - 1 :]
    if array.shape[1] == _COLUMNS and (len(array) < RAW or (whole == np.floor(whole)).all()):
        return array[:, :_SIDES], array[:, _SIDES], array[:, _SIDES + 1], {}
    first = len(array) > array.shape[1]
    array = array if first else array.T
    n, columns = array.shape
    begin = _SIDES + (1 if first and columns - _SIDES != len(labels or ()) else 0)
    end = begin + len(labels) if labels else columns
    if n < RAW or not begin < end <= columns:
        return None
    by_class = array[:, begin:end] * (array[:, _SIDES : _SIDES + 1] if begin > _SIDES else 1)
    scores, classes = by_class.max(1), by_class.argmax(1)
    boxes = np.concatenate([array[:, :2] - array[:, 2:4] / 2, array[:, :2] + array[:, 2:4] / 2], axis=1)
    kept = suppress_overlaps(boxes, scores, classes) if suppressed else np.arange(n)
    points = array[kept, end:]
    more = {"keypoints": points.reshape(len(kept), -1, 3).tolist()} if points.shape[1] and points.shape[1] % 3 == 0 else {}
    return boxes[kept], scores[kept], classes[kept], more


def suppress_overlaps(boxes: Array, scores: Array, classes: Array) -> Array:
    """Return the indices of the boxes that remain after non-maximum suppression within each class, best first.

    A box is removed if its intersection over union with a better one of its class exceeds `OVERLAP`. Of the boxes with a score
    below `FOUND`, only the best `RAW` are looked at. At most `MOST` remain.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[: int((scores >= FOUND).sum()) + RAW]
    areas, kept = (boxes[:, 2:] - boxes[:, :2]).prod(1), list[int]()
    while len(order) and len(kept) < MOST:
        best, order = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        common = np.maximum(sides, 0).prod(1)
        order = order[(classes[order] != classes[best]) | (common <= OVERLAP * (areas[best] + areas[order] - common))]
    return np.array(kept, int)


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
