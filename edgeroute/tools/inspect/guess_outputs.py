"""Guesses of a model's output kind, class names and card, from names, shapes and the values of trial runs; pure."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from edgeroute.confidence import output_forms_labels_and_comparison as forms
from edgeroute.confidence.detector_boxes import are_boxes, are_rows_of_boxes, before_anchors, named_boxes
from edgeroute.confidence.output_reader import LIMITED, SEVERAL
from edgeroute.edge.input_checks_and_stacking import Array, shape_text
from edgeroute.tools.inspect.input_guesses_and_trial_tensors import Finding, InputGuess, Pair, Sure, quoted, text, words
from edgeroute.types import TensorSpec

Row = Mapping[str, Any]  # outputs of one input by name, without a batch axis
_PROBABILITIES = frozenset(["prob", "probs", "probability", "probabilities", "softmax", "proba"])
_LOGITS = frozenset(["logit", "logits"])
_SCORES = frozenset(["score", "scores", "class", "classes", "classification", "cls"])
_COLUMNS = 6
_LAST = "x1, y1, x2, y2, a score from 0 to 1 and a whole class in each row, after non-maximum suppression"
_SIDES = 4
_MATRIX = 2
KIND, NAME, LABELS = "output.kind", "output.name", "labels"
_STEPS = '"output": {"kind": "value"}  (or "ctc", of a number for each step and class)'
_VALUE = 'A value has no confidence: every input is deferred, unless the policy says no_confidence = "accept"'


def guess_outputs(specs: Sequence[TensorSpec], rows: Sequence[Row], kind: str | None = None, grounds: str = "") -> list[Finding]:
    """Guess what the outputs are, and return findings (some of them open questions) for a card.

    A kind of the file goes first and is certain; without runs, names decide; else the values of the runs do. Of several outputs
    one is taken for the answer, if they are not a detector's, label and probabilities, or tokens.

    Args:
        specs: specifications of the outputs, without those that are fed back.
        rows: outputs of the model for some inputs; empty: it did not run.
        kind: kind that the file itself tells, as a router reads it; None: it does not.
        grounds: text that says why.
    """
    seen = [row for row in rows if row]
    if not specs:
        return [Finding(KIND, "nothing", "open", "every output is fed back, so that none is left to read")]
    if kind is not None:
        shapes = {np.shape(row[specs[0].name]) for row in seen if specs[0].name in row}
        count = shapes.pop()[-1] if len(shapes) == 1 and () not in shapes else None
        if kind == "multilabel" and {np.size(row[specs[0].name]) for row in seen if specs[0].name in row} == {1}:
            grounds = f"{grounds.replace(kind, 'probabilities')}: a binary classifier's, of the second class"
            kind, count = "probabilities", 2
        if kind in LIMITED and seen and np.ndim(np.squeeze(seen[0].get(specs[0].name, 0))) > 1:
            why = f"{grounds}, and they have several axes for one input. Without another kind, the value is the array"
            return [_kind_finding(None, "open", why, _STEPS)]
        if kind == "value":
            return [_kind_finding(kind, "certain", f"{grounds}{'' if 'TopK' in grounds else ': an embedding'}. {_VALUE}")]
        return [_kind_finding(kind, "certain", grounds), _class_names_finding(None if kind in SEVERAL else count)]
    if not seen:
        return _by_names(specs)
    if len(specs) > 1:
        for together in (_boxes, _label_and_probabilities, _tokens):
            if (findings := together(seen)) is not None:
                return findings
        if wrong := before_anchors(seen[0]):
            return [_kind_finding(None, "open", f"it {wrong}", _card_line("value"))]
    name, findings = _answer_output(specs)
    single = _single_output(name, [row[name] for row in seen if name in row])
    if findings and findings[0].sure == "open":  # so the kind is that of an output that may not be read
        single = [doubted(finding, f"if {quoted(name)} is read, {finding.grounds}", name) for finding in single]
    return [*findings, *single]


def doubted(finding: Finding, grounds: str, name: str | None = None) -> Finding:
    """Return a guessed kind or labels as an open finding, with the line that would state them; any other finding unchanged.

    name: output that the line names; None: the only one.
    """
    if name is not None and finding.write.startswith('"output": {"kind"'):
        finding = finding._replace(write=finding.write.replace("{", f'{{"name": {text(name)}, ', 1))
    if finding.about not in {KIND, LABELS} or finding.sure == "open":
        return finding
    line = _card_line(finding.says, name) if finding.about == KIND else '"labels": ["...", ...]'
    return Finding(finding.about, f"{finding.says}?", "open", grounds, line)


def _row_count(rows: Sequence[Any]) -> str:
    """Return how many trial rows were seen, as part of a sentence."""
    return f"in {'the one row' if len(rows) == 1 else f'all {len(rows)} rows'} of its output"


def _kind_finding(kind: str | None, sure: Sure, grounds: str, write: str = "") -> Finding:
    """Return a finding about `output.kind`; None: an open question."""
    return Finding(KIND, kind or "?", sure, grounds, write)


def _card_line(kind: str, name: str | None = None) -> str:
    """Return the line of a card that states a kind."""
    return '"output": {' + (f'"name": {text(name)}, ' if name else "") + f'"kind": "{kind}"}}'


def _boxes(rows: Sequence[Row]) -> list[Finding] | None:
    """Return the findings if the outputs are boxes with scores, by name and shape, in each row; None otherwise."""
    if not all(are_boxes(_without_batch(row)) for row in rows):
        return None
    named = "their names have box and score in them, and the boxes have four sides"
    return [_kind_finding("boxes", "likely", f"{named}, {_row_count(rows)}"), _class_names_finding(None)]


def _without_batch(row: Row) -> Row:
    """Return outputs without a batch axis of size 1."""
    return {name: value[0] if np.ndim(value) == 3 and len(value) == 1 else value for name, value in row.items()}  # noqa: PLR2004


def _label_and_probabilities(rows: Sequence[Row]) -> list[Finding] | None:
    """Return the finding if the outputs are a label and a number for each class, in each row; None otherwise.

    It is open if the numbers are no probabilities, as they may be scores.
    """
    parts = [forms.label_and_probabilities(row) for row in rows]
    if not all(parts):
        return None
    listed = ", ".join(map(quoted, rows[0]))
    names = [_name_of(rows[0], part) for part in parts[0] or ()]
    if parts[0] and all(value is not parts[0][1] for value in rows[0].values()):
        why = f"of {listed}, {names[0]} is one label, and the others are numbers from 0 that sum to 1, {_row_count(rows)}"
        return [_kind_finding("label+probabilities", "likely", why)]
    if all(_are_probabilities(part[1]) for part in parts if part):
        why = f"{names[0]} is one label, and {names[1]} are numbers from 0 that sum to 1, {_row_count(rows)}"
        return [_kind_finding("label+probabilities", "likely", why)]
    why = (
        f"{names[0]} is one label, and the rows of {names[1]} are no probabilities: they may be scores before the softmax. "
        "Without a card, the label is read, and there is no confidence"
    )
    scores = next(name for name, value in rows[0].items() if parts[0] and value is parts[0][1])
    return [_kind_finding(None, "open", why, f"{_card_line('logits', scores)}  (if they are)")]


def _name_of(row: Row, part: Any) -> str:
    """Return the name of an output by its value, for messages."""
    return quoted(next((name for name, value in row.items() if value is part), "an output"))


def _are_probabilities(part: Any) -> bool:
    """Return True if two or more numbers, or the values of a mapping, are from 0 to 1 and sum to 1; raise if any is no number."""
    numbers = list(part.values()) if isinstance(part, Mapping) else forms.as_array(part).reshape(-1).tolist()
    return forms.sum_to_one([float(v) for v in numbers])


def _tokens(rows: Sequence[Row]) -> list[Finding] | None:
    """Return the finding if the outputs are several tokens and as many log-probabilities, 0 or less, in each row; else None."""
    parts = [forms.tokens_and_logprobs(row) for row in rows]
    if not all(parts) or not all((part[1] <= 0).all() and len(part[0]) > 1 for part in parts if part):
        return None
    why = f"tokens beside as many numbers that are 0 or less, {_row_count(rows)}: their log-probabilities"
    return [_kind_finding("logprobs", "likely", why)]


def _answer_output(specs: Sequence[TensorSpec]) -> tuple[str, list[Finding]]:
    """Return the name of the output that is read as the answer: the only one named after probabilities, logits or scores.

    Without one, the first, with an open question. A single output has no finding.
    """
    if len(specs) == 1:
        return specs[0].name, []
    listed = ", ".join(quoted(spec.name) for spec in specs)
    for hints in (_PROBABILITIES, _LOGITS, _SCORES):
        by_name = [spec.name for spec in specs if not hints.isdisjoint(words(spec.name))]
        if len(by_name) == 1:
            why = f"of {listed} it is the only one named after {'probabilities' if hints is _PROBABILITIES else 'scores'}"
            return by_name[0], [Finding(NAME, by_name[0], "likely", why)]
    why = f"there are {listed}, and nothing tells which of them is the answer: without a card, the first is read"
    return specs[0].name, [Finding(NAME, "?", "open", why, f'"output": {{"name": {text(specs[0].name)}}}  (or another)')]


def _single_output(name: str, values: Sequence[Any]) -> list[Finding]:
    """Return the findings about one output, by the form of its values: by class, labels, one number, several, or several axes.

    An open question if its values differ in form.
    """
    if values and all(forms.is_by_class(value) for value in values):
        if not all(_are_probabilities(value) for value in values):
            return [_kind_finding(None, "open", "a number for each class, which are no probabilities", _card_line("logits"))]
        why = f"a number for each class, by name, from 0 and with the sum 1, {_row_count(values)}"
        return [_kind_finding("probabilities", "likely", why)]
    arrays = [forms.along_one_axis(forms.as_array(value)) for value in values]
    if not arrays or len({(array.ndim, array.dtype.kind) for array in arrays}) > 1:
        return [_kind_finding(None, "open", "its rows differ in form", _card_line("value"))]
    first = arrays[0]
    if first.dtype.kind in "iubUSO":
        return _label_output(first, arrays)
    if first.size == 1:
        return _number_output(name, arrays)
    if first.ndim == 1:
        return _vector_output(name, arrays)
    return _array_output(name, arrays)


def _label_output(first: Array, arrays: Sequence[Array]) -> list[Finding]:
    """Return the finding about an output of integers or texts: one is a label; what several mean is open."""
    what = "texts" if first.dtype.kind in "USO" else "integers"
    if first.size == 1:
        why = f"{what}, a single one {_row_count(arrays)}: a label, which has no confidence by itself"
        return [Finding("output", "a label", "certain", why)]
    if what == "texts":
        return [_kind_finding(None, "open", f"{first.size} texts in each row: the value is all of them", _card_line("value"))]
    why = f"{first.size} integers in each row: tokens, or scores for each class. Without a card, they are the value"
    if first.dtype.name in {"int8", "uint8"}:
        return [_kind_finding(None, "open", f"{why}. They may be {forms.UNSCALED}", _card_line("value"))]
    return [_kind_finding(None, "open", why, f"{_card_line('logits')}  (if they are scores)")]


def _number_output(name: str, arrays: Sequence[Array]) -> list[Finding]:
    """Return the finding about an output of one number per input, by its name and range: a class's, open, or a regression's."""
    values = [float(array.reshape(-1)[0]) for array in arrays]
    span = f"{min(values):.4g} to {max(values):.4g}"
    if not _LOGITS.isdisjoint(words(name)):
        why = f"one number in each row, {span}, and its name is {quoted(name)}: a binary classifier's before the sigmoid?"
        return [_kind_finding("value?", "open", why, f'{_card_line("logits")}, "labels": ["no", "yes"]')]
    if all(0 <= value <= 1 for value in values):
        why = (
            f"one number in each row, {span}: a binary classifier's after the sigmoid, or a regression's. Without a card, a value"
        )
        return [_kind_finding("value?", "open", why, f'{_card_line("probabilities")}, "labels": ["no", "yes"]')]
    return [_kind_finding("value", "likely", f"one number in each row, {span}, so no probability: a regression. {_VALUE}")]


def _vector_output(name: str, arrays: Sequence[Array]) -> list[Finding]:
    """Return the findings about an output of several numbers per input: probabilities, log-probabilities, embedding or logits.

    Without grounds in values or name, logits are an open question. Class names are asked for.
    """
    n, name_words = len(arrays[0]), frozenset(words(name))
    if all(_are_probabilities(array) for array in arrays):
        why = f"numbers from 0 that sum to 1, {_row_count(arrays)}: after a softmax"
        return [_kind_finding("probabilities", "likely", why), _class_names_finding(n)]
    with np.errstate(all="ignore"):
        logs = all((array <= forms.SUM_SLACK).all() and abs(float(np.exp(array).sum()) - 1) < forms.SUM_SLACK for array in arrays)
    if logs:
        why = f"numbers of 0 or less whose exponentials sum to 1, {_row_count(arrays)}: after a log-softmax"
        return [_kind_finding("logprobs", "likely", why), _class_names_finding(n)]
    why = f"{n} numbers in each row, which do not sum to 1"
    if forms.is_embedding(name) or all(forms.has_length_1(array.tolist()) for array in arrays):
        grounds = f"its name is {quoted(name)}" if forms.is_embedding(name) else "their norm is 1"
        return [_kind_finding("value", "likely", f"{why}, and {grounds}: an embedding. {_VALUE}")]
    if all(((array >= 0) & (array <= 1)).all() for array in arrays):
        many = "each from 0 to 1: perhaps of several labels that may all apply, which have a sigmoid each"
        return [_kind_finding("logits?", "open", f"{why}, {many}. Without a card, they are read as logits", _card_line("value"))]
    if name_words & (_LOGITS | _SCORES):
        return [_kind_finding("logits", "likely", f"{why}, and its name is {quoted(name)}"), _class_names_finding(n)]
    way = "without a card, they are read as logits, one for each class; an embedding or a regression would be read wrongly"
    return [_kind_finding("logits?", "open", f"{why}: {way}", f'{_card_line("logits")}  (or "value")'), _class_names_finding(n)]


def _array_output(name: str, arrays: Sequence[Array]) -> list[Finding]:
    """Return the findings about an output of several axes per input: boxes if all have their form, else an open question."""
    shape = arrays[0].shape
    form = f"{quoted(name)} is {shape_text(shape)} for one input"
    if all(are_rows_of_boxes(array, None) and array.any() for array in arrays):
        last = shape[1] == _COLUMNS
        why = f"{form}: {_LAST if last else 'sides and scores of classes for each box, before non-maximum suppression'}"
        return [_kind_finding("boxes", "likely", why), _class_names_finding(None)]
    raw = len(shape) == _MATRIX and max(shape) >= 100 and min(shape) > _SIDES  # noqa: PLR2004 - as many places of boxes
    more = "boxes before non-maximum suppression? " if raw else ""
    why = f"{form}: {more}Without a card, the value is the array, and a confidence takes a score of your own"
    return [_kind_finding("value?", "open", why, _card_line("boxes") if raw else _STEPS)]


def _class_names_finding(count: int | None) -> Finding:
    """Return the open question for the names of the classes."""
    line = '"labels": ["...", ...]  (' + ("names" if count is None else f"{count} names") + ", in the order of the classes)"
    return Finding(LABELS, "?", "open", "without them an answer is the number of a class", line)


def _by_names(specs: Sequence[TensorSpec]) -> list[Finding]:
    """Return the findings that names, dtypes and shapes allow, of a model that did not run; a question if they tell nothing."""
    names = {spec.name: frozenset(words(spec.name)) for spec in specs}
    if len(specs) > 1 and named_boxes({spec.name: spec.shape for spec in specs}):
        return [_kind_finding("boxes", "likely", "their names have box and score in them, and the boxes have four sides")]
    labels = [s.name for s in specs if s.dtype[:3] in {"int", "uin", "obj"} and all(size == 1 for size in s.shape[1:])]
    probable = [spec.name for spec in specs if names[spec.name] & _PROBABILITIES]
    if len(specs) > 1 and labels and len(probable) == 1:
        why = f"by their names and dtypes: {quoted(labels[0])} is a label, and {quoted(probable[0])} says probabilities"
        return [_kind_finding("label+probabilities", "likely", why)]
    name, findings = _answer_output(specs)
    for hints, kind in ((_PROBABILITIES, "probabilities"), (_LOGITS, "logits")):
        if names[name] & hints:
            return [*findings, _kind_finding(kind, "likely", f"by its name, {quoted(name)}; it was not run")]
    if forms.is_embedding(name):
        return [*findings, _kind_finding("value", "likely", f"by its name, {quoted(name)}: an embedding. {_VALUE}")]
    hint = f"{_card_line('logits')}  (or another kind)"
    return [*findings, _kind_finding(None, "open", "it was not run, and its name does not tell", hint)]


def named_classes(metadata: Mapping[str, str], count: int | None) -> tuple[str, list[str]] | None:
    """Return class names from a file's metadata, with their key (names, labels, classes, class_names); None if there are none.

    A list, or number -> name, in JSON or as Python writes it. `count`: required number; None: any.
    """
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for key in ("names", "labels", "classes", "class_names"):
        text = metadata.get(key, "")
        if not 1 < len(text) < 1 << 16:
            continue
        for read in readers:
            with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                names = read(text)
                if isinstance(names, dict) and sorted(map(int, names)) == list(range(len(names))):
                    names = [name for _, name in sorted((int(i), name) for i, name in names.items())]
                if isinstance(names, list) and names and count in (None, len(names)) and {*map(type, names)} == {str}:
                    return key, names
    return None


def batch_of(single: Mapping[str, Any], several: Mapping[str, Any], count: int) -> int | str | None:
    """Return the output axis that counts the inputs, by comparing a run of one input with a run of several.

    "none": there is none; None: the outputs differ in it.
    The output may lack the axis, or be a list, whose length counts.
    """
    axes = set[int]()
    for name, value in several.items():
        a, b = _sizes(single[name]), _sizes(value)
        changed = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if (x, y) == (1, count)]
        if len(a) != len(b) or len(changed) > 1:
            return None
        axes.update(changed or [-1])
    return ("none" if (axis := axes.pop()) == -1 else axis) if len(axes) == 1 else None


def _sizes(value: Any) -> tuple[int, ...]:
    """Return the shape of an output, or the length of a list."""
    return (len(value),) if isinstance(value, list) else tuple(np.shape(value))


def card_of(
    inputs: Sequence[InputGuess], states: Sequence[Pair], findings: Sequence[Finding], batch: int | str | None = None
) -> dict[str, Any]:
    """Return the data of a card with the inputs, states, and certain and likely findings on the output; open ones are left out.

    batch: output axis that counts the inputs, or "none"; 0 and None are not written.
    """
    data: dict[str, Any] = {}
    written = [guess.written for guess in inputs if guess.role != "state"]
    if written:
        data.update({"input": written[0]} if len(written) == 1 and len(inputs) == 1 else {"inputs": written})
    if states_written := [{"input": pair.input, "output": pair.output} for pair in states if pair.sure != "open"]:
        data["state"] = states_written
    output: dict[str, Any] = {}
    for finding in findings:
        if finding.sure != "open" and finding.about in {NAME, KIND} and finding.says != "?":
            output[finding.about.removeprefix("output.")] = finding.says
    if batch not in (None, 0):
        output["batch"] = batch
    return {**data, "output": output} if output else data
