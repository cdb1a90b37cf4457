"""Labels on demand for max_loss: asked where edge and cloud differ, from the surest answer down, until the test stops.

An accepted answer that equals the cloud's loses nothing, and the test never looks beyond the block of equal scores at which it
stops. So the labels of the rest have no part in the threshold, which is exactly that of full labels. The order of the questions
is that of the scores, and does not depend on labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import Floats, Ints
from edgeroute.confidence.output_forms_labels_and_comparison import equal, label_form, plain
from edgeroute.core.error_codes_and_texts import class_name
from edgeroute.errors import BadInput, PolicyError
from edgeroute.system.read_and_check_signatures import is_async
from edgeroute.tools.measure.collect_edge_and_cloud import FOREIGN, check_possible
from edgeroute.tools.measure.threshold_evaluation import (
    COMPARED,
    EXTENDED,
    Examples,
    LabelMatcher,
    LabelReader,
    is_blank,
    is_missing,
    is_right,
    reference_doubts,
)


class Question(NamedTuple):
    """Input on which edge and cloud differ."""

    number: int  # index of the input
    x: Any
    edge: Any  # the edge's answer
    cloud: Any


class LabelsOnDemand:
    """Reader of the labels of one calibration; a subclass judges the answers.

    Attributes:
        read: number of labels that the test has read.
    """

    def __init__(self) -> None:
        self.read = self._unknown = self._known = 0
        self._losses = list[float]()

    def begin(self, examples: Examples, inputs: Sequence[Any], names: Sequence[Any] | None) -> None:
        """Set the examples, the inputs that they come from, and the names of the edge's classes; None: it has none."""
        assert examples.cloud is not None
        self.examples, self.inputs, self.names, self.cloud = examples, inputs, names, examples.cloud

    def judge(self, questions: list[Question]) -> Iterable[float | None]:
        """Return for each question 1 if the cloud alone is right, -1 if the edge alone is, 0 for neither; None: unknown."""
        raise NotImplementedError

    def losses(self, rows: Ints) -> Floats:
        """Ask `judge` what is lost, 1, 0 or -1, where these examples' edge answers are accepted, and return it.

        Asks anew for examples that it was asked for before. The losses are recorded, and the labels counted. An unknown label
        counts as 1, the worst case: the mean of these losses is at least that of the true ones, so a guarantee for it holds for
        the true loss.
        """
        numbers = self.examples.numbers or range(len(self.examples.edge))
        questions = [Question(numbers[i], self.inputs[numbers[i]], self.examples.edge[i], self.cloud[i]) for i in map(int, rows)]
        judged = list(self.judge(questions))
        self.read += len(judged)
        self._unknown += judged.count(None)
        losses = [1.0 if loss is None else loss for loss in judged]
        self._losses += losses
        return np.array(losses)

    def doubts(self) -> list[str]:
        """Return warnings about a cloud that is worse than the edge by the labels that were read, or labels that fit neither."""
        losses = np.array(self._losses)
        neither = int(np.count_nonzero(losses == 0))
        doubts = [*reference_doubts(losses < 0, losses > 0)]
        if len(losses) >= COMPARED and neither > len(losses) / 2:
            doubts.append(f"{neither:,} are neither's answer: are they the labels of these inputs?")
        return [f"of the {len(losses):,} labels read, {doubt}" for doubt in doubts]

    def notes(self) -> list[str]:
        """Return notes on the numbers of labels that were read, and of those that are unknown."""
        assert self.examples.agree is not None
        differ, n = np.count_nonzero(~self.examples.agree), len(self.cloud)
        notes = [f"{self.read:,} labels were read, where edge and cloud differ in {differ:,} of {n:,} examples: no other counts"]
        if self._unknown:
            notes.append(f"{self._unknown:,} of these labels are unknown: they count as if the cloud alone were right")
        if 0 < self._known < self.read:
            notes.append(f"{self._known:,} of these labels{EXTENDED}")
        return notes


class FunctionLabels(LabelsOnDemand):
    """Labels that a function of the application returns.

    Args:
        function: returns the right answer to an input, as the edge answers, or as a class index; None, NaN, or an empty text
            that no model answers: unknown. A number that is the name of a class is no index. With an attribute `batched` that is
            true, it takes a list of inputs and returns as many labels.
        known: index of an input -> its label, for which the function is not called; if that is unknown, it is.
        every: the inputs are each `every`-th of those that the indices count.

    Attributes:
        labels: index of an input -> its label: `known`, and all that the function has returned.

    Raises:
        BadInput: a known label has no index.
        PolicyError: it is no function, or an asynchronous one.
    """

    def __init__(self, function: Callable[[Any], Any], known: Mapping[int, Any], every: int = 1) -> None:
        super().__init__()
        if not callable(function):
            raise PolicyError(f"label= takes a function of an input, not a {class_name(function)}: pass known labels as y")
        if is_async(function):
            raise PolicyError("label= takes a plain function, which runs in a thread: an asynchronous one is awaited by nobody")
        if wrong := [i for i in known if not isinstance(i, int | np.integer) or i < 0]:
            raise BadInput(f"y has a label for input {wrong[0]!r}: with label= it may map indices, from 0, to labels")
        self._function, self._every = function, every
        self.labels = {int(i): label for i, given in known.items() if not is_missing(label := _plain(given))}
        self._other_form: tuple[Any, Any] | None = None
        self._unlike = list[Any]()  # labels that equal no answer, as long as none has
        self._has_matched = False

    def begin(self, examples: Examples, inputs: Sequence[Any], names: Sequence[Any] | None) -> None:
        """Set the examples, inputs and class names, and the forms of answers with which labels are compared.

        Raises BadInput for a known label without an input.
        """
        super().begin(examples, inputs, names)
        if (last := max(self.labels, default=0)) >= len(inputs) * self._every:
            raise BadInput(f"y has a label for input {last}, and the last input is {len(inputs) * self._every - 1} at most")
        self._answers = [*examples.edge, *self.cloud]
        self._blank = not any(map(is_blank, [*self._answers, *(names or ())]))
        self.labels = {i: label for i, label in self.labels.items() if not is_missing(label, blank=self._blank)}
        self._given = {*self.labels}
        self._match, self._class = LabelMatcher(names, examples.edge, self.cloud), LabelReader(names)
        self._forms = {label_form(answer) for answer in self._answers} - {None}

    def judge(self, questions: list[Question]) -> Iterable[float | None]:
        """Return the losses by the function's labels, which are stored; known ones are not asked for. None: unknown.

        An exception, also the function's own, carries the labels so far as its attribute `labels`.
        """
        self._known += sum(question.number * self._every in self._given for question in questions)
        try:
            self._ask_together([question for question in questions if question.number * self._every not in self.labels])
            return [self._loss(question) for question in questions]
        except BaseException as e:
            self._attach(e)
            raise

    def notes(self) -> list[str]:
        """Return notes on the labels that were read, also if their form is not that of the answers.

        Raises:
            BadInput: none of them equals an answer of edge or cloud, so that nothing would be compared; has the labels.
        """
        if self._unlike and not self._has_matched:
            try:
                self._check(least=1)
            except BadInput as e:
                self._attach(e)
                raise
        notes = [*super().notes(), *([] if self.names is None else self._class.notes())]
        if self._other_form is not None:
            label, answer = self._other_form
            notes.append(f"labels are compared in another form than that of the answers ({label!r} is {answer!r})")
        return notes

    def _ask_together(self, questions: list[Question]) -> None:
        """Call a function that takes lists for these inputs, and store its labels; do nothing with another function.

        Raises BadInput if it returns another number of labels.
        """
        if getattr(self._function, "batched", False) and questions:
            labels = list(self._function([question.x for question in questions]))
            if len(labels) != len(questions):
                raise BadInput(f"label= returned {len(labels)} labels for {len(questions)} inputs")
            self.labels |= {q.number * self._every: _plain(label) for q, label in zip(questions, labels, strict=True)}

    def _loss(self, question: Question) -> float | None:
        """Return the loss of a label: 1 if the cloud alone is right, -1 if the edge is, 0 for neither.

        None: the label is unknown. Calls the function if the label is not known, and stores it; removes a label that is none of
        the edge's classes.

        Raises:
            BadInput: the label is none of the classes, or so many labels equal no answer that none can be right.
        """
        number = question.number * self._every
        if number not in self.labels:
            self.labels[number] = _plain(self._function(question.x))
        label = self.labels[number]
        if is_missing(label, blank=self._blank):
            return None
        if self.names is not None:
            try:
                label = self._class(label, number)
            except BadInput:
                del self.labels[number]
                raise
        self._has_matched = self._has_matched or label_form(label) in self._forms
        loss, answer = self._loss_of(label, question.edge, question.cloud)
        if loss is None and not self._has_matched:
            self._unlike.append(label)
            self._check(FOREIGN)
        if loss is not None:
            self._has_matched = True
            if not equal(label, answer):
                self._other_form = label, answer
        return loss or 0.0

    def _loss_of(self, label: Any, edge: Any, cloud: Any) -> tuple[float | None, Any]:
        """Return the loss by a label, compared as full labels are, and the answer that is right; None: neither is."""
        right = self._match(label)
        sides = ((1.0, cloud), (-1.0, edge))
        return next(((loss, answer) for loss, answer in sides if is_right(self._match(answer), right)), (None, None))

    def _check(self, least: int) -> None:
        """Raise `BadInput` if the labels equal no answer: so many of them, or fewer of another kind."""
        check_possible("label function", self._unlike, self._answers, [], labelled=True, least=least)

    def _attach(self, error: BaseException) -> None:
        """Give an exception the labels so far, and from Python 3.11 on a note on how to go on with them."""
        with suppress(AttributeError, TypeError):  # of a class without attributes
            error.labels = dict(self.labels)  # type: ignore[attr-defined]
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(f"calibrate(X, error.labels, label=...) goes on from the labels so far: {len(self.labels):,}")


def _plain(label: Any) -> Any:
    """Return a label as Python's value; an array of several elements unchanged."""
    return plain(label) if getattr(label, "size", 1) == 1 else label
